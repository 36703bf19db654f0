"""What must be true, whatever happens: each check has a name, and a run passes if none has anything to say.

One rule: the checks know nothing of the rules that the code under test uses; they know what a client saw, what was
once committed, and that all must be found again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import reduce
from typing import NamedTuple

from msgspec.structs import replace

from daemon import state as states
from daemon.state import EMPTY, SessionState
from tests.simulation.model import MemoryTables
from worker import batch
from worker.ledger import DayKey, Sums, day_key, sums_of_day, sums_of_session
from worker.protocol import Claim, Naming, Row, Snapshot, SnapshotWrite, Usage
from worker.stored import Session


class Violation(NamedTuple):
    check: str
    what: str


class Begun(NamedTuple):
    """A turn that was let in: whose it is, and by whom it was served."""

    conversation: int
    boot: str
    is_aside: bool
    """Meant as a call beside the conversation."""


class Checks:
    """Collects what was seen in one run, and what was wrong with it."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.is_faulty = True
        """Processes and disks may fail; at the end of a run they no longer do."""
        self.begun: dict[str, Begun] = {}
        self.seen: Counter[str] = Counter()
        """How often the situations came about that the checks are for."""
        self._identities: dict[str, str] = {}
        self._answered: dict[str, str] = {}
        self._asked: Counter[int] = Counter()
        self._paths: defaultdict[int, list[str]] = defaultdict(list)
        self._origins: dict[int, int] = {}
        self._usages: dict[str, Usage | None] = {}
        self._pings: dict[str, tuple[str, int]] = {}
        """Those that were sent, by event id: of which session and window."""
        self._latches: defaultdict[str, set[str]] = defaultdict(set)
        self._latch = 0
        self._begun_anew: set[str] = set()
        """Sessions whose snapshot was dropped, with what no row tells: their first turn was none."""

    def fail(self, check: str, what: str) -> None:
        self.violations.append(Violation(check, what))

    def expect(self, condition: bool, check: str, what: object) -> None:
        if not condition:
            self.fail(check, str(what))

    # -- what clients and daemons saw --------------------------------------------------------------------------------

    def began(self, event_id: str, begun: Begun) -> None:
        self.begun[event_id] = begun

    def forked(self, conversation: int, origin: int) -> None:
        """A client went on from a conversation's history under a new id."""
        self._origins[conversation] = origin

    def answered(self, event_id: str, answer: str) -> None:
        """The turn was answered in these words, which nothing else is."""
        self._answered[answer] = event_id

    def asked(self, conversation: int) -> None:
        """A client sent a request, perhaps not for the first time."""
        self._asked[conversation] += 1

    def went_on(self, conversation: int, answer: str) -> None:
        """A client read an answer, and its next request holds it."""
        self._paths[conversation].append(self._answered[answer])

    def identity_seen(self, event_id: str, session_id: str) -> None:
        self._identities[event_id] = session_id

    def usage_seen(self, event_id: str, usage: Usage | None) -> None:
        self._usages[event_id] = usage

    def ping_sent(self, event_id: str, session_id: str, window_started_at: int) -> None:
        window = (session_id, window_started_at)
        self.expect(window not in self._pings.values(), "one_ping_per_window", window)
        self._pings[event_id] = window
        self.seen["pings"] += 1

    def snapshot_seen(self, session_id: str, snapshot: Snapshot) -> None:
        self._latches[session_id] |= latches(snapshot)

    def next_latch(self) -> str:
        self._latch += 1
        return str(self._latch)

    # -- while it runs -----------------------------------------------------------------------------------------------

    def written(self, tables: MemoryTables, mark: int, write: batch.Write) -> None:
        """One write was applied: were the snapshots it moved its sender's to move?"""
        for change in tables.journal[mark:]:
            if change.table != "sessions" or change.before is None:
                continue
            before: Session = change.before
            after = tables.sessions.get(change.place)
            if after is None:
                # The turn that it went on from was told after it.
                self.expect(change.place in tables.aliases, "joined_session_is_an_alias", change.place)
                continue
            if after.snapshot == before.snapshot:
                continue
            if after.snapshot is None:
                # What came first turned out to be beside the conversation: all is folded anew, by whoever claims next.
                anew = (after.owner, after.epoch) == ("", before.epoch + 1)
                self.expect(anew, "dropped_snapshot_is_nobodys", change.place)
                self._begun_anew.add(change.place)
                continue
            assert isinstance(write.body, SnapshotWrite)
            present = before.owner == write.boot and before.epoch == write.body.epoch
            self.expect(present, "snapshot_of_present_owner", (write.boot, before.owner))
            rises = before.snapshot is None or before.snapshot.generation < after.snapshot.generation
            self.expect(rises, "generation_rises", change.place)

    def committing(self, tables: MemoryTables) -> None:
        """A transaction is about to be durable: does it take anything back?"""
        self.seen["judged again"] += judged_again(tables)
        for change in {(change.table, change.place): change for change in reversed(tables.journal)}.values():
            match change.table:
                case "rows":
                    row: Row | None = change.before
                    if row is not None and row.is_settled:
                        now = tables.rows[change.place]
                        is_aside = (row.kind, now.kind) == ("turn", "side")
                        same = replace(now, kind=row.kind, why=row.why) if is_aside else now
                        if tables.aliases.get(row.session_id) == now.session_id:
                            # The rest of a session whose beginning was told after it.
                            same = replace(now, session_id=row.session_id, position=row.position, why=row.why)
                            # A window is one of its own session alone.
                            same = replace(same, window_started_at=row.window_started_at)
                            self.seen["told late"] += 1
                        self.expect(same == row, "settled_row_stays", change.place)
                case "session_sums" | "day_sums":
                    before: Sums = change.before or Sums()
                    if change.table == "session_sums" and change.place in tables.aliases:
                        continue  # Of a session that was joined with another, whose sums they are now.
                    fallen = getattr(tables, change.table)[change.place].minus(before)
                    kept = fallen.plus(judged_sums(tables))
                    self.expect(min(kept[2:7]) >= 0, "sums_never_fall", change.place)
                    self.expect(fallen.turns >= -judged_again(tables), "turns_never_vanish", change.place)

    # -- at the end --------------------------------------------------------------------------------------------------

    def quiet(self, tables: MemoryTables, living: frozenset[str], named: dict[int, str]) -> None:
        """All is healed and sent.  `named`: the session id of each conversation whose client minted one."""
        self._facts_are_stored(tables, living)
        self._identities_hold(tables, named)
        self._asides_stay_aside(tables)
        self._forks_name_their_origin(tables, named)
        self._sums_agree(tables)
        self._states_return(tables)

    def _facts_are_stored(self, tables: MemoryTables, living: frozenset[str]) -> None:
        for event_id, session_id in self._identities.items():
            row = tables.rows.get(event_id)
            canonical = tables.aliases.get(session_id, session_id)
            self.expect(row is not None and row.session_id == canonical, "seen_identity_is_stored", event_id)
        for event_id, usage in self._usages.items():
            row = tables.rows.get(event_id)
            kept = row is not None and row.is_settled and row.usage == usage
            self.expect(kept, "seen_usage_is_stored", (event_id, row))
        for event_id, begun in self.begun.items():
            row = tables.rows.get(event_id)
            if begun.boot in living:
                self.expect(row is not None and row.is_settled, "living_daemons_row_is_settled", event_id)
        for event_id in self._pings:
            self.expect(event_id in tables.rows, "sent_ping_is_booked", event_id)
        turns = {event_id for event_id, row in tables.rows.items() if row.kind != "warmup"}
        self.expect(turns <= self.begun.keys(), "no_row_from_nowhere", "")

    def _identities_hold(self, tables: MemoryTables, named: dict[int, str]) -> None:
        speakers: defaultdict[str, set[int]] = defaultdict(set)
        for event_id, row in tables.rows.items():
            if row.kind == "warmup":
                continue
            conversation = self.begun[event_id].conversation
            speakers[row.session_id].add(conversation)
            if conversation in named:
                self.expect(row.session_id == named[conversation], "named_session_never_splits", event_id)
        for conversation, path in self._paths.items():
            rows = [tables.rows.get(event_id) for event_id in path]
            stored = [row for row in rows if row is not None and row.is_settled]
            asked = self._asked[conversation]
            # An owner's turn may be told after a later one of another daemon, whose owner told nothing of what it
            # decided alone: then it looks as if the client had turned off there.
            outrun = [each for each in tables.sessions.values() if each.why.reason.startswith("another turn went on")]
            # What died with its daemon tells nothing, and of what was asked twice a client may go on from either.
            if conversation not in named and asked == len(stored) == len(path) and not outrun:
                sessions = {row.session_id for row in stored}
                self.expect(len(sessions) == 1, "whole_conversation_is_one_session", (conversation, sessions))
                self.seen["whole conversations"] += 1
        for session_id, conversations in speakers.items():
            self.expect(len(conversations) == 1, "strangers_are_never_merged", (session_id, conversations))

    def _asides_stay_aside(self, tables: MemoryTables) -> None:
        for event_id, row in tables.rows.items():
            if row.kind == "warmup":
                continue
            is_aside = self.begun[event_id].is_aside
            self.expect(is_aside or row.kind == "turn", "turn_is_a_turn", event_id)
            # One that came before anything else, or while the worker was away, can not be told from a turn.
            self.seen[f"aside as {row.kind}"] += is_aside

    def _forks_name_their_origin(self, tables: MemoryTables, named: dict[int, str]) -> None:
        """Or nothing, where the answers that it goes on from had not come to the store."""
        for conversation, session_id in named.items():
            stored = tables.sessions.get(session_id)
            origins, origin = [], self._origins.get(conversation)
            while origin is not None:
                origins.append(named[origin])
                origin = self._origins.get(origin)
            if stored is not None and stored.forked_from is not None:
                self.expect(stored.forked_from in origins, "fork_names_its_origin", session_id)
                self.seen["forks"] += 1

    def _sums_agree(self, tables: MemoryTables) -> None:
        sessions: defaultdict[str, Sums] = defaultdict(Sums)
        days: defaultdict[DayKey, Sums] = defaultdict(Sums)
        for row in tables.rows.values():
            sessions[row.session_id] = sessions[row.session_id].plus(sums_of_session(row))
            days[day_key(row)] = days[day_key(row)].plus(sums_of_day(row))
        self.expect(tables.session_sums == sessions, "session_sums_are_the_ledgers", tables.session_sums)
        self.expect(tables.day_sums == days, "day_sums_are_the_ledgers", tables.day_sums)

    def _states_return(self, tables: MemoryTables) -> None:
        """A fresh claim of each session brings what its whole ledger says, and every latch ever acknowledged."""
        for session_id in list(tables.sessions):
            rows = settled_rows(tables, session_id)
            positions = [row.position for row in rows]
            self.expect(positions == list(range(1, len(rows) + 1)), "positions_have_no_gap", positions)
            state = claimed_state(tables, session_id)
            tables.rollback()
            whole = states.fold(EMPTY, rows)
            self.expect(without_latches(state) == whole, "state_is_the_ledger_folded", (session_id, state, whole))
            kept = set() if session_id in self._begun_anew else self._latches[session_id]
            missing = kept - latches(states.encode(state, 1))
            self.expect(not missing, "acknowledged_latch_stays", (session_id, missing))
            self.seen["latches"] += len(self._latches[session_id])


def judged_again(tables: MemoryTables) -> int:
    """Rows of the transaction that were entered as turns and turned out to be calls beside the conversation."""
    rows = [change.before for change in tables.journal if change.table == "rows" and change.before is not None]
    return sum(row.kind == "turn" and tables.rows[row.event_id].kind == "side" for row in rows)


def judged_sums(tables: MemoryTables) -> Sums:
    """What those rows had added to the sums of turns."""
    rows = [change.before for change in tables.journal if change.table == "rows" and change.before is not None]
    aside = [row for row in rows if row.kind == "turn" and tables.rows[row.event_id].kind == "side"]
    return reduce(Sums.plus, map(sums_of_day, aside), Sums())


def settled_rows(tables: MemoryTables, session_id: str) -> list[Row]:
    return tables.rows_after(session_id, 0, len(tables.rows))


def claimed_state(tables: MemoryTables, session_id: str) -> SessionState:
    """What a daemon that never saw the session makes of a claim's answer."""
    naming = Naming(session_id=session_id, confirmed=True)
    snapshot: Snapshot | None = None
    rows: list[Row] = []
    after, more = -1, True
    while more:
        write = batch.Write("auditor", 1, Claim(naming=naming, after=after))
        reply, _ = batch.claim(tables, write.body, write, live=frozenset(), now=0)  # type: ignore[arg-type]
        snapshot, rows, more = snapshot or reply.snapshot, rows + reply.rows, reply.more
        after = rows[-1].position if rows else 0
    restored = (
        states.decode(snapshot)
        if snapshot
        else states.Restored(gradient=EMPTY.gradient, warming=EMPTY.warming, position=0)
    )
    assert restored.is_complete, restored.warnings
    return states.rebuild(restored, rows)


def latches(snapshot: Snapshot) -> set[str]:
    warming = states.decode(snapshot).warming
    assert warming is not None
    return set((warming.disabled or "").split(",")) - {""}


def without_latches(state: SessionState) -> SessionState:
    return replace(state, warming=replace(state.warming, disabled=None))
