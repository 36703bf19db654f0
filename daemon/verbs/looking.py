"""The verbs that look: `status`, `sessions`, `show`.

One rule: they read the database through a read-only connection of their own, and tell of it the same whether or not
anything runs; `status` asks what runs as well, and waits for nobody.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec.structs import asdict

from daemon.pages import session_cells, session_page, sessions_table
from daemon.standing import Facts, report_of, status_page
from daemon.verbs.asking import WorkerSays, answering_daemon, readyz
from daemon.verbs.parsing import ID, Verbs, add_verb, positive
from daemon.verbs.reading import reading, unknown_session
from daemon.verbs.screen import screen
from daemon.views import account_object, session_object
from worker import runtime
from worker.copies import last_backup
from worker.records import account_of, page_of_sessions, totals_of
from worker.rollcall import call
from worker.runtime import Fatal
from worker.settings import Settings
from worker.store import Reader, StoreBusy, StoreRefused

SESSIONS_PER_PAGE: Final = 500
ROWS_SHOWN: Final = 50
"""Newest rows of one session in `show`, as in `/api/sessions/ID`."""


def add(verbs: Verbs) -> None:
    verb = partial(add_verb, verbs)
    looks = ("state_dir", "listen")
    asks = ("state_dir", "runtime_dir", "listen", "worker_url", "curve_dir")
    shown = [
        verb("status", "perdure status --json", "whether it runs, is well, and what it holds", asks, act=status),
        verb("sessions", "perdure sessions --limit 20", "every session, newest first", looks, act=sessions),
        verb("show", "perdure show 4f1c2b", "one session in full", looks, act=show),
    ]
    shown[0].epilog = (
        "Exit status: 0 turns are answered (ready, degraded); 75 they are not (unready, down); "
        "78 the configuration can not be used."
    )
    for each in shown:
        each.add_argument("--json", action="store_true", help="for programs: the objects of /api")
    shown[1].add_argument("--limit", type=positive, metavar="N", help="at most so many (default: all)")
    shown[2].add_argument("id", metavar="ID", help=ID)


def status(settings: Settings, options: argparse.Namespace) -> int:
    """Is it there, is it well, what does it hold.  Exit status 0 if turns are answered."""
    report = report_of(status_facts(settings))
    print(json.dumps(report, indent=2) if options.json else status_page(report, screen()))
    return runtime.EXIT_OK if report["status"] in ("ready", "degraded") else runtime.EXIT_UNAVAILABLE


def sessions(settings: Settings, options: argparse.Namespace) -> int:
    """Every session, newest first."""
    with reading(settings.database) as reader:
        found = _sessions(reader, options.limit, settings.account_aliases)
        if options.json:
            print(json.dumps(list(found), indent=2))
        else:
            table, now = sessions_table(screen()), time.time()
            is_first = True
            for shown in found:
                print(*([table.header] if is_first else []), table.line(session_cells(shown, now)), sep="\n")
                is_first = False
            if is_first:
                print("no session yet")
    return runtime.EXIT_OK


def show(settings: Settings, options: argparse.Namespace) -> int:
    """One session in full."""
    with reading(settings.database) as reader:
        account = account_of(reader.execute, options.id, ROWS_SHOWN)
        if account is None:
            raise unknown_session(reader, options.id)
    shown = account_object(account, settings.account_aliases)
    print(json.dumps(shown, indent=2) if options.json else session_page(shown, screen()))
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


def status_facts(settings: Settings) -> Facts:
    """Everybody is asked at once: the whole takes as long as the slowest of them may."""
    worker = WorkerSays(settings)
    worker.start()
    callers = ThreadPoolExecutor(1)
    daemons = callers.submit(call, settings.runtime_dir)
    ready = readyz(settings)
    daemon = answering_daemon(settings) if ready["status"] != "down" else None
    database = database_facts(settings.database)
    backup = last_backup(Path(settings.state_dir))
    worker.finish()
    callers.shutdown()
    return Facts(
        now=time.time_ns() // 1_000_000,
        listen=settings.listen,
        status=str(ready["status"]),
        checks={str(name): str(said) for name, said in ready["checks"].items()},
        database=database,
        lock_holder=runtime.lock_holder(settings.lock),
        is_lock_hidden=_is_hidden(settings.lock),
        standing=worker.standing,
        unreachable=worker.unreachable,
        daemon=daemon,
        called=daemons.result(),
        backup=asdict(backup) if backup else None,
    )


def _is_hidden(path: Path) -> bool:
    try:
        return path.exists() and not os.access(path, os.R_OK)
    except PermissionError:
        return True
    except OSError:
        return False


def database_facts(path: Path) -> dict[str, Any]:
    """The database's size and sums; `error` instead of the sums where it can not be read."""
    report: dict[str, Any] = {"path": str(path), "bytes": 0, "wal_bytes": 0}
    try:
        report |= {"bytes": size_of(path), "wal_bytes": size_of(path.with_name(f"{path.name}-wal"))}
        with reading(path) as reader:
            schema, count, sums = totals_of(reader.execute)
    except (Fatal, StoreBusy, StoreRefused) as error:
        return {**report, "error": str(error)}
    except PermissionError as error:
        return {**report, "error": f"{path}: {error.strerror}; run this as the worker's user, or as root"}
    except OSError as error:
        return {**report, "error": f"{path}: {error.strerror}; is PERDURE_STATE_DIR the worker's?"}
    cost = sums.cost_nanousd if sums.priced else None
    found = {"sessions": count, "turns": sums.turns, "interrupted": sums.interrupted, "cost_nanousd": cost}
    return {**report, "schema": schema, **found}


def size_of(path: Path) -> int:
    """0 for what is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
