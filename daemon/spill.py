"""Writes as the lines of a file, in which they outlive a daemon that was told to stop while no worker took them.

One rule: a line that is not whole is no write, and says nothing about any other line.

Theory of operation.  Only rows are spilled, BEGIN and END: what is not stored yet and can be learned nowhere else.  A
CLAIM asks a question for a daemon that is gone, and its answer comes with the BEGIN too, which carries the same naming.
A snapshot is fenced off once its sender is not the owner, and the rows say all that it does.

The first line names the format and says how many writes follow, so that a file that was cut at the end of a line is
known too.  Every other line is one write: checksum, command, and the body as it goes over the wire.  JSON has no line
breaks of its own; so damage costs the lines that it hit.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct

from worker import protocol
from worker.protocol import Booking, Command, ProtocolError

LINE_BYTES_MAX: Final = protocol.MESSAGE_BYTES_MAX + 64
"""A write goes over the wire as one frame; before it stand checksum and command."""
VERSION: Final = 1


class Write(Struct, frozen=True):
    """A row that the worker has not acknowledged."""

    command: Command
    body: Booking


class NotOurs(Exception):
    """The file holds something else."""


class Newer(Exception):
    """The file was written by a newer perdure: that one will read it."""


def lines_of(writes: Sequence[Write]) -> Iterator[bytes]:
    """The whole file, line by line."""
    yield b"perdure-spill/%d %d\n" % (VERSION, len(writes))
    for write in writes:
        _, name, _, body = protocol.encode(write.command, write.body)
        text = name + b" " + body
        yield b"%08x %s\n" % (zlib.crc32(text), text)


def promised(first_line: bytes) -> int:
    """How many writes follow.  Raises NotOurs or Newer."""
    found = _FIRST.fullmatch(first_line)
    if found is None:
        raise NotOurs
    if int(found[1]) > VERSION:
        raise Newer
    return int(found[2])


def write_of(line: bytes) -> Write | None:
    """The write of a line; None for one that is torn, damaged, or not understood."""
    found = _LINE.fullmatch(line)
    if found is None or int(found[1], 16) != zlib.crc32(found[2]):
        return None
    name, _, body = found[2].partition(b" ")
    try:
        message = protocol.decode([protocol.PROTOCOL, name, _NO_SEQUENCE, body], protocol.FROM_DAEMON)
    except ProtocolError:
        return None
    return Write(message.command, message.body) if isinstance(message.body, Booking) else None


_FIRST: Final = re.compile(rb"perdure-spill/([1-9][0-9]{0,8}) ([0-9]{1,9})\n")
_LINE: Final = re.compile(rb"([0-9a-f]{8}) ([^\n]+)\n")
_NO_SEQUENCE: Final = bytes(protocol.SEQUENCE_BYTES)
"""They are given new ones by whoever sends them again."""
