"""`perdure backup` and `perdure restore` beside real processes: under load, without space, killed, and after damage.

One rule: what a client was answered before the backup is in it, and what daemons had not seen stored before a restore
is stored after it, once.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from daemon.verbs import progress
from tests.clients import AnthropicTalk
from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.test_supervisord import PERDURE, SUPERVISORCTL, Up
from tests.worker.peer import short_directory
from tests.worker.writing import booking, write
from worker.protocol import Usage
from worker.runtime import EXIT_CONFIGURATION, EXIT_UNAVAILABLE, EXIT_USAGE
from worker.store import Reader, Store

pytestmark = pytest.mark.system

REMEDY: Final = "perdure restore FILE"
TURNS_BEFORE: Final = 5
FILE_BYTES_MAX: Final = 64 * 1024
"""Of the place that has too little room."""
SERVICE_USER: Final = 65_534
"""Nobody, whom every system has."""
AS_SERVICE_USER: Final = (
    # All that is read of the program is read before: this interpreter may be in a place that is root's alone.
    "import os, sys; from daemon import cli; from worker import store\n"
    "steps = store._steps(); store._steps = lambda: steps; cli.version = str\n"
    f"os.setgroups([]); os.setgid({SERVICE_USER}); os.setuid({SERVICE_USER})\n"
    "sys.exit(cli.main(sys.argv[1:]))"
)


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=4) as running:
        yield running


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as made:
        yield made


def perdure(state: Path, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ.get("PATH", os.defpath), "PERDURE_STATE_DIR": str(state)}
    command = [PERDURE, *map(str, arguments)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False, **more)
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1, done.stderr
    return done


def fill(path: Path, sessions: int) -> None:
    store = Store(path)
    writes = [write(booking(number, f"session-{number}")) for number in range(sessions)]
    store.commit(writes, live=frozenset(), now=1)
    store.close()


def turns_in(path: Path) -> int:
    reader = Reader(path)
    try:
        return int(next(iter(reader.execute("SELECT sum(turns) FROM session_total")))[0])
    finally:
        reader.close()


# -- the whole story -----------------------------------------------------------------------------------------------


def test_damaged_database_is_refused_and_restored_while_daemons_run_on(
    provider: ScriptedProvider, directory: Path
) -> None:
    file = directory / "backup.db"
    with Up(provider) as up, AnthropicTalk(up.url, "named") as named, AnthropicTalk(up.url) as unnamed:
        up.wait_status("ready")
        first, other = named.say("before"), unnamed.say("before")
        assert up.perdure("backup", str(file)).returncode == 0
        gone = named.say("acknowledged, and not in the backup")
        supervise(up, "stop")
        up.wait_status("degraded")
        late = named.say("while nothing is stored", stream=True)
        damage(up.directory / "perdure.db")
        assert_stays_down_with_the_command(up)

        done = up.perdure("restore", str(file), "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["turns"], told["sessions"]) == (2, 2) and Path(told["kept"]).exists()
        assert not up.pids("worker")
        supervise(up, "start")
        up.wait_status("ready")
        assert named.say("after").session == late.session == first.session
        assert unnamed.say("after").session == other.session

        shown = eventually_stored(up, {first.session: 3, other.session: 2})
        usage = minus(provider.usage_total(), gone.usage)
        assert sum_of(shown) == usage
        assert up.perdure("backup", "--force", str(file)).returncode == 0, "it is whole"


def supervise(up: Up, verb: str) -> None:
    command = [SUPERVISORCTL, "-s", f"unix://{up.directory}/run/sv.sock", verb, "worker"]
    subprocess.run(command, check=True, capture_output=True, cwd=up.directory)


def damage(path: Path) -> None:
    """Every page but the first is lost."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def assert_stays_down_with_the_command(up: Up) -> None:
    log = up.directory / "log" / "worker.log"
    supervise(up, "start")
    eventually(lambda: REMEDY in log.read_text() and not up.pids("worker"), what="the worker says what to run")
    eventually(lambda: f"exit status {EXIT_CONFIGURATION}" in up.supervisor_log(), what="the supervisor knows")
    # What would be started again would be within a second; so long takes what the next command has to read.
    assert "damaged" in up.perdure("status").stdout
    assert log.read_text().count(REMEDY) == 1
    assert up.supervisor_log().count("spawned: 'worker'") == 2


def eventually_stored(up: Up, turns: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    def stored() -> bool:
        return {name: shown["turns"] for name, shown in up.sessions().items()} == turns

    eventually(stored, what=lambda: f"{turns}: {up.sessions()}")
    return up.sessions()


def sum_of(shown: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
    names = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")
    return tuple(sum(session[name] for session in shown.values()) for name in names)


def minus(total: Usage, gone: Usage | None) -> tuple[int, ...]:
    assert gone is not None
    return (
        total.input_tokens - gone.input_tokens,
        total.cache_read_tokens - gone.cache_read_tokens,
        total.cache_write_tokens - gone.cache_write_tokens,
        total.output_tokens - gone.output_tokens,
    )


# -- backup --------------------------------------------------------------------------------------------------------


def test_backup_under_load_has_every_turn_that_was_answered_before_it(
    provider: ScriptedProvider, directory: Path
) -> None:
    file = directory / "backup.db"
    with Gateway(provider) as gateway:
        gateway.start()
        with AnthropicTalk(gateway.url, "before") as talk:
            for number in range(TURNS_BEFORE):
                talk.say(f"turn {number}")
        over = threading.Event()
        load = threading.Thread(target=talk_until, args=(gateway.url, over))
        load.start()
        try:
            done = perdure(gateway.directory, "backup", "--json", file)
        finally:
            over.set()
            load.join()
        told = json.loads(done.stdout)
        assert told.keys() >= {"path", "bytes", "sessions", "turns", "seconds", "incarnation"}
        assert told["path"] == str(file) and told["bytes"] == file.stat().st_size
        assert told["turns"] == turns_in(file) >= TURNS_BEFORE
        # With the worker dead, too.
        gateway.kill("worker")
        assert perdure(gateway.directory, "backup", file, "--force").returncode == 0
        assert turns_in(file) == turns_in(gateway.database)


def talk_until(url: str, over: threading.Event) -> None:
    with AnthropicTalk(url, "meanwhile") as talk:
        while not over.is_set():
            talk.say("again")


def test_backup_where_there_is_no_database_says_so(directory: Path) -> None:
    done = perdure(directory, "backup", directory / "b.db")
    assert (done.returncode, "no database there yet" in done.stderr) == (EXIT_UNAVAILABLE, True)
    assert list(directory.iterdir()) == []


def test_backup_without_room_leaves_nothing_and_says_what_to_do(directory: Path) -> None:
    fill(directory / "perdure.db", 400)
    (directory / "small").mkdir()

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))

    done = perdure(directory, "backup", directory / "small" / "b.db", preexec_fn=little_room)
    assert (done.returncode, "make room there" in done.stderr) == (EXIT_UNAVAILABLE, True), done.stderr
    assert list((directory / "small").iterdir()) == []


def test_restore_without_room_changes_nothing(directory: Path) -> None:
    fill(directory / "perdure.db", 400)
    file = directory / "elsewhere.db"
    assert perdure(directory, "backup", file).returncode == 0
    before = (directory / "perdure.db").read_bytes()

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))

    done = perdure(directory, "restore", file, preexec_fn=little_room)
    assert (done.returncode, "make room there" in done.stderr) == (EXIT_UNAVAILABLE, True), done.stderr
    assert (directory / "perdure.db").read_bytes() == before
    assert not list(directory.glob("*restor*"))


def test_backup_of_a_damaged_database_says_what_to_run(directory: Path) -> None:
    fill(directory / "perdure.db", 40)
    damage(directory / "perdure.db")
    done = perdure(directory, "backup", directory / "b.db")
    assert (done.returncode, REMEDY in done.stderr) == (EXIT_CONFIGURATION, True)
    assert not (directory / "b.db").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_backup_that_is_ended_in_its_middle_leaves_no_backup(directory: Path, number: signal.Signals) -> None:
    fill(directory / "perdure.db", 400)
    file, partial = directory / "b.db", directory / "b.db.partial"
    # It stops for good where it would say how far it is.
    halting = (
        "import sys, time; from daemon import cli; from worker import backup\n"
        "backup._verified = lambda *_: (print('copied', flush=True), time.sleep(600))\n"
        f"sys.exit(cli.main(['backup', {str(file)!r}]))"
    )
    environ = {"PATH": os.environ["PATH"], "PERDURE_STATE_DIR": str(directory)}
    process = subprocess.Popen([sys.executable, "-c", halting], env=environ, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"copied\n"
        assert partial.stat().st_size > 0
        process.send_signal(number)
        process.wait(60)
    finally:
        process.kill()
        process.communicate()
    assert not file.exists()
    assert partial.exists() == (number == signal.SIGKILL), "what could tidy up has done so"
    assert perdure(directory, "backup", file).returncode == 0
    assert not partial.exists() and turns_in(file) == 400


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("after_seconds", "is_shown"), [(0.0, True), (3_600.0, False)])
def test_bar_is_shown_to_people_once_it_takes_a_moment_and_is_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, after_seconds: float, is_shown: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(progress, "BAR_AFTER_SECONDS", after_seconds)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress_bar() as show:
        show("copying", 0.5)
    said = terminal.getvalue()
    assert ("50% copying" in said) == is_shown
    assert said == "" or said.endswith("\r\x1b[K")


# -- backups by time ---------------------------------------------------------------------------------------------------


def test_backups_into_a_directory_under_load_keep_the_newest_and_leave_a_note(
    provider: ScriptedProvider, directory: Path
) -> None:
    with Gateway(provider) as gateway:
        gateway.start()
        over = threading.Event()
        load = threading.Thread(target=talk_until, args=(gateway.url, over))
        load.start()
        try:
            told = [next_into(gateway.directory, directory) for _ in range(3)]
        finally:
            over.set()
            load.join()
        last = told[-1]
        assert [len(each["removed"]) for each in told] == [0, 0, 1] and last["kept"] == 2
        assert sorted(map(str, directory.iterdir())) == [each["path"] for each in told[1:]]
        noted = json.loads((gateway.directory / "last-backup.json").read_text())
        assert noted | {"at": 0} == {"at": 0, "path": last["path"], "bytes": last["bytes"], "turns": last["turns"]}
        assert abs(noted["at"] / 1_000 - time.time()) < 60
        assert turns_in(Path(last["path"])) == last["turns"]


def next_into(state: Path, directory: Path) -> dict[str, Any]:
    """The next backup of its own second."""
    done = perdure(state, "backup", "--into", directory, "--keep", 2, "--json")
    while done.returncode == EXIT_UNAVAILABLE and "in this very second" in done.stderr:
        done = perdure(state, "backup", "--into", directory, "--keep", 2, "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(
    "arguments",
    [("b.db", "--into", "."), ("--keep", "3"), ("b.db", "--keep", "3"), ("--into", ".", "--force")],
    ids=" ".join,
)
def test_backup_that_is_told_two_things_says_so(directory: Path, arguments: tuple[str, ...]) -> None:
    fill(directory / "perdure.db", 1)
    done = perdure(directory, "backup", *arguments, cwd=directory)
    assert (done.returncode, "--help" in done.stderr) == (EXIT_USAGE, True)
    assert [found.name for found in directory.iterdir()] == ["perdure.db"]


def test_backup_whose_note_can_not_be_written_is_made_and_warns(directory: Path) -> None:
    fill(directory / "perdure.db", 1)
    (directory / "last-backup.json").mkdir()
    done = perdure(directory, "backup", directory / "b.db", "--json")
    assert done.returncode == 0 and done.stderr.startswith("perdure: warning: ")
    assert "last-backup.json" in json.loads(done.stdout)["warnings"][0]
    assert turns_in(directory / "b.db") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_backup_by_the_service_user_and_by_root_leave_files_that_the_service_can_use(directory: Path) -> None:
    state, into = directory / "state", directory / "into"
    directory.chmod(0o755)
    for made in (state, into):
        made.mkdir(mode=0o700)
    fill(state / "perdure.db", 3)
    for each in (state, into, *state.iterdir()):
        os.chown(each, SERVICE_USER, SERVICE_USER)
    environ = {"PATH": os.environ["PATH"], "PERDURE_STATE_DIR": str(state)}
    command = [sys.executable, "-c", AS_SERVICE_USER, "backup", "--into", str(into), "--keep", "1"]
    first = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert (first.returncode, first.stderr) == (0, "")
    assert perdure(state, "backup", directory / "by-root.db").returncode == 0
    assert {found.stat().st_uid for found in state.iterdir()} == {SERVICE_USER}
    assert next_into(state, into)["kept"] == 2


# -- restore -------------------------------------------------------------------------------------------------------


def test_restore_beside_a_worker_is_refused_and_says_to_stop_it(provider: ScriptedProvider, directory: Path) -> None:
    file = directory / "backup.db"
    with Gateway(provider) as gateway:
        gateway.start()
        assert perdure(gateway.directory, "backup", file).returncode == 0
        before = gateway.query("SELECT value FROM meta WHERE name = 'incarnation'")
        done = perdure(gateway.directory, "restore", file)
        assert (done.returncode, "stop perdure first" in done.stderr) == (EXIT_UNAVAILABLE, True)
        assert gateway.query("SELECT value FROM meta WHERE name = 'incarnation'") == before
        with AnthropicTalk(gateway.url, "still-there") as talk:
            talk.say("hello")


def test_restore_tells_the_gap_to_people(directory: Path) -> None:
    state, file = directory / "state", directory / "backup.db"
    state.mkdir()
    fill(state / "perdure.db", 3)
    assert perdure(state, "backup", file).returncode == 0
    same = perdure(state, "restore", file).stdout
    assert "Gap       none" in same and f"Kept      {state}/perdure.db.before-restore-" in same
    fill(state / "perdure.db", 9)
    begin = time.monotonic()
    while (done := perdure(state, "restore", file)).returncode == EXIT_UNAVAILABLE:
        assert time.monotonic() - begin < 30, "only within the second of the one before"
    assert "Gap 6 turns are in the kept database alone, the newest of 2025-06-15" in " ".join(done.stdout.split())
    (state / "perdure.db").write_bytes(b"\xff" * 9_000)
    begin = time.monotonic()
    while (done := perdure(state, "restore", file)).returncode == EXIT_UNAVAILABLE:
        assert time.monotonic() - begin < 30
    assert "Gap       unknown" in done.stdout


def test_restore_into_an_empty_place_makes_it(directory: Path) -> None:
    fill(directory / "perdure.db", 3)
    file = directory / "elsewhere.db"
    assert perdure(directory, "backup", file).returncode == 0
    done = perdure(directory / "new" / "state", "restore", file)
    assert done.returncode == 0 and "Kept" not in done.stdout
    assert turns_in(directory / "new" / "state" / "perdure.db") == 3


@pytest.mark.parametrize("arguments", [("backup",), ("restore",), ("restore", "nowhere.db"), ("backup", "a", "b")])
def test_backup_and_restore_used_wrongly_say_so_in_a_line(directory: Path, arguments: tuple[str, ...]) -> None:
    fill(directory / "perdure.db", 1)
    done = perdure(directory, *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (EXIT_USAGE, 1)
