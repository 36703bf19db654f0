"""A bar for whoever waits at a terminal.

One rule: it is for eyes alone: standard error, and only if that is a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

BAR_AFTER_SECONDS: Final = 1.0
BAR_CHARACTERS: Final = 30

Progress = Callable[[str, float], None]
"""Told what is being done, and how much of that is done, from 0 to 1."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar for whoever waits at a terminal, once it takes a moment; gone when it is done."""
    started, wanted, shown = time.monotonic(), sys.stderr.isatty(), False

    def show(what: str, done: float) -> None:
        nonlocal shown
        if wanted and time.monotonic() - started >= BAR_AFTER_SECONDS:
            shown = True
            bar = "#" * int(done * BAR_CHARACTERS)
            print(f"\r\x1b[K[{bar:<{BAR_CHARACTERS}}] {done:4.0%} {what}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
