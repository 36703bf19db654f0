"""What daemons log of turns: one line for each, with which it is found in the ledger, and the trace it belongs to.

One rule: what a line says is compared with the ledger and with what the provider got, not with itself.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients import API_KEY
from tests.processes import DEADLINE_SECONDS, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.turns import body_of, headers_of, send_turn, take_turn

pytestmark = pytest.mark.system

PERDURE: Final = str(Path(sys.executable).with_name("perdure"))
SETTLED: Final = "turn settled"
TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACED: Final = [
    ("TraceParent", f"00-{TRACE}-00f067aa0ba902b7-01"),
    ("tracestate", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
]


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def objects(provider: ScriptedProvider) -> Iterator[Gateway]:
    """One that logs objects."""
    with Gateway(provider, log_format="json") as running:
        running.start()
        yield running


def settled(gateway: Gateway, start: int, count: int = 1) -> list[dict[str, str]]:
    """The fields of the lines about turns since a place in the log, once there are so many."""

    def found() -> list[str]:
        return [
            line.partition(f"{SETTLED} ")[2] for line in gateway.log("daemon", start).splitlines() if SETTLED in line
        ]

    lines = eventually(lambda: len(found()) >= count and found(), what=gateway.logs)
    assert lines and len(lines) == count
    return [dict(pair.split("=", 1) for pair in shlex.split(line)) for line in lines]


def test_turn_has_one_line_that_says_what_the_ledger_says(gateway: Gateway) -> None:
    start, before = gateway.log_size("daemon"), len(gateway.rows())
    with gateway.client() as client:
        answer = take_turn(client, "messages", "hello", session="logged", headers=TRACED, stream=True)
        (line,) = settled(gateway, start)
    (row,) = gateway.rows(before)
    usage = row.usage
    assert usage is not None
    assert 0 < float(line.pop("first_byte_seconds")) <= float(line.pop("seconds")) < DEADLINE_SECONDS
    assert line == {
        "request": row.event_id,
        "session": answer.header("x-perdure-session"),
        "kind": "turn",
        "status": "complete",
        "http_status": "200",
        "provider": "anthropic",
        "model": row.model,
        "input_tokens": str(usage.input_tokens),
        "cache_read_tokens": str(usage.cache_read_tokens),
        "cache_write_tokens": str(usage.cache_write_tokens),
        "output_tokens": str(usage.output_tokens),
        "cost_nanousd": str(row.cost_nanousd),
        "trace": TRACE,
    }


def test_request_in_the_log_is_found_by_show(gateway: Gateway) -> None:
    start = gateway.log_size("daemon")
    with gateway.client() as client:
        take_turn(client, "chat", "hello", session="shown")
    (line,) = settled(gateway, start)
    environ = gateway.environment
    shown = subprocess.run(
        [PERDURE, "show", line["session"], "--json"], env=environ, capture_output=True, check=True, timeout=60
    )
    assert line["request"] in [row["event_id"] for row in json.loads(shown.stdout)["newest_rows"]]
    page = subprocess.run([PERDURE, "show", line["request"]], env=environ, capture_output=True, check=True, timeout=60)
    assert line["session"] in page.stdout.decode() and line["request"][:8] in page.stdout.decode()


def test_turn_that_fails_says_what_is_known_and_leaves_out_the_rest(
    gateway: Gateway, provider: ScriptedProvider
) -> None:
    start = gateway.log_size("daemon")
    with gateway.client() as client:
        take_turn(client, "messages", "fail-529", session="failing", model="in-house-9b")
    with gateway.client() as client:
        send_turn(client, "messages", "hold:left", session="left", stream=True)
        provider.wait_held("left")
    failed, left = settled(gateway, start, count=2)
    provider.release("left")
    assert (failed["status"], failed["http_status"], failed["model"]) == ("error", "529", "in-house-9b")
    assert failed.keys().isdisjoint({"input_tokens", "cost_nanousd", "trace"})
    assert left["status"] == "interrupted"


def test_turn_with_a_strange_model_is_one_line(gateway: Gateway) -> None:
    start = gateway.log_size("daemon")
    with gateway.client() as client:
        take_turn(client, "chat", "hello", model='x"\n2026-01-31 INFO daemon[1] stopped trace=')
    (line,) = settled(gateway, start)
    assert line["model"].startswith("x")
    assert all(" daemon[" in each[:60] for each in gateway.log("daemon", start).splitlines())


def test_log_of_objects_has_one_a_line_and_its_last_words_too(objects: Gateway, provider: ScriptedProvider) -> None:
    with objects.client() as client:
        take_turn(client, "responses", "hello", session="objects", headers=TRACED)
    said: list[dict[str, Any]] = eventually(
        lambda: [each for each in map(json.loads, objects.log("daemon").splitlines()) if each["event"] == SETTLED]
    )
    assert [(each["kind"], each["http_status"], each["trace"]) for each in said] == [("turn", 200, TRACE)]
    assert isinstance(said[0]["seconds"], float) and isinstance(said[0]["input_tokens"], int)
    with Gateway(provider, log_format="json") as second:
        second.environment["PERDURE_STATE_DIR"] = str(objects.directory)
        second.launch("worker")
        assert second.wait_stopped("worker") == 75
        last = json.loads(second.log("worker").splitlines()[-1])
        assert "another perdure worker" in last["event"] and last["exit_status"] == 75


def test_trace_s_headers_reach_the_provider_unchanged(gateway: Gateway, provider: ScriptedProvider) -> None:
    start = gateway.log_size("daemon")
    odd = [("traceparent", "not by the book"), ("tracestate", "a=1"), ("tracestate", "b=2")]
    with gateway.client() as client:
        for given in (TRACED, odd):
            take_turn(client, "chat", "hello", headers=given)
            assert client.ask("GET", "/v1/models", given).status == 200
            for request in list(provider.requests)[-2:]:
                assert [(n, v) for n, v in request.headers if n.lower().startswith("trace")] == given
    traced, untraced = settled(gateway, start, count=2)
    assert traced["trace"] == TRACE and "trace" not in untraced


# -- providers that fail -------------------------------------------------------------------------------------------

FAILED: Final = "provider failed: "
REASONS: Final = {
    "refused": "{host} can not be reached: Connection refused",
    "nowhere": "no-such-host.invalid can not be reached: ",
    "plain": "{host} can not be reached: TLS: ",
    "deaf": "{host} hung up before it answered",
    "babble": "{host} did not answer with HTTP",
    "cut": "{host} broke off its answer",
}
"""By the name of a provider that fails so: what is said of it."""
SAYS: Final = {
    "plain": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "deaf": b"",
    "babble": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{",
}
"""What those say that listen, before they hang up."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, str]]:
    """The addresses of providers that fail."""
    with contextlib.ExitStack() as stack:
        unused = stack.enter_context(socket.socket())
        unused.bind(("127.0.0.1", 0))
        found = {"refused": f"127.0.0.1:{unused.getsockname()[1]}", "nowhere": "no-such-host.invalid"}
        for name, words in SAYS.items():
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            threading.Thread(target=_say_and_hang_up, args=(listener, words), daemon=True).start()
            found[name] = f"127.0.0.1:{listener.getsockname()[1]}"
        yield found


def _say_and_hang_up(listener: socket.socket, words: bytes) -> None:
    with contextlib.suppress(OSError):  # The test is over.
        while True:
            with listener.accept()[0] as connection:
                connection.recv(65_536)
                connection.sendall(words)


@pytest.fixture(scope="module")
def failing(
    provider: ScriptedProvider, hosts: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    config = tmp_path_factory.mktemp("failing") / "perdure.toml"
    urls = {name: f"{'https' if name == 'plain' else 'http'}://{host}" for name, host in hosts.items()}
    config.write_text("[providers]\n" + "".join(f'{name} = "{url}"\n' for name, url in urls.items()))
    with Gateway(provider, config=config) as running:
        running.start()
        yield running


@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize("is_turn", [True, False])
def test_provider_that_fails_is_one_warning_with_the_reason_and_whom_it_met(
    name: str, is_turn: bool, failing: Gateway, hosts: dict[str, str]
) -> None:
    start, before = failing.log_size("daemon"), len(failing.rows())
    path = "/v1/chat/completions" if is_turn else "/v1/models?key=sk-secret"
    headers = [*headers_of("chat", "meets"), *TRACED]
    with failing.client() as client:
        body = body_of("chat", "hello") if is_turn else b""
        client.send("POST" if is_turn else "GET", f"/{name}{path}", headers, body)
        answer = client.read()
    assert (answer.status, answer.complete) == ((200, False) if name == "cut" else (502, True))
    lines = eventually(lambda: [line for line in failing.log("daemon", start).splitlines() if FAILED in line])
    (said,) = lines
    assert " WARNING daemon[" in said and REASONS[name].format(host=hosts[name]) in said
    told = dict(pair.split("=", 1) for pair in shlex.split(said.rpartition(FAILED)[2]) if "=" in pair)
    expected = {"provider": name, "trace": TRACE}
    if is_turn:
        (row,) = failing.rows(before)
        expected |= {"request": row.event_id, "session": row.session_id}
    assert told == expected
    assert API_KEY not in said and "secret" not in said and "hello" not in said
