"""Whole conversations over the official SDKs: who they are, what they cost, to the token and the nano-dollar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import anthropic
import openai
import pytest

from daemon.cost import Prices
from tests.clients import AnthropicTalk, ChatTalk, RawClient, ResponsesTalk, Said
from tests.processes import Gateway
from tests.provider import Answered, Canned, ScriptedProvider
from tests.provider.ledger import add_usage
from tests.provider.wire import encoder
from tests.system.turns import MODELS, PATHS, SESSION_HEADERS, WIRES, body_of, headers_of, sum_of_rows, take_turn
from worker.protocol import Protocol, Row, Usage

pytestmark = pytest.mark.system

Talk = AnthropicTalk | ChatTalk | ResponsesTalk
TALKS: Final[list[type[Talk]]] = [AnthropicTalk, ChatTalk, ResponsesTalk]
WIRE_OF: Final[dict[type[Talk], Protocol]] = dict(zip(TALKS, WIRES, strict=True))
TURNS: Final = 10
TOOL_TURNS: Final = (2, 6)
"""Turns in which the model calls a tool first: each is a turn of two requests."""
REQUESTS: Final = TURNS + len(TOOL_TURNS)
AT_ONCE: Final = 4
LONG: Final = "a sentence that is told again and again; " * 120
"""Long enough that OpenAI's cache takes part."""
SONNET_NANOUSD: Final = Usage(
    input_tokens=3_000,
    cache_read_tokens=300,
    cache_write_5m_tokens=3_750,
    cache_write_1h_tokens=6_000,
    output_tokens=15_000,
)
"""List prices of claude-sonnet-4-6 per token: 3, 0.30, 3.75, 6 and 15 dollars per million."""

every_talk = pytest.mark.parametrize("kind", TALKS, ids=WIRES)


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=11) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider, tick_seconds=0.2) as running:
        running.start()
        yield running


@dataclass
class Told:
    """One conversation as its client saw it."""

    answers: list[Said]

    @property
    def session(self) -> str:
        sessions = {said.session for said in self.answers}
        assert len(sessions) == 1, f"a conversation of {len(self.answers)} turns is {len(sessions)} sessions"
        return sessions.pop()

    @property
    def usage(self) -> Usage:
        total = Usage()
        for said in self.answers:
            assert said.usage is not None
            total = add_usage(total, said.usage)
        return total


def converse(talk: Talk, *, stream: bool) -> Told:
    """Ten turns, two of them with a tool."""
    told = Told([])
    with talk:
        for number in range(TURNS):
            tool = "use-tool:1 " if number in TOOL_TURNS else ""
            said = talk.say(f"{tool}turn {number}: {LONG}", stream)
            told.answers.append(said)
            while said.tool_call_ids:
                said = talk.answer_tools(said, stream=stream)
                told.answers.append(said)
    assert len(told.answers) == REQUESTS
    return told


def converse_at_once(talks: Sequence[Talk]) -> list[Told]:
    """Every second one is streamed."""
    with ThreadPoolExecutor(len(talks)) as pool:
        running = [pool.submit(converse, talk, stream=bool(n % 2)) for n, talk in enumerate(talks)]
        return [each.result() for each in running]


def rows_of(gateway: Gateway, session_id: str) -> list[Row]:
    return [row for row in gateway.rows() if row.session_id == session_id]


def carrying(header: str, value: str) -> Callable[[Answered], bool]:
    return lambda answered: answered.request.header(header) == value


def check_totals(gateway: Gateway, told: Told, wire: Protocol) -> dict[str, Any]:
    """The session's sums are those of what its client was told, and its cost that of the list."""
    shown = gateway.session(told.session)
    usage = told.usage
    assert (shown["turns"], shown["interrupted"], shown["unpriced_turns"]) == (len(told.answers), 0, 0)
    assert shown["input_tokens"] == usage.input_tokens
    assert shown["cache_read_tokens"] == usage.cache_read_tokens
    assert shown["cache_write_tokens"] == usage.cache_write_tokens
    assert shown["output_tokens"] == usage.output_tokens
    rows = rows_of(gateway, told.session)
    assert {row.status for row in rows} == {"complete"}
    assert sum_of_rows(rows) == usage
    prices, provider = Prices(), "anthropic" if wire == "messages" else "openai"
    costs = [
        prices.price_nanousd(provider, MODELS[wire], said.usage, rows[0].started_at)
        for said in told.answers
        if said.usage
    ]
    assert None not in costs
    assert shown["cost_nanousd"] == shown["tree_cost_nanousd"] == sum(cost or 0 for cost in costs) > 0
    return shown


@every_talk
def test_four_named_conversations_at_once_are_four_sessions_with_exact_totals(
    gateway: Gateway, provider: ScriptedProvider, kind: type[Talk]
) -> None:
    wire = WIRE_OF[kind]
    names = [f"{wire}-named-{number}" for number in range(AT_ONCE)]
    before = len(gateway.sessions())
    told = converse_at_once([kind(gateway.url, name) for name in names])
    assert len({each.session for each in told}) == AT_ONCE
    assert len(gateway.sessions()) == before + AT_ONCE
    for name, each in zip(names, told, strict=True):
        # An SDK for OpenAI sends Codex's header.
        header = SESSION_HEADERS["messages" if wire == "messages" else "responses"]
        shown = check_totals(gateway, each, wire)
        assert (shown["header_name"], shown["header_session_id"]) == (header, name)
        assert (shown["model"], shown["client"]) == (MODELS[wire], f"{_provider(wire)}-sdk")
        assert each.usage == provider.usage_total(carrying(header, name))
        assert shown["gradient"]["last_known_input"] == _prompt(each.answers[-1])


@every_talk
def test_four_unnamed_conversations_of_equal_words_stay_four(gateway: Gateway, kind: type[Talk]) -> None:
    """Nothing tells them apart but the answers they were given."""
    told = converse_at_once([kind(gateway.url) for _ in range(AT_ONCE)])
    assert len({each.session for each in told}) == AT_ONCE
    for each in told:
        shown = check_totals(gateway, each, WIRE_OF[kind])
        assert shown["header_name"] is None and shown["fingerprint"]


@every_talk
def test_hi_twice_is_two_conversations(gateway: Gateway, kind: type[Talk]) -> None:
    with kind(gateway.url) as first, kind(gateway.url) as second:
        one, two = first.say("hi"), second.say("hi")
        assert one.session != two.session
        assert second.say("go on").session == two.session
        assert first.say("go on").session == one.session


@every_talk
def test_same_name_from_two_places_is_one_session(gateway: Gateway, kind: type[Talk]) -> None:
    name = f"{WIRE_OF[kind]}-shared"
    with kind(gateway.url, name) as first, kind(gateway.url, name, api_key="another-key") as second:
        told = Told([first.say("hello"), second.say("hello too"), first.say("again")])
    check_totals(gateway, told, WIRE_OF[kind])


def test_conversation_kept_by_the_provider_is_one_session_by_its_name(gateway: Gateway) -> None:
    told = converse(ResponsesTalk(gateway.url, "responses-stateful", stateful=True), stream=True)
    check_totals(gateway, told, "responses")


def test_cost_of_both_cache_lifetimes_is_that_of_the_price_list(gateway: Gateway) -> None:
    for ttl in ("5m", "1h"):
        told = converse(AnthropicTalk(gateway.url, f"cost-{ttl}", cache_ttl=ttl), stream=ttl == "1h")
        names = Usage.__struct_fields__
        by_hand = sum(getattr(told.usage, name) * getattr(SONNET_NANOUSD, name) for name in names)
        assert gateway.session(told.session)["cost_nanousd"] == by_hand > 0


@every_talk
def test_unknown_model_has_tokens_and_no_price(gateway: Gateway, kind: type[Talk]) -> None:
    with kind(gateway.url, f"{WIRE_OF[kind]}-unknown-model", model="in-house-9b") as talk:
        told = Told([talk.say("hello"), talk.say("again", stream=True)])
    shown = gateway.session(told.session)
    assert (shown["turns"], shown["unpriced_turns"], shown["cost_nanousd"]) == (2, 2, None)
    assert shown["output_tokens"] == told.usage.output_tokens > 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("wire", WIRES)
def test_answer_that_tells_no_usage_is_complete_and_unpriced(gateway: Gateway, wire: Protocol, stream: bool) -> None:
    with gateway.client() as client:
        answer = take_turn(client, wire, "no-usage", session=f"{wire}-no-usage-{stream}", stream=stream)
    [row] = rows_of(gateway, answer.header("x-perdure-session"))
    assert (row.status, row.usage, row.cost_nanousd) == ("complete", None, None)


@every_talk
def test_repeated_request_after_a_failure_goes_on_in_its_session(gateway: Gateway, kind: type[Talk]) -> None:
    """What an SDK's own retry does: the same bytes again, and no name to know them by."""
    with kind(gateway.url) as talk:
        first = talk.say("hello")
        with pytest.raises((anthropic.APIStatusError, openai.APIStatusError)) as refused:
            talk.say("fail-529x1 please")
        again = talk.say("fail-529x1 please")
    assert isinstance(refused.value, anthropic.APIStatusError | openai.APIStatusError)
    failed = refused.value.response.headers["x-perdure-session"]
    assert first.session == failed == again.session
    assert [row.status for row in rows_of(gateway, first.session)] == ["complete", "error", "complete"]


@every_talk
def test_first_request_repeated_after_a_failure_stays_one_session(gateway: Gateway, kind: type[Talk]) -> None:
    with kind(gateway.url, max_retries=2) as talk:
        said = talk.say("fail-500x1 and then hello")
    assert [row.status for row in rows_of(gateway, said.session)] == ["error", "complete"]


@pytest.mark.parametrize("base", ["/anthropic", "/openai"])
def test_base_url_that_names_the_provider_holds_a_conversation(gateway: Gateway, base: str) -> None:
    kind = AnthropicTalk if base == "/anthropic" else ChatTalk
    with kind(gateway.url + base, f"prefixed-{base[1:]}") as talk:
        told = Told([talk.say("hello"), talk.say("again", stream=True)])
    check_totals(gateway, told, WIRE_OF[kind])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate"])
@pytest.mark.parametrize("wire", WIRES)
def test_compressed_answer_is_counted_exactly_and_its_bytes_untouched(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, encoding: str, stream: bool
) -> None:
    with RawClient("127.0.0.1", provider.port) as direct:
        plain = take_turn(direct, wire, "words:40", stream=stream)
    usage = provider.answers[-1].usage
    coding = encoder(encoding)
    pieces = [coding.feed(plain.body[at : at + 100]) for at in range(0, len(plain.body), 100)]
    pieces.append(coding.finish())
    head = [("Content-Type", plain.header("content-type")), ("Content-Encoding", encoding)]
    canned = Canned(headers=head, body=pieces if stream else b"".join(pieces), tells=usage)
    provider.script(lambda request: canned)
    try:
        with gateway.client() as client:
            answer = take_turn(client, wire, "words:40", session=f"{wire}-{encoding}-{stream}")
    finally:
        provider.script(None)
    assert answer.complete and answer.body == b"".join(pieces)
    assert answer.header("content-encoding") == encoding
    [row] = rows_of(gateway, answer.header("x-perdure-session"))
    assert (row.status, row.usage) == ("complete", usage)


def test_conversation_that_changes_its_model_stays_one_session(gateway: Gateway) -> None:
    """The model is no part of who speaks."""
    with AnthropicTalk(gateway.url) as talk:
        sessions = [talk.say("hello").session]
        for model in ("claude-opus-4-5", "claude-haiku-4-5"):
            talk.model = model
            sessions.append(talk.say(f"now with {model}").session)
    assert all(before == after for before, after in pairwise(sessions))
    assert gateway.session(sessions[0])["model"] == "claude-haiku-4-5"


def test_two_requests_of_one_conversation_in_flight_share_its_session(
    gateway: Gateway, provider: ScriptedProvider
) -> None:
    with gateway.client() as first, gateway.client() as second:
        for client in (first, second):
            body = body_of("messages", "hold:both", stream=True)
            client.send("POST", PATHS["messages"], headers_of("messages", "in-flight-twice"), body)
        provider.wait_until(lambda: sum(a.user_text == "hold:both" for a in provider.answers) == 2)
        provider.release("both")
        sessions = {client.read().header("x-perdure-session") for client in (first, second)}
    assert len(sessions) == 1
    assert [row.status for row in rows_of(gateway, sessions.pop())] == ["complete", "complete"]


def _provider(wire: Protocol) -> str:
    return "anthropic" if wire == "messages" else "openai"


def _prompt(said: Said) -> int:
    assert said.usage is not None
    return said.usage.prompt_tokens
