"""The database as the command line reads it: read-only, whether or not anything runs.

One rule: what is shown is read here, and never changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from worker import runtime
from worker.records import DamagedRow, session_named
from worker.runtime import Fatal
from worker.store import Reader, StoreRefused, damaged


@contextmanager
def reading(database: Path) -> Iterator[Reader]:
    """A reader on the database.  Raises Fatal where there is none or it does not answer."""
    if not database.exists():
        raise Fatal(runtime.EXIT_UNAVAILABLE, f"{database}: no database there yet; `perdure up` makes one")
    reader = Reader(database)
    try:
        yield reader
    except DamagedRow as error:
        raise StoreRefused(damaged(database, error)) from error
    finally:
        reader.close()


def named_session(reader: Reader, name: str) -> str:
    found = session_named(reader.execute, name)
    if found is None:
        raise unknown("session", name, "perdure sessions")
    return found


def unknown(what: str, name: str, remedy: str) -> Fatal:
    return Fatal(
        runtime.EXIT_USAGE,
        f"no {what}, or more than one, goes by {name!r}; `{remedy}` lists them "
        "(an id, an alias, or at least six characters that only one id begins with)",
    )


def moment(milliseconds: int) -> str | None:
    """ISO 8601 UTC; None for never.  An absurd clock must not end the command."""
    seconds = min(milliseconds / 1000, LAST_SECOND)
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if milliseconds > 0 else None


LAST_SECOND: Final = 253_402_300_799
"""The end of the year 9999, where datetime ends."""
