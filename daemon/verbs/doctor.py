"""The verb `doctor`: what is wrong with an installation, and what to do.

One rule: it tells all it can, whatever is broken: each look is by itself, and one that fails is a finding like others.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from daemon import doctor
from daemon.doctor import Finding
from daemon.standing import report_of, silent_daemons
from daemon.verbs import examining
from daemon.verbs.looking import status_facts
from daemon.verbs.parsing import Verbs, add_verb
from daemon.verbs.progress import Progress, progress_bar
from daemon.verbs.screen import screen
from worker.settings import BadSettings, Settings

T = TypeVar("T")

FAULT_CHARACTERS_MAX: Final = 200
"""Of what an exception says."""


def add(verbs: Verbs) -> None:
    does = "what is wrong with this installation, and what to do"
    places = ("state_dir", "runtime_dir", "listen", "worker_url", "curve_dir")
    verb = add_verb(verbs, "doctor", "perdure doctor --offline", does, places, act=examine, refused=refuse)
    verb.add_argument("--full", action="store_true", help="read the database to its last row, however large")
    verb.add_argument("--offline", action="store_true", help="connect to no provider")
    verb.add_argument("--json", action="store_true", help="for programs")


def examine(settings: Settings, options: argparse.Namespace) -> int:
    """Look at everything.  Exit status 0 if there is no error."""
    with progress_bar() as progress:
        findings = list(_findings(settings, options, progress))
    return _tell(findings, options)


def refuse(error: BadSettings, options: argparse.Namespace) -> int:
    """Without settings there is one finding: nobody knows where to look."""
    return _tell([doctor.configuration(doctor.Configuration(refusal=str(error)))], options)


def _tell(findings: Sequence[Finding], options: argparse.Namespace) -> int:
    shown = json.dumps(doctor.report_of(findings), indent=2) if options.json else doctor.page_of(findings, screen())
    print(shown)
    return doctor.status_of(findings)


class _Running(NamedTuple):
    """What runs, as far as it says."""

    processes: doctor.Processes
    pids: dict[str, int]
    """Of those on this machine."""
    versions: dict[str, str]


def _findings(settings: Settings, options: argparse.Namespace, progress: Progress) -> Iterator[Finding]:
    database, file = settings.database, options.config or os.environ.get("PERDURE_CONFIG", "")
    yield _check("configuration", partial(examining.configuration_of, settings, file), doctor.configuration)
    for name, path in (("state", settings.state_dir), ("runtime", settings.runtime_dir)):
        yield _check(f"{name} dir", partial(examining.directory_of, name, path), doctor.directory)
    yield _check("disk", partial(examining.room_of, settings), doctor.room)
    yield (held := _check("database", partial(examining.database_of, database), doctor.database))
    if held.level != "error" and _is_readable(database):
        look = partial(examining.integrity_of, database, progress, is_full=options.full)
        yield _check("integrity", look, doctor.integrity)
        yield _check("clock", partial(examining.clock_of, database), doctor.clock)
        yield _check("backup", partial(examining.backup_of, settings), doctor.backup)
    yield _check("leftovers", partial(examining.leftovers_of, database), doctor.leftovers)
    yield from _of_processes(settings)
    if not options.offline:
        yield from _of_providers(settings, progress)


def _of_processes(settings: Settings) -> Iterator[Finding]:
    running, failed = _safely("processes", partial(_running, settings))
    if running is None:
        yield failed
        return
    yield doctor.worker(running.processes)
    yield doctor.daemons(running.processes)
    yield _check("supervisor", partial(examining.supervised_of, settings, running.pids), doctor.supervisor)
    yield _check("versions", partial(examining.versions_of, running.versions), doctor.versions)
    yield _check("descriptors", partial(examining.descriptors_of, running.pids), doctor.descriptors)


def _of_providers(settings: Settings, progress: Progress) -> Iterator[Finding]:
    progress("connecting to providers", 0.0)
    found, failed = _safely("providers", partial(examining.providers_of, settings))
    yield from [failed] if found is None else map(doctor.provider, found)


def _check(name: str, look: Callable[[], T], judge: Callable[[T], Finding]) -> Finding:
    """One look and its judgement."""
    found, failed = _safely(name, look)
    return failed if found is None else judge(found)


def _safely(name: str, look: Callable[[], T]) -> tuple[T | None, Finding]:
    """What a look found, or the finding that it failed.  Whatever goes wrong with it is told like the rest: who is ill
    calls a doctor, and a doctor that falls ill as well is no help."""
    try:
        return look(), doctor.failed(name, "nothing was found")
    except Exception as error:  # noqa: BLE001 - that is its purpose
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return None, doctor.failed(name, said[:FAULT_CHARACTERS_MAX])


def _running(settings: Settings) -> _Running:
    found = status_facts(settings)
    report = report_of(found)
    worker, standing = report["worker"], found.standing
    processes = doctor.Processes(
        status=report["status"],
        reasons=report["reasons"],
        silent=silent_daemons(report["daemons"]),
        listen=settings.listen,
        lock_holder=found.lock_holder,
        is_lock_hidden=found.is_lock_hidden,
        is_answered=standing is not None,
        unreachable=found.unreachable,
        is_committing=standing is None or standing.is_committing,
        wal_bytes=standing.wal_bytes if standing else 0,
    )
    told = {str(each["instance"]): each for each in report["daemons"]}
    here = os.uname().nodename
    pids = {name: int(each["pid"]) for name, each in told.items() if name.rpartition("@")[2] == here}
    # One that hangs does not say.
    versions = {name: str(each["version"]) for name, each in told.items() if each["version"]}
    if worker["pid"] is not None:
        pids["worker"] = int(worker["pid"])
    if worker["version"] is not None:
        versions["worker"] = str(worker["version"])
    return _Running(processes, pids, versions)


def _is_readable(database: Path) -> bool:
    return os.access(database, os.R_OK)
