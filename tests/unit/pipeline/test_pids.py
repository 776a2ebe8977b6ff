import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline import pids

on_linux = pytest.mark.skipif(not psutil.LINUX, reason="looks at Linux's own clock and processes")
TICK_S = 0.02
"""Two of the ticks in which Linux counts."""
LEADER_LEAVES = (
    "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    "print('ready', flush=True); ctypes.CDLL(None).syscall({exit}, 0)"
)
"""The first thread ends by the system call, which ends it alone, and another one goes on."""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps, and is over after the test."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def until_zombie(pid: int) -> None:
    """Wait until the process is a zombie."""
    deadline = time.monotonic() + 10
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@on_linux
def test_setting_the_clock_leaves_a_living_process_what_it_is() -> None:
    """A creation time is told on the clock since boot, which nobody can set, and not on the one that shows the day."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    with subprocess.Popen(["sleep", "1000"]) as process:
        after = time.clock_gettime(time.CLOCK_BOOTTIME)
        created = pids.created(process.pid)
        process.kill()
    assert created is not None
    assert before - TICK_S <= created <= after + TICK_S


@pytest.mark.parametrize("linux", [pytest.param(True, marks=on_linux), False])
def test_the_same_process_has_the_same_time(sleeper: subprocess.Popen[bytes], linux: bool) -> None:
    """Asked again, the time is the same; a process that was created later has another one."""
    first = pids.created(sleeper.pid, linux=linux)
    assert first is not None
    time.sleep(2 * TICK_S)
    with subprocess.Popen(["sleep", "1000"]) as later:
        second = pids.created(later.pid, linux=linux)
        later.kill()
    assert pids.created(sleeper.pid, linux=linux) == first
    assert second is not None
    assert second > first


@pytest.mark.parametrize("linux", [pytest.param(True, marks=on_linux), False])
def test_a_process_that_is_over_has_no_time(sleeper: subprocess.Popen[bytes], linux: bool) -> None:
    """A zombie, and a pid that no process has, have no creation time."""
    sleeper.kill()
    until_zombie(sleeper.pid)
    assert pids.created(sleeper.pid, linux=linux) is None
    sleeper.wait()
    assert pids.created(sleeper.pid, linux=linux) is None


@on_linux
@pytest.mark.parametrize("linux", [True, False])
def test_a_zombie_whose_threads_live_is_not_over(linux: bool) -> None:
    """A process whose first thread has ended while another holds its files and ports still counts as living."""
    code = LEADER_LEAVES.format(exit={"x86_64": 60}.get(platform.machine(), 93))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        created = pids.created(process.pid, linux=linux)
        until_zombie(process.pid)
        assert created is not None
        assert pids.created(process.pid, linux=linux) == created
        process.kill()


@on_linux
def test_a_program_s_name_may_hold_anything(tmp_path: Path) -> None:
    """Parentheses and spaces in a program's name do not shift what is read beside it."""
    odd = tmp_path / "a) Z 1 (b"
    shutil.copy(shutil.which("sleep") or "", odd)
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    with subprocess.Popen([odd, "1000"]) as process:
        created = pids.created(process.pid)
        process.kill()
    assert created == pytest.approx(before, abs=5)
