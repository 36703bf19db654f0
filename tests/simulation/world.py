"""One run: two daemons, a worker, a few clients and a seed that decides what goes wrong.

One rule: a run is its seed; `run(seed)` gives the same violations every time.

Theory of operation.  For some virtual seconds clients talk while the wire loses, repeats and delays, processes are
killed, stopped and cut off, and owners set latches.  Then everything is healed and lives on until all is said; only
then the final checks look at the store.
"""

from __future__ import annotations

from functools import partial
from typing import Final
from unittest import mock

from daemon.held import Phase
from daemon.identity import derived_id
from daemon.providers import Unit
from daemon.spill import Write
from daemon.state import encode
from tests.simulation.checks import Checks, Violation, settled_rows
from tests.simulation.clockwork import Clock, Host, Resume, Wait, Weather, Wire
from tests.simulation.daemon import Daemon, Request
from tests.simulation.keys import KeyFile
from tests.simulation.worker import Store, Worker
from worker import batch, protocol

Units = tuple[Unit, ...]

DAEMONS: Final = 2
TROUBLE_MILLISECONDS: Final = 14_000
QUIET_MILLISECONDS: Final = 12_000
"""Longer than the latest message, a client's patience and a few resends."""
PATIENCE_MILLISECONDS: Final = 2_500
"""After which a client sends the same request again, to any daemon."""
ADOPT_MILLISECONDS: Final = 150
CONVERSATIONS_MAX: Final = 6
"""Forks included."""
PAGE_ROWS: Final = (3, 500)
"""Rows in one reply: a real page never fills in a short run."""


def run(seed: int) -> list[Violation]:
    """What was wrong in the run of that seed: nothing, if all is well."""
    world = World(seed)
    with mock.patch.object(batch, "ROWS_PER_REPLY_MAX", world.clock.rng.choice(PAGE_ROWS)):
        world.live()
    return world.checks.violations


class LeftBehind:
    """What a daemon left that was told to stop."""

    def __init__(self, writes: list[Write]) -> None:
        self._writes = writes
        self._reader: Daemon | None = None
        self._waiting: list[int] = []

    @property
    def is_over(self) -> bool:
        return self._reader is not None and not self._waiting

    def look(self, daemon: Daemon, checks: Checks) -> None:
        """Go on with whoever reads it; if that one is dead the next begins anew."""
        if self._reader is not None and not self._reader.host.is_alive:
            self._reader = None
        if self._reader is None and daemon.host.is_alive and daemon.link.is_heard:
            self._reader = daemon
            self._waiting = [daemon.link.adopt(write.command, write.body) for write in self._writes]
            checks.seen["adopted"] += len(self._waiting)
        if self._reader is not None:
            self._waiting = [sequence for sequence in self._waiting if sequence in self._reader.link.outbox]


class World:
    def __init__(self, seed: int) -> None:
        self.clock = Clock(seed)
        self.checks = Checks()
        self.store = Store()
        rng = self.clock.rng
        self._wire = Wire(self.clock, Weather(rng))
        self._tick = rng.choice((200, 700, 2_000))
        self._trouble_every = rng.choice((300, 1_000, 3_000))
        self._boots = 0
        self._keys = KeyFile()
        self._worker = self._new_worker()
        self._daemons = [self._new_daemon(place) for place in range(DAEMONS)]
        self._clients = Host(self.clock)
        self._left: list[LeftBehind] = []
        self._stopped: set[str] = set()
        """Boots that were told to stop: they lose no more than those that live."""
        self._conversations = 0
        self._named: dict[int, str] = {}

    def live(self) -> None:
        for _ in range(self.clock.rng.randrange(2, 5)):
            self._begin(is_named=self.clock.chance(0.6))
        self.clock.after(100, self._trouble)
        self.clock.after(50, self._latch)
        self.clock.after(70, self._ping)
        self.clock.after(ADOPT_MILLISECONDS, self._adopt)
        self.clock.run_until(TROUBLE_MILLISECONDS)
        self._heal()
        self.clock.run_until(TROUBLE_MILLISECONDS + QUIET_MILLISECONDS)
        self._look_back()

    # -- clients -----------------------------------------------------------------------------------------------------

    def _begin(self, *, is_named: bool, said: Units = ()) -> int:
        conversation = self._conversations
        self._conversations += 1
        minted = ("x-session-id", f"conversation-{conversation}") if is_named else None
        if minted:
            self._named[conversation] = derived_id(*minted)
        self._clients.start(self._converse(conversation, minted, said))
        return conversation

    async def _converse(self, conversation: int, minted: tuple[str, str] | None, said: Units) -> None:
        """Ask, wait, ask again until answered, think, and so on."""
        rng = self.clock.rng
        home = rng.randrange(DAEMONS)
        while self.clock.now < TROUBLE_MILLISECONDS:
            said = (*said, Unit("user", f"{conversation} {self.clock.draw_id()}"))
            if minted:
                self._meanwhile(conversation, minted, said)
            for _ in range(4):
                place = home if self.clock.chance(0.6) else rng.randrange(DAEMONS)
                self.checks.asked(conversation)
                answer: Unit | None = await self._answer(Request(conversation, minted, said), place)
                if answer is not None:
                    said = (*said, answer)
                    self.checks.went_on(conversation, answer.text)
                    break
            else:
                said = said[:-1]
            await self._clients.sleep(rng.choice((20, 200, 1_500)))

    def _meanwhile(self, conversation: int, minted: tuple[str, str], said: Units) -> None:
        """What is asked for at the same time, and never heard of again; and conversations that go on elsewhere."""
        place = self.clock.rng.randrange(DAEMONS)
        if self.clock.chance(0.1):
            self._ask(Request(conversation, minted, said), place, lambda _: None)
        if self.clock.chance(0.1):
            beside = said if self.clock.chance(0.5) else said[:1]
            self._ask(Request(conversation, minted, beside, is_aside=True), place, lambda _: None)
        if len(said) > 2 and self._conversations < CONVERSATIONS_MAX and self.clock.chance(0.1):
            self.checks.forked(self._begin(is_named=True, said=said[:-1]), conversation)

    def _answer(self, request: Request, place: int) -> Wait:
        def arm(resume: Resume) -> None:
            self.clock.after(PATIENCE_MILLISECONDS, lambda: resume(None))
            self._ask(request, place, resume)

        return Wait(arm)

    def _ask(self, request: Request, place: int, resume: Resume) -> None:
        daemon = self._daemons[place]
        if not daemon.host.is_alive:
            self.clock.after(100, lambda: resume(None))
            return

        def respond(answer: Unit | None) -> None:
            self.clock.after(1, lambda: resume(answer))

        daemon.host.do(lambda: daemon.host.start(daemon.turn(request, respond)))

    # -- trouble -----------------------------------------------------------------------------------------------------

    def _trouble(self) -> None:
        if self._wire.is_healed:
            return
        rng = self.clock.rng
        place = rng.randrange(DAEMONS)
        match rng.randrange(6):
            case 0:
                self._kill_daemon(place)
            case 1:
                self._worker.host.kill()
                self.clock.after(rng.choice((100, 1_500)), self._raise_worker)
            case 2:
                self._wire.cut_until[place] = self.clock.now + rng.choice((300, 4_000))
            case 3:
                self._stop_daemon(place)
            case _:
                self._daemons[place].host.stopped_until = self.clock.now + rng.choice((300, 2_000, 5_000))
        if not self._worker.host.is_alive:
            self.clock.after(200, self._raise_worker)
        self.clock.after(rng.randrange(1, 2 * self._trouble_every), self._trouble)

    def _latch(self) -> None:
        if self._wire.is_healed:
            return
        rng = self.clock.rng
        daemon = self._daemons[rng.randrange(DAEMONS)]
        daemon.host.do(daemon.latch)
        # Few enough for the field that holds them all.
        self.clock.after(rng.randrange(100, 800), self._latch)

    def _ping(self) -> None:
        if self._wire.is_healed:
            return
        daemon = self._daemons[self.clock.rng.randrange(DAEMONS)]
        daemon.host.do(lambda: daemon.host.start(daemon.ping()))
        self.clock.after(self.clock.rng.randrange(50, 600), self._ping)

    def _kill_daemon(self, place: int) -> None:
        self._daemons[place].host.kill()
        self._raise_daemon_later(place)

    def _stop_daemon(self, place: int) -> None:
        daemon = self._daemons[place]
        if daemon.host.is_alive and self.clock.now >= daemon.host.stopped_until:
            self._left.append(LeftBehind(daemon.stop()))
            self._stopped.add(daemon.boot)
            self._raise_daemon_later(place)

    def _adopt(self) -> None:
        """One file at a time is read by some daemon, and is gone once all of it is acknowledged there."""
        for left in self._left:
            left.look(self._daemons[self.clock.rng.randrange(DAEMONS)], self.checks)
        self._left = [left for left in self._left if not left.is_over]
        self.clock.after(ADOPT_MILLISECONDS, self._adopt)

    def _raise_daemon_later(self, place: int) -> None:
        def again() -> None:
            if not self._daemons[place].host.is_alive:
                self._daemons[place] = self._new_daemon(place)

        self.clock.after(self.clock.rng.choice((50, 1_000)), again)

    def _raise_worker(self) -> None:
        if not self._worker.host.is_alive:
            self._worker = self._new_worker()

    def _heal(self) -> None:
        self._wire.is_healed = True
        self.checks.is_faulty = False
        self._raise_worker()
        for place, daemon in enumerate(self._daemons):
            daemon.host.stopped_until = min(daemon.host.stopped_until, self.clock.now)
            if not daemon.host.is_alive:
                self._daemons[place] = self._new_daemon(place)

    # -- processes and what they say ---------------------------------------------------------------------------------

    def _new_worker(self) -> Worker:
        return Worker(self.clock, self.store, self.checks, self._boot("w"), self._tell)

    def _new_daemon(self, place: int) -> Daemon:
        boot = self._boot(f"d{place}")

        def send(sequence: int, body: protocol.Body) -> None:
            self._wire.carry(place, lambda: self._worker.host.do(lambda: self._worker.hear(boot, sequence, body)))

        return Daemon(self.clock, self.checks, self._keys, f"d{place}", boot, send, tick=self._tick)

    def _tell(self, boot: str, body: protocol.Body) -> None:
        for place, daemon in enumerate(self._daemons):
            if daemon.boot == boot:
                self._wire.carry(place, partial(daemon.host.do, partial(daemon.link.hear, body)))

    def _boot(self, kind: str) -> str:
        self._boots += 1
        return f"{kind}-{self._boots}"

    # -- the end -----------------------------------------------------------------------------------------------------

    def _look_back(self) -> None:
        tables, checks = self.store.tables, self.checks
        for daemon in self._daemons:
            checks.expect(not len(daemon.link.outbox), "everything_was_said", len(daemon.link.outbox))
            self._owner_is_stored(daemon)
        checks.expect(not self._left, "everything_was_adopted", len(self._left))
        checks.quiet(tables, frozenset(daemon.boot for daemon in self._daemons) | self._stopped, self._named)

    def _owner_is_stored(self, daemon: Daemon) -> None:
        """What the present owner knows is in the store, and its own turns are part of it."""
        checks = self.checks
        for held in daemon.held():
            checks.expect(not held.pending, "everything_is_placed", held.session_id)
            checks.expect(not held.turns_in_flight, "no_turn_is_left_in_flight", held.session_id)
            tables = self.store.tables
            stored = tables.session(tables.aliases.get(held.session_id, held.session_id))
            checks.expect(stored is not None or held.phase is Phase.LOST, "held_session_is_stored", held.session_id)
            if stored is None or held.phase is not Phase.OWNED:
                continue
            if (stored.owner, stored.epoch) != (daemon.boot, held.epoch):
                continue
            assert held.base is not None
            # What others settled since is told with its next turn; what it settled itself it must not forget.
            own = [r.position for r in settled_rows(self.store.tables, held.session_id) if r.boot == daemon.boot]
            known = held.state.position >= max(own, default=0)
            checks.expect(known, "owner_knows_its_turns", (held.session_id, held.state.position, own))
            kept = stored.snapshot is not None and encode(held.base, stored.snapshot.generation) == stored.snapshot
            checks.expect(kept or not held.generation, "owners_state_is_stored", held.session_id)
            checks.seen["owned"] += 1
