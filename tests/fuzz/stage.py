"""One daemon with its worker in this process, between a bare client and a provider that takes nothing amiss unnoticed.

One rule: everything between the client's bytes and the provider's is the real thing; the two ends believe only bytes.

Theory.  The event loop runs while an input is tried and stands still in between, so that what an input causes is over
when the next one comes.  A client can not know whether an answer is still to come to what may be no request; it waits
for a moment of silence, ends its side, and reads to the end.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import pytest

from daemon import http_server
from daemon.app import Daemon
from tests.worker.peer import ThreadedWorker, short_directory
from worker.settings import Settings

PATIENCE_SECONDS: Final = 30.0
QUIET_SECONDS: Final = 0.03
"""Silence after which a client takes its request for incomplete; one whose answer seems complete waits less."""
DONE_SECONDS: Final = 0.003
BUFFER_BYTES: Final = 4 * 1024 * 1024
HOST: Final = b"127.0.0.1"
HEAD_END: Final = b"\r\n\r\n"
DOCUMENT: Final = b'{"usage":{"input_tokens":5,"output_tokens":2}}'
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(DOCUMENT),
    DOCUMENT,
)
FAILED: Final = b"perdure failed"
"""What every 500 of ours says."""


@dataclass(frozen=True)
class Request:
    """As the provider got it."""

    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]


class Provider:
    """Reads requests as strictly as HTTP is written, and says to each what it is told to."""

    def __init__(self) -> None:
        self.answer = ANSWER
        self.hangs_up = False
        self.seen: list[Request] = []
        self.faults: list[str] = []
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=BUFFER_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Who hangs up in the middle of a request, or does not wait for its answer, has its own reasons.
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not self.hangs_up or not self.seen:
                self.seen.append(await self._request(reader))
                writer.write(self.answer)
                await writer.drain()
        writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> Request:
        head = await reader.readuntil(HEAD_END)
        first, *lines = head.removesuffix(HEAD_END).split(b"\r\n")
        parts = first.split(b" ")
        self._require(len(parts) == 3 and parts[2] == b"HTTP/1.1", f"request line {first!r}")
        matches = [_FIELD.fullmatch(line) for line in lines]
        self._require(all(matches), f"header lines {lines!r}")
        fields = [(found[1], found[2]) for found in matches if found]
        request = Request(parts[1], fields, b"")
        codings, lengths = request.values(b"transfer-encoding"), request.values(b"content-length")
        self._require(len(codings) + len(lengths) <= 1, f"framed twice: {codings} {lengths}")
        if codings:
            self._require(codings == [b"chunked"], f"coding {codings}")
            return Request(request.target, fields, await self._chunks(reader))
        length = lengths[0] if lengths else b"0"
        self._require(length.isdigit(), f"length {length!r}")
        return Request(request.target, fields, await reader.readexactly(int(length)))

    async def _chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            self._require(bool(_CHUNK.fullmatch(line)), f"chunk size {line!r}")
            size = int(line, 16)
            piece = await reader.readexactly(size + 2)
            self._require(piece.endswith(b"\r\n"), "a chunk without its end")
            if not size:
                return body
            body += piece[:-2]

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            self.faults.append(what)
            raise ConnectionAbortedError(what)


class Stage:
    """The daemon and both ends."""

    def __init__(self, runner: asyncio.Runner, provider: Provider, daemon: Daemon, errors: list[str]) -> None:
        self.provider = provider
        self.errors = errors
        """What was logged as an error."""
        self._runner = runner
        self._port = daemon._server.port

    def exchange(self, pieces: list[bytes], *, is_whole: bool = False) -> bytes:
        """All that a client hears that sends these pieces and then nothing more; `is_whole`: a request that is known to
        be one, so that the client only has to listen."""
        self.provider.seen.clear()
        self.provider.faults.clear()
        heard = self._runner.run(self._exchange(pieces, is_whole=is_whole))
        assert not self.provider.faults, self.provider.faults
        assert not self.errors, self.errors
        assert FAILED not in heard, heard
        return heard

    def is_served(self) -> bool:
        """Whether another client is answered."""
        head = b"GET /healthz HTTP/1.1\r\nHost: " + HOST + b"\r\nConnection: close\r\n\r\n"
        return self._runner.run(self._exchange([head], is_whole=True)).startswith(b"HTTP/1.1 200 ")

    async def _exchange(self, pieces: list[bytes], *, is_whole: bool) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=BUFFER_BYTES)
            heard = b""
            # Who is cut off in the middle, or reset, has heard what it has heard.
            with suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if not is_whole:
                    heard = await _until_quiet(reader)
                    writer.write_eof()
                while data := await reader.read(BUFFER_BYTES):
                    heard += data
            writer.transport.abort()
            return heard


async def _until_quiet(reader: asyncio.StreamReader) -> bytes:
    heard = b""
    while True:
        try:
            async with asyncio.timeout(DONE_SECONDS if _seems_complete(heard) else QUIET_SECONDS):
                data = await reader.read(BUFFER_BYTES)
        except TimeoutError:
            return heard
        heard += data
        if not data:
            return heard


def _seems_complete(heard: bytes) -> bool:
    head, end, body = heard.partition(HEAD_END)
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(end) and (heard.endswith(b"0" + HEAD_END) if length is None else len(body) >= int(length[1]))


@contextmanager
def staged() -> Iterator[Stage]:
    """A daemon that is ready."""
    errors = _Errors()
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        worker = stack.enter_context(ThreadedWorker(directory))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # A client that was refused hangs up when it has heard so; ours only when the other side has.
        patch.setattr(http_server, "UNREAD_BODY_LIMIT_SECONDS", 0.2)
        logging.getLogger().addHandler(errors)
        stack.callback(logging.getLogger().removeHandler, errors)
        runner = stack.enter_context(asyncio.Runner())
        provider = Provider()
        runner.run(provider.start())
        stack.callback(lambda: runner.run(provider.close()))
        origin = f"http://127.0.0.1:{provider.port}"
        settings = Settings(
            listen="127.0.0.1:0",
            anthropic_url=origin,
            openai_url=origin,
            state_dir=str(directory),
            runtime_dir=str(directory),
            worker_url=worker.address,
        )
        daemon, running = runner.run(_started(settings))
        stack.callback(lambda: runner.run(_stopped(daemon, running)))
        stage = Stage(runner, provider, daemon, errors.told)
        assert stage.is_served()
        yield stage


async def _started(settings: Settings) -> tuple[Daemon, asyncio.Task[None]]:
    daemon = Daemon(settings, instance="fuzz", listen_fd=None, log=logging.getLogger("daemon"))
    running = asyncio.create_task(daemon.run())
    async with asyncio.timeout(PATIENCE_SECONDS):
        while daemon._own.readiness()["status"] != "ready":  # noqa: ASYNC110 - the worker's word is what is waited for
            await asyncio.sleep(0.005)
    return daemon, running


async def _stopped(daemon: Daemon, running: asyncio.Task[None]) -> None:
    daemon.stop()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await running


class _Errors(logging.Handler):
    """Keeps what was logged as an error, with its trace."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(self.format(record))


def is_within(part: bytes, whole: bytes) -> bool:
    """The bytes stand in the whole in this order, with others between them or not."""
    if part in whole:
        return True
    rest = iter(whole)
    return all(byte in rest for byte in part)


_FIELD: Final = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+): ?([^\r\n\0]*)")
_CHUNK: Final = re.compile(rb"[0-9a-fA-F]+\r\n")
