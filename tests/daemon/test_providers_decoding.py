"""Encodings are undone piece by piece, and none of them can take more memory than the limit."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Final

import brotli
import pytest
import zstandard

from daemon.providers.decoding import (
    DECODED_BYTES_PER_CHUNK_MAX,
    MEMBERS_MAX,
    REQUEST_SLICE_BYTES,
    Decoder,
    Undecodable,
    plain_body,
)

PLAIN = "".join(f"Zeile {number}: größer\n" for number in range(3000)).encode()


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


ENCODED: dict[str, tuple[str, bytes]] = {
    "identity": ("identity", PLAIN),
    "none": ("", PLAIN),
    "gzip": ("gzip", gzip.compress(PLAIN)),
    "x-gzip in capitals": (" X-GZIP ", gzip.compress(PLAIN)),
    "gzip of two members": ("gzip", gzip.compress(PLAIN[:100]) + gzip.compress(PLAIN[100:])),
    "deflate": ("deflate", zlib.compress(PLAIN)),
    "deflate without header": ("deflate", raw_deflate(PLAIN)),
    "br": ("br", brotli.compress(PLAIN)),
    "zstd": ("zstd", zstandard.compress(PLAIN)),
    "zstd of two frames": ("zstd", zstandard.compress(PLAIN[:100]) + zstandard.compress(PLAIN[100:])),
    "gzip, then br": ("gzip, br", brotli.compress(gzip.compress(PLAIN))),
    "br, identity, then zstd": ("br, identity, zstd", zstandard.compress(brotli.compress(PLAIN))),
}


@pytest.mark.parametrize("size", [1, 2, 1000, 10**6])
@pytest.mark.parametrize(("encoding", "data"), ENCODED.values(), ids=ENCODED.keys())
def test_body_in_pieces_is_decoded(encoding: str, data: bytes, size: int) -> None:
    decoder = Decoder(encoding)
    decoded = [decoder.feed(data[start : start + size]) for start in range(0, len(data), size)]
    assert b"".join(decoded) == PLAIN


def flushed_gzip(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)


def flushed_brotli(data: bytes) -> bytes:
    compressor = brotli.Compressor()
    return bytes(compressor.process(data) + compressor.flush())


def flushed_zstd(data: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(data) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


@pytest.mark.parametrize(
    ("encoding", "encode"), [("gzip", flushed_gzip), ("br", flushed_brotli), ("zstd", flushed_zstd)]
)
def test_event_that_the_provider_flushed_is_readable_at_once(encoding: str, encode: Callable[[bytes], bytes]) -> None:
    assert Decoder(encoding).feed(encode(b"event: message_stop\n\n")) == b"event: message_stop\n\n"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "compress", "gzip, nonsense", "gzip," * 4])
def test_encoding_broken_or_unknown_is_undecodable(encoding: str) -> None:
    with pytest.raises(Undecodable):
        Decoder(encoding).feed(b"\x07data: {}\n\n this is none of them" * 10)


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", lambda data: gzip.compress(data, 9)),
        ("deflate", zlib.compress),
        ("br", lambda data: brotli.compress(data, quality=5)),
        ("zstd", zstandard.compress),
        ("zstd, gzip", lambda data: gzip.compress(zstandard.compress(data))),
    ],
)
def test_bomb_is_given_up_before_it_takes_memory(encoding: str, encode: Callable[[bytes], bytes]) -> None:
    bomb = encode(bytes(3 * DECODED_BYTES_PER_CHUNK_MAX))
    decoder = Decoder(encoding)
    tracemalloc.start()
    with pytest.raises(Undecodable):
        decoder.feed(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * DECODED_BYTES_PER_CHUNK_MAX


@pytest.mark.parametrize(("encoding", "data"), [ENCODED["gzip"], ENCODED["deflate"], ENCODED["br"]])
def test_unfolding_to_the_limit_is_allowed(encoding: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.providers.decoding.DECODED_BYTES_PER_CHUNK_MAX", len(PLAIN))
    assert Decoder(encoding).feed(data) == PLAIN
    monkeypatch.setattr("daemon.providers.decoding.DECODED_BYTES_PER_CHUNK_MAX", len(PLAIN) - 1)
    with pytest.raises(Undecodable):
        Decoder(encoding).feed(data)


# -- whole request bodies

MEGABYTE: Final = 1024 * 1024
BOMBS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", lambda data: gzip.compress(data, 9)),
    "deflate": ("deflate", zlib.compress),
    "br": ("br", lambda data: brotli.compress(data, quality=5)),
    "zstd": ("zstd", zstandard.compress),
    "gzip within gzip": ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
    "zstd within br": ("zstd, br", lambda data: brotli.compress(zstandard.compress(data), quality=5)),
}
every_coding = pytest.mark.parametrize(("encoding", "data"), ENCODED.values(), ids=ENCODED.keys())


@every_coding
def test_whole_body_within_its_limit_is_given_plain(encoding: str, data: bytes) -> None:
    assert plain_body(data, encoding, len(PLAIN)) == PLAIN
    assert plain_body(data, encoding, len(PLAIN) - 1) is None


def test_limit_counts_for_the_whole_body_and_not_for_its_slices() -> None:
    noise = random.Random(1).randbytes(5 * REQUEST_SLICE_BYTES)
    assert plain_body(gzip.compress(noise), "gzip", len(noise)) == noise
    assert plain_body(gzip.compress(noise), "gzip", len(noise) - 1) is None
    assert plain_body(gzip.compress(gzip.compress(noise)), "gzip, gzip", len(noise) + 1_000) == noise


@pytest.mark.parametrize("name", [name for name, (encoding, _) in ENCODED.items() if encoding not in ("", "identity")])
def test_whole_body_that_lacks_its_end_is_broken(name: str) -> None:
    encoding, data = ENCODED[name]
    for missing in (1, 4, len(data) // 2, len(data)):
        assert plain_body(data[:-missing], encoding, MEGABYTE) is None, f"{missing} bytes are missing"


@pytest.mark.parametrize(
    "encoding", ["compress", "gzip;q=1", "gzip gzip", "gzip, nonsense", "gzip," * 4, "\0", "gzip, deflate, br, zstd"]
)
def test_whole_body_of_unknown_encoding_is_not_read(encoding: str) -> None:
    assert plain_body(gzip.compress(PLAIN), encoding, MEGABYTE) is None
    assert plain_body(b"", encoding, MEGABYTE) is None


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "br", "zstd", "gzip, br"])
@pytest.mark.parametrize("body", [b"{}", PLAIN, bytes(1000), b"\x1f\x8b", b"\x28\xb5\x2f\xfd" + b"\xff" * 100])
def test_whole_body_that_is_not_what_its_header_says_is_broken(encoding: str, body: bytes) -> None:
    assert plain_body(body, encoding, MEGABYTE) in (None, b"")


@pytest.mark.parametrize("encoding", ["", "identity", " , identity ,"])
def test_whole_body_without_an_encoding_is_itself(encoding: str) -> None:
    assert plain_body(PLAIN, encoding, len(PLAIN)) is PLAIN
    assert plain_body(b"", encoding, 0) == b""


@pytest.mark.parametrize(("encoding", "encode"), BOMBS.values(), ids=BOMBS)
def test_whole_body_that_is_a_bomb_is_given_up_before_it_takes_memory(
    encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    bomb = encode(bytes(128 * MEGABYTE))
    limit_bytes = 16 * MEGABYTE
    tracemalloc.start()
    assert plain_body(bomb, encoding, limit_bytes) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * limit_bytes


@pytest.mark.parametrize(("encoding", "member"), [("gzip", gzip.compress(b"")), ("zstd", zstandard.compress(b""))])
def test_members_without_end_are_given_up(encoding: str, member: bytes) -> None:
    assert plain_body(member * MEMBERS_MAX, encoding, MEGABYTE) == b""
    assert plain_body(member * (MEMBERS_MAX + 1), encoding, MEGABYTE) is None
