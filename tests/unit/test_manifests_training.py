"""Distributed training in a cluster: what torchrun is told fits the Job and the Service around it."""

from typing import Any

import manifests
import torch.distributed.run
from manifests import of_kind

NAME = "training"


def _job() -> tuple[dict[str, Any], dict[str, Any]]:
    """The Job, and the Service that its pods are named in."""
    documents = next(found for found in manifests.combined().values() if NAME in of_kind(found, "Job"))
    return of_kind(documents, "Job")[NAME]["spec"], of_kind(documents, "Service")[NAME]["spec"]


def test_torchrun_is_told_what_the_job_is() -> None:
    """As many nodes as pods, which meet at the first one, under the name and port that the Service gives it."""
    job, service = _job()
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    environ = {each["name"]: each["value"] for each in container["env"]}
    told = [argument.replace("$(NODES)", environ["NODES"]) for argument in container["args"][1:]]
    options = torch.distributed.run.parse_args(told)
    assert container["args"][0] == "torchrun"
    assert job["completionMode"] == "Indexed"
    assert int(options.nnodes) == job["completions"] == job["parallelism"]
    assert pod["subdomain"] == NAME
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    (port,) = service["ports"]
    assert options.rdzv_endpoint == f"{NAME}-0.{NAME}:{port['port']}"
    assert {"name": port["targetPort"], "containerPort": port["port"]} in container["ports"]
    assert options.module
    assert (options.training_script, options.training_script_args[0]) == ("pipeline", "train")
    assert options.max_restarts > 0


def test_threads_are_those_of_the_cores() -> None:
    """Torchrun would give each process one thread, however many cores its pod has asked for."""
    (container,) = _job()[0]["template"]["spec"]["containers"]
    environ = {each["name"]: each["value"] for each in container["env"]}
    assert environ["OMP_NUM_THREADS"] == container["resources"]["requests"]["cpu"]
