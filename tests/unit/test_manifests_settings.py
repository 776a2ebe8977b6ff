"""What the manifests tell each container: settings that exist, and the same as in containers without a cluster."""

import re
from pathlib import Path
from typing import Any

import manifests
import pytest
import yaml
from manifests import ROOT, Document, one, overlays, workloads

from pipeline.secret_values import Stack, files_of, generated
from pipeline.settings import PREFIX, SERVING_PREFIX, Settings
from serving.settings import ServingSettings

FILES = files_of(dict.fromkeys(generated(), "x"), Stack(keys=True))
MOUNT = "/run/secrets/safelight"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
SHARED = ("object-store", "store-init", "prefect-server", "prefect-init", "serving")
"""What is the same here and there; who runs flows is not."""
WITHOUT_STORE = ("prefect-init", "prefect-worker")
"""They are told where the store is, as all of the pipeline's pods are, and have no key to it."""
REPLICAS, DRAIN = "SAFELIGHT_INFERENCE_URL", "SAFELIGHT_SERVING_DRAIN_S"
OTHERWISE = {
    ("serving", DRAIN): "an ingress takes longer to notice than the gateway, which looks twice a second",
    ("prefect-init", REPLICAS): "a Service has one address for all replicas, and a headless one has theirs",
}
"""Settings that have another value in a cluster, and why."""


def _environ(container: Document, documents: list[Document]) -> dict[str, str]:
    """The environment of a container, without what only a running pod knows."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= one(documents, "ConfigMap", source["configMapRef"]["name"])["data"]
    for each in container.get("env", []):
        reference = each.get("valueFrom", {}).get("configMapKeyRef")
        if "value" in each:
            found[each["name"]] = each["value"]
        elif reference:
            data = one(documents, "ConfigMap", reference["name"])["data"]
            if reference["key"] in data:
                found[each["name"]] = data[reference["key"]]
            else:
                assert reference["optional"] is True
    return found


def _chosen(value: object) -> str:
    """A value of the compose file, where nothing else is chosen."""
    text, before = str(value), ""
    while text != before:  # one may be another one's default
        before, text = text, re.sub(r"\$\{[A-Z_]+:-([^${}]*)\}", r"\1", text)
    return text


def test_settings_exist_and_their_values_are_good(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """Every container would start with the settings that it is given, and with the files of its reader's Secret."""
    for name, documents in manifests.everything().items():
        with subtests.test(name):
            for document in workloads(documents):
                _would_start(document, documents, tmp_path / name)


def _would_start(document: Document, documents: list[Document], folder: Path) -> None:
    """Read the settings of a workload's container, and raise as it would itself."""
    spec = document["spec"]["template"]["spec"]
    there = folder / document["metadata"]["name"]
    there.mkdir(parents=True)
    readers = {volume["secret"]["secretName"] for volume in spec.get("volumes", []) if "secret" in volume}
    if document["metadata"]["name"] in WITHOUT_STORE:
        readers.add("worker")
    for file in (file for reader in readers for file in FILES[reader]):
        (there / file).write_text("x")
    told = _environ(spec["containers"][0], documents)
    environ = {variable: value.replace(MOUNT, str(there)) for variable, value in told.items()}
    if any(variable.startswith(PREFIX) for variable in environ):
        assert not Settings.from_environ(environ).uses_embedded_store
    if any(variable.startswith(SERVING_PREFIX) for variable in environ):
        assert not ServingSettings.from_environ(environ).must_say_who_may_ask


@pytest.mark.parametrize("name", SHARED)
def test_a_container_is_the_same_as_without_a_cluster(name: str) -> None:
    """Image, command, user, limit of memory and environment agree with docker-compose.yml."""
    documents, service = overlays()["local"], COMPOSE[name]
    document = next(each for each in workloads(documents) if each["metadata"]["name"] == name)
    spec = document["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert container["image"] == _chosen(service["image"])
    command = service["command"]
    assert container["args"] == (command.split() if isinstance(command, str) else command)
    assert "command" not in container
    assert f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" == service["user"]
    memory = container["resources"]["limits"]["memory"]
    assert memory.lower().removesuffix("i") == service["mem_limit"]
    there = {variable: _chosen(value) for variable, value in service["environment"].items()}
    here = _environ(container, documents)
    differing = {variable for variable in there if here.get(variable) != there[variable]}
    assert differing == {variable for component, variable in OTHERWISE if component == name}


def test_a_service_answers_where_containers_look_for_it() -> None:
    """Ports of the Services are those of the stack in containers, so that the same URLs are right."""
    documents = overlays()["local"]
    ports = {
        name: {port["port"] for port in one(documents, "Service", name)["spec"]["ports"]}
        for name in ("object-store", "prefect-server", "serving", "serving-replicas")
    }
    assert ports == {
        "object-store": {9000, 9001},
        "prefect-server": {4200},
        "serving": {8080},
        "serving-replicas": {8080},
    }
    replicas = one(documents, "Service", "serving-replicas")["spec"]
    assert replicas["clusterIP"] == "None"
    assert replicas["publishNotReadyAddresses"] is True
    told = one(documents, "ConfigMap", "safelight")["data"]
    assert told["SAFELIGHT_S3_ENDPOINT"] == "http://object-store:9000"
    assert told["SAFELIGHT_INFERENCE_URL"] == "http://serving-replicas:8080"
    assert told["PREFECT_API_URL"] == "http://prefect-server:4200/api"
