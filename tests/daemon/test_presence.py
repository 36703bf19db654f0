"""Calling daemons by name: who answers is heard, who hangs is named by the kernel, who is gone is not there."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from daemon.presence import BACKLOG, Presence
from worker.rollcall import call, room_of, socket_name
from worker.standing import Called, DaemonStanding

PATIENCE_SECONDS: Final = 0.2
"""For those that never answer."""
LOG: Final = logging.getLogger("test")
STANDING: Final = DaemonStanding(instance="daemon-1@here", pid=7, version="9", started_at=5, state="draining")


@asynccontextmanager
async def present(runtime_dir: Path, instance: str = "daemon-1@here") -> Any:
    presence = Presence(str(runtime_dir), instance, lambda: STANDING, LOG)
    await presence.open()
    try:
        yield presence
    finally:
        presence.close()


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a loop that has stopped going round."""
    room = room_of(str(tmp_path))
    room.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(room / socket_name("daemon-2@here")))
        listener.listen(1)
        yield listener


def test_daemon_that_is_called_says_how_it_stands(tmp_path: Path) -> None:
    async def called() -> list[Called]:
        async with present(tmp_path):
            return await asyncio.to_thread(call, str(tmp_path))

    assert asyncio.run(called()) == [
        Called(instance="daemon-1@here", pid=os.getpid(), is_heard=True, standing=STANDING)
    ]
    assert call(str(tmp_path)) == [], "it took its socket along"


def test_daemon_that_hangs_is_named_and_keeps_nobody_from_the_others(tmp_path: Path, silent: socket.socket) -> None:
    async def called() -> list[Called]:
        async with present(tmp_path):
            return await asyncio.to_thread(call, str(tmp_path), PATIENCE_SECONDS)

    well, hung = asyncio.run(called())
    assert well.is_heard
    assert hung == Called(instance="daemon-2@here", pid=os.getpid())


def test_daemon_whose_queue_of_calls_is_full_is_not_heard(tmp_path: Path, silent: socket.socket) -> None:
    callers = []
    for _ in range(BACKLOG):
        callers.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        callers[-1].setblocking(False)
        if callers[-1].connect_ex(silent.getsockname()):
            break
    (hung,) = call(str(tmp_path), PATIENCE_SECONDS)
    for caller in callers:
        caller.close()
    assert (hung.instance, hung.is_heard) == ("daemon-2@here", False)


def test_daemon_that_hangs_up_without_a_word_is_alive(tmp_path: Path, silent: socket.socket) -> None:
    """One that has no descriptor left takes a call and drops it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waits_first:
        waits_first.connect(silent.getsockname())

        async def called() -> list[Called]:
            calling = asyncio.create_task(asyncio.to_thread(call, str(tmp_path), 10.0))
            for _ in range(2):
                (await asyncio.to_thread(silent.accept))[0].close()
            return await calling

        (found,) = asyncio.run(called())
    assert (found.is_heard, found.standing) == (True, None)


def test_daemon_that_was_killed_is_not_there(tmp_path: Path, silent: socket.socket) -> None:
    silent.close()
    assert call(str(tmp_path)) == []


def test_successor_takes_the_name_and_keeps_it_when_the_former_ends(tmp_path: Path) -> None:
    async def called() -> list[Called]:
        former = Presence(str(tmp_path), "daemon-1@here", lambda: DaemonStanding(instance="", pid=1, version=""), LOG)
        await former.open()
        async with present(tmp_path):
            former.close()
            return await asyncio.to_thread(call, str(tmp_path))

    assert [each.standing for each in asyncio.run(called())] == [STANDING]


@pytest.mark.parametrize("instance", ["daemon@127.0.0.1:7373@here", "../../up", "ä b/c", "x" * 500])
def test_any_name_and_any_depth_will_do(instance: str, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)

    async def called() -> list[Called]:
        async with present(deep, instance):
            return await asyncio.to_thread(call, str(deep))

    (found,) = asyncio.run(called())
    assert found.is_heard and instance.startswith(found.instance)
    assert list(deep.iterdir()) == [room_of(str(deep))]


def test_daemon_that_can_have_no_socket_goes_on_without_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "daemons").write_text("a file")

    async def opened() -> None:
        async with present(tmp_path):
            pass

    asyncio.run(opened())
    assert "may not see this daemon" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root owns what nobody else can write to")
@pytest.mark.parametrize(("mode", "seen"), [(0o755, ["daemon-1@here"]), (0o777, [])])
def test_daemons_of_systemd_are_called_beside_the_worker_unless_anybody_could_have_put_them_there(
    mode: int, seen: list[str], tmp_path: Path
) -> None:
    async def called() -> list[Called]:
        async with present(tmp_path / "perdure-daemon"):
            return await asyncio.to_thread(call, str(tmp_path / "perdure"))

    tmp_path.chmod(mode)
    assert [each.instance for each in asyncio.run(called())] == seen
