"""The program without its sockets: N real gateways and a real store, in one process and one thread.

One rule: whatever decides is the program's own.  Only what carries bytes is pretended: the client's connection, the
provider's, the link to the worker, and the clock.

Theory of operation.  A request is a handler of `Gateway`, driven by hand: it runs until it waits for the provider, and
goes on when its exchange is told what the provider said.  So several are in flight at once, on several daemons, in one
order that the caller decides.  The link hands writes to `Store.commit` and acknowledgements back whenever a handler
waits for one, and otherwise when the caller says so; while the worker is away they stay in the outboxes.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

from daemon.admission import Admission
from daemon.app import rules_of
from daemon.gateway import Gateway
from daemon.http_server import ClientGone
from daemon.index import KeyIndex
from daemon.outbox import Body, Outbox
from daemon.sessions import Sessions
from daemon.upstream import UpstreamCut
from tests.oracle.truth import Booked, Headers, Origin, Request, Sent
from tests.simulation.keys import KeyFile
from worker import protocol
from worker.batch import Write
from worker.protocol import Command, Usage
from worker.settings import Settings
from worker.store import Store

OUTBOX_WRITES_MAX: Final = 100_000
INDEX_PAGE_KEYS: Final = 5_000
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
START_MILLISECONDS: Final = 1_750_000_000_000
"""Some morning."""
URLS: Final = {"anthropic": "https://api.anthropic.com", "openai": "https://api.openai.com"}


class Desk:
    """One gateway of several daemons with its worker."""

    def __init__(self, rng: random.Random, daemons: int = 2, *, has_key_file: bool = True) -> None:
        self.rng = rng
        self.key_file = KeyFile() if has_key_file else None
        self.now = START_MILLISECONDS
        self.is_worker_away = False
        self.away_until = 0
        """When the worker was last away."""
        self._store = Store(Path(":memory:"))
        self._boots = 0
        self.daemons = [self._new_daemon(place) for place in range(daemons)]

    def send(self, request: Request, daemon: Daemon | None = None) -> Exchange:
        """A request, on its way as far as the provider."""
        self.now += self.rng.randrange(1, 2_000)
        return Exchange(self, daemon or self.rng.choice(self.daemons), request)

    def pump(self) -> None:
        """Everything that daemons and worker have to say to each other, in any order."""
        while not self.is_worker_away and any(daemon.link.deliver_one() for daemon in self.daemons):
            self.rng.shuffle(self.daemons)

    # -- trouble -----------------------------------------------------------------------------------------------------

    def lose_worker(self) -> None:
        self.is_worker_away = True
        for daemon in self.daemons:
            daemon.link.is_heard = False

    def restore_worker(self) -> None:
        self.is_worker_away = False
        self.away_until = self.now
        for daemon in self.daemons:
            daemon.link.greet(self._store)
        self.pump()

    def kill(self, daemon: Daemon) -> None:
        """SIGKILL, and a new boot in its place: what was not acknowledged is gone."""
        daemon.link.is_dead = True
        self.daemons[self.daemons.index(daemon)] = self._new_daemon(daemon.place)

    def sleep(self, milliseconds: int) -> None:
        self.now += milliseconds

    # -- what the store knows ----------------------------------------------------------------------------------------

    def booked(self, event_id: str) -> Booked | None:
        row = self._store._tables.row(event_id)
        return Booked(row.session_id, row.kind, row.why.reason) if row is not None else None

    def canonical(self, session_id: str) -> str:
        return self._store._tables.alias(session_id) or session_id

    def origin(self, session_id: str) -> Origin:
        session = self.session(session_id)
        return Origin(session.parent_session_id, session.forked_from)

    def session(self, session_id: str) -> Any:
        session = self._store._tables.session(self.canonical(session_id))
        assert session is not None, session_id
        return session

    # -- for links ---------------------------------------------------------------------------------------------------

    def commit(self, boot: str, sequence: int, body: Body) -> protocol.Reply:
        """One write of one daemon; whoever lost a session by it is told."""
        live = frozenset(daemon.boot for daemon in self.daemons)
        outcome = self._store.commit([Write(boot, sequence, body)], live=live, now=self.now)
        for loser, lost in outcome.lost:
            for daemon in self.daemons:
                if daemon.boot == loser:
                    daemon.sessions.lost(lost)
        return outcome.replies[0][1]

    def _new_daemon(self, place: int) -> Daemon:
        self._boots += 1
        daemon = Daemon(self, place, f"boot-{self._boots}")
        if not self.is_worker_away:
            daemon.link.greet(self._store)
        return daemon


class Daemon:
    """One boot of one daemon."""

    def __init__(self, desk: Desk, place: int, boot: str) -> None:
        self.place = place
        self.boot = boot
        self.link = Link(desk, boot)
        early_key = desk.rng.randbytes(32)
        key_file = cast(Any, desk.key_file)
        self.sessions = Sessions(index=KeyIndex(), early_key=early_key, log=_quiet(), key_file=key_file)
        self.sessions.start(self.link)
        self.link.sessions = self.sessions
        self.gateway = Gateway(
            boot=boot,
            urls=URLS,
            admission=Admission(token="", hosts=()),
            body_bytes_max=BODY_BYTES_MAX,
            own=cast(Any, _Own()),
            sessions=self.sessions,
            link=cast(Any, self.link),
            upstream=cast(Any, _Upstream()),
            warmer=cast(Any, _NoWarmer()),
            prices=cast(Any, _FlatPrices()),
            metrics=cast(Any, _NoMetrics()),
            rules=rules_of(Settings()),
            now=lambda: desk.now,
            draw_id=lambda: f"{desk.rng.getrandbits(128):032x}",
            log=_quiet(),
        )


class Link:
    """What `WorkerClient` is to the gateway: every body takes the way over the wire's encoding."""

    def __init__(self, desk: Desk, boot: str) -> None:
        self.sessions: Sessions
        self.is_heard = False
        self.is_dead = False
        self.begun: list[str] = []
        """Event ids of the turns that were booked, in order."""
        self._desk = desk
        self._boot = boot
        self._outbox = Outbox(OUTBOX_WRITES_MAX)
        self._is_preloaded = False

    def greet(self, store: Store) -> None:
        """The worker is heard: what it did not acknowledge is sent again."""
        welcome = protocol.Welcome(
            boot="worker", incarnation=store.incarnation, hash_key=store.hash_key, version="0", schema=store.schema
        )
        self.is_heard = True
        self._outbox.resend_all()
        self.sessions.welcomed(welcome, new_store=False)
        before = 2**62
        while not self._is_preloaded:
            page = store.keys_before(before, INDEX_PAGE_KEYS)
            self.sessions.indexed(page.entries)
            before, self._is_preloaded = page.before, page.before < 0

    def put(self, command: Command, body: Body) -> int:
        if command is Command.BEGIN:
            assert isinstance(body, protocol.Booking)
            self.begun.append(body.row.event_id)
        return self._outbox.put(command, body, 0)

    async def acknowledged(self, sequence: int) -> bool:
        while sequence in self._outbox:
            if not self.is_heard or not self.deliver_one():
                return False
        return True

    def deliver_one(self) -> bool:
        """Send the oldest write, hear its acknowledgement.  False: there is none."""
        entry = self._outbox.next_due(0) if self.is_heard and not self.is_dead else None
        if entry is None:
            return False
        self._outbox.sent(entry, 0)
        frames = protocol.encode(entry.command, entry.body, entry.sequence)
        written = cast(Body, protocol.decode(frames, protocol.FROM_DAEMON).body)
        reply = self._desk.commit(self._boot, entry.sequence, written)
        acked = self._outbox.acked(entry.sequence)
        assert acked is entry
        self.sessions.acknowledged(entry, reply)
        return True


class Exchange:
    """One request and its answer."""

    def __init__(self, desk: Desk, daemon: Daemon, request: Request) -> None:
        conversation = request.conversation
        before = conversation.sent[-1].at if conversation.sent else desk.now
        self.sent = Sent(request, daemon.boot, desk.now, was_calm=not desk.is_worker_away and before >= desk.away_until)
        self._daemon = daemon
        self._incoming = _Incoming(request)
        self._handler: Coroutine[Any, Any, None] = daemon.gateway.handle(cast(Any, self._incoming))
        begun = len(daemon.link.begun)
        self._handler.send(None)
        assert len(daemon.link.begun) == begun + 1, "the request was not booked as a turn"
        self.sent.event_id = daemon.link.begun[begun]

    @property
    def is_dead(self) -> bool:
        return self._daemon.link.is_dead

    def answer(self, status: int, headers: Headers, chunks: Iterable[bytes], *, is_cut: bool = False) -> None:
        """The provider answers, and the client reads all of it."""
        self._finish(_Reply(status, headers, chunks, is_cut=is_cut))

    def answer_unread(self, headers: Headers, chunks: Iterable[bytes]) -> None:
        """The provider answers, but the client is gone before the last of it."""
        self._incoming.is_gone = True
        self._finish(_Reply(200, headers, chunks))

    def abandon(self) -> None:
        """Its daemon was killed: nothing of it runs any more."""
        assert self.is_dead
        self._handler.close()

    def _finish(self, reply: _Reply) -> None:
        try:
            self._handler.send(reply)
        except StopIteration:
            self.sent.session_id = self._incoming.session_id
            self.sent.is_answered = reply.is_whole
            return
        raise AssertionError("the handler waits for something else")


# -- what carries bytes ----------------------------------------------------------------------------------------------


class _Incoming:
    """`http_server.Incoming` without a socket."""

    def __init__(self, request: Request) -> None:
        self.method = "POST"
        self.target = request.target
        self.path = request.target.partition("?")[0]
        self.headers = request.headers
        self.has_body = True
        self.started = False
        self.is_gone = False
        self.session_id = ""
        self._body = request.body

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    async def read(self, _limit_bytes: int) -> bytes:
        return self._body

    async def start(self, _status: int, _reason: str, headers: Headers) -> None:
        self.started = True
        self.session_id = dict(headers).get("x-perdure-session", "")

    async def write(self, _data: bytes) -> None:
        pass

    async def end(self) -> None:
        if self.is_gone:
            raise ClientGone

    def cut(self) -> None:
        pass

    async def respond(self, status: int, *_rest: object) -> None:
        raise AssertionError(f"the gateway refused a request: {status}")


class _Reply:
    """`upstream.Reply` from memory."""

    reason = "OK"

    def __init__(self, status: int, headers: Headers, chunks: Iterable[bytes], *, is_cut: bool = False) -> None:
        self.status = status
        self.headers = headers
        self._chunks = deque(chunks)
        self.is_whole = status == 200 and not is_cut
        self._is_cut = is_cut

    async def chunks(self) -> AsyncIterator[bytes]:
        while self._chunks:
            yield self._chunks.popleft()
        if self._is_cut:
            raise UpstreamCut("the provider broke off its answer")


class _Upstream:
    @asynccontextmanager
    async def send(self, *_request: object) -> AsyncIterator[_Reply]:
        yield await _Provider()


class _Provider:
    """Waits, without a loop, until the exchange is told what the provider says."""

    def __await__(self) -> Generator[None, _Reply, _Reply]:
        return (yield)


class _Own:
    async def identifiable(self) -> None:
        pass


class _FlatPrices:
    def price_nanousd(self, _provider: str, _model: str, usage: Usage, _at_ms: int) -> int | None:
        return usage.prompt_tokens + usage.output_tokens

    def price_version(self, _provider: str, _model: str) -> str:
        return "flat"

    def known_name(self, _provider: str, model: str) -> str:
        return model

    def cap_ceiling(self, _provider: str, _model: str, **_known: object) -> int:
        return 266_666


class _NoWarmer:
    """Keeps no cache warm."""

    def touched(self, _row: protocol.Row, _session_id: str, _sent: object) -> None:
        pass


class _NoMetrics:
    """Counts nothing."""

    def __getattr__(self, _name: str) -> _NoMetrics:
        return self

    def observe(self, _seconds: float) -> None:
        pass

    def inc(self) -> None:
        pass

    def settled(self, _row: protocol.Row, _known_name: str) -> None:
        pass


def _quiet() -> logging.Logger:
    log = logging.Logger("oracle")
    log.addHandler(logging.NullHandler())
    return log
