"""The provider itself: a thread with an event loop of its own, and what tests may ask of it.

One rule: it survives everything its clients do, and stopping it never hangs.

Theory: each request is first planned (`model`: what a provider answers), then delivered (`delivery`: how it gets
there); only the delivery waits.  A mistake in the provider itself, or a request that is not HTTP, is raised when it is
stopped, so that no test passes by accident.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final

from tests.provider.delivery import Delivery, Gates
from tests.provider.ledger import WAIT_SECONDS, Answered, Arrived, Ledger, add_usage
from tests.provider.model import Model, Override
from tests.provider.prompt_cache import PromptCache
from tests.provider.wire import ClientGone, Connection
from worker.protocol import Usage

HOST: Final = "127.0.0.1"
STOP_SECONDS: Final = 5.0
"""Starting and stopping take milliseconds; a thread that needs longer is stuck."""


class ScriptedProvider:
    """A context manager: the provider runs while it is entered."""

    def __init__(self, *, port: int = 0, seed: int = 0) -> None:
        self.port = port
        self._ledger = Ledger()
        self._model = Model(seed)
        self._gates = Gates()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection_count = 0
        self._failures: list[BaseException] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scripted-provider", daemon=True)

    def __enter__(self) -> ScriptedProvider:
        self._thread.start()
        if not self._started.wait(STOP_SECONDS) or self._failures:
            raise RuntimeError("the scripted provider did not start") from next(iter(self._failures), None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            raise RuntimeError("the scripted provider did not stop")
        if self._failures and error is None:
            raise RuntimeError("the scripted provider failed") from self._failures[0]

    @property
    def url(self) -> str:
        """The origin; to clients of OpenAI it is given with /v1."""
        return f"http://{HOST}:{self.port}"

    @property
    def requests(self) -> list[Arrived]:
        return list(self._ledger.requests)

    @property
    def answers(self) -> list[Answered]:
        """One for each request, in the same order."""
        return list(self._ledger.answers)

    def usage_total(self, wanted: Callable[[Answered], bool] = lambda answered: True) -> Usage:
        """The sum of what the wanted answers told of their usage; those that told none count nothing."""
        total = Usage()
        for answered in self.answers:
            if answered.usage is not None and wanted(answered):
                total = add_usage(total, answered.usage)
        return total

    def script(self, override: Override | None) -> None:
        """Ask this first for every request: a Canned answer or Verbatim bytes are sent as they are, a Script replaces
        the markers, None leaves the request to its markers.  It is called in the provider's thread."""
        self._model.override = override

    def forget_cache(self) -> None:
        """As if the time to live of every cache entry had passed."""
        self._model.cache = PromptCache()

    def release(self, name: str) -> None:
        """Open a gate for good: who waits there goes on, who comes later does not stop."""
        self._loop.call_soon_threadsafe(lambda: self._gates.event(name).set())

    def wait_held(self, name: str, timeout_seconds: float = WAIT_SECONDS) -> None:
        """Return once a request waits at this gate (stall, hold or slow-headers)."""
        self.wait_until(lambda: self._gates.waiting[name] > 0, timeout_seconds)

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float | None = WAIT_SECONDS) -> None:
        """Return once a condition on this provider's ledger holds; TimeoutError if it does not in time."""
        self._ledger.wait_until(condition, timeout_seconds)

    # -- in the provider's thread

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._failures.append(error)
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        server = await self._loop.create_server(lambda: Connection(self._opened), HOST, self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopped.wait()
        server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    def _opened(self, connection: Connection) -> None:
        self._connection_count += 1
        task = asyncio.ensure_future(self._converse(connection, self._connection_count))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    async def _converse(self, connection: Connection, number: int) -> None:
        """One request after the other, as long as both sides want to go on."""
        try:
            while (request := await connection.read_request()) is not None:
                if not await self._answer(connection, self._ledger.arrive(number, *request)):
                    break
            # What was written must leave before the end, else a cut would cut more than was asked for.
            await connection.finish()
        finally:
            connection.abort()

    async def _answer(self, connection: Connection, answered: Answered) -> bool:
        """Answer one request; False when the connection ends with it."""
        delivery = Delivery(connection, answered, self._gates, self._ledger)
        try:
            return await delivery.deliver(self._model.plan(answered), self._model.headers(answered.request))
        except ClientGone:
            answered.client_closed = not answered.complete
            return False
        finally:
            answered.ended = True
            self._ledger.announce()
