"""perdure's own paths, and what may never be found on them or anywhere at rest.

One rule: what a path shows is compared with what the database holds, read by other means.
"""

from __future__ import annotations

import base64
import hashlib
import json
import signal
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.standing import DAEMON_FIELDS
from daemon.views import account_object, costs_object
from tests.clients import AnthropicTalk, RawClient
from tests.processes import Gateway, eventually
from tests.provider import Canned, ScriptedProvider
from tests.system.turns import PATHS, WIRES, body_of, headers_of, send_turn, take_turn
from worker.records import account_of, costs_of
from worker.server import SHOWN_ROWS

pytestmark = pytest.mark.system

MANY_SESSIONS: Final = 230
"""More than one page of the worker's answers."""
COUNTERS: Final = {
    "perdure_turns_total": {"provider", "model", "status"},
    "perdure_tokens_total": {"provider", "model", "kind"},
    "perdure_cost_nanousd_total": {"provider", "model"},
    "perdure_unacknowledged_answers_total": set[str](),
}
HISTOGRAMS: Final = (
    "perdure_request_duration_seconds",
    "perdure_time_to_first_byte_seconds",
    "perdure_commit_duration_seconds",
    "perdure_ack_duration_seconds",
)
GAUGES: Final = {
    "perdure_outbox_writes": set[str](),
    "perdure_outbox_oldest_seconds": set[str](),
    "perdure_wal_bytes": set[str](),
    "perdure_sessions": {"state"},
    "perdure_worker_up": set[str](),
    "perdure_build_info": {"version"},
}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=19) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    """One gateway with a little of everything in its ledger."""
    with Gateway(provider, tick_seconds=0.2) as running:
        running.start()
        with running.client() as client:
            for wire in WIRES:
                take_turn(client, wire, "hello", session=f"shown-{wire}")
                take_turn(client, wire, "fail-500", session=f"shown-{wire}")
                take_turn(client, wire, "hello", session=f"unpriced-{wire}", model="in-house-9b")
        yield running


@pytest.fixture
def alone(provider: ScriptedProvider) -> Iterator[Gateway]:
    """A gateway of the test's own, to be hurt."""
    with Gateway(provider) as running:
        yield running


def get_json(gateway: Gateway, path: str) -> tuple[int, Any]:
    found = gateway.get(path)
    assert found is not None
    return found[0], json.loads(found[1])


def samples(gateway: Gateway) -> Samples:
    """One scrape, as Prometheus' own parser reads it."""
    found = gateway.get("/metrics")
    assert found is not None and found[0] == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(found[1].decode())
        for sample in family.samples
    }


def total(scrape: Samples, metric: str, **labels: str) -> float:
    return sum(
        value for (name, given), value in scrape.items() if name == metric and labels.items() <= dict(given).items()
    )


# -- health


def test_healthz_is_alive_with_and_without_a_worker(alone: Gateway) -> None:
    alone.start()
    assert get_json(alone, "/healthz")[1]["status"] == "alive"
    alone.kill("worker")
    assert get_json(alone, "/healthz")[0] == 200


def test_readyz_tells_ready_degraded_and_ready_again(alone: Gateway) -> None:
    alone.start()
    assert get_json(alone, "/readyz") == (200, {"status": "ready", "checks": {"worker": "ok", "index": "ok"}})
    alone.kill("worker")
    alone.wait_status("degraded")
    status, ready = get_json(alone, "/readyz")
    assert status == 200 and ready["checks"]["worker"] != "ok"
    alone.start_worker()
    alone.wait_status("ready")


def test_readyz_is_unready_before_requests_can_be_identified(alone: Gateway) -> None:
    alone.start_daemon()
    status, ready = get_json(alone, "/readyz")
    assert (status, ready["status"], ready["checks"]["daemon"]) == (503, "unready", "starting")
    alone.wait_status("degraded")


def test_readyz_is_unready_while_the_daemon_drains(alone: Gateway, provider: ScriptedProvider) -> None:
    alone.start()
    with alone.client() as stream, alone.client() as watcher:
        send_turn(stream, "messages", "hold:drain", stream=True)
        provider.wait_held("drain")
        assert watcher.ask("GET", "/readyz").status == 200
        alone.terminate("daemon")
        last = eventually(lambda: (answer := watcher.ask("GET", "/readyz")).status == 503 and answer)
        assert last and last.json()["checks"]["daemon"] == "draining"
        assert last.header("connection") == "close"
        provider.release("drain")
        assert stream.read().complete
    assert alone.wait_stopped("daemon") == 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/api/sessions", "/api/costs"])
def test_own_paths_answer_head_and_refuse_what_changes(gateway: Gateway, path: str) -> None:
    with gateway.client() as client:
        head = client.ask("HEAD", path)
        assert (head.status, head.body) == (200, b"") and int(head.header("content-length")) > 0
        for method in ("POST", "PUT", "DELETE"):
            assert client.ask(method, path, body=b"{}").status == 405


@pytest.mark.parametrize("path", ["/api/", "/api/nothing", "/api/sessions/", "/api/sessions/x/y", "/ui"])
def test_unknown_own_path_is_a_404_and_stays_here(gateway: Gateway, provider: ScriptedProvider, path: str) -> None:
    arrived = len(provider.requests)
    status, said = get_json(gateway, path)
    assert status == 404 and said["error"]
    assert len(provider.requests) == arrived


# -- metrics


def test_every_metric_is_there_under_its_name_and_labels(gateway: Gateway) -> None:
    scrape = samples(gateway)
    labels = {name: {label for label, _ in given} for name, given in scrape}
    for name, wanted in {**COUNTERS, **GAUGES}.items():
        assert labels.get(name) == wanted, name
    for name in HISTOGRAMS:
        assert labels.get(f"{name}_bucket") == {"le"} and f"{name}_count" in labels, name
    assert total(scrape, "perdure_worker_up") == 1
    assert total(scrape, "perdure_commit_duration_seconds_count") > 0
    assert total(scrape, "perdure_unacknowledged_answers_total") == 0


def test_metrics_count_what_the_ledger_holds(gateway: Gateway) -> None:
    scrape, rows = samples(gateway), gateway.rows()
    for status in ("complete", "error"):
        assert total(scrape, "perdure_turns_total", status=status) == sum(row.status == status for row in rows) > 0
    usages = [row.usage for row in rows if row.usage]
    kinds = {
        "input": sum(usage.input_tokens for usage in usages),
        "cache_read": sum(usage.cache_read_tokens for usage in usages),
        "cache_write": sum(usage.cache_write_tokens for usage in usages),
        "output": sum(usage.output_tokens for usage in usages),
    }
    assert {kind: total(scrape, "perdure_tokens_total", kind=kind) for kind in kinds} == kinds
    assert total(scrape, "perdure_cost_nanousd_total") == sum(row.cost_nanousd or 0 for row in rows)
    assert total(scrape, "perdure_request_duration_seconds_count") == len(rows)


def test_model_nobody_knows_makes_no_label_of_its_own(gateway: Gateway) -> None:
    models = {dict(given)["model"] for name, given in samples(gateway) if name == "perdure_turns_total"}
    assert models == {"claude-sonnet-4-6", "gpt-5", "other"}


def test_counters_do_not_fall_when_a_daemon_is_killed(alone: Gateway) -> None:
    alone.start()
    scrapes = [samples(alone)]
    for _ in range(3):
        with alone.client() as client:
            assert take_turn(client, "messages", "hello", session="killed-between").complete
        scrapes.append(samples(alone))
        alone.kill("daemon", signal.SIGKILL)
        alone.start()
        scrapes.append(samples(alone))
    for before, after in pairwise(scrapes):
        counted = {key: value for key, value in before.items() if key[0].endswith(("_total", "_count", "_bucket"))}
        assert counted and all(after[key] >= value for key, value in counted.items())
    assert total(scrapes[-1], "perdure_turns_total") == 3
    assert total(scrapes[-1], "perdure_worker_up") == total(scrapes[-1], "perdure_build_info") == 1


def test_one_scrape_covers_all_daemons(provider: ScriptedProvider) -> None:
    with Gateway(provider, daemons=2) as gateway:
        gateway.start()
        for name in gateway.daemons:
            with gateway.client(name) as client:
                assert take_turn(client, "chat", "hello", session="of-both").complete
            # A daemon tells what it counted when it is asked itself, and otherwise within its heartbeat.
            assert gateway.get("/metrics", name)
        assert total(samples(gateway), "perdure_turns_total") == 2
        assert total(samples(gateway), "perdure_worker_up") == 2


def test_metrics_of_the_daemon_alone_are_shown_without_a_worker(alone: Gateway) -> None:
    alone.start_daemon()
    alone.wait_status("degraded")
    with alone.client() as client:
        assert take_turn(client, "messages", "hello").complete
    scrape = samples(alone)
    assert total(scrape, "perdure_worker_up") == 0
    assert total(scrape, "perdure_turns_total") == 1
    assert total(scrape, "perdure_unacknowledged_answers_total") == 2
    assert total(scrape, "perdure_outbox_writes") == 3


def test_api_status_tells_of_the_daemon_that_is_asked_and_of_the_worker(gateway: Gateway) -> None:
    status, shown = get_json(gateway, "/api/status")
    assert status == 200 and (shown["status"], shown["checks"]) == ("ready", {"worker": "ok", "index": "ok"})
    assert shown["daemon"]["pid"] == gateway.pid("daemon") and shown["worker"]["pid"] == gateway.pid("worker")
    assert [each["pid"] for each in shown["daemons"]] == [gateway.pid("daemon")]
    assert shown["daemon"].keys() == shown["daemons"][0].keys() == DAEMON_FIELDS
    assert shown["commits"]["p99_seconds"] > 0


def test_api_status_without_a_worker_is_of_the_daemon_alone(alone: Gateway) -> None:
    alone.start_daemon()
    alone.wait_status("degraded")
    with alone.client() as client:
        assert take_turn(client, "messages", "hello").complete
    status, shown = get_json(alone, "/api/status")
    assert status == 200 and (shown["worker"], shown["daemons"], shown["commits"]) == (None, [], None)
    assert shown["daemon"]["outbox_writes"] == 3


# -- sessions


def test_api_sessions_is_what_the_database_says(gateway: Gateway) -> None:
    status, shown = get_json(gateway, "/api/sessions")
    assert status == 200 and shown == json.loads(json.dumps(gateway.sessions()))
    assert {one["header_session_id"] for one in shown} >= {f"shown-{wire}" for wire in WIRES}


def test_api_session_is_found_by_its_id_and_by_a_beginning_of_it(gateway: Gateway) -> None:
    session_id = gateway.sessions()[-1]["session_id"]
    with gateway.reader() as reader:
        account = account_of(reader.execute, session_id, SHOWN_ROWS)
    assert account is not None
    expected = json.loads(json.dumps(account_object(account, {})))
    for asked in (session_id, session_id[:12]):
        status, shown = get_json(gateway, f"/api/sessions/{asked}")
        assert status == 200 and shown == expected
    assert expected["reason"] and expected["keys"] and len(expected["newest_rows"]) == expected["turns"]


@pytest.mark.parametrize("asked", ["nobody", "", "%", "' OR 1=1 --", "\0", "x" * 5_000, "é/..", "\U0010ffff" * 7])
def test_api_session_of_an_unknown_id_is_a_404(gateway: Gateway, asked: str) -> None:
    status, said = get_json(gateway, "/api/sessions/" + quote(asked, safe=""))
    assert status == 404 and said["error"]


def test_api_session_of_an_id_that_is_no_text_is_refused(gateway: Gateway) -> None:
    assert get_json(gateway, "/api/sessions/%ff%fe")[0] == 404
    with gateway.client() as client:
        assert client.ask("GET", "/api/sessions/\xff\xfe").status == 400


def test_api_sessions_lists_everything_over_all_pages(alone: Gateway) -> None:
    alone.start()
    with alone.client() as client:
        for number in range(MANY_SESSIONS):
            assert take_turn(client, "chat", "hello", session=f"one-of-many-{number}").complete
    status, shown = get_json(alone, "/api/sessions")
    assert status == 200 and len(shown) == MANY_SESSIONS
    assert {one["header_session_id"] for one in shown} == {f"one-of-many-{n}" for n in range(MANY_SESSIONS)}
    times = [one["last_turn_at"] for one in shown]
    assert times == sorted(times, reverse=True)


def test_api_costs_is_what_the_ledger_says(gateway: Gateway) -> None:
    status, shown = get_json(gateway, "/api/costs")
    rows = gateway.rows()
    assert status == 200 and len(rows) > 3
    assert shown["total"] == {
        "turns": len(rows),
        "interrupted": sum(row.status == "interrupted" for row in rows),
        "input_tokens": sum(row.usage.input_tokens for row in rows if row.usage),
        "cache_read_tokens": sum(row.usage.cache_read_tokens for row in rows if row.usage),
        "cache_write_tokens": sum(row.usage.cache_write_tokens for row in rows if row.usage),
        "output_tokens": sum(row.usage.output_tokens for row in rows if row.usage),
        "cost_nanousd": sum(row.cost_nanousd or 0 for row in rows),
        "unpriced_turns": sum(row.cost_nanousd is None for row in rows),
    }
    with gateway.reader() as reader:
        assert shown == costs_object(costs_of(reader.execute), {})
    unpriced = next(entry for entry in shown["by_model"] if entry["model"] == "in-house-9b")
    assert (unpriced["turns"], unpriced["cost_nanousd"]) == (len(WIRES), None)


def test_api_costs_since_a_day_counts_from_it_on(gateway: Gateway) -> None:
    day = get_json(gateway, "/api/costs")[1]["by_day"][-1]["day"]
    assert get_json(gateway, f"/api/costs?since={day}")[1]["total"]["turns"] > 0
    assert get_json(gateway, "/api/costs?since=9999-12-31")[1]["total"]["turns"] == 0
    assert get_json(gateway, "/api/costs?since=today")[0] == 400


def test_api_without_a_worker_says_so(alone: Gateway) -> None:
    alone.start_daemon()
    for path in ("/api/sessions", "/api/sessions/someone", "/api/costs"):
        status, said = get_json(alone, path)
        assert status == 503 and "worker" in said["error"]


# -- what is never at rest

KEY: Final = "sk-secret-KEYMARK-4711"
BEARER: Final = "BEARERMARK-4712-secret"
GATE_TOKEN: Final = "TOKENMARK-4713"
SAID: Final = "PROMPTMARK"
ANSWERED: Final = "ANSWERMARK"
MARKS: Final = (KEY, BEARER, GATE_TOKEN, "KEYMARK", "BEARERMARK", "TOKENMARK", SAID, ANSWERED)


def test_no_secret_and_no_text_is_found_at_rest_or_on_any_path() -> None:
    with (
        ScriptedProvider(seed=29) as provider,
        Gateway(provider, token=GATE_TOKEN, log_level="debug", tick_seconds=0.1, body_bytes=100_000) as gateway,
    ):
        gateway.start()
        say_everything(gateway, provider)
        gateway.kill("worker")
        with gateway.client() as client:
            take_turn(client, "chat", f"{SAID} without a worker", session="no-worker", headers=[TOKEN_HEADER])
        gateway.start()
        shown = everything_shown(gateway)
        eventually(lambda: b"SQLite" in files_of(gateway)["perdure.db"])
        running = files_of(gateway)
        assert gateway.stop("daemon") == 0 and gateway.stop("worker") == 0
        stopped = files_of(gateway)
        assert len(gateway.rows()) > 20, "there is something to be found in"
        assert {"perdure.db", "perdure.db-wal", "daemon.log", "worker.log"} <= running.keys()
        assert b"DEBUG" in running["daemon.log"] or b"INFO" in running["daemon.log"]
    texts = [answered.text for answered in provider.answers if answered.text]
    assert texts
    for place, content in {
        **shown,
        **running,
        **{f"{name} at the end": data for name, data in stopped.items()},
    }.items():
        for wanted in [*MARKS, *texts]:
            for form in forms_of(wanted):
                assert form not in content, f"{wanted!r} as {form!r} in {place}"


TOKEN_HEADER: Final = ("x-perdure-token", GATE_TOKEN)


def forms_of(text: str) -> list[bytes]:
    """A text as it is, or as somebody may have thought it hidden."""
    data = text.encode()
    digests = [hashlib.new(name, data).hexdigest() for name in ("sha256", "sha1", "md5", "blake2b")]
    # The alignment of base64 varies, its inner part does not.
    inner = base64.b64encode(data)[:-4]
    return [data, data.hex().encode(), *([inner] if len(inner) > 11 else []), *(each[:16].encode() for each in digests)]


def files_of(gateway: Gateway) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in gateway.directory.rglob("*") if path.is_file()}


def everything_shown(gateway: Gateway) -> dict[str, bytes]:
    with gateway.client() as client:
        paths = ["/healthz", "/readyz", "/metrics", "/api/sessions"]
        paths += [f"/api/sessions/{shown['session_id']}" for shown in gateway.sessions()]
        answers = {path: client.ask("GET", path, [TOKEN_HEADER]) for path in paths}
    assert {answer.status for answer in answers.values()} == {200}
    return {path: answer.body for path, answer in answers.items()}


def say_everything(gateway: Gateway, provider: ScriptedProvider) -> None:
    """Marked keys and texts through every way and every fault."""
    keys = {
        "messages": [("x-api-key", KEY), ("anthropic-version", "2023-06-01")],
        "chat": [("Authorization", f"Bearer {BEARER}")],
        "responses": [("authorization", BEARER), ("cookie", f"session={KEY}")],
    }
    faults = ["", "use-tool:1", "fail-429", "fail-500", "drop", "garbage", "cut-after:3", "sse-error", "json-garbage"]
    for wire in WIRES:
        for number, fault in enumerate(faults):
            for stream in (False, True):
                text = f"{SAID} {fault} {number} {stream}"
                more = dict.fromkeys(("system", "instructions", "user", "unknown", "prompt"), SAID)
                body = body_of(wire, text, stream=stream, tools=[{"name": SAID, "description": SAID}], **more)
                named = [("session-id", f"{wire}-{number}")] if number % 2 else []
                with gateway.client() as client:
                    client.ask("POST", PATHS[wire], [*keys[wire], TOKEN_HEADER, *named], body)
        bad = [b"", SAID.encode(), b'{"messages": "' + SAID.encode(), b"[" * 10_000, SAID.encode() * 20_000]
        for body in bad:
            with gateway.client() as client:
                client.ask("POST", PATHS[wire], [*keys[wire], TOKEN_HEADER], body)
        with gateway.client() as client:
            client.ask("GET", f"/v1/models?key={KEY}&prompt={SAID}", [*keys[wire], TOKEN_HEADER])
            client.ask("POST", f"/v1/{SAID}", [*keys[wire], TOKEN_HEADER], SAID.encode())
            client.ask("GET", f"/api/{SAID}?key={KEY}", [*keys[wire], TOKEN_HEADER])
            client.ask("POST", PATHS[wire], [*keys[wire], ("x-perdure-token", KEY)], body_of(wire, SAID))
        leave_in_mid_stream(gateway, provider, wire, keys[wire])
        break_http(gateway)
    echo = Canned(status=400, body=json.dumps({"error": {"message": f"{SAID} {ANSWERED} {KEY}", "type": "x"}}).encode())
    provider.script(lambda request: echo)
    with gateway.client() as client:
        for wire in WIRES:
            client.ask("POST", PATHS[wire], [*keys[wire], TOKEN_HEADER], body_of(wire, SAID))
    provider.script(None)
    with AnthropicTalk(gateway.url, api_key=KEY, headers=dict([TOKEN_HEADER])) as talk:
        for number in range(3):
            talk.say(f"{SAID} {number}", stream=bool(number % 2))


def leave_in_mid_stream(
    gateway: Gateway, provider: ScriptedProvider, wire: Any, headers: list[tuple[str, str]]
) -> None:
    gate = f"leaving-{wire}"
    with gateway.client() as client:
        client.send("POST", PATHS[wire], [*headers, TOKEN_HEADER], body_of(wire, f"{SAID} hold:{gate}", stream=True))
        provider.wait_held(gate)
    provider.wait_until(lambda: provider.answers[-1].ended)


def break_http(gateway: Gateway) -> None:
    """Requests that no parser takes; each shows a secret where an error message might quote it."""
    broken: list[tuple[str, list[tuple[str, str]]]] = [
        ("/v1/messages", [(f"x api key {KEY}", KEY)]),
        ("/v1/messages", [("x-api-key", f"{KEY}\x00")]),
        ("/v1/messages", [("x-api-key", KEY * 10_000)]),
        ("/v1/messages", [("content-length", KEY)]),
        ("/v1/messages", [("transfer-encoding", KEY)]),
        (f"/{KEY} {SAID}", []),
        (f"http://{KEY}:{SAID}@[/", []),
    ]
    for target, headers in broken:
        with gateway.client() as client:
            assert client.ask("POST", target, headers).status in (400, 401, 431, 0)


def test_chunk_that_is_no_chunk_shows_nothing(gateway: Gateway) -> None:
    with RawClient("127.0.0.1", gateway.port) as client:
        headers = [*headers_of("messages"), ("transfer-encoding", "chunked")]
        answer = client.ask("POST", PATHS["messages"], headers, f"{KEY}\r\n{SAID}".encode())
    assert answer.status == 400 and KEY.encode() not in answer.body
    assert KEY not in gateway.log("daemon")
