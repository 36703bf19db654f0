"""The scripted provider against the official SDKs and bare sockets: what the suite believes of it is true.

One rule: no gateway here; every fault is looked at from the client's side and in the ledger.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import anthropic
import brotli
import openai
import pytest
import zstandard

from tests.clients import API_KEY, AnthropicTalk, ChatTalk, RawAnswer, RawClient, ResponsesTalk
from tests.provider import Arrived, Canned, Script, ScriptedProvider, Verbatim
from tests.provider.ledger import add_usage
from tests.provider.prompt_cache import output_tokens, unit_tokens
from tests.provider.script import EVERY_ATTEMPT, parse_script
from tests.provider.wire import encoder
from worker.protocol import Usage

Talk = AnthropicTalk | ChatTalk | ResponsesTalk
TALKS = [AnthropicTalk, ChatTalk, ResponsesTalk]
ROUTES = {"messages": "/v1/messages", "chat": "/v1/chat/completions", "responses": "/v1/responses"}
LONG = "a sentence that is told again and again; " * 200
"""Over the 1024 tokens from which OpenAI caches."""
MANY_CHARACTERS_OF_ANY_KIND = "žluťoučký kůň ✓ 🐎"


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=7) as running:
        yield running


@pytest.fixture(params=TALKS, ids=["messages", "chat", "responses"])
def talk(request: pytest.FixtureRequest, provider: ScriptedProvider) -> Iterator[Talk]:
    with request.param(provider.url, "session-1") as running:
        yield running


# -- shapes


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_talk_of_two_turns_is_parsed_by_the_sdk_and_counted_exactly(
    provider: ScriptedProvider, talk: Talk, stream: bool
) -> None:
    first = talk.say(MANY_CHARACTERS_OF_ANY_KIND + LONG, stream)
    second = talk.say("and again", stream)
    assert [first.text, second.text] == [answered.text for answered in provider.answers]
    assert first.text != second.text
    assert first.usage and second.usage
    assert [first.usage, second.usage] == [answered.usage for answered in provider.answers]
    assert provider.usage_total() == add_usage(first.usage, second.usage)
    assert second.usage.cache_read_tokens > 1024 and first.usage.cache_read_tokens == 0
    assert all(a.complete and a.status == 200 and not a.client_closed for a in provider.answers)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_use_tool_called_twice_before_the_answer(provider: ScriptedProvider, talk: Talk, stream: bool) -> None:
    said = talk.say("use-tool:2 please", stream)
    assert len(said.tool_call_ids) == 1
    again = talk.answer_tools(said, stream=stream)
    assert len(again.tool_call_ids) == 1 and again.tool_call_ids != said.tool_call_ids
    last = talk.answer_tools(again, stream=stream)
    assert last.tool_call_ids == () and "tok-" in last.text
    assert {a.user_text for a in provider.answers} == {"use-tool:2 please"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tool_arguments_are_those_of_the_declared_shell(provider: ScriptedProvider, stream: bool) -> None:
    schema = {"type": "object", "properties": {"cmd": {"type": "string"}}}
    tools = [{"type": "function", "name": n, "parameters": schema} for n in ("other", "exec_command")]
    with ResponsesTalk(provider.url, extra={"tools": tools}) as talk:
        talk.say("use-tool:1", stream)
    call = talk.history[-1]
    assert call["name"] == "exec_command" and list(json.loads(call["arguments"])) == ["cmd"]


def test_anthropic_stream_has_the_real_order_of_events(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "words:2", stream=True))
        names = [name for name, _ in events(client.read())]
    assert names == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_responses_stream_has_the_real_order_of_events(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/responses", body("responses", "words:1", stream=True))
        got = events(client.read())
    assert [name for name, _ in got] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [data["sequence_number"] for _, data in got] == list(range(9))
    assert all(data["type"] == name for name, data in got)


@pytest.mark.parametrize("asked", [False, True])
def test_chat_stream_tells_usage_only_when_asked(provider: ScriptedProvider, asked: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if asked else {}
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/chat/completions", body("chat", "hello", stream=True, **options))
        answer = client.read()
    assert answer.body.endswith(b"data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in answer.body.splitlines() if line.startswith(b"data: {")]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    told = [chunk for chunk in chunks if chunk.get("usage")]
    assert len(told) == asked and all(chunk["choices"] == [] for chunk in told)
    assert (provider.answers[0].usage is not None) is asked


def test_stateful_responses_count_the_stored_history(provider: ScriptedProvider) -> None:
    with ResponsesTalk(provider.url, stateful=True) as short, ResponsesTalk(provider.url) as whole:
        for text in ("one", "two", "three"):
            stateful = short.say(text, stream=True)
            full = whole.say(text)
            assert stateful.usage and full.usage
            assert stateful.usage.prompt_tokens == full.usage.prompt_tokens
    assert len(provider.requests[-2].json()["input"]) == 1
    assert len(provider.requests[-1].json()["input"]) == 5


def test_unknown_previous_response_is_refused(provider: ScriptedProvider) -> None:
    with ResponsesTalk(provider.url, extra={"previous_response_id": "resp_none"}) as talk:
        with pytest.raises(openai.BadRequestError) as caught:
            talk.say("hello")
        assert caught.value.code == "previous_response_not_found"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("protocol", ROUTES)
def test_output_limit_cuts_the_answer_short(provider: ScriptedProvider, protocol: str, stream: bool) -> None:
    limit = {"messages": "max_tokens", "chat": "max_tokens", "responses": "max_output_tokens"}[protocol]
    with RawClient("127.0.0.1", provider.port) as client:
        client.post(ROUTES[protocol], body(protocol, "words:50", stream=stream, **{limit: 3}))
        answer = client.read()
    assert output_tokens(provider.answers[0].text) == 3
    expected = {"messages": b'"max_tokens"', "chat": b'"length"', "responses": b'"max_output_tokens"}'}[protocol]
    assert expected in answer.body


def test_ping_of_zero_tokens_says_nothing_and_reads_the_cache(provider: ScriptedProvider) -> None:
    with AnthropicTalk(provider.url, extra={"max_tokens": 0}) as talk:
        talk.say("warm")
        with AnthropicTalk(provider.url, extra={"max_tokens": 0}) as other:
            said = other.say("warm")
    assert said.text == "" and said.usage
    assert said.usage.output_tokens == 0 and said.usage.cache_read_tokens > 0 and said.usage.cache_write_tokens == 0


def test_models_have_the_shape_of_the_provider_asked(provider: ScriptedProvider) -> None:
    client = anthropic.Anthropic(base_url=provider.url, api_key=API_KEY, max_retries=0)
    with client:
        assert [model.line for model in client.models.list()] == ["opus", "sonnet"]
    with openai.OpenAI(base_url=provider.url + "/v1", api_key=API_KEY, max_retries=0) as other:
        assert "gpt-5" in [model.id for model in other.models.list()]


def test_count_tokens_is_the_prompt_of_the_same_message(provider: ScriptedProvider) -> None:
    messages: Any = [{"role": "user", "content": "how much is this?"}]
    with anthropic.Anthropic(base_url=provider.url, api_key=API_KEY, max_retries=0) as client:
        counted = client.messages.count_tokens(model="claude-sonnet-4-6", messages=messages)
        sent = client.messages.create(model="claude-sonnet-4-6", messages=messages, max_tokens=10)
    assert counted.input_tokens == sent.usage.input_tokens


def test_headers_are_those_of_the_provider(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "hello"))
        of_anthropic = client.read()
        client.send("POST", "/v1/responses", (), json.dumps(body("responses", "hello")).encode())
        of_openai = client.read()
    assert of_anthropic.header("request-id").startswith("req_")
    assert of_anthropic.header("anthropic-ratelimit-tokens-limit")
    assert of_openai.header("openai-processing-ms") and of_openai.header("x-request-id")
    assert len([name for name, _ in of_openai.headers if name == "set-cookie"]) == 2
    assert provider.requests[0].connection == provider.requests[1].connection


# -- usage


def test_anthropic_cache_is_written_once_and_read_from_then_on(provider: ScriptedProvider) -> None:
    with AnthropicTalk(provider.url, cache_ttl="5m") as talk:
        first, second = talk.say("one").usage, talk.say("two").usage
    assert first and second
    assert first.input_tokens == 0 and first.cache_read_tokens == 0 and first.cache_write_5m_tokens > 0
    assert second.cache_read_tokens == first.prompt_tokens
    assert second.input_tokens == 0 and second.cache_write_1h_tokens == 0 and second.cache_write_5m_tokens > 0


def test_anthropic_cache_writes_are_split_by_ttl(provider: ScriptedProvider) -> None:
    system = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    with AnthropicTalk(provider.url, cache_ttl="5m", extra={"system": system}) as talk:
        usage = talk.say("one", stream=True).usage
    assert usage
    assert usage.cache_write_1h_tokens > 1024 and 0 < usage.cache_write_5m_tokens < 100 and usage.input_tokens == 0


def test_anthropic_without_breakpoints_caches_nothing(provider: ScriptedProvider) -> None:
    with AnthropicTalk(provider.url, cache_ttl=None) as talk:
        for _ in range(2):
            usage = talk.say(LONG).usage
            assert usage and usage.prompt_tokens == usage.input_tokens


def test_cache_is_per_credential_whichever_header_carries_it(provider: ScriptedProvider) -> None:
    with AnthropicTalk(provider.url) as mine, AnthropicTalk(provider.url, api_key="other") as theirs:
        mine.say("the same words")
        assert (usage := theirs.say("the same words").usage) and usage.cache_read_tokens == 0
    block = {"type": "text", "text": "the same words", "cache_control": {"type": "ephemeral"}}
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", [block], model=mine.model), [("x-api-key", API_KEY)])
        assert client.read().json()["usage"]["cache_read_input_tokens"] > 0


def test_forgotten_cache_is_written_anew(provider: ScriptedProvider) -> None:
    with AnthropicTalk(provider.url) as talk:
        talk.say("one")
        provider.forget_cache()
        usage = talk.say("two").usage
    assert usage and usage.cache_read_tokens == 0 and usage.cache_write_5m_tokens == usage.prompt_tokens


def test_openai_cached_tokens_come_in_steps_of_128_from_1024_on(provider: ScriptedProvider) -> None:
    with ChatTalk(provider.url) as talk:
        assert (few := talk.say("short").usage) and few.cache_read_tokens == 0
        assert (still := talk.say("short").usage) and still.cache_read_tokens == 0
        talk.say(LONG)
        many = talk.say("now").usage
    assert many and many.cache_read_tokens >= 1024 and many.cache_read_tokens % 128 == 0
    reported = json.loads(provider.answers[-1].request.body)
    assert many.prompt_tokens == sum_of_units(reported["messages"])


def test_cold_reports_everything_as_written(provider: ScriptedProvider) -> None:
    with AnthropicTalk(provider.url) as talk:
        talk.say("one")
        usage = talk.say("cold two", stream=True).usage
    assert usage and usage.cache_write_5m_tokens == usage.prompt_tokens
    with ChatTalk(provider.url) as chat:
        chat.say(LONG)
        assert (cold := chat.say("cold two").usage) and cold.cache_read_tokens == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("protocol", ROUTES)
def test_no_usage_tells_none(provider: ScriptedProvider, protocol: str, stream: bool) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post(ROUTES[protocol], body(protocol, "no-usage", stream=stream))
        assert b"_tokens" not in client.read().body.replace(b'"max_output_tokens":', b"")
    assert provider.answers[0].usage is None and provider.usage_total() == Usage()


def test_usage_total_sums_only_what_is_wanted(provider: ScriptedProvider) -> None:
    with AnthropicTalk(provider.url) as talk:
        talk.say("mine")
        wanted = talk.say("theirs").usage
    assert provider.usage_total(lambda answered: answered.user_text == "theirs") == wanted


# -- faults


@pytest.mark.parametrize(("status", "kind"), [(529, "overloaded_error"), (429, "rate_limit_error")])
def test_failure_in_anthropics_shape_ends_after_its_attempts(
    provider: ScriptedProvider, status: int, kind: str
) -> None:
    with AnthropicTalk(provider.url) as talk:
        for _ in range(2):
            with pytest.raises(anthropic.APIStatusError) as caught:
                talk.say(f"fail-{status}x2")
            assert caught.value.status_code == status
            assert caught.value.response.headers["retry-after"] == "1"
            assert isinstance(caught.value.body, dict) and caught.value.body["error"]["type"] == kind
        assert talk.say(f"fail-{status}x2").text
    assert [a.status for a in provider.answers] == [status, status, 200]
    assert [a.usage is None for a in provider.answers] == [True, True, False]


@pytest.mark.parametrize("talks", [ChatTalk, ResponsesTalk])
def test_failure_in_openais_shape(provider: ScriptedProvider, talks: Callable[..., Talk]) -> None:
    with talks(provider.url) as talk:
        with pytest.raises(openai.RateLimitError) as caught:
            talk.say("fail-429x1", stream=True)
        assert caught.value.code == "rate_limit_exceeded"
        assert talk.say("fail-429x1", stream=True).text


def test_failure_without_a_count_is_for_every_attempt(provider: ScriptedProvider, talk: Talk) -> None:
    for _ in range(3):
        with pytest.raises((anthropic.BadRequestError, openai.BadRequestError)):
            talk.say("fail-400")


def test_failures_are_counted_per_body(provider: ScriptedProvider) -> None:
    with AnthropicTalk(provider.url) as talk:
        for text in ("fail-500x1 one", "fail-500x1 two"):
            with pytest.raises(anthropic.InternalServerError):
                talk.say(text)


def test_drop_closes_once_without_an_answer(provider: ScriptedProvider, talk: Talk) -> None:
    with pytest.raises((anthropic.APIConnectionError, openai.APIConnectionError)):
        talk.say("drop")
    assert talk.say("drop").text
    assert [a.status for a in provider.answers] == [0, 200]
    assert [a.complete for a in provider.answers] == [False, True]


@pytest.mark.parametrize("protocol", ROUTES)
def test_cut_stream_looks_cut_and_has_whole_events(provider: ScriptedProvider, protocol: str) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post(ROUTES[protocol], body(protocol, "cut-after:4 words:9", stream=True))
        answer = client.read()
    assert (answer.complete, answer.fault, answer.status) == (False, "closed", 200)
    assert answer.body.count(b"\n\n") == 4
    assert not provider.answers[0].complete and not provider.answers[0].client_closed


def test_cut_after_the_last_event_lacks_only_the_end_of_the_body(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "cut-after:8 words:2", stream=True))
        answer = client.read()
    assert b"message_stop" in answer.body and not answer.complete and not provider.answers[0].complete


def test_cut_stream_of_anthropic_told_the_prompt_only(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "cut-after:4 words:9", stream=True))
        client.read()
    usage = provider.answers[0].usage
    assert usage and usage.prompt_tokens > 0 and usage.output_tokens == 1


def test_cut_body_has_so_many_bytes(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "cut-after:33"))
        answer = client.read()
    assert len(answer.body) == 33 and not answer.complete
    assert provider.answers[0].usage is None


def test_sse_error_reaches_the_sdk_as_an_error(provider: ScriptedProvider, talk: Talk) -> None:
    with pytest.raises(Exception, match=r"Overloaded|had an error|error"):
        talk.say("sse-error", stream=True)
    assert talk.history == []
    assert provider.answers[0].status == 200


def test_stalled_answer_comes_after_release(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "stall:here"))
        provider.wait_held("here")
        assert provider.answers[0].bytes_sent == 0 and not provider.answers[0].ended
        provider.release("here")
        assert client.read().complete


def test_slow_headers_send_the_status_line_first(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "slow-headers:here"))
        provider.wait_held("here")
        assert client.read_until(b"HTTP/1.1 200 OK\r\n")
        assert provider.answers[0].bytes_sent == len(b"HTTP/1.1 200 OK\r\n")
        provider.release("here")
        assert client.read().complete


@pytest.mark.parametrize("protocol", ROUTES)
def test_held_stream_stops_after_the_first_delta(provider: ScriptedProvider, protocol: str) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post(ROUTES[protocol], body(protocol, "hold:here words:3", stream=True))
        provider.wait_held("here")
        assert client.read_until(b"tok-") and not provider.answers[0].complete
        provider.release("here")
        answer = client.read()
    assert answer.complete and b"word3" in answer.body
    assert provider.answers[0].complete


def test_held_body_stops_at_its_half(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "hold:here"))
        provider.wait_held("here")
        assert provider.answers[0].usage is None
        provider.release("here")
        assert client.read().json()["type"] == "message"


def test_released_gate_stays_open(provider: ScriptedProvider) -> None:
    provider.release("here")
    with AnthropicTalk(provider.url) as talk:
        assert talk.say("hold:here", stream=True).text


def test_client_that_leaves_while_held_is_noticed(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "hold:here", stream=True))
        provider.wait_held("here")
    provider.wait_until(lambda: provider.answers[0].ended)
    assert provider.answers[0].client_closed and not provider.answers[0].complete


def test_client_that_leaves_after_the_answer_is_not_held_against_it(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "hello", stream=True))
        assert client.read().complete
    provider.wait_until(lambda: provider.answers[0].ended)
    assert provider.answers[0].complete and not provider.answers[0].client_closed


DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": brotli.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("encoding", DECODERS)
def test_encoded_answer_decodes_to_the_plain_one(provider: ScriptedProvider, encoding: str, stream: bool) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", f"encode:{encoding} words:5", stream=stream))
        answer = client.read()
    assert answer.header("content-encoding") == encoding
    plain = DECODERS[encoding](answer.body)
    assert b"word5" in plain and (b"message_stop" in plain) is stream


def test_encoded_event_can_be_decoded_before_the_end() -> None:
    """Not every SDK knows zstd."""
    reader = zstandard.ZstdDecompressor().decompressobj()
    writer = encoder("zstd")
    assert [reader.decompress(writer.feed(word)) for word in (b"one", b"two")] == [b"one", b"two"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_encoded_stream_is_decoded_by_the_sdk_as_it_comes(provider: ScriptedProvider, encoding: str) -> None:
    with anthropic.Anthropic(base_url=provider.url, api_key=API_KEY, max_retries=0) as client:
        wish = body("messages", f"encode:{encoding} hold:here words:3", stream=True)
        with client.messages.create(**wish) as stream:
            first = next(event for event in stream if event.type == "content_block_delta")
            assert first.delta.text.startswith("tok-")
            assert not provider.answers[0].complete
            provider.release("here")
            assert sum(event.type == "message_stop" for event in stream) == 1


def test_delay_waits_before_every_event(provider: ScriptedProvider) -> None:
    with AnthropicTalk(provider.url) as talk:
        talk.say("delay-ms:10 words:3", stream=True)
        talk.say("words:3", stream=True)
    slow, _ = provider.requests
    events_sent = 9
    assert provider.requests[1].at - slow.at >= 0.010 * events_sent


def test_garbage_is_not_http(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "garbage"))
        answer = client.read()
    assert (answer.status, answer.fault) == (0, "framing")
    assert not provider.answers[0].complete and provider.answers[0].status == 0


def test_json_garbage_is_http_but_not_json(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "json-garbage"))
        answer = client.read()
    assert (answer.status, answer.complete, answer.header("content-type")) == (200, True, "application/json")
    with pytest.raises(ValueError, match="Expecting value"):
        answer.json()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_big_answer_has_so_many_bytes(provider: ScriptedProvider, talk: Talk, stream: bool) -> None:
    assert len(talk.say("big:300000", stream).text) == (300_000 if not isinstance(talk, AnthropicTalk) else 32_767)


def test_client_that_does_not_read_stops_the_provider(provider: ScriptedProvider) -> None:
    size = 64 * 1024 * 1024
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/chat/completions", body("chat", f"big:{size}", stream=True))
        assert client.read_first_byte() == b"H"
        with pytest.raises(TimeoutError):
            provider.wait_until(lambda: provider.answers[0].bytes_sent > size / 2, timeout_seconds=0.5)
    provider.wait_until(lambda: provider.answers[0].ended)
    assert provider.answers[0].client_closed


# -- requests and connections


def test_request_is_recorded_byte_for_byte(provider: ScriptedProvider) -> None:
    odd = b' {"model" : "m","max_tokens":1, "messages":[{"role":"user","content":"x\\u00e9"}] ,"unknown":1e3}\n'
    headers = [("X-Odd", "  a\tb "), ("x-odd", "c"), ("Content-Type", "application/json")]
    with RawClient("127.0.0.1", provider.port) as client:
        assert client.ask("POST", "/v1/messages?beta=true", headers, odd).status == 200
    request = provider.requests[0]
    assert request.body == odd
    assert (request.method, request.target, request.path) == ("POST", "/v1/messages?beta=true", "/v1/messages")
    assert request.headers[1:4] == (("X-Odd", "a\tb"), ("x-odd", "c"), ("Content-Type", "application/json"))


def test_chunked_request_is_put_together(provider: ScriptedProvider) -> None:
    plain = json.dumps(body("messages", "hello")).encode()
    parts = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in (plain[:7], plain[7:]))
    with RawClient("127.0.0.1", provider.port) as client:
        chunked = [("Transfer-Encoding", "chunked")]
        answer = client.ask("POST", "/v1/messages", chunked, parts + b"0\r\nx-trailer: 1\r\n\r\n")
        assert answer.status == 200 and client.ask("GET", "/v1/models").status == 200
    assert provider.requests[0].body == plain


def test_unknown_path_is_404_in_the_shape_of_the_provider(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        of_anthropic = client.ask("GET", "/v1/nothing", [("anthropic-version", "2023-06-01")])
        of_openai = client.ask("DELETE", "/v1/nothing")
        head = client.ask("HEAD", "/")
    assert of_anthropic.status == 404 and of_anthropic.json()["error"]["type"] == "not_found_error"
    assert of_openai.status == 404 and of_openai.json()["error"]["code"] == "not_found"
    assert head.status == 404 and head.complete and head.body == b""


@pytest.mark.parametrize(
    "wrong",
    [b"", b"{", b"[]", b"\xff", b'{"model":"m"}', b'{"model":1,"messages":[]}', b"[" * 100_000],
    ids=["empty", "malformed", "array", "not utf-8", "no messages", "wrong types", "deep"],
)
@pytest.mark.parametrize("protocol", ROUTES)
def test_bad_body_is_refused_in_the_shape_of_the_provider(
    provider: ScriptedProvider, protocol: str, wrong: bytes
) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        answer = client.ask("POST", ROUTES[protocol], (), wrong)
    assert answer.status == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_newest_user_text_leaves_reminders_and_older_markers_out(provider: ScriptedProvider) -> None:
    reminder = {"type": "text", "text": "<system-reminder>\nfail-400</system-reminder>"}
    with RawClient("127.0.0.1", provider.port) as client:
        wish = body("messages", [reminder, {"type": "text", "text": "hello"}])
        wish["messages"] = [{"role": "user", "content": "fail-500"}, *wish["messages"]]
        client.post("/v1/messages", wish)
        assert client.read().status == 200
    assert provider.answers[0].user_text == "hello"


def test_parallel_requests_have_numbers_and_connections_of_their_own(provider: ScriptedProvider) -> None:
    clients = [RawClient("127.0.0.1", provider.port) for _ in range(20)]
    threads = [threading.Thread(target=ask_for_words, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [request.number for request in provider.requests] == list(range(1, 21))
    assert len({request.connection for request in provider.requests}) == 20
    assert len({answered.text for answered in provider.answers}) == 20


def test_equal_seeds_give_equal_bytes() -> None:
    bodies = []
    for seed in (1, 1, 2):
        with ScriptedProvider(seed=seed) as provider, RawClient("127.0.0.1", provider.port) as client:
            client.post("/v1/messages", body("messages", "hello", stream=True))
            bodies.append(client.read().body)
    assert bodies[0] == bodies[1] != bodies[2]


# -- scripting


def test_script_of_a_canned_answer_is_sent_as_it_is(provider: ScriptedProvider) -> None:
    told = Usage(input_tokens=3, output_tokens=4)
    provider.script(lambda request: Canned(status=418, headers=[("x-odd", "1")], body=[b"a", b"bc"], tells=told))
    with RawClient("127.0.0.1", provider.port) as client:
        answer = client.ask("GET", "/anything")
    assert (answer.status, answer.body, answer.header("x-odd"), answer.complete) == (418, b"abc", "1", True)
    assert provider.usage_total() == told


@pytest.mark.parametrize("data", [b"HTTP/1.1 299 Odd\r\nX: 1", [b"HTTP/1.1 2", b"99 Odd\r\n", b"X: 1"]])
def test_verbatim_bytes_are_sent_as_they_are_and_the_connection_goes_on(
    provider: ScriptedProvider, data: bytes | list[bytes]
) -> None:
    end = b"\r\nContent-Length: 0\r\n\r\n"
    whole = data + end if isinstance(data, bytes) else [*data, end]
    provider.script(lambda request: Verbatim(data=whole))
    with RawClient("127.0.0.1", provider.port) as client:
        for _ in range(2):
            answer = client.ask("POST", "/anything", [], b"{}")
            assert (answer.status, answer.headers) == (299, (("X", "1"), ("Content-Length", "0")))
    assert {request.connection for request in provider.requests} == {1}
    assert not any(answered.complete for answered in provider.answers)


@pytest.mark.parametrize(("then", "fault"), [("close", "closed"), ("reset", "reset")])
def test_verbatim_bytes_come_before_the_end_that_was_asked_for(
    provider: ScriptedProvider, then: Literal["close", "reset"], fault: str
) -> None:
    provider.script(lambda request: Verbatim(data=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", then=then))
    for _ in range(20):
        with RawClient("127.0.0.1", provider.port) as client:
            answer = client.ask("POST", "/anything", [], b"{}")
        assert (answer.body, answer.fault) == (b"abc", fault)


def test_script_may_replace_the_markers_of_one_request(provider: ScriptedProvider) -> None:
    provider.script(lambda request: Script(words=2) if request.number == 2 else None)
    with AnthropicTalk(provider.url) as talk:
        talk.say("words:5")
        assert len(talk.say("words:5").text.split()) == 2
        assert len(talk.say("words:5").text.split()) == 5


def test_markers_are_whole_words_and_combine() -> None:
    assert parse_script("fail-529x2 words:3 hold:a.b cut-after:0") == Script(
        fail_status=529, fail_attempts=2, words=3, hold="a.b", cut_after=0
    )
    assert parse_script("fail-400").fail_attempts == EVERY_ATTEMPT
    assert parse_script("dropped cold-blooded words:many stall: encode:rot13 xfail-400 fail-4000") == Script()


# -- life and death


def test_stopping_while_answers_wait_and_flow_does_not_hang() -> None:
    with ScriptedProvider() as provider:
        clients = [RawClient("127.0.0.1", provider.port) for _ in range(3)]
        for client, text in zip(clients, ("stall:x", "hold:x", "big:50000000"), strict=True):
            client.post("/v1/chat/completions", body("chat", text, stream=True))
        provider.wait_held("x")
        provider.wait_until(lambda: any(answered.bytes_sent > 100_000 for answered in provider.answers))
    for client in clients:
        assert not client.read().complete
        client.close()


def test_client_killed_in_the_middle_leaves_the_provider_serving(provider: ScriptedProvider) -> None:
    wish = json.dumps(body("chat", "big:50000000", stream=True))
    program = (
        "import socket, sys\n"
        f"client = socket.create_connection(('127.0.0.1', {provider.port}))\n"
        f"body = {wish!r}.encode()\n"
        "head = f'POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n'\n"
        "client.sendall(head.encode() + body)\n"
        "client.recv(1)\n"
        "print('reading', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"reading\n"
        child.send_signal(signal.SIGKILL)
    provider.wait_until(lambda: provider.answers[0].ended)
    assert provider.answers[0].client_closed
    with AnthropicTalk(provider.url) as talk:
        assert talk.say("still there?").text


def test_mistake_in_a_script_is_raised_at_the_end() -> None:
    def broken(request: Arrived) -> None:
        raise KeyError("mistake")

    provider = ScriptedProvider().__enter__()
    provider.script(broken)
    with RawClient("127.0.0.1", provider.port) as client:
        assert not client.ask("GET", "/v1/models").complete
    with pytest.raises(RuntimeError, match="failed") as caught:
        provider.__exit__(None, None, None)
    assert isinstance(caught.value.__cause__, KeyError)


def test_port_in_use_is_an_error_at_the_start(provider: ScriptedProvider) -> None:
    with pytest.raises(RuntimeError, match="did not start"), ScriptedProvider(port=provider.port):
        raise AssertionError("started on a port that is in use")


def test_program_prints_its_url_and_stops_on_sigterm() -> None:
    command = [sys.executable, "-m", "tests.provider", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}) as child:
        assert child.stdout
        port = int(child.stdout.readline().rpartition(":")[2])
        with RawClient("127.0.0.1", port) as client:
            assert client.ask("GET", "/v1/models").status == 200
        assert child.stdout.readline().startswith("1 GET /v1/models 200 complete")
        child.terminate()
        assert child.stdout.readline().startswith("total ")
    assert child.returncode == 0


# -- clients


def test_raw_client_takes_exactly_one_byte(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        client.post("/v1/messages", body("messages", "hello"))
        assert client.read_first_byte() == b"H"
        answer = client.read()
        assert answer.complete and answer.json()["role"] == "assistant"
        client.post("/v1/messages", body("messages", "again"))
        assert client.read().complete


def test_raw_client_gives_up_at_its_deadline(provider: ScriptedProvider) -> None:
    with RawClient("127.0.0.1", provider.port, deadline_seconds=0.1) as client:
        client.post("/v1/messages", body("messages", "stall:ever"))
        assert client.read_first_byte() == b""
        assert client.read().fault == "deadline"


def test_talk_that_failed_sends_the_same_body_again(provider: ScriptedProvider, talk: Talk) -> None:
    with pytest.raises((anthropic.APIError, openai.APIError)):
        talk.say("fail-500x1")
    talk.say("fail-500x1")
    first, second = provider.requests
    assert first.body == second.body


def test_talks_name_their_session_as_real_clients_do(provider: ScriptedProvider, talk: Talk) -> None:
    talk.say("hello")
    name = "x-claude-code-session-id" if isinstance(talk, AnthropicTalk) else "session-id"
    assert provider.requests[0].header(name) == "session-1"


def test_anthropic_talk_moves_its_breakpoint_to_the_newest_message(provider: ScriptedProvider) -> None:
    with AnthropicTalk(provider.url, cache_ttl="1h") as talk:
        talk.say("one")
        talk.say("two")
    *older, newest = provider.requests[-1].json()["messages"]
    assert newest["content"][-1]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert b"cache_control" not in json.dumps(older).encode()


def test_session_header_of_the_response_is_handed_on(provider: ScriptedProvider, talk: Talk) -> None:
    with RawClient("127.0.0.1", provider.port) as client:
        route = {AnthropicTalk: "messages", ChatTalk: "chat", ResponsesTalk: "responses"}[type(talk)]
        client.post(ROUTES[route], body(route, "hello"))
        plain = client.read().body
    headers = [("content-type", "application/json"), ("x-perdure-session", "s-1"), ("x-perdure-layer", "2")]
    provider.script(lambda request: Canned(headers=headers, body=plain))
    said = talk.say("hello")
    assert said.session == "s-1" and said.headers["x-perdure-layer"] == "2"


# -- helpers


def body(protocol: str, content: Any, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    """A request of one user message."""
    wish: dict[str, Any] = {"model": "model-1", "stream": stream}
    if protocol == "messages":
        wish["max_tokens"] = 100
    history = [{"role": "user", "content": content}]
    return wish | {"input" if protocol == "responses" else "messages": history} | more


def events(answer: RawAnswer) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of the named events of a stream."""
    assert answer.complete
    blocks = answer.body.decode().split("\n\n")[:-1]
    pairs = [block.split("\n", 1) for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def sum_of_units(messages: list[dict[str, Any]]) -> int:
    """Tokens of a chat without tools, by hand: role and text as one JSON text each."""
    total = unit_tokens('{"content":null,"tools":null}')
    for message in messages:
        blocks = [{"text": message["content"], "type": "text"}]
        unit = {"content": blocks, "role": message["role"]}
        total += unit_tokens(json.dumps(unit, ensure_ascii=False, separators=(",", ":")))
    return total


def ask_for_words(client: RawClient) -> None:
    with client:
        client.post("/v1/messages", body("messages", "words:50", stream=True))
        assert client.read().complete
