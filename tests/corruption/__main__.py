"""The long campaign: `python -m tests.corruption --flips 20000 --seed 7`.  Exit status 1 if one was served wrongly."""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.corruption.campaign import Campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corruption", description=__doc__)
    parser.add_argument("--flips", type=int, default=5_000, help="bits that are flipped, one at a time")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="drawn if not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
    try:
        campaign = Campaign(directory, options.seed)
        campaign.pages(options.flips // 2, clean=True)
        campaign.pages(options.flips // 4, clean=False)
        campaign.frames(options.flips // 4)
    finally:
        shutil.rmtree(directory)
    print("\n".join([*campaign.report.faults, str(campaign.report)]))
    if options.json:
        options.json.write_text(json.dumps(campaign.report.as_json(), indent=2) + "\n", "utf-8")
    return 1 if campaign.report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
