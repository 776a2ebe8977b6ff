"""Podman plays rendered manifests: real pods of them, without a cluster.

Podman runs Deployments, of one replica, and knows no Service, no Job's retries and no kubelet. What it cannot do is
done here as a cluster does it, or changed, and nothing else is; ``WHY`` has every change with its reason.
"""

import base64
import copy
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from manifests import Document, one, pod_template

NETWORK = "safelight-play"
UID = 10001
CONFIGURATION = """[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"""
"""Podman's own limits are above what a container may be allowed to set."""
WHY: Mapping[str, str] = {
    "secret volumes are folders of this machine": (
        "podman 4.3 mounts a Secret's values without decoding them; the files are written as the kubelet writes them, "
        "with the mode of the manifest, for the group that the pod names"
    ),
    "an emptyDir has the pod's name in its own": (
        "podman makes of it a volume of that very name, which all pods would share"
    ),
    "volumes are given to the pod's group": "podman does not know fsGroup, by which the kubelet does that",
    "probes are asked by the test": (
        "podman knows liveness alone, asks it by a curl that the image would have to have, and needs systemd's timers"
    ),
    "ports are not declared": (
        "podman publishes each on all addresses of this machine; pods are asked at their own address, as in a cluster"
    ),
    "replicas are said to be one": "podman plays one, and takes none said for none wanted",
}


def podman(*words: str | Path, folder: Path, given: str | None = None, check: bool = True) -> str:
    """What podman prints."""
    done = subprocess.run(
        ["podman", *map(str, words)],
        env={**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")},
        input=given,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert not check or done.returncode == 0, f"podman {words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def playable(manifest: Document, secrets: Path) -> Document:
    """A Deployment as podman can play it; ``WHY`` has each change.

    Args:
        manifest: as it was rendered.
        secrets: a folder for each Secret, with its files.
    """
    made = copy.deepcopy(manifest)
    made["spec"]["replicas"] = made["spec"].get("replicas", 1)
    pod = made["spec"]["template"]["spec"]
    names = {volume["name"]: f"{made['metadata']['name']}-{volume['name']}" for volume in pod["volumes"]}
    for volume in pod["volumes"]:
        if "secret" in volume:
            folder = secrets / volume.pop("secret")["secretName"]
            volume["hostPath"] = {"path": str(folder), "type": "Directory"}
        elif "emptyDir" in volume:
            volume["name"] = names[volume["name"]]
    hidden = {each["name"] for each in pod["volumes"]}
    for container in pod["containers"]:
        for part in ("startupProbe", "readinessProbe", "livenessProbe", "ports"):
            container.pop(part, None)
        for mount in container["volumeMounts"]:
            mount["name"] = mount["name"] if mount["name"] in hidden else names[mount["name"]]
    return made


def volumes_of(deployment: Document) -> dict[str, int]:
    """What podman calls each volume that a pod writes to, with the mode that the kubelet gives it."""
    found = {}
    for volume in deployment["spec"]["template"]["spec"].get("volumes", ()):
        if "emptyDir" in volume:
            found[f"{deployment['metadata']['name']}-{volume['name']}"] = 0o2777
        elif "persistentVolumeClaim" in volume:
            found[volume["persistentVolumeClaim"]["claimName"]] = 0o2775
    return found


def write_secret(folder: Path, secret: Document, mode: int) -> None:
    """The files of a Secret, as the kubelet gives them to a pod: root's, readable by the pod's group."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    for name, value in secret["data"].items():
        new = folder / f".{name}"
        new.write_bytes(base64.b64decode(value))
        os.chown(new, 0, UID)
        new.chmod(mode)
        new.replace(folder / name)  # never half of it in sight


@dataclass(frozen=True)
class Pods:
    """What is played.

    Attributes:
        folder: of podman's configuration and of secrets.
        manifests: as they were rendered.
    """

    folder: Path
    manifests: list[Document]

    def manifest(self, kind: str, name: str) -> Document:
        """The one that was rendered."""
        return one(self.manifests, kind, name)

    def container(self, name: str) -> Document:
        """The only container of a Deployment or Job, as it was rendered."""
        templates = (pod_template(each) for each in self.manifests if each["metadata"]["name"] == name)
        (template,) = filter(None, templates)
        (found,) = template["spec"]["containers"]
        return dict(found)

    def podman(self, *words: str | Path, **options: Any) -> str:
        """What podman prints."""
        return podman(*words, folder=self.folder, **options)

    def play(self, name: str) -> None:
        """Start a Deployment, with the claims and the ConfigMap that it names; its Service's name leads to it."""
        deployment = self.manifest("Deployment", name)
        pod = deployment["spec"]["template"]["spec"]
        for volume in pod["volumes"]:
            if wanted := volume.get("secret"):
                folder = self.folder / wanted["secretName"]
                write_secret(folder, self.manifest("Secret", wanted["secretName"]), wanted["defaultMode"])
        claims = [
            each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each
        ]
        played = [
            *(self.manifest("PersistentVolumeClaim", each) for each in claims),
            self.manifest("ConfigMap", "safelight"),
            playable(deployment, self.folder),
        ]
        words = ("kube", "play", "--start=false", "--network", f"{NETWORK}:alias={name}", "-")
        self.podman(*words, given=yaml.safe_dump_all(played))
        self.podman("start", self._infra(name))
        self.podman("init", self.id_of(name))  # mounts the volumes; podman gives them to root
        for volume, mode in volumes_of(deployment).items():
            path = self.podman("volume", "inspect", "--format", "{{.Mountpoint}}", volume)
            os.chown(path, 0, pod["securityContext"]["fsGroup"])
            Path(path).chmod(mode)
        self.podman("pod", "start", f"{name}-pod-0")

    def id_of(self, name: str) -> str:
        """What podman calls the container of a Deployment."""
        return f"{name}-pod-0-{self.container(name)['name']}"

    def inspect(self, name: str) -> dict[str, Any]:
        """All that podman knows of a Deployment's container."""
        found: dict[str, Any] = json.loads(self.podman("inspect", self.id_of(name)))[0]
        return found

    def address(self, name: str) -> str:
        """The address of a Deployment's pod."""
        networks = json.loads(self.podman("inspect", self._infra(name)))[0]["NetworkSettings"]["Networks"]
        return str(networks[NETWORK]["IPAddress"])

    def _infra(self, name: str) -> str:
        return self.podman("pod", "inspect", "--format", "{{.InfraContainerID}}", f"{name}-pod-0")

    def port(self, name: str, port: str | int) -> int:
        """The number of a port."""
        numbers = {each["name"]: each["containerPort"] for each in self.container(name)["ports"]}
        return int(numbers.get(port, port))

    def passes(self, name: str, probe: str) -> bool:
        """Whether a probe of the manifest says yes, asked as the kubelet asks."""
        asked = self.container(name)[probe]
        if "httpGet" in asked:
            url = f"http://{self.address(name)}:{self.port(name, asked['httpGet']['port'])}{asked['httpGet']['path']}"
            try:
                return httpx.get(url, timeout=asked["timeoutSeconds"], trust_env=False).status_code < 400
            except httpx.TransportError:
                return False
        if "tcpSocket" in asked:
            at = (self.address(name), self.port(name, asked["tcpSocket"]["port"]))
            with socket.socket() as probing:
                probing.settimeout(asked["timeoutSeconds"])
                return probing.connect_ex(at) == 0
        words = ("exec", self.id_of(name), *asked["exec"]["command"])
        code = self.podman("exec", self.id_of(name), "sh", "-c", '"$@" >&2; echo $?', "-", *words[2:], check=False)
        return code.endswith("0")

    def patience(self, name: str) -> float:
        """How many seconds the manifest gives it to start."""
        probe = self.container(name)["startupProbe"]
        return float(probe["periodSeconds"] * probe["failureThreshold"])

    def stop(self, name: str) -> int:
        """End a pod within the time that its manifest gives it; the status that its process ended with."""
        grace = self.manifest("Deployment", name)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        self.podman("pod", "stop", "--time", str(grace), f"{name}-pod-0")
        return int(self.inspect(name)["State"]["ExitCode"])

    def start(self, name: str) -> None:
        """Start a pod again that was stopped."""
        self.podman("pod", "start", f"{name}-pod-0")

    def logs(self) -> str:
        """What all containers said."""
        names = [self.id_of(each["metadata"]["name"]) for each in self.manifests if each["kind"] == "Deployment"]
        return "\n".join(f"{name}: {self.podman('logs', '--tail', '40', name, check=False)}" for name in names)


def load(image: str, source: str, folder: Path) -> None:
    """Give podman an image that the engine of the other tests has, unless it has that very one."""
    docker = os.environ.get("DOCKER", "docker")
    wanted = subprocess.run(
        [docker, "image", "inspect", "--format", "{{.Id}}", source], capture_output=True, text=True, check=True
    )
    have = podman("image", "inspect", "--format", "{{.Id}}", image, folder=folder, check=False)
    if have.removeprefix("sha256:") != wanted.stdout.strip().removeprefix("sha256:"):
        with subprocess.Popen([docker, "save", source], stdout=subprocess.PIPE) as saved:
            subprocess.run(["podman", "load", "--quiet"], stdin=saved.stdout, capture_output=True, check=True)
        podman("tag", source, image, folder=folder)


@contextmanager
def playing(folder: Path, manifests: list[Document]) -> Iterator[Pods]:
    """A network of their own for pods; afterwards nothing of them is left, nor of a run that was killed."""
    assert shutil.which("podman"), "the tests need podman: install it, for example by `apt-get install podman`"
    (folder / "containers.conf").write_text(CONFIGURATION)
    pods = Pods(folder, manifests)
    _clear(pods)
    pods.podman("network", "create", NETWORK)
    try:
        yield pods
    finally:
        _clear(pods)


def _clear(pods: Pods) -> None:
    for deployment in (each for each in pods.manifests if each["kind"] == "Deployment"):
        pods.podman("pod", "rm", "--force", "--time", "0", f"{deployment['metadata']['name']}-pod-0", check=False)
        for volume in volumes_of(deployment):
            pods.podman("volume", "rm", volume, check=False)
    pods.podman("network", "rm", "--force", NETWORK, check=False)
