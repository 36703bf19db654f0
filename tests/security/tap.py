"""A tap on the wire between daemons and worker: passes every byte on, and keeps it.

One rule: neither program knows of it, so that what is kept is what crosses the socket, frames, handshakes and all.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PIECE_BYTES: Final = 65_536


class Tap:
    """Daemons connect to `path`, and it connects to the worker at `target`, if that is there."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
        self.path = self._directory / "tap"
        self.target = self._directory / "worker.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []
        self._streams: list[bytearray] = []
        self._ends: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing alone does not wake who waits in `accept` or `recv`.
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()
        shutil.rmtree(self._directory)

    def seen(self) -> dict[str, bytes]:
        """Everything that has crossed, by connection and direction."""
        return {f"stream {number} of the wire": bytes(stream) for number, stream in enumerate(self._streams)}

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            self._ends += [near, far]
            try:
                far.connect(str(self.target))
            except OSError:
                near.shutdown(socket.SHUT_RDWR)
                continue
            for source, sink in ((near, far), (far, near)):
                self._start(self._pass, source, sink)

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        kept = bytearray()
        self._streams.append(kept)
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                kept += piece
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
            source.shutdown(socket.SHUT_RD)

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()
