"""One session in memory: whose it is, what is known of it, what of that is not yet stored.

One rule: `base` is folded from acknowledged rows only, in the order of their positions and without gaps; what this
daemon finished and the worker has not placed yet is folded on top whenever the state is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Final

from daemon import state as states
from daemon.state import EMPTY, SessionState
from worker.protocol import Naming, Row, Shape, Why
from worker.roles import Role, role_of, shape_after


class Phase(Enum):
    """A held session's life, as one sentence."""

    CLAIMING = "the worker was asked for it, and once it answers it is…"
    OWNED = "…ours to snapshot, until another daemon claims it and it is…"
    LOST = "…only remembered, until its next turn claims it again"


_MOVES: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.CLAIMING: frozenset({Phase.OWNED, Phase.LOST}),
    Phase.OWNED: frozenset({Phase.LOST}),
    Phase.LOST: frozenset({Phase.CLAIMING}),
}


LINKS_MAX: Final = 16
"""Newest chain values kept of a session's turns, to know what goes on from them; the last answer's is nearly always
the one that is asked for, the others are for what was cut off or edited."""
ASIDES_MAX: Final = 32
"""The same of the calls beside it, of which several may run at once."""


class Held:
    """One session in memory."""

    def __init__(self, naming: Naming) -> None:
        self.naming = naming
        self.phase = Phase.LOST
        self.epoch = 0
        self.generation = 0
        self.acked_generation = 0
        self.base: SessionState | None = None
        """Folded from acknowledged rows up to its position; None while the worker has not told."""
        self.pending: dict[str, Row] = {}
        """Rows settled here, by event id, which have no position yet."""
        self.placed: dict[int, Row] = {}
        """Rows with a position after the base's, waiting for those between."""
        self.placed_epoch = 0
        """The epoch at which their positions were told: after another they may have been given anew."""
        self.turns_in_flight = 0
        self.forks: dict[str, str] = {}
        """Turns that turned out to be of another session, by event id: whoever waits for their answer asks here."""
        self.claim_sequence = 0
        self.claim_why = Why()
        self.besides: dict[int, tuple[Role, str]] = {}
        """Claims, by sequence, whose requests turned out to be no turns of the session, which made nobody its owner."""
        self.shape: Shape | None = None
        """What the session's last turn was set up with."""
        self.links: deque[str] = deque(maxlen=LINKS_MAX)
        self.asides: deque[str] = deque(maxlen=ASIDES_MAX)
        self.hints: dict[str, str] = {}
        """The last turn's values, by name, of headers that may name this conversation."""
        self.unsteady: set[str] = set()
        """Those of them that changed within it, and so do not."""
        self.snapshot_in_flight = 0
        """Generation of the one unacknowledged snapshot; 0: none."""
        self.rebuilding: list[Row] | None = None
        """All rows of the session so far, while a damaged snapshot is made good from the ledger."""
        self.restored: states.Restored | None = None

    @property
    def session_id(self) -> str:
        return self.naming.session_id

    @property
    def state(self) -> SessionState:
        """What is known now, this daemon's newest turns included."""
        return states.fold(self.base or EMPTY, [*self._placed_in_order(), *self.pending.values()])

    @property
    def position(self) -> int:
        return self.base.position if self.base else 0

    @property
    def is_dirty(self) -> bool:
        return self.base is not None and self.generation > self.acked_generation

    @property
    def is_idle(self) -> bool:
        """Nothing of it would be lost by forgetting it."""
        # A session that was lost is another daemon's to write.
        is_unwritten = self.is_dirty and self.phase is Phase.OWNED
        return not (self.turns_in_flight or self.pending or is_unwritten or self.phase is Phase.CLAIMING)

    def role_of(self, naming: Naming) -> tuple[Role, str]:
        """What a request under this session's id is to it, as far as is known here; and why."""
        # What came here without the worker's word may itself have been beside the conversation: no measure for others.
        if naming.shape is None or self.shape is None or self.phase is not Phase.OWNED:
            return "turn", ""
        return role_of(
            self.shape,
            naming.shape,
            is_opening=naming.is_opening,
            is_spoken=naming.is_spoken,
            continues=any(link in naming.continues for link in self.links),
            continues_aside=any(link in naming.continues for link in self.asides),
        )

    def begun(self, naming: Naming, role: Role) -> None:
        if role != "turn":
            return
        if naming.shape is not None:
            goes_on = not naming.is_opening or any(link in naming.continues for link in self.links)
            self.shape = shape_after(self.shape, naming.shape, goes_on=goes_on)
        before, self.hints = self.hints, _naming_hints(naming)
        changed = {name for name, value in self.hints.items() if before.get(name, value) != value}
        self.unsteady = (self.unsteady | changed) & self.hints.keys()

    def is_doubted(self, naming: Naming) -> bool:
        """A header may say that the request is another conversation's, though it goes on from this one."""
        said = _naming_hints(naming).items()
        return any(self.hints.get(name, value) != value and name not in self.unsteady for name, value in said)

    def answered(self, naming: Naming, role: Role) -> None:
        links = self.links if role == "turn" else self.asides
        links.extend(key.value for key in naming.keys if key.kind == "history")

    def become(self, phase: Phase) -> None:
        assert phase in _MOVES[self.phase], (self.phase, phase)
        self.phase = phase

    def forget(self) -> None:
        """What was told of it is not true any more: the next turn asks for everything."""
        self.base, self.placed, self.rebuilding, self.restored = None, {}, None, None
        self.generation = self.acked_generation = self.snapshot_in_flight = self.epoch = self.placed_epoch = 0
        if self.phase is Phase.OWNED:
            self.become(Phase.LOST)

    def place(self, rows: Iterable[Row], epoch: int) -> None:
        """Take rows whose position is known, as it was at an epoch."""
        if epoch > self.placed_epoch:
            # What was committed before the epoch rose is among the rows of every claim after it.
            self.placed, self.placed_epoch = {}, epoch
        for row in rows:
            self.pending.pop(row.event_id, None)
            if epoch == self.placed_epoch and row.position > self.position:
                self.placed[row.position] = row
        # A claim on its way brings another base, which may not know what this one would swallow now.
        if self.phase is not Phase.CLAIMING:
            self.advance()

    def advance(self) -> None:
        """Fold in what follows the base without a gap."""
        while self.base is not None and self.base.position + 1 in self.placed:
            self.base = states.observe(self.base, self.placed.pop(self.base.position + 1))
            self.generation += 1

    def _placed_in_order(self) -> list[Row]:
        return [self.placed[position] for position in sorted(self.placed)]


def _naming_hints(naming: Naming) -> dict[str, str]:
    return {hint.name: hint.value for hint in naming.hints if hint.kind == "session"}
