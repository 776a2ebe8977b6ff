"""What the prediction log costs the inference server: ``python -m benchmarks.prediction_log [--rounds N]``.

Two servers on the same store and model, one with the log and one without, asked in turn by ``wrk`` with one PNG of 28x28
as plain body on 32 connections; flushes of 50,000 rows fall into the rounds. Told are the median over all rounds of the
ratio within a round, of answers per second and of the processor time that the server's processes took for an answer,
which other programs on the machine disturb less.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from serving_process import PNG, Serving, point_at, register, started

from pipeline.settings import Settings
from pipeline.zones import open_zones, reachable

SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "image/png"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
"""


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=int, default=4, help="that a server is asked for, each round")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    rates, costs = [], []
    with servers(options.processes) as (script, off, on):
        for server in (off, on):
            asked(server, script, options.seconds)
        for number in range(options.rounds):
            pair = (off, on) if number % 2 else (on, off)
            told = {server is on: asked(server, script, options.seconds) for server in pair}
            rates.append(told[True][0] / told[False][0])
            costs.append(told[True][1] / told[False][1])
            print(
                f"off {told[False][0]:7,.0f}/s {told[False][1] * 1e6:6.1f} us   "
                f"on {told[True][0]:7,.0f}/s {told[True][1] * 1e6:6.1f} us   ratio {rates[-1]:.3f} {costs[-1]:.3f}"
            )
    print(f"answers per second, on : off   {statistics.median(rates):.3f}")
    print(f"processor time each, on : off  {statistics.median(costs):.3f}")


@contextmanager
def servers(processes: int) -> Iterator[tuple[Path, Serving, Serving]]:
    """A script for wrk, and a server without and one with the log."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        home = Path(folder)
        settings = reachable(Settings(home=home / "home"))
        from pipeline import embedded_store  # noqa: PLC0415 - started by ``reachable``, ends with us

        running.callback(embedded_store.down, settings.home)
        zones = open_zones(settings)
        version = register(zones, 1)
        point_at(zones, version)
        found = []
        for log in ("off", "on"):
            own = {"LOG": log, "PROCESSES": str(processes)}
            server = running.enter_context(started(settings, home / f"{log}.log", own))
            server.wait_for(version, processes)
            found.append(server)
        (home / "body.png").write_bytes(PNG)
        (home / "ask.lua").write_text(SCRIPT.format(body=home / "body.png"))
        yield home / "ask.lua", found[0], found[1]


def asked(server: Serving, script: Path, seconds: int) -> tuple[float, float]:
    """Answers per second, and seconds of processor time for each."""
    before = processor_time(server)
    command = [shutil.which("wrk") or "wrk", "-t1", "-c32", f"-d{seconds}s", "-s", str(script)]
    told = subprocess.run(
        [*command, f"{server.client.base_url}/predict".replace("//predict", "/predict")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "Non-2xx" in told:
        raise SystemExit(told)
    found = re.search(r"(\d+) requests in", told)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert found, told
    assert rate, told
    return float(rate[1]), (processor_time(server) - before) / int(found[1])


def processor_time(server: Serving) -> float:
    """Of all processes of a server, in seconds."""
    first = psutil.Process(server.process.pid)
    return sum(sum(each.cpu_times()[:2]) for each in (first, *first.children()))


if __name__ == "__main__":
    main()
