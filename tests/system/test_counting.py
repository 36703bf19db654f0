"""What a scrape counts: requests by what became of them, restarts, busts, and nothing under names that clients make up.

One rule: every request is counted once, in the one scrape, also when its daemon is gone by then.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import Gateway, eventually
from tests.provider import Canned, ScriptedProvider, Verbatim
from tests.system.turns import send_turn, take_turn

pytestmark = pytest.mark.system

BUSTED = Canned(
    headers=(("content-type", "application/json"),),
    body=b'{"type":"message","content":[],"usage":{"input_tokens":1,"output_tokens":2,'
    b'"cache_read_input_tokens":10,"cache_creation_input_tokens":90}}',
)


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider, body_bytes=50_000) as running:
        running.start()
        yield running


def scraped(gateway: Gateway, name: str) -> dict[tuple[str, ...], float]:
    """Values of one metric, by the values of its labels in the order of their names."""
    found = gateway.get("/metrics")
    assert found is not None
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(found[1].decode())
        for sample in family.samples
        if sample.name == name
    }


def requests(gateway: Gateway) -> Counter[tuple[str, ...]]:
    found = scraped(gateway, "perdure_requests_total")
    assert len(found) == 24, "all that can be there is there, and nothing else"
    # The scrapes themselves, and the questions whether it is ready, are perdure's own.
    return Counter({place: int(value) for place, value in found.items() if value and place[0] != "own"})


def test_every_request_is_counted_by_what_became_of_it(gateway: Gateway, provider: ScriptedProvider) -> None:
    with gateway.client() as client:
        take_turn(client, "chat", "hello")
        take_turn(client, "messages", "fail-529")
        client.ask("GET", "/v1/models")
        client.ask("POST", "/v1/chat/completions", body=b"no json")
        client.ask("GET", "/v1/models", [("Host", "elsewhere.example")])
        take_turn(client, "chat", "x" * 60_000)
    with gateway.client() as client:
        client.ask("GET", "/", [("transfer-encoding", "gzip")])
    with gateway.client() as client:
        client.ask("GET", "/v1/models", [("bad header", "x")])
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{"
    provider.script(lambda _request: Verbatim(data=head, then="close"))
    with gateway.client() as client:
        assert not take_turn(client, "chat", "cut off").complete
    provider.script(None)
    with gateway.client() as client:
        send_turn(client, "messages", "hold:gone", stream=True)
        provider.wait_held("gone")
    expected = Counter(
        {
            ("turn", "2xx"): 1,
            ("turn", "5xx"): 1,
            ("turn", "cut"): 1,
            ("turn", "gone"): 1,
            ("refused", "4xx"): 4,
        }
    )
    assert any(request.body == b"no json" for request in provider.requests), (
        "what is no turn is the provider's to refuse"
    )

    def counted() -> Counter[tuple[str, ...]]:
        return Counter({place: count for place, count in requests(gateway).items() if place[0] != "passed"})

    eventually(lambda: counted() == expected, what=lambda: f"{counted()} is {expected}")
    provider.release("gone")
    assert sum(count for (kind, _), count in requests(gateway).items() if kind == "passed") == 2
    assert scraped(gateway, "perdure_requests_total")[("own", "2xx")] > 0


def test_restart_of_a_daemon_is_seen_in_the_one_scrape(provider: ScriptedProvider) -> None:
    with Gateway(provider, daemons=2) as gateway:
        gateway.start()
        with gateway.client("daemon-2") as client:
            take_turn(client, "chat", "hello")

        def starts() -> dict[tuple[str, ...], float]:
            return scraped(gateway, "perdure_daemon_start_time_seconds")

        before = eventually(lambda: len(found := starts()) == 2 and found)
        assert before
        boots = scraped(gateway, "perdure_daemon_boots_total")[()]
        worker = scraped(gateway, "perdure_worker_start_time_seconds")
        counted = eventually(lambda: (found := requests(gateway))[("turn", "2xx")] == 1 and found)
        gateway.kill("daemon-2", signal.SIGKILL)
        gateway.start_daemon("daemon-2")
        gateway.wait_ready()
        after = eventually(lambda: len(found := starts()) == 2 and found != before and found)
        assert after and after.keys() == before.keys()
        assert [name for name in after if after[name] != before[name]] == [max(after, key=lambda name: after[name])]
        assert scraped(gateway, "perdure_daemon_boots_total")[()] == boots + 1 == 3
        assert scraped(gateway, "perdure_worker_start_time_seconds") == worker
        assert counted and requests(gateway) >= counted


def test_busts_layers_and_side_calls_are_counted(gateway: Gateway, provider: ScriptedProvider) -> None:
    provider.script(lambda _request: BUSTED)
    with gateway.client() as client:
        take_turn(client, "messages", "hello", session="busted")
    provider.script(None)
    with gateway.client() as client:
        take_turn(client, "messages", "hello", session="calm")
    busts = {place: value for place, value in scraped(gateway, "perdure_cache_busts_total").items() if value}
    assert busts == {("claude-sonnet-4-6", "anthropic"): 1.0}
    assert {layer: value for (layer,), value in scraped(gateway, "perdure_layer_turns_total").items()} == {
        "0": 2.0,
        "1": 0.0,
        "2": 0.0,
        "3": 0.0,
        "4": 0.0,
    }
    for name in ("perdure_side_calls_total", "perdure_pings_total"):
        assert scraped(gateway, name).keys() == {("complete",), ("error",), ("interrupted",)}


def test_names_that_clients_make_up_make_no_labels(gateway: Gateway) -> None:
    with gateway.client() as client:
        for number in range(5):
            take_turn(client, "messages", "hello", model=f"claude-sonnet-4-5-made-up-{number}")
            take_turn(client, "chat", "hello", model=f"unknown-{number}")
            client.ask("POST", f"/madeup{number}/v1/chat/completions", body=b"{}")
    labels = set(scraped(gateway, "perdure_turns_total"))
    assert {label[0] for label in labels} == {"claude-sonnet-4-5", "other"}
    assert {label[1] for label in labels} == {"anthropic", "openai"}
