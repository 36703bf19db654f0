"""The door of the command `perdure`: are the packages `daemon` and `worker`, as Python finds them here, perdure's own?

One rule: it is decided before anything of them is imported, and by their files, not by what they do.

Theory.  Import names are generic here, and others use them too: python-daemon brings a `daemon`, and any project may
have a `worker` that PYTHONPATH leads to.  Whichever is found first is imported, by the command and by the processes
that it starts; and what a stranger's `worker` does to a database is not a thing to find out.  This name nobody else
has.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

EXIT_CONFIGURATION: Final = 78
PACKAGES: Final = ("daemon", "worker")


def main() -> int:
    for name in PACKAGES:
        if (trouble := stranger(name, Path(__file__).parent)) is not None:
            print(f"perdure: {trouble}", file=sys.stderr)  # noqa: T201 - the line a person reads
            return EXIT_CONFIGURATION
    from daemon.cli import main as run

    return run()


def stranger(name: str, home: Path) -> str | None:
    """Why a package is not the one that stands beside this file, with the remedy; None if it is."""
    spec = find_spec(name)
    origin = Path(spec.origin) if spec and spec.origin else None
    if origin is None or not origin.exists():
        return f"the package {name!r} is missing in {home}, or was replaced there; install perdure anew"
    # Installed on top of each other, two distributions share a directory: then the file tells.
    if origin.parent.parent.samefile(home) and origin.read_text("utf-8", "replace").startswith('"""perdure'):
        return None
    others = [found for found in metadata.packages_distributions().get(name, ()) if found != "perdure"]
    whose = f"{' and '.join(sorted(set(others)))}'s" if others else "not perdure's"
    remedy = "unset PYTHONPATH" if os.environ.get("PYTHONPATH") else "install perdure into an environment of its own"
    return f"the package {name!r} in {origin.parent} is {whose}; {remedy}"


if __name__ == "__main__":
    sys.exit(main())
