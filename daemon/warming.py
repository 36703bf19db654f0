"""How warm a session's prompt cache is, and what its past says about the user's pauses.

One rule: evidence is counted here, from the ledger's rows in their order; whether to act on it is decided elsewhere.

Theory of operation.  A provider keeps a cached prompt for five minutes or, for a dearer write, an hour, counted from
the *start* of the request that last touched it.  Which of the two pays depends on how often a turn finds the cache
cold; whether a warm-up pays depends on how long the user tends to stay away.  So two bodies of evidence are kept: the
coldness of the latest turns, which moves the TTL, and a histogram of the gaps between the user's own turns.  A *break*
is the time between two such turns; the warm-ups sent in it are counted, as is the hit when the turn that ends it reads
what they kept warm.

Tool continuations follow by themselves and side calls are not the conversation: neither makes a gap.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, structs

from daemon.gradient import Instant
from worker.protocol import Row, Usage

Ttl = Literal["5m", "1h"]
TTLS: Final[tuple[Ttl, ...]] = ("5m", "1h")

TTL_TURNS_MIN: Final = 5
"""Main turns before the TTL may move: the first one is always cold and says nothing."""
TTL_TURNS_MAX: Final = 20
"""Latest main turns that are looked at: an afternoon's habits, not the session's life."""
COLD_HIGH_PERCENT: Final = 40
"""Percent of cold turns above which the longer TTL pays: a 1h write costs 2 / 1.25 of a 5m one."""
COLD_LOW_PERCENT: Final = 20
COLD_LOW_TURNS: Final = 3
"""Percent of cold turns below which the shorter TTL is enough, and turns in a row that must say so: to go back too
early costs a whole cold write, to stay a little longer only the dearer price of the next ones."""

GAP_EDGES_SECONDS: Final = (
    *(10, 20, 30, 45),
    *(60, 90, 120, 180, 240, 300, 420, 600, 900, 1_200, 1_800, 2_700),
    *(3_600, 5_400, 7_200, 14_400),
)
"""Upper edges of the bins, seconds: dense around the two TTLs, where an estimate decides about money."""
GAP_BINS: Final = len(GAP_EDGES_SECONDS) + 1
"""The last one holds what is longer than every edge."""

TALLY_MAX: Final = 1_000_000_000
"""A turn a second for thirty years: a greater count is damage."""
Tally = Annotated[int, Meta(ge=0, le=TALLY_MAX)]
PLACE_CHARACTERS_MAX: Final = 1_025
"""Two texts of a row, and what is between them."""


class Warming(Struct, frozen=True, kw_only=True):
    """The cache's state and the evidence of one session; the defaults know nothing."""

    ttl: Ttl = "5m"

    last_warmup_at: Instant = 0
    break_warmups: Tally = 0
    """Warm-ups sent since the user's last turn, whether they succeeded or not: each may have cost something."""
    is_break_cold: bool = False
    """The latest of them found the cache cold, and paid for writing it."""
    hits: Tally = 0
    ping_failures: Tally = 0
    """Warm-ups in a row that neither read nor wrote a cache, all of them with…"""
    ping_place: Annotated[str, Meta(max_length=PLACE_CHARACTERS_MAX)] = ""
    """…this model of this upstream, of which the latest was sent at…"""
    ping_failed_at: Instant = 0
    disabled: Annotated[str, Meta(max_length=200)] | None = None
    """Why the session is not warmed, in words."""
    forced: bool = False
    """The user wants it warmed, whatever the evidence says."""

    recent_cold: Annotated[tuple[bool, ...], Meta(max_length=TTL_TURNS_MAX)] = ()
    """Whether each of the latest main turns found the cache cold, oldest first."""
    cold_low_run: Tally = 0
    """Turns in a row after which less than `COLD_LOW_PERCENT` of `recent_cold` were cold."""
    gap_counts: Annotated[tuple[Tally, ...], Meta(min_length=GAP_BINS, max_length=GAP_BINS)] = (0,) * GAP_BINS
    turns: Tally = 0
    text_only_run: Tally = 0
    """Turns in a row whose answer called no tool."""
    window_started_at: Instant = 0
    """Start of the request that last read or wrote the cache."""
    last_user_turn_at: Instant = 0

    @property
    def gaps(self) -> int:
        return sum(self.gap_counts)


def observe(warming: Warming, row: Row) -> Warming:
    """Learn from a settled row: a main turn whose usage the provider told, or a warm-up."""
    if row.kind == "warmup":
        return _count_warmup(warming, row)
    if row.kind == "side" or row.usage is None:
        return warming
    if row.user_turn:
        warming = _end_break(warming, row.started_at, row.usage)
    if row.protocol == "messages":
        warming = _learn_ttl(warming, is_cold(row.usage))
    return structs.replace(
        warming,
        turns=warming.turns + 1,
        text_only_run=warming.text_only_run + 1 if row.text_only else 0,
        window_started_at=_window_start(warming, row),
    )


def is_cold(usage: Usage) -> bool:
    """A cache was wanted and none was found.  A turn that uses no cache at all is not cold."""
    return usage.cache_read_tokens == 0 and usage.cache_write_tokens > 0


def place_of(provider: str, model: str) -> str:
    """What failed warm-ups are counted for, beside their session."""
    return f"{provider} {model}"


def touches_cache(row: Row) -> bool:
    return row.usage is not None and row.usage.cache_read_tokens + row.usage.cache_write_tokens > 0


def _count_warmup(warming: Warming, row: Row) -> Warming:
    counted = structs.replace(
        warming,
        last_warmup_at=row.started_at,
        break_warmups=warming.break_warmups + 1,
        is_break_cold=row.usage is not None and is_cold(row.usage),
        window_started_at=_window_start(warming, row),
    )
    if touches_cache(row):
        return structs.replace(counted, ping_failures=0, ping_place="", ping_failed_at=0)
    if row.status == "interrupted":
        return counted  # Cut off, or never sent: it tells nothing of the upstream.
    place = place_of(row.provider, row.model)
    before = warming.ping_failures if place == warming.ping_place else 0
    return structs.replace(counted, ping_failures=before + 1, ping_place=place, ping_failed_at=row.started_at)


def _window_start(warming: Warming, row: Row) -> int:
    return row.started_at if touches_cache(row) else warming.window_started_at


def _end_break(warming: Warming, started_at: int, usage: Usage) -> Warming:
    is_hit = warming.break_warmups > 0 and usage.cache_read_tokens > 0
    return structs.replace(
        warming,
        break_warmups=0,
        is_break_cold=False,
        hits=warming.hits + is_hit,
        gap_counts=_add_gap(warming.gap_counts, warming.last_user_turn_at, started_at),
        last_user_turn_at=started_at,
    )


def _add_gap(counts: tuple[int, ...], since: int, until: int) -> tuple[int, ...]:
    # A first turn ends no gap, and neither does one that a clock set back places before the last.
    if since == 0 or until < since:
        return counts
    # A gap as long as an edge belongs below it, so that the bins up to an edge hold exactly the gaps not past it.
    place = bisect_left(GAP_EDGES_SECONDS, (until - since) / 1000)
    return (*counts[:place], counts[place] + 1, *counts[place + 1 :])


def _learn_ttl(warming: Warming, cold: bool) -> Warming:
    recent = (*warming.recent_cold, cold)[-TTL_TURNS_MAX:]
    turns, cold_percents = len(recent), 100 * sum(recent)  # compared as integers: 8 of 20 are not more than 40 %
    if turns < TTL_TURNS_MIN:
        return structs.replace(warming, recent_cold=recent)
    run = warming.cold_low_run + 1 if cold_percents < COLD_LOW_PERCENT * turns else 0
    ttl = warming.ttl
    if cold_percents > COLD_HIGH_PERCENT * turns:
        ttl = "1h"
    elif run >= COLD_LOW_TURNS:
        ttl = "5m"
    return structs.replace(warming, recent_cold=recent, cold_low_run=run, ttl=ttl)
