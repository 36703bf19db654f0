"""The way of one request, top to bottom.

One rule: bytes are the client's.  What is learned is learned from copies, and nothing that goes wrong on the side of
learning changes what the client and the provider say to each other.

    bytes → limits → parse → who speaks → hold the session → begin → provider → begin acknowledged → first byte out
          → stream while a reader looks on → end → end acknowledged → last byte out

Both acknowledgements are waited for while the provider works or has just finished, at most 250 ms and only while the
worker is heard; so the client's first byte proves its session's identity, and its last byte its usage.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, ParamSpec, TypeVar

from msgspec.structs import replace

from daemon import providers
from daemon.admission import Admission, without_token
from daemon.booking import Booking, open_row
from daemon.cost import Prices, asks_for_longer_window
from daemon.http_server import BodyBroken, BodyTooLarge, ClientGone, Incoming
from daemon.identity import Headers, Known, Rules, as_child, known_from, naming_of
from daemon.metrics import Metrics
from daemon.outbox import OutboxFull
from daemon.own import OwnPaths
from daemon.providers import Answer, Turn, error_body
from daemon.providers.decoding import plain_body
from daemon.routing import Route, is_own, route_of
from daemon.sessions import Place, Sessions
from daemon.trace import trace_id_of
from daemon.upstream import Reply, Upstream, UpstreamCut, UpstreamError, UpstreamTimeout
from daemon.warmer import Sent, Warmer
from daemon.worker_client import WorkerClient
from worker.logs import fields
from worker.protocol import Status

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
SESSION_HEADER: Final = "x-perdure-session"
INLINE_BYTES_MAX: Final = 512 * 1024
"""Bodies up to this size are read in the loop, in a few milliseconds: nearly all there are."""
INLINE_VALUES_MAX: Final = 20_000
"""Of as many values at most, told by the commas: a small body may hold very many."""
FULL_RETRY_SECONDS: Final = 10
"""`retry-after` of a 503: a worker that is back empties a full outbox in about that time."""

P = ParamSpec("P")
T = TypeVar("T")


class Gateway:
    """Handles every request of one daemon."""

    def __init__(
        self,
        *,
        boot: str,
        urls: Mapping[str, str],
        admission: Admission,
        body_bytes_max: int,
        own: OwnPaths,
        sessions: Sessions,
        link: WorkerClient,
        upstream: Upstream,
        warmer: Warmer,
        prices: Prices,
        metrics: Metrics,
        rules: Rules,
        now: Callable[[], int],
        draw_id: Callable[[], str],
        log: logging.Logger,
    ) -> None:
        self.rules = rules
        self.urls = urls
        self.admission = admission
        self.body_bytes_max = body_bytes_max
        self.prices = prices
        """These may be replaced at any time: a request meets those that are in force when it comes."""
        self._boot = boot
        self._own = own
        self._sessions = sessions
        self._link = link
        self._upstream = upstream
        self._warmer = warmer
        self._metrics = metrics
        self._now = now
        self._draw_id = draw_id
        self._log = log

    async def handle(self, incoming: Incoming) -> None:
        """Answer one request."""
        route = route_of(incoming.method, incoming.target, incoming.headers, self.urls)
        try:
            if refusal := self.admission.refusal(incoming.path, incoming.headers):
                await _refuse(incoming, route, refusal.status, refusal.message)
            elif incoming.method == "HEAD" and incoming.path == "/":
                incoming.kind = "own"
                await incoming.respond(200, b"", JSON)
            elif is_own(incoming.path):
                incoming.kind = "own"
                await self._own.handle(incoming)
            elif _is_websocket(incoming, route):
                # Codex asks for a WebSocket first; this status makes it use HTTP at once, any other after seconds.
                await _refuse(incoming, route, 426, "no WebSocket here; use HTTP", (("Upgrade", "HTTP/1.1"),))
            elif route.is_turn:
                await self._turn(incoming, route)
            else:
                await self._pass(incoming, route, incoming.chunks() if incoming.has_body else None)
        except BodyTooLarge as error:
            incoming.kind = "refused"
            await _refuse(incoming, route, 413, f"{error}; raise PERDURE_BODY_BYTES if it is meant")
        except BodyBroken as error:
            incoming.kind = "refused"
            await _refuse(incoming, route, 400, str(error))
        except ClientGone:
            return  # Nobody is there to be told, and what was to be booked is booked.

    # -- a turn ------------------------------------------------------------------------------------------------------

    async def _turn(self, incoming: Incoming, route: Route) -> None:
        incoming.kind = "turn"
        arrived = time.monotonic()
        started_at = self._now()
        body = await incoming.read(self.body_bytes_max)
        plain = await _plain(incoming.headers, body, self.body_bytes_max)
        turn = await _aside(plain, providers.parse_turn, route.speaks, plain, self.rules.fields) if plain else None
        if plain is None or turn is None or not turn.is_answerable:
            # Not JSON, not an object, or nothing to answer in it: no turn of any conversation.  The provider says so in
            # its own words, and no session is opened for it.
            await self._pass(incoming, route, body)
            return
        await self._own.identifiable()
        try:
            booking = await self._begin(incoming.headers, route, turn, plain, started_at)
        except OutboxFull:
            incoming.kind = "refused"
            retry = (("retry-after", str(FULL_RETRY_SECONDS)),)
            await _refuse(incoming, route, 503, "perdure's store has been away for too long; try again soon", retry)
            return
        course = _Course(arrived)
        try:
            await self._exchange(incoming, route, body, booking, course)
        finally:
            # The client left, or the drain's limit came: what was seen of the answer is what is booked.
            if not booking.is_settled:
                booking.settle(Answer(), "interrupted", 0)
            seconds = time.monotonic() - arrived
            self._metrics.request_seconds.observe(seconds)
            sent = Sent(turn, incoming.headers, route.url, plain, booking.is_child, arrived)
            self._warmer.touched(booking.row, booking.session_id, sent)
            if self._log.isEnabledFor(logging.INFO):
                said = _said_of(booking, course, seconds, trace_id_of(incoming.headers))
                self._log.info("turn settled", extra=said)

    async def _begin(self, headers: Headers, route: Route, turn: Turn, body: bytes, started_at: int) -> Booking:
        """Find the session and write the begin: it travels to the worker while the provider works."""
        keys = self._sessions.hash_keys
        known = await _aside(body, known_from, headers, turn, body, keys, self.rules)
        known, place = await recognised(self._sessions, known, body, self._draw_id)
        row = open_row(
            event_id=self._draw_id(),
            place=place,
            turn=turn,
            known=known,
            provider=route.provider,
            boot=self._boot,
            started_at=started_at,
            prices=self.prices,
            is_longer_asked=asks_for_longer_window(headers),
        )
        booking = Booking(
            held=place.held,
            naming=place.naming,
            known=known,
            row=row,
            sessions=self._sessions,
            link=self._link,
            prices=self.prices,
            metrics=self._metrics,
            now=self._now,
        )
        booking.begin()
        return booking

    async def _exchange(self, incoming: Incoming, route: Route, body: bytes, booking: Booking, course: _Course) -> None:
        """Send the request and bring the answer back, or say in the provider's shape why there is none."""
        try:
            async with self._upstream.send(incoming.method, route.url, without_token(incoming.headers), body) as reply:
                await self._acknowledge(booking.is_begun())
                course.first_byte_seconds = time.monotonic() - course.arrived
                self._metrics.first_byte_seconds.observe(course.first_byte_seconds)
                mark = (SESSION_HEADER, booking.session_id)
                # A provider that is a perdure itself has marked it too: the nearest one's word counts.
                others = [header for header in reply.headers if header[0].lower() != SESSION_HEADER]
                await incoming.start(reply.status, reply.reason, [*others, mark])
                await self._stream(incoming, route, reply, booking)
        except UpstreamCut as error:
            self._warn_of(error, route, incoming, booking)
            incoming.cut()
        except UpstreamError as error:
            if incoming.started:
                raise
            await self._unanswered(incoming, route, booking, error)

    async def _stream(self, incoming: Incoming, route: Route, reply: Reply, booking: Booking) -> None:
        """Pass the answer on as it arrives; hold back what would complete it until its end is committed.

        An event stream is complete for its reader with its last event, any other body with its last byte.
        """
        is_event_stream = _header(reply.headers, "content-type").startswith(EVENT_STREAM)
        encoding = _header(reply.headers, "content-encoding")
        reader = providers.reader(route.speaks, event_stream=is_event_stream, encoding=encoding)
        held_back = b""
        is_whole = False
        try:
            async for chunk in reply.chunks():
                reader.feed(chunk)
                if not is_event_stream:
                    held_back, chunk = chunk, held_back
                elif reader.terminal and not booking.is_settled:
                    await self._settle(booking, reader.close(whole=False), reply)
                await incoming.write(chunk)
            is_whole = True
        except UpstreamCut:
            await incoming.write(held_back)  # There is no end to hold it back for.
            raise
        finally:
            # Cut, cancelled, or the client is gone: settle with what was seen, and wait for nobody.
            if not is_whole and not booking.is_settled:
                _book(booking, reader.close(whole=False), reply)
        if not booking.is_settled:
            answer = reader.close(whole=True)
            # A whole document that can not be read is a complete answer of unknown usage all the same.
            await self._settle(booking, answer if is_event_stream else replace(answer, finished=True), reply)
        await incoming.write(held_back)
        await incoming.end()

    async def _settle(self, booking: Booking, answer: Answer, reply: Reply) -> None:
        sequence = _book(booking, answer, reply)
        await self._acknowledge(self._link.acknowledged(sequence))

    async def _acknowledge(self, waiting: Awaitable[bool]) -> None:
        asked = time.monotonic()
        if await waiting:
            self._metrics.ack_seconds.observe(time.monotonic() - asked)
        else:
            self._metrics.unacknowledged.inc()

    async def _unanswered(self, incoming: Incoming, route: Route, booking: Booking, error: UpstreamError) -> None:
        """The provider gave no answer: say so in its own shape, and book the turn as an error."""
        status = 504 if isinstance(error, UpstreamTimeout) else 502
        self._warn_of(error, route, incoming, booking)
        sequence = booking.settle(Answer(), "error", status)
        await self._acknowledge(self._link.acknowledged(sequence))
        await _refuse(incoming, route, status, str(error), ((SESSION_HEADER, booking.session_id),))

    # -- everything else ---------------------------------------------------------------------------------------------

    async def _pass(self, incoming: Incoming, route: Route, body: bytes | AsyncIterator[bytes] | None) -> None:
        """A request that is no turn: there and back, nothing learned."""
        incoming.kind = "passed"
        try:
            async with self._upstream.send(incoming.method, route.url, without_token(incoming.headers), body) as reply:
                await incoming.start(reply.status, reply.reason, reply.headers)
                async for chunk in reply.chunks():
                    await incoming.write(chunk)
                await incoming.end()
        except UpstreamCut as error:
            self._warn_of(error, route, incoming)
            incoming.cut()
        except UpstreamError as error:
            if incoming.started:
                raise
            self._warn_of(error, route, incoming)
            await _refuse(incoming, route, 504 if isinstance(error, UpstreamTimeout) else 502, str(error))

    def _warn_of(self, error: UpstreamError, route: Route, incoming: Incoming, booking: Booking | None = None) -> None:
        """A provider that gave no answer, or not all of it: why, and to whom.  A request that is no turn has no id."""
        said = fields(
            request=booking.row.event_id if booking else None,
            session=booking.session_id if booking else None,
            provider=route.provider,
            trace=trace_id_of(incoming.headers),
        )
        self._log.warning("provider failed: %s", error, extra=said)


class _Course:
    """When things happened to a turn, in monotonic seconds."""

    def __init__(self, arrived: float) -> None:
        self.arrived = arrived
        self.first_byte_seconds: float | None = None
        """From the arrival; None while no answer has begun."""


def _said_of(booking: Booking, course: _Course, seconds: float, trace_id: str | None) -> dict[str, dict[str, object]]:
    """What is logged of a turn; never what was said in it."""
    row, usage = booking.row, booking.row.usage
    return fields(
        request=row.event_id,
        session=booking.session_id,
        kind=row.kind,
        status=row.status,
        http_status=row.http_status or None,
        provider=row.provider,
        model=row.model or None,
        seconds=seconds,
        first_byte_seconds=course.first_byte_seconds,
        input_tokens=usage.input_tokens if usage else None,
        cache_read_tokens=usage.cache_read_tokens if usage else None,
        cache_write_tokens=usage.cache_write_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        cost_nanousd=row.cost_nanousd,
        trace=trace_id,
    )


async def recognised(sessions: Sessions, known: Known, body: bytes, draw_id: Callable[[], str]) -> tuple[Known, Place]:
    """Where a request belongs, and what is known of it then: an unnamed sub-agent shows itself only beside the session
    whose id it shares.  Raises OutboxFull."""
    place = await sessions.hold(naming_of(known, draw_id()), known.aside)
    if place.role == "child":
        known = await _aside(body, as_child, known, place.held.session_id, body, sessions.hash_keys)
        place = await sessions.hold(naming_of(known, draw_id()))
    # The conversation itself is of no more use, and may be long.
    return replace(known, units=()), place


async def _aside(body: bytes, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do what takes longer the larger the body, beside the loop where that is long."""
    if len(body) <= INLINE_BYTES_MAX and body.count(b",") <= INLINE_VALUES_MAX:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


async def _plain(headers: Headers, body: bytes, limit_bytes: int) -> bytes | None:
    """What a client's compressed body says; None where that can not be told.  Always beside the loop: a small body
    may unfold to the largest."""
    encoding = ", ".join(value for name, value in headers if name.lower() == "content-encoding")
    return await asyncio.to_thread(plain_body, body, encoding, limit_bytes) if encoding else body


def _book(booking: Booking, answer: Answer, reply: Reply) -> int:
    return booking.settle(answer, _status(answer, reply.status), reply.status)


def _status(answer: Answer, http_status: int) -> Status:
    """What became of a turn whose answer was seen as far as it came."""
    if http_status >= 400 or answer.failed:
        return "error"
    return "complete" if answer.finished else "interrupted"


def _is_websocket(incoming: Incoming, route: Route) -> bool:
    return route.path == "/v1/responses" and incoming.header("upgrade").lower() == "websocket"


def _header(headers: Headers, name: str) -> str:
    return next((value for key, value in headers if key.lower() == name), "").lower()


async def _refuse(incoming: Incoming, route: Route, status: int, message: str, headers: Headers = ()) -> None:
    """An error of our own, in the shape of the provider the client thinks it speaks to."""
    if not incoming.started:
        await incoming.respond(status, error_body(route.speaks, status, message), JSON, headers)
