"""What people and dashboards read: sessions with their sums and what is not yet in their snapshots.

One rule: reading only.  The shapes here are raw; `daemon.views` folds the rows and turns them into the objects that
the command line and `/api` show.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from worker.ledger import Sums
from worker.protocol import HAND_SET_MAX, Row, Switch
from worker.stored import Session
from worker.tables import ROW_COLUMNS, SESSION_LIST, DamagedRow, SqliteTables, row_of, session_of

__all__ = [
    "Account",
    "Change",
    "CostPages",
    "DamagedRow",
    "Group",
    "Page",
    "Record",
    "account_of",
    "changes_of",
    "costs_of",
    "event_named",
    "newest_at",
    "page_of_sessions",
    "rows_of",
    "session_named",
    "sub_agents",
    "switch_of",
    "totals_of",
]

ALIASES_SHOWN = 20
"""A conversation without an id gets one at each change of its owner."""

RELATIVES_SHOWN = 50

FORGETTING_SCHEMA = 5
"""The first that knows blank sessions, which stand for forgotten ones."""

BEGINNING_CHARACTERS_MIN = 6
"""Of an id that is given by its beginning."""

ROWS_PER_LOOK = 2_000
"""Ledger rows read at once: about a megabyte, and a read transaction of some ten milliseconds."""

GROUPS_PER_PAGE = 1_000
"""Of sums; with the longest names, all of them escaped, they are 3.3 MB."""

LISTS_KEPT = 8
"""Lists of sums that somebody may still be paging through."""

Execute = Callable[..., Iterator[tuple[Any, ...]]]


class _Through(NamedTuple):
    """A connection, as far as it is needed."""

    execute: Execute


By = Literal["total", "day", "kind", "provider", "model", "client", "account"]
"""What rows are added up by."""


class Record(Struct, frozen=True, kw_only=True):
    """One session.  `rows`: the settled ones after the snapshot's position, oldest first."""

    session: Session
    sums: Sums
    tree: Sums
    """With its sub-agents, and theirs."""
    rows: list[Row]


class Page(Struct, frozen=True, kw_only=True):
    records: list[Record]
    after: str
    """Pass it on for the next page; empty after the last."""


class Change(Struct, frozen=True, kw_only=True):
    """A correction by an operator: rows of `session_id` went to `other_id`."""

    number: int
    at: int
    verb: str
    session_id: str
    other_id: str
    moved: int
    stayed: int
    undone_by: int | None
    undoes: int | None
    undoable: bool
    """All that it changed is still known."""


class Account(Struct, frozen=True, kw_only=True):
    """One session in full: its record, every key that names it (kind, name, value), some of the ids it was proposed
    under, its newest rows."""

    record: Record
    keys: list[tuple[str, str, str]]
    aliases: list[str]
    children: list[str]
    """Some of the sessions that it started as sub-agents, the newest first."""
    forks: list[str]
    changes: list[Change] = []
    """By operators, the newest first."""
    warm_reset_at: int = 0
    """When (Unix milliseconds) what stood against keeping caches warm was last declared to be over, of all sessions."""
    newest: list[Row]


class Group(Struct, frozen=True, array_like=True):
    """The sums over all ledger rows that have something in common, or over all there ever were (`total`)."""

    by: By
    name: str
    sums: Sums


def page_of_sessions(execute: Execute, after: str, limit: int) -> Page:
    """Sessions, the most recently used first."""
    at, _, last_id = after.partition(":")
    bound = (int(at), last_id) if at.isdecimal() and len(at) <= _DIGITS_MAX else (2**62, "")
    found = list(execute(_SESSIONS, (*bound, limit)))
    records = [_record(execute, values) for values in found]
    last = records[-1].session if len(records) == limit else None
    return Page(records=records, after=f"{last.last_seen_at}:{last.session_id}" if last else "")


def account_of(execute: Execute, session_id: str, limit: int) -> Account | None:
    """One session by its id, an alias, or an unambiguous beginning of its id (at least six characters); or by the id of
    one of its requests, as it stands in a log."""
    canonical = session_named(execute, session_id) or _session_of_request(execute, session_id)
    if canonical is None:
        return None
    values = next(iter(execute(f"{_ONE} WHERE session_id = ?", (canonical,))), None)
    if values is None:
        raise DamagedRow(f"session {canonical!r:.80}: an alias or an index names it, and it is not there")
    aliases = execute("SELECT alias FROM session_alias WHERE session_id = ? LIMIT ?", (canonical, ALIASES_SHOWN))
    newest = execute(_NEWEST, (canonical, limit))
    return Account(
        record=_record(execute, values),
        keys=list(execute("SELECT kind, name, value FROM session_key WHERE session_id = ? ORDER BY id", (canonical,))),
        aliases=[alias for (alias,) in aliases],
        children=_related(execute, "parent_session_id", canonical),
        forks=_related(execute, "forked_from", canonical),
        changes=changes_of(execute, canonical),
        warm_reset_at=next((at for (at,) in execute(_RESET_AT) if isinstance(at, int)), 0),
        newest=[row_of(row) for row in newest],
    )


def changes_of(execute: Execute, session_id: str = "") -> list[Change]:
    """What operators changed, of one session or of all, the newest first."""
    where = "WHERE change.session_id = ?1 OR change.other_id = ?1 " if session_id else ""
    found = execute(f"{_CHANGES} {where}ORDER BY change.id DESC", (session_id,) if session_id else ())
    named = (dict(zip(Change.__struct_fields__, values, strict=True)) for values in found)
    return [Change(**{**each, "undoable": bool(each["undoable"])}) for each in named]


def event_named(execute: Execute, session_id: str, event_id: str) -> str | None:
    """A row of a session by its id, or by an unambiguous beginning of it."""
    exact = list(execute("SELECT event_id FROM ledger WHERE session_id = ? AND event_id = ?", (session_id, event_id)))
    begun = [] if exact else events_begun(execute, session_id, event_id, 2)
    return exact[0][0] if exact else begun[0] if len(begun) == 1 else None


def events_begun(execute: Execute, session_id: str, beginning: str, limit: int) -> list[str]:
    """Rows of a session whose ids begin so; none for a beginning that is too short to be meant."""
    if len(beginning) < BEGINNING_CHARACTERS_MIN:
        return []
    sql = (
        "SELECT event_id FROM ledger WHERE session_id = ? AND event_id >= ? AND event_id < ? ORDER BY event_id LIMIT ?"
    )
    return [found for (found,) in execute(sql, (session_id, beginning, beginning + _AFTER_ALL, limit))]


def totals_of(execute: Execute) -> tuple[int, int, Sums]:
    """The schema's version, how many sessions there are, and the sums over all there ever were: idle ones go."""
    schema, count, *sums = next(iter(execute(_TOTALS)))
    # A former schema, as that of a backup, forgets nothing.
    blank = next(iter(execute(_BLANK)))[0] if schema >= FORGETTING_SCHEMA else 0
    return schema, count - blank, Sums(*sums)


def costs_of(execute: Execute, since: str = "") -> list[Group]:
    """The sums over the ledger, whole and by what its rows have in common, at one moment; of the days from `since` on
    (YYYY-MM-DD).  They outlive the rows they are of.  Days in their order, all else by what it cost."""
    found: list[Group] = []
    with _one_moment(execute):
        for by, sql in _GROUPS.items():
            groups = [Group(by, name, Sums(*sums)) for name, *sums in execute(sql, (since,))]
            # A row that was settled as one of another model leaves sums of nothing behind.
            found += [group for group in groups if by == "total" or any(group.sums)]
    return found


class CostPages:
    """Lists of sums that do not fit one answer: each is made at one moment, and given away a page at a time."""

    def __init__(self) -> None:
        self._lists: dict[str, list[Group]] = {}
        self._numbers = count(1)

    def page(self, execute: Execute, since: str, after: str) -> tuple[list[Group], str] | None:
        """A page and the mark of the next one; None where the list that the mark is of is not kept any more."""
        name, _, offset = after.partition(":")
        if not after:
            name, offset = str(next(self._numbers)), "0"
            self._lists[name] = costs_of(execute, since)
            while len(self._lists) > LISTS_KEPT:
                del self._lists[next(iter(self._lists))]
        groups = self._lists.get(name)
        if groups is None or not offset.isdecimal() or len(offset) > _DIGITS_MAX:
            return None
        end = int(offset) + GROUPS_PER_PAGE
        if end < len(groups):
            return groups[int(offset) : end], f"{name}:{end}"
        del self._lists[name]
        return groups[int(offset) :], ""


def rows_of(execute: Execute, *, since: int = 0, session_id: str = "") -> Iterator[Row]:
    """The ledger in the order of its entries, those that began at `since` (Unix milliseconds) or later; of one session,
    or all.  Read a piece at a time: whoever takes long over them keeps no log from being cut back, and no memory."""
    first, last = next(iter(execute("SELECT coalesce(min(rowid), 1), coalesce(max(rowid), 0) FROM ledger")))
    if session_id:
        wanted = [number for (number,) in execute(_NUMBERS_OF_SESSION, (session_id, since))]
        for start in range(0, len(wanted), ROWS_PER_LOOK):
            numbers = wanted[start : start + ROWS_PER_LOOK]
            yield from [row_of(values) for number in numbers for values in execute(_ROW_NUMBERED, (number,))]
        return
    for start in range(first, last + 1, ROWS_PER_LOOK):
        yield from [row_of(values) for values in execute(_ROWS_NUMBERED, (start, start + ROWS_PER_LOOK, since))]


def rolled_of(execute: Execute, *, since: str = "", session_id: str = "") -> Sums:
    """What is in the sums and in no row: of rows that were removed by age, and of imported pasts.  Of the days from
    `since` on (YYYY-MM-DD); of one session at any time, as its own sums count (`ledger.sums_of_session`)."""
    table = "session_rolled" if session_id else "day_rolled"
    if not list(execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,))):
        return Sums()  # A former schema, which removes nothing.
    columns = ", ".join(f"coalesce(sum({name}), 0)" for name in Sums._fields)
    which = "session_id = ?" if session_id else "day >= ?"
    return Sums(*next(iter(execute(f"SELECT {columns} FROM {table} WHERE {which}", (session_id or since,)))))


def switch_of(execute: Execute) -> Switch:
    """Whether caches are kept warm, and the sessions that are set by hand."""
    tables = SqliteTables(_Through(execute))
    return replace(tables.switch(), sessions=tables.hand_set(HAND_SET_MAX))


def sub_agents(execute: Execute) -> set[str]:
    """The sessions that another one started."""
    return {session_id for (session_id,) in execute(_SUB_AGENTS)}


def newest_at(execute: Execute) -> int:
    """When the latest of the rows that were entered last began, in Unix milliseconds; 0 if there is none."""
    return int(next(iter(execute(_NEWEST_AT)))[0])


@contextmanager
def _one_moment(execute: Execute) -> Generator[None]:
    """All reads within see the store as it is at the first of them."""
    list(execute("BEGIN"))
    try:
        yield
    finally:
        list(execute("ROLLBACK"))


def _related(execute: Execute, column: str, session_id: str) -> list[str]:
    found = execute(
        f"SELECT session_id FROM session_state WHERE {column} = ? AND forgotten_at = 0 "
        "ORDER BY last_seen_at DESC LIMIT ?",
        (session_id, RELATIVES_SHOWN),
    )
    return [related for (related,) in found]


def _session_of_request(execute: Execute, event_id: str) -> str | None:
    found = execute(
        "SELECT session_id FROM ledger JOIN session_state USING (session_id) WHERE event_id = ? AND forgotten_at = 0",
        (event_id,),
    )
    return next((session_id for (session_id,) in found), None)


def session_named(execute: Execute, session_id: str) -> str | None:
    """The session that goes by an id, an alias, or an unambiguous beginning of its id."""
    found = execute("SELECT session_id FROM session_state WHERE session_id = ? AND forgotten_at = 0", (session_id,))
    exact = list(found)
    exact = exact or list(execute("SELECT session_id FROM session_alias WHERE alias = ?", (session_id,)))
    begun = [] if exact else sessions_begun(execute, session_id, 2)
    return exact[0][0] if exact else begun[0] if len(begun) == 1 else None


def sessions_begun(execute: Execute, beginning: str, limit: int) -> list[str]:
    """Sessions whose ids begin so; none for a beginning that is too short to be meant."""
    if len(beginning) < BEGINNING_CHARACTERS_MIN:
        return []
    sql = (
        "SELECT session_id FROM session_state WHERE session_id >= ? AND session_id < ? AND forgotten_at = 0 "
        "ORDER BY session_id LIMIT ?"
    )
    return [found for (found,) in execute(sql, (beginning, beginning + _AFTER_ALL, limit))]


def _record(execute: Execute, values: tuple[Any, ...]) -> Record:
    session = session_of(values)
    sums = next(iter(execute(_SUMS, (session.session_id,))), None)
    position = session.snapshot.position if session.snapshot else 0
    rows = execute(_ROWS, (session.session_id, position)) if session.last_position > position else ()
    return Record(
        session=session,
        sums=Sums(*sums) if sums else Sums(),
        tree=Sums(*next(iter(execute(_TREE, (session.session_id,))))),
        rows=[row_of(row) for row in rows],
    )


_AFTER_ALL = "\U0010ffff"
"""Sorts after every text that begins alike."""
_DIGITS_MAX = 18
"""Of a time that SQLite can compare."""
_ONE = f"SELECT {SESSION_LIST} FROM session_state"
_SESSIONS = (
    f"SELECT {SESSION_LIST} FROM session_state WHERE (last_seen_at, session_id) < (?, ?) AND forgotten_at = 0 "
    "ORDER BY last_seen_at DESC, session_id DESC LIMIT ?"
)
_SUMS = f"SELECT {', '.join(Sums._fields)} FROM session_total WHERE session_id = ?"
# UNION, not UNION ALL: sessions that were made each other's parents must not run for ever.
_TREE = (
    "WITH RECURSIVE tree (id) AS (SELECT ?1 UNION "
    "SELECT session_id FROM session_state JOIN tree ON parent_session_id = tree.id) "
    f"SELECT {', '.join(f'coalesce(sum({name}), 0)' for name in Sums._fields)} "
    "FROM session_total WHERE session_id IN (SELECT id FROM tree)"
)
_ROWS = f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger WHERE session_id = ? AND position > ? ORDER BY position"
_NEWEST = (
    f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger WHERE session_id = ? ORDER BY started_at DESC, rowid DESC LIMIT ?"
)
_CHANGES = (
    "SELECT id, at, verb, session_id, other_id, moved, stayed, undone_by, "
    "(SELECT undone.id FROM session_change AS undone WHERE undone.undone_by = change.id), "
    "undone_by IS NULL AND before <> '[]' FROM session_change AS change"
)
# Of the days, which outlive sessions and rows: these sums never fall.  Turns and tokens are those of conversations,
# money is that of side calls and pings as well, as in a session's sums.
_OF_TURNS = ("turns", "interrupted", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")
_BLANK = "SELECT count(*) FROM session_state WHERE forgotten_at <> 0"
_TOTALS = (
    "SELECT (SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM session_state), "
    + ", ".join(
        f"coalesce(sum({name}) FILTER (WHERE kind = 'turn'), 0)" if name in _OF_TURNS else f"coalesce(sum({name}), 0)"
        for name in Sums._fields
    )
    + " FROM day_total"
)
_COLUMNS: tuple[By, ...] = ("kind", "provider", "model", "client", "account")
_DAY_SUMS = ", ".join(f"coalesce(sum({name}), 0)" for name in Sums._fields)
_GROUPS: Final[dict[By, str]] = {
    "total": f"SELECT '', {_DAY_SUMS} FROM day_total WHERE day >= ?",
    "day": f"SELECT day, {_DAY_SUMS} FROM day_total WHERE day >= ? GROUP BY day ORDER BY day",
    **{
        by: f"SELECT {by}, {_DAY_SUMS} FROM day_total WHERE day >= ? GROUP BY {by} "
        f"ORDER BY sum(cost_nanousd) DESC, sum(turns) DESC, {by}"
        for by in _COLUMNS
    },
}
_NUMBERS_OF_SESSION = "SELECT rowid FROM ledger WHERE session_id = ? AND started_at >= ? ORDER BY rowid"
_NEWEST_AT = "SELECT coalesce(max(started_at), 0) FROM (SELECT started_at FROM ledger ORDER BY rowid DESC LIMIT 100)"
_RESET_AT = "SELECT json_extract(value, '$.reset_at') FROM meta WHERE name = 'warming' AND json_valid(value)"
_SUB_AGENTS = "SELECT session_id FROM session_state WHERE parent_session_id IS NOT NULL"
_ROW_NUMBERED = f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger WHERE rowid = ?"
_ROWS_NUMBERED = (
    f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger WHERE rowid >= ? AND rowid < ? AND started_at >= ? ORDER BY rowid"
)
