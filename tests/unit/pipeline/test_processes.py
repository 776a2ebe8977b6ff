import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import processes
from pipeline.errors import LocalServiceFailed
from pipeline.private_files import private_folder, write_private
from pipeline.processes import Service

FOREVER = ["sleep", "1000"]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of this test's own, in which nothing runs afterwards."""
    yield tmp_path / "home"
    for service in processes.running(tmp_path / "home"):
        processes.stop(tmp_path / "home", service.name, timeout_s=0)


def python(code: str) -> list[str]:
    """The command that runs ``code``."""
    return [sys.executable, "-c", code]


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether ``condition`` comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def mode(path: Path) -> int:
    """The permission bits of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)


def log_of(service: Service) -> str:
    """All that the log holds."""
    return Path(service.log).read_text(encoding="utf-8")


def at_once(code: str, count: int) -> list[str]:
    """What ``count`` processes print that say they are ready, read a line, and go on when all of them are."""
    pipes: dict[str, int] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    commands = [subprocess.Popen(python(code), text=True, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    for command in commands:
        assert command.stdout.readline() == "ready\n"
    for command in commands:
        command.stdin.write("go\n")
        command.stdin.flush()
    return [command.communicate(timeout=60)[0].strip() for command in commands]


def test_a_started_service_is_found_again(home: Path) -> None:
    """A service that was started is found with its pid, its ports and its log, until it is stopped."""
    started = processes.start(home, "sleeper", FOREVER, ports={"http": 8080})
    assert processes.find(home, "sleeper") == started
    assert started.ports == {"http": 8080}
    assert psutil.Process(started.pid).cmdline() == FOREVER


def test_a_service_outlives_the_command_that_started_it(home: Path) -> None:
    """Another command finds it after the first one has ended and its terminal's Ctrl-C has been sent."""
    code = f"""
from pathlib import Path
from pipeline import processes
print(processes.start(Path({str(home)!r}), "sleeper", {FOREVER!r}).pid, flush=True)
import time
time.sleep(1000)
"""
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True, process_group=0) as command:
        assert command.stdout is not None
        pid = int(command.stdout.readline())
        os.killpg(command.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        os.killpg(command.pid, signal.SIGKILL)
    found = processes.find(home, "sleeper")
    assert found is not None
    assert found.pid == pid
    assert os.getsid(pid) == pid != os.getsid(0)


def test_a_second_start_finds_the_first(home: Path) -> None:
    """Starting a service that runs gives that very process, with the ports that it really has."""
    first = processes.start(home, "sleeper", FOREVER, ports={"http": 1})
    assert processes.start(home, "sleeper", FOREVER, ports={"http": 2}) == first


def test_starts_at_once_give_one_process(home: Path) -> None:
    """Six commands that start the same service at the same moment all get the same process."""
    code = (
        "import sys; from pathlib import Path; from pipeline import processes; "
        "print('ready', flush=True); sys.stdin.readline(); "
        f"print(processes.start(Path({str(home)!r}), 'sleeper', {FOREVER!r}).pid)"
    )
    told = at_once(code, 6)
    pids = {int(line) for line in told}
    sleeping = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == FOREVER and p.pid in pids]
    assert len(told) == 6
    assert len(pids) == len(sleeping) == 1


def test_output_goes_to_a_private_log(home: Path) -> None:
    """Both output streams end in the log below a line that dates the start; log and record are the owner's alone."""
    loud = python("import sys; print('out', flush=True); print('err', file=sys.stderr, flush=True)")
    service = processes.start(home, "loud", loud)
    assert eventually(lambda: "err" in log_of(service))
    head, *lines = log_of(service).splitlines()
    assert head.startswith("=== loud started 20")
    assert head.endswith("Z")
    assert lines == ["out", "err"]
    assert mode(Path(service.log)) == mode(home / "run" / "loud.json") == 0o600
    assert {mode(home), mode(home / "run"), mode(home / "logs")} == {0o700}


def test_what_a_service_writes_is_private_and_it_has_no_stdin(home: Path, tmp_path: Path) -> None:
    """A file that a service creates is the owner's alone, and reading from stdin ends at once."""
    written = tmp_path / "written"
    code = f"import sys; open({str(written)!r}, 'w').write(repr(sys.stdin.read()))"
    processes.start(home, "writer", python(code))
    assert eventually(lambda: written.exists() and written.read_text() == "''")
    assert mode(written) == 0o600


def test_environment_and_folder_are_those_given(home: Path, tmp_path: Path) -> None:
    """A given environment replaces this process's own, and the service works in the given folder."""
    code = "import os; print(os.environ.get('SECRET'), 'HOME' in os.environ, os.getcwd(), flush=True)"
    service = processes.start(home, "shown", python(code), env={"SECRET": "s"}, cwd=tmp_path)
    assert eventually(lambda: str(tmp_path) in log_of(service))
    assert log_of(service).splitlines()[-1] == f"s False {tmp_path}"


def test_a_long_log_is_put_aside(home: Path) -> None:
    """A start begins a new log where the old one is too long, and keeps the old one beside it."""
    log = private_folder(home / "logs") / "sleeper.log"
    with log.open("wb") as file:
        file.truncate(processes.LOG_LIMIT + 1)
    processes.start(home, "sleeper", FOREVER)
    assert log.stat().st_size < 100
    assert log.with_name("sleeper.log.1").stat().st_size == processes.LOG_LIMIT + 1


def test_running_lists_what_runs(home: Path) -> None:
    """Only services that are still running are listed."""
    first, second = (processes.start(home, name, FOREVER) for name in ("b", "a"))
    processes.start(home, "brief", ["true"])
    assert eventually(lambda: processes.find(home, "brief") is None)
    assert processes.running(home) == [second, first]


def test_a_service_that_died_is_not_found(home: Path) -> None:
    """A service that was killed, and is still this process's own child, counts as gone, and leaves no zombie."""
    service = processes.start(home, "sleeper", FOREVER)
    os.kill(service.pid, signal.SIGKILL)
    assert eventually(lambda: processes.find(home, "sleeper") is None)
    assert eventually(lambda: not psutil.pid_exists(service.pid))


def test_stop_is_idempotent(home: Path) -> None:
    """Stopping ends the process and says so; stopping again, or what never ran, does nothing and says so."""
    service = processes.start(home, "sleeper", FOREVER)
    assert processes.stop(home, "sleeper")
    assert not psutil.pid_exists(service.pid)
    assert not processes.stop(home, "sleeper")
    assert not processes.stop(home, "never")
    assert processes.find(home, "sleeper") is None


def test_stopping_in_a_home_never_used_creates_nothing(home: Path) -> None:
    """Neither stopping nor looking leaves a folder behind."""
    assert not processes.stop(home, "sleeper")
    assert processes.running(home) == []
    assert not home.exists()


def test_a_stubborn_family_is_killed(home: Path) -> None:
    """A process that ignores SIGTERM is killed after its time, and so is the child that it has."""
    code = (
        "import signal, subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(subprocess.Popen(['sleep', '1000']).pid, flush=True); signal.pause()"
    )
    service = processes.start(home, "stubborn", python(code))
    assert eventually(lambda: len(log_of(service).splitlines()) == 2)
    child = int(log_of(service).splitlines()[1])
    begin = time.monotonic()
    assert processes.stop(home, "stubborn", timeout_s=0.5)
    assert 0.5 <= time.monotonic() - begin < 5
    assert not psutil.pid_exists(service.pid)
    assert eventually(lambda: not psutil.pid_exists(child))


def test_a_service_may_leave_in_its_own_time(home: Path, tmp_path: Path) -> None:
    """On SIGTERM a service finishes what it does on leaving; it is not killed while it does."""
    done = tmp_path / "done"
    code = (
        f"import pathlib, signal, sys, time; leave = lambda *_: (time.sleep(0.5), pathlib.Path({str(done)!r}).touch(),"
        " sys.exit()); signal.signal(signal.SIGTERM, leave); print('ready', flush=True); signal.pause()"
    )
    service = processes.start(home, "tidy", python(code))
    assert eventually(lambda: "ready" in log_of(service))
    assert processes.stop(home, "tidy")
    assert done.exists()


@pytest.mark.parametrize("moved_by", [-3600.0, -0.05, 0.05, 3600.0])
def test_a_recycled_pid_is_left_alone(home: Path, moved_by: float) -> None:
    """A process that has the recorded pid but was created at another time is neither found nor stopped."""
    service = processes.start(home, "sleeper", FOREVER)
    stranger = replace(service, started=service.started + moved_by)
    write_private(home / "run" / "sleeper.json", json.dumps(asdict(stranger)))
    assert processes.find(home, "sleeper") is None
    assert not processes.stop(home, "sleeper")
    assert processes.alive(service)
    psutil.Process(service.pid).kill()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.one_of(st.binary(max_size=50), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps)))
def test_a_broken_record_is_no_service(home: Path, record: bytes | str) -> None:
    """Whatever lies where a record should, looking for the service finds none and raises nothing."""
    path = private_folder(home / "run") / "sleeper.json"
    path.write_bytes(record if isinstance(record, bytes) else record.encode())
    assert processes.find(home, "sleeper") is None


def test_waiting_ends_when_the_service_is_ready(home: Path, tmp_path: Path) -> None:
    """Waiting returns once the probe says so."""
    ready = tmp_path / "ready"
    service = processes.start(home, "touch", ["sh", "-c", f"sleep 0.3; touch {ready}; sleep 1000"])
    processes.wait_until(ready.exists, service, timeout_s=10)
    assert ready.exists()


def test_waiting_notices_that_the_service_died(home: Path) -> None:
    """Waiting for a process that dies ends at once, in one sentence with its last lines and the log's path."""
    processes.start(home, "doomed", python("print('of a former start')"))
    assert eventually(lambda: processes.find(home, "doomed") is None)
    code = "import sys; print('line one', flush=True); sys.exit('no such table.')"
    service = processes.start(home, "doomed", python(code))
    with pytest.raises(LocalServiceFailed) as failure:
        processes.wait_until(lambda: False, service, timeout_s=30)
    assert str(failure.value) == (
        f"doomed stopped while it was starting (line one / no such table; its log is {service.log})."
    )


def test_waiting_does_not_last_for_ever(home: Path) -> None:
    """A service that lives but never becomes ready is an error after the time given."""
    service = processes.start(home, "sleeper", FOREVER)
    with pytest.raises(LocalServiceFailed, match=r"sleeper was not ready after 0 s \(it wrote nothing; its log is /"):
        processes.wait_until(lambda: False, service, timeout_s=0.1)
    assert processes.alive(service)


def test_a_missing_program_is_named(home: Path) -> None:
    """A program that does not exist is one sentence, and leaves no record."""
    with pytest.raises(LocalServiceFailed, match=r"^ghost cannot be started: /no/such/program: No such file"):
        processes.start(home, "ghost", ["/no/such/program"])
    assert processes.running(home) == []


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A home that is a file is one sentence that names it and the setting that moves it."""
    (tmp_path / "home").write_text("a file")
    with pytest.raises(LocalServiceFailed, match=r"/home cannot be written \(it is no folder\).*SAFELIGHT_HOME"):
        processes.start(tmp_path / "home", "sleeper", FOREVER)


def test_a_free_port_is_kept_and_a_busy_one_replaced() -> None:
    """The preferred port is given if nobody listens on it, on loopback or on all addresses; else another free one."""
    for host in ("127.0.0.1", ""):
        with socket.create_server((host, 0)) as busy:
            taken = busy.getsockname()[1]
            other = processes.free_port(taken)
            assert other != taken
            assert processes.is_free(other)
        assert processes.free_port(taken) == taken


@given(st.integers().filter(lambda port: not 0 < port <= 65535))
def test_what_is_no_port_is_not_free(port: int) -> None:
    """Numbers outside 1 to 65535 are no ports."""
    assert not processes.is_free(port)


def test_a_port_that_another_program_took_meanwhile_is_replaced(home: Path) -> None:
    """A service that loses its port is started again on a free one, and the other program is not taken for it."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = iter([other.getsockname()[1], processes.free_port(0)])

        def start() -> Service:
            port = next(ports)
            server = python(f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(1000)")
            return processes.start(home, "web", server, ports={"http": port})

        service = processes.until_listening(start, lambda _: True, timeout_s=20)
        assert service.ports["http"] != other.getsockname()[1]
        assert processes.listens(service, service.ports["http"])
        assert not processes.listens(service, other.getsockname()[1])
