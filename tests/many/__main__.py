"""The long spray: `python -m tests.many --sessions 50 --daemons 4 --turns 2000 --seed 7`.  Exit status 1 on a fault."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from pathlib import Path

from tests.many.spray import Spray
from tests.provider import ScriptedProvider


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.many", description=__doc__)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--daemons", type=int, default=4)
    parser.add_argument("--turns", type=int, default=20_000, help="answered to their end, over all sessions")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="drawn if not given")
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with ScriptedProvider() as provider:
        spray = Spray(
            provider,
            sessions=options.sessions,
            daemons=options.daemons,
            turns=options.turns,
            seed=options.seed,
        )
        try:
            spray.run()
        finally:
            print(spray.report)
            if options.json:
                options.json.write_text(json.dumps(spray.report.summary(), indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
