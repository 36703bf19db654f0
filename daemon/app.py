"""One request daemon: its parts, the order in which they start, and the order in which they stop.

One rule: what runs in the background takes the process with it when it fails; a supervisor restarts it, and nothing
that matters was only in memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from daemon.admission import Admission
from daemon.adoption import Adoption
from daemon.cost import Prices
from daemon.gateway import Gateway
from daemon.http_server import CannotListen, HttpServer
from daemon.identity import Rules
from daemon.index import KeyIndex
from daemon.keyfile import KeyFile
from daemon.metrics import Metrics
from daemon.outbox import Outbox
from daemon.own import OwnPaths
from daemon.presence import Presence
from daemon.providers import body_fields
from daemon.sessions import Sessions
from daemon.spill import Write
from daemon.spillfiles import CanNotKeep, SpillFiles, spill_directories
from daemon.upstream import Upstream
from daemon.warmer import Warmer
from daemon.worker_client import WorkerClient
from worker import protocol
from worker.curve import daemon_keys
from worker.logs import start_logging
from worker.metrics import families_of
from worker.notify import PULSE_SECONDS, Notifier
from worker.protocol import Booking
from worker.runtime import place_of
from worker.settings import Settings
from worker.standing import DaemonStanding

IDLE_DRAIN_SECONDS: Final = 2.0
"""How long idle connections live on after SIGTERM: a request may already be on its way on them."""
FLUSH_SECONDS: Final = 3.0
"""How long the last writes may take to be acknowledged before they are kept in a file: a worker that was killed is back
in a second or two."""
START_SECONDS: Final = 30.0
"""How long a start may take from when it listens; it takes `own.PRELOAD_WAIT_SECONDS` at most, on a machine that has
time for it."""
STOP_MARGIN_SECONDS: Final = 10.0
"""What a stop may take beyond its limits on a machine that is busy."""
SNAPSHOTS_PER_TURN: Final = 100
"""Snapshots put into the outbox in one turn of the loop: about three milliseconds."""


class Phase(Enum):
    """The process's life, as one sentence."""

    STARTING = "it listens, but holds turns back until it knows the newest keys, then it is…"
    RUNNING = "…answering, until it is told to stop and is…"
    DRAINING = "…taking nothing new and letting streams finish, and then…"
    FLUSHING = "…writing what changed and waiting for the worker's word, and then it is…"
    STOPPED = "…gone, with nothing lost"


_MOVES: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.DRAINING}),
    Phase.RUNNING: frozenset({Phase.DRAINING}),
    Phase.DRAINING: frozenset({Phase.FLUSHING}),
    Phase.FLUSHING: frozenset({Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
}


class BackgroundFailed(Exception):
    """Something that must run for as long as the process does has ended."""


class WritesLeft(Exception):
    """The worker was not there to take the last writes, and no file took them either."""

    def __init__(self, count: int, trouble: str) -> None:
        told = f"{count} writes are lost: no worker took them, and they could not be kept in a file"
        super().__init__(f"{told} ({trouble}); stop daemons before the worker, or set PERDURE_SPILL_DIR")


class Daemon:
    """Everything one daemon is made of.  Made inside a running event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        instance: str,
        listen_fd: int | None,
        log: logging.Logger,
        notifier: Notifier | None = None,
    ) -> None:
        self.phase = Phase.STARTING
        self.settings = settings
        """Those in force."""
        self._listen_fd = listen_fd
        self._log = log
        self._notifier = notifier or Notifier()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._lost: WritesLeft | None = None
        self._cutting: asyncio.Task[None] | None = None
        self._background: dict[str, asyncio.Task[None]] = {}
        """By name; what runs for as long as the process does."""
        boot = f"{instance}-{secrets.token_hex(6)}"
        # The first daemon of every machine has the same name; the worker takes two of one name for one.
        self._instance = f"{instance}@{os.uname().nodename}"
        self._version = version("perdure")
        self._started_at = _wall()
        self._outbox = Outbox(settings.outbox_writes)
        self._metrics = Metrics()
        self._sessions = _sessions(settings, log)
        self._link = WorkerClient(
            address=settings.worker_url,
            keys=daemon_keys(settings.worker_url, settings.curve_dir),
            hello=self._hello(boot),
            outbox=self._outbox,
            metrics=self._families,
            state=lambda: self.phase.name.lower(),
            refused=self._metrics.refused.inc,
            latches=lambda: self._warmer.latches(),
            log=log,
        )
        self._sessions.start(self._link)
        self._spill_files = SpillFiles(spill_directories(settings), log)
        self._adoption = Adoption(
            self._spill_files, link=self._link, outbox=self._outbox, count=self._metrics.adopted.inc, log=log
        )
        self._own = OwnPaths(
            link=self._link,
            metrics=self._families,
            standing=self._standing,
            account_aliases=settings.account_aliases,
            adopted=self._adoption.is_first_look_over,
            warming=lambda: self._warmer.shown(),
        )
        self._presence = Presence(settings.runtime_dir, self._instance, self._standing, log)
        self._upstream = Upstream(ca_file=settings.ca_file)
        self._server = HttpServer(self._metrics.requested)
        self._warmer = self._made_warmer(boot)
        self._gateway = self._made_gateway(boot)

    def _made_gateway(self, boot: str) -> Gateway:
        return Gateway(
            boot=boot,
            urls=self.settings.provider_urls,
            admission=Admission(self.settings.token, self.settings.hosts),
            body_bytes_max=self.settings.body_bytes,
            rules=rules_of(self.settings),
            own=self._own,
            sessions=self._sessions,
            link=self._link,
            upstream=self._upstream,
            warmer=self._warmer,
            prices=Prices(self.settings.models),
            metrics=self._metrics,
            now=_wall,
            draw_id=lambda: secrets.token_hex(16),
            log=self._log,
        )

    def _made_warmer(self, boot: str) -> Warmer:
        return Warmer(
            boot=boot,
            sessions=self._sessions,
            link=self._link,
            upstream=self._upstream,
            prices=Prices(self.settings.models),
            metrics=self._metrics,
            now=_wall,
            steady=time.monotonic,
            draw_id=lambda: secrets.token_hex(16),
            key=secrets.token_bytes(32),
            log=self._log,
        )

    async def run(self) -> None:
        """Serve until `stop`.  Raises CannotListen, WritesLeft, or BackgroundFailed."""
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        try:
            await self._server.start(
                self._gateway.handle,
                host=self.settings.listen_host,
                port=self.settings.listen_port,
                listen_fd=self._listen_fd,
            )
        except CannotListen:
            await self._upstream.close()
            raise
        self._link.start(self._sessions)
        self._background["link"] = asyncio.create_task(self._link.run(), name="link")
        self._background["pulse"] = asyncio.create_task(tick(PULSE_SECONDS / 2, self._pulse), name="pulse")
        adopting = self._adoption.run(lambda: self.settings.tick_seconds)
        self._background["adoption"] = asyncio.create_task(adopting, name="adoption")
        self._background["warmer"] = asyncio.create_task(self._warmer.run(), name="warmer")
        for task in self._background.values():
            task.add_done_callback(self._on_background_end)
        self._start_tick()
        await self._presence.open()
        self._log.info("listening on %s", self._server.address)
        self._notifier.busy(self.status(), within_seconds=START_SECONDS)
        await self._own.wait_for_preload()
        if self.phase is Phase.STARTING:
            self._become(Phase.RUNNING)
        self._log.info("%s", self._own.readiness()["status"])
        if not self._stop.is_set():
            self._notifier.ready(self.status())
        await self._stop.wait()
        self._background["adoption"].cancel()
        await self._shut_down()
        if self._lost is not None:
            raise self._lost
        if self._failure is not None:
            raise BackgroundFailed(place_of(self._failure)) from self._failure

    def stop(self) -> None:
        """Begin to drain; a second call ends the patience with streams that still run."""
        if self._stop.is_set():
            self._log.warning("told to stop again: streams are cut")
            self._cutting = asyncio.create_task(self._server.close())
        self._stop.set()

    def status(self) -> str:
        """What it is doing, in one line for people."""
        ready = self._own.readiness()
        ailing = [f"{name} {found}" for name, found in ready["checks"].items() if name != "daemon" and found != "ok"]
        said = ready["status"] if self.phase is Phase.RUNNING else self.phase.name.lower()
        held = f"{_counted(self._server.running, 'request')}, {_counted(self._sessions.count, 'session')}"
        if waiting := len(self._outbox):
            oldest_seconds = self._outbox.oldest_seconds(time.monotonic())
            held += f", {_counted(waiting, 'write')} not acknowledged for {oldest_seconds:.0f} s"
        return f"{said} ({', '.join(ailing)}): {held}" if ailing else f"{said}: {held}"

    def reload(self, settings: Settings) -> None:
        """Put in force what may change while turns run: the next request is the first to see it."""
        before, self.settings = self.settings, settings
        start_logging("daemon", settings.log_level, settings.log_format)
        self._gateway.rules = rules_of(settings)
        self._gateway.urls = settings.provider_urls
        self._gateway.admission = Admission(settings.token, settings.hosts)
        self._gateway.body_bytes_max = settings.body_bytes
        self._gateway.prices = self._warmer.prices = Prices(settings.models)
        self._own.account_aliases = settings.account_aliases
        self._outbox.limit = settings.outbox_writes
        if settings.tick_seconds != before.tick_seconds and self.phase in (Phase.STARTING, Phase.RUNNING):
            self._start_tick()

    def _start_tick(self) -> None:
        """Anew, where it runs already: it may have begun to wait for an hour."""
        if before := self._background.get("tick"):
            before.cancel()
        task = asyncio.create_task(tick(self.settings.tick_seconds, self._flush), name="tick")
        task.add_done_callback(self._on_background_end)
        self._background["tick"] = task

    async def _shut_down(self) -> None:
        """The order of stopping: nothing new, streams, settled rows, snapshots, what is left, goodbye."""
        self._become(Phase.DRAINING)
        self._own.is_draining = True
        # A socket that was passed is shared: whoever asks it next gets a daemon that goes on.
        notice_seconds = 0.0 if self._listen_fd is not None else self.settings.notice_seconds
        longest_seconds = notice_seconds + self.settings.drain_seconds + FLUSH_SECONDS + STOP_MARGIN_SECONDS
        self._notifier.stopping(self.status(), within_seconds=longest_seconds)
        await self._warmer.stop()
        await self._server.drain(IDLE_DRAIN_SECONDS, self.settings.drain_seconds, notice_seconds)
        self._become(Phase.FLUSHING)
        deadline = time.monotonic() + FLUSH_SECONDS
        # Snapshots are taken of acknowledged rows only, so the rows go first.
        if await self._link.emptied(deadline):
            await self._flush()
            await self._link.emptied(deadline)
        self._adoption.close()
        self._keep_what_is_left()
        background = list(self._background.values())
        for task in background:
            task.remove_done_callback(self._on_background_end)
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        self._link.close()
        await self._upstream.close()
        self._presence.close()
        self._become(Phase.STOPPED)
        self._log.info("stopped")

    async def _pulse(self) -> None:
        """Sent from this loop, so that it stops when the loop does."""
        self._count_degraded()
        self._notifier.pulse(self.status)

    def _keep_what_is_left(self) -> None:
        """Rows that no worker took go to a file, from where another daemon sends them."""
        # What was adopted is in its file still.
        own = self._outbox.own()
        left = [Write(each.command, each.body) for each in own if isinstance(each.body, Booking)]
        if not left:
            return
        try:
            path = self._spill_files.keep(left)
        except CanNotKeep as error:
            self._lost = WritesLeft(len(left), str(error))
        else:
            told = "%d writes that no worker took are kept in %s; any daemon that runs or starts sends them on"
            self._log.warning(told, len(left), path)

    async def _flush(self) -> None:
        """Write a snapshot of everything dirty, a few at a time: requests are not to wait for thousands of them."""
        written = SNAPSHOTS_PER_TURN
        while written == SNAPSHOTS_PER_TURN:
            written = self._sessions.flush(SNAPSHOTS_PER_TURN)
            self._metrics.snapshots.inc(written)
            await asyncio.sleep(0)

    def _count_degraded(self) -> None:
        """What drains is not meant to be ready."""
        is_meant_to_be = self.phase in (Phase.STARTING, Phase.RUNNING)
        is_degraded = is_meant_to_be and self._own.readiness()["status"] != "ready"
        self._metrics.looked(is_degraded=is_degraded, now=time.monotonic())

    def _families(self) -> list[protocol.Family]:
        """What this daemon counts, with its gauges as they are now."""
        self._count_degraded()
        self._metrics.outbox_writes.set(len(self._outbox))
        self._metrics.outbox_oldest.set(self._outbox.oldest_seconds(time.monotonic()))
        self._metrics.worker_up.set(int(self._link.is_heard))
        self._metrics.start_time.labels(self._instance).set(self._started_at / 1000)
        for name, count in self._sessions.counts().items():
            self._metrics.sessions.labels(name).set(count)
        return families_of(self._metrics.registry)

    def _hello(self, boot: str) -> protocol.Hello:
        return protocol.Hello(
            boot=boot, instance=self._instance, version=self._version, pid=os.getpid(), started_at=self._started_at
        )

    def _standing(self) -> DaemonStanding:
        """What this daemon says of itself."""
        return DaemonStanding(
            instance=self._instance,
            pid=os.getpid(),
            version=self._version,
            started_at=self._started_at,
            state=self.phase.name.lower(),
            outbox_writes=len(self._outbox),
            outbox_oldest_seconds=self._outbox.oldest_seconds(time.monotonic()),
        )

    def _become(self, phase: Phase) -> None:
        assert phase in _MOVES[self.phase], (self.phase, phase)
        self.phase = phase

    def _on_background_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._fail(task.exception() or BackgroundFailed(f"{task.get_name()} ended"))

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None:
            loop.default_exception_handler(context)
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._log.critical("stopping: %s", place_of(error), exc_info=error)
        self._failure = self._failure or error
        self._stop.set()


def _sessions(settings: Settings, log: logging.Logger) -> Sessions:
    return Sessions(
        index=KeyIndex(),
        early_key=secrets.token_bytes(32),
        log=log,
        key_file=KeyFile(Path(settings.runtime_dir) / "hash.key", log) if settings.runtime_dir else None,
    )


def _wall() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def rules_of(settings: Settings) -> Rules:
    """What is configured about names, ready for use."""
    return Rules(
        session_headers=settings.session_headers,
        account_headers=settings.account_headers,
        agent_headers=settings.agent_headers,
        parent_headers=settings.parent_headers,
        fields=body_fields(settings.session_fields),
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


async def tick(
    interval_seconds: float,
    work: Callable[[], Awaitable[None]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Do the work once per interval, until cancelled.  `sleep` is the clock."""
    while True:
        await sleep(interval_seconds)
        await work()
