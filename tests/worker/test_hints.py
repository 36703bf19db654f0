"""Which headers come to name sessions, and which never do: conversations of a client that nobody knows."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from msgspec.structs import replace

from tests.simulation.model import MemoryTables
from worker import batch
from worker.batch import Write
from worker.hints import BELIEVED_CONVERSATIONS, LEARNED_CONVERSATIONS, LEARNED_TURNS
from worker.protocol import Booking, Claim, Hint, HintKind, Key, Naming, Reply, Row, Why

NOON = 1_750_000_000_000
NAME = "x-house-session"


class Client:
    """A client that names its conversations in a header of its own, and the worker that looks on."""

    def __init__(self, name: str = "house-agent") -> None:
        self.tables = MemoryTables()
        self._name = name
        self._numbers = count()

    def converse(self, session_id: str, *values: str, name: str = NAME, kind: HintKind = "session") -> None:
        """A turn for each value, of a conversation whose answers are told by its session's id."""
        for place, value in enumerate(values):
            self.turn(session_id, [Hint(kind, name, value)], place)

    def turn(self, session_id: str, hints: list[Hint], place: int = 0, **naming: Any) -> Reply:
        """`place`: how many turns were before it."""
        row = Row(
            event_id=f"event-{next(self._numbers):04}",
            session_id=session_id,
            kind="turn",
            status="complete",
            started_at=NOON,
            ended_at=NOON + 1,
            provider="p",
            protocol="chat",
            model="m",
        )
        key = Key(kind="answer", name="chain", value=answer(session_id, place))
        fields = {"keys": [key], "chain_length": 2 * place + 2, "is_opening": place == 0, **naming}
        named = self.naming(session_id, hints, **fields)
        opened = replace(row, status="interrupted", ended_at=0)
        self._do(Booking(naming=replace(named, keys=[]), row=opened, epoch=0, seen=0))
        return self._do(Booking(naming=named, row=row, epoch=0, seen=0))

    def claim(self, *hints: Hint, is_opening: bool = False, continues: list[str] | None = None) -> Reply:
        """Which session a request is given that proposes one of its own, `drawn`.  If it is no opening, it holds an
        answer of each of the first sessions."""
        said = [] if is_opening else [answer(session_id, 1) for session_id in ("s0", "s1", "s1a")]
        named = self.naming("drawn", list(hints), is_opening=is_opening, continues=continues or [], said=said)
        reply = self._do(Claim(naming=named))
        self.tables.rollback()
        return reply

    def naming(self, session_id: str, hints: list[Hint], **fields: Any) -> Naming:
        return Naming(
            session_id=session_id,
            confirmed=False,
            client=self._name,
            hints=hints,
            **{"why": Why(reason="new", origin="content", confidence="likely"), **fields},
        )

    @property
    def is_contradicted(self) -> bool:
        return self.tables.lesson(self._name, NAME).contradicted

    def learn(self, conversations: int = LEARNED_CONVERSATIONS) -> None:
        for number in range(conversations):
            self.converse(f"s{number}", *[f"v{number}"] * LEARNED_TURNS)

    def _do(self, body: Claim | Booking) -> Reply:
        ((_, reply),) = batch.apply(self.tables, [Write("d", 1, body)], live=frozenset(), now=NOON).replies
        if isinstance(body, Booking):
            self.tables.commit()
        return reply


def answer(session_id: str, place: int) -> str:
    return f"answer {place} of {session_id}"


def session_hint(value: str, name: str = NAME) -> Hint:
    return Hint("session", name, value)


@pytest.fixture
def client() -> Client:
    return Client()


def test_limits_are_those_that_people_were_told() -> None:
    assert (LEARNED_TURNS, LEARNED_CONVERSATIONS, BELIEVED_CONVERSATIONS) == (3, 2, 8)


# -- learning ----------------------------------------------------------------------------------------------------------


def test_header_that_stayed_the_same_in_enough_conversations_names_a_session_alone(client: Client) -> None:
    client.learn()

    reply = client.claim(session_hint("v1"))

    assert reply.session_id == "s1"
    assert (reply.why.origin, reply.why.confidence) == (f"learned header {NAME}", "likely")
    assert NAME in reply.why.reason


def test_learned_header_with_a_new_value_names_nothing(client: Client) -> None:
    client.learn()

    assert client.claim(session_hint("v9")).session_id == "drawn"


def test_header_of_too_few_conversations_names_nothing(client: Client) -> None:
    client.learn(LEARNED_CONVERSATIONS - 1)

    assert client.claim(session_hint("v0")).session_id == "drawn"


def test_header_of_too_few_turns_names_nothing(client: Client) -> None:
    for number in range(2 * BELIEVED_CONVERSATIONS):
        client.converse(f"s{number}", *[f"v{number}"] * (LEARNED_TURNS - 1))

    assert client.claim(session_hint("v0")).session_id == "drawn"


def test_header_of_a_long_conversation_counts_as_one(client: Client) -> None:
    client.converse("s0", *["v0"] * LEARNED_TURNS * LEARNED_CONVERSATIONS)

    assert client.tables.lesson("house-agent", NAME).conversations == 1


def test_turn_told_again_is_not_counted_again(client: Client) -> None:
    client.learn(1)
    seen = client.tables.hint("s0", NAME)
    row = next(iter(client.tables.rows.values()))

    again = Booking(naming=client.naming("s0", [session_hint("other")]), row=row, epoch=0, seen=0)
    batch.apply(client.tables, [Write("d", 1, again)], live=frozenset(), now=NOON)

    assert client.tables.hint("s0", NAME) == seen
    assert not client.is_contradicted


def test_side_call_teaches_nothing(client: Client) -> None:
    client.learn(1)
    side = replace(next(iter(client.tables.rows.values())), event_id="event-side", kind="side")

    body = Booking(naming=client.naming("s0", [session_hint("other")]), row=side, epoch=0, seen=0)
    batch.apply(client.tables, [Write("d", 1, body)], live=frozenset(), now=NOON)

    assert not client.is_contradicted


def test_lesson_of_one_client_is_not_anothers(client: Client) -> None:
    client.learn()
    stranger = client.naming("drawn", [session_hint("v0")], said=[answer("s0", 1)])

    body = Claim(naming=replace(stranger, client="other-agent"))
    ((_, reply),) = batch.apply(client.tables, [Write("d", 1, body)], live=frozenset(), now=NOON).replies

    assert reply.session_id == "drawn"


# -- contradictions ----------------------------------------------------------------------------------------------------


def test_value_that_changed_within_a_conversation_ends_it_for_good(client: Client) -> None:
    """An id of a request or a window."""
    client.learn()
    client.converse("s5", "v5", "v6")
    client.learn(BELIEVED_CONVERSATIONS)

    assert client.is_contradicted
    assert client.claim(session_hint("v0")).session_id == "drawn"


def test_value_seen_in_two_conversations_ends_it_for_good(client: Client) -> None:
    """An id of a user or a process, whatever its name."""
    client.learn()
    client.converse("s5", "v0")
    client.learn(BELIEVED_CONVERSATIONS)

    assert client.is_contradicted
    assert client.claim(session_hint("v1")).session_id == "drawn"


@pytest.mark.parametrize("interleaved", [False, True])
def test_id_of_a_process_never_names_an_opening(client: Client, *, interleaved: bool) -> None:
    """Each process has one conversation after the other, or several at once."""
    for process in range(2 * BELIEVED_CONVERSATIONS):
        first, second = f"s{process}a", f"s{process}b"
        if interleaved:
            for place in range(LEARNED_TURNS):
                for session_id in (first, second):
                    client.turn(session_id, [session_hint(f"p{process}")], place)
        else:
            client.converse(first, *[f"p{process}"] * LEARNED_TURNS)
            assert client.claim(session_hint(f"p{process}"), is_opening=True).session_id == "drawn"
            client.converse(second, *[f"p{process}"] * LEARNED_TURNS)

    assert client.is_contradicted
    assert client.claim(session_hint("p1")).session_id == "drawn"


def test_edited_conversation_under_one_id_contradicts_nothing(client: Client) -> None:
    client.learn()
    client.converse("s5", *["v5"] * LEARNED_TURNS)

    client.turn("edited", [session_hint("v5")], continues=[answer("s5", 0)])
    client.turn("edited again", [session_hint("v5")], continues=[answer("s5", 1)])

    assert client.tables.sessions["edited"].forked_from == "s5"
    assert not client.is_contradicted


def test_edit_of_an_edited_conversation_under_one_id_contradicts_nothing(client: Client) -> None:
    client.learn()
    client.converse("s5", *["v5"] * LEARNED_TURNS)
    client.turn("fork", [session_hint("v5")], continues=[answer("s5", 0)])
    client.turn("fork", [session_hint("v5")], 1)

    client.turn("fork of the fork", [session_hint("v5")], continues=[answer("fork", 0), answer("s5", 0)])

    assert client.tables.sessions["fork of the fork"].forked_from == "fork"
    assert not client.is_contradicted


def test_value_of_a_conversation_in_a_strangers_fork_is_a_contradiction(client: Client) -> None:
    client.learn()
    client.converse("s5", *["v5"] * LEARNED_TURNS)

    client.turn("fork", [session_hint("v5")], continues=[answer("s1", 0)])

    assert client.is_contradicted


def test_value_of_two_sessions_names_neither(client: Client) -> None:
    client.learn()
    client.turn("edited", [session_hint("v0")], continues=[answer("s0", 0)])

    assert client.claim(session_hint("v0")).session_id == "drawn"


# -- what may name at all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("field", "prompt_cache_key"), ("header", "x-user-session")])
def test_hint_of_another_kind_never_names_alone(client: Client, kind: HintKind, name: str) -> None:
    for number in range(2 * BELIEVED_CONVERSATIONS):
        client.converse(f"s{number}", *[f"v{number}"] * LEARNED_TURNS, name=name, kind=kind)

    for is_opening in (False, True):
        assert client.claim(Hint(kind, name, "v0"), is_opening=is_opening).session_id == "drawn"
    assert kind != "field" or not client.tables.lessons, "applications share those: there is nothing to learn"


def test_request_without_an_answer_of_the_session_is_never_named(client: Client) -> None:
    """An opening under the id of a process, or a conversation that the gateway has never seen."""
    client.learn(BELIEVED_CONVERSATIONS)

    assert client.claim(session_hint("v0"), is_opening=True).session_id == "drawn"
    assert client.claim(session_hint("v5")).session_id == "drawn"
    assert client.claim(session_hint("v0")).session_id == "s0"


def test_client_that_named_its_session_is_named_by_nothing_else(client: Client) -> None:
    client.learn(BELIEVED_CONVERSATIONS)
    named = replace(client.naming("its own", [session_hint("v0")]), header_name="x-session-id")

    ((_, reply),) = batch.apply(client.tables, [Write("d", 1, Claim(naming=named))], live=frozenset(), now=NOON).replies

    assert reply.session_id == "its own"


# -- beside the content ------------------------------------------------------------------------------------------------


def test_believed_header_splits_a_fork_from_its_origin(client: Client) -> None:
    client.learn(BELIEVED_CONVERSATIONS)
    head = [answer("s0", LEARNED_TURNS - 1)]

    assert client.claim(session_hint("v0"), continues=head).session_id == "s0"
    assert client.claim(session_hint("new"), continues=head).session_id == "drawn"
    client.turn("fork", [session_hint("new")], LEARNED_TURNS, continues=head)
    assert client.tables.sessions["fork"].forked_from == "s0"
    assert not client.is_contradicted


def test_header_that_is_only_learned_yields_to_the_content(client: Client) -> None:
    client.learn()

    assert client.claim(session_hint("v1"), continues=[answer("s0", LEARNED_TURNS - 1)]).session_id == "s0"


def test_request_without_the_believed_header_is_known_by_its_content(client: Client) -> None:
    client.learn(BELIEVED_CONVERSATIONS)

    assert client.claim(continues=[answer("s0", LEARNED_TURNS - 1)]).session_id == "s0"


@pytest.mark.parametrize("kind", ["session", "header", "field"])
def test_hint_chooses_among_sessions_of_equal_content(client: Client, kind: HintKind) -> None:
    same = [Key(kind="answer", name="chain", value="same")]
    for number in range(2):
        client.turn(f"s{number}", [Hint(kind, NAME, f"v{number}")], keys=same)

    assert client.claim(continues=["same"]).session_id == "drawn"
    assert client.claim(Hint(kind, NAME, "v1"), continues=["same"]).session_id == "s1"
    assert client.claim(Hint(kind, NAME, "v9"), continues=["same"]).session_id == "drawn"


def test_hint_that_both_sessions_of_equal_content_came_with_chooses_neither(client: Client) -> None:
    same = [Key(kind="answer", name="chain", value="same")]
    for number in range(2):
        client.turn(f"s{number}", [Hint("field", "prompt_cache_key", "app")], keys=same)

    assert client.claim(Hint("field", "prompt_cache_key", "app"), continues=["same"]).session_id == "drawn"
