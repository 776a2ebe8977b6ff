"""The embedded store, real: starting, being found, stopping, and what it keeps when it is killed."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import psutil
import pytest
from obstore.exceptions import BaseError
from own_store import CONTENT, bucket_in, eventually, objects, service_of, sockets_of, spare_port

from pipeline import embedded_store, processes
from pipeline.embedded_store import Connection
from pipeline.errors import LocalServiceFailed


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of this test's own, in which no store runs afterwards."""
    yield tmp_path / "home"
    embedded_store.down(tmp_path / "home")


def up_and_tell(home: Path) -> tuple[Connection, int]:
    """Bring the store up in a process of its own, as another command would; its connection and the store's pid."""
    code = (
        "import json, sys; from pathlib import Path; from pipeline import embedded_store, processes; "
        "home = Path(sys.argv[1]); found = embedded_store.up(home, int(sys.argv[2])); "
        "print(json.dumps([found.endpoint, found.access_key_id, found.secret_access_key, found.region, "
        "processes.find(home, embedded_store.NAME).pid]))"
    )
    command = [sys.executable, "-c", code, str(home), str(spare_port())]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    return Connection(*told[:4]), int(told[4])


# Being there


def test_up_makes_a_store_that_answers(home: Path) -> None:
    """Right after ``up`` an object can be stored and read, within seconds of the start."""
    begin = time.monotonic()
    connection = embedded_store.up(home, spare_port())
    store = bucket_in(connection)
    obstore.put(store, "key", CONTENT)
    assert obstore.get(store, "key").bytes() == CONTENT
    assert time.monotonic() - begin < 10  # 1 s as a rule
    assert embedded_store.status(home) == connection


def test_a_second_up_finds_the_first(home: Path) -> None:
    """Another command gets the same store, whatever port it would have preferred."""
    connection = embedded_store.up(home, spare_port())
    pid = service_of(home).pid
    assert up_and_tell(home) == (connection, pid)


def test_ups_at_once_give_one_store(home: Path) -> None:
    """Four commands that need the store at the same moment end up with one process."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(up_and_tell, [home] * 4))
    assert len(set(found)) == 1


def test_stores_of_several_homes_live_side_by_side(tmp_path: Path) -> None:
    """Three homes that start at once, preferring the same port, get three stores with nothing in common."""
    port = spare_port()
    homes = [tmp_path / name for name in ("a", "b with space", "ü,c")]
    try:
        with ThreadPoolExecutor(3) as pool:
            connections = list(pool.map(lambda home: embedded_store.up(home, port), homes))
        for number, connection in enumerate(connections):
            obstore.put(bucket_in(connection), "key", b"%d" % number)
        assert [obstore.get(objects(c), "key").bytes() for c in connections] == [b"0", b"1", b"2"]
        assert len({c.endpoint for c in connections}) == len({c.secret_access_key for c in connections}) == 3
    finally:
        stopped = [embedded_store.down(home) for home in homes]
    assert stopped == [True] * 3


def test_down_is_idempotent_and_leaves_nothing_running(home: Path) -> None:
    """``down`` stops the process, removes its sockets, says whether there was one, and creates nothing."""
    assert not embedded_store.down(home)
    assert not home.exists()
    embedded_store.up(home, spare_port())
    service = service_of(home)
    assert embedded_store.down(home)
    assert not psutil.pid_exists(service.pid)
    assert sockets_of(service) == []
    assert embedded_store.status(home) is None
    assert not embedded_store.down(home)


# Keeping objects


def test_objects_survive_a_restart_on_other_ports(home: Path) -> None:
    """After a stop and a start elsewhere, with the same credentials, all objects are there, small and large."""
    first = embedded_store.up(home, spare_port())
    large = os.urandom(9_000_000)
    obstore.put(bucket_in(first), "small", CONTENT)
    obstore.put(objects(first), "large/ünï code", large)
    embedded_store.down(home)
    second = embedded_store.up(home, spare_port())
    assert (second.access_key_id, second.secret_access_key) == (first.access_key_id, first.secret_access_key)
    assert second.endpoint != first.endpoint
    assert obstore.get(objects(second), "small").bytes() == CONTENT
    assert obstore.get(objects(second), "large/ünï code").bytes() == large


def kill(home: Path) -> None:
    """End the store as the system does when memory runs out."""
    os.kill(service_of(home).pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [kill, embedded_store.down])
def test_acknowledged_objects_survive_an_end_amid_writing(home: Path, end: Callable[[Path], object]) -> None:
    """Eight writers are cut off by a store that goes; every object of theirs that it acknowledged is there again."""
    store = bucket_in(embedded_store.up(home, spare_port()))
    obstore.put(store, "first", b"the bucket has a place on the disk now")

    def write(writer: int) -> dict[str, bytes]:
        acknowledged: dict[str, bytes] = {}
        for number in itertools.count():
            key, data = f"{writer}/{number}", os.urandom((10, 600, 5_000, 300_000)[number % 4])
            try:
                obstore.put(store, key, data)
            except BaseError:
                break
            acknowledged[key] = hashlib.sha256(data).digest()
        return acknowledged

    with ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(write, number) for number in range(8)]
        time.sleep(1)
        end(home)
        acknowledged = {key: digest for writer in writers for key, digest in writer.result().items()}
    assert len(acknowledged) > 100
    assert eventually(lambda: embedded_store.status(home) is None)
    again = objects(embedded_store.up(home, spare_port()))
    for key, digest in acknowledged.items():
        assert hashlib.sha256(obstore.get(again, key).bytes()).digest() == digest, key


def test_a_killed_store_comes_back_where_it_was(home: Path) -> None:
    """After SIGKILL the next start, whatever port it would prefer, takes the same ports; after a stop it need not."""
    port = spare_port()
    first = embedded_store.up(home, port)
    ports = service_of(home).ports
    kill(home)
    assert embedded_store.up(home, spare_port()) == first
    assert service_of(home).ports == ports
    embedded_store.down(home)
    other = spare_port()
    assert embedded_store.up(home, other).endpoint == f"http://127.0.0.1:{other}"


def test_a_frozen_store_is_waited_for_and_not_doubled(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store is frozen ``up`` says in the log that it waits, starts no other one, and ends with a sentence."""
    store = bucket_in(embedded_store.up(home, spare_port()))
    service = service_of(home)
    os.kill(service.pid, signal.SIGSTOP)
    try:
        monkeypatch.setattr(embedded_store, "START_TIMEOUT_S", 7)
        with pytest.raises(LocalServiceFailed, match=r"^store was not ready after 7 s \("):
            embedded_store.up(home)
        assert service_of(home) == service
        waits = [record.getMessage() for record in caplog.records if "has not answered for" in record.getMessage()]
        assert len(waits) in (1, 2)
        assert f"(process {service.pid})" in waits[0]
        thawing = threading.Timer(2, os.kill, (service.pid, signal.SIGCONT))
        thawing.start()
        embedded_store.up(home)
        assert service_of(home) == service
    finally:
        os.kill(service.pid, signal.SIGCONT)
    obstore.put(store, "key", CONTENT)
    assert obstore.get(store, "key").bytes() == CONTENT


def test_a_frozen_store_can_be_stopped(home: Path) -> None:
    """``down`` ends a frozen store too, also while another command waits for it."""
    embedded_store.up(home, spare_port())
    service = service_of(home)
    os.kill(service.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(embedded_store.up, home, spare_port())
        time.sleep(1)
        assert embedded_store.down(home)
        assert not processes.alive(service)
        assert waiting.result() == embedded_store.status(home)


# What a person's machine does to it


def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A home below a file is refused with the path and the setting that moves it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalServiceFailed, match=r"^\S*/file cannot be written .*SAFELIGHT_HOME\.$"):
        embedded_store.up(tmp_path / "file" / "home")


@pytest.mark.parametrize(
    ("total_gb", "free_mb", "enough"), [(10, 300, False), (10, 400, True), (2000, 20_000, False), (2000, 21_000, True)]
)
def test_a_full_disk_is_refused_beforehand(total_gb: int, free_mb: int, enough: bool) -> None:
    """Less than a hundredth of the disk and 256 MiB is refused; the sentence says how much there is and must be."""
    if enough:
        embedded_store.refuse_full_disk(Path("/x"), total_gb << 30, free_mb << 20)
        return
    with pytest.raises(LocalServiceFailed, match=rf"^The disk of /x has {free_mb} MiB left and .* needs \d+ MiB: "):
        embedded_store.refuse_full_disk(Path("/x"), total_gb << 30, free_mb << 20)


def test_a_server_that_dies_is_quoted(home: Path) -> None:
    """A store whose data cannot be opened is one sentence with the server's own last words and its log."""
    blocked = home / "store" / "data" / "filerldb2"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    with pytest.raises(
        LocalServiceFailed, match=r"^store stopped while it was starting \(.*filerldb2.*its log is /"
    ) as failure:
        embedded_store.up(home, spare_port())
    assert "\n" not in str(failure.value)
    assert embedded_store.status(home) is None


def test_a_server_without_a_record_is_left_in_peace(home: Path) -> None:
    """Where a server uses the data and its record is lost, a second one is refused and the first goes on working."""
    store = bucket_in(embedded_store.up(home, spare_port()))
    record = home / "run" / "store.json"
    aside = record.rename(home / "aside.json")
    with pytest.raises(LocalServiceFailed, match=r"/store/data is in use by a server .*: stop it first\.$"):
        embedded_store.up(home, spare_port())
    aside.rename(record)
    time.sleep(1)
    obstore.put(store, "key", CONTENT)
    assert obstore.get(store, "key").bytes() == CONTENT


def test_lost_credentials_are_one_sentence(home: Path) -> None:
    """Credentials that cannot be read while the store runs are named with the way out, which works."""
    embedded_store.up(home, spare_port())
    identities = home / "store" / "conf" / "s3.json"
    identities.write_text(json.dumps({"identities": []}))
    with pytest.raises(LocalServiceFailed, match=r"s3\.json does not hold the store's credentials: delete it, and"):
        embedded_store.status(home)
    identities.unlink()
    assert embedded_store.down(home)
    bucket_in(embedded_store.up(home, spare_port()))
