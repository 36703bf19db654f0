"""SIGHUP: the settings that say who speaks are read again while everything goes on.

One rule: real processes; what a reload has done is seen in what the next request is taken for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients import RawAnswer, RawClient
from tests.processes import HOST, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.test_supervisord import Up
from tests.system.turns import send_turn, take_turn

pytestmark = pytest.mark.system

HEADER: Final = "x-house-conversation"
NAMING: Final = f'session_headers = ["{HEADER}"]\n'
READ_AGAIN: Final = "settings read again"


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "perdure.toml"
    path.write_text("")
    return path


@pytest.fixture
def gateway(provider: ScriptedProvider, config: Path) -> Iterator[Gateway]:
    with Gateway(provider, config=config) as running:
        running.start()
        yield running


def reload(gateway: Gateway, said: str = READ_AGAIN) -> str:
    """HUP; what the daemon has logged since, once that is in it."""
    start = gateway.log_size("daemon")
    os.kill(gateway.pid("daemon"), signal.SIGHUP)
    eventually(lambda: said in gateway.log("daemon", start), what=lambda: f"{said!r}\n{gateway.logs()}")
    return gateway.log("daemon", start)


def ask(client: RawClient, text: str, name: str) -> RawAnswer:
    answer = take_turn(client, "chat", text, headers=[(HEADER, name)])
    assert answer.status == 200
    return answer


def naming(gateway: Gateway, answer: RawAnswer) -> tuple[str, str]:
    """Header and value that named the session of an answer."""
    shown: dict[str, Any] = gateway.session(answer.header("x-perdure-session"))
    return shown["header_name"], shown["header_session_id"]


def accounts(gateway: Gateway) -> list[tuple[str, str | None]]:
    """Account and alias of every session, as a daemon shows them."""
    found = gateway.get("/api/sessions")
    assert found is not None
    return [(shown["account"], shown["account_alias"]) for shown in json.loads(found[1])]


def test_reload_unknown_header_names_nothing_and_a_configured_one_names_its_session(
    gateway: Gateway, config: Path
) -> None:
    pid = gateway.pid("daemon")
    # One connection for all of it: a reload loses none.
    with gateway.client() as client:
        assert HEADER not in naming(gateway, ask(client, "before", "one"))
        config.write_text(NAMING)
        assert HEADER not in naming(gateway, ask(client, "not read yet", "one"))
        assert f"{READ_AGAIN}: session_headers" in reload(gateway)
        after = ask(client, "after", "one")
        assert naming(gateway, after) == (HEADER, "one")
        again = ask(client, "of quite another thing", "one")
        assert again.header("x-perdure-session") == after.header("x-perdure-session")
        config.write_text("")
        reload(gateway)
        assert HEADER not in naming(gateway, ask(client, "taken back", "one"))
    assert gateway.is_running("daemon")
    assert gateway.pid("daemon") == pid


def test_reload_configured_body_field_names_its_session(gateway: Gateway, config: Path) -> None:
    config.write_text('session_fields = ["house.thread"]\n')
    reload(gateway)
    with gateway.client() as client:
        answer = take_turn(client, "messages", "hello", house={"thread": "t-1"})
        assert naming(gateway, answer) == ("house.thread", "t-1")


def test_reload_account_alias_is_shown_at_once(gateway: Gateway, config: Path) -> None:
    config.write_text('[account_aliases]\nacc-1 = "the house"\n')
    with gateway.client() as client:
        take_turn(client, "chat", "hello", session="named", headers=[("chatgpt-account-id", "acc-1")])
    assert accounts(gateway) == [("acc-1", None)]
    reload(gateway)
    assert accounts(gateway) == [("acc-1", "the house")]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("session_headers = [", "not TOML"),
        ('session_headers = ["x y"]', "is not the name of a header"),
        ("session_header = []", "did you mean 'session_headers'"),
        (None, "No such file"),
    ],
)
def test_reload_of_a_broken_file_says_why_and_changes_nothing(
    gateway: Gateway, config: Path, broken: str | None, reason: str
) -> None:
    config.write_text(NAMING)
    reload(gateway)
    config.unlink() if broken is None else config.write_text(broken)
    log = reload(gateway, said="settings stay as they were")
    (line,) = log.splitlines()
    assert " ERROR " in line and str(config) in line and reason in line
    with gateway.client() as client:
        assert naming(gateway, ask(client, "as before", "one")) == (HEADER, "one")


def test_reload_names_in_one_line_what_needs_a_restart(gateway: Gateway, config: Path) -> None:
    config.write_text(f"{NAMING}drain_seconds = 3\nbody_bytes = 5000\n")
    warnings = [line for line in reload(gateway).splitlines() if " WARNING " in line]
    assert [line.partition("needs a restart: ")[2] for line in warnings] == ["drain_seconds, body_bytes"]
    with gateway.client() as client:
        assert naming(gateway, ask(client, "x" * 6_000, "one")) == (HEADER, "one")
    # What could not be put in force is still not in force, and said as often as somebody asks for it.
    assert "needs a restart: drain_seconds, body_bytes" in reload(gateway)
    config.write_text(NAMING)
    assert "needs a restart" not in reload(gateway)


def test_reload_cuts_no_stream_and_lets_requests_under_way_finish(
    provider: ScriptedProvider, gateway: Gateway, config: Path
) -> None:
    config.write_text(NAMING)
    with gateway.client() as streaming, gateway.client() as waiting:
        send_turn(streaming, "messages", "hold:stream words:30", session="streamed", stream=True)
        send_turn(waiting, "messages", "stall:whole", session="whole")
        assert streaming.read_until(b"content_block_delta")
        provider.wait_held("whole")
        reload(gateway)
        provider.release("stream")
        provider.release("whole")
        answers = [streaming.read(), waiting.read()]
    assert [(answer.status, answer.complete) for answer in answers] == [(200, True)] * 2
    assert b"message_stop" in answers[0].body
    assert [naming(gateway, answer)[1] for answer in answers] == ["streamed", "whole"]


def test_reload_asked_for_while_settings_are_read_for_the_first_time_comes_after_that(
    provider: ScriptedProvider, config: Path
) -> None:
    with Gateway(provider, config=config) as gateway, ThreadPoolExecutor(1) as pool:
        gateway.start_worker()
        eventually(lambda: "ready at" in gateway.log("worker"), what="a worker that has read its settings")
        # The daemon reads a pipe, and so is in the middle of reading for as long as this test likes.
        config.unlink()
        os.mkfifo(config)
        starting = pool.submit(gateway.start_daemon)
        pipe = eventually(lambda: open_for_writing(config), what="the daemon reads its settings")
        os.kill(gateway.pid("daemon"), signal.SIGHUP)
        config.with_suffix(".new").write_text(NAMING)
        config.with_suffix(".new").rename(config)
        os.close(pipe)
        starting.result()
        eventually(lambda: READ_AGAIN in gateway.log("daemon"), what="they are read again")
        gateway.wait_ready()
        with gateway.client() as client:
            assert naming(gateway, ask(client, "hello", "one")) == (HEADER, "one")


def open_for_writing(pipe: Path) -> int:
    """A descriptor; 0 while nobody reads."""
    with contextlib.suppress(OSError):
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    return 0


def test_reload_under_up_reaches_every_daemon_and_nobody_is_replaced(provider: ScriptedProvider, config: Path) -> None:
    with Up(provider, daemons=2, config=config) as perdure:
        perdure.wait_status("ready")
        before = perdure.children()
        assert sorted(before.values()) == ["daemon", "daemon", "worker"]
        logs = [perdure.directory / "log" / f"daemon-{number}.log" for number in range(2)]
        for log in logs:
            # One that has not read its settings yet has none to read again.
            eventually(lambda log=log: "listening on" in log.read_text(), what=f"{log.name} listens")  # type: ignore[misc]
        config.write_text(NAMING)
        perdure.process.send_signal(signal.SIGHUP)
        for log in logs:
            eventually(lambda log=log: READ_AGAIN in log.read_text(), what=f"{log.name} says so")  # type: ignore[misc]
        with RawClient(HOST, perdure.port) as client:
            session = ask(client, "hello", "one").header("x-perdure-session")
        assert perdure.sessions()[session]["header_name"] == HEADER
        assert perdure.children() == before
        assert perdure.process.poll() is None


def test_reload_of_a_daemon_that_has_just_been_started_is_not_its_end(provider: ScriptedProvider, config: Path) -> None:
    with Up(provider, config=config) as perdure:
        perdure.wait_status("ready")
        (killed,) = perdure.pids("daemon")
        config.write_text(NAMING)
        os.kill(killed, signal.SIGKILL)
        (successor,) = eventually(lambda: perdure.pids("daemon") - {killed}, what="a successor")
        log = perdure.directory / "log" / "daemon-0.log"
        heard = log.read_text().count("listening on")
        while log.read_text().count("listening on") == heard:
            os.kill(successor, signal.SIGHUP)
        perdure.wait_status("ready")
        assert perdure.pids("daemon") == {successor}
        # The worker and the listener have nothing to read again, and no reason to end.
        before = perdure.children()
        for pid in perdure.pids("worker"):
            os.kill(pid, signal.SIGHUP)
        perdure.wait_status("ready")
        assert perdure.children() == before


def test_reload_asked_of_a_worker_changes_nothing(gateway: Gateway) -> None:
    os.kill(gateway.pid("worker"), signal.SIGHUP)
    with gateway.client() as client:
        session = ask(client, "hello", "one").header("x-perdure-session")
    assert gateway.is_running("worker")
    assert gateway.session(session)["turns"] == 1
