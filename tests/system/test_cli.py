"""The command `perdure` as people and scripts use it: the console script in a process of its own.

One rule: whatever is asked for and whatever is missing, standard error holds one line or nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients import AnthropicTalk, ChatTalk
from tests.processes import HOST, Gateway, eventually, free_ports
from tests.provider import ScriptedProvider
from worker.store import Store

pytestmark = pytest.mark.system

PERDURE: Final = str(Path(sys.executable).with_name("perdure"))
VERBS: Final = (
    *("up", "daemon", "worker", "run", "down", "ctl", "status", "sessions", "show", "costs", "doctor", "keys"),
    *("backup", "restore", "import", "session", "warm", "install-units"),
)
CORRECTIONS: Final = (
    ("merge", "some", "other"),
    ("split", "some", "--only", "turn"),
    ("undo", "1"),
    ("forget", "some"),
    ("log",),
)
READERS: Final = (
    ("status",),
    ("sessions",),
    ("show", "some-session"),
    ("costs",),
    ("costs", "--rows"),
    ("warm",),
    ("warm", "--on"),
    *(("session", *correction) for correction in CORRECTIONS),
)
RUNNING: Final = (("up",), ("daemon",), ("worker",))


def perdure(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, with this environment alone."""
    environ.setdefault("PATH", os.environ.get("PATH", os.defpath))
    run = subprocess.run([PERDURE, *arguments], env=environ, capture_output=True, text=True, timeout=20, check=False)
    assert run.stderr.count("\n") <= 1, run.stderr
    assert "Traceback" not in run.stderr + run.stdout
    return run


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as made:
        yield Path(made)


@pytest.fixture
def nothing(directory: Path) -> dict[str, str]:
    """An environment in which nothing runs and nothing is stored."""
    return {"PERDURE_STATE_DIR": str(directory), "PERDURE_LISTEN": f"{HOST}:{free_ports(1)[0]}"}


@pytest.fixture(scope="module")
def talked() -> Iterator[tuple[Gateway, dict[str, str]]]:
    """Two programs at work with three sessions, the newest of them without a known price; and their environment."""
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=0.2) as gateway:
        gateway.start()
        with AnthropicTalk(gateway.url, "claude-session") as claude, ChatTalk(gateway.url, "chat-session") as chat:
            for number in range(3):
                claude.say(f"turn {number}", stream=True)
            chat.say("hello")
        with ChatTalk(gateway.url, "odd-session", model="odd\x1b[2Jmodel") as odd:
            odd.say("hello")
        yield gateway, {"PERDURE_STATE_DIR": str(gateway.directory), "PERDURE_LISTEN": f"{HOST}:{gateway.port}"}


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", [(), *((verb,) for verb in VERBS), *(("session", correction[0]) for correction in CORRECTIONS)]
)
def test_help_begins_with_an_example_of_the_verb(verb: tuple[str, ...]) -> None:
    run = perdure(*verb, "--help")
    assert run.returncode == 0
    first = run.stdout.splitlines()[0]
    assert first.startswith(" ".join(("Example:  perdure", *verb)))


def test_help_names_these_verbs_and_no_others() -> None:
    shown = perdure("--help").stdout
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == list(VERBS)


def test_version_is_told() -> None:
    assert perdure("--version").stdout == "perdure 0.1.0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("doctr",),
        ("status", "--colour"),
        ("sessions", "--limit", "0"),
        ("sessions", "--limit", "x"),
        ("show",),
        ("session",),
        ("session", "join"),
        ("session", "merge", "one"),
        ("session", "split", "one"),
        ("session", "split", "one", "--from", "a", "--only", "b"),
        ("session", "undo", "x"),
        ("costs", "--days", "0"),
        ("costs", "--since", "31.1.2026"),
        ("costs", "--days", "7", "--since", "2026-01-31"),
        ("costs", "--by", "weather"),
        ("costs", "--by", "day", "--rows"),
        ("costs", "--session", "some"),
    ],
)
def test_usage_error_is_one_line_and_status_2(arguments: tuple[str, ...]) -> None:
    run = perdure(*arguments)
    assert run.returncode == 2
    assert "--help" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("doctr",), "did you mean 'doctor'?"),
        (("xyz",), "there are up, "),
        (("session", "mrge", "a", "b"), "did you mean 'merge'?"),
        (("status", "--jsno"), "did you mean '--json'?"),
        (("costs", "--by", "modl"), "did you mean 'model'?"),
        (("sessions", "extra"), "`perdure sessions --help`"),
    ],
)
def test_slip_of_the_hand_is_told_what_was_meant(arguments: tuple[str, ...], said: str) -> None:
    run = perdure(*arguments)
    assert run.returncode == 2 and said in run.stderr


def test_name_alone_shows_the_help_and_is_an_error() -> None:
    run = perdure()
    assert run.returncode == 2 and run.stdout == perdure("--help").stdout


@pytest.mark.parametrize("arguments", [*RUNNING, *READERS])
def test_unknown_key_in_the_configuration_is_status_78(arguments: tuple[str, ...], directory: Path) -> None:
    config = directory / "perdure.toml"
    config.write_text("tick_second = 1\n")
    run = perdure(*arguments, "--config", str(config))
    assert run.returncode == 78
    assert "did you mean 'tick_seconds'?" in run.stderr


def test_settings_flag_before_environment_before_file(nothing: dict[str, str], directory: Path) -> None:
    config = directory / "perdure.toml"
    config.write_text('listen = "127.0.0.1:1"\n')
    del nothing["PERDURE_LISTEN"]
    nothing["PERDURE_CONFIG"] = str(config)

    def listen(*flags: str, **environ: str) -> str:
        return str(json.loads(perdure("status", "--json", *flags, **nothing, **environ).stdout)["listen"])

    assert listen() == "127.0.0.1:1"
    assert listen(PERDURE_LISTEN="127.0.0.1:2") == "127.0.0.1:2"
    assert listen("--listen", "127.0.0.1:3", PERDURE_LISTEN="127.0.0.1:2") == "127.0.0.1:3"


# -- nothing there, or something else --------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", READERS)
def test_reader_nothing_runs_and_nothing_is_stored_is_status_75(
    arguments: tuple[str, ...], nothing: dict[str, str]
) -> None:
    run = perdure(*arguments, **nothing)
    assert run.returncode == 75
    assert "perdure up" in run.stderr + run.stdout


def test_status_nothing_runs_says_down(nothing: dict[str, str], directory: Path) -> None:
    said = json.loads(perdure("status", "--json", **nothing).stdout)
    assert said["status"] == "down"
    assert (said["worker"]["running"], said["worker"]["pid"], said["worker"]["state"]) == (False, None, "none")
    assert said["daemons"] == [] and said["commits"] is None and said["backup"] is None
    assert any("perdure up" in reason for reason in said["reasons"])
    assert said["database"]["path"] == str(directory / "perdure.db")
    assert "error" in said["database"]


def test_status_another_program_on_the_port_says_down(nothing: dict[str, str]) -> None:
    with ScriptedProvider() as provider:
        run = perdure("status", **nothing | {"PERDURE_LISTEN": f"{HOST}:{provider.port}"})
    assert run.returncode == 75
    assert "another program" in run.stdout


def test_daemon_on_a_taken_port_says_so_in_one_line(nothing: dict[str, str]) -> None:
    with ScriptedProvider() as provider:
        run = perdure("daemon", **nothing | {"PERDURE_LISTEN": f"{HOST}:{provider.port}"})
    assert run.returncode == 75
    assert run.stderr.startswith(f"perdure daemon: cannot listen on {HOST}:{provider.port}")


def test_reader_newer_database_is_status_78_and_says_upgrade(nothing: dict[str, str], directory: Path) -> None:
    database = sqlite3.connect(directory / "perdure.db")
    database.execute("PRAGMA application_id = 0x50455244")
    database.execute("PRAGMA user_version = 999")
    database.close()
    run = perdure("sessions", **nothing)
    assert run.returncode == 78
    assert "upgrade perdure" in run.stderr


def test_reader_text_file_in_place_of_the_database_is_status_78(nothing: dict[str, str], directory: Path) -> None:
    (directory / "perdure.db").write_text("Dear diary, " * 100)
    run = perdure("sessions", **nothing)
    assert run.returncode == 78
    assert "not a SQLite database" in run.stderr
    assert "not a SQLite database" in perdure("status", **nothing).stdout


def test_status_ctrl_c_while_nobody_answers_ends_quietly(nothing: dict[str, str]) -> None:
    with socket.create_server((HOST, 0)) as silent:
        environ = nothing | {"PERDURE_LISTEN": f"{HOST}:{silent.getsockname()[1]}"}
        run = subprocess.Popen([PERDURE, "status"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            connection, _ = silent.accept()
            run.send_signal(signal.SIGINT)
            output, _ = run.communicate(timeout=10)
            connection.close()
        finally:
            run.kill()
            run.wait(10)
    assert (run.returncode, output) == (130, b"")


# -- what is shown -------------------------------------------------------------------------------------------------


def _is_at_rest(said: str) -> bool:
    return '"running",' in said and json.loads(said)["queue"]["writes"] == 0


def test_status_ready_counts_what_is_stored(talked: tuple[Gateway, dict[str, str]]) -> None:
    gateway, environ = talked
    # On a machine that is busy with other things the worker may need longer than it is waited for.
    # And what a daemon says of itself is up to a second old.
    eventually(lambda: _is_at_rest(perdure("status", "--json", **environ).stdout), what="the worker answers in time")
    run = perdure("status", "--json", **environ)
    said = json.loads(run.stdout)
    assert run.returncode == 0
    assert said["status"] == "ready"
    assert said["checks"] == {"worker": "ok", "index": "ok"}
    worker, (daemon,) = said["worker"], said["daemons"]
    assert (worker["running"], worker["pid"], worker["state"]) == (True, gateway.pid("worker"), "committing")
    assert (daemon["pid"], daemon["state"], daemon["outbox_writes"]) == (gateway.pid("daemon"), "running", 0)
    assert worker["version"] == daemon["version"] == "0.1.0"
    assert 0 < worker["uptime_seconds"] < 600 and 0 < daemon["uptime_seconds"] < 600
    assert said["commits"]["count"] > 5 and 0 < said["commits"]["p50_seconds"] <= said["commits"]["p99_seconds"]
    assert said["queue"] == {"writes": 0, "oldest_seconds": 0.0} and said["reasons"] == []
    held = said["database"]
    assert (held["sessions"], held["turns"], held["interrupted"]) == (3, 5, 0)
    assert held["cost_nanousd"] == sum(shown["cost_nanousd"] or 0 for shown in gateway.sessions()) > 0
    assert held["bytes"] == gateway.database.stat().st_size

    page = perdure("status", **environ)
    assert page.returncode == 0
    assert page.stdout.startswith("perdure     ready")
    assert "3 sessions, 5 turns (0 interrupted)" in page.stdout


def test_sessions_json_is_every_session_newest_first(talked: tuple[Gateway, dict[str, str]]) -> None:
    gateway, environ = talked
    shown = json.loads(perdure("sessions", "--json", **environ).stdout)
    assert shown == _api(gateway, "/api/sessions")
    assert [each["header_session_id"] for each in shown] == ["odd-session", "chat-session", "claude-session"]
    assert json.loads(perdure("sessions", "--json", "--limit", "2", **environ).stdout) == shown[:2]


def test_sessions_table_fits_80_columns_and_hides_control_characters(talked: tuple[Gateway, dict[str, str]]) -> None:
    gateway, environ = talked
    header, *lines = perdure("sessions", **environ).stdout.splitlines()
    assert header.startswith("SESSION")
    assert [line[:12] for line in lines] == [shown["session_id"][:12] for shown in gateway.sessions()]
    assert max(len(line) for line in [header, *lines]) <= 80
    assert "odd?[2Jmodel" in lines[0]
    assert "unknown" in lines[0]
    assert "claude-sonnet-4-6" in lines[2]


def test_show_session_by_its_id_and_by_a_beginning(talked: tuple[Gateway, dict[str, str]]) -> None:
    gateway, environ = talked
    session_id = gateway.sessions()[2]["session_id"]
    page = perdure("show", session_id, **environ)
    assert page.returncode == 0
    assert perdure("show", session_id[:12], **environ).stdout == page.stdout
    assert "x-claude-code-session-id: claude-session" in page.stdout
    assert "3, 0 of them interrupted" in page.stdout
    assert "Last prompt " in page.stdout
    assert page.stdout.count(" complete ") == 3

    shown = json.loads(perdure("show", "--json", session_id, **environ).stdout)
    assert shown == _api(gateway, f"/api/sessions/{session_id}")
    assert [row["status"] for row in shown["newest_rows"]] == ["complete"] * 3


def test_costs_json_is_what_the_api_says_and_adds_up(talked: tuple[Gateway, dict[str, str]]) -> None:
    gateway, environ = talked
    shown = json.loads(perdure("costs", "--json", **environ).stdout)
    assert shown == _api(gateway, "/api/costs")
    assert shown["total"]["turns"] == 5
    assert shown["total"]["cost_nanousd"] == sum(each["cost_nanousd"] or 0 for each in gateway.sessions())
    for name in ("by_day", "by_model", "by_client", "by_account"):
        assert sum(entry["turns"] for entry in shown[name]) == 5
    assert json.loads(perdure("costs", "--json", "--days", "2", **environ).stdout) == shown
    later = json.loads(perdure("costs", "--json", "--since", "9999-12-31", **environ).stdout)
    assert later["total"]["turns"] == 0 and later["by_day"] == []


def test_costs_page_and_rows_fit_80_columns(talked: tuple[Gateway, dict[str, str]]) -> None:
    environ = talked[1]
    page = perdure("costs", **environ).stdout
    assert "BY MODEL" in page and "BY ACCOUNT" in page and "claude-sonnet-4-6" in page
    assert "1 request is in no cost" in page
    one = perdure("costs", "--by", "kind", **environ).stdout
    assert "BY KIND" in one and "BY MODEL" not in one
    rows = perdure("costs", "--rows", **environ).stdout
    assert len(rows.splitlines()) == 1 + 5 and "odd?[2Jmodel" in rows
    assert max(len(line) for line in (page + one + rows).splitlines()) <= 80


def test_costs_rows_json_is_the_ledger_line_by_line(talked: tuple[Gateway, dict[str, str]]) -> None:
    gateway, environ = talked
    lines = [json.loads(line) for line in perdure("costs", "--rows", "--json", **environ).stdout.splitlines()]
    stored = gateway.rows()
    assert [line["event_id"] for line in lines] == [row.event_id for row in stored]
    assert [line["session_id"] for line in lines] == [row.session_id for row in stored]
    assert sum(line["cost_nanousd"] or 0 for line in lines) == sum(row.cost_nanousd or 0 for row in stored)
    claude = gateway.sessions()[2]["session_id"]
    own = perdure("costs", "--rows", "--json", "--session", claude[:12], **environ).stdout.splitlines()
    assert [json.loads(line) for line in own] == [line for line in lines if line["session_id"] == claude]
    assert len(own) == 3
    assert perdure("costs", "--rows", "--session", "nobody", **environ).returncode == 2


@pytest.mark.parametrize("wrong", ["no-such-session", "", "%", "'; DROP TABLE ledger"])
def test_show_unknown_session_is_status_2(wrong: str, talked: tuple[Gateway, dict[str, str]]) -> None:
    run = perdure("show", wrong, **talked[1])
    assert run.returncode == 2
    assert "perdure sessions" in run.stderr


@pytest.mark.parametrize(
    "arguments", [("sessions",), ("sessions", "--json"), ("status",), ("costs", "--rows", "--json")]
)
def test_output_closed_pipe_ends_quietly(arguments: tuple[str, ...], talked: tuple[Gateway, dict[str, str]]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        run = subprocess.run(
            [PERDURE, *arguments], env=talked[1], stdout=writes, stderr=subprocess.PIPE, timeout=20, check=False
        )
    finally:
        os.close(writes)
    assert (run.returncode, run.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sessions",), "no session yet\n"),
        (("sessions", "--json"), "[]\n"),
        (("costs", "--rows"), "no row yet\n"),
        (("costs", "--rows", "--json"), ""),
        (("session", "log"), "no session was ever changed\n"),
    ],
)
def test_store_that_holds_nothing_yet_says_so(arguments: tuple[str, ...], said: str, nothing: dict[str, str]) -> None:
    Store(Path(nothing["PERDURE_STATE_DIR"]) / "perdure.db").close()
    run = perdure(*arguments, **nothing)
    assert (run.returncode, run.stdout, run.stderr) == (0, said, "")


def test_file_in_the_place_of_the_state_directory_is_called_what_it_is(
    nothing: dict[str, str], directory: Path
) -> None:
    (directory / "file").touch(0o600)
    nothing["PERDURE_STATE_DIR"] = str(directory / "file")
    found = json.loads(perdure("doctor", "--offline", "--json", **nothing).stdout)["findings"]
    assert [each["text"] for each in found if each["check"] == "state dir"] == [f"{directory / 'file'}: no directory"]
    page = " ".join(perdure("status", **nothing).stdout.split())
    assert "Not a directory; is PERDURE_STATE_DIR the worker's?" in page
    assert "does not answer (Connection refused)" in page and "Errno" not in page


# -- running -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("PERDURE_LISTEN", "[::1]:7373", "IPv6"),
        ("PERDURE_LISTEN", "127.0.0.1:0", "give one"),
        ("PERDURE_LISTEN", "192.0.2.1:7373", "PERDURE_LISTEN"),
        ("PERDURE_STATE_DIR", "/tmp/100%", "PERDURE_STATE_DIR"),
        ("PERDURE_STATE_DIR", "/proc/nowhere", "directory"),
        ("PERDURE_RUNTIME_DIR", "/tmp/" + "d" * 90, "PERDURE_RUNTIME_DIR"),
    ],
)
def test_up_what_can_not_work_is_refused_before_anything_starts(
    setting: str, value: str, remedy: str, nothing: dict[str, str], directory: Path
) -> None:
    run = perdure("up", **nothing | {"PERDURE_TOKEN": "secret", setting: value})
    assert run.returncode == 78
    assert remedy in run.stderr
    assert not (directory / "log" / "supervisord.log").exists()


def test_worker_and_daemon_become_the_program_and_keep_their_pid(nothing: dict[str, str], directory: Path) -> None:
    config = directory / "perdure.toml"
    config.write_text('tick_seconds = 0.5\n[providers]\nlocal = "http://127.0.0.1:9"\n')
    listen = nothing.pop("PERDURE_LISTEN")
    runs: list[subprocess.Popen[bytes]] = []
    try:
        for program in ("worker", "daemon"):
            with (directory / f"{program}.log").open("wb") as log:
                command = [PERDURE, program, "--listen", listen, "--config", str(config)]
                runs.append(subprocess.Popen(command, env=nothing, stdout=log, stderr=log))

        def said() -> dict[str, Any]:
            return dict(json.loads(perdure("status", "--json", "--listen", listen, **nothing).stdout))

        eventually(lambda: said()["status"] == "ready", what=lambda: str(said()))
        assert said()["worker"]["pid"] == runs[0].pid
        # The table of providers has reached the daemon: nobody listens at that one.
        with ChatTalk(f"http://{listen}/local") as talk, pytest.raises(Exception, match=r"502|local|reach"):
            talk.say("hello")
        for run in reversed(runs):
            run.terminate()
            assert run.wait(20) == 0
    finally:
        for run in runs:
            run.kill()
            run.wait(10)


def _api(gateway: Gateway, path: str) -> Any:
    found = gateway.get(path)
    assert found is not None
    return json.loads(found[1])


def test_output_that_can_not_be_written_is_one_line(directory: Path) -> None:
    Store(directory / "perdure.db").close()
    environ = {"PATH": os.environ["PATH"], "PERDURE_STATE_DIR": str(directory)}
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [PERDURE, "sessions"], env=environ, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False
        )
    assert (run.returncode, run.stderr.count("\n")) == (75, 1)
    assert "No space left" in run.stderr
