"""Content encodings, undone piece by piece: of answers as they pass, and of requests that are here already.

One rule: nothing may unfold to more than its limit: a chunk of an answer to `DECODED_BYTES_PER_CHUNK_MAX`, a request
to what its reader allows.  What cannot be decoded says so once, by `Undecodable`, and is then left alone.

Theory of operation.  The bytes pass on untouched; this is a copy, read for the conversation and the tokens in it.  So
a loss here costs a number, never an answer, and giving up early is right wherever going on would cost memory.
Encodings are undone in the reverse of the order in which the header names them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import brotli
import zstandard

DECODED_BYTES_PER_CHUNK_MAX: Final = 32 * 1024 * 1024
"""What one chunk may unfold to: as much as a whole answer may hold.  A chunk of 64 KiB of JSON gives under 1 MB."""
ENCODINGS_MAX: Final = 3
"""Encodings on top of each other.  Two happen by accident, more do not."""
ZSTD_WINDOW_BYTES_MAX: Final = 8 * 1024 * 1024
"""The window that RFC 9659 allows for the content coding."""
ZSTD_SLICE_BYTES: Final = 256
"""zstd has no output limit, so it gets its input in slices: four bytes can make a block of 128 KiB, hence 8 MiB."""
GZIP_SLICE_BYTES: Final = 8 * 1024
"""One byte unfolds to 1,032 at most, hence 8 MiB too; and what follows a member is not copied with every member."""
REQUEST_SLICE_BYTES: Final = 64 * 1024
"""A request is decoded as if it came in pieces, so that one encoding within another is never unfolded at once."""
MEMBERS_MAX: Final = 10_000
"""Complete streams after each other.  A few where files were put together; millions are 20 bytes each and unfold to
nothing but work."""


class Undecodable(Exception):
    """The encoding is unknown or broken, or unfolds to more than the limit."""


def plain_body(body: bytes, encoding: str, limit_bytes: int) -> bytes | None:
    """A whole request body without its encodings; None if they are unknown or broken, or it would be larger."""
    decoder = Decoder(encoding)
    if decoder.is_transparent:
        return body if len(body) <= limit_bytes else None
    pieces = []
    size = 0
    try:
        for start in range(0, len(body), REQUEST_SLICE_BYTES):
            pieces.append(decoder.decode(body[start : start + REQUEST_SLICE_BYTES], limit_bytes))
            size += len(pieces[-1])
            _require(size <= limit_bytes)
    except Undecodable:
        return None
    return b"".join(pieces) if decoder.is_whole else None


class Layer(Protocol):
    @property
    def is_whole(self) -> bool:
        """What was fed ends where the encoding ends."""

    def feed(self, data: bytes, room: int) -> bytes:
        """Decode; raises Undecodable if the result would not fit into `room`."""


class Decoder:
    """Undoes what a content-encoding header names.  An unknown name is told by the first `feed`."""

    def __init__(self, encoding: str) -> None:
        names = [name.strip().lower() for name in encoding.split(",")]
        self._layers = [layer for name in reversed(names) for layer in _layers_for(name)]
        if len(self._layers) > ENCODINGS_MAX:
            self._layers = [_Unknown()]

    @property
    def is_transparent(self) -> bool:
        """There is nothing to undo."""
        return not self._layers

    @property
    def is_whole(self) -> bool:
        """What was fed ends where its encodings end."""
        return all(layer.is_whole for layer in self._layers)

    def feed(self, chunk: bytes) -> bytes:
        """Decode a chunk of an answer."""
        return self.decode(chunk, DECODED_BYTES_PER_CHUNK_MAX)

    def decode(self, chunk: bytes, room: int) -> bytes:
        """Raises Undecodable, also if any layer would unfold the chunk to more than `room` bytes."""
        for layer in self._layers:
            try:
                chunk = layer.feed(chunk, room)
            except (zlib.error, brotli.error, zstandard.ZstdError) as error:
                raise Undecodable(str(error)) from None
        return chunk


def _layers_for(name: str) -> list[Layer]:
    match name:
        case "" | "identity":
            return []
        case "gzip" | "x-gzip":
            return [_Members(partial(zlib.decompressobj, zlib.MAX_WBITS | 16), GZIP_SLICE_BYTES)]
        case "deflate":
            return [_Deflate()]
        case "br":
            return [_Brotli()]
        case "zstd":
            # One for all frames: it only carries the window's limit.
            frames = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
            return [_Members(frames.decompressobj, ZSTD_SLICE_BYTES)]
        case _:
            return [_Unknown()]


def _require(fits: bool) -> None:
    if not fits:
        raise Undecodable("it unfolds to more than its limit")


class _Unknown:
    is_whole = False

    def feed(self, data: bytes, room: int) -> bytes:
        raise Undecodable("unknown encoding")


class _Member(Protocol):
    """A complete stream of gzip or zstd, as their libraries decode it."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Members:
    """Streams that may follow each other: gzip calls them members, zstd frames."""

    def __init__(self, opened: Callable[[], _Member], slice_bytes: int) -> None:
        self._opened = opened
        self._slice_bytes = slice_bytes
        self._member = opened()
        self._count = 1

    @property
    def is_whole(self) -> bool:
        return self._member.eof

    def feed(self, data: bytes, room: int) -> bytes:
        pieces = []
        for start in range(0, len(data), self._slice_bytes):
            rest = data[start : start + self._slice_bytes]
            while rest:
                piece, rest = self._decompress(rest)
                room -= len(piece)
                _require(room >= 0)
                pieces.append(piece)
        return b"".join(pieces)

    def _decompress(self, data: bytes) -> tuple[bytes, bytes]:
        """What a slice unfolds to, and what of it belongs to the next member."""
        if self._member.eof:
            self._member = self._opened()
            self._count += 1
            _require(self._count <= MEMBERS_MAX)
        piece = self._member.decompress(data)
        return piece, self._member.unused_data if self._member.eof else b""


class _Deflate:
    """The name means zlib's format, but some servers send the bare one: the first two bytes tell."""

    def __init__(self) -> None:
        self._head = b""
        self._stream = zlib.decompressobj()
        self._is_started = False

    @property
    def is_whole(self) -> bool:
        return self._stream.eof

    def feed(self, data: bytes, room: int) -> bytes:
        if not self._is_started:
            self._head += data
            if len(self._head) < 2:
                return b""
            data, self._head = self._head, b""
            self._is_started = True
            if data[0] & 0x0F != zlib.DEFLATED or int.from_bytes(data[:2], "big") % 31:
                self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
        if self._stream.eof:
            return b""
        decoded = self._stream.decompress(data, room + 1)
        _require(len(decoded) <= room)
        return decoded


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    @property
    def is_whole(self) -> bool:
        return bool(self._stream.is_finished())

    def feed(self, data: bytes, room: int) -> bytes:
        if self._stream.is_finished():
            return b""
        decoded: bytes = self._stream.process(data, output_buffer_limit=room + 1)
        # Beyond its limit the library keeps the rest to itself and asks to be called again.
        _require(len(decoded) <= room and (self._stream.is_finished() or self._stream.can_accept_more_data()))
        return decoded
