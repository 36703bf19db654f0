"""`python -m tests.oracle --conversations N --seed S`: a crowd; `--pairs N --seed S`: look-alikes.  Exit status 1 for a
finding."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

from tests.oracle.crowd import Crowd
from tests.oracle.lookalikes import run_pairs
from tests.oracle.truth import Verdict

WRONG_SHOWN: Final = 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--conversations", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    started = time.monotonic()
    wrong = 0
    if asked.conversations:
        crowd = Crowd(asked.seed)
        wrong += _told(crowd.live(crowd.anybody(asked.conversations)))
    if asked.pairs:
        wrong += _told(run_pairs(asked.seed, asked.pairs))
    print(f"{time.monotonic() - started:.1f} s")
    return 1 if wrong else 0


def _told(verdict: Verdict) -> int:
    """How much is wrong, once it is said."""
    print(*verdict.lines(), *verdict.wrong[:WRONG_SHOWN], f"{len(verdict.wrong)} wrong", sep="\n")
    return len(verdict.wrong)


if __name__ == "__main__":
    sys.exit(main())
