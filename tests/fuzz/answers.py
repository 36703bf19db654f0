"""Target: the copy of a provider's answer: encodings, events and documents of all three wire formats.

What must hold: a reader never raises; however the bytes are split, it says the same; what it counts is a count; and
what it concludes can be written to the worker.  One thing may depend on the split: how much of an encoding that is
broken was still decoded, so there a reader may also say that it knows nothing.
"""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Final

import brotli
import zstandard

from daemon.app import rules_of
from daemon.chain import HashKeys
from daemon.cost import Prices
from daemon.identity import Known, answered, known_from, naming_of
from daemon.providers import Answer, WireFormat, parse_turn, reader
from daemon.providers.decoding import Decoder, Undecodable
from tests.fuzz.coverage import Edges
from tests.fuzz.guided import Target
from worker.protocol import FROM_DAEMON, NANOUSD_MAX, Booking, Command, Row, decode, encode
from worker.settings import Settings

WIRES: Final[tuple[WireFormat, ...]] = ("messages", "chat", "responses")
MODELS: Final = {"messages": "claude-sonnet-4-6", "chat": "gpt-5", "responses": "gpt-5"}
SPLITS: Final = 2
"""Ways an input is split, beside not at all and into single bytes where it is short."""
SINGLE_BYTES_MAX: Final = 300

Encode = Callable[[bytes], bytes]
ENCODINGS: Final[tuple[tuple[str, Encode], ...]] = (
    ("", bytes),
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("br", partial(brotli.compress, quality=1)),
    ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress),
    ("gzip, br", lambda data: brotli.compress(gzip.compress(data), quality=1)),
)


@contextmanager
def opened(_edges: Edges) -> Iterator[Target]:
    knowns = {wire: _known(wire) for wire in WIRES}
    yield Target(check=partial(check, knowns, Prices()), seeds=_seeds(), tokens=_TOKENS)


def check(knowns: dict[WireFormat, Known], prices: Prices, data: bytes) -> None:
    """The first three bytes: wire format and kind of answer; encoding; whether the rest is still to be encoded."""
    kind, encoding, is_plain = data.ljust(3, b"\0")[:3]
    wire, is_stream = WIRES[kind % 3], bool(kind & 4)
    name, encoded = ENCODINGS[encoding % len(ENCODINGS)]
    body = encoded(data[3:]) if is_plain & 1 else data[3:]
    said = [_told(wire, is_stream, name, pieces, whole=True) for pieces in _splits(body)]
    if _is_decodable(name, body):
        assert all(other == said[0] for other in said), said
    else:
        # What of a broken encoding was still heard may differ; that it was not heard is said by all means.
        known = {answer for answer in said if answer.usage is not None or answer.unit is not None}
        assert len(known) <= 1, known
    cut = _told(wire, is_stream, name, _splits(body)[-1], whole=False)
    for answer in (said[0], cut):
        _check_answer(knowns[wire], prices, answer)


def _told(wire: WireFormat, is_stream: bool, encoding: str, pieces: Sequence[bytes], *, whole: bool) -> Answer:
    looking_on = reader(wire, event_stream=is_stream, encoding=encoding)
    was_terminal = False
    for piece in pieces:
        looking_on.feed(piece)
        assert looking_on.terminal or not was_terminal, "an end is taken back"
        was_terminal = looking_on.terminal
    answer = looking_on.close(whole)
    assert looking_on.close(not whole) == answer
    return answer


def _check_answer(known: Known, prices: Prices, answer: Answer) -> None:
    """The booking of such an answer is one that the worker takes."""
    naming = naming_of(known, "drawn")
    wire, model = known.client, MODELS[known.client]
    cost = prices.price_nanousd("anthropic", model, answer.usage, 1_750_000_000_000) if answer.usage else None
    assert cost is None or 0 <= cost <= NANOUSD_MAX
    row = Row(
        event_id="event-01",
        session_id="s",
        kind="turn",
        status="complete",
        started_at=1,
        ended_at=2,
        provider="p",
        protocol=wire,  # type: ignore[arg-type]  # put there by `_known`
        model=model,
        usage=answer.usage,
        cost_nanousd=cost,
        text_only=answer.text_only,
    )
    booking = Booking(naming=answered(naming, known, answer), row=row, epoch=1, seen=0)
    assert decode(encode(Command.END, booking, 1), FROM_DAEMON).body == booking


def _splits(body: bytes) -> list[list[bytes]]:
    rng = random.Random(zlib.crc32(body))
    splits = [[body]]
    for _ in range(SPLITS):
        cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(1, 8)))
        splits.append([body[start:end] for start, end in pairwise([0, *cuts, len(body)])])
    if len(body) <= SINGLE_BYTES_MAX:
        splits.append([body[at : at + 1] for at in range(len(body))])
    return splits


def _is_decodable(encoding: str, body: bytes) -> bool:
    try:
        Decoder(encoding).feed(body)
    except Undecodable:
        return False
    return True


def _known(wire: WireFormat) -> Known:
    """Who asked: a conversation without an id, with all that an answer may be found by."""
    rules = rules_of(Settings())
    body = b'{"messages":[{"role":"user","content":"hi"}],"input":"hi"}'
    turn = parse_turn(wire, body, rules.fields)
    assert turn is not None
    headers = [("user-agent", wire), ("x-my-session", "abcdefgh-1")]
    return known_from(headers, turn, body, HashKeys(store=b"k" * 32, early=b"e" * 32), rules)


MESSAGES: Final = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":5,'
    b'"cache_read_input_tokens":7,"cache_creation_input_tokens":9,"cache_creation":{"ephemeral_1h_input_tokens":4}}}}'
    b'\n\nevent: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text",'
    b'"text":""}}\n\n: ping\r\n\r\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":'
    b'"Let me look at this for you, it will not take long."}}\n\nevent: content_block_start\ndata: {"type":'
    b'"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t1","name":"read","input":{}}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":11}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
CHAT: Final = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"role":"assistant","content":"<think>a</think>Hello"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","function":{"name":"f"}}]}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":50,"completion_tokens":3,"prompt_tokens_details":'
    b'{"cached_tokens":20}}}\n\ndata: [DONE]\n\n'
)
_RESPONSE: Final = (
    b'{"id":"resp_1","status":"completed","store":true,"output":[{"type":"reasoning","id":"rs_1"},{"type":"message",'
    b'"id":"msg_1","role":"assistant","content":[{"type":"output_text","text":"Hello"}]},{"type":"function_call",'
    b'"call_id":"c1","id":"fc_1","name":"f"},{"type":"web_search_call","id":"ws_1"}],"usage":{"input_tokens":30,'
    b'"input_tokens_details":{"cached_tokens":10},"output_tokens":4}}'
)
RESPONSES: Final = (
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1"}}\n\n'
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"H"}\n\n'
    b'event: response.output_item.done\ndata: {"type":"response.output_item.done","output_index":0,"item":'
    b'{"type":"message","id":"msg_1","role":"assistant","content":[{"type":"output_text","text":"Hello"}]}}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","response":' + _RESPONSE + b"}\n\n"
)
DOCUMENTS: Final = (
    b'{"id":"msg_1","type":"message","content":[{"type":"text","text":"Hello"},{"type":"server_tool_use","id":"s1"},'
    b'{"type":"web_search_tool_result","tool_use_id":"s1","content":[]}],"usage":{"input_tokens":5,"output_tokens":2}}',
    b'{"id":"c1","choices":[{"index":0,"message":{"role":"assistant","content":"Hi","refusal":null,"tool_calls":'
    b'[{"id":"call_1"}]}}],"usage":{"prompt_tokens":9,"completion_tokens":1}}',
    _RESPONSE,
)
_ERROR: Final = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"no"}}\n\n'
_TOKENS: Final = [
    *(b"\n\n", b"\r\n", b"\r", b"data: ", b"event: ", b"data:", b"\xef\xbb\xbf", b"[DONE]", b'"\\ud800"', b"<think>"),
    *(b"event: message_stop", b"event: response.completed", b"event: error", b'"usage":', b'"output_tokens":', b"null"),
    *(b'"index":', b'"type":"tool_use"', b'"error":{}', b'"status":"failed"', b'"store":false', b'"output":[]', _ERROR),
]


def _seeds() -> list[bytes]:
    """Every kind of answer, plain and in each encoding."""
    streams = [(wire | 4, body) for wire, body in enumerate((MESSAGES, CHAT, RESPONSES))]
    plain = [*streams, *enumerate(DOCUMENTS)]
    seeds = [bytes([kind, 0, 0]) + body for kind, body in plain]
    for number in range(1, len(ENCODINGS)):
        kind, body = plain[number % len(plain)]
        seeds += [bytes([kind, number, 1]) + body, bytes([kind, number, 0]) + ENCODINGS[number][1](body)]
    absurd = b'{"usage":{"input_tokens":9007199254740993,"output_tokens":-1},"content":[]}'
    return [*seeds, bytes([4, 0, 0]) + _ERROR, bytes(3) + absurd]
