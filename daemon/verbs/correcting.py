"""The verbs that correct: `session merge`, `split`, `undo`, `forget`, `log`.

One rule: they look up which sessions are meant, and have the worker do it.  What can not be taken back is asked first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from functools import partial

from daemon.amend import amend, draw_id
from daemon.pages import change_cells, changed_page, changes_table, forgotten_page
from daemon.verbs.parsing import ID, Verbs, add_verb, positive
from daemon.verbs.reading import CANDIDATES_SHOWN, named_session, reading, unknown, unknown_session
from daemon.verbs.screen import screen, tell
from daemon.views import change_object
from worker import runtime
from worker.curve import daemon_keys
from worker.protocol import SPLIT_EVENTS_MAX, Forget, Merge, Split, Undo
from worker.records import Account, Change, account_of, changes_of, event_named, events_begun
from worker.runtime import Fatal
from worker.settings import Settings
from worker.store import Reader


def add(verbs: Verbs) -> None:
    """`perdure session …`"""
    does = "correct which session turns were given: audited, and undoable"
    session = add_verb(verbs, "session", "perdure session merge 4f1c2b 9a07de", does, None)
    verb = partial(add_verb, session.add_subparsers(metavar="VERB", required=True))
    places = ("state_dir", "runtime_dir", "worker_url", "curve_dir")
    made = [
        verb("merge", "perdure session merge 4f1c2b 9a07de", "make one session part of another", places, act=merge),
        verb(
            "split",
            "perdure session split 4f1c2b --from 7be09c",
            "make turns of a session one of their own, and tell its id",
            places,
            act=split,
        ),
        verb("undo", "perdure session undo 3", "take a merge or a split back", places, act=undo),
        verb(
            "forget",
            "perdure session forget 4f1c2b",
            "erase what names a session and tells of it, for good; what it cost stays in the sums",
            places,
            act=forget,
        ),
        verb("log", "perdure session log --json", "what was changed, newest first", places, act=log),
    ]
    for each in made:
        each.add_argument("--json", action="store_true", help="for programs")
    made[0].add_argument("source", metavar="FROM", help=f"the session that is no other: {ID}")
    made[0].add_argument("into", metavar="INTO", help="the session that both are from now on")
    made[1].add_argument("id", metavar="ID", help=ID)
    which = made[1].add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--from", dest="first_event", metavar="EVENT", help="this turn and all that began after it (`perdure show ID`)"
    )
    which.add_argument("--only", nargs="+", metavar="EVENT", help="these turns alone")
    made[2].add_argument("change", metavar="N", type=positive, help="its number in `perdure session log`")
    made[3].add_argument("id", metavar="ID", help=ID)
    made[3].add_argument("--tree", action="store_true", help="with its sub-agents")
    made[3].add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal to ask at")


def merge(settings: Settings, options: argparse.Namespace) -> int:
    """One session becomes part of another."""
    with reading(settings.database) as reader:
        source, into = named_session(reader, options.source), named_session(reader, options.into)
    return _change(Merge(session_id=source, into=into), settings, options)


def split(settings: Settings, options: argparse.Namespace) -> int:
    """Some turns of a session become one of their own."""
    with reading(settings.database) as reader:
        session_id = named_session(reader, options.id)
        first = _event(reader, session_id, options.first_event) if options.first_event else ""
        events = [_event(reader, session_id, event) for event in options.only or ()]
    if len(events) > SPLIT_EVENTS_MAX:
        raise Fatal(runtime.EXIT_USAGE, f"more than {SPLIT_EVENTS_MAX} turns at once; split them off in several steps")
    act = Split(session_id=session_id, drawn_id=draw_id(), first_event=first, events=events)
    return _change(act, settings, options)


def undo(settings: Settings, options: argparse.Namespace) -> int:
    """Take a change back."""
    with reading(settings.database):
        pass  # Without a database there is nothing to wait for a worker for.
    return _change(Undo(change=options.change), settings, options)


def forget(settings: Settings, options: argparse.Namespace) -> int:
    """Erase what names a session and tells of it."""
    with reading(settings.database) as reader:
        account = account_of(reader.execute, options.id, 0)
        if account is None:
            raise unknown_session(reader, options.id)
        standing = _standing(changes_of(reader.execute))
    session_id = account.record.session.session_id
    if account.children and not options.tree:
        remedy = f"add --tree to forget them with it (`perdure show {session_id}` lists them)"
        raise Fatal(runtime.EXIT_USAGE, f"{session_id} has sub-agents; {remedy}")
    if not options.yes:
        _confirm(account, options)
    act = Forget(session_id=session_id, drawn_id=draw_id(), tree=options.tree)
    amended = amend(act, settings.worker_url, daemon_keys(settings.worker_url, settings.curve_dir))
    with reading(settings.database) as reader:
        changes = changes_of(reader.execute)
    # A change for each session: those of its sub-agents come before its own.
    own = range(amended.change - amended.stayed, amended.change + 1)
    shown = {
        "change": amended.change,
        "verb": amended.verb,
        "session_id": amended.session_id,
        "sub_agents": amended.stayed,
        "rows_kept": sum(change.moved for change in changes if change.number in own),
        "no_longer_undoable": sorted(standing - _standing(changes)),
    }
    if options.json:
        print(json.dumps(shown, indent=2))
    else:
        tell(forgotten_page(shown))
    return runtime.EXIT_OK


def log(settings: Settings, options: argparse.Namespace) -> int:
    """Every change, newest first."""
    with reading(settings.database) as reader:
        found = [change_object(change) for change in changes_of(reader.execute)]
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        table = changes_table(screen())
        lines = [table.line(change_cells(each)) for each in found]
        print("\n".join([table.header, *lines]) if lines else "no session was ever changed")
    return runtime.EXIT_OK


def _change(act: Merge | Split | Undo, settings: Settings, options: argparse.Namespace) -> int:
    amended = amend(act, settings.worker_url, daemon_keys(settings.worker_url, settings.curve_dir))
    shown = {name: getattr(amended, name) for name in ("change", "verb", "session_id", "other_id", "moved", "stayed")}
    shown["undoes"] = act.change if isinstance(act, Undo) else None
    if options.json:
        print(json.dumps(shown, indent=2))
    else:
        tell(changed_page(shown))
    return runtime.EXIT_OK


def _confirm(account: Account, options: argparse.Namespace) -> None:
    """Ask whoever sits there.  Raises Fatal where nobody does, or says no."""
    if not sys.stdin.isatty():
        raise Fatal(runtime.EXIT_USAGE, "nobody can be asked here whether to forget it; add --yes")
    session, turns = account.record.session, account.record.sums.turns
    counted = "1 turn" if turns == 1 else f"{turns} turns"
    what = f"session {session.session_id} ({session.client or 'unknown client'}, {counted})"
    whole = f"{what} and its sub-agents" if options.tree else what
    print(f"Forget {whole}? It can not be taken back. [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Fatal(runtime.EXIT_USAGE, "not confirmed; nothing was changed")


def _standing(changes: Iterable[Change]) -> set[int]:
    return {change.number for change in changes if change.undoable}


def _event(reader: Reader, session_id: str, name: str) -> str:
    found = event_named(reader.execute, session_id, name)
    if found is None:
        begun = events_begun(reader.execute, session_id, name, CANDIDATES_SHOWN + 1)
        raise unknown("turn of this session", name, begun, f"perdure show {session_id}")
    return found
