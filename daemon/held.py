"""One session in memory: whose it is, what is known of it, what of that is not yet stored.

One rule: `base` is folded from acknowledged rows only, in the order of their positions and without gaps; what this
daemon finished and the worker has not placed yet is folded on top whenever the state is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

from daemon import state as states
from daemon.state import EMPTY, SessionState
from worker.protocol import Naming, Row


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
        self.turns_in_flight = 0
        self.claim_sequence = 0
        self.claim_reason = ""
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

    def become(self, phase: Phase) -> None:
        assert phase in _MOVES[self.phase], (self.phase, phase)
        self.phase = phase

    def place(self, rows: Iterable[Row]) -> None:
        """Take rows whose position is known."""
        for row in rows:
            self.pending.pop(row.event_id, None)
            if row.position > self.position:
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
