"""The last request once more: the same bytes but for two fields, and what may not be sent again."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.accounts import is_subscription
from daemon.providers import body_fields, parse_turn
from daemon.providers.ping import blames_limit, is_signed, ping_body

FIELDS: Final = body_fields([])
BODY: Final = b"""{ "model" :"m",\t"max_tokens" : 8192,
  "stream":true, "system": "\\"max_tokens\\": 8192, \\u00e9 \\/", "messages": [{"role": "user", "content": "\xc3\xa9"}],
  "tools": [{"name": "t", "input_schema": {"properties": {"stream": true, "max_tokens": 8192}}}]}"""


def signed(body: dict[str, Any], *headers: tuple[str, str]) -> bool:
    turn = parse_turn("messages", json.dumps({"messages": [], **body}).encode(), FIELDS)
    assert turn is not None
    return is_signed(turn, headers)


@pytest.mark.parametrize("limit", [0, 1])
def test_ping_has_every_byte_of_its_request_but_two_values(limit: int) -> None:
    wanted = BODY.replace(b'"max_tokens" : 8192', b'"max_tokens" : %d' % limit).replace(
        b'"stream":true', b'"stream":false'
    )
    assert ping_body(BODY, limit) == wanted


def test_value_deeper_inside_is_not_taken_for_the_field() -> None:
    body = b'{"tools":[{"max_tokens":5,"stream":true},{"max_tokens":5}],"max_tokens":5,"messages":[]}'
    assert ping_body(body, 0) == body[: body.rindex(b"5")] + b"0" + body[body.rindex(b"5") + 1 :]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"messages": []}',
        b'{"max\\u005ftokens": 5}',
        b'{"max_tokens": 5, "messages": "\xff"',
        b"[" * 100_000,
        b"{" + b'"a":{"max_tokens":5},' * 99 + b'"max\\u005ftokens":5}',
    ],
)
def test_body_of_which_no_ping_can_be_made_gives_none(body: bytes) -> None:
    assert ping_body(body, 0) is None


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["stream", "max_tokens", "a", "é"]) | st.text(), inner)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["a", "messages", "tools"]) | st.text(), JSON),
    st.integers(0, 2**40),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
def test_ping_of_any_request_means_the_same_but_for_the_two_fields(
    more: dict[str, Any], limit: int, stream: bool | None, indent: Any, ascii_only: bool
) -> None:
    request = {**more, "max_tokens": limit, **({} if stream is None else {"stream": stream})}
    body = json.dumps(request, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    made = ping_body(body, 0)
    if made is None:
        assert any(0xD800 <= ord(c) <= 0xDFFF for c in json.dumps(request, ensure_ascii=False)), "halves of characters"
    else:
        assert json.loads(made) == {**request, "max_tokens": 0, **({} if stream is None else {"stream": False})}
        assert abs(len(made) - len(body)) <= 14


@pytest.mark.parametrize(
    ("thinking", "thinks"),
    [({"type": "enabled", "budget_tokens": 5}, True), ({"type": "adaptive"}, False), (None, False), ("enabled", False)],
)
def test_budget_for_thinking_is_seen(thinking: object, thinks: bool) -> None:
    turn = parse_turn("messages", json.dumps({"messages": [], "thinking": thinking}).encode(), FIELDS)
    assert turn is not None and turn.thinks == thinks


def test_signed_requests_are_known_by_their_checksum_or_header() -> None:
    billing = "x-anthropic-billing-header: cc_version=2.1;"
    assert signed({"system": [{"type": "text", "text": f"{billing} cch=4f1c2;"}]})
    assert not signed({"system": [{"type": "text", "text": billing}, {"type": "text", "text": "cch=1 is a word"}]})
    assert signed({}, ("X-Body-Signature", "v1"))
    assert signed({}, ("Content-Digest", "sha-256=:x:"))
    assert signed({}, ("authorization", "AWS4-HMAC-SHA256 Credential=x"))
    assert not signed({}, ("authorization", "Bearer key"), ("x-api-key", "signature"))


def test_logins_are_told_from_keys() -> None:
    assert is_subscription({"authorization": "Bearer sk-ant-oat01-abc"})
    assert is_subscription({"x-api-key": "sk-ant-oat01-abc"})
    assert is_subscription({"authorization": "Bearer key", "anthropic-beta": "a-2025, oauth-2025-04-20"})
    assert is_subscription({"authorization": "Bearer eyJhbGciOi.eyJzdWIi.c2ln"})
    assert not is_subscription({"x-api-key": "sk-ant-api03-abc", "anthropic-beta": "context-1m"})
    assert not is_subscription({"authorization": "Bearer sk-ant-api03-abc"})


def test_refusal_for_the_limit_is_told_from_others() -> None:
    said = "max_tokens: Input should be greater than or equal to 1"
    assert blames_limit(
        json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": said}}).encode()
    )
    assert not blames_limit(b'{"error": {"message": "credit balance is too low"}}')
    assert not any(map(blames_limit, (b"", b"[]", b'{"error": "max_tokens"}', b"<html>max_tokens</html>")))
