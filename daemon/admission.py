"""Whose requests are answered: whoever has the token, and where none is asked for, nobody whom a web page sent.

One rule: what is refused reaches neither a provider nor a path of our own, and a refusal quotes nothing of the request.

Theory.  Without a token perdure listens on loopback, which keeps other machines out, but not the pages in its user's
browser.  A page can send a request to 127.0.0.1; its browser then says whose page it is, in `Origin`.  And a page whose
own name was made to mean 127.0.0.1 (DNS rebinding) is of one origin with us, and could read what we answer; its browser
then sends that name, in `Host`.  Neither header is the page's to write, so a name that is not ours in one of them shows
a page, and everything else is a program of this machine.

With a token neither is looked at: a page does not know it, and a proxy in front has names that we do not.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from msgspec import Struct

from worker.settings import is_loopback

TOKEN_HEADER: Final = "x-perdure-token"  # noqa: S105 - a header's name
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""What a load balancer asks for, by any name and without a token; they tell a stranger nothing."""


class Refusal(NamedTuple):
    status: int
    message: str


class Admission(Struct, frozen=True):
    token: str
    """Empty: nothing is asked for."""
    hosts: Sequence[str]
    """Names that are ours beside those of loopback, in lower case."""

    def refusal(self, path: str, headers: Sequence[tuple[str, str]]) -> Refusal | None:
        """Why a request is not answered; None if it is."""
        if path in OPEN_PATHS:
            return None
        if self.token:
            return None if _is_token(next(_values(headers, TOKEN_HEADER), ""), self.token) else _NO_TOKEN
        if not all(self._is_ours(host) for host in _values(headers, "host")):
            return _STRANGE_HOST
        if not all(self._is_harmless(origin) for origin in _values(headers, "origin")):
            return _STRANGE_ORIGIN
        return None

    def _is_ours(self, authority: str) -> bool:
        """`authority`: a host, with or without a port."""
        try:
            host = (urlsplit(f"//{authority}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        # Names under localhost mean this machine to browsers, whatever a name server says: desktop programs use them.
        return is_loopback(host) or host.endswith(".localhost") or host in self.hosts

    def _is_harmless(self, origin: str) -> bool:
        """Editors and desktop programs have schemes of their own, which no page can have; a page that hides where it
        comes from says "null"."""
        scheme, _, authority = origin.lower().partition("://")
        return self._is_ours(authority) if scheme in ("http", "https") else scheme != "null"


def without_token(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The client's headers as the provider may see them."""
    return [(name, value) for name, value in headers if name.lower() != TOKEN_HEADER]


def _values(headers: Iterable[tuple[str, str]], wanted: str) -> Iterator[str]:
    return (value for name, value in headers if name.lower() == wanted)


def _is_token(given: str, token: str) -> bool:
    """In a time that does not tell how much of it is right; as bytes, since a header may hold any."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())


_NO_TOKEN: Final = Refusal(401, f"perdure asks for its token in the header {TOKEN_HEADER}")
_REMEDY: Final = "PERDURE_HOSTS lists further names; with PERDURE_TOKEN all are answered that send it"
_STRANGE_HOST: Final = Refusal(421, f"the host that this request names is not known to be perdure; {_REMEDY}")
_STRANGE_ORIGIN: Final = Refusal(403, f"perdure answers no web pages of hosts that it does not know; {_REMEDY}")
