"""Which provider a request is for, and what kind of request it is.

One rule: the target is never rewritten beyond taking off the segment that named the provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from daemon.identity import Headers
from daemon.providers import WireFormat

ANTHROPIC: Final = "anthropic"
OPENAI: Final = "openai"

TURN_PATHS: Final[dict[str, WireFormat]] = {
    "/v1/messages": "messages",
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
}
OWN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics", "/ui"})
OWN_PREFIX: Final = "/api/"


class Route(Struct, frozen=True, kw_only=True):
    provider: str
    url: str
    """Where the request goes."""
    path: str
    """The path as the provider sees it."""
    speaks: WireFormat
    """The wire format of the path, else that of the provider: the shape of errors of our own."""
    is_turn: bool


def is_own(path: str) -> bool:
    return path in OWN_PATHS or path.startswith(OWN_PREFIX)


def route_of(method: str, target: str, headers: Headers, urls: Mapping[str, str]) -> Route:
    """The first path segment that names a provider decides; else Anthropic's marks; else it is OpenAI's."""
    first, slash, rest = target[1:].partition("/")
    if first in urls and slash:
        provider, target = first, f"/{rest}"
    else:
        provider = ANTHROPIC if _is_anthropic(target, headers) else OPENAI
    path = target.partition("?")[0]
    wire = TURN_PATHS.get(path)
    return Route(
        provider=provider,
        url=_base(urls[provider]) + target,
        path=path,
        speaks=wire or ("messages" if provider == ANTHROPIC else "chat"),
        is_turn=method == "POST" and wire is not None,
    )


def _is_anthropic(target: str, headers: Headers) -> bool:
    path = target.partition("?")[0]
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return True
    return any(name.lower() in ("anthropic-version", "x-api-key") for name, _ in headers)


def _base(url: str) -> str:
    """Origin and prefix; a base URL as SDKs want it ends in /v1, which the target has already."""
    return url.rstrip("/").removesuffix("/v1")
