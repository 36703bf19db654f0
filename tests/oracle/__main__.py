"""`python -m tests.oracle --conversations N --seed S`: a crowd; `--pairs N --seed S`: look-alikes."""

from __future__ import annotations

import argparse
import time
from typing import Final

from tests.oracle.crowd import Crowd
from tests.oracle.lookalikes import run_pairs
from tests.oracle.truth import Verdict

WRONG_SHOWN: Final = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--conversations", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    started = time.monotonic()
    if asked.conversations:
        crowd = Crowd(asked.seed)
        _tell(crowd.live(crowd.anybody(asked.conversations)))
    if asked.pairs:
        _tell(run_pairs(asked.seed, asked.pairs))
    print(f"{time.monotonic() - started:.1f} s")


def _tell(verdict: Verdict) -> None:
    print(*verdict.lines(), *verdict.wrong[:WRONG_SHOWN], f"{len(verdict.wrong)} wrong", sep="\n")


if __name__ == "__main__":
    main()
