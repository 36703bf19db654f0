"""Writes the worker has not acknowledged yet.

One rule: only an acknowledgement removes a write.  Everything else — a send that succeeded, a connection that is up —
says nothing about durability.

Pure: the wire and the clock are the caller's.  `next_due` says what to send now, `sent` that it was handed to the
wire, `acked` that it is committed, `resend_all` that a new worker is there.  Silence makes a write due again, also
while connected: what dies with a worker is the head of the queue, so later writes may overtake the ones sent again.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import Final

from msgspec import Struct

from worker.protocol import Amend, Booking, Claim, Command, SnapshotWrite

RESEND_SECONDS: Final = 1.0
"""Silence after which a write is sent again: several commits of a loaded worker."""
IN_FLIGHT_MAX: Final = 1_000
"""Writes sent and not acknowledged: half of what the worker takes into one batch, so that a backlog is not sent only
to be forgotten."""

Body = Claim | Booking | SnapshotWrite | Amend


class OutboxFull(Exception):
    """The worker has been away for longer than the outbox was made for."""


class Entry(Struct):
    sequence: int
    command: Command
    body: Body
    put_at: float
    sent_at: float = -1.0
    """When it was last handed to the wire; negative while it was not."""
    is_adopted: bool = False
    """Left behind by a daemon that has ended (`daemon.adoption`); where it came from it also stays until then."""


class Outbox:
    """Sequence numbers, order, bound, resend.  Times are monotonic seconds."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """May be changed at any time; what is kept beyond a lower one stays."""
        self._sequence = 0
        self._unsent: OrderedDict[int, Entry] = OrderedDict()
        self._in_flight: OrderedDict[int, Entry] = OrderedDict()
        self._adopted = 0

    def __len__(self) -> int:
        return len(self._unsent) + len(self._in_flight)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._unsent or sequence in self._in_flight

    @property
    def is_full(self) -> bool:
        # What others left behind must not take the place of turns that are asked for now.
        return len(self) - self._adopted >= self.limit

    def put(self, command: Command, body: Body, now: float) -> int:
        """Keep a write; gives its sequence.  Raises OutboxFull, except for an END: its turn was already let in."""
        if self.is_full and command is not Command.END:
            raise OutboxFull
        return self._keep(command, body, now, is_adopted=False)

    def adopt(self, command: Command, body: Body, now: float) -> int:
        """Keep a write of a daemon that has ended; gives its sequence here.  How many are here is the caller's care."""
        self._adopted += 1
        return self._keep(command, body, now, is_adopted=True)

    def own(self) -> list[Entry]:
        """Everything that is kept nowhere else, in order."""
        return [entry for entry in self._in_order() if not entry.is_adopted]

    def next_due(self, now: float) -> Entry | None:
        """The write to send next: the longest silent one, then the oldest unsent one, within the window."""
        if self._in_flight:
            oldest = next(iter(self._in_flight.values()))
            if now - oldest.sent_at >= RESEND_SECONDS:
                return oldest
        if self._unsent and len(self._in_flight) < IN_FLIGHT_MAX:
            return next(iter(self._unsent.values()))
        return None

    def sent(self, entry: Entry, now: float) -> None:
        """The entry was handed to the wire: it stays here, and is due again after silence."""
        entry.sent_at = now
        self._unsent.pop(entry.sequence, None)
        self._in_flight[entry.sequence] = entry
        self._in_flight.move_to_end(entry.sequence)

    def acked(self, sequence: int) -> Entry | None:
        """Remove a committed write; None when it is not here: acknowledged before, or never ours."""
        entry = self._in_flight.pop(sequence, None) or self._unsent.pop(sequence, None)
        if entry is not None and entry.is_adopted:
            self._adopted -= 1
        return entry

    def resend_all(self) -> None:
        """A new worker is there, which has seen nothing that is still here: everything again, in order."""
        everything = self._in_order()
        self._in_flight.clear()
        self._unsent = OrderedDict((entry.sequence, entry) for entry in everything)

    def oldest_seconds(self, now: float) -> float:
        """Age of the oldest write kept, 0 when there is none."""
        # Unsent writes are in the order of their putting; those in flight, in that of their last sending.
        first_unsent = [entry.put_at for entry in islice(self._unsent.values(), 1)]
        return now - min([*first_unsent, *(entry.put_at for entry in self._in_flight.values())], default=now)

    def _keep(self, command: Command, body: Body, now: float, *, is_adopted: bool) -> int:
        self._sequence += 1
        self._unsent[self._sequence] = Entry(self._sequence, command, body, now, is_adopted=is_adopted)
        return self._sequence

    def _in_order(self) -> list[Entry]:
        return sorted([*self._in_flight.values(), *self._unsent.values()], key=lambda entry: entry.sequence)
