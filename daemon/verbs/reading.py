"""The database as the command line reads it: read-only, whether or not anything runs.

One rule: what is shown is read here, and never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from daemon.columns import plain
from worker import runtime
from worker.records import BEGINNING_CHARACTERS_MIN, DamagedRow, session_named, sessions_begun
from worker.runtime import Fatal
from worker.store import Reader, StoreRefused, damaged, known_schema

CANDIDATES_SHOWN: Final = 5
"""Ids that a beginning could mean: who sees that many gives more of it, or looks at the list."""


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
    except StoreRefused as error:
        if (schema := _former_schema(reader, error)) is None:
            raise
        remedy = "start or restart the worker of this version, which upgrades it and keeps a copy of it as it was"
        said = f"{database}: of an earlier perdure (schema {schema}, this one reads {known_schema()}); {remedy}"
        raise Fatal(runtime.EXIT_UNAVAILABLE, said) from error
    finally:
        reader.close()


def _former_schema(reader: Reader, error: StoreRefused) -> int | None:
    """The database's, where it is an earlier one and that is why it could not be read: it is not damaged then."""
    if not any(words in str(error) for words in ("no such column", "no such table")):
        return None
    schema = int(next(iter(reader.execute("PRAGMA user_version")))[0])
    return schema if schema < known_schema() else None


def named_session(reader: Reader, name: str) -> str:
    found = session_named(reader.execute, name)
    if found is None:
        raise unknown_session(reader, name)
    return found


def unknown_session(reader: Reader, name: str) -> Fatal:
    return unknown("session", name, sessions_begun(reader.execute, name, CANDIDATES_SHOWN + 1), "perdure sessions")


def unknown(what: str, name: str, candidates: Sequence[str], remedy: str) -> Fatal:
    """What is said of a name that means nothing, or could mean each of some ids."""
    if candidates:
        more = ", …" if len(candidates) > CANDIDATES_SHOWN else ""
        listed = ", ".join(map(plain, candidates[:CANDIDATES_SHOWN]))
        said = f"more than one {what} begins with {name!r}: {listed}{more}; give more of its id"
        return Fatal(runtime.EXIT_USAGE, said)
    known = f"`{remedy}` lists what there is"
    if 0 < len(name) < BEGINNING_CHARACTERS_MIN:
        known = f"of an id's beginning at least {BEGINNING_CHARACTERS_MIN} characters are needed; {known}"
    return Fatal(runtime.EXIT_USAGE, f"no {what} goes by {name!r}; {known}")


def moment(milliseconds: int) -> str | None:
    """ISO 8601 UTC; None for never.  An absurd clock must not end the command."""
    seconds = min(milliseconds / 1000, LAST_SECOND)
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if milliseconds > 0 else None


LAST_SECOND: Final = 253_402_300_799
"""The end of the year 9999, where datetime ends."""
