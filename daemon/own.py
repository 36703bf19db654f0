"""perdure's own paths: is it alive, is it ready, what has it counted, what does it know.

One rule: reading only, and nothing here waits for the worker longer than a reader's patience.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import msgspec
import orjson

from daemon.http_server import Incoming
from daemon.standing import own_report
from daemon.views import account_object, costs_object, is_day, session_object
from daemon.worker_client import LinkState, WorkerClient
from worker import protocol
from worker.metrics import exposition
from worker.records import Account, Group, Record
from worker.standing import DaemonStanding, Standing

PRELOAD_WAIT_SECONDS: Final = 2.0
"""How long after its start a daemon holds turns back until it knows the newest keys, and the worker what other daemons
left behind: a restarted worker needs a fraction of it, and an absent one must not keep requests waiting."""
STATUS_SECONDS: Final = 1.0
"""How long the worker may take to say how it stands: it is asked because something may be wrong."""
JSON: Final = "application/json"
EXPOSITION: Final = "text/plain; version=0.0.4; charset=utf-8"


class OwnPaths:
    def __init__(
        self,
        *,
        link: WorkerClient,
        metrics: Callable[[], list[protocol.Family]],
        standing: Callable[[], DaemonStanding],
        account_aliases: Mapping[str, str],
        adopted: asyncio.Event,
        warming: Callable[[], dict[str, Any]],
    ) -> None:
        self.account_aliases = account_aliases
        """The operator's names for accounts; may be replaced at any time."""
        self._link = link
        self._adopted = adopted
        self._metrics = metrics
        self._standing = standing
        self._warming = warming
        # Read once: it is in a file, and who asks for health may ask when no descriptor is left.
        self._version = version("perdure")
        self._given_up = asyncio.Event()
        self.is_draining = False

    async def wait_for_preload(self) -> None:
        """Runs once at start: after it, requests are identified with or without the worker."""
        try:
            async with asyncio.timeout(PRELOAD_WAIT_SECONDS):
                await self._link.preloaded.wait()
                await self._adopted.wait()
        except TimeoutError:
            pass  # No worker: requests go on without it (degraded).
        self._given_up.set()

    async def identifiable(self) -> None:
        """Return when requests may be identified."""
        await self._given_up.wait()

    async def handle(self, incoming: Incoming) -> None:
        if incoming.method not in ("GET", "HEAD"):
            await _say(incoming, 405, {"error": "only GET here"})
        elif incoming.path == "/healthz":
            await _say(incoming, 200, {"status": "alive", "program": "perdure", "version": self._version})
        elif incoming.path == "/readyz":
            ready = self.readiness()
            await _say(incoming, 503 if ready["status"] == "unready" else 200, ready)
        elif incoming.path == "/metrics":
            await incoming.respond(200, exposition(await self._all_metrics()), EXPOSITION)
        elif incoming.path == "/api/sessions":
            await self._sessions(incoming)
        elif incoming.path.startswith("/api/sessions/"):
            await self._session(incoming, unquote(incoming.path.removeprefix("/api/sessions/")))
        elif incoming.path == "/api/costs":
            await self._costs(incoming)
        elif incoming.path == "/api/warm":
            await incoming.respond(200, orjson.dumps(self._warming()), JSON)
        elif incoming.path == "/api/status":
            await self._status(incoming)
        else:
            await _say(incoming, 404, {"error": f"nothing at {incoming.path}; see /api/sessions, /api/costs"})

    def readiness(self) -> dict[str, Any]:
        """ready: all is well; degraded: turns are answered but not committed; unready: starting or draining."""
        checks = {
            "worker": "ok" if self._link.is_heard else self._link.trouble or _WORKER[self._link.state],
            "index": "ok" if self._link.preloaded.is_set() else "not loaded",
        }
        if self.is_draining or not self._given_up.is_set():
            checks["daemon"] = "draining" if self.is_draining else "starting"
            status = "unready"
        else:
            status = "ready" if set(checks.values()) == {"ok"} else "degraded"
        return {"status": status, "checks": checks}

    async def _all_metrics(self) -> list[protocol.Family]:
        """Of all daemons and the worker; of this daemon alone while the worker does not answer."""
        answer = await self._link.query(protocol.Query(what="metrics"))
        if answer is None or not answer.answered:
            return self._metrics()
        return msgspec.json.decode(answer.body, type=list[protocol.Family])

    async def _status(self, incoming: Incoming) -> None:
        answer = await self._link.query(protocol.Query(what="status"), STATUS_SECONDS)
        is_told = answer is not None and answer.answered
        standing = msgspec.json.decode(answer.body, type=Standing) if answer and is_told else None
        ready = self.readiness()
        shown = own_report(ready["status"], ready["checks"], self._standing(), standing, time.time_ns() // 1_000_000)
        await incoming.respond(200, orjson.dumps(shown), JSON)

    async def _sessions(self, incoming: Incoming) -> None:
        shown: list[dict[str, Any]] = []
        after = ""
        while True:
            answer = await self._link.query(protocol.Query(what="sessions", after=after))
            if answer is None or not answer.answered:
                await _say(incoming, 503, _NOT_ANSWERED)
                return
            records = msgspec.json.decode(answer.body, type=list[Record])
            shown += [session_object(record, self.account_aliases) for record in records]
            after = answer.after
            if not after:
                break
        await incoming.respond(200, orjson.dumps(shown), JSON)

    async def _session(self, incoming: Incoming, session_id: str) -> None:
        answer = await self._link.query(protocol.Query(what="session", session_id=session_id[:256]))
        if answer is None or not answer.answered:
            await _say(incoming, 503, _NOT_ANSWERED)
            return
        account = msgspec.json.decode(answer.body, type=Account | None)
        if account is None:
            await _say(incoming, 404, {"error": "no session has that id; see /api/sessions"})
        else:
            await incoming.respond(200, orjson.dumps(account_object(account, self.account_aliases)), JSON)

    async def _costs(self, incoming: Incoming) -> None:
        since = parse_qs(incoming.target.partition("?")[2]).get("since", [""])[-1]
        if since and not is_day(since):
            await _say(incoming, 400, {"error": "since is a day: /api/costs?since=2026-01-31"})
            return
        groups = await self._groups(since)
        if groups is None:
            await _say(incoming, 503, _NOT_ANSWERED)
        else:
            await incoming.respond(200, orjson.dumps(costs_object(groups, self.account_aliases)), JSON)

    async def _groups(self, since: str) -> list[Group] | None:
        """All of one list of sums; None where the worker does not say."""
        groups: list[Group] = []
        after = ""
        while True:
            answer = await self._link.query(protocol.Query(what="costs", since=since, after=after))
            if answer is None or not answer.answered:
                return None
            groups += msgspec.json.decode(answer.body, type=list[Group])
            after = answer.after
            if not after:
                return groups


async def _say(incoming: Incoming, status: int, body: dict[str, Any]) -> None:
    await incoming.respond(status, orjson.dumps(body), JSON)


_NOT_ANSWERED: Final = {"error": "the worker does not answer; `perdure status` says more"}
_WORKER: Final = {
    LinkState.CONNECTING: "not there",
    LinkState.READY: "not committing",
    LinkState.SILENT: "not heard",
}
