"""What standard output is: how wide, and whether somebody sees colours on it; and what is said beside it.

One rule: what goes into a file or a pipe is plain, and 80 columns wide, whoever looks.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import TextIO

from daemon.columns import WIDTH, WIDTH_MAX, Paint, Screen, fitted


def screen() -> Screen:
    """Of standard output."""
    width = shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
    return Screen(width=min(width, WIDTH_MAX), paint=paint_for(sys.stdout, os.environ))


def tell(text: str) -> None:
    """Sentences, as wide as standard output."""
    print(fitted(text, screen().width))


def say(text: str) -> None:
    """A line for people, where it does not get between what a program reads."""
    print(f"perdure: {text}", file=sys.stderr, flush=True)


def paint_for(stream: TextIO, environ: Mapping[str, str]) -> Paint:
    """Colours are for terminals that know them (no-color.org; CLICOLOR_FORCE and FORCE_COLOR ask for them anyway)."""
    if environ.get("NO_COLOR"):
        return Paint()
    if any(environ.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return Paint(is_on=True)
    return Paint(is_on=stream.isatty() and environ.get("TERM", "dumb") != "dumb")
