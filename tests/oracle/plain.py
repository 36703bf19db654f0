"""The clients that name nothing, or nothing that can be believed: plain SDKs, agents with headers of their own.

One rule: as in `clients`; what a header or a field is worth, these clients do not know either.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from tests.oracle.clients import NEXT_DAY, Life, Person, Said, Script, Thread, rounds
from tests.oracle.speech import SHARED_OPENINGS, Dialogue
from tests.oracle.truth import Conversation, Headers, Request, excerpt_of
from tests.oracle.wire import Json, Style, chat_history, messages_history, responses_history

TARGETS: Final = {"messages": "/v1/messages", "chat": "/v1/chat/completions", "responses": "/v1/responses"}
_HISTORIES: Final[dict[str, Callable[[Dialogue, Style], list[Json]]]] = {
    "messages": messages_history,
    "chat": chat_history,
    "responses": responses_history,
}


class Plain(Thread):
    """A conversation that is known by its content only."""

    def __init__(
        self,
        life: Life,
        conversation: Conversation,
        wire: str,
        headers: Callable[[], Headers],
        extra: Json | None = None,
        dialogue: Dialogue | None = None,
    ) -> None:
        super().__init__(life, conversation, dialogue)
        self.wire = wire
        self.headers = headers
        self.extra = extra or {}
        self.may_split_next = False
        """The next request proves nothing: its credential or its history is another one."""

    def request(self, variation: str, style: Style | None = None) -> Request:
        style = style or self.style()
        field = "input" if self.wire == "responses" else "messages"
        stream = self.rng.random() < 0.7
        body: Json = {
            "model": self.rng.choice(("claude-sonnet-4-5", "gpt-5")),
            field: _HISTORIES[self.wire](self.dialogue, style),
            "stream": stream,
            **({"max_tokens": 4096} if self.wire == "messages" else {}),
            **self.extra,
        }
        may_split, self.may_split_next = self.may_split_next, False
        return Request(
            target=TARGETS[self.wire],
            headers=[("content-type", "application/json"), *self.headers()],
            body=style.dumps(body),
            wire=self.wire,
            stream=stream,
            conversation=self.conversation,
            variation=variation,
            may_split=may_split,
            may_be_cut=not self.conversation.is_shared,
            wants="short" if self.conversation.is_shared and len(self.dialogue.entries) == 1 else "any",
            excerpt=excerpt_of(self.dialogue.entries[-1].text),
        )

    def fork(self) -> Plain | None:
        """Another conversation that turns off from this one at an earlier answer."""
        points = self.dialogue.turning_points
        if not points or self.conversation.is_shared:
            return None
        conversation = self.life.truth.conversation(
            self.conversation.client, is_named=False, forked_from=self.conversation
        )
        dialogue = self.dialogue.copy(self.rng.choice(points))
        return Plain(self.life, conversation, self.wire, self.headers, self.extra, dialogue)


def plain(life: Life, wire: str, person: Person | None = None) -> Script:
    """An SDK's conversation: it talks, sleeps, forks, compacts; its credential moves and changes."""
    person = person or Person(life.words)
    has_token = life.chance(0.3)
    is_old_sdk = life.chance(0.5)
    is_shared = life.chance(0.25)
    conversation = life.truth.conversation(f"plain {wire}", is_named=False, is_shared=is_shared)

    def headers() -> Headers:
        return person.token_headers() if has_token else person.key_headers(is_old_sdk=is_old_sdk)

    thread = Plain(life, conversation, wire, headers)
    yield from thread.say(first_words(life, is_shared=is_shared), "first turn")
    for _ in rounds(life, 4):
        match life.rng.choices(
            ("talk", "next day", "other header", "new key", "fork", "compact"), weights=(8, 3, 2, 1, 2, 1)
        )[0]:
            case "next day":
                yield NEXT_DAY
                yield from thread.say(life.words.sentence(), "next day")
            case "other header":
                is_old_sdk = not is_old_sdk
                yield from thread.say(life.words.sentence(), "token renewed" if has_token else "key in another header")
            case "new key" if not has_token:
                person.rotate_key()
                thread.may_split_next = True
                yield from thread.say(life.words.sentence(), "another key, no id")
            case "fork":
                fork = thread.fork()
                if fork is not None:
                    yield from fork.say(life.words.sentence(), "first turn of a fork")
                    yield from fork.say(life.words.sentence(), "next turn of a fork")
            case "compact":
                thread.dialogue.begin_anew(f"What was done so far: {life.words.paragraph()}")
                thread.may_split_next = True
                yield from thread.ask("first turn after compaction, no id")
            case _:
                yield from thread.say(life.words.sentence())


def first_words(life: Life, *, is_shared: bool) -> str:
    """Some clients begin with the date and a listing: the same in every conversation of that folder and day."""
    if not is_shared:
        return life.words.sentence()
    listing = f"Today's date: 2026-03-{life.day:02}\nFiles:\n- README.md\n- main.py\n- tests/"
    return life.rng.choice((*SHARED_OPENINGS, listing, listing))


def with_learned_header(life: Life) -> Script:
    """An agent of an unknown make, whose header names each conversation; another one changes with every request."""
    person = Person(life.words)
    for _ in range(2):
        own_id = life.words.uuid()

        def headers(own_id: str = own_id) -> Headers:
            return [
                ("user-agent", "acme-agent/3.1"),
                ("x-acme-session-id", own_id),
                ("x-client-request-id", life.words.uuid()),
                ("x-acme-trace", life.words.hex(32)),
                *person.key_headers(is_old_sdk=False),
            ]

        conversation = life.truth.conversation("learned header", is_named=False)
        thread = Plain(life, conversation, "chat", headers)
        yield from thread.say(life.words.sentence(), "first turn")
        for _ in range(4):
            yield from thread.say(life.words.sentence())
        thread.dialogue.begin_anew(f"What was done so far: {life.words.paragraph()}")
        thread.may_split_next = True
        yield from thread.ask("first turn after compaction, learned header")


def with_shared_header(life: Life) -> Script:
    """One header for all conversations of a process, or of a machine: it stays the same, and names none of them."""
    person = Person(life.words)
    process_id = life.words.uuid()
    machine_id = "b1946ac92492d2347c6235b4d2611184"

    def headers() -> Headers:
        return [
            ("user-agent", "shed-agent/0.9"),
            ("x-shed-session", process_id),
            ("x-shed-machine", machine_id),
            *person.key_headers(is_old_sdk=False),
        ]

    for _ in range(3):
        conversation = life.truth.conversation("shared header", is_named=False)
        thread = Plain(life, conversation, "messages", headers)
        yield from thread.say(life.words.sentence(), "first turn")
        for _ in rounds(life, 4):
            yield from thread.say(life.words.sentence())


def with_shared_hint(life: Life) -> Script:
    """An application that gives all its conversations one `prompt_cache_key`, one `metadata.user_id`."""
    person = Person(life.words)
    wire = life.rng.choice(("messages", "chat", "responses"))
    extra: Json = {"metadata": {"user_id": "user_production"}} if wire == "messages" else {"prompt_cache_key": "app-v3"}

    def headers() -> Headers:
        return [("user-agent", "OpenAI/Python 2.1.0"), *person.key_headers(is_old_sdk=False)]

    for _ in range(2):
        conversation = life.truth.conversation("shared hint", is_named=False)
        thread = Plain(life, conversation, wire, headers, extra)
        yield from thread.say(life.words.sentence(), "first turn")
        for _ in rounds(life, 3):
            yield from thread.say(life.words.sentence())


class Stateful(Thread):
    """The provider keeps the history: a request holds what is new, and what it goes on from."""

    def __init__(self, life: Life, conversation: Conversation, headers: Callable[[], Headers]) -> None:
        super().__init__(life, conversation)
        self.headers = headers
        self.conversation_id: str | Json = ""
        self.previous: list[str] = []
        """Ids of the answers so far."""
        self._sent_entries = 0

    def request(self, variation: str, style: Style | None = None) -> Request:
        style = style or self.style()
        body: Json = {
            "model": "gpt-5",
            "input": responses_history(self.dialogue, style, after=self._sent_entries),
            "stream": self.rng.random() < 0.7,
        }
        if self.conversation_id:
            body["conversation"] = self.conversation_id
        elif self.previous:
            body["previous_response_id"] = self.previous[-1]
        return Request(
            target="/v1/responses",
            headers=[("content-type", "application/json"), *self.headers()],
            body=style.dumps(body),
            wire="responses",
            stream=bool(body["stream"]),
            conversation=self.conversation,
            variation=variation,
            excerpt=excerpt_of(self.dialogue.entries[-1].text),
        )

    def heard(self, said: Said) -> None:
        super().heard(said)
        self.previous.append(said.answer_id)
        self._sent_entries = len(self.dialogue.entries)

    def branch(self) -> Stateful | None:
        """Another conversation that goes on from an older answer."""
        if len(self.previous) < 2:
            return None
        conversation = self.life.truth.conversation(
            self.conversation.client, is_named=False, forked_from=self.conversation
        )
        branch = Stateful(self.life, conversation, self.headers)
        branch.previous = self.previous[: self.rng.randrange(1, len(self.previous))]
        return branch


def stateful(life: Life) -> Script:
    """The Responses API with `previous_response_id`, sometimes from an older answer than the last."""
    person = Person(life.words)
    conversation = life.truth.conversation("previous_response_id", is_named=False)
    thread = Stateful(life, conversation, lambda: person.key_headers(is_old_sdk=False))
    yield from thread.say(life.words.sentence(), "first turn")
    for _ in rounds(life, 4):
        match life.rng.choices(("talk", "next day", "branch"), weights=(6, 2, 2))[0]:
            case "next day":
                yield NEXT_DAY
                yield from thread.say(life.words.sentence(), "next day")
            case "branch":
                branch = thread.branch()
                if branch is not None:
                    yield from branch.say(life.words.sentence(), "first turn of a branch")
                    yield from branch.say(life.words.sentence(), "next turn of a branch")
            case _:
                yield from thread.say(life.words.sentence())


def with_conversation(life: Life) -> Script:
    """The Responses API with a conversation that the provider keeps: its id names it."""
    person = Person(life.words)
    conversation = life.truth.conversation("conversation id", is_named=True)
    thread = Stateful(life, conversation, lambda: person.key_headers(is_old_sdk=False))
    conversation_id = f"conv_{life.words.hex(40)}"
    thread.conversation_id = conversation_id if life.chance(0.5) else {"id": conversation_id}
    yield from thread.say(life.words.sentence(), "first turn")
    for _ in rounds(life, 4):
        if life.chance(0.3):
            yield NEXT_DAY
        yield from thread.say(life.words.sentence())


def strangers(life: Life) -> Script:
    """Different persons who say the same in the same order, to the byte."""
    said = [life.words.sentence() for _ in range(3)]
    wire = life.rng.choice(("messages", "chat", "responses"))
    threads = []
    for _ in range(2):
        person = Person(life.words)
        conversation = life.truth.conversation("equal texts, other account", is_named=False, is_shared=True)
        threads.append(Plain(life, conversation, wire, partial(person.key_headers, is_old_sdk=False)))
    for text in said:
        for thread in threads:
            yield from thread.say(text)
