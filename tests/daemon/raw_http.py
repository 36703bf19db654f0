"""HTTP by hand for tests of the edges: a provider and a client that show the exact bytes and obey every order."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager

import uvloop

from daemon.http_server import Handler, HttpServer, Incoming
from daemon.upstream import Upstream, UpstreamCut, UpstreamError

PATIENCE_SECONDS = 10.0
"""Deadline of every wait in these tests; none of them takes a tenth of it."""
BUFFER_BYTES = 4 * 1024 * 1024

Script = Callable[["Peer"], Awaitable[None]]


def run(scenario: Coroutine[None, None, None], loop: str = "asyncio") -> None:
    """Run a scenario to its end, with a deadline, on the given kind of event loop."""

    async def main() -> None:
        async with asyncio.timeout(3 * PATIENCE_SECONDS):
            await scenario

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  # what is waited for is often the other end's kernel
            await asyncio.sleep(0.001)


async def until_still(value: Callable[[], int]) -> None:
    """Wait until a number has not changed for a hundred looks."""
    last, same = value(), 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while same < 100:
            await asyncio.sleep(0.001)
            last, same = (last, same + 1) if value() == last else (value(), 0)


class Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        """A message's head with its empty line; b"" where the other end closed instead."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                return await self.reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                return error.partial

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.readexactly(count)

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; b"" is the final one."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            size = int((await self.reader.readuntil(b"\r\n")), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def chunked_body(self) -> bytes:
        parts = []
        while part := await self.chunk():
            parts.append(part)
        return b"".join(parts)

    async def request(self) -> tuple[bytes, bytes]:
        """A request's head and its body, whatever frames it."""
        head = await self.head()
        if re.search(rb"(?i)\r\ntransfer-encoding: *chunked\r\n", head):
            return head, await self.chunked_body()
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head)
        return head, await self.exactly(int(length[1])) if length else b""

    async def rest(self) -> bytes:
        """All that comes until the connection's orderly end."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


class Provider:
    """A server that plays its script on every connection and knows how many there were."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.closed_by_client = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def a_provider(script: Script) -> AsyncIterator[Provider]:
    provider = Provider()
    peers: list[Peer] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        provider.connections += 1
        peer = Peer(reader, writer)
        peers.append(peer)
        try:
            await script(peer)
            if not writer.is_closing():
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the end of the connection, or of the test
        provider.closed_by_client += 1
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=BUFFER_BYTES)
    provider.port = server.sockets[0].getsockname()[1]
    try:
        yield provider
    finally:
        server.close()
        for peer in peers:
            peer.reset()


def answering(*answers: bytes) -> Script:
    """Read a request and send the next answer, over and over; the last one again and again."""
    remaining = list(answers)

    async def script(peer: Peer) -> None:
        while (await peer.request())[0]:
            await peer.send(remaining.pop(0) if len(remaining) > 1 else remaining[0])

    return script


def recording(seen: list[tuple[bytes, bytes]], answer: bytes) -> Script:
    async def script(peer: Peer) -> None:
        while (request := await peer.request())[0]:
            seen.append(request)
            await peer.send(answer)

    return script


@asynccontextmanager
async def a_server(handler: Handler) -> AsyncIterator[HttpServer]:
    server = HttpServer()
    await server.start(handler, host="127.0.0.1", port=0)
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def a_client(port: int, *, buffer_bytes: int = BUFFER_BYTES) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=buffer_bytes)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def an_upstream(*, silence_limit_seconds: float = PATIENCE_SECONDS) -> AsyncIterator[Upstream]:
    upstream = Upstream(silence_limit_seconds=silence_limit_seconds)
    try:
        yield upstream
    finally:
        await upstream.close()


@asynccontextmanager
async def a_relay(provider_url: str) -> AsyncIterator[HttpServer]:
    """The smallest gateway: both edges with nothing between them."""
    async with an_upstream() as upstream:

        async def relay(incoming: Incoming) -> None:
            body = incoming.chunks() if incoming.has_body else None
            try:
                async with upstream.send(
                    incoming.method, provider_url + incoming.target, incoming.headers, body
                ) as reply:
                    await incoming.start(reply.status, reply.reason, reply.headers)
                    async for data in reply.chunks():
                        await incoming.write(data)
                    await incoming.end()
            except UpstreamCut:
                incoming.cut()
            except UpstreamError as error:
                await incoming.respond(502, str(error).encode(), "text/plain")

        async with a_server(relay) as server:
            yield server
