"""What daemons send, drawn: claims, turns begun and ended, snapshots, repeats, latecomers, a merge.

One rule: it does what a daemon may do and no more, so that sending any of it again changes nothing.  A claim is the
exception, as it should be: it says who owns a session from now on.  So a session is claimed once in a batch at most,
and claims are repeated by their own batch only.  And a daemon that is gone sends nothing again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from tests.worker.writing import STARTED_AT, naming, row, snapshot_write
from worker.batch import Outcome, Write
from worker.protocol import Amend, Booking, Claim, Key, KeyKind, Merge, Naming, SnapshotWrite, Usage

BOOTS: Final = ("boot-1", "boot-2")
GONE: Final = "boot-0"
"""A daemon of which nothing more is heard after one batch."""
AGED: Final = ("aged-1", "aged-2")
"""Sessions of that one, and…"""
AGED_TURNS: Final = 6
"""…how many turns each of them has."""
NAMED: Final = ("named-1", "named-2", "named-3")
"""Sessions that their client names; the last one is merged into the first."""
UNNAMED: Final = ("drawn-1", "drawn-2")
HEADER: Final = "x-session-id"
DAY_MILLISECONDS: Final = 86_400_000
OUTDATED_AHEAD: Final = 100
"""Generations that a former owner counted further than its successor ever will: only its epoch tells."""


@dataclass
class Talk:
    """A session as its present daemon knows it."""

    session_id: str
    owner: str = ""
    epoch: int = 0
    turns: int = 0
    generation: int = 0
    open: Booking | None = None
    claimed_in: int = -1


class Traffic:
    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._talks = {session_id: Talk(session_id) for session_id in (*NAMED, *UNNAMED)}
        self._batches = 0
        self._sequence = 0
        self._repeatable: list[Write] = []

    def batch(self, size: int) -> list[Write]:
        """So many writes of any kind."""
        self._batches += 1
        found: list[Write] = []
        while len(found) < size:
            found += self._act(self._draw.choice(list(self._talks.values())))
        return found

    def claims(self) -> list[Write]:
        """Of what nobody claimed yet."""
        self._batches += 1
        return [write for talk in self._talks.values() if not talk.owner for write in self._claim(talk)]

    def merge(self) -> list[Write]:
        """An operator says that two sessions are one.  It comes alone: claims before it in its batch would be no more
        what they were if they came again."""
        self._batches += 1
        source, into = NAMED[-1], NAMED[0]
        del self._talks[source]
        talk = self._talks[into]
        talk.owner, talk.epoch = "", 0
        return [self._write(Amend(request="request-of-an-operator", act=Merge(session_id=source, into=into)), BOOTS[0])]

    def departed(self) -> list[Write]:
        """All that a daemon told which is gone: turns, and the states that know of them."""
        self._batches += 1
        bodies: list[Claim | Booking | SnapshotWrite] = []
        for session_id in AGED:
            bodies.append(Claim(naming=_naming(session_id, 1, answered=False)))
            bodies += [_turn(session_id, turn, self._draw, boot=GONE) for turn in range(1, AGED_TURNS + 1)]
            bodies.append(snapshot_write(session_id, generation=1, position=AGED_TURNS))
        return [self._write(body, GONE) for body in bodies]

    def unfit(self, size: int) -> list[Write]:
        """A batch that no store takes, since the last of its writes holds what is no text; the others are not heard of
        again."""
        turns = [_turn(f"refused-{number}", 1, self._draw) for number in range(size)]
        last = _turn("refused", 1, self._draw, client="\ud800")
        return [Write(BOOTS[0], number, turn) for number, turn in enumerate([*turns, last])]

    def heard(self, writes: list[Write], outcome: Outcome) -> None:
        """The acknowledgements: who owns what, and at which epoch."""
        for write, (_, reply) in zip(writes, outcome.replies, strict=True):
            talk = self._talks.get(reply.session_id)
            if isinstance(write.body, Claim) and talk is not None:
                talk.epoch = reply.epoch

    def _act(self, talk: Talk) -> list[Write]:
        chance = self._draw.random()
        if self._repeatable and chance < 0.2:
            return [self._draw.choice(self._repeatable)]
        if not talk.owner or (chance < 0.3 and talk.open is None and talk.claimed_in < self._batches):
            return self._claim(talk)
        if talk.epoch and chance < 0.5:
            return self._snapshot(talk)
        return self._begin(talk) if talk.open is None else self._end(talk)

    def _claim(self, talk: Talk) -> list[Write]:
        """By another daemon than before, which may have a snapshot on its way."""
        if talk.claimed_in == self._batches:
            return []
        former, epoch = talk.owner, talk.epoch
        talk.owner = self._draw.choice([boot for boot in BOOTS if boot != former])
        talk.claimed_in, talk.epoch = self._batches, 0
        claimed = self._write(Claim(naming=naming(talk.session_id)), talk.owner)
        if not epoch:
            return [claimed]
        outdated = snapshot_write(talk.session_id, epoch, generation=talk.generation + OUTDATED_AHEAD)
        return [claimed, self._write(outdated, former)]

    def _begin(self, talk: Talk) -> list[Write]:
        talk.turns += 1
        talk.open = _turn(talk.session_id, talk.turns, self._draw, settled=False, boot=talk.owner)
        return [self._write(talk.open, talk.owner)]

    def _end(self, talk: Talk) -> list[Write]:
        """Half of the time its begin comes once more after it: the one that was lost on the way."""
        begun, talk.open = talk.open, None
        assert begun is not None
        turn = _turn(talk.session_id, talk.turns, self._draw, boot=begun.row.boot)
        ended = self._write(turn, talk.owner)
        return [ended, self._write(begun, talk.owner)] if self._draw.random() < 0.5 else [ended]

    def _snapshot(self, talk: Talk) -> list[Write]:
        """Two, of which the first may come again after the second."""
        talk.generation += 2
        found = [
            self._write(snapshot_write(talk.session_id, talk.epoch, generation=generation), talk.owner)
            for generation in (talk.generation - 1, talk.generation)
        ]
        return [*found, found[0]] if self._draw.random() < 0.3 else found

    def _write(self, body: Claim | Booking | SnapshotWrite | Amend, boot: str) -> Write:
        self._sequence += 1
        written = Write(boot, self._sequence, body)
        if can_come_late(written):
            self._repeatable.append(written)
        return written


def can_come_late(write: Write) -> bool:
    """It says what was, and so may come again at any time as long as there is somebody to send it."""
    return write.boot in BOOTS and not isinstance(write.body, Claim)


def _turn(
    session_id: str,
    turn: int,
    draw: random.Random,
    *,
    settled: bool = True,
    boot: str = BOOTS[0],
    client: str = "a-client",
) -> Booking:
    usage = Usage(input_tokens=draw.randrange(1_000), output_tokens=draw.randrange(1_000))
    entered = row(
        turn,
        session_id,
        settled=settled,
        started_at=STARTED_AT + turn * DAY_MILLISECONDS // 4,
        ended_at=STARTED_AT + turn * DAY_MILLISECONDS // 4 + 1 if settled else 0,
        status=draw.choice(("complete", "complete", "error")) if settled else "interrupted",
        usage=usage if settled else None,
        cost_nanousd=draw.choice((None, 70, 9_000)) if settled else None,
        boot=boot,
        client=client,
        message_count=2 * turn,
    )
    return Booking(naming=_naming(session_id, turn, answered=settled), row=entered, epoch=1, seen=0)


def _naming(session_id: str, turn: int, *, answered: bool) -> Naming:
    if session_id not in UNNAMED:
        keys = [Key(kind="header", name=HEADER, value=session_id)]
        return naming(session_id, header_name=HEADER, header_session_id=session_id, keys=keys)
    kinds: tuple[KeyKind, ...] = ("answer",) if answered else ("request", "retry")
    return naming(
        session_id,
        keys=[Key(kind=kind, name="", value=f"{kind} {session_id} {turn}") for kind in kinds],
        continues=[f"answer {session_id} {turn - 1}"] if turn > 1 else [],
        chain_length=2 * turn if answered else 2 * turn - 1,
    )
