"""The cap of a session's context: never beyond a window that is known for sure, and not held to one that is not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.processes import Gateway, eventually
from tests.provider import Canned, ScriptedProvider
from tests.system.turns import take_turn

pytestmark = pytest.mark.system

MODEL = "claude-haiku-4-5"
WINDOW = 200_000
AFFORDABLE = 800_000
"""What a dollar writes of it, by the list."""
LONGER = [("anthropic-beta", "context-1m-2025-08-07")]


def answer(read: int) -> Canned:
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": read}
    body = json.dumps({"type": "message", "content": [], "usage": usage}).encode()
    return Canned(headers=(("content-type", "application/json"),), body=body)


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.mark.parametrize(
    ("name", "headers", "prompt", "cap"),
    [
        ("listed", [], WINDOW // 2, WINDOW),
        ("asked for", LONGER, WINDOW // 2, AFFORDABLE),
        ("proved longer", [], WINDOW + 1_000, AFFORDABLE),
    ],
)
def test_cap_is_within_the_window_where_that_is_sure(
    name: str, headers: list[tuple[str, str]], prompt: int, cap: int, provider: ScriptedProvider
) -> None:
    provider.script(lambda _request: answer(prompt))
    with Gateway(provider) as gateway:
        gateway.start()
        with gateway.client() as client:
            said = take_turn(client, "messages", "hello", session=name, headers=headers, model=MODEL)
        shown = eventually(lambda: gateway.session(said.header("x-perdure-session"))["gradient"])
    assert (shown["last_known_input"], shown["dynamic_context_cap"]) == (prompt + 1, cap)
