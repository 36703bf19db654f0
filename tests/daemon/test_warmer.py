"""What a daemon sends to keep caches warm, and when: real sessions, a worker and a provider that the test plays, and
time that passes when the test says so."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from daemon import warmer as warmers
from daemon.cost import Prices
from daemon.index import KeyIndex
from daemon.metrics import Metrics
from daemon.outbox import Body, Outbox
from daemon.providers import body_fields, parse_turn
from daemon.sessions import Sessions
from daemon.upstream import UpstreamUnreachable
from daemon.warmer import Sent, Warmer
from worker import protocol
from worker.protocol import Booking, Claim, Command, HandSet, Lost, Naming, Reply, Row, Switch, Usage

NOON: Final = 1_750_000_000_000
DUE: Final = 255.5
MODEL: Final = "claude-sonnet-4-6"
COLD: Final = Usage(cache_write_5m_tokens=50_000)
WARM: Final = Usage(cache_read_tokens=50_000)
HEADERS: Final = [("x-api-key", "sk-ant-api03-k"), ("x-perdure-token", "t"), ("traceparent", "00-1"), ("x-other", "o")]
ON: Final = Switch(change=1, is_on=True)


class Link:
    """A worker that does at once what the test wants."""

    def __init__(self) -> None:
        self.is_heard = True
        self.switch = Switch()
        self.enters = True
        self.is_silent = False
        self.outbox = Outbox(1_000)
        self.sessions: Sessions
        self.put_bodies: list[Body] = []
        self._position = 0

    @property
    def switched(self) -> tuple[str, int, int] | None:
        return ("store", 0, self.switch.change)

    def put(self, command: Command, body: Body) -> int:
        self.put_bodies.append(body)
        return self.outbox.put(command, body, 0.0)

    async def acknowledged(self, sequence: int) -> bool:
        if self.is_silent:
            return False
        self.answer()
        return True

    async def taken(self, sequences: Any) -> None:
        self.answer()

    async def query(self, body: protocol.Query, patience_seconds: float) -> protocol.Answer | None:
        return protocol.Answer(body=msgspec.Raw(msgspec.json.encode(self.switch)))

    def answer(self) -> None:
        """Everything that waits."""
        while (entry := self.outbox.next_due(0.0)) is not None:
            self.outbox.sent(entry, 0.0)
            self.outbox.acked(entry.sequence)
            self.sessions.acknowledged(entry, self._reply(entry.sequence, entry.body))

    def _reply(self, sequence: int, body: Body) -> Reply:
        if isinstance(body, Claim):
            return Reply(sequence=sequence, session_id=body.naming.session_id, epoch=1, owned=True)
        assert isinstance(body, Booking)
        if body.row.kind == "warmup" and not body.row.is_settled and not self.enters:
            return Reply(sequence=sequence, session_id=body.row.session_id, entered=False)
        self._position += body.row.is_settled
        position = self._position if body.row.is_settled else 0
        return Reply(sequence=sequence, session_id=body.row.session_id, epoch=1, owned=True, position=position)


class Provider:
    """Keeps what it gets, and answers with that usage or status."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[tuple[str, str]] = []
        self.usage: Usage | None = WARM
        self.status = 200
        self.gate: Callable[[], Awaitable[None]] | None = None

    @asynccontextmanager
    async def send(self, method: str, url: str, headers: Any, body: bytes) -> AsyncIterator[Any]:
        self.bodies.append(json.loads(body))
        self.headers = headers
        if self.gate is not None:
            await self.gate()
        if not self.status:
            raise UpstreamUnreachable("nobody there")
        usage = self.usage or Usage()
        told = {
            "input_tokens": usage.input_tokens,
            "cache_read_input_tokens": usage.cache_read_tokens,
            "cache_creation_input_tokens": usage.cache_write_tokens,
            "output_tokens": 0,
        }
        yield _Reply(self.status, json.dumps({"type": "message", "content": [], "usage": told}).encode())


class _Reply:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.headers = [("content-type", "application/json")]
        self._body = body

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._body


class Bench:
    def __init__(self) -> None:
        self.wall = NOON
        self.steady = 0.0
        self.link, self.provider, self.metrics = Link(), Provider(), Metrics()
        log = logging.Logger("test")
        self.sessions = Sessions(index=KeyIndex(), early_key=bytes(32), log=log)
        self.sessions.start(self.link)
        self.link.sessions = self.sessions
        self._numbers = iter(range(1, 10_000))
        upstream: Any = self.provider
        self.warmer = Warmer(
            boot="boot-1",
            sessions=self.sessions,
            link=self.link,
            upstream=upstream,
            prices=Prices(),
            metrics=self.metrics,
            now=lambda: self.wall,
            steady=lambda: self.steady,
            draw_id=lambda: f"event-{next(self._numbers):06}",
            key=b"k",
            log=log,
        )

    async def pass_time(self, seconds: float) -> None:
        """And do what is due then."""
        self.steady += seconds
        self.wall += int(1_000 * seconds)
        await self.look()

    async def look(self) -> None:
        await self.warmer.look()
        await self.settle()

    async def settle(self) -> None:
        while tasks := [*self.warmer._pings, *self.warmer._keeping]:
            await asyncio.wait(tasks, timeout=0.05)
            if self.provider.gate is not None:
                break
        self.link.answer()

    async def turn(self, usage: Usage | None = COLD, *, session: str = "s", **changes: Any) -> Row:
        """One that ends at once."""
        body = json.dumps({"model": MODEL, "max_tokens": 9, "stream": True, "messages": [], **changes.pop("body", {})})
        naming = Naming(session_id=session, confirmed=False, parent=changes.pop("parent", ""))
        place = await self.sessions.hold(naming)
        values: dict[str, Any] = {"kind": "turn", "status": "complete", "provider": "anthropic", "protocol": "messages"}
        values |= {"started_at": self.wall, "ended_at": self.wall + 1, "model": MODEL, "boot": "boot-1", "account": "a"}
        values |= {"http_status": 200, "usage": usage, "text_only": False, "session_id": session}
        row = Row(event_id=f"event-{next(self._numbers):06}", **{**values, **changes})
        self.sessions.settled(place.held, place.naming, row)
        self.link.put(Command.END, Booking(naming=place.naming, row=row, epoch=1, seen=0))
        self.link.answer()
        turn = parse_turn("messages", body.encode(), body_fields([]))
        assert turn is not None
        sent = Sent(turn, HEADERS, "http://p/v1/messages", body.encode(), bool(naming.parent), self.steady)
        self.warmer.touched(row, session, sent)
        await self.settle()
        return row

    async def warm(self, switch: Switch = ON, *, session: str = "s", **changes: Any) -> Row:
        """A session that is worth to be kept warm, switched on."""
        self.link.switch = switch
        await self.look()
        for _ in range(2):
            await self.turn(session=session, **dict(changes))
            await self.pass_time(1_000)
        return await self.turn(session=session, **dict(changes))

    def rows(self) -> list[Row]:
        """Of pings, as they were written."""
        bookings = [body for body in self.link.put_bodies if isinstance(body, Booking)]
        return [booking.row for booking in bookings if booking.row.kind == "warmup"]

    def count(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"perdure_{metric}_total", labels) or 0.0

    def outcomes(self) -> dict[str, float]:
        names = ("hit", "cold", "nothing", "error", "cut", "unsent", "refused")
        found = {name: self.count("ping_outcomes", outcome=name) for name in names}
        return {name: count for name, count in found.items() if count}

    def decided(self, decision: str, mode: str = "live") -> float:
        return self.count("ping_decisions", mode=mode, decision=decision)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(scenario())


def test_ping_is_asked_for_then_sent_then_booked(bench: Bench) -> None:
    async def scenario() -> None:
        last = await bench.warm()
        await bench.pass_time(DUE - 2)
        assert bench.rows() == [], "it is not yet due"
        await bench.pass_time(2)
        opened, ended = bench.rows()
        assert (opened.status, opened.is_settled, opened.window_started_at) == ("interrupted", False, last.started_at)
        assert replace(opened, status="complete", ended_at=ended.ended_at, http_status=200, usage=WARM) == replace(
            ended, cost_nanousd=None, price_version=""
        )
        assert ended.cost_nanousd == 50_000 * 300
        assert bench.provider.bodies == [{"model": MODEL, "max_tokens": 0, "stream": False, "messages": []}]
        assert bench.provider.headers == [("x-api-key", "sk-ant-api03-k"), ("x-other", "o")]
        assert bench.outcomes() == {"hit": 1}

    run(scenario)


def test_windows_follow_each_other_up_to_break_even(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.warm(Switch(change=1, sessions=[HandSet("s", "on", 0)]))
        for _ in range(20):
            await bench.pass_time(DUE)
        windows = [row.window_started_at for row in bench.rows() if not row.is_settled]
        assert len(windows) == len(set(windows)) == 11 == len(bench.provider.bodies)
        assert bench.decided("break-even") == 1
        assert bench.warmer.shown()["kept_requests"] == 0

    run(scenario)


@pytest.mark.parametrize("refusal", ["refused", "silent"])
def test_nothing_is_sent_without_the_workers_word(bench: Bench, refusal: str) -> None:
    async def scenario() -> None:
        await bench.warm()
        bench.link.enters = refusal != "refused"
        bench.link.is_silent = refusal == "silent"
        await bench.pass_time(DUE)
        await bench.pass_time(5)
        assert bench.provider.bodies == []
        ended = [row.status for row in bench.rows() if row.is_settled]
        # What was entered, though too late, is ended; what was refused is nowhere.
        assert ended == ([] if refusal == "refused" else ["interrupted"])
        assert bench.outcomes() == ({"refused": 1} if refusal == "refused" else {"unsent": 1})

    run(scenario)


def test_worker_that_is_not_heard_is_not_asked(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.warm()
        bench.link.is_heard = False
        await bench.pass_time(DUE)
        assert bench.rows() == []
        bench.link.is_heard = True
        await bench.pass_time(10)
        assert bench.outcomes() == {"hit": 1}, "it was back within the window"

    run(scenario)


def test_turn_that_began_meanwhile_is_left_alone(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.warm()
        held = bench.sessions.find("s")
        assert held is not None
        held.turns_in_flight = 1
        await bench.pass_time(DUE)
        assert bench.rows() == []
        held.turns_in_flight = 0  # It failed, and touched nothing.
        await bench.pass_time(2)
        assert bench.outcomes() == {"hit": 1}

    run(scenario)


def test_session_that_another_daemon_claimed_is_forgotten_with_its_request(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.warm()
        assert bench.warmer.shown()["kept_requests"] == 1
        bench.sessions.lost(Lost(session_id="s", epoch=2))
        await bench.look()
        assert (bench.warmer.shown()["watched_sessions"], bench.warmer.shown()["kept_bytes"]) == (0, 0)
        await bench.pass_time(DUE)
        assert bench.rows() == []

    run(scenario)


def test_request_that_was_beside_the_conversation_is_not_sent_again(bench: Bench) -> None:
    """The worker may find out with a turn's end that it was none: the window of the state is another one then."""

    async def scenario() -> None:
        await bench.warm()
        watched = bench.warmer._watched["s"]
        watched.window_started_at -= 1
        await bench.pass_time(DUE)
        assert bench.rows() == [] and bench.warmer.shown()["watched_sessions"] == 0

    run(scenario)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parent": "p"}, "sub-agent"),
        ({"body": {"system": "x-anthropic-billing-header: cc_version=1; cch=ab;"}}, "signed"),
        ({"layer": 4}, "layer"),
        ({"model": "model-nobody-sells"}, "no-price"),
        ({"usage": Usage(input_tokens=5, cache_read_tokens=9)}, "no-cache"),
    ],
)
def test_sessions_that_are_never_warmed_say_why_and_keep_nothing(
    bench: Bench, changes: dict[str, Any], reason: str
) -> None:
    async def scenario() -> None:
        await bench.warm(**changes)
        kept = bench.warmer.shown()["kept_requests"]
        await bench.pass_time(DUE)
        assert bench.rows() == [] and bench.decided(reason) >= 1
        assert reason == "no-price" or not kept

    run(scenario)


def test_cold_ping_is_the_last_of_its_pause(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.warm()
        bench.provider.usage = COLD
        for _ in range(3):
            await bench.pass_time(DUE)
        assert bench.outcomes() == {"cold": 1}
        await bench.turn()
        bench.provider.usage = WARM
        await bench.pass_time(DUE)
        assert bench.outcomes() == {"cold": 1, "hit": 1}

    run(scenario)


def test_three_pings_that_come_to_nothing_open_the_breaker_of_that_session(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.warm()
        bench.provider.usage = Usage(input_tokens=7)
        for _ in range(5):
            await bench.pass_time(DUE)
            await bench.turn()
        assert bench.outcomes() == {"nothing": 3}
        assert bench.decided("breaker") == 2
        # Of another model, or once an operator says so, it is closed.
        bench.provider.usage = WARM
        bench.link.switch = replace(ON, change=2, sessions=[HandSet("s", "auto", bench.wall)])
        await bench.look()
        await bench.turn()
        await bench.pass_time(DUE)
        assert bench.outcomes() == {"nothing": 3, "hit": 1}

    run(scenario)


@pytest.mark.parametrize(("status", "reason"), [(401, "credential"), (529, "backoff"), (0, "backoff")])
def test_refused_ping_bars_those_of_other_sessions(bench: Bench, status: int, reason: str) -> None:
    async def scenario() -> None:
        await bench.warm()
        await bench.warm(session="t")
        bench.provider.status = status
        await bench.pass_time(DUE - 5)
        await bench.turn(session="s")  # So that they are due one after the other.
        await bench.pass_time(5)
        bench.provider.status = 200
        assert bench.outcomes() == {"error": 1}
        (latch,) = bench.warmer.latches()
        assert latch.until > bench.wall
        await bench.pass_time(20)
        watched = bench.warmer._watched["s"]
        bench.steady = watched.due_at  # Before a minute has passed by the wall clock.
        await bench.look()
        assert bench.decided(reason) == 1 and bench.outcomes() == {"error": 1}

    run(scenario)


def test_machine_that_slept_sends_nothing_into_a_cold_cache(bench: Bench) -> None:
    """The steady clock may stand still in a sleep; the wall clock does not."""

    async def scenario() -> None:
        await bench.warm()
        bench.wall += 8 * 3_600 * 1_000
        await bench.pass_time(DUE)
        assert bench.rows() == [] and bench.decided("expired") == 1

    run(scenario)


def test_wall_clock_that_is_set_back_or_on_a_little_changes_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        for number, step in enumerate((-3_600_000, 200_000)):
            await bench.warm(session=f"s{number}")
            bench.wall += step
            await bench.pass_time(30)
            assert len(bench.rows()) == 2 * number, "it is not due"
            await bench.pass_time(DUE - 30 - (step / 1_000 if step > 0 else 0))
            bench.wall -= step

    run(scenario)


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        await bench.warm(session="old")
        size = bench.warmer.shown()["kept_bytes"]
        monkeypatch.setattr(warmers, "KEPT_BYTES_MAX", size)
        for _ in range(3):
            await bench.turn(session="new")
        assert bench.warmer.shown()["watched_sessions"] == 2
        assert bench.warmer.shown()["kept_requests"] == 1 and bench.warmer._watched["new"].request is not None
        monkeypatch.setattr(warmers, "WATCHED_MAX", 1)
        await bench.warm(session="newest")
        assert list(bench.warmer._watched) == ["newest"]
        assert bench.warmer.shown()["kept_bytes"] <= size

    run(scenario)


def test_only_so_many_are_under_way_at_once_and_the_rest_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmers, "PINGS_MAX", 1)

    async def scenario() -> None:
        await bench.warm(session="s")
        await bench.turn(session="t")
        await bench.turn(session="t")
        await bench.turn(session="t")
        opened = asyncio.Event()
        bench.provider.gate = opened.wait  # type: ignore[assignment]
        await bench.pass_time(DUE)
        assert len(bench.provider.bodies) == 1
        opened.set()
        bench.provider.gate = None
        await bench.settle()
        await bench.pass_time(2)
        assert bench.outcomes() == {"hit": 2}

    run(scenario)


def test_stop_cuts_off_what_is_under_way_and_books_it(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.warm()
        bench.provider.gate = asyncio.Event().wait  # type: ignore[assignment]
        await bench.pass_time(DUE)
        await bench.warmer.stop()
        assert [row.status for row in bench.rows() if row.is_settled] == ["interrupted"]
        assert bench.outcomes() == {"cut": 1}
        await bench.turn()
        assert bench.warmer.shown()["kept_requests"] == 0

    run(scenario)


def test_fault_of_our_own_ends_the_daemon_and_not_only_the_ping(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.warm()
        bench.provider.gate = lambda: (_ for _ in ()).throw(ZeroDivisionError)
        await bench.pass_time(DUE)
        with pytest.raises(ZeroDivisionError):
            await bench.look()

    run(scenario)
