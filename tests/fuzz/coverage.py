"""Which ways through the program were taken: pairs of lines that ran one after the other.

One rule: only files of the program are watched line by line; everything else costs one look per call.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
PROGRAM: Final = (f"{ROOT}/daemon/", f"{ROOT}/worker/")


class Edges:
    """The pairs seen so far, and how many lines ran."""

    def __init__(self, folders: tuple[str, ...] = PROGRAM) -> None:
        self.lines = 0
        """Lines of the program that were executed: what an input costs, whatever else the machine does."""
        self._folders = folders
        self._is_watched: dict[str, bool] = {}
        self._seen: set[tuple[str, int, int]] = set()

    def __len__(self) -> int:
        return len(self._seen)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch this thread, and those that start meanwhile."""
        before = sys.gettrace()
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)
            threading.settrace(before)

    def _enter(self, frame: FrameType, _event: str, _argument: object) -> Any:
        name = frame.f_code.co_filename
        watched = self._is_watched.get(name)
        if watched is None:
            watched = self._is_watched[name] = name.startswith(self._folders)
        if not watched:
            return None
        last = 0

        def step(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal last
            if event == "line":
                self.lines += 1
                self._seen.add((name, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step
