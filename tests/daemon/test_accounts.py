"""Whose account a request is on: the same one through rotating tokens, and none that could be read back."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from daemon.accounts import TOKEN_CHARACTERS_MAX, account_of
from daemon.providers import Turn, is_id
from daemon.providers.base import ID_CHARACTERS_MAX

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
OPENAI = "https://api.openai.com/auth"
PLAIN = Turn(protocol="messages")


def account(*, turn: Turn = PLAIN, key: bytes | None = KEY, **headers: str) -> str:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return account_of(named, turn, key, ["chatgpt-account-id"])


def bearer(credential: str) -> str:
    return account(authorization=f"Bearer {credential}")


def token(claims: Any, signature: str = "c2ln") -> str:
    head, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "RS256"}, claims)
    )
    return f"{head}.{payload}.{signature}"


def test_account_of_one_key_is_the_same_in_either_header() -> None:
    accounts = {account(x_api_key="sk-1"), bearer("sk-1"), account(authorization="Bearer  sk-1 ")}

    assert len(accounts) == 1
    assert "sk-1" not in accounts.pop()


def test_account_of_another_key_or_another_store_differs() -> None:
    accounts = [account(x_api_key="sk-1"), account(x_api_key="sk-2"), account(key=OTHER_KEY, x_api_key="sk-1")]

    assert len(set(accounts)) == 3


def test_account_of_a_rotated_token_is_its_subjects() -> None:
    first, second = (token({"sub": "user-1", "iss": "i", "exp": exp}, f"sig{exp}") for exp in (1, 2))

    assert first != second
    assert bearer(first) == bearer(second) == account(x_api_key=second)
    assert "user-1" not in bearer(first)


@pytest.mark.parametrize("claims", [{"sub": "user-2", "iss": "i"}, {"sub": "user-1", "iss": "j"}, {"sub": "user-1"}])
def test_account_of_another_subject_or_issuer_differs(claims: dict[str, str]) -> None:
    assert bearer(token(claims)) != bearer(token({"sub": "user-1", "iss": "i"}))


def test_account_of_a_subject_in_another_store_differs() -> None:
    """A subject may be a mail address: it is not kept in clear."""
    named = token({"sub": "user-1"})

    assert bearer(named) != account(key=OTHER_KEY, authorization=f"Bearer {named}")


def test_account_of_a_token_that_names_its_account_is_that() -> None:
    """One person may be in several accounts, and the claim says which one pays."""
    named = token({"sub": "user-1", OPENAI: {"chatgpt_account_id": "team-1"}})

    assert bearer(named) == "team-1"
    assert bearer(token({"sub": "user-1", OPENAI: {"chatgpt_account_id": "team-2"}})) == "team-2"


def test_account_of_a_header_that_names_it_is_that_whatever_the_token() -> None:
    for credential in ("sk-1", token({"sub": "user-1"}), token({OPENAI: {"chatgpt_account_id": "team-9"}})):
        assert account(authorization=f"Bearer {credential}", chatgpt_account_id="team-1") == "team-1"


def test_account_of_a_body_that_names_it_is_that_whatever_the_headers() -> None:
    turn = Turn(protocol="messages", account_claim="account-1")

    assert account(turn=turn, x_api_key="sk-1", chatgpt_account_id="team-1") == "account-1"


@pytest.mark.parametrize("claim", ["", "x" * (ID_CHARACTERS_MAX + 1), "a\nb"])
def test_account_of_a_claim_that_is_no_id_falls_back_on_the_credential(claim: str) -> None:
    assert account(x_api_key="sk-1", chatgpt_account_id=claim) == account(x_api_key="sk-1")
    assert bearer(token({"sub": "user-1", OPENAI: {"chatgpt_account_id": claim}})) == bearer(token({"sub": "user-1"}))


GARBAGE = {
    "no payload": "eyJhbGciOiJSUzI1NiJ9..c2ln",
    "two parts": "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1In0",
    "four parts": token({"sub": "u"}) + ".x",
    "not base64": "eyJhbGciOiJSUzI1NiJ9.%%%.c2ln",
    "base64 of one character": "eyJhbGciOiJSUzI1NiJ9.a.c2ln",
    "base64 of no JSON": "eyJhbGciOiJSUzI1NiJ9." + base64.urlsafe_b64encode(b"\xff\xfe{").decode() + ".c2ln",
    "not ASCII": "eyJhbGciOiJSUzI1NiJ9.é.c2ln",
    "half a character": "eyJhbGciOiJSUzI1NiJ9.\udcff.c2ln",
    "a list": token(["sub"]),
    "a number": token(7),
    "deeply nested": "eyJhbGciOiJSUzI1NiJ9." + base64.urlsafe_b64encode(b"[" * 5_000).decode() + ".c2ln",
    "no subject": token({"exp": 1}),
    "a subject that is no text": token({"sub": 7}),
    "claims of a wrong type": token({"sub": None, OPENAI: "team-1"}),
    "an account of a wrong type": token({OPENAI: {"chatgpt_account_id": ["team-1"]}}),
    "too long": token({"sub": "u", "pad": "x" * TOKEN_CHARACTERS_MAX}),
    "not a token": "sk-ant-oat01-abc.def.ghi",
}


@pytest.mark.parametrize("credential", GARBAGE.values(), ids=GARBAGE)
def test_account_of_a_credential_that_tells_nothing_is_its_hash(credential: str) -> None:
    found = bearer(credential)

    assert found and found == account(x_api_key=credential)
    assert found != bearer(credential + "x")


def test_account_of_a_token_says_nothing_of_a_key_with_the_subjects_text() -> None:
    assert bearer("user-1") != bearer(token({"sub": "user-1"}))


@pytest.mark.parametrize("named", [{}, {"x-api-key": ""}, {"authorization": ""}, {"authorization": "Bearer "}])
def test_account_of_no_credential_is_empty(named: dict[str, str]) -> None:
    assert account_of(named, PLAIN, KEY, []) == ""


def test_account_of_a_credential_without_a_hash_key_is_empty() -> None:
    assert account(key=None, x_api_key="sk-1") == ""
    assert account(key=None, x_api_key="sk-1", chatgpt_account_id="team-1") == "team-1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", True),
        ("x" * ID_CHARACTERS_MAX, True),
        ("", False),
        ("x" * (ID_CHARACTERS_MAX + 1), False),
        ("\x7f", False),
    ],
)
def test_is_id_takes_what_can_be_shown_and_is_not_too_long(value: str, *, expected: bool) -> None:
    assert is_id(value) is expected


@pytest.mark.parametrize("value", ["undefined", "null", "None", " ", "0", "-", "NaN", "false"])
def test_what_programs_write_for_nothing_is_no_id(value: str) -> None:
    """Else all users of a client with an unset variable were one session."""
    assert not is_id(value)
