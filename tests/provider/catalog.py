"""What the two providers say beside an answer: headers, errors, models.

One rule: pure; names, values and shapes are those of the real APIs.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal

from tests.provider.reply import Canned, to_json

Provider = Literal["anthropic", "openai"]

RETRY_AFTER_SECONDS: Final = 1
"""The least that a client may be told in whole seconds."""

_ANTHROPIC_ERRORS: Final = {
    400: ("invalid_request_error", "The request was refused"),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the specified resource"),
    404: ("not_found_error", "Not found"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your account's rate limit. Please try again later."),
    500: ("api_error", "Internal server error"),
    503: ("api_error", "Service unavailable"),
    504: ("timeout_error", "The request timed out"),
    529: ("overloaded_error", "Overloaded"),
}
_OPENAI_ERRORS: Final = {
    400: ("invalid_request_error", None, "The request was refused"),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided"),
    403: ("invalid_request_error", "unsupported_country_region_territory", "Country not supported"),
    404: ("invalid_request_error", "not_found", "Not found"),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached. Please try again later."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", None, "The engine is currently overloaded, please try again later"),
}
_RETRYABLE: Final = frozenset({429, 503, 529})


def error(provider: Provider, status: int, request_id: str, message: str = "", code: str | None = None) -> Canned:
    """An error answer; without a message of its own it says what the provider says for that status."""
    shape = _anthropic_error if provider == "anthropic" else _openai_error
    headers = [("content-type", "application/json")]
    if status in _RETRYABLE:
        headers.append(("retry-after", str(RETRY_AFTER_SECONDS)))
    return Canned(status=status, headers=headers, body=to_json(shape(status, request_id, message, code)))


def models(provider: Provider) -> Canned:
    return Canned(body=to_json(_anthropic_models() if provider == "anthropic" else _openai_models()))


def provider_headers(provider: Provider, seed: int, number: int) -> list[tuple[str, str]]:
    """What comes with every answer, whatever its status."""
    ray = hashlib.sha256(f"{seed}/{number}/ray".encode()).hexdigest()[:16] + "-FRA"
    edge = [("Server", "cloudflare"), ("CF-RAY", ray), ("cf-cache-status", "DYNAMIC")]
    if provider == "anthropic":
        return [*_anthropic_headers(seed, number), *edge]
    return [*_openai_headers(seed, number), *edge]


def request_id_of(seed: int, number: int) -> str:
    return "req_011" + hashlib.sha256(f"{seed}/{number}/request".encode()).hexdigest()[:21]


def _anthropic_error(status: int, request_id: str, message: str, code: str | None) -> dict[str, Any]:
    kind, usual = _ANTHROPIC_ERRORS.get(status, ("api_error", "Error"))
    error = {"type": kind, "message": message or usual}
    return {"type": "error", "error": error, "request_id": request_id}


def _openai_error(status: int, request_id: str, message: str, code: str | None) -> dict[str, Any]:
    kind, usual_code, usual = _OPENAI_ERRORS.get(status, ("server_error", None, "Error"))
    return {"error": {"message": message or usual, "type": kind, "param": None, "code": code or usual_code}}


def _anthropic_headers(seed: int, number: int) -> list[tuple[str, str]]:
    reset = "2030-01-01T00:00:00Z"
    limits = [
        (f"anthropic-ratelimit-{what}-{name}", value)
        for what, limit, left in (
            ("requests", "4000", "3999"),
            ("input-tokens", "2000000", "1999000"),
            ("output-tokens", "400000", "399000"),
            ("tokens", "2400000", "2398000"),
        )
        for name, value in (("limit", limit), ("remaining", left), ("reset", reset))
    ]
    return [
        *limits,
        ("request-id", request_id_of(seed, number)),
        ("anthropic-organization-id", "00000000-0000-4000-8000-000000000001"),
        ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
        ("via", "1.1 google"),
        ("X-Robots-Tag", "none"),
    ]


def _openai_headers(seed: int, number: int) -> list[tuple[str, str]]:
    return [
        ("access-control-expose-headers", "X-Request-ID"),
        ("openai-organization", "org-of-nobody"),
        ("openai-processing-ms", "42"),
        ("openai-version", "2020-10-01"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-limit-tokens", "2000000"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-remaining-tokens", "1999000"),
        ("x-ratelimit-reset-requests", "6ms"),
        ("x-ratelimit-reset-tokens", "30ms"),
        ("x-request-id", request_id_of(seed, number)),
        # Two headers of one name: they must not be joined or lost on the way.
        ("set-cookie", f"__cf_bm={seed:x}.{number:x}; path=/; HttpOnly; Secure; SameSite=None"),
        ("set-cookie", f"_cfuvid={seed:x}-{number:x}; path=/; HttpOnly; Secure; SameSite=None"),
        ("X-Content-Type-Options", "nosniff"),
    ]


def _anthropic_models() -> dict[str, Any]:
    names = {"claude-opus-4-6": "Claude Opus 4.6", "claude-sonnet-4-6": "Claude Sonnet 4.6"}
    data = [
        {
            "type": "model",
            "id": name,
            "display_name": title,
            "created_at": "2025-09-29T00:00:00Z",
            "lifecycle": "active",
            "line": name.split("-")[1],
            "max_input_tokens": 200_000,
            "max_tokens": 64_000,
        }
        for name, title in names.items()
    ]
    return {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}


def _openai_models() -> dict[str, Any]:
    names = ("gpt-5", "gpt-5-mini", "gpt-4.1")
    data = [{"id": name, "object": "model", "created": 1_754_000_000, "owned_by": "system"} for name in names]
    return {"object": "list", "data": data}
