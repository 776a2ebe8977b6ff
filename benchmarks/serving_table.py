"""The table of ``benchmarks.serving``, and the figures behind it."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.serving_load import Visit

Rounds = Sequence[Mapping[int, Visit]]
"""Of one server: in each round a visit for each number of connections."""


@dataclass(frozen=True, slots=True)
class Row:
    """A server, and what its visitors saw.

    Attributes:
        name: of the server.
        what: how it is used.
        version: of its packages.
        visits: see ``Rounds``.
        memory_mb: PSS of all its processes after the rounds, in MiB.
        first_answer_s: seconds from the start of its process to the first answer.
    """

    name: str
    what: str
    version: str
    visits: Rounds
    memory_mb: float | None = None
    first_answer_s: float | None = None

    def median(self, connections: int, figure: Callable[[Visit], float]) -> float:
        """Over the rounds."""
        return statistics.median(figure(each[connections]) for each in self.visits)

    def failures(self) -> int:
        """Requests of all visits that were refused, or whose connection broke."""
        return sum(visit.refused + visit.broken for each in self.visits for visit in each.values())

    def as_json(self) -> dict[str, Any]:
        """Every figure."""
        return asdict(self)


def ratios(row: Row, reference: Row | None, connections: int) -> list[float]:
    """Answers per second to another server's, round by round, in order of size."""
    pairs = zip(row.visits, reference.visits if reference else (), strict=False)
    rates = [(own[connections].per_second, base[connections].per_second) for own, base in pairs]
    return sorted(own / base for own, base in rates if base)  # a reference that answered nothing compares with nothing


def print_table(rows: Sequence[Row], reference: str) -> None:
    """In Markdown; ratios to the server of that name, with their spread."""
    compared = next((row for row in rows if row.name == reference), None)
    counts = list(rows[0].visits[0])
    heads = ["server", "versions"]
    for count in counts:
        heads += [f"x {reference} at {count}", f"answers/s at {count}", f"p50 / p99 ms at {count}"]
    heads += [f"answers per CPU s at {counts[-1]}", "strangers' cores", "failed", "PSS MiB", "first answer s"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * 2 + "---:|" * (len(heads) - 2))
    for row in rows:
        print("| " + " | ".join(cells(row, compared, counts)) + " |")


def cells(row: Row, reference: Row | None, counts: Sequence[int]) -> list[str]:
    """Of one line."""
    found = [f"**{row.name}** {row.what}", row.version]
    for count in counts:
        found += [spread(ratios(row, reference, count)), f"{row.median(count, lambda seen: seen.per_second):,.0f}"]
        p50, p99 = row.median(count, lambda seen: seen.p50_ms), row.median(count, lambda seen: seen.p99_ms)
        found.append(f"{p50:.2f} / {p99:.1f}" if p50 else "")
    found.append(f"{row.median(counts[-1], lambda seen: seen.per_cpu_second):,.0f}")
    strangers = [row.median(count, lambda seen: seen.strangers) for count in counts]
    found += [" / ".join(f"{each:.1f}" for each in strangers), f"{row.failures()}"]
    return [*found, number(row.memory_mb, 0), number(row.first_answer_s, 2)]


def spread(sorted_ratios: Sequence[float]) -> str:
    """Median, least and most."""
    if not sorted_ratios:
        return ""
    return f"**{statistics.median(sorted_ratios):.2f}** ({sorted_ratios[0]:.2f} to {sorted_ratios[-1]:.2f})"


def number(value: float | None, digits: int) -> str:
    """Empty where there is none."""
    return "" if value is None else f"{value:,.{digits}f}"
