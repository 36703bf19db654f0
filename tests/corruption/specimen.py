"""A small database with something in every table, and most of its trees more than one page.

One rule: everything in it was written by the product's own code, as a worker and its daemons write it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from daemon.state import EMPTY, SessionState, encode, fold
from worker.batch import Write
from worker.protocol import (
    Amend,
    Booking,
    Claim,
    Forget,
    Hint,
    Key,
    Merge,
    Naming,
    Row,
    Shape,
    SnapshotWrite,
    Split,
    Usage,
    Why,
)
from worker.store import Store

SESSIONS: Final = 24
TURNS: Final = 9
"""Of each; a snapshot is taken before the last three."""
NOW: Final = 1_750_000_000_000
TURN_MILLISECONDS: Final = 40_000
BOOT: Final = "boot-1"


def make(path: Path) -> None:
    """A cleanly stopped database."""
    store = Store(path)
    for writes in _batches():
        store.commit(writes, live=frozenset({BOOT}), now=NOW)
    store.close()


def make_killed(path: Path) -> None:
    """One whose worker was killed: several commits are in its log alone."""
    make(path)
    store = Store(path)
    log = path.with_name(f"{path.name}-wal")
    for turn in range(TURNS, TURNS + 4):
        store.commit([_booked(session, turn) for session in range(0, SESSIONS, 3)], live=frozenset({BOOT}), now=NOW)
    content = path.read_bytes(), log.read_bytes()
    store.abandon()
    path.write_bytes(content[0])
    log.write_bytes(content[1])
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)


def session_ids() -> list[str]:
    """Every session of it, and a name that became another's."""
    return [*map(_id, range(SESSIONS)), "split-off"]


def _batches() -> Iterator[list[Write]]:
    yield [_write(Claim(naming=_naming(session, 0))) for session in range(SESSIONS)]
    for turn in range(TURNS):
        for session in range(SESSIONS):
            yield [_booked(session, turn)]
        if turn == TURNS - 4:
            yield [_snapshot(session) for session in range(SESSIONS)]
    # An id that was drawn while the worker was away, for a conversation that is known.
    known = Naming(session_id="proposed", confirmed=False, continues=[f"answer-5-{TURNS - 1}"], account="account-1")
    yield [_write(Claim(naming=known))]
    yield [_write(Amend(request="change-1", act=Merge(session_id=_id(22), into=_id(21))))]
    split = Split(session_id=_id(20), drawn_id="split-off", events=[_row(20, turn).event_id for turn in (3, 4)])
    yield [_write(Amend(request="change-2", act=split))]
    yield [_write(Amend(request="change-3", act=Forget(session_id=_id(19), drawn_id="blank", tree=True)))]


def _booked(session: int, turn: int) -> Write:
    return _write(Booking(naming=_naming(session, turn), row=_row(session, turn), epoch=1, seen=turn))


def _naming(session: int, turn: int) -> Naming:
    named = session % 3 == 0
    header = [Key(kind="header", name="x-session-id", value=f"client-{session}")] if named else []
    return Naming(
        session_id=_id(session),
        confirmed=True,
        keys=[*header, Key(kind="answer", name="", value=f"answer-{session}-{turn}")],
        chain_length=2 * turn + 1,
        header_name="x-session-id" if named else "",
        header_session_id=f"client-{session}" if named else "",
        client=f"client-{session % 4}",
        account=f"account-{session % 3}",
        parent=_id(session - 1) if session % 5 == 4 else "",
        shape=Shape(system="l1 l2", tools="t1 t2", opening=f"opening-{session}"),
        hints=[Hint("session", "x-conversation", f"hint-{session}"), Hint("header", "x-host", f"host-{session % 2}")],
        said=[f"said-{session}-{turn}"],
        why=Why(reason="continues its conversation", origin="content", confidence="proven"),
    )


def _row(session: int, turn: int) -> Row:
    at = NOW + (session * 100 + turn) * TURN_MILLISECONDS
    return Row(
        event_id=f"event-{session:02}-{turn:02}",
        session_id=_id(session),
        kind="side" if turn % 5 == 4 else "turn",
        status="error" if turn % 7 == 6 else "complete",
        started_at=at,
        ended_at=at + 900,
        provider="anthropic",
        protocol="messages",
        model=f"model-{session % 3}",
        client=f"client-{session % 4}",
        account=f"account-{session % 3}",
        boot=BOOT,
        http_status=200,
        usage=Usage(input_tokens=100 + session, cache_read_tokens=1_000 * turn, output_tokens=50 + turn),
        cost_nanousd=1_000_000 + turn if session % 4 else None,
        price_version="prices-1",
        message_count=2 * turn + 1,
        why=Why(reason="continues its conversation", origin="content", confidence="proven"),
    )


def _state(session: int) -> SessionState:
    """After all but the last three turns, as a daemon holds it."""
    rows = [_row(session, turn) for turn in range(TURNS - 3)]
    placed = [replace(row, position=number) for number, row in enumerate(rows, start=1)]
    return fold(EMPTY, placed)


def _snapshot(session: int) -> Write:
    return _write(SnapshotWrite(session_id=_id(session), epoch=1, snapshot=encode(_state(session), 1 + session % 3)))


def _write(body: Claim | Booking | SnapshotWrite | Amend) -> Write:
    return Write(BOOT, 1, body)


def _id(session: int) -> str:
    return f"session-{session:02}"
