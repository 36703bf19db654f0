"""The simulated daemon: the real `Sessions`, `Outbox`, `KeyIndex`, `Booking` and identity, on a simulated link.

One rule: only the socket, the provider and the loop are pretended; whatever decides is the daemon's own.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from msgspec import Struct
from msgspec.structs import replace

from daemon.booking import Booking, open_row
from daemon.gateway import recognised
from daemon.held import Held, Phase
from daemon.identity import Known, with_chains
from daemon.index import KeyIndex
from daemon.outbox import Body, Entry, Outbox, OutboxFull
from daemon.providers import Answer, Turn, Unit
from daemon.sessions import Sessions
from daemon.spill import Write
from tests.simulation.checks import Begun, Checks
from tests.simulation.clockwork import Clock, Host, Resume, Wait
from tests.simulation.keys import KeyFile
from worker import protocol
from worker.protocol import Command, Shape, Usage

OUTBOX_WRITES_MAX: Final = 200
ACK_WAIT_MILLISECONDS: Final = 250
BEAT_MILLISECONDS: Final = 100
PING_MILLISECONDS: Final = 1_000
SILENT_MILLISECONDS: Final = 3_000
PRELOAD_MILLISECONDS: Final = 1_000
SESSIONS_MAX: Final = 80
"""More than a run has: forgetting a session has tests of its own."""
INDEX_KEYS_MAX: Final = 6
"""Far less than a run has, so that what the index forgot must be asked for."""

SendFrame = Callable[[int, protocol.Body], None]
"""Sends a body under a sequence to the worker."""


class Request(Struct, frozen=True):
    """What a client sends: who it says it is, and the conversation so far."""

    conversation: int
    minted: tuple[str, str] | None
    units: tuple[Unit, ...]
    is_aside: bool = False
    """A call beside the conversation: a title, a summary."""


class Link:
    """What `WorkerClient` is to the sessions, on the simulated wire."""

    def __init__(self, host: Host, clock: Clock, instance: str, boot: str, send: SendFrame) -> None:
        self.outbox = Outbox(OUTBOX_WRITES_MAX)
        self.is_preloaded = False
        self.sessions: Sessions
        self._clock = clock
        self._host = host
        self._send = send
        self._hello = protocol.Hello(boot=boot, instance=instance, version="0", pid=1)
        self._is_welcome = False
        self._is_silent = False
        self._worker_boot = ""
        self._last_heard = 0
        self._last_ping = 0
        self._waiters: defaultdict[int, list[Resume]] = defaultdict(list)

    @property
    def is_heard(self) -> bool:
        return self._is_welcome and not self._is_silent

    def put(self, command: Command, body: Body) -> int:
        sequence = self.outbox.put(command, body, self._clock.seconds)
        self._flush()
        return sequence

    def adopt(self, command: Command, body: Body) -> int:
        sequence = self.outbox.adopt(command, body, self._clock.seconds)
        self._flush()
        return sequence

    async def acknowledged(self, sequence: int) -> bool:
        if sequence not in self.outbox:
            return True
        if not self.is_heard:
            return False
        asked_at = self._clock.now

        def arm(resume: Resume) -> None:
            self._waiters[sequence].append(resume)
            self._clock.after(ACK_WAIT_MILLISECONDS, lambda: resume(False))

        if await Wait(arm):
            return True
        if self._last_heard < asked_at:
            self._is_silent = True
        return False

    def beat(self) -> None:
        if self._clock.now - self._last_heard > SILENT_MILLISECONDS:
            self._is_silent = True
        if not self._is_welcome:
            self._send(0, self._hello)
        elif self._is_silent or self._clock.now - self._last_ping >= PING_MILLISECONDS:
            self._last_ping = self._clock.now
            self._send(0, protocol.Ping())
        self._flush()

    def hear(self, body: protocol.Body) -> None:
        self._last_heard = self._clock.now
        if self._is_welcome:
            self._is_silent = False
        match body:
            case protocol.Welcome():
                self._welcomed(body)
            case protocol.WhoAreYou():
                self._is_welcome = False
                self._send(0, self._hello)
            case protocol.Acks(replies=replies):
                for reply in replies:
                    self._acked(reply)
            case protocol.Lost():
                self.sessions.lost(body)
            case protocol.IndexPage(entries=entries):
                self.sessions.indexed(entries)
                self.is_preloaded = True
            case _:
                assert isinstance(body, protocol.Pong), body
        self._flush()

    def _welcomed(self, welcome: protocol.Welcome) -> None:
        is_first = not self._worker_boot
        if self._worker_boot != welcome.boot:
            self.outbox.resend_all()
        self._worker_boot = welcome.boot
        self._is_welcome, self._is_silent = True, False
        self.sessions.welcomed(welcome, new_store=False)
        if is_first or not self.is_preloaded:
            self._send(0, protocol.IndexRequest())

    def _acked(self, reply: protocol.Reply) -> None:
        entry = self.outbox.acked(reply.sequence)
        if entry is not None:
            self.sessions.acknowledged(entry, reply)
        for resume in self._waiters.pop(reply.sequence, []):
            # As with a future: the one who waited goes on after whatever is happening now.
            self._clock.after(0, partial(resume, True))

    def _flush(self) -> None:
        if not self.is_heard:
            return
        while entry := self.outbox.next_due(self._clock.seconds):
            self._send(entry.sequence, entry.body)
            self.outbox.sent(entry, self._clock.seconds)


class Daemon:
    """One boot of one daemon."""

    def __init__(
        self, clock: Clock, checks: Checks, keys: KeyFile, instance: str, boot: str, send: SendFrame, *, tick: int
    ) -> None:
        self.boot = boot
        self.host = Host(clock)
        self.link = Link(self.host, clock, instance, boot, send)
        self.sessions = _WatchedSessions(checks, keys)
        self.sessions.start(self.link)
        self.link.sessions = self.sessions
        self._clock = clock
        self._checks = checks
        self._started_at = clock.now
        self._in_flight: list[Booking] = []
        self.host.every(BEAT_MILLISECONDS, self.link.beat)
        self.host.every(tick, self._flush)

    def held(self) -> list[Held]:
        return list(self.sessions._held.values())

    def stop(self) -> list[Write]:
        """Told to stop, twice: streams are cut, and what no worker took is left behind."""
        for booking in self._in_flight:
            if not booking.is_settled:
                booking.settle(Answer(), "interrupted", 200)
        self.host.kill()
        own = self.link.outbox.own()
        return [Write(each.command, each.body) for each in own if isinstance(each.body, protocol.Booking)]

    def latch(self) -> None:
        """Change something that no ledger row tells, in a session this daemon takes for its own."""
        owned = [h for h in self.held() if h.phase is Phase.OWNED and h.base is not None]
        if not owned:
            return
        held = self._clock.rng.choice(owned)
        assert held.base is not None
        mark = self._checks.next_latch()
        text = f"{held.base.warming.disabled or ''}{mark},"
        held.base = replace(held.base, warming=replace(held.base.warming, disabled=text))
        held.generation += 1

    async def ping(self) -> None:
        """Keep the cache of some session warm, as `daemon.warmer` does; but as often as it can, with no patience."""
        owned = [h for h in self.held() if h.phase is Phase.OWNED and h.state.warming.window_started_at]
        if not owned or not self.link.is_heard:
            return
        held = self._clock.rng.choice(owned)
        row = protocol.Row(
            event_id=self._clock.draw_id(),
            session_id=held.session_id,
            kind="warmup",
            status="interrupted",
            started_at=self._clock.now,
            provider="p",
            protocol="messages",
            model="m",
            boot=self.boot,
            window_started_at=held.state.warming.window_started_at,
        )
        naming = protocol.Naming(session_id=row.session_id, confirmed=True, is_judged=True)
        try:
            begun = self.link.put(
                Command.BEGIN, protocol.Booking(naming=naming, row=row, epoch=held.epoch, seen=held.position)
            )
        except OutboxFull:
            return
        is_in_time = await self.link.acknowledged(begun)
        while begun in self.link.outbox:
            await self.host.sleep(BEAT_MILLISECONDS)
        if self.sessions.was_refused(row.event_id):
            return
        usage = None
        if is_in_time:
            self._checks.ping_sent(row.event_id, row.session_id, row.window_started_at)
            await self.host.sleep(self._clock.rng.choice((2, 30, 300)))
            # One that touches nothing leaves the window as it was.
            usage = Usage(cache_read_tokens=self._clock.rng.choice((0, 9_000)))
        held = self.sessions.current(held)
        ended = replace(row, status="complete" if usage else "interrupted", ended_at=self._clock.now, usage=usage)
        self.sessions.settled(held, naming, ended)
        self.link.put(Command.END, protocol.Booking(naming=naming, row=ended, epoch=held.epoch, seen=held.position))

    async def turn(self, request: Request, respond: Callable[[Unit | None], None]) -> None:
        """The way of one request, as in `daemon.gateway`.  `respond` None: there is no whole answer."""
        rng = self._clock.rng
        while not self.link.is_preloaded and self._clock.now - self._started_at < PRELOAD_MILLISECONDS:
            await self.host.sleep(BEAT_MILLISECONDS)
        try:
            booking, row = await self._begin(request)
        except OutboxFull:
            respond(None)
            return
        await self.host.sleep(rng.choice((2, 30, 300)))
        if await booking.is_begun():
            self._checks.identity_seen(row.event_id, booking.session_id)
        await self.host.sleep(rng.choice((2, 30, 300)))
        fate = rng.random()
        usage = None if fate > 0.97 else _usage(rng.randrange(1, 50_000), rng.randrange(3))
        if fate < 0.1:
            booking.settle(Answer(usage=usage), "interrupted" if fate < 0.05 else "error", 200)
            respond(None)
            return
        answer = Unit("assistant", self._clock.draw_id())
        self._checks.answered(row.event_id, answer.text)
        ended = booking.settle(Answer(usage=usage, finished=True, unit=answer), "complete", 200)
        if await self.link.acknowledged(ended):
            self._checks.usage_seen(row.event_id, usage)
        respond(answer)

    def _flush(self) -> None:
        self.sessions.flush()

    async def _begin(self, request: Request) -> tuple[Booking, protocol.Row]:
        clock = self._clock
        body = repr(request.units).encode()
        known = Known(
            account="account",
            client="simulated",
            minted=request.minted,
            units=request.units,
            shape=_shape(request) if request.minted else None,
        )
        known = with_chains(known, body, self.sessions.hash_keys)
        known, place = await recognised(self.sessions, known, body, clock.draw_id)
        row = open_row(
            event_id=clock.draw_id(),
            place=place,
            turn=Turn(protocol="messages", model="m", message_count=len(request.units), user_turn=True),
            known=known,
            provider="p",
            boot=self.boot,
            started_at=clock.now,
            prices=_PRICES,
            is_longer_asked=False,
        )
        booking = Booking(
            held=place.held,
            naming=place.naming,
            known=known,
            row=row,
            sessions=self.sessions,
            link=cast(Any, self.link),
            prices=_PRICES,
            metrics=_METRICS,
            now=lambda: clock.now,
        )
        booking.begin()
        self._in_flight = [each for each in self._in_flight if not each.is_settled]
        self._in_flight.append(booking)
        self._checks.began(row.event_id, Begun(request.conversation, self.boot, request.is_aside))
        return booking, row


class _WatchedSessions(Sessions):
    """Tells the checks of every acknowledged snapshot."""

    def __init__(self, checks: Checks, keys: KeyFile) -> None:
        index = KeyIndex(INDEX_KEYS_MAX)
        super().__init__(index=index, early_key=bytes(32), log=_quiet(), key_file=keys, limit=SESSIONS_MAX)
        self._checks = checks

    def acknowledged(self, entry: Entry, reply: protocol.Reply) -> None:
        body = entry.body
        if not isinstance(body, protocol.SnapshotWrite):
            super().acknowledged(entry, reply)
            return
        held = self._at(body.session_id)
        was_newer = held is not None and held.generation > body.snapshot.generation and held.is_dirty
        super().acknowledged(entry, reply)
        self._checks.seen["fenced"] += not reply.owned
        if reply.owned:
            self._checks.snapshot_seen(reply.session_id, body.snapshot)
        if was_newer and held is not None and not held.is_dirty:
            self._checks.fail("clean_by_old_ack", f"{held.session_id} at generation {held.generation}")


class _FlatPrices:
    """One price for every token."""

    def price_nanousd(self, _provider: str, _model: str, usage: Usage, _at_ms: int) -> int | None:
        return 3 * (usage.prompt_tokens + usage.output_tokens)

    def price_version(self, _provider: str, _model: str) -> str:
        return "flat"

    def known_name(self, _provider: str, model: str) -> str:
        return model

    def cap_ceiling(self, _provider: str, _model: str, **_known: object) -> int:
        return 266_666


class _NoMetrics:
    def settled(self, row: protocol.Row, known_name: str) -> None:
        pass


def _shape(request: Request) -> Shape:
    if request.is_aside:
        return Shape(system="beside", opening=request.units[0].text)
    return Shape(system="an agent", tools="with tools", opening=request.units[0].text)


def _usage(tokens: int, kind: int) -> Usage:
    read, written = ((0, tokens), (tokens, 100), (tokens // 2, tokens))[kind]
    return Usage(input_tokens=7, cache_read_tokens=read, cache_write_5m_tokens=written, output_tokens=11)


def _quiet() -> logging.Logger:
    log = logging.Logger("simulation")
    log.addHandler(logging.NullHandler())
    return log


_PRICES: Final = cast(Any, _FlatPrices())
_METRICS: Final = cast(Any, _NoMetrics())
