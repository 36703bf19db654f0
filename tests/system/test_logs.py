"""What daemons log of turns: one line for each, with which it is found in the ledger, and the trace it belongs to.

One rule: what a line says is compared with the ledger and with what the provider got, not with itself.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import DEADLINE_SECONDS, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.turns import send_turn, take_turn

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
