"""When a process was created: with its pid, this names it for good, since the system gives pids again.

Linux counts from boot, in clock ticks that never change: setting the clock (a laptop or WSL after sleep) does not make
a living process look like another one.
"""

import os
from pathlib import Path

import psutil


def created(pid: int, *, linux: bool = psutil.LINUX) -> float | None:
    """When the process ``pid`` was created: seconds since boot on Linux, since 1970 elsewhere.

    None if there is none, if it is over or if it is out of this user's sight. A zombie is over, unless threads of it
    still hold its files and ports.
    """
    return _since_boot(pid) if linux else _since_1970(pid)


def _since_boot(pid: int) -> float | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # proc(5). One read, so that all belongs to one moment; the name before the last parenthesis may hold anything.
    state, *fields = stat.rpartition(")")[2].split()
    threads, start = int(fields[16]), int(fields[18])
    return None if _is_over(state in "ZX", threads) else start / os.sysconf("SC_CLK_TCK")


def _since_1970(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return None if _is_over(zombie, process.num_threads()) else process.create_time()
    except psutil.Error:
        return None


def _is_over(zombie: bool, threads: int) -> bool:
    return zombie and threads <= 1
