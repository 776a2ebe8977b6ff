"""The Job of a flow run: its template filled with whatever the form allows, and what is read back from the cluster."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.utilities.schema_tools import is_valid_schema, validate
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from pipeline import run_jobs
from pipeline.errors import InvalidSettings
from pipeline.run_jobs import Manifest, Place, RunJob

PLACE = Place("lab", "safelight/pipeline@sha256:1234")
PASSWORD = "safelight:of-the-prefect-server"  # noqa: S105 - made up
NEWEST = "1.37"
MILLI = st.integers(1, 99_999).map("{}m".format)
CORES = MILLI | st.integers(1, 999).map(str) | st.integers(1, 99).map("0.{}5".format)
SIZES = st.builds("{}{}".format, st.integers(1, 999_999), st.sampled_from(["Mi", "Gi", "Ti"]))
NAMES = st.from_regex(r"\A[a-z][a-z0-9-]{0,20}[a-z]\Z")
TOLERATIONS = st.fixed_dictionaries(
    {},
    optional={
        "key": NAMES,
        "operator": st.sampled_from(["Exists", "Equal"]),
        "value": NAMES,
        "effect": st.sampled_from(["NoSchedule", "PreferNoSchedule", "NoExecute"]),
        "tolerationSeconds": st.integers(0, 10_000),
    },
)
FORMS = st.fixed_dictionaries(
    {},
    optional={
        "cpu": CORES,
        "cpu_limit": CORES,
        "memory": SIZES,
        "ephemeral_storage": SIZES,
        "gpus": st.integers(0, 64),
        "node_selector": st.dictionaries(NAMES, NAMES, max_size=3),
        "tolerations": st.lists(TOLERATIONS, max_size=3),
        "runtime_class_name": NAMES,
        "priority_class_name": NAMES,
        "image": NAMES,
        "image_pull_policy": st.sampled_from(["IfNotPresent", "Always", "Never"]),
        "env": st.dictionaries(st.from_regex(r"\A[A-Z][A-Z0-9_]{0,10}\Z"), st.text(max_size=10), max_size=3),
        "active_deadline_seconds": st.integers(60, 31_536_000),
        "finished_job_ttl": st.integers(60, 2_592_000),
        "name": NAMES,
    },
)


def job(form: dict[str, Any], place: Place = PLACE) -> Manifest:
    """What is sent to the cluster for a run of `train` with these values of the form."""
    flow = Flow(name="train", id=uuid4(), created=None, updated=None)
    run = FlowRun(name="clever-fox", flow_id=flow.id)
    made = KubernetesWorkerJobConfiguration.from_template_and_values(
        run_jobs.base_job_template(), form, client=object()
    )
    configuration = asyncio.run(made)
    configuration.prepare_for_flow_run(run, None, flow, None, worker_name="prefect-worker-1")
    return run_jobs.completed(configuration.job_manifest, place)


def container(manifest: Manifest) -> dict[str, Any]:
    """The one container of a Job."""
    (found,) = manifest["spec"]["template"]["spec"]["containers"]
    return dict(found)


@given(FORMS)
def test_what_the_form_allows_is_a_job_to_a_strict_server(form: dict[str, Any]) -> None:
    """Whatever is chosen in the form, the Job is one by the strictest reading of the newest schema."""
    validate(form, run_jobs.base_job_template()["variables"], raise_on_error=True)
    kubernetes_validate.validate(job(form), NEWEST, strict=True)


@pytest.mark.parametrize(
    "form",
    [
        {"cpu": "0"},
        {"cpu": "two"},
        {"memory": "0Gi"},
        {"memory": "2G i"},
        {"gpus": -1},
        {"gpus": 1.5},
        {"tolerations": [{"kye": "gpu"}]},
        {"node_selector": {"gpu": True}},
        {"finished_job_ttl": 1},
        {"env": {"1ST": "a"}},
        {"memroy": "2Gi"},
    ],
)
def test_what_is_no_resource_is_refused_by_the_form(form: dict[str, Any]) -> None:
    """A value that no cluster would take, and a name that the form does not have, are found before a Job is made."""
    template = run_jobs.base_job_template()
    assert is_valid_schema(template["variables"]) is None
    assert validate(form, template["variables"])


def test_resources_are_those_of_the_form() -> None:
    """Requests, limits and the bounds of both folders are what was asked for; memory and disk are kept free."""
    manifest = job({"cpu": "2", "cpu_limit": "4", "memory": "16Gi", "ephemeral_storage": "50Gi", "gpus": 1})
    asked = {"cpu": "2", "memory": "16Gi", "ephemeral-storage": "50Gi", "nvidia.com/gpu": 1}
    assert container(manifest)["resources"] == {"requests": asked, "limits": {**asked, "cpu": "4"}}
    volumes = manifest["spec"]["template"]["spec"]["volumes"]
    assert [each["emptyDir"]["sizeLimit"] for each in volumes if "emptyDir" in each] == ["50Gi"] * 2


def test_each_is_labelled_so_that_no_service_takes_its_pod_for_one_of_its_own() -> None:
    """Prefect names pods after their deployment; one called `serving` would be asked for predictions."""
    manifest = job({})
    for labels in (manifest["metadata"]["labels"], manifest["spec"]["template"]["metadata"]["labels"]):
        assert labels["app.kubernetes.io/name"] == "flow-run"
        assert labels["app.kubernetes.io/part-of"] == "safelight"


def test_nothing_secret_of_the_worker_is_in_a_job() -> None:
    """Prefect hands its worker's settings on; the password is left out, and read from the mounted Secret instead."""
    url = "http://prefect-server:4200/api"
    with temporary_settings({PREFECT_API_AUTH_STRING: PASSWORD, PREFECT_API_URL: url}):
        manifest = job({})
    assert PASSWORD not in json.dumps(manifest)
    assert {"name": "PREFECT_API_URL", "value": url} in container(manifest)["env"]


def test_the_image_keeps_its_entry_point() -> None:
    """The command stands in `args`: what reads the secrets from their files runs first."""
    assert "command" not in container(job({}))
    assert container(job({}))["args"] == ["prefect", "flow-run", "execute"]


def test_the_image_is_the_workers_unless_another_one_was_chosen() -> None:
    """After an upgrade of the worker its runs have the new image; a worker that is no pod says what to do."""
    assert container(job({}))["image"] == PLACE.image
    assert container(job({"image": "mine:1"}))["image"] == "mine:1"
    assert container(job({"image": "mine:1"}, Place("lab", None)))["image"] == "mine:1"
    with pytest.raises(InvalidSettings, match="no pod of namespace lab"):
        job({}, Place("lab", None))


def test_what_a_person_put_beside_the_run_stays() -> None:
    """A second container of the pod is sent as the work pool's template has it, with an image of its own."""
    manifest = job({})
    beside = {"name": "vpn", "image": "vpn:1"}
    manifest["spec"]["template"]["spec"]["containers"].append(beside)
    sent = run_jobs.completed(manifest, PLACE)["spec"]["template"]["spec"]["containers"]
    assert (sent[0]["image"], sent[1:]) == (PLACE.image, [beside])


def test_a_job_is_made_in_the_workers_own_namespace() -> None:
    """Another one is out of its rights."""
    assert job({})["metadata"]["namespace"] == "lab"


UNREADY = [{"type": "Ready", "status": "False"}]


@pytest.mark.parametrize(
    ("ended", "pods", "alive", "begun"),
    [
        (None, [], True, False),
        (None, [{}], True, False),
        (None, [{"phase": "Pending"}], True, False),
        (None, [{"phase": "Running"}], True, True),
        (None, [{"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}], True, True),
        (None, [{"phase": "Running", "conditions": UNREADY}], False, True),
        (None, [{"phase": "Pending", "conditions": UNREADY}], True, False),
        (None, [{"phase": "Failed"}], False, True),
        (None, [{"phase": "Failed"}, {"phase": "Running"}], True, True),
        ("Failed", [{"phase": "Running"}], False, True),
        ("Complete", [], False, True),
    ],
)
def test_a_job_lives_as_the_cluster_says(ended: str | None, pods: list[Manifest], alive: bool, begun: bool) -> None:
    """It does while a pod of it waits or works on a node that is there, or one has still to be made."""
    run = uuid4()
    metadata = {"name": "train-1", "uid": "u", "labels": {run_jobs.RUN_LABEL: str(run)}}
    conditions = [{"type": ended, "status": "True"}] if ended else None
    owned = [{"metadata": {"ownerReferences": [{"uid": "u"}]}, "status": each} for each in pods]
    other = {"metadata": {"ownerReferences": [{"uid": "v"}]}, "status": {"phase": "Running"}}
    found = run_jobs.run_jobs([{"metadata": metadata, "status": {"conditions": conditions}}], [*owned, other])
    assert found == [RunJob("train-1", run, ended is not None, alive, begun)]
