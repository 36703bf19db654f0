"""`perdure run -- COMMAND`, `down` and `ctl`: the console script, a gateway in the background, and the SDKs as agents.

One rule: every test leaves nothing running, also when it fails, and asks the operating system whether that is so.
"""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from daemon.verbs.background import supervisor_pid
from tests.processes import HOST, Gateway, eventually, free_ports
from tests.provider import ScriptedProvider
from worker.settings import load

pytestmark = pytest.mark.system

PERDURE: Final = str(Path(sys.executable).with_name("perdure"))
CHECKOUT: Final = Path(__file__).resolve().parents[2]
AGENT: Final = """
import sys, anthropic, openai
hello = [{"role": "user", "content": " ".join(sys.argv[1:])}]
said = anthropic.Anthropic(max_retries=0).messages.with_raw_response.create(
    model="claude-sonnet-4-6", max_tokens=100, messages=hello)
also = openai.OpenAI(max_retries=0).chat.completions.with_raw_response.create(model="gpt-5", messages=hello)
print(said.headers["x-perdure-session"], also.headers["x-perdure-session"])
"""
"""An agent that knows nothing of perdure: each SDK finds its provider as it always does."""
SMALL_AGENT: Final = """
import os, sys, json, http.client, urllib.parse
body = {"model": "claude-sonnet-4-6", "max_tokens": 9, "messages": [{"role": "user", "content": sys.argv[1]}]}
connection = http.client.HTTPConnection(urllib.parse.urlsplit(os.environ["ANTHROPIC_BASE_URL"]).netloc, timeout=30)
connection.request("POST", "/v1/messages", json.dumps(body), {"x-api-key": "k", "content-type": "application/json"})
response = connection.getresponse()
assert response.status == 200, response.read()
response.read()
print(response.headers["x-perdure-session"])
"""
"""One that is there at once: the SDKs need seconds to be read on a loaded machine."""
PYTHON: Final = (sys.executable, "-c")
SMALL: Final = (sys.executable, "-S", "-c", SMALL_AGENT)


class Place:
    """A directory of its own in which a gateway may run."""

    def __init__(self, provider: ScriptedProvider, **settings: object) -> None:
        self.directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
        self.state = self.directory / "state"
        self.port = free_ports(1)[0]
        self.environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.directory),
            "ANTHROPIC_API_KEY": "key-for-tests",
            "OPENAI_API_KEY": "key-for-tests",
            "PERDURE_STATE_DIR": str(self.state),
            "PERDURE_LISTEN": f"{HOST}:{self.port}",
            "PERDURE_ANTHROPIC_URL": provider.url,
            "PERDURE_OPENAI_URL": provider.url,
            "PERDURE_TICK_SECONDS": "0.5",
            **{f"PERDURE_{name.upper()}": str(value) for name, value in settings.items()},
        }

    def close(self) -> None:
        if (pid := self.supervisor()) is not None:
            self.perdure("down")
            assert self.supervisor() is None, f"{pid} still runs"
        shutil.rmtree(self.directory, ignore_errors=True)

    def perdure(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PERDURE, *words],
            env=self.environ | environ,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.perdure("run", "--", *command, **environ)

    def supervisor(self) -> int | None:
        return supervisor_pid(load({}, self.environ))

    def log(self, name: str) -> str:
        return (self.state / "log" / f"{name}.log").read_text("utf-8")

    def sessions(self) -> dict[str, dict[str, Any]]:
        return {shown["session_id"]: shown for shown in json.loads(self.perdure("sessions", "--json").stdout)}


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture
def place(provider: ScriptedProvider) -> Iterator[Place]:
    made = Place(provider)
    yield made
    made.close()


@pytest.fixture(scope="module")
def there(provider: ScriptedProvider) -> Iterator[Place]:
    """One in which a gateway with two daemons runs already."""
    made = Place(provider, daemons=2)
    assert made.run("true").returncode == 0
    yield made
    made.close()


# -- start, use, stop ----------------------------------------------------------------------------------------------


def test_run_nothing_runs_starts_a_gateway_that_goes_on_until_down(place: Place) -> None:
    first = place.run(*PYTHON, AGENT, "hello")
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("\n") == 1 and "started on" in first.stderr and "perdure down" in first.stderr
    supervisor = place.supervisor()
    second = place.run(*SMALL, "good morning")
    assert (second.returncode, second.stderr) == (0, "")
    assert place.supervisor() == supervisor
    told = {*first.stdout.split(), *second.stdout.split()}
    assert len(told) == 3 and set(place.sessions()) == told

    down = place.perdure("down")
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    assert place.supervisor() is None
    with socket.create_server((HOST, place.port)):
        pass
    assert set(place.sessions()) == told
    again = place.perdure("down")
    assert again.returncode == 0 and "nothing runs" in again.stdout

    # The next gateway goes on where the last one was.
    third = place.run(*SMALL, "good evening")
    assert third.returncode == 0
    assert set(place.sessions()) == {*told, *third.stdout.split()}


def test_run_five_at_once_start_one_gateway(place: Place) -> None:
    command = [PERDURE, "run", "--", *SMALL]
    runs = [
        subprocess.Popen([*command, f"hello {n}"], env=place.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for n in range(5)
    ]
    said = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0] * 5, said
    assert sorted(stderr.count(b"started on") for _, stderr in said) == [0, 0, 0, 0, 1]
    assert place.log("supervisord").count("supervisord started") == 1
    assert len(place.sessions()) == 5


def test_run_uses_and_down_stops_a_gateway_in_the_foreground(place: Place) -> None:
    up = subprocess.Popen([PERDURE, "up"], env=place.environ, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: place.supervisor() == up.pid, what="the supervisor listens")
        # While it starts nobody answers yet, and lock and port are taken.
        run = place.run(*SMALL, "hello")
        assert run.returncode == 0, run.stderr
        assert "started" not in run.stderr
        assert place.perdure("down").returncode == 0
        assert up.wait(10) == 0
    finally:
        up.kill()
        up.wait(10)


def test_run_beside_an_up_that_has_just_been_typed_there_is_one_gateway(place: Place) -> None:
    up = subprocess.Popen([PERDURE, "up"], env=place.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        run = place.run(*SMALL, "hello")
        assert run.returncode == 0, run.stderr
        assert len(place.sessions()) == 1
    finally:
        place.perdure("down")
        up.kill()
        up.wait(10)


def test_run_supervisor_was_killed_starts_anew(place: Place) -> None:
    place.run("true")
    killed = place.supervisor()
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    run = place.run(*SMALL, "hello")
    assert run.returncode == 0, run.stderr
    assert place.supervisor() not in (None, killed)


def test_gateway_in_the_background_takes_nothing_of_its_starter_along(place: Place) -> None:
    config = place.directory / "settings.toml"
    config.write_text(f'[providers]\nlocal = "http://{HOST}:9"\n')
    assert place.run("true", PERDURE_CONFIG="settings.toml", SOME_KEY="sk-abc").returncode == 0
    pid = place.supervisor()
    process = Path(f"/proc/{pid}")
    assert int((process / "stat").read_text().rpartition(")")[2].split()[1]) == 1 or os.getppid() != pid
    assert os.getsid(pid or 0) != os.getsid(0)
    assert (process / "cwd").readlink() == place.state / "log"
    environ = dict(entry.split("=", 1) for entry in (process / "environ").read_text().split("\0") if entry)
    assert environ["PERDURE_CONFIG"] == str(config)
    assert not {"SOME_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"} & environ.keys()
    assert {name.partition("_")[0] for name in environ} <= {"PATH", "HOME", "PERDURE", "LC"}
    assert {(process / "fd" / name).readlink().name for name in ("0", "1", "2")} == {"null", "up.log"}


# -- the command is the command ------------------------------------------------------------------------------------


def test_run_becomes_the_command_with_its_pid_and_exit_status(there: Place) -> None:
    command = [PERDURE, "run", "--", "sh", "-c", "echo $$; exit 7"]
    with subprocess.Popen(command, env=there.environ, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and int(run.stdout.readline()) == run.pid
        assert run.wait(10) == 7
    assert there.run("sh", "-c", "kill -9 $$").returncode == -signal.SIGKILL
    assert there.perdure("run", "sh", "-c", "exit 3").returncode == 3, "the two dashes may be left out"


def test_run_what_follows_the_command_is_the_commands(there: Place) -> None:
    run = there.run("sh", "-c", 'echo "$@"', "sh", "--help", "--listen", "x", "--", "-h")
    assert run.stdout == "--help --listen x -- -h\n"
    flags = there.perdure("run", "--listen", f"{HOST}:{there.port}", "--", "sh", "-c", "echo $ANTHROPIC_BASE_URL")
    assert flags.stdout == f"http://{HOST}:{there.port}\n"


def test_run_signals_are_as_the_command_would_find_them_alone(there: Place) -> None:
    command = ("grep", "^Sig[BI]", "/proc/self/status")
    # As a shell starts it; this process, which is Python, ignores some itself.
    alone = subprocess.run(command, capture_output=True, text=True, check=True, restore_signals=True).stdout
    assert there.run(*command).stdout == alone


def test_run_ctrl_c_goes_to_the_command_alone(there: Place) -> None:
    agent = (
        "import os, signal\n"
        "def stop(*_): os.write(1, b'heard'); os._exit(5)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "print('foreground', os.tcgetpgrp(0) == os.getpgrp(), flush=True)\n"
        "while True: signal.pause()\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(PERDURE, [PERDURE, "run", "--", *PYTHON, agent], there.environ)
    try:
        said = read_until(terminal, b"foreground True")
        os.write(terminal, b"\x03")
        read_until(terminal, b"heard")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    finally:
        os.close(terminal)
    assert b"started" not in said
    assert json.loads(there.perdure("status", "--json").stdout)["status"] == "ready"


def test_run_gateway_that_a_command_in_a_terminal_started_survives_the_terminal(place: Place) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(PERDURE, [PERDURE, "run", "--", "sh", "-c", "echo runs; read line"], place.environ)
    read_until(terminal, b"runs")
    os.close(terminal)
    os.waitpid(pid, 0)
    assert json.loads(place.perdure("status", "--json").stdout)["status"] == "ready"


def read_until(terminal: int, text: bytes) -> bytes:
    """What a terminal shows, up to this text."""
    said = b""
    deadline = time.monotonic() + 30
    while text not in said:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], said
        said += os.read(terminal, 1024)
    return said


# -- the token, and agents by name -------------------------------------------------------------------------------


def test_run_the_sdks_send_the_token(provider: ScriptedProvider) -> None:
    place = Place(provider, token="abc123")
    try:
        agent = place.directory / "claude"
        agent.write_text(f"#!{sys.executable}\n{AGENT.split('also')[0]}print(said.headers['x-perdure-session'])\n")
        agent.chmod(0o755)
        run = place.run(*PYTHON, AGENT, "hello")
        assert run.returncode == 0, run.stderr
        assert "x-perdure-token" in run.stderr
        claude = place.run("./claude", "hello")
        assert claude.returncode == 0, claude.stderr
        assert len(claude.stdout.split()) == 1 and claude.stderr == ""
        assert "abc123" not in run.stderr + place.log("up") + place.log("supervisord")
    finally:
        place.close()


def test_run_what_the_user_had_set_is_replaced_and_said_so(there: Place) -> None:
    run = there.run("sh", "-c", "echo $OPENAI_BASE_URL", OPENAI_BASE_URL="https://user:secret@example.com/v1")
    assert run.stdout == f"http://{HOST}:{there.port}/v1\n"
    assert run.stderr.count("\n") == 1
    assert "OPENAI_BASE_URL is replaced" in run.stderr and "PERDURE_OPENAI_URL" in run.stderr
    assert "secret" not in run.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, which Pi runs on")
def test_pi_extension_points_both_providers_at_the_gateway() -> None:
    program = (
        f"import extend from '{CHECKOUT}/daemon/agents_pi.mjs';"
        "const told = {}; extend({registerProvider: (name, how) => { told[name] = how; }});"
        "console.log(JSON.stringify(told));"
    )
    environ = {"PATH": os.environ["PATH"], "PERDURE_URL": "http://here", "PERDURE_TOKEN": "abc"}
    run = subprocess.run(
        ["node", "--input-type=module", "-e", program], env=environ, capture_output=True, text=True, check=True
    )
    headers = {"x-perdure-token": "abc"}
    assert json.loads(run.stdout) == {
        "anthropic": {"baseUrl": "http://here", "headers": headers},
        "openai": {"baseUrl": "http://here/v1", "headers": headers},
    }


# -- what can go wrong ---------------------------------------------------------------------------------------------


def test_run_no_command_is_status_2(place: Place) -> None:
    for words in (("run",), ("run", "--")):
        run = place.perdure(*words)
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1 and "perdure run -- claude" in run.stderr


def test_run_command_missing_is_status_127_and_starts_nothing(place: Place) -> None:
    run = place.run("no-such-agent", "--help")
    assert run.returncode == 127
    assert run.stderr == "perdure: no-such-agent: no such command; install it, or give its path\n"
    (place.directory / "notes").write_text("no program")
    run = place.run("./notes")
    assert run.returncode == 126
    assert run.stderr.count("\n") == 1
    assert not place.state.exists()


def test_run_another_program_on_the_port_is_status_75(place: Place, provider: ScriptedProvider) -> None:
    run = place.run("true", PERDURE_LISTEN=f"{HOST}:{provider.port}")
    assert run.returncode == 75
    assert run.stderr.count("\n") == 1
    assert "another program listens" in run.stderr and "PERDURE_LISTEN" in run.stderr
    assert place.supervisor() is None


def test_run_gateway_that_can_not_be_started_says_why(place: Place) -> None:
    run = place.run("true", PERDURE_RUNTIME_DIR="/tmp/" + "d" * 90)
    assert run.returncode == 78
    assert run.stderr.count("\n") == 1 and "PERDURE_RUNTIME_DIR" in run.stderr
    (place.state / "log").write_text("")
    run = place.run("true")
    assert run.returncode == 78
    assert run.stderr.count("\n") == 1 and str(place.state / "log") in run.stderr


def test_run_worker_refuses_its_database_the_command_runs_degraded(place: Place) -> None:
    place.state.mkdir(mode=0o700)
    (place.state / "perdure.db").write_text("Dear diary, " * 100)
    run = place.run(*SMALL, "hello")
    assert run.returncode == 0, run.stderr
    assert "degraded (worker not there" in run.stderr


def test_run_and_down_a_worker_of_another_supervisor_is_left_alone(provider: ScriptedProvider) -> None:
    place = Place(provider)
    with Gateway(provider) as other:
        try:
            other.start()
            place.environ["PERDURE_STATE_DIR"] = str(other.directory)
            run, down = place.run("true"), place.perdure("down")
            assert (run.returncode, down.returncode) == (75, 75)
            pid = str(other.pid("worker"))
            assert pid in run.stderr and pid in down.stderr
            assert run.stderr.count("\n") == down.stderr.count("\n") == 1
            assert other.is_running("worker")
        finally:
            place.close()


def test_run_gateway_of_the_same_state_listens_elsewhere_it_says_what_it_waits_for(there: Place) -> None:
    command = [PERDURE, "run", "--listen", f"{HOST}:{free_ports(1)[0]}", "--", "true"]
    run = subprocess.Popen(command, env=there.environ, stderr=subprocess.PIPE, text=True)
    try:
        assert run.stderr is not None
        said = run.stderr.readline()
        assert "another perdure worker" in said and "waiting" in said
    finally:
        run.kill()
        run.communicate(timeout=10)


# -- ctl -----------------------------------------------------------------------------------------------------------


def test_ctl_nothing_runs_is_status_75(place: Place) -> None:
    run = place.perdure("ctl", "status")
    assert run.returncode == 75
    assert run.stderr.count("\n") == 1 and "perdure up" in run.stderr


def test_ctl_works_from_any_directory(there: Place) -> None:
    for directory in (there.directory, Path("/"), CHECKOUT):
        run = subprocess.run(
            [PERDURE, "ctl", "status"], env=there.environ, cwd=directory, capture_output=True, text=True, check=False
        )
        assert (run.returncode, run.stderr) == (0, "")
        shown = {line.split()[0]: line.split()[1] for line in run.stdout.splitlines()}
        assert shown == dict.fromkeys(("daemon:daemon-0", "daemon:daemon-1", "health", "worker"), "RUNNING")


def test_ctl_stop_start_and_tail(there: Place) -> None:
    stopped = there.perdure("ctl", "stop", "worker")
    assert (stopped.returncode, stopped.stdout) == (0, "worker: stopped\n")
    assert there.perdure("ctl", "status", "worker").returncode == 75
    run = there.run(*SMALL, "while the worker is away")
    assert run.returncode == 0, run.stderr
    tail = there.perdure("ctl", "tail", "worker")
    assert tail.returncode == 0 and "stopped" in tail.stdout
    assert there.perdure("ctl", "start", "worker").returncode == 0
    eventually(lambda: set(run.stdout.split()) <= set(there.sessions()), what="the session has arrived")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("restart", "daemon-1"), "no process is called 'daemon-1'; did you mean 'daemon:daemon-1'?"),
        (("restart", "daemon:0"), "did you mean 'daemon:daemon-0'?"),
        (("stop", "daemon"), "did you mean 'daemon:*', all of them?"),
        (("status", "wroker"), "did you mean 'worker'?"),
        (("tail", "something"), "there are daemon:daemon-0, daemon:daemon-1, health, worker, daemon:* and all"),
        (("tail", "daemon:*"), "tail takes one process"),
        (("restart",), "restart which? there are daemon:daemon-0, "),
        (("signal", "HUP", "daemon-0"), "did you mean 'daemon:daemon-0'?"),
        (("restrat", "worker"), "did you mean 'restart'?"),
        (("--nodaemon",), "`perdure ctl --help`"),
    ],
)
def test_ctl_what_is_not_understood_is_status_2_with_what_was_meant(
    words: tuple[str, ...], said: str, there: Place
) -> None:
    run = there.perdure("ctl", *words)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert said in run.stderr


@pytest.mark.parametrize("words", [("status", "daemon:*"), ("status", "daemon:"), ("status", "all"), ("pid", "worker")])
def test_ctl_every_right_name_is_taken(words: tuple[str, ...], there: Place) -> None:
    run = there.perdure("ctl", *words)
    assert (run.returncode, run.stderr) == (0, "") and run.stdout


def test_ctl_whose_reader_has_all_it_wanted_ends_quietly(there: Place) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        run = subprocess.run(
            [PERDURE, "ctl", "status"], env=there.environ, stdout=writes, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writes)
    assert (run.returncode, run.stderr) == (0, b"")


def test_ctl_what_could_not_be_done_is_status_75(there: Place) -> None:
    run = there.perdure("ctl", "signal", "FOO", "worker")
    assert run.returncode == 75 and "bad signal name" in run.stdout


# -- a configuration that was broken meanwhile ---------------------------------------------------------------------

BROKEN: Final = {
    "no TOML": "{places}daemons = two\n",
    "a key that there is not": "{places}daemon = 2\n",
    "a value of another kind": '{places}drain_seconds = "soon"\ndaemons = [2]\n',
    "cut off in a table": '{places}[models."x"]\ninput = \n',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_down_and_ctl_reach_what_runs_whatever_became_of_the_file(text: str, provider: ScriptedProvider) -> None:
    place = Place(provider)
    try:
        config = place.directory / "perdure.toml"
        state, run_dir = place.environ.pop("PERDURE_STATE_DIR"), place.directory / "run"
        places = f'state_dir = "{state}"\nruntime_dir = "{run_dir}"\n'
        config.write_text(places)
        place.environ["PERDURE_CONFIG"] = str(config)
        assert place.run("true").returncode == 0
        config.write_text(text.format(places=places))
        assert place.perdure("status").returncode == 78
        told = place.perdure("ctl", "status", "worker")
        assert (told.returncode, told.stderr.count("\n")) == (0, 1), told
        assert "RUNNING" in told.stdout and str(config) in told.stderr
        down = place.perdure("down")
        assert (down.returncode, down.stdout) == (0, "stopped\n")
        assert str(config) in down.stderr and f"looking in {run_dir} all the same" in down.stderr
    finally:
        place.environ.pop("PERDURE_CONFIG", None)
        place.environ |= {"PERDURE_STATE_DIR": str(place.state), "PERDURE_RUNTIME_DIR": str(place.directory / "run")}
        place.close()


def test_down_whose_file_is_gone_looks_where_it_would_without_one(place: Place) -> None:
    assert place.run("true").returncode == 0
    down = place.perdure("down", "--config", "/no/such/file.toml")
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    assert "/no/such/file.toml" in down.stderr
