"""The ledger of truth: what arrived at the provider, and what it sent.

One rule: a record is true before the bytes it speaks of leave, so that whoever has read them finds it here.

Theory: every request gets one `Arrived`, which never changes, and one `Answered`, which the provider's thread fills in
while it sends.  Bytes that could not be written are taken back; bytes that were written may still not have been read.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from worker.protocol import Usage

WAIT_SECONDS: Final = 10.0
"""Default deadline of a wait: far above what loopback needs, far below a test run's patience."""
RECHECK_SECONDS: Final = 0.05
"""A condition may depend on what nobody announces (a count of bytes), so it is looked at this often anyway."""


@dataclass(frozen=True, eq=False)
class Arrived:
    """One request, as it came: header names and order untouched, body without its transfer coding."""

    number: int
    connection: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at: float
    """Monotonic seconds."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str:
        """The first value of a header, empty when there is none."""
        return next((value for given, value in self.headers if given.lower() == name.lower()), "")

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(eq=False)
class Answered:
    """The fate of one request.  `status` 0: nothing was sent."""

    request: Arrived
    user_text: str = ""
    """The newest user text, markers included: what a test recognises its own requests by."""
    text: str = ""
    """What the model says, even if not all of it was sent."""
    status: int = 0
    usage: Usage | None = None
    """What the client was told so far: the last word counts."""
    complete: bool = False
    """Sent to its proper end."""
    client_closed: bool = False
    """The client went away before that end."""
    bytes_sent: int = 0
    ended: bool = False
    """The provider is done with it, one way or another."""


@dataclass
class Ledger:
    requests: list[Arrived] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def arrive(self, connection: int, method: str, target: str, headers: Headers, body: bytes) -> Answered:
        with self._changed:
            number = len(self.requests) + 1
            request = Arrived(number, connection, method, target, tuple(headers), body, time.monotonic())
            answered = Answered(request)
            self.requests.append(request)
            self.answers.append(answered)
            self._changed.notify_all()
        return answered

    def announce(self) -> None:
        """Something that a test may be waiting for has happened."""
        with self._changed:
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float | None) -> None:
        """Return once the condition holds; raise TimeoutError if it does not in time."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._changed:
            while not condition():
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"not within {timeout_seconds} seconds; answers: {self.answers[-5:]}")
                self._changed.wait(RECHECK_SECONDS)


def add_usage(first: Usage, second: Usage) -> Usage:
    """Kind by kind."""
    return Usage(
        input_tokens=first.input_tokens + second.input_tokens,
        cache_read_tokens=first.cache_read_tokens + second.cache_read_tokens,
        cache_write_5m_tokens=first.cache_write_5m_tokens + second.cache_write_5m_tokens,
        cache_write_1h_tokens=first.cache_write_1h_tokens + second.cache_write_1h_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
    )


Headers = list[tuple[str, str]]
