"""What is known about a session, as one frozen value: folded from its ledger, kept as a snapshot, judged on return.

One rule: a group of values, gradient or warming, is restored together or not at all, and a damaged one takes nothing
with it.

Theory of operation.  A state is its ledger's settled rows, folded in the order of their positions.  A snapshot only
spares the replay of what lies before its `position`; so losing one costs time, while believing a damaged one costs
money for the rest of the session.  Hence the judgement in `decode`, in this order:

1. The position, which both groups share.  Without one nothing can be continued, and both are rejected.
2. The values: types, ranges and lengths, which stand on the fields of `Gradient` and `Warming`.
3. The checksum, where all values passed: it finds what is plausible but was never written.

A row may claim what no field allows, like a turn in the year 2300.  The state that follows from it serves all the same,
is rejected on its return, and is rebuilt equal: the ledger decides, the ranges only detect damage.

A rejected group is None, and `rebuild` folds it from the first row on.  The warming group has two softer endings, since
its TTL and its JSON text are of use without each other.  A TTL that is neither counts as the default, if the checksum
fits the text together with one of the real TTLs: then nothing else was damaged.  An unreadable text is replaced by a
fresh one beside the TTL, if the gradient's checksum vouches for the position; if it does not, the whole ledger has to
be read anyway, and the group is better rebuilt with the other.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from functools import reduce
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, structs

from daemon import gradient as gradients
from daemon import warming as warmings
from daemon.gradient import Gradient
from daemon.warming import TTLS, Ttl, Warming
from worker.protocol import Row, Snapshot

WARMUP_VERSION: Final = 2
"""Of the JSON text in `warmup_state`; a later version's text counts as unreadable, of an earlier one that is known the
fields are missing which came since."""
POSITION_MAX: Final = 1_000_000_000
"""Ledger rows of one session, a row a second for thirty years: a greater position is damage."""
REPR_CHARACTERS_MAX: Final = 24
"""Of a damaged value in a warning: enough to recognise it, too little to carry a text."""

Position = Annotated[int, Meta(ge=0, le=POSITION_MAX)]


class SessionState(Struct, frozen=True, kw_only=True):
    gradient: Gradient = Gradient()
    warming: Warming = Warming()
    position: int = 0
    """Ledger position up to which the rows are folded in; 0: none."""


EMPTY: Final = SessionState()


class Restored(Struct, frozen=True, kw_only=True):
    """What a snapshot is good for.  A group that is None was damaged; `warnings` says so, once per group."""

    gradient: Gradient | None
    warming: Warming | None
    position: int
    """That of the groups which were kept; 0 where none was."""
    warnings: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """The rows after `position` are enough for `rebuild`; otherwise it needs all of them."""
        return self.gradient is not None and self.warming is not None


def observe(state: SessionState, row: Row) -> SessionState:
    """Fold one settled row in.  That no row is offered twice is the caller's care: an own row is observed before the
    worker gave it a position, so the position alone cannot tell."""
    return SessionState(
        gradient=gradients.observe(state.gradient, row),
        warming=warmings.observe(state.warming, row),
        position=max(state.position, row.position),
    )


def fold(state: SessionState, rows: Iterable[Row]) -> SessionState:
    return reduce(observe, rows, state)


def encode(state: SessionState, generation: int) -> Snapshot:
    text = _warmup_text(state.warming)
    return Snapshot(
        generation=generation,
        position=state.position,
        **structs.asdict(state.gradient),
        gradient_checksum=_gradient_checksum(state.gradient, state.position),
        resolved_conversation_ttl=state.warming.ttl,
        warmup_state=text,
        warmup_checksum=_warmup_checksum(state.warming.ttl, text, state.position),
    )


def decode(snapshot: Snapshot) -> Restored:
    """Judge a snapshot.  Never raises, whatever it holds."""
    try:
        msgspec.convert(snapshot.position, Position)
    except ValueError as error:
        faults = tuple(_rejection(group, f"position: {error}") for group in ("gradient", "warming"))
        return Restored(gradient=None, warming=None, position=0, warnings=faults)
    gradient, gradient_warning = _restore_gradient(snapshot)
    warming, warming_warning = _restore_warming(snapshot, position_is_proven=gradient is not None)
    return Restored(
        gradient=gradient,
        warming=warming,
        position=0 if gradient is None and warming is None else snapshot.position,
        warnings=tuple(warning for warning in (gradient_warning, warming_warning) if warning),
    )


def rebuild(restored: Restored, rows: Iterable[Row]) -> SessionState:
    """The state as of the last of `rows`, which are the session's settled ones, oldest first: all of them, or at least
    those after `restored.position` where it is complete.  A kept group is continued, a rejected one begins anew."""
    rows = list(rows)
    later = [row for row in rows if row.position > restored.position]
    if restored.gradient is None:
        gradient = reduce(gradients.observe, rows, EMPTY.gradient)
    else:
        gradient = reduce(gradients.observe, later, restored.gradient)
    if restored.warming is None:
        warming = reduce(warmings.observe, rows, EMPTY.warming)
    else:
        warming = reduce(warmings.observe, later, restored.warming)
    position = max((row.position for row in later), default=restored.position)
    return SessionState(gradient=gradient, warming=warming, position=position)


# -- judging: a group, or None, and the warning that goes with it ------------------------------------------------


def _restore_gradient(snapshot: Snapshot) -> tuple[Gradient | None, str]:
    values = {name: getattr(snapshot, name) for name in Gradient.__struct_fields__}
    try:
        gradient = msgspec.convert(values, Gradient)
    except ValueError as error:
        return None, _rejection("gradient", str(error))
    if _gradient_checksum(gradient, snapshot.position) != snapshot.gradient_checksum:
        return None, _rejection("gradient", "gradient_checksum does not fit the values")
    return gradient, ""


def _restore_warming(snapshot: Snapshot, *, position_is_proven: bool) -> tuple[Warming | None, str]:
    ttl, ttl_fault = _read_ttl(snapshot.resolved_conversation_ttl)
    evidence, text_fault = _read_warmup(snapshot.warmup_state)
    faults = " and ".join(fault for fault in (ttl_fault, text_fault) if fault)
    if evidence is None:
        if ttl is None or not position_is_proven:
            return None, _rejection("warming", faults)
        return Warming(ttl=ttl), f"warming state is damaged: {faults}; it starts afresh with the TTL kept at {ttl}"
    candidates = TTLS if ttl is None else (ttl,)
    sums = [_warmup_checksum(candidate, str(snapshot.warmup_state), snapshot.position) for candidate in candidates]
    if snapshot.warmup_checksum not in sums:
        return None, _rejection("warming", faults or "warmup_checksum does not fit the values")
    if ttl is None:
        return evidence, f"warming state is damaged: {faults}; the TTL counts as {evidence.ttl}, the rest is kept"
    return structs.replace(evidence, ttl=ttl), ""


def _read_ttl(value: object) -> tuple[Ttl | None, str]:
    for ttl in TTLS:
        if value == ttl:
            return ttl, ""
    return None, f"resolved_conversation_ttl is {repr(value)[:REPR_CHARACTERS_MAX]}, neither 5m nor 1h"


def _read_warmup(text: object) -> tuple[Warming | None, str]:
    """The state in a JSON text, with the default TTL, which the text does not hold."""
    if not isinstance(text, str):
        return None, "warmup_state is not a text"
    try:
        # Decoded as an object first: the fields of `Warming` have defaults, and here a missing one is damage.
        content = msgspec.json.decode(text, type=dict[str, Any])
        version = content.pop("version", None)
        if type(version) is not int or version not in _WARMUP_FIELDS_OF:
            raise ValueError(f"version is none of 1 to {WARMUP_VERSION}")
        fields = _WARMUP_FIELDS_OF[version]
        missing = [name for name in fields if name not in content]
        if missing or len(content) > len(fields):
            raise ValueError(f"{', '.join(missing)} missing" if missing else "unknown fields")
        return msgspec.convert(content, Warming), ""
    except (ValueError, RecursionError) as error:
        return None, f"warmup_state is unreadable: {error}"


def _rejection(group: str, fault: str) -> str:
    return f"{group} state is damaged: {fault}; it is rebuilt from the ledger"


# -- what is written ---------------------------------------------------------------------------------------------


def _warmup_text(warming: Warming) -> str:
    content = {"version": WARMUP_VERSION} | {name: getattr(warming, name) for name in _WARMUP_FIELDS}
    return msgspec.json.encode(content).decode()


def _warmup_checksum(ttl: Ttl, text: str, position: int) -> int:
    return zlib.crc32(f"{position} {ttl} {text}".encode())


def _gradient_checksum(gradient: Gradient, position: int) -> int:
    """Over bytes rather than a text: how a library prints a float may change, the float may not."""
    return zlib.crc32(_GRADIENT_LAYOUT.pack(position, *structs.astuple(gradient)))


_WARMUP_FIELDS: Final = tuple(name for name in Warming.__struct_fields__ if name != "ttl")
_SINCE_2: Final = ("is_break_cold", "ping_failures", "ping_place", "ping_failed_at")
_WARMUP_FIELDS_OF: Final[dict[int, tuple[str, ...]]] = {
    1: tuple(name for name in _WARMUP_FIELDS if name not in _SINCE_2),
    WARMUP_VERSION: _WARMUP_FIELDS,
}
_GRADIENT_LAYOUT: Final = struct.Struct(">qqddqqqq")
"""Position, then the fields of `Gradient` in their order."""
