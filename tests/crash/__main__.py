"""The long kill campaign: `python -m tests.crash --cycles 10000 --seed 1`.  Exit status 1 if anything was lost.

One rule: a cycle is repeated by its number and the seed: `--seed 1 --only 137` runs the episode in which it is, up to
it.  See `campaign` for what a seed repeats.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from math import inf
from pathlib import Path

from tests.crash.episodes import JOBS, run
from tests.crash.points import Point, Victim, plan
from tests.crash.report import as_json, document, table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    cycles = options.cycles if options.only is None else options.only + 1
    try:
        episodes = list(plan(options.seed, cycles, options.victims, options.points))
    except ValueError as error:
        parser.error(str(error))
    if options.only is not None:
        episodes = episodes[-1:]  # The plan ends with it.
    started = time.monotonic()
    report = run(episodes, options.seed, options.jobs, limit_seconds=60 * options.minutes, is_quiet=False)
    print(table(report))
    if options.json:
        seconds = time.monotonic() - started
        command = f"python -m tests.crash {' '.join(sys.argv[1:])}"
        said = document(report, version=version("perdure"), date=options.date, command=command, seconds=seconds)
        options.json.write_text(as_json(said), "utf-8")
    return 0 if report.is_good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=1_000, help="how many times something is killed")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="drawn if not given")
    parser.add_argument("--victims", type=_victims, default=tuple(Victim), help=f"of {', '.join(Victim)}")
    parser.add_argument("--points", type=_points, default=tuple(Point), help=f"of {', '.join(Point)}")
    parser.add_argument("--only", type=int, help="one cycle, by its number, with those of its episode before it")
    parser.add_argument("--minutes", type=float, default=inf, help="begin no episode after so long")
    parser.add_argument("--jobs", type=int, default=JOBS, help="episodes at once")
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--date", default="", help="what the report says of when it was made")
    return parser


def _victims(words: str) -> tuple[Victim, ...]:
    return tuple(Victim(word) for word in words.split(","))


def _points(words: str) -> tuple[Point, ...]:
    return tuple(Point(word) for word in words.split(","))


if __name__ == "__main__":
    sys.exit(main())
