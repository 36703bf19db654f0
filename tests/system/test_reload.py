"""SIGHUP: settings are read again while everything goes on, and the log says what came of it, value by value.

One rule: real processes; what a reload has done is seen in what becomes of the next request, never in the log alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients import RawAnswer, RawClient
from tests.processes import HOST, Gateway, eventually, free_ports
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


def reload(gateway: Gateway, said: str = READ_AGAIN, program: str = "daemon") -> str:
    """HUP; what the program has logged since, once that is in it."""
    start = gateway.log_size(program)
    os.kill(gateway.pid(program), signal.SIGHUP)
    eventually(lambda: said in gateway.log(program, start), what=lambda: f"{said!r}\n{gateway.logs()}")
    return gateway.log(program, start)


def told(log: str, level: str) -> list[str]:
    """The events of one level, without their heads."""
    return [line.partition("] ")[2] for line in log.splitlines() if f" {level} " in line]


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


def test_reload_says_of_every_value_whether_it_is_in_force_or_needs_a_restart(gateway: Gateway, config: Path) -> None:
    config.write_text(f'{NAMING}drain_seconds = 3\nca_file = ""\ndaemons = 4\ncurve_dir = "/k"\nledger_days = 5\n')
    log = reload(gateway)
    assert told(log, "WARNING") == [
        'needs a restart: curve_dir in_force="" wanted=/k',
        "needs a restart: daemons in_force=1 wanted=4",
    ]
    drain, changed, summary = told(log, "INFO")
    assert drain == "setting changed setting=drain_seconds before=30.0 now=3.0"
    assert changed.startswith("setting changed setting=session_headers before=") and HEADER in changed
    assert summary == f"{READ_AGAIN}: drain_seconds, session_headers", (
        "what the worker alone uses is the worker's to say"
    )
    with gateway.client() as client:
        assert naming(gateway, ask(client, "hello", "one")) == (HEADER, "one")
    # What could not be put in force is still not in force, and said as often as somebody asks for it.
    assert "needs a restart: daemons in_force=1" in reload(gateway)
    config.write_text(f"{NAMING}drain_seconds = 3\n")
    assert told(reload(gateway), "INFO") == [f"{READ_AGAIN}: nothing has changed"]


def test_reload_of_prices_and_limits_counts_from_the_next_turn(gateway: Gateway, config: Path) -> None:
    with gateway.client() as client:
        before = take_turn(client, "chat", "hello", session="priced", model="in-house-9b")
        config.write_text('[models."in-house-9b"]\ninput = 2\noutput = 10\ncontext_window = 40_000\n')
        assert "settings read again: models" in reload(gateway)
        take_turn(client, "chat", "hello", session="priced", model="in-house-9b")
        config.write_text('[models."in-house-9b"]\ninput = 20\noutput = 100\ncontext_window = 50_000\n')
        assert "setting=models.in-house-9b" in reload(gateway)
        take_turn(client, "chat", "hello", session="priced", model="in-house-9b")
    unpriced, first, second = gateway.rows()
    assert (unpriced.cost_nanousd, unpriced.price_version, unpriced.cap_ceiling) == (None, "", 0)
    assert first.usage is not None and first.cost_nanousd is not None and second.usage is not None
    usage = first.usage
    assert first.cost_nanousd == 2_000 * usage.prompt_tokens + 10_000 * usage.output_tokens > 0
    assert second.cost_nanousd == 20_000 * second.usage.prompt_tokens + 100_000 * second.usage.output_tokens
    assert first.price_version.startswith("own-") and second.price_version not in ("", first.price_version)
    shown = gateway.session(before.header("x-perdure-session"))
    assert (shown["cost_nanousd"], shown["unpriced_turns"]) == (first.cost_nanousd + second.cost_nanousd, 1)
    assert [row.cap_ceiling for row in (first, second)] == [40_000, 50_000]
    assert shown["gradient"]["dynamic_context_cap"] <= 50_000


def test_reload_of_what_a_request_meets_at_the_door(gateway: Gateway, config: Path) -> None:
    named, secret = [("Host", "perdure.example")], [("x-perdure-token", "s3cret")]
    with gateway.client() as client:
        assert client.ask("GET", "/v1/models", named).status == 421
        config.write_text('hosts = ["perdure.example"]\nbody_bytes = 5000\n')
        reload(gateway)
        assert client.ask("GET", "/v1/models", named).status == 200
        assert take_turn(client, "chat", "x" * 6_000).status == 413
    with gateway.client() as client:
        config.write_text('token = "s3cret"\n')
        log = reload(gateway)
        assert 'setting=token before="" now=(set)' in log and "s3cret" not in log
        assert client.ask("GET", "/v1/models").status == 401
        assert client.ask("GET", "/v1/models", secret).status == 200
        assert take_turn(client, "chat", "x" * 6_000, headers=secret).status == 200


def test_reload_of_a_provider_s_address_sends_the_next_request_there(gateway: Gateway, config: Path) -> None:
    with ScriptedProvider() as other, gateway.client() as client:
        config.write_text(f'[providers]\nother = "{other.url}"\n')
        reload(gateway)
        assert client.ask("GET", "/other/v1/models").status == 200
        assert [request.path for request in other.requests] == ["/v1/models"]
        config.write_text("")
        log = reload(gateway)
        assert f'setting=providers.other before="{other.url}"' in log or f"before={other.url}" in log


def test_reload_of_the_tick_does_not_wait_for_the_one_before(provider: ScriptedProvider, config: Path) -> None:
    config.write_text("tick_seconds = 3600\n")
    with Gateway(provider, config=config) as gateway:
        gateway.start()
        with gateway.client() as client:
            take_turn(client, "chat", "hello", session="ticked")
        config.write_text("tick_seconds = 0.05\n")
        reload(gateway)
        eventually(lambda: gateway.records()[0].session.snapshot, what="a snapshot")


def test_reload_that_would_open_the_door_is_refused(provider: ScriptedProvider, config: Path) -> None:
    """Each file by itself is right; but the address in force stays, and without the token all could reach it."""
    (port,) = free_ports(1)
    by_file = ["/usr/bin/env", "-u", "PERDURE_LISTEN", sys.executable, "-P", "-m", "daemon"]
    config.write_text(f'token = "t"\nlisten = "0.0.0.0:{port}"\n')
    with Gateway(provider, config=config, programs={"daemon": by_file}) as gateway:
        gateway.ports["daemon"] = port
        gateway.start_daemon()
        config.write_text(f'listen = "127.0.0.1:{port}"\n')
        (line,) = told(reload(gateway, said="settings stay as they were"), "ERROR")
        assert "is reachable from other machines; set PERDURE_TOKEN" in line
        with gateway.client() as client:
            assert client.ask("GET", "/v1/models").status == 401


def test_reload_of_a_log_s_level_and_form(gateway: Gateway, config: Path) -> None:
    for program in ("daemon", "worker"):
        config.write_text('log_format = "json"\n')
        log = reload(gateway, program=program)
        assert "setting=log_format before=text now=json" in log, "the change itself is still told as before"
        config.write_text("")
        *objects, last = reload(gateway, said="settings read again", program=program).splitlines()
        assert [json.loads(line)["event"] for line in objects] == ["setting changed"]
        assert json.loads(last)["event"] == f"{READ_AGAIN}: log_format"
        config.write_text('log_level = "warning"\n')
        reload(gateway, program=program)
    start = gateway.log_size("daemon")
    with gateway.client() as client:
        take_turn(client, "chat", "hello")
    assert "turn settled" not in gateway.log("daemon", start)


def test_reload_of_what_a_variable_overrules_says_so(provider: ScriptedProvider, config: Path) -> None:
    with Gateway(provider, config=config, log_level="info") as gateway:
        gateway.start()
        config.write_text('log_level = "debug"\nbody_bytes = 5000\n')
        log = reload(gateway)
        overruled = f"log_level in {config} is not looked at: PERDURE_LOG_LEVEL is set in_force=info in_file=debug"
        assert told(log, "WARNING") == [overruled]
        assert f"{READ_AGAIN}: body_bytes" in log


def test_reload_of_the_worker_keeps_rows_for_another_time(provider: ScriptedProvider, config: Path) -> None:
    with Gateway(provider, config=config) as gateway:
        gateway.start()
        config.write_text("ledger_days = 7\ndrain_seconds = 3\ngroup = 'perdure'\n")
        log = reload(gateway, program="worker")
        assert told(log, "WARNING") == ['needs a restart: group in_force="" wanted=perdure']
        assert told(log, "INFO") == [
            "setting changed setting=ledger_days before=400 now=7",
            f"{READ_AGAIN}: ledger_days",
        ]
        config.write_text("ledger_days = 'soon'\n")
        assert "'soon' is not a whole number" in reload(gateway, "settings stay as they were", "worker")
        with gateway.client() as client:
            assert take_turn(client, "chat", "hello", session="stored").status == 200
        assert [row.status for row in gateway.rows()] == ["complete"]


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


def test_reload_asked_of_a_worker_before_it_is_ready_comes_after_that(provider: ScriptedProvider, config: Path) -> None:
    with Gateway(provider, config=config) as gateway:
        config.unlink()
        os.mkfifo(config)
        gateway.start_worker()
        pipe = eventually(lambda: open_for_writing(config), what="the worker reads its settings")
        os.kill(gateway.pid("worker"), signal.SIGHUP)
        config.with_suffix(".new").write_text("ledger_days = 7\n")
        config.with_suffix(".new").rename(config)
        os.close(pipe)
        eventually(lambda: f"{READ_AGAIN}: ledger_days" in gateway.log("worker"), what=gateway.logs)
        assert gateway.is_running("worker")


def test_reload_under_up_tells_what_up_has_read_before(provider: ScriptedProvider, config: Path) -> None:
    """What `perdure up` read is in its children's environment; still they see that the file has changed."""
    config.write_text("drain_seconds = 2\noutbox_writes = 1000\n")
    with Up(provider, config=config, tick_seconds=30) as perdure:
        perdure.wait_status("ready")
        daemon, worker = (perdure.directory / "log" / name for name in ("daemon-0.log", "worker.log"))
        eventually(lambda: "listening on" in daemon.read_text(), what="it listens")
        config.write_text(f'drain_seconds = 900\ndaemons = 2\ncurve_dir = "{config.parent}"\nlog_level = "debug"\n')
        perdure.process.send_signal(signal.SIGHUP)
        for log in (daemon, worker):
            eventually(lambda log=log: READ_AGAIN in log.read_text(), what=f"{log.name} says so")  # type: ignore[misc]
        assert "needs a restart: daemons in_force=1 wanted=2" in daemon.read_text()
        assert "setting=outbox_writes before=1000 now=150000" in daemon.read_text()
        eventually(lambda: "to wait for so long: drain_seconds" in daemon.read_text(), what="what supervisord will do")
        assert "daemons" not in worker.read_text()
        for log in (daemon, worker):
            assert "needs a restart: curve_dir" in log.read_text(), log.name
            assert "setting=log_level before=info now=debug" in log.read_text(), log.name
