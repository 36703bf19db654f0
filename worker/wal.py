"""What SQLite does not say of a write-ahead log: that it is broken in its middle, not at its end.

One rule: it is only read, and only before it is opened for writing.

Theory of operation.  For SQLite a log ends with the last whole commit before the first frame whose checksum does not
fit, since that is what a power cut leaves.  Whatever stands behind is passed over, and overwritten.  But our writer
syncs every commit before it writes the next one: what a power cut can take is only the last.  So a commit behind that
end with a frame that was written after it proves damage to what was acknowledged.

What was passed over once stays there until it is overwritten, with the same salts: of a batch that was rolled back, of
a commit that an earlier cut took.  A frame's checksum goes on from that of the frame before it, so such a frame, behind
a commit that overwrote a part of what it belongs to, does not fit to it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
PAGE_BYTES: Final = frozenset(2**power for power in range(9, 17))


def hides_commits(log: Path, frames: int, page_bytes: int) -> bool:
    """Whether commits that were synced lie behind the frames that SQLite takes from it.  `page_bytes`: of the
    database's pages."""
    with log.open("rb") as file:
        header = file.read(HEADER_BYTES)
        if not frames:
            header = _as_written(header, file.read(FRAME_HEADER_BYTES), page_bytes)
            file.seek(HEADER_BYTES)
        page, salts = int.from_bytes(header[8:12], "big"), header[16:24]
        if page not in PAGE_BYTES:
            return False  # No log, or one whose header was cut while all of it was in the database already.
        words = ">I" if header[3] & 1 else "<I"
        commit = b""
        file.seek(frames * (FRAME_HEADER_BYTES + page), 1)
        while len(head := file.read(FRAME_HEADER_BYTES)) == FRAME_HEADER_BYTES:
            content = file.read(page)
            is_of_this_use = head[8:16] == salts
            if commit and is_of_this_use and _checksum(head[:8] + content, commit[16:], words) == head[16:]:
                return True
            commit = head if is_of_this_use and head[4:8] != bytes(4) else b""
    return False


def _as_written(header: bytes, first_frame: bytes, page_bytes: int) -> bytes:
    """The header with what its database and its first frame say, if its checksum fits that: what it says else was
    damaged afterwards.  Of one that a power cut tore, parts are newer than the frames, and it does not fit."""
    for mark in (0, 1):
        start = header[:3] + bytes([header[3] & 0xFE | mark]) if len(header) == HEADER_BYTES else b""
        whole = start + header[4:8] + page_bytes.to_bytes(4, "big") + header[12:16] + first_frame[8:16]
        if len(whole) == 24 and _checksum(whole, bytes(8), ">I" if mark else "<I") == header[24:]:
            return whole + header[24:]
    return header


def _checksum(content: bytes, before: bytes, words: str) -> bytes:
    """SQLite's, over a frame, going on from that of the frame before; only the words are as the writer's machine has
    them."""
    first, second = struct.unpack(">II", before)
    numbers = (word for (word,) in struct.iter_unpack(words, content))
    for one, other in zip(numbers, numbers, strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return struct.pack(">II", first, second)
