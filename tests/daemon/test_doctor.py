"""The doctor's judgements: every fact that means trouble is seen, has a remedy, and gives its exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from daemon import doctor
from daemon.columns import Screen, cells
from daemon.doctor import (
    Backup,
    Clock,
    Configuration,
    Database,
    Descriptors,
    Directory,
    Finding,
    Integrity,
    Left,
    Processes,
    Provider,
    Room,
    Supervised,
    Versions,
)

GB = 1024**3
DAY = 86_400.0
PROCESSES = Processes(status="ready", listen="127.0.0.1:7373", lock_holder=7, is_answered=True)
DIRECTORY = Directory(name="state", path="/var/lib/perdure")

WELL: list[tuple[Callable[[Any], Finding], Any]] = [
    (doctor.configuration, Configuration(listen="127.0.0.1:7373")),
    (doctor.configuration, Configuration(file="/etc/p.toml", mode=0o644)),
    (doctor.configuration, Configuration(file="/etc/p.toml", mode=0o600, has_token=True)),
    (doctor.directory, DIRECTORY),
    (doctor.directory, Directory(name="runtime", path="/run/p", exists=False)),
    (doctor.room, Room(path="/", free_bytes=2 * GB, free_files=-1, is_read_only=False, database_bytes=GB)),
    (doctor.leftovers, []),
    (doctor.leftovers, [Left("p.db.schema-3", 5, DAY), Left("p.db.restoring.partial", 5, 60.0)]),
    (doctor.database, Database(path="/p.db", schema=5, known_schema=5)),
    (doctor.database, Database(path="/p.db", exists=False)),
    (doctor.integrity, Integrity(bytes=GB)),
    (doctor.integrity, Integrity(bytes=5, looked="structure")),
    (doctor.integrity, Integrity(bytes=5, looked="everything", rows=3)),
    (doctor.clock, Clock(ahead_seconds=-5.0, is_kept=True)),
    (doctor.clock, Clock(ahead_seconds=60.0, is_kept=None)),
    (doctor.backup, Backup(has_rows=False)),
    (doctor.backup, Backup(age_seconds=DAY, path="/b.db")),
    (doctor.daemons, PROCESSES),
    (doctor.worker, PROCESSES),
    (doctor.supervisor, Supervised(by="supervisord", processes={"worker": "RUNNING"}, is_anything_running=True)),
    (doctor.supervisor, Supervised(by="systemd (perdure-worker.service)", is_anything_running=True)),
    (doctor.supervisor, Supervised()),
    (doctor.versions, Versions(own="1", others={"worker": "1"}, libraries={"python": "3.11"})),
    (doctor.descriptors, Descriptors(limit=20_000, used={"worker": (30, 1_024)})),
    (doctor.provider, Provider(name="anthropic", url="https://a", milliseconds=12.0)),
]
POOR: list[tuple[Callable[[Any], Finding], Any, str]] = [
    (doctor.configuration, Configuration(file="/etc/p.toml", mode=0o666), "chmod go-w /etc/p.toml"),
    (doctor.configuration, Configuration(file="/etc/p.toml", mode=0o644, has_token=True), "chmod go-r /etc/p.toml"),
    (doctor.directory, Directory(name="state", path="/p", is_open=False), "worker's user"),
    (doctor.directory, Directory(name="state", path="/p", uid=5, own_uid=6), "as that user"),
    (doctor.room, Room(path="/", free_bytes=GB, free_files=5, is_read_only=False, database_bytes=0), "small files"),
    (doctor.room, Room(path="/", free_bytes=GB, free_files=-1, is_read_only=False, database_bytes=GB), "make room"),
    (doctor.leftovers, [Left("p.db.partial", 5, DAY)], "delete"),
    (doctor.leftovers, [Left("p.db.before-restore-x", 5, 31 * DAY)], "delete"),
    (doctor.database, Database(path="/p.db", schema=4, known_schema=5), "takes a copy"),
    (doctor.database, Database(path="/p.db", is_open=False), "worker's user"),
    (doctor.integrity, Integrity(bytes=5, looked="everything", damaged_snapshots=2), "folded"),
    (doctor.integrity, Integrity(bytes=5, trouble="busy"), "try again"),
    (doctor.clock, Clock(ahead_seconds=301.0, is_kept=True), "set the clock"),
    (doctor.clock, Clock(ahead_seconds=-1.0, is_kept=False), "set-ntp"),
    (doctor.backup, Backup(), "perdure backup --into"),
    (doctor.backup, Backup(age_seconds=8 * DAY, path="/b.db"), "perdure backup --into"),
    (doctor.backup, Backup(age_seconds=DAY, path="/b.db", is_there=False), "where it went"),
    (doctor.daemons, Processes(status="degraded", reasons=["the worker is away"]), "perdure status"),
    (doctor.worker, Processes(status="ready", is_answered=True, wal_bytes=GB), "hangs"),
    (doctor.supervisor, Supervised(is_anything_running=True), "install-units"),
    (doctor.versions, Versions(own="2", others={"worker": "1"}, libraries={}), "restart"),
    (doctor.descriptors, Descriptors(limit=1_024), "LimitNOFILE"),
    (doctor.descriptors, Descriptors(limit=20_000, used={"daemon": (900, 1_024)}), "more daemons"),
]
BAD: list[tuple[Callable[[Any], Finding], Any, int, str]] = [
    (doctor.configuration, Configuration(refusal="PERDURE_LISTEN: 'x' is not host:port"), 78, "correct that setting"),
    (
        doctor.configuration,
        Configuration(refusal="p.toml: unknown key 'a'; did you mean 'b'?"),
        78,
        "did you mean 'b'?",
    ),
    (doctor.directory, Directory(name="state", path="/p", is_directory=False), 78, "PERDURE_STATE_DIR"),
    (doctor.directory, Directory(name="runtime", path="/p", mode=0o770), 78, "chmod go-w /p"),
    (doctor.directory, Directory(name="runtime", path="/p", is_writable=False), 78, "PERDURE_RUNTIME_DIR"),
    (doctor.room, Room(path="/", free_bytes=GB, free_files=-1, is_read_only=True, database_bytes=0), 75, "read-write"),
    (doctor.room, Room(path="/", free_bytes=5, free_files=-1, is_read_only=False, database_bytes=0), 75, "make room"),
    (doctor.database, Database(path="/p.db", refusal="/p.db: newer; upgrade perdure"), 78, "upgrade perdure"),
    (doctor.database, Database(path="/p.db", trouble="disk I/O error"), 75, "try again"),
    (doctor.integrity, Integrity(damage="/p.db: damaged (x); perdure restore FILE"), 78, "perdure restore FILE"),
    (doctor.daemons, Processes(status="down", listen="127.0.0.1:1"), 75, "perdure up"),
    (doctor.worker, Processes(status="ready"), 75, "perdure up"),
    (doctor.worker, Processes(status="ready", lock_holder=7), 75, "hang"),
    (doctor.worker, Processes(status="ready", lock_holder=7, unreachable="no socket"), 75, "no socket"),
    (doctor.worker, Processes(status="ready", is_lock_hidden=True, unreachable="not ours"), 75, "not ours"),
    (doctor.worker, Processes(status="ready", is_answered=True, is_committing=False), 75, "room"),
    (doctor.supervisor, Supervised(by="supervisord", processes={"worker": "EXITED", "d": "RUNNING"}), 75, "ctl start"),
    (doctor.provider, Provider(name="a", url="https://a", trouble="refused"), 75, "--offline"),
    (
        doctor.provider,
        Provider(name="a", url="https://a", trouble="expired", is_certificate=True),
        75,
        "PERDURE_CA_FILE",
    ),
]


@pytest.mark.parametrize(("judge", "facts"), WELL)
def test_what_is_well_is_ok_and_asks_for_nothing(judge: Callable[[Any], Finding], facts: Any) -> None:
    finding = judge(facts)
    assert (finding.level, finding.status, finding.remedy) == ("ok", 0, "") and finding.text


@pytest.mark.parametrize(("judge", "facts", "remedy"), POOR)
def test_what_will_be_wrong_is_a_warning_with_a_remedy(
    judge: Callable[[Any], Finding], facts: Any, remedy: str
) -> None:
    finding = judge(facts)
    assert (finding.level, finding.status) == ("warning", 0) and remedy in finding.remedy


@pytest.mark.parametrize(("judge", "facts", "status", "remedy"), BAD)
def test_what_is_wrong_is_an_error_with_its_status_and_a_remedy(
    judge: Callable[[Any], Finding], facts: Any, status: int, remedy: str
) -> None:
    finding = judge(facts)
    assert (finding.level, finding.status) == ("error", status) and remedy in finding.remedy


def findings_of_all() -> list[Finding]:
    return [
        *(judge(facts) for judge, facts in WELL),
        *(judge(facts) for judge, facts, _ in POOR),
        *(judge(facts) for judge, facts, _, _ in BAD),
    ]


def test_exit_status_is_that_of_the_worst_error_and_0_without_one() -> None:
    ok, warning = Finding(check="a", text="t"), Finding(check="a", level="warning", text="t")
    later = Finding(check="a", level="error", text="t", status=75)
    never = Finding(check="a", level="error", text="t", status=78)
    assert [doctor.status_of(found) for found in ([], [ok, warning], [later, ok], [later, never, ok])] == [0, 0, 75, 78]
    assert [doctor.worst_of(found) for found in ([], [ok], [warning, ok], [ok, never])] == [
        "ok",
        "ok",
        "warning",
        "error",
    ]


def test_report_is_json_and_every_finding_but_ok_has_a_remedy() -> None:
    report = doctor.report_of(findings_of_all())
    assert json.loads(json.dumps(report)) == report and report["status"] == "error"
    assert all(bool(each["remedy"]) is (each["level"] != "ok") for each in report["findings"])


@pytest.mark.parametrize("width", [80, 120])
def test_page_fits_and_says_how_many(width: int) -> None:
    page = doctor.page_of(findings_of_all(), Screen(width))
    assert max(map(cells, page.splitlines())) <= width
    assert page.endswith(f"\n{len(BAD)} errors, {len(POOR)} warnings")
    assert doctor.page_of([Finding(check="a", text="fine")], Screen()).endswith("\nall is well")
    assert len([line for line in page.splitlines() if line.startswith("error ")]) == len(BAD)


def test_check_that_failed_is_a_warning_that_names_it() -> None:
    finding = doctor.failed("disk", "OSError: no")
    assert (finding.check, finding.level) == ("disk", "warning") and "OSError: no" in finding.text
