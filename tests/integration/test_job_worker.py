"""Flow runs as Kubernetes Jobs: the real manifests, a real worker with its own rights, Prefect and store."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
from flow_cluster import BROKEN, COMPLAINT, IDLE, IMAGE, ROOT, FlowCluster, flow_cluster, ours, rendered
from prefect_stack import until

from pipeline import run_jobs
from pipeline.settings import Settings

pytestmark = pytest.mark.timeout(900)

LONG = 2000
"""Epochs of a training that is still running whenever something happens to it."""
NEVER = {"minimum_accuracy": 1.0}
"""A gate that lets nothing pass: these tests want no server."""
MANIFESTS = ours(rendered("base"))
OF_TRAINING = json.loads((ROOT / "k8s" / "components" / "gpu-training" / "train.json").read_text())


@pytest.fixture(scope="module")
def flows(store_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowCluster]:
    """A cluster with a worker that is ready."""
    home = tmp_path_factory.mktemp("cluster")
    settings = store_settings.model_copy(update={"home": home, "store_url": f"s3://safelight-tests/jobs-{home.name}"})
    with flow_cluster(home, settings, MANIFESTS) as running:
        yield running


@pytest.fixture(scope="module")
def broken(flows: FlowCluster) -> str:
    """A run whose pod ends before it says anything to Prefect; begun early, as Prefect waits for half a minute."""
    return flows.stack.start("rollback", job_variables={"image": BROKEN})


@pytest.fixture(scope="module")
def lost(flows: FlowCluster) -> str:
    """A run whose node is lost; begun early, as it takes a while until it is found silent."""
    run = flows.stack.start("rollback", job_variables={"image": IDLE})
    until(lambda: any(map(is_working, flows.pods(run))), 90, "pod that is ready")
    flows.lose_node_of(run)
    return run


@pytest.fixture(scope="module")
def imported(flows: FlowCluster, broken: str, lost: str) -> str:  # noqa: ARG001 - they are to begin first
    """A run that brought a few images into the store."""
    run = flows.stack.start("import", per_class=60)
    assert flows.stack.ended(run)["type"] == "COMPLETED", flows.stack.log(run)
    return run


def job_of(flows: FlowCluster, run: str) -> dict[str, Any]:
    """The one Job of a run."""
    (job,) = flows.jobs(run)
    return job


def name_of_job(flows: FlowCluster, run: str) -> str:
    """Its name, which says one attempt from another."""
    return str(job_of(flows, run)["metadata"]["name"])


def is_working(pod: dict[str, Any]) -> bool:
    """Whether a pod is ready."""
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))


def goes_on(flows: FlowCluster, run: str, times: int) -> list[int]:
    """After which steps a training went on, once it has so many times and is at work again."""
    *_, last = parts = flows.stack.log(run).split("goes on after step ")
    return [int(part.split()[0]) for part in parts[1:]] if len(parts) > times and "training:" in last else []


def test_a_run_is_a_job(flows: FlowCluster, imported: str) -> None:
    """It has the worker's image, the form's resources and nothing secret, and ends as its run does."""
    job = job_of(flows, imported)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == IMAGE
    asked = {"cpu": "500m", "memory": "2Gi", "ephemeral-storage": "4Gi", "nvidia.com/gpu": 0}
    assert container["resources"]["requests"] == asked
    assert flows.stack.auth[1] not in json.dumps(job)
    until(lambda: job_of(flows, imported)["status"].get("succeeded") == 1, 60, "Job that is complete")


def test_a_run_outlives_worker_and_pods_and_ends_when_it_is_cancelled(
    flows: FlowCluster,
    imported: str,  # noqa: ARG001 - its images must be there
) -> None:
    """A killed worker finds its Job again; a pod that is killed, or evicted, is followed by one that goes on."""
    run = flows.stack.start("pipeline", training={"epochs": LONG, "seed": 1}, gate=NEVER)
    flows.stack.says(run, "training:", 180)
    first = name_of_job(flows, run)
    flows.kill_worker()
    until(lambda: flows.worker_restarts() == 1, 120, "worker that is ready again")
    assert name_of_job(flows, run) == first

    flows.kill(run)
    flows.stack.says(run, "start 2 of at most 4", 180)
    (after_death,) = until(lambda: goes_on(flows, run, times=1), 180, "training that goes on")
    second = name_of_job(flows, run)
    assert second != first

    (pod,) = flows.pods(run)
    flows.cluster.delete("Pod", pod["metadata"]["name"])
    *_, after_eviction = until(lambda: goes_on(flows, run, times=2), 240, "training that goes on elsewhere")
    # far sooner than it would have saved one by itself
    assert after_eviction > after_death
    assert name_of_job(flows, run) not in {first, second}
    # an eviction is nobody's fault: the one death is said again, and no second one
    assert "start 3" not in flows.stack.log(run)

    flows.stack.cancel(run)
    assert flows.stack.ended(run, 90)["type"] == "CANCELLED"
    until(lambda: not flows.stack.processes(run), 60, "end of the pod's processes")
    until(lambda: not job_of(flows, run)["status"].get("active"), 60, "end of the Job")


def test_a_training_goes_where_a_gpu_is_or_waits_until_it_is_cancelled(flows: FlowCluster) -> None:
    """The component's resources lead to the node with a GPU; Cancel takes the Job of a pod that finds none."""
    asked = [OF_TRAINING | {"image": BROKEN, "gpus": gpus} for gpus in (1, 2)]
    fits, too_large = (flows.stack.start("rollback", job_variables=each) for each in asked)
    until(lambda: flows.pods(fits) and flows.pods(fits)[0]["spec"].get("nodeName"), 90, "pod on a node")
    assert flows.pods(fits)[0]["spec"]["nodeName"] == "gpu-1"
    flows.stack.says(too_large, "Insufficient nvidia.com/gpu")
    for run in (fits, too_large):
        flows.stack.cancel(run)
        assert flows.stack.ended(run, 90)["type"] == "CANCELLED"
    until(lambda: not flows.jobs(too_large), 60, "end of the Job")


def test_set_up_again_it_has_what_is_new_and_what_people_chose(flows: FlowCluster) -> None:
    """After an upgrade the Job `prefect-init` is applied anew: template and resources are ours, a limit is theirs."""
    older = run_jobs.base_job_template()
    older["variables"]["properties"]["memory"]["default"] = "1Gi"
    flows.stack.ask("PATCH", "work_pools/safelight", {"base_job_template": older, "concurrency_limit": 7})
    flows.set_up_again()
    pool = flows.stack.ask("GET", "work_pools/safelight")
    assert pool["type"] == "kubernetes"
    assert pool["base_job_template"] == run_jobs.base_job_template()
    assert pool["concurrency_limit"] == 7
    for flow, asked in MANIFESTS["ConfigMap/flow-resources"]["data"].items():
        name = flow.removesuffix(".json")
        assert flows.stack.ask("GET", f"deployments/name/{name}/{name}")["job_variables"] == json.loads(asked)


def test_a_run_whose_node_is_lost_comes_back(flows: FlowCluster, lost: str) -> None:
    """Nobody says that it died; it is found silent, starts elsewhere, and its first Job cannot wake up any more."""
    flows.stack.says(lost, "No sign of life", 180)
    flows.stack.says(lost, "start 2 of at most 4", 60)
    until(lambda: any(map(is_working, flows.pods(lost))), 60, "pod in place of the lost one")
    assert len(flows.jobs(lost)) == 1
    flows.stack.cancel(lost)


def test_the_worker_needs_each_of_its_rights_and_no_other(flows: FlowCluster, broken: str) -> None:
    """All that it asked for is in its Role and nothing was refused; what a pod said that failed early is in the log."""
    flows.stack.says(broken, COMPLAINT, 120)
    flows.stack.says(broken, "start 2 of at most 4", 120)
    granted = {
        (verb, group, resource)
        for rule in MANIFESTS["Role/prefect-worker"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    until(lambda: flows.asked("prefect-worker") >= granted, 60, "use of all rights")
    assert flows.asked("prefect-worker") == granted
    assert HTTPStatus.FORBIDDEN not in {status for *_, status in flows.cluster.requests}
    flows.stack.cancel(broken)
