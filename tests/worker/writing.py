"""Writes as daemons send them, for tests of the worker: one session, one row, one snapshot, with sane values.

One rule: a test names only what it is about; everything else is here.
"""

from __future__ import annotations

from typing import Any

from worker.batch import Write
from worker.protocol import Amend, Booking, Claim, Key, Naming, Row, Snapshot, SnapshotWrite, Usage

STARTED_AT = 1_750_000_000_000
USAGE = Usage(input_tokens=10, cache_read_tokens=200, cache_write_5m_tokens=30, output_tokens=4)


def row(number: int = 1, session: str = "session-1", *, settled: bool = True, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "event_id": f"event-{session}-{number:06d}"[-64:],
        "session_id": session,
        "kind": "turn",
        "status": "complete" if settled else "interrupted",
        "started_at": STARTED_AT + number,
        "ended_at": STARTED_AT + number + 1 if settled else 0,
        "provider": "anthropic",
        "protocol": "messages",
        "model": "model-1",
        "usage": USAGE if settled else None,
        "cost_nanousd": 1_000 if settled else None,
    }
    return Row(**{**values, **changes})


def naming(session: str = "session-1", **changes: Any) -> Naming:
    return Naming(**{"session_id": session, "confirmed": True, **changes})


def booking(number: int = 1, session: str = "session-1", *, settled: bool = True, **changes: Any) -> Booking:
    """A row with a chain key of its own, so that the index has something to page through."""
    keys = [Key(kind="answer", name="", value=f"chain-{session}-{number}")]
    named = naming(session, keys=keys, chain_length=number)
    return Booking(naming=named, row=row(number, session, settled=settled, **changes), epoch=1, seen=number)


def claim(session: str = "session-1") -> Claim:
    return Claim(naming=naming(session))


def snapshot(generation: int = 1, **changes: Any) -> Snapshot:
    values: dict[str, Any] = {
        "generation": generation,
        "position": 0,
        "dynamic_context_cap": 100_000,
        "bust_rate_ema": 0.5,
        "inter_bust_interval_ema": -1.0,
        "last_layer": 0,
        "last_known_input": 240,
        "last_turn_at": STARTED_AT,
        "last_bust_at": 0,
        "gradient_checksum": 1,
        "resolved_conversation_ttl": "5m",
        "warmup_state": "{}",
        "warmup_checksum": 2,
    }
    return Snapshot(**{**values, **changes})


def snapshot_write(session: str = "session-1", epoch: int = 1, **changes: Any) -> SnapshotWrite:
    return SnapshotWrite(session_id=session, epoch=epoch, snapshot=snapshot(**changes))


def write(body: Claim | Booking | SnapshotWrite | Amend, sequence: int = 1, boot: str = "boot-1") -> Write:
    return Write(boot, sequence, body)
