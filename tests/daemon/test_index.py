"""The index of keys: whose conversation a request continues, as far as one daemon knows."""

from __future__ import annotations

from daemon.index import KeyIndex
from worker.protocol import IndexEntry, Key, KeyKind


def key(kind: KeyKind, value: str) -> Key:
    return Key(kind=kind, name="chain", value=value)


def test_continued_of_a_value_one_session_holds_is_that_session() -> None:
    index = KeyIndex()
    index.learn("a", [key("answer", "x")])

    assert index.continued(["unknown", "x"]) == "a"


def test_continued_of_a_value_two_sessions_hold_is_nobody() -> None:
    index = KeyIndex()
    index.learn("a", [key("answer", "x")])
    index.learn("b", [key("answer", "x")])

    assert index.continued(["x"]) == ""


def test_continued_stops_at_the_longest_prefix_anybody_holds() -> None:
    index = KeyIndex()
    index.learn("a", [key("answer", "long")])
    index.learn("b", [key("answer", "long")])
    index.learn("c", [key("answer", "short")])

    assert index.continued(["long", "short"]) == ""


def test_continued_after_one_of_two_holders_went_on_is_the_other() -> None:
    index = KeyIndex()
    index.learn("a", [key("answer", "x")])
    index.learn("b", [key("answer", "x")])

    index.learn("b", [key("answer", "y")])

    assert index.continued(["x"]) == "a"
    assert index.continued(["y"]) == "b"


def test_learn_of_a_request_keeps_the_answer_before() -> None:
    index = KeyIndex()
    index.learn("a", [key("answer", "x")])

    index.learn("a", [key("retry", "r"), key("request", "x2")])

    assert index.continued(["x"]) == "a"
    assert index.continued(["x2"]) == "a"
    assert index.continued(["r"]) == ""


def test_learn_of_an_answer_replaces_all_older_keys() -> None:
    index = KeyIndex()
    index.learn("a", [key("answer", "x")])
    index.learn("a", [key("request", "x2")])

    index.learn("a", [key("answer", "x3")])

    assert [index.continued([value]) for value in ("x", "x2", "x3")] == ["", "", "a"]
    assert len(index) == 1


def test_learn_of_header_keys_learns_nothing() -> None:
    index = KeyIndex()

    index.learn("a", [Key(kind="header", name="x-session-id", value="x")])

    assert len(index) == 0


def test_hold_beyond_the_limit_forgets_the_least_recently_used() -> None:
    index = KeyIndex(limit=2)
    index.learn("a", [key("answer", "x")])
    index.learn("b", [key("answer", "y")])
    index.continued(["x"])

    index.learn("c", [key("answer", "z")])

    assert [index.continued([value]) for value in ("x", "y", "z")] == ["a", "", "c"]


def test_forget_after_eviction_does_not_stumble() -> None:
    index = KeyIndex(limit=1)
    index.learn("a", [key("answer", "x")])
    index.learn("b", [key("answer", "y")])

    index.forget("a")

    assert index.continued(["y"]) == "b"


def test_load_of_older_keys_leaves_first_what_was_learned_last() -> None:
    index = KeyIndex(limit=2)
    index.learn("new", [key("answer", "n")])

    index.load([IndexEntry("answer", "o1", "old-1"), IndexEntry("answer", "o2", "old-2")])

    assert index.continued(["n"]) == "new"
    assert len(index) == 2


def test_load_of_a_retry_key_ignores_it() -> None:
    index = KeyIndex()

    index.load([IndexEntry("retry", "r", "a")])

    assert index.continued(["r"]) == ""


def test_load_of_a_value_somebody_holds_makes_it_ambiguous() -> None:
    index = KeyIndex()
    index.learn("a", [key("answer", "x")])

    index.load([IndexEntry("answer", "x", "b")])

    assert index.continued(["x"]) == ""


def test_clear_forgets_everything() -> None:
    index = KeyIndex()
    index.learn("a", [key("answer", "x")])

    index.clear()

    assert index.continued(["x"]) == ""
    assert len(index) == 0
