"""Target: bytes that a client sends, as they stand, to a daemon that listens.

What must hold: every answer is one that HTTP knows and none is a failure of ours; what is asked of the provider is
framed once and was asked by the client, with its bytes and no others, and not more often; the next client is served.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from tests.fuzz.coverage import Edges
from tests.fuzz.guided import Target
from tests.fuzz.stage import HEAD_END, HOST, Request, Stage, is_within, staged

PIECE: Final = b"\x1c\x1c"
"""Between what is sent at once and what is sent later."""
STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d) [^\r\n]*\r\n")
OWN_FIELDS: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})
"""Headers whose values are those of the connection to the provider."""
WHITESPACE: Final = b" \t"


@contextmanager
def opened(_edges: Edges) -> Iterator[Target]:
    with staged() as stage:
        yield Target(check=partial(check, stage), seeds=SEEDS, tokens=_TOKENS, is_alone=False)


def check(stage: Stage, data: bytes) -> None:
    sent = data.replace(PIECE, b"")
    heard = stage.exchange(data.split(PIECE))
    answers = [int(status) for status in STATUS.findall(heard)]
    assert not heard or STATUS.match(heard), heard[:200]
    assert 500 not in answers, heard
    asked = stage.provider.seen
    # The last one may have been answered when nobody heard it any more.
    assert len(asked) <= len([status for status in answers if status != 100]) + 1, (asked, answers)
    for request in asked:
        _check_forwarded(request, sent)
    assert stage.is_served()


def _check_forwarded(request: Request, sent: bytes) -> None:
    """Nothing in it that the client did not send, apart from what frames it."""
    assert request.target.removeprefix(b"/") in sent, request.target
    assert is_within(request.body, sent), request.body
    for name, value in request.fields:
        if name.lower() not in OWN_FIELDS:
            # A value that goes on in a second line is one line then; bytes that are no UTF-8 are sent as ISO 8859-1.
            plain = value if value in sent else value.decode("utf-8", "replace").encode("latin-1", "replace")
            assert name.lower() in sent.lower() and (plain in sent or is_within(plain.strip(WHITESPACE), sent)), value


def _post(target: bytes, head: bytes, body: bytes) -> bytes:
    return b"POST " + target + b" HTTP/1.1\r\nHost: " + HOST + b"\r\n" + head + HEAD_END + body


_TURN: Final = b'{"model":"claude-sonnet-4-6","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
_LENGTH: Final = b"Content-Length: %d" % len(_TURN)
_CHUNKED: Final = b"Transfer-Encoding: chunked"
_IN_CHUNKS: Final = b"5;ext=1\r\n%b\r\n%x\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (_TURN[:5], len(_TURN) - 5, _TURN[5:])
_GET: Final = b"GET %b HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n"
_WORDS: Final = (
    b"\r\n|\n|\r|\r\n\r\n|\0| |\t|\xff|\xc3\xa9|\x1c\x1c|..|/../|%2e%2e|%|%00|%zz|?|#|//|http://x/|*|;a=b|-1|0\r\n\r\n|"
    b"HTTP/1.0|HTTP/1.1|HTTP/2.0|GET |HEAD |CONNECT |\r\nTransfer-Encoding: chunked|\r\nContent-Length: 5, 5|"
    b"\r\nTransfer-Encoding: gzip, chunked|\r\nTransfer-Encoding:\tchunked|\r\nTransfer-Encoding: xchunked|"
    b"\r\nTransfer-Encoding: identity|\r\nContent-Length: 5|\r\nContent-Length: +5|\r\nContent-Length : 5|"
    b"\r\n folded: yes|\r\nConnection: close, x|\r\nExpect: 100-continue|\r\nUpgrade: websocket|\r\nHost: evil|"
    b"\r\nContent-Encoding: gzip|ffffffffffffffff|5\r\n|/v1/messages|/v1/responses|/api/sessions/|/api/sessions/%00|"
    b"/metrics|/readyz|/anthropic/v1/x"
)
_TOKENS: Final = [*_WORDS.split(b"|"), b"x" * 9_000]
SEEDS: Final = [
    _GET % b"/healthz",
    _GET % b"/readyz" + _GET % b"/metrics" + _GET % b"/api/sessions",
    *(_GET % b"/api/sessions/%b" % each for each in (b"%00", b"..%2f..", b"a" * 600, b"%ff", b"x'--", b"", b"?a=%z#f")),
    _GET % b"http://host:80/v1/models?x=%20/../y",
    _GET % b"//v1//models/../%2e%2e?",
    _post(b"/v1/messages?beta=true", b"x-api-key: k\r\n" + _LENGTH, _TURN),
    _post(b"/v1/messages", b"X-Session-Id: s-1\r\n" + _CHUNKED, _IN_CHUNKS),
    _post(b"/v1/messages", _LENGTH, _TURN) + _post(b"/v1/messages/count_tokens", _LENGTH, _TURN) + _GET % b"/v1/models",
    _post(b"/v1/files", _CHUNKED, _IN_CHUNKS),
    _post(b"/v1/files", _LENGTH + b"\r\n" + _CHUNKED, _IN_CHUNKS),
    _post(b"/v1/chat/completions", b"Authorization: Bearer k\r\nContent-Length: 5\r\nContent-Length: 6", _TURN),
    _post(b"/v1/chat/completions", b"Expect: 100-continue\r\n" + _LENGTH, PIECE + _TURN),
    _post(b"/v1/responses", b"Connection: Upgrade, x-a\r\nUpgrade: websocket\r\nx-a: 1\r\nContent-Length: 0", b""),
    _post(b"/openai/v1/responses", b"x-a: \xc3\xa9\xff\r\nx-b:\r\n folded\r\nX-A: 2\r\n" + _LENGTH, _TURN),
    _post(b"/v1/messages", _LENGTH, _TURN[:20] + PIECE + _TURN[20:]).replace(b"HTTP/1.1", b"HTTP/1.0"),
    b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
]
