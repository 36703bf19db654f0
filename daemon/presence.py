"""This daemon can be called by name: whoever connects to its own socket is told how it stands (`worker/rollcall.py`).

One rule: it is the loop that answers requests which answers here, so that it is silent when that hangs; and where no
socket can be had, no request is the worse for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from worker.rollcall import reachable, room_of, socket_name
from worker.standing import DaemonStanding

BACKLOG: Final = 128
"""Calls that may wait for a loop that hangs: hours of a supervisor's, and then nobody learns more by another one."""


class Presence:
    def __init__(
        self, runtime_dir: str, instance: str, tell: Callable[[], DaemonStanding], log: logging.Logger
    ) -> None:
        self._room = room_of(runtime_dir) if runtime_dir else None
        self._name = socket_name(instance)
        self._tell = tell
        self._log = log
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def open(self) -> None:
        """Raises nothing."""
        if self._room is None:
            return
        try:
            listener = self._listener(self._room)
        except OSError as error:
            told = "%s: %s; `perdure status` may not see this daemon, and no supervisor that it hangs"
            self._log.warning(told, self._room / self._name, error.strerror or error)
            return
        self._server = await asyncio.start_unix_server(self._answer, sock=listener)

    def close(self) -> None:
        if self._server is None or self._room is None:
            return
        self._server.close()
        # A successor of the same name has put its own in this one's place.
        with contextlib.suppress(OSError):
            path = self._room / self._name
            if path.stat().st_ino == self._inode:
                path.unlink()

    def _listener(self, room: Path) -> socket.socket:
        """A socket that appears under its name when it can be connected to, in the place of a dead one's."""
        room.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with reachable(room) as place:
                partial = f"{place}/{self._name}.{os.getpid()}"
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial)
                made.bind(partial)
                os.chmod(partial, 0o600)
                made.listen(BACKLOG)
                self._inode = os.stat(partial).st_ino
                os.rename(partial, f"{place}/{self._name}")
        except OSError:
            made.close()
            raise
        made.setblocking(False)
        return made

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(msgspec.json.encode(self._tell()))
        writer.close()
