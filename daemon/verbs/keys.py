"""The verb `keys`: what `tcp://` needs."""

from __future__ import annotations

import argparse
from pathlib import Path

from daemon.verbs.parsing import Verbs, add_verb
from daemon.verbs.screen import tell
from worker import runtime
from worker.curve import make_keys
from worker.settings import Settings


def add(verbs: Verbs) -> None:
    keys = add_verb(
        verbs, "keys", "perdure keys /etc/perdure/keys", "make the keys that tcp:// needs", None, act=new_keys
    )
    keys.add_argument("directory", metavar="DIRECTORY", type=Path, help="where; PERDURE_CURVE_DIR names it afterwards")
    keys.add_argument("--for", dest="machine", default="", metavar="NAME", help="a pair for one more machine's daemons")


def new_keys(_settings: Settings, options: argparse.Namespace) -> int:
    """A directory of CURVE keys, or one more pair in it."""
    made = make_keys(options.directory, options.machine)
    print("\n".join(f"made {path}" for path in made))
    if options.machine:
        tell(f"On that machine: {made[0].name} as daemon.secret, and worker.public.  Here {made[1].name} lets it in.")
    else:
        tell(
            f"Start worker and daemons with PERDURE_CURVE_DIR={options.directory.absolute()} PERDURE_WORKER_URL=tcp://…"
        )
    return runtime.EXIT_OK
