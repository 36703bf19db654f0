"""Target: what a request says about who speaks: its body and its headers.

What must hold: nothing raises; what is concluded can be written to the worker; and the work is in proportion to the
size, counted in lines that run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from daemon.app import rules_of
from daemon.chain import HashKeys
from daemon.cost import Prices
from daemon.identity import Headers, Known, Rules, as_child, known_from, naming_of
from daemon.providers import WireFormat, parse_turn, setup_of
from tests.fuzz.coverage import Edges
from tests.fuzz.guided import Target
from worker.protocol import FROM_DAEMON, Claim, Command, decode, encode
from worker.settings import Settings

PART: Final = b"\x1c\x1c"
"""Between the head and the body of an input; the head's first letter chooses the wire format."""
WIRES: Final[tuple[WireFormat, ...]] = ("messages", "chat", "responses")
LINES_MAX: Final = 20_000
LINES_PER_BYTE_MAX: Final = 60
"""Lines of the program that an input may cost: a message of ten bytes costs some hundred."""
KEYS: Final = (
    HashKeys(store=b"k" * 32, early=b"e" * 32),
    HashKeys(store=b"k" * 32, early=b"e" * 32, early_was_used=True),
    HashKeys(store=None, early=b"e" * 32),
)


@contextmanager
def opened(edges: Edges) -> Iterator[Target]:
    rules, prices = rules_of(Settings()), Prices()
    yield Target(check=partial(check, edges, rules, prices), seeds=SEEDS, tokens=_TOKENS)


def check(edges: Edges, rules: Rules, prices: Prices, data: bytes) -> None:
    head, _, body = data.partition(PART)
    wire = WIRES[(head[0] if head else 0) % len(WIRES)]
    before = edges.lines
    read(wire, _headers(head), body, rules, prices)
    cost = edges.lines - before
    assert cost <= LINES_MAX + LINES_PER_BYTE_MAX * len(data), f"{cost} lines for {len(data)} bytes"


def read(wire: WireFormat, headers: Headers, body: bytes, rules: Rules, prices: Prices) -> None:
    """All that is done with a request before it is sent on."""
    turn = parse_turn(wire, body, rules.fields)
    if turn is None:
        return
    setup_of(turn)
    assert prices.cap_ceiling("anthropic" if wire == "messages" else "openai", turn.model) >= 0
    for keys in KEYS:
        known = known_from(headers, turn, body, keys, rules)
        _check_naming(known)
        _check_naming(as_child(known, "parent", body, keys))


def _check_naming(known: Known) -> None:
    claim = Claim(naming=naming_of(known, "drawn"))
    assert decode(encode(Command.CLAIM, claim, 1), FROM_DAEMON).body == claim


def _headers(head: bytes) -> Headers:
    """As the listener reads them: it takes no name that is not a token."""
    lines = (line.decode("utf-8", "surrogateescape").partition(":") for line in head[1:].split(b"\n"))
    return [(name, value.strip(" ")) for name, _, value in lines if _TOKEN.fullmatch(name)]


_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_JWT: Final = b"eyJhbGciOiJub25lIn0.eyJpc3MiOiJpIiwic3ViIjoidSJ9.c2ln"
_TOKENS: Final = [
    *(b'"role":"assistant"', b'"type":"tool_use"', b'"type":"tool_result"', b'"type":"text"', b"<system-reminder>"),
    *(b"</system-reminder>", b'"\\ud800"', b'"\\udc00\\ud800"', b"\\u0000", b"\x1e", b"\\u001e", b'"metadata"', _JWT),
    *(b'"user_id":"{\\"session_id\\":\\"s\\"}"', b'"previous_response_id":"r"', b'"conversation":{"id":"c"}', b"\xff"),
    *(b"x-session-id:", b"session-id:", b"thread-id:", b"authorization:Bearer ", b"x-api-key:", b"user-agent:codex/1"),
    *(b"x-parent-session-id:", b"x-claude-code-agent-id:", b"\n", PART, b'"stream":true', b'"item_reference"', b","),
]
SEEDS: Final = [
    b"0x-api-key:k\nuser-agent:claude-cli/2\nx-claude-code-session-id:s-1\nx-claude-code-agent-id:a-1"
    + PART
    + b'{"model":"claude-sonnet-4-6","max_tokens":1,"system":[{"type":"text","text":"You are.\\nTitle"}],'
    b'"metadata":{"user_id":"{\\"session_id\\":\\"u\\",\\"account_uuid\\":\\"acc\\"}"},"tools":[{"name":"read"}],'
    b'"messages":[{"role":"user","content":[{"type":"text","text":"<system-reminder>x</system-reminder> hi"}]},'
    b'{"role":"assistant","content":[{"type":"thinking","thinking":"t"},{"type":"tool_use","id":"t1","name":"read"}]},'
    b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"ok"}]}]}]}',
    b"1authorization:Bearer " + _JWT + b"\nx-stainless-lang:js\nx-my-session:abcdefgh-1" + PART + b'{"model":"gpt-5",'
    b'"stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":100,"prompt_cache_key":"p",'
    b'"tools":[{"type":"function","function":{"name":"f"}}],"messages":[{"role":"system","content":"generate a title"},'
    b'{"role":"user","content":"hi"},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function",'
    b'"function":{"name":"f","arguments":"{}"}}],"function_call":{"name":"g"}},{"role":"tool","tool_call_id":"c",'
    b'"content":"done"},{"role":"user","content":[{"type":"text","text":"and \\ud83d now?"}]}]}',
    b"2session-id:a\nthread-id:b\nx-codex-parent-thread-id:c\nuser-agent:codex_cli_rs/1" + PART + b'{"model":"gpt-5",'
    b'"instructions":"be\\nbrief","previous_response_id":"resp_1","conversation":{"id":"conv_1"},"input":[{"type":'
    b'"message","role":"user","content":[{"type":"input_text","text":"hi"}]},{"type":"reasoning","id":"rs_1"},{"type":'
    b'"function_call","call_id":"c1","name":"f","id":"fc_1"},{"type":"function_call_output","call_id":"c1","output":'
    b'"ok"},{"type":"item_reference","id":"msg_1"},{"type":"mcp_approval_response","approval_request_id":"m"}]}',
    b"2" + PART + b'{"model":"gpt-5","input":"hello","max_output_tokens":16}',
    b"0x-session-id:\xff\x00" + PART + b'{"messages":[{"role":"user","content":"hi"}]}',
]
