"""Hints: headers and body fields that may belong to one conversation, and which of them came to name sessions.

One rule: a hint proves nothing by itself.  It chooses among sessions that content proves, and finds one only
after it was seen to do what the ids of conversations do.

Theory of operation.  With every turn of a session that its client does not name, the value of each hint is noted.  A
header that stayed the same for `LEARNED_TURNS` turns has identified one conversation; once it has for
`LEARNED_CONVERSATIONS`, each with a value of its own, it is learned.  One contradiction ends that for good: a value
that changed within a conversation is an id of something smaller, a value seen in two is an id of something larger, a
user or a process, and would make strangers one session.

An id of a process looks like one of a conversation until one process has two.  So a learned header names only a request
that also holds an answer of the session, as one does whose beginning was cut off or rewritten; never one that opens a
conversation.  After `BELIEVED_CONVERSATIONS` without a contradiction it is believed against the content too, where a
conversation goes on under another id as its fork.  Its name must speak of a session for all this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from worker.protocol import Hint, Naming
from worker.stored import HOLDERS_MAX, Lesson, Seen, Session, Tables

LEARNED_TURNS: Final = 3
LEARNED_CONVERSATIONS: Final = 2
BELIEVED_CONVERSATIONS: Final = 8
FORKS_MAX: Final = 16
"""Forks of forks looked back over: as often as anybody edits one conversation."""


def chosen(tables: Tables, sessions: Iterable[str], hints: Iterable[Hint]) -> set[str]:
    """Those of several sessions with equal content that came with a hint of this request."""
    hints = list(hints)
    return {each for each in sessions if any(_came_with(tables, each, hint) for hint in hints)}


def denied(tables: Tables, session_id: str, naming: Naming) -> bool:
    """A believed header says that the request is of another conversation: a fork of this one, or its double."""
    for hint in naming.hints:
        seen = tables.hint(session_id, hint.name) if hint.kind == "session" else None
        if seen and seen.value != hint.value and _is_believed(tables.lesson(naming.client, hint.name)):
            return True
    return False


def named_by_header(tables: Tables, naming: Naming) -> tuple[str, str]:
    """The session that a learned header names, and the header; two empty texts where none does."""
    for hint in naming.hints:
        lesson = tables.lesson(naming.client, hint.name) if hint.kind == "session" else Lesson()
        holders = tables.hinted(hint.name, hint.value, HOLDERS_MAX) if _is_learned(lesson) else []
        if len(holders) == 1 and any(tables.holds_history(value, holders[0]) for value in naming.said):
            return holders[0], hint.name
    return "", ""


def learn(tables: Tables, session: Session, naming: Naming) -> None:
    """Note the hints of a turn that was booked on the session."""
    for hint in naming.hints:
        before = tables.hint(session.session_id, hint.name)
        is_same = before is not None and before.value == hint.value
        turns = before.turns + 1 if before and is_same else 1
        tables.put_hint(session.session_id, hint.name, Seen(hint.value, turns))
        if hint.kind != "field":
            has_changed = before is not None and not is_same
            _learn_header(tables, session, naming.client, hint, turns, has_changed=has_changed)


def _learn_header(tables: Tables, session: Session, client: str, hint: Hint, turns: int, *, has_changed: bool) -> None:
    lesson = tables.lesson(client, hint.name)
    if lesson.contradicted:
        return
    others = filter(None, map(tables.session, tables.hinted(hint.name, hint.value, HOLDERS_MAX)))
    # An edited conversation goes on as a fork under the id it had: that says nothing against the id.
    beginning = _beginning(tables, session)
    strangers = [each for each in others if _beginning(tables, each) != beginning]
    if has_changed or strangers:
        tables.put_lesson(client, hint.name, lesson._replace(contradicted=True))
    elif turns == LEARNED_TURNS:
        tables.put_lesson(client, hint.name, lesson._replace(conversations=lesson.conversations + 1))


def _beginning(tables: Tables, session: Session) -> str:
    """The session that it goes back to, over the forks between."""
    for _ in range(FORKS_MAX):
        origin = tables.session(session.forked_from) if session.forked_from else None
        if origin is None:
            break
        session = origin
    return session.forked_from or session.session_id


def _came_with(tables: Tables, session_id: str, hint: Hint) -> bool:
    seen = tables.hint(session_id, hint.name)
    return seen is not None and seen.value == hint.value


def _is_learned(lesson: Lesson) -> bool:
    return lesson.conversations >= LEARNED_CONVERSATIONS and not lesson.contradicted


def _is_believed(lesson: Lesson) -> bool:
    return lesson.conversations >= BELIEVED_CONVERSATIONS and not lesson.contradicted
