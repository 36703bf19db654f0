"""What a request is to the session its client named, each rule with a story of a client that it is for."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from msgspec.structs import replace

from worker.protocol import SKETCH_HASHES_MAX, Shape
from worker.roles import Role, alike, role_of, said_of_side, shape_after


def hashes(name: str, count: int) -> str:
    """A sketch: numbered ones of a kind."""
    return " ".join(f"{name}{number:03}" for number in range(count))


NONE = ""
PROMPT = hashes("line", 20)
DATED = f"{hashes('line', 18)} date-of-tomorrow other-branch"
OTHER_PROMPT = f"{hashes('line', 1)} {hashes('else', 19)}"
TITLE_PROMPT = hashes("title", 9)
TOOLS = hashes("tool", 20)
FIRST_TOOLS = hashes("tool", 2)
OTHER_TOOLS = f"{hashes('tool', 3)} {hashes('seek', 6)}"
NEARLY_ALL_TOOLS = hashes("tool", 19)


def shape(system: str = PROMPT, tools: str = TOOLS, opening: str = "fix it") -> Shape:
    return Shape(system=system, tools=tools, opening=opening)


AGENT = shape()
CHAT = shape(tools=NONE)
"""A session whose turns have no tools."""


class Story(NamedTuple):
    request: Shape
    role: Role
    session: Shape = AGENT
    is_opening: bool = False
    continues: bool = False
    continues_aside: bool = False
    is_spoken: bool = True


STORIES = {
    "next turn": Story(AGENT, "turn", continues=True),
    "first message asked again": Story(AGENT, "turn", is_opening=True),
    "title beside an agent": Story(shape(TITLE_PROMPT, NONE), "side", is_opening=True),
    "title of a chat": Story(shape(TITLE_PROMPT, NONE), "side", CHAT, is_opening=True),
    "probe of the quota": Story(shape(NONE, NONE, "quota"), "side", is_opening=True),
    "memory extraction with the same first message": Story(shape(OTHER_PROMPT, NONE), "side", continues=True),
    "memory extraction with tools": Story(shape(OTHER_PROMPT, OTHER_TOOLS), "side", is_opening=True),
    "summary of the history under another prompt": Story(shape(OTHER_PROMPT, NONE), "side", continues=True),
    "summary of the history with other tools": Story(shape(OTHER_PROMPT, OTHER_TOOLS), "side", continues=True),
    "sub-agent with other tools": Story(shape(OTHER_PROMPT, OTHER_TOOLS, "find it"), "child", is_opening=True),
    "sub-agent with other tools, later": Story(shape(OTHER_PROMPT, OTHER_TOOLS, "find it"), "child"),
    "sub-agent with nearly all tools": Story(
        shape(OTHER_PROMPT, NEARLY_ALL_TOOLS, "find it"), "child", is_spoken=False
    ),
    "prompt made for each request over a window of the history": Story(
        shape(OTHER_PROMPT, NEARLY_ALL_TOOLS, "later"), "turn"
    ),
    "chat goes on from a title that came first": Story(
        shape(OTHER_PROMPT, NONE, "hello"), "turn", shape(TITLE_PROMPT, NONE), continues_aside=True
    ),
    "extraction came first, then the conversation": Story(
        AGENT, "turn", shape(OTHER_PROMPT, OTHER_TOOLS), is_opening=True
    ),
    "sub-agent came first, then the conversation": Story(
        AGENT, "turn", shape(OTHER_PROMPT, OTHER_TOOLS, "find it"), is_opening=True
    ),
    "sub-agent with more tools of a conversation under way": Story(
        shape(OTHER_PROMPT, hashes("seek", 30), "find it"), "child", replace(AGENT, is_confirmed=True), is_opening=True
    ),
    "another agent over a pruned history": Story(shape(OTHER_PROMPT, OTHER_TOOLS), "turn", continues_aside=True),
    "sub-agent with the same prompt": Story(shape(PROMPT, OTHER_TOOLS, "find it"), "child", is_opening=True),
    "sub-agent going on from a side call": Story(shape(OTHER_PROMPT, NONE, "find it"), "child", continues_aside=True),
    "extraction going on from a side call": Story(shape(OTHER_PROMPT, NONE), "side", continues_aside=True),
    "turn after what a side call answered too": Story(
        shape(OTHER_PROMPT, TOOLS, "find it"), "turn", continues=True, continues_aside=True
    ),
    "user goes on with another agent": Story(
        shape(OTHER_PROMPT, OTHER_TOOLS), "turn", continues=True, continues_aside=True
    ),
    "user goes on in a mode without tools": Story(
        shape(OTHER_PROMPT, NONE), "turn", continues=True, continues_aside=True
    ),
    "extraction over the history uses its tools": Story(
        shape(OTHER_PROMPT, OTHER_TOOLS), "side", continues=True, continues_aside=True, is_spoken=False
    ),
    "tools connect late": Story(AGENT, "turn", shape(tools=FIRST_TOOLS), continues=True),
    "tools connect after the first turn": Story(AGENT, "turn", CHAT, continues=True),
    "tools and another prompt after the first turn": Story(shape(OTHER_PROMPT), "turn", CHAT, continues=True),
    "tools of a session that began with a side call": Story(
        AGENT, "turn", shape(OTHER_PROMPT, NONE, "quota"), is_opening=True
    ),
    "prompt whose date changes": Story(shape(DATED), "turn", continues=True),
    "prompt whose date changes over a rewritten history": Story(shape(DATED, TOOLS, "summary"), "turn"),
    "mode change with the same tools": Story(shape(OTHER_PROMPT, NEARLY_ALL_TOOLS), "turn", continues=True),
    "tools dropped for the last word": Story(shape(tools=NONE), "turn", continues=True),
    "tools dropped with another history": Story(shape(tools=NONE, opening="find it"), "side"),
    "compaction": Story(shape(opening="summary"), "turn"),
    "compaction of a chat under another prompt": Story(shape(OTHER_PROMPT, NONE, "summary"), "turn", CHAT),
    "conversation begun anew": Story(shape(opening="and now?"), "turn", is_opening=True),
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_role_of_a_request_is_what_the_client_meant(story: Story) -> None:
    role, reason = role_of(
        story.session,
        story.request,
        is_opening=story.is_opening,
        is_spoken=story.is_spoken,
        continues=story.continues,
        continues_aside=story.continues_aside,
    )

    assert role == story.role, reason
    assert bool(reason) == (role != "turn"), "only what is not a turn has to be explained"


@pytest.mark.parametrize(
    ("some", "others", "expected"),
    [
        ("", "", True),
        ("a", "", False),
        ("a b", "b a", True),
        ("a b c", "a b d", True),
        ("a b", "b c", False),
        (hashes("tool", 20), hashes("tool", 10), True),
        (hashes("tool", 20), hashes("tool", 9), False),
    ],
)
def test_alike_means_half_of_all_there_is(some: str, others: str, *, expected: bool) -> None:
    assert alike(some, others) is expected
    assert alike(others, some) is expected


def test_alike_looks_at_the_smallest_hashes_of_both_alone() -> None:
    """A sketch is cut off: what one of them has no room for may be in its set all the same."""
    many = hashes("line", 3 * SKETCH_HASHES_MAX).split()
    two_thirds = [text for number, text in enumerate(many) if number % 3]
    one_third = [text for number, text in enumerate(many) if number % 3 == 0]
    whole, most, few = (" ".join(texts[:SKETCH_HASHES_MAX]) for texts in (many, two_thirds, one_third))

    assert 2 * len({*whole.split()} & {*most.split()}) < len({*whole.split()} | {*most.split()})
    assert alike(whole, most)
    assert not alike(whole, few)


def test_shape_after_a_turn_is_the_turns_unless_that_had_no_tools() -> None:
    without_tools = shape(OTHER_PROMPT, NONE)

    assert shape_after(None, without_tools, goes_on=False) == without_tools
    assert shape_after(CHAT, AGENT, goes_on=False) == AGENT
    assert shape_after(AGENT, shape(DATED), goes_on=False) == shape(DATED)
    assert shape_after(AGENT, without_tools, goes_on=False) == AGENT
    assert shape_after(CHAT, without_tools, goes_on=False) == without_tools


def test_side_call_is_explained_by_what_names_its_session_and_what_it_is() -> None:
    said = said_of_side("header x-session-id", "it has no tools")

    assert "side call" in said and "header x-session-id" in said and "it has no tools" in said
