"""The trace that a client says its request belongs to: W3C's `traceparent`, which is passed on untouched and logged.

One rule: only what is a trace's id by its form is taken out of the header; a client could put anything into it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

HEADER: Final = "traceparent"


def trace_id_of(headers: Iterable[tuple[str, str]]) -> str | None:
    """The id of the trace, 32 hexadecimal digits; None without a valid header, or with two, which mean nothing."""
    values = [value.strip() for name, value in headers if name.lower() == HEADER]
    found = _FORM.fullmatch(values[0]) if len(values) == 1 else None
    if found is None or found["version"] == "ff" or (found["version"] == "00" and found["more"]):
        return None
    return found["trace"] if int(found["trace"], 16) and int(found["parent"], 16) else None


_FORM: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-[0-9a-f]{2}(?P<more>-.*)?"
)
"""Later versions may say more at the end; ff is no version."""
