"""What people and dashboards read: sessions with their sums and what is not yet in their snapshots.

One rule: reading only.  The shapes here are raw; `daemon.views` folds the rows and turns them into the objects that
the command line and `/api` show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from worker.batch import Session
from worker.ledger import Sums
from worker.protocol import Row
from worker.tables import ROW_COLUMNS, SESSION_LIST, DamagedRow, row_of, session_of

__all__ = ["Account", "DamagedRow", "Page", "Record", "account_of", "page_of_sessions", "totals_of"]

ALIASES_SHOWN = 20
"""A conversation without an id gets one at each change of its owner."""

Execute = Callable[..., Iterator[tuple[Any, ...]]]


class Record(Struct, frozen=True, kw_only=True):
    """One session.  `rows`: the settled ones after the snapshot's position, oldest first."""

    session: Session
    sums: Sums
    rows: list[Row]


class Page(Struct, frozen=True, kw_only=True):
    records: list[Record]
    after: str
    """Pass it on for the next page; empty after the last."""


class Account(Struct, frozen=True, kw_only=True):
    """One session in full: its record, every key that names it (kind, name, value), some of the ids it was proposed
    under, its newest rows."""

    record: Record
    keys: list[tuple[str, str, str]]
    aliases: list[str]
    newest: list[Row]


def page_of_sessions(execute: Execute, after: str, limit: int) -> Page:
    """Sessions, the most recently used first."""
    at, _, last_id = after.partition(":")
    bound = (int(at), last_id) if at.isdecimal() and len(at) <= _DIGITS_MAX else (2**62, "")
    found = list(execute(_SESSIONS, (*bound, limit)))
    records = [_record(execute, values) for values in found]
    last = records[-1].session if len(records) == limit else None
    return Page(records=records, after=f"{last.last_seen_at}:{last.session_id}" if last else "")


def account_of(execute: Execute, session_id: str, limit: int) -> Account | None:
    """One session by its id, an alias, or an unambiguous beginning of its id (at least six characters)."""
    canonical = _canonical(execute, session_id)
    if canonical is None:
        return None
    values = next(iter(execute(f"{_ONE} WHERE session_id = ?", (canonical,))))
    aliases = execute("SELECT alias FROM session_alias WHERE session_id = ? LIMIT ?", (canonical, ALIASES_SHOWN))
    newest = execute(_NEWEST, (canonical, limit))
    return Account(
        record=_record(execute, values),
        keys=list(execute("SELECT kind, name, value FROM session_key WHERE session_id = ? ORDER BY id", (canonical,))),
        aliases=[alias for (alias,) in aliases],
        newest=[row_of(row) for row in newest],
    )


def totals_of(execute: Execute) -> tuple[int, int, Sums]:
    """The schema's version, how many sessions there are, and the sums over all of them."""
    schema, count, *sums = next(iter(execute(_TOTALS)))
    return schema, count, Sums(*sums)


def _canonical(execute: Execute, session_id: str) -> str | None:
    exact = list(execute("SELECT session_id FROM session_state WHERE session_id = ?", (session_id,)))
    exact = exact or list(execute("SELECT session_id FROM session_alias WHERE alias = ?", (session_id,)))
    if not exact and len(session_id) >= 6:
        found = list(
            execute(
                "SELECT session_id FROM session_state WHERE session_id >= ? AND session_id < ? LIMIT 2",
                (session_id, session_id + "\U0010ffff"),
            )
        )
        exact = found if len(found) == 1 else []
    return exact[0][0] if exact else None


def _record(execute: Execute, values: tuple[Any, ...]) -> Record:
    session = session_of(values)
    sums = next(iter(execute(_SUMS, (session.session_id,))), None)
    position = session.snapshot.position if session.snapshot else 0
    rows = execute(_ROWS, (session.session_id, position)) if session.last_position > position else ()
    return Record(
        session=session,
        sums=Sums(*sums) if sums else Sums(),
        rows=[row_of(row) for row in rows],
    )


_DIGITS_MAX = 18
"""Of a time that SQLite can compare."""
_ONE = f"SELECT {SESSION_LIST} FROM session_state"
_SESSIONS = (
    f"SELECT {SESSION_LIST} FROM session_state WHERE (last_seen_at, session_id) < (?, ?) "
    "ORDER BY last_seen_at DESC, session_id DESC LIMIT ?"
)
_SUMS = f"SELECT {', '.join(Sums._fields)} FROM session_total WHERE session_id = ?"
_ROWS = f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger WHERE session_id = ? AND position > ? ORDER BY position"
_NEWEST = (
    f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger WHERE session_id = ? ORDER BY started_at DESC, rowid DESC LIMIT ?"
)
_TOTALS = (
    "SELECT (SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM session_state), "
    f"{', '.join(f'coalesce(sum({name}), 0)' for name in Sums._fields)} FROM session_total"
)
