"""Token counts as providers report them, read into four kinds that never overlap.

One rule: what is not a plausible count is not reported, and no reported token is counted twice.

Theory of operation.  Anthropic's `input_tokens` leave cached tokens out; OpenAI's `prompt_tokens` and `input_tokens`
include them.  A stream repeats its counts as they grow, so a later value replaces an earlier one, field by field, and
is never added to it.
"""

from __future__ import annotations

from daemon.providers.fields import Object, natural_at, object_at
from worker.protocol import COUNT_MAX, Usage


class Tally:
    """The last valid value of each count that a provider reported for one answer."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def note_exclusive(self, usage: Object) -> None:
        """Counts in Anthropic's words."""
        self._note("input", usage, "input_tokens")
        self._note("output", usage, "output_tokens")
        self._note("read", usage, "cache_read_input_tokens")
        self._note("write", usage, "cache_creation_input_tokens")
        by_lifetime = object_at(usage, "cache_creation")
        self._note("write_5m", by_lifetime, "ephemeral_5m_input_tokens")
        self._note("write_1h", by_lifetime, "ephemeral_1h_input_tokens")

    def exclusive(self) -> Usage | None:
        """Writes of a lifetime that was not told are taken for the shorter, which is the default and the cheaper."""
        if not self._counts:
            return None
        long, short = self._get("write_1h"), self._get("write_5m")
        return Usage(
            input_tokens=self._get("input"),
            cache_read_tokens=self._get("read"),
            cache_write_5m_tokens=short + max(0, self._get("write") - short - long),
            cache_write_1h_tokens=long,
            output_tokens=self._get("output"),
        )

    def note_inclusive(self, usage: Object, *, prompt: str, answer: str) -> None:
        """Counts in OpenAI's words, whose names differ between its APIs: `prompt`_tokens, `prompt`_tokens_details."""
        self._note("prompt", usage, f"{prompt}_tokens")
        self._note("output", usage, f"{answer}_tokens")
        details = object_at(usage, f"{prompt}_tokens_details")
        self._note("read", details, "cached_tokens")
        self._note("write", details, "cache_write_tokens")

    def inclusive(self) -> Usage | None:
        """OpenAI's cache has lifetimes of its own and one price for a write: it is booked as the short kind."""
        if not self._counts:
            return None
        read, write = self._get("read"), self._get("write")
        return Usage(
            input_tokens=max(0, self._get("prompt") - read - write),
            cache_read_tokens=read,
            cache_write_5m_tokens=write,
            output_tokens=self._get("output"),
        )

    def _note(self, name: str, source: Object, key: str) -> None:
        count = natural_at(source, key)
        if count is not None and count <= COUNT_MAX:
            self._counts[name] = count

    def _get(self, name: str) -> int:
        return self._counts.get(name, 0)
