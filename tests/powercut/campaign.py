"""Cut the power after every operation of a run, and have judged what it may leave.

One rule: a disk is opened once, and held against what was promised at every cut that may leave it.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from tests.powercut import workload
from tests.powercut.images import Disk, Image, digest, selections
from tests.powercut.judge import Judge, Verdict
from tests.powercut.workload import NEWEST_SCHEMA, Run, Script

DRAWS_PER_IMAGE: Final = 4
"""Selections that are drawn for each disk that is wanted: most of a cut's were left by the cut before it, too."""
FINDINGS_MAX: Final = 20
"""Of one run.  More would not be read; without a rule there are thousands."""
FINDING_CHARACTERS_MAX: Final = 1_000
MEMORY_FOLDER: Final = Path("/dev/shm")


@dataclass
class Report:
    seed: int
    runs: int = 0
    operations: int = 0
    cuts: int = 0
    images: int = 0
    """Different disks, each opened once."""
    checks: int = 0
    """Times that a disk was held against what was promised at a cut."""
    facts: int = 0
    """Looked for in all of these."""
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        figures = {name: value for name, value in asdict(self).items() if name not in ("seed", "findings")}
        told = ", ".join(f"{value} {name}" for name, value in figures.items())
        return f"power cut, seed {self.seed}: {told}, {len(self.findings)} findings"


class Campaign:
    def __init__(self, seed: int, *, images_per_cut: int) -> None:
        self.report = Report(seed)
        self.draw = random.Random(seed)
        self._images_per_cut = images_per_cut

    def cut_all_scripts(self) -> None:
        run = self.record_and_cut(workload.everyday)
        self.record_and_cut(workload.after_a_cut(run))
        for version in range(1, NEWEST_SCHEMA):
            for killed in (False, True):
                self.record_and_cut(workload.migrating(version, killed=killed))

    def record_and_cut(self, script: Script) -> Run:
        with scratch_folder() as folder:
            run = script(folder, self.draw)
        self.cut_everywhere(run)
        return run

    def cut_everywhere(self, run: Run) -> None:
        """Ends early when there is too much to report."""
        report, disk = self.report, Disk(run.before)
        report.runs += 1
        findings: list[str] = []
        with scratch_folder() as folder:
            court = _Court(run, Judge(run, folder))
            for position, operation in enumerate((None, *run.operations)):
                if operation is not None:
                    disk.apply(operation)
                    report.operations += 1
                report.cuts += 1
                findings += self._cut(disk, court, position)
                if len(findings) >= FINDINGS_MAX:
                    break
        report.images += court.images
        report.checks += court.checks
        report.facts += court.facts
        report.findings += findings[:FINDINGS_MAX]

    def _cut(self, disk: Disk, court: _Court, position: int) -> list[str]:
        """So many disks that no cut before this one left, and those that one did as they come by."""
        findings: list[str] = []
        before, seen = court.images, set[bytes]()
        for kept in islice(selections(disk.pending(), self.draw), self._images_per_cut * DRAWS_PER_IMAGE):
            image = disk.image(kept)
            name = digest(image)
            if name not in seen:
                seen.add(name)
                findings += court.findings(name, image, position)
            if court.images - before >= self._images_per_cut:
                break
        return findings


class _Court:
    """Verdicts on the disks of one run."""

    def __init__(self, run: Run, judge: Judge) -> None:
        self._run = run
        self._judge = judge
        self._verdicts: dict[bytes, Verdict] = {}
        self._kept_from = [promise.kept_from for promise in run.promises]
        self.checks = 0
        self.facts = 0

    @property
    def images(self) -> int:
        return len(self._verdicts)

    def findings(self, name: bytes, image: Image, position: int) -> list[str]:
        acknowledged = bisect_right(self._kept_from, position) - 1
        faults: list[str] = []
        if name not in self._verdicts:
            self._verdicts[name] = self._judge.judge(image, acknowledged)
            faults += self._verdicts[name].faults
        verdict = self._verdicts[name]
        self.checks += 1
        self.facts += verdict.facts
        if verdict.has_opened:
            faults += _broken(self._run, verdict, position, acknowledged)
        where = f"{self._run.name}, cut after {position} of {len(self._run.operations)} operations"
        return [f"{where}: {fault}"[:FINDING_CHARACTERS_MAX] for fault in faults]


def _broken(run: Run, verdict: Verdict, position: int, acknowledged: int) -> Iterator[str]:
    """Promises of the time of the cut that a disk does not keep."""
    if position >= run.identity_from and verdict.identity != run.identity:
        yield "another store: daemons would know nothing of what they find"
    following = run.promises[acknowledged + 1 : acknowledged + 2]
    is_under_way = any(promise.began < position for promise in following)
    allowed = {acknowledged, acknowledged + 1} if is_under_way else {acknowledged}
    if not verdict.states & allowed:
        kind = "lost" if verdict.states and max(verdict.states) < acknowledged else "wrong"
        yield f"{kind}: shows the state of commit {sorted(verdict.states) or '(none)'}, not of {sorted(allowed)}"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """In memory where that can be: thousands of disks are written, and none is meant to last."""
    parent = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else Path("/tmp")
    folder = Path(tempfile.mkdtemp(dir=parent, prefix="pd-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
