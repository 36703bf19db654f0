"""The hunt: inputs that take a new way through the program are kept, and changed again.

One rule: a target says what must hold of an input by raising where it does not; whatever it raises is a finding.

Theory of operation.  Seeds are valid inputs.  Each round takes one of those that were kept, the newer ones more often,
changes it, and runs it while `Edges` looks on.  One that makes two lines of the program follow each other for the first
time joins those that are kept: so what is hard to reach is reached step by step.  The same seed hunts the same way,
where a target runs in one thread; what threads and sockets do is not repeated exactly.
"""

from __future__ import annotations

import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.fuzz.coverage import ROOT, Edges
from tests.fuzz.mutation import mutated

INPUT_SECONDS_MAX: Final = 60.0
"""One input that takes longer hangs: all are small, and an idle machine needs milliseconds."""
MEMORY_MB_MAX: Final = 400
"""What a process may grow by during a hunt: inputs have at most 64 KB, what is kept of them some MB."""
CORPUS_MAX: Final = 4_000
NEWEST: Final = 20
"""Half of all rounds change one of the last so many that were kept."""
FINDINGS_MAX: Final = 10
"""Different ones, after which a hunt ends."""
MINIMISING_RUNS_MAX: Final = 1_500
SHOWN_BYTES: Final = 400
"""Of an input, in a report; the whole of it is in the JSON."""


class Hang(BaseException):
    """An input took too long.  No `Exception`: what is hunted must not catch it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that reads what strangers send."""

    check: Callable[[bytes], None]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes] = ()
    is_alone: bool = True
    """It runs in one thread and holds nothing from one input to the next: a finding can be made smaller."""


Opened = Callable[[Edges], AbstractContextManager[Target]]


@dataclass(frozen=True)
class Finding:
    what: str
    where: str
    """The last line of the program that it went through."""
    data: bytes
    trace: str

    @property
    def key(self) -> tuple[str, str]:
        return self.what.partition(":")[0], self.where


@dataclass
class Report:
    target: str
    seed: int
    executions: int = 0
    edges: int = 0
    corpus: int = 0
    seconds: float = 0.0
    slowest_milliseconds: float = 0.0
    peak_growth_mb: int = 0
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.target:8} seed {self.seed}: {self.executions:6} inputs, {self.edges:5} edges, "
            f"{self.corpus:4} kept, {len(self.findings)} findings, {self.seconds:.1f} s, "
            f"slowest {self.slowest_milliseconds:.0f} ms, memory +{self.peak_growth_mb} MB"
        )

    def details(self) -> str:
        return "\n".join(f"{each.trace}\ninput: {each.data[:SHOWN_BYTES]!r}" for each in self.findings)

    def as_json(self) -> dict[str, Any]:
        told = asdict(self)
        told["findings"] = [{**asdict(each), "data": each.data.hex()} for each in self.findings]
        return told


def hunt(
    name: str,
    opened: Opened,
    *,
    seed: int,
    executions: int | None = None,
    seconds: float | None = None,
    findings_max: int = FINDINGS_MAX,
    minimises: bool = True,
    edges: Edges | None = None,
) -> Report:
    """Run a target's seeds, then what is made of them, for so many inputs or so many seconds."""
    edges = Edges() if edges is None else edges
    report = Report(target=name, seed=seed)
    started, grown = time.monotonic(), _Growth()

    def is_over() -> bool:
        if len(report.findings) >= findings_max or (executions is not None and report.executions >= executions):
            return True
        return seconds is not None and time.monotonic() - started >= seconds

    with edges.watching(), opened(edges) as target:
        _Hunt(target, edges, report, random.Random(f"{name} {seed}"), minimises=minimises).run(is_over)
    report.edges = len(edges)
    report.seconds = time.monotonic() - started
    report.peak_growth_mb = grown.megabytes()
    return report


class _Hunt:
    def __init__(self, target: Target, edges: Edges, report: Report, rng: random.Random, *, minimises: bool) -> None:
        self._target = target
        self._edges = edges
        self._report = report
        self._rng = rng
        self._minimises = minimises and target.is_alone
        self._corpus: list[bytes] = []

    def run(self, is_over: Callable[[], bool]) -> None:
        for data in self._target.seeds:
            self._run(data, is_seed=True)
        while not is_over():
            self._run(mutated(self._rng, self._parent(), self._rng.choice(self._corpus), self._target.tokens))
        self._report.corpus = len(self._corpus)

    def _parent(self) -> bytes:
        among = self._corpus[-NEWEST:] if self._rng.random() < 0.5 else self._corpus
        return self._rng.choice(among)

    def _run(self, data: bytes, *, is_seed: bool = False) -> None:
        before = len(self._edges)
        started = time.thread_time()
        finding = attempt(self._target.check, data)
        self._report.executions += 1
        milliseconds = 1000 * (time.thread_time() - started)
        self._report.slowest_milliseconds = max(self._report.slowest_milliseconds, milliseconds)
        if is_seed or (len(self._edges) > before and finding is None and len(self._corpus) < CORPUS_MAX):
            self._corpus.append(data)
        if finding is not None and finding.key not in {known.key for known in self._report.findings}:
            smaller = smallest(self._target.check, finding) if self._minimises else finding
            self._report.findings.append(smaller)


def attempt(check: Callable[[bytes], None], data: bytes) -> Finding | None:
    """Run one input; what went wrong, or None."""
    try:
        with _deadline():
            check(data)
    except (Exception, Hang) as error:  # noqa: BLE001 - whatever a target raises is what is hunted
        return Finding(f"{type(error).__name__}: {error}"[:500], _place_of(error), data, _trace_of(error))
    return None


def smallest(check: Callable[[bytes], None], finding: Finding) -> Finding:
    """The same finding with as little input as can be had in a bounded number of tries."""
    tries = 0
    span = max(1, len(finding.data) // 2)
    while span and tries < MINIMISING_RUNS_MAX:
        start = 0
        while start < len(finding.data) and tries < MINIMISING_RUNS_MAX:
            shorter = attempt(check, finding.data[:start] + finding.data[start + span :])
            tries += 1
            if shorter is not None and shorter.key == finding.key:
                finding = shorter
            else:
                start += span
        span //= 2
    return finding


@contextmanager
def _deadline() -> Iterator[None]:
    def ring(_number: int, _frame: FrameType | None) -> None:
        raise Hang(f"no end within {INPUT_SECONDS_MAX:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, INPUT_SECONDS_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _trace_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-12:])


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith((f"{ROOT}/daemon", f"{ROOT}/worker"))]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).relative_to(ROOT) if ours else last.name}:{last.lineno}"


class _Growth:
    """How far the process's memory went beyond what it was."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # The high-water mark starts anew at what is used now.
        self._before_kb = _status_kb("VmRSS")

    def megabytes(self) -> int:
        return max(0, _status_kb("VmHWM") - self._before_kb) // 1024


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
