"""Databases as former versions of perdure left them, with rows in them, and what must be true of them afterwards.

One rule: the rows are made by the product's own code, and the schema by its own steps; only their being put together
is this file's.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import apsw

import worker.store
from daemon.identity import derived_id
from tests.crash.checker import Findings
from tests.crash.conversation import ID_HEADERS, Conversation
from tests.processes import Gateway
from worker.batch import Write
from worker.ledger import Sums
from worker.protocol import Booking, Claim, Key, Naming, Row, Usage, Why
from worker.store import Reader, Store

SESSIONS: Final = 12
TURNS: Final = 10
"""Together some hundred rows: enough pages that a migration and its copy take many writes."""
PROTOCOL: Final = "messages"
BEGAN_AT: Final = 1_750_000_000_000


def former_versions() -> range:
    """Of all schemas that the worker can bring up to date."""
    return range(1, len(worker.store._steps()))


class Former:
    """A database of a former schema, made once, to be laid where a worker is to find it."""

    def __init__(self, directory: Path, version: int) -> None:
        self.version = version
        self._path = directory / f"schema-{version}.db"
        present = directory / f"present-{version}.db"
        _fill(present)
        put_back(present, self._path, version)
        self._facts = _facts(self._path)

    def lay(self, gateway: Gateway) -> None:
        shutil.copyfile(self._path, gateway.database)

    def talk(self, number: int = 0) -> Conversation:
        """A client that goes on with one of its sessions."""
        return Conversation(PROTOCOL, _name(number))

    def check(self, gateway: Gateway) -> Findings:
        """Everything that was in it is there, once, as it was; and the copy that was made of it is whole."""
        found = Findings()
        now = _facts(gateway.database)
        for fact, value in self._facts.items():
            found.checked["a fact of a former schema"] += 1
            if fact not in now:
                found.lost.append(f"schema {self.version}: {fact} {value}")
            elif now[fact] != value:
                found.wrong.append(f"schema {self.version}: {fact} was {value} and is {now[fact]}")
        copy = gateway.database.with_name(f"{gateway.database.name}.schema-{self.version}")
        if not copy.exists():
            found.lost.append(f"schema {self.version}: no copy was made")
        elif _facts(copy) != self._facts or _version(copy) != self.version:
            found.wrong.append(f"schema {self.version}: its copy does not say what it said")
        if _version(gateway.database) != len(worker.store._steps()):
            found.wrong.append(f"schema {self.version}: not migrated to its end")
        return found


def _name(number: int) -> str:
    return f"former-{number}"


def _fill(path: Path) -> None:
    """Sessions with names and turns, of today's schema but with nothing in them that former ones did not have."""
    store = Store(path)
    for session in range(SESSIONS):
        naming = Naming(
            session_id=derived_id(ID_HEADERS[PROTOCOL], _name(session)),
            confirmed=False,
            header_name=ID_HEADERS[PROTOCOL],
            header_session_id=_name(session),
            keys=[Key(kind="header", name=ID_HEADERS[PROTOCOL], value=_name(session))],
            why=Why(reason="the client named it"),
        )
        writes = [Write("boot", 0, Claim(naming=naming))]
        writes += [
            Write("boot", turn + 1, Booking(naming=naming, row=_row(naming, turn), epoch=1, seen=0))
            for turn in range(TURNS)
        ]
        store.commit(writes, live=frozenset(), now=BEGAN_AT)
    store.close()


def _row(naming: Naming, turn: int) -> Row:
    started_at = BEGAN_AT + 60_000 * turn
    is_settled = turn < TURNS - 1
    return Row(
        event_id=f"{naming.session_id}-{turn}",
        session_id=naming.session_id,
        kind="turn",
        status="complete" if is_settled else "interrupted",
        started_at=started_at,
        ended_at=started_at + 1_000 if is_settled else 0,
        provider="anthropic",
        protocol=PROTOCOL,
        model="claude-sonnet-4-6",
        client="former",
        boot="boot",
        why=naming.why,
        usage=Usage(input_tokens=10 + turn, cache_read_tokens=1_000 * turn, output_tokens=7) if is_settled else None,
        cost_nanousd=1_000 + turn if is_settled else None,
    )


def put_back(present: Path, path: Path, version: int) -> None:
    """The same rows under a former schema: every table and column that it had.  Rows of the ledger in which something
    stands that it had no column for would not be whole."""
    db = apsw.Connection(str(path))
    db.execute("PRAGMA journal_mode = WAL")
    for _name, sql in worker.store._steps()[:version]:
        list(db.execute(sql))
    db.execute("ATTACH ? AS present", (str(present),))
    for (table,) in list(db.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'")):
        kept = set(_columns(db, "present", table))
        columns = ", ".join(name for name in _columns(db, "main", table) if name in kept)
        if columns:
            db.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM present.{table}")
    db.execute("DETACH present")
    db.execute(f"PRAGMA application_id = {worker.store.APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {version}")
    db.close()


def _columns(db: apsw.Connection, schema: str, table: str) -> list[str]:
    return [name for _, name, *_ in db.execute(f"PRAGMA {schema}.table_info({table})")]


def _facts(path: Path) -> dict[tuple[object, ...], object]:
    """Every row of the ledger (its checksum is over all of it), every session with its sums, every key, by name."""
    reader = Reader(path)
    found: dict[tuple[object, ...], object] = {}
    for name, value in reader.execute("SELECT name, value FROM meta WHERE name <> 'clean'"):
        found["meta", name] = value
    for event_id, session_id, position, checksum in reader.execute(
        "SELECT event_id, session_id, position, checksum FROM ledger WHERE client = 'former'"
    ):
        found["row", event_id] = (session_id, position, checksum)
    for session_id, first_seen_at in reader.execute("SELECT session_id, first_seen_at FROM session_state"):
        found["session", session_id] = first_seen_at
    for kind, name, value, session_id in reader.execute("SELECT kind, name, value, session_id FROM session_key"):
        found["key", kind, name, value] = session_id
    sums = ", ".join(Sums._fields)
    for day, *total in reader.execute(f"SELECT day, {sums} FROM day_total WHERE client = 'former'"):
        found["day", day] = total
    reader.close()
    return found


def _version(path: Path) -> int:
    reader = Reader(path)
    version = int(next(iter(reader.execute("PRAGMA user_version")))[0])
    reader.close()
    return version
