"""What clients were promised, held against what is stored when all is over: rows, usage, one session per conversation.

One rule: only what clients have read and what the provider has told is believed; a total is added up here.

Theory.  The first byte of an answer promises one row, the last byte that row complete, with the provider's usage to the
token.  Both promises are the worker's word.  A daemon waits for it 250 ms at most, and says when it gave up
(`testimony`); if that very daemon was killed afterwards, what it alone knew may be lost, and is *excused*: this answer,
and for a conversation without a name also the proof of what came after it.  Such a conversation may also *part* where
an answer was given without the worker's word: a daemon that does not know it may open a session for it that nothing
joins afterwards.  From one answer with the worker's word to the next with it, it stays in one session.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.crash.conversation import Attempt, Conversation
from tests.provider import Answered
from worker.protocol import Row, Usage

TOLD_MAX: Final = 4
"""Attempts of a conversation that are told where it went wrong."""


@dataclass
class Reckoning:
    """What was found.  `lost`, `doubled` and `wrong` are sentences; none is good."""

    facts: int = 0
    excused: int = 0
    parted: int = 0
    """Conversations without a name that went on in another session, and why they might is known."""
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.wrong]


def reckon(
    attempts: Sequence[Attempt],
    rows: Sequence[Row],
    answers: Mapping[str, Answered],
    aliases: Mapping[str, str],
    *,
    unheard: frozenset[str],
    excused: frozenset[str],
) -> Reckoning:
    """`answers`: by mark; `unheard`: marks of answers without the worker's word; `excused`: those that may be lost."""
    found = Reckoning()
    by_mark: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_mark[row.client].append(row)
    unknown = by_mark.keys() - {attempt.mark for attempt in attempts}
    found.wrong += [f"{mark}: a row of nobody's" for mark in sorted(unknown)]
    for attempt in attempts:
        own = by_mark[attempt.mark]
        if len(own) > 1:
            found.doubled.append(f"{attempt.mark}: {len(own)} rows")
        _check_promises(found, attempt, own, answers.get(attempt.mark), is_excused=attempt.mark in excused)
        for row in own:
            _check_usage(found, attempt, row, answers.get(attempt.mark))
            if attempt.conversation.name or attempt.mark not in unheard:
                _check_session(found, attempt, row, aliases)
    _check_conversations(found, attempts, by_mark, unheard, excused)
    _check_strangers(found, attempts, by_mark)
    return found


def _check_promises(
    found: Reckoning, attempt: Attempt, own: list[Row], answered: Answered | None, *, is_excused: bool
) -> None:
    if attempt.status not in (0, 200):
        found.wrong.append(f"{attempt.mark}: status {attempt.status}")
    is_complete = any(row.status == "complete" and answered and row.usage == answered.usage for row in own)
    for byte_at, is_kept, what in (
        (attempt.first_byte_at, bool(own), "first byte was read, and it has no row"),
        (attempt.last_byte_at, is_complete, "last byte was read, and its row is not complete"),
    ):
        if byte_at and attempt.status == 200:
            found.facts += 1
            if not is_kept and is_excused:
                found.excused += 1
            elif not is_kept:
                found.lost.append(f"{attempt.mark}: its {what}")


def _check_usage(found: Reckoning, attempt: Attempt, row: Row, answered: Answered | None) -> None:
    """No row tells more than the provider did; a complete one tells all of it."""
    told = (answered.usage if answered else None) or Usage()
    stored = row.usage or Usage()
    if any(getattr(stored, kind) > getattr(told, kind) for kind in Usage.__struct_fields__):
        found.wrong.append(f"{attempt.mark}: the provider told {told}, stored is {stored}")
    if row.status == "complete" and stored != told:
        found.wrong.append(f"{attempt.mark}: complete with {stored}, the provider told {told}")


def _check_session(found: Reckoning, attempt: Attempt, row: Row, aliases: Mapping[str, str]) -> None:
    """Its session is the one the client was told, and the one the client named."""
    for known in (aliases.get(attempt.session, attempt.session), attempt.conversation.expected_session):
        found.facts += 1
        if known and known != row.session_id:
            found.wrong.append(f"{attempt.mark}: told session {known}, stored under {row.session_id}")


def _check_conversations(
    found: Reckoning,
    attempts: Sequence[Attempt],
    by_mark: Mapping[str, list[Row]],
    unheard: frozenset[str],
    excused: frozenset[str],
) -> None:
    """One conversation, one session, from its first whole answer on: before that nothing proves a repeated opening to
    be the same."""
    for talk, own in _by_conversation(attempts).items():
        answered = [attempt for attempt in own if attempt.last_byte_at]
        since = own[own.index(answered[0]) :] if answered else []
        found.facts += 1
        parted = False
        session, is_sure = "", True
        # What was given up before its first byte promised nothing.
        for attempt in (each for each in since if each.first_byte_at):
            now_sure = attempt.mark not in unheard | excused
            for row in by_mark[attempt.mark]:
                if session not in ("", row.session_id) and (talk.name or (is_sure and now_sure)):
                    found.wrong.append(
                        f"{attempt.mark}: stored under {row.session_id} ({row.why.reason}), its conversation under "
                        f"{session}; {_told(since[: since.index(attempt) + 1], by_mark)}"
                    )
                parted |= session not in ("", row.session_id)
                session = row.session_id
            is_sure = now_sure
        found.parted += parted


def _told(attempts: Sequence[Attempt], by_mark: Mapping[str, list[Row]]) -> str:
    """The last attempts of a conversation, for a failure's message."""
    return "; ".join(
        f"{each.mark} at {each.daemon} sent {each.sent_at:.3f}, first byte {each.first_byte_at:.3f}, last "
        f"{each.last_byte_at:.3f}, told {each.session}, "
        f"stored {[(row.session_id, row.status, row.position, row.why.reason) for row in by_mark[each.mark]]}"
        for each in attempts[-TOLD_MAX:]
    )


def _check_strangers(found: Reckoning, attempts: Sequence[Attempt], by_mark: Mapping[str, list[Row]]) -> None:
    """No session holds turns of more than one client's session."""
    speakers: defaultdict[str, set[str]] = defaultdict(set)
    for talk, own in _by_conversation(attempts).items():
        for row in (row for attempt in own for row in by_mark[attempt.mark]):
            speakers[row.session_id].add(talk.name or f"the conversation of {own[0].mark}")
    found.facts += len(speakers)
    found.wrong += [f"session {one}: of {', '.join(sorted(them))}" for one, them in speakers.items() if len(them) > 1]


def _by_conversation(attempts: Iterable[Attempt]) -> dict[Conversation, list[Attempt]]:
    found: defaultdict[Conversation, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        found[attempt.conversation].append(attempt)
    return found
