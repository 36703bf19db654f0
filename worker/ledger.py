"""What a ledger row adds to the sums over the ledger.

One rule: sums are only ever moved by the difference between a row as it was and as it is, in the transaction that
changes the row.  Applying a write twice then adds nothing, and session total = day total = ledger total, always.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from worker.protocol import Row


class Sums(NamedTuple):
    """The additive figures of a row, or of any set of rows.  Tokens by kind are disjoint; money is nano-dollars."""

    turns: int = 0
    interrupted: int = 0
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    priced: int = 0
    """Rows whose cost is known: none means that the cost is unknown, not zero."""
    unpriced: int = 0

    def plus(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Sums) -> Sums:
        return Sums(*(a - b for a, b in zip(self, other, strict=True)))


class DayKey(NamedTuple):
    """Which day total a row belongs to."""

    day: str
    kind: str
    provider: str
    model: str
    client: str
    account: str


NOTHING = Sums()


def sums_of_day(row: Row | None) -> Sums:
    """Every kind of row counts here, each under its own kind."""
    if row is None:
        return NOTHING
    usage = row.usage
    return Sums(
        turns=1,
        interrupted=int(row.status == "interrupted"),
        input_tokens=usage.input_tokens if usage else 0,
        cache_read_tokens=usage.cache_read_tokens if usage else 0,
        cache_write_tokens=usage.cache_write_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
        cost_nanousd=row.cost_nanousd or 0,
        priced=int(row.cost_nanousd is not None),
        unpriced=int(row.cost_nanousd is None),
    )


def sums_of_session(row: Row | None) -> Sums:
    """Turns and tokens count rows of the conversation only; money counts side calls and pings too."""
    sums = sums_of_day(row)
    if row is None or row.kind == "turn":
        return sums
    return Sums(cost_nanousd=sums.cost_nanousd, priced=sums.priced, unpriced=sums.unpriced)


def day_key(row: Row) -> DayKey:
    return DayKey(day_of(row.started_at), row.kind, row.provider, row.model, row.client, row.account)


def day_of(milliseconds: int) -> str:
    """The day of a moment, in UTC."""
    return datetime.fromtimestamp(min(milliseconds / 1000, _LAST_SECOND), UTC).date().isoformat()


_LAST_SECOND = 253_402_300_799
"""The end of the year 9999, where datetime ends: an absurd clock must not stop the ledger."""
