"""Content encodings, undone piece by piece.

One rule: no chunk may unfold to more than `DECODED_BYTES_PER_CHUNK_MAX`; what cannot be decoded says so once, by
`Undecodable`, and is then left alone by its reader.

Theory of operation.  The bytes pass to the client untouched; this is a copy, read for the tokens in it.  So a loss
here costs a number, never an answer, and giving up early is right wherever going on would cost memory.  Encodings
are undone in the reverse of the order in which the header names them.
"""

from __future__ import annotations

import zlib
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


class Undecodable(Exception):
    """The encoding is unknown or broken, or unfolds to more than the limit."""


class Layer(Protocol):
    def feed(self, data: bytes, room: int) -> bytes:
        """Decode; raises Undecodable if the result would not fit into `room`."""


class Decoder:
    """Undoes what a content-encoding header names.  An unknown name is told by the first `feed`."""

    def __init__(self, encoding: str) -> None:
        names = [name.strip().lower() for name in encoding.split(",")]
        self._layers = [layer for name in reversed(names) for layer in _layers_for(name)]
        if len(self._layers) > ENCODINGS_MAX:
            self._layers = [_Unknown()]

    def feed(self, chunk: bytes) -> bytes:
        for layer in self._layers:
            try:
                chunk = layer.feed(chunk, DECODED_BYTES_PER_CHUNK_MAX)
            except (zlib.error, brotli.error, zstandard.ZstdError) as error:
                raise Undecodable(str(error)) from None
        return chunk


def _layers_for(name: str) -> list[Layer]:
    match name:
        case "" | "identity":
            return []
        case "gzip" | "x-gzip":
            return [_Gzip()]
        case "deflate":
            return [_Deflate()]
        case "br":
            return [_Brotli()]
        case "zstd":
            return [_Zstd()]
        case _:
            return [_Unknown()]


def _require(fits: bool) -> None:
    if not fits:
        raise Undecodable(f"more than {DECODED_BYTES_PER_CHUNK_MAX} bytes in one chunk")


class _Unknown:
    def feed(self, data: bytes, room: int) -> bytes:
        raise Undecodable("unknown encoding")


class _Gzip:
    """Members may follow each other."""

    def __init__(self) -> None:
        self._wbits = zlib.MAX_WBITS | 16
        self._member = zlib.decompressobj(self._wbits)

    def feed(self, data: bytes, room: int) -> bytes:
        pieces = []
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(self._wbits)
            piece = self._member.decompress(data, room + 1)
            room -= len(piece)
            _require(room >= 0)
            pieces.append(piece)
            data = self._member.unused_data
        return b"".join(pieces)


class _Deflate:
    """The name means zlib's format, but some servers send the bare one: the first two bytes tell."""

    def __init__(self) -> None:
        self._head = b""
        self._stream = zlib.decompressobj()
        self._is_started = False

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

    def feed(self, data: bytes, room: int) -> bytes:
        if self._stream.is_finished():
            return b""
        decoded: bytes = self._stream.process(data, output_buffer_limit=room + 1)
        # Beyond its limit the library keeps the rest to itself and asks to be called again.
        _require(len(decoded) <= room and (self._stream.is_finished() or self._stream.can_accept_more_data()))
        return decoded


class _Zstd:
    def __init__(self) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
        self._stream = decompressor.decompressobj(read_across_frames=True)

    def feed(self, data: bytes, room: int) -> bytes:
        pieces = []
        for start in range(0, len(data), ZSTD_SLICE_BYTES):
            piece = self._stream.decompress(data[start : start + ZSTD_SLICE_BYTES])
            room -= len(piece)
            _require(room >= 0)
            pieces.append(piece)
        return b"".join(pieces)
