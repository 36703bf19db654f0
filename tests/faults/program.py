"""One of the two programs in a faulty world, which a test makes and changes while it runs.

    python -m tests.faults.program worker|daemon FILE

One rule: the world is faulty, the program is as it is; only what stands between the two is replaced: the file system
under SQLite, the clocks, the limits of the process, and what a program of another version would say.

Theory.  FILE holds the weather as JSON; it is replaced whole, and looked at whenever the program asks the world for
something.  Limits and versions are those that the file names at the start.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from tests.faults.faulty import Call, Error, Fault, FaultyDisk
from worker import protocol
from worker.protocol import Command, Ping, Pong

NEWS: Final = b"NEWS"
"""A command that a later version of the protocol may have."""
NEW_FIELD: Final = "what_a_later_version_adds"


class Weather(Struct, frozen=True, kw_only=True):
    disk: Fault | None = None
    sync_seconds: float = 0.0
    clock_seconds: float = 0.0
    """How far the wall clock is off."""
    uptime_seconds: float = 0.0
    """How far the monotonic clock is ahead of the machine's: what waits for so long is over at once."""
    files_max: int = 0
    """Descriptors the process may have; 0: as many as it is used to."""
    may_take_more: bool = False
    """The limit is one that the process may raise."""
    memory_bytes: int = 0
    """Address space it may have beyond what it has at its start; 0: any."""
    speaks: str = ""
    """Another protocol, by its name."""
    is_later: bool = False
    """It is a later version of the same protocol."""


class Sky:
    """The file with the weather, for who makes it and for who is under it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._weather = Weather()
        self._stamp = (0, 0)

    def set(self, weather: Weather) -> None:
        """Replaced whole: no reader sees half of it."""
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(weather))
        partial.rename(self._path)

    def now(self) -> Weather:
        found = self._path.stat()
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self._weather, self._stamp = msgspec.json.decode(self._path.read_bytes(), type=Weather), stamp
        return self._weather


class _Disk(FaultyDisk):
    def __init__(self, sky: Sky) -> None:
        super().__init__()
        self._sky = sky
        self._armed: Fault | None = None

    def _fails(self, call: Call) -> Error | None:
        weather = self._sky.now()
        self.sync_seconds = weather.sync_seconds
        if weather.disk != self._armed:
            self._armed = weather.disk
            self.arm(weather.disk)
        return super()._fails(call)


def _set_clocks(sky: Sky) -> None:
    seconds, nanoseconds, monotonic = time.time, time.time_ns, time.monotonic
    time.time = lambda: seconds() + sky.now().clock_seconds
    time.time_ns = lambda: nanoseconds() + int(sky.now().clock_seconds * 1e9)
    # Timers go by the event loop's own clock, which is not replaced: they do not fire all at once.
    time.monotonic = lambda: monotonic() + sky.now().uptime_seconds


def _limit(weather: Weather) -> None:
    if weather.files_max:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = hard if weather.may_take_more else weather.files_max
        resource.setrlimit(resource.RLIMIT_NOFILE, (weather.files_max, most))
    if weather.memory_bytes:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + weather.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _speak(weather: Weather) -> None:
    if weather.speaks:
        vars(protocol)["PROTOCOL"] = weather.speaks.encode()
    if weather.is_later:
        vars(protocol)["encode"] = _later


def _later(command: Command, body: protocol.Body, sequence: int = 0, _encode: Any = protocol.encode) -> list[bytes]:
    """As a later version would write it; a sign of life every other time is a command of its own."""
    frames: list[bytes] = _encode(command, body, sequence)
    if isinstance(body, Ping | Pong) and int(time.monotonic()) % 2:
        frames[1] = NEWS
    frames[-1] = msgspec.json.encode(with_new_fields(msgspec.json.decode(frames[-1])))
    return frames


def with_new_fields(value: Any) -> Any:
    """A JSON value with a field more in every object, at any depth."""
    if isinstance(value, dict):
        return {name: with_new_fields(inner) for name, inner in value.items()} | {NEW_FIELD: {"since": 2, "of": [1]}}
    return [with_new_fields(inner) for inner in value] if isinstance(value, list) else value


def main() -> int:
    program, path = sys.argv[1:]
    sky = Sky(Path(path))
    weather = sky.now()
    _set_clocks(sky)
    _speak(weather)
    if program == "worker":
        from worker.__main__ import main as run
    else:
        from daemon.__main__ import main as run
    with contextlib.closing(_Disk(sky)):
        # Last, so that it counts from what the program needs in any case.
        _limit(weather)
        return run()


def command(program: str, sky: Path) -> list[str]:
    """What starts it, as `tests.processes.Gateway` wants it."""
    root = Path(protocol.__file__).parents[1]
    return ["env", f"PYTHONPATH={root}", sys.executable, "-P", "-m", "tests.faults.program", program, os.fspath(sky)]


if __name__ == "__main__":
    sys.exit(main())
