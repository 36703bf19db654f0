"""The command line's way to the worker: a link of its own, for one write or one question.

One rule: it greets as what it is, a command that comes and goes, and nobody waits longer than was agreed.

Theory of operation.  This process uses the same link as a daemon, with an outbox that holds one write.  The link sends
again after silence, also to a worker that was restarted in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator
from importlib.metadata import version

from daemon.outbox import Entry, Outbox
from daemon.worker_client import WorkerClient
from worker import protocol
from worker.curve import DaemonKeys


class Refused(Exception):
    """The worker does not take the write; the message says why."""


class Listener:
    """Waits for one reply; of all else that a worker says only its greeting is of interest."""

    def __init__(self) -> None:
        self.greeted = asyncio.Event()
        self.reply: asyncio.Future[protocol.Reply] = asyncio.get_running_loop().create_future()
        """Fails with Refused."""

    def acknowledged(self, _entry: Entry, reply: protocol.Reply) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)

    def refused(self, _entry: Entry, reason: str) -> None:
        if not self.reply.done():
            self.reply.set_exception(Refused(reason))

    def welcomed(self, welcome: protocol.Welcome, *, new_store: bool) -> None:
        self.greeted.set()

    def lost(self, lost: protocol.Lost) -> None: ...
    def indexed(self, entries: list[protocol.IndexEntry]) -> None: ...
    def amended(self) -> None: ...


@contextlib.asynccontextmanager
async def linked(address: str, keys: DaemonKeys | None) -> AsyncIterator[tuple[WorkerClient, Listener]]:
    """A link to the worker, running; it may not have been greeted yet."""
    listener = Listener()
    link = WorkerClient(address=address, keys=keys, hello=_hello(), outbox=Outbox(1), metrics=list, log=_silent_log())
    # Nothing here looks up keys: the newest ones need not be sent.
    link.preloaded.set()
    link.start(listener)
    running = asyncio.create_task(link.run())
    try:
        yield link, listener
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        link.close()


def ask(query: protocol.Query, address: str, keys: DaemonKeys | None, patience_seconds: float) -> bytes | None:
    """What the worker answers, as JSON; None where it does not within that time."""
    return asyncio.run(_ask(query, address, keys, patience_seconds))


async def _ask(query: protocol.Query, address: str, keys: DaemonKeys | None, patience_seconds: float) -> bytes | None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_seconds), linked(address, keys) as (link, listener):
            await listener.greeted.wait()
            answer = await link.query(query, patience_seconds)
            return bytes(answer.body) if answer is not None and answer.answered else None
    return None


def _hello() -> protocol.Hello:
    # An instance of its own: a boot of the same instance would count as its predecessor's death.
    boot = f"command-{secrets.token_hex(6)}"
    return protocol.Hello(boot=boot, instance=boot, version=version("perdure"), pid=os.getpid(), is_daemon=False)


def _silent_log() -> logging.Logger:
    """What the link has to say of itself is not for people at a terminal: they get one line of ours."""
    log = logging.getLogger("daemon.errand")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    return log
