"""How the worker and its daemons stand: the answer to a QUERY for `status`.

One rule: told from what the loop has in memory, so that it costs nothing and answers while the disk is sick.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import Struct

from worker.protocol import Count, Milliseconds, Text

COMMITS_KEPT: Final = 1_000
"""Newest commits whose durations are known: some seconds of a busy worker, hours of an idle one."""


class DaemonStanding(Struct, frozen=True, kw_only=True):
    """One daemon, as it said of itself in its last heartbeat."""

    instance: Text
    pid: Count
    version: Text
    started_at: Milliseconds = 0
    """0: it does not say; it is older than this field."""
    state: Text = ""
    """Where its life stands, in its own word (`daemon.app.Phase`)."""
    silent_seconds: float = 0.0
    """Since it was last heard."""
    outbox_writes: Count = 0
    outbox_oldest_seconds: float = 0.0


class Called(Struct, frozen=True, kw_only=True):
    """One daemon that was called."""

    instance: str
    """As its socket is named: the whole name, or its beginning."""
    pid: int
    """By the kernel's word; 0: not even the kernel could be asked."""
    is_heard: bool = False
    """Its loop goes round."""
    standing: DaemonStanding | None = None
    """What it says; None: it hangs, or is of another version."""


class Commits(Struct, frozen=True, kw_only=True):
    """How long the newest commits took, fsync included."""

    count: Count = 0
    p50_seconds: float = 0.0
    p99_seconds: float = 0.0


class Standing(Struct, frozen=True, kw_only=True):
    pid: Count
    version: Text
    started_at: Milliseconds
    schema: Count
    is_committing: bool
    """False: the disk is full or read-only, writes are kept and tried again."""
    waiting_writes: Count
    """Received, and not committed yet."""
    wal_bytes: int
    commits: Commits
    daemons: list[DaemonStanding]


class Durations:
    """The newest of many."""

    def __init__(self, limit: int = COMMITS_KEPT) -> None:
        self._newest: deque[float] = deque(maxlen=limit)

    def add(self, seconds: float) -> None:
        self._newest.append(seconds)

    def commits(self) -> Commits:
        ordered = sorted(self._newest)
        return Commits(count=len(ordered), p50_seconds=_share(ordered, 0.5), p99_seconds=_share(ordered, 0.99))


def _share(ordered: list[float], share: float) -> float:
    """The least that is not below this share of them; 0 of none."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else 0.0
