"""Who is connected, and what all of them have counted.

One rule: a counter never falls while the worker lives.  What a daemon counted before it died is kept; only its gauges
die with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from worker.protocol import COUNT_MAX, Family, Hello, Latch, Sample
from worker.standing import DaemonStanding

LIVE_SECONDS: Final = 3.0
"""Silence after which a daemon counts as gone.  Daemons ping every second."""
FORGET_SECONDS: Final = 120.0
"""Silence after which its counters join those of the dead and it must say HELLO again."""


FIGURE_MAX: Final = 1e300
"""Where sums end: beyond the largest float is infinity, which no JSON holds, and the daemon could read none of them."""
RETURNING_MAX: Final = 64
"""Boots that left whose counts are kept apart: a process that was stopped for long comes back and counts on."""


LATCHES_TOLD_MAX: Final = 1_000
"""Of all daemons together: about a megabyte with the longest names."""


class Peer:
    """One boot of one daemon."""

    def __init__(self, hello: Hello, now: float) -> None:
        self.hello = hello
        self.instance = hello.instance
        self.last_heard = now
        self.state = ""
        self.metrics: list[Family] = []
        self.latches: list[Latch] = []
        """What keeps it from keeping caches warm."""


class Census:
    """The daemons this boot of the worker has greeted.  Times are monotonic seconds."""

    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}
        self._gone: dict[str, list[Family]] = {}
        self._dead: list[Family] = []

    def greet(self, boot: str, hello: Hello, now: float) -> bool:
        """Admit a boot; True for one of a daemon that was never seen.  An older boot of the same instance is dead: one
        process holds one instance's place."""
        for other, peer in list(self.peers.items()):
            if peer.instance == hello.instance and other != boot:
                self.leave(other)
        is_new = hello.is_daemon and boot not in self.peers and boot not in self._gone
        if boot not in self.peers:
            self.peers[boot] = Peer(hello, now)
            # One that was away goes on from what it had counted; nothing is added twice.
            self.peers[boot].metrics = self._gone.pop(boot, [])
        return is_new

    def heard(self, boot: str, now: float) -> bool:
        """Note a sign of life; False for a boot that must be greeted first."""
        peer = self.peers.get(boot)
        if peer is None:
            return False
        peer.last_heard = now
        return True

    def leave(self, boot: str) -> None:
        peer = self.peers.pop(boot, None)
        if peer is None:
            return
        self._gone[boot] = [f for f in peer.metrics if f.type != "gauge"]
        if len(self._gone) > RETURNING_MAX:
            longest_gone = next(iter(self._gone))
            self._dead = merged([self._dead, self._gone.pop(longest_gone)])

    def forget_silent(self, now: float) -> None:
        for boot, peer in list(self.peers.items()):
            if now - peer.last_heard > FORGET_SECONDS:
                self.leave(boot)

    def live(self, now: float) -> frozenset[str]:
        return frozenset(boot for boot, peer in self.peers.items() if now - peer.last_heard <= LIVE_SECONDS)

    def standing(self, now: float) -> list[DaemonStanding]:
        """Every daemon that is not forgotten, as it last said."""
        peers = sorted(self.peers.values(), key=lambda peer: peer.instance)
        return [_standing(peer, now) for peer in peers if peer.hello.is_daemon]

    def latches(self) -> list[Latch]:
        """Of all daemons; of one that several hold, the one that lasts longest."""
        longest: dict[tuple[str, str, str], Latch] = {}
        for latch in (each for peer in self.peers.values() for each in peer.latches):
            place = (latch.scope, latch.name, latch.reason)
            if place not in longest or longest[place].until < latch.until:
                longest[place] = latch
        return sorted(longest.values(), key=lambda latch: (latch.scope, latch.name, latch.reason))[:LATCHES_TOLD_MAX]

    def metrics(self, own: list[Family], now: float) -> list[Family]:
        """The sum over this worker, every daemon it heard lately, and what the others counted before."""
        live = self.live(now)
        parts = [own, self._dead, *self._gone.values()]
        for boot, peer in self.peers.items():
            parts.append([f for f in peer.metrics if boot in live or f.type != "gauge"])
        return merged(parts)


def _standing(peer: Peer, now: float) -> DaemonStanding:
    gauges = {family.name: sum(sample.value for sample in family.samples) for family in peer.metrics}
    return DaemonStanding(
        instance=peer.instance,
        pid=peer.hello.pid,
        version=peer.hello.version,
        started_at=peer.hello.started_at,
        state=peer.state,
        silent_seconds=max(0.0, now - peer.last_heard),
        outbox_writes=int(_bounded(gauges.get("perdure_outbox_writes", 0.0))),
        outbox_oldest_seconds=_bounded(gauges.get("perdure_outbox_oldest_seconds", 0.0)),
    )


def _bounded(figure: float) -> float:
    """What a daemon says may be anything; what is told on must be a count."""
    return min(max(figure, 0.0), float(COUNT_MAX)) if figure == figure else 0.0


def merged(parts: Iterable[list[Family]]) -> list[Family]:
    """Families by name, samples by name and labels, values added up; but ages and times are not: of a gauge in seconds
    the largest counts."""
    families: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for part in parts:
        for family in part:
            families.setdefault(family.name, family)
            values = sums.setdefault(family.name, {})
            is_time = families[family.name].type == "gauge" and family.name.endswith("_seconds")
            for sample in family.samples:
                place = (sample.name, tuple(sample.labels))
                before = values.get(place, 0.0)
                value = max(before, sample.value) if is_time else before + sample.value
                values[place] = max(-FIGURE_MAX, min(FIGURE_MAX, value))
    return [
        Family(family.name, family.type, family.help, [Sample(n, list(ls), v) for (n, ls), v in sums[name].items()])
        for name, family in families.items()
    ]
