"""What the store holds, as values, and the questions that are asked of it.

One rule: nothing here decides anything.  `Tables` is kept by SQLite in the worker, by dictionaries in the simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

from msgspec import Struct

from worker.ledger import DayKey, Sums
from worker.protocol import HandSet, HandSetting, Key, KeyKind, Row, Shape, Snapshot, Switch, Why


class Session(Struct, frozen=True, kw_only=True):
    """A session as the store knows it: identity, ownership, and the last snapshot of its state."""

    session_id: str
    parent_session_id: str | None = None
    forked_from: str | None = None
    client: str = ""
    account: str = ""
    model: str = ""
    message_count: int = 0
    first_seen_at: int
    last_seen_at: int
    chain_length: int = 0
    epoch: int = 0
    owner: str = ""
    last_position: int = 0
    why: Why = Why()
    shape: Shape | None = None
    """What its last turn was set up with."""
    fingerprint: str | None = None
    header_session_id: str | None = None
    header_name: str | None = None
    forgotten_at: int = 0
    """0: a session.  Else a blank one, which stands for those that were forgotten then, and keeps their rows: nothing
    names it, and nothing that is told to anybody does."""
    warm: HandSetting = ""
    """What an operator said of keeping its cache warm, and…"""
    warm_reset_at: int = 0
    """…when (Unix milliseconds) what stood against it was last declared to be over."""
    snapshot: Snapshot | None = None


class Holder(Struct, frozen=True):
    """A session that holds a chain value, and the request that gave it."""

    session_id: str
    event_id: str
    at: int


CLAIMED: Final = "claimed by "
"""Before the boot that claimed a session for a turn which has not begun yet, where its event id will stand."""

HOLDERS_MAX = 8
"""Sessions that are kept, and looked at, for one value: two already tell that it is nobody's own.  A program that asks
the same and is answered the same every minute would else make each of its turns slower than the one before."""


class Seen(NamedTuple):
    """A hint's last value in a session, and for how many turns in a row it was that."""

    value: str
    turns: int


class Lesson(NamedTuple):
    """What was learned of a client's header."""

    conversations: int = 0
    """In which it stayed the same for long enough."""
    contradicted: bool = False
    """It changed within a conversation, or was the same in two."""


class KeptKey(NamedTuple):
    """An identity key as it stands in the store, and the request that gave it."""

    kind: KeyKind
    name: str
    value: str
    event_id: str
    at: int


class Link(NamedTuple):
    """A chain value that ended in an answer of a session, and the request that was answered."""

    value: str
    event_id: str


class Placed(NamedTuple):
    """Where a row stood, and why."""

    position: int
    why: Why


class Image(Struct, frozen=True, kw_only=True):
    """A session and all that belongs to it."""

    session: Session
    rows: dict[str, Placed]
    """By event id."""
    keys: list[KeptKey]
    history: list[Link]
    hints: dict[str, Seen]
    aliases: list[str]
    children: list[str]
    """The sessions it started, and…"""
    forks: list[str]
    """…those that went on from its history."""
    rolled: Sums = Sums()
    """Of its rows that were removed by age already."""


WarmVerb = Literal["warm on", "warm off", "warm reset"]


class Amendment(Struct, frozen=True, kw_only=True):
    """One correction by an operator: what was done, and what is needed to undo it."""

    number: int
    request: str
    """Drawn by whoever sent it."""
    at: int
    verb: Literal["merge", "split", "undo", "forget", "adopt"] | WarmVerb
    session_id: str
    """Of an undo, both ids are those of what it took back; of sessions that were adopted, where they came from."""
    other_id: str
    """The session that rows went to; of what was forgotten it is not told."""
    moved: int
    stayed: int = 0
    undone_by: int | None = None
    epoch: int = 0
    """Above all that the session had which was forgotten."""
    before: list[Image] = []
    """The sessions as they were; empty once it is undone, or can not be any more."""


class Opening(NamedTuple):
    """A session of another gateway that was imported."""

    session_id: str | None
    """Of this store, or an alias by now; None once it was forgotten."""
    at: int
    sums: Sums
    """What its figures have added to the sums so far."""


class Tables(Protocol):
    """The store, inside one transaction."""

    def session(self, session_id: str) -> Session | None: ...
    def put_session(self, session: Session) -> None: ...
    def put_snapshot(self, session_id: str, snapshot: Snapshot) -> None: ...
    def alias(self, session_id: str) -> str | None: ...
    def put_alias(self, alias: str, session_id: str) -> None: ...
    def row(self, event_id: str) -> Row | None: ...
    def put_row(self, row: Row) -> None: ...
    def rows_after(self, session_id: str, position: int, limit: int) -> list[Row]: ...
    def holders(self, kinds: Sequence[KeyKind], value: str) -> list[Holder]: ...
    def named(self, name: str, value: str, limit: int) -> list[str]:
        """Sessions that their client named so, in a header or body field."""
        ...

    def requests(self, session_id: str) -> list[tuple[str, Holder]]:
        """The session's `request` keys, by value: of turns whose answer is not known."""
        ...

    def put_key(self, key: Key, session_id: str, event_id: str, at: int) -> None: ...
    def drop_keys(self, session_id: str, kinds: Sequence[KeyKind]) -> None: ...
    def histories(self, value: str, limit: int) -> list[str]: ...
    def holds_history(self, value: str, session_id: str) -> bool: ...
    def put_history(self, value: str, session_id: str, event_id: str) -> None: ...
    def hint(self, session_id: str, name: str) -> Seen | None: ...
    def put_hint(self, session_id: str, name: str, seen: Seen) -> None: ...
    def hinted(self, name: str, value: str, limit: int) -> list[str]: ...
    def lesson(self, client: str, name: str) -> Lesson: ...
    def put_lesson(self, client: str, name: str, lesson: Lesson) -> None: ...
    def add_to_session(self, session_id: str, sums: Sums) -> None: ...
    def add_to_day(self, day: DayKey, sums: Sums) -> None: ...

    # What only keeping caches warm needs.
    def has_ping(self, session_id: str, window_started_at: int) -> bool:
        """A warm-up of that window is in the ledger."""
        ...

    def switch(self) -> Switch:
        """Without the sessions that are set by hand."""
        ...

    def put_switch(self, switch: Switch) -> None: ...
    def hand_set(self, limit: int) -> list[HandSet]:
        """Sessions of which an operator said something."""
        ...

    # What only corrections need.
    def rolled(self, session_id: str) -> Sums:
        """What rows that were removed by age had added to the session's sums."""
        ...

    def add_to_rolled(self, session_id: str, sums: Sums) -> None: ...
    def drop_session(self, session_id: str) -> None: ...
    def drop_snapshot(self, session_id: str) -> None: ...
    def rows_of(self, session_id: str) -> list[Row]: ...
    def keys_of(self, session_id: str) -> list[KeptKey]: ...
    def drop_key(self, key: KeptKey, session_id: str) -> None: ...
    def history_of(self, session_id: str) -> list[Link]: ...
    def drop_history(self, value: str, session_id: str) -> None: ...
    def hints_of(self, session_id: str) -> dict[str, Seen]: ...
    def drop_hint(self, session_id: str, name: str) -> None: ...
    def aliases_of(self, session_id: str) -> list[str]: ...
    def drop_alias(self, alias: str) -> None: ...
    def children_of(self, session_id: str) -> list[str]: ...
    def forks_of(self, session_id: str) -> list[str]: ...
    def amendment(self, number: int) -> Amendment | None: ...
    def amendment_asked(self, request: str) -> Amendment | None: ...
    def newest_amendment(self) -> int: ...
    def standing_after(self, number: int, session_ids: Sequence[str]) -> int: ...
    def put_amendment(self, amendment: Amendment) -> None: ...
    def amendments_of(self, session_id: str) -> list[int]:
        """The changes in which it was merged, split, or what came of that."""
        ...

    def amendments_with_images(self) -> list[int]: ...

    # What only forgetting needs.
    def is_forgotten(self, session_id: str) -> bool: ...
    def epoch_forgotten(self) -> int:
        """No session that is gone, forgotten or idle, had a greater one."""
        ...

    # What only imports need.
    def adopted(self, source: str, foreign_id: str) -> Opening | None: ...
    def put_adopted(self, source: str, foreign_id: str, opening: Opening) -> None: ...
    def add_to_rolled_day(self, day: DayKey, sums: Sums) -> None: ...

    def forget_adopted(self, session_id: str) -> None:
        """That a session of another gateway became this one; it stays known that it was imported."""
        ...
