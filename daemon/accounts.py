"""Whose account a request is on.

One rule: the same account has the same id whichever header carries its credential and however often that rotates, and
no credential can be read from it.

Theory of operation.  A client that logged in says itself whose account it is: in its body, a header, or its token.  A
login token is a JWT as a rule, renewed every few hours, whose payload names its subject; it is read without asking
whether it was signed, since the provider will, and a forged one leads to nobody's conversation but by its content.
Whoever brings a plain key is known by a keyed hash of it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from daemon.chain import digest
from daemon.providers import Turn, is_id

TOKEN_CHARACTERS_MAX: Final = 16_384
"""Login tokens have 1 to 4 KB."""


def account_of(named: Mapping[str, str], turn: Turn, hash_key: bytes | None, account_headers: Sequence[str]) -> str:
    """A stable claim where the client sends one, else a keyed hash; '' where there is neither, or no key to hash with.

    `named`: the request's headers, names in lower case.
    """
    credentials = credentials_of(named)
    for claim in (turn.account_claim, *(named.get(name, "") for name in account_headers)):
        if is_id(claim) and claim not in credentials:
            return claim
    credential = credentials[0] if credentials else ""
    if not credential or hash_key is None:
        return ""
    claims = _claims(credential)
    account = _text(_object(claims, _OPENAI_CLAIM), "chatgpt_account_id")
    if is_id(account):
        return account
    subject = _text(claims, "sub")
    if subject:
        return digest(hash_key, "subject", _text(claims, "iss"), subject)[:_ACCOUNT_CHARACTERS]
    return digest(hash_key, "credential", credential)[:_ACCOUNT_CHARACTERS]


def credentials_of(named: Mapping[str, str]) -> tuple[str, ...]:
    """The keys and login tokens among the headers, as they are used elsewhere too."""
    found = (named.get("x-api-key", ""), named.get("authorization", "").removeprefix("Bearer ").strip())
    return tuple(filter(None, found))


def is_subscription(named: Mapping[str, str]) -> bool:
    """A person's login rather than a key: what it may be used for is the client's own requests."""
    credentials = credentials_of(named)
    is_login = any(each.startswith((_LOGIN, _JWT)) for each in credentials)
    return is_login or _LOGIN_FLAG in named.get("anthropic-beta", "")


def _claims(token: str) -> dict[str, Any]:
    """The payload of a JWT; empty for anything else."""
    parts = token.split(".")
    if len(parts) != 3 or not token.startswith(_JWT) or len(token) > TOKEN_CHARACTERS_MAX:
        return {}
    try:
        payload = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError, binascii.Error):
        return {}
    return payload if isinstance(payload, dict) else {}


def _object(source: dict[str, Any], name: str) -> dict[str, Any]:
    value = source.get(name)
    return value if isinstance(value, dict) else {}


def _text(source: dict[str, Any], name: str) -> str:
    value = source.get(name)
    return value if isinstance(value, str) else ""


_JWT: Final = "eyJ"
_LOGIN: Final = "sk-ant-oat"
_LOGIN_FLAG: Final = "oauth-"
_OPENAI_CLAIM: Final = "https://api.openai.com/auth"
_ACCOUNT_CHARACTERS: Final = 16
"""64 bits: two among a million accounts share them once in 10⁷ installations."""
