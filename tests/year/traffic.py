"""Years of agents at work, as writes that daemons would send; and, independently, what must come of them.

One rule: chance comes from a seed, time from the calendar given; nothing here has seen the store.

Theory of operation.  A day has new sessions, some of them with sub-agents, and some that go on from a day before: most
live for a day, a few for weeks, and one is used for ever.  Each turn is a begin and an end, as on the wire; a daemon of
several claims the session first when another one had it, under an id of its own where its client names none, which
leaves an alias.  Some turns are cut off, some are told twice.

The model of what must be is a dictionary of days, added up from the rows as they are made, by figures of its own.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace

from worker.batch import Write
from worker.protocol import Booking, Claim, Hint, Key, Naming, Row, Usage

DAY_MILLISECONDS: Final = 24 * 3_600 * 1_000
BOOTS: Final = 3
"""Daemons, which are other ones every month."""
MODELS: Final = ("opus", "sonnet", "gpt")
FIGURES: Final = ("rows", "input", "read", "written", "output", "cost")


@dataclass
class Conversation:
    """One session, as its client knows it."""

    session_id: str
    parent: str = ""
    is_named: bool = True
    turns: int = 0
    last_day: int = 0
    lives_days: int = 1
    owner: str = ""


@dataclass
class Traffic:
    """Days of writes.  `days`: what they must have added to each day, by name of the figure."""

    seed: int
    sessions_per_day: int
    turns: int
    """Of a session on a day, on average."""
    begins_at: int
    days: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    made: int = 0
    """Sessions."""

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        forever = Conversation("for-ever", lives_days=2**31)
        self._open: list[Conversation] = [forever]
        self._events = 0

    def day(self, number: int) -> Iterator[tuple[str, str, list[Write]]]:
        """The batches of one day, each of one session and one daemon."""
        self._open = [each for each in self._open if number - each.last_day < each.lives_days or not each.turns]
        for _ in range(self.sessions_per_day):
            self._open.append(self._new())
        busy = [self._open[0], *self._rng.sample(self._open[1:], min(len(self._open) - 1, self.sessions_per_day * 2))]
        for conversation in busy:
            at = self.begins_at + number * DAY_MILLISECONDS + self._rng.randrange(DAY_MILLISECONDS)
            boot = f"boot-{number // 30}-{self._rng.randrange(BOOTS)}"
            conversation.last_day = number
            writes: list[Write] = []
            for _ in range(1 + self._rng.randrange(2 * self.turns)):
                at += 1_000
                writes += self._turn(conversation, at, boot)
            yield conversation.session_id, boot, writes

    def _new(self) -> Conversation:
        self.made += 1
        parents = [each for each in self._open[-9:] if not each.parent and each.session_id != "for-ever"]
        is_child = bool(parents) and self._rng.random() < 0.3
        return Conversation(
            f"session-{self.seed}-{self.made:07}",
            parent=self._rng.choice(parents).session_id if is_child else "",
            is_named=self._rng.random() < 0.5,
            lives_days=self._rng.choice((1, 1, 1, 2, 30)),
        )

    def _turn(self, conversation: Conversation, at: int, boot: str) -> Iterator[Write]:
        self._events += 1
        conversation.turns += 1
        session_id, number = conversation.session_id, conversation.turns
        answer = f"{session_id} {number}"
        known = Naming(
            session_id=session_id,
            confirmed=True,
            parent=conversation.parent,
            header_name="x-session-id" if conversation.is_named else "",
            header_session_id=session_id if conversation.is_named else "",
            continues=[f"{session_id} {number - 1}"],
            hints=[Hint(kind="session", name="x-chat", value=session_id)],
        )
        if conversation.owner != boot:
            conversation.owner = boot
            # Another daemon does not know it: it proposes an id, and learns which session it is.
            proposed = known if conversation.is_named or number == 1 else self._asking(known)
            yield Write(boot, self._events, Claim(naming=proposed))
        row = self._row(conversation, at, boot)
        opened = replace(row, ended_at=0, usage=None, cost_nanousd=None, status="interrupted")
        asked = replace(known, keys=[Key(kind="request", name="", value=answer)], chain_length=2 * number - 1)
        told = replace(known, keys=[Key(kind="answer", name="", value=answer)], chain_length=2 * number)
        yield Write(boot, self._events, Booking(naming=asked, row=opened, epoch=0, seen=2**30))
        if self._rng.random() < 0.01:
            self._count(opened)
            return  # Its daemon was killed.
        self._count(row)
        ends = Write(boot, self._events, Booking(naming=told, row=row, epoch=0, seen=2**30))
        yield ends
        if self._rng.random() < 0.01:
            yield ends  # It had not heard that it is stored.

    def _asking(self, known: Naming) -> Naming:
        return replace(known, session_id=f"proposed-{self.seed}-{self._events}", confirmed=False)

    def _row(self, conversation: Conversation, at: int, boot: str) -> Row:
        usage = Usage(
            input_tokens=self._rng.randrange(1_000),
            cache_read_tokens=self._rng.randrange(100_000),
            cache_write_5m_tokens=self._rng.randrange(5_000),
            output_tokens=self._rng.randrange(2_000),
        )
        return Row(
            event_id=f"event-{self.seed}-{self._events:09}",
            session_id=conversation.session_id,
            kind=self._rng.choice(("turn", "turn", "turn", "turn", "side")),
            status="complete",
            started_at=at,
            ended_at=at + 700,
            provider="anthropic",
            protocol="messages",
            model=self._rng.choice(MODELS),
            client="claude-code",
            account="0123456789abcdef",
            boot=boot,
            usage=usage,
            cost_nanousd=self._rng.randrange(10_000_000),
        )

    def _count(self, row: Row) -> None:
        day = self.days[datetime.fromtimestamp(row.started_at / 1_000, UTC).strftime("%Y-%m-%d")]
        used = row.usage or Usage()
        written = used.cache_write_5m_tokens + used.cache_write_1h_tokens
        figures = (1, used.input_tokens, used.cache_read_tokens, written, used.output_tokens, row.cost_nanousd or 0)
        day.update(dict(zip(FIGURES, figures, strict=True)))
