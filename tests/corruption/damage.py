"""Where bits are flipped: every page of a database and every frame of its log, at each kind of place that a page has.

One rule: all chance comes from the seed; every place has a name, for the report.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import apsw

PAGE_BYTES: Final = 4_096
FILE_HEADER_BYTES: Final = 100
LOG_HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
FRAME_BYTES: Final = FRAME_HEADER_BYTES + PAGE_BYTES
LOG: Final = "log"
LOG_END: Final = "end of the log"
INTERIOR: Final = (2, 5)
LEAF: Final = (10, 13)
KINDS: Final = ("header", "pointers", "content", "anywhere")


class Flip(NamedTuple):
    """One bit of one file."""

    suffix: str
    """Of the file: "" or "-wal"."""
    offset: int
    bit: int
    tree: str
    """The table or index whose page it is; of a log, whether it is near its end."""
    kind: str

    def apply(self, path: Path) -> None:
        file = path.with_name(path.name + self.suffix)
        with file.open("r+b") as opened:
            opened.seek(self.offset)
            (byte,) = opened.read(1)
            opened.seek(self.offset)
            opened.write(bytes([byte ^ (1 << self.bit)]))


def flips_of_pages(path: Path, chance: random.Random, tree: str = "") -> Iterator[Flip]:
    """One flip of every kind for every page, page by page; or only for those of one table or index."""
    content = path.read_bytes()
    trees = _trees(path)
    for number in range(1, len(content) // PAGE_BYTES + 1):
        if tree not in ("", trees.get(number)):
            continue
        start = (number - 1) * PAGE_BYTES
        page = content[start : start + PAGE_BYTES]
        for kind in KINDS:
            first, last = _range(page, number, kind)
            place = start + chance.randrange(first, max(first + 1, last))
            yield Flip("", place, chance.randrange(8), trees.get(number, "free"), kind)


def flips_of_frames(path: Path, chance: random.Random) -> Iterator[Flip]:
    """One flip in the header of the log, and two in every frame."""
    content = path.with_name(f"{path.name}-wal").read_bytes()
    end = _log_end(content)
    yield Flip("-wal", chance.randrange(LOG_HEADER_BYTES), chance.randrange(8), LOG_END, "log header")
    for start in range(LOG_HEADER_BYTES, len(content), FRAME_BYTES):
        place = LOG if start < end else LOG_END
        yield Flip("-wal", start + chance.randrange(FRAME_HEADER_BYTES), chance.randrange(8), place, "frame header")
        offset = start + FRAME_HEADER_BYTES + chance.randrange(PAGE_BYTES)
        yield Flip("-wal", offset, chance.randrange(8), place, "frame")


def _log_end(content: bytes) -> int:
    """Where the last commit but one has its commit mark: what is damaged from there on, a power cut could have left."""
    starts = range(LOG_HEADER_BYTES, len(content), FRAME_BYTES)
    marks = [start for start in starts if content[start + 4 : start + 8] != bytes(4)]
    return marks[-2]


def _range(page: bytes, number: int, kind: str) -> tuple[int, int]:
    """First and one past the last byte of that part of a page; all of it where it has no such part."""
    start = FILE_HEADER_BYTES if number == 1 else 0
    flag = page[start]
    if kind == "anywhere" or flag not in (*INTERIOR, *LEAF):
        return 0, PAGE_BYTES
    header = start + (12 if flag in INTERIOR else 8)
    cells = int.from_bytes(page[start + 3 : start + 5], "big")
    contents = int.from_bytes(page[start + 5 : start + 7], "big") or 65_536
    if kind == "header":
        return 0, header
    return (header, header + 2 * cells) if kind == "pointers" else (contents, PAGE_BYTES)


def _trees(path: Path) -> dict[int, str]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    found = dict(connection.execute("SELECT pageno, name FROM dbstat"))
    connection.close()
    return found
