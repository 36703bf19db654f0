"""How large a session's context may grow: what its turns have taught so far.

One rule: whatever this file says of a session follows from its ledger rows, in their order, and from nothing else.

Theory of operation.  A provider's prompt cache makes a long context cheap as long as it is read; a turn that has to
write most of it again, a *bust*, pays for the whole length.  So two averages are kept, of the share that is written
and of the time between busts, and a cap follows them: down where busts are frequent, back up where they are rare, and
never beyond the length whose bust costs more than the user wants to pay (the row's `cap_ceiling`, a matter of price).

The cap only gives advice.  Nothing here looks at a prompt or changes one.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct, structs

from worker.protocol import Row, Usage

TOKENS_MAX: Final = 100_000_000
"""Tokens, a hundred times the largest context window on offer: a greater count is damage.  A ceiling beyond it (the
model costs next to nothing) says no more than this one does, so that what is kept here always reads back."""
INSTANT_MS_MAX: Final = 7_258_118_400_000
"""Unix milliseconds of the year 2200: a later time is damage."""
INTERVAL_SECONDS_MAX: Final = 315_576_000.0
"""Ten years.  A longer interval is no pause but a clock that was set, as on a machine that boots in 1970."""

UNKNOWN: Final = -1.0
"""The value of an average that has nothing to average yet; 0 is a good average."""
OLD_WEIGHT: Final = 0.7
NEW_WEIGHT: Final = 0.3
"""Weights of an average and of what is new: half of it is forgotten within two turns."""
BUST_RATIO: Final = 0.5
"""Share of the cached tokens above which a turn is a bust: most of them were written, not read."""

CAP_FLOOR_TOKENS: Final = 130_000
"""No cap below it, unless the ceiling itself is: an agent with less context works worse than it saves."""
BUST_RATE_HIGH: Final = 0.8
BUST_RATE_LOW: Final = 0.3
"""Share written above which the cap shrinks, and below which it grows; between them the session is left in peace."""
INTERVAL_SHORT_SECONDS: Final = 120.0
INTERVAL_LONG_SECONDS: Final = 600.0
"""Below two minutes busts come inside one cache window: the user's pauses do not make them.  Above ten they do."""
RATE_SHRINK_PERCENT: Final = 90
RATE_GROW_PERCENT: Final = 105
INTERVAL_SHRINK_PERCENT: Final = 95
INTERVAL_GROW_PERCENT: Final = 103
UNCHANGED_PERCENT: Final = 100
"""Percent of itself that the cap becomes.  It shrinks faster than it grows: a bust costs more than length gains."""

Instant = Annotated[int, Meta(ge=0, le=INSTANT_MS_MAX)]
"""Unix milliseconds; 0 never."""
Tokens = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]


class Gradient(Struct, frozen=True, kw_only=True):
    """The calibration of one session; the defaults know nothing."""

    dynamic_context_cap: Tokens = 0
    """0: none known yet."""
    bust_rate_ema: float = UNKNOWN
    inter_bust_interval_ema: float = UNKNOWN
    """Seconds."""
    last_layer: Annotated[int, Meta(ge=0, le=4)] = 0
    last_known_input: Tokens = 0
    """The whole prompt of the last main turn, cached or not."""
    last_turn_at: Instant = 0
    last_bust_at: Instant = 0

    def __post_init__(self) -> None:
        _check_average("bust_rate_ema", self.bust_rate_ema, 1.0)
        _check_average("inter_bust_interval_ema", self.inter_bust_interval_ema, INTERVAL_SECONDS_MAX)


def observe(gradient: Gradient, row: Row) -> Gradient:
    """Learn from a settled row.  Only main turns whose usage the provider told teach anything."""
    if row.kind != "turn" or row.usage is None:
        return gradient
    ratio = bust_ratio(row.usage)
    learned = gradient if ratio is None else _learn(gradient, ratio, row.started_at)
    return structs.replace(
        learned,
        dynamic_context_cap=_next_cap(learned, row.cap_ceiling, is_measured=ratio is not None),
        last_layer=row.layer,
        last_known_input=row.usage.prompt_tokens,
        last_turn_at=row.started_at,
    )


def bust_ratio(usage: Usage) -> float | None:
    """Share of the cached tokens that was written instead of read; None where no cache was used."""
    cached = usage.cache_read_tokens + usage.cache_write_tokens
    return usage.cache_write_tokens / cached if cached else None


def _learn(gradient: Gradient, ratio: float, started_at: int) -> Gradient:
    rate = _average(gradient.bust_rate_ema, ratio)
    if ratio <= BUST_RATIO:
        return structs.replace(gradient, bust_rate_ema=rate)
    interval = gradient.inter_bust_interval_ema
    seconds = (started_at - gradient.last_bust_at) / 1000
    # Rows come in the order of their settlement, and clocks are set: an impossible interval teaches nothing.
    if gradient.last_bust_at > 0 and 0 <= seconds <= INTERVAL_SECONDS_MAX:
        interval = _average(interval, seconds)
    return structs.replace(gradient, bust_rate_ema=rate, inter_bust_interval_ema=interval, last_bust_at=started_at)


def _average(old: float, new: float) -> float:
    return new if old == UNKNOWN else OLD_WEIGHT * old + NEW_WEIGHT * new


def _next_cap(gradient: Gradient, cap_ceiling: int, *, is_measured: bool) -> int:
    if cap_ceiling == 0:
        return gradient.dynamic_context_cap
    ceiling = min(cap_ceiling, TOKENS_MAX)
    cap = gradient.dynamic_context_cap or ceiling
    if not is_measured:
        return cap
    # One division, in integers and rounded down, so that every daemon that folds the same rows gets the same cap.
    moved = cap * _rate_percent(gradient.bust_rate_ema) * _interval_percent(gradient.inter_bust_interval_ema) // 10_000
    return max(min(CAP_FLOOR_TOKENS, ceiling), min(moved, ceiling))


def _rate_percent(rate: float) -> int:
    if rate > BUST_RATE_HIGH:
        return RATE_SHRINK_PERCENT
    return RATE_GROW_PERCENT if rate < BUST_RATE_LOW else UNCHANGED_PERCENT


def _interval_percent(seconds: float) -> int:
    if seconds == UNKNOWN:
        return UNCHANGED_PERCENT
    if seconds < INTERVAL_SHORT_SECONDS:
        return INTERVAL_SHRINK_PERCENT
    return INTERVAL_GROW_PERCENT if seconds > INTERVAL_LONG_SECONDS else UNCHANGED_PERCENT


def _check_average(name: str, value: float, largest: float) -> None:
    # Written so that NaN, which is neither, fails too.
    if not (value == UNKNOWN or 0 <= value <= largest):
        raise ValueError(f"{name} is neither -1 nor within 0..{largest:g}")
