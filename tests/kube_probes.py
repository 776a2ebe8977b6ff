"""Probes and lifecycle hooks of a container, carried out for real: HTTP, TCP, a command, a sleep."""

import http.client
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

Object = dict[str, Any]
Execute = Callable[[Sequence[str], float], tuple[int, str]]
"""Runs a command beside a container, for so many seconds at most: its status, and what it said."""


def keep_asking(
    wanted: Object,
    ports: Sequence[Object],
    address: str,
    *,
    execute: Execute,
    tell: Callable[[bool, str], None],
    ended: threading.Event,
) -> None:
    """Carry out a probe of a running container again and again, until the container has ended.

    ``tell`` hears of each change: whether it is fulfilled now, and why not.
    """
    row, last = 0, None
    ended.wait(wanted.get("initialDelaySeconds", 0))
    while not ended.is_set():
        began = time.monotonic()
        why = ask(wanted, ports, address, execute)
        fine = why is None
        row = row + 1 if fine == last else 1
        last = fine
        if row == wanted["successThreshold" if fine else "failureThreshold"]:
            tell(fine, why or "")
        ended.wait(max(0.0, wanted["periodSeconds"] - (time.monotonic() - began)))


def ask(wanted: Object, ports: Sequence[Object], address: str, execute: Execute) -> str | None:
    """Why a probe is not fulfilled now; None if it is."""
    timeout = wanted.get("timeoutSeconds", 1)
    if "exec" in wanted:
        status, said = execute(wanted["exec"]["command"], timeout)
        return None if status == 0 else f"command ended with status {status}: {said}"
    if "httpGet" in wanted:
        return _get(wanted["httpGet"], port_of(wanted["httpGet"]["port"], ports), address, timeout)
    if "tcpSocket" in wanted:
        return _connect(port_of(wanted["tcpSocket"]["port"], ports), address, timeout)
    return "probes of this kind are unknown to the tests' node"


def hook(wanted: Object, ports: Sequence[Object], address: str, execute: Execute, ended: threading.Event) -> None:
    """Carry out a ``preStop``; it may take as long as it takes, but no longer than the container runs."""
    if "sleep" in wanted:
        ended.wait(wanted["sleep"]["seconds"])
    elif "exec" in wanted:
        execute(wanted["exec"]["command"], 3600)
    else:
        ask(wanted | {"timeoutSeconds": 30}, ports, address, execute)


def port_of(port: Any, ports: Sequence[Object]) -> int:
    """A port's number, from its number or its name."""
    named = {each.get("name"): each["containerPort"] for each in ports}
    return int(named.get(port, port))


def run(command: Sequence[str], env: dict[str, str], folder: str, timeout_s: float) -> tuple[int, str]:
    """Run a command to its end; its status, and what it said."""
    try:
        done = subprocess.run(
            list(command), env=env, cwd=folder, timeout=timeout_s, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, "it took too long"
    except OSError as error:
        return 126, str(error)
    return done.returncode, (done.stdout + done.stderr)[-500:]


def _get(wanted: Object, port: int, address: str, timeout_s: float) -> str | None:
    secure = wanted.get("scheme") == "HTTPS"
    connection: http.client.HTTPConnection
    if secure:
        context = ssl._create_unverified_context()  # noqa: S323, SLF001 - as a kubelet: it does not check certificates
        connection = http.client.HTTPSConnection(address, port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
    headers = {each["name"]: each["value"] for each in wanted.get("httpHeaders", ())}
    try:
        connection.request("GET", wanted.get("path", "/"), headers=headers | {"User-Agent": "kube-probe/1.37"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"Get {address}:{port}: {error}"
    finally:
        connection.close()
    return None if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}"


def _connect(port: int, address: str, timeout_s: float) -> str | None:
    try:
        socket.create_connection((address, port), timeout=timeout_s).close()
    except OSError as error:
        return f"dial tcp {address}:{port}: {error}"
    return None
