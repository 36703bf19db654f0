"""The long kill campaign: `python -m tests.crash --cycles 1000 --seed 7`.  Exit status 1 if anything was lost."""

from __future__ import annotations

import argparse
import secrets
import sys

from tests.crash.campaign import TICK_SECONDS, Campaign
from tests.processes import Gateway
from tests.provider import ScriptedProvider


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--cycles", type=int, default=1_000, help="how many times something is killed")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="drawn if not given")
    options = parser.parse_args()
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=TICK_SECONDS) as gateway:
        report = Campaign(provider, gateway, options.seed).run(options.cycles)
        print(report)
        if not report.findings.are_good:
            print(gateway.logs())
    return 0 if report.findings.are_good else 1


if __name__ == "__main__":
    sys.exit(main())
