"""Who is speaking: the clients that are seen in the field, and the chain for those that name nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.identity import (
    ID_CHARACTERS_MAX,
    HashKeys,
    Headers,
    Known,
    account_of,
    answered,
    client_of,
    derived_id,
    known_from,
    naming_of,
    with_chains,
)
from daemon.providers import Turn, Unit, WireFormat, parse_turn
from worker.protocol import CONTINUES_MAX

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
KEYS = HashKeys(store=KEY, early=OTHER_KEY)
UUID = "01a2037c-23f4-7452-b8ed-86223d9f6994"
THREAD = "01a2037d-8b79-7ff3-98ff-9a41405cf7cd"
USER, ASSISTANT = "user", "assistant"


def turn(wire: WireFormat = "messages", **fields: Any) -> Turn:
    parsed = parse_turn(wire, json.dumps({"model": "m", "messages": [], **fields}).encode())
    assert parsed is not None
    return parsed


KNOWN = Known(account="", early_account="e", client="c", minted=None)


def chained(*texts: str, account: str = "a", body: bytes = b"{}", key: bytes = KEY) -> Known:
    """A request whose messages are the user's and the assistant's in turns, the user's first."""
    units = [Unit((USER, ASSISTANT)[place % 2], text) for place, text in enumerate(texts)]
    return with_chains(
        Known(account=account, client="c", minted=None), units, body, HashKeys(store=key, early=OTHER_KEY)
    )


def answer_key(known: Known, text: str) -> str:
    naming = answered(naming_of(known, "drawn"), known, Unit(ASSISTANT, text))
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
            "claude-code",
            [
                ("User-Agent", "claude-cli/2.1 (external, cli)"),
                ("X-Claude-Code-Session-Id", UUID),
                ("X-Claude-Code-Agent-Id", "agent-1"),
            ],
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
    ids=["claude-code", "claude-code-agent", "codex", "codex-subagent", "opencode", "opencode-responses", "pi"],
)
def test_known_from_a_clients_headers_finds_its_id(client: str, headers: Headers, name: str, value: str) -> None:
    known = known_from(headers, turn(), KEYS)

    assert known.client == client
    assert known.minted == (name, value)
    assert not known.minted_in_body


def test_known_from_claude_codes_body_finds_its_id() -> None:
    user_id = json.dumps({"device_id": "d", "account_uuid": "account-1", "session_id": UUID})

    known = known_from([], turn(metadata={"user_id": user_id}), KEYS)

    assert known.minted is not None
    assert known.minted[1] == UUID
    assert known.minted_in_body
    assert known.account == "account-1"
    assert naming_of(known, "drawn").keys[0].kind == "body"


def test_known_from_header_and_body_believes_the_header() -> None:
    user_id = json.dumps({"session_id": "from-body"})

    known = known_from([("x-claude-code-session-id", UUID)], turn(metadata={"user_id": user_id}), KEYS)

    assert known.minted == ("x-claude-code-session-id", UUID)
    assert not known.minted_in_body


@pytest.mark.parametrize("value", ["", "x" * (ID_CHARACTERS_MAX + 1), "a\x01b"])
def test_known_from_a_value_that_is_no_id_names_nothing(value: str) -> None:
    assert known_from([("x-session-id", value)], turn(), KEYS).minted is None


def test_known_from_an_sdk_without_ids_names_nothing() -> None:
    headers = [("User-Agent", "Anthropic/Python 2.12.0"), ("x-client-request-id", UUID)]

    known = known_from(headers, turn(), KEYS)

    assert known.minted is None
    assert known.client == "anthropic-sdk"


def test_naming_of_a_minted_id_proposes_the_derived_one_and_no_chain() -> None:
    known = known_from([("x-session-id", "ses_1")], turn(), KEYS)

    naming = naming_of(known, "drawn")

    assert naming.session_id == derived_id("x-session-id", "ses_1")
    assert not naming.continues
    assert (naming.header_name, naming.header_session_id) == ("x-session-id", "ses_1")


def test_derived_id_is_the_same_for_ever() -> None:
    assert derived_id("x-session-id", "ses_1") == "9558b7c997628f8a6ce06dda72acb0d1"


def test_derived_id_of_another_name_or_value_differs() -> None:
    ids = {derived_id("a", "bc"), derived_id("ab", "c"), derived_id("a", "b")}

    assert len(ids) == 3


# -- accounts ----------------------------------------------------------------------------------------------------------


def test_account_of_one_key_is_the_same_in_either_header() -> None:
    accounts = {
        account_of({"x-api-key": "sk-1"}, turn(), KEY),
        account_of({"authorization": "Bearer sk-1"}, turn(), KEY),
    }

    assert len(accounts) == 1
    assert "sk-1" not in accounts.pop()


def test_account_of_another_key_or_another_store_differs() -> None:
    accounts = [
        account_of({"x-api-key": "sk-1"}, turn(), KEY),
        account_of({"x-api-key": "sk-2"}, turn(), KEY),
        account_of({"x-api-key": "sk-1"}, turn(), OTHER_KEY),
    ]

    assert len(set(accounts)) == 3


def test_account_of_a_claim_outlives_the_token() -> None:
    named = {"chatgpt-account-id": "team-1", "authorization": "Bearer token-1"}

    assert account_of(named, turn(), KEY) == "team-1"


@pytest.mark.parametrize("named", [{}, {"x-api-key": ""}])
def test_account_of_no_credential_is_empty(named: dict[str, str]) -> None:
    assert account_of(named, turn(), KEY) == ""


def test_account_of_a_credential_without_a_hash_key_is_empty() -> None:
    assert account_of({"x-api-key": "sk-1"}, turn(), None) == ""


@pytest.mark.parametrize(
    ("user_agent", "client"),
    [("OpenAI/Python 2.1", "openai-sdk"), ("curl/8.1", "curl"), ("", "unknown"), ("<script>/1", "unknown")],
)
def test_client_of_a_user_agent_is_a_short_name(user_agent: str, client: str) -> None:
    assert client_of(user_agent) == client


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


def test_naming_of_moved_boundaries_shares_no_link() -> None:
    one = with_chains(Known(account="a", client="c", minted=None), [Unit("user", "ab"), Unit("user", "c")], b"", KEYS)
    two = with_chains(Known(account="a", client="c", minted=None), [Unit("user", "a"), Unit("user", "bc")], b"", KEYS)

    assert one.chain is not None and two.chain is not None
    assert not set(one.chain.links) & set(two.chain.links)


def test_answered_after_a_prefilled_answer_joins_both_parts() -> None:
    prefilled = chained("say json", "{")

    key = answer_key(prefilled, '"a": 1}')

    assert naming_of(chained("say json", '{"a": 1}', "more"), "drawn").continues[0] == key


def test_answered_turn_keeps_its_retry_key_but_an_answered_opening_does_not() -> None:
    """A client that never read the answer asks again; the same first words twice are two conversations."""
    opening, later = chained("hi"), chained("hi", "hello", "and now?")

    def kinds(known: Known) -> list[str]:
        return [key.kind for key in answered(naming_of(known, "drawn"), known, Unit(ASSISTANT, "yes")).keys]

    assert kinds(opening) == ["answer"]
    assert kinds(later) == ["retry", "answer"]


def test_answered_counts_the_messages_under_the_key() -> None:
    known, prefilled = chained("hello"), chained("say json", "{")

    plain = answered(naming_of(known, "drawn"), known, Unit(ASSISTANT, "hi"))
    joined = answered(naming_of(prefilled, "drawn"), prefilled, Unit(ASSISTANT, "}"))

    assert (plain.chain_length, joined.chain_length) == (2, 2)


def test_answered_without_a_known_answer_keeps_the_requests_keys() -> None:
    known = chained("hello")
    naming = naming_of(known, "drawn")

    assert answered(naming, known, None) == naming


def test_known_from_without_the_stores_key_tells_no_account_but_keeps_strangers_apart() -> None:
    keys = HashKeys(store=None, early=OTHER_KEY)
    ours, theirs = (known_from([("authorization", f"Bearer {key}")], turn(), keys) for key in ("sk-1", "sk-2"))

    assert ours.account == theirs.account == ""
    assert ours.early_account != theirs.early_account


def test_conversation_that_began_before_any_worker_was_heard_is_known_again() -> None:
    before = HashKeys(store=None, early=OTHER_KEY)
    after = HashKeys(store=KEY, early=OTHER_KEY, early_was_used=True)
    first = with_chains(KNOWN, [Unit(USER, "hello")], b"{}", before)
    learned = answered(naming_of(first, "drawn"), first, Unit(ASSISTANT, "hi"))

    units = [Unit(USER, "hello"), Unit(ASSISTANT, "hi"), Unit(USER, "and now?")]
    later = naming_of(with_chains(KNOWN, units, b"{}", after), "drawn")

    assert {key.value for key in learned.keys} & set(later.continues)
    assert all(key.value not in later.continues for key in naming_of(first, "drawn").keys if key.kind == "retry")
    assert not {key.value for key in later.keys} & {key.value for key in learned.keys}


def test_early_key_is_not_hashed_with_when_it_was_never_used() -> None:
    assert with_chains(KNOWN, [Unit(USER, "hello")], b"{}", KEYS).early_chain is None


def test_with_chain_of_an_empty_conversation_adds_nothing() -> None:
    known = Known(account="a", client="c", minted=None)

    assert with_chains(known, [], b"{}", KEYS) == known


def test_naming_of_a_very_long_conversation_offers_its_newest_prefixes() -> None:
    texts = [f"message {number}" for number in range(2 * CONTINUES_MAX + 1)]

    naming = naming_of(chained(*texts), "drawn")

    assert len(naming.continues) == CONTINUES_MAX
    assert naming.continues[0] == answer_key(chained(*texts[:-2]), texts[-2])
