"""The chain of a conversation's hashes: what each link stands for, and for whom."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from daemon.chain import (
    Chain,
    account_root,
    chain_of,
    child_root,
    continued_values,
    digest,
    response_root,
    retry_link,
)
from daemon.providers import Unit
from worker.protocol import CONTINUES_MAX

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
USER, ASSISTANT = "user", "assistant"


def units(*texts: str) -> list[Unit]:
    return [Unit((USER, ASSISTANT)[place % 2], text) for place, text in enumerate(texts)]


def chain(*texts: str, root: str = "root", key: bytes = KEY) -> Chain:
    return chain_of(units(*texts), root, key)


def kept(*texts: str, response_id: str = "resp_1") -> Chain:
    return chain_of(units(*texts), response_root(KEY, "a", response_id), KEY, is_kept_by_provider=True)


def test_links_of_a_longer_conversation_begin_with_those_of_the_shorter() -> None:
    assert chain("a", "b", "c").links[:2] == chain("a", "b").links


@pytest.mark.parametrize(
    "other",
    [
        chain("x", "b", "c"),
        chain("a", "b", "c", root="other root"),
        chain("a", "b", "c", key=OTHER_KEY),
        chain_of([Unit(ASSISTANT, "a"), Unit(USER, "b"), Unit(USER, "c")], "root", KEY),
    ],
    ids=["first message", "root", "key", "roles"],
)
def test_links_after_another_beginning_are_all_others(other: Chain) -> None:
    assert not set(chain("a", "b", "c").links) & set(other.links)


def test_links_of_moved_boundaries_are_others() -> None:
    one = chain_of([Unit(USER, "ab"), Unit(USER, "c")], "root", KEY)
    two = chain_of([Unit(USER, "a"), Unit(USER, "bc")], "root", KEY)

    assert not set(one.links) & set(two.links)


def test_digest_counts_the_boundaries_of_its_parts() -> None:
    assert len({digest(KEY, "ab", "c"), digest(KEY, "a", "bc"), digest(KEY, "abc"), digest(KEY, "abc", "")}) == 4
    assert digest(KEY, "\ud83d"), "half a character is hashed too"


def test_prefixes_are_what_came_before_the_newest_message_the_longest_first() -> None:
    links = chain("a", "b", "c").links

    assert chain("a", "b", "c").prefixes == (links[1], links[0])
    assert chain("a").prefixes == ()


def test_prefixes_of_what_the_provider_keeps_end_with_the_response() -> None:
    assert kept("and now?").prefixes == (response_root(KEY, "a", "resp_1"),)
    assert kept("a", "b", "c").prefixes[-1] == response_root(KEY, "a", "resp_1")


@pytest.mark.parametrize(("texts", "expected"), [(("a",), True), (("a", "{"), True), (("a", "b", "c"), False)])
def test_is_opening_means_that_nobody_answered_yet(texts: tuple[str, ...], *, expected: bool) -> None:
    assert chain(*texts).is_opening is expected
    assert not kept(*texts).is_opening


def test_length_is_known_unless_the_provider_keeps_the_history() -> None:
    assert (chain("a", "b", "c").length, kept("a", "b", "c").length) == (3, 0)


def test_answered_is_the_link_that_the_next_request_has_before_its_newest_message() -> None:
    assert chain("a").answered(Unit(ASSISTANT, "b")) == (chain("a", "b", "c").prefixes[0], 2)
    assert chain("a", "b", "c").answered(Unit(ASSISTANT, "d")) == (chain("a", "b", "c", "d", "e").prefixes[0], 4)


def test_answered_after_a_message_the_client_began_is_one_with_it() -> None:
    assert chain("a", "{").answered(Unit(ASSISTANT, "}")) == (chain("a", "{}", "c").prefixes[0], 2)


ROOTS: dict[str, Callable[[bytes, str, str], str]] = {"sub-agent": child_root, "response": response_root}


@pytest.mark.parametrize("root", ROOTS.values(), ids=ROOTS)
def test_roots_are_one_accounts_and_one_name_s_alone(root: Callable[[bytes, str, str], str]) -> None:
    found = [root(KEY, "a", "n"), root(KEY, "b", "n"), root(KEY, "a", "m"), root(OTHER_KEY, "a", "n")]

    assert len(set(found)) == 4
    assert root(KEY, "a", "n") == found[0]


def test_roots_of_different_kinds_are_never_equal() -> None:
    assert len({account_root(KEY, "a"), child_root(KEY, "a", ""), response_root(KEY, "a", "")}) == 3


def test_continued_values_of_two_chains_share_the_room() -> None:
    long = chain(*map(str, range(2 * CONTINUES_MAX)))
    early = chain(*map(str, range(2 * CONTINUES_MAX)), key=OTHER_KEY)

    both = continued_values(long, early)

    assert len(continued_values(long, None)) == len(both) == CONTINUES_MAX
    assert both[0] == long.prefixes[0] and early.prefixes[0] in both
    assert continued_values(None, None) == []


def test_retry_link_of_an_opening_asks_for_the_same_request_and_later_for_the_same_messages() -> None:
    bodies = b'{"tools":[]}', b'{"tools":["bash"]}', b"no JSON", b"[1]", b""

    assert len({retry_link(chain("a"), body) for body in bodies}) == len(bodies)
    assert len({retry_link(chain("a", "b", "c"), body) for body in bodies}) == 1
    assert len({retry_link(kept("c"), body) for body in bodies}) == 1


@pytest.mark.parametrize(
    "again",
    [
        b'{"b":{"d":1,"c":[2,3]},"a":1}',
        b'{"a":1, "b":{"c":[2,3],"d":1}}',
        b'{"a":1,"b":{"c":[2,3],"d":1},"stream":true}',
    ],
    ids=["keys in another order", "other spaces", "streaming"],
)
def test_retry_link_of_an_opening_is_the_same_for_what_clients_change_when_they_ask_again(again: bytes) -> None:
    assert retry_link(chain("a"), again) == retry_link(chain("a"), b'{"a":1,"b":{"c":[2,3],"d":1}}')


@pytest.mark.parametrize(
    "other",
    [b'{"a":1,"b":{"c":[3,2],"d":1}}', b'{"a":1,"b":{"c":[2,3],"d":1,"stream":true}}', b'{"a":1,"b":{"c":[2,3]}}'],
)
def test_retry_link_of_an_opening_differs_for_anything_else(other: bytes) -> None:
    assert retry_link(chain("a"), other) != retry_link(chain("a"), b'{"a":1,"b":{"c":[2,3],"d":1}}')


def test_retry_link_of_a_body_that_is_nested_too_deep_is_that_of_its_bytes() -> None:
    deep = b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"

    assert retry_link(chain("a"), deep) == retry_link(chain("a"), deep) != retry_link(chain("a"), deep + b" ")


def test_retry_link_of_another_conversation_differs() -> None:
    links = {retry_link(each, b"{}") for each in (chain("a"), chain("b"), chain("a", "b", "c"), kept("c"))}

    assert len(links) == 4
    assert retry_link(kept("c"), b"") != retry_link(kept("c", response_id="resp_2"), b"")


def test_retry_link_is_no_link_of_the_chain() -> None:
    assert retry_link(chain("a", "b", "c"), b"") not in chain("a", "b", "c").links
