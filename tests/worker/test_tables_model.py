"""The simulation's store and the real one: the same writes, the same answers, the same content."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from daemon.state import EMPTY, encode
from tests.simulation.model import MemoryTables
from worker import batch
from worker.batch import Write
from worker.ledger import Sums
from worker.protocol import (
    Amend,
    Booking,
    Claim,
    Hint,
    HintKind,
    Key,
    KeyKind,
    Naming,
    Row,
    Shape,
    SnapshotWrite,
    Usage,
    Warm,
    WarmTo,
    Why,
)
from worker.store import Reader, Store
from worker.stored import Lesson, Seen, Tables
from worker.tables import ROW_COLUMNS, SESSION_COLUMNS, row_of, session_of

BOOTS = ("d1", "d2")
SEEDS = range(12)
BATCHES = 12
WRITES_PER_BATCH = 12


@pytest.mark.parametrize("seed", SEEDS)
def test_random_writes_leave_both_stores_equal(seed: int, tmp_path: Path) -> None:
    draw = Draw(seed)
    memory, real = MemoryTables(), Store(tmp_path / "perdure.db")
    try:
        for number in range(BATCHES):
            writes = draw.batch()
            live = frozenset(draw.rng.sample(BOOTS, 1))
            told = batch.apply(memory, writes, live=live, now=number)
            memory.commit()

            assert told == real.commit(writes, live=live, now=number), f"seed {seed}"
            assert content_of_memory(memory) == content_of_store(real), f"seed {seed}"
            assert answers_of(memory) == answers_of_store(real), f"seed {seed}"
    finally:
        real.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rolled_back_batch_leaves_nothing(seed: int) -> None:
    draw, memory = Draw(seed), MemoryTables()
    for _ in range(BATCHES):
        batch.apply(memory, draw.batch(), live=frozenset(), now=1)
        memory.commit()
        before = content_of_memory(memory)

        batch.apply(memory, draw.batch(), live=frozenset(), now=1)
        memory.rollback()

        assert content_of_memory(memory) == before, f"seed {seed}"


class Draw:
    """Writes over few names, so that they meet: duplicates, joins, stale owners, repeated settlements."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._writes: list[Write] = []
        self._sequence = 0

    def batch(self) -> list[Write]:
        return [self._write() for _ in range(self.rng.randrange(1, WRITES_PER_BATCH))]

    def _write(self) -> Write:
        if self._writes and self.rng.random() < 0.2:
            return self.rng.choice(self._writes)
        self._sequence += 1
        body = self.rng.choice((self._claim, self._booking, self._booking, self._snapshot, self._ping, self._warm))()
        self._writes.append(Write(self.rng.choice(BOOTS), self._sequence, body))
        return self._writes[-1]

    def _claim(self) -> Claim:
        return Claim(naming=self._naming(), after=self.rng.choice((-1, -1, 0, 2)))

    def _booking(self) -> Booking:
        rng = self.rng
        is_settled = rng.random() < 0.6
        usage = Usage(input_tokens=rng.randrange(9), cache_read_tokens=rng.randrange(9), output_tokens=rng.randrange(9))
        row = Row(
            event_id=f"event-{rng.randrange(40):03}",
            session_id=rng.choice(_SESSIONS),
            kind=rng.choice(("turn", "turn", "side", "warmup")),
            status=rng.choice(("complete", "error", "interrupted")) if is_settled else "interrupted",
            started_at=rng.choice((1_750_000_000_000, 1_750_090_000_000)) + rng.randrange(1000),
            ended_at=1_750_000_001_000 if is_settled else 0,
            provider="p",
            protocol="chat",
            model=rng.choice(("m", "n")),
            boot=rng.choice(BOOTS),
            usage=usage if rng.random() < 0.8 else None,
            cost_nanousd=rng.choice((None, 5, 70)),
            message_count=rng.randrange(9),
            user_turn=rng.random() < 0.5,
        )
        return Booking(naming=self._naming(), row=row, epoch=rng.randrange(4), seen=rng.randrange(6))

    def _ping(self) -> Booking:
        """Of few sessions and windows, by their owner as a rule: some may be sent, most are not the first."""
        rng = self.rng
        named = rng.choice(_SESSIONS[:2])
        row = Row(
            event_id=f"ping-{rng.randrange(10**6):06}",
            session_id=named,
            kind="warmup",
            status="interrupted",
            started_at=1_750_000_000_000,
            ended_at=rng.choice((0, 0, 1_750_000_001_000)),
            provider="p",
            protocol="messages",
            model="m",
            boot=rng.choice(BOOTS),
            window_started_at=1_750_000_000_000 + rng.randrange(6),
        )
        return Booking(naming=Naming(session_id=named, confirmed=True), row=row, epoch=rng.randrange(1, 4), seen=0)

    def _warm(self) -> Amend:
        to: WarmTo = self.rng.choice(("on", "on", "off", "reset"))
        act = Warm(to=to, session_id=self.rng.choice(("", *_SESSIONS[:2])))
        return Amend(request=f"request-{self._sequence}", act=act)

    def _snapshot(self) -> SnapshotWrite:
        # No daemon writes generation 0: in the store it means that there is no snapshot.
        snapshot = encode(EMPTY, generation=self.rng.randrange(1, 9))
        return SnapshotWrite(session_id=self.rng.choice(_SESSIONS), epoch=self.rng.randrange(4), snapshot=snapshot)

    def _naming(self) -> Naming:
        rng = self.rng
        kinds: tuple[KeyKind, ...] = ("answer", "request", "retry", "header", "history")
        return Naming(
            session_id=rng.choice(_SESSIONS if rng.random() < 0.9 else _RARE_SESSIONS),
            confirmed=rng.random() < 0.3,
            continues=rng.sample(_CHAIN, rng.randrange(4)),
            retry=rng.choice(("", *_CHAIN)),
            keys=[Key(kind=rng.choice(kinds), name="chain", value=rng.choice(_CHAIN)) for _ in range(rng.randrange(3))],
            chain_length=rng.randrange(5),
            header_name=rng.choice(("", "x-session-id")),
            client=rng.choice(("c", "e")),
            account=rng.choice(("", "a")),
            parent=rng.choice(("", "", *_SESSIONS)),
            is_opening=rng.random() < 0.5,
            shape=rng.choice(_SHAPES),
            is_judged=rng.random() < 0.5,
            hints=[self._hint() for _ in range(rng.randrange(3))],
            why=Why(reason="drawn", origin=rng.choice(("", "content")), confidence=rng.choice(("", "certain"))),
        )

    def _hint(self) -> Hint:
        kinds: tuple[HintKind, ...] = ("session", "session", "header", "field")
        kind = self.rng.choice(kinds)
        return Hint(kind, f"x-{kind}", self.rng.choice(("v", "w", "x")))


def content_of_memory(tables: MemoryTables) -> dict[str, Any]:
    return {
        "sessions": dict(tables.sessions),
        "aliases": dict(tables.aliases),
        "rows": dict(tables.rows),
        "keys": dict(tables.keys),
        "history": dict(tables.history),
        "hints": dict(tables.hints),
        "lessons": dict(tables.lessons),
        "session_sums": dict(tables.session_sums),
        "day_sums": dict(tables.day_sums),
    }


def content_of_store(store: Store) -> dict[str, Any]:
    reader = Reader(store.path)
    try:
        sessions = [
            session_of(values) for values in reader.execute(f"SELECT {', '.join(SESSION_COLUMNS)} FROM session_state")
        ]
        rows = [row_of(values) for values in reader.execute(f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger")]
        sums = ", ".join(Sums._fields)
        days = reader.execute(f"SELECT day, kind, provider, model, client, account, {sums} FROM day_total")
        keys = reader.execute("SELECT kind, value, name, session_id, event_id, at FROM session_key")
        history = reader.execute("SELECT value, session_id, event_id FROM session_history")
        hints = reader.execute("SELECT session_id, name, value, turns FROM session_hint")
        lessons = reader.execute("SELECT client, name, conversations, contradicted FROM learned_header")
        return {
            "sessions": {session.session_id: session for session in sessions},
            "aliases": dict(reader.execute("SELECT alias, session_id FROM session_alias")),
            "rows": {row.event_id: row for row in rows},
            "keys": {tuple(values[:4]): tuple(values[4:]) for values in keys},
            "history": {(value, session_id): event_id for value, session_id, event_id in history},
            "hints": {(session_id, name): Seen(*seen) for session_id, name, *seen in hints},
            "lessons": {
                (client, name): Lesson(learned, bool(contradicted)) for client, name, learned, contradicted in lessons
            },
            "session_sums": {
                name: Sums(*values) for name, *values in reader.execute(f"SELECT session_id, {sums} FROM session_total")
            },
            "day_sums": {tuple(values[:6]): Sums(*values[6:]) for values in days},
        }
    finally:
        reader.close()


def answers_of(tables: Tables) -> dict[str, Any]:
    """To the questions that `batch`, `hints` and `amend` ask, the order of the answers included."""
    hinted = [(f"x-{kind}", value) for kind in ("session", "header", "field") for value in ("v", "w", "x")]
    values = (*_CHAIN, *(f"aside {value}" for value in _CHAIN))
    return {
        "histories": [tables.histories(value, 9) for value in values],
        "holders": [tables.holders(["answer", "request"], value) for value in _CHAIN],
        "hint": [tables.hint(session_id, "x-session") for session_id in _SESSIONS],
        "hinted": [tables.hinted(name, value, 2) for name, value in hinted],
        "lesson": [tables.lesson(client, name) for client in ("c", "e", "f") for name, _ in hinted],
        "rows_after": [tables.rows_after(session_id, 1, 3) for session_id in _SESSIONS],
        "keys_of": [sorted(tables.keys_of(session_id)) for session_id in _SESSIONS],
        "children_of": [tables.children_of(session_id) for session_id in _SESSIONS],
        "switch": (tables.switch(), tables.hand_set(9)),
        "has_ping": [
            tables.has_ping(session_id, 1_750_000_000_000 + window) for session_id in _SESSIONS for window in range(6)
        ],
        "forks_of": [tables.forks_of(session_id) for session_id in _SESSIONS],
    }


def answers_of_store(store: Store) -> dict[str, Any]:
    reader = Reader(store.path)
    try:
        return answers_of(reader.tables)
    finally:
        reader.close()


_SESSIONS = tuple(f"session-{number}" for number in range(7))
_RARE_SESSIONS = tuple(f"session-{number}" for number in range(7, 40))
"""Begun late enough to be a fork of another."""
_CHAIN = tuple(f"link-{number}" for number in range(6))
_SHAPES = (
    None,
    Shape(system="l1 l2", tools="t1 t2", opening="fix it"),
    Shape(system="n1", tools="", opening="fix it"),
    Shape(system="h1", tools="u1", opening="find it"),
)


def test_random_writes_meet_what_the_tables_are_for() -> None:
    """Or the two stores would be equal because nothing ever stands in them."""
    draw, memory = Draw(0), MemoryTables()
    for _ in range(10 * BATCHES):
        batch.apply(memory, draw.batch(), live=frozenset(), now=1)
        memory.commit()

    assert memory.history and memory.hints and any(lesson.contradicted for lesson in memory.lessons.values())
    assert any(value.startswith("aside ") for value, _ in memory.history)
    sessions = memory.sessions.values()
    assert any(session.forked_from for session in sessions) and any(session.parent_session_id for session in sessions)
    assert any(session.shape for session in sessions)
    pings = [row for row in memory.rows.values() if row.event_id.startswith("ping-")]
    assert any(not row.is_settled for row in pings) and any(
        row.is_settled and not row.window_started_at for row in pings
    )
    assert any(row.why.confidence for row in memory.rows.values())
