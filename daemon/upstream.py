"""HTTP out: one pooled client for all providers, that sends what it is given and hands back what it gets.

One rule: a request goes out once.  It is sent again only where it provably never was sent; a request that may have
been processed is paid for, and sending it twice would be paid twice.

Theory of operation.  Everything that makes an HTTP client helpful is switched off: redirects, cookies, decompression,
default headers, re-quoting of URLs.  What is left is framing, pooling and deadlines.  The two ends of an answer differ
in what the caller can still do, and so do the exceptions: until the answer's head is here, `send` raises by fault
(`UpstreamUnreachable`, `UpstreamTimeout`, `UpstreamInvalid`) and the caller can answer in its own words; after it, the
only thing that can go wrong is `UpstreamCut`, and the only honest thing to do is to cut the own answer too.

Stale connections.  A provider may close a pooled connection at any time, and a POST written into it is lost with an
error that does not tell whether the request was read.  Three things keep that from the user: connections are reused
only for `POOL_IDLE_SECONDS`, less than common servers wait before they close; a connection that has anything to read
(an end of file, as a rule) when it is taken from the pool is thrown away; and what then still fails is reported, not
repeated.  The window left is the time a packet travels.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

Headers = list[tuple[str, str]]

CONNECT_LIMIT_SECONDS: Final = 30.0
"""Name resolution, TCP and TLS together.  Long enough for two lost SYNs (1 s + 2 s) and a slow resolver."""
SILENCE_LIMIT_SECONDS: Final = 660.0
"""Nothing read from the provider for so long.  Clients give up after 600 s of silence: never before them."""
POOL_IDLE_SECONDS: Final = 4.0
"""How long an unused connection is kept.  Common servers close idle ones after 5 s; a new TLS connection costs two
round trips, which is nothing beside the answer of a model."""
READ_BUFFER_BYTES: Final = 64 * 1024
"""Reading from the provider pauses when twice that much waits for a slow client."""
HEADER_BYTES_MAX: Final = 128 * 1024
"""One header of an answer, name and value.  Providers' policy and rate-limit headers reach tens of kilobytes."""
STATUS_LINE_BYTES_MAX: Final = 64 * 1024
HEADERS_MAX: Final = 2_048
HEAD_BYTES_MAX: Final = 1024 * 1024
"""All that comes before the body, interim answers included.  Real heads have a few KB; without this limit one could
have as many of the largest headers as their number allows."""
SLICE_BYTES: Final = 256 * 1024
"""Bodies larger than that are written in slices, so that the socket's pace and not our memory decides."""

HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Speak about one connection only (RFC 9110, 7.6.1); `proxy-…` ones go by their prefix."""
AUTOMATIC_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""What aiohttp would add on its own."""


class UploadError(Exception):
    """The source of the request's body failed: no fault of the provider, which got no whole request."""


class UpstreamError(Exception):
    """The provider gave no complete answer.  The message names the provider's host, never a path or a header."""


class UpstreamUnreachable(UpstreamError):
    """No connection to the provider: name, TCP or TLS.  Nothing of the request was sent."""


class UpstreamTimeout(UpstreamError):
    """The provider did not connect or did not begin to answer in time."""


class UpstreamInvalid(UpstreamError):
    """The provider's answer was not HTTP, or it hung up before it answered.  It may have processed the request."""


class UpstreamCut(UpstreamError):
    """The answer broke off before its proper end."""


class Reply:
    """The head of an answer, as the provider sent it, and its body as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse, host: str) -> None:
        self._response = response
        self._host = host
        self.status: int = response.status
        self.reason: str = response.reason or ""
        self.headers: Headers = [(_text(name), _text(value)) for name, value in response.raw_headers]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive.  Ends where the answer properly ends, else raises UpstreamCut."""
        content = self._response.content
        try:
            while data := await content.readany():
                yield data
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            # aiohttp tells of the cut before it hands out what arrived just ahead of it.
            if rest := content._read_nowait(-1):
                yield rest
            raise UpstreamCut(f"{self._host} broke off its answer ({type(error).__name__})") from error


class Upstream:
    """All connections to all providers.  Belongs to the event loop it is opened in."""

    def __init__(self, *, ca_file: str = "", silence_limit_seconds: float = SILENCE_LIMIT_SECONDS) -> None:
        """`ca_file` names certificates to trust beside the system's, as a company's own proxy needs."""
        tls = ssl.create_default_context()
        if ca_file:
            tls.load_verify_locations(cafile=ca_file)
        self._head_limit_seconds = CONNECT_LIMIT_SECONDS + silence_limit_seconds
        self._session = aiohttp.ClientSession(
            connector=_Pool(tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=CONNECT_LIMIT_SECONDS,
                sock_connect=CONNECT_LIMIT_SECONDS,
                sock_read=silence_limit_seconds,
            ),
            skip_auto_headers=AUTOMATIC_HEADERS,
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=STATUS_LINE_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
        )
        # It would send what it takes for idempotent once more when a used connection breaks.
        self._session._retry_connection = False

    @asynccontextmanager
    async def send(
        self, method: str, url: str, headers: Headers, body: bytes | AsyncIterator[bytes] | None = None
    ) -> AsyncIterator[Reply]:
        """Send one request and enter with the head of its answer.

        The URL's target goes out as it is written, the headers in their order, without Host and hop-by-hop ones.
        Leaving before the body was read to its end closes the provider's connection at once.
        """
        host, target = _url(url)
        response = await self._exchange(method, target, _request_headers(headers, body), body, host)
        try:
            if not _is_passable(response):
                raise UpstreamInvalid(f"{host} sent an answer that can not be passed on")
            yield Reply(response, host)
        finally:
            _leave(response)

    async def close(self) -> None:
        await self._session.close()

    async def _exchange(
        self, method: str, url: URL, headers: CIMultiDict[str], body: bytes | AsyncIterator[bytes] | None, host: str
    ) -> aiohttp.ClientResponse:
        in_memory = body is None or isinstance(body, bytes)
        data = _slices(body) if isinstance(body, bytes) and len(body) > SLICE_BYTES else body
        try:
            # The silence limit counts from the request's last byte: a provider that does not read would hold us for
            # ever.  An upload that is passed through takes as long as its client takes.
            async with asyncio.timeout(self._head_limit_seconds if in_memory else None):
                return await self._session.request(method, url, headers=headers, data=data, allow_redirects=False)
        except aiohttp.ConnectionTimeoutError as error:
            raise UpstreamTimeout(f"{host} could not be connected to in time") from error
        except TimeoutError as error:
            raise UpstreamTimeout(f"{host} did not answer in time") from error
        except aiohttp.ClientConnectorError as error:
            raise UpstreamUnreachable(f"{host} can not be reached: {_cause(error.os_error)}") from error
        except aiohttp.ClientResponseError as error:
            raise UpstreamInvalid(f"{host} did not answer with HTTP") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            if isinstance(error.__cause__, UploadError):
                raise error.__cause__ from None
            raise UpstreamInvalid(f"{host} hung up before it answered ({type(error).__name__})") from error


class _Pool(aiohttp.TCPConnector):
    """A pool of our connections, without a limit: a request that waits for another's answer waits for minutes."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(limit=0, limit_per_host=0, keepalive_timeout=POOL_IDLE_SECONDS, ssl=tls)
        self._factory = cast("partial[ResponseHandler]", partial(_Connection, asyncio.get_running_loop()))


class _Connection(ResponseHandler):
    """aiohttp's connection, made to tell three endings that it would otherwise not tell.

    `is_connected` is asked when a connection is taken from the pool.  The event loop learns of a provider's FIN only
    when it next polls; an idle connection has nothing to say, so one that is readable is closed or confused.
    """

    _head_bytes = 0
    """Read for the current answer before its body."""

    def set_response_params(self, **params: Any) -> None:
        """Called once for every answer."""
        self._head_bytes = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self._payload is None or self._payload.is_eof():
            self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            self.set_exception(HttpProcessingError(message="the head of the answer is too large"))
            if self.transport is not None:
                self.transport.abort()
        else:
            super().data_received(data)

    def is_connected(self) -> bool:
        return super().is_connected() and not self._is_readable()

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Whatever spoils the connection ends its body: bad chunk framing would leave the reader waiting for ever."""
        self._break_off(exc)
        if exc_cause is None:
            super().set_exception(exc)
        else:
            super().set_exception(exc, exc_cause)

    def connection_lost(self, exc: BaseException | None) -> None:
        """A reset is not the proper end of a body that ends with its connection."""
        if exc is not None:
            self._break_off(exc)
        super().connection_lost(exc)

    def _break_off(self, cause: BaseException) -> None:
        payload = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError(type(cause).__name__))

    def _is_readable(self) -> bool:
        if self.transport is None:
            return True
        poller = select.poll()
        poller.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poller.poll(0))


def end_to_end(headers: Iterable[tuple[str, str]]) -> Headers:
    """The headers that are not about one connection.  Whoever writes a message leaves the others out."""
    headers = list(headers)
    names = {name.lower() for name, _ in headers}
    named = {
        token.strip().lower() for name, value in headers if name.lower() == "connection" for token in value.split(",")
    }
    dropped = HOP_BY_HOP | {name for name in names if name.startswith("proxy-")} | named
    if "transfer-encoding" in names:
        # The length does not count beside an encoding (RFC 9112, 6.3): kept, it would frame another message.
        dropped |= {"content-length"}
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def _request_headers(headers: Headers, body: bytes | AsyncIterator[bytes] | None) -> CIMultiDict[str]:
    """What goes out, in order; the length in its old place where the body's bytes are known."""
    spelling: dict[str, str] = {}
    kept = [
        # Of headers with one name in two spellings aiohttp would send the later one only.
        (spelling.setdefault(name.lower(), name), _sendable(value))
        for name, value in end_to_end(headers)
        if name.lower() not in ("host", "expect")
    ]
    if isinstance(body, bytes):
        length = str(len(body))
        has_length = any(name.lower() == "content-length" for name, _ in kept)
        kept = [(name, length if name.lower() == "content-length" else value) for name, value in kept]
        if not has_length:
            kept.append(("Content-Length", length))
    return CIMultiDict(kept)


def _url(url: str) -> tuple[str, URL]:
    """The host, for messages, and the URL with its target exactly as written.

    The whole target is given as the path: split into path and query, an empty query would get lost.
    """
    scheme, _, rest = url.partition("://")
    authority, slash, target = rest.partition("/")
    try:
        built = URL.build(scheme=scheme, authority=authority, path=_sendable(slash + target), encoded=True)
        if scheme in ("http", "https") and built.host and built.port:
            return authority, built
    except ValueError:
        pass
    raise UpstreamUnreachable(f"{authority or 'the provider'} can not be reached: not a valid address")


def _sendable(text: str) -> str:
    """Bytes that are not UTF-8 would vanish in aiohttp: they are read as ISO 8859-1, as HTTP once was, and kept."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogateescape").decode("latin-1")
    return text


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _is_passable(response: aiohttp.ClientResponse) -> bool:
    """The client can be sent this head, and the body as it comes then means what it meant to the provider."""
    codings = response.headers.getall("Transfer-Encoding", [])
    # Of the other codings nobody would undo what the client is not told of; we asked for none.
    is_plain = all(coding.strip().lower() == "chunked" for coding in codings)
    return response.status >= 200 and is_plain and not any(_breaks_a_line(part) for part in _head_parts(response))


def _head_parts(response: aiohttp.ClientResponse) -> Iterable[bytes]:
    yield (response.reason or "").encode(errors="surrogateescape")
    for name, value in response.raw_headers:
        yield name
        yield value


def _breaks_a_line(part: bytes) -> bool:
    return b"\r" in part or b"\n" in part or b"\0" in part


def _cause(error: OSError) -> str:
    """In the system's own words: those of libraries repeat the address, or tell of a line in their source."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.strerror or type(error).__name__).partition(' (_ssl')[0]}"
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or type(error).__name__
    return os.strerror(error.errno)


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), SLICE_BYTES):
        yield body[start : start + SLICE_BYTES]


def _leave(response: aiohttp.ClientResponse) -> None:
    """Drop the connection unless the answer was read to its end, in which case it is in the pool already."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        # An orderly close would first write what is left of the request, to a provider that may not read.
        connection.transport.abort()
    response.close()
