"""Reads the copy of an answer's bytes: undoes its encoding, finds its end, hands it to its wire format.

One rule: a reader never raises and never holds more than its limits; what it cannot read it calls unknown.

Theory of operation.  The client gets the provider's bytes whatever happens here.  So a reader that loses the thread
(an encoding that is unknown or broken, a limit passed) goes *blind*: it ignores the rest, and at the end claims
neither usage nor text, but still says whether the body arrived whole, which is all that anybody can know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from msgspec.structs import replace

from daemon.providers.base import Answer
from daemon.providers.decoding import Decoder, Undecodable
from daemon.providers.fields import Object, object_of
from daemon.providers.sse import Event, EventSplitter

DOCUMENT_BYTES_MAX: Final = 32 * 1024 * 1024
"""A JSON answer is gathered up to here.  The largest carry images of a few MB."""


class Stream(Protocol):
    """What a wire format makes of its events."""

    terminal: bool

    def hear(self, event: Event) -> None: ...

    def answer(self, whole: bool) -> Answer: ...


class EventReader:
    """Reads an answer that is a stream of events."""

    def __init__(self, encoding: str, stream: Stream) -> None:
        self._decoder = Decoder(encoding)
        self._splitter = EventSplitter()
        self._stream = stream
        self._is_blind = False
        self._answer: Answer | None = None

    @property
    def terminal(self) -> bool:
        return self._stream.terminal

    def feed(self, chunk: bytes) -> None:
        if self._is_blind or self._answer is not None or self.terminal:
            return
        try:
            self._hear(self._splitter.feed(self._decoder.feed(chunk)))
        except Undecodable:
            self._is_blind = True

    def close(self, whole: bool) -> Answer:
        if self._answer is None:
            if whole and not self._is_blind:
                self._hear(self._splitter.flush())
            self._answer = Answer(finished=whole) if self._is_blind else self._stream.answer(whole)
        return self._answer

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            if not self.terminal:
                self._stream.hear(event)


class DocumentReader:
    """Reads an answer that is one JSON document."""

    def __init__(self, encoding: str, read_document: Callable[[Object], Answer]) -> None:
        self._decoder = Decoder(encoding)
        self._read_document = read_document
        self._body = bytearray()
        self._is_blind = False
        self._answer: Answer | None = None

    @property
    def terminal(self) -> bool:
        """A document ends with its body, so only `close` tells."""
        return False

    def feed(self, chunk: bytes) -> None:
        if self._is_blind or self._answer is not None:
            return
        try:
            self._body += self._decoder.feed(chunk)
            self._is_blind = len(self._body) > DOCUMENT_BYTES_MAX
        except Undecodable:
            self._is_blind = True
        if self._is_blind:
            self._body.clear()

    def close(self, whole: bool) -> Answer:
        if self._answer is None:
            self._answer = Answer(finished=whole) if self._is_blind else self._read(whole)
            self._body.clear()
        return self._answer

    def _read(self, whole: bool) -> Answer:
        document = object_of(bytes(self._body))
        if document is None:
            return Answer()
        answer = self._read_document(document)
        return answer if whole else replace(answer, finished=False, unit=None)
