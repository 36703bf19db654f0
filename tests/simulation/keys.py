"""What the daemons of a simulated host share."""

from __future__ import annotations


class KeyFile:
    """`KeyFile` without a file: what every boot of this host finds."""

    def __init__(self) -> None:
        self._key: bytes | None = None
        self._early: bytes | None = None

    def read(self) -> bytes | None:
        return self._key

    def keep(self, key: bytes) -> None:
        self._key = key

    def early(self) -> bytes | None:
        return self._early

    def share_early(self, drawn: bytes) -> bytes:
        self._early = self._early or drawn
        return self._early
