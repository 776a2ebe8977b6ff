"""The compose files, as they are written and as compose renders them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import seaweedfs, secret_values, stack_secrets
from pipeline.settings import PREFIX, SECRETS, SERVING_PREFIX, Settings
from serving.settings import ServingSettings

ROOT = Path(__file__).parents[2]
FILE = "docker-compose.yml"
OVERRIDES = (
    "docker-compose.seaweedfs.yml",
    "docker-compose.gpu.yml",
    "docker-compose.postgres.yml",
    "docker-compose.webhook.yml",
)
ONE_SHOTS = {"secrets", "store-init", "prefect-init", "cli"}
AS_ROOT = {"secrets"}
"""It hands files over to the users of others; its capabilities and the missing network are checked below."""
MOUNT = "/run/secrets/safelight"
OURS = re.compile(r"^(SAFELIGHT_|STACK_|COMPOSE_|IMAGES$)")


def _written(name: str) -> dict[str, Any]:
    """A file as it stands, anchors resolved and compose's own tags dropped."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor(
        "!",
        lambda loader, _, node: (
            loader.construct_sequence(node, deep=True)
            if isinstance(node, yaml.SequenceNode)
            else loader.construct_mapping(node, deep=True)
        ),
    )
    found: dict[str, Any] = yaml.load((ROOT / name).read_text(encoding="utf-8"), Loader)  # noqa: S506 - a SafeLoader
    return found


def _rendered(*names: str, **environ: str) -> dict[str, Any]:
    """What compose makes of files, with nothing else chosen than ``environ``."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs docker compose")
    clean = {name: value for name, value in os.environ.items() if not OURS.match(name)} | environ
    files = [word for name in names for word in ("--file", name)]
    command = ["docker", "compose", *files, "--env-file", "/dev/null", "--profile", "*", "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


BASE = _written(FILE)
SERVICES: dict[str, dict[str, Any]] = BASE["services"]
NEW = _written("docker-compose.postgres.yml")["services"]["postgres"]
EACH = pytest.mark.parametrize(("name", "service"), [*SERVICES.items(), ("postgres", NEW)])


@EACH
def test_a_service_is_bounded(name: str, service: dict[str, Any]) -> None:
    """Each has a limit to its memory, an end to its log, a time to stop in and a process that reaps."""
    assert re.search(r"\d+[mg]\}?$", service["mem_limit"])
    options = service["logging"]["options"]
    assert service["logging"]["driver"] == "json-file"
    assert options["max-size"]
    assert int(options["max-file"]) > 1
    assert service["init"] is True
    assert service["stop_grace_period"].endswith("s"), name


@EACH
def test_a_service_has_no_rights_it_does_not_need(name: str, service: dict[str, Any]) -> None:
    """Each is without capabilities, on a read-only root, as a user of its own; one exception has no network."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "docker.sock" not in json.dumps(service)
    if name in AS_ROOT:
        assert service["user"] == "0:0"
        assert service["cap_add"] == ["CHOWN", "DAC_OVERRIDE", "FOWNER"]
        assert service["network_mode"] == "none"
    else:
        uid = stack_secrets.UIDS.get(name, stack_secrets.SERVICE_UID)
        assert service["user"] == f"{uid}:{uid}"
        assert "cap_add" not in service


@EACH
def test_what_runs_on_is_watched_and_started_again(name: str, service: dict[str, Any]) -> None:
    """A service that stays has a health check and a restart policy; a one-shot has neither."""
    if name in ONE_SHOTS:
        assert service["restart"] == "no"
        return
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"]


@EACH
def test_no_secret_stands_in_a_configuration(name: str, service: dict[str, Any]) -> None:
    """What sounds like a secret in a service's environment is the path of a file."""
    for variable, value in (service.get("environment") or {}).items():
        if variable == "STACK_API_KEYS":
            continue  # on or off
        if re.search(r"KEY|PASSWORD|SECRET|TOKEN|AUTH|ROOT_USER", variable):
            assert str(value).startswith(f"{MOUNT}/"), f"{name}: {variable}"
    assert not re.search(r"password|secret_key|auth_string", str(service.get("command")), re.IGNORECASE)


@EACH
def test_images_are_pinned(name: str, service: dict[str, Any]) -> None:
    """Ours bear the stack's tag; others an exact version, Silo its digest as well."""
    image = service["image"]
    if image.startswith("safelight/"):
        assert image.endswith(":${STACK_TAG:-dev}")
        build = service["build"]
        assert (ROOT / build["context"] / build.get("dockerfile", "Dockerfile")).is_file()
    elif name == "object-store":
        assert re.fullmatch(r"[a-z/]+:RELEASE\.[0-9TZ-]+@sha256:[0-9a-f]{64}", image)
    else:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+[a-z0-9.-]*", image)


def test_each_service_sees_only_its_own_secrets() -> None:
    """Every volume of secrets is mounted read-only by one service, besides the one that writes them all."""
    users: dict[str, list[str]] = {}
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            if isinstance(mount, str) and mount.startswith("secrets-"):
                users.setdefault(mount.split(":")[0], []).append(name)
                assert name == "secrets" or mount.endswith(f":{MOUNT}:ro"), mount
    assert users.pop("secrets-all") == ["secrets"]
    assert {
        volume: names for volume, names in users.items() if names != ["secrets", volume.removeprefix("secrets-")]
    } == {}
    made = secret_values.files_of(
        {name: make() for name, make in secret_values.generated().items()}, secret_values.Stack()
    )
    assert set(made) - {"postgres"} == {volume.removeprefix("secrets-") for volume in users}


def test_every_volume_has_a_name_and_a_use() -> None:
    """What is kept is in named volumes, and each of them is mounted."""
    mounted = {
        mount.split(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", [])
        if isinstance(mount, str)
    }
    assert mounted == set(BASE["volumes"])


def test_ports_are_published_on_the_one_address() -> None:
    """Nothing is published beyond STACK_BIND, and a replica of serving publishes nothing."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"object-store", "prefect-server", "gateway", "grafana"}
    for port in (port for ports in published.values() for port in ports):
        assert re.fullmatch(r"\$\{STACK_BIND:-127\.0\.0\.1\}:\$\{[A-Z_]+:-\d+\}:\d+", port)
    assert not [name for name, service in SERVICES.items() if "container_name" in service]


def test_settings_in_the_file_exist() -> None:
    """No service is given a variable of ours that it would refuse."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {f"{PREFIX}{name.upper()}_FILE" for name in SECRETS}
    known |= {SERVING_PREFIX + name.upper() for name in ServingSettings.model_fields}
    for name, service in SERVICES.items():
        ours = {variable for variable in service.get("environment") or {} if variable.startswith(PREFIX)}
        assert ours <= known, name


def test_what_waits_waits_for_something_that_happens() -> None:
    """One-shots are waited for until they are done, servers until they are healthy."""
    for service in SERVICES.values():
        for other, how in (service.get("depends_on") or {}).items():
            wanted = "service_completed_successfully" if other in ONE_SHOTS else "service_healthy"
            assert how == {"condition": wanted}


def test_compose_accepts_the_files_with_nothing_chosen() -> None:
    """`docker compose up` needs no file and no variable, alone and with each override."""
    for override in OVERRIDES:
        assert _rendered(FILE, override)["services"].keys() >= SERVICES.keys()
    published = [port for service in _rendered(FILE)["services"].values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_one_variable_binds_all_ports_elsewhere() -> None:
    """STACK_BIND reaches every published port, links for browsers, and the check of the secrets."""
    services = _rendered(FILE, STACK_BIND="192.0.2.7")["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in published} == {"192.0.2.7"}
    assert services["worker"]["environment"]["SAFELIGHT_PUBLIC_URL"] == "http://192.0.2.7:8080"
    assert services["secrets"]["environment"]["STACK_BIND"] == "192.0.2.7"
    named = _rendered(FILE, STACK_BIND="0.0.0.0", STACK_HOST="lab.example")["services"]  # noqa: S104 - what is tested
    assert named["worker"]["environment"]["SAFELIGHT_PUBLIC_URL"] == "http://lab.example:8080"
    assert named["prefect-server"]["environment"]["PREFECT_SERVER_UI_API_URL"].startswith("/")


def test_seaweedfs_is_started_as_its_module_says() -> None:
    """The override's command is the closed one, and nothing of Silo's is left."""
    service = _rendered(FILE, "docker-compose.seaweedfs.yml")["services"]["object-store"]
    assert service["command"] == seaweedfs.contained_command()
    assert service["entrypoint"] == ["weed"]
    assert [port["target"] for port in service["ports"]] == [9000]
    assert not [name for name in service["environment"] if name.startswith("MINIO")]
    assert {mount["source"]: mount["target"] for mount in service["volumes"]} == {
        "seaweedfs-data": seaweedfs.CONTAINER_DATA,
        "secrets-object-store": seaweedfs.CONTAINER_CONFIGURATION,
    }


def test_a_gpu_is_asked_for_in_its_override_alone() -> None:
    """Without the file nothing reserves a device; with it, the worker alone does."""
    assert "devices" not in (ROOT / FILE).read_text(encoding="utf-8")
    services = _rendered(FILE, "docker-compose.gpu.yml")["services"]
    asking = [name for name, service in services.items() if "devices" in json.dumps(service.get("deploy") or {})]
    assert asking == ["worker"]


def test_postgres_is_reached_with_a_password_from_a_file() -> None:
    """Its password is in its own volume; the Prefect server waits for it, and reads its URL from a file, too."""
    services = _rendered(FILE, "docker-compose.postgres.yml")["services"]
    assert services["prefect-server"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert services["secrets"]["environment"]["STACK_DATABASE"] == "postgres"
    assert "secrets-postgres" in {mount["source"] for mount in services["secrets"]["volumes"]}
    assert "DATABASE" not in json.dumps(services["prefect-server"]["environment"])
