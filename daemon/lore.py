"""What a row of the Lore gateway's database means here: who the session is, what it learned, what it cost.

One rule: a row is understood whole or refused with the reason; no figure is guessed, and what can not be kept is said.

Theory of operation.  Lore keeps a row per session in `session_state`, whose columns grew with its schema: costs and
counts with 18, the last ones of its tracking with 23, identity and calibration with 24, sub-agents with 26, input and
output tokens with 73; later steps only added.  Here times are Unix milliseconds as there, but intervals are seconds
where Lore has milliseconds, and money is integer nano-dollars where Lore has dollars in a float.  `worker_cost` holds
the warm-ups already (`warmup_cost`, from 61 on, is a part of it that is told once more).

Read from its published source, but for two assumptions: that `warmupCount` is of the present pause (`totalWarmups`, of
all), and that the greatest number in `schema_version` is the schema's.

What goes over is what can be true here too.  Lore's fingerprints are hashes of its own; how warm a prompt cache is was
learned with the prompts that Lore made, so of that only the TTL, counts and the user's own wish remain.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from daemon import state as states
from daemon.gradient import INSTANT_MS_MAX, INTERVAL_SECONDS_MAX, TOKENS_MAX, UNKNOWN, Gradient
from daemon.hints import may_be_secret
from daemon.identity import derived_id
from daemon.providers import is_id
from daemon.state import EMPTY, SessionState
from daemon.warming import TALLY_MAX, TTLS, Tally, Ttl, Warming
from worker.protocol import COUNT_MAX, Adoption, Key, Snapshot

SCHEMA_MIN: Final = 23
SCHEMA_KNOWN: Final = 75
"""The newest of which it is known what its columns mean; a newer one is read as long as it still has these."""
IDENTITY_SCHEMA: Final = 24
TOKENS_SCHEMA: Final = 73

YEAR_2020_MILLISECONDS: Final = 1_577_836_800_000
"""No Lore ran before.  A smaller time was written in another unit."""
CLOCKS_APART_MILLISECONDS: Final = 24 * 3_600 * 1_000
"""How far a time may lie ahead: the file may come from a machine whose clock is wrong."""
DOLLARS_MAX: Final = 100_000.0
"""What one session may have cost: a hundred times the dearest."""
TEXT_CHARACTERS_MAX: Final = 512
NANODOLLARS: Final = Decimal(10**9)

REQUIRED: Final = (
    "session_id",
    "updated_at",
    "conversation_cost",
    "worker_cost",
    "conversation_turns",
    "cache_read_tokens",
    "cache_write_tokens",
    "message_count",
    "consecutive_text_only_turns",
)
"""Columns that every schema from 23 on has."""
LATER: Final = (
    "fingerprint",
    "header_session_id",
    "header_name",
    "resolved_conversation_ttl",
    "warmup_state",
    "dynamic_context_cap",
    "bust_rate_ema",
    "inter_bust_interval_ema",
    "last_layer",
    "last_known_input",
    "last_turn_at",
    "last_bust_at",
)
"""From 24 on."""
OPTIONAL: Final = ("parent_session_id", "is_subagent", "input_tokens", "output_tokens")
DERIVED: Final = ("first_message_at", "model", "provider", "parent_header_name", "parent_header_session_id", "rivals")
"""What the reader adds from other rows; `rivals`: newer sessions that go by the same header and value."""


class Refusal(NamedTuple):
    """A row that is not imported, and why."""

    lore_id: str
    reason: str


class Reading(Struct, frozen=True, kw_only=True):
    """A row that was understood.  `notes`: what of it is not kept, or not as it was."""

    adoption: Adoption
    is_found_again: bool
    """Its client's next request goes on with it."""
    notes: tuple[str, ...] = ()


class _Unlike(Exception):
    """A value that Lore can not have written, or that means nothing here."""


def read_row(row: Mapping[str, Any], *, now: int, session_headers: Collection[str]) -> Reading | Refusal:
    """Judge a row.  Never raises, whatever it holds.  `session_headers`: those that name sessions here."""
    shown = str(row.get("session_id"))[:TEXT_CHARACTERS_MAX]
    try:
        return _read(row, now, session_headers)
    except _Unlike as unlike:
        return Refusal(shown, str(unlike))


def _read(row: Mapping[str, Any], now: int, session_headers: Collection[str]) -> Reading:
    lore_id = _name(row, "session_id")
    if not lore_id:
        raise _Unlike("session_id is empty")
    notes: list[str] = []
    header = _header(row, notes)
    if header and _count(row, "rivals", COUNT_MAX):
        if not row.get("is_subagent"):
            raise _Unlike(f"another session goes by the same {header[0]} and value, with a later turn")
        notes.append(f"a sub-agent under the {header[0]} of the session that started it: it has no name of its own")
        header = None
    snapshot = _snapshot(row, now, notes)
    updated_at, last_turn_at = _instant(row, "updated_at", now), _instant(row, "last_turn_at", now)
    last_seen_at = last_turn_at or updated_at
    if not last_seen_at:
        raise _Unlike("neither last_turn_at nor updated_at says when it was used")
    first_seen_at = min(last_seen_at, _instant(row, "first_message_at", now) or last_seen_at)
    is_found_again = header is not None and header[0] in session_headers
    if header is None and not notes:
        notes.append("its client named it by no header: its next request begins a new session")
    elif header is not None and not is_found_again:
        notes.append(f"{header[0]} is none of PERDURE_SESSION_HEADERS: its next request begins a new session")
    if "input_tokens" not in row:
        notes.append("input and output tokens were not kept before schema 73")
    adoption = Adoption(
        foreign_id=lore_id,
        session_id=_session_id(lore_id, header),
        keys=[Key(kind="header", name=header[0], value=header[1])] if header else [],
        header_name=header[0] if header else "",
        header_session_id=header[1] if header else "",
        fingerprint=_fingerprint(row),
        parent=_parent(row),
        client=_CLIENTS.get(header[0], "") if header else "",
        provider=_word(row, "provider"),
        model=_word(row, "model"),
        message_count=_count(row, "message_count", COUNT_MAX),
        first_seen_at=first_seen_at,
        last_seen_at=last_seen_at,
        turns=_count(row, "conversation_turns", TALLY_MAX),
        input_tokens=_count(row, "input_tokens", COUNT_MAX),
        cache_read_tokens=_count(row, "cache_read_tokens", COUNT_MAX),
        cache_write_tokens=_count(row, "cache_write_tokens", COUNT_MAX),
        output_tokens=_count(row, "output_tokens", COUNT_MAX),
        cost_nanousd=nanodollars(_dollars(row, "conversation_cost"), _dollars(row, "worker_cost")),
        snapshot=snapshot,
    )
    return Reading(adoption=adoption, is_found_again=is_found_again, notes=tuple(notes))


def nanodollars(*dollars: float) -> int:
    """The sum of some amounts, exact to the bit of each float, and rounded once, half to even."""
    total = Decimal(0)
    for each in dollars:
        total = _EXACT.add(total, Decimal(each))
    scaled = _EXACT.multiply(total, NANODOLLARS)
    return int(scaled.to_integral_value(rounding=ROUND_HALF_EVEN, context=_EXACT))


# -- who it is -----------------------------------------------------------------------------------------------------


def _session_id(lore_id: str, header: tuple[str, str] | None) -> str:
    return derived_id(*header) if header else derived_id("lore session", lore_id)


def _header(row: Mapping[str, Any], notes: list[str]) -> tuple[str, str] | None:
    """The header that names the session, and its value; a name without a value names nothing."""
    name, value = _name(row, "header_name").lower(), _name(row, "header_session_id")
    if not name or not value:
        return None
    if may_be_secret(name):
        notes.append(f"the header {name} may hold a credential: it is not kept")
        return None
    if not is_id(value):
        notes.append(f"the value of {name} is no id: it is not kept")
        return None
    return name, value


def _parent(row: Mapping[str, Any]) -> str:
    """The id here of the session that started it; '' for one that the file does not hold."""
    parent = _name(row, "parent_session_id")
    if not parent or parent == row.get("session_id"):
        return ""
    name, value = _name(row, "parent_header_name").lower(), _name(row, "parent_header_session_id")
    is_named = name and value and not may_be_secret(name) and is_id(value)
    return _session_id(parent, (name, value) if is_named else None)


def _fingerprint(row: Mapping[str, Any]) -> str:
    """Marked as Lore's: nothing here is ever equal to it."""
    fingerprint = _name(row, "fingerprint")
    return f"lore:{fingerprint}"[:TEXT_CHARACTERS_MAX] if fingerprint else ""


# -- what it learned -----------------------------------------------------------------------------------------------


def _snapshot(row: Mapping[str, Any], now: int, notes: list[str]) -> Snapshot | None:
    """Its state, as a snapshot before every row; None where nothing was learned."""
    state = SessionState(gradient=_gradient(row, now), warming=_warming(row, now, notes))
    return states.encode(state, generation=1) if state != EMPTY else None


def _gradient(row: Mapping[str, Any], now: int) -> Gradient:
    layer = _count(row, "last_layer", 4)
    interval = _average(row, "inter_bust_interval_ema", 1_000 * INTERVAL_SECONDS_MAX)
    return Gradient(
        dynamic_context_cap=round(_number(row, "dynamic_context_cap", 0, TOKENS_MAX)),
        bust_rate_ema=_average(row, "bust_rate_ema", 1.0),
        inter_bust_interval_ema=interval if interval == UNKNOWN else interval / 1_000,
        last_layer=layer,
        last_known_input=_count(row, "last_known_input", TOKENS_MAX),
        last_turn_at=_instant(row, "last_turn_at", now),
        last_bust_at=_instant(row, "last_bust_at", now),
    )


def _warming(row: Mapping[str, Any], now: int, notes: list[str]) -> Warming:
    ttl = _ttl(row)
    text_only = _count(row, "consecutive_text_only_turns", TALLY_MAX)
    known = _warmup(row, notes)
    if known is None:
        return Warming(ttl=ttl, text_only_run=text_only)
    if known.disabled:
        notes.append("Lore had given up warming it; here that is judged anew")
    warmed_at = int(known.lastWarmupAt)
    if not (warmed_at == 0 or YEAR_2020_MILLISECONDS <= warmed_at <= now + CLOCKS_APART_MILLISECONDS):
        notes.append("warmup_state: lastWarmupAt is no time in milliseconds; it counts as never")
        warmed_at = 0
    return Warming(
        ttl=ttl,
        last_warmup_at=warmed_at,
        break_warmups=known.warmupCount,
        hits=known.warmupHits,
        forced=known.forceKeepWarm,
        text_only_run=text_only,
    )


class _Warmup(Struct, frozen=True):
    """Lore's JSON text; its own names.  Whatever else it holds has no meaning here."""

    lastWarmupAt: float = 0  # noqa: N815
    warmupCount: Tally = 0  # noqa: N815
    warmupHits: Tally = 0  # noqa: N815
    disabled: bool = False
    forceKeepWarm: bool = False  # noqa: N815


def _warmup(row: Mapping[str, Any], notes: list[str]) -> _Warmup | None:
    text = row.get("warmup_state")
    if text is None or text == "":
        return None
    try:
        known = _warmups.decode(text)
        if not 0 <= known.lastWarmupAt <= INSTANT_MS_MAX:
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        notes.append("warmup_state is unreadable; warming starts afresh")
        return None
    return known


def _ttl(row: Mapping[str, Any]) -> Ttl:
    value = row.get("resolved_conversation_ttl", "5m")
    for ttl in TTLS:
        if value == ttl:
            return ttl
    raise _Unlike(f"resolved_conversation_ttl is {_shown(value)}, neither 5m nor 1h")


# -- values --------------------------------------------------------------------------------------------------------


def _number(row: Mapping[str, Any], name: str, least: float, most: float) -> float:
    """A finite number between two bounds; 0 where the schema has no such column."""
    value = row.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Unlike(f"{name} is {_shown(value)}, not a number")
    if not least <= value <= most:  # NaN, which is no number, is within no bounds either.
        raise _Unlike(f"{name} is {_shown(value)}, not between {least:g} and {most:g}")
    return value


def _count(row: Mapping[str, Any], name: str, most: int) -> int:
    value = _number(row, name, 0, most)
    if value != int(value):
        raise _Unlike(f"{name} is {_shown(value)}, not a whole number")
    return int(value)


def _dollars(row: Mapping[str, Any], name: str) -> float:
    return _number(row, name, 0, DOLLARS_MAX)


def _average(row: Mapping[str, Any], name: str, most: float) -> float:
    """−1: there was nothing to average yet."""
    if row.get(name, UNKNOWN) == UNKNOWN:
        return UNKNOWN
    return float(_number(row, name, 0, most))


def _instant(row: Mapping[str, Any], name: str, now: int) -> int:
    """Unix milliseconds; 0 never, which other tables also say by null."""
    if row.get(name) is None and name in DERIVED:
        return 0
    at = _count(row, name, 2**62)
    if at and at < YEAR_2020_MILLISECONDS:
        raise _Unlike(f"{name} is {at}, before 2020: no time in milliseconds")
    if at > now + CLOCKS_APART_MILLISECONDS:
        raise _Unlike(f"{name} is {at}, in the future")
    return at


def _name(row: Mapping[str, Any], name: str) -> str:
    """A text that may name something; '' for none."""
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Unlike(f"{name} is {_shown(value)}, not a text")
    if len(value) > TEXT_CHARACTERS_MAX or not value.isprintable() or "\ufffd" in value:
        raise _Unlike(f"{name} is no name: too long, or with characters that no name has")
    return value


def _word(row: Mapping[str, Any], name: str) -> str:
    """A text that is only shown: '' where it is none."""
    value = row.get(name)
    is_word = isinstance(value, str) and len(value) <= _WORD_CHARACTERS_MAX and value.isprintable()
    return str(value) if is_word and value != "unknown" else ""


def _shown(value: object) -> str:
    """Enough of a value to find it by; of a text, no more than its length, since nobody knows what it is."""
    if isinstance(value, str | bytes):
        return f"a text of {len(value)}"
    return "null" if value is None else repr(value)[:24]


_CLIENTS: Final[dict[str, str]] = {"x-claude-code-session-id": "claude-code", "x-session-affinity": "opencode"}
_WORD_CHARACTERS_MAX: Final = 128
_EXACT: Final = Context(prec=1_200)
"""Digits that the sum of any two floats needs: the smallest has 1,074 of them behind the point."""
_warmups: Final = msgspec.json.Decoder(_Warmup)
