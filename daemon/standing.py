"""How perdure stands: the report of `perdure status` and of `/api/status`, and its page.

One rule: facts in, words out.  Whoever could not be asked leaves a gap, and the gap is said; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from daemon.columns import Column, Screen, Table, Tone, brief, facts, many, money, plain, short, span
from daemon.views import iso
from worker.standing import Called, DaemonStanding, Standing

DAEMON_FIELDS: Final = frozenset(
    {
        *("instance", "pid", "version", "started_at", "uptime_seconds", "state", "silent_seconds"),
        *("outbox_writes", "outbox_oldest_seconds"),
    }
)
"""Of a `daemon_object`."""
NOT_HEARD: Final = "not heard"
"""State of a daemon that the worker has not heard for long."""
HANGS: Final = "does not answer"
"""State of what is there, and says nothing when it is asked."""
SILENT_SECONDS: Final = 3.0
"""Daemons call the worker every second."""


class Facts(Struct, frozen=True, kw_only=True):
    """What could be found out."""

    now: int
    """Unix milliseconds."""
    listen: str
    status: str
    checks: Mapping[str, str]
    """As a daemon says of itself in /readyz."""
    database: Mapping[str, Any]
    lock_holder: int | None
    """The pid of the worker that has the state directory."""
    is_lock_hidden: bool = False
    """Whoever asks may not look into the state directory."""
    standing: Standing | None = None
    """What the worker says."""
    unreachable: str = ""
    """Why it does not."""
    daemon: Mapping[str, Any] | None = None
    """The daemon that answered, as a `daemon_object`."""
    called: Sequence[Called] = ()
    """The daemons of this machine, each called by name."""
    backup: Mapping[str, Any] | None = None


def report_of(found: Facts) -> dict[str, Any]:
    """The object of `perdure status --json`."""
    daemons = _daemons(found)
    return {
        "status": found.status,
        "listen": found.listen,
        "checks": dict(found.checks),
        "reasons": reasons_of(found),
        "worker": _worker(found),
        "daemons": daemons,
        "queue": {
            "writes": sum(each["outbox_writes"] or 0 for each in daemons),
            "oldest_seconds": max((each["outbox_oldest_seconds"] or 0.0 for each in daemons), default=0.0),
        },
        "commits": commits_object(found.standing) if found.standing else None,
        "database": dict(found.database),
        "backup": _backup(found),
    }


def own_report(
    status: str, checks: Mapping[str, str], daemon: DaemonStanding, standing: Standing | None, now: int
) -> dict[str, Any]:
    """The object of `/api/status`: what the daemon that is asked knows, and what the worker tells it."""
    return {
        "status": status,
        "checks": dict(checks),
        "daemon": daemon_object(daemon, now),
        "worker": worker_object(standing, now) if standing else None,
        "daemons": [daemon_object(each, now) for each in standing.daemons] if standing else [],
        "commits": commits_object(standing) if standing else None,
    }


def worker_object(standing: Standing, now: int) -> dict[str, Any]:
    return {
        "pid": standing.pid,
        "version": standing.version,
        "schema": standing.schema,
        **_since(standing.started_at, now),
        "state": "committing" if standing.is_committing else "not committing",
        "waiting_writes": standing.waiting_writes,
        "wal_bytes": standing.wal_bytes,
    }


def daemon_object(daemon: DaemonStanding, now: int) -> dict[str, Any]:
    return {
        "instance": daemon.instance,
        "pid": daemon.pid,
        "version": daemon.version,
        **_since(daemon.started_at, now),
        "state": NOT_HEARD if daemon.silent_seconds > SILENT_SECONDS else daemon.state or "unknown",
        "silent_seconds": round(daemon.silent_seconds, 3),
        "outbox_writes": daemon.outbox_writes,
        "outbox_oldest_seconds": round(daemon.outbox_oldest_seconds, 3),
    }


def commits_object(standing: Standing) -> dict[str, Any]:
    """How long the newest commits took; null where there was none yet."""
    commits = standing.commits
    known = {"p50_seconds": commits.p50_seconds, "p99_seconds": commits.p99_seconds}
    return {"count": commits.count, **(known if commits.count else dict.fromkeys(known))}


def reasons_of(found: Facts) -> list[str]:
    """Why it is not simply ready, each with what to do."""
    is_alone = found.lock_holder is None and found.standing is None and not found.is_lock_hidden
    reasons = [_CHECKED.get((name, said), f"{name}: {said}") for name, said in found.checks.items() if said != "ok"]
    if found.status == "down":
        remedy = "start it (`perdure up`), or set PERDURE_LISTEN to its address"
        # One that hangs is there: it is told of below.
        is_there = any(not each.is_heard for each in found.called)
        reasons = [f"no daemon answers at http://{found.listen}{'' if is_there else f': {remedy}'}"]
    if is_alone:
        reasons = [reason for reason in reasons if reason not in _ABOUT_AN_ABSENT_WORKER]
        reasons.append(f"no worker has the state directory: {_START_WORKER}; worker.log says why it is away")
    elif found.standing is None and found.lock_holder is not None:
        why = found.unreachable or "it may hang; then its supervisor kills it after some seconds"
        reasons.append(f"the worker (pid {found.lock_holder}) does not answer: {why}")
    elif found.standing is not None and not found.standing.is_committing:
        reasons.append("the worker can not write: make room on the disk, or make it writable; nothing is lost")
    if "error" in found.database:
        reasons.append(str(found.database["error"]))
    reasons += [f"{what}: {why}" for what, why in silent_daemons(_daemons(found))]
    return list(dict.fromkeys(reasons))


def silent_daemons(daemons: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Which do not show themselves, and what that means, of a report's daemons."""
    told = []
    for each in daemons:
        named = f"{each['instance']} (pid {each['pid']})"
        if each["state"] == NOT_HEARD:
            heard = f"{named} is not heard for {span(each['silent_seconds'])}"
            told.append((heard, "it hangs, or was killed; a supervisor starts it again"))
        elif each["state"] == HANGS:
            remedy = f"a supervisor kills it after half a minute, else `kill -9 {each['pid']}`"
            told.append((f"{named} does not answer", f"it hangs; {remedy}"))
    return told


def status_page(report: Mapping[str, Any], screen: Screen) -> str:
    """What people get of the report."""
    status = screen.paint(report["status"], _TONES.get(report["status"]))
    head = facts([("perdure", f"{report['status']} at http://{report['listen']}")], screen)
    lines: list[tuple[str, object]] = [(f"  {name}", text) for name, text in report["checks"].items()]
    lines += [("because" if number == 0 else "", why) for number, why in enumerate(report["reasons"])]
    lines += [*_held_lines(report["database"]), ("commits", _commits_line(report["commits"]))]
    lines += [("queue", _queue_line(report["queue"], report["daemons"])), ("backup", _backup_line(report["backup"]))]
    table = Table(_PROCESS_COLUMNS, screen.width, screen.paint)
    names = _short_names([plain(each["instance"]) for each in report["daemons"]])
    daemons = [_daemon_cells(name, each) for name, each in zip(names, report["daemons"], strict=True)]
    rows = [_worker_cells(report["worker"]), *daemons]
    processes = [table.line(cells, tones=_tones(cells[_STATE])) for cells in rows]
    return "\n".join([head.replace(report["status"], status, 1), facts(lines, screen), "", table.header, *processes])


def _worker(found: Facts) -> dict[str, Any]:
    """Whether one runs is told by the lock, everything else by itself."""
    if found.standing is not None:
        # Who may not look into the state directory can not see the lock.
        told = worker_object(found.standing, found.now)
        return {"running": True, **told, "pid": found.lock_holder or told["pid"]}
    is_heard = found.is_lock_hidden and found.checks.get("worker") == "ok"
    known = {"running": found.lock_holder is not None or is_heard, "pid": found.lock_holder}
    nothing = dict.fromkeys(("version", "schema", "started_at", "uptime_seconds", "waiting_writes", "wal_bytes"))
    state = "unknown" if found.is_lock_hidden else "none" if found.lock_holder is None else HANGS
    return {**known, **nothing, "state": state}


def _daemons(found: Facts) -> list[dict[str, Any]]:
    """All that the worker knows, and all that were called on this machine, whoever knows of them; each once."""
    told = {each.instance: daemon_object(each, found.now) for each in found.standing.daemons} if found.standing else {}
    for called in found.called:
        name = _whole_name(called, told)
        if name not in told or told[name]["pid"] != called.pid:
            told[name] = _called_object(called, found.now)
        if not called.is_heard:
            told[name]["state"] = HANGS
    # One of another version may not be callable.
    if found.standing is None and found.daemon and found.daemon["instance"] not in told:
        told[found.daemon["instance"]] = dict(found.daemon)
    return [told[instance] for instance in sorted(told)]


def _whole_name(called: Called, told: Mapping[str, Mapping[str, Any]]) -> str:
    """A long name is cut where it is a socket's; the process tells it from others of that beginning."""
    if called.standing is not None:
        return called.standing.instance
    same = (name for name, each in told.items() if name.startswith(called.instance) and each["pid"] == called.pid)
    return next(same, called.instance)


def _called_object(called: Called, now: int) -> dict[str, Any]:
    """What is known of a daemon that says nothing is its name and its pid."""
    if called.standing is not None:
        return daemon_object(called.standing, now)
    known = {"instance": called.instance, "pid": called.pid, "state": "unknown"}
    return dict.fromkeys(daemon_object(_NOTHING, now)) | known


def _since(started_at: int, now: int) -> dict[str, Any]:
    uptime = max(0, now - started_at) / 1_000 if started_at else None
    return {"started_at": iso(started_at), "uptime_seconds": uptime}


def _backup(found: Facts) -> dict[str, Any] | None:
    if found.backup is None:
        return None
    at = int(found.backup["at"])
    return {**found.backup, "at": iso(at), "age_seconds": max(0, found.now - at) / 1_000}


# -- the page ------------------------------------------------------------------------------------------------------


def _held_lines(database: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield "database", database["path"]
    if "error" in database:
        return
    yield "", f"schema {database['schema']}, {short(database['bytes'])}B and {short(database['wal_bytes'])}B of log"
    turns = f"{many(database['turns'], 'turn')} ({database['interrupted']:,} interrupted)"
    cost = f", cost {money(database['cost_nanousd'])}" if database["turns"] else ""
    yield "sessions", f"{many(database['sessions'], 'session')}, {turns}{cost}"


def _commits_line(commits: Mapping[str, Any] | None) -> str:
    if commits is None or not commits["count"]:
        return "unknown: the worker does not answer" if commits is None else "none yet"
    half, most = brief(commits["p50_seconds"]), brief(commits["p99_seconds"])
    return f"half took {half} at most, 99 of 100 {most} (the newest {commits['count']:,})"


def _queue_line(queue: Mapping[str, Any], daemons: Sequence[object]) -> str:
    if not daemons:
        return "unknown: no daemon is heard"
    if not queue["writes"]:
        return "no writes wait"
    return f"{many(queue['writes'], 'write waits', 'writes wait')}, the oldest for {span(queue['oldest_seconds'])}"


def _backup_line(backup: Mapping[str, Any] | None) -> str:
    if backup is None:
        return "none is known of (`perdure backup FILE` makes one)"
    made = f"{span(backup['age_seconds'])} ago, {short(backup['bytes'])}B, {many(backup['turns'], 'turn')}"
    return f"{made}: {backup['path']}"


def _worker_cells(worker: Mapping[str, Any]) -> list[str]:
    waiting = "-" if worker["waiting_writes"] is None else f"{worker['waiting_writes']:,}"
    return ["worker", str(worker["pid"] or "-"), plain(worker["version"]), _up(worker), worker["state"], waiting, ""]


def _short_names(instances: Sequence[str]) -> list[str]:
    """Without the machine's name, where there is only one."""
    machines = {instance.rpartition("@")[2] for instance in instances}
    return [each.rpartition("@")[0] or each for each in instances] if len(machines) == 1 else list(instances)


def _daemon_cells(name: str, daemon: Mapping[str, Any]) -> list[str]:
    oldest = span(daemon["outbox_oldest_seconds"]) if daemon["outbox_writes"] else ""
    return [
        name,
        str(daemon["pid"]),
        plain(daemon["version"]),
        _up(daemon),
        daemon["state"],
        "-" if daemon["outbox_writes"] is None else f"{daemon['outbox_writes']:,}",
        oldest,
    ]


def _up(process: Mapping[str, Any]) -> str:
    return "-" if process["uptime_seconds"] is None else span(process["uptime_seconds"])


def _tones(state: str) -> dict[int, Tone]:
    return {_STATE: _TONES.get(state, "poor")}


_CHECKED: Final = {
    ("worker", "not heard"): "the worker is not heard: daemons keep what they could not store; worker.log says more",
    ("worker", "not there"): "no worker has been heard yet: daemons keep what they could not store; start it",
    ("worker", "not committing"): "the worker can not write: make room on the disk; it goes on by itself",
    ("index", "not loaded"): "the newest keys are not known: the worker was not there when the daemon started",
}
"""What a daemon says of itself, and what to do."""
_ABOUT_AN_ABSENT_WORKER: Final = frozenset({_CHECKED["worker", "not heard"], _CHECKED["worker", "not there"]})
_TONES: Final[dict[str, Tone]] = {
    "ready": "good",
    "degraded": "poor",
    "unready": "bad",
    "down": "bad",
    "committing": "good",
    "running": "good",
    "none": "bad",
    HANGS: "bad",
    "not committing": "bad",
    NOT_HEARD: "bad",
}
_NOTHING: Final = DaemonStanding(instance="", pid=0, version="")
_STATE: Final = 4
_PROCESS_COLUMNS: Final = (
    Column("PROCESS", 20, 40),
    Column("PID", 7, form="figure"),
    Column("VERSION", 9, 16),
    Column("UP", 4, form="figure"),
    Column("STATE", 15),
    Column("WAITING", 7, form="figure"),
    Column("OLDEST", 6, form="figure"),
)
_START_WORKER: Final = "start it (`perdure up`, or `perdure ctl start worker` where that runs)"
