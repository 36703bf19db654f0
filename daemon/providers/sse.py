"""Server-sent events, split out of a byte stream as it arrives.

One rule: every byte is looked at once, and no event costs more memory than `EVENT_BYTES_MAX`.

Theory of operation.  Lines end with LF, CR LF or CR, and a chunk may end anywhere, also between CR and LF: a CR ends
the line at once and a LF that follows it is swallowed, so that the last event is seen without waiting for a byte that
may never come.  A blank line completes the event.  An event that is too large loses its data but keeps its name, for
the name alone can say that the answer has ended.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Ordinary events have 100 bytes; the largest repeat a whole answer with its request (a few MB with an image in it)."""

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Event(NamedTuple):
    name: str
    data: bytes | None
    """None: it was larger than `EVENT_BYTES_MAX`."""


class EventSplitter:
    """Bytes in, complete events out."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._is_first_line = True
        self._swallow_newline = False
        self._forget_event()

    def feed(self, chunk: bytes) -> list[Event]:
        if not chunk:
            return []
        events: list[Event] = []
        start = 1 if self._swallow_newline and chunk.startswith(b"\n") else 0
        for end in _LINE_END.finditer(chunk, start):
            self._extend_line(chunk[start : end.start()])
            start = end.end()
            events.extend(self._end_line())
        self._extend_line(chunk[start:])
        self._swallow_newline = chunk.endswith(b"\r")
        return events

    def flush(self) -> list[Event]:
        """The event that lacked only its blank line when the stream came to its end."""
        return [*self._end_line(), *self._end_event()]

    def _extend_line(self, piece: bytes) -> None:
        self._event_bytes += len(piece)
        if self._event_bytes <= EVENT_BYTES_MAX:
            self._line += piece
        elif piece:
            # One byte stays, so that the line is not taken for the blank one.
            self._oversized = True
            self._data.clear()
            self._line[:] = b"~"

    def _end_line(self) -> list[Event]:
        line = bytes(self._line)
        self._line.clear()
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._end_event()
        if not self._oversized:
            self._read_field(line)
        return []

    def _read_field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        elif field == b"event":
            self._name = value.removeprefix(b" ").decode("utf-8", "replace")

    def _end_event(self) -> list[Event]:
        events: list[Event] = []
        if self._oversized:
            events.append(Event(self._name, None))
        elif self._data:
            events.append(Event(self._name, b"\n".join(self._data)))
        self._forget_event()
        return events

    def _forget_event(self) -> None:
        self._name = ""
        self._data: list[bytes] = []
        self._event_bytes = 0
        self._oversized = False
