"""Reads a database as the product does, and tells what was served: each thing by name, or that it was refused.

One rule: everything goes through the product's own code: what people read of it, and what its worker opens, claims and
pages through.

Theory.  What is served is compared with what the undamaged database serves.  A thing may be refused, or be equal.  It
may differ where the contract has it so: a damaged group of a session's state is folded again from its rows, a damaged
text about why a session was given falls back to none.  So a state is compared as the daemon comes to it, and not as it
is stored.  Whatever else differs was served wrongly, and without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec.structs import asdict, replace

from daemon.state import EMPTY, decode, fold, rebuild
from tests.corruption.specimen import BOOT, NOW
from worker.batch import Write
from worker.protocol import Claim, IndexEntry, Naming, Reply, Row, Snapshot, Why
from worker.records import account_of, changes_of, page_of_sessions, totals_of
from worker.store import Reader, Store, StoreBusy, StoreRefused
from worker.stored import Session
from worker.tables import DamagedRow

T = TypeVar("T")

KEYS_PER_PAGE: Final = 50
SESSIONS_PER_PAGE: Final = 10
ROWS_SHOWN: Final = 50
BEGUN_ANEW: Final = "begun anew"


class Refused(str):
    """What was said instead of the thing."""


class Busy(str):
    """What was put off instead, to be tried again for ever."""


Served = dict[str, Any]


def shown(path: Path, session_ids: Sequence[str]) -> Served:
    """What people read, with or without a worker."""
    reader = _attempt(lambda: Reader(path))
    if isinstance(reader, Refused | Busy):
        return dict.fromkeys(("sessions", "totals", "changes"), reader)
    try:
        accounts = {f"account {name}": _attempt(partial(_account, reader, name)) for name in session_ids}
        return accounts | {
            "sessions": _attempt(lambda: _sessions(reader)),
            "totals": _attempt(lambda: totals_of(reader.execute)),
            "changes": _attempt(lambda: changes_of(reader.execute)),
        }
    finally:
        reader.close()


def served(path: Path, session_ids: Sequence[str]) -> Served:
    """What a worker gives to its daemons; it changes the database by that."""
    store = _attempt(lambda: Store(path))
    if isinstance(store, Refused | Busy):
        return dict.fromkeys(("claims", "index", "states"), store)
    try:
        claims = _attempt(lambda: _claims(store, session_ids, after=-1))
        if isinstance(claims, Refused | Busy):
            return dict.fromkeys(("claims", "index", "states"), claims)
        return {
            "claims": {name: _told(reply) for name, reply in claims.items()},
            "states": _attempt(lambda: _states(store, claims)),
            "index": _attempt(lambda: _index(store)),
        }
    finally:
        store.abandon()


def differences(sound: Any, found: Any, place: str = "") -> Iterator[str]:
    """The places where two things differ, refused ones left out."""
    if isinstance(found, Refused | Busy) or sound == found:
        return  # Whether it may be refused is for others to say.
    sound, found = _opened(sound), _opened(found)
    if isinstance(sound, Mapping) and isinstance(found, Mapping) and sound.keys() == found.keys():
        for name in sound:
            yield from differences(sound[name], found[name], f"{place}.{name}" if place else name)
    elif isinstance(sound, list) and isinstance(found, list) and len(sound) == len(found):
        for one, other in zip(sound, found, strict=True):
            yield from differences(one, other, f"{place}[]")
    elif not (place.endswith((".why", ".shape")) and found in (None, asdict(Why()))) and found != BEGUN_ANEW:
        yield place


def _opened(thing: Any) -> Any:
    return asdict(thing) if hasattr(thing, "__struct_fields__") else thing


# -- the worker ----------------------------------------------------------------------------------------------------


def _claims(store: Store, session_ids: Sequence[str], after: int) -> dict[str, Reply]:
    writes = [
        Write(BOOT, number, Claim(naming=Naming(session_id=session_id, confirmed=True), after=after))
        for number, session_id in enumerate(session_ids)
    ]
    outcome = store.commit(writes, live=frozenset({BOOT}), now=NOW)
    return dict(zip(session_ids, (reply for _, reply in outcome.replies), strict=True))


def _told(reply: Reply) -> Reply:
    """Without what a state is made from: that is compared as the state it makes."""
    return replace(reply, snapshot=None, rows=[])


def _states(store: Store, claims: Mapping[str, Reply]) -> dict[str, dict[str, Any]]:
    """As a daemon comes to them: where a group is damaged it asks for all rows."""
    damaged = [name for name, reply in claims.items() if reply.snapshot and not decode(reply.snapshot).is_complete]
    whole = _claims(store, damaged, after=0) if damaged else {}
    return {name: _state(reply.snapshot, (whole.get(name) or reply).rows) for name, reply in claims.items()}


def _state(snapshot: Snapshot | None, rows: Sequence[Row]) -> dict[str, Any]:
    if snapshot is None:
        return asdict(fold(EMPTY, rows))
    restored = decode(snapshot)
    state = asdict(rebuild(restored, rows))
    if restored.is_complete and restored.warnings:
        # Its text could not be read, and the rest was proved: the evidence begins anew, and a warning says so.
        state["warming"] = BEGUN_ANEW
    return state


def _index(store: Store) -> list[IndexEntry]:
    found: list[IndexEntry] = []
    before = 2**62
    while before != -1:
        page = store.keys_before(before, KEYS_PER_PAGE)
        assert page.before < before, "a page that goes back would be asked for for ever"
        found += page.entries
        before = page.before
    return found


# -- people --------------------------------------------------------------------------------------------------------


def _sessions(reader: Reader) -> list[Any]:
    found: list[Any] = []
    after = ""
    while True:
        page = page_of_sessions(reader.execute, after, SESSIONS_PER_PAGE)
        found += [_shown(record) for record in page.records]
        if not page.after or len(found) > 10_000:
            return found
        after = page.after


def _account(reader: Reader, session_id: str) -> Any:
    account = account_of(reader.execute, session_id, ROWS_SHOWN)
    return {**asdict(account), "record": _shown(account.record)} if account else None


def _shown(record: Any) -> dict[str, Any]:
    """A record whose state is compared by `states` already."""
    session: Session = record.session
    return {**asdict(record), "session": replace(session, snapshot=None), "rows": []}


def _attempt(work: Callable[[], T]) -> T | Refused | Busy:
    try:
        return work()
    except (StoreRefused, DamagedRow) as error:
        return Refused(error)
    except StoreBusy as error:
        return Busy(error)
