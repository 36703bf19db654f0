"""The command line's way to the worker: one correction, sent until it is acknowledged.

One rule: the worker is the only one that writes, so without it nothing is changed; and what was sent is the same
request however often it is sent, so it is done once or not at all.

Theory of operation.  This process greets the worker as a daemon does and uses the same link, with an outbox that holds
one write.  The link sends again after silence, also to a worker that was restarted in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from importlib.metadata import version
from typing import Final

from daemon.outbox import Entry, Outbox
from daemon.worker_client import WorkerClient
from worker import protocol
from worker.curve import DaemonKeys
from worker.protocol import Act, Amend, Amended, Command
from worker.runtime import EXIT_UNAVAILABLE, EXIT_USAGE, Fatal

GREETING_SECONDS: Final = 5.0
"""How long a worker may take to be there: a supervisor needs about one to restart it."""
ANSWER_SECONDS: Final = 30.0
"""How long it may take to answer: a correction of a very long session takes seconds, a restart in between one."""


def amend(act: Act, address: str, keys: DaemonKeys | None) -> Amended:
    """What the worker has done.  Raises Fatal where it is not there, refuses, or does not say."""
    return asyncio.run(_amend(Amend(request=draw_id(), act=act), address, keys))


def draw_id() -> str:
    return secrets.token_hex(16)


async def _amend(body: Amend, address: str, keys: DaemonKeys | None) -> Amended:
    listener = _Listener()
    link = WorkerClient(
        address=address,
        keys=keys,
        hello=_hello(),
        outbox=Outbox(1),
        metrics=list,
        log=_silent_log(),
    )
    # Nothing here looks up keys: the newest ones need not be sent.
    link.preloaded.set()
    link.start(listener)
    running = asyncio.create_task(link.run())
    try:
        await _greeted(listener)
        link.put(Command.AMEND, body)
        return await _answered(listener)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        link.close()


async def _greeted(listener: _Listener) -> None:
    try:
        async with asyncio.timeout(GREETING_SECONDS):
            await listener.greeted.wait()
    except TimeoutError:
        remedy = "`perdure status` tells what runs, `perdure up` starts it"
        raise Fatal(
            EXIT_UNAVAILABLE, f"the worker does not answer; sessions are changed by it alone ({remedy})"
        ) from None


async def _answered(listener: _Listener) -> Amended:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            amended = await listener.answer
    except TimeoutError:
        remedy = "`perdure session log` tells whether it is done, else try again"
        raise Fatal(EXIT_UNAVAILABLE, f"the worker did not say in time that it is done; {remedy}") from None
    if amended.refusal:
        raise Fatal(EXIT_USAGE, amended.refusal)
    return amended


class _Listener:
    """Waits for one answer; of all else that a worker says only its greeting is of interest."""

    def __init__(self) -> None:
        self.greeted = asyncio.Event()
        self.answer: asyncio.Future[Amended] = asyncio.get_running_loop().create_future()

    def acknowledged(self, _entry: Entry, reply: protocol.Reply) -> None:
        if not self.answer.done():
            self.answer.set_result(reply.amended or Amended(refusal="the worker is too old to do this; upgrade it"))

    def refused(self, _entry: Entry, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_result(Amended(refusal=f"the worker refused it ({reason})"))

    def welcomed(self, welcome: protocol.Welcome, *, new_store: bool) -> None:
        self.greeted.set()

    def lost(self, lost: protocol.Lost) -> None: ...
    def indexed(self, entries: list[protocol.IndexEntry]) -> None: ...
    def amended(self) -> None: ...


def _hello() -> protocol.Hello:
    # An instance of its own: a boot of the same instance would count as its predecessor's death.
    boot = f"command-{secrets.token_hex(6)}"
    return protocol.Hello(boot=boot, instance=boot, version=version("perdure"), pid=os.getpid())


def _silent_log() -> logging.Logger:
    """What the link has to say of itself is not for people at a terminal: they get one line of ours."""
    log = logging.getLogger("daemon.amend")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    return log
