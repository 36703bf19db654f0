"""Run seeds until one fails: `python -m tests.simulation --seeds 10000 --from 1`."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.world import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    options = parser.parse_args()
    started = time.monotonic()
    failed = 0
    for seed in range(options.first, options.first + options.seeds):
        try:
            violations = run(seed)
        except BaseException:
            print(f"seed {seed} raised", flush=True)
            raise
        failed += bool(violations)
        for check, what in violations[:5]:
            print(f"seed {seed}: {check}: {what[:400]}", flush=True)
    print(f"{options.seeds} seeds, {failed} failed, {time.monotonic() - started:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
