"""The command `perdure`: start it, look at it, correct it.

One rule: what is shown is read, never changed; what is changed, the worker changes; and a failure is one line that says
what to do, with an exit status of the contract: nobody sees a traceback because nothing runs or a pipe was closed.

Theory.  The verbs that run something (`up`, `daemon`, `worker`) check what can be checked early, put every setting into
the environment, and then *become* the program, so that the pid a terminal or a service manager knows is the program's
own.  The verbs that look (`status`, `sessions`, `show`) read the database through a read-only connection of their own:
they tell the same whether or not anything runs.  The verbs that correct (`session merge`, `split`, `undo`) look up in
the same way which sessions are meant, and have the worker do it.  `backup` reads too; `restore` alone takes the
worker's place, under its lock.
"""

from __future__ import annotations

import argparse
import errno
import http.client
import io
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from daemon.amend import amend, draw_id
from daemon.pages import SESSIONS_HEADER, change_line, changed_page, session_line, session_page, status_page
from daemon.state import decode
from daemon.views import account_object, change_object, session_object
from worker import backup as backups
from worker import runtime
from worker.curve import daemon_keys, make_keys
from worker.protocol import SPLIT_EVENTS_MAX, Merge, Snapshot, Split, Undo
from worker.records import (
    DamagedRow,
    account_of,
    changes_of,
    event_named,
    page_of_sessions,
    session_named,
    totals_of,
)
from worker.runtime import Fatal
from worker.settings import IPC_PATH_BYTES_MAX, WITHOUT_FLAG, BadSettings, Settings, environment, load
from worker.store import Reader, StoreBusy, StoreRefused, damaged

EXIT_INTERRUPTED: Final = 130
"""Ctrl-C during a verb that looks: what shells give for SIGINT."""
READYZ_SECONDS: Final = 2.0
"""How long a daemon may take to say how it is; one that needs longer is not well."""
STOP_MARGIN_SECONDS: Final = 20
"""What a daemon needs to stop beyond its longest stream: idle connections, the last flush, and some."""
SESSIONS_PER_PAGE: Final = 500
BACKUP_NICENESS: Final = 10
"""What reads a gigabyte must not take the processor from what answers requests."""
BAR_AFTER_SECONDS: Final = 1.0
BAR_CHARACTERS: Final = 30
ROWS_SHOWN: Final = 50
"""Newest rows of one session in `show`, as in `/api/sessions/ID`."""


def main(arguments: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model's or client's name may have characters that this terminal's encoding does not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(_parser().parse_args(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has all it wanted (`| head`).  Python flushes once more at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return runtime.EXIT_OK
    except Fatal as fatal:
        runtime.leave("perdure", fatal)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def _run(options: argparse.Namespace) -> int:
    flags = {name: value for name, value in vars(options).items() if isinstance(value, str)}
    try:
        settings = load(flags, os.environ)
        status: int = options.act(settings, options)
    except (BadSettings, StoreRefused) as error:
        raise Fatal(runtime.EXIT_CONFIGURATION, str(error)) from error
    except StoreBusy as error:
        raise Fatal(runtime.EXIT_UNAVAILABLE, f"the database can not be read now ({error}); try again") from error
    except PermissionError as error:
        raise Fatal(
            runtime.EXIT_CONFIGURATION, f"{error.filename}: {error.strerror}; check owner and mode of the directory"
        ) from error
    return status


# -- running -------------------------------------------------------------------------------------------------------


def up(settings: Settings, options: argparse.Namespace) -> NoReturn:
    """Become a supervisor of one worker and its daemons, in the foreground."""
    state, run = Path(settings.state_dir), Path(settings.runtime_dir)
    _refuse_unsupervisable(settings)
    # Logs name models, sessions and directories: they are their user's alone.
    os.umask(0o077)
    for directory in (state, state / "log", run):
        runtime.private_directory(directory)
    # Held for a moment, to say now what the worker would only say in its log.
    os.close(runtime.lock_file(settings.lock, "set PERDURE_STATE_DIR to another directory"))
    _refuse_taken_port(settings)
    print(_greeting(settings), flush=True)
    environ = _environment(settings, options)
    environ["PERDURE_PYTHON"] = sys.executable
    environ["PERDURE_STOP_SECONDS"] = str(int(settings.drain_seconds) + STOP_MARGIN_SECONDS)
    # Without a user named, a supervisor that is root warns that it is: it was told nothing about whom to become.
    user = ["-u", "root"] if os.geteuid() == 0 else []
    _become(["daemon.supervise", "-n", "-c", str(_supervisord_conf()), *user], environ)


def run_program(settings: Settings, options: argparse.Namespace) -> NoReturn:
    """Become the daemon or the worker."""
    _become([options.program], _environment(settings, options))


def _become(module: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process.  -P: the directory it was started in must not be able to replace a module."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", *module], environ)  # noqa: S606 - no shell is meant


def _environment(settings: Settings, options: argparse.Namespace) -> dict[str, str]:
    """This process's own, with every setting in it; the table of providers stays in the file."""
    environ = {**os.environ, **environment(settings)}
    if options.config:
        environ["PERDURE_CONFIG"] = options.config
    return environ


def _supervisord_conf() -> Path:
    """In a package it is among the worker's files, in a checkout at the top."""
    packaged = Path(str(resources.files("worker"))) / "supervisord.conf"
    return packaged if packaged.exists() else packaged.parent.parent / "supervisord.conf"


def _refuse_unsupervisable(settings: Settings) -> None:
    """What the programs themselves could do, but supervisord can not."""
    if ":" in settings.listen_host:
        remedy = "set PERDURE_LISTEN to 127.0.0.1:7373, or start `perdure worker` and `perdure daemon` yourself"
        raise Fatal(
            runtime.EXIT_CONFIGURATION, f"{settings.listen}: supervisord hands on no IPv6 socket to daemons; {remedy}"
        )
    if settings.listen_port == 0:
        raise Fatal(runtime.EXIT_CONFIGURATION, f"{settings.listen}: nobody would know the port; give one")
    for name, path in (("STATE", settings.state_dir), ("RUNTIME", settings.runtime_dir)):
        if "%" in path:
            remedy = f"set PERDURE_{name}_DIR to another directory"
            raise Fatal(runtime.EXIT_CONFIGURATION, f"{path}: supervisord takes % for a sign of its own; {remedy}")
    if len(os.fsencode(settings.runtime_dir)) + SUPERVISOR_SOCKET_BYTES > IPC_PATH_BYTES_MAX:
        raise Fatal(
            runtime.EXIT_CONFIGURATION,
            f"{settings.runtime_dir}: too long for a socket in it; set PERDURE_RUNTIME_DIR to a shorter directory",
        )


def _refuse_taken_port(settings: Settings) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # Connections of an earlier run that wait out their time do not make a port taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.listen_host, settings.listen_port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Fatal(
                runtime.EXIT_UNAVAILABLE,
                f"{settings.listen}: another program listens there (`perdure status` tells whether it is perdure); "
                "stop it, or set PERDURE_LISTEN to another port",
            ) from None
        raise Fatal(
            runtime.EXIT_CONFIGURATION, f"{settings.listen}: {error.strerror}; set PERDURE_LISTEN to an address of ours"
        ) from None


def _greeting(settings: Settings) -> str:
    anywhere = settings.listen_host == "0.0.0.0"  # noqa: S104 - compared, not listened on
    url = f"http://127.0.0.1:{settings.listen_port}" if anywhere else f"http://{settings.listen}"
    daemons = "1 daemon" if settings.daemons == 1 else f"{settings.daemons} daemons"
    lines = [
        ("Claude Code", f"ANTHROPIC_BASE_URL={url} claude"),
        ("OpenAI SDKs", f"OPENAI_BASE_URL={url}/v1"),
        *([("Token", "clients send it as x-perdure-token")] if settings.token else []),
        ("State", f"{settings.database}"),
        ("Logs", f"{settings.state_dir}/log/"),
        ("Look", f"{sys.argv[0]} status | sessions | show ID"),
        ("Stop", "Ctrl-C"),
    ]
    shown = "\n".join(f"  {name:<13}{text}" for name, text in lines)
    return f"perdure {version('perdure')} on {settings.listen} (one worker, {daemons})\n\n{shown}\n"


# -- looking -------------------------------------------------------------------------------------------------------


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
    with _reading(settings.database) as reader:
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
    with _reading(settings.database) as reader:
        account = account_of(reader.execute, options.id, ROWS_SHOWN)
    if account is None:
        raise _unknown("session", options.id, "perdure sessions")
    shown = account_object(account, settings.account_aliases)
    print(json.dumps(shown, indent=2) if options.json else session_page(shown))
    return runtime.EXIT_OK


# -- correcting ----------------------------------------------------------------------------------------------------


def merge(settings: Settings, options: argparse.Namespace) -> int:
    """One session becomes part of another."""
    with _reading(settings.database) as reader:
        source, into = _session(reader, options.source), _session(reader, options.into)
    return _change(Merge(session_id=source, into=into), settings, options)


def split(settings: Settings, options: argparse.Namespace) -> int:
    """Some turns of a session become one of their own."""
    with _reading(settings.database) as reader:
        session_id = _session(reader, options.id)
        first = _event(reader, session_id, options.first_event) if options.first_event else ""
        events = [_event(reader, session_id, event) for event in options.only or ()]
    if len(events) > SPLIT_EVENTS_MAX:
        raise Fatal(runtime.EXIT_USAGE, f"more than {SPLIT_EVENTS_MAX} turns at once; split them off in several steps")
    act = Split(session_id=session_id, drawn_id=draw_id(), first_event=first, events=events)
    return _change(act, settings, options)


def undo(settings: Settings, options: argparse.Namespace) -> int:
    """Take a change back."""
    with _reading(settings.database):
        pass  # Without a database there is nothing to wait for a worker for.
    return _change(Undo(change=options.change), settings, options)


def log(settings: Settings, options: argparse.Namespace) -> int:
    """Every change, newest first."""
    with _reading(settings.database) as reader:
        found = [change_object(change) for change in changes_of(reader.execute)]
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(map(change_line, found)) or "no session was ever merged or split")
    return runtime.EXIT_OK


def _change(act: Merge | Split | Undo, settings: Settings, options: argparse.Namespace) -> int:
    amended = amend(act, settings.worker_url, daemon_keys(settings.worker_url, settings.curve_dir))
    shown = {name: getattr(amended, name) for name in ("change", "verb", "session_id", "other_id", "moved", "stayed")}
    shown["undoes"] = act.change if isinstance(act, Undo) else None
    print(json.dumps(shown, indent=2) if options.json else changed_page(shown))
    return runtime.EXIT_OK


def _session(reader: Reader, name: str) -> str:
    found = session_named(reader.execute, name)
    if found is None:
        raise _unknown("session", name, "perdure sessions")
    return found


def _event(reader: Reader, session_id: str, name: str) -> str:
    found = event_named(reader.execute, session_id, name)
    if found is None:
        raise _unknown("turn of this session", name, f"perdure show {session_id}")
    return found


def _unknown(what: str, name: str, remedy: str) -> Fatal:
    return Fatal(
        runtime.EXIT_USAGE,
        f"no {what}, or more than one, goes by {name!r}; `{remedy}` lists them "
        "(an id, an alias, or at least six characters that only one id begins with)",
    )


def new_keys(_settings: Settings, options: argparse.Namespace) -> int:
    """A directory of CURVE keys, or one more pair in it."""
    made = make_keys(options.directory, options.machine)
    print("\n".join(f"made {path}" for path in made))
    if options.machine:
        print(f"On that machine: {made[0].name} as daemon.secret, and worker.public.  Here {made[1].name} lets it in.")
    else:
        print(
            f"Start worker and daemons with PERDURE_CURVE_DIR={options.directory.absolute()} PERDURE_WORKER_URL=tcp://…"
        )
    return runtime.EXIT_OK


# -- keeping safe --------------------------------------------------------------------------------------------------


def backup(settings: Settings, options: argparse.Namespace) -> int:
    """Copy the database, whatever runs, and prove the copy."""
    if not settings.database.exists():
        raise Fatal(runtime.EXIT_UNAVAILABLE, f"{settings.database}: no database there yet; `perdure up` makes one")
    os.nice(BACKUP_NICENESS)
    started = time.monotonic()
    with _progress() as progress:
        made = backups.backup(settings.database, options.file, force=options.force, judge=_faults, progress=progress)
    seconds, size = time.monotonic() - started, options.file.stat().st_size
    shown = {"path": str(options.file), "bytes": size, "seconds": round(seconds, 3), **_contents(made)}
    line = f"{options.file}: {_held(made)}, {size:,} bytes, read to the last row, in {seconds:.1f} s"
    print(json.dumps(shown, indent=2) if options.json else line)
    return runtime.EXIT_OK


def restore(settings: Settings, options: argparse.Namespace) -> int:
    """Put a backup in the database's place, and keep what was there."""
    runtime.private_directory(Path(settings.state_dir))
    holder = runtime.lock_holder(settings.lock)
    if holder is not None:
        remedy = "stop perdure first (Ctrl-C where it runs, or the worker alone: supervisorctl … stop worker)"
        raise Fatal(runtime.EXIT_UNAVAILABLE, f"{settings.state_dir}: the worker runs (pid {holder}); {remedy}")
    lock = runtime.lock_file(settings.lock, "restore into another PERDURE_STATE_DIR")
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    with _progress() as progress:
        done = backups.restore(options.file, settings.database, stamp=stamp, judge=_faults, progress=progress)
    os.close(lock)
    shown = {
        "path": str(options.file),
        **_contents(done.contents),
        "kept": str(done.kept) if done.kept else None,
        "replaced": {"newest_row_at": _moment(done.newest_at), "turns": done.turns} if done.was_readable else None,
    }
    print(json.dumps(shown, indent=2) if options.json else _restored_page(options.file, done))
    return runtime.EXIT_OK


def _contents(found: backups.Contents) -> dict[str, Any]:
    shown = {name: getattr(found, name) for name in backups.Contents.__struct_fields__ if name != "newest_at"}
    return {**shown, "newest_row_at": _moment(found.newest_at)}


def _restored_page(file: Path, done: backups.Restored) -> str:
    newest = _moment(done.contents.newest_at) or "never"
    lines = [f"Restored  {file}: {_held(done.contents)}, the newest of {newest}"]
    if done.kept:
        lines.append(f"Kept      {done.kept}: delete it once nothing in it is missed")
        lines.append(f"Gap       {_gap(done)}")
    lines.append(
        "Next      start the worker (`perdure up`, or supervisorctl … start worker); daemons that ran on tell it"
    )
    lines.append("          what they had not seen stored")
    return "\n".join(lines)


def _gap(done: backups.Restored) -> str:
    """What the database had that the backup has not."""
    if not done.was_readable:
        return "unknown: what was there can not be read"
    more = done.turns - done.contents.turns
    if more <= 0 and done.newest_at <= done.contents.newest_at:
        return "none"
    return f"{max(0, more):,} turns are in the kept database alone, the newest of {_moment(done.newest_at)}"


def _held(contents: backups.Contents) -> str:
    folded = f" ({contents.damaged_snapshots} to be folded anew)" if contents.damaged_snapshots else ""
    return f"{contents.turns:,} turns in {contents.sessions:,} sessions{folded}"


def _faults(snapshot: Snapshot) -> Sequence[str]:
    return decode(snapshot).warnings


def _moment(milliseconds: int) -> str | None:
    """ISO 8601 UTC; None for never.  An absurd clock must not end the command."""
    seconds = min(milliseconds / 1000, LAST_SECOND)
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if milliseconds > 0 else None


@contextmanager
def _progress() -> Iterator[backups.Progress]:
    """A bar for whoever waits at a terminal, once it takes a moment; gone when it is done."""
    started, wanted, shown = time.monotonic(), sys.stderr.isatty(), False

    def show(what: str, done: float) -> None:
        nonlocal shown
        if wanted and time.monotonic() - started >= BAR_AFTER_SECONDS:
            shown = True
            bar = "#" * int(done * BAR_CHARACTERS)
            print(f"\r\x1b[K[{bar:<{BAR_CHARACTERS}}] {done:4.0%} {what}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# -- reading -------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(database: Path) -> Iterator[Reader]:
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
        with _reading(path) as reader:
            schema, count, sums = totals_of(reader.execute)
    except (Fatal, StoreBusy, StoreRefused) as error:
        return {**report, "error": str(error)}
    cost = sums.cost_nanousd if sums.priced else None
    found = {"sessions": count, "turns": sums.turns, "interrupted": sums.interrupted, "cost_nanousd": cost}
    return {**report, "schema": schema, **found}


# -- the command line ----------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Help begins with an example; an error is one line."""

    example = ""

    def format_help(self) -> str:
        return f"{self.example}\n\n{super().format_help()}"

    def error(self, message: str) -> NoReturn:
        runtime.leave("perdure", Fatal(runtime.EXIT_USAGE, f"{message}; `{self.prog} --help` says more"))


_Verbs: TypeAlias = "argparse._SubParsersAction[Any]"  # argparse has no public name for it


def _parser() -> _Parser:
    parser = _Parser(
        prog="perdure", description="An LLM gateway for coding agents whose sessions outlive its processes."
    )
    parser.example = "Example:  perdure up      then, elsewhere:  ANTHROPIC_BASE_URL=http://127.0.0.1:7373 claude"
    parser.add_argument("--version", action="version", version=f"perdure {version('perdure')}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = partial(_verb, verbs)
    verb("up", "perdure up --daemons 2", "run worker and daemons in the foreground", _SETTINGS, act=up)
    for program in ("daemon", "worker"):
        does = f"run one {program} in the foreground, for a supervisor of your own"
        verb(program, f"perdure {program}", does, _SETTINGS, act=run_program, program=program)
    looks = ("state_dir", "listen")
    shown = [
        verb("status", "perdure status --json", "whether it runs, is well, and what it holds", looks, act=status),
        verb("sessions", "perdure sessions --limit 20", "every session, newest first", looks, act=sessions),
        verb("show", "perdure show 4f1c2b", "one session in full", looks, act=show),
    ]
    for each in shown:
        each.add_argument("--json", action="store_true", help="for programs: the objects of /api")
    shown[1].add_argument("--limit", type=_positive, metavar="N", help="at most so many (default: all)")
    shown[2].add_argument("id", metavar="ID", help=_ID)
    keys = _verb(verbs, "keys", "perdure keys /etc/perdure/keys", "make the keys that tcp:// needs", None, act=new_keys)
    keys.add_argument("directory", metavar="DIRECTORY", type=Path, help="where; PERDURE_CURVE_DIR names it afterwards")
    keys.add_argument("--for", dest="machine", default="", metavar="NAME", help="a pair for one more machine's daemons")
    _add_backups(verbs)
    _add_corrections(verbs)
    return parser


def _add_backups(verbs: _Verbs) -> None:
    verb = partial(_verb, verbs)
    place = ("state_dir",)
    does = "copy the database, also while it is written, and prove the copy"
    made = [
        verb("backup", "perdure backup /mnt/backups/perdure-$(date +%F).db", does, place, act=backup),
        verb(
            "restore", "perdure restore /mnt/backups/perdure-2026-01-31.db", "go back to a backup", place, act=restore
        ),
    ]
    for each in made:
        each.add_argument("file", metavar="FILE", type=Path, help="the backup")
        each.add_argument("--json", action="store_true", help="for programs")
    made[0].add_argument("--force", action="store_true", help="replace FILE where it is there already")


def _add_corrections(verbs: _Verbs) -> None:
    """`perdure session …`"""
    does = "correct which session turns were given: audited, and undoable"
    session = _verb(verbs, "session", "perdure session merge 4f1c2b 9a07de", does, None)
    verb = partial(_verb, session.add_subparsers(metavar="VERB", required=True))
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
        verb("log", "perdure session log --json", "what was merged, split and undone, newest first", places, act=log),
    ]
    for each in made:
        each.add_argument("--json", action="store_true", help="for programs")
    made[0].add_argument("source", metavar="FROM", help=f"the session that is no other: {_ID}")
    made[0].add_argument("into", metavar="INTO", help="the session that both are from now on")
    made[1].add_argument("id", metavar="ID", help=_ID)
    which = made[1].add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--from", dest="first_event", metavar="EVENT", help="this turn and all that began after it (`perdure show ID`)"
    )
    which.add_argument("--only", nargs="+", metavar="EVENT", help="these turns alone")
    made[2].add_argument("change", metavar="N", type=_positive, help="its number in `perdure session log`")


def _verb(
    verbs: _Verbs, name: str, example: str, does: str, settings: Iterable[str] | None, **defaults: object
) -> _Parser:
    """A verb with its settings; None: it has verbs of its own."""
    made: _Parser = verbs.add_parser(name, help=does, description=does, allow_abbrev=False)
    made.example = f"Example:  {example}"
    made.set_defaults(**defaults)
    if settings is not None:
        made.add_argument("--config", metavar="FILE", help="a TOML file with settings (PERDURE_CONFIG)")
    for setting in settings or ():
        variable = f"PERDURE_{setting.upper()}"
        default = getattr(_DEFAULTS, setting)
        known = f" (default {default})" if default != "" else ""
        made.add_argument(f"--{setting.replace('_', '-')}", metavar="VALUE", help=f"instead of {variable}{known}")
    return made


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


SUPERVISOR_SOCKET_BYTES: Final = len("/sv.sock.4194304")
"""The supervisor's socket as it is named while it is bound, with the longest pid."""
READYZ_BYTES_MAX: Final = 65_536
"""More than any answer of ours; whoever else listens there may send without end."""
LAST_SECOND: Final = 253_402_300_799
"""The end of the year 9999, where datetime ends."""
_ID: Final = "an id, an alias, or an id's beginning"
_DEFAULTS: Final = Settings()
_SETTINGS: Final = tuple(name for name in Settings.__struct_fields__ if name not in WITHOUT_FLAG)
