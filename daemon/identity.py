"""Who is speaking: which keys could name the session of a request, and what to learn from an answer.

One rule: a session id that the client minted names its session, alone; everything else needs proof that the request
continues the stored conversation.  A wrong split is preferred to a wrong merge.

Theory of operation.  A conversation without an id is known by a chain of keyed hashes over the account and its leading
messages in normal form: link i stands for the first i messages.  When a turn begins, the session learns the link of
its last request; when it was answered, the link that includes the answer takes its place.  A later request continues
the session whose link is among the request's own proper prefixes, and only if one session alone holds it: two
conversations with equal openings are told apart by their answers, and where even these are equal by nothing at all.
The same request again, within minutes, is a retry of one that was not answered, or whose answer was not read.
The model is no part of it, since people change models within a conversation.

The place of what is to come: hints (learned headers, `prompt_cache_key`), sub-agents and side calls are further ways
of making a `Naming`; they belong in `naming_of`, beside the two that are here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from daemon.providers import Turn, Unit, merged
from worker.protocol import CONTINUES_MAX, Key, Naming

Headers = Sequence[tuple[str, str]]

SESSION_HEADERS: Final = (
    "x-claude-code-session-id",
    "x-session-id",
    "x-session-affinity",
    "session-id",
    "session_id",
)
"""Headers whose value a client mints for one conversation (Claude Code; OpenCode; Codex; Pi), in the order in which
they are believed where several are there."""
THREAD_HEADER: Final = "thread-id"
"""Codex: a thread of its own under the `session-id` of the thread that started it."""
ACCOUNT_HEADERS: Final = ("chatgpt-account-id",)
ID_CHARACTERS_MAX: Final = 256
"""Ids in the field have 26 to 64 characters; a longer value names nothing."""

_CLIENTS: Final = (
    ("claude-cli/", "claude-code"),
    ("codex", "codex"),
    ("opencode/", "opencode"),
    ("pi/", "pi"),
    ("Anthropic/", "anthropic-sdk"),
    ("AsyncAnthropic/", "anthropic-sdk"),
    ("OpenAI/", "openai-sdk"),
    ("AsyncOpenAI/", "openai-sdk"),
)


class Chain(Struct, frozen=True):
    """The links of a conversation, first to last: link i covers i + 1 messages in normal form."""

    hash_key: bytes
    links: tuple[str, ...]
    before_last: str
    last: Unit
    """The newest message and the link before it: an answer may go on from a message the client began for it."""

    @property
    def is_opening(self) -> bool:
        """No answer was given yet; a message that the client began for the assistant is none."""
        return len(self.links) <= 2

    def answered(self, answer: Unit) -> tuple[str, int]:
        """The link that covers the answer too, and how many messages it covers."""
        units = merged([self.last, answer])
        link = self.before_last
        for unit in units:
            link = _link(self.hash_key, link, unit)
        return link, len(self.links) - 1 + len(units)


class HashKeys(Struct, frozen=True, kw_only=True):
    """What chains and accounts are hashed with."""

    store: bytes | None
    """Made with the database; None while no worker was ever heard."""
    early: bytes
    """Drawn by this process, for conversations that begin before that: its own index knows them again."""
    early_was_used: bool = False


class Known(Struct, frozen=True, kw_only=True):
    """What a request's headers and body say about who speaks."""

    account: str
    client: str
    early_account: str = ""
    """The account as the early key hides it: keeps strangers apart while no worker was ever heard."""
    minted: tuple[str, str] | None
    """(name, value) of the session id the client minted."""
    minted_in_body: bool = False
    chain: Chain | None = None
    early_chain: Chain | None = None
    """The same conversation as it was known before any worker was heard, where there was such a time."""
    retry_link: str = ""
    """Equal for a repeated request only."""


def known_from(headers: Headers, turn: Turn, keys: HashKeys) -> Known:
    """Read the keys.  Without the store's hash key (no worker was ever heard) the account is not known."""
    named = {name.lower(): value for name, value in headers}
    minted = _minted(named)
    body_minted = next(iter(turn.minted), None) if minted is None else None
    return Known(
        account=account_of(named, turn, keys.store),
        early_account=account_of(named, turn, keys.early),
        client=client_of(named.get("user-agent", "")),
        minted=minted or body_minted,
        minted_in_body=body_minted is not None,
    )


def with_chains(known: Known, units: Sequence[Unit], body: bytes, keys: HashKeys) -> Known:
    """Add what a request that carries no id of its own is known by."""
    if not units:
        return known
    early = chain_of(units, known.early_account, keys.early) if keys.early_was_used or keys.store is None else None
    main = chain_of(units, known.account, keys.store) if keys.store is not None else early
    assert main is not None
    return replace(
        known,
        chain=main,
        early_chain=early if early is not main else None,
        retry_link=_retry_link(main, body),
    )


def chain_of(units: Sequence[Unit], account: str, hash_key: bytes) -> Chain:
    """The chain of at least one message."""
    links = [_digest(hash_key, "account", account)]
    for unit in units:
        links.append(_link(hash_key, links[-1], unit))
    return Chain(hash_key, tuple(links[1:]), links[-2], units[-1])


def naming_of(known: Known, drawn_id: str) -> Naming:
    """The session a request proposes, and how the store may recognise another.  `drawn_id`: a fresh random id."""
    if known.minted is not None:
        name, value = known.minted
        place = "body field" if known.minted_in_body else "header"
        return Naming(
            session_id=derived_id(name, value),
            confirmed=False,
            keys=[Key(kind="body" if known.minted_in_body else "header", name=name, value=value)],
            header_name=name,
            header_session_id=value,
            client=known.client,
            account=known.account,
            reason=f"the client named it: {place} {name}",
        )
    chain = known.chain
    return Naming(
        session_id=drawn_id,
        confirmed=False,
        continues=_prefixes(chain, known.early_chain),
        retry=known.retry_link,
        keys=_unanswered_keys(chain, known.retry_link) if chain else [],
        chain_length=len(chain.links) if chain else 0,
        client=known.client,
        account=known.account,
        reason="a new conversation: nothing it holds is known" if chain else "a new session: the request names nothing",
    )


def answered(naming: Naming, known: Known, answer: Unit | None) -> Naming:
    """The naming of the turn's end: once the answer is known, it is what a later request must continue."""
    if known.chain is None or answer is None:
        return naming
    link, length = known.chain.answered(answer)
    # A client that was cut off before it read this answer sends the request again.  An opening is not kept for that:
    # the same first words, answered twice, are two conversations.
    kept = ("header", "body") if known.chain.is_opening else ("header", "body", "retry")
    return replace(
        naming,
        keys=[*(key for key in naming.keys if key.kind in kept), _chain_key("answer", link)],
        chain_length=length,
    )


def derived_id(name: str, value: str) -> str:
    """The id of a session its client named: the same on every daemon, with or without a store."""
    return hashlib.sha256(f"perdure session\0{name}\0{value}".encode()).hexdigest()[: 2 * _DIGEST_BYTES]


def account_of(named: dict[str, str], turn: Turn, hash_key: bytes | None) -> str:
    """A stable claim where the client sends one, else a keyed hash of the credential, whichever header carried it."""
    claim = turn.account_claim or next((named[name] for name in ACCOUNT_HEADERS if named.get(name)), "")
    if _is_id(claim):
        return claim
    credential = named.get("x-api-key") or named.get("authorization", "").removeprefix("Bearer ").strip()
    if not credential or hash_key is None:
        return ""
    return _digest(hash_key, "credential", credential)[:_ACCOUNT_CHARACTERS]


def client_of(user_agent: str) -> str:
    """A short name for the program that speaks."""
    for beginning, name in _CLIENTS:
        if user_agent.startswith(beginning):
            return name
    product = user_agent.partition("/")[0].strip().lower()
    return product if product.replace("-", "").replace("_", "").isalnum() and len(product) <= 32 else "unknown"


def _minted(named: dict[str, str]) -> tuple[str, str] | None:
    thread = named.get(THREAD_HEADER, "")
    for name in SESSION_HEADERS:
        value = named.get(name, "")
        if not _is_id(value):
            continue
        if name == "session-id" and _is_id(thread) and thread != value:
            # A Codex sub-agent shares its parent's session id; its thread is its own conversation.
            return THREAD_HEADER, thread
        return name, value
    return None


def _is_id(value: str) -> bool:
    return 0 < len(value) <= ID_CHARACTERS_MAX and value.isprintable()


def _prefixes(chain: Chain | None, early: Chain | None) -> list[str]:
    """The links of the proper prefixes, longest first, those of an early chain after the others."""
    chains = [each for each in (chain, early) if each]
    most = CONTINUES_MAX // max(len(chains), 1)
    return [link for each in chains for link in each.links[-2::-1][:most]]


def _retry_link(chain: Chain, body: bytes) -> str:
    """The same messages with all answers are proof enough: clients ask again with another `stream`, for example.  An
    opening proves little by itself, and must be the same request to the last byte."""
    key = chain.hash_key
    whole = hashlib.blake2b(body, key=key, digest_size=_DIGEST_BYTES).hexdigest() if chain.is_opening else ""
    return _digest(key, "retry", chain.links[-1], whole)


def _unanswered_keys(chain: Chain, retry_link: str) -> list[Key]:
    return [_chain_key("retry", retry_link), _chain_key("request", chain.links[-1])]


def _chain_key(kind: str, value: str) -> Key:
    return Key(kind=kind, name="chain", value=value)  # type: ignore[arg-type]  # one of KeyKind, by its callers


def _link(hash_key: bytes, before: str, unit: Unit) -> str:
    return _digest(hash_key, "message", before, unit.role, unit.text)


def _digest(hash_key: bytes, *parts: str) -> str:
    """A keyed hash over parts whose boundaries count."""
    hashed = hashlib.blake2b(key=hash_key, digest_size=_DIGEST_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        hashed.update(len(data).to_bytes(8, "big"))
        hashed.update(data)
    return hashed.hexdigest()


_DIGEST_BYTES: Final = 16
"""128 bits: with a billion keys the odds of one collision are below 10⁻²⁰."""
_ACCOUNT_CHARACTERS: Final = 16
