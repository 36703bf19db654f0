"""The whole sweep: every call that the store makes of its disk fails once, and from then on.

    python -m tests.faults [--numbers 1000] [--scene NAME] [--json FILE]

Nothing is drawn: with all numbers every call fails, in every way there is.  Prints a line per scene; exits 1 when a
rule did not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.faults.faulty import FaultyDisk
from tests.faults.images import make_images
from tests.faults.sweep import SCENES, Scene, Sweep, faults_of

NUMBERS_MAX: Final = 1_000
"""Of each kind of call in each scene: more than any scene makes, so all."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=int, default=NUMBERS_MAX, help="calls of each kind to fail, at most")
    parser.add_argument("--scene", choices=[scene.name for scene in SCENES], help="only this one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args()
    figures: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as made, closing(FaultyDisk(syncing=False)) as disk:
        sweep = Sweep(disk, Path(made) / "work", Path(made) / "images")
        make_images(sweep.images)
        for scene in SCENES:
            if options.scene in (None, scene.name):
                figures[scene.name] = _figures(sweep, scene, options.numbers)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    return 1 if any(found["wrong"] for found in figures.values()) else 0


def _figures(sweep: Sweep, scene: Scene, numbers_max: int) -> dict[str, int]:
    calls, states = sweep.calls_of(scene)
    found = {"calls": sum(calls.values()), "runs": 0, "refused": 0, "wrong": 0}
    for fault in faults_of(calls, numbers_max):
        found["runs"] += 1
        try:
            found["refused"] += bool(sweep.run(scene, fault, states).refused)
        except Exception as error:  # noqa: BLE001 - a sweep goes on, and tells of each
            found["wrong"] += 1
            print(f"{scene.name}: {fault}: {type(error).__name__}: {error}")
    print(f"{scene.name:24} {found}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
