"""Keeps prompt caches warm: remembers each session's last request for a while, and sends it once more when that pays.

One rule: a ping is sent after the worker's word that its row is committed and the first of its window, and at no other
time; where pings are switched off the same is decided and counted, and nothing is remembered and nothing is sent.

Theory of operation.  A turn that touched its session's cache makes the session *watched*, until shortly before the end
of its window.  Then `keepalive.decide` has the whole of what is known, once.  A ping is like a turn to the ledger:
its BEGIN asks the worker, which knows all daemons and the switch (`worker.batch.may_send`), its END says what it cost;
what it taught is folded from its row.  A ping that worked begins a new window of the same session.

Requests are kept in memory alone, compressed, and go when their window is over, when the session is another daemon's,
and when it is switched off.  A restarted daemon has none: it goes on with each session's next turn.

Time is told by the steady clock, since a window is as long as it is; the wall clock only ends one early, as after a
night in which the machine slept.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from itertools import count
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import zstandard
from msgspec.structs import replace

from daemon import providers
from daemon.accounts import credentials_of, is_subscription
from daemon.admission import without_token
from daemon.booking import settled_row
from daemon.cost import Prices
from daemon.held import Held, Phase
from daemon.identity import Headers
from daemon.keepalive import (
    ARRIVAL_SECONDS,
    MARGIN_SECONDS,
    WINDOW_SECONDS,
    Facts,
    bar,
    breaker_until,
    decide,
    stakes_of,
    ttl_after,
)
from daemon.latches import Latches, name_of, seconds_of
from daemon.metrics import Metrics, PingOutcome
from daemon.outbox import OutboxFull
from daemon.providers import Answer, Turn
from daemon.providers.decoding import plain_body
from daemon.providers.ping import blames_limit, is_signed, ping_body
from daemon.sessions import Sessions
from daemon.upstream import Upstream, UpstreamError
from daemon.views import switch_object
from daemon.warming import GAP_BINS, Ttl, Warming, is_cold, place_of, touches_cache
from worker import protocol
from worker.logs import fields
from worker.protocol import Command, HandSet, Latch, Naming, Row, Status, Switch, Usage, Why

LOOK_SECONDS: Final = 1.0
"""How often it is looked at what is due, and at what an operator switched."""
WATCHED_MAX: Final = 5_000
"""Sessions watched at once, about 2 KB each; those touched longest ago go first."""
SWEPT_PER_LOOK: Final = 500
"""Of those, looked at whether they are this daemon's yet: a millisecond."""
DECISIONS_PER_TURN: Final = 10
"""In one turn of the loop, about three milliseconds; then requests have theirs."""
KEPT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of compressed requests: some hundred of those that agents send at the end of their context."""
KEEPING_MAX: Final = 8
"""Requests that are being compressed; of more at once the rest is not kept."""
PINGS_MAX: Final = 4
"""Pings under way at once: nobody waits for one."""
PING_SECONDS: Final = 30.0
"""How long a ping may take, all in all.  The margin before the window's end is longer."""
REPLY_BYTES_MAX: Final = 1024 * 1024
"""Of the answer to a ping, which has no text to tell."""
QUERY_SECONDS: Final = 2.0
"""How long the worker may take to say what is switched: it reads a few rows."""
ASK_AGAIN_SECONDS: Final = 5.0
"""How long after it did not: until then it goes on as before, and the worker has the last word in any case."""


class Link(Protocol):
    """The part of the worker's client that is used here."""

    @property
    def is_heard(self) -> bool: ...
    @property
    def switched(self) -> tuple[str, int, int] | None: ...
    def put(self, command: Command, body: protocol.Booking) -> int: ...
    async def acknowledged(self, sequence: int) -> bool: ...
    async def taken(self, sequences: list[int]) -> None: ...
    async def query(self, body: protocol.Query, patience_seconds: float) -> protocol.Answer | None: ...


class Sent(NamedTuple):
    """A turn's request as it went out, and when it came, by the steady clock."""

    turn: Turn
    headers: Headers
    url: str
    body: bytes
    """As it reads, whatever it was compressed by."""
    is_child: bool
    started: float


class Request(NamedTuple):
    """What is sent once more."""

    headers: list[tuple[str, str]]
    body: bytes
    """That of a ping with no tokens to write, compressed."""
    body_bytes: int


class Watched:
    """A session whose cache is warm."""

    def __init__(self, held: Held, row: Row, usage: Usage, ttl: Ttl | None, sent: Sent, credential: str) -> None:
        self.held = held
        self.row = row
        """Of the turn that touched the cache last."""
        self.usage = usage
        self.ttl = ttl
        self.started = sent.started
        self.window_started_at = row.started_at
        """The same by the wall clock, as it stands in the session's state and in a ping's row."""
        self.url = sent.url
        self.credential = credential
        self.is_child = sent.is_child
        self.is_signed = is_signed(sent.turn, sent.headers)
        self.is_subscription = is_subscription({name.lower(): value for name, value in sent.headers})
        self.thinks = sent.turn.thinks
        self.request: Request | None = None

    @property
    def due_at(self) -> float:
        """When to decide, by the steady clock."""
        return self.started + (WINDOW_SECONDS[self.ttl] - MARGIN_SECONDS[self.ttl] if self.ttl else 0.0)


class Warmer:
    """Of one daemon.  Belongs to the event loop's thread."""

    def __init__(
        self,
        *,
        boot: str,
        sessions: Sessions,
        link: Link,
        upstream: Upstream,
        prices: Prices,
        metrics: Metrics,
        now: Callable[[], int],
        steady: Callable[[], float],
        draw_id: Callable[[], str],
        key: bytes,
        log: logging.Logger,
    ) -> None:
        """`now`: Unix milliseconds; `steady`: seconds that always go on; `key`: to remember credentials by."""
        self.prices = prices
        """May be replaced at any time."""
        self._boot = boot
        self._sessions = sessions
        self._link = link
        self._upstream = upstream
        self._metrics = metrics
        self._now = now
        self._steady = steady
        self._draw_id = draw_id
        self._key = key
        self._log = log
        self._latches = Latches()
        self._switch = Switch()
        self._switched: tuple[str, int, int] | None = None
        self._hand_set: Mapping[str, HandSet] = {}
        self._watched: OrderedDict[str, Watched] = OrderedDict()
        self._due: list[tuple[float, int, Watched]] = []
        self._numbers = count()
        self._kept_bytes = 0
        self._unswept: list[str] = []
        self._host_gaps = [0] * GAP_BINS
        self._gaps_seen: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._keeping: set[asyncio.Task[None]] = set()
        self._pings: set[asyncio.Task[None]] = set()
        self._ask_at = 0.0
        self._is_stopping = False
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Look after what is watched, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def stop(self) -> None:
        """Nothing is sent any more; what is under way is cut off, and booked as that."""
        self._is_stopping = True
        tasks = [*self._pings, *self._keeping]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def latches(self) -> list[Latch]:
        return self._latches.shown(self._now())

    def shown(self) -> dict[str, Any]:
        """What this daemon goes by, and what it remembers."""
        return {
            "change": self._switch.change if self._switched else None,
            **switch_object(replace(self._switch, latches=self.latches())),
            "watched_sessions": len(self._watched),
            "kept_requests": sum(each.request is not None for each in self._watched.values()),
            "kept_bytes": self._kept_bytes,
        }

    # -- what turns tell ---------------------------------------------------------------------------------------------

    def touched(self, row: Row, session_id: str, sent: Sent) -> None:
        """A turn is settled.  If it touched its session's cache, a new window began with it."""
        if row.kind != "turn" or row.protocol != "messages" or self._is_stopping:
            return
        credential = name_of("".join(credentials_of({n.lower(): v for n, v in sent.headers})), self._key)
        if row.status != "interrupted":
            self._latches.answered(row.http_status, credential, row.account, row.provider, now=self._now())
        held = self._sessions.find(session_id)
        if held is None or row.usage is None or not touches_cache(row):
            return
        before = self._forget(held.session_id)
        ttl = ttl_after(row.usage, before.ttl if before else None)
        watched = Watched(held, row, row.usage, ttl, sent, credential)
        self._learn_gaps(held)
        self._watch(watched)
        is_wanted = self._may_be_live(held.session_id) and bar(self._facts(watched, is_shadow=True)) is None
        if is_wanted and len(self._keeping) < KEEPING_MAX:
            self._start(self._keep(watched, sent), self._keeping)

    def _watch(self, watched: Watched) -> None:
        self._watched[watched.held.session_id] = watched
        while len(self._watched) > WATCHED_MAX:
            self._forget(next(iter(self._watched)))
        heapq.heappush(self._due, (watched.due_at, next(self._numbers), watched))

    def _forget(self, session_id: str) -> Watched | None:
        watched = self._watched.pop(session_id, None)
        if watched is not None:
            self._drop_request(watched)
        return watched

    def _drop_request(self, watched: Watched) -> None:
        if watched.request is not None:
            self._kept_bytes -= len(watched.request.body)
            watched.request = None

    def _learn_gaps(self, held: Held) -> None:
        """Add what is new of a session's pauses to those of all."""
        gaps = held.state.warming.gap_counts
        seen = self._gaps_seen.pop(held.session_id, (0,) * GAP_BINS)
        self._host_gaps = [
            all_ + max(0, now - then) for all_, now, then in zip(self._host_gaps, gaps, seen, strict=True)
        ]
        self._gaps_seen[held.session_id] = gaps
        while len(self._gaps_seen) > WATCHED_MAX:
            self._gaps_seen.popitem(last=False)

    async def _keep(self, watched: Watched, sent: Sent) -> None:
        made = await asyncio.to_thread(_compressed_ping, sent.body)
        if made is None or self._watched.get(watched.held.session_id) is not watched:
            return
        watched.request = Request(_ping_headers(sent.headers), *made)
        self._kept_bytes += len(watched.request.body)
        for other in list(self._watched.values()):
            if self._kept_bytes <= KEPT_BYTES_MAX:
                break
            self._drop_request(other)

    # -- what is due -------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Do what is due now."""
        if self._failure is not None:
            raise self._failure
        await self._hear_switch()
        self._sweep(SWEPT_PER_LOOK)
        judged = 0
        while self._due and self._due[0][0] <= self._steady():
            _, _, watched = heapq.heappop(self._due)
            if self._watched.get(watched.held.session_id) is watched:
                self._judge(watched)
                judged += 1
                if judged % DECISIONS_PER_TURN == 0:
                    await asyncio.sleep(0)

    async def _hear_switch(self) -> None:
        """Ask for the switch, where there is another than is known."""
        switched = self._link.switched
        if switched is None or switched == self._switched or not self._link.is_heard or self._steady() < self._ask_at:
            return
        # What was never switched is off; an older worker says the same, and would not know the question.
        switch = await self._ask_switch() if switched[-1] else Switch()
        if switch is None:
            self._ask_at = self._steady() + ASK_AGAIN_SECONDS
            return
        if switch.reset_at > self._switch.reset_at and self._switched is not None:
            self._latches.reset()
        self._switch, self._switched = switch, switched
        self._hand_set = {each.session_id: each for each in switch.sessions}
        self._unswept = []
        self._sweep(WATCHED_MAX)

    async def _ask_switch(self) -> Switch | None:
        """None where the worker does not tell, or not in a way that can be read."""
        answer = await self._link.query(protocol.Query(what="warm"), QUERY_SECONDS)
        if answer is None or not answer.answered:
            return None
        try:
            return msgspec.json.decode(answer.body, type=Switch)
        except msgspec.DecodeError:
            return None

    def _sweep(self, most: int) -> None:
        """What is not to be sent from here any more is not kept: so many of those watched, in turns."""
        if not self._unswept:
            self._unswept = list(self._watched)
        swept, self._unswept = self._unswept[-most:], self._unswept[:-most]
        for session_id in swept:
            watched = self._watched.get(session_id)
            if watched is not None and not self._is_ours(watched):
                self._forget(session_id)
            elif watched is not None and not self._may_be_live(session_id):
                self._drop_request(watched)

    def _is_ours(self, watched: Watched) -> bool:
        held = watched.held
        return self._sessions.find(held.session_id) is held and held.phase is Phase.OWNED

    def _judge(self, watched: Watched) -> None:
        held = watched.held
        is_same = held.state.warming.window_started_at == watched.window_started_at
        if not is_same or not self._is_ours(watched):
            # What is remembered is not what touched the cache last: it turned out to be a call beside the conversation.
            self._forget(held.session_id)
            return
        is_live = self._is_live(held.session_id)
        verdict = decide(self._facts(watched, is_shadow=not is_live))
        if verdict.wait_seconds or (verdict.send and self._is_busy(held, is_live=is_live)):
            due_at = self._steady() + (verdict.wait_seconds or LOOK_SECONDS)
            heapq.heappush(self._due, (due_at, next(self._numbers), watched))
            return
        self._metrics.decided("live" if is_live else "shadow", verdict.reason or "send")
        if verdict.send and is_live:
            self._start(self._ping(watched), self._pings)
        else:
            self._forget(held.session_id)

    def _is_busy(self, held: Held, *, is_live: bool) -> bool:
        """It is not the moment: a turn that is under way touches the cache itself, if all goes well."""
        is_ready = self._link.is_heard and len(self._pings) < PINGS_MAX
        return bool(held.turns_in_flight) or (is_live and not is_ready)

    def _facts(self, watched: Watched, *, is_shadow: bool) -> Facts:
        state, row = watched.held.state, watched.row
        warming, now = state.warming, self._now()
        age = self._age_seconds(watched, warming, now)
        pause = (warming.window_started_at - warming.last_user_turn_at) / 1_000

        def price(usage: Usage) -> int | None:
            return self.prices.price_nanousd(row.provider, row.model, usage, now)

        stakes = stakes_of(watched.usage, watched.ttl, price)
        own = self._hand_set.get(watched.held.session_id)
        reset_at = max(self._switch.reset_at, own.reset_at if own else 0)
        latch = self._latches.of(watched.credential, row.provider, thinks=watched.thinks, now=now)
        if latch is None and breaker_until(warming, place_of(row.provider, row.model), reset_at) > now:
            latch = "breaker"
        return Facts(
            warming=warming,
            ttl=watched.ttl,
            age_seconds=age,
            idle_seconds=age + max(0.0, pause),
            ping_nanousd=stakes.ping_nanousd,
            saves_nanousd=stakes.saves_nanousd,
            host_gaps=self._host_gaps,
            layer=state.gradient.last_layer,
            is_child=watched.is_child,
            is_signed=watched.is_signed,
            is_subscription=watched.is_subscription,
            setting=own.setting if own else "",
            latch=latch,
            has_request=is_shadow or watched.request is not None,
        )

    def _age_seconds(self, watched: Watched, warming: Warming, now: int) -> float:
        steady = self._steady() - watched.started
        wall = (now - warming.window_started_at) / 1_000
        is_over = watched.ttl is not None and wall > WINDOW_SECONDS[watched.ttl] - ARRIVAL_SECONDS
        return max(steady, wall) if is_over else steady

    def _is_live(self, session_id: str) -> bool:
        """Pings of the session are sent; the worker has the last word."""
        own = self._hand_set.get(session_id)
        return self._switch.is_on if own is None or own.setting in ("", "auto") else own.setting == "on"

    def _may_be_live(self, session_id: str) -> bool:
        """Also before it is known: a turn may come in the first moment after a start."""
        return self._switched is None or self._is_live(session_id)

    # -- a ping ------------------------------------------------------------------------------------------------------

    async def _ping(self, watched: Watched) -> None:
        """One ping, and what comes after it."""
        started = self._steady()
        outcome: PingOutcome = "unsent"
        row = self._open_row(watched)
        try:
            outcome, row = await self._attempt(watched, row)
        finally:
            if self._watched.get(watched.held.session_id) is watched:
                self._go_on(watched, outcome, row, started)

    async def _attempt(self, watched: Watched, row: Row) -> tuple[PingOutcome, Row]:
        """Ask whether it may be sent, send it, book what came of it."""
        held, epoch = watched.held, watched.held.epoch
        naming = _naming_of(row)
        try:
            body = protocol.Booking(naming=naming, row=row, epoch=epoch, seen=held.position)
            sequence = self._link.put(Command.BEGIN, body)
        except OutboxFull:
            self._metrics.pinged("unsent")
            return "unsent", row
        is_in_time = await self._link.acknowledged(sequence)
        if not is_in_time:
            # It is not sent any more.  But it may be entered yet, and what was begun has to be ended.
            await self._link.taken([sequence])
        if self._sessions.was_refused(row.event_id):
            self._metrics.pinged("refused")
            return "refused", row
        outcome: PingOutcome = "unsent"
        seen = Seen(Answer(), "interrupted", 0)
        try:
            if is_in_time and watched.request is not None and self._may_go(watched, epoch):
                outcome = "cut"
                seen = await self._exchange(watched, watched.request)
                outcome = _outcome_of(seen)
        finally:
            self._metrics.pinged(outcome)
            row = self._settle(held, naming, row, seen, outcome)
        return outcome, row

    def _may_go(self, watched: Watched, epoch: int) -> bool:
        """Nothing happened while the worker was asked."""
        held = watched.held
        is_same = self._watched.get(held.session_id) is watched and held.epoch == epoch and held.phase is Phase.OWNED
        return is_same and not held.turns_in_flight and not self._is_stopping and self._is_live(held.session_id)

    async def _exchange(self, watched: Watched, request: Request) -> Seen:
        """Send it; with an answer of one token, where the upstream does not take a request for none."""
        upstream = watched.row.provider
        limit = int(self._latches.wants_a_token(upstream, self._now()))
        seen = await self._send(watched, request, limit)
        if limit == 0 and seen.blames_limit:
            self._latches.refused_limit(upstream, self._now())
            if not watched.thinks:
                seen = await self._send(watched, request, 1)
        return seen

    async def _send(self, watched: Watched, request: Request, limit: int) -> Seen:
        body = await asyncio.to_thread(_plain_ping, request, limit)
        try:
            async with (
                asyncio.timeout(PING_SECONDS),
                self._upstream.send("POST", watched.url, request.headers, body) as reply,
            ):
                raw = b""
                async for chunk in reply.chunks():
                    raw += chunk
                    if len(raw) > REPLY_BYTES_MAX:
                        break
        except TimeoutError:
            return Seen(Answer(), "interrupted", 0)
        except UpstreamError as error:
            self._log.info("ping of session %s: %s", watched.held.session_id, error)
            self._note(watched, 0, "")
            return Seen(Answer(), "error", 0)
        self._note(watched, reply.status, _header(reply.headers, "retry-after"))
        return await asyncio.to_thread(_read, raw, reply.status, _header(reply.headers, "content-encoding"))

    def _note(self, watched: Watched, status: int, retry_after: str) -> None:
        row = watched.row
        self._latches.answered(
            status,
            watched.credential,
            row.account,
            row.provider,
            retry_after=seconds_of(retry_after),
            now=self._now(),
        )

    def _settle(self, held: Held, naming: Naming, row: Row, seen: Seen, outcome: PingOutcome) -> Row:
        held = self._sessions.current(held)
        row = settled_row(row, seen.answer, seen.status, seen.http_status, prices=self.prices, at=self._now())
        self._sessions.settled(held, naming, row)
        self._metrics.settled(row, self.prices.known_name(row.provider, row.model))
        body = protocol.Booking(naming=naming, row=row, epoch=held.epoch, seen=held.position)
        self._link.put(Command.END, body)
        self._log.info("ping settled", extra=_said_of(row, outcome))
        return row

    def _go_on(self, watched: Watched, outcome: PingOutcome, row: Row, started: float) -> None:
        """A ping that worked has begun a new window; after any other this one has had its ping."""
        if outcome != "hit" or row.usage is None:
            self._forget(watched.held.session_id)
            return
        watched.started, watched.window_started_at = started, row.started_at
        watched.usage, watched.ttl = row.usage, ttl_after(row.usage, watched.ttl)
        heapq.heappush(self._due, (watched.due_at, next(self._numbers), watched))

    def _open_row(self, watched: Watched) -> Row:
        turn = watched.row
        return Row(
            event_id=self._draw_id(),
            session_id=watched.held.session_id,
            kind="warmup",
            status="interrupted",
            started_at=self._now(),
            provider=turn.provider,
            protocol=turn.protocol,
            model=turn.model,
            client=turn.client,
            account=turn.account,
            boot=self._boot,
            why=_WHY,
            message_count=turn.message_count,
            user_turn=False,
            window_started_at=watched.window_started_at,
        )

    def _start(self, work: Coroutine[None, None, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error


class Seen(NamedTuple):
    """What came of a request."""

    answer: Answer
    status: Status
    http_status: int
    blames_limit: bool = False
    """It was refused for the number of tokens to write."""


def _outcome_of(seen: Seen) -> PingOutcome:
    usage = seen.answer.usage
    if seen.status == "interrupted":
        return "cut"
    if seen.status == "error":
        return "error"
    if usage is None or not usage.cache_read_tokens + usage.cache_write_tokens:
        return "nothing"
    return "cold" if is_cold(usage) else "hit"


def _read(raw: bytes, status: int, encoding: str) -> Seen:
    reader = providers.reader("messages", event_stream=False, encoding=encoding)
    reader.feed(raw)
    answer = reader.close(whole=True)
    if status < 400:
        # A whole document that can not be read is an answer of unknown usage.
        return Seen(answer, "error" if answer.failed else "complete", status)
    plain = plain_body(raw, encoding, REPLY_BYTES_MAX) if encoding else raw
    return Seen(answer, "error", status, blames_limit=status == 400 and blames_limit(plain or b""))


def _compressed_ping(body: bytes) -> tuple[bytes, int] | None:
    made = ping_body(body, 0)
    return (zstandard.ZstdCompressor().compress(made), len(made)) if made is not None else None


def _plain_ping(request: Request, limit: int) -> bytes:
    body = zstandard.ZstdDecompressor().decompress(request.body, max_output_size=request.body_bytes)
    made = ping_body(body, limit) if limit else body
    assert made is not None, "of this body one was made before"
    return made


def _ping_headers(headers: Headers) -> list[tuple[str, str]]:
    """The client's, but for what is about its own bytes, its own attempt and its own trace."""
    return [(name, value) for name, value in without_token(headers) if name.lower() not in _OWN_HEADERS]


def _naming_of(row: Row) -> Naming:
    return Naming(
        session_id=row.session_id, confirmed=True, client=row.client, account=row.account, is_judged=True, why=row.why
    )


def _said_of(row: Row, outcome: PingOutcome) -> dict[str, dict[str, object]]:
    """What is logged of a ping."""
    usage = row.usage
    return fields(
        request=row.event_id,
        session=row.session_id,
        outcome=outcome,
        http_status=row.http_status or None,
        provider=row.provider,
        model=row.model or None,
        cache_read_tokens=usage.cache_read_tokens if usage else None,
        cache_write_tokens=usage.cache_write_tokens if usage else None,
        cost_nanousd=row.cost_nanousd,
    )


def _header(headers: Headers, name: str) -> str:
    return next((value for key, value in headers if key.lower() == name), "").lower()


_WHY: Final = Why(reason="keeps the session's prompt cache warm", origin="keep-alive", confidence="certain")
_OWN_HEADERS: Final = frozenset(
    {"content-encoding", "content-length", "idempotency-key", "traceparent", "tracestate", "expect"}
)
