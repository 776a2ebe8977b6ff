"""Processes that wait at the line and start at once, on the zones of a test.

A script says ``ready`` when it has opened what it needs, and goes on when it gets a line.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from environs import environ

from pipeline.settings import Settings

Process = subprocess.Popen[str]


@contextmanager
def at_the_line(script: str, settings: Settings, *runs: Sequence[str]) -> Iterator[list[Process]]:
    """One process of ``script`` per list of arguments, each ready and waiting; none survives."""
    command = [sys.executable, "-c", script]
    with ExitStack() as stack:
        processes = []
        for arguments in runs:
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, *arguments],
                    env=environ(settings),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield processes


def release(process: Process) -> None:
    """Let a waiting process go."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def race(processes: Sequence[Process]) -> list[list[str]]:
    """Let all go at once; the lines that each one prints. They must end well."""
    for process in processes:
        release(process)
    answers = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return answers
