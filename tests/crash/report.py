"""What a campaign found, as a value: added up over episodes, written as JSON and as a table.

One rule: pure, and nothing that was found is left out: a campaign that struck nothing, or excused much, can be seen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.crash.checker import Findings
from tests.crash.points import Point, Strike, Victim

SHOWN_MAX: Final = 20
"""Findings of each kind in the table; the document has all."""


@dataclass
class Report:
    seed: int
    cycles: int = 0
    episodes: int = 0
    strikes: Counter[Strike] = field(default_factory=Counter)
    """Cycles, by victim and point."""
    missed: Counter[Strike] = field(default_factory=Counter)
    """Of these, how often nobody came to the point in time: the victim was killed all the same, anywhere."""
    attempts: int = 0
    answered: int = 0
    findings: Findings = field(default_factory=Findings)
    failed_cycles: list[int] = field(default_factory=list)
    """Cycles after which something was not as it should be: each can be repeated by its number."""

    def add(self, other: Report) -> None:
        self.cycles += other.cycles
        self.episodes += other.episodes
        self.strikes += other.strikes
        self.missed += other.missed
        self.attempts += other.attempts
        self.answered += other.answered
        self.findings.add(other.findings)
        self.failed_cycles += other.failed_cycles

    @property
    def is_good(self) -> bool:
        return self.findings.are_good and not self.failed_cycles

    def __str__(self) -> str:
        return table(self)


def document(report: Report, *, version: str, date: str, command: str, seconds: float) -> dict[str, Any]:
    """The report as JSON has it.  `date` is the caller's: nothing here knows what day it is."""
    found = report.findings
    return {
        "perdure": version,
        "date": date,
        "command": command,
        "seed": report.seed,
        "seconds": round(seconds, 1),
        "cycles": report.cycles,
        "episodes": report.episodes,
        "cycles_by_victim_and_point": {
            victim: {strike.point: count for strike, count in sorted(report.strikes.items()) if strike.victim == victim}
            for victim in Victim
            if any(strike.victim == victim for strike in report.strikes)
        },
        "points_not_reached": {str(strike): count for strike, count in sorted(report.missed.items())},
        "attempts": report.attempts,
        "attempts_answered_to_their_end": report.answered,
        "facts_checked": found.facts,
        "facts_by_kind": dict(sorted(found.checked.items())),
        "excused": dict(sorted(found.excuses.items())),
        "lost": found.lost,
        "doubled": found.doubled,
        "wrong": found.wrong,
        "failed_cycles": report.failed_cycles,
    }


def as_json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def table(report: Report) -> str:
    """Markdown that is also good to read in a terminal of 80 columns."""
    found = report.findings
    return "\n".join(
        [
            f"Seed {report.seed}: {report.cycles} cycles in {report.episodes} episodes, {report.attempts} requests, "
            f"{report.answered} answered to their end.",
            "",
            *_lines(("killed", *Victim, "not reached"), _by_point(report)),
            "",
            *_lines(("what was checked", "facts"), sorted(found.checked.items())),
            "",
            *_lines(("result", "facts"), _results(found)),
            *(["", f"failed cycles: {', '.join(map(str, report.failed_cycles))}"] if report.failed_cycles else []),
            *(f"- {kind}: {said}" for kind, all_said in _faults(found) for said in all_said[:SHOWN_MAX]),
        ]
    )


def _by_point(report: Report) -> Iterable[tuple[object, ...]]:
    for point in Point:
        counts = [report.strikes[Strike(victim, point)] for victim in Victim]
        missed = sum(count for strike, count in report.missed.items() if strike.point is point)
        if any(counts):
            yield (point, *(count or "" for count in counts), missed or "")
    yield ("all", *(sum(n for s, n in report.strikes.items() if s.victim is victim) for victim in Victim), "")


def _results(found: Findings) -> Iterable[tuple[object, ...]]:
    yield ("checked", found.facts)
    for kind, said in _faults(found):
        yield (kind, len(said))
    yield from ((f"excused: {reason}", count) for reason, count in sorted(found.excuses.items()))


def _faults(found: Findings) -> tuple[tuple[str, list[str]], ...]:
    return (("lost", found.lost), ("doubled", found.doubled), ("wrong", found.wrong))


def _lines(head: tuple[object, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    """A table with its columns aligned: words to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return ["| " + " | ".join(_fitted(row, widths)) + " |" for row in (cells[0], rule, *cells[1:])]


def _fitted(row: list[str], widths: list[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
