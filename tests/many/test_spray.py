"""Fifty sessions over four daemons that are struck at random; and what a session's hand-over costs when nothing else is
going on."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Tell
from tests.crash.conversation import Attempt, Conversation
from tests.many import testimony, witness
from tests.many.reckoning import reckon
from tests.many.spray import DECK, STRIKES_MIN, TURNS_PER_STRIKE, Spray, Strike, planned, witnessed
from tests.many.testimony import knowledge_of, percentile
from tests.processes import HOST, Gateway, free_ports
from tests.provider import ScriptedProvider
from worker.curve import make_keys
from worker.protocol import Row, Usage

SESSIONS: Final = 50
DAEMONS: Final = 4
TURNS: Final = 2_000
SMALL_TURNS: Final = 200
HOPS: Final = 100

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_spray_over_four_daemons_struck_at_random_is_one_gateway(tell: Tell) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    with ScriptedProvider() as provider:
        spray = Spray(provider, sessions=SESSIONS, daemons=DAEMONS, turns=TURNS, seed=seed)
        report = spray.run()
    said = report.summary()
    tell(
        f"spray, seed {seed}: {report.turns} turns over {DAEMONS} daemons, {sum(report.strikes.values())} strikes, "
        f"{said['facts']} facts, {said['excused']} excused, {said['parted']} parted; hand-over under strikes: "
        f"p50 {said['handover_p50_ms']} ms, p99 {said['handover_p99_ms']} ms"
    )
    assert len(report.claims) > SESSIONS
    assert report.reckoning.excused < report.reckoning.facts / 10
    assert set(report.strikes) == {str(strike) for strike in DECK}
    assert report.knowledge.compared > TURNS / 2
    assert report.knowledge.joined < report.knowledge.compared / 20


def test_spray_over_tcp_is_one_gateway(tell: Tell) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
    make_keys(directory / "keys", "")
    settings = {"worker_url": f"tcp://{HOST}:{free_ports(1)[0]}", "curve_dir": directory / "keys"}
    try:
        with ScriptedProvider() as provider:
            spray = Spray(provider, sessions=10, daemons=2, turns=SMALL_TURNS, seed=seed, settings=settings)
            report = spray.run()
    finally:
        shutil.rmtree(directory)
    tell(f"spray over tcp, seed {seed}: {report.turns} turns, {sum(report.strikes.values())} strikes")
    assert {strike.partition(" ")[0] for strike in report.strikes} == {"daemon", "worker"}
    assert report.knowledge.compared > SMALL_TURNS / 2


@pytest.mark.parametrize("turns", [1, 200, 1_350, 2_000, 3_000])
def test_plan_of_a_spray_strikes_every_victim_and_with_turns_enough_in_every_way(turns: int) -> None:
    for seed in range(50):
        rounds = planned(turns, ["daemon", "daemon-2"], random.Random(seed))
        strikes = Counter(
            Strike(victim.partition("-")[0], blow) for each in rounds for victim, blow in each.struck.items()
        )
        assert strikes.total() == max(STRIKES_MIN, turns // TURNS_PER_STRIKE)
        assert {strike.victim for strike in strikes} == {"daemon", "worker"}
        assert all(strikes[strike] >= strikes.total() // len(DECK) * DECK.count(strike) for strike in DECK)
        places = [each.turns for each in rounds]
        assert places == sorted(places) and places[-1] < turns


def test_session_that_goes_from_daemon_to_daemon_is_known_before_the_provider_is_asked(tell: Tell) -> None:
    """Nothing beside it, so that also the BEGIN itself was written with everything known."""
    with ScriptedProvider() as provider, Gateway(provider, daemons=2, programs=witnessed(2)) as gateway:
        gateway.start()
        talk = Conversation("messages", "going around")
        staying = [_first_byte_seconds(gateway, talk, number, "daemon") for number in range(1, HOPS)]
        hopping = [_first_byte_seconds(gateway, talk, HOPS + n, gateway.daemons[1 - n % 2]) for n in range(HOPS)]
        lines = testimony.read(gateway.directory / witness.FILE)
        claims = [line["waited"] for line in lines if line["what"] == "claimed" and line["epoch"] > 1]
        tell(
            f"hand-over between idle daemons: CLAIM to ACK p50 {_ms(claims, 50)}, p99 {_ms(claims, 99)}; first byte on "
            f"the same daemon p50 {_ms(staying, 50)}, p99 {_ms(staying, 99)}, on the other p50 {_ms(hopping, 50)}, "
            f"p99 {_ms(hopping, 99)}"
        )
        known = {line["mark"]: line["knows"] for line in lines if line["what"] == "begin"}
        assert known == {f"attempt-{number}": number - 1 for number in range(1, 2 * HOPS)}
        assert len(claims) == HOPS
        assert provider.usage_total().output_tokens == gateway.session(talk.expected_session)["output_tokens"]


def test_witness_of_a_daemon_that_did_not_know_is_heard() -> None:
    rows = [_row(1, position=1), _row(2, position=2)]
    lines: list[dict[str, Any]] = [
        {"what": "ended", "at": 1.0, "daemon": "one", "mark": "attempt-1"},
        {"what": "begin", "at": 3.0, "daemon": "two", "mark": "attempt-2", "knows": 0},
        {"what": "begun", "at": 4.0, "daemon": "two", "mark": "attempt-2", "knows": 0},
    ]
    assert knowledge_of(lines, rows, {"attempt-2": 2.0}).stale
    assert knowledge_of(lines, rows, {"attempt-2": 2.0}).late == 1
    # Its session was another one then, of which the worker knew no more.
    joined = knowledge_of(lines, rows, {"attempt-2": 2.0}, {"attempt-2": "before"})
    assert (joined.stale, joined.joined) == ([], 1)
    # It was sent before the other turn had finished.
    assert not knowledge_of(lines, rows, {"attempt-2": 0.5}).stale


@pytest.mark.parametrize(
    ("rows", "told", "is_excused", "kind"),
    [
        ([], "s", False, "lost"),
        ([], "s", True, ""),
        ([1, 1], "s", False, "doubled"),
        ([1], "another", False, "wrong"),
        ([1], "s", False, ""),
    ],
)
def test_reckoning_finds_what_is_lost_doubled_or_wrong(rows: list[int], told: str, is_excused: bool, kind: str) -> None:
    attempt = Attempt(1, Conversation("chat"), "question", first_byte_at=1.0, status=200, session=told)
    excused = frozenset({attempt.mark} if is_excused else ())
    found = reckon([attempt], [_row(n, position=n) for n in rows], {}, {}, unheard=excused, excused=excused)
    assert {name for name in ("lost", "doubled", "wrong") if getattr(found, name)} == ({kind} if kind else set())


def _first_byte_seconds(gateway: Gateway, talk: Conversation, number: int, daemon: str) -> float:
    with gateway.client(daemon) as client:
        attempt = Attempt(number, talk, f"question {number} words:1")
        assert talk.exchange(client, attempt, stream=True).complete
    assert attempt.sent_at <= attempt.first_byte_at <= time.monotonic()
    return attempt.first_byte_at - attempt.sent_at


def _ms(seconds: list[float], percent: float) -> str:
    return f"{1000 * percentile(seconds, percent):.1f} ms"


def _row(number: int, *, position: int) -> Row:
    return Row(
        event_id=f"event-{number}",
        session_id="s",
        kind="turn",
        status="interrupted",
        started_at=1,
        provider="openai",
        protocol="chat",
        model="gpt-5",
        client=f"attempt-{number}",
        position=position,
        usage=Usage(),
    )
