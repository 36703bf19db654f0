"""What a request is to the session its client named: a turn of the conversation, a call beside it, or a sub-agent's.

One rule: whatever is not shown to be something else is a turn.

Theory of operation.  One session id covers more than one conversation: a client that names its session also asks for a
title, probes its quota, extracts memories and runs sub-agents under the same id.  They are told apart by what a request
is set up with, its system prompt and its tools, compared with what the session's last turn was set up with.  Both drift
(a date, another mode, tools that connect late), so they are compared as sketches: the smallest hashes of the prompt's
lines and of the tools' names, which estimate how much two sets have in common.  A request whose history is that of the
session is never a sub-agent's, and one that looks like the session is its turn whatever became of the history.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec.structs import replace

from worker.protocol import SKETCH_HASHES_MAX, Shape

Role = Literal["turn", "side", "child"]

ALIKE_PERCENT: Final = 50
"""Two sketches with at least so much in common are the same thing, changed.  Another mode of an agent keeps nearly all
of its tools, a sub-agent's prompt shares little more than its first line with the one that started it."""


def role_of(
    session: Shape, request: Shape, *, is_opening: bool, is_spoken: bool, continues: bool, continues_aside: bool
) -> tuple[Role, str]:
    """What the request is, and why, in words.

    `session`: what the session's last turn was set up with; `is_opening`: no answer is in the request; `is_spoken`: the
    newest message is the user's own; `continues`, `continues_aside`: its history is that of the session, or holds the
    answer to a call beside it.
    """
    prompt_is_alike = alike(session.system, request.system)
    tools_are_alike = alike(session.tools, request.tools)
    if (prompt_is_alike and tools_are_alike) or takes_over(session, request, continues=continues):
        return "turn", ""
    has_tools = bool(session.tools or request.tools)
    if continues_aside and not continues and has_tools and request.opening != session.opening:
        return "child", "it goes on from a call beside the conversation"
    is_same = continues or bool(request.tools and request.opening == session.opening)
    if is_same and continues_aside and is_spoken:
        return "turn", ""  # The user goes on where another agent answered: the conversation is that one's now.
    if session.tools and not request.tools:
        # A turn may be asked for without tools (an agent's last word), but then it goes on with prompt and history.
        return (
            ("turn", "") if continues and prompt_is_alike else ("side", "it has no tools, unlike the session's turns")
        )
    if continues:
        return _role_over_history(session, request, is_alike=prompt_is_alike or tools_are_alike)
    if not request.tools:
        return ("side", "it opens with another system prompt") if is_opening else ("turn", "")
    if not session.tools:
        return "turn", ""  # What came before was beside the conversation, or tools were switched on.
    if request.opening == session.opening:
        return "side", "the session's first message under another system prompt or with other tools"
    if tools_are_alike and is_spoken and not is_opening:
        return "turn", ""  # A prompt made for each request, over a history of which only the end is sent.
    return "child", "another system prompt or other tools, and another history"


def alike(some: str, others: str) -> bool:
    """Whether two sketches have enough in common; two of nothing have."""
    these, those = set(some.split()), set(others.split())
    together = sorted(these | those)[:SKETCH_HASHES_MAX]
    shared = sum(each in these and each in those for each in together)
    return 100 * shared >= ALIKE_PERCENT * len(together)


def takes_over(session: Shape, request: Shape, *, continues: bool) -> bool:
    """What was taken for the session's first turn was a call beside it: this is the conversation, for it has more
    tools than what came before, and nothing went on from that yet.  What runs beside an agent has fewer of them."""
    if session.is_confirmed or continues:
        return False
    is_alike = alike(session.system, request.system) and alike(session.tools, request.tools)
    return not is_alike and len(request.tools.split()) > len(session.tools.split())


def shape_after(session: Shape | None, turn: Shape, *, goes_on: bool) -> Shape:
    """What the session is compared with after a turn: a turn without tools says nothing of the tools there are.
    `goes_on`: the turn has a history, so that it is no mere call beside one."""
    if session is None:
        return replace(turn, is_confirmed=goes_on)
    shape = session if session.tools and not turn.tools else turn
    return replace(shape, is_confirmed=session.is_confirmed or goes_on)


def said_of_side(origin: str, reason: str) -> str:
    """Why a row is a side call, in words.  `origin`: what names the session."""
    return f"a side call in the session that the {origin} names: {reason}"


def _role_over_history(session: Shape, request: Shape, *, is_alike: bool) -> tuple[Role, str]:
    if is_alike or not session.tools:
        return "turn", ""
    return "side", "the session's history under another system prompt and with other tools"
