"""The long power cut: `python -m tests.powercut --workloads 20 --images-per-cut 20`.  Exit status 1 for a loss."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from dataclasses import asdict
from pathlib import Path

from tests.powercut.campaign import Campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.powercut", description=__doc__)
    parser.add_argument("--workloads", type=int, default=5, help="how often each script is drawn, recorded and cut")
    parser.add_argument("--images-per-cut", type=int, default=10, help="new disks looked for after each operation")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="drawn if not given")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    campaign = Campaign(options.seed, images_per_cut=options.images_per_cut)
    for _ in range(options.workloads):
        campaign.cut_all_scripts()
        print(campaign.report, flush=True)
    report = campaign.report
    for finding in report.findings:
        print(finding)
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
