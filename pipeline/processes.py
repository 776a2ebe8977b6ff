"""Long-lived processes of this machine, started, found again and stopped by separate commands.

Decisions:

- A running service is one file, ``<home>/run/<name>.json``, replaced atomically. There is no supervisor to keep alive.
- A process is the recorded one only if its pid **and** its creation time match: a recycled pid is never stopped.
- Two commands that start the same service at once end up with one process: an advisory lock per name decides.
- A service outlives the command and its terminal (own session, no stdin); it writes to ``<home>/logs/<name>.log``.
- Secrets reach a service by files or by its environment, never on its command line, which every user can read. What a
  service writes is private to the user (umask 077).
"""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from pipeline import pids
from pipeline.errors import LocalServiceFailed
from pipeline.private_files import locked, private_folder, unusable, write_private

START_ATTEMPTS = 3
LOG_LIMIT = 16 << 20
"""Bytes after which a start puts the log aside, as ``<name>.log.1``, and begins a new one."""
PAGE = "=== "
"""Begins the line that each start writes into the log."""
KILL_TIMEOUT_S = 5.0
"""How long a process may take to vanish after SIGKILL."""
POLL_S = 0.03


@dataclass(frozen=True)
class Service:
    """One process that was started.

    Attributes:
        name: what it is; also names its record, its lock and its log.
        pid: its process id.
        started: when the process was created, in seconds since boot on Linux and since 1970 elsewhere.
        ports: the TCP ports that it was given, by what they are for.
        log: path of the file that holds its output.
    """

    name: str
    pid: int
    started: float
    ports: dict[str, int]
    log: str


def start(
    home: Path,
    name: str,
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    ports: Mapping[str, int] | None = None,
    cwd: Path | None = None,
) -> Service:
    """Start ``command`` as the service ``name``, or find it running.

    Args:
        home: folder of all local state.
        name: of the service.
        command: the program and its arguments; no secrets.
        env: the whole environment of the process; by default this process's own.
        ports: recorded with the service; one that runs already may have others.
        cwd: working folder of the process; by default this process's own.

    Raises:
        LocalServiceFailed: the program or the home cannot be used.
    """
    with locked(home, name):
        found = find(home, name)
        return found if found is not None else _launch(home, name, command, env=env, ports=dict(ports or {}), cwd=cwd)


def find(home: Path, name: str) -> Service | None:
    """The service ``name`` if it is running, be it frozen."""
    service = recorded(home, name)
    return service if service is not None and alive(service) else None


def recorded(home: Path, name: str) -> Service | None:
    """The service ``name`` as it was last started and not stopped by us: it may have died."""
    try:
        return Service(**json.loads(_record(home, name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # no record, or nothing that we wrote
        return None


def running(home: Path) -> list[Service]:
    """Every service of ``home`` that is running, by name."""
    names = sorted(path.stem for path in (home / "run").glob("*.json"))
    return [service for name in names if (service := find(home, name)) is not None]


def stop(home: Path, name: str, timeout_s: float = 10.0) -> bool:
    """End the service ``name`` and all its children; False if it was not running.

    It gets SIGTERM and ``timeout_s`` seconds to leave; what is left of it and of its children then gets SIGKILL.

    Raises:
        LocalServiceFailed: a process survived even that.
    """
    if not _record(home, name).exists():
        return False
    with locked(home, name):
        service = find(home, name)
        if service is not None:
            _end(service, timeout_s)
        _record(home, name).unlink(missing_ok=True)
    return service is not None


def alive(service: Service) -> bool:
    """Whether this very process, not a later one with its pid, is running."""
    return pids.created(service.pid) == service.started


def wait_until(probe: Callable[[], bool], service: Service, timeout_s: float = 60.0) -> None:
    """Return as soon as ``probe`` says that the service is ready.

    Raises:
        LocalServiceFailed: the process died, or was not ready in time; the message quotes the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    while not probe():
        if not alive(service):
            raise LocalServiceFailed(f"{service.name} stopped while it was starting{_last_words(service)}.")
        if time.monotonic() > deadline:
            raise LocalServiceFailed(f"{service.name} was not ready after {timeout_s:.0f} s{_last_words(service)}.")
        time.sleep(POLL_S)


def listens(service: Service, port: int) -> bool:
    """Whether this very service, or a child of it, is what listens on a TCP port."""
    try:
        process = psutil.Process(service.pid)
        family = [process, *process.children(recursive=True)]
        open_ports = {at.laddr.port for each in family for at in each.net_connections("tcp") if at.status == "LISTEN"}
    except psutil.Error:
        return False
    return port in open_ports


def until_listening(start: Callable[[], Service], answers: Callable[[Service], bool], timeout_s: float) -> Service:
    """Call ``start`` until the service itself listens on its port ``http`` and ``answers``.

    Another program may take a port between our look and the service's: what answers there is not ours, and the service
    ends. ``start`` is then called again, and finds the port taken.

    Raises:
        LocalServiceFailed: the service did not start.
    """
    lost = 0
    while True:
        service = start()
        port = service.ports["http"]
        try:
            wait_until(lambda: listens(service, port) and answers(service), service, timeout_s)  # noqa: B023 - called at once
        except LocalServiceFailed:
            lost += 1
            if lost == START_ATTEMPTS or alive(service) or is_free(port):
                raise
        else:
            return service


def free_port(preferred: int) -> int:
    """``preferred`` if it can be listened on, else a free port of the system's choice."""
    if is_free(preferred):
        return preferred
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether nothing on this machine listens on a TCP port, be it on loopback or on all addresses."""
    return 0 < port <= 65535 and _can_bind("127.0.0.1", port) and _can_bind("", port)


def _launch(
    home: Path,
    name: str,
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None,
    ports: dict[str, int],
    cwd: Path | None,
) -> Service:
    log = private_folder(home / "logs") / f"{name}.log"
    _begin_page(log, name)
    process = _spawn(name, command, env, cwd, log)
    try:
        service = Service(name, process.pid, pids.created(process.pid) or 0.0, ports, str(log))
        write_private(_record(home, name), json.dumps(asdict(service)))
    except BaseException:  # Ctrl-C or a full disk: nothing that runs may stay unrecorded
        process.kill()
        process.wait()
        raise
    # Should the service end before this process does, it must not stay behind as a zombie.
    threading.Thread(target=process.wait, name=f"reaper of {name}", daemon=True).start()
    return service


def _spawn(
    name: str, command: Sequence[str], env: Mapping[str, str] | None, cwd: Path | None, log: Path
) -> subprocess.Popen[bytes]:
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )
    except OSError as error:
        raise LocalServiceFailed(f"{name} cannot be started: {command[0]}: {error.strerror}.") from error


def _begin_page(log: Path, name: str) -> None:
    """Put aside a log that has grown too long, and head what the new process is going to write."""
    try:
        if log.exists() and log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_name(f"{log.name}.1"))
        log.touch(mode=0o600)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{PAGE}{name} started {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n")
    except OSError as error:
        raise unusable(log, error) from error


def _last_words(service: Service, lines: int = 3) -> str:
    """The end of what the process wrote since its start, and where the rest is, as a clause of a sentence."""
    with Path(service.log).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
        page = file.read().decode(errors="replace").rpartition(f"\n{PAGE}")[2]
    written = [line.strip() for line in page.splitlines()[1:] if line.strip()]
    quote = " / ".join(written[-lines:])[-600:].rstrip(".")
    return f" ({quote or 'it wrote nothing'}; its log is {service.log})"


def _end(service: Service, timeout_s: float) -> None:
    try:
        process = psutil.Process(service.pid)
        family = [process, *process.children(recursive=True)]
        process.terminate()
    except psutil.NoSuchProcess:
        return
    _gone(timeout_s, process)
    with suppress(psutil.NoSuchProcess):
        family += process.children(recursive=True)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    if not _gone(KILL_TIMEOUT_S, *family):
        raise LocalServiceFailed(f"{service.name} (process {service.pid}) cannot be stopped.")


def _gone(timeout_s: float, *processes: psutil.Process) -> bool:
    deadline = time.monotonic() + timeout_s
    while not all(map(_is_over, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_over(process: psutil.Process) -> bool:
    """Whether nothing of it runs; its pid may be another one's by now, or still be that of a zombie."""
    return not process.is_running() or pids.created(process.pid) is None


def _can_bind(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a port just closed would count as busy
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _record(home: Path, name: str) -> Path:
    return home / "run" / f"{name}.json"
