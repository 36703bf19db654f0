"""`perdure doctor` on installations that are well, and on ones that are not: it names what is wrong, whatever that is.

One rule: its exit status is 0, 75 or 78, and whatever is broken, every other look is still taken.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients import AnthropicTalk
from tests.processes import HOST, Gateway, free_ports
from tests.provider import ScriptedProvider
from tests.system.test_cli import directory, nothing, perdure
from tests.system.test_cli_status import as_nobody, environ
from tests.worker.writing import booking, write
from worker.store import Store

__all__ = ["directory", "nothing"]

pytestmark = pytest.mark.system

LOOKS: Final = {
    *("configuration", "state dir", "runtime dir", "disk", "database", "integrity", "clock", "backup", "leftovers"),
    *("worker", "daemon", "supervisor", "versions", "descriptors", "anthropic", "openai"),
}
EVERY_LOOK_WITHOUT_A_DATABASE: Final = LOOKS - {"integrity", "clock", "backup"}


@pytest.fixture(scope="module")
def well() -> Iterator[tuple[Gateway, dict[str, str]]]:
    """An installation at work, and its environment."""
    with ScriptedProvider() as provider, Gateway(provider, daemons=2, tick_seconds=0.2) as gateway:
        gateway.start()
        with AnthropicTalk(gateway.url, "seen") as talk:
            talk.say("hello")
        urls = {f"PERDURE_{name}_URL": provider.url for name in ("ANTHROPIC", "OPENAI")}
        yield gateway, environ(gateway) | urls


def examined(run: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What it found, by the look's name; whatever it is, the exit status says the same."""
    report = json.loads(run.stdout)
    levels = [each["level"] for each in report["findings"]]
    assert run.returncode in (0, 75, 78) and (run.returncode == 0) is ("error" not in levels), run.stdout
    assert (report["status"] == "error") is ("error" in levels)
    return {each["check"]: each for each in report["findings"]}


def errors(found: dict[str, dict[str, Any]]) -> set[str]:
    return {check for check, each in found.items() if each["level"] == "error"}


def test_doctor_well_finds_no_error_and_connects_to_providers(well: tuple[Gateway, dict[str, str]]) -> None:
    gateway, environ = well
    run = perdure("doctor", "--json", **environ)
    found = examined(run)
    assert run.returncode == 0 and errors(found) == set()
    assert found.keys() == LOOKS
    assert str(gateway.pid("worker")) in found["worker"]["text"]
    assert "connected" in found["anthropic"]["text"] and found["versions"]["level"] == "ok"
    assert "perdure backup" in found["backup"]["remedy"]

    page = perdure("doctor", "--full", **environ).stdout
    assert max(map(len, page.splitlines())) <= 80
    assert "integrity     whole: 1 row read" in page


def test_doctor_hung_worker_is_named_and_all_else_is_looked_at(well: tuple[Gateway, dict[str, str]]) -> None:
    gateway, environ = well
    gateway.pause("worker")
    try:
        run = perdure("doctor", "--json", **environ)
    finally:
        gateway.resume("worker")
    found = examined(run)
    assert run.returncode == 75 and "worker" in errors(found) and found.keys() == LOOKS
    assert str(gateway.pid("worker")) in found["worker"]["text"]
    assert found["integrity"]["level"] == "ok"


def test_doctor_unreachable_provider_is_75_and_offline_leaves_it_out(well: tuple[Gateway, dict[str, str]]) -> None:
    environ = well[1] | {"PERDURE_OPENAI_URL": f"http://{HOST}:{free_ports(1)[0]}"}
    run = perdure("doctor", "--json", **environ)
    assert run.returncode == 75 and errors(examined(run)) == {"openai"}
    offline = perdure("doctor", "--json", "--offline", **environ)
    assert offline.returncode == 0 and "openai" not in examined(offline)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_doctor_another_user_is_told_what_is_closed(well: tuple[Gateway, dict[str, str]]) -> None:
    run = as_nobody("doctor", "--json", "--offline", environ=well[1])
    found = examined(run)
    assert "Traceback" not in run.stderr
    assert "worker's user" in found["state dir"]["remedy"] and "worker's user" in found["database"]["remedy"]


def test_doctor_nothing_there_is_75_and_says_how_to_start(nothing: dict[str, str]) -> None:
    run = perdure("doctor", "--json", "--offline", **nothing)
    found = examined(run)
    assert run.returncode == 75 and errors(found) == {"worker", "daemon"}
    assert "perdure up" in found["worker"]["remedy"]


def test_doctor_database_of_another_kind_is_78_and_the_rest_is_looked_at(
    nothing: dict[str, str], directory: Path
) -> None:
    (directory / "perdure.db").write_text("Dear diary, " * 100)
    run = perdure("doctor", "--json", "--offline", **nothing)
    found = examined(run)
    assert run.returncode == 78 and "not a SQLite database" in found["database"]["text"]
    assert found.keys() == EVERY_LOOK_WITHOUT_A_DATABASE - {"anthropic", "openai"}


def test_doctor_newer_database_is_78_and_says_upgrade(nothing: dict[str, str], directory: Path) -> None:
    database = sqlite3.connect(directory / "perdure.db")
    database.execute("PRAGMA application_id = 0x50455244")
    database.execute("PRAGMA user_version = 999")
    database.close()
    run = perdure("doctor", "--json", "--offline", **nothing)
    assert run.returncode == 78 and "upgrade perdure" in examined(run)["database"]["remedy"]


def test_doctor_damaged_database_is_78_and_says_restore(nothing: dict[str, str], directory: Path) -> None:
    store = Store(directory / "perdure.db")
    store.commit([write(booking(number, f"s-{number}")) for number in range(200)], live=frozenset(), now=1)
    store.close()
    with (directory / "perdure.db").open("r+b") as file:
        file.seek(file.seek(0, 2) // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096)
    run = perdure("doctor", "--json", "--offline", **nothing)
    assert run.returncode == 78
    assert any("perdure restore" in each["remedy"] for each in examined(run).values())


def test_doctor_full_finds_a_sum_that_is_wrong(nothing: dict[str, str], directory: Path) -> None:
    store = Store(directory / "perdure.db")
    store.commit([write(booking(1))], live=frozenset(), now=1)
    store.close()
    database = sqlite3.connect(directory / "perdure.db")
    with database:
        database.execute("UPDATE session_total SET cost_nanousd = cost_nanousd + 1")
    database.close()
    assert "integrity" not in errors(examined(perdure("doctor", "--json", "--offline", **nothing)))
    run = perdure("doctor", "--json", "--offline", "--full", **nothing)
    assert run.returncode == 78 and "sums" in examined(run)["integrity"]["text"]


def test_doctor_directory_that_others_can_write_to_is_78(nothing: dict[str, str], directory: Path) -> None:
    directory.chmod(0o777)
    run = perdure("doctor", "--json", "--offline", **nothing)
    assert run.returncode == 78 and "chmod go-w" in examined(run)["state dir"]["remedy"]


def test_doctor_leftovers_are_listed(nothing: dict[str, str], directory: Path) -> None:
    left = directory / "perdure.db.restoring.partial"
    left.write_bytes(b"x" * 5_000)
    os.utime(left, (1, 1))
    found = examined(perdure("doctor", "--json", "--offline", **nothing))
    assert left.name in found["leftovers"]["text"] and "delete" in found["leftovers"]["remedy"]


def test_doctor_configuration_that_can_not_be_used_is_the_finding(nothing: dict[str, str]) -> None:
    for form in ((), ("--json",)):
        run = perdure("doctor", *form, **nothing | {"PERDURE_LISTEN": "nowhere"})
        assert run.returncode == 78 and run.stderr == ""
        assert "PERDURE_LISTEN" in run.stdout and "is not host:port" in " ".join(run.stdout.split())
