"""Our own errors have the provider's shape."""

from __future__ import annotations

import json

import pytest

from daemon.providers import error_body, reader


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_messages_error_has_the_type_of_its_status(status: int, kind: str) -> None:
    body = json.loads(error_body("messages", status, "no"))
    assert body == {"type": "error", "error": {"type": kind, "message": "no"}}


@pytest.mark.parametrize("protocol", ["chat", "responses"])
@pytest.mark.parametrize(("status", "kind"), [(400, "invalid_request_error"), (502, "server_error")])
def test_openai_error_has_its_four_fields(protocol: str, status: int, kind: str) -> None:
    body = json.loads(error_body(protocol, status, 'say "no"'))  # type: ignore[arg-type]
    assert body == {"error": {"message": 'say "no"', "type": kind, "param": None, "code": None}}


@pytest.mark.parametrize("protocol", ["messages", "chat", "responses"])
def test_error_with_a_kind_of_its_own_is_read_as_a_failure(protocol: str) -> None:
    body = error_body(protocol, 400, "no", kind="special_error")  # type: ignore[arg-type]
    assert json.loads(body)["error"]["type"] == "special_error"
    looking_on = reader(protocol, event_stream=False, encoding="")  # type: ignore[arg-type]
    looking_on.feed(body)
    assert looking_on.close(True).failed
