"""Target: sequences of writes of several daemons, on SQLite.

What must hold after every batch: sums are those of the rows; settled rows have positions without a gap; what was
settled stays as it was; at one epoch one daemon owns a session, and no snapshot goes back; every reply fits its frame;
and the same batch again changes no row and no sum.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw

from tests.fuzz.choices import Choices, made
from tests.fuzz.coverage import Edges
from tests.fuzz.guided import Target
from worker import batch
from worker.batch import Outcome, Write
from worker.ledger import DayKey, Sums, day_key, sums_of_day, sums_of_session
from worker.protocol import (
    COUNT_MAX,
    FROM_WORKER,
    Acks,
    Amend,
    Booking,
    Claim,
    Command,
    Row,
    SnapshotWrite,
    decode,
    encode,
)
from worker.store import Store
from worker.tables import ROW_COLUMNS, SqliteTables, row_of

BOOTS: Final = ("d-1", "d-2")
SESSIONS: Final = ("s-1", "s-2", "s-3")
CHAIN: Final = ("c-1", "c-2", "c-3", "c-4")
POOLS: Final[dict[str, Any]] = {
    "session_id": SESSIONS,
    "into": SESSIONS,
    "drawn_id": ("", "s-4", "s-5"),
    "parent": ("", "", "s-1"),
    "header_name": ("", "", "x-session-id"),
    "header_session_id": ("", "h-1"),
    "event_id": tuple(f"event-{number:03}" for number in range(6)),
    "events": tuple(f"event-{number:03}" for number in range(6)),
    "first_event": ("", "event-001"),
    "continues": CHAIN,
    "said": CHAIN,
    "retry": ("", *CHAIN[:2]),
    "value": CHAIN,
    "name": ("chain", "chain", "x-session-id"),
    "boot": BOOTS,
    "started_at": tuple(1_750_000_000_000 + day * 86_400_000 for day in range(3)),
    "ended_at": (0, 1_750_000_000_500),
    "epoch": (1, 1, 1, 2),
    "generation": (1, 2, 3),
    "seen": (0, 1, 2),
    "change": (1, 2, 3),
    "foreign_id": ("f-1", "f-2"),
    "request": ("r-1", "r-2", "r-3"),
    "model": ("m-1", "m-2"),
    "chain_length": (0, 1, 2, 3),
    "system": ("aaaa bbbb", "cccc dddd"),
    "tools": ("", "t1 t2", "t3"),
}
BODIES: Final[tuple[type[Any], ...]] = (Claim, Booking, Booking, Booking, SnapshotWrite, Amend)
BATCHES_MAX: Final = 6
WRITES_MAX: Final = 5
GENERATION_MAX: Final = COUNT_MAX // 2
NOW: Final = 1_750_000_000_000


@contextmanager
def opened(_edges: Edges) -> Iterator[Target]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as directory:
        path = Path(directory) / "perdure.db"
        Store(path).close()
        db = apsw.Connection(str(path))
        db.execute("PRAGMA foreign_keys = ON")
        rng = random.Random(3)
        seeds = [rng.randbytes(size) for size in (200, 800, 1_600, 3_000) for _ in range(10)]
        yield Target(check=partial(check, db), seeds=seeds)
        db.close()


def check(db: apsw.Connection, data: bytes) -> None:
    choices = Choices(data)
    db.execute("BEGIN")
    try:
        _live(db, choices)
    finally:
        db.execute("ROLLBACK")


def _live(db: apsw.Connection, choices: Choices) -> None:
    tables, witness, sequence = SqliteTables(db), _Witness(db), 0
    for _ in range(BATCHES_MAX):
        writes = []
        for _ in range(1 + choices.number(WRITES_MAX)):
            sequence += 1
            boot, body = choices.pick(BOOTS), made(choices.pick(BODIES), choices, POOLS)
            # A generation that no session ever reaches counts as damage when it is read again.
            if not (isinstance(body, SnapshotWrite) and body.snapshot.generation > GENERATION_MAX):
                writes.append(Write(boot, sequence, body))
        live = frozenset(boot for boot in BOOTS if choices.flag())
        first = batch.apply(tables, writes, live=live, now=NOW)
        witness.see(writes, first)
        before = _content(db)
        witness.see(writes, batch.apply(tables, writes, live=live, now=NOW + 1))
        # A correction that was refused may be possible the next time.
        if not any(reply.amended and reply.amended.refusal for _, reply in first.replies):
            assert _content(db) == before, "the same batch again changed a row or a sum"
        if choices.is_spent:
            return


class _Witness:
    """Remembers what was said and stored, and looks whether it is still so."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._owners: dict[tuple[str, int], str] = {}
        self._epochs: dict[str, int] = {}
        self._kept: dict[tuple[str, int], int] = {}
        """Newest generation that was acknowledged to a session's owner at an epoch."""
        self._settled: dict[str, tuple[Any, ...]] = {}

    def see(self, writes: list[Write], outcome: Outcome) -> None:
        assert [(each.boot, each.sequence) for each in writes] == [(b, r.sequence) for b, r in outcome.replies]
        for write, (boot, reply) in zip(writes, outcome.replies, strict=True):
            assert decode(encode(Command.ACK, Acks(replies=[reply])), FROM_WORKER).body == Acks(replies=[reply])
            if reply.owned:
                owner = self._owners.setdefault((reply.session_id, reply.epoch), boot)
                assert owner == boot, f"{owner} and {boot} both own {reply.session_id} at {reply.epoch}"
                if isinstance(write.body, SnapshotWrite):
                    key = (reply.session_id, reply.epoch)
                    self._kept[key] = max(self._kept.get(key, 0), write.body.snapshot.generation)
        for _, lost in outcome.lost:
            assert decode(encode(Command.LOST, lost), FROM_WORKER).body == lost
        rows = [row_of(values) for values in self._db.execute(f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger")]
        self._check_rows(rows)
        self._check_sums(rows)
        self._check_sessions(rows)

    def _check_rows(self, rows: list[Row]) -> None:
        for row in rows:
            if row.is_settled:
                said = (row.status, row.started_at, row.ended_at, row.usage, row.cost_nanousd, row.model)
                assert self._settled.setdefault(row.event_id, said) == said, f"{row.event_id} was settled again"
        assert self._settled.keys() <= {row.event_id for row in rows if row.is_settled}, "a settled row is gone"

    def _check_sums(self, rows: list[Row]) -> None:
        names, keys = ", ".join(Sums._fields), len(DayKey._fields)
        # What was imported stands where the sums of removed rows stand.
        rolled = self._db.execute(f"SELECT session_id, {names} FROM session_rolled")
        sessions = defaultdict(Sums, {key: Sums(*sums) for key, *sums in rolled if any(sums)})
        rolled = self._db.execute(f"SELECT {', '.join(DayKey._fields)}, {names} FROM day_rolled")
        days = defaultdict(Sums, {DayKey(*v[:keys]): Sums(*v[keys:]) for v in rolled if any(v[keys:])})
        for row in rows:
            sessions[row.session_id] = sessions[row.session_id].plus(sums_of_session(row))
            days[day_key(row)] = days[day_key(row)].plus(sums_of_day(row))
        told = {key: Sums(*sums) for key, *sums in self._db.execute(f"SELECT session_id, {names} FROM session_total")}
        assert {key: sums for key, sums in told.items() if any(sums)} == dict(sessions)
        found = self._db.execute(f"SELECT {', '.join(DayKey._fields)}, {names} FROM day_total")
        of_days = {DayKey(*values[:keys]): Sums(*values[keys:]) for values in found}
        assert {key: sums for key, sums in of_days.items() if any(sums)} == dict(days)

    def _check_sessions(self, rows: list[Row]) -> None:
        places = Counter((row.session_id, row.position) for row in rows if row.is_settled)
        sql = "SELECT session_id, last_position, epoch, generation, owner FROM session_state"
        for session_id, last, epoch, generation, owner in self._db.execute(sql):
            expected = Counter({(session_id, position): 1 for position in range(1, last + 1)})
            assert Counter({key: n for key, n in places.items() if key[0] == session_id}) == expected, session_id
            assert epoch >= self._epochs.get(session_id, 0), f"the epoch of {session_id} went back"
            self._epochs[session_id] = epoch
            assert generation >= self._kept.get((session_id, epoch), 0), f"a snapshot of {session_id} went back"
            known = self._owners.get((session_id, epoch), owner)
            assert not owner or owner == known, f"{owner} owns what {known} was told to own"


def _content(db: apsw.Connection) -> list[list[tuple[Any, ...]]]:
    tables = ("ledger", "session_total", "day_total")
    return [sorted(db.execute(f"SELECT * FROM {table}"), key=repr) for table in tables]
