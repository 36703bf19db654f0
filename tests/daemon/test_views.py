"""What people see of a session: every field the contract names, as new as the last finished turn."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs

from daemon import state as states
from daemon.state import EMPTY, SessionState
from daemon.views import account_object, row_object, session_object
from worker.ledger import Sums, sums_of_session
from worker.protocol import Row, Usage, Why
from worker.records import Account, Record
from worker.stored import Session

FIRST_AT = 1_760_000_000_123
MINUTE = 60_000

CONTRACT_FIELDS = {
    *("session_id", "parent_session_id", "forked_from", "client", "account", "account_alias"),
    *("header_name", "header_session_id", "fingerprint"),
    *("model", "message_count", "first_seen_at", "last_turn_at", "turns", "interrupted"),
    *("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens"),
    *("cost_nanousd", "unpriced_turns", "tree_cost_nanousd"),
    *("resolved_conversation_ttl", "warmup", "gradient"),
}
GRADIENT_FIELDS = {
    *("dynamic_context_cap", "bust_rate_ema", "inter_bust_interval_ema", "last_layer"),
    *("last_known_input", "last_turn_at", "last_bust_at"),
}


def turn(position: int, usage: Usage | None = None, **more: Any) -> Row:
    """A settled turn; a minute after the one before."""
    started_at = FIRST_AT + position * MINUTE
    fields: dict[str, Any] = {
        "event_id": f"event-{position:04}",
        "session_id": "s-1",
        "kind": "turn",
        "status": "complete",
        "started_at": started_at,
        "ended_at": started_at + 1_000,
        "provider": "anthropic",
        "protocol": "messages",
        "model": "claude-sonnet-4-6",
        "http_status": 200,
        "usage": usage,
        "cap_ceiling": 266_666,
        "position": position,
    }
    return Row(**(fields | more))


def record(rows: list[Row], *, folded: int = 0, **session: Any) -> Record:
    """A session of these rows, whose snapshot holds the first `folded` of them."""
    snapshot = states.encode(states.fold(EMPTY, rows[:folded]), generation=1) if folded else None
    last_seen_at = rows[-1].started_at if rows else FIRST_AT
    fields: dict[str, Any] = {"session_id": "s-1", "first_seen_at": FIRST_AT, "last_seen_at": last_seen_at}
    sums = Sums()
    for row in rows:
        sums = sums.plus(sums_of_session(row))
    return Record(session=Session(**fields, snapshot=snapshot, **session), sums=sums, tree=sums, rows=rows[folded:])


def shown_of(record: Record) -> dict[str, Any]:
    return session_object(record, {})


BUST = Usage(input_tokens=10, cache_write_5m_tokens=5_000, output_tokens=7)
WARM = Usage(input_tokens=20, cache_read_tokens=5_000, cache_write_5m_tokens=100, output_tokens=8)
ROWS = [turn(1, BUST, cost_nanousd=1_000), turn(2, WARM, cost_nanousd=20), turn(3), turn(4, WARM, cost_nanousd=3)]


def test_object_has_every_field_of_the_contract_and_is_json() -> None:
    shown = shown_of(record(ROWS))
    assert shown.keys() == CONTRACT_FIELDS
    assert shown["gradient"].keys() == GRADIENT_FIELDS
    assert json.loads(json.dumps(shown))["gradient"] == shown["gradient"]


def test_sums_times_and_money_are_those_of_the_rows() -> None:
    shown = shown_of(record(ROWS))
    assert (shown["turns"], shown["interrupted"], shown["unpriced_turns"]) == (4, 0, 1)
    assert shown["input_tokens"] == 10 + 20 + 20
    assert shown["cache_read_tokens"] == 10_000
    assert shown["cache_write_tokens"] == 5_200
    assert shown["output_tokens"] == 23
    assert shown["cost_nanousd"] == shown["tree_cost_nanousd"] == 1_023
    assert shown["first_seen_at"] == "2025-10-09T08:53:20.123Z"
    assert shown["last_turn_at"] == "2025-10-09T08:57:20.123Z"
    assert shown["gradient"]["last_known_input"] == WARM.prompt_tokens
    assert shown["gradient"]["last_turn_at"] == "2025-10-09T08:57:20.123Z"
    assert shown["gradient"]["last_bust_at"] == "2025-10-09T08:54:20.123Z"


@pytest.mark.parametrize("folded", range(len(ROWS) + 1))
def test_shown_state_does_not_depend_on_the_tick(folded: int) -> None:
    assert shown_of(record(ROWS, folded=folded)) == shown_of(record(ROWS))


def test_session_whose_first_turn_is_open_knows_nothing_yet() -> None:
    opened = structs.replace(turn(1), status="interrupted", ended_at=0, position=0)
    fresh = record([opened])
    shown = shown_of(structs.replace(fresh, rows=[]))
    assert (shown["turns"], shown["interrupted"]) == (1, 1)
    assert shown["gradient"] is None and shown["warmup"] is None
    assert shown["resolved_conversation_ttl"] == "5m"
    assert shown["cost_nanousd"] is None and shown["unpriced_turns"] == 1


def test_session_without_a_turn_has_no_last_turn() -> None:
    assert shown_of(record([]))["last_turn_at"] is None


def test_unknown_price_is_null_and_not_zero() -> None:
    assert shown_of(record([turn(1, WARM)]))["cost_nanousd"] is None
    assert shown_of(record([turn(1, WARM, cost_nanousd=0)]))["cost_nanousd"] == 0


def test_side_calls_cost_money_and_are_no_turns() -> None:
    side = turn(2, WARM, kind="side", cost_nanousd=500)
    shown = shown_of(record([turn(1, BUST, cost_nanousd=1_000), side]))
    assert (shown["turns"], shown["output_tokens"], shown["cost_nanousd"]) == (1, 7, 1_500)


def test_absent_names_are_null_and_present_ones_are_shown() -> None:
    bare = shown_of(record(ROWS))
    assert [bare[name] for name in ("client", "account", "model", "header_name", "fingerprint")] == [None] * 5
    named = shown_of(
        record(ROWS, client="codex", account="a1", model="m", header_name="session-id", header_session_id="x")
    )
    shown = [named[name] for name in ("client", "account", "model", "header_name", "header_session_id")]
    assert shown == ["codex", "a1", "m", "session-id", "x"]


def test_damaged_snapshot_is_shown_with_its_warnings() -> None:
    healthy = record(ROWS, folded=2)
    assert healthy.session.snapshot is not None
    damaged = structs.replace(healthy.session.snapshot, resolved_conversation_ttl="banana")
    session = structs.replace(healthy.session, snapshot=damaged)
    shown = shown_of(structs.replace(healthy, session=session))
    assert len(shown["warnings"]) == 1 and "banana" in shown["warnings"][0]
    assert shown["gradient"] == shown_of(healthy)["gradient"]


def test_account_shows_why_what_and_by_which_keys() -> None:
    why = Why(reason="the client named it", origin="header session-id", confidence="certain")
    one = record(ROWS, folded=2, why=why, epoch=3, owner="boot-1")
    shown = account_object(account(one), {})
    assert [shown[name] for name in ("reason", "origin", "confidence")] == [why.reason, why.origin, why.confidence]
    assert (shown["epoch"], shown["owner"], shown["aliases"], shown["snapshot_generation"]) == (3, "boot-1", ["s-0"], 1)
    assert (shown["sub_agents"], shown["forks"]) == (["child-1"], ["fork-1"])
    assert shown["keys"] == [{"kind": "header", "name": "session-id", "value": "x"}]
    assert [row["event_id"] for row in shown["newest_rows"]] == [row.event_id for row in ROWS[::-1]]
    assert shown.items() >= shown_of(one).items()


def account(one: Record) -> Account:
    keys = [("header", "session-id", "x")]
    return Account(record=one, keys=keys, newest=ROWS[::-1], aliases=["s-0"], children=["child-1"], forks=["fork-1"])


def test_relatives_are_shown_where_there_are_any() -> None:
    shown = shown_of(record(ROWS, parent_session_id="p", forked_from="f"))
    assert (shown["parent_session_id"], shown["forked_from"]) == ("p", "f")
    bare = shown_of(record(ROWS))
    assert (bare["parent_session_id"], bare["forked_from"]) == (None, None)


def test_cost_of_the_tree_is_told_beside_the_sessions_own() -> None:
    tree = sums_of_session(turn(9, WARM, cost_nanousd=7_000))
    shown = shown_of(structs.replace(record([turn(1, WARM, cost_nanousd=5)]), tree=tree))
    assert (shown["cost_nanousd"], shown["tree_cost_nanousd"]) == (5, 7_000)
    unpriced = shown_of(structs.replace(record([turn(1, WARM)]), tree=Sums()))
    assert unpriced["tree_cost_nanousd"] is None


def test_account_is_shown_with_the_operators_name_for_it() -> None:
    one = record(ROWS, account="a1")
    aliases = {"a1": "work"}
    assert [session_object(one, aliases)[name] for name in ("account", "account_alias")] == ["a1", "work"]
    assert account_object(account(one), aliases)["account_alias"] == "work"
    assert session_object(one, {"a2": "home"})["account_alias"] is None


def test_row_tells_why_it_was_given_its_session_and_nothing_where_nobody_knows() -> None:
    why = Why(reason="it has no tools", origin="header x-session-id", confidence="likely")
    names = ("reason", "origin", "confidence")
    assert [row_object(turn(1, why=why))[name] for name in names] == [why.reason, why.origin, why.confidence]
    assert [row_object(turn(1))[name] for name in names] == ["", None, None]


def test_row_of_unknown_usage_shows_null_and_not_zero() -> None:
    shown = row_object(turn(1))
    names = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "cost_nanousd")
    assert [shown[name] for name in names] == [None] * 5
    assert shown["settled"] is True


def test_open_row_has_no_end_and_no_status() -> None:
    shown = row_object(turn(1, ended_at=0, http_status=0, status="interrupted"))
    assert (shown["ended_at"], shown["http_status"], shown["settled"]) == (None, None, False)


@pytest.mark.parametrize("at", [2**53, 253_402_300_799_999])
def test_absurd_time_is_shown_and_not_raised(at: int) -> None:
    assert row_object(turn(1, started_at=at))["started_at"].startswith("9999-12-31T23:59:59")


def test_known_warming_evidence_is_shown_without_its_ttl() -> None:
    shown = shown_of(record(ROWS))
    assert shown["warmup"].keys() == set(SessionState().warming.__struct_fields__) - {"ttl"}
    assert shown["warmup"]["turns"] == 3
