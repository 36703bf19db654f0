"""The verb `costs`: what it all cost, by day, model, client and account; and the ledger itself.

One rule: what is shown is read from the database, whatever runs; sums are of all rows there ever were.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, date, datetime, timedelta

from daemon.bills import costs_page, rolled_line, row_cells, row_tones, rows_table
from daemon.verbs.parsing import Verbs, add_verb, positive
from daemon.verbs.reading import named_session, reading
from daemon.verbs.screen import say, screen
from daemon.views import COSTS_BY, costs_object, is_day, ledger_object
from worker import runtime
from worker.records import Group, costs_of, rolled_of, rows_of
from worker.runtime import Fatal
from worker.settings import Settings
from worker.store import Reader


def add(verbs: Verbs) -> None:
    does = "what it cost, by day, model, client and account; or row by row"
    costs = add_verb(verbs, "costs", "perdure costs --days 7", does, ("state_dir",), act=show_costs)
    costs.add_argument("--json", action="store_true", help="for programs: /api/costs; of --rows a row a line")
    when = costs.add_mutually_exclusive_group()
    when.add_argument("--days", type=positive, metavar="N", help="the last N days, today included (UTC)")
    when.add_argument("--since", type=_day, metavar="DAY", help="from that day on, as 2026-01-31 (UTC)")
    costs.add_argument("--by", choices=COSTS_BY, metavar="WHAT", help=f"one list, whole: {', '.join(COSTS_BY)}")
    costs.add_argument("--rows", action="store_true", help="the ledger: a line per request, oldest first")
    costs.add_argument("--session", metavar="ID", help="of --rows: those of one session")


def show_costs(settings: Settings, options: argparse.Namespace) -> int:
    """What it cost."""
    since = options.since or (_days_ago(options.days - 1) if options.days else None)
    if options.session and not options.rows:
        raise Fatal(runtime.EXIT_USAGE, "--session is for --rows (`perdure show ID` has its sums); see `costs --help`")
    if options.by and options.rows:
        raise Fatal(runtime.EXIT_USAGE, "--by adds up, --rows does not; give one of them, see `costs --help`")
    with reading(settings.database) as reader:
        if options.rows:
            _rows(reader, since, settings, options)
            return runtime.EXIT_OK
        groups = costs_of(reader.execute, since.isoformat() if since else "")
    shown = costs_object(groups, settings.account_aliases)
    if options.by:
        shown = {"total": shown["total"], f"by_{options.by}": shown[f"by_{options.by}"]}
    if options.json:
        print(json.dumps(shown, indent=2))
    else:
        print(costs_page(shown, since=since.isoformat() if since else "", by=options.by or "", screen=screen()))
    return runtime.EXIT_OK


def _rows(reader: Reader, since: date | None, settings: Settings, options: argparse.Namespace) -> None:
    """The ledger, printed while it is read: it may be longer than memory."""
    session_id = named_session(reader, options.session) if options.session else ""
    # Before the rows: one that is removed while they are read is then told of once.
    rolled = rolled_of(reader.execute, since=since.isoformat() if since else "", session_id=session_id)
    found = rows_of(reader.execute, since=_milliseconds(since) if since else 0, session_id=session_id)
    rows = (ledger_object(row, settings.account_aliases) for row in found)
    if any(rolled):
        say(rolled_line(costs_object([Group("total", "", rolled)], {})["total"]))
    if options.json:
        for row in rows:
            print(json.dumps(row))
        return
    table = rows_table(screen(), with_session=not session_id)
    is_first = True
    for row in rows:
        tones = row_tones(row, with_session=not session_id)
        line = table.line(row_cells(row, with_session=not session_id), tones=tones)
        print(*([table.header] if is_first else []), line, sep="\n")
        is_first = False
    if is_first:
        print("no row yet")


def _day(text: str) -> date:
    if not is_day(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a day, like 2026-01-31")
    return date.fromisoformat(text)


def _days_ago(days: int) -> date:
    try:
        return datetime.now(UTC).date() - timedelta(days=days)
    except OverflowError:
        return date.min


def _milliseconds(day: date) -> int:
    return max(0, int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1_000))
