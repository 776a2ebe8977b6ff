"""Processes that wait at the line and start at once, on the zones of a test.

A script says ``ready`` when it has opened what it needs, and goes on when it gets a line.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pipeline.settings import Settings

Process = subprocess.Popen[str]


def environment(settings: Settings) -> dict[str, str]:
    """What a process needs to find the same zones."""
    assert settings.s3_access_key_id is not None
    assert settings.s3_secret_access_key is not None
    others = {name: value for name, value in os.environ.items() if not name.startswith("SAFELIGHT_")}
    return others | {
        "SAFELIGHT_HOME": str(settings.home),
        "SAFELIGHT_STORE_URL": str(settings.store_url),
        "SAFELIGHT_S3_ENDPOINT": str(settings.s3_endpoint),
        "SAFELIGHT_S3_ACCESS_KEY_ID": settings.s3_access_key_id.get_secret_value(),
        "SAFELIGHT_S3_SECRET_ACCESS_KEY": settings.s3_secret_access_key.get_secret_value(),
    }


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
                    env=environment(settings),
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
