"""A conversation as a chain of keyed hashes: how one without an id is known again.

One rule: a link stands for a whole beginning, from the first message up to one, and for whom it was said.

Theory of operation.  The chain starts from a root, which says whose conversation it is: an account's, a sub-agent's of
some session, or what the provider keeps under the id of a response.  Link i is a hash over the link before and message
i in normal form.  When a turn begins, its session learns the link of its last message; when it was answered, the link
that includes the answer takes its place.  A later request goes on from a session whose link is among its own proper
prefixes.  The model is no part of it, since people change models within a conversation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from daemon.providers import MARK, Unit, merged
from worker.protocol import CONTINUES_MAX


class HashKeys(Struct, frozen=True, kw_only=True):
    """What chains, accounts and hints are hashed with."""

    store: bytes | None
    """Made with the database; None while no worker was ever heard."""
    early: bytes
    """Shared by the daemons of this host, for conversations that begin before that."""
    early_was_used: bool = False
    """By any of them, so that they must be looked up under it too."""


class Chain(Struct, frozen=True):
    """The links of a conversation, first to last; link i covers i + 1 messages in normal form."""

    hash_key: bytes
    root: str
    links: tuple[str, ...]
    last: Unit
    """The newest message: an answer may go on from one that the client began for it."""
    is_kept_by_provider: bool = False
    """The root stands for messages that are not in the request."""

    @property
    def is_opening(self) -> bool:
        """No answer was given yet; a message that the client began for the assistant is none."""
        return len(self.links) <= 2 and not self.is_kept_by_provider

    @property
    def length(self) -> int:
        """Messages in the conversation; 0 where the provider keeps them."""
        return 0 if self.is_kept_by_provider else len(self.links)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The links of what came before the newest message, longest first."""
        before = self.links[-2::-1]
        return (*before, self.root) if self.is_kept_by_provider else before

    def answered(self, answer: Unit) -> tuple[str, int]:
        """The link that covers the answer too, and how many messages it covers."""
        units = merged([self.last, answer])
        link = self.links[-2] if len(self.links) > 1 else self.root
        for unit in units:
            link = _link(self.hash_key, link, unit)
        return link, len(self.links) - 1 + len(units)


def chain_of(units: Sequence[Unit], root: str, hash_key: bytes, *, is_kept_by_provider: bool = False) -> Chain:
    """The chain of at least one message."""
    links = [root]
    for unit in units:
        links.append(_link(hash_key, links[-1], unit))
    return Chain(hash_key, root, tuple(links[1:]), units[-1], is_kept_by_provider)


def account_root(hash_key: bytes, account: str) -> str:
    return digest(hash_key, "account", account)


def child_root(hash_key: bytes, account: str, parent_session_id: str) -> str:
    """Sub-agents are known within their session alone: many are asked the same."""
    return digest(hash_key, "sub-agent", account, parent_session_id)


def response_root(hash_key: bytes, account: str, response_id: str) -> str:
    """What the provider keeps under a response's id; also the link that the response itself ends with."""
    return digest(hash_key, "response", account, response_id)


def is_telling(answer: Unit) -> bool:
    """Whether an answer by itself tells its conversation from others: it is long, or calls a tool by an id."""
    return len(answer.text) >= TELLING_CHARACTERS or MARK in answer.text


def said_value(hash_key: bytes, account: str, answer: Unit) -> str:
    """An answer by itself, whatever it answered."""
    return f"said {digest(hash_key, 'said', account, answer.text)}"


def continued_values(chain: Chain | None, early: Chain | None) -> list[str]:
    """The values by which a session may be recognised that a request goes on from, the best first."""
    chains = [each for each in (chain, early) if each]
    most = CONTINUES_MAX // max(len(chains), 1)
    return [link for each in chains for link in each.prefixes[:most]]


def retry_link(chain: Chain, body: bytes) -> str:
    """The same messages with all answers are proof enough.  An opening proves little by itself, and must be the same
    request in everything, but that clients write their keys in another order and give up streaming."""
    key = chain.hash_key
    whole = hashlib.blake2b(_rewritten(body), key=key, digest_size=DIGEST_BYTES).hexdigest() if chain.is_opening else ""
    return digest(key, "retry", chain.links[-1], whole)


def digest(hash_key: bytes, *parts: str) -> str:
    """A keyed hash over parts whose boundaries count."""
    hashed = hashlib.blake2b(key=hash_key, digest_size=DIGEST_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        hashed.update(len(data).to_bytes(8, "big"))
        hashed.update(data)
    return hashed.hexdigest()


def _rewritten(body: bytes) -> bytes:
    """The same for all ways to write the same request; as it is where it can not be read as a whole."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
        for name in STREAM_FIELDS:
            fields.pop(name, None)
        return msgspec.json.encode(fields, order="deterministic")
    except (ValueError, RecursionError):
        return body


def _link(hash_key: bytes, before: str, unit: Unit) -> str:
    return digest(hash_key, "message", before, unit.role, unit.text)


TELLING_CHARACTERS: Final = 40
"""Of an answer without its whitespace: "Done." and "OK" are everybody's."""
STREAM_FIELDS: Final = ("stream", "stream_options")
DIGEST_BYTES: Final = 16
"""128 bits: with a billion keys the odds of one collision are below 10⁻²⁰."""
