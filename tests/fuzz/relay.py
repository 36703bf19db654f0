"""Target: bytes that a provider answers with, as they stand, to a daemon that passes them on.

What must hold: the client hears an answer that HTTP knows; what it hears of a body are the provider's bytes in their
order; where that is no answer, it is told so in a shape of the provider's, and never that we failed; and the session is
named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from tests.fuzz.answers import CHAT, DOCUMENTS, MESSAGES, RESPONSES
from tests.fuzz.coverage import Edges
from tests.fuzz.guided import Target
from tests.fuzz.stage import ANSWER, HEAD_END, HOST, Stage, is_within, staged

PATHS: Final = (b"/v1/messages", b"/v1/chat/completions", b"/v1/responses", b"/v1/files")
BODY: Final = b'{"model":"gpt-5","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}],"input":"hi"}'
OURS: Final = (502, 504)
STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 (\d\d\d) [^\r\n]*\r\n")


@contextmanager
def opened(_edges: Edges) -> Iterator[Target]:
    with staged() as stage:
        stage.provider.hangs_up = True
        yield Target(check=partial(check, stage), seeds=_seeds(), tokens=_TOKENS, is_alone=False)
        stage.provider.hangs_up = False


def check(stage: Stage, data: bytes) -> None:
    """The first byte chooses what is asked for; the rest is the answer."""
    path, stage.provider.answer = PATHS[(data[0] if data else 0) % len(PATHS)], data[1:]
    fields = b"Host: %b\r\nConnection: close\r\nContent-Length: %d" % (HOST, len(BODY))
    heard = stage.exchange([b"POST " + path + b" HTTP/1.1\r\n" + fields + HEAD_END + BODY], is_whole=True)
    status_line = STATUS_LINE.match(heard)
    assert status_line is not None, heard[:200]
    head, _, body = heard.partition(HEAD_END)
    if path != PATHS[-1]:
        assert b"\r\nx-perdure-session: " in head, head
    status = int(status_line[1])
    if not (status in OURS and b'"error"' in body):
        assert b"%d" % status in data, heard[:200]
        assert is_within(_plain(head, body), data), body
    stage.provider.answer = ANSWER
    assert stage.is_served()


def _plain(head: bytes, body: bytes) -> bytes:
    """Without its chunks; as far as it came, if it was cut."""
    if not re.search(rb"(?i)\r\ntransfer-encoding: chunked", head):
        return body
    plain = b""
    while found := re.match(rb"([0-9a-f]+)\r\n", body, re.IGNORECASE):
        size = int(found[1], 16)
        plain += body[found.end() : found.end() + size]
        body = body[found.end() + size + 2 :]
    return plain


def _seeds() -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    seeds = [b"\3" + ANSWER, b"\0HTTP/1.1 429 Too Many\r\nretry-after: 3\r\nContent-Length: 2\r\n\r\n{}"]
    for wire, stream in enumerate((MESSAGES, CHAT, RESPONSES)):
        middle = len(stream) // 2
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (stream[:middle], stream[middle:]))
        seeds.append(bytes([wire]) + head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        seeds.append(bytes([wire]) + head.replace(b"1.1", b"1.0") + b"\r\n" + stream)
        document = DOCUMENTS[wire]
        length = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(document)
        seeds.append(bytes([wire]) + length + document)
    return seeds


_WORDS: Final = (
    b"\r\n|\n|\r\n\r\n|\0|\xff|HTTP/1.0|HTTP/2|100 Continue|101 x|204 x|304 x|999 x|000|;x=y|0\r\n\r\n|-1\r\n|"
    b"ffffffffffffffff\r\n|\r\nTransfer-Encoding: chunked|\r\nTransfer-Encoding: gzip|\r\nContent-Length: 5|"
    b"\r\nContent-Length: 9|\r\nContent-Encoding: gzip|\r\nContent-Encoding: br, zstd|\r\nConnection: close|"
    b"\r\nx-a: \xff|\r\nSet-Cookie: a=b|\r\nLocation: http://x/|\r\nContent-Type: text/event-stream"
)
_TOKENS: Final = [*_WORDS.split(b"|"), b"x" * 9_000]
