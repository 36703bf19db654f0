"""What a user's text asks the provider to do: markers, read into a value.

One rule: pure; a word that is not exactly a marker is only a word.  The package's docstring explains the markers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

ENCODINGS: Final = frozenset({"gzip", "deflate", "br", "zstd"})
EVERY_ATTEMPT: Final = 2**31


@dataclass(frozen=True, kw_only=True)
class Script:
    """The markers of one request.  Empty names and zeros mean: as a healthy provider would."""

    words: int = 0
    big_bytes: int = 0
    tool_calls: int = 0
    cold: bool = False
    no_usage: bool = False
    encoding: str = ""
    delay_ms: int = 0
    stall: str = ""
    slow_headers: str = ""
    hold: str = ""
    fail_status: int = 0
    fail_attempts: int = 0
    drop: bool = False
    cut_after: int | None = None
    sse_error: bool = False
    json_garbage: bool = False
    garbage: bool = False

    def fails(self, attempt: int) -> bool:
        return attempt <= self.fail_attempts

    def drops(self, attempt: int) -> bool:
        return self.drop and attempt == self.fail_attempts + 1


def parse_script(text: str) -> Script:
    """The markers among the words of a text; of one given twice the last counts."""
    found: dict[str, Any] = {}
    for word in text.split():
        name, _, value = word.partition(":")
        if failure := _FAILURE.fullmatch(word):
            found["fail_status"] = int(failure[1])
            found["fail_attempts"] = int(failure[2]) if failure[2] else EVERY_ATTEMPT
        elif word in _SWITCHES:
            found[_SWITCHES[word]] = True
        elif name in _NUMBERS and value.isdecimal():
            found[_NUMBERS[name]] = int(value)
        elif name in _GATES and value:
            found[_GATES[name]] = value
        elif name == "encode" and value in ENCODINGS:
            found["encoding"] = value
    return Script(**found)


_FAILURE: Final = re.compile(r"fail-([1-5]\d\d)(?:x(\d+))?")
_SWITCHES: Final = {
    "cold": "cold",
    "no-usage": "no_usage",
    "drop": "drop",
    "sse-error": "sse_error",
    "json-garbage": "json_garbage",
    "garbage": "garbage",
}
_NUMBERS: Final = {
    "words": "words",
    "big": "big_bytes",
    "use-tool": "tool_calls",
    "delay-ms": "delay_ms",
    "cut-after": "cut_after",
}
_GATES: Final = {"stall": "stall", "slow-headers": "slow_headers", "hold": "hold"}
