"""What may be looked at as a hint, and that nothing of it leaves in clear."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from daemon.hints import NAME_CHARACTERS_MAX, hints_of
from daemon.providers import Turn
from worker.protocol import HINTS_MAX, Hint

KEY = bytes(range(32))
VALUE = "01a2037c-23f4-7452-b8ed-86223d9f6994"
PLAIN = Turn(protocol="chat")
APPLICATIONS_OWN = Turn(protocol="chat", hints=(("prompt_cache_key", "app-1"), ("metadata.user_id", "someone")))


def hints(
    *headers: tuple[str, str], turn: Turn = PLAIN, key: bytes = KEY, account: str = "a", client: str = "c"
) -> list[Hint]:
    return hints_of(headers, turn, key, account=account, client=client)


def kinds(found: Sequence[Hint]) -> list[tuple[str, str]]:
    return [(hint.kind, hint.name) for hint in found]


@pytest.mark.parametrize(
    "name", ["x-house-session", "X-House-Session-Id", "session", "my-session-key", "x-chat-id", "affinity", "x-thread"]
)
def test_header_that_speaks_of_a_session_may_come_to_name_one(name: str) -> None:
    assert kinds(hints((name, VALUE))) == [("session", name.lower())]


@pytest.mark.parametrize(
    "name",
    [
        *("x-house-run", "x-window-id"),
        *("x-user-session", "x-session-user-id", "x-org-conversation", "x-device-session", "x-host-affinity"),
        *("x-workspace-session", "x-process-session", "x-install-thread", "x-project-session", "x-account-chat"),
    ],
)
def test_header_that_speaks_of_something_larger_or_of_nothing_only_helps_to_choose(name: str) -> None:
    assert kinds(hints((name, VALUE))) == [("header", name)]


@pytest.mark.parametrize(
    "name",
    [
        *("x-session-token", "session-cookie", "x-auth-session", "x-secret-session", "x-api-key", "x-apikey-session"),
        *("x-session-password", "x-session-signature", "x-stainless-session", "x-perdure-session"),
        *("x-forwarded-session", "x-real-ip", "x-client-request-id", "x-correlation-id", "x-trace-session", "x-span"),
        *("user-agent", "authorization", "content-type", "thread-id", "conversation"),
        f"x-session-{'x' * NAME_CHARACTERS_MAX}",
    ],
)
def test_header_that_may_be_a_secret_or_is_not_the_clients_own_is_no_hint(name: str) -> None:
    assert hints((name, VALUE)) == []


@pytest.mark.parametrize(
    "value", ["", "short", "x" * 129, "a.b.c.d.e.f", "https://host", "with space", "ünïcödé-id", "a\n"]
)
def test_value_that_is_not_like_an_id_is_no_hint(value: str) -> None:
    assert hints(("x-house-session", value)) == []


@pytest.mark.parametrize("value", ["x" * 8, "x" * 128, "ses_0-AZ"])
def test_value_like_an_id_is_a_hint(value: str) -> None:
    assert len(hints(("x-house-session", value))) == 1


def test_fields_of_the_body_are_hints_after_the_headers_that_speak_of_sessions() -> None:
    found = hints(("x-house-run", VALUE), ("x-house-session", VALUE), turn=APPLICATIONS_OWN)

    assert kinds(found) == [
        ("session", "x-house-session"),
        ("field", "prompt_cache_key"),
        ("field", "metadata.user_id"),
        ("header", "x-house-run"),
    ]


def test_hints_beyond_their_bound_are_the_least_telling_ones() -> None:
    many = [(f"x-house-{number}", VALUE) for number in range(2 * HINTS_MAX)]

    found = hints(*many, ("x-house-session", VALUE), turn=APPLICATIONS_OWN)

    assert len(found) == HINTS_MAX
    assert [kind for kind, _ in kinds(found)][:3] == ["session", "field", "field"]


def test_value_of_a_hint_is_hashed_with_all_that_it_belongs_to() -> None:
    mine = hints(("x-house-session", VALUE))[0].value
    others = [
        hints(("x-house-session", VALUE), account="b")[0].value,
        hints(("x-house-session", VALUE), client="d")[0].value,
        hints(("x-house-session", VALUE), key=bytes(32))[0].value,
        hints(("x-other-session", VALUE))[0].value,
        hints(("x-house-session", VALUE[::-1]))[0].value,
    ]

    assert VALUE not in mine
    assert len({mine, *others}) == 1 + len(others)
    assert hints(("X-House-Session", VALUE))[0].value == mine
