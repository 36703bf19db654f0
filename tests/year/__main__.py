"""Simulated years: `python -m tests.year --years 3 --sessions 20 --turns 5 --seed 7`.  Exit status 1 on a loss."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.year.calendar import Calendar, Loss
from tests.year.traffic import Traffic
from worker.settings import Settings

BEGINS_AT = 1_767_225_600_000
"""2026-01-01."""


def main() -> int:
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m tests.year", description=__doc__)
    parser.add_argument("--years", type=float, default=3.0)
    parser.add_argument("--sessions", type=int, default=20, help="new ones a day")
    parser.add_argument("--turns", type=int, default=5, help="of a session on a day, on average")
    parser.add_argument("--ledger-days", type=int, default=defaults.ledger_days)
    parser.add_argument("--session-days", type=int, default=defaults.session_days)
    parser.add_argument("--keep-everything", action="store_true", help="nothing grows old: for comparison")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="drawn if not given")
    parser.add_argument("--directory", type=Path, help="where the database is made, and left")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    traffic = Traffic(options.seed, options.sessions, options.turns, BEGINS_AT)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pd-") as made:
        calendar = Calendar(
            (options.directory or Path(made)) / "perdure.db",
            traffic,
            options.ledger_days,
            options.session_days,
            lambda line: print(line, flush=True),
            grows_old=not options.keep_everything,
        )
        try:
            calendar.run(round(365 * options.years))
        except Loss as loss:
            print(f"LOST: {loss}")
            return 1
    print(f"{options.years:g} years in {time.monotonic() - started:.0f} s, nothing lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
