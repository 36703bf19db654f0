"""Target: every value of a stored session and of its ledger rows, changed in SQLite as damage might change it.

What must hold: a row is read as it was written or refused as damaged; a session is refused, or it travels to a daemon,
which comes to a valid state from it; a group of the state that nothing touched is kept; and what people are shown of
it can be shown.  The warm-up text is hunted by itself, with its checksum made to fit.
"""

from __future__ import annotations

import random
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import apsw
import msgspec
import orjson
from msgspec.structs import replace

from daemon.state import EMPTY, Restored, SessionState, decode, encode, fold, rebuild
from daemon.views import account_object, session_object
from daemon.warming import Warming
from tests.fuzz.choices import INTEGERS, Choices
from tests.fuzz.coverage import Edges
from tests.fuzz.guided import Target
from tests.worker.writing import booking, claim, row, write
from worker import protocol
from worker.protocol import FROM_DAEMON, FROM_WORKER, Acks, Command, Reply, Row, Snapshot, SnapshotWrite, Usage
from worker.records import Account, Record, account_of, page_of_sessions
from worker.store import Store
from worker.tables import DamagedRow, SqliteTables

SESSION: Final = "session-1"
ROWS: Final = 6
BOOT: Final = "boot-1"
WARMING_COLUMNS: Final = ("resolved_conversation_ttl", "warmup_state", "warmup_checksum")
GRADIENT_COLUMNS: Final = (
    *("dynamic_context_cap", "bust_rate_ema", "inter_bust_interval_ema", "last_layer", "last_known_input"),
    *("last_turn_at", "last_bust_at", "gradient_checksum"),
)
DAMAGES_MAX: Final = 3
LONG: Final = "printf('%.*c', 70000, 'x')"
BY_EXPRESSION: Final = 3
"""The last of the ways to choose a value."""
EXPRESSIONS: Final = (
    *("NULL", "9e999", "-9e999", "9e999 - 9e999", "0.5", "-0.0", "1e308", "-1", "9223372036854775807", "'5m'", "'1h'"),
    *("CAST(x'ff' AS TEXT)", "CAST(x'7bfffe7d' AS TEXT)", "x'00ff'", "''", "'x'", "CAST(x'00' AS TEXT)", "'-9e999'"),
    *(LONG, "printf('%.*c', 70000, '[')", "printf('%.*c', 600, 'x')", "char(0x1F600)", "1.5"),
)
READS_AS_DAMAGED: Final = (DamagedRow, UnicodeDecodeError)
"""What the store takes for damage when it reads."""


@contextmanager
def opened(_edges: Edges) -> Iterator[Target]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as directory:
        path = Path(directory) / "perdure.db"
        ledger = _fill(path)
        db = apsw.Connection(str(path))
        columns = [
            (table, name)
            for table in ("session_state", "ledger", "session_total", "session_key")
            for _, name, *_ in db.execute(f"PRAGMA table_info({table})")
            if (table, name) != ("session_state", "session_id")
        ]
        specimen = Specimen(db, ledger, columns)
        yield Target(check=partial(check, specimen), seeds=_seeds(specimen), tokens=_TOKENS)
        db.close()


class Specimen:
    """A session with a snapshot and rows after it."""

    def __init__(self, db: apsw.Connection, ledger: list[Row], columns: Sequence[tuple[str, str]]) -> None:
        self.db = db
        self.ledger = {each.event_id: each for each in ledger}
        self.columns = columns
        self.state = _state_of(ledger)
        self.snapshot = encode(self.state, 3)


def check(specimen: Specimen, data: bytes) -> None:
    """The first byte chooses between a warm-up text and damage to the store, which the rest chooses."""
    if data[:1] == b"W":
        _check_text(specimen, data[1:])
        return
    choices = Choices(data)
    specimen.db.execute("BEGIN")
    try:
        damaged = {_damage(specimen, choices) for _ in range(1 + choices.number(DAMAGES_MAX))}
        _check_store(specimen, damaged)
    finally:
        specimen.db.execute("ROLLBACK")


# -- damage to the store -------------------------------------------------------------------------------------------


def _damage(specimen: Specimen, choices: Choices) -> str:
    """Set a column to something; its name, or '' where SQLite itself does not take the value."""
    table, name = choices.pick(specimen.columns)
    value = damaged_value(name, choices)
    try:
        specimen.db.execute(f"UPDATE {table} SET {name} = {value}")
    except (apsw.ConstraintError, apsw.MismatchError):
        return ""
    return name


def damaged_value(name: str, choices: Choices) -> str:
    """What a column of that name may turn into, as an expression in SQL."""
    way = choices.number(BY_EXPRESSION + 1)
    if way == 0:
        return str(choices.pick(INTEGERS))
    if way == 1:
        return f"{name} {choices.pick(('+ 1', '- 1', '* 1000', '|| 0', '* -1', '/ 3.0'))}"
    if way == 2:
        return f"CAST(x'{choices.raw(choices.number(12)).hex()}' AS TEXT)"
    return choices.pick(EXPRESSIONS)


def _check_store(specimen: Specimen, damaged: set[str]) -> None:
    tables = SqliteTables(specimen.db)
    rows: list[Row] = []
    with suppress(*READS_AS_DAMAGED):
        rows = tables.rows_of(SESSION)
    assert all(each == specimen.ledger[each.event_id] for each in rows), "a row is not what was written"
    try:
        session = tables.session(SESSION)
        shown = page_of_sessions(specimen.db.execute, "", 10).records
        account = account_of(specimen.db.execute, SESSION, 50)
    except READS_AS_DAMAGED:
        return
    assert session is not None
    reply = Reply(sequence=1, session_id=SESSION, epoch=session.epoch, shape=session.shape, why=session.why)
    body = protocol.decode(
        protocol.encode(Command.ACK, Acks(replies=[replace(reply, snapshot=session.snapshot)])), FROM_WORKER
    ).body
    assert isinstance(body, Acks)
    if body.replies[0].snapshot is not None:
        _check_restored(specimen, body.replies[0].snapshot, damaged)
    for record in msgspec.json.decode(msgspec.json.encode(shown), type=list[Record]):
        orjson.dumps(session_object(record, {}))
    if "forgotten_at" in damaged:
        return  # Its own column alone says that a session is one: `verify` sees that it still has names.
    told = msgspec.json.decode(msgspec.json.encode(account), type=Account | None)
    assert told is not None
    orjson.dumps(account_object(told, {}))


def _check_restored(specimen: Specimen, snapshot: Snapshot, damaged: set[str]) -> None:
    restored = decode(snapshot)
    state = specimen.state
    assert restored.gradient in (None, state.gradient)
    # What clears the column clears the snapshot; a position that is wrong takes both groups with it.
    is_shared = bool(damaged & {"snapshot_position", "generation"})
    assert is_shared or damaged & set(GRADIENT_COLUMNS) or restored.gradient == state.gradient, "a group was not kept"
    assert is_shared or damaged & set(WARMING_COLUMNS) or restored.warming == state.warming, "a group was not kept"
    assert all(len(warning) < 500 for warning in restored.warnings)
    _check_valid(rebuild(restored, specimen.ledger.values()))


def _check_valid(state: SessionState) -> None:
    """It is written, read and taken for what it is."""
    body = SnapshotWrite(session_id=SESSION, epoch=1, snapshot=encode(state, 4))
    again = protocol.decode(protocol.encode(Command.SNAPSHOT, body, 1), FROM_DAEMON).body
    assert again == body
    restored = decode(body.snapshot)
    assert restored == Restored(gradient=state.gradient, warming=state.warming, position=state.position)


# -- the warm-up text ----------------------------------------------------------------------------------------------


def _check_text(specimen: Specimen, data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    position, ttl = specimen.snapshot.position, specimen.snapshot.resolved_conversation_ttl
    fitting = zlib.crc32(f"{position} {ttl} {text}".encode())
    restored = decode(replace(specimen.snapshot, warmup_state=text, warmup_checksum=fitting))
    assert restored.gradient == specimen.state.gradient, "the other group was not kept"
    assert restored.warming is not None, "the TTL was not kept"
    if restored.warnings:
        assert restored.warming == Warming(ttl=specimen.state.warming.ttl)
        assert len(restored.warnings) == 1 and len(restored.warnings[0]) < 500
    _check_valid(rebuild(restored, []))
    # Going on from it must go well, though a count may pass its limit then and cost the group.
    decode(encode(rebuild(restored, [replace(each, position=position + 1) for each in specimen.ledger.values()]), 5))


# -- the specimen --------------------------------------------------------------------------------------------------


def _fill(path: Path) -> list[Row]:
    store = Store(path)
    store.commit([write(claim())], live=frozenset(), now=1)
    for number in range(1, ROWS + 1):
        usage = Usage(input_tokens=5, cache_read_tokens=number % 2 * 900, cache_write_5m_tokens=100, output_tokens=3)
        entry = booking(number, usage=usage, started_at=1_750_000_000_000 + number * 60_000, cap_ceiling=200_000)
        store.commit([write(entry)], live=frozenset(), now=1)
        if number == ROWS - 2:
            reader = apsw.Connection(str(path))
            state = _state_of(SqliteTables(reader).rows_of(SESSION))
            reader.close()
            body = SnapshotWrite(session_id=SESSION, epoch=1, snapshot=encode(state, 3))
            store.commit([write(body)], live=frozenset(), now=1)
    store.close()
    reader = apsw.Connection(str(path))
    ledger = SqliteTables(reader).rows_of(SESSION)
    reader.close()
    assert len(ledger) == ROWS and ledger[0].session_id == row(1).session_id
    return ledger


def _state_of(ledger: Sequence[Row]) -> SessionState:
    """As of the snapshot, which does not know the last two rows."""
    return fold(EMPTY, sorted(ledger, key=lambda each: each.position)[: ROWS - 2])


_TOKENS: Final = [
    *(b'"version":1', b'"ttl":"1h"', b'"recent_cold":[true]', b'"gap_counts":[0]', b"1000000000", b"1000000001"),
    *(b"7258118400000", b"7258118400001", b'"disabled":"x"', b"-1", b"\\u0000", b"\xff", b"true", b"[]", b"1.0", b","),
]


def _seeds(specimen: Specimen) -> list[bytes]:
    rng = random.Random(5)
    text = str(specimen.snapshot.warmup_state).encode()
    return [b"W" + text, *(rng.randbytes(16) for _ in range(60))]
