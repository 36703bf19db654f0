"""The simulated worker: the real `batch.apply` and `Census` over `MemoryTables`, mortal, with atomic commits.

One rule: what it tells anybody was committed before; what was not committed dies with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Final

from tests.simulation.checks import Checks
from tests.simulation.clockwork import Clock, Host
from tests.simulation.model import MemoryTables
from worker import batch, protocol
from worker.census import Census

HASH_KEY: Final = "5e" * 32
COMMIT_MILLISECONDS: Final = (1, 2, 5, 20, 400)
"""How long the disk may take; the last one makes daemons send again what is already kept."""

Tell = Callable[[str, protocol.Body], None]
"""Sends a body to a boot."""


class Store:
    """What outlives every worker."""

    def __init__(self) -> None:
        self.tables = MemoryTables()
        self.tables.put_switch(protocol.Switch(is_on=True))
        self.tables.commit()


class Worker:
    """One boot of the worker."""

    def __init__(self, clock: Clock, store: Store, checks: Checks, boot: str, tell: Tell) -> None:
        self.host = Host(clock)
        self.boot = boot
        self._clock = clock
        self._store = store
        self._checks = checks
        self._tell = tell
        self._census = Census()
        self._kept: list[batch.Write] = []
        self._is_committing = False

    def hear(self, boot: str, sequence: int, body: protocol.Body) -> None:
        if isinstance(body, protocol.Hello):
            self._census.greet(boot, body, self._clock.seconds)
            self._tell(boot, self._welcome())
        elif not self._census.heard(boot, self._clock.seconds):
            self._tell(boot, protocol.WhoAreYou())
        else:
            self._take(boot, sequence, body)

    def _take(self, boot: str, sequence: int, body: protocol.Body) -> None:
        match body:
            case protocol.Claim() | protocol.Booking() | protocol.SnapshotWrite():
                self._kept.append(batch.Write(boot, sequence, body))
                self._commit_soon()
            case protocol.Ping():
                self._tell(boot, protocol.Pong())
            case protocol.IndexRequest():
                places = [place for place in reversed(self._store.tables.keys) if place[0] in ("answer", "request")]
                entries = [protocol.IndexEntry(kind, value, session_id) for kind, value, _, session_id in places]
                self._tell(boot, protocol.IndexPage(entries=entries, before=-1))
            case _:
                raise AssertionError(body)

    def _welcome(self) -> protocol.Welcome:
        return protocol.Welcome(boot=self.boot, incarnation="one", hash_key=HASH_KEY, version="0", schema=1)

    def _commit_soon(self) -> None:
        if not self._is_committing:
            self._is_committing = True
            self.host.after(self._clock.rng.choice(COMMIT_MILLISECONDS), self._commit)

    def _commit(self) -> None:
        self._is_committing = False
        tables, writes = self._store.tables, self._kept
        live = self._census.live(self._clock.seconds)
        outcome = batch.Outcome([], [])
        for write in writes:
            mark = len(tables.journal)
            told = batch.apply(tables, [write], live=live, now=self._clock.now)
            self._checks.written(tables, mark, write)
            outcome = batch.Outcome(outcome.replies + told.replies, outcome.lost + told.lost)
        if self._checks.is_faulty and self._clock.chance(0.03):
            # A full disk, or a kill before the commit returned: all of it, or nothing.
            tables.rollback()
            self._commit_soon()
            return
        self._checks.committing(tables)
        tables.commit()
        self._kept = []
        if not (self._checks.is_faulty and self._clock.chance(0.01)):
            # Else it is killed in the one moment when all is durable and nobody knows.
            self._reply(outcome)
        else:
            self.host.is_alive = False

    def _reply(self, outcome: batch.Outcome) -> None:
        for boot, lost in outcome.lost:
            self._tell(boot, lost)
        replies: defaultdict[str, list[protocol.Reply]] = defaultdict(list)
        for boot, reply in outcome.replies:
            replies[boot].append(reply)
        for boot, told in replies.items():
            self._tell(boot, protocol.Acks(replies=told))
