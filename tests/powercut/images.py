"""The disks that a power cut may leave behind: what was synced, and any part of what was not.

One rule: nothing here touches a file.  Operations come in, contents go out; chance is an argument.

Theory of operation.  A `Disk` follows the operations.  What a sync covered is durable.  Each change since may have
reached the disk or not, whatever became of the others: kept, dropped, and so in any order; of a write also only some
sectors, or only the size to which it made the file grow.  So an image is the durable disk and any *selection* of the
pending changes, done in their order.  Two promises of real disks are assumed, which SQLite assumes too: a sector is
written whole or not at all, and what lies beside the written bytes in it does not change (powersafe overwrite).

A directory is a disk of its own: that a file was created, renamed or deleted is durable when the directory was synced,
and not before, also where the file itself was synced.  Real file systems keep more order than that; whatever survives
here survives there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations
from typing import Final, NamedTuple

SECTOR_BYTES: Final = 512
"""The smallest unit that disks write whole; with larger sectors fewer images are possible, not more."""
SUBSETS_OF_MAX: Final = 3
"""Pending changes up to which every subset is taken: 8 images.  Beyond, the extremes and a sample."""

Image = dict[str, bytes]
"""The files of a folder, by name."""


class Created(NamedTuple):
    name: str
    number: int


class Renamed(NamedTuple):
    name: str
    becomes: str
    number: int


class Deleted(NamedTuple):
    name: str


class DirectorySynced(NamedTuple):
    pass


class Written(NamedTuple):
    number: int
    offset: int
    data: bytes


class Truncated(NamedTuple):
    number: int
    size: int


class Grown(NamedTuple):
    """What is left of a write of which only the new size of the file came to the disk: zeros."""

    number: int
    size: int


class Synced(NamedTuple):
    number: int


Naming = Created | Renamed | Deleted
Change = Written | Truncated | Grown
Pending = Naming | Change
Operation = Pending | Synced | DirectorySynced


@dataclass
class File:
    durable: bytes = b""
    pending: list[Change] = field(default_factory=list)


class Disk:
    """A folder's files on a disk, as far as they are durable, and what is pending."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self.names = {name: number for number, name in enumerate(contents)}
        """What is durable of the directory: which file a name means."""
        self.files = {self.names[name]: File(content) for name, content in contents.items()}
        self._namings: list[Naming] = []

    def apply(self, operation: Operation) -> None:
        match operation:
            case Created(number=number):
                self.files[number] = File()
                self._namings.append(operation)
            case Renamed() | Deleted():
                self._namings.append(operation)
            case DirectorySynced():
                self.names = _named(self.names, self._namings)
                self._namings = []
            case Synced(number=number):
                file = self.files[number]
                file.durable, file.pending = _changed(file.durable, file.pending), []
            case _:
                self.files[operation.number].pending.append(operation)

    def pending(self) -> list[Pending]:
        """What a cut may take or leave: of files that some name may still mean."""
        reachable = {*self.names.values(), *(each.number for each in self._namings if not isinstance(each, Deleted))}
        return [*self._namings, *(each for number in sorted(reachable) for each in self.files[number].pending)]

    def image(self, kept: Sequence[Pending]) -> Image:
        """The folder if exactly these of the pending changes came to the disk."""
        names = _named(self.names, [each for each in kept if isinstance(each, Naming)])
        changes: dict[int, list[Change]] = {number: [] for number in names.values()}
        for each in kept:
            if isinstance(each, Change) and each.number in changes:
                changes[each.number].append(each)
        return {name: _changed(self.files[number].durable, changes[number]) for name, number in sorted(names.items())}


def selections(pending: Sequence[Pending], draw: random.Random) -> Iterator[Sequence[Pending]]:
    """Ways for a cut to leave what is pending, without end: the extremes, all subsets of a few, then drawn ones."""
    yield pending
    yield ()
    if not pending:
        return
    yield _torn_last(pending, draw)
    if len(pending) <= SUBSETS_OF_MAX:
        for size in range(1, len(pending)):
            yield from combinations(pending, size)
    while True:
        yield draw.choice(_SAMPLES)(pending, draw)


def digest(image: Image) -> bytes:
    found = blake2b(digest_size=16)
    for name, content in image.items():
        found.update(f"{name} {len(content)} ".encode())
        found.update(content)
    return found.digest()


# -- one selection each --------------------------------------------------------------------------------------------


def _torn_last(pending: Sequence[Pending], draw: random.Random) -> Sequence[Pending]:
    return (*pending[:-1], *_torn(pending[-1], draw))


def _torn_prefix(pending: Sequence[Pending], draw: random.Random) -> Sequence[Pending]:
    return _torn_last(pending[: draw.randrange(len(pending)) + 1], draw)


def _one_missing(pending: Sequence[Pending], draw: random.Random) -> Sequence[Pending]:
    missing = draw.randrange(len(pending))
    return (*pending[:missing], *pending[missing + 1 :])


def _one_torn(pending: Sequence[Pending], draw: random.Random) -> Sequence[Pending]:
    torn = draw.randrange(len(pending))
    return (*pending[:torn], *_torn(pending[torn], draw), *pending[torn + 1 :])


def _one_kept(pending: Sequence[Pending], draw: random.Random) -> Sequence[Pending]:
    return (draw.choice(pending),)


def _any_subset(pending: Sequence[Pending], draw: random.Random) -> Sequence[Pending]:
    share = draw.random()
    return [each for each in pending if draw.random() < share]


def _any_subset_torn(pending: Sequence[Pending], draw: random.Random) -> Sequence[Pending]:
    kept = _any_subset(pending, draw)
    return [part for each in kept for part in (_torn(each, draw) if draw.random() < 0.3 else (each,))]


def _torn(change: Pending, draw: random.Random) -> Sequence[Pending]:
    """Some sectors of a write, or none of it but the size it gave the file.  What is no write is whole or nothing."""
    if not isinstance(change, Written):
        return ()
    if draw.random() < 0.2:
        return (Grown(change.number, change.offset + len(change.data)),)
    parts = list(sectors(change))
    at = draw.randrange(len(parts) + 1)
    match draw.randrange(3):
        case 0:
            return parts[:at]
        case 1:
            return parts[at:]
        case _:
            return [part for part in parts if draw.random() < 0.5]


def sectors(written: Written) -> Iterator[Written]:
    start, end = written.offset, written.offset + len(written.data)
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield Written(written.number, start, written.data[start - written.offset : stop - written.offset])
        start = stop


_SAMPLES: Final = (_torn_prefix, _one_missing, _one_torn, _one_kept, _any_subset, _any_subset_torn)


# -- what changes do -----------------------------------------------------------------------------------------------


def _named(names: Mapping[str, int], namings: Sequence[Naming]) -> dict[str, int]:
    found = dict(names)
    for naming in namings:
        match naming:
            case Created(name=name, number=number):
                found[name] = number
            case Renamed(name=name, becomes=becomes, number=number):
                found.pop(name, None)
                found[becomes] = number
            case Deleted(name=name):
                found.pop(name, None)
    return found


def _changed(content: bytes, changes: Sequence[Change]) -> bytes:
    if not changes:
        return content
    found = bytearray(content)
    for change in changes:
        match change:
            case Written(offset=offset, data=data):
                found.extend(bytes(max(0, offset - len(found))))
                found[offset : offset + len(data)] = data
            case Truncated(size=size):
                del found[size:]
                found.extend(bytes(size - len(found)))
            case Grown(size=size):
                found.extend(bytes(max(0, size - len(found))))
    return bytes(found)
