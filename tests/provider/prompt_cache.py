"""How many tokens a prompt has, and how many of them come out of a prompt cache.

One rule: a plain function of the texts and of the requests before, so that a test can predict every number.

Theory.  A prompt is a row of units: what comes before the conversation (tools, system), then one per message.  A cache
entry is a prefix of that row, kept per credential and model.

Anthropic caches only up to a breakpoint (`cache_control`) and makes an entry at each.  The longest entry that is a
prefix of the request, up to its last breakpoint, is read; what follows up to each breakpoint is written with that
breakpoint's TTL; the rest is plain input.  There is no least size here, so that tests can be short.

OpenAI caches every prompt by itself, and reports the longest known prefix in whole steps of 128 tokens from 1024 on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from worker.protocol import Usage

CHARACTERS_PER_TOKEN: Final = 4
UNIT_TOKENS: Final = 3
"""What a message costs beyond its text."""
OPENAI_CACHED_TOKENS_MIN: Final = 1024
OPENAI_CACHED_TOKENS_STEP: Final = 128

Breakpoint = tuple[int, str]
"""(index of the unit it stands in, TTL "5m" or "1h"), in the order of the prompt."""


def unit_tokens(unit: str) -> int:
    return len(unit) // CHARACTERS_PER_TOKEN + UNIT_TOKENS


def prompt_tokens(units: Iterable[str]) -> int:
    return sum(map(unit_tokens, units))


def output_tokens(text: str) -> int:
    """At least one token for any text, none for none."""
    return len(text) // CHARACTERS_PER_TOKEN + 1 if text else 0


class PromptCache:
    """The entries of one provider.  Counting a prompt also caches it, as sending it does."""

    def __init__(self) -> None:
        self._entries: set[str] = set()

    def count_anthropic(self, owner: str, units: Sequence[str], breakpoints: Sequence[Breakpoint]) -> Usage:
        entries = _prefixes(owner, units)
        upto = [0, *accumulate(map(unit_tokens, units))]
        last = breakpoints[-1][0] if breakpoints else -1
        read = next((upto[i + 1] for i in range(last, -1, -1) if entries[i] in self._entries), 0)
        written = {"5m": 0, "1h": 0}
        reached = read
        for index, ttl in breakpoints:
            written[ttl] += max(0, upto[index + 1] - reached)
            reached = max(reached, upto[index + 1])
            self._entries.add(entries[index])
        return Usage(
            input_tokens=upto[-1] - reached,
            cache_read_tokens=read,
            cache_write_5m_tokens=written["5m"],
            cache_write_1h_tokens=written["1h"],
        )

    def count_openai(self, owner: str, units: Sequence[str]) -> Usage:
        entries = _prefixes(owner, units)
        upto = list(accumulate(map(unit_tokens, units)))
        known = next((upto[i] for i in range(len(units) - 1, -1, -1) if entries[i] in self._entries), 0)
        cached = known - known % OPENAI_CACHED_TOKENS_STEP if known >= OPENAI_CACHED_TOKENS_MIN else 0
        self._entries.update(entries)
        return Usage(input_tokens=upto[-1] - cached, cache_read_tokens=cached)


def cold_anthropic(units: Sequence[str], breakpoints: Sequence[Breakpoint]) -> Usage:
    """The whole prompt written, with the last breakpoint's TTL."""
    total = prompt_tokens(units)
    if breakpoints and breakpoints[-1][1] == "1h":
        return Usage(cache_write_1h_tokens=total)
    return Usage(cache_write_5m_tokens=total)


def _prefixes(owner: str, units: Sequence[str]) -> list[str]:
    """A name for every prefix: a hash chain, so that a long history costs no more than its text."""
    names = []
    chain = hashlib.sha256(owner.encode("utf-8", "surrogatepass"))
    for unit in units:
        chain.update(hashlib.sha256(unit.encode("utf-8", "surrogatepass")).digest())
        names.append(chain.hexdigest())
    return names
