"""What is wrong, and what to do: the findings of `perdure doctor`, from facts that somebody else gathered.

One rule: a check is a judgement over its own facts and nothing else; what could not be found out is said, not guessed.

Theory.  An *error* is what keeps perdure from answering or from storing, or what would be lost for good: it says
whether trying again helps (75) or not (78), and that is the exit status of the whole.  A *warning* is what will be one
if nobody looks.  Every finding that is not ok has a remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import asdict

from daemon.columns import Screen, Tone, many, plain, short, span, wrapped

Level = Literal["ok", "warning", "error"]

PERMANENT: Final = 78
"""Exit status: configuration, schema, damage."""
PASSING: Final = 75
"""Exit status: not there, or not reachable now."""
FREE_BYTES_MIN: Final = 256 * 1024 * 1024
"""Less than this and the log of a busy hour has no room."""
FREE_SHARE_OF_DATABASE: Final = 1.2
"""An upgrade takes a copy of the database before it changes it, and a restore one beside it."""
FREE_FILES_MIN: Final = 1_000
CLOCK_SECONDS_MAX: Final = 300.0
"""By how much the newest row may be ahead: the daemon's machine may be another one."""
BACKUP_SECONDS_MAX: Final = 7 * 86_400.0
"""A backup that is older was forgotten, not postponed."""
LEFT_SECONDS_MAX: Final = 30 * 86_400.0
"""What is kept to look at once more after an upgrade or a restore is older news after a month."""
PARTIAL_SECONDS_MAX: Final = 6 * 3_600.0
"""No copy takes so long: whoever made it is gone."""
DESCRIPTORS_MIN: Final = 4_096
"""Two for each stream that runs, and some."""
DESCRIPTORS_SHARE_MAX: Final = 0.8
LOG_BYTES_MAX: Final = 200 * 1024 * 1024
"""Of SQLite's log: only a reader that never ends makes it so long."""


class Finding(Struct, frozen=True, kw_only=True):
    check: str
    level: Level = "ok"
    text: str
    remedy: str = ""
    status: int = 0
    """Exit status, of an error."""


def status_of(findings: Iterable[Finding]) -> int:
    """The exit status of all: what trying again does not help with comes first."""
    return max((finding.status for finding in findings if finding.level == "error"), default=0)


def worst_of(findings: Iterable[Finding]) -> Level:
    return max((finding.level for finding in findings), key=_LEVELS.index, default="ok")


def report_of(findings: Sequence[Finding]) -> dict[str, Any]:
    """The object of `perdure doctor --json`."""
    shown = [asdict(finding) for finding in findings]
    for each in shown:
        del each["status"]
    return {"status": worst_of(findings), "findings": shown}


def page_of(findings: Sequence[Finding], screen: Screen) -> str:
    """A line for each, with the remedy below it; and how many there are."""
    lines: list[str] = []
    for finding in findings:
        label = f"{finding.level:<8} {finding.check:<{CHECK_WIDTH}}"
        room = max(_TEXT_MIN, screen.width - len(label))
        first, *more = wrapped(plain(finding.text), room)
        lines.append(screen.paint(finding.level, _TONES[finding.level]) + label[len(finding.level) :] + first)
        lines += [" " * len(label) + part for part in more]
        if finding.remedy:
            first, *more = wrapped(plain(finding.remedy), room - len(_ARROW))
            lines.append(" " * len(label) + _ARROW + first)
            lines += [" " * (len(label) + len(_ARROW)) + part for part in more]
    counts = [(level, sum(finding.level == level for finding in findings)) for level in ("error", "warning")]
    said = ", ".join(many(count, level) for level, count in counts if count)
    return "\n".join([*lines, "", said or "all is well"])


def failed(check: str, why: str) -> Finding:
    """A check that could not be made."""
    return Finding(
        check=check, level="warning", text=f"could not be looked at: {why}", remedy="see what keeps it from it"
    )


# -- configuration and places --------------------------------------------------------------------------------------


class Configuration(Struct, frozen=True, kw_only=True):
    file: str = ""
    mode: int = 0o600
    """Of the file."""
    has_token: bool = False
    listen: str = ""
    refusal: str = ""
    """Why it can not be used."""
    unheard: Sequence[str] = ()
    """Variables that nobody looks at."""


def configuration(found: Configuration) -> Finding:
    check = "configuration"
    if found.refusal:
        fault, _, remedy = found.refusal.partition("; ")
        remedy = remedy or "correct that setting; `perdure worker --help` names them"
        return Finding(check=check, level="error", text=fault, remedy=remedy, status=PERMANENT)
    place = found.file or "defaults, environment and flags"
    if found.file and found.mode & 0o022:
        remedy = f"chmod go-w {found.file}"
        return Finding(check=check, level="warning", text=f"{place}: others can change it", remedy=remedy)
    if found.file and found.has_token and found.mode & 0o044:
        text = f"{place}: there is a token, and others can read the file"
        return Finding(check=check, level="warning", text=text, remedy=f"chmod go-r {found.file}")
    if found.unheard:
        remedy = "unset it, or give it the name of a setting (`perdure up --print-config` lists them)"
        return Finding(check=check, level="warning", text="; ".join(found.unheard), remedy=remedy)
    return Finding(check=check, text=f"{place}; listens on {found.listen}")


class Directory(Struct, frozen=True, kw_only=True):
    name: str
    """Which one: `state` or `runtime`."""
    path: str
    exists: bool = True
    is_directory: bool = True
    uid: int = 0
    own_uid: int = 0
    """Of whoever asks."""
    mode: int = 0o700
    is_writable: bool = True
    is_open: bool = True
    """It could be looked at."""


def directory(found: Directory) -> Finding:
    check, variable = f"{found.name} dir", f"PERDURE_{found.name.upper()}_DIR"
    if not found.exists:
        return Finding(check=check, text=f"{found.path}: not there yet; the first start makes it")
    if not found.is_directory:
        remedy = f"move it away, or set {variable}"
        return Finding(check=check, level="error", text=f"{found.path}: no directory", remedy=remedy, status=PERMANENT)
    if not found.is_open:
        remedy = "run this as the worker's user, or as root"
        return Finding(check=check, level="warning", text=f"{found.path}: closed to us", remedy=remedy)
    if found.mode & 0o022:
        text, remedy = f"{found.path}: others can write to it (mode {found.mode:o})", f"chmod go-w {found.path}"
        return Finding(check=check, level="error", text=text, remedy=remedy, status=PERMANENT)
    if not found.is_writable:
        remedy = f"chown or chmod it, or set {variable}; a file system that is read-only has to be mounted anew"
        text = f"{found.path}: can not be written"
        return Finding(check=check, level="error", text=text, remedy=remedy, status=PERMANENT)
    if found.uid != found.own_uid:
        text = f"{found.path}: belongs to user {found.uid}, and this is user {found.own_uid}"
        return Finding(check=check, level="warning", text=text, remedy="run perdure, and this, as that user")
    return Finding(check=check, text=f"{found.path} (mode {found.mode:o})")


class Room(Struct, frozen=True, kw_only=True):
    path: str
    free_bytes: int
    free_files: int
    """-1 where the file system does not count them."""
    is_read_only: bool
    database_bytes: int


def room(found: Room) -> Finding:
    check, free = "disk", f"{short(found.free_bytes)}B free at {found.path}"
    if found.is_read_only:
        remedy = "mount it read-write; nothing is lost until daemons' memory is full"
        text = f"{found.path}: the file system is read-only"
        return Finding(check=check, level="error", text=text, remedy=remedy, status=PASSING)
    if found.free_bytes < FREE_BYTES_MIN:
        remedy = "make room: with none left turns are answered and not stored"
        return Finding(check=check, level="error", text=free, remedy=remedy, status=PASSING)
    if 0 <= found.free_files < FREE_FILES_MIN:
        text = f"{many(found.free_files, 'more file')} can be made at {found.path}"
        return Finding(check=check, level="warning", text=text, remedy="remove small files there")
    if found.free_bytes < FREE_SHARE_OF_DATABASE * found.database_bytes:
        text = f"{free}, the database has {short(found.database_bytes)}B"
        remedy = "make room for a copy: an upgrade and a restore need it"
        return Finding(check=check, level="warning", text=text, remedy=remedy)
    return Finding(check=check, text=free)


class Left(Struct, frozen=True):
    """A file that an upgrade, a restore or a backup left in the state directory."""

    name: str
    bytes: int
    age_seconds: float


def leftovers(found: Sequence[Left]) -> Finding:
    check = "leftovers"
    partial = [left for left in found if "partial" in left.name and left.age_seconds > PARTIAL_SECONDS_MAX]
    if partial:
        remedy = "delete them: whoever made them is gone"
        return Finding(check=check, level="warning", text=f"unfinished copies: {_listed(partial)}", remedy=remedy)
    kept = [left for left in found if "partial" not in left.name]
    old = [left for left in kept if left.age_seconds > LEFT_SECONDS_MAX]
    if old:
        remedy = "delete them once nothing in them is missed"
        return Finding(check=check, level="warning", text=f"kept for over a month: {_listed(old)}", remedy=remedy)
    return Finding(check=check, text=f"kept for now: {_listed(kept)}" if kept else "none")


def _listed(files: Sequence[Left]) -> str:
    shown = ", ".join(f"{left.name} ({short(left.bytes)}B)" for left in files[:_LISTED])
    return shown + (f" and {len(files) - _LISTED} more" if len(files) > _LISTED else "")


# -- the database --------------------------------------------------------------------------------------------------


class Database(Struct, frozen=True, kw_only=True):
    path: str
    exists: bool = True
    schema: int = 0
    known_schema: int = 0
    """Of this program."""
    refusal: str = ""
    """Why it must not be used."""
    trouble: str = ""
    """Why it can not be read now."""
    is_open: bool = True


def database(found: Database) -> Finding:
    check = "database"
    if not found.is_open:
        remedy = "run this as the worker's user, or as root"
        return Finding(check=check, level="warning", text=f"{found.path}: closed to us", remedy=remedy)
    if found.refusal:
        fault, _, remedy = found.refusal.partition("; ")
        return Finding(check=check, level="error", text=fault, remedy=remedy, status=PERMANENT)
    if found.trouble:
        text = f"{found.path}: can not be read now ({found.trouble})"
        return Finding(check=check, level="error", text=text, remedy="try again; see the disk", status=PASSING)
    if not found.exists:
        return Finding(check=check, text=f"{found.path}: none yet; `perdure up` makes one")
    if found.schema < found.known_schema:
        text = f"{found.path}: schema {found.schema}, this program knows {found.known_schema}"
        remedy = "nothing: the worker's next start takes a copy and brings it up to date"
        return Finding(check=check, level="warning", text=text, remedy=remedy)
    return Finding(check=check, text=f"{found.path}: schema {found.schema}")


class Integrity(Struct, frozen=True, kw_only=True):
    bytes: int = 0
    looked: Literal["", "structure", "everything"] = ""
    """How far it was looked at; '': too large for that, or there is none."""
    rows: int = 0
    damaged_snapshots: int = 0
    damage: str = ""
    trouble: str = ""


def integrity(found: Integrity) -> Finding:
    check = "integrity"
    if found.damage:
        fault, _, remedy = found.damage.partition("; ")
        return Finding(check=check, level="error", text=fault, remedy=remedy, status=PERMANENT)
    if found.trouble:
        return Finding(check=check, level="warning", text=f"not looked at ({found.trouble})", remedy="try again")
    if not found.looked:
        unseen = f"not looked at: {short(found.bytes)}B take a while; `--full` does, and so does every backup"
        return Finding(check=check, text=unseen if found.bytes else "there is nothing yet")
    if found.damaged_snapshots:
        text = f"{many(found.damaged_snapshots, 'session')} with a damaged snapshot"
        remedy = "nothing: their state is folded from the ledger again at their next turn"
        return Finding(check=check, level="warning", text=text, remedy=remedy)
    if found.looked == "structure":
        return Finding(check=check, text="its structure is whole; `--full` reads every row")
    return Finding(check=check, text=f"whole: {many(found.rows, 'row')} read, every sum added up")


class Clock(Struct, frozen=True, kw_only=True):
    ahead_seconds: float
    """By how much the newest row is ahead of now; negative: it is past, as it should be."""
    is_kept: bool | None
    """Whether the kernel says that somebody keeps it right; None: it does not say."""


def clock(found: Clock) -> Finding:
    check = "clock"
    if found.ahead_seconds > CLOCK_SECONDS_MAX:
        text = f"the newest row begins {span(found.ahead_seconds)} from now: the clock is wrong, or was then"
        remedy = "set the clock (timedatectl); nothing is lost, order does not go by it"
        return Finding(check=check, level="warning", text=text, remedy=remedy)
    if found.is_kept is False:
        remedy = "let chrony or systemd-timesyncd keep it: `timedatectl set-ntp true`"
        return Finding(check=check, level="warning", text="nobody keeps it right, says the kernel", remedy=remedy)
    return Finding(check=check, text="kept right" if found.is_kept else "not behind the newest row")


class Backup(Struct, frozen=True, kw_only=True):
    age_seconds: float | None = None
    """None: none is known of."""
    path: str = ""
    is_there: bool = True
    has_rows: bool = True
    """Whether there is anything to keep."""


def backup(found: Backup) -> Finding:
    check, remedy = "backup", "`perdure backup --into DIRECTORY --keep 14`, every night"
    if found.age_seconds is None:
        if not found.has_rows:
            return Finding(check=check, text="nothing to keep yet")
        return Finding(check=check, level="warning", text="none was ever made, as far as is known", remedy=remedy)
    text = f"the last one was made {span(found.age_seconds)} ago: {found.path}"
    if found.age_seconds > BACKUP_SECONDS_MAX:
        return Finding(check=check, level="warning", text=text, remedy=remedy)
    if not found.is_there:
        return Finding(check=check, level="warning", text=f"{text}, which is not there now", remedy="see where it went")
    return Finding(check=check, text=text)


# -- processes -----------------------------------------------------------------------------------------------------


class Processes(Struct, frozen=True, kw_only=True):
    status: str
    """As a daemon says of itself; `down`: none answers."""
    reasons: Sequence[str] = ()
    """Why it is not ready (`standing.reasons_of`)."""
    silent: Sequence[tuple[str, str]] = ()
    """Daemons that do not show themselves, and what that means (`standing.silent_daemons`)."""
    listen: str = ""
    lock_holder: int | None = None
    is_lock_hidden: bool = False
    is_answered: bool = False
    """The worker says something over its socket."""
    unreachable: str = ""
    """Why it does not."""
    is_committing: bool = True
    wal_bytes: int = 0


def daemons(found: Processes) -> Finding:
    check = "daemon"
    if found.silent:
        text = "; ".join(what for what, _why in found.silent)
        remedy = "; ".join(dict.fromkeys(why for _what, why in found.silent))
        return Finding(check=check, level="error", text=text, remedy=remedy, status=PASSING)
    if found.status == "down":
        text, remedy = f"none answers at http://{found.listen}", "`perdure up` starts one; else see PERDURE_LISTEN"
        return Finding(check=check, level="error", text=text, remedy=remedy, status=PASSING)
    if found.status == "ready":
        return Finding(check=check, text=f"ready at http://{found.listen}")
    text = f"{found.status}: {'; '.join(found.reasons)}" if found.reasons else found.status
    return Finding(check=check, level="warning", text=text, remedy="`perdure status` says more")


def worker(found: Processes) -> Finding:
    check, holder = "worker", found.lock_holder
    if found.is_answered:
        if not found.is_committing:
            remedy = "make room on the disk, or make it writable: it goes on by itself"
            return Finding(check=check, level="error", text="it can not write", remedy=remedy, status=PASSING)
        if found.wal_bytes > LOG_BYTES_MAX:
            text = f"its log has {short(found.wal_bytes)}B: somebody reads the database without end"
            return Finding(check=check, level="warning", text=text, remedy="look for a backup or a sqlite3 that hangs")
        return Finding(check=check, text=f"answers, and has the lock (pid {holder})" if holder else "answers")
    if holder is None and not found.is_lock_hidden:
        starts = "`perdure up`, or `perdure ctl start worker` where that runs, starts it"
        remedy = f"{starts}; worker.log, or the journal, says why it is away"
        return Finding(check=check, level="error", text="none has the lock", remedy=remedy, status=PASSING)
    text = f"pid {holder} has the lock and does not answer" if holder else "does not answer us"
    why = found.unreachable or "it may hang; its supervisor kills it after some seconds, else `kill -9` it"
    return Finding(check=check, level="error", text=text, remedy=why, status=PASSING)


class Supervised(Struct, frozen=True, kw_only=True):
    by: str = ""
    """Who starts them again; '': nobody is known to."""
    processes: Mapping[str, str] = {}
    """Their states in supervisord's words, by name."""
    is_anything_running: bool = False


def supervisor(found: Supervised) -> Finding:
    check = "supervisor"
    stopped = {name: state for name, state in found.processes.items() if state not in ("RUNNING", "STARTING")}
    if stopped:
        text = f"{found.by}: " + ", ".join(f"{name} is {state.lower()}" for name, state in sorted(stopped.items()))
        remedy = "see its log; `perdure ctl start NAME` starts it again"
        return Finding(check=check, level="error", text=text, remedy=remedy, status=PASSING)
    if found.by:
        running = f", {many(len(found.processes), 'process', 'processes')} running" if found.processes else ""
        return Finding(check=check, text=f"{found.by}{running}")
    if not found.is_anything_running:
        return Finding(check=check, text="none, and nothing runs")
    remedy = "let `perdure up` or systemd (`perdure install-units`) start them"
    return Finding(check=check, level="warning", text="nobody is known to start them again", remedy=remedy)


class Versions(Struct, frozen=True, kw_only=True):
    own: str
    """Of this program."""
    others: Mapping[str, str]
    """Of those that run, by name."""
    libraries: Mapping[str, str]
    """Python, SQLite and so on, by name."""


def versions(found: Versions) -> Finding:
    libraries = ", ".join(f"{name} {number}" for name, number in found.libraries.items())
    other = {name: number for name, number in found.others.items() if number != found.own}
    if other:
        text = f"this is {found.own}, and " + ", ".join(f"{name} is {number}" for name, number in sorted(other.items()))
        remedy = "restart what is older; daemons one at a time, no request is lost"
        return Finding(check="versions", level="warning", text=text, remedy=remedy)
    return Finding(check="versions", text=f"perdure {found.own}, {libraries}")


class Descriptors(Struct, frozen=True, kw_only=True):
    limit: int
    """What a process may have at most."""
    used: Mapping[str, tuple[int, int]] = {}
    """How many a process has and may have, by its name, where that can be seen."""


def descriptors(found: Descriptors) -> Finding:
    check = "descriptors"
    short_of = {n: (has, may) for n, (has, may) in found.used.items() if has > DESCRIPTORS_SHARE_MAX * may}
    if short_of:
        text = ", ".join(f"{name} has {has:,} of {may:,}" for name, (has, may) in sorted(short_of.items()))
        remedy = "raise the limit (LimitNOFILE=, ulimit -n), or start more daemons"
        return Finding(check=check, level="warning", text=text, remedy=remedy)
    if found.limit < DESCRIPTORS_MIN:
        text = f"a process may have {found.limit:,}: enough for about {found.limit // 2:,} streams"
        return Finding(
            check=check, level="warning", text=text, remedy="raise the hard limit (LimitNOFILE=, ulimit -Hn)"
        )
    most = max((has for has, _may in found.used.values()), default=0)
    return Finding(check=check, text=f"{most:,} in use at most, {found.limit:,} allowed")


class Provider(Struct, frozen=True, kw_only=True):
    name: str
    url: str
    trouble: str = ""
    """Why it can not be reached."""
    is_certificate: bool = False
    """It can, and is not believed."""
    milliseconds: float = 0.0


def provider(found: Provider) -> Finding:
    check = found.name
    if found.is_certificate:
        remedy = "PERDURE_CA_FILE names the certificates of a proxy in between; else see the clock"
        text = f"{found.url}: its certificate is not trusted ({found.trouble})"
        return Finding(check=check, level="error", text=text, remedy=remedy, status=PASSING)
    if found.trouble:
        remedy = "see network, DNS and firewall, and the setting of its URL; `--offline` leaves this out"
        text = f"{found.url}: can not be reached ({found.trouble})"
        return Finding(check=check, level="error", text=text, remedy=remedy, status=PASSING)
    return Finding(check=check, text=f"{found.url}: connected in {found.milliseconds:.0f} ms")


_LEVELS: Final[tuple[Level, ...]] = ("ok", "warning", "error")
_TONES: Final[dict[Level, Tone]] = {"ok": "good", "warning": "poor", "error": "bad"}
CHECK_WIDTH: Final = 14
"""Of the names of checks."""
_ARROW: Final = "-> "
_TEXT_MIN: Final = 20
_LISTED: Final = 3
