"""What a person sees on the terminal: progress, results, and one clear sentence where something is wrong.

Progress goes to standard error (a bar on a terminal, a plain line every few seconds elsewhere), results to standard
output, so that ``safelight … --json | jq`` works.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from pipeline.errors import InvalidInput, SafelightError
from pipeline.progress import OnProgress, Progress, plain_lines

EXIT_FAULT = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
ENDS_OF_RUNS = ("View at ", "Finished in state Completed", "Finished in state Failed")


@contextmanager
def progress() -> Iterator[OnProgress]:
    """A listener that shows each stage as a bar on a terminal, and as plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield plain_lines(lambda line: print(line, file=sys.stderr, flush=True))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Bar(*columns, console=console, transient=False) as bar:
        rows: dict[str, TaskID] = {}

        def show(now: Progress) -> None:
            if now.stage not in rows:
                rows[now.stage] = bar.add_task(now.stage, unit=now.unit, note=now.note)
            bar.update(rows[now.stage], completed=now.done, total=now.total, unit=now.unit, note=now.note)

        yield show


def show_record(record: BaseModel, *, as_json: bool, lines: Sequence[str]) -> None:
    """A result: the whole record as JSON, or the ``lines`` that a person wants."""
    if as_json:
        print(record.model_dump_json(indent=2))
    else:
        print("\n".join(lines))


def show_rows(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """A list of results of one shape: JSON, or a table."""
    if as_json:
        print(json.dumps(list(rows), indent=2, default=str))
        return
    table = Table(box=None, pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*("" if value is None else escape(str(value)) for value in row.values()))
    # A line is a row, for people and for grep: a narrow terminal may break it, this must not.
    Console(width=1000, highlight=False).print(table)


def out(line: str) -> None:
    """A line of the result."""
    print(line, flush=True)


def say(line: str) -> None:
    """A line for the person who runs the command, apart from its result."""
    print(line, file=sys.stderr, flush=True)


class _Screen(logging.Handler):
    """Writes to what standard error is at that moment: while a bar is drawn, to the lines above it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        say(self.format(record))


def log_to_stderr(*, verbose: bool) -> None:
    """Show warnings (with ``verbose`` all of ours) and what flows say of their progress on standard error."""
    screen = _Screen()
    screen.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    # What Prefect says of every task and subflow that ended would hide what the steps say; the sentence of one that
    # failed comes once, at the end.
    screen.addFilter(lambda record: not record.getMessage().startswith(ENDS_OF_RUNS))
    logging.basicConfig(level=logging.WARNING, handlers=[screen])
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries are a detail of ours, which say more
    if verbose:
        logging.getLogger("pipeline").setLevel(logging.INFO)


def exit_status(error: BaseException) -> int:
    """Say what went wrong in one sentence; the status to exit with.

    Raises:
        BaseException: ``error`` itself, when it is a mistake of this program and not of its surroundings.
    """
    if isinstance(error, KeyboardInterrupt):
        say("safelight: interrupted; what was stored stays, and the same command goes on from there.")
        return EXIT_INTERRUPTED
    if isinstance(error, ValidationError):
        say(f"safelight: {first_problem(error)}")
        return EXIT_MISTAKE
    if isinstance(error, SafelightError):
        say(f"safelight: {error}")
        return EXIT_MISTAKE if isinstance(error, InvalidInput) else EXIT_FAULT
    if isinstance(error, typer.TyperException | typer.Abort):
        _say_usage(error)
        return EXIT_MISTAKE
    if isinstance(error, OSError):
        _say_fault(error)
        return EXIT_FAULT
    raise error


def first_problem(error: ValidationError) -> str:
    """The first field that a record refuses, as one sentence that names it.

    Where a field may be of several types, each refuses in turn: the last one named is the one worth reading.
    """
    found = error.errors()
    problem = [each for each in found if each["loc"][:1] == found[0]["loc"][:1]][-1]
    # Such a field's problems end with the type that refused (as literal['auto']), which is no part of its name.
    parts = [str(part) for part in problem["loc"] if isinstance(part, int) or part.isidentifier()]
    field = ".".join(parts) or error.title
    return f"{field}: {problem['msg']} (got {problem['input']!r})."


def _say_usage(error: typer.TyperException | typer.Abort) -> None:
    """What is wrong with a command line, as one sentence; a command without arguments has shown its help already."""
    if isinstance(error, typer.Abort):
        say("\nsafelight: nobody answered the question, so nothing was done.")
    elif message := " ".join(error.format_message().split()):
        say(f"safelight: {message.rstrip('.')}; see --help.")


def _say_fault(error: OSError) -> None:
    if isinstance(error, BrokenPipeError):
        # The reader has left, and needs no sentence; what is buffered for it would be complained about at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        say(f"safelight: {error.strerror or error}: {error.filename}" if error.filename else f"safelight: {error}")
