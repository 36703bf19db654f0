"""How long a turn waits for its identity while the worker is busy with something else.

    python -m bench.identity_latency --gigabytes 1 --json identity.json

A worker with a database of that size gets turns at a steady pace (`bench.load`): quietly, while `perdure backup` copies
all of it, while a dashboard asks for page after page, while old rows are rolled up, and with all of that at once.  What
is measured is the time from the moment a CLAIM or BEGIN is due to its acknowledgement, which is the identity of a turn:
committed and fsynced.  Machines are noisy, so rounds repeat all situations: p99 is given over all rounds and of the
best one, in which the least else was going on.

Bounds are ratios within one run, and the one time that the contract names: in the best round p99 may be
`QUIET_TIMES_MAX` times that of a quiet worker, and never what a request would no longer wait for.  Beyond them the exit
status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Final

from bench.database import fill
from tests.worker.peer import ROOT, Peer, WorkerProcess, wait_until
from worker.protocol import Command, Hello
from worker.retention import START_SECONDS
from worker.store import Reader

SITUATIONS: Final = ("quiet", "backup", "dashboard", "retention", "all")
START_SECONDS_MAX: Final = 600.0
QUIET_TIMES_MAX: Final = 10.0
"""What other work may cost identity: a commit that waits for the fsync of a checkpoint, a copy or a slice of rows, each
about as long as a few commits, and not one of them longer the larger the database is."""
PATIENCE_SECONDS: Final = 0.25
"""A request waits so long for the worker, and goes on without it then."""
FSYNCS: Final = 50
SAMPLE_SECONDS: Final = 0.02


@dataclass
class Seen:
    """What was measured in one situation."""

    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    best_p99: float = inf
    """Of identity, in one round."""
    wal_bytes: int = 0
    fsync_seconds: list[float] = field(default_factory=list)
    done: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """How much of the other work was done meanwhile."""

    def take(self, seconds: dict[str, list[float]]) -> None:
        """One round's answers, by kind of write."""
        self.best_p99 = min(self.best_p99, _quantiles(_identity(seconds))["p99"])
        for kind, own in seconds.items():
            self.seconds[kind] += own


def main() -> int:
    options = _options()
    directory = options.directory or Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-bench-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        report = measure(directory, options)
    finally:
        if not options.directory:
            shutil.rmtree(directory, ignore_errors=True)
    print(table(report))
    beyond = beyond_bounds(report)
    print("\n".join(beyond) or f"within bounds: {QUIET_TIMES_MAX:.0f} × quiet, {1_000 * PATIENCE_SECONDS:.0f} ms")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if beyond else 0


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    database = directory / "perdure.db"
    if not database.exists():
        print(f"filling {database}", file=sys.stderr)
        fill(database, options.gigabytes, options.seed)
    size = database.stat().st_size
    seen = {name: Seen() for name in options.situations}
    starts: dict[str, list[float]] = {"after a clean stop": [], "after a kill": []}
    for round_number in range(options.rounds):
        for name, into in seen.items():
            print(f"round {round_number + 1}: {name}", file=sys.stderr)
            days = 400 if name in ("retention", "all") else 0
            starts["after a clean stop"].append(one(directory, name, into, days, round_number, options))
    starts["after a kill"].append(_start_after_kill(directory))
    return {
        "bytes": size,
        "rate": options.rate,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "start_seconds": {how: _median(values) for how, values in starts.items()},
        "situations": {name: _summary(into) for name, into in seen.items()},
    }


def one(directory: Path, name: str, into: Seen, days: int, round_number: int, options: argparse.Namespace) -> float:
    """One situation once, on a worker of its own; gives how long that took to start."""
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        worker = stack.enter_context(WorkerProcess(directory, PERDURE_LEDGER_DAYS=str(days)))
        _await_welcome(worker)
        start_seconds = time.monotonic() - started
        into.fsync_seconds += _fsyncs(directory)
        time.sleep(START_SECONDS if days else 0.0)
        sessions = _count(directory, "SELECT count(*) FROM session_state")
        rows = _count(directory, _OLD_ROWS)
        command = [sys.executable, "-m", "bench.load", worker.address, options.rate, sessions, round_number]
        load = subprocess.Popen(
            [str(each) for each in command], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        stack.callback(load.kill)
        with _sampled(directory / "perdure.db-wal", into):
            _disturb(name, directory, worker.address, into, options.seconds)
        said, _ = load.communicate(timeout=60)
        into.take(json.loads(said))
        into.done["rows rolled up"] += rows - _count(directory, _OLD_ROWS)
        worker.process.terminate()
        worker.process.communicate(timeout=START_SECONDS_MAX)
    return start_seconds


def _disturb(name: str, directory: Path, address: str, into: Seen, seconds: float) -> None:
    """Do what the situation says for that long, and until a backup is whole."""
    until = time.monotonic() + seconds
    over = threading.Event()
    asking = threading.Thread(target=_ask, args=(address, over, into))
    if name in ("dashboard", "all"):
        asking.start()
    if name in ("backup", "all"):
        while time.monotonic() < until:
            _backup(directory, into)
    over.wait(max(0.0, until - time.monotonic()))
    over.set()
    if asking.is_alive():
        asking.join()


def _backup(directory: Path, into: Seen) -> None:
    file = directory / "copy.db"
    environment = {"PATH": os.environ["PATH"], "PERDURE_STATE_DIR": str(directory)}
    command = [str(Path(sys.executable).with_name("perdure")), "backup", "--force", str(file)]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    into.done["backups"] += 1
    into.done["seconds of backups"] += time.monotonic() - started
    file.unlink()


def _ask(address: str, over: threading.Event, into: Seen) -> None:
    """What a dashboard that is never content would: all sessions, page after page, and one in full."""
    with Peer(address) as peer:
        after = ""
        while not over.is_set():
            answer = peer.query(what="sessions", after=after, limit=100)
            after = answer.after
            into.done["pages"] += 1
            sessions = json.loads(bytes(answer.body)) or []
            if sessions:
                peer.query(what="session", session_id=sessions[0]["session"]["session_id"])


# -- measuring -----------------------------------------------------------------------------------------------------


def _await_welcome(worker: WorkerProcess) -> None:
    def is_there() -> bool:
        assert worker.process.poll() is None, "the worker ended"
        try:
            with Peer(worker.address, greet=False) as peer:
                text = peer.boot.decode()
                peer.send(Command.HELLO, Hello(boot=text, instance=text, version="0", pid=os.getpid()))
                peer.receive(1.0)
        except AssertionError:
            return False
        return True

    wait_until(is_there, "the worker answers", START_SECONDS_MAX)


def _start_after_kill(directory: Path) -> float:
    with WorkerProcess(directory, PERDURE_LEDGER_DAYS="0") as worker:
        _await_welcome(worker)
        worker.process.kill()
        worker.process.communicate()
        started = time.monotonic()
        worker.start()
        _await_welcome(worker)
        seconds = time.monotonic() - started
        worker.process.terminate()
        worker.process.communicate(timeout=START_SECONDS_MAX)
    return seconds


def _fsyncs(directory: Path) -> list[float]:
    """What the disk takes for what a commit needs at least."""
    found = []
    descriptor = os.open(directory / "fsync.probe", os.O_WRONLY | os.O_CREAT, 0o600)
    for _ in range(FSYNCS):
        os.write(descriptor, bytes(4_096))
        started = time.monotonic()
        os.fsync(descriptor)
        found.append(time.monotonic() - started)
    os.close(descriptor)
    (directory / "fsync.probe").unlink()
    return found


@contextlib.contextmanager
def _sampled(wal: Path, into: Seen) -> Iterator[None]:
    """Look at how large the log becomes."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(SAMPLE_SECONDS):
            with contextlib.suppress(FileNotFoundError):
                into.wal_bytes = max(into.wal_bytes, wal.stat().st_size)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


def _count(directory: Path, sql: str) -> int:
    reader = Reader(directory / "perdure.db", steps_max=2**62)
    try:
        return int(next(iter(reader.execute(sql)))[0])
    finally:
        reader.close()


# -- telling -------------------------------------------------------------------------------------------------------


def _identity(seconds: Mapping[str, list[float]]) -> list[float]:
    return [*seconds["claim"], *seconds["begin"]]


def _summary(seen: Seen) -> dict[str, Any]:
    return {
        "identity": {**_quantiles(_identity(seen.seconds)), "p99_of_best_round": seen.best_p99},
        **{kind: _quantiles(seconds) for kind, seconds in seen.seconds.items()},
        "wal_bytes_max": seen.wal_bytes,
        "fsync_seconds": _quantiles(seen.fsync_seconds),
        "meanwhile": dict(seen.done),
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    assert values, "nothing was measured: give it more seconds"
    ordered = sorted(values)
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
    at = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in shares.items()}
    return {"count": len(ordered), **at}


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def beyond_bounds(report: dict[str, Any]) -> list[str]:
    """What is slower than it may be, in words."""
    best = {name: found["identity"]["p99_of_best_round"] for name, found in report["situations"].items()}
    limit = min(PATIENCE_SECONDS, QUIET_TIMES_MAX * best.get("quiet", inf))
    return [
        f"beyond bounds: {name}: {1_000 * seconds:.1f} ms are more than {1_000 * limit:.1f}"
        for name, seconds in best.items()
        if seconds > limit
    ]


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['bytes'] / 1024**3:.2f} GB, {report['rate']} turns/s, {report['rounds']} rounds of "
        f"{report['seconds']} s, {report['cores']} cores, load {report['load'][0]:.1f}",
        "starts in " + ", ".join(f"{value:.2f} s {how}" for how, value in report["start_seconds"].items() if value),
        "",
        f"{'identity, ms':12}{'writes':>8}{'p50':>8}{'p99':>8}{'best p99':>10}{'× quiet':>9}{'max':>8}"
        f"{'log, MB':>9}{'fsync p99':>11}  meanwhile",
    ]
    quiet = report["situations"].get("quiet", {}).get("identity", {}).get("p99_of_best_round")
    for name, found in report["situations"].items():
        identity = found["identity"]
        best = identity["p99_of_best_round"]
        figures = "".join(f"{1_000 * value:8.1f}" for value in (identity["p50"], identity["p99"]))
        ratio = f"{best / quiet:9.1f}" if quiet else f"{'':9}"
        done = ", ".join(f"{value:.0f} {what}" for what, value in found["meanwhile"].items() if value)
        lines.append(
            f"{name:12}{identity['count']:8}{figures}{1_000 * best:10.1f}{ratio}{1_000 * identity['max']:8.1f}"
            f"{found['wal_bytes_max'] / 1e6:9.1f}"
            f"{1_000 * found['fsync_seconds']['p99']:11.1f}  {done}"
        )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.identity_latency", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the database")
    parser.add_argument("--seconds", type=float, default=20.0, help="of one situation in one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=30.0, help="turns a second, three writes each")
    parser.add_argument("--seed", type=int, default=1, help="of the database's content")
    parser.add_argument("--directory", type=Path, help="keep the database there, and use it if it is there already")
    parser.add_argument("--situations", nargs="+", choices=SITUATIONS, default=SITUATIONS, metavar="SITUATION")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    return parser.parse_args()


_OLD_ROWS: Final = "SELECT count(*) FROM ledger WHERE boot = 'a-daemon-of-then'"

if __name__ == "__main__":
    sys.exit(main())
