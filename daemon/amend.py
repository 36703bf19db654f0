"""An operator's correction, sent to the worker until it is acknowledged.

One rule: the worker is the only one that writes, so without it nothing is changed; and what was sent is the same
request however often it is sent, so it is done once or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from typing import Final

from daemon.errand import Listener, Refused, linked
from daemon.worker_client import WorkerClient
from worker.curve import DaemonKeys
from worker.protocol import Act, Amend, Amended, Command
from worker.runtime import EXIT_UNAVAILABLE, EXIT_USAGE, Fatal

GREETING_SECONDS: Final = 5.0
"""How long a worker may take to be there: a supervisor needs about one to restart it."""
ANSWER_SECONDS: Final = 30.0
"""How long it may take to answer: a correction of a very long session takes seconds, a restart in between one."""


def amend(act: Act, address: str, keys: DaemonKeys | None) -> Amended:
    """What the worker has done.  Raises Fatal where it is not there, refuses, or does not say."""
    with amending(address, keys) as send:
        return send(act)


@contextlib.contextmanager
def amending(address: str, keys: DaemonKeys | None) -> Iterator[Callable[[Act], Amended]]:
    """The same for one act after the other, over one link.  Between two of them nothing is said and nothing heard."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        link, listener = runner.run(stack.enter_async_context(linked(address, keys)))
        try:
            yield lambda act: runner.run(_amend(Amend(request=draw_id(), act=act), link, listener))
        finally:
            runner.run(stack.aclose())


def draw_id() -> str:
    return secrets.token_hex(16)


async def _amend(body: Amend, link: WorkerClient, listener: Listener) -> Amended:
    await _greeted(listener)
    listener.reply = asyncio.get_running_loop().create_future()
    link.put(Command.AMEND, body)
    return await _answered(listener)


async def _greeted(listener: Listener) -> None:
    try:
        async with asyncio.timeout(GREETING_SECONDS):
            await listener.greeted.wait()
    except TimeoutError:
        remedy = "`perdure status` tells what runs, `perdure up` or `perdure ctl start worker` starts it"
        raise Fatal(
            EXIT_UNAVAILABLE, f"the worker does not answer; sessions are changed by it alone ({remedy})"
        ) from None


async def _answered(listener: Listener) -> Amended:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reply = await listener.reply
    except TimeoutError:
        remedy = "`perdure session log` tells whether it is done, else try again"
        raise Fatal(EXIT_UNAVAILABLE, f"the worker did not say in time that it is done; {remedy}") from None
    except Refused as refused:
        raise Fatal(EXIT_USAGE, f"the worker refused it ({refused})") from None
    if reply.amended is None:
        raise Fatal(EXIT_USAGE, "the worker is too old to do this; upgrade it")
    if reply.amended.refusal:
        raise Fatal(EXIT_USAGE, reply.amended.refusal)
    return reply.amended
