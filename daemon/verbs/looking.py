"""The verbs that look: `status`, `sessions`, `show`.

One rule: they read the database through a read-only connection of their own, and tell the same whether or not anything
runs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from daemon.pages import SESSIONS_HEADER, session_line, session_page, status_page
from daemon.verbs.parsing import ID, Verbs, add_verb, positive
from daemon.verbs.reading import reading, unknown
from daemon.views import account_object, session_object
from worker import runtime
from worker.records import account_of, page_of_sessions, totals_of
from worker.runtime import Fatal
from worker.settings import Settings
from worker.store import Reader, StoreBusy, StoreRefused

READYZ_SECONDS: Final = 2.0
"""How long a daemon may take to say how it is; one that needs longer is not well."""
SESSIONS_PER_PAGE: Final = 500
ROWS_SHOWN: Final = 50
"""Newest rows of one session in `show`, as in `/api/sessions/ID`."""
READYZ_BYTES_MAX: Final = 65_536
"""More than any answer of ours; whoever else listens there may send without end."""


def add(verbs: Verbs) -> None:
    verb = partial(add_verb, verbs)
    looks = ("state_dir", "listen")
    shown = [
        verb("status", "perdure status --json", "whether it runs, is well, and what it holds", looks, act=status),
        verb("sessions", "perdure sessions --limit 20", "every session, newest first", looks, act=sessions),
        verb("show", "perdure show 4f1c2b", "one session in full", looks, act=show),
    ]
    for each in shown:
        each.add_argument("--json", action="store_true", help="for programs: the objects of /api")
    shown[1].add_argument("--limit", type=positive, metavar="N", help="at most so many (default: all)")
    shown[2].add_argument("id", metavar="ID", help=ID)


def status(settings: Settings, options: argparse.Namespace) -> int:
    """Is it there, is it well, what does it hold.  Exit status 0 if turns are answered."""
    ready = _readyz(settings)
    holder = runtime.lock_holder(settings.lock)
    report = {
        "status": ready["status"],
        "listen": settings.listen,
        "checks": ready["checks"],
        "database": _database(settings.database),
        "worker": {"running": holder is not None, "pid": holder},
    }
    print(json.dumps(report, indent=2) if options.json else status_page(report))
    return runtime.EXIT_OK if report["status"] in ("ready", "degraded") else runtime.EXIT_UNAVAILABLE


def sessions(settings: Settings, options: argparse.Namespace) -> int:
    """Every session, newest first."""
    with reading(settings.database) as reader:
        found = _sessions(reader, options.limit, settings.account_aliases)
        if options.json:
            print(json.dumps(list(found), indent=2))
        else:
            print(SESSIONS_HEADER)
            now = time.time()
            for shown in found:
                print(session_line(shown, now))
    return runtime.EXIT_OK


def show(settings: Settings, options: argparse.Namespace) -> int:
    """One session in full."""
    with reading(settings.database) as reader:
        account = account_of(reader.execute, options.id, ROWS_SHOWN)
    if account is None:
        raise unknown("session", options.id, "perdure sessions")
    shown = account_object(account, settings.account_aliases)
    print(json.dumps(shown, indent=2) if options.json else session_page(shown))
    return runtime.EXIT_OK


def _sessions(reader: Reader, limit: int | None, account_aliases: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    after, left = "", limit
    while left is None or left > 0:
        size = SESSIONS_PER_PAGE if left is None else min(left, SESSIONS_PER_PAGE)
        page = page_of_sessions(reader.execute, after, size)
        yield from (session_object(record, account_aliases) for record in page.records)
        after, left = page.after, None if left is None else left - size
        if not after:
            return


def _readyz(settings: Settings) -> dict[str, Any]:
    """What a daemon says of itself; "down" where none answers."""
    connection = http.client.HTTPConnection(settings.listen_host, settings.listen_port, timeout=READYZ_SECONDS)
    try:
        connection.request("GET", "/readyz", headers={"x-perdure-token": settings.token, "Connection": "close"})
        said = json.loads(connection.getresponse().read(READYZ_BYTES_MAX))
    except (OSError, http.client.HTTPException) as error:
        return {"status": "down", "checks": {"daemon": f"does not answer ({error!s:.100})"}}
    except ValueError:
        said = None
    finally:
        connection.close()
    if not isinstance(said, dict) or not {"status", "checks"} <= said.keys():
        return {"status": "down", "checks": {"daemon": "not there: another program listens on its address"}}
    return said


def _database(path: Path) -> dict[str, Any]:
    """The database's size and sums; `error` instead of the sums where it can not be read."""
    wal = path.with_name(f"{path.name}-wal")
    report: dict[str, Any] = {
        "path": str(path),
        "bytes": path.stat().st_size if path.exists() else 0,
        "wal_bytes": wal.stat().st_size if wal.exists() else 0,
    }
    try:
        with reading(path) as reader:
            schema, count, sums = totals_of(reader.execute)
    except (Fatal, StoreBusy, StoreRefused) as error:
        return {**report, "error": str(error)}
    cost = sums.cost_nanousd if sums.priced else None
    found = {"sessions": count, "turns": sums.turns, "interrupted": sums.interrupted, "cost_nanousd": cost}
    return {**report, "schema": schema, **found}
