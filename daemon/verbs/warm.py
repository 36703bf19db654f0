"""The verb `warm`: whether prompt caches are kept warm, and what that costs and saves, or would.

One rule: what is shown is read from the database, whatever runs; what is switched, the worker switches.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, date, datetime, timedelta
from typing import Final

import msgspec
from msgspec.structs import replace

from daemon.amend import amend
from daemon.cost import Prices
from daemon.errand import ask
from daemon.pages import switched_line
from daemon.savings import Rates, Savings, Told
from daemon.verbs.asking import WORKER_SECONDS, closed_socket
from daemon.verbs.parsing import ID, Verbs, add_verb, positive
from daemon.verbs.progress import progress_bar
from daemon.verbs.reading import named_session, reading
from daemon.verbs.screen import screen
from daemon.views import savings_object
from daemon.warmth import warm_page
from worker import runtime
from worker.curve import daemon_keys
from worker.protocol import Latch, Query, Switch, Warm, WarmTo
from worker.records import rows_of, sub_agents, switch_of
from worker.runtime import Fatal
from worker.settings import Settings
from worker.store import Reader

DAYS_SHOWN: Final = 30
ROWS_PER_STEP: Final = 1_000
"""Between two looks at how far it is."""


def add(verbs: Verbs) -> None:
    does = "keep prompt caches warm by pings: what it saves, and the switch"
    places = ("state_dir", "runtime_dir", "worker_url", "curve_dir")
    warm = add_verb(verbs, "warm", "perdure warm --on      and, without it, what it would save", does, places, act=act)
    which = warm.add_mutually_exclusive_group()
    which.add_argument("--on", dest="to", action="store_const", const="on", help="send pings from now on")
    which.add_argument(
        "--off", dest="to", action="store_const", const="off", help="send none; only count (the default)"
    )
    which.add_argument(
        "--reset", dest="to", action="store_const", const="reset", help="breakers, latches and what was set by hand"
    )
    warm.add_argument("id", nargs="?", metavar="ID", help=f"of one session: {ID} (default: all)")
    warm.add_argument("--days", type=positive, metavar="N", help=f"show the last N days (default {DAYS_SHOWN})")
    warm.add_argument("--json", action="store_true", help="for programs")


def act(settings: Settings, options: argparse.Namespace) -> int:
    """Switch it, or show how it stands."""
    return switch(settings, options, options.to) if options.to else show(settings, options)


def switch(settings: Settings, options: argparse.Namespace, to: WarmTo) -> int:
    """Have the worker switch it."""
    if options.days:
        raise Fatal(runtime.EXIT_USAGE, "--days is for what is shown, not for what is switched; see `warm --help`")
    with reading(settings.database) as reader:
        session_id = named_session(reader, options.id) if options.id else ""
    keys = daemon_keys(settings.worker_url, settings.curve_dir)
    amended = amend(Warm(to=to, session_id=session_id), settings.worker_url, keys)
    shown = {name: getattr(amended, name) for name in ("change", "verb", "session_id", "moved")}
    print(json.dumps(shown, indent=2) if options.json else f"change {shown['change']}: {switched_line(shown)}")
    return runtime.EXIT_OK


def show(settings: Settings, options: argparse.Namespace) -> int:
    """How it stands, what it cost and saved, and what it would have."""
    since = _days_ago((options.days or DAYS_SHOWN) - 1)
    with reading(settings.database) as reader:
        session_id = named_session(reader, options.id) if options.id else ""
        switch = switch_of(reader.execute)
        told = _told(reader, settings, switch, since, session_id)
    latches = _latches(settings)
    shown = savings_object(replace(switch, latches=latches or []), told, since.isoformat())
    shown["latches_known"] = latches is not None
    print(json.dumps(shown, indent=2) if options.json else warm_page(shown, screen()))
    return runtime.EXIT_OK


def _told(reader: Reader, settings: Settings, switch: Switch, since: date, session_id: str) -> list[Told]:
    """The ledger from a day on, gone through once."""
    rates = Rates(Prices(settings.models).price_nanousd)
    now = time.time_ns() // 1_000_000
    hand_set = {each.session_id: each.setting for each in switch.sessions}
    savings = Savings(rates.price_of, children=sub_agents(reader.execute), settings=hand_set)
    first = int(datetime(since.year, since.month, since.day, tzinfo=UTC).timestamp() * 1_000)
    with progress_bar() as progress:
        for number, row in enumerate(rows_of(reader.execute, since=max(0, first), session_id=session_id)):
            savings.add(row)
            if number % ROWS_PER_STEP == 0:
                progress("the ledger", min(1.0, (row.started_at - first) / max(1, now - first)))
    return savings.told(now)


def _latches(settings: Settings) -> list[Latch] | None:
    """What daemons remember; None where the worker does not tell."""
    url = settings.worker_url
    if closed_socket(url):
        return None
    try:
        said = ask(Query(what="warm"), url, daemon_keys(url, settings.curve_dir), WORKER_SECONDS)
        return msgspec.json.decode(said, type=Switch).latches if said is not None else None
    except (Fatal, msgspec.DecodeError, OSError):
        return None


def _days_ago(days: int) -> date:
    try:
        return datetime.now(UTC).date() - timedelta(days=days)
    except OverflowError:
        return date(1970, 1, 1)
