"""Errors of our own, in the shape that the provider's clients know how to read.

One rule: a client's SDK must raise what it would raise had the provider sent the same status.
"""

from __future__ import annotations

from typing import Final

import msgspec

from daemon.providers.base import WireFormat

MESSAGES_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
OPENAI_KINDS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_body(protocol: WireFormat, status: int, message: str, kind: str = "") -> bytes:
    """`kind` names the error's type where the status alone does not say it."""
    if protocol == "messages":
        fallback = "api_error" if status >= 500 else "invalid_request_error"
        error = {"type": kind or MESSAGES_KINDS.get(status, fallback), "message": message}
        return msgspec.json.encode({"type": "error", "error": error})
    fallback = "server_error" if status >= 500 else "invalid_request_error"
    kind = kind or OPENAI_KINDS.get(status, fallback)
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": None}})
