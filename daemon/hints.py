"""What in a request may belong to its conversation alone, though nobody said so: hints.

One rule: a hint leaves this process only as a keyed hash with its account, and nothing that may be a secret is one.

Theory of operation.  Clients that are not known may name their sessions all the same, in a header of their own.  Such a
header looks like an id and stays the same for a conversation; which of them does, the worker learns (`worker.hints`).
Here is only decided what may be looked at: headers of the client's own with a value like an id, and the two body fields
that applications use for purposes of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from daemon.chain import digest
from daemon.providers import Turn
from worker.protocol import HINTS_MAX, Hint, HintKind


def hints_of(
    headers: Iterable[tuple[str, str]], turn: Turn, hash_key: bytes, *, account: str, client: str
) -> list[Hint]:
    """The hints of a request, those whose name speaks of a session first."""
    found: list[tuple[HintKind, str, str]] = [("field", name, value) for name, value in turn.hints]
    for name, value in headers:
        name = name.lower()
        if _may_hint(name) and _IS_ID.fullmatch(value):
            found.append(("session" if _speaks_of_session(name) else "header", name, value))
    found.sort(key=lambda each: _ORDER[each[0]])
    return [
        Hint(kind, name, digest(hash_key, "hint", account, client, name, value))
        for kind, name, value in found[:HINTS_MAX]
    ]


def _may_hint(name: str) -> bool:
    is_own = name.startswith("x-") or "session" in name or "affinity" in name
    return is_own and len(name) <= NAME_CHARACTERS_MAX and not _NEVER.search(name)


def may_be_secret(name: str) -> bool:
    """Whether a header of that name may hold what must not be kept."""
    return bool(_SECRET.search(name))


def _speaks_of_session(name: str) -> bool:
    return bool(_SESSION.search(name)) and not _LARGER.search(name)


NAME_CHARACTERS_MAX: Final = 64
_IS_ID: Final = re.compile(r"[A-Za-z0-9_-]{8,128}")
_SECRET: Final = re.compile(r"token|cookie|auth|secret|api-?key|password|signature")
_NEVER: Final = re.compile(
    rf"{_SECRET.pattern}|^x-stainless-|^x-perdure-|^x-forwarded-|^x-real-ip"
    r"|request-id|correlation-id|trace|span"
)
"""Secrets; what SDKs say of themselves; what is new with every request."""
_SESSION: Final = re.compile(r"session|affinity|conversation|thread|chat")
_LARGER: Final = re.compile(r"user|account|org|project|team|tenant|workspace|device|install|machine|host|process")
"""What has many conversations, however its header goes on."""
_ORDER: Final[dict[HintKind, int]] = {"session": 0, "field": 1, "header": 2}
