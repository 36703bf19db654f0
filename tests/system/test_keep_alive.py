"""Prompt caches kept warm, with real processes: what the provider gets, what is booked, and what never is sent.

One rule: a window of five minutes passes in a moment, by the daemons' clocks; nothing else is made shorter.

Theory.  Daemons run under clocks of the test's own (`tests.faults.program`): both the wall's and the steady one are
moved on at once, as if the time had passed, and what is due by then happens at the daemon's next look.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from daemon.amend import amend
from tests.clients import API_KEY, AnthropicTalk
from tests.faults.outdoors import Outdoors
from tests.faults.program import Weather
from tests.processes import Gateway, eventually
from tests.provider import Canned, Script, ScriptedProvider
from tests.provider.ledger import Arrived
from tests.security.marks import leaks
from tests.security.tap import Tap
from tests.system.test_cli import perdure
from worker.protocol import Row, Warm, WarmTo

pytestmark = pytest.mark.system

DUE_SECONDS: Final = 256.0
"""A second after a ping is due in a window of five minutes."""
OVER_SECONDS: Final = 310.0
PAUSE_SECONDS: Final = 1_000.0


class Warmed(Outdoors):
    """A gateway whose daemons' clocks can be moved on."""

    def __init__(
        self, provider: ScriptedProvider, *, daemons: int = 1, tap: Tap | None = None, **settings: object
    ) -> None:
        """`tap`: what daemons and worker say to each other passes through it."""
        names = ["daemon", *(f"daemon-{number}" for number in range(2, daemons + 1))]
        if tap is not None:
            settings["worker_url"] = f"ipc://{tap.target}"
        super().__init__(provider, under={name: Weather() for name in names}, daemons=daemons, **settings)
        self._seconds = 0.0
        if tap is not None:
            tapped = [f"PERDURE_WORKER_URL=ipc://{tap.path}"]
            self._programs = {name: [run[0], *tapped, *run[1:]] for name, run in self._programs.items()}

    def switch(self, to: WarmTo, session: str = "") -> None:
        """As `perdure warm` does it; returns when every daemon knows."""
        url = self.environment.get("PERDURE_WORKER_URL", f"ipc://{self.directory}/run/worker.sock")
        amend(Warm(to=to, session_id=session), url, None)
        wanted = self.query("SELECT max(id) FROM session_change")[0][0]
        for daemon in self.daemons:
            eventually(partial(self.knows, daemon, wanted), what=f"{daemon} knows of the switch")

    def knows(self, daemon: str, change: int) -> bool:
        """A daemon goes by that change of the switch."""
        _status, body = self.get("/api/warm", daemon) or (0, b"{}")
        return bool(json.loads(body).get("change") == change)

    def pass_time(self, seconds: float) -> None:
        self._seconds += seconds
        for daemon in filter(self.is_running, self.daemons):
            self.set(daemon, Weather(clock_seconds=self._seconds, uptime_seconds=self._seconds))

    def pause_between_turns(self) -> None:
        """Longer than a window: its user comes back later, and it is worth to wait for."""
        self.pass_time(PAUSE_SECONDS)
        self.wait_ready()

    def pings(self) -> list[Row]:
        return [row for row in self.rows() if row.kind == "warmup"]

    def decided(self, mode: str, decision: str) -> float:
        _status, text = self.get("/metrics") or (0, b"")
        name = f'perdure_ping_decisions_total{{decision="{decision}",mode="{mode}"}}'
        return sum(float(line.split()[-1]) for line in text.decode().splitlines() if line.startswith(name))


def is_ping(request: Arrived) -> bool:
    return request.path == "/v1/messages" and b'"max_tokens":0' in request.body.replace(b": ", b":")


def pings_at(provider: ScriptedProvider) -> list[Arrived]:
    return [request for request in provider.requests if is_ping(request)]


@contextmanager
def conversation(gateway: Warmed, session: str = "talk-1", **more: Any) -> Iterator[AnthropicTalk]:
    """One whose user pauses for longer than a window and comes back, and whose last answer called a tool."""
    with AnthropicTalk(gateway.url, session, **more) as talk:
        for number in range(3):
            talk.say(f"words {number} " + "lorem ipsum " * 100, stream=number % 2 == 0)
            gateway.pause_between_turns()
        talk.answer_tools(talk.say("use-tool:1 and go on", stream=True), stream=True)
        yield talk


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


def test_ping_is_the_last_request_once_more_and_keeps_the_cache_warm(provider: ScriptedProvider) -> None:
    with Warmed(provider) as gateway:
        gateway.start()
        gateway.switch("on")
        with conversation(gateway) as talk:
            last = provider.requests[-1]
            gateway.pass_time(DUE_SECONDS)
            provider.wait_until(lambda: bool(pings_at(provider)))
            (ping,) = pings_at(provider)
            assert ping.body == last.body.replace(b'"max_tokens":8192', b'"max_tokens":0').replace(
                b'"stream":true', b'"stream":false'
            )
            unlike = ("content-length", "host")
            sent, again = (
                [header for header in request.headers if header[0].lower() not in unlike] for request in (last, ping)
            )
            assert sent == again, "the provider is to take it for the same client's"
            (row,) = eventually(lambda: [each for each in gateway.pings() if each.is_settled])
            assert row.status == "complete" and row.http_status == 200 and row.cost_nanousd
            assert row.usage is not None and row.usage.cache_read_tokens > 500 and not row.usage.cache_write_tokens
            turns = [each for each in gateway.rows() if each.kind == "turn"]
            assert row.window_started_at == turns[-1].started_at

            # A window on: the next ping.  The user comes back in the third one.
            gateway.pass_time(DUE_SECONDS)
            provider.wait_until(lambda: len(pings_at(provider)) == 2)
            rows = eventually(lambda: gateway.pings() if gateway.pings()[1:] else [])
            assert rows[1].window_started_at == row.started_at
            gateway.pass_time(60)
            talk.say("back again")
            (shown,) = gateway.sessions()
            assert (shown["warmup"]["hits"], shown["warmup"]["break_warmups"]) == (1, 0)
            assert shown["turns"] == len(turns) + 1, "pings are no turns"


def test_switched_off_it_decides_and_counts_and_sends_nothing(provider: ScriptedProvider) -> None:
    with Warmed(provider) as gateway:
        gateway.start()
        with conversation(gateway):
            before = gateway.decided("shadow", "send")
            gateway.pass_time(DUE_SECONDS)
            eventually(
                lambda: gateway.decided("shadow", "send") == before + 1, what="it counts what would have been sent"
            )
            gateway.switch("on")
            gateway.pass_time(20)
        assert gateway.pings() == [] and pings_at(provider) == []
        assert gateway.decided("live", "send") == 0


def test_session_that_is_switched_on_alone_is_warmed_alone_and_off_is_off_at_once(provider: ScriptedProvider) -> None:
    with Warmed(provider) as gateway:
        gateway.start()
        with conversation(gateway) as talk, conversation(gateway, "talk-2") as other:
            (named,) = [each for each in gateway.sessions() if each["header_session_id"] == "talk-1"]
            gateway.switch("on", named["session_id"])
            talk.say("use-tool:1 known by now")
            other.say("use-tool:1 not this one")
            before = gateway.decided("shadow", "send")
            gateway.pass_time(DUE_SECONDS)
            eventually(lambda: gateway.decided("shadow", "send") == before + 1, what="the other one is in shadow")
            (row,) = eventually(lambda: [each for each in gateway.pings() if each.is_settled])
            assert row.session_id == named["session_id"]
            gateway.switch("off", named["session_id"])
            gateway.pass_time(DUE_SECONDS)
            eventually(lambda: gateway.decided("shadow", "by-hand") == 1)
        assert len(gateway.pings()) == len(pings_at(provider)) == 1


def test_two_daemons_and_a_restart_of_all_send_one_ping_for_a_window(provider: ScriptedProvider) -> None:
    with Warmed(provider, daemons=2) as gateway:
        gateway.start()
        gateway.switch("on")
        with conversation(gateway) as first, AnthropicTalk(gateway.url_of("daemon-2"), "talk-1") as second:
            second.history = list(first.history)
            second.answer_tools(second.say("use-tool:1 on the other daemon"))
            gateway.pass_time(DUE_SECONDS)
            eventually(lambda: [each for each in gateway.pings() if each.is_settled])
            gateway.kill_all()
            gateway.start()
            gateway.pass_time(DUE_SECONDS)
            # Nothing is remembered but by the ledger: it goes on with the next turn.
            second.say("use-tool:1 after the restart")
            gateway.pass_time(DUE_SECONDS)
            eventually(lambda: len([each for each in gateway.pings() if each.is_settled]) == 2)
        windows = [(row.session_id, row.window_started_at) for row in gateway.pings()]
        assert len(windows) == len(set(windows)) == len(pings_at(provider)) == 2
        assert len({session for session, _ in windows}) == 1


def test_without_the_worker_nothing_is_sent(provider: ScriptedProvider) -> None:
    with Warmed(provider) as gateway:
        gateway.start()
        gateway.switch("on")
        with conversation(gateway):
            missed = gateway.decided("live", "expired")
            gateway.kill("worker")
            gateway.wait_status("degraded")
            gateway.pass_time(DUE_SECONDS)
            gateway.pass_time(OVER_SECONDS - DUE_SECONDS)
            eventually(lambda: gateway.decided("live", "expired") == missed + 1, what="its window passed by")
            gateway.start_worker()
            gateway.wait_ready()
        assert gateway.pings() == [] and pings_at(provider) == []


def test_worker_that_hangs_over_the_question_lets_nothing_be_sent(provider: ScriptedProvider) -> None:
    """Its word comes too late: the row is ended, and the window has had its ping."""
    with Warmed(provider) as gateway:
        gateway.start()
        gateway.switch("on")
        with conversation(gateway):
            gateway.pause("worker")
            gateway.pass_time(DUE_SECONDS)
            gateway.pass_time(OVER_SECONDS - DUE_SECONDS)
            gateway.resume("worker")
            gateway.wait_ready()
            eventually(lambda: all(row.is_settled for row in gateway.rows()))
        assert pings_at(provider) == []
        assert {row.status for row in gateway.pings()} <= {"interrupted"}


DYING: Final = """
import os, signal, sys
from daemon.warmer import Warmer

async def die(self, watched, request):
    os.kill(os.getpid(), signal.SIGKILL)

Warmer._exchange = die
sys.argv = ["program", "daemon", {sky!r}]
from tests.faults.program import main
sys.exit(main())
"""


def test_daemon_killed_between_the_commit_and_the_ping_has_used_its_window(provider: ScriptedProvider) -> None:
    with Warmed(provider) as gateway:
        sky = next(path for path in gateway._skies.iterdir() if path.name == "daemon")
        root = Path(__file__).resolve().parents[2]
        usual = gateway._programs["daemon"]
        dying = ["env", f"PYTHONPATH={root}", sys.executable, "-P", "-c", DYING.format(sky=os.fspath(sky))]
        gateway._programs = {**gateway._programs, "daemon": dying}
        gateway.start()
        gateway.switch("on")
        with conversation(gateway) as talk:
            gateway.pass_time(DUE_SECONDS)
            assert gateway.wait_stopped("daemon") == -signal.SIGKILL
            (row,) = gateway.pings()
            assert row.status == "interrupted" and not row.is_settled and row.window_started_at
            gateway._programs = {**gateway._programs, "daemon": usual}
            gateway.start()
            gateway.pass_time(20)
            eventually(lambda: gateway.knows("daemon", 1))
            assert pings_at(provider) == [] and len(gateway.pings()) == 1
            talk.say("use-tool:1 a new window")
            gateway.pass_time(DUE_SECONDS)
            eventually(lambda: len(pings_at(provider)) == 1)
        assert len({(each.session_id, each.window_started_at) for each in gateway.pings()}) == 2


def test_stop_cuts_a_ping_off_and_books_it(provider: ScriptedProvider) -> None:
    provider.script(lambda request: Script(slow_headers="gate") if is_ping(request) else None)
    with Warmed(provider) as gateway:
        gateway.start()
        gateway.switch("on")
        with conversation(gateway):
            gateway.pass_time(DUE_SECONDS)
            provider.wait_held("gate")
        assert gateway.stop("daemon") == 0
        (row,) = gateway.pings()
        assert row.is_settled and row.status == "interrupted" and row.usage is None


def test_turn_does_not_wait_for_a_ping(provider: ScriptedProvider) -> None:
    provider.script(lambda request: Script(slow_headers="gate") if is_ping(request) else None)
    with Warmed(provider) as gateway:
        gateway.start()
        gateway.switch("on")
        with conversation(gateway) as talk:
            gateway.pass_time(DUE_SECONDS)
            provider.wait_held("gate")
            assert talk.say("meanwhile").session
            provider.release("gate")
            eventually(lambda: all(row.is_settled for row in gateway.rows()))
        assert len(gateway.sessions()) == 1, "and a ping makes no fork of it"


NO_ZERO: Final = Canned(
    status=400,
    headers=(("content-type", "application/json"),),
    body=b'{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens: must be at least 1"}}',
)


def test_upstream_that_wants_a_token_gets_one_and_is_remembered(provider: ScriptedProvider) -> None:
    provider.script(lambda request: NO_ZERO if is_ping(request) else None)
    with Warmed(provider) as gateway:
        gateway.start()
        gateway.switch("on")
        with conversation(gateway) as talk:
            gateway.pass_time(DUE_SECONDS)
            (row,) = eventually(lambda: [each for each in gateway.pings() if each.is_settled])
            assert row.status == "complete" and row.usage is not None and row.usage.cache_read_tokens
            assert json.loads(provider.requests[-1].body)["max_tokens"] == 1
            gateway.pass_time(DUE_SECONDS)
            eventually(lambda: len([each for each in gateway.pings() if each.is_settled]) == 2)
            assert len(pings_at(provider)) == 1, "it was not asked for none again"
            (latch,) = shown_by(gateway)["latches"]
            assert (latch["scope"], latch["name"]) == ("upstream", "anthropic") and "one token" in latch["reason"]
            talk.say("on")


def test_thinking_session_is_not_pinged_where_one_token_is_wanted(provider: ScriptedProvider) -> None:
    provider.script(lambda request: NO_ZERO if is_ping(request) else None)
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    with Warmed(provider) as gateway:
        gateway.start()
        gateway.switch("on")
        with conversation(gateway, extra=thinking) as talk:
            gateway.pass_time(DUE_SECONDS)
            (row,) = eventually(lambda: [each for each in gateway.pings() if each.is_settled])
            assert (row.status, row.http_status) == ("error", 400)
            talk.say("use-tool:1 still here")
            gateway.pass_time(DUE_SECONDS)
            eventually(lambda: gateway.decided("live", "thinking") == 1)
        assert len(pings_at(provider)) == 1


@pytest.mark.parametrize(("status", "scope"), [(401, "credential"), (529, "upstream")])
def test_refused_ping_latches_and_a_reset_opens_it(provider: ScriptedProvider, status: int, scope: str) -> None:
    refusal = Canned(status=status, headers=(("retry-after", "900"),), body=b'{"type":"error"}')
    with Warmed(provider) as gateway:
        gateway.start()
        gateway.switch("on")
        with conversation(gateway):
            provider.script(lambda request: refusal if is_ping(request) else None)
            gateway.pass_time(DUE_SECONDS)
            (ping,) = eventually(lambda: [row for row in gateway.pings() if row.is_settled])
            assert ping.http_status == status
            (latch,) = eventually(lambda: shown_by(gateway)["latches"])
            assert latch["scope"] == scope and latch["until"]
            assert API_KEY not in json.dumps(latch)
            gateway.switch("reset")
            eventually(lambda: shown_by(gateway)["latches"] == [])


def shown_by(gateway: Gateway) -> dict[str, Any]:
    _status, body = gateway.get("/api/warm") or (0, b"{}")
    shown: dict[str, Any] = json.loads(body)
    return shown


def test_request_and_credential_are_in_memory_alone(provider: ScriptedProvider) -> None:
    said, key = "Mk-said-in-warmed-9f7Qx", "Mk-key-of-warmed-4c1Zv"
    with Tap() as tap, Warmed(provider, tap=tap, log_level="debug", tick_seconds=0.1) as gateway:
        gateway.start()
        gateway.switch("on")
        with conversation(gateway, api_key=key, extra={"system": said}):
            eventually(lambda: shown_by(gateway)["kept_requests"] == 1)
            gateway.pass_time(DUE_SECONDS)
            eventually(lambda: [each for each in gateway.pings() if each.is_settled])
            assert said.encode() in pings_at(provider)[0].body
            places = {path: (gateway.get(path) or (0, b""))[1] for path in ("/metrics", "/api/warm", "/api/sessions")}
            gateway.switch("off")
            eventually(lambda: shown_by(gateway)["kept_requests"] == 0, what="switched off, nothing is kept")
        assert gateway.stop("daemon") == 0
        places |= {str(path): path.read_bytes() for path in gateway.directory.rglob("*") if path.is_file()}
        places |= tap.seen()
    assert sum(len(data) for place, data in places.items() if "wire" in place) > 10_000, "the wire was tapped"
    found = leaks(places, [said, key])
    assert not found and any(b"ping settled" in data for data in places.values()), found


# -- the command -----------------------------------------------------------------------------------------------------


def warm(gateway: Gateway, *arguments: str) -> Any:
    """`perdure warm … --json`, as it is understood."""
    run = perdure("warm", *arguments, "--json", **gateway.environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_command_switches_it_shows_it_and_does_nothing_without_the_worker(provider: ScriptedProvider) -> None:
    with Warmed(provider) as gateway:
        gateway.start()
        with conversation(gateway) as talk:
            pass
        (session,) = gateway.sessions()
        ours = session["session_id"]

        before = warm(gateway)
        assert before["switch"] == "off" and before["total"]["sent"]["pings"] == 0
        (told,) = before["sessions"]
        assert told["session_id"] == ours and told["shadow"]["pings"] > 0, "its pauses were long"
        assert before["total"]["shadow"] == told["shadow"]
        assert told["shadow"]["net_nanousd"] == told["shadow"]["saved_nanousd"] - told["shadow"]["cost_nanousd"]

        run = perdure("warm", "--on", **gateway.environment)
        assert (run.returncode, run.stdout) == (0, "change 1: keep-alive of all sessions is on\n")
        assert warm(gateway, "--off", ours[:8]) == {
            "change": 2,
            "verb": "warm off",
            "session_id": ours,
            "moved": 0,
        }
        after = warm(gateway)
        assert after["switch"] == "on" and after["latches_known"]
        assert after["by_hand"] == [{"session_id": ours, "setting": "off", "reset_at": None}]
        page = perdure("warm", **gateway.environment).stdout
        assert page.splitlines()[0] == "Keep-alive  on" and max(map(len, page.splitlines())) <= 80
        assert "off: by hand" in perdure("show", ours, **gateway.environment).stdout
        assert "warm off" in perdure("session", "log", **gateway.environment).stdout
        assert warm(gateway, "--reset")["moved"] == 1

        # It survives what everything else survives.
        gateway.kill_all()
        assert warm(gateway)["switch"] == "on", "with every process dead"
        refused = perdure("warm", "--off", **gateway.environment)
        assert refused.returncode == 75 and len(refused.stderr.splitlines()) == 1
        gateway.start()
        eventually(lambda: gateway.knows("daemon", 3))
        assert shown_by(gateway)["switch"] == "on"
        assert talk.history
