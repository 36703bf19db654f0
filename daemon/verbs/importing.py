"""The verb `import lore`: sessions of a Lore gateway go on here, with what they cost there as an opening balance.

One rule: the file is only read, and the database is only written by the worker; without `--apply` nothing is changed,
and what would be is told.

Theory.  Rows are judged one by one (`daemon.lore`), sent to the worker a few at a time, and told as they are done, so
that neither a file of fifty thousand sessions nor its report is ever held in memory.  Without `--apply` the judgement
of the worker (`worker.adopt`) is asked for on a read-only connection instead.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from daemon.amend import amending
from daemon.columns import Column, Table, cut, money, plain
from daemon.foreign import LoreFile, lore_file
from daemon.lore import SCHEMA_KNOWN, Reading, Refusal, read_row
from daemon.verbs.parsing import Verbs, add_verb
from daemon.verbs.progress import Progress, progress_bar
from daemon.verbs.reading import reading
from daemon.verbs.screen import screen, tell
from worker import runtime
from worker.adopt import judge
from worker.curve import daemon_keys
from worker.protocol import ADOPTIONS_MAX, Adopt, Adopted, Adoption
from worker.records import totals_of
from worker.runtime import Fatal
from worker.settings import Settings

SOURCE: Final = "lore"
LORE_ID_CHARACTERS: Final = 36
NOTES_SHOWN: Final = 20
"""Different remarks under the table; each row of `--json` has its own."""

Send = Callable[[Sequence[Adoption]], list[Adopted]]


class Told(NamedTuple):
    """One row of the file and what became of it."""

    read: Reading | Refusal
    done: Adopted | None


def add(verbs: Verbs) -> None:
    """`perdure import …`"""
    does = "take over the sessions of another gateway: who they are, what they learned, what they cost"
    importing = add_verb(verbs, "import", "perdure import lore FILE", does, None)
    verb = partial(add_verb, importing.add_subparsers(metavar="FROM", required=True))
    example = "perdure import lore /path/to/lore.db      then the same with --apply"
    places = ("state_dir", "runtime_dir", "worker_url", "curve_dir")
    lore = verb("lore", example, "the sessions in a database of the Lore gateway, schema 23 or later", places, act=run)
    lore.add_argument("file", metavar="FILE", type=Path, help="Lore's database; it is only read")
    lore.add_argument("--apply", action="store_true", help="do it; without it is only told what would be done")
    lore.add_argument("--json", action="store_true", help="for programs")


def run(settings: Settings, options: argparse.Namespace) -> int:
    """Tell what would be imported, or import it."""
    with lore_file(options.file) as file, ExitStack() as stack:
        send = _sending(settings, stack) if options.apply else _judging(settings.database, stack)
        before = _totals(settings.database)
        report = (_JsonReport if options.json else _PageReport)(file, is_applied=options.apply)
        with progress_bar() as progress:
            for told in _told(_read(file, settings), send, partial(_show, progress, file.count)):
                report.row(told)
        after = _totals(settings.database) if options.apply else None
        report.end(before, after)
    if report.rows and report.refused == report.rows:
        raise Fatal(runtime.EXIT_CONFIGURATION, f"{options.file}: none of its {report.rows} sessions was understood")
    return runtime.EXIT_OK


def _read(file: LoreFile, settings: Settings) -> Iterator[Reading | Refusal]:
    now = time.time_ns() // 1_000_000
    headers = frozenset(settings.session_headers)
    return (read_row(row, now=now, session_headers=headers) for row in file.rows())


def _told(found: Iterator[Reading | Refusal], send: Send, progress: Callable[[int], None]) -> Iterator[Told]:
    """What became of each row, in the file's order, some of them at once."""
    count = 0
    while some := list(islice(found, ADOPTIONS_MAX)):
        adoptions = [each.adoption for each in some if isinstance(each, Reading)]
        done = iter(send(adoptions) if adoptions else [])
        for each in some:
            yield Told(each, next(done) if isinstance(each, Reading) else None)
        count += len(some)
        progress(count)


def _sending(settings: Settings, stack: ExitStack) -> Send:
    """The worker does it."""
    keys = daemon_keys(settings.worker_url, settings.curve_dir)
    amend = stack.enter_context(amending(settings.worker_url, keys))

    def send(adoptions: Sequence[Adoption]) -> list[Adopted]:
        told = amend(Adopt(source=SOURCE, sessions=list(adoptions))).adopted
        # A worker that was restarted in between knows that it is done, and not any more what was new.
        return told or _judging(settings.database, stack)(adoptions)

    return send


def _judging(database: Path, stack: ExitStack) -> Send:
    """What the worker would do; all is new where there is no database yet."""
    if not database.exists():
        return lambda adoptions: [_as_new(each) for each in adoptions]
    tables = stack.enter_context(reading(database)).tables
    return lambda adoptions: [judge(tables, SOURCE, each).told for each in adoptions]


def _as_new(each: Adoption) -> Adopted:
    return Adopted(
        session_id=each.session_id,
        outcome="new",
        is_calibrated=each.snapshot is not None,
        is_alias=each.foreign_id != each.session_id,
        turns=each.turns,
        cost_nanousd=each.cost_nanousd,
    )


def _totals(database: Path) -> dict[str, int]:
    if not database.exists():
        return {"sessions": 0, "turns": 0, "cost_nanousd": 0}
    with reading(database) as reader:
        _schema, sessions, sums = totals_of(reader.execute)
    return {"sessions": sessions, "turns": sums.turns, "cost_nanousd": sums.cost_nanousd}


def _show(progress: Progress, count: int, done: int) -> None:
    progress("sessions", min(1.0, done / max(1, count)))


# -- reports -------------------------------------------------------------------------------------------------------


class _Report:
    """Counts what became of the rows."""

    def __init__(self, file: LoreFile, *, is_applied: bool) -> None:
        self._file = file
        self._is_applied = is_applied
        self._outcomes: Counter[str] = Counter()
        self._added = {"turns": 0, "cost_nanousd": 0}
        self.rows = 0
        self.refused = 0

    def row(self, told: Told) -> None:
        self.rows += 1
        self.refused += told.done is None
        self._outcomes[told.done.outcome if told.done else "refused"] += 1
        if told.done is not None:
            self._added["turns"] += told.done.turns
            self._added["cost_nanousd"] += told.done.cost_nanousd

    def summary(self, before: dict[str, int], after: dict[str, int] | None) -> dict[str, Any]:
        """`after`: None where nothing was done, and only what would be is known."""
        expected = {name: before[name] + self._added.get(name, 0) for name in before}
        expected["sessions"] += self._outcomes["new"]
        return {
            "applied": self._is_applied,
            "file": str(self._file.path),
            "schema": self._file.version,
            "outcomes": dict(self._outcomes),
            "before": before,
            "after": after or expected,
        }


class _JsonReport(_Report):
    """One object, written as it comes: its list may be longer than memory."""

    def row(self, told: Told) -> None:
        print(",\n  " if self.rows else '{"sessions": [\n  ', json.dumps(_row_object(told)), sep="", end="")
        super().row(told)

    def end(self, before: dict[str, int], after: dict[str, int] | None) -> None:
        rest = json.dumps(self.summary(before, after), indent=1)
        print("\n],\n" if self.rows else '{"sessions": [],\n', rest.removeprefix("{").lstrip("\n"), sep="")


class _PageReport(_Report):
    """A table, and what is to be said of all."""

    def __init__(self, file: LoreFile, *, is_applied: bool) -> None:
        super().__init__(file, is_applied=is_applied)
        view = screen()
        self._table = Table(_COLUMNS, view.width, view.paint)
        self._notes: Counter[str] = Counter()

    def row(self, told: Told) -> None:
        if not self.rows:
            print(self._table.header)
        super().row(told)
        if told.done is None:
            assert isinstance(told.read, Refusal)
            # Whole, whatever the width: it is what somebody has to act upon.
            tell(f"{cut(plain(told.read.lore_id), LORE_ID_CHARACTERS)} refused: {plain(told.read.reason)}")
            return
        assert isinstance(told.read, Reading)
        notes = _notes_of(told)
        self._notes.update(notes)
        adoption, done = told.read.adoption, told.done
        cells = (
            plain(adoption.foreign_id),
            done.session_id,
            done.outcome,
            adoption.turns,
            money(adoption.cost_nanousd),
        )
        print(self._table.line((*cells, plain("; ".join(notes)))))

    def end(self, before: dict[str, int], after: dict[str, int] | None) -> None:
        shown = self.summary(before, after)
        counted = ", ".join(f"{count} {outcome}" for outcome, count in self._outcomes.most_common()) or "no sessions"
        tell(f"\n{plain(shown['file'])}, schema {shown['schema']}: {counted}")
        if self._file.version > SCHEMA_KNOWN:
            tell(
                f"schema {self._file.version} is newer than this perdure knows ({SCHEMA_KNOWN}): known columns are read"
            )
        for note, count in self._notes.most_common(NOTES_SHOWN):
            tell(f"  {count:>6}  {plain(note)}")
        for name in ("before", "after"):
            sums = shown[name]
            said = f"{sums['sessions']} sessions, {sums['turns']} turns, {money(sums['cost_nanousd'])}"
            print(f"{name:<8}{said}")
        if not self._is_applied:
            print("nothing was changed; add --apply to import them")


def _row_object(told: Told) -> dict[str, Any]:
    if told.done is None:
        assert isinstance(told.read, Refusal)
        return {"lore_id": told.read.lore_id, "session_id": None, "outcome": "refused", "reason": told.read.reason}
    assert isinstance(told.read, Reading)
    adoption, done = told.read.adoption, told.done
    return {
        "lore_id": adoption.foreign_id,
        "session_id": done.session_id or None,
        "outcome": done.outcome,
        "reason": None,
        "header_name": adoption.header_name or None,
        "header_session_id": adoption.header_session_id or None,
        "found_again": told.read.is_found_again and done.outcome != "forgotten",
        "calibrated": done.is_calibrated,
        "alias": done.is_alias,
        "turns": adoption.turns,
        "cost_nanousd": adoption.cost_nanousd,
        "turns_added": done.turns,
        "cost_nanousd_added": done.cost_nanousd,
        "notes": list(_notes_of(told)),
    }


def _notes_of(told: Told) -> Iterable[str]:
    """What is not kept of a row, and why."""
    assert isinstance(told.read, Reading)
    assert told.done is not None
    notes = list(told.read.notes)
    if told.done.outcome == "forgotten":
        return ["it was forgotten here, and stays so"]
    if told.read.adoption.snapshot is not None and not told.done.is_calibrated and told.done.outcome == "joined":
        notes.append("it has had turns here: what these taught is kept, not Lore's calibration")
    return notes


_COLUMNS: Final = (
    Column("LORE ID", 12, LORE_ID_CHARACTERS, "id"),
    Column("SESSION", 12, 32, "id"),
    Column("OUTCOME", 9),
    Column("TURNS", 5, form="figure"),
    Column("COST", 8, form="figure"),
    Column("REMARKS", 16, 120),
)
