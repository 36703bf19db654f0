"""The link to the worker: moves the outbox over a ZeroMQ DEALER and hears what comes back.

One rule: nobody waits for the worker longer than 250 ms, and nobody waits at all while it is not heard.

Theory of operation.  The socket's file descriptor is edge-triggered: after it fires, and after every send of our own,
everything there is must be read.  Any frame of the worker is a sign of life.  A worker that answers WHO, or WELCOMEs
us under a new boot id, has restarted: it has seen nothing that is still in the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final, Protocol

import zmq

from daemon.outbox import Body, Entry, Outbox
from worker import protocol
from worker.curve import DaemonKeys, over_tcp
from worker.protocol import Command, ProtocolError

ACK_WAIT_SECONDS: Final = 0.25
"""The longest a request waits for an acknowledgement."""
BEAT_SECONDS: Final = 0.1
"""How often the link looks after itself: resends, and calls out to a worker it does not hear."""
PING_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 3.0
"""Silence, though pinged every second, after which the worker is not heard, also when nobody waits for it."""
QUERY_SECONDS: Final = 5.0
HANG_UPS_MAX: Final = 5
"""Handshakes broken off in a row that no restart of the worker explains."""
KNOCK_SECONDS: Final = 1.0
"""How long a daemon that was turned away waits before it tries again."""
HIGH_WATER_MARK: Final = 1_000
"""Messages ZeroMQ may queue each way; the bounded queue that counts is the outbox."""
RECONNECT_MILLISECONDS: Final = (50, 1_000)


class LinkState(Enum):
    """The link's life, as one sentence."""

    CONNECTING = "no worker has welcomed us yet; once one does…"
    READY = "…what we ask is answered, until nothing is heard when something should be, and we are…"
    SILENT = "…not waiting for anybody, only calling, until a frame arrives and all is as before"


_MOVES: Final[dict[LinkState, frozenset[LinkState]]] = {
    LinkState.CONNECTING: frozenset({LinkState.READY}),
    LinkState.READY: frozenset({LinkState.SILENT}),
    LinkState.SILENT: frozenset({LinkState.READY}),
}


class Listener(Protocol):
    """Who wants to know what the worker says (the sessions)."""

    def acknowledged(self, entry: Entry, reply: protocol.Reply) -> None: ...
    def refused(self, entry: Entry, reason: str) -> None: ...
    def lost(self, lost: protocol.Lost) -> None: ...
    def indexed(self, entries: list[protocol.IndexEntry]) -> None: ...
    def amended(self) -> None: ...
    def welcomed(self, welcome: protocol.Welcome, *, new_store: bool) -> None: ...


class WorkerClient:
    """One DEALER.  All methods belong to the event loop's thread."""

    def __init__(
        self,
        *,
        address: str,
        keys: DaemonKeys | None = None,
        hello: protocol.Hello,
        outbox: Outbox,
        metrics: Callable[[], list[protocol.Family]],
        state: Callable[[], str] = str,
        refused: Callable[[], None] = lambda: None,
        latches: Callable[[], list[protocol.Latch]] = list,
        log: logging.Logger,
    ) -> None:
        """`state`: where this process's life stands, for people; `refused` counts a frame that was not understood;
        `latches`: what keeps this process from keeping caches warm, likewise for people."""
        self.state = LinkState.CONNECTING
        self.preloaded = asyncio.Event()
        self._emptied = asyncio.Event()
        self.unacknowledged_answers = 0
        self.trouble = ""
        """Why nothing can be heard of the worker, where that is known; until it is heard."""
        self._committing = True
        self._changes: int | None = None
        self._address = address
        self._hello = hello
        self._outbox = outbox
        self._metrics = metrics
        self._life = state
        self._latches = latches
        self._warming = 0
        self._count_refused = refused
        self._has_refused = False
        self._log = log
        self._listener: Listener
        self._welcome: protocol.Welcome | None = None
        self._former: protocol.Welcome | None = None
        self._indexed_keys = 0
        self._waiters: dict[int, asyncio.Future[bool]] = {}
        self._queries: dict[int, asyncio.Future[protocol.Answer]] = {}
        self._query_sequence = _QUERIES_FROM
        self._turned_away_at = 0.0
        self._hung_up = 0
        self._last_heard = 0.0
        self._last_ping = 0.0
        self._reading = False
        self._context = zmq.Context()
        self._socket = _dealer(self._context, hello.boot, keys)
        self._handshakes = _handshakes(self._socket) if keys else None
        self._descriptor = int(self._socket.getsockopt(zmq.FD))

    @property
    def is_heard(self) -> bool:
        """The worker answers and commits: an acknowledgement is worth waiting for."""
        return self.state is LinkState.READY and self._welcome is not None and self._committing

    @property
    def switched(self) -> tuple[str, int, int] | None:
        """Tells one state of the switch for keep-alive from another; None while the worker was not heard."""
        store = self._welcome or self._former
        # Sessions that were joined or parted may bring what was said of them along.
        return (store.incarnation, self._changes or 0, self._warming) if store else None

    def start(self, listener: Listener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._socket.connect(self._address)
        self._loop.add_reader(self._descriptor, self._read)

    async def run(self) -> None:
        """Look after the link until cancelled."""
        while True:
            self._beat()
            await asyncio.sleep(BEAT_SECONDS)

    def put(self, command: Command, body: Body) -> int:
        """Keep a write until it is acknowledged, and send it now if the worker is heard.  Raises OutboxFull."""
        # What can not be encoded must fail its own request, not stay in the outbox and fail every send.
        protocol.encode(command, body)
        sequence = self._outbox.put(command, body, time.monotonic())
        self._flush()
        return sequence

    def adopt(self, command: Command, body: Body) -> int:
        """The same for a write that a daemon left behind which has ended; the outbox is never too full for it."""
        sequence = self._outbox.adopt(command, body, time.monotonic())
        self._flush()
        return sequence

    async def acknowledged(self, sequence: int) -> bool:
        """Wait, a little, until a write is committed.  False: it is not known to be, and the answer goes on."""
        if sequence not in self._outbox:
            return True
        if not self.is_heard:
            return False
        waiter = self._waiters.setdefault(sequence, self._loop.create_future())
        asked_at = time.monotonic()
        await asyncio.wait([waiter], timeout=ACK_WAIT_SECONDS)
        if waiter.done():
            return waiter.result()
        if self._last_heard < asked_at and self.state is LinkState.READY:
            self._become(LinkState.SILENT)
        return False

    async def taken(self, sequences: Iterable[int]) -> None:
        """Wait, however long, until the worker has said something about each of these writes."""
        waiting = [sequence for sequence in sequences if sequence in self._outbox]
        waiters = [self._waiters.setdefault(sequence, self._loop.create_future()) for sequence in waiting]
        if waiters:
            await asyncio.wait(waiters)

    async def query(self, body: protocol.Query, patience_seconds: float = QUERY_SECONDS) -> protocol.Answer | None:
        """Ask what the store or the worker knows; None when the worker does not say in time."""
        if self.state is not LinkState.READY:
            return None
        self._query_sequence += 1
        sequence = self._query_sequence
        answer = self._queries[sequence] = self._loop.create_future()
        try:
            if body.what == "metrics":
                ping = protocol.Ping(metrics=self._metrics(), state=self._life(), latches=self._latches())
                self._send(Command.PING, ping)
            self._send(Command.QUERY, body, sequence)
            await asyncio.wait([answer], timeout=patience_seconds)
            return answer.result() if answer.done() else None
        finally:
            del self._queries[sequence]

    async def emptied(self, deadline: float) -> bool:
        """Wait until every write is acknowledged, or the deadline (monotonic seconds) has passed."""
        self._emptied.clear()
        if len(self._outbox):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), max(0.0, deadline - time.monotonic()))
        return not len(self._outbox)

    def close(self) -> None:
        if self.state is LinkState.READY:
            self._send(Command.BYE, protocol.Bye())
        self._loop.remove_reader(self._descriptor)
        if self._handshakes is not None:
            self._socket.disable_monitor()
            self._handshakes.close(linger=0)
        # Nothing that matters is in flight after the last acknowledgement; the linger only carries the BYE.
        self._socket.close(linger=_BYE_MILLISECONDS)
        self._context.term()

    # -- sending ---------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        now = time.monotonic()
        self._look_at_handshakes(now)
        if self.state is LinkState.READY and now - self._last_heard > SILENT_SECONDS:
            self._become(LinkState.SILENT)
        if self._welcome is None:
            self._send(Command.HELLO, self._hello)
        elif self.state is LinkState.SILENT or now - self._last_ping >= PING_SECONDS:
            self._last_ping = now
            metrics = self._metrics() if self.is_heard else None
            self._send(Command.PING, protocol.Ping(metrics=metrics, state=self._life(), latches=self._latches()))
        self._flush()

    def _flush(self) -> None:
        if self.state is not LinkState.READY or self._welcome is None:
            return
        now = time.monotonic()
        while entry := self._outbox.next_due(now):
            if not self._send(entry.command, entry.body, entry.sequence):
                return
            self._outbox.sent(entry, now)

    def _send(self, command: Command, body: protocol.Body, sequence: int = 0) -> bool:
        """Hand a message to ZeroMQ; False when it would have to queue for an absent or a slow worker."""
        try:
            self._socket.send_multipart(protocol.encode(command, body, sequence), zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            if not self._reading:
                self._reading = True
                self._loop.call_soon(self._read)
        return True

    def _look_at_handshakes(self, now: float) -> None:
        """Tell an operator, once, that the worker and this daemon do not know each other's keys; and try again, since
        keys come: ZeroMQ itself takes a refusal for final."""
        try:
            while self._handshakes is not None:
                event = int.from_bytes(self._handshakes.recv_multipart(zmq.NOBLOCK)[0][:2], sys.byteorder)
                if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                    # One that cannot read our greeting hangs up; so does one that dies, but not over and over.
                    self._hung_up += 1
                    if self._hung_up == HANG_UPS_MAX:
                        self._complain("hangs up on us: it is not the one whose key is in worker.public")
                else:
                    self._complain("does not accept our key")
                    self._turned_away_at = now
        except zmq.Again:
            pass
        if self._turned_away_at and now - self._turned_away_at >= KNOCK_SECONDS:
            self._turned_away_at = 0.0
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(self._address)
            self._socket.connect(self._address)

    def _complain(self, trouble: str) -> None:
        if self.trouble != trouble:
            self.trouble = trouble
            self._log.error("the worker at %s %s; requests go on without it", self._address, trouble)

    # -- hearing ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        if self._socket.closed:
            return  # Asked for by our last send, the goodbye.
        self._reading = True
        try:
            while True:
                self._hear(self._socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            pass  # Everything there was is read: the descriptor fires again for what comes next.
        finally:
            self._reading = False
        # Acknowledgements make room in the window; and this send's own read comes with it.
        if self._outbox.next_due(time.monotonic()) is not None:
            self._flush()

    def _hear(self, frames: list[bytes]) -> None:
        try:
            message = protocol.decode(frames, protocol.FROM_WORKER)
        except ProtocolError as error:
            self._refuse(error)
            return
        self._last_heard = time.monotonic()
        self.trouble = ""
        self._hung_up = 0
        if self.state is LinkState.SILENT and self._welcome is not None:
            self._become(LinkState.READY)
        match message.body:
            case protocol.Welcome() as welcome:
                self._welcomed(welcome)
            case protocol.WhoAreYou():
                self._welcome_again()
            case protocol.Pong(committing=committing, changes=changes, warming=warming):
                self._committing = committing
                self._warming = warming
                self._changed(changes)
            case protocol.Acks(replies=replies):
                for reply in replies:
                    self._acked(reply)
            case protocol.Refusal(reason=reason):
                self._refused(message.sequence, reason)
            case protocol.Lost() as lost:
                self._listener.lost(lost)
            case protocol.IndexPage() as page:
                self._indexed(page)
            case protocol.Answer() as answer:
                waiting = self._queries.get(message.sequence)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)

    def _refuse(self, error: ProtocolError) -> None:
        """Said once per worker: one of another version says it with every frame.  /readyz tells it as long as nothing
        else is heard."""
        self._count_refused()
        self.trouble = f"does not speak our protocol ({error})"
        if not self._has_refused:
            self._has_refused = True
            self._log.error("the worker at %s %s; further such frames are only counted", self._address, self.trouble)

    def _welcomed(self, welcome: protocol.Welcome) -> None:
        former, self._former, self._welcome = self._former, welcome, welcome
        if former is None or former.boot != welcome.boot:
            self._outbox.resend_all()
            self._has_refused = False
            self._log.info("worker %s (boot %s) is there", welcome.version, welcome.boot)
        self._warming = welcome.warming
        new_store = former is not None and former.incarnation != welcome.incarnation
        self._committing = True
        if self.state is not LinkState.READY:
            self._become(LinkState.READY)
        self._listener.welcomed(welcome, new_store=new_store)
        self._changed(welcome.changes)
        if new_store:
            self.preloaded.clear()
        if not self.preloaded.is_set():
            self._indexed_keys = 0
            self._send(Command.INDEX, protocol.IndexRequest())
        self._flush()

    def _welcome_again(self) -> None:
        """The worker does not know us: it is a new one, or has forgotten us."""
        if self._welcome is not None:
            self._welcome = None
            self._send(Command.HELLO, self._hello)

    def _acked(self, reply: protocol.Reply) -> None:
        entry = self._outbox.acked(reply.sequence)
        if entry is not None:
            self._listener.acknowledged(entry, reply)
        self._release(reply.sequence, committed=True)

    def _refused(self, sequence: int, reason: str) -> None:
        entry = self._outbox.acked(sequence)
        self._log.error("the worker refused %s: %s", entry.command.name if entry else "a frame", reason)
        if entry is not None:
            self._listener.refused(entry, reason)
        self._release(sequence, committed=False)

    def _release(self, sequence: int, *, committed: bool) -> None:
        if not len(self._outbox):
            self._emptied.set()
        waiter = self._waiters.pop(sequence, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(committed)

    def _indexed(self, page: protocol.IndexPage) -> None:
        self._listener.indexed(page.entries)
        self._indexed_keys += len(page.entries)
        if page.before >= 0 and self._indexed_keys < INDEX_KEYS_MAX:
            self._send(Command.INDEX, protocol.IndexRequest(before=page.before))
        else:
            self.preloaded.set()

    def _changed(self, changes: int) -> None:
        """An operator moved keys between sessions: what is remembered of them is forgotten, and asked for again."""
        former, self._changes = self._changes, changes
        if former is not None and former != changes:
            self._listener.amended()
            if self.preloaded.is_set():
                self._indexed_keys = 0
                self._send(Command.INDEX, protocol.IndexRequest())

    def _become(self, state: LinkState) -> None:
        assert state in _MOVES[self.state], (self.state, state)
        if state is LinkState.SILENT:
            self._log.warning("the worker is not heard; requests go on, %d writes wait", len(self._outbox))
        elif self.state is LinkState.SILENT:
            self._log.info("the worker is heard again, %d writes wait", len(self._outbox))
        self.state = state


def _handshakes(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """Where ZeroMQ tells of peers that refused our key, or that we refused."""
    return socket.get_monitor_socket(_FAILED_HANDSHAKES)


def _dealer(context: zmq.Context[zmq.Socket[bytes]], boot: str, keys: DaemonKeys | None) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.worker)
        over_tcp(socket)
    socket.setsockopt(zmq.ROUTING_ID, boot.encode())
    # EAGAIN instead of a silent queue to an absent worker: what is unsent belongs in the outbox.
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, protocol.MESSAGE_BYTES_MAX)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MILLISECONDS[0])
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MILLISECONDS[1])
    return socket


INDEX_KEYS_MAX: Final = 100_000
"""Newest identity keys loaded before the first request is identified, about 30 MB."""
_FAILED_HANDSHAKES: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_QUERIES_FROM: Final = 2**62
"""Queries are numbered apart from writes, so that a refusal always says what it refuses."""
_BYE_MILLISECONDS: Final = 100
