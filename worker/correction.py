"""What every correction of sessions needs: to find a session, to refuse in words, to say what was done.

One rule: a correction judges first, and refuses before it has written anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from worker.protocol import Lost, Row
from worker.stored import Amendment, Session, Tables

Told = tuple[Amendment, list[tuple[str, Lost]]]
"""What was done, and which former owners are to be told."""


class Refused(Exception):
    """Nothing was written; the message says why, and what to do."""


def session_at(tables: Tables, session_id: str) -> Session:
    """The session that goes by an id or an alias.  Raises Refused."""
    session = tables.session(tables.alias(session_id) or session_id)
    if session is None or session.forgotten_at:
        raise Refused(f"no session goes by {session_id}; `perdure sessions` lists them")
    return session


def known_as(tables: Tables, session_id: str | None) -> str | None:
    """What an id that was once noted means now; a parent may be noted before it is seen itself."""
    return (tables.alias(session_id) or session_id) if session_id else None


def refuse_running(rows: Iterable[Row], live: frozenset[str]) -> None:
    """Its end would be booked on the session that its daemon knows."""
    for row in rows:
        if not row.is_settled and row.boot in live:
            raise Refused(f"turn {row.event_id} is still running; try again when it has ended")


def by_start(row: Row) -> tuple[int, str]:
    return row.started_at, row.event_id
