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
    if prompt_is_alike and tools_are_alike:
        return "turn", ""
    if continues_aside and not continues and request.opening != session.opening:
        return "child", "it goes on from a call beside the conversation"
    if continues and continues_aside and is_spoken:
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
    return "child", "another system prompt or other tools, and another history"


def alike(some: str, others: str) -> bool:
    """Whether two sketches have enough in common; two of nothing have."""
    these, those = set(some.split()), set(others.split())
    together = sorted(these | those)[:SKETCH_HASHES_MAX]
    shared = sum(each in these and each in those for each in together)
    return 100 * shared >= ALIKE_PERCENT * len(together)


def shape_after(session: Shape | None, turn: Shape) -> Shape:
    """What the session is compared with after a turn: a turn without tools says nothing of the tools there are."""
    if session is not None and session.tools and not turn.tools:
        return session
    return turn


def said_of_side(origin: str, reason: str) -> str:
    """Why a row is a side call, in words.  `origin`: what names the session."""
    return f"a side call in the session that the {origin} names: {reason}"


def _role_over_history(session: Shape, request: Shape, *, is_alike: bool) -> tuple[Role, str]:
    if is_alike or not session.tools:
        return "turn", ""
    return "side", "the session's history under another system prompt and with other tools"
