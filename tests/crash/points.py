"""Who is killed, and where: victims, points, and the plan of a campaign.

One rule: pure, and all chance comes from the seed: a cycle's place in the plan depends on nothing that runs.

Theory.  A *strike* is a victim at a point.  Points in time are hit from outside; *marks* are places in the programs,
and the process that comes to one kills itself there (`marked`).  An *episode* is a few cycles on one state directory;
its chance is its own, so that it can be repeated without those before it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

Program = Literal["worker", "daemon"]


class Victim(StrEnum):
    WORKER = "worker"
    DAEMON = "daemon"
    """One of them."""
    BOTH = "both"
    """The worker and every daemon in the same moment."""
    SUPERVISORD = "supervisord"


class Point(StrEnum):
    """Where a strike falls.  The first three are moments, the others marks."""

    ANY = "any"
    BETWEEN_TURNS = "between-turns"
    MID_STREAM = "mid-stream"

    BEFORE_COMMIT = "before-commit"
    IN_TRANSACTION = "in-transaction"
    IN_COMMIT = "in-commit"
    AFTER_COMMIT = "after-commit"
    """Before any acknowledgement."""
    BETWEEN_ACKS = "between-acks"
    IN_HAND_OVER = "in-hand-over"
    """The claim is committed and acknowledged, the former owner is not told."""
    IN_CHECKPOINT = "in-checkpoint"
    IN_OPENING = "in-opening"
    IN_CLOSING = "in-closing"
    IN_COPY = "in-copy"
    """The copy that is made before a migration."""
    IN_MIGRATION = "in-migration"

    TURN_BEGUN = "turn-begun"
    """Its BEGIN is on the way, the provider has not been asked."""
    FIRST_BYTE = "first-byte"
    IN_STREAM = "in-stream"
    TURN_ENDED = "turn-ended"
    """Its END is on the way, the client has not got the last byte."""
    LAST_BYTE = "last-byte"
    """Its END is acknowledged, the client has not got the last byte."""
    IN_FLUSH = "in-flush"
    IN_CLAIM = "in-claim"
    """A claim was answered; nothing came of it yet."""
    SESSION_LOST = "session-lost"
    """A former owner is told."""
    IN_STOPPING = "in-stopping"


class When(Enum):
    """What a program must be doing to come to a mark."""

    RUNNING = "running"
    STARTING = "starting"
    STOPPING = "stopping"


class Mark(NamedTuple):
    program: Program
    passings: int
    """It is struck at one of so many passings."""
    when: When = When.RUNNING
    daemons: int = 1
    """With fewer nobody comes there."""


MARKS: Final[Mapping[Point, Mark]] = MappingProxyType(
    {
        Point.BEFORE_COMMIT: Mark("worker", 4),
        Point.IN_TRANSACTION: Mark("worker", 60),
        Point.IN_COMMIT: Mark("worker", 24),
        Point.AFTER_COMMIT: Mark("worker", 4),
        Point.BETWEEN_ACKS: Mark("worker", 4),
        Point.IN_HAND_OVER: Mark("worker", 2, daemons=2),
        Point.IN_CHECKPOINT: Mark("worker", 12),
        Point.IN_OPENING: Mark("worker", 12, When.STARTING),
        Point.IN_CLOSING: Mark("worker", 8, When.STOPPING),
        Point.IN_COPY: Mark("worker", 40, When.STARTING),
        Point.IN_MIGRATION: Mark("worker", 90, When.STARTING),
        Point.TURN_BEGUN: Mark("daemon", 4),
        Point.FIRST_BYTE: Mark("daemon", 4),
        Point.IN_STREAM: Mark("daemon", 40),
        Point.TURN_ENDED: Mark("daemon", 4),
        Point.LAST_BYTE: Mark("daemon", 4),
        Point.IN_FLUSH: Mark("daemon", 4),
        Point.IN_CLAIM: Mark("daemon", 1),
        Point.SESSION_LOST: Mark("daemon", 2, daemons=2),
        Point.IN_STOPPING: Mark("daemon", 2, When.STOPPING),
    }
)
MOMENTS: Final = (Point.ANY, Point.BETWEEN_TURNS, Point.MID_STREAM)
MIGRATIONS: Final = (Point.IN_COPY, Point.IN_MIGRATION)
DAEMONS_TOGETHER: Final = (2, 3)
TICKS_SECONDS: Final = (0.1, 0.5, 30.0)
"""Snapshots are written all the time, so that kills meet them; or so seldom that hand-overs outrun them; or only when a
daemon stops."""


class Strike(NamedTuple):
    victim: Victim
    point: Point

    def __str__(self) -> str:
        return f"{self.victim} {self.point}"


class Setup(Enum):
    ALONE = "one daemon"
    TOGETHER = "daemons between which conversations hop"
    FORMER = "a database of a former schema"
    SUPERVISED = "under supervisord"


@dataclass(frozen=True)
class Episode:
    """A few cycles on one state directory (one each, for former schemas)."""

    number: int
    setup: Setup
    strikes: tuple[Strike, ...]
    daemons: int = 1
    first_cycle: int = 0

    def chance(self, seed: int) -> random.Random:
        return random.Random(f"{seed}/{self.number}")

    def tick_seconds(self, seed: int) -> float:
        return self.chance(seed).choice(TICKS_SECONDS)


def possible() -> list[Strike]:
    """Every victim at every point where it can be struck."""
    found = [Strike(victim, point) for victim in Victim for point in MOMENTS]
    for point, mark in MARKS.items():
        found.append(Strike(Victim(mark.program), point))
        if point not in MIGRATIONS:
            found.append(Strike(Victim.BOTH, point))
    return found


def plan(
    seed: int,
    cycles: int,
    victims: Collection[Victim] = tuple(Victim),
    points: Collection[Point] = tuple(Point),
) -> Iterator[Episode]:
    """Rounds in which every strike comes once, in a drawn order; of those at supervisord, which take seconds, one.

    The plan of fewer cycles is the beginning of the plan of more.
    """
    strikes = [strike for strike in possible() if strike.victim in victims and strike.point in points]
    if not strikes:
        raise ValueError("none of these victims comes to any of these points")
    chance = random.Random(f"{seed}/plan")
    number = cycle = 0
    while True:
        for setup, daemons, own in _round(chance, strikes):
            own = own[: cycles - cycle]
            if own:
                yield Episode(number, setup, tuple(own), daemons, cycle)
            number, cycle = number + 1, cycle + len(own)
        if cycle >= cycles:
            return


def _round(chance: random.Random, strikes: list[Strike]) -> Iterator[tuple[Setup, int, list[Strike]]]:
    deck = chance.sample(strikes, len(strikes))
    supervised = [strike for strike in deck if strike.victim is Victim.SUPERVISORD]
    former = [strike for strike in deck if strike.point in MIGRATIONS]
    others = [strike for strike in deck if strike not in supervised and strike not in former]
    together = [strike for strike in others if _daemons_needed(strike) > 1 or chance.getrandbits(1)]
    yield Setup.TOGETHER, chance.choice(DAEMONS_TOGETHER), together
    yield Setup.ALONE, 1, [strike for strike in others if strike not in together]
    yield Setup.FORMER, 1, former
    yield Setup.SUPERVISED, chance.choice((1, 2)), supervised[:1]


def _daemons_needed(strike: Strike) -> int:
    mark = MARKS.get(strike.point)
    return mark.daemons if mark else 1
