"""The long hunt: `python -m tests.fuzz TARGET… --seconds 300 --seed 7 --json FILE`.  Exit status 1 for a find."""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import sys
from pathlib import Path

from tests.fuzz.guided import MEMORY_MB_MAX, Report, hunt
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all, or some of: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="drawn if not given")
    parser.add_argument("--json", type=Path, help="a file for the report, with every input that was found")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no target is called {', '.join(sorted(unknown))}")
    logging.disable(logging.WARNING)
    reports = [_hunted(name, options.seed, options.seconds) for name in options.targets or TARGETS]
    if options.json:
        options.json.write_text(json.dumps([report.as_json() for report in reports], indent=2), "utf-8")
    return 0 if all(_is_good(report) for report in reports) else 1


def _hunted(name: str, seed: int, seconds: float) -> Report:
    report = hunt(name, TARGETS[name], seed=seed, seconds=seconds)
    print(report, flush=True)
    if not _is_good(report):
        print(report.details(), flush=True)
    return report


def _is_good(report: Report) -> bool:
    return not report.findings and report.peak_growth_mb <= MEMORY_MB_MAX


if __name__ == "__main__":
    sys.exit(main())
