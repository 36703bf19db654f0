"""The report of `perdure status`: what is known is told, what is not known is a gap with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.columns import Paint, Screen, cells
from daemon.standing import DAEMON_FIELDS, Facts, daemon_object, own_report, report_of, status_page
from worker.standing import Called, Commits, DaemonStanding, Standing

NOW = 1_800_000_000_000
HOUR = 3_600_000
DATABASE = {
    "path": "/var/lib/perdure/perdure.db",
    "bytes": 12_345_678,
    "wal_bytes": 400_000,
    "schema": 5,
    "sessions": 1_234,
    "turns": 98_765,
    "interrupted": 12,
    "cost_nanousd": 1_234_560_000_000,
}
DAEMON = DaemonStanding(instance="daemon_00", pid=11, version="0.1.0", started_at=NOW - HOUR, state="running")
STANDING = Standing(
    pid=10,
    version="0.1.0",
    started_at=NOW - 2 * HOUR,
    schema=5,
    is_committing=True,
    waiting_writes=0,
    wal_bytes=400_000,
    commits=Commits(count=7, p50_seconds=0.0012, p99_seconds=0.034),
    daemons=[DAEMON],
)


def facts(**changes: Any) -> Facts:
    well: dict[str, Any] = {
        "now": NOW,
        "listen": "127.0.0.1:7373",
        "status": "ready",
        "checks": {"worker": "ok", "index": "ok"},
        "database": DATABASE,
        "lock_holder": 10,
        "standing": STANDING,
    }
    return Facts(**{**well, **changes})


def test_all_is_well_and_nothing_needs_a_reason() -> None:
    report = report_of(facts())
    assert report["reasons"] == []
    assert report["worker"]["uptime_seconds"] == 7_200 and report["worker"]["state"] == "committing"
    assert [(each["state"], each["uptime_seconds"]) for each in report["daemons"]] == [("running", 3_600)]
    assert report["commits"] == {"count": 7, "p50_seconds": 0.0012, "p99_seconds": 0.034}
    assert report["daemons"][0].keys() == DAEMON_FIELDS
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize(
    ("changes", "worker", "said"),
    [
        ({"lock_holder": None, "standing": None}, "none", "perdure up"),
        ({"standing": None}, "does not answer", "it may hang"),
        ({"standing": None, "unreachable": "there is no socket"}, "does not answer", "there is no socket"),
        ({"checks": {"worker": "not heard", "index": "ok"}}, "committing", "worker.log"),
        ({"checks": {"worker": "does not accept our key"}}, "committing", "does not accept our key"),
        ({"status": "down", "checks": {"daemon": "does not answer"}}, "committing", "no daemon answers"),
        (
            {"database": {"path": "/x", "bytes": 0, "wal_bytes": 0, "error": "damaged; restore"}},
            "committing",
            "damaged",
        ),
    ],
)
def test_what_is_wrong_has_a_reason_with_a_remedy(changes: dict[str, Any], worker: str, said: str) -> None:
    report = report_of(facts(**changes))
    assert report["worker"]["state"] == worker
    assert len(report["reasons"]) == 1 and said in report["reasons"][0]


def test_worker_that_can_not_write_and_daemon_that_is_silent_are_reasons() -> None:
    silent = DaemonStanding(instance="daemon_01", pid=12, version="0.1.0", silent_seconds=65.0, outbox_writes=4)
    sick = Standing(
        **{name: getattr(STANDING, name) for name in STANDING.__struct_fields__}
        | {"is_committing": False, "daemons": [DAEMON, silent]}
    )
    report = report_of(facts(standing=sick))
    assert report["worker"]["state"] == "not committing" and report["daemons"][1]["state"] == "not heard"
    assert ["room" in report["reasons"][0], "daemon_01 (pid 12) is not heard for 1m" in report["reasons"][1]] == [
        True
    ] * 2
    assert report["queue"] == {"writes": 4, "oldest_seconds": 0.0}


def test_without_the_worker_the_daemon_that_answers_tells_of_itself() -> None:
    report = report_of(facts(standing=None, lock_holder=None, daemon=daemon_object(DAEMON, NOW)))
    assert [each["pid"] for each in report["daemons"]] == [11]
    assert report["commits"] is None and report["worker"]["version"] is None


def test_state_directory_that_is_closed_to_us_does_not_hide_a_worker_that_answers() -> None:
    assert report_of(facts(lock_holder=None))["worker"] | {"running": True, "pid": 10} == report_of(facts())["worker"]


def test_lock_that_is_hidden_from_us_says_nothing_of_the_worker() -> None:
    report = report_of(facts(lock_holder=None, standing=None, is_lock_hidden=True))
    assert report["reasons"] == [] and (report["worker"]["state"], report["worker"]["running"]) == ("unknown", True)


def test_backup_is_told_with_its_age() -> None:
    backup = {"at": NOW - 26 * HOUR, "path": "/mnt/b.db", "bytes": 5_000, "turns": 3}
    report = report_of(facts(backup=backup))
    assert report["backup"]["age_seconds"] == 26 * 3_600 and report["backup"]["at"].endswith("Z")
    assert "1d ago, 5.0kB, 3 turns: /mnt/b.db" in status_page(report, Screen())


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("is_answered", [True, False])
def test_page_fits_and_names_everything(width: int, is_answered: bool) -> None:
    many = [
        DaemonStanding(
            instance=f"daemon@127.0.0.1:{port}",
            pid=4_194_304,
            version="12.11.10",
            state="draining",
            started_at=1,
            outbox_writes=150_000,
            outbox_oldest_seconds=1e6,
        )
        for port in range(60_000, 60_005)
    ]
    standing = Standing(**{n: getattr(STANDING, n) for n in STANDING.__struct_fields__} | {"daemons": many})
    report = report_of(facts(standing=standing if is_answered else None, database=DATABASE | {"path": "/" + "d" * 60}))
    page = status_page(report, Screen(width))
    assert page.startswith("perdure     ready at http://127.0.0.1:7373")
    assert "1,234 sessions, 98,765 turns (12 interrupted), cost $1,234.56" in page
    assert max(map(cells, page.splitlines())) <= width
    assert ("half took 1.2 ms at most" in page) is is_answered


def test_page_names_the_machine_only_where_there_are_several() -> None:
    def page(*instances: str) -> str:
        daemons = [DaemonStanding(instance=instance, pid=1, version="1") for instance in instances]
        told = Standing(**{n: getattr(STANDING, n) for n in STANDING.__struct_fields__} | {"daemons": daemons})
        return status_page(report_of(facts(standing=told)), Screen())

    assert "\ndaemon_00 " in page("daemon_00@here", "daemon_01@here")
    assert "\ndaemon_00@here " in page("daemon_00@here", "daemon_00@there")


def test_page_is_coloured_only_where_wanted() -> None:
    report = report_of(facts())
    assert "\x1b" not in status_page(report, Screen())
    coloured = status_page(report, Screen(paint=Paint(is_on=True)))
    assert "\x1b[32mready\x1b[0m" in coloured and "\x1b[32mcommitting\x1b[0m" in coloured


def test_own_report_is_json_with_and_without_a_worker() -> None:
    for standing in (STANDING, None):
        shown = own_report("ready", {"worker": "ok"}, DAEMON, standing, NOW)
        assert json.loads(json.dumps(shown)) == shown
        assert shown["daemon"]["instance"] == "daemon_00" and (shown["worker"] is None) is (standing is None)


# -- daemons that were called --------------------------------------------------------------------------------------


def states(*called: Called, **changes: Any) -> list[tuple[str, int, str]]:
    report = report_of(facts(called=called, **changes))
    assert status_page(report, Screen(80, Paint()))
    return [(each["instance"], each["pid"], each["state"]) for each in report["daemons"]]


def test_daemon_that_answers_and_is_known_is_told_of_once() -> None:
    assert states(Called(instance="daemon_00", pid=11, is_heard=True, standing=DAEMON)) == [
        ("daemon_00", 11, "running")
    ]


def test_daemon_that_hangs_keeps_what_is_known_of_it() -> None:
    report = report_of(facts(called=[Called(instance="daemon_00", pid=11)]))
    (told,) = report["daemons"]
    assert (told["state"], told["version"], told["uptime_seconds"]) == ("does not answer", "0.1.0", 3_600)
    assert report["reasons"] == [
        "daemon_00 (pid 11) does not answer: it hangs; a supervisor kills it after half a minute, else `kill -9 11`"
    ]


def test_daemon_whose_long_name_was_cut_is_not_told_of_twice() -> None:
    assert states(Called(instance="daemon", pid=11)) == [("daemon_00", 11, "does not answer")]
    assert states(Called(instance="daemon", pid=12)) == [
        ("daemon", 12, "does not answer"),
        ("daemon_00", 11, "running"),
    ]


def test_successor_that_the_worker_has_not_greeted_is_told_of_in_its_predecessors_place() -> None:
    successor = DaemonStanding(instance="daemon_00", pid=12, version="0.1.0", started_at=NOW, state="starting")
    assert states(Called(instance="daemon_00", pid=12, is_heard=True, standing=successor)) == [
        ("daemon_00", 12, "starting")
    ]


def test_daemons_of_which_nothing_is_known_but_that_they_are_there() -> None:
    called = (Called(instance="daemon_00", pid=11), Called(instance="daemon_01", pid=12, is_heard=True))
    assert states(*called, standing=None) == [("daemon_00", 11, "does not answer"), ("daemon_01", 12, "unknown")]
    report = report_of(facts(called=called, standing=None))
    assert report["daemons"][0]["outbox_writes"] is None and report["queue"]["writes"] == 0
