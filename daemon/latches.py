"""What keeps this daemon from keeping caches warm, beyond a single session: credentials and upstreams that said no.

One rule: every latch has a scope, a reason, an end in time, and is opened by a reset; none outlives the process.

Theory of operation.  A provider that refuses a credential refuses it for every session, and one that is overloaded is
not helped by requests that nobody waits for.  Both are learned from turns as well as from pings, and a turn that goes
well opens the latch it disproves.  What belongs to one session, its breaker, is folded from its ledger rows instead
(`keepalive.breaker_until`), so that every daemon knows it.

Times are Unix milliseconds, and the caller's.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final, NamedTuple, TypeVar

from daemon.keepalive import SENTENCES, Reason
from worker.protocol import LATCHES_MAX, Latch

CREDENTIAL_MILLISECONDS: Final = 24 * 3_600 * 1_000
"""How long a credential that got 401 or 403 is not used for pings: whoever has it mended has used it by then."""
LIMIT_MILLISECONDS: Final = 24 * 3_600 * 1_000
"""How long it is remembered that an upstream wants an answer of at least one token: it may be upgraded."""
BACKOFF_MILLISECONDS: Final = (60_000, 3_600_000)
"""First and longest pause after an upstream was overloaded or failed; it doubles each time."""
OVERLOADED: Final = frozenset({429, 529})
REFUSED: Final = frozenset({401, 403})
REMEMBERED_MAX: Final = 1_000
"""Credentials and upstreams; the oldest are forgotten first."""


T = TypeVar("T")


class Backoff(NamedTuple):
    until: int
    pause: int
    """Milliseconds."""


class Latches:
    """Of one daemon."""

    def __init__(self) -> None:
        self._credentials: OrderedDict[str, tuple[str, int]] = OrderedDict()
        """By a hash: whose account it is, and until when."""
        self._backoffs: OrderedDict[str, Backoff] = OrderedDict()
        self._limits: OrderedDict[str, int] = OrderedDict()

    def of(self, credential: str, upstream: str, *, thinks: bool, now: int) -> Reason | None:
        """The one that is in force for a ping."""
        if self._credentials.get(credential, ("", 0))[1] > now:
            return "credential"
        if thinks and self.wants_a_token(upstream, now):
            return "thinking"
        backoff = self._backoffs.get(upstream)
        return "backoff" if backoff is not None and backoff.until > now else None

    def wants_a_token(self, upstream: str, now: int) -> bool:
        """The upstream refused an answer of no tokens, lately."""
        return self._limits.get(upstream, 0) > now

    def refused_limit(self, upstream: str, now: int) -> None:
        _remember(self._limits, upstream, now + LIMIT_MILLISECONDS)

    def answered(
        self, status: int, credential: str, account: str, upstream: str, *, retry_after: float = 0.0, now: int
    ) -> None:
        """A request was answered so; 0: not at all."""
        if status in REFUSED:
            _remember(self._credentials, credential, (account, now + CREDENTIAL_MILLISECONDS))
        elif status in OVERLOADED or status >= 500 or not status:
            before = self._backoffs.get(upstream)
            first, longest = BACKOFF_MILLISECONDS
            pause = min(longest, 2 * before.pause if before else first)
            if before is None or before.until <= now:
                wait = min(longest, max(pause, int(1_000 * retry_after)))
                _remember(self._backoffs, upstream, Backoff(now + wait, pause))
        elif status < 400:
            self._credentials.pop(credential, None)
            self._backoffs.pop(upstream, None)

    def reset(self) -> None:
        """An operator says that it is over."""
        for latches in (self._credentials, self._backoffs, self._limits):
            latches.clear()

    def shown(self, now: int) -> list[Latch]:
        """Those in force, for people."""
        credentials = ((account, until) for account, until in self._credentials.values() if until > now)
        backoffs = ((name, backoff.until) for name, backoff in self._backoffs.items() if backoff.until > now)
        limits = ((name, until) for name, until in self._limits.items() if until > now)
        return [
            *(Latch("credential", account[:512], SENTENCES["credential"], until) for account, until in credentials),
            *(Latch("upstream", name[:512], SENTENCES["backoff"], until) for name, until in backoffs),
            *(Latch("upstream", name[:512], _LEAST_ANSWER, until) for name, until in limits),
        ][:LATCHES_MAX]


def name_of(credential: str, key: bytes) -> str:
    """What a credential is remembered by: nobody has to keep it for that."""
    return hashlib.blake2b(credential.encode(errors="surrogateescape"), key=key, digest_size=16).hexdigest()


def seconds_of(retry_after: str) -> float:
    """What a `retry-after` header says in seconds; 0 for a date or anything else."""
    return float(retry_after) if retry_after.isdecimal() and len(retry_after) <= _DIGITS_MAX else 0.0


def _remember(latches: OrderedDict[str, T], name: str, value: T) -> None:
    latches[name] = value
    latches.move_to_end(name)
    while len(latches) > REMEMBERED_MAX:
        latches.popitem(last=False)


_LEAST_ANSWER: Final = "it wants an answer of at least one token"
_DIGITS_MAX: Final = 9
