import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from counting_proxy import Passing, Proxy, listening
from deployable import champion, prepared, register
from live_server import wait_until
from pydantic import SecretStr
from serving_process import MODEL, Serving, started

from pipeline import aliases, api_keys, deploy, processes
from pipeline.artifacts import DatasetVersion, Deployment, ModelVersion
from pipeline.errors import DeployFailed
from pipeline.progress import Progress
from pipeline.settings import Settings
from pipeline.zones import Zones

ONE, TWO, THREE = ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


class Withholding(Passing):
    """A connection to a store that lost the weights of some versions."""

    server: "Lossy"

    def forward(self) -> None:
        """Pass on, but for those."""
        if any(self.path.partition("?")[0].endswith(f"{version}/model.onnx") for version in self.server.lost):
            self.body()
            self.respond(404, [], b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            super().forward()


class Lossy(Proxy):
    """A way to the store by which some versions cannot be loaded."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, Withholding)
        self.lost: set[str] = set()


@pytest.fixture
def dataset(zones: Zones) -> DatasetVersion:
    """A prepared dataset."""
    return prepared(zones, MODEL)


@pytest.fixture
def lossy(zone_settings: Settings) -> Iterator[Lossy]:
    """The way to the store that one of the replicas takes, where a test wants it."""
    proxy = Lossy(zone_settings.s3_endpoint or "")
    with listening(proxy):
        yield proxy


@contextmanager
def replicas(
    settings: Settings, logs: Path, *, endpoint: str | None = None, **own: str
) -> Iterator[tuple[Settings, dict[str, Serving]]]:
    """Three replicas behind one name, the third with its own settings and way to the store; settings that name them."""
    port = processes.free_port(0)
    settings = settings.model_copy(update={"home": logs / "home", "inference_url": f"http://serving:{port}"})
    thirds = settings.model_copy(update={"s3_endpoint": endpoint or settings.s3_endpoint})
    with ExitStack() as running:
        found = {}
        for address, told, more in ((ONE, settings, {}), (TWO, settings, {}), (THREE, thirds, own)):
            at = {"HOST": address, "PORT": str(port)}
            found[address] = running.enter_context(started(told, logs / f"serving-{address}.log", at | more))
        for each in found.values():
            assert each.get("/v2/health/live").is_success
        yield settings, found


def deployed(zones: Zones, settings: Settings, version: ModelVersion, **options: object) -> Deployment:
    """The version live on all three, unless told otherwise."""
    return deploy.deploy(zones, settings, version, **{"resolve": lambda _: ADDRESSES, **options})  # type: ignore[arg-type]


def test_every_replica_is_asked_and_has_proven_itself(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion, tmp_path: Path
) -> None:
    """Success means that all three answer with the version, the slowest included, and that each was asked."""
    first, second = register(zones, dataset, 1), register(zones, dataset, 2)
    seen: list[Progress] = []
    with replicas(zone_settings, tmp_path, POLL_S="3") as (settings, servers):
        for version in (first, second):
            seen.clear()
            done = deployed(zones, settings, version, on_progress=seen.append)
            assert [each.version() for each in servers.values()] == [version.version] * 3
            assert (done.replicas, done.smoke_images, len(seen)) == (3, 32, 96)
    assert champion(zones, MODEL) == second.version


def test_one_that_cannot_load_takes_the_others_back(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion, tmp_path: Path, lossy: Lossy
) -> None:
    """The replica and its reason are named, and all three are back at the old version when the error comes."""
    good, bad = register(zones, dataset, 1), register(zones, dataset, 2)
    with replicas(zone_settings, tmp_path, endpoint=lossy.url) as (settings, servers):
        deployed(zones, settings, good)
        lossy.lost.add(bad.version)
        with pytest.raises(DeployFailed, match=rf"\({THREE}\) did not load the version; it says: ") as caught:
            deployed(zones, settings, bad)
        assert [each.version() for each in servers.values()] == [good.version] * 3
    assert f"points at {good.version} again, and so do all 3 replicas" in str(caught.value)
    assert champion(zones, MODEL) == good.version


@pytest.mark.parametrize("leaves", [True, False], ids=["and leaves the name", "and its address stays"])
def test_one_that_dies_in_between(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion, tmp_path: Path, *, leaves: bool
) -> None:
    """Killed while images are asked: two are enough if the name knows only two; else it is named, and all is undone."""
    first, second = register(zones, dataset, 1), register(zones, dataset, 2)
    named = list(ADDRESSES)
    with replicas(zone_settings, tmp_path) as (settings, servers):
        deployed(zones, settings, first)

        def kill_one(_: Progress) -> None:
            if servers[TWO].process.poll() is None:
                servers[TWO].kill()
                if leaves:
                    named.remove(TWO)

        def deploy_second() -> Deployment:
            return deployed(zones, settings, second, on_progress=kill_one, resolve=lambda _: named, timeout_s=3)

        if leaves:
            assert deploy_second().replicas == 2
        else:
            with pytest.raises(DeployFailed, match=rf"1 of 3 replicas .*\({TWO}\) does not answer") as caught:
                deploy_second()
            assert f"points at {first.version} again, but 1 of 3 replicas did not go along" in str(caught.value)
        wanted = second if leaves else first
        assert [servers[each].version() for each in (ONE, THREE)] == [wanted.version] * 2
    assert champion(zones, MODEL) == wanted.version


def test_a_replica_that_comes_late_is_asked_too(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion, tmp_path: Path, lossy: Lossy
) -> None:
    """The name has no address, then two, and the third while they prove themselves: its failure counts."""
    good, bad = register(zones, dataset, 1), register(zones, dataset, 2)
    with replicas(zone_settings, tmp_path, endpoint=lossy.url) as (settings, servers):
        deployed(zones, settings, good)
        lossy.lost.add(bad.version)
        asked: list[float] = []
        third = threading.Event()

        def resolve(_: str) -> tuple[str, ...]:
            asked.append(time.monotonic())
            return () if len(asked) < 5 else ADDRESSES if third.is_set() else (ONE, TWO)

        with pytest.raises(DeployFailed, match=rf"\({THREE}\) did not load the version"):
            deployed(zones, settings, bad, resolve=resolve, on_progress=lambda _: third.set())
        assert [each.version() for each in servers.values()] == [good.version] * 3


def test_a_rollback_is_proven_on_every_replica(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion, tmp_path: Path
) -> None:
    """The alias goes back first, then the deployment of what it points at waits for all."""
    first, second = register(zones, dataset, 1), register(zones, dataset, 2)
    with replicas(zone_settings, tmp_path) as (settings, servers):
        for version in (first, second):
            deployed(zones, settings, version)
        state = aliases.rollback(zones.models, MODEL, aliases.CHAMPION, "a person said so")
        assert state.version == first.version
        assert deployed(zones, settings, first).replicas == 3
        assert [each.version() for each in servers.values()] == [first.version] * 3


def test_of_two_at_once_one_wins(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion, tmp_path: Path
) -> None:
    """The alias decides: one of the two says who decided otherwise, and every replica agrees with the other one."""
    versions = [register(zones, dataset, seed) for seed in (1, 2)]
    failed: list[DeployFailed] = []
    with replicas(zone_settings, tmp_path) as (settings, servers):

        def attempt(version: ModelVersion) -> Callable[[], None]:
            def run() -> None:
                try:
                    deployed(zones, settings, version)
                except DeployFailed as error:
                    failed.append(error)

            return run

        first, second = (threading.Thread(target=attempt(each)) for each in versions)
        first.start()
        wait_until(lambda: champion(zones, MODEL) == versions[0].version)
        second.start()
        for each in (first, second):
            each.join()
        live = champion(zones, MODEL)
        assert {each.version() for each in servers.values()} == {live}
    assert live == versions[1].version
    assert len(failed) <= 1  # the first may have been through before the second began
    assert all("which somebody else decided" in str(error) for error in failed)


def test_a_name_without_an_address_is_waited_for_and_then_said(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion
) -> None:
    """For as long as allowed; then the setting is named, and the alias is back."""
    settings = zone_settings.model_copy(update={"inference_url": "http://serving.invalid:8080"})
    with pytest.raises(DeployFailed, match=r"no replica was found, .*SAFELIGHT_INFERENCE_URL"):
        deploy.deploy(zones, settings, register(zones, dataset, 1), timeout_s=1)
    assert champion(zones, MODEL) is None


def test_a_gateway_in_front_is_refused(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion, tmp_path: Path
) -> None:
    """One that says so: behind it any replica may have answered."""

    class Announced(Passing):
        """A connection through a gateway."""

        def end_headers(self) -> None:
            self.send_header("Via", "1.1 gateway")
            super().end_headers()

    version = register(zones, dataset, 1)
    with replicas(zone_settings, tmp_path) as (settings, servers):
        gateway = Proxy(f"http://{ONE}:{servers[ONE].client.base_url.port}", Announced)
        with listening(gateway):
            through = settings.model_copy(update={"inference_url": gateway.url})
            with pytest.raises(DeployFailed, match="is a gateway, behind which replicas hide"):
                deploy.deploy(zones, through, version)
    assert champion(zones, MODEL) is None


def test_servers_that_ask_for_a_key_are_followed_with_one(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion, tmp_path: Path
) -> None:
    """A deployment asks and proves with the key of the settings; without one it says which setting is missing."""
    key = api_keys.new_key()
    file = tmp_path / "keys"
    file.write_text(api_keys.written({"pipeline": api_keys.digest_of_key(key)}))
    version = register(zones, dataset, 1)
    with started(zone_settings, tmp_path / "log", {"API_KEYS_FILE": str(file)}) as server:
        url = {"inference_url": str(server.client.base_url)}
        with pytest.raises(DeployFailed, match="asks for a key: set SAFELIGHT_INFERENCE_API_KEY"):
            deploy.deploy(zones, zone_settings.model_copy(update=url), version)
        keyed = zone_settings.model_copy(update=url | {"inference_api_key": SecretStr(key)})
        assert deploy.deploy(zones, keyed, version).replicas == 1
        assert server.client.post("/predict", content=b"x").status_code == 401
