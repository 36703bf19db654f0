"""`perdure import lore FILE` with real processes: what it tells, what it does, and that Lore's file is never touched.

One rule: what was imported is seen in the session that the client's next turn is given, and in every sum.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.identity import derived_id
from tests.clients import AnthropicTalk
from tests.lore_files import CLAUDE, SAID, VERSIONS, lore_database, session
from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.test_cli import PERDURE, perdure
from tests.system.test_session_verbs import environ
from worker.backup import verify

pytestmark = pytest.mark.system

NAMED = derived_id(CLAUDE, "minted-ses_1")


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider, tick_seconds=0.2) as running:
        running.start()
        yield running


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-lore-") as made:
        yield Path(made)


def import_lore(file: Path, *options: str, **known: str) -> dict[str, Any]:
    run = perdure("import", "lore", str(file), "--json", *options, **known)
    assert run.returncode == 0, run.stderr
    assert SAID not in run.stdout
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def recent(lore_id: str = "ses_1", **changes: Any) -> dict[str, Any]:
    return session(lore_id, **changes)


def test_imported_session_goes_on_with_its_clients_next_turn_and_survives_everything(
    gateway: Gateway, directory: Path
) -> None:
    file = lore_database(directory / "lore.db", [recent(), recent("ses_2", header_name=None, header_session_id=None)])
    known = environ(gateway)
    told = import_lore(file, **known)
    assert (told["applied"], told["before"]["turns"], told["after"]["turns"]) == (False, 0, 24)
    assert gateway.sessions() == []

    done = import_lore(file, "--apply", **known)

    assert [each["outcome"] for each in done["sessions"]] == ["new", "new"]
    assert done["sessions"] == told["sessions"] and done["after"] == told["after"]
    imported = gateway.session(NAMED)
    assert (imported["turns"], imported["cost_nanousd"], imported["resolved_conversation_ttl"]) == (
        12,
        1_750_000_000,
        "1h",
    )
    assert (imported["gradient"]["last_known_input"], imported["gradient"]["inter_bust_interval_ema"]) == (80_000, 120)
    assert (imported["fingerprint"], imported["header_session_id"]) == ("lore:0a1b2c", "minted-ses_1")
    assert "Aliases     ses_1" in perdure("show", "ses_1", **known).stdout

    with AnthropicTalk(gateway.url, "minted-ses_1") as talk:
        said = talk.say("and on we go")
    assert said.session == NAMED and said.usage is not None
    goes_on(gateway, turns=13, output=600 + said.usage.output_tokens)
    # The tick has stored what the turn taught on top of what was imported.
    eventually(lambda: gateway.query("SELECT 1 FROM session_state WHERE snapshot_position = 1"), what=gateway.logs)
    before = gateway.session(NAMED)
    assert before["warmup"]["turns"] == 1 and before["gradient"]["bust_rate_ema"] != -1
    costs = json.loads(perdure("costs", "--json", **known).stdout)
    assert costs["total"]["turns"] == 25 and costs["total"]["cost_nanousd"] > 3_500_000_000

    gateway.kill_all()
    gateway.start()
    assert gateway.session(NAMED) == before
    assert json.loads(perdure("costs", "--json", **known).stdout) == costs
    with AnthropicTalk(gateway.url, "minted-ses_1") as talk:
        assert talk.say("still").session == NAMED
    again = import_lore(file, "--apply", **known)
    assert {each["outcome"] for each in again["sessions"]} == {"unchanged"} and again["before"] == again["after"]
    verify(gateway.database, lambda _: (), lambda *_: None)


def test_rows_of_the_ledger_and_what_is_said_beside_them_are_what_it_all_cost(
    gateway: Gateway, directory: Path
) -> None:
    known = environ(gateway)
    import_lore(lore_database(directory / "lore.db", [recent(), recent("ses_2")]), "--apply", **known)
    with AnthropicTalk(gateway.url, "minted-ses_1") as talk:
        talk.say("on we go")

    def adds_up(total: dict[str, Any], *options: str) -> None:
        run = perdure("costs", "--rows", "--json", *options, **known)
        rows = [json.loads(line) for line in run.stdout.splitlines()]
        assert run.returncode == 0 and len(rows) == 1
        said = dict(re.findall(r"(\w+)=(\d+)", run.stderr))
        kinds = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")
        counted = {name: rows[0][name] for name in (*kinds, "cost_nanousd")}
        assert {name: count + int(said[name]) for name, count in counted.items()} == {
            name: total[name] for name in counted
        }
        assert int(run.stderr.split()[1]) + 1 == total["turns"]
        # The table has the same note, and neither is among the rows.
        assert perdure("costs", "--rows", *options, **known).stderr == run.stderr

    adds_up(json.loads(perdure("costs", "--json", **known).stdout)["total"])
    adds_up(gateway.session(NAMED), "--session", NAMED)
    assert perdure("costs", "--rows", "--since", "9999-12-31", **known).stderr == "", "of later days there is nothing"


def goes_on(gateway: Gateway, *, turns: int, output: int) -> None:
    shown = gateway.session(NAMED)
    assert (shown["turns"], shown["output_tokens"]) == (turns, output)
    assert shown["cost_nanousd"] > 1_750_000_000


def test_later_file_adds_only_what_is_new_and_leaves_what_turns_here_taught(gateway: Gateway, directory: Path) -> None:
    known = environ(gateway)
    import_lore(lore_database(directory / "one.db", [recent(), recent("ses_2")]), "--apply", **known)
    with AnthropicTalk(gateway.url, "minted-ses_1") as talk:
        talk.say("here")
    later = [recent(name, conversation_turns=20, last_known_input=90_000) for name in ("ses_1", "ses_2")]
    done = import_lore(lore_database(directory / "two.db", later), "--apply", **known)

    assert [(each["turns_added"], each["calibrated"]) for each in done["sessions"]] == [(8, False), (8, True)]
    assert gateway.session(NAMED)["turns"] == 21
    other = gateway.session(derived_id(CLAUDE, "minted-ses_2"))
    assert (other["turns"], other["gradient"]["last_known_input"]) == (20, 90_000)


def test_more_sessions_than_one_write_holds_are_imported_with_refusals_among_them(
    gateway: Gateway, directory: Path
) -> None:
    sessions = [recent(f"ses_{n}", conversation_cost=-1 if n % 40 == 7 else 1) for n in range(240)]
    file = lore_database(directory / "lore.db", sessions)
    run = perdure("import", "lore", str(file), "--apply", **environ(gateway))

    assert run.returncode == 0
    assert "234 new, 6 refused" in run.stdout and "conversation_cost is -1.0" in run.stdout
    assert len(gateway.sessions()) == 234
    log = json.loads(perdure("session", "log", "--json", **environ(gateway)).stdout)
    assert sum(each["moved"] for each in log) == 234 and {each["verb"] for each in log} == {"adopt"}
    newest = perdure("session", "log", **environ(gateway)).stdout.splitlines()[1]
    assert newest.split()[3:6] == ["adopt", "15", "lore"]


@pytest.mark.crash
def test_import_through_a_killed_worker_is_whole_and_counts_once(gateway: Gateway, directory: Path) -> None:
    file = lore_database(directory / "lore.db", [recent(f"ses_{n}") for n in range(200)])
    command = [PERDURE, "import", "lore", str(file), "--apply", "--json"]
    with subprocess.Popen(command, env=environ(gateway), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        eventually(lambda: gateway.query("SELECT 1 FROM session_adopted"), what=gateway.logs)
        gateway.kill("worker")
        gateway.start_worker()
        output, errors = run.communicate(timeout=60)

    assert (run.returncode, errors) == (0, b""), errors
    told = json.loads(output)
    assert len(told["sessions"]) == 200 and told["after"]["turns"] == 200 * 12
    assert gateway.query("SELECT sum(turns) FROM session_adopted") == [(200 * 12,)]
    verify(gateway.database, lambda _: (), lambda *_: None)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_schema_is_read_and_left_as_it_is(version: int, directory: Path) -> None:
    # A Lore that was stopped leaves no log behind, whatever it wrote with.
    file = lore_database(directory / "lore.db", [recent()], version=version, wal=version % 2 == 0)
    before = contents(directory)
    (told,) = import_lore(file, PERDURE_STATE_DIR=str(directory / "none"))["sessions"]

    assert (told["outcome"], told["turns"], told["cost_nanousd"]) == ("new", 12, 1_750_000_000)
    assert told["found_again"] is (version >= 24) and told["calibrated"]
    assert bool(told["notes"]) is (version < 73)
    assert contents(directory) == before


def test_file_that_a_running_lore_holds_is_read_with_its_log_and_left_as_it_is(directory: Path) -> None:
    file = lore_database(directory / "lore.db", [recent()], wal=True)
    lore = sqlite3.connect(file)
    lore.execute("PRAGMA wal_autocheckpoint = 0")
    lore.execute("UPDATE session_state SET conversation_turns = 99")
    lore.commit()
    lore.execute("BEGIN IMMEDIATE")  # It is in the middle of its next write.
    before = {name: data for name, data in contents(directory).items() if not name.endswith("-shm")}

    (told,) = import_lore(file, PERDURE_STATE_DIR=str(directory / "none"))["sessions"]

    assert told["turns"] == 99
    after = {name: data for name, data in contents(directory).items() if not name.endswith("-shm")}
    assert after == before
    lore.rollback()
    lore.close()


def spoiled(directory: Path, what: str) -> Path:
    file = lore_database(directory / "lore.db", [recent()], version=22 if what == "older" else 75)
    if what == "text":
        file.write_bytes(b"Dear diary, " * 900)
    if what == "half":
        file.write_bytes(file.read_bytes()[: 4096 * 2])
    changes = {
        "another program's": "DROP TABLE schema_version",
        "newer without a column": "UPDATE schema_version SET version = 90;"
        "ALTER TABLE session_state DROP COLUMN worker_cost",
        "no version": "DELETE FROM schema_version",
        "nothing understood": "UPDATE session_state SET worker_cost = -1",
    }
    if what in changes:
        db = sqlite3.connect(file)
        db.executescript(changes[what])
        db.close()
    return file


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("text", "not a Lore database"),
        ("half", "not a Lore database, or damaged"),
        ("another program's", "not a Lore database"),
        ("older", "schema 22"),
        ("newer without a column", "without worker_cost"),
        ("no version", "does not say its schema"),
        ("nothing understood", "none of its 1 sessions"),
    ],
)
def test_file_that_can_not_be_read_is_status_78_and_one_line(what: str, words: str, directory: Path) -> None:
    file = spoiled(directory, what)
    before = contents(directory)
    run = perdure("import", "lore", str(file), PERDURE_STATE_DIR=str(directory / "none"))
    assert run.returncode == 78 and words in run.stderr
    assert contents(directory) == before


def test_newer_schema_with_the_known_columns_is_read_and_said(directory: Path) -> None:
    file = spoiled(directory, "")
    db = sqlite3.connect(file)
    db.execute("UPDATE schema_version SET version = 90")
    db.commit()
    db.close()
    run = perdure("import", "lore", str(file), PERDURE_STATE_DIR=str(directory / "none"))
    assert run.returncode == 0 and "schema 90 is newer than this perdure knows" in run.stdout


def test_import_without_a_worker_says_so_and_changes_nothing(directory: Path) -> None:
    file = spoiled(directory, "")
    known = {"PERDURE_STATE_DIR": str(directory / "s"), "PERDURE_RUNTIME_DIR": str(directory / "r")}
    os.mkdir(directory / "r", 0o700)
    run = perdure("import", "lore", str(file), "--apply", **known)
    assert run.returncode == 75 and "perdure up" in run.stderr
