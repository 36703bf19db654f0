"""`perdure up` for real: the console script, supervisord, both programs, and the official SDKs as clients.

One rule: every test leaves nothing running, also when it fails, and asks the operating system whether that is so.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from daemon.app import FLUSH_SECONDS, IDLE_DRAIN_SECONDS
from daemon.supervise import LISTEN_SECONDS
from daemon.verbs.running import STOP_MARGIN_SECONDS, supervised_environment, supervisord_conf
from tests.clients import AnthropicTalk, ChatTalk, RawClient, ResponsesTalk
from tests.many.pooled import Load
from tests.processes import HOST, eventually, free_ports
from tests.provider import ScriptedProvider
from tests.system.turns import send_turn
from worker.health import CALLS_MAX, SILENT_SECONDS, TICK_SECONDS
from worker.protocol import Usage
from worker.settings import loaded
from worker.store import Store

pytestmark = pytest.mark.system

SUPERVISORCTL: Final = str(Path(sys.executable).with_name("supervisorctl"))
PERDURE: Final = str(Path(sys.executable).with_name("perdure"))
TURNS: Final = 10
CLIENTS: Final = 6
ANSWERS_BETWEEN: Final = 20
"""Requests answered before and after what is done under load."""
SMALL_DISK_BYTES: Final = 6 * 1024 * 1024
"""Room for the store and some logs."""
TURNS_ON_A_FULL_DISK: Final = 40
"""Their lines are more than what a log holds back before it writes."""
HANG_MARGIN_SECONDS: Final = 25.0
"""Beyond the limits for what hangs: two ticks, a restart, and a loaded machine."""
BACK_SECONDS: Final = 5.0
"""Deadline for what takes one second and a program's start; a loaded machine starts programs slowly."""


class Up:
    """One `perdure up` with a state directory of its own."""

    def __init__(self, provider: ScriptedProvider, **settings: object) -> None:
        self.directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
        self.port = free_ports(1)[0]
        self.url = f"http://{HOST}:{self.port}"
        self.environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PERDURE_STATE_DIR": str(self.directory),
            "PERDURE_LISTEN": f"{HOST}:{self.port}",
            "PERDURE_ANTHROPIC_URL": provider.url,
            "PERDURE_OPENAI_URL": f"{provider.url}/v1",
            "PERDURE_TICK_SECONDS": "0.5",
            **{f"PERDURE_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.command = [PERDURE, "up"]
        self._seen: set[int] = set()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self.command,
            env=self.environ,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.children()
        if self.process.poll() is None:
            self.process.kill()
        for pid in self._seen & set(_parents()):
            if _program(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if error is not None:
            for log in sorted((self.directory / "log").glob("*.log")):
                error.add_note(f"--- {log.name} ---\n{log.read_text('utf-8', 'replace')[-4_000:]}")
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    def children(self) -> dict[int, str]:
        """Pids of the programs now running under the supervisor, with the program's name."""
        found = {}
        for pid, parent in _parents().items():
            if parent == self.process.pid and (name := _program(pid)):
                found[pid] = name
        self._seen |= set(found)
        return found

    def pids(self, program: str) -> set[int]:
        return {pid for pid, name in self.children().items() if name == program}

    def status(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.perdure("status", "--json").stdout)
        return said

    def wait_status(self, status: str, deadline_seconds: float = 15.0) -> None:
        eventually(lambda: self.status()["status"] == status, deadline_seconds, lambda: f"{status}: {self.status()}")

    def wait_successor(self, program: str, killed: int, deadline_seconds: float = BACK_SECONDS) -> None:
        """Return once another process has the killed one's place, which may have been taken already."""
        count = int(self.environ.get("PERDURE_DAEMONS", 1)) if program == "daemon" else 1
        eventually(
            lambda: killed not in (now := self.pids(program)) and len(now) == count,
            deadline_seconds,
            f"{program} is back",
        )

    def perdure(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PERDURE, *arguments], env=self.environ | environ, capture_output=True, text=True, timeout=20, check=False
        )

    def sessions(self) -> dict[str, dict[str, Any]]:
        return {shown["session_id"]: shown for shown in json.loads(self.perdure("sessions", "--json").stdout)}

    def supervisor_log(self) -> str:
        return (self.directory / "log" / "supervisord.log").read_text("utf-8")


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


def test_up_four_sdk_conversations_at_once_have_exact_totals_and_ctrl_c_leaves_nothing(
    provider: ScriptedProvider,
) -> None:
    with Up(provider, daemons=2) as perdure:
        perdure.wait_status("ready")
        talks = [
            AnthropicTalk(perdure.url, "claude-session"),
            ChatTalk(perdure.url, "chat-session"),
            ResponsesTalk(perdure.url, "responses-session"),
            ResponsesTalk(perdure.url, stateful=False),
        ]
        with ThreadPoolExecutor(len(talks)) as pool:
            told = dict(pool.map(_converse, talks))

        assert len(told) == len(talks), "every conversation is a session of its own"
        shown = perdure.sessions()
        assert {name: _totals(session) for name, session in shown.items()} == told
        assert [session["turns"] for session in shown.values()] == [TURNS] * len(talks)

        pids = set(perdure.children()) | {perdure.process.pid}
        assert len(pids) == 4
        perdure.process.send_signal(signal.SIGINT)
        assert perdure.process.wait(30) == 0
        assert not pids & set(_parents()), "nothing is left running"
        with socket.create_server((HOST, perdure.port)):
            pass
        assert {name: _totals(session) for name, session in perdure.sessions().items()} == told
        # Daemons are stopped before the worker, so that their last snapshots are committed.
        log = perdure.supervisor_log()
        assert max(log.index("stopped: daemon-0"), log.index("stopped: daemon-1")) < log.index("stopped: worker")


def test_up_processes_killed_over_and_over_are_back_and_the_conversation_goes_on(provider: ScriptedProvider) -> None:
    with Up(provider) as perdure, AnthropicTalk(perdure.url, "claude-session", max_retries=4) as talk:
        perdure.wait_status("ready")
        session = talk.say("turn 1").session
        # As soon as there is a process it is killed: most of these die before they have opened anything.
        for _ in range(6):
            (killed,) = perdure.pids("worker")
            os.kill(killed, signal.SIGKILL)
            perdure.wait_successor("worker", killed)
        perdure.wait_status("ready")
        assert talk.say("turn 2", stream=True).session == session
        for _ in range(3):
            (killed,) = perdure.pids("daemon")
            os.kill(killed, signal.SIGKILL)
            perdure.wait_successor("daemon", killed)
        perdure.wait_status("ready")
        assert talk.say("turn 3").session == session
        for program in ("daemon", "worker"):
            os.kill(perdure.pids(program).pop(), signal.SIGKILL)
        perdure.wait_status("ready")
        assert talk.say("turn 4", stream=True).session == session

        shown = perdure.sessions()
        assert {name: _totals(each) for name, each in shown.items()} == {session: provider.usage_total()}
        assert shown[session]["turns"] == len(provider.requests) == 4


def test_up_process_told_to_stop_alone_is_back_and_the_conversation_goes_on(provider: ScriptedProvider) -> None:
    with Up(provider) as perdure, AnthropicTalk(perdure.url, "claude-session", max_retries=4) as talk:
        perdure.wait_status("ready")
        session = talk.say("turn 1").session
        for number, program in enumerate(("worker", "daemon", "worker", "daemon"), start=2):
            (told,) = perdure.pids(program)
            os.kill(told, signal.SIGTERM)
            perdure.wait_successor(program, told, deadline_seconds=BACK_SECONDS + IDLE_DRAIN_SECONDS)
            perdure.wait_status("ready")
            assert talk.say(f"turn {number}", stream=number % 2 == 0).session == session

        shown = perdure.sessions()
        assert {name: _totals(each) for name, each in shown.items()} == {session: provider.usage_total()}
        # Each of them ended well and by itself, and was wanted all the same.
        log = perdure.supervisor_log()
        assert log.count("exited: worker (exit status 0") == log.count("exited: daemon-0 (exit status 0") == 2


@pytest.mark.slow
def test_up_worker_and_daemon_that_hang_are_restarted_and_turns_go_on_meanwhile(provider: ScriptedProvider) -> None:
    with Up(provider, daemons=2) as perdure, AnthropicTalk(perdure.url, "claude-session", max_retries=4) as talk:
        perdure.wait_status("ready")
        session = talk.say("turn 1").session
        (worker,) = perdure.pids("worker")
        daemon, well = perdure.pids("daemon")
        os.kill(daemon, signal.SIGSTOP)
        os.kill(worker, signal.SIGSTOP)
        # A connection of its own: the one before may be the hung daemon's.
        with AnthropicTalk(perdure.url, "claude-session") as another:
            assert another.say("turn 2", stream=True).session == session
        perdure.wait_successor("worker", worker, deadline_seconds=SILENT_SECONDS + HANG_MARGIN_SECONDS)
        assert daemon in perdure.pids("daemon"), "half a minute is more than that"
        perdure.wait_successor("daemon", daemon, deadline_seconds=CALLS_MAX * TICK_SECONDS + HANG_MARGIN_SECONDS)
        assert well in perdure.pids("daemon")
        perdure.wait_status("ready")
        with AnthropicTalk(perdure.url, "claude-session") as another:
            assert another.say("turn 3").session == session

        shown = perdure.sessions()
        assert {name: _totals(each) for name, each in shown.items()} == {session: provider.usage_total()}
        assert "has not answered 6 calls" in (perdure.directory / "log" / "health.log").read_text("utf-8")


def test_up_two_daemons_one_killed_no_connection_is_refused(provider: ScriptedProvider) -> None:
    with Up(provider, daemons=2) as perdure:
        perdure.wait_status("ready")
        killed = min(perdure.pids("daemon"))
        os.kill(killed, signal.SIGKILL)
        connections = 0
        deadline = time.monotonic() + BACK_SECONDS
        while len(perdure.pids("daemon") - {killed}) < 2:
            assert time.monotonic() < deadline
            with socket.create_connection((HOST, perdure.port), timeout=5):
                connections += 1
        assert connections > 0
        assert "Closing socket" not in perdure.supervisor_log().partition("terminated by SIGKILL")[2]


def test_up_a_single_daemon_killed_over_and_over_refuses_no_connection(provider: ScriptedProvider) -> None:
    with Up(provider) as perdure:
        perdure.wait_status("ready")
        for number in range(3):
            (killed,) = perdure.pids("daemon")
            os.kill(killed, signal.SIGKILL)
            eventually(lambda killed=killed: killed not in perdure.pids("daemon"), what="it is dead")  # type: ignore[misc]
            # Nobody is there to take it.  It waits for the successor, and is not refused.
            with AnthropicTalk(perdure.url, f"session-{number}", max_retries=0) as talk:
                assert talk.say("hello").text
        assert "Closing socket" not in perdure.supervisor_log().rpartition("Creating socket")[2]


def test_ctl_restart_of_all_daemons_at_once_under_load_drops_no_request(provider: ScriptedProvider) -> None:
    with Up(provider, daemons=2) as perdure:
        perdure.wait_status("ready")
        with Load(7, CLIENTS, lambda _: perdure.port) as asked:
            for _ in range(2):
                asked.wait_for_answers(ANSWERS_BETWEEN)
                before = perdure.pids("daemon")
                told = perdure.perdure("ctl", "restart", "daemon:*")
                assert told.returncode == 0 and told.stdout.count("started") == 2, told
                assert not before & perdure.pids("daemon")
                asked.wait_for_answers(ANSWERS_BETWEEN)
        assert [failure.what for failure in asked.failures] == []
        perdure.wait_status("ready")
        assert sum(shown["turns"] for shown in perdure.sessions().values()) == asked.answered


def test_ctl_stop_of_all_daemons_lets_no_client_wait_for_ever(provider: ScriptedProvider) -> None:
    with Up(provider, daemons=2) as perdure:
        perdure.wait_status("ready")
        assert perdure.perdure("ctl", "stop", "daemon:*").returncode == 0
        eventually(lambda: _is_refused(perdure.port), LISTEN_SECONDS + BACK_SECONDS, "connections are refused")
        assert perdure.perdure("ctl", "status", "daemon:*").stdout.count("STOPPED") == 2
        assert perdure.perdure("ctl", "start", "daemon:*").returncode == 0
        perdure.wait_status("ready")


def test_up_that_is_told_to_stop_finishes_its_streams_and_refuses_who_comes_now(provider: ScriptedProvider) -> None:
    with Up(provider, daemons=2) as perdure:
        perdure.wait_status("ready")
        with RawClient(HOST, perdure.port) as stream:
            send_turn(stream, "messages", "hold:stopping", session="stopping", stream=True)
            provider.wait_held("stopping")
            perdure.process.send_signal(signal.SIGTERM)
            eventually(lambda: _is_refused(perdure.port), what="connections are refused")
            assert perdure.process.poll() is None
            provider.release("stopping")
            assert stream.read().complete
        assert perdure.process.wait(FLUSH_SECONDS + STOP_MARGIN_SECONDS) == 0


def test_up_whose_disk_is_full_with_its_logs_on_it_answers_and_stores_all_once_there_is_space(
    provider: ScriptedProvider,
) -> None:
    perdure = Up(provider)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES},mode=700", "perdure-test", str(perdure.directory)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    # As in the background: what the supervisor says of itself is on that disk, too.
    perdure.command = ["sh", "-c", f"exec {PERDURE} up > up.log 2>&1"]
    filler = perdure.directory / "filler"
    try:
        with perdure:
            perdure.wait_status("ready")
            with filler.open("ab", buffering=0) as file:
                while os.statvfs(perdure.directory).f_bavail:
                    file.write(bytes(4_096))
            with ChatTalk(perdure.url) as talk:
                assert all(talk.say(f"turn {number}").session for number in range(TURNS_ON_A_FULL_DISK))
            assert perdure.process.poll() is None and perdure.pids("worker") and perdure.pids("daemon")
            filler.unlink()
            perdure.wait_status("ready", 30)
            eventually(lambda: sum(shown["turns"] for shown in perdure.sessions().values()) == TURNS_ON_A_FULL_DISK)
    finally:
        subprocess.run(["umount", "--lazy", str(perdure.directory)], check=True)
        shutil.rmtree(perdure.directory, ignore_errors=True)


def test_logs_are_cut_into_files_of_limited_size_and_number(provider: ScriptedProvider) -> None:
    """The shipped configuration with one change: what is megabytes there is kilobytes here."""
    perdure = Up(provider)
    conf = perdure.directory / "supervisord.conf"
    conf.write_text(supervisord_conf().read_text().replace("maxbytes=10MB", "maxbytes=1KB"))
    options = argparse.Namespace(config=None, state_dir=str(perdure.directory), runtime_dir=f"{perdure.directory}/run")
    read = loaded({}, perdure.environ)
    for made in ("log", "run"):
        (perdure.directory / made).mkdir()
    environ = {**supervised_environment(read, options), **perdure.environ}
    perdure.command = [sys.executable, "-P", "-m", "daemon.supervise", "-n", "-c", str(conf)]
    perdure.environ = environ
    logs = perdure.directory / "log"
    with perdure:
        perdure.wait_status("ready")

        def rotated() -> bool:
            for pid in perdure.pids("daemon"):
                os.kill(pid, signal.SIGHUP)
            perdure.process.send_signal(signal.SIGHUP)
            return (logs / "daemon-0.log.3").exists() and (logs / "supervisord.log.3").exists()

        eventually(rotated, 60, lambda: f"{[(log.name, log.stat().st_size) for log in logs.iterdir()]}")
        oldest = (logs / "daemon-0.log.3").read_bytes()
        eventually(lambda: rotated() and (logs / "daemon-0.log.3").read_bytes() != oldest, 60, "the oldest goes")
        kept = sorted(log.name for log in logs.glob("daemon-0.log*"))
        assert kept == ["daemon-0.log", "daemon-0.log.1", "daemon-0.log.2", "daemon-0.log.3"]
        assert max(log.stat().st_size for log in logs.iterdir()) < 4_096


def test_up_worker_that_refuses_its_database_stays_down_and_turns_are_answered(provider: ScriptedProvider) -> None:
    perdure = Up(provider)
    with sqlite3.connect(perdure.directory / "perdure.db") as database:
        database.execute("PRAGMA application_id = 0x50455244")
        database.execute("PRAGMA user_version = 999")
        database.execute("CREATE TABLE meta (name, value)")
    database.close()
    before = (perdure.directory / "perdure.db").read_bytes()
    with perdure, ChatTalk(perdure.url, "chat-session") as talk:
        perdure.wait_status("degraded")
        told = perdure.perdure("status")
        assert told.returncode == 0
        assert "degraded" in told.stdout
        assert "newer perdure" in told.stdout
        assert talk.say("hello").text
        # A daemon's restart takes the supervisor the turns in which it would start the worker again.
        (killed,) = perdure.pids("daemon")
        os.kill(killed, signal.SIGKILL)
        perdure.wait_successor("daemon", killed)
        assert not perdure.pids("worker")
        assert perdure.supervisor_log().count("spawned: 'worker'") == 1
        assert "EXITED" in perdure.perdure("ctl", "status", "worker").stdout
        assert "newer perdure" in perdure.perdure("ctl", "tail", "worker").stdout
        assert (perdure.directory / "perdure.db").read_bytes() == before
        perdure.process.send_signal(signal.SIGTERM)
        assert perdure.process.wait(30) == 0


def test_up_database_without_a_table_worker_stays_down_and_turns_are_answered(provider: ScriptedProvider) -> None:
    perdure = Up(provider)
    Store(perdure.directory / "perdure.db").close()
    _drop_table(perdure.directory)
    with perdure, ChatTalk(perdure.url, "chat-session") as talk:
        perdure.wait_status("degraded")
        _assert_worker_stays_down(perdure, talk)
        # It had nothing to say but that.
        assert _worker_log(perdure).count("\n") == 1


def test_up_table_dropped_under_a_running_worker_stays_down_and_turns_are_answered(provider: ScriptedProvider) -> None:
    with Up(provider) as perdure, ChatTalk(perdure.url, "chat-session") as talk:
        perdure.wait_status("ready")
        assert talk.say("before").text
        _drop_table(perdure.directory)
        assert talk.say("the worker finds out").text
        perdure.wait_status("degraded")
        _assert_worker_stays_down(perdure, talk)


def test_up_lock_held_by_another_worker_tries_about_once_a_second_until_it_is_free(provider: ScriptedProvider) -> None:
    with Up(provider) as perdure:
        perdure.wait_status("ready")
        with (perdure.directory / "perdure.lock").open("rb") as lock:
            os.kill(perdure.pids("worker").pop(), signal.SIGKILL)
            eventually(lambda: _lock(lock.fileno()), what="the lock is ours")
            begin, spawned = time.monotonic(), perdure.supervisor_log().count("spawned: 'worker'")
            eventually(lambda: perdure.supervisor_log().count("spawned: 'worker'") >= spawned + 4)
            assert time.monotonic() - begin > 2.0, "four tries in less than two seconds are too many"
        perdure.wait_status("ready")
        assert "another perdure worker" in (perdure.directory / "log" / "worker.log").read_text()


def test_up_reload_starts_everything_anew_and_still_hears_a_death_at_once(provider: ScriptedProvider) -> None:
    with Up(provider) as perdure, ChatTalk(perdure.url, "chat-session", max_retries=4) as talk:
        perdure.wait_status("ready")
        session = talk.say("turn 1").session
        before = set(perdure.children())
        # Not from the checkout: there supervisorctl would read supervisord.conf, which needs perdure's environment.
        reload = [SUPERVISORCTL, "-s", f"unix://{perdure.directory}/run/sv.sock", "reload"]
        subprocess.run(reload, check=True, capture_output=True, cwd=perdure.directory)
        eventually(lambda: len(now := set(perdure.children())) == 2 and not now & before, what="two new programs")
        perdure.wait_status("ready")
        assert talk.say("turn 2").session == session
        # Without an ear each death is heard a second late; on a busy machine one of three may be.
        assert min(_seconds_to_hear(perdure) for _ in range(3)) < 0.8


def test_supervisord_killed_leaves_no_orphans(provider: ScriptedProvider) -> None:
    with Up(provider) as perdure:
        perdure.wait_status("ready")
        pids = set(perdure.children())
        assert len(pids) == 2
        perdure.process.kill()
        eventually(lambda: not pids & set(_parents()), what="both programs have ended")
        worker = perdure.status()["worker"]
        assert (worker["running"], worker["pid"]) == (False, None)


def test_up_twice_is_refused_with_the_remedy(provider: ScriptedProvider) -> None:
    with Up(provider) as perdure:
        perdure.wait_status("ready")
        here = perdure.perdure("up")
        same_state = perdure.perdure("up", "--listen", f"{HOST}:{free_ports(1)[0]}")
        elsewhere = str(perdure.directory / "elsewhere")
        same_port = perdure.perdure("up", PERDURE_STATE_DIR=elsewhere)

        assert [each.returncode for each in (here, same_state, same_port)] == [75, 75, 75]
        assert "PERDURE_STATE_DIR" in same_state.stderr
        assert "PERDURE_LISTEN" in same_port.stderr
        assert [each.stderr.count("\n") for each in (here, same_state, same_port)] == [1, 1, 1]
        # The refused ones have done no harm.
        assert perdure.status()["status"] == "ready"


def test_a_daemon_has_time_to_stop_before_the_supervisor_kills_it() -> None:
    assert STOP_MARGIN_SECONDS > IDLE_DRAIN_SECONDS + FLUSH_SECONDS


def _drop_table(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "perdure.db")) as database, database:
        database.execute("DROP TABLE ledger")


def _assert_worker_stays_down(perdure: Up, talk: ChatTalk) -> None:
    """It has ended with one line that says what to do, and nobody starts it again; the daemon goes on without it."""
    eventually(lambda: not perdure.pids("worker"), what="the worker has ended")
    assert talk.say("nobody keeps this").text
    # A daemon's restart takes the supervisor the turns in which it would start the worker again.
    (killed,) = perdure.pids("daemon")
    os.kill(killed, signal.SIGKILL)
    perdure.wait_successor("daemon", killed)
    perdure.wait_status("degraded")
    assert talk.say("nor this").text
    assert not perdure.pids("worker")
    assert perdure.supervisor_log().count("spawned: 'worker'") == 1
    log = _worker_log(perdure)
    assert "Traceback" not in log
    (line,) = (line for line in log.splitlines() if line.startswith("perdure worker: "))
    assert "damaged" in line and "ledger" in line and "backup" in line


def _worker_log(perdure: Up) -> str:
    return (perdure.directory / "log" / "worker.log").read_text("utf-8")


def _seconds_to_hear(perdure: Up) -> float:
    """Kill the daemon while nothing is logged; how long until the supervisor knows.  Returns when it is back."""
    (killed,) = perdure.pids("daemon")
    before, begin = perdure.supervisor_log().count("exited: daemon-0"), time.monotonic()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: perdure.supervisor_log().count("exited: daemon-0") > before, what="the death is heard")
    heard = time.monotonic()
    perdure.wait_successor("daemon", killed)
    perdure.wait_status("ready")
    return heard - begin


def _converse(talk: AnthropicTalk | ChatTalk | ResponsesTalk) -> tuple[str, Usage]:
    """Ten turns, every other one streamed: the one session they had, and what the client was told of its usage."""
    with talk:
        said = [talk.say(f"turn {number}", stream=number % 2 == 1) for number in range(TURNS)]
    (session,) = {each.session for each in said}
    used = [each.usage for each in said if each.usage is not None]
    assert len(used) == TURNS
    return session, Usage(**{name: sum(getattr(each, name) for each in used) for name in Usage.__struct_fields__})


def _totals(shown: dict[str, Any]) -> Usage:
    """The five minute writes are all there are here."""
    return Usage(
        input_tokens=shown["input_tokens"],
        cache_read_tokens=shown["cache_read_tokens"],
        cache_write_5m_tokens=shown["cache_write_tokens"],
        output_tokens=shown["output_tokens"],
    )


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    except (TimeoutError, ConnectionResetError):
        pass
    return False


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parents() -> dict[int, int]:
    """Every process that runs, with its parent; a zombie does not run."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue  # It ended while we looked.
            if state != "Z":
                found[int(entry.name)] = int(parent)
    return found


def _program(pid: int) -> str:
    """ "worker" or "daemon", empty for anything else: also for a child that has not become its program yet."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return words[3].decode() if words[1:3] == [b"-P", b"-m"] and words[3] in (b"worker", b"daemon") else ""
