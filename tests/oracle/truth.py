"""Who is who: every request's true conversation, and the comparison with what the program made of it.

One rule: two true conversations in one session are a failure at once, with the story of how it came to it; one
conversation in two sessions is counted, and a failure only where its client named it or its variation must never split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from tests.oracle.speech import Part

Headers = list[tuple[str, str]]

STORY_REQUESTS_MAX: Final = 12
"""Requests of a conversation that a story tells, the newest ones."""
EXCERPT_CHARACTERS: Final = 90
RETRY_MILLISECONDS: Final = 10 * 60 * 1000
"""A request repeated later than this, after an answer that its client did not read, is a new one to anybody."""


@dataclass(eq=False)
class Conversation:
    """One true conversation, whatever names it."""

    number: int
    client: str
    """What kind of client speaks: the rates are printed by it."""
    is_named: bool
    parent: Conversation | None = None
    forked_from: Conversation | None = None
    is_shared: bool = False
    """Others hold equal texts: it may split, as nothing tells them apart for sure."""
    sent: list[Sent] = field(default_factory=list)

    def __str__(self) -> str:
        return f"conversation {self.number} ({self.client})"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client sends, and what is true of it."""

    target: str
    headers: Headers
    body: bytes
    wire: str
    stream: bool
    conversation: Conversation
    kind: str = "turn"
    """`turn` or `side`; empty where either will do."""
    variation: str = "next turn"
    may_split: bool = False
    """Nothing proves that the request belongs to its conversation."""
    may_be_cut: bool = True
    """False where a repeated request could not be told from another conversation's first one."""
    wants: str = "any"
    answer: tuple[Part, ...] | None = None
    """What the provider says to it, where that is not left to chance."""
    excerpt: str = ""


@dataclass(eq=False)
class Sent:
    """A request on its way, and what the program said of it."""

    request: Request
    daemon: str
    at: int
    event_id: str = ""
    session_id: str = ""
    was_calm: bool = True
    """The worker was heard since the conversation's request before."""
    is_answered: bool = False
    is_booked: bool = False

    def __str__(self) -> str:
        trouble = "" if self.was_calm else ", worker away"
        what = f"{self.request.kind or 'either'}, {self.request.variation}{trouble}"
        return f"{self.at / 1000:12.1f} s  {self.daemon:8} {self.session_id[:12]:12}  {what}: {self.request.excerpt}"


class Booked(NamedTuple):
    """What the store holds of a request."""

    session_id: str
    kind: str
    why: str


class Origin(NamedTuple):
    """What the store holds of where a session comes from."""

    parent: str | None
    forked_from: str | None


class Store(Protocol):
    def booked(self, event_id: str) -> Booked | None: ...
    def canonical(self, session_id: str) -> str: ...
    def origin(self, session_id: str) -> Origin: ...


class FalseMerge(AssertionError):
    """Two conversations share a session."""


class Wrong(AssertionError):
    """A conversation was split, or a request was taken for something it is not, where that must never happen."""


class Truth:
    """All conversations of one world."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.conversations: list[Conversation] = []
        self._owners: dict[str, list[Conversation]] = {}
        self.excused = 0
        """Conversations in a relative's session, where nothing that could be known told them apart."""
        self._unresolved: list[Sent] = []

    def conversation(self, client: str, *, is_named: bool, **facts: object) -> Conversation:
        made = Conversation(len(self.conversations), client, is_named, **facts)  # type: ignore[arg-type]
        self.conversations.append(made)
        return made

    # -- after every request -----------------------------------------------------------------------------------------

    def sent(self, sent: Sent) -> None:
        sent.request.conversation.sent.append(sent)
        self._unresolved.append(sent)

    def told(self, sent: Sent) -> None:
        """An answer named a session: whatever comes later, the client saw this."""
        self._own(self._store.canonical(sent.session_id), sent, "")

    def resolve(self) -> None:
        """Compare what has arrived in the store since."""
        waiting, self._unresolved = self._unresolved, []
        for sent in waiting:
            booked = self._store.booked(sent.event_id) if sent.event_id else None
            if booked is None:
                self._unresolved.append(sent)
            else:
                sent.session_id = booked.session_id
                self._own(booked.session_id, sent, booked.why)

    def died(self, daemon: str) -> None:
        """What that boot did not tell the store, nobody will."""
        self.resolve()
        self._unresolved = [sent for sent in self._unresolved if sent.daemon != daemon]

    def _own(self, session_id: str, sent: Sent, why: str) -> None:
        conversation = sent.request.conversation
        owners = self._owners.setdefault(session_id, [])
        if conversation in owners:
            return
        for owner in owners:
            if not _is_excused(owner, conversation, session_id):
                raise FalseMerge(self._story(session_id, owner, conversation, why))
            self.excused += 1
        owners.append(conversation)

    # -- at the end --------------------------------------------------------------------------------------------------

    def judge(self) -> Verdict:
        """Look at everything once more, as the store has it now."""
        verdict = Verdict()
        self._owners.clear()
        self.excused = 0
        for conversation in self.conversations:
            self._judge_conversation(conversation, verdict)
        for conversation in self.conversations:
            self._judge_origin(conversation, verdict)
        verdict.excused = self.excused
        return verdict

    def _judge_conversation(self, conversation: Conversation, verdict: Verdict) -> None:
        verdict.conversations[conversation.client] += 1
        sessions: list[str] = []
        for sent in conversation.sent:
            booked = self._store.booked(sent.event_id)
            if booked is None:
                verdict.lost += 1
                continue
            sent.session_id, sent.is_booked = booked.session_id, True
            self._own(booked.session_id, sent, booked.why)
            self._judge_kind(sent, booked, verdict)
            verdict.requests[sent.request.variation] += 1
            if sessions and booked.session_id not in sessions:
                verdict.split_at[sent.request.variation] += 1
                # Of several beginnings of one conversation nothing tells which one goes on.
                if conversation.is_named or len(sessions) == 1:
                    self._judge_split(sent, conversation.sent[conversation.sent.index(sent) - 1], verdict)
            if booked.session_id not in sessions:
                sessions.append(booked.session_id)
        verdict.split[conversation.client] += len(sessions) > 1

    def _judge_split(self, sent: Sent, before: Sent, verdict: Verdict) -> None:
        conversation = sent.request.conversation
        is_late = sent.request.variation.startswith("retry") and sent.at - before.at > RETRY_MILLISECONDS
        if conversation.is_named:
            verdict.wrong.append(f"a conversation that its client named was split\n{self._told_of(conversation)}")
        elif not (sent.request.may_split or conversation.is_shared or is_late or _was_troubled_before(sent)):
            verdict.wrong.append(f"split at: {sent.request.variation}\n{self._told_of(conversation)}")

    def _judge_kind(self, sent: Sent, booked: Booked, verdict: Verdict) -> None:
        if sent.request.kind and booked.kind != sent.request.kind:
            conversation = sent.request.conversation
            verdict.misjudged[f"{conversation.client}: {sent.request.variation} as {booked.kind}"] += 1
            if _were_calm(conversation, *([conversation.parent] if conversation.parent else [])):
                verdict.wrong.append(
                    f"a {sent.request.kind} was taken for a {booked.kind}\n{self._told_of(conversation)}"
                )

    def _judge_origin(self, conversation: Conversation, verdict: Verdict) -> None:
        sessions = {sent.session_id for sent in conversation.sent if sent.is_booked}
        if len(sessions) != 1:
            return
        origin = self._store.origin(sessions.pop())
        for name, found, true in (
            ("parent", origin.parent, conversation.parent),
            ("fork", origin.forked_from, conversation.forked_from),
        ):
            homes = {sent.session_id for sent in true.sent if sent.session_id} if true is not None else set()
            if found is not None and (true is None or homes) and found not in homes:
                verdict.wrong.append(f"{found} is not the {name} of\n{self._told_of(conversation)}")
            if true is not None and homes:
                verdict.origins[f"{name} of {conversation.client}, {'known' if found else 'unknown'}"] += 1

    # -- stories -----------------------------------------------------------------------------------------------------

    def _story(self, session_id: str, owner: Conversation, other: Conversation, why: str) -> str:
        stories = f"{self._told_of(owner)}\n{self._told_of(other)}"
        return f"session {session_id} holds two conversations (the second because: {why or 'not told'})\n{stories}"

    def _told_of(self, conversation: Conversation) -> str:
        lines = [str(conversation), *map(str, conversation.sent[-STORY_REQUESTS_MAX:])]
        return "\n    ".join(lines)


@dataclass
class Verdict:
    """What a whole run came to."""

    conversations: Counter[str] = field(default_factory=Counter)
    split: Counter[str] = field(default_factory=Counter)
    """Conversations in more than one session, by client."""
    requests: Counter[str] = field(default_factory=Counter)
    split_at: Counter[str] = field(default_factory=Counter)
    """Requests that opened another session for their conversation, by variation."""
    misjudged: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    excused: int = 0
    lost: int = 0
    """Requests the store knows nothing of: their daemon was killed before it could tell."""

    def add(self, other: Verdict) -> None:
        """Sum up with another run's."""
        for name in ("conversations", "split", "requests", "split_at", "misjudged", "origins"):
            getattr(self, name).update(getattr(other, name))
        self.wrong += other.wrong
        self.excused += other.excused
        self.lost += other.lost

    def lines(self) -> Iterable[str]:
        """The figures, for people."""
        requests, conversations, split = (
            sum(each.values()) for each in (self.requests, self.conversations, self.split)
        )
        yield f"{conversations} conversations, {requests} requests, 0 false merges, {_rate(split, conversations)} split"
        by_client = [
            f"{name} {_rate(count, self.conversations[name])}" for name, count in self.split.most_common() if count
        ]
        yield f"split by client: {', '.join(by_client) or 'none'}"
        by_variation = [f"{name} {_rate(count, self.requests[name])}" for name, count in self.split_at.most_common()]
        yield f"split at: {', '.join(by_variation) or 'nothing'}"
        yield f"taken for another kind: {_counts(self.misjudged)}"
        yield f"origins: {_counts(self.origins)}"
        yield f"forks and unmarked sub-agents that nothing told from their origin: {self.excused}"


def _is_excused(some: Conversation, other: Conversation, session_id: str) -> bool:
    """Whether nothing that could be known told them apart."""
    return any(
        _is_fork_of_what_is_known(origin, fork, session_id) or _is_unmarked_agent_alone(origin, fork, session_id)
        for origin, fork in ((some, other), (other, some))
    )


def _is_fork_of_what_is_known(origin: Conversation, fork: Conversation, session_id: str) -> bool:
    """A fork's history is its origin's as far as it goes.  So it provably continues what is known of the origin, if
    that is no more than an unanswered request, or what a daemon knew before it lost the worker."""
    if fork.forked_from is None or fork.forked_from not in (origin, origin.forked_from):
        return False
    is_answered = any(sent.is_answered for sent in origin.sent if sent.session_id == session_id)
    return not is_answered or not _were_calm(origin, fork)


def _is_unmarked_agent_alone(parent: Conversation, agent: Conversation, session_id: str) -> bool:
    """Only its prompt and its tools tell it from its parent or its sibling, and only to whoever knows theirs."""
    is_unmarked = agent.parent is not None and not agent.is_named and agent.parent in (parent, parent.parent)
    # What the session is set up with is known from its turns: none may have been told of in time.
    return is_unmarked and not _were_calm(parent, agent, *([agent.parent] if agent.parent else []))


def _was_troubled_before(sent: Sent) -> bool:
    """The worker was away: what one daemon learned then the others did not."""
    conversation = sent.request.conversation
    is_calm = all(each.was_calm for each in conversation.sent[: conversation.sent.index(sent) + 1])
    # An unmarked sub-agent is told from its parent's turns.
    return not is_calm or (conversation.parent is not None and not _were_calm(conversation.parent))


def _were_calm(*conversations: Conversation) -> bool:
    return all(sent.was_calm for each in conversations for sent in each.sent)


def _rate(some: int, all_: int) -> str:
    return f"{some} of {all_} ({100 * some / all_:.2f} %)" if all_ else "0"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"


def excerpt_of(text: str) -> str:
    return " ".join(text.split())[:EXCERPT_CHARACTERS]
