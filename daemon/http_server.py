"""HTTP in: accepts connections, reads requests, writes answers, drains; knows nothing of what they are about.

One rule: an answer's bytes are the handler's.  Nothing is added to the head that is not needed to frame it on this
connection, and an answer that is not complete never looks complete.

Theory of operation.  aiohttp parses requests and runs one task per connection, which answers its requests in turn; the
handler gets an `Incoming` and writes its answer through it.  A client that leaves cancels the handler.  The answer's
head is serialised here and handed to aiohttp's writer as plain bytes, so that header case, order and duplicates
survive; how the body ends is decided once, in `Incoming.start`: by the length the handler gave, by chunks, or, for
HTTP/1.0, by closing the connection.  An answer that was started and not ended is cut: the connection is closed without
the final chunk or the missing bytes, and with a reset where only the close itself would tell.

What is no request is refused here: whatever leaves open where it ends, or is larger than anything that is read.  A
client that is refused may still be sending, so the refusal is followed by an end of our side only; the connection is
closed when the client has read it, or after a while.

Shutdown is `HttpServer.drain`: give notice, for those who choose where new connections go; stop accepting, with every
connection that was made before in our hands; let idle connections live for a moment, since a request may be on its way
on them, and answer with `Connection: close`; let active ones finish; cut what is left at the limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Final, cast

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from daemon.metrics import Kind, Outcome
from daemon.upstream import Headers, UploadError, end_to_end

REQUEST_LINE_BYTES_MAX: Final = 64 * 1024
HEADER_BYTES_MAX: Final = 64 * 1024
"""One header, name and value.  Clients put whole contexts into headers (beta flags, baggage, cookies)."""
HEADERS_MAX: Final = 1_024
HEAD_BYTES_MAX: Final = 1024 * 1024
"""Request line and headers together.  Real clients send a few KB, odd ones a hundred; without this limit one could
send as many of the largest headers as their number allows."""
READ_BUFFER_BYTES: Final = 256 * 1024
"""Reading from the client pauses when twice that much of a body waits for its handler; prompts are 3 to 800 KB."""
WRITE_BUFFER_BYTES: Final = 64 * 1024
"""A transport with more than that unsent makes `write` wait; aiohttp looks every 64 KiB.  The two together are what
a slow client costs in memory, beside the kernel's share."""
IDLE_LIMIT_SECONDS: Final = 3_600.0
"""An unused connection is closed after that.  Longer than any client's own limit, so that never both close at once."""
SILENCE_LIMIT_SECONDS: Final = 600.0
"""Nothing read of a body that is not complete.  As long as clients wait for an answer; whoever still writes is no
longer silent, however slow."""
UNREAD_BODY_LIMIT_SECONDS: Final = 10.0
"""After an answer that came before the body was read, how long its rest is read and thrown away.  Closing at once
would reset the connection, and the client might lose the answer."""
CUT_LIMIT_SECONDS: Final = 2.0
"""How long handlers that were cut may take to clean up."""
BACKLOG_CONNECTIONS: Final = 1_024
TURNS_TO_OPEN: Final = 3
"""Of the loop, from a connection's accept to its `connection_made`: two in asyncio, one in uvloop, and one to spare."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
BODILESS_STATUSES: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

JSON: Final = "application/json"
INVALID: Final = "invalid_request_error"

_log = logging.getLogger(__name__)

Handler = Callable[["Incoming"], Awaitable[None]]


class CannotListen(Exception):
    """The address can not be listened on."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        # asyncio puts the address into the text once more; a name that is not found has a number of its own.
        number = None if isinstance(error, socket.gaierror) else error.errno
        reason = os.strerror(number) if number else error.strerror or error
        super().__init__(
            f"cannot listen on {host}:{port}: {reason}; "
            "stop the program that holds the address or set PERDURE_LISTEN to another one"
        )
        self.host = host
        self.port = port


class BodyTooLarge(Exception):
    """The request's body is larger than its reader allows."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body is larger than {limit_bytes} bytes")


class BodyBroken(UploadError):
    """The request's body is not framed as HTTP says."""

    def __init__(self, what: str = "the body of the request is not valid HTTP") -> None:
        super().__init__(what)


class BodyMissing(BodyBroken):
    """The client stopped in the middle of the body, and stays."""

    def __init__(self) -> None:
        super().__init__(f"nothing came of the rest of the body for {SILENCE_LIMIT_SECONDS:.0f} seconds")


class HeadTooLarge(HttpProcessingError):
    """More headers than are read of any request."""


class ClientGone(ConnectionError):
    """The client closed the connection; nobody reads the answer."""


class Stage(Enum):
    """Where an answer stands."""

    UNANSWERED = auto()
    STARTED = auto()
    """The head is out: the status can no longer be changed."""
    ENDED = auto()
    CUT = auto()
    """Will never be complete: nothing is written any more, and the connection breaks when the handler returns."""


class Framing(Enum):
    """How the end of an answer's body is told."""

    NONE = auto()
    """There is no body: HEAD, 204, 304."""
    LENGTH = auto()
    CHUNKS = auto()
    CLOSE = auto()
    """HTTP/1.0 without a length: the body ends where the connection does."""


class Incoming:
    """One request and its answer."""

    def __init__(self, request: web.BaseRequest, server: HttpServer) -> None:
        is_http_1_1 = request.version >= HttpVersion11
        self.method: str = request.method
        self.target: str = _origin_form(request.raw_path)
        self.path: str = self.target.partition("?")[0]
        self.headers: Headers = [(_text(name), _text(value)) for name, value in request.raw_headers]
        self.has_body: bool = request.body_exists
        self.stage = Stage.UNANSWERED
        self.status = 0
        """Of the answer, once it is started."""
        self.kind: Kind = "refused"
        """What the handler takes it for, for whoever counts."""
        self._request = request
        self._writer = request.writer
        self._server = server
        self._framing = Framing.NONE
        self._missing_bytes = 0
        self.is_body_broken = False
        """Where the next request would begin can not be known."""
        self.is_kept_alive = request.keep_alive
        self.is_held_back = self.has_body and is_http_1_1 and self.header("expect").lower() == "100-continue"
        """The client waits to be told that it may send the body."""
        self._is_http_1_1 = is_http_1_1

    @property
    def started(self) -> bool:
        """The client may have seen something of an answer."""
        return self.stage is not Stage.UNANSWERED

    @property
    def ends_by_close(self) -> bool:
        """Closing the connection now would make the answer complete."""
        return self._framing is Framing.CLOSE and self.stage is not Stage.ENDED

    # -- the request ---------------------------------------------------------------------------------------------

    def header(self, name: str) -> str:
        """The first header of that name, "" if there is none."""
        lower = name.lower()
        return next((value for key, value in self.headers if key.lower() == lower), "")

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body.  Raises BodyTooLarge as soon as it is known to be larger."""
        if (self._request.content_length or 0) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        parts: list[bytes] = []
        size = 0
        async for data in self.chunks():
            size += len(data)
            if size > limit_bytes:
                raise BodyTooLarge(limit_bytes)
            parts.append(data)
        return b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, for those that pass it on.  Raises BodyBroken."""
        if self.is_held_back:
            self.is_held_back = False
            await self._send(CONTINUE)
        while data := await self._next():
            yield data
        if self.is_body_broken:
            raise BodyBroken

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(SILENCE_LIMIT_SECONDS):
                return await self._request.content.readany()
        except ConnectionError as error:
            raise ClientGone from error
        except TimeoutError as error:
            self.break_body()
            raise BodyMissing from error

    def break_body(self) -> None:
        """What follows on this connection can not be read: end the body's reader, and the connection after it."""
        self.is_kept_alive = False
        if not self._request.content.is_eof():
            self.is_body_broken = True
            self._request.content.feed_eof()

    @property
    def is_read(self) -> bool:
        """Nothing of the body is still to come."""
        return self._request.content.is_eof()

    # -- the answer ----------------------------------------------------------------------------------------------

    async def start(self, status: int, reason: str, headers: Iterable[tuple[str, str]]) -> None:
        """Send the head: the given headers without the hop-by-hop ones, and what frames the body here."""
        await self._send(self._head(status, reason, headers))
        if self._framing is Framing.CHUNKS:
            self._writer.enable_chunking()

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; waits for a slow client to take most of what came before."""
        self._require(Stage.STARTED)
        if self._framing is Framing.NONE or not data:
            return
        if self._framing is Framing.LENGTH:
            if len(data) > self._missing_bytes:
                raise ValueError("more bytes than the Content-Length that was sent")
            self._missing_bytes -= len(data)
        await self._send(data)

    async def end(self) -> None:
        """The answer is complete."""
        self._require(Stage.STARTED)
        if self._missing_bytes:
            raise ValueError(f"{self._missing_bytes} bytes less than the Content-Length that was sent")
        try:
            await self._writer.write_eof()
        except ConnectionError as error:
            raise ClientGone from error
        self.stage = Stage.ENDED

    def cut(self) -> None:
        """The answer will never be complete: write no more, and break the connection when the handler returns.

        Not earlier: a closed connection cancels its handler, which may have things to settle.
        """
        self.stage = Stage.CUT

    async def respond(
        self, status: int, body: bytes, content_type: str, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """A whole answer of our own, in one write."""
        own = [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers]
        head = self._head(status, HTTPStatus(status).phrase, own)
        await self._send(head if self._framing is Framing.NONE else head + body)
        self._missing_bytes = 0
        await self.end()

    def _head(self, status: int, reason: str, headers: Iterable[tuple[str, str]]) -> bytes:
        """Decide how the body ends and whether the connection goes on, and serialise the head that says so."""
        self._require(Stage.UNANSWERED)
        lines = end_to_end(headers)
        length = next((value for name, value in lines if name.lower() == "content-length"), None)
        if self.method == "HEAD" or status in BODILESS_STATUSES:
            self._framing = Framing.NONE
        elif length is not None:
            self._framing, self._missing_bytes = Framing.LENGTH, int(length)
        elif self._is_http_1_1:
            self._framing = Framing.CHUNKS
            lines.append(("Transfer-Encoding", "chunked"))
        else:
            self._framing = Framing.CLOSE
        # A client that was never told to go on may send its body or not: the next request could not be found.
        if self._framing is Framing.CLOSE or self.is_held_back or self._server.shutting_down:
            self.is_kept_alive = False
        if not self.is_kept_alive:
            lines.append(("Connection", "close"))
        elif not self._is_http_1_1:
            lines.append(("Connection", "keep-alive"))
        self.status = status
        head = _serialised(f"HTTP/1.{1 if self._is_http_1_1 else 0} {status} {reason}", lines)
        self.stage = Stage.STARTED
        return head

    def _require(self, stage: Stage) -> None:
        if self.stage is not stage:
            raise RuntimeError(f"the answer is {self.stage.name}, not {stage.name}")

    async def _send(self, data: bytes) -> None:
        try:
            await self._writer.write(data)
        except ConnectionError as error:
            raise ClientGone from error


class HttpServer:
    """The listener, its connections, and their drain."""

    def __init__(self, count: Callable[[Kind, Outcome], None] = lambda kind, outcome: None) -> None:
        """`count` is told of every request, once it is over."""
        self._count = count
        self.shutting_down = False
        """Every answer that begins from now on says `Connection: close`."""
        self.port = 0
        """The port listened on, also where 0 was asked for."""
        self.address = ""
        """Host and port listened on, also where a supervisor bound them."""
        self._listener: asyncio.Server | None = None
        self._connection: Callable[[], _Connection]
        self._accepts_no_more = asyncio.Event()
        self._connections = _Crowd()
        self._active = _Crowd()
        self._is_idling_over = False

    async def start(self, handler: Handler, *, host: str, port: int, listen_fd: int | None = None) -> None:
        """Listen on the address, or on a socket that a supervisor bound and passed.  Raises CannotListen."""
        loop = asyncio.get_running_loop()
        manager = web.Server(partial(self._serve, handler), handler_cancellation=True)

        def connection() -> _Connection:
            return _Connection(manager, loop, self._connections, self._count)

        self._connection = connection
        try:
            if listen_fd is None:
                self._listener = await loop.create_server(
                    connection, host, port, backlog=BACKLOG_CONNECTIONS, reuse_address=True
                )
            else:
                passed = socket.socket(fileno=listen_fd)
                self._listener = await loop.create_server(connection, sock=passed, backlog=BACKLOG_CONNECTIONS)
        except OSError as error:
            raise CannotListen(host, port, error) from error
        host, self.port, *_rest = self._listener.sockets[0].getsockname()
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._active.members)

    async def stop_accepting(self) -> None:
        """Free the address; connections live on, also those that nobody has taken out of the kernel's queue yet."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        # The last descriptor of the address resets the queue when it is closed: these are, once it is empty.
        queues = [socket.socket(fileno=os.dup(each.fileno())) for each in listener.sockets]
        # Not `wait_closed`: from Python 3.12 on it waits for the connections too.
        listener.close()
        for queue in queues:
            with queue:
                taken = _taken_from(queue)
            for each in taken:
                await asyncio.get_running_loop().connect_accepted_socket(self._connection, each)
        for _ in range(TURNS_TO_OPEN):
            await asyncio.sleep(0)
        self._accepts_no_more.set()

    async def drain(self, idle_seconds: float, limit_seconds: float, notice_seconds: float = 0.0) -> None:
        """Go on for `notice_seconds`, stop accepting, let idle connections live for `idle_seconds`, let active ones
        finish, cut the rest; all within `limit_seconds` after the notice."""
        self.shutting_down = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._accepts_no_more.wait(), notice_seconds)
        deadline = asyncio.get_running_loop().time() + limit_seconds
        await self.stop_accepting()
        await self._connections.wait_until_empty(min(idle_seconds, limit_seconds))
        self._is_idling_over = True
        for connection in self._connections.members - self._active.members:
            connection.force_close()
        # For the connections, not only their handlers: an answer that was written may still be on its way out.
        await self._connections.wait_until_empty(deadline - asyncio.get_running_loop().time())
        await self.close()

    async def close(self) -> None:
        """Stop accepting and break every connection, active or not."""
        self.shutting_down = True
        await self.stop_accepting()
        for connection in list(self._connections.members):
            connection.break_off()
        await self._active.wait_until_empty(CUT_LIMIT_SECONDS)
        await self._connections.wait_until_empty(CUT_LIMIT_SECONDS)

    async def _serve(self, handler: Handler, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast(_Connection, request.protocol)
        connection.incoming = incoming = Incoming(request, self)
        self._active.add(connection)
        outcome: Outcome = "gone"
        try:
            if not incoming.target.startswith("/"):
                await incoming.respond(400, _error(INVALID, "only paths can be asked for"), JSON)
            elif incoming.header("transfer-encoding").lower() not in ("", "chunked"):
                # Nobody would undo what the provider is not told of.
                await incoming.respond(400, _error(INVALID, "of transfer codings only chunks are understood"), JSON)
            else:
                await handler(incoming)
            outcome = _outcome(incoming)
        except ClientGone:
            raise
        except Exception as error:
            # What `handle_error` makes of it.
            outcome = "cut" if incoming.started else "4xx" if isinstance(error, BodyBroken) else "5xx"
            incoming.kind = incoming.kind if incoming.started else "refused"
            raise
        finally:
            self._active.discard(connection)
            self._count(incoming.kind, outcome)
        if incoming.stage is Stage.UNANSWERED:
            raise RuntimeError("the handler returned without an answer")
        if incoming.stage is not Stage.ENDED:
            connection.hang_up()
        elif incoming.is_body_broken or incoming.is_held_back:
            await connection.linger()
        return _Sent(is_kept_alive=incoming.is_kept_alive and not self._is_idling_over)


class _Connection(web.RequestHandler):
    """aiohttp's connection with our limits, and our answers to what no handler can answer."""

    def __init__(
        self,
        manager: web.Server,
        loop: asyncio.AbstractEventLoop,
        connections: _Crowd,
        count: Callable[[Kind, Outcome], None],
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=IDLE_LIMIT_SECONDS,
            tcp_keepalive=True,
            access_log=None,  # type: ignore[arg-type]  # None switches it off
            max_line_size=REQUEST_LINE_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
            lingering_time=UNREAD_BODY_LIMIT_SECONDS,
            read_bufsize=READ_BUFFER_BYTES,
            auto_decompress=False,
        )
        self.incoming: Incoming | None = None
        self._crowd = connections
        self._count = count
        self._head_bytes = 0
        self._is_refused = False
        self._wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        self._wire.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._crowd.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._wire = None
        self._crowd.discard(self)

    def data_received(self, data: bytes) -> None:
        """A body whose framing breaks would leave its handler waiting: aiohttp only queues the error behind it."""
        if self._is_refused:
            return
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._is_in_head() else 0
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse_head()
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._is_refused = True
            if self.incoming is not None:
                self.incoming.break_body()

    async def linger(self) -> None:
        """Say that nothing more will come, and throw away what the client still sends, until it hangs up.

        Closing at once would reset the connection, and the client might lose the answer that says what is wrong.
        """
        if self._wire is not None and not self._wire.is_closing():
            self._wire.write_eof()
            await asyncio.sleep(UNREAD_BODY_LIMIT_SECONDS)

    def _is_in_head(self) -> bool:
        """What was read last belongs to a request that is not here yet."""
        return not self._messages and (self.incoming is None or self.incoming.is_read)

    def _refuse_head(self) -> None:
        self._messages.append((_ErrInfo(status=431, exc=HeadTooLarge(), message=""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _make_error_handler(self, err_info: _ErrInfo) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        """aiohttp's answer to a request that it can not read closes the connection at once."""

        async def refuse(request: web.BaseRequest) -> web.StreamResponse:
            refusal = self.handle_error(request, err_info.status, err_info.exc, err_info.message)
            self._count("refused", "4xx")
            with contextlib.suppress(ConnectionResetError):  # The client did not wait to hear it.
                await refusal.prepare(request)
                await refusal.write_eof()
                await self.linger()
            return refusal

        return refuse

    def hang_up(self) -> None:
        """Close after what was written, so that an answer that was begun can not be taken for complete."""
        if self.incoming is not None and self.incoming.ends_by_close:
            self.break_off()
        else:
            self.force_close()

    def break_off(self) -> None:
        """Close now, whatever the client still has to take."""
        if self._wire is None:
            return
        if self.incoming is not None and self.incoming.ends_by_close:
            # An orderly close would be the proper end of such an answer: linger for 0 seconds, that is, reset.
            handle = self._wire.get_extra_info("socket")
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._wire.abort()
        self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """aiohttp asks here what becomes of a request that was malformed or whose handler raised."""
        if isinstance(exc, HttpProcessingError) and _is_too_large(exc):
            return _refusal(431, INVALID, _HEAD_TOO_LARGE)
        if isinstance(exc, HttpProcessingError):
            # Not its text: it quotes the header it stumbled over, which may be a key.
            return _refusal(400, INVALID, f"the request is not valid HTTP ({type(exc).__name__})")
        if isinstance(exc, ClientGone):
            raise exc
        incoming = self.incoming
        if isinstance(exc, BodyBroken) and incoming is not None and not incoming.started:
            return _refusal(400, INVALID, str(exc))
        _log.error("a request failed", exc_info=exc or True)
        if incoming is not None and incoming.started:
            self.hang_up()
            raise ClientGone
        return _refusal(500, "api_error", "perdure failed on this request; its log says why")


class _Sent(web.StreamResponse):
    """Tells aiohttp that the answer is out and whether the connection goes on."""

    def __init__(self, *, is_kept_alive: bool) -> None:
        super().__init__()
        self._keep_alive = is_kept_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class _Crowd:
    """Connections that someone waits to see gone."""

    def __init__(self) -> None:
        self.members: set[_Connection] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def add(self, connection: _Connection) -> None:
        self.members.add(connection)
        self._is_empty.clear()

    def discard(self, connection: _Connection) -> None:
        self.members.discard(connection)
        if not self.members:
            self._is_empty.set()

    async def wait_until_empty(self, limit_seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                await self._is_empty.wait()


_HEAD_TOO_LARGE: Final = (
    f"the head of the request is too large: it may have {HEADERS_MAX} headers of {HEADER_BYTES_MAX} bytes each "
    f"and {HEAD_BYTES_MAX} bytes in all"
)


def _outcome(incoming: Incoming) -> Outcome:
    """What became of a request whose handler is through."""
    if incoming.stage is Stage.CUT:
        return "cut"
    if incoming.stage is not Stage.ENDED:
        return "gone"
    return _CLASSES.get(incoming.status // 100, "5xx")


_CLASSES: Final[dict[int, Outcome]] = {1: "2xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}


def _taken_from(queue: socket.socket) -> list[socket.socket]:
    """The connections that wait to be accepted."""
    queue.setblocking(False)
    taken: list[socket.socket] = []
    with suppress(OSError):  # None is left, or there is no descriptor left for one.
        while len(taken) < BACKLOG_CONNECTIONS:
            taken.append(queue.accept()[0])
    return taken


def _is_too_large(error: HttpProcessingError) -> bool:
    """aiohttp has no class of its own for too many headers."""
    return isinstance(error, HeadTooLarge | LineTooLong) or error.message.startswith("Too many headers")


def _refusal(status: int, kind: str, message: str) -> web.Response:
    refusal = web.Response(status=status, body=_error(kind, message), content_type=JSON, headers={"Server": "perdure"})
    refusal.force_close()
    return refusal


def _error(kind: str, message: str) -> bytes:
    """An error in a shape that the SDKs of all providers read."""
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def _origin_form(target: str) -> str:
    """Path and query of a target in absolute form, as sent to proxies; any other as it is."""
    scheme, separator, rest = target.partition("://")
    if target.startswith("/") or not separator or not scheme.isalpha():
        return target
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    after = rest[len(authority) :]
    return after if after.startswith("/") else "/" + after


def _serialised(status_line: str, headers: Headers) -> bytes:
    lines = [status_line, *(f"{name}: {value}" for name, value in headers)]
    if any(character in line for line in lines for character in "\r\n\0"):
        raise ValueError("a line of the answer's head contains a line break")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode(errors="surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")
