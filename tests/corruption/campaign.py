"""Flips bits, one at a time, and judges what became of each.

One rule: a flip is refused, or changes nothing that is served, or is counted among the unseen; and no flip is unseen in
what a checksum or SQLite's structure covers.

Theory.  What people read is asked for first, then the worker opens the same files: after a clean stop it looks at all
of a small database, and finds there what SQLite can find.  What it takes then is served, and compared.  A worker that
refuses has said so to whoever runs it; what the command line would still show of such a file is counted by itself.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw

from tests.corruption.damage import LOG_END, Flip, flips_of_frames, flips_of_pages
from tests.corruption.reading import Busy, Refused, Served, differences, served, shown
from tests.corruption.specimen import make, make_killed, session_ids

REMEDY: Final = "perdure restore FILE"
UNCOVERED: Final = {
    "session_state": "who a session is: identity, account, model, times, epoch",
    "session_total": "sums of a session",
    "session_rolled": "sums of a session's rows that are gone",
    "day_total": "sums of a day",
    "day_rolled": "sums of a day's rows that are gone",
    "session_alias": "former ids",
    "session_change": "corrections by operators",
    "learned_header": "what was learned of headers",
    "session_hint": "hints of a session",
    "meta": "whether the stop was clean",
}
"""Tables whose values no checksum covers, and no index holds a second time: what stands in them is taken as it is."""
STATES: Final = "states"


@dataclass
class Report:
    seed: int
    flips: int = 0
    refused: int = 0
    """By the worker: at its start, or at the first claims."""
    refused_to_readers: int = 0
    """By the command line alone: a row that no claim needs."""
    equal: int = 0
    unseen: Counter[str] = field(default_factory=Counter)
    """Served otherwise than it was, by the table it is in."""
    shown: int = 0
    """Refused by the worker; the command line alone would show something else than there was."""
    earlier: int = 0
    """In the last commit of the log: it ends there for SQLite, as after a power cut."""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        unseen = ", ".join(f"{name} {count}" for name, count in self.unseen.most_common())
        log = f"; {self.earlier} in a log's last commit took it for one that a power cut met" if self.earlier else ""
        return (
            f"corruption, seed {self.seed}: {self.flips} bits flipped; {self.refused} refused by the worker, "
            f"{self.refused_to_readers} by readers, {self.equal} without effect, "
            f"{self.unseen.total()} unseen in columns without a checksum ({unseen or 'none'}){log}; "
            f"{len(self.faults)} faults"
        )

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "unseen": dict(self.unseen)}


class Campaign:
    """Flips in files below a directory; `run` may be called again and again."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self.chance = random.Random(seed)
        self.report = Report(seed)
        self._cases = 0

    def pages(self, flips_max: int, *, clean: bool, tree: str = "") -> None:
        """In every page of a database at rest, or of one tree alone."""
        specimen = self._directory / f"specimen-{'clean' if clean else 'unclean'}" / "perdure.db"
        if not specimen.exists():
            specimen.parent.mkdir()
            make(specimen)
            if not clean:
                _mark_unclean(specimen)
        self._run(specimen, _repeated(partial(flips_of_pages, tree=tree), specimen, self.chance, flips_max))

    def frames(self, flips_max: int) -> None:
        """In every frame of the log of a killed worker."""
        specimen = self._directory / "specimen-killed" / "perdure.db"
        if not specimen.exists():
            specimen.parent.mkdir()
            make_killed(specimen)
        self._run(specimen, _repeated(flips_of_frames, specimen, self.chance, flips_max))

    def _run(self, specimen: Path, flips: Iterable[Flip]) -> None:
        sound = self._ask(specimen, None)
        for flip in flips:
            found = self._ask(specimen, flip)
            if found is not None and sound is not None:
                _judge(self.report, flip, sound, found)

    def _ask(self, specimen: Path, flip: Flip | None) -> tuple[Served, Served] | None:
        """What people are shown and what daemons are served, of a copy with that flip."""
        self._cases += 1
        place = self._directory / f"case-{self._cases}" / specimen.name
        place.parent.mkdir()
        try:
            for suffix in ("", "-wal"):
                if (file := specimen.with_name(specimen.name + suffix)).exists():
                    shutil.copyfile(file, place.with_name(file.name))
            if flip is not None:
                self.report.flips += 1
                flip.apply(place)
            return shown(place, session_ids()), served(place, session_ids())
        except (
            apsw.Error,
            StopIteration,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            RecursionError,
        ) as error:
            # Nothing but a refusal may come of it: this would end a worker without a word, and again at its next start.
            self.report.faults.append(f"{flip}: {type(error).__name__}: {error!s:.200}")
            return None
        finally:
            shutil.rmtree(place.parent)


def _judge(report: Report, flip: Flip, sound: tuple[Served, Served], found: tuple[Served, Served]) -> None:
    answers = [*found[0].values(), *found[1].values()]
    for answer in answers:
        if isinstance(answer, Refused) and REMEDY not in answer and not _is_row(answer) and not _is_not_ours(answer):
            report.faults.append(f"{flip}: refused without the command to run: {answer}")
        if isinstance(answer, Busy):
            report.faults.append(f"{flip}: put off, to be tried for ever: {answer}")
    wrongly_shown = list(differences(sound[0], found[0]))
    if any(isinstance(answer, Refused) for answer in found[1].values()):
        report.refused += 1
        report.shown += bool(wrongly_shown)
        return
    places = [*wrongly_shown, *differences(sound[1], found[1])]
    if not places:
        refused = any(isinstance(answer, Refused) for answer in answers)
        report.refused_to_readers += refused
        report.equal += not refused
    elif flip.tree == LOG_END:
        report.earlier += 1
    else:
        report.unseen[flip.tree] += 1
        if not _may_be_unseen(flip.tree, places):
            report.faults.append(f"{flip}: served wrongly, without a word: {sorted(set(places))[:5]}")


def _may_be_unseen(tree: str, places: list[str]) -> bool:
    """Never a ledger row, and never a state: but a former id may lead to another session, with all that is its own."""
    return tree == "session_alias" or (
        tree in UNCOVERED and not any(place.startswith(STATES) or ".newest" in place for place in places)
    )


def _is_row(said: str) -> bool:
    """The name of a damaged row, to which the caller adds the command."""
    return said.startswith(("ledger row", "session "))


def _is_not_ours(said: str) -> bool:
    """The damage is in what says whose file it is; the remedy is for that."""
    return any(words in said for words in ("another program", "newer perdure", "not a SQLite database", "no database"))


def _mark_unclean(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE meta SET value = '0' WHERE name = 'clean'")
    connection.close()


def _repeated(
    flips: Callable[[Path, random.Random], Iterator[Flip]], specimen: Path, chance: random.Random, flips_max: int
) -> Iterator[Flip]:
    """So many flips, from as many rounds over all pages or frames as that takes; of the last round a fair sample."""
    left = flips_max
    while left > 0:
        of_round = list(flips(specimen, chance))
        yield from of_round if len(of_round) <= left else chance.sample(of_round, left)
        left -= len(of_round)
