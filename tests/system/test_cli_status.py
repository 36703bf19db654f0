"""`perdure status` while things are wrong: whoever is dead or hangs, it answers soon and says what is known.

One rule: it never takes longer than a person waits, and nothing it could find out is lost by what it could not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tests.clients import AnthropicTalk
from tests.processes import HOST, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.test_cli import perdure
from tests.system.turns import send_turn

pytestmark = pytest.mark.system

PATIENCE_SECONDS: Final = 3.0
START_SECONDS: Final = 5.0
"""What starting Python may take on a machine that does other things too."""

AS_NOBODY: Final = (
    # All that is read of the program is read before: this interpreter may be in a place that is root's alone.
    "import encodings.idna, importlib.metadata, os, sys; importlib.metadata.version = lambda _: '0.1.0'\n"
    "from daemon import cli; from worker import store\n"
    "steps = store._steps(); store._steps = lambda: steps\n"
    "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    "sys.exit(cli.main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider, daemons=2, tick_seconds=0.2) as running:
        running.start()
        with AnthropicTalk(running.url, "seen") as talk:
            talk.say("hello")
        yield running


def environ(gateway: Gateway) -> dict[str, str]:
    runtime_dir = gateway.environment["PERDURE_RUNTIME_DIR"]
    return {
        "PERDURE_STATE_DIR": str(gateway.directory),
        "PERDURE_RUNTIME_DIR": runtime_dir,
        "PERDURE_LISTEN": f"{HOST}:{gateway.port}",
    }


def status(gateway: Gateway, turns: int | None = 1) -> dict[str, Any]:
    started = time.monotonic()
    said = json.loads(perdure("status", "--json", **environ(gateway)).stdout)
    assert time.monotonic() - started < PATIENCE_SECONDS + START_SECONDS
    assert turns is None or said["database"]["turns"] == turns, "the database is read, whatever runs"
    return dict(said)


def test_status_tells_of_every_daemon_and_not_of_itself(gateway: Gateway) -> None:
    def told() -> list[tuple[int, str]]:
        return sorted((each["pid"], each["state"]) for each in status(gateway)["daemons"])

    expected = sorted((gateway.pid(name), "running") for name in gateway.daemons)
    eventually(lambda: told() == expected, what=lambda: str(told()))
    page = perdure("status", **environ(gateway)).stdout
    assert all(str(gateway.pid(name)) in page for name in ("worker", *gateway.daemons))
    assert max(map(len, page.splitlines())) <= 80


def test_status_hung_worker_is_named_and_every_daemon_is_still_told_of(gateway: Gateway) -> None:
    gateway.pause("worker")
    try:
        said = status(gateway)
    finally:
        gateway.resume("worker")
    assert (said["worker"]["pid"], said["worker"]["state"]) == (gateway.pid("worker"), "does not answer")
    assert any(f"pid {gateway.pid('worker')}" in reason for reason in said["reasons"])
    told = {each["pid"]: each for each in said["daemons"]}
    assert told.keys() == {gateway.pid(name) for name in gateway.daemons}
    for each in told.values():
        assert (each["state"], each["version"]) == ("running", "0.1.0")
        # A snapshot may have been on its way when the worker was stopped.
        assert each["outbox_writes"] in (0, 1)
        assert 0 < each["uptime_seconds"] < 600


@pytest.mark.parametrize("worker_hangs", [False, True])
@pytest.mark.parametrize("hung", ["daemon", "daemon-2"])
def test_hung_daemon_is_told_of_by_status_and_doctor_whoever_else_hangs(
    hung: str, worker_hangs: bool, gateway: Gateway
) -> None:
    """`daemon` is the one that has the address which is asked."""
    paused = [hung, *(["worker"] if worker_hangs else [])]
    for name in paused:
        gateway.pause(name)
    try:
        said = status(gateway)
        page = perdure("status", **environ(gateway)).stdout
        found = perdure("doctor", "--offline", "--json", **environ(gateway))
    finally:
        for name in paused:
            gateway.resume(name)
    states = {each["pid"]: each["state"] for each in said["daemons"]}
    other = next(name for name in gateway.daemons if name != hung)
    assert states == {gateway.pid(hung): "does not answer", gateway.pid(other): "running"}
    named = f"(pid {gateway.pid(hung)}) does not answer"
    assert any(named in reason for reason in said["reasons"]) and max(map(len, page.splitlines())) <= 80
    assert not any("start it" in reason for reason in said["reasons"])
    (finding,) = [each for each in json.loads(found.stdout)["findings"] if each["check"] == "daemon"]
    assert (found.returncode, finding["level"]) == (75, "error")
    assert named in finding["text"] and f"kill -9 {gateway.pid(hung)}" in finding["remedy"]


def test_status_daemon_that_drains_is_told_of_while_the_worker_hangs(
    gateway: Gateway, provider: ScriptedProvider
) -> None:
    """And a supervisor's listener, which calls it the same way, hears that it does not hang."""
    with gateway.client("daemon-2") as stream:
        send_turn(stream, "messages", "hold:leaving", session="leaving", stream=True)
        provider.wait_held("leaving")
        gateway.pause("worker")
        try:
            gateway.terminate("daemon-2")
            told = eventually(
                lambda: [each for each in status(gateway, turns=None)["daemons"] if each["state"] != "running"]
            )
        finally:
            gateway.resume("worker")
        provider.release("leaving")
        assert stream.read().complete
    assert [(each["pid"], each["state"]) for each in told] == [(gateway.pid("daemon-2"), "draining")]


def test_status_dead_worker_tells_what_waits(gateway: Gateway) -> None:
    gateway.kill("worker")
    with AnthropicTalk(gateway.url, "unseen") as talk:
        talk.say("hello")
    gateway.wait_status("degraded")
    said = status(gateway)
    assert (said["status"], said["worker"]["state"]) == ("degraded", "none")
    assert said["queue"]["writes"] > 0 and said["queue"]["oldest_seconds"] > 0
    assert "writes wait" in perdure("status", **environ(gateway)).stdout


def test_status_daemon_gone_the_worker_tells_of_the_others(gateway: Gateway) -> None:
    gateway.kill("daemon")
    run = perdure("status", "--json", **environ(gateway))
    said = json.loads(run.stdout)
    assert (run.returncode, said["status"], said["worker"]["state"]) == (75, "down", "committing")
    assert gateway.pid("daemon-2") in [each["pid"] for each in said["daemons"]]


def test_status_hung_daemon_does_not_take_longer(gateway: Gateway) -> None:
    gateway.pause("daemon")
    try:
        assert status(gateway)["status"] == "down"
    finally:
        gateway.resume("daemon")


def test_status_everything_dead_tells_what_is_stored(gateway: Gateway) -> None:
    gateway.kill_all()
    said = status(gateway)
    assert (said["status"], said["worker"]["running"], said["daemons"], said["commits"]) == ("down", False, [], None)


def test_status_has_the_exit_statuses_that_its_help_promises(provider: ScriptedProvider) -> None:
    found = {}
    with Gateway(provider, notice_seconds=60) as gateway:
        asked = environ(gateway)

        def look() -> None:
            run = perdure("status", "--json", **asked)
            found[json.loads(run.stdout)["status"]] = run.returncode

        gateway.start()
        look()
        gateway.kill("worker")
        gateway.wait_status("degraded")
        look()
        gateway.terminate("daemon")
        gateway.wait_status("unready")
        look()
        gateway.kill("daemon")
        look()
        found["broken"] = perdure("status", "--config", "/no/such/file", **asked).returncode
    assert found == {"ready": 0, "degraded": 0, "unready": 75, "down": 75, "broken": 78}
    told = " ".join(perdure("status", "--help").stdout.split())
    assert "0 turns are answered (ready, degraded); 75 they are not (unready, down); 78 the configuration" in told


def test_status_last_backup_is_told(gateway: Gateway) -> None:
    made = gateway.directory / "backups"
    made.mkdir()
    assert perdure("backup", str(made / "b.db"), **environ(gateway)).returncode == 0
    backup = status(gateway)["backup"]
    assert (backup["path"], backup["turns"]) == (str(made / "b.db"), 1) and 0 <= backup["age_seconds"] < 600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_status_another_user_is_told_what_is_closed_to_them(gateway: Gateway) -> None:
    run = as_nobody("status", "--json", environ=environ(gateway))
    said = json.loads(run.stdout)
    assert (run.returncode, said["status"]) == (0, "ready")
    assert "worker's user" in said["database"]["error"]
    assert (said["worker"]["state"], said["worker"]["running"]) == ("unknown", True)
    assert "Traceback" not in run.stderr


def as_nobody(*arguments: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", AS_NOBODY, *arguments],
        env={"PATH": os.environ.get("PATH", os.defpath), **environ},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
