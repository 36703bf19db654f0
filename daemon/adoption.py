"""Sends what daemons left behind that ended while no worker took their writes.

One rule: a file stays until every write in it that can be read was acknowledged; whoever dies in the middle leaves it
to the next one.

Theory of operation.  Adopted writes pass through the outbox like any other, as writes of this daemon: rows say
themselves whose they are.  Nothing is taken while the worker is not heard, and then only a few at a time: what waits
lies safe in its file, and an outbox is for turns that are answered now.  A running daemon looks on every tick, so what
a sibling left arrives without a start; one that starts looks first of all, before it identifies anybody, since a
conversation may go on from what is in those files.  Once a file is begun its pace is the worker's: the next few follow
when the last ones were acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from daemon.outbox import Outbox
from daemon.spillfiles import SpillFile, SpillFiles
from daemon.worker_client import WorkerClient

ADOPTED_AT_ONCE: Final = 100
"""Adopted writes in the outbox: about three milliseconds of reading, and a commit that nobody notices."""


class Adoption:
    def __init__(
        self,
        files: SpillFiles,
        *,
        link: WorkerClient,
        outbox: Outbox,
        count: Callable[[int], None],
        log: logging.Logger,
    ) -> None:
        self.is_first_look_over = asyncio.Event()
        """What was there at the start is stored."""
        self._files = files
        self._link = link
        self._outbox = outbox
        self._count = count
        self._log = log
        self._file: SpillFile | None = None
        self._sequences: list[int] = []

    async def run(self, interval_seconds: Callable[[], float]) -> None:
        """Look once the worker is there, and then once per interval, as it is then, until cancelled."""
        await self._link.preloaded.wait()
        while True:
            while self._link.is_heard and (file := self._files.oldest()):
                await self._adopt(file)
            self.is_first_look_over.set()
            await asyncio.sleep(interval_seconds())

    def close(self) -> None:
        """After `run` was cancelled and the outbox had its time: let go of the file that was being read."""
        if self._file is None:
            return
        if self._file.at_end and not any(sequence in self._outbox for sequence in self._sequences):
            self._files.end(self._file)
        else:
            self._file.close()
        self._file = None

    async def _adopt(self, file: SpillFile) -> None:
        self._file = file
        self._log.info("%s: %d writes of a daemon that has ended are sent to the worker", file.path, file.promised)
        while not file.at_end:
            writes = file.read(ADOPTED_AT_ONCE)
            self._sequences = [self._link.adopt(write.command, write.body) for write in writes]
            self._count(len(writes))
            await self._link.taken(self._sequences)
        self._log.info("%s: %d writes are stored", file.path, file.count)
        self._files.end(file)
        self._file = None
