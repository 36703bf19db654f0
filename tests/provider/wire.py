"""HTTP/1.1 on one accepted connection, at the level of bytes.

One rule: nothing is written that was not asked for, so that an answer can be cut, held or broken at any byte.

Theory: a `Connection` knows at once when its client is gone, also while it waits for something else; then whatever it
does raises ClientGone.  A written byte has been handed to the kernel, with a small buffer, so that a client that does
not read stops the provider soon.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final, Protocol, TypeVar

import brotli
import zstandard

HEAD_BYTES_MAX: Final = 1024 * 1024
"""Request line and headers: more than any client sends (the real limit is about 32 KiB, and not what is tested)."""
SEND_BUFFER_BYTES: Final = 64 * 1024
"""Kernel and event loop may each hold so much of an answer that is not read, so back pressure shows early."""
LAST_CHUNK: Final = b"0\r\n\r\n"

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection."""


class Connection(asyncio.StreamReaderProtocol):
    def __init__(self, opened: Callable[[Connection], None]) -> None:
        self.input = asyncio.StreamReader(limit=HEAD_BYTES_MAX)
        self.gone = asyncio.Event()
        self.closed = asyncio.Event()
        self._opened = opened
        super().__init__(self.input, self._connected)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.output = writer
        writer.transport.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
        kernel: socket.socket = writer.get_extra_info("socket")
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._opened(self)

    def eof_received(self) -> bool | None:
        self.gone.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        self.closed.set()
        super().connection_lost(exc)

    async def read_request(self) -> tuple[str, str, list[tuple[str, str]], bytes] | None:
        """Method, target, headers and body of the next request; None when the client leaves instead."""
        try:
            head = await self.input.readuntil(b"\r\n\r\n")
            line, *fields = head[:-4].decode("latin-1").split("\r\n")
            method, target, _ = line.split(" ", 2)
            headers = [(name, value.strip()) for name, _, value in (field.partition(":") for field in fields)]
            return method, target, headers, await self._read_body(headers)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _read_body(self, headers: Sequence[tuple[str, str]]) -> bytes:
        known = {name.lower(): value.lower() for name, value in headers}
        if "chunked" not in known.get("transfer-encoding", ""):
            return await self.input.readexactly(int(known.get("content-length", "0")))
        body = bytearray()
        while size := int((await self.input.readuntil(b"\r\n")).partition(b";")[0], 16):
            body += (await self.input.readexactly(size + 2))[:-2]
        while await self.input.readuntil(b"\r\n") != b"\r\n":
            pass
        return bytes(body)

    async def write(self, data: bytes) -> None:
        """Hand bytes to the kernel; wait while it does not take them."""
        if self.gone.is_set():
            raise ClientGone
        transport = self.output.transport
        self.output.write(data)
        try:
            if transport.get_write_buffer_size() > 0:
                await self.unless_gone(self.output.drain())
            else:
                # A client that keeps up would else have the loop for itself, and nobody would hear of its end.
                await asyncio.sleep(0)
        except ConnectionError:
            raise ClientGone from None
        if transport.is_closing():
            raise ClientGone

    async def unless_gone(self, awaitable: Awaitable[T]) -> T:
        """The result of something that takes its time; ClientGone if that happens first."""
        gone = asyncio.ensure_future(self.gone.wait())
        wanted = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({gone, wanted}, return_when=asyncio.FIRST_COMPLETED)
            if not wanted.done():
                raise ClientGone
            return wanted.result()
        finally:
            gone.cancel()
            wanted.cancel()

    async def finish(self) -> None:
        """Close once everything written has been sent: an end or a cut, not a reset."""
        self.output.close()
        await self.closed.wait()

    async def reset(self) -> None:
        """Break the connection once everything written is with the kernel: the client gets an error, not an end."""
        self.output.transport.set_write_buffer_limits(high=0)
        await self.output.drain()
        kernel: socket.socket = self.output.get_extra_info("socket")
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()
        await self.closed.wait()

    def abort(self) -> None:
        if not self.closed.is_set():
            self.output.transport.abort()


def response_head(status: int, headers: Sequence[tuple[str, str]]) -> tuple[bytes, bytes]:
    """Status line and header block, apart."""
    phrase = {member.value: member.phrase for member in HTTPStatus}.get(status, "Overloaded")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("latin-1"), f"{lines}\r\n".encode("latin-1")


def chunk(data: bytes) -> bytes:
    """Nothing for nothing: an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class Encoder(Protocol):
    """A content coding.  What `feed` returns can be decoded at once, so that streams stay streams."""

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


def encoder(encoding: str) -> Encoder:
    return _ENCODERS[encoding]()


class _Identity:
    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._compressor = zlib.compressobj(wbits=wbits)

    def feed(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._compressor.flush(zlib.Z_FINISH)


class _Brotli:
    def __init__(self) -> None:
        self._compressor = brotli.Compressor(quality=4)

    def feed(self, data: bytes) -> bytes:
        return bytes(self._compressor.process(data) + self._compressor.flush())

    def finish(self) -> bytes:
        return bytes(self._compressor.finish())


class _Zstandard:
    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor().compressobj()

    def feed(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def finish(self) -> bytes:
        return self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)


_ENCODERS: Final[dict[str, Callable[[], Encoder]]] = {
    "": _Identity,
    "gzip": lambda: _Zlib(31),
    "deflate": lambda: _Zlib(15),
    "br": _Brotli,
    "zstd": _Zstandard,
}
