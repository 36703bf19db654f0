"""The sessions this daemon holds: their state in memory, who owns them, what of them is not yet stored.

One rule: a state is the ledger folded in the order of its positions.  `base` is folded from acknowledged rows only;
what this daemon finished and the worker has not placed yet is folded on top whenever the state is read.  So every
daemon, and every restart, comes to the same state.

Theory of operation.  `hold` finds or claims the session of a request.  A claim is a write like any other: it sits in
the outbox until the worker answers, so a session met while the worker is away is claimed when it returns, and its
answer may say that the session has another name.  A session that changed since its last acknowledged snapshot is
dirty: its generation in memory is above the acknowledged one.  An acknowledgement of an older generation cleans
nothing.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple, Protocol

from msgspec.structs import replace

from daemon import state as states
from daemon.chain import HashKeys
from daemon.held import LINKS_MAX, Held, Phase
from daemon.index import KeyIndex
from daemon.outbox import Body, Entry, OutboxFull
from daemon.state import EMPTY
from worker import protocol
from worker.protocol import Command, Kind, Naming, Row, Why
from worker.roles import Role, said_of_side

HELD_MAX: Final = 20_000
"""Sessions in memory, about 4 KB each; the least recently used clean ones are let go."""


CLAIMS_MAX: Final = 4
"""Claims one request waits for, its own and those of others before it; more than one is rare."""


FORKS_MAX: Final = 32
"""Newest forks remembered with their origin; a few at once are many."""


class Place(NamedTuple):
    """Where a request belongs."""

    held: Held
    naming: Naming
    """By which to book it."""
    role: Role


class KeyFile(Protocol):
    """Where the daemons of this host share keys, for when the worker is away (`daemon.keyfile`)."""

    def read(self) -> bytes | None: ...
    def keep(self, key: bytes) -> None: ...
    def early(self) -> bytes | None: ...
    def share_early(self, drawn: bytes) -> bytes: ...


class Link(Protocol):
    """The part of the worker's client that is used here."""

    @property
    def is_heard(self) -> bool: ...
    def put(self, command: Command, body: Body) -> int: ...
    async def acknowledged(self, sequence: int) -> bool: ...


class Sessions:
    """All sessions held here.  Belongs to the event loop's thread; nothing awaits between reading and writing back."""

    def __init__(
        self,
        *,
        index: KeyIndex,
        early_key: bytes,
        log: logging.Logger,
        key_file: KeyFile | None = None,
        limit: int = HELD_MAX,
    ) -> None:
        self._index = index
        self._log = log
        self._limit = limit
        self._link: Link
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._aliases: dict[str, str] = {}
        self._claims: dict[int, Held] = {}
        self._unentered: set[str] = set()
        self._key_file = key_file
        self._hash_keys = HashKeys(store=None, early=early_key)
        self._look_for_key()

    def start(self, link: Link) -> None:
        self._link = link

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    @property
    def hash_keys(self) -> HashKeys:
        """What a request is to be hashed with now."""
        if self._hash_keys.store is None:
            self._look_for_key()
        if self._hash_keys.store is None and not self._hash_keys.early_was_used:
            early = self._hash_keys.early
            early = self._key_file.share_early(early) if self._key_file else early
            self._hash_keys = replace(self._hash_keys, early=early, early_was_used=True)
        return self._hash_keys

    @property
    def count(self) -> int:
        """Sessions held."""
        return len(self._held)

    def counts(self) -> dict[str, int]:
        """Sessions held by what they are: for the metric."""
        dirty = sum(held.is_dirty for held in self._held.values())
        return {"held": len(self._held), "dirty": dirty}

    # -- the way of a request ----------------------------------------------------------------------------------------

    async def hold(self, naming: Naming, aside: str = "") -> Place:
        """The session of a request.  For a turn it is owned by this daemon, or as well as can be known without the
        worker; a call beside the conversation claims nothing.  `aside`: why the request by itself is no turn, or ''.
        Raises OutboxFull."""
        held = self._find(naming)
        if aside:
            return _beside(held, naming, "side", aside)
        why = naming.why if held.session_id == naming.session_id else _CONTINUES
        is_claimed = asked = False
        for _ in range(CLAIMS_MAX):
            if held.phase is Phase.OWNED:
                break
            sequence = self._claim(held, _with_history(_under(held, naming), naming)) if held.phase is Phase.LOST else 0
            asked = bool(sequence)
            held, is_claimed = await self._claim_answered(held)
            if sequence in held.besides:
                return _beside(held, naming, *held.besides.pop(sequence))
            if is_claimed and not asked and held.phase is Phase.LOST:
                continue  # It waited for the claim of a request that was no turn: it has to ask for itself.
            why = (held.claim_why if is_claimed and held.claim_why.reason else None) or why
            if not is_claimed and not held.naming.confirmed:
                held, why = self._best_known(held, naming, why)
            break
        # The worker has judged what it was asked about, and knows the whole history; else what is known here decides.
        if not (asked and is_claimed):
            role, beside = held.role_of(naming)
            if role != "turn":
                return _beside(held, naming, role, beside)
        held.links.extend(reversed(naming.continues[: LINKS_MAX // 2]))
        under = self._booked_by(held, replace(_under(held, naming), why=why), naming.continues)
        is_alone = held.phase is Phase.OWNED and not asked and self._link.is_heard
        if is_alone and not naming.is_named and held.session_id != naming.session_id:
            # All by which a claim would have been judged: the same request again is no fork, even if it was answered.
            continues = under.continues or naming.continues[:1]
            under = replace(under, drawn_id=naming.session_id, continues=continues, retry=naming.retry)
        return Place(held, under, "turn")

    def _booked_by(self, held: Held, under: Naming, continues: list[str]) -> Naming:
        """The naming to book a turn by: with its history where the worker will have to judge by it, or has to learn
        what lies between the session's last answer that is known here and this turn."""
        is_judged = held.phase is Phase.OWNED
        is_measured = is_judged and held.shape is not None and held.shape.is_confirmed
        is_next = self._index.continued(continues[:1]) == held.session_id
        is_known = is_measured if under.is_named else is_next
        return replace(under, is_judged=is_judged, continues=under.continues if is_known else continues)

    async def _claim_answered(self, held: Held) -> tuple[Held, bool]:
        """Wait for the claim that is on its way; False: the worker did not answer."""
        asked, is_claimed = 0, True
        while is_claimed and held.claim_sequence != asked and held.phase is Phase.CLAIMING:
            asked = held.claim_sequence  # Each page of rows is a claim that goes on.
            is_claimed = await self._link.acknowledged(asked)
            held = self.current(held)
        return held, is_claimed

    def _best_known(self, held: Held, naming: Naming, why: Why) -> tuple[Held, Why]:
        """The worker fell silent over this very claim: what the index knows is the best there is.  When the claim is
        answered it joins the two."""
        known = self._continued(naming)
        if known is None or known is held:
            return held, why
        if known.phase is Phase.LOST:
            self._claim(known, _under(known, naming))
        return known, _CONTINUES

    def current(self, held: Held, event_id: str = "") -> Held:
        """The session under the name it has now: a claim answered late may have joined it with another, and a turn in
        flight may have turned out to be a fork."""
        found = self._at(held.session_id) or held
        return self._at(found.forks.get(event_id, "")) or found

    def begun(self, held: Held, naming: Naming, row: Row) -> None:
        """A request of the session was booked under these keys."""
        held.begun(naming, _role_of(row))
        self._index.learn(held.session_id, naming.keys)

    def settled(self, held: Held, naming: Naming, row: Row) -> None:
        """A turn ended here: it is part of the state at once, and of the base when the worker has placed it."""
        held = self.current(held, row.event_id)
        held.pending[row.event_id] = row
        held.answered(naming, _role_of(row))
        self._index.learn(held.session_id, naming.keys)

    # -- the tick ----------------------------------------------------------------------------------------------------

    def flush(self, most: int = HELD_MAX) -> int:
        """Write a snapshot of dirty sessions that have none in flight, up to `most`; gives how many."""
        written = 0
        for held in self._held.values():
            if written == most:
                break
            if held.phase is Phase.OWNED and held.placed and not held.pending:
                # A row between is missing, and nobody is bringing it: its next turn asks for all there is.
                held.become(Phase.LOST)
            if held.is_dirty and held.phase is Phase.OWNED and not held.snapshot_in_flight:
                assert held.base is not None
                body = protocol.SnapshotWrite(
                    session_id=held.session_id,
                    epoch=held.epoch,
                    snapshot=states.encode(held.base, held.generation),
                )
                try:
                    self._link.put(Command.SNAPSHOT, body)
                except OutboxFull:
                    return written
                held.snapshot_in_flight = held.generation
                written += 1
        return written

    # -- what the worker says ----------------------------------------------------------------------------------------

    def acknowledged(self, entry: Entry, reply: protocol.Reply) -> None:
        match entry.body:
            case protocol.Claim():
                self._claimed(entry, reply)
            case protocol.Booking() as booking if not reply.entered:
                if not entry.is_adopted:
                    self._unentered.add(booking.row.event_id)
            case protocol.Booking() as booking:
                (self._adopted if entry.is_adopted else self._booked)(booking, reply)
            case protocol.SnapshotWrite() as write:
                self._snapshotted(write, reply)

    def refused(self, entry: Entry, reason: str) -> None:
        """A write the worker will never take: whoever waits for it must not wait for ever."""
        match entry.body:
            case protocol.Claim():
                held = self._claims.pop(entry.sequence, None)
                if held is not None:
                    held.become(Phase.LOST)
            case protocol.Booking(row=row):
                if row.kind == "warmup" and not row.is_settled:
                    self._unentered.add(row.event_id)
                held = self._at(row.session_id)
                if held is not None:
                    held.pending.pop(row.event_id, None)
            case protocol.SnapshotWrite(session_id=session_id):
                held = self._at(session_id)
                if held is not None:
                    held.snapshot_in_flight = 0

    def lost(self, lost: protocol.Lost) -> None:
        held = self._at(lost.session_id)
        if held is not None and held.phase is Phase.OWNED and lost.epoch > held.epoch:
            held.become(Phase.LOST)

    def indexed(self, entries: list[protocol.IndexEntry]) -> None:
        self._index.load(entries)

    def was_refused(self, event_id: str) -> bool:
        """A ping was not entered, as the worker has said; told once."""
        is_refused = event_id in self._unentered
        self._unentered.discard(event_id)
        return is_refused

    def find(self, session_id: str) -> Held | None:
        """A session that is held here, by any name it had."""
        return self._at(session_id)

    def amended(self) -> None:
        """An operator merged or split sessions: what was heard of names before may be wrong now.  Whose positions moved
        is nobody's, and is claimed again."""
        self._aliases.clear()
        self._index.clear()

    def welcomed(self, welcome: protocol.Welcome, *, new_store: bool) -> None:
        key = bytes.fromhex(welcome.hash_key)
        self._learn_key(key)
        if self._key_file is not None:
            self._key_file.keep(key)
        if new_store:
            self._log.warning("the store is another one than before: every session is claimed again")
            self._forget_all()

    def _look_for_key(self) -> None:
        """Another daemon of this host may have heard the worker, now or before."""
        key = self._key_file.read() if self._key_file else None
        if key is not None:
            self._learn_key(key)

    def _learn_key(self, key: bytes) -> None:
        # Nobody of this host hashes with the early key any more: who used it has left it by now.
        early = self._key_file.early() if self._key_file and not self._hash_keys.early_was_used else None
        if early is not None:
            self._hash_keys = replace(self._hash_keys, early=early, early_was_used=True)
        self._hash_keys = replace(self._hash_keys, store=key)

    # -- claims ------------------------------------------------------------------------------------------------------

    def _claim(self, held: Held, naming: Naming) -> int:
        sequence = self._link.put(Command.CLAIM, protocol.Claim(naming=naming))
        held.become(Phase.CLAIMING)
        held.claim_sequence = sequence
        self._claims[sequence] = held
        return sequence

    def _claimed(self, entry: Entry, reply: protocol.Reply) -> None:
        held = self._claims.pop(entry.sequence, None)
        if held is None or held.phase is not Phase.CLAIMING or held.claim_sequence != entry.sequence:
            return  # A page of a claim that was given up: a later claim brings all.
        if self._canonical(reply.session_id) != reply.session_id:
            # What was claimed was joined with another session since, as a booking's answer has told: it is no more.
            held = self.current(held)
            if held.phase is Phase.CLAIMING and held.claim_sequence == entry.sequence:
                held.rebuilding = held.restored = None
                held.become(Phase.LOST)
            return
        held = self._renamed(held, reply.session_id)
        if held.claim_sequence != entry.sequence:
            held.claim_why = reply.why
            return  # It was joined with a session that is ours already, or whose own claim is on its way.
        assert isinstance(entry.body, protocol.Claim)
        if reply.role != "turn":
            held.besides[entry.sequence] = (reply.role, reply.why.reason)
            while len(held.besides) > CLAIMS_MAX:
                del held.besides[next(iter(held.besides))]
            held.become(Phase.LOST)
            return
        held.shape = reply.shape
        if entry.body.after >= 0 and reply.epoch != held.epoch:
            # Another daemon owned it between two pages: the snapshot that came with the first one may be outdone.
            held.rebuilding = held.restored = None
            held.become(Phase.LOST)
            return
        if held.rebuilding is None and held.base is not None and reply.epoch == held.epoch:
            self._kept(held, reply)
            return
        held.epoch = reply.epoch
        held.place((), reply.epoch)
        held.claim_why = reply.why
        if not self._restore(held, reply):
            return
        if held.phase is Phase.CLAIMING:
            held.become(Phase.OWNED if reply.owned else Phase.LOST)

    def _kept(self, held: Held, reply: protocol.Reply) -> None:
        """Nobody else owned it since: what is here is newer than any snapshot, and only rows were missing."""
        held.claim_why = reply.why
        held.place(reply.rows, reply.epoch)
        if reply.more:
            self._ask_on(held, after=reply.rows[-1].position)
        else:
            held.become(Phase.OWNED)
            held.advance()

    def _restore(self, held: Held, reply: protocol.Reply) -> bool:
        """Take what the claim brought; False while rows are still to come (another claim is on its way)."""
        if held.rebuilding is None:
            restored = _judged(reply.snapshot)
            if restored.warnings:
                for warning in restored.warnings:
                    self._log.warning("session %s: %s", held.session_id, warning)
            held.restored = restored
            held.acked_generation = held.generation = reply.generation
            held.rebuilding = []
            if not restored.is_complete and reply.position > 0:
                # Without a whole snapshot the state is rebuilt from all rows there are.
                self._ask_on(held, after=0)
                return False
        held.rebuilding += [row for row in reply.rows if row.position > _last_position(held)]
        if reply.more:
            self._ask_on(held, after=reply.rows[-1].position)
            return False
        self._based(held)
        return True

    def _based(self, held: Held) -> None:
        """The claim is complete: this is the base."""
        assert held.restored is not None
        assert held.rebuilding is not None
        damaged = bool(held.restored.warnings)
        if not held.restored.is_complete and held.rebuilding and held.rebuilding[0].position > 1:
            rows = len(held.rebuilding)
            self._log.warning("session %s: rebuilt from its newest %d rows, older ones are gone", held.session_id, rows)
        held.base = states.rebuild(held.restored, held.rebuilding)
        if damaged or held.base.position > held.restored.position:
            held.generation += 1
        held.restored = held.rebuilding = None
        placed, held.placed = held.placed, {}
        held.place(placed.values(), held.placed_epoch)
        held.advance()

    def _ask_on(self, held: Held, after: int) -> None:
        try:
            held.claim_sequence = self._link.put(Command.CLAIM, protocol.Claim(naming=held.naming, after=after))
        except OutboxFull:
            held.rebuilding = held.restored = None
            held.become(Phase.LOST)
        else:
            self._claims[held.claim_sequence] = held

    def _renamed(self, held: Held, session_id: str) -> Held:
        """The session turned out to be `session_id`: known here already, or by that name from now on."""
        proposed = held.session_id
        known = self._held.get(session_id)
        if proposed != session_id:
            self._held.pop(proposed, None)
            self._aliases[proposed] = session_id
            while len(self._aliases) > self._limit:
                del self._aliases[next(iter(self._aliases))]
            self._index.forget(proposed)
        if known is not None and known is not held:
            known.pending.update(held.pending)
            known.turns_in_flight += held.turns_in_flight
            if known.phase is Phase.LOST:
                # The claim that was made under the other name is its claim too.
                known.become(Phase.CLAIMING)
                known.claim_sequence = held.claim_sequence
                known.rebuilding = known.restored = None
            known.place(held.placed.values(), held.placed_epoch)
            held.pending, held.placed, held.turns_in_flight, held.naming = {}, {}, 0, known.naming
            return known
        held.naming = _bare(held.naming, session_id)
        self._held[session_id] = held
        return held

    # -- bookings and snapshots --------------------------------------------------------------------------------------

    def _booked(self, booking: protocol.Booking, reply: protocol.Reply) -> None:
        # The id it was booked under may be forgotten (`amended`): the worker names the session too.
        held = self._at(booking.row.session_id) or self._at(reply.session_id)
        if held is None:
            return
        if self._canonical(reply.session_id) != reply.session_id:
            # Older than what is known by now: that session is part of another one, whose next turn asks for all of it.
            self._outdated(held, booking.row.event_id)
            return
        if held.session_id != reply.session_id:
            if held.phase is Phase.OWNED and not reply.forked:
                held.forget()  # It was ours under a name of its own; but it is a part of a longer conversation.
            forked = self._forked(held, booking, reply.session_id) if reply.forked else None
            held = forked or self._renamed(held, reply.session_id)
        self._placed(held, booking, reply)

    def _adopted(self, booking: protocol.Booking, reply: protocol.Reply) -> None:
        """Booked by a daemon that has ended: news of a session that may be held here.  Nobody here counts the turn
        as in flight, or knows the session by the name it had there."""
        held = self._at(reply.session_id)
        if held is not None:
            self._placed(held, booking, reply)

    def _placed(self, held: Held, booking: protocol.Booking, reply: protocol.Reply) -> None:
        """What a booking's acknowledgement tells of its session."""
        held.shape = reply.shape or held.shape
        rows = list(reply.rows)
        # A begin told again after its end tells the end's position, perhaps in the session that it is of by now.
        settled = booking.row if booking.row.is_settled else held.pending.get(booking.row.event_id)
        if settled is not None and reply.position:
            # What was booked as a turn may have turned out to be a call beside the conversation.
            kind: Kind = "side" if reply.role == "side" else settled.kind
            rows.append(replace(settled, session_id=reply.session_id, position=reply.position, kind=kind))
        held.place(rows, reply.epoch)
        if held.phase is Phase.OWNED and not reply.owned and reply.epoch > held.epoch:
            held.become(Phase.LOST)

    def _outdated(self, held: Held, event_id: str) -> None:
        held.pending.pop(event_id, None)
        if held.phase is Phase.OWNED:
            held.become(Phase.LOST)

    def _forked(self, held: Held, booking: protocol.Booking, fork_id: str) -> Held:
        """Another daemon was faster in going on from the same answer: this turn is of a session of its own."""
        event_id = booking.row.event_id
        fork = self._at(fork_id)
        if fork is None:
            self._evict()
            fork = self._held[fork_id] = Held(_bare(booking.naming, fork_id))
            self._index.learn(fork_id, booking.naming.keys)
        if event_id in held.pending:
            fork.pending[event_id] = held.pending.pop(event_id)
        elif not booking.row.is_settled and event_id not in held.forks:
            held.turns_in_flight -= 1
            fork.turns_in_flight += 1
        held.forks[event_id] = fork_id
        while len(held.forks) > FORKS_MAX:
            del held.forks[next(iter(held.forks))]
        return fork

    def _snapshotted(self, write: protocol.SnapshotWrite, reply: protocol.Reply) -> None:
        held = self._at(write.session_id)
        if held is None:
            return
        held.snapshot_in_flight = 0
        if reply.owned and write.epoch == held.epoch:
            # The acknowledged generation cleans what it covers; what came after it stays dirty.
            held.acked_generation = max(held.acked_generation, write.snapshot.generation)
        elif held.phase is Phase.OWNED and write.epoch == held.epoch:
            held.become(Phase.LOST)

    # -- finding and forgetting --------------------------------------------------------------------------------------

    def _find(self, naming: Naming) -> Held:
        """The held session the naming means, by its id or by the chain; a new place for it if there is none."""
        held = self._at(naming.session_id) or self._continued(naming)
        if held is None:
            self._evict()
            held = self._held[naming.session_id] = Held(naming)
        self._held.move_to_end(held.session_id)
        return held

    def _continued(self, naming: Naming) -> Held | None:
        if naming.is_named:
            return None
        if self._link.is_heard:
            return self._surely_continued(naming)  # Else the worker is the truth: the claim asks it.
        session_id = self._index.continued(naming.continues)
        if not session_id:
            return None
        held = self._at(session_id)
        if held is not None and held.turns_in_flight:
            return None  # Of two that go on at once one is a fork; if it is the same again, the worker will say so.
        if held is None:
            self._evict()
            held = Held(_bare(naming, session_id))
            self._held[held.session_id] = held
        return held

    def _surely_continued(self, naming: Naming) -> Held | None:
        """The session of which the worker would say the same: ours, at its last answer, and not busy.  What goes on
        from an earlier one may be a conversation that began alike, and of two that go on at once one is a fork."""
        session_id = self._index.continued(naming.continues[:1])
        held = self._at(session_id) if session_id else None
        if held is None or held.phase is not Phase.OWNED or held.turns_in_flight or held.is_doubted(naming):
            return None
        return held

    def _at(self, session_id: str) -> Held | None:
        return self._held.get(self._canonical(session_id))

    def _canonical(self, session_id: str) -> str:
        return self._aliases.get(session_id, session_id)

    def _evict(self) -> None:
        while len(self._held) >= self._limit:
            idle = next((held for held in islice(self._held.values(), _EVICTION_LOOK) if held.is_idle), None)
            if idle is None:
                return
            del self._held[idle.session_id]

    def _forget_all(self) -> None:
        """Another store: nothing it did not tell us is true of it.  What is unacknowledged is in the outbox."""
        self._index.clear()
        self._aliases.clear()
        for held in self._held.values():
            held.forget()


def _judged(snapshot: protocol.Snapshot | None) -> states.Restored:
    if snapshot is None:
        return states.Restored(gradient=EMPTY.gradient, warming=EMPTY.warming, position=0)
    return states.decode(snapshot)


def _last_position(held: Held) -> int:
    return held.rebuilding[-1].position if held.rebuilding else 0


def _under(held: Held, naming: Naming) -> Naming:
    """The naming of a request as one of the session it was given: what the worker answers is then about that one."""
    if held.naming.confirmed:
        return _confirmed(naming, held.session_id)
    return replace(naming, session_id=held.session_id)


def _confirmed(naming: Naming, session_id: str) -> Naming:
    return replace(naming, session_id=session_id, confirmed=True, continues=[], retry="")


def _with_history(under: Naming, naming: Naming) -> Naming:
    """Also of a session that is known it tells what a request is to it."""
    return replace(under, continues=naming.continues)


def _bare(naming: Naming, session_id: str) -> Naming:
    """What a held session has to remember of the request that named it."""
    return replace(_confirmed(naming, session_id), keys=[], hints=[], said=[], shape=None)


def _beside(held: Held, naming: Naming, role: Role, reason: str) -> Place:
    why = Why(reason=said_of_side(naming.why.origin, reason), origin=naming.why.origin, confidence="likely")
    return Place(held, replace(_under(held, naming), why=why), role)


def _role_of(row: Row) -> Role:
    return "turn" if row.kind == "turn" else "side"


_CONTINUES: Final = Why(reason="continues the conversation of this session", origin="content", confidence="proven")
_EVICTION_LOOK: Final = 64
"""Least recently used sessions looked at for one that may go."""
