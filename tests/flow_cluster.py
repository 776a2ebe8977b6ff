"""Flow runs as Jobs: the manifests of ``k8s/`` on the tests' cluster, beside a real Prefect server and a real store."""

import base64
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kube_api
import yaml
from environs import credentials, on_one_core
from kube_access import account
from kube_api import Cluster
from kube_containers import Launch, Program
from kube_node import Node
from kube_pods import POD
from prefect_stack import Stack, prefect_stack, until

from pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
IMAGE = "safelight/pipeline:dev"
OURS = ("prefect-worker", "prefect-init", "flow-run", "flow-resources", "safelight")
BROKEN = "broken:1"
"""An image whose container ends before it has reached the Prefect server."""
IDLE = "idle:1"
"""An image whose container never says anything to anybody."""
COMPLAINT = "cannot open shared object file"
GPU_NODE = {"nvidia.com/gpu.present": "true"}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
SECRETS = "/run/secrets/safelight"

Manifest = dict[str, Any]


@dataclass
class FlowCluster:
    """A cluster with a worker, and the Prefect server that it asks."""

    cluster: Cluster
    stack: Stack
    manifests: Mapping[str, Manifest]

    def jobs(self, run: str) -> list[Manifest]:
        """The Jobs that a run has now."""
        return self.cluster.objects("Job", f"prefect.io/flow-run-id={run}")

    def pods(self, run: str) -> list[Manifest]:
        """The pods that a run has now."""
        return self.cluster.objects("Pod", f"prefect.io/flow-run-id={run}")

    def kill(self, run: str) -> None:
        """SIGKILL to all processes of a run's pods, as where a container exceeds its memory."""
        for process in self.stack.processes(run):
            process.kill()

    def asked(self, name: str) -> set[tuple[str, str, str]]:
        """What a ServiceAccount wanted of the cluster: verb, group of the API and resource."""
        user = account(self.cluster.namespace, name)
        return {each[1:] for each in self.cluster.access.asked if each[0] == user}

    def set_up_again(self) -> None:
        """What an upgrade does: the Job of the set-up is deleted and applied."""
        job = self.manifests["Job/prefect-init"]
        self.cluster.delete("Job", "prefect-init", propagationPolicy="Foreground")
        until(lambda: not self.cluster.objects("Job", "app.kubernetes.io/name=prefect-init"), 60, "end of the last one")
        self.cluster.apply([job])
        until(lambda: _is_registered(self.cluster), 120, "completed Job prefect-init")

    def lose_node_of(self, run: str) -> None:
        """Let a run's pod be on a node that is gone: it is said to run for ever, but is not ready any more."""
        (pod,) = self.pods(run)
        kubelet = self.cluster.nodes.runs[pod["metadata"]["uid"]]
        kubelet.closing.set()
        kubelet.join()

        def unready(found: Manifest) -> None:
            for each in found["status"]["conditions"]:
                each["status"] = "False" if each["type"] == "Ready" else each["status"]

        self.cluster.objects_.change(POD, pod, unready, status=True)

    def kill_worker(self) -> None:
        """SIGKILL to the worker; its pod starts it anew."""
        (pod,) = self.cluster.objects("Pod", "app.kubernetes.io/name=prefect-worker")
        self.cluster.nodes.runs[pod["metadata"]["uid"]].container("").kill()

    def worker_restarts(self) -> int:
        """How often the worker was started anew; -1 while it is not ready."""
        (pod,) = self.cluster.objects("Pod", "app.kubernetes.io/name=prefect-worker")
        (container,) = pod["status"]["containerStatuses"]
        return int(container["restartCount"]) if container["ready"] else -1


def rendered(folder: str) -> list[Manifest]:
    """What kubectl makes of a folder of ``k8s``."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", ROOT / "k8s" / folder], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def ours(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Those of the worker and its set-up, by kind and name."""
    return {
        f"{each['kind']}/{each['metadata']['name']}": each for each in manifests if each["metadata"]["name"] in OURS
    }


def pipeline_image(launch: Launch) -> Program:
    """What is started in place of the pipeline's image: its entry point, on this machine's Python."""
    # the volume is a folder of this machine, and the entry point knows the path of a container alone
    volume = launch.folder.parents[1] / "volumes" / "secrets"
    entry = launch.folder / "with-secrets"
    entry.write_text((ROOT / "pipeline" / "with-secrets").read_text().replace(SECRETS, str(volume)))
    # every pod has an address of its own, and may not take the machine's others
    own = {"PREFECT_WORKER_WEBSERVER_HOST": launch.address, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    path = f"{Path(sys.executable).parent}:{launch.env['PATH']}"
    own |= {"PATH": path, "PREFECT_HOME": f"{launch.env['TMPDIR']}/prefect", "SAFELIGHT_DEVICE": "cpu"}
    return Program(["sh", str(entry), *launch.args], launch.env | own)


def broken_image(launch: Launch) -> Program:
    """What is started in place of an image that was built for another machine."""
    return Program(["sh", "-c", f"echo {COMPLAINT}; exit 127"], launch.env)


def idle_image(launch: Launch) -> Program:
    """What is started in place of an image that hangs."""
    return Program(["sleep", "infinity"], launch.env)


@contextmanager
def flow_cluster(home: Path, settings: Settings, manifests: Mapping[str, Manifest]) -> Iterator[FlowCluster]:
    """Everything applied; the worker is ready, and knows the flows.

    Args:
        home: an empty folder.
        settings: of the store.
        manifests: of the worker and its set-up.
    """
    with prefect_stack(home, on_one_core(settings), registered=False) as stack:
        hosts = {
            "http://object-store:9000": settings.s3_endpoint or "",
            "http://prefect-server:4200": f"http://127.0.0.1:{stack.port}",
        }
        images = {IMAGE: pipeline_image, BROKEN: broken_image, IDLE: idle_image}
        node = {"images": images, "hosts": hosts}
        nodes = [
            Node("node-1", **node),
            Node("gpu-1", **node, labels=GPU_NODE, allocatable={"nvidia.com/gpu": "1"}, taints=(GPU_TAINT,)),
        ]
        with kube_api.started(home, nodes=nodes) as cluster:
            flows = FlowCluster(cluster, stack, manifests)
            cluster.apply(_secrets(stack, settings))
            deployment = manifests["Deployment/prefect-worker"]
            cluster.apply([_with_store(each, settings) for each in manifests.values() if each is not deployment])
            until(lambda: _is_registered(cluster), 120, "completed Job prefect-init")
            cluster.apply([deployment])
            until(lambda: _is_ready(cluster), 120, "worker that is ready")
            yield flows


def _with_store(manifest: Manifest, settings: Settings) -> Manifest:
    """A manifest, in the ConfigMap of which the tests' part of the store stands."""
    if manifest["kind"] != "ConfigMap" or manifest["metadata"]["name"] != "safelight":
        return manifest
    return {**manifest, "data": {**manifest["data"], "SAFELIGHT_STORE_URL": settings.store_url}}


def _secrets(stack: Stack, settings: Settings) -> list[Manifest]:
    """As an administrator has made them."""
    access, secret = credentials(settings)
    login = {"PREFECT_API_AUTH_STRING": ":".join(stack.auth)}
    own = {"store_access_key": access, "store_secret_key": secret}
    return [_secret("worker", login | own), _secret("prefect-init", login)]


def _secret(name: str, files: Mapping[str, str]) -> Manifest:
    data = {file: base64.b64encode(value.encode()).decode() for file, value in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def _is_registered(cluster: Cluster) -> bool:
    status = cluster.get("Job", "prefect-init").get("status", {})
    return any(each["type"] == "Complete" for each in status.get("conditions", ()))


def _is_ready(cluster: Cluster) -> bool:
    pods = cluster.objects("Pod", "app.kubernetes.io/name=prefect-worker")
    conditions = [each for pod in pods for each in pod.get("status", {}).get("conditions", ())]
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
