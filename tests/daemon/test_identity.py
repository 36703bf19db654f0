"""Who is speaking: the clients that are seen in the field, and the chain for those that name nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.app import rules_of
from daemon.chain import HashKeys, child_root, response_root
from daemon.identity import (
    Headers,
    Known,
    answered,
    as_child,
    client_of,
    derived_id,
    known_from,
    naming_of,
    with_chains,
)
from daemon.providers import Answer, Turn, Unit, WireFormat, parse_turn
from daemon.providers.base import ID_CHARACTERS_MAX
from worker.protocol import CONTINUES_MAX, Key, Naming
from worker.settings import Settings

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
KEYS = HashKeys(store=KEY, early=OTHER_KEY)
RULES = rules_of(Settings())
"""As they are shipped: what is known of clients in the field."""
UUID = "01a2037c-23f4-7452-b8ed-86223d9f6994"
THREAD = "01a2037d-8b79-7ff3-98ff-9a41405cf7cd"
GRANDCHILD = "01a2037e-11f4-7a0b-9d1e-0c6a35b2f001"
USER, ASSISTANT = "user", "assistant"


def turn(wire: WireFormat = "messages", **fields: Any) -> Turn:
    parsed = parse_turn(wire, json.dumps({"model": "m", "messages": [], **fields}).encode(), RULES.fields)
    assert parsed is not None
    return parsed


def known_of(headers: Headers = (), request: Turn | None = None, keys: HashKeys = KEYS) -> Known:
    return known_from(headers, request or turn(), b"{}", keys, RULES)


def proposed(headers: Headers = (), request: Turn | None = None) -> Naming:
    return naming_of(known_of(headers, request), "drawn")


KNOWN = Known(account="", client="c", minted=None)


def units(*texts: str) -> tuple[Unit, ...]:
    """The user's and the assistant's in turns, the user's first."""
    return tuple(Unit((USER, ASSISTANT)[place % 2], text) for place, text in enumerate(texts))


def chained(*texts: str, account: str = "a", body: bytes = b"{}", key: bytes = KEY) -> Known:
    known = Known(account=account, client="c", minted=None, units=units(*texts))
    return with_chains(known, body, HashKeys(store=key, early=OTHER_KEY))


def saying(text: str) -> Answer:
    return Answer(unit=Unit(ASSISTANT, text))


def answer_key(known: Known, text: str) -> str:
    naming = answered(naming_of(known, "drawn"), known, saying(text))
    (value,) = [key.value for key in naming.keys if key.kind == "answer"]
    return value


# -- clients that mint an id -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "headers", "name", "value"),
    [
        (
            "claude-code",
            [("User-Agent", "claude-cli/2.1 (external, sdk-cli)"), ("X-Claude-Code-Session-Id", UUID)],
            "x-claude-code-session-id",
            UUID,
        ),
        (
            "codex",
            [
                ("user-agent", "codex_exec/0.169.0 (Debian; x86_64)"),
                ("x-client-request-id", UUID),
                ("session-id", UUID),
                ("thread-id", UUID),
            ],
            "session-id",
            UUID,
        ),
        (
            "codex",
            [("user-agent", "codex_exec/0.169.0"), ("session-id", UUID), ("thread-id", THREAD)],
            "thread-id",
            THREAD,
        ),
        (
            "opencode",
            [("user-agent", "opencode/1.0"), ("x-session-affinity", "ses_1"), ("x-session-id", "ses_1")],
            "x-session-id",
            "ses_1",
        ),
        (
            "opencode",
            [("user-agent", "opencode/1.0"), ("x-session-affinity", "ses_1"), ("session-id", "ses_1")],
            "x-session-affinity",
            "ses_1",
        ),
        ("pi", [("user-agent", "pi/0.1"), ("session_id", UUID), ("x-client-request-id", UUID)], "session_id", UUID),
    ],
    ids=["claude-code", "codex", "codex-subagent", "opencode", "opencode-responses", "pi"],
)
def test_known_from_a_clients_headers_finds_its_id(client: str, headers: Headers, name: str, value: str) -> None:
    known = known_of(headers)

    assert known.client == client
    assert known.minted == (name, value)
    assert not known.minted_in_body


def test_known_from_claude_codes_body_finds_its_id() -> None:
    user_id = json.dumps({"device_id": "d", "account_uuid": "account-1", "session_id": UUID})

    known = known_of([], turn(metadata={"user_id": user_id}))

    assert known.minted is not None
    assert known.minted[1] == UUID
    assert known.minted_in_body
    assert known.account == "account-1"
    assert naming_of(known, "drawn").keys[0].kind == "body"


def test_known_from_header_and_body_believes_the_header() -> None:
    user_id = json.dumps({"session_id": "from-body"})

    known = known_of([("x-claude-code-session-id", UUID)], turn(metadata={"user_id": user_id}))

    assert known.minted == ("x-claude-code-session-id", UUID)
    assert not known.minted_in_body


@pytest.mark.parametrize("value", ["", "x" * (ID_CHARACTERS_MAX + 1), "a\x01b"])
def test_known_from_a_value_that_is_no_id_names_nothing(value: str) -> None:
    assert known_of([("x-session-id", value)]).minted is None


def test_known_from_an_sdk_without_ids_names_nothing() -> None:
    headers = [("User-Agent", "Anthropic/Python 2.12.0"), ("x-client-request-id", UUID)]

    known = known_of(headers)

    assert known.minted is None
    assert known.client == "anthropic-sdk"


def test_naming_of_a_minted_id_is_certain_and_the_derived_one() -> None:
    naming = proposed([("x-session-id", "ses_1")])

    assert naming.session_id == derived_id("x-session-id", "ses_1")
    assert naming.keys == [Key(kind="header", name="x-session-id", value="ses_1")]
    assert (naming.header_name, naming.header_session_id) == ("x-session-id", "ses_1")
    assert (naming.is_named, naming.why.origin, naming.why.confidence) == (True, "header x-session-id", "certain")


def test_naming_of_a_minted_id_shows_its_history_and_setup_but_no_chain_key() -> None:
    request = turn(messages=said("hello", "hi", "go on"), system="You write code.", tools=[{"name": "bash"}])

    naming = proposed([("x-session-id", "ses_1")], request)

    assert naming.continues == proposed([], request).continues != []
    assert naming.shape is not None and naming.shape.system and naming.shape.tools and naming.shape.opening
    assert {key.kind for key in naming.keys} == {"header"}
    assert (naming.retry, naming.hints, naming.is_opening) == ("", [], False)


def test_naming_of_an_unnamed_request_shows_its_hints_and_no_setup() -> None:
    naming = proposed([("x-house-session", "abcdefgh")], turn(messages=said("hello"), system="You write code."))

    assert [hint.name for hint in naming.hints] == ["x-house-session"]
    assert naming.shape is None
    assert (naming.is_named, naming.is_opening, naming.why.confidence) == (False, True, "likely")


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": unit.role, "content": unit.text} for unit in units(*texts)]


def test_derived_id_is_the_same_for_ever() -> None:
    assert derived_id("x-session-id", "ses_1") == "9558b7c997628f8a6ce06dda72acb0d1"


def test_derived_id_of_another_name_or_value_differs() -> None:
    ids = {derived_id("a", "bc"), derived_id("ab", "c"), derived_id("a", "b")}

    assert len(ids) == 3


@pytest.mark.parametrize(
    ("user_agent", "client"),
    [("OpenAI/Python 2.1", "openai-sdk"), ("curl/8.1", "curl"), ("", "unknown"), ("<script>/1", "unknown")],
)
def test_client_of_a_user_agent_is_a_short_name(user_agent: str, client: str) -> None:
    assert client_of(user_agent) == client


# -- sub-agents --------------------------------------------------------------------------------------------------------

CLAUDE = ("x-claude-code-session-id", UUID)
CODEX_FIRST = [("session-id", UUID), ("thread-id", UUID)]
CODEX_CHILD = [("session-id", UUID), ("thread-id", THREAD), ("x-codex-parent-thread-id", UUID)]


@pytest.mark.parametrize(
    ("parent", "child"),
    [
        ([CLAUDE], [CLAUDE, ("x-claude-code-agent-id", "a1")]),
        (CODEX_FIRST, CODEX_CHILD),
        (CODEX_FIRST, CODEX_CHILD[:2]),
        (CODEX_CHILD, [("session-id", UUID), ("thread-id", GRANDCHILD), ("x-codex-parent-thread-id", THREAD)]),
        ([("x-session-id", "ses_1")], [("x-session-id", "ses_2"), ("x-parent-session-id", "ses_1")]),
        (
            [("x-session-id", "ses_2"), ("x-parent-session-id", "ses_1")],
            [("x-session-id", "ses_3"), ("x-parent-session-id", "ses_2")],
        ),
    ],
    ids=["agent-header", "thread", "thread-without-parent-header", "thread-of-a-thread", "parent-header", "nested"],
)
def test_naming_of_a_sub_agent_has_the_parents_own_id_and_another_one(parent: Headers, child: Headers) -> None:
    mother, daughter = proposed(parent), proposed(child)

    assert daughter.parent == mother.session_id != daughter.session_id
    assert daughter.why.confidence == "certain"
    assert daughter.shape is None, "it said what it is"


def test_naming_of_two_agents_in_one_session_are_two_sessions() -> None:
    one, two = (proposed([CLAUDE, ("x-claude-code-agent-id", agent)]) for agent in ("a1", "a2"))
    elsewhere = proposed([("x-claude-code-session-id", THREAD), ("x-claude-code-agent-id", "a1")])

    assert len({one.session_id, two.session_id, elsewhere.session_id}) == 3
    assert (one.header_name, one.header_session_id) == ("x-claude-code-agent-id", "a1")


@pytest.mark.parametrize(
    "headers",
    [
        [("x-session-id", "ses_1"), ("x-parent-session-id", "ses_1")],
        [("x-session-id", "ses_1"), ("x-parent-session-id", "")],
        [("x-session-id", "ses_1"), ("x-claude-code-agent-id", "a\x01")],
        CODEX_FIRST,
    ],
)
def test_naming_of_a_request_that_names_no_other_session_has_no_parent(headers: Headers) -> None:
    assert proposed(headers).parent == ""


@pytest.mark.parametrize("name", ["x-claude-code-agent-id", "x-parent-session-id"])
def test_naming_of_a_sub_agent_without_a_session_is_known_by_content(name: str) -> None:
    naming = proposed([(name, "some-id-or-other")], turn(messages=said("hello")))

    assert (naming.is_named, naming.parent, naming.session_id) == (False, "", "drawn")


def test_as_child_is_known_by_its_content_within_its_session_alone() -> None:
    known = known_of([CLAUDE], turn(messages=said("look for it")))

    one, again, elsewhere = (naming_of(as_child(known, parent, b"{}", KEYS), "drawn") for parent in ("p", "p", "q"))

    assert (one.is_named, one.shape, one.parent, one.session_id) == (False, None, "p", "drawn")
    assert {key.kind for key in one.keys} == {"retry", "request"}
    assert one.keys == again.keys
    assert not {key.value for key in one.keys} & {key.value for key in elsewhere.keys}
    assert one.why.confidence == "likely" and "sub-agent of p" in one.why.reason


def test_as_child_later_continues_what_it_answered_and_nothing_of_its_session() -> None:
    first = as_child(known_of([CLAUDE], turn(messages=said("look for it"))), "p", b"{}", KEYS)
    later = known_of([CLAUDE], turn(messages=said("look for it", "found", "and the other?")))

    continues = naming_of(as_child(later, "p", b"{}", KEYS), "drawn").continues

    assert continues[0] == answer_key(first, "found")
    assert not set(continues) & set(naming_of(later, "drawn").continues)


def test_as_child_of_a_response_goes_on_from_that_response() -> None:
    """What the provider keeps is said by the response's id, whoever was asked."""
    request = {"input": "and the other?", "previous_response_id": "resp_1"}

    child = as_child(known_of([CLAUDE], turn("responses", **request)), "p", b"{}", KEYS)

    assert naming_of(child, "drawn").continues == [response_root(KEY, "", "resp_1")]


def test_as_child_without_messages_is_a_session_of_its_own() -> None:
    child = as_child(known_of([CLAUDE]), "p", b"{}", KEYS)

    assert (naming_of(child, "drawn").keys, child.chain) == ([], None)


def test_as_child_before_any_worker_was_heard_is_hashed_with_the_early_key() -> None:
    keys = HashKeys(store=None, early=OTHER_KEY)
    child = as_child(known_of([CLAUDE], turn(messages=said("x")), keys), "p", b"{}", keys)

    assert child.chain is not None and child.chain.root == child_root(OTHER_KEY, "", "p")


# -- what the request shows by itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "is_aside"),
    [
        ({"messages": said("quota"), "max_tokens": 1}, True),
        ({"messages": said("fix it", "done", "thanks"), "max_tokens": 1}, True),
        ({"messages": said("fix it"), "system": "Generate a short title for this."}, True),
        ({"messages": said("fix it"), "system": "Generate a title.", "tools": [{"name": "bash"}]}, False),
        ({"messages": said("fix it"), "max_tokens": 32_000, "system": "You write code."}, False),
    ],
)
def test_known_from_a_named_request_says_whether_it_is_beside_the_conversation(
    fields: dict[str, Any], is_aside: bool
) -> None:
    assert bool(known_of([CLAUDE], turn(**fields)).aside) is is_aside
    assert known_of([], turn(**fields)).aside == "", "without a session there is nothing to be beside"
    agents = known_of([CLAUDE, ("x-claude-code-agent-id", "a1")], turn(**fields)).aside
    assert bool(agents) is ("max_tokens" in fields and fields["max_tokens"] == 1), "an agent may probe, too"


def test_known_from_a_first_message_that_only_tells_the_surroundings_opens_with_the_next() -> None:
    context = "<environment_context>\n  <cwd>/src</cwd>\n</environment_context>"

    def opening(*texts: str) -> str:
        shape = known_of([CLAUDE], turn(messages=[{"role": "user", "content": text} for text in texts])).shape
        assert shape is not None
        return shape.opening

    assert opening(context, "fix it") == opening("fix it") == opening("fix it", "and this") != opening(context)
    assert opening(context) != opening("<other>\n</other>")


# -- the chain ---------------------------------------------------------------------------------------------------------


def test_naming_of_a_follow_up_continues_the_answer_before() -> None:
    first = chained("hello")

    follow_up = naming_of(chained("hello", "hi there", "and now?"), "drawn")

    assert follow_up.continues[0] == answer_key(first, "hi there")


def test_naming_of_a_follow_up_to_an_unknown_answer_continues_the_request() -> None:
    (_, request) = naming_of(chained("hello"), "drawn").keys

    follow_up = naming_of(chained("hello", "hi there", "and now?"), "drawn")

    assert request.kind == "request"
    assert request.value in follow_up.continues


def test_naming_of_equal_openings_with_other_answers_stay_two() -> None:
    one, two = answer_key(chained("hello"), "one"), answer_key(chained("hello"), "two")

    continues = naming_of(chained("hello", "one", "next"), "drawn").continues

    assert one in continues
    assert two not in continues


def test_naming_of_the_same_request_continues_not_itself() -> None:
    naming = naming_of(chained("hello", "one", "next"), "drawn")

    assert not {key.value for key in naming.keys} & set(naming.continues)


def test_naming_of_a_repeated_body_has_the_same_retry_key() -> None:
    first = naming_of(chained("hello", body=b'{"a":1}'), "drawn")
    again = naming_of(chained("hello", body=b'{"a":1}'), "drawn-2")
    other = naming_of(chained("hello", body=b'{"a":2}'), "drawn-3")

    assert first.retry == again.retry != other.retry
    assert first.retry in {key.value for key in first.keys if key.kind == "retry"}


@pytest.mark.parametrize("changed", [{"account": "b"}, {"key": OTHER_KEY}])
def test_naming_of_another_account_or_store_shares_no_link(changed: dict[str, Any]) -> None:
    mine = naming_of(chained("hello", "one", "next"), "drawn")
    theirs = naming_of(chained("hello", "one", "next", **changed), "drawn")

    assert not set(mine.continues) & set(theirs.continues)


def test_answered_after_a_prefilled_answer_joins_both_parts() -> None:
    prefilled = chained("say json", "{")

    key = answer_key(prefilled, '"a": 1}')

    assert naming_of(chained("say json", '{"a": 1}', "more"), "drawn").continues[0] == answer_key(
        chained("say json"), '{"a": 1}'
    )
    assert naming_of(chained("say json", '{"a": 1}', "more"), "drawn").continues[0] == key


def test_answered_turn_keeps_its_retry_key_but_an_answered_opening_does_not() -> None:
    """A client that never read the answer asks again; the same first words twice are two conversations."""
    opening, later = chained("hi"), chained("hi", "hello", "and now?")

    def kinds(known: Known) -> list[str]:
        return [key.kind for key in answered(naming_of(known, "drawn"), known, saying("yes")).keys]

    assert kinds(opening) == ["answer"]
    assert kinds(later) == ["retry", "answer"]


def test_answered_counts_the_messages_under_the_key() -> None:
    known, prefilled = chained("hello"), chained("say json", "{")

    plain = answered(naming_of(known, "drawn"), known, saying("hi"))
    joined = answered(naming_of(prefilled, "drawn"), prefilled, saying("}"))

    assert (plain.chain_length, joined.chain_length) == (2, 2)


def test_answered_without_a_known_answer_keeps_the_requests_keys() -> None:
    known = chained("hello")
    naming = naming_of(known, "drawn")

    assert answered(naming, known, Answer()) == naming


def test_answered_turn_of_a_named_session_leaves_its_history_behind_which_names_nothing() -> None:
    known = known_of([("x-session-id", "ses_1")], turn(messages=said("hello")))
    unnamed = known_of([], turn(messages=said("hello")))

    keys = answered(naming_of(known, "drawn"), known, saying("hi")).keys

    assert [key.kind for key in keys] == ["header", "history"]
    assert keys[1].value == answer_key(unnamed, "hi")


def test_known_from_without_the_stores_key_tells_no_account_but_keeps_strangers_apart() -> None:
    keys = HashKeys(store=None, early=OTHER_KEY)
    request = turn(messages=said("hello"))
    ours, theirs = (known_of([("authorization", f"Bearer {key}")], request, keys) for key in ("sk-1", "sk-2"))

    assert ours.account == theirs.account == ""
    assert ours.chain is not None and theirs.chain is not None
    assert ours.chain.root != theirs.chain.root


def test_conversation_that_began_before_any_worker_was_heard_is_known_again() -> None:
    before = HashKeys(store=None, early=OTHER_KEY)
    after = HashKeys(store=KEY, early=OTHER_KEY, early_was_used=True)
    asked = Known(account="", client="c", minted=None, units=units("hello"))
    first = with_chains(asked, b"{}", before, early_account="e")
    learned = answered(naming_of(first, "drawn"), first, saying("hi"))

    asked_on = Known(account="a", client="c", minted=None, units=units("hello", "hi", "and now?"))
    later = naming_of(with_chains(asked_on, b"{}", after, early_account="e"), "drawn")

    assert {key.value for key in learned.keys} & set(later.continues)
    assert all(key.value not in later.continues for key in naming_of(first, "drawn").keys if key.kind == "retry")
    assert not {key.value for key in later.keys} & {key.value for key in learned.keys}


def test_early_key_is_not_hashed_with_when_it_was_never_used() -> None:
    assert chained("hello").early_chain is None


def test_with_chains_of_an_empty_conversation_adds_nothing() -> None:
    assert with_chains(KNOWN, b"{}", KEYS) == KNOWN
    assert naming_of(KNOWN, "drawn").keys == []


def test_naming_of_a_very_long_conversation_offers_its_newest_prefixes() -> None:
    texts = [f"message {number}" for number in range(2 * CONTINUES_MAX + 1)]

    naming = naming_of(chained(*texts), "drawn")

    assert len(naming.continues) == CONTINUES_MAX
    assert naming.continues[0] == answer_key(chained(*texts[:-2]), texts[-2])


# -- conversations that the provider keeps -----------------------------------------------------------------------------


def response(**fields: Any) -> Known:
    return known_of([], turn("responses", **fields))


def links_after(known: Known, text: str, response_id: str) -> list[str]:
    answer = Answer(unit=Unit(ASSISTANT, text), response_id=response_id)
    return [key.value for key in answered(naming_of(known, "drawn"), known, answer).keys if key.kind == "answer"]


def test_naming_of_a_response_that_goes_on_continues_the_one_before() -> None:
    first = links_after(response(input="hello"), "hi", "resp_1")

    naming = naming_of(response(input="and now?", previous_response_id="resp_1"), "drawn")

    assert len(first) == 2, "by its content, and by its id"
    assert naming.continues == first[1:]
    assert (naming.is_opening, naming.chain_length, naming.why.origin) == (False, 0, "previous_response_id")


def test_answered_response_that_went_on_is_known_by_its_id_alone() -> None:
    second = links_after(response(input="and now?", previous_response_id="resp_1"), "that", "resp_2")

    third = naming_of(response(input="why?", previous_response_id="resp_2"), "drawn")

    assert third.continues == second


def test_naming_of_another_accounts_response_id_shares_no_link() -> None:
    request = turn("responses", input="and now?", previous_response_id="resp_1")
    mine, theirs = (proposed([("authorization", f"Bearer {key}")], request) for key in ("sk-1", "sk-2"))

    assert not set(mine.continues) & set(theirs.continues)


def test_naming_of_what_goes_on_again_in_other_words_is_no_retry() -> None:
    one, again, other = (
        naming_of(response(input=text, previous_response_id="resp_1"), "drawn") for text in ("a", "a", "b")
    )

    assert one.retry == again.retry != other.retry


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}])
def test_naming_of_a_conversation_that_the_provider_keeps_is_its_id(conversation: Any) -> None:
    naming = naming_of(response(input="and now?", conversation=conversation), "drawn")

    assert (naming.is_named, naming.header_session_id, naming.continues) == (True, "conv_1", [])
    assert naming.keys[0].kind == "body"


def test_answered_message_of_a_format_without_response_ids_is_not_known_by_one() -> None:
    known = chained("hello")
    answer = Answer(unit=Unit(ASSISTANT, "hi"), response_id="msg_1")

    assert len(answered(naming_of(known, "drawn"), known, answer).keys) == 1
