"""Target: every value of every table, changed in SQLite as damage might change it, and then the worker's own work.

What must hold: what people are shown and what a daemon is told can be read, or the store is refused as damaged; a batch
of writes is done, and each of its replies is one that a daemon understands, or the store is refused, or those writes
are.  Only the tables of the ledger and of sessions have checksums, which target `rows` holds against what was written.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import apsw
import msgspec
import orjson

from daemon.views import account_object, change_object, costs_object, ledger_object, session_object
from tests.fuzz.choices import Choices
from tests.fuzz.coverage import Edges
from tests.fuzz.guided import Target
from tests.fuzz.rows import BY_EXPRESSION, DAMAGES_MAX, EXPRESSIONS, LONG, damaged_value
from tests.worker.writing import STARTED_AT, booking, claim, naming, row, snapshot_write
from worker import batch, protocol, retention
from worker import store as store_module
from worker.batch import Write
from worker.protocol import (
    FROM_WORKER,
    Acks,
    Act,
    Amend,
    Booking,
    Claim,
    Command,
    Forget,
    Hint,
    Key,
    Merge,
    Naming,
    Split,
    Undo,
)
from worker.records import account_of, changes_of, costs_of, event_named, page_of_sessions, rows_of, totals_of
from worker.store import Store
from worker.tables import DamagedRow, SqliteTables

NOW: Final = STARTED_AT + 60_000
LIVE: Final = frozenset({"boot-1"})
AFTER_ALL: Final = 2 * NOW
"""A limit that makes every row an old one."""
WRITES: Final = 4
"""Done one after the other on a damaged store."""
ITSELF: Final = "meta"
"""What a store says of itself is judged when it is opened, by `tests.corruption`."""
REFUSED: Final = (*store_module._DAMAGE, DamagedRow, UnicodeDecodeError)
"""The worker exits, and says that the database is damaged."""
UNFIT: Final = store_module._UNFIT
"""The write is refused."""
HEADER: Final = "x-session-id"
HINT: Final = "x-conversation-id"


@contextmanager
def opened(_edges: Edges) -> Iterator[Target]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as directory:
        path = Path(directory) / "perdure.db"
        fill(path)
        db = apsw.Connection(str(path))
        db.execute("PRAGMA foreign_keys = ON")
        yield Target(check=partial(check, db, columns_of(db)), seeds=list(seeds_of(db)))
        db.close()


def columns_of(db: apsw.Connection) -> list[tuple[str, str]]:
    """All there are, by table."""
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    return [(t, name) for t in tables if t != ITSELF for _, name, *_ in db.execute(f"PRAGMA table_info({t})")]


def seeds_of(db: apsw.Connection) -> Iterator[bytes]:
    """Every column once, in all its rows: a number below any, a text beyond any."""
    rng = random.Random(7)
    for place, (table, name) in enumerate(columns_of(db)):
        ((kind,),) = db.execute("SELECT type FROM pragma_table_info(?) WHERE name = ?", (table, name))
        value = EXPRESSIONS.index(LONG if kind == "TEXT" else "-1")
        yield bytes([0, place, BY_EXPRESSION, value, 0, *rng.randbytes(WRITES)])


def check(db: apsw.Connection, columns: Sequence[tuple[str, str]], data: bytes) -> None:
    choices = Choices(data)
    db.execute("BEGIN")
    try:
        # The fault of a disk asks for no consent.
        db.execute("PRAGMA defer_foreign_keys = ON")
        for _ in range(1 + choices.number(DAMAGES_MAX)):
            _damage(db, columns, choices)
        steps: list[Callable[[apsw.Connection], None]] = [_read, _index]
        steps += [partial(_work, [choices.pick(WORK)]) for _ in range(WRITES)]
        for step in (*steps, _roll_up):
            _tried(db, step)
    finally:
        db.execute("ROLLBACK")


def _damage(db: apsw.Connection, columns: Sequence[tuple[str, str]], choices: Choices) -> None:
    """In all rows of a table, or in one: of some columns no two may hold the same."""
    table, name = choices.pick(columns)
    value = damaged_value(name, choices)
    first = next(column for other, column in columns if other == table)
    row_number = choices.number(8)
    where = f"WHERE {first} = (SELECT {first} FROM {table} ORDER BY {first} LIMIT 1 OFFSET {row_number - 1})"
    try:
        db.execute(f"UPDATE {table} SET {name} = {value} {where if row_number else ''}")
    except (apsw.ConstraintError, apsw.MismatchError):
        return  # SQLite itself does not take it.


def _tried(db: apsw.Connection, step: Callable[[apsw.Connection], None]) -> None:
    """A transaction of the worker's, or a look of a reader's: it comes to its end, or is refused and taken back."""
    db.execute("SAVEPOINT step")
    try:
        step(db)
        db.execute("RELEASE step")
    except (*REFUSED, *UNFIT):
        db.execute("ROLLBACK TO step; RELEASE step")


# -- looking -------------------------------------------------------------------------------------------------------


def _read(db: apsw.Connection) -> None:
    """What `perdure sessions`, `show`, `costs` and the dashboard show."""

    def execute(sql: str, bindings: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        return iter(db.execute({"BEGIN": "SAVEPOINT look", "ROLLBACK": "RELEASE look"}.get(sql, sql), bindings))

    page = page_of_sessions(execute, "", 50)
    orjson.dumps([session_object(record, {}) for record in _as_sent(page).records])
    for record in page.records:
        account = account_of(execute, record.session.session_id, 50)
        assert account is not None
        orjson.dumps(account_object(_as_sent(account), {}))
        for each in account.newest:
            assert event_named(execute, each.session_id, each.event_id) == each.event_id
    orjson.dumps([change_object(change) for change in changes_of(execute)])
    orjson.dumps(costs_object(_as_sent(costs_of(execute)), {}))
    orjson.dumps([ledger_object(each, {}) for each in rows_of(execute)])
    totals_of(execute)


def _as_sent(value: Any) -> Any:
    """Over the wire, as daemons get it."""
    kind = list[type(value[0])] if isinstance(value, list) and value else type(value)  # type: ignore[misc]
    return msgspec.json.decode(msgspec.json.encode(value), type=kind)


def _index(db: apsw.Connection) -> None:
    store = cast(Store, SimpleNamespace(_db=db, path=Path("perdure.db")))
    try:
        page = Store.keys_before(store, 2**62, 100)
    except store_module.StoreRefused:
        return
    body = protocol.decode(protocol.encode(Command.KEYS, page), FROM_WORKER).body
    assert body == page


# -- working -------------------------------------------------------------------------------------------------------

Body = Claim | Booking | protocol.SnapshotWrite | Amend


def _work(bodies: Sequence[Body], db: apsw.Connection) -> None:
    writes = [Write("boot-1", number, body) for number, body in enumerate(bodies, 1)]
    outcome = batch.apply(SqliteTables(db), writes, live=LIVE, now=NOW)
    for _, lost in outcome.lost:
        assert protocol.decode(protocol.encode(Command.LOST, lost), FROM_WORKER).body == lost
    acks = Acks(replies=[reply for _, reply in outcome.replies])
    body = protocol.decode(protocol.encode(Command.ACK, acks), FROM_WORKER).body
    assert isinstance(body, Acks) and len(body.replies) == len(bodies)
    for write, reply in zip(bodies, body.replies, strict=True):
        if isinstance(write, Booking):
            stored = SqliteTables(db).row(write.row.event_id)
            assert stored is not None and stored.usage == write.row.usage and reply.position == stored.position


def _roll_up(db: apsw.Connection) -> None:
    retention.roll_up(SqliteTables(db), 0, before=AFTER_ALL, live=LIVE)


def _hinted(session: str, number: int, *, settled: bool = True) -> Booking:
    """A turn of a conversation that its client does not name, with an id that may be one."""
    entered = row(number, session, settled=settled, client="client")
    answers = [Key(kind="answer", name="", value=f"chain-{session}-{number}")]
    asked = [Key(kind=kind, name="", value=f"{kind}-{session}-{number}") for kind in ("request", "retry")]
    named = Naming(
        session_id=session,
        confirmed=False,
        client="client",
        keys=answers if settled else asked,
        continues=[f"chain-{session}-{number - 1}"],
        chain_length=2 * number,
        hints=[Hint("session", HINT, f"hint-{session}")],
        said=[f"chain-{session}-{number - 1}"],
    )
    return Booking(naming=named, row=entered, epoch=1, seen=0)


def _named(session: str, **changes: Any) -> Naming:
    keys = [Key(kind=kind, name=HEADER, value=f"minted-{session}") for kind in ("header", "body")]
    return naming(session, keys=keys, header_name=HEADER, header_session_id=f"minted-{session}", **changes)


def _amend(number: int, act: Act) -> Amend:
    return Amend(request=f"request-{number}", act=act)


FILLING: Final[Sequence[Sequence[Body]]] = (
    [Claim(naming=_named(name)) for name in ("one", "two", "three", "four", "five")],
    [Booking(naming=_named("one"), row=row(n, "one"), epoch=1, seen=0) for n in range(1, 4)],
    [booking(n, name) for name in ("two", "three", "four", "five") for n in range(1, 4)],
    [Claim(naming=naming("child", parent="one"))],
    [Claim(naming=naming("fork", continues=["chain-two-1"]))],
    [snapshot_write("one", generation=3, position=2)],
    [_hinted(name, n) for name in ("drawn-1", "drawn-2") for n in range(1, 5)],
    [_hinted("drawn-1", 5, settled=False)],
    [Claim(naming=naming("proposed", confirmed=False, continues=["chain-drawn-2-4"]))],
    [_amend(1, Merge(session_id="three", into="two")), _amend(2, Undo(change=1))],
    [_amend(3, Merge(session_id="three", into="two"))],
    [_amend(4, Split(session_id="four", drawn_id="half", first_event=row(2, "four").event_id))],
    [_amend(5, Forget(session_id="five", drawn_id="blank"))],
)
WORK: Final[Sequence[Body]] = (
    claim("one"),
    claim("three"),
    claim("proposed"),
    Claim(naming=naming("anew", confirmed=False, continues=["chain-drawn-1-4"], retry="retry-drawn-1-5")),
    Claim(naming=_hinted("anew", 1).naming),
    Claim(naming=_named("six", confirmed=False)),
    Claim(naming=naming("grandchild", parent="proposed")),
    Claim(naming=naming("fork-2", continues=["chain-two-1"])),
    booking(9, "one"),
    booking(9, "three"),
    booking(9, "proposed", settled=False),
    _hinted("drawn-1", 5),
    _hinted("drawn-2", 6, settled=False),
    booking(1, "five"),
    snapshot_write("one", generation=4, position=3),
    snapshot_write("proposed", generation=4, position=3),
    _amend(11, Merge(session_id="one", into="proposed")),
    _amend(12, Merge(session_id="three", into="half")),
    _amend(13, Split(session_id="two", drawn_id="half-2", first_event=row(2, "two").event_id)),
    _amend(14, Undo(change=3)),
    _amend(15, Undo(change=4)),
    _amend(16, Forget(session_id="one", drawn_id="blank-2", tree=True)),
    _amend(17, Forget(session_id="proposed", drawn_id="blank-3")),
    _amend(3, Undo(change=4)),
)
"""What daemons and operators go on with."""


def fill(path: Path) -> None:
    """A store in which every table has rows, put there by the worker's own work where any of that does it."""
    store = Store(path)
    aged: list[Body] = [claim("aged"), *(booking(n, "aged") for n in range(1, 4)), snapshot_write("aged", position=3)]
    for bodies in (aged, None, *FILLING):
        if bodies is None:
            store.roll_up(0, before=AFTER_ALL, live=frozenset())
            continue
        writes = [Write("boot-1", number, body) for number, body in enumerate(bodies, 1)]
        outcome = store.commit(writes, live=LIVE, now=NOW)
        refusals = [reply.amended.refusal for _, reply in outcome.replies if reply.amended and reply.amended.refusal]
        assert not refusals, refusals
    store.close()
    db = apsw.Connection(str(path))
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    if "session_adopted" in tables:
        # An import's, which is no worker's work.
        sums = ", ".join("7" for _ in range(9))
        db.execute(f"INSERT INTO session_adopted VALUES ('lore', 'foreign', 'one', {NOW}, {sums})")
    empty = [name for name in tables if not next(iter(db.execute(f"SELECT count(*) FROM {name}")))[0]]
    assert not empty, empty
    db.close()
