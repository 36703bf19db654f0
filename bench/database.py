"""A database of any size, as years of use would leave it.

One rule: what the product writes is written by the product's own statements and is whole: checksums, sums, snapshots,
keys and history; only its content is drawn, from a seed.

Theory.  A few conversations are under way at any time, so the rows of one lie among those of others, as in a real
ledger; event ids and chain values are random, so their indexes have no order.  Half of all rows are older than what is
kept by default.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Final

import apsw

from daemon import state as states
from daemon.state import EMPTY, SessionState
from worker.ledger import Sums
from worker.protocol import Key, Row, Shape, Usage, Why
from worker.store import Store
from worker.stored import Session
from worker.tables import SqliteTables

AGE_DAYS: Final = 800
"""Of the first row; the last is of now."""
DAY_MILLISECONDS: Final = 24 * 3_600 * 1_000
UNDER_WAY: Final = 30
"""Conversations at one time."""
TURNS_MAX: Final = 250
"""Of one conversation."""
TURN_BYTES: Final = 670
"""Measured: one turn with its share of its session, of indexes, keys and history."""
ROWS_PER_TRANSACTION: Final = 50_000
MODELS: Final = ("claude-opus-4-5", "claude-sonnet-4-5", "gpt-5.2-codex", "claude-haiku-4-5")
HEADER: Final = "x-claude-code-session-id"


def session_name(number: int) -> str:
    return f"s{number:031x}"


def fill(path: Path, gigabytes: float, seed: int = 1) -> int:
    """Make the database; gives how many sessions it has."""
    Store(path).close()
    turns = max(200, int(gigabytes * 1024**3 / TURN_BYTES))
    db = apsw.Connection(str(path))
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -800000", "locking_mode = EXCLUSIVE"):
        list(db.execute(f"PRAGMA {pragma}"))
    history = _History(SqliteTables(db), random.Random(seed), turns)
    while history.turns < turns:
        db.execute("BEGIN")
        history.go_on(min(ROWS_PER_TRANSACTION, turns - history.turns))
        db.execute("COMMIT")
    db.execute("BEGIN")
    history.finish()
    _add_up(db)
    db.execute("COMMIT")
    list(db.execute("PRAGMA journal_mode = WAL"))
    db.close()
    return history.sessions


class _Talk:
    """One conversation under way."""

    def __init__(self, number: int, turns: int, at: int) -> None:
        self.session_id = session_name(number)
        self.turns = turns
        self.began_at = self.at = at
        self.position = 0
        self.link = ""
        self.event_id = ""
        self.state: SessionState = EMPTY


class _History:
    def __init__(self, tables: SqliteTables, rng: random.Random, turns: int) -> None:
        self.turns = self.sessions = 0
        self._tables = tables
        self._rng = rng
        self._at = time.time_ns() // 1_000_000 - AGE_DAYS * DAY_MILLISECONDS
        self._pause = AGE_DAYS * DAY_MILLISECONDS // turns
        self._under_way: list[_Talk] = []

    def go_on(self, turns: int) -> None:
        for _ in range(turns):
            self._at += self._pause
            if len(self._under_way) < UNDER_WAY:
                self._begin()
            talk = self._rng.choice(self._under_way)
            self._turn(talk)
            if talk.position == talk.turns:
                self._under_way.remove(talk)
                self._end(talk)

    def finish(self) -> None:
        for talk in self._under_way:
            self._end(talk)

    def _begin(self) -> None:
        self.sessions += 1
        talk = _Talk(self.sessions, self._rng.randint(1, TURNS_MAX), self._at)
        self._tables.put_session(_session(talk, self._rng))
        name = Key(kind="header", name=HEADER, value=talk.session_id)
        self._tables.put_key(name, talk.session_id, "", self._at)
        self._under_way.append(talk)

    def _turn(self, talk: _Talk) -> None:
        rng = self._rng
        self.turns += 1
        talk.position += 1
        talk.at = self._at
        talk.event_id, talk.link = f"{rng.getrandbits(128):032x}", f"{rng.getrandbits(128):032x}"
        row = _row(talk, rng)
        talk.state = states.observe(talk.state, row)
        self._tables.put_row(row)
        self._tables.put_history(talk.link, talk.session_id, talk.event_id)

    def _end(self, talk: _Talk) -> None:
        self._tables.put_session(_session(talk, self._rng))
        self._tables.put_snapshot(talk.session_id, states.encode(talk.state, talk.position))
        answer = Key(kind="answer", name="", value=talk.link)
        self._tables.put_key(answer, talk.session_id, talk.event_id, talk.at)


def _session(talk: _Talk, rng: random.Random) -> Session:
    return Session(
        session_id=talk.session_id,
        client="claude-code/2.1.37",
        account="4f1c2b9d0a7e6f53",
        model=MODELS[0],
        message_count=2 * talk.position,
        first_seen_at=talk.began_at,
        last_seen_at=talk.at,
        chain_length=2 * talk.position,
        epoch=1,
        last_position=talk.position,
        why=_WHY,
        shape=Shape(
            system=" ".join(f"{rng.getrandbits(64):016x}" for _ in range(16)),
            tools=" ".join(f"{rng.getrandbits(64):016x}" for _ in range(16)),
            opening=f"{rng.getrandbits(64):016x}",
            is_confirmed=True,
        ),
        fingerprint=talk.link or None,
        header_name=HEADER,
        header_session_id=talk.session_id,
    )


def _row(talk: _Talk, rng: random.Random) -> Row:
    model = rng.choice(MODELS)
    usage = Usage(
        input_tokens=rng.randrange(5_000),
        cache_read_tokens=rng.randrange(150_000),
        cache_write_5m_tokens=rng.randrange(9_000),
        output_tokens=rng.randrange(3_000),
    )
    return Row(
        event_id=talk.event_id,
        session_id=talk.session_id,
        kind="turn",
        status="complete",
        started_at=talk.at,
        ended_at=talk.at + rng.randrange(500, 60_000),
        provider="openai" if model.startswith("gpt") else "anthropic",
        protocol="messages",
        model=model,
        client="claude-code/2.1.37",
        account="4f1c2b9d0a7e6f53",
        boot="a-daemon-of-then",
        why=_WHY,
        http_status=200,
        usage=usage,
        cost_nanousd=rng.randrange(400_000_000),
        price_version="0.2.1",
        message_count=2 * talk.position - 1,
        cap_ceiling=266_666,
        user_turn=rng.random() < 0.3,
        text_only=rng.random() < 0.3,
        position=talk.position,
    )


def _add_up(db: apsw.Connection) -> None:
    """All sums at once: row by row they would be most of the work."""
    figures = (
        "count(*), 0, sum(input_tokens), sum(cache_read_tokens), sum(cache_write_5m_tokens + cache_write_1h_tokens), "
        "sum(output_tokens), sum(cost_nanousd), count(*), 0"
    )
    names = ", ".join(Sums._fields)
    db.execute(f"INSERT INTO session_total (session_id, {names}) SELECT session_id, {figures} FROM ledger GROUP BY 1")
    keys = "kind, provider, model, client, account"
    db.execute(
        f"INSERT INTO day_total (day, {keys}, {names}) SELECT date(started_at / 1000, 'unixepoch'), {keys}, {figures} "
        "FROM ledger GROUP BY 1, 2, 3, 4, 5, 6"
    )


_WHY: Final = Why(reason=f"the client named it: header {HEADER}", origin=f"header {HEADER}", confidence="certain")
