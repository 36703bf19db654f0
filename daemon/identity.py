"""Who is speaking: which keys could name the session of a request, and what to learn from an answer.

One rule: a session id that the client minted names its session, alone; everything else needs proof that the request
continues the stored conversation.  A wrong split is preferred to a wrong merge.

Theory of operation.  `known_from` reads what headers and body say; `naming_of` turns it into a proposal that the worker
can resolve.  There are four ways to be somebody:

- named: an id in a known header or body field.  Its session's id is derived from it, the same on every daemon.
- a sub-agent that says so: an agent's id beside the session's, a thread of its own, or a parent's id beside its own.
- a sub-agent that does not say so, but turns out to be one (`as_child`): known by its content within its session.
- nothing: known by content (`daemon.chain`); the same request again, within minutes, is a retry of one that was not
  answered, or whose answer was not read.

Content is read for named sessions too.  It names nothing there, but proves what a new id was forked from, and tells the
session's turns from what else runs under its id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from daemon.accounts import account_of, credentials_of
from daemon.chain import (
    DIGEST_BYTES,
    Chain,
    HashKeys,
    account_root,
    chain_of,
    child_root,
    continued_values,
    is_telling,
    response_root,
    retry_link,
    said_value,
)
from daemon.hints import hints_of
from daemon.providers import ASSISTANT, Answer, BodyFields, Turn, Unit, is_id, setup_of, units_of
from daemon.shape import aside_by_itself, shape_of
from worker.protocol import SAID_MAX, Hint, Key, KeyKind, Naming, Shape, Why

Headers = Sequence[tuple[str, str]]
Minted = tuple[str, str]
"""Name of a header or body field, and the id that the client put there."""

THREAD_HEADER: Final = "thread-id"
"""Codex: a thread of its own under the `session-id` of the thread that started it."""
THREADED_HEADER: Final = "session-id"
NAMED_CONTINUES_MAX: Final = 32
"""Prefixes offered where the client named the session: whatever goes on from a history has its last answers."""
ALSO_MINTED_MAX: Final = 6
OPENING_ENTRIES_MAX: Final = 8
"""Entries looked at for a conversation's first message; the system's come before it."""


class Rules(Struct, frozen=True, kw_only=True):
    """What is configured about names; header names in lower case, in the order in which they are believed."""

    session_headers: tuple[str, ...]
    account_headers: tuple[str, ...]
    agent_headers: tuple[str, ...]
    """Name one sub-agent beside the id of the session it shares."""
    parent_headers: tuple[str, ...]
    """Hold the id of the session that started this one."""
    fields: BodyFields


class Known(Struct, frozen=True, kw_only=True):
    """What a request says about who speaks."""

    account: str
    client: str
    minted: Minted | None
    minted_in_body: bool = False
    also_minted: tuple[Key, ...] = ()
    """Other places where the same id stands."""
    agent: Minted | None = None
    """A sub-agent within the minted session."""
    parent_session_id: str = ""
    units: tuple[Unit, ...] = ()
    chain: Chain | None = None
    early_chain: Chain | None = None
    """The same conversation as it was known before any worker was heard, where there was such a time."""
    retry_link: str = ""
    """Equal for a repeated request only."""
    keeps_responses: bool = False
    """The provider may be asked to go on from its answer by that answer's id."""
    shape: Shape | None = None
    aside: str = ""
    """Why the request by itself is no turn of its session; '' where it may be one."""
    has_state: bool = False
    """The provider keeps the history."""
    is_spoken: bool = True
    """The newest message is the user's own."""
    hints: tuple[Hint, ...] = ()

    @property
    def is_opening(self) -> bool:
        return self.chain.is_opening if self.chain else not self.has_state


def known_from(headers: Headers, turn: Turn, body: bytes, keys: HashKeys, rules: Rules) -> Known:
    """Read a request.  Without the store's hash key (no worker was ever heard) the account is known to none but us."""
    named = {name.lower(): value for name, value in headers}
    account = account_of(named, turn, keys.store, rules.account_headers)
    ids, turn = _without_credentials(named, turn)
    minted, in_body = _minted(ids, turn, rules)
    known = Known(
        account=account,
        client=client_of(named.get("user-agent", "")),
        minted=minted,
        minted_in_body=in_body,
        also_minted=_also_minted(minted, ids, turn, rules) if minted else (),
        agent=_agent(ids, rules) if minted else None,
        parent_session_id=_parent(ids, minted, rules) if minted else "",
        units=tuple(units_of(turn)),
        keeps_responses=turn.protocol == "responses",
        has_state=turn.has_state,
        is_spoken=turn.user_turn,
    )
    if turn.state_id or not turn.has_state:  # Of a conversation that the provider keeps, what is new proves nothing.
        is_early = keys.store is None or keys.early_was_used
        early_account = account_of(named, turn, keys.early, rules.account_headers) if is_early else ""
        known = with_chains(known, body, keys, early_account=early_account, response_id=turn.state_id)
    if known.minted is None:
        return replace(known, hints=_hints(known, headers, turn, keys))
    setup = setup_of(turn)
    if known.agent or known.parent_session_id:
        return replace(known, aside=aside_by_itself(setup, turn.output_limit, is_opening=False))  # It said what it is.
    return replace(
        known,
        # Hashed with another key it could be compared with nothing.
        # Nor can what is new in a conversation that the provider keeps: it has neither history nor opening.
        shape=shape_of(setup, _opening(turn), keys.store) if keys.store and known.chain else None,
        aside=aside_by_itself(setup, turn.output_limit, is_opening=known.is_opening),
    )


def with_chains(known: Known, body: bytes, keys: HashKeys, *, early_account: str = "", response_id: str = "") -> Known:
    """Add what a request's content is known by.  `response_id`: of the response that it goes on from, or ''."""
    if not known.units:
        return known

    def chain(hash_key: bytes, account: str) -> Chain:
        root = response_root(hash_key, account, response_id) if response_id else account_root(hash_key, account)
        return chain_of(known.units, root, hash_key, is_kept_by_provider=bool(response_id))

    is_early = keys.store is None or (keys.early_was_used and known.minted is None)
    early = chain(keys.early, early_account) if is_early else None
    main = chain(keys.store, known.account) if keys.store is not None else early
    assert main is not None
    return replace(
        known,
        chain=main,
        early_chain=early if early is not main else None,
        retry_link=retry_link(main, body) if known.minted is None else "",
    )


def as_child(known: Known, session_id: str, body: bytes, keys: HashKeys) -> Known:
    """The same request as that of a sub-agent of the session, which it shares the id of but nothing else."""
    hash_key = keys.store or keys.early
    chain = known.chain
    # What the provider keeps goes by the id of a response, which is one conversation's alone already.
    if chain is not None and not chain.is_kept_by_provider:
        chain = chain_of(known.units, child_root(hash_key, known.account, session_id), hash_key)
    return replace(
        known,
        minted=None,
        parent_session_id=session_id,
        chain=chain,
        early_chain=None,
        retry_link=retry_link(chain, body) if chain else "",
        shape=None,
    )


def naming_of(known: Known, drawn_id: str) -> Naming:
    """The session a request proposes, and how the store may recognise another.  `drawn_id`: a fresh random id."""
    common = Naming(
        session_id=drawn_id,
        confirmed=False,
        continues=continued_values(known.chain, known.early_chain),
        chain_length=known.chain.length if known.chain else 0,
        client=known.client,
        account=known.account,
        parent=known.parent_session_id,
        is_opening=known.is_opening,
        is_spoken=known.is_spoken,
        hints=list(known.hints),
        said=_said(known),
    )
    if known.minted is not None:
        return _named(common, known, known.minted)
    if known.parent_session_id:
        reason = f"a sub-agent of {known.parent_session_id}, by its own prompt, tools and history"
        why = Why(reason=reason, origin="content", confidence="likely")
    elif known.chain is not None:
        origin = "previous_response_id" if known.chain.is_kept_by_provider else "content"
        reason = "a new conversation: nothing it holds is known"
        why = Why(reason=reason, origin=origin, confidence="likely")
    else:
        why = Why(reason="a new session: the request names nothing", origin="content", confidence="likely")
    keys = _unanswered_keys(known.chain, known.retry_link) if known.chain else []
    return replace(common, retry=known.retry_link, keys=keys, why=why)


def answered(naming: Naming, known: Known, answer: Answer) -> Naming:
    """The naming of the turn's end: once the answer is known, it is what a later request must continue."""
    chain = known.chain
    links, length = _answer_links(known, chain, answer) if chain is not None else ([], 0)
    if chain is None or not links:
        return naming
    kind: KeyKind = "history" if naming.is_named else "answer"
    # A client that was cut off before it read this answer sends the request again.  An opening is not kept for that:
    # the same first words, answered twice, are two conversations.
    kept = ("header", "body") if known.is_opening else ("header", "body", "retry")
    if answer.unit is None:
        kept = (*kept, "request")  # A client that sends all of it back goes on from what no link covers.
    said: list[Key] = []
    if answer.unit is not None and is_telling(answer.unit) and _may_be_learned(known):
        said.append(_chain_key("history", said_value(chain.hash_key, known.account, answer.unit)))
    return replace(
        naming,
        keys=[*(key for key in naming.keys if key.kind in kept), *(_chain_key(kind, link) for link in links), *said],
        chain_length=0 if naming.is_named else length,
    )


def derived_id(name: str, *values: str) -> str:
    """The id of a session its client named: the same on every daemon, with or without a store."""
    named = "\0".join(("perdure session", name, *values))
    return hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[: 2 * DIGEST_BYTES]


def client_of(user_agent: str) -> str:
    """A short name for the program that speaks."""
    for beginning, name in _CLIENTS:
        if user_agent.startswith(beginning):
            return name
    product = user_agent.partition("/")[0].strip().lower()
    return product if product.replace("-", "").replace("_", "").isalnum() and len(product) <= 32 else "unknown"


# -- what the client says ------------------------------------------------------------------------------------------


def _without_credentials(named: Mapping[str, str], turn: Turn) -> tuple[Mapping[str, str], Turn]:
    """The headers and the request as far as they may name something: ids are kept in clear, and some clients put their
    key where an id belongs."""
    credentials = credentials_of(named)
    ids = {name: value for name, value in named.items() if value not in credentials}
    return ids, replace(turn, minted=tuple(each for each in turn.minted if each[1] not in credentials))


def _minted(named: Mapping[str, str], turn: Turn, rules: Rules) -> tuple[Minted | None, bool]:
    """The session id the client minted, and whether it stands in the body."""
    thread = named.get(THREAD_HEADER, "")
    for name in rules.session_headers:
        value = named.get(name, "")
        if not is_id(value):
            continue
        if name == THREADED_HEADER and is_id(thread) and thread != value:
            # A Codex sub-agent shares its parent's session id; its thread is its own conversation.
            return (THREAD_HEADER, thread), False
        return (name, value), False
    for path, value in turn.minted:
        # An object with an id, and that id alone, are two spellings of one name.
        return (path.removesuffix(".id"), value), True
    return None, False


def _also_minted(minted: Minted, named: Mapping[str, str], turn: Turn, rules: Rules) -> tuple[Key, ...]:
    """The same id under its other names: it names the session also where only one of these is left."""
    name, value = minted
    headers = [Key(kind="header", name=each, value=value) for each in rules.session_headers if named.get(each) == value]
    fields = [
        Key(kind="body", name=path.removesuffix(".id"), value=value) for path, each in turn.minted if each == value
    ]
    return tuple(key for key in (*headers, *fields) if key.name != name)[:ALSO_MINTED_MAX]


def _agent(named: Mapping[str, str], rules: Rules) -> Minted | None:
    return next(((name, named[name]) for name in rules.agent_headers if is_id(named.get(name, ""))), None)


def _parent(named: Mapping[str, str], minted: Minted, rules: Rules) -> str:
    """The id of the session that started this one, as that one's own requests make it; '' if there is none."""
    name, value = minted
    threaded = named.get(THREADED_HEADER, "") if name == THREAD_HEADER else ""
    parent = next((named[each] for each in rules.parent_headers if is_id(named.get(each, ""))), threaded)
    if not parent or parent == value:
        return ""
    # The first thread of a Codex session goes by the session's id, the others by their own.
    return derived_id(THREADED_HEADER if parent == threaded else name, parent)


def _may_be_learned(known: Known) -> bool:
    return any(hint.kind == "session" for hint in known.hints)


def _said(known: Known) -> list[str]:
    """The newest answers, where a hint may ask for them."""
    if known.chain is None or not _may_be_learned(known):
        return []
    answers = [unit for unit in known.units if unit.role == ASSISTANT and is_telling(unit)][-SAID_MAX:]
    return [said_value(known.chain.hash_key, known.account, unit) for unit in answers]


def _hints(known: Known, headers: Headers, turn: Turn, keys: HashKeys) -> tuple[Hint, ...]:
    if keys.store is None:
        return ()
    hints = hints_of(headers, turn, keys.store, account=known.account, client=known.client)
    is_aside = hints and aside_by_itself(setup_of(turn), turn.output_limit, is_opening=known.is_opening)
    # A title asked for under the id of a conversation would tell against that id, as another conversation under it.
    return () if is_aside else tuple(hints)


def _named(common: Naming, known: Known, minted: Minted) -> Naming:
    name, value = minted
    place = "body field" if known.minted_in_body else "header"
    if known.agent is not None:
        agent_name, agent = known.agent
        session_id, parent = derived_id(agent_name, name, value, agent), derived_id(name, value)
        key = Key(kind="header", name=agent_name, value=agent)
        said = f"a sub-agent, named by the header {agent_name} in the session of the {place} {name}"
        origin, name, value = f"header {agent_name}", agent_name, agent
    else:
        session_id, parent = derived_id(name, value), common.parent
        key = Key(kind="body" if known.minted_in_body else "header", name=name, value=value)
        started = f", and says that {parent} started it" if parent else ""
        said, origin = f"the client named it: {place} {name}{started}", f"{place} {name}"
    return replace(
        common,
        session_id=session_id,
        continues=common.continues[:NAMED_CONTINUES_MAX],
        chain_length=0,
        parent=parent,
        keys=[key, *(() if known.agent else known.also_minted)],
        header_name=name,
        header_session_id=value,
        shape=known.shape,
        why=Why(reason=said, origin=origin, confidence="certain"),
    )


# -- what the content says -----------------------------------------------------------------------------------------


def _opening(turn: Turn) -> str:
    """The first message that says something, in normal form: alone, whatever was added after it.  A message that is
    one tag from end to end tells the date and the folder, and is the same in many conversations."""
    context = ""
    for entry in turn.entries[:OPENING_ENTRIES_MAX]:
        units = units_of(replace(turn, entries=(entry,)))
        if units and not (units[0].text.startswith("<") and units[0].text.endswith(">")):
            return units[0].text
        context = context or "".join(unit.text for unit in units)
    return context


def _answer_links(known: Known, chain: Chain, answer: Answer) -> tuple[list[str], int]:
    """The links that cover the answer, in all forms it may come back in, and how many messages they cover."""
    links: list[str] = []
    length = chain.length
    if not chain.is_kept_by_provider:
        for form in answer.forms:
            link, length = chain.answered(form)
            links.append(link)
    if known.keeps_responses and answer.response_id:
        links.append(response_root(chain.hash_key, known.account, answer.response_id))
    return links, length


def _unanswered_keys(chain: Chain, retry: str) -> list[Key]:
    return [_chain_key("retry", retry), _chain_key("request", chain.links[-1])]


def _chain_key(kind: KeyKind, value: str) -> Key:
    return Key(kind=kind, name="chain", value=value)


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
