"""Marked secrets and texts, and how to find them again, however they are written.

One rule: a mark is found in every form that a careless program gives to text; a test hides them and looks.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final
from urllib.parse import quote

import brotli
import zstandard

UNFOLDED_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one compressed stream: more than anything here would make."""
DIGEST_CHARACTERS: Final = 16
"""Of a plain hash: whoever guesses a text could confirm it, so it is as good as written."""


def forms_of(text: str) -> frozenset[bytes]:
    """A text as it is, and as somebody may have thought it hidden or made safe."""
    data = text.encode()
    forms = {data, data.upper(), data.lower(), data[::-1], text.encode("utf-16-le"), json.dumps(text)[1:-1].encode()}
    forms |= {quote(text, safe="").encode(), repr(data)[2:-1].encode()}
    forms |= {data.hex().encode(), data.hex().upper().encode()}
    for shift in range(3):
        # What comes before it decides how a text is cut into base64: in each of three cases its inner part is the same.
        encoded = base64.b64encode(b"\0" * shift + data)
        inner = encoded[4:-4] if shift else encoded[:-4]
        forms |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    for name in ("md5", "sha1", "sha256", "sha512", "blake2b"):
        digest = hashlib.new(name, data)
        forms |= {digest.hexdigest()[:DIGEST_CHARACTERS].encode(), digest.digest()[: DIGEST_CHARACTERS // 2]}
    return frozenset(forms)


def unfolded(data: bytes) -> Iterator[bytes]:
    """The data, and whatever unfolds from a place in it that looks like the beginning of a compressed stream."""
    yield data
    for magic, unfold in _STREAMS:
        at = data.find(magic)
        while at >= 0:
            if plain := unfold(data[at : at + UNFOLDED_BYTES_MAX]):
                yield plain
            at = data.find(magic, at + 1)


def leaks(places: Mapping[str, bytes], marks: Iterable[str]) -> list[str]:
    """Each mark that is found, with the place and the form."""
    wanted = [(mark, form) for mark in marks for form in forms_of(mark)]
    return [
        f"{mark} as {form!r} in {place}"
        for place, content in places.items()
        for plain in unfolded(content)
        for mark, form in wanted
        if form in plain
    ]


def _zlib(wbits: int) -> Callable[[bytes], bytes]:
    def unfold(data: bytes) -> bytes:
        try:
            return zlib.decompressobj(wbits).decompress(data, UNFOLDED_BYTES_MAX)
        except zlib.error:
            return b""

    return unfold


def _zstd(data: bytes) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError:
        return b""


def hidden(text: str) -> Iterator[bytes]:
    """A text in the midst of others, in each way that `leaks` must see through."""
    data = f'{{"name": "{text}"}} and more of it'.encode()
    yield from (data, data.hex().encode(), data[::-1], data.decode().encode("utf-16-le"), data.upper())
    yield from (base64.b64encode(b"x" * shift + data) for shift in range(3))
    yield from (base64.urlsafe_b64encode(b"x" * shift + data) for shift in range(3))
    yield from (quote(text).encode(), quote(text, safe="").encode(), json.dumps({"a": text}).encode())
    yield from (zlib.compress(data), b"head" + zlib.compress(data, 9) + b"tail", zstandard.compress(data))
    gzip = zlib.compressobj(wbits=31)
    yield b"head" + gzip.compress(data) + gzip.flush()
    yield from (hashlib.sha256(text.encode()).digest(), hashlib.md5(text.encode()).hexdigest().encode())


def compressed(data: bytes) -> dict[str, bytes]:
    """By the name of the content coding."""
    gzip = zlib.compressobj(wbits=31)
    return {
        "gzip": gzip.compress(data) + gzip.flush(),
        "deflate": zlib.compress(data),
        "br": brotli.compress(data),
        "zstd": zstandard.compress(data),
    }


_STREAMS: Final[tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = (
    (b"\x1f\x8b\x08", _zlib(31)),
    (b"\x78\x01", _zlib(15)),
    (b"\x78\x5e", _zlib(15)),
    (b"\x78\x9c", _zlib(15)),
    (b"\x78\xda", _zlib(15)),
    (b"\x28\xb5\x2f\xfd", _zstd),
)
