"""Whether a session's prompt cache is kept warm: send a ping now, look again later, or not at all, and why.

One rule: a value in, a verdict out.  Whoever sends, and whoever only counts what would have been sent, asks here.

Theory of operation.  A ping is the last request once more, with no answer wanted.  It reads the cached prompt for a
tenth of the input price and so keeps it for another window; without it, a user who comes back later pays for writing
the whole prompt again.  So a ping is a bet: it costs `ping`, and wins `saves`, the price of the write less that of the
read, if the user comes back within the window it buys.  Three things decide, in this order:

1. Safety.  Requests that must not be sent by anybody but their client, and latches that say so.  Nothing overrides it.
2. Money.  After floor(saves / ping) pings in one pause the pause has cost more than coming back can win: never past it.
3. Evidence.  The chance that the user comes back, from how long this session's pauses tend to be (few are known: from
   those of all sessions here), and from signs that the work is finished.  An operator's word overrides only this.

A window is counted from the *start* of the request that last touched the cache, and a ping is sent shortly before its
end: earlier would buy less, later might find the cache cold, and pay for the write itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

from msgspec import Struct

from daemon.warming import GAP_BINS, GAP_EDGES_SECONDS, Ttl, Warming
from worker.protocol import HandSetting, Usage

WINDOW_SECONDS: Final[dict[Ttl, float]] = {"5m": 300.0, "1h": 3_600.0}
"""How long the provider keeps what was touched."""
MARGIN_SECONDS: Final[dict[Ttl, float]] = {"5m": 45.0, "1h": 300.0}
"""How long before the window's end a ping is due: room for a busy daemon, a slow provider, a retry with another limit.
The cooldown from ping to ping is the rest of the window; one of a whole window makes every ping a cold write."""
ARRIVAL_SECONDS: Final = 5.0
"""A ping that is sent later than this before the window's end may arrive after it."""
TURNS_MIN: Final = 3
"""Main turns before anything is known of a session."""
GAPS_TRUSTED: Final = 20
"""Pauses of its own after which a session is judged by these alone, and all sessions by theirs."""
FAILURES_MAX: Final = 3
"""Pings in a row that neither read nor wrote a cache, after which the breaker of that session, model and upstream is
open."""
BREAKER_SECONDS: Final = 6 * 3_600.0
"""How long: a provider's bad afternoon, and no longer than a night."""
LAYER_EMERGENCY: Final = 4
"""The layer at which a request holds only its newest turn: its cache is not worth keeping."""

Reason = Literal[
    "provider",
    "sub-agent",
    "signed",
    "layer",
    "subscription",
    "by-hand",
    "credential",
    "thinking",
    "backoff",
    "breaker",
    "few-turns",
    "no-cache",
    "no-request",
    "no-price",
    "break-even",
    "cold",
    "expired",
    "unlikely",
]
"""Why a cache is not kept warm."""
SENTENCES: Final[dict[Reason, str]] = {
    "provider": "only the Messages API has a cache that is kept by asking again",
    "sub-agent": "sub-agents are not waited for by anybody who makes a pause",
    "signed": "the client signed its request: nobody else may change it",
    "layer": "the context is cut down to its newest turn",
    "subscription": "the client is logged in with a subscription, which is for its own requests",
    "by-hand": "switched off for this session by hand",
    "credential": "the provider refused the credential",
    "thinking": "the upstream wants an answer of at least one token, which thinking does not allow",
    "backoff": "the upstream is overloaded or out of order",
    "breaker": "the last pings neither read nor wrote a cache",
    "few-turns": f"fewer than {TURNS_MIN} turns are known",
    "no-cache": "the last turns touched no cache, or did not tell how long it is kept",
    "no-request": "its last request is not in this daemon's memory: it comes with the next turn",
    "no-price": "no price of the model is known, or reading its cache is no cheaper than writing it",
    "break-even": "more pings in this pause would cost more than coming back can save",
    "cold": "the last ping of this pause found the cache cold",
    "expired": "the window is over",
    "unlikely": "the user will probably not come back in time",
}
EVIDENCE: Final[frozenset[Reason]] = frozenset({"unlikely"})
"""What an operator who wants a session kept warm overrides."""


class Facts(Struct, frozen=True, kw_only=True):
    """What there is to know about one session, at one moment."""

    warming: Warming
    speaks_messages: bool = True
    ttl: Ttl | None
    """Of the cache that the last turns wrote; None where they did not tell."""
    age_seconds: float
    """Since the request began that last touched the cache."""
    idle_seconds: float
    """Since the user's last turn began."""
    ping_nanousd: int | None
    saves_nanousd: int | None
    """What writing the cached prompt again costs more than reading it."""
    host_gaps: Sequence[int] = (0,) * GAP_BINS
    """Pauses of all sessions here."""
    layer: int = 0
    is_child: bool = False
    is_signed: bool = False
    is_subscription: bool = False
    setting: HandSetting = ""
    latch: Reason | None = None
    """One that is in force: `credential`, `thinking`, `backoff` or `breaker`."""
    has_request: bool = True
    """There is something to be sent again."""


Price = Callable[[Usage], int | None]
"""Nano-dollars of some tokens of one model; None where they are not known."""


class Stakes(NamedTuple):
    ping_nanousd: int | None
    saves_nanousd: int | None


class Verdict(NamedTuple):
    """Send now; or look again after so many seconds; or not in this window, for a reason."""

    send: bool = False
    wait_seconds: float = 0.0
    reason: Reason | None = None


def decide(facts: Facts) -> Verdict:
    """What to do about a session now."""
    reason = bar(facts) or _past_break_even(facts)
    if reason is not None:
        return Verdict(reason=reason)
    assert facts.ttl is not None
    until_end = WINDOW_SECONDS[facts.ttl] - facts.age_seconds
    until_due = until_end - MARGIN_SECONDS[facts.ttl]
    if until_due > 0:
        return Verdict(wait_seconds=until_due)
    if until_end < ARRIVAL_SECONDS:
        return Verdict(reason="expired")
    if not is_forced(facts) and not _is_worth_it(facts):
        return Verdict(reason="unlikely")
    return Verdict(send=True)


def stakes_of(usage: Usage, ttl: Ttl | None, price: Price) -> Stakes:
    """What a ping after that turn costs, and what writing its cached prompt again costs more than reading it."""
    cached = usage.cache_read_tokens + usage.cache_write_tokens
    read = price(Usage(cache_read_tokens=cached))
    write = price(Usage(cache_write_1h_tokens=cached) if ttl == "1h" else Usage(cache_write_5m_tokens=cached))
    return Stakes(
        ping_nanousd=price(Usage(input_tokens=usage.input_tokens, cache_read_tokens=cached)),
        saves_nanousd=None if read is None or write is None else write - read,
    )


def ttl_after(usage: Usage, before: Ttl | None) -> Ttl | None:
    """How long is kept what a turn left in the cache: the shortest of what was written."""
    if usage.cache_write_5m_tokens:
        return "5m"
    return "1h" if usage.cache_write_1h_tokens else before


def bar(facts: Facts) -> Reason | None:
    """What forbids a ping whatever it costs."""
    if not facts.speaks_messages:
        return "provider"
    if facts.is_child:
        return "sub-agent"
    if facts.is_signed:
        return "signed"
    if facts.layer >= LAYER_EMERGENCY:
        return "layer"
    if facts.is_subscription:
        return "subscription"
    if is_disabled(facts):
        return "by-hand"
    if facts.latch is not None:
        return facts.latch
    if facts.warming.turns < TURNS_MIN:
        return "few-turns"
    if facts.ttl is None or not facts.warming.window_started_at:
        return "no-cache"
    if facts.warming.is_break_cold:
        return "cold"
    return None if facts.has_request else "no-request"


def is_forced(facts: Facts) -> bool:
    return facts.setting == "on" or (facts.setting == "" and facts.warming.forced)


def is_disabled(facts: Facts) -> bool:
    return facts.setting == "off" or (facts.setting == "" and facts.warming.disabled is not None)


def pings_max(ping_nanousd: int, saves_nanousd: int) -> int:
    """Pings in one pause after which coming back can win nothing any more."""
    return saves_nanousd // ping_nanousd


def breaker_until(warming: Warming, place: str, reset_at: int) -> int:
    """Unix milliseconds until which the breaker of that model and upstream is open; 0: it is closed."""
    if warming.ping_failures < FAILURES_MAX or warming.ping_place != place or warming.ping_failed_at <= reset_at:
        return 0
    return warming.ping_failed_at + int(1_000 * BREAKER_SECONDS)


def _past_break_even(facts: Facts) -> Reason | None:
    ping, saves = facts.ping_nanousd, facts.saves_nanousd
    if ping is None or saves is None or ping <= 0 or saves <= 0:
        return "no-price"
    return None if facts.warming.break_warmups < pings_max(ping, saves) else "break-even"


def _is_worth_it(facts: Facts) -> bool:
    assert facts.ping_nanousd is not None
    assert facts.saves_nanousd is not None
    return chance_of_return(facts) * facts.saves_nanousd > facts.ping_nanousd


# -- evidence ------------------------------------------------------------------------------------------------------


def chance_of_return(facts: Facts) -> float:
    """That the work is not finished."""
    return 1.0 / (1.0 + math.exp(_log_odds_finished(facts)))


def survival(counts: Sequence[int], seconds: float) -> float:
    """The share of pauses longer than that, linear between the edges of the bins; 1 where none is known."""
    total = sum(counts)
    if not total:
        return 1.0
    left, longer = 0.0, total
    for right, count in zip(GAP_EDGES_SECONDS, counts, strict=False):
        if seconds < right:
            return (longer - count * max(0.0, seconds - left) / (right - left)) / total
        left, longer = right, longer - count
    return longer / total


def blended_survival(facts: Facts, seconds: float) -> float:
    """The session's own pauses count the more, the more of them are known; so do those of all sessions, beside the
    belief that everybody stays away for longer, which is what no pauses at all say."""
    hosts = _weighed(facts.host_gaps, seconds, 1.0)
    return _weighed(facts.warming.gap_counts, seconds, hosts)


def _weighed(counts: Sequence[int], seconds: float, otherwise: float) -> float:
    weight = min(sum(counts) / GAPS_TRUSTED, 1.0)
    return weight * survival(counts, seconds) + (1.0 - weight) * otherwise


def _log_odds_finished(facts: Facts) -> float:
    assert facts.ttl is not None
    warming = facts.warming
    stays_away = blended_survival(facts, facts.idle_seconds)
    odds = _BASE
    odds += _OVERDUE if stays_away < _OVERDUE_SHARE else 2.0 * (1.0 - stays_away) - 0.5
    odds += min(_TEXT_ONLY_MAX, _TEXT_ONLY * warming.text_only_run)
    # Whoever often pauses for longer than a window, and comes back, is not finished because of a pause.
    odds += 1.5 - 3.0 * min(blended_survival(facts, WINDOW_SECONDS[facts.ttl]), 0.5)
    return odds + next((more for turns, more in _YOUNG if warming.turns <= turns), 0.0)


_BASE: Final = -2.0
"""Log-odds: before anything is known, seven of eight go on."""
_OVERDUE: Final = 4.0
_OVERDUE_SHARE: Final = 0.01
"""Fewer than one of a hundred pauses were that long: the user has gone."""
_TEXT_ONLY: Final = 0.5
_TEXT_ONLY_MAX: Final = 3.5
"""For each answer in a row that called no tool: agents end with words."""
_YOUNG: Final = ((2, 1.0), (5, 0.3))
"""Up to so many turns: a question that was asked once is often answered once."""
