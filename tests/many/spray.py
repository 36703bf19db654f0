"""The spray: sessions whose every request goes to a daemon drawn at random, while processes are struck at random.

One rule: all chance comes from one seed, and when it is over nothing is in flight and everything is checked.

Theory.  A *voice* is one thread of conversation; a session its client named may have several at once, so that turns of
one session run beside each other on different daemons.  For each request a voice draws a daemon, as a load balancer
would; some requests are sent twice at once (hedged), and some are given up early.  What was not answered to its end is
sent again.  Beside them *strikes* are drawn from a deck: SIGKILL, SIGSTOP and SIGTERM of daemons and worker, one or
two at a time, for a while.  They are planned before the first request, each with its place among the turns, and voices
speak until the last one was made good: a crowd that is faster or slower than usual is struck as often.  Then what
clients were promised is held against what is stored (`reckoning`), and what the daemons knew against what had finished
(`testimony`).
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from tests.clients import RawClient
from tests.crash.checker import answers_by_mark, check_totals
from tests.crash.conversation import Attempt, Conversation
from tests.many import testimony, witness
from tests.many.reckoning import Reckoning, reckon
from tests.many.testimony import Knowledge, percentile
from tests.processes import DEADLINE_SECONDS, POLL_SECONDS, Gateway
from tests.provider import ScriptedProvider
from worker.protocol import Protocol

TICK_SECONDS: Final = 0.2
"""Snapshots travel all the time, so that strikes and hand-overs meet them."""
PROTOCOLS: Final[tuple[Protocol, ...]] = ("messages", "chat", "responses")
UNNAMED_EVERY: Final = 3
"""Of so many sessions one is not named by its client."""
VOICES: Final = (1, 1, 2, 3)
"""How many conversations a named session has at once, in turn."""
PATIENCE_SECONDS: Final = 10.0
IMPATIENCE_SECONDS: Final = 0.3
"""What a client waits that gives up early: longer than a turn takes, shorter than a process is stopped."""
IMPATIENT_SHARE: Final = 0.1
HEDGED_SHARE: Final = 0.05
TURNS_PER_STRIKE: Final = 150
STRIKES_MIN: Final = 4
"""However few turns: each victim is struck, and some of them at once."""
OUTAGE_SECONDS: Final = (0.05, 0.4, 0.8)
"""How long what was struck stays so."""
TOGETHER_SHARE: Final = 1 / 3
LONG_STOP_SECONDS: Final = 3.5
"""A daemon that was stopped for longer than the worker takes for its death (three seconds)."""
LONG_STOP_EVERY: Final = 9
"""Of so many strikes one is that."""
THINKING_SECONDS: Final = 0.3
"""A user thinks as long at most; the model takes about the same.  So strikes are spread over the turns, and meet most
of them in mid-stream."""
EVENT_MILLISECONDS_MAX: Final = 30
PROGRESS_DEADLINE_SECONDS: Final = 120.0
"""For the turns between two strikes, which take a second on an idle machine: who needs longer is stuck."""


class Blow(Enum):
    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    TERM = "SIGTERM"


class Strike(NamedTuple):
    victim: str
    """ "worker", or "daemon" for one of them."""
    blow: Blow

    def __str__(self) -> str:
        return f"{self.victim} {self.blow.value}"


DECK: Final = (
    *(Strike("daemon", blow) for blow in Blow for _ in range(2)),
    *(Strike("worker", blow) for blow in Blow),
)


class Round(NamedTuple):
    """What is struck at once, after how many turns, and how long it stays so."""

    turns: int
    struck: Mapping[str, Blow]
    """By process."""
    seconds: float


@dataclass
class Report:
    """What a spray was, and what it found."""

    seed: int
    sessions: int
    daemons: int
    turns: int = 0
    attempts: int = 0
    refused: int = 0
    """Connections that nobody took."""
    strikes: Counter[str] = field(default_factory=Counter)
    reckoning: Reckoning = field(default_factory=Reckoning)
    totals: list[str] = field(default_factory=list)
    """Sums, states and positions that are not those of the ledger."""
    knowledge: Knowledge = field(default_factory=Knowledge)
    given_up: int = 0
    """Waits for the worker's word that a daemon gave up."""
    claims: list[float] = field(default_factory=list)
    """Seconds from CLAIM to ACK of claims that made another daemon the owner, under all this."""

    @property
    def faults(self) -> list[str]:
        return [*self.reckoning.faults, *self.totals, *self.knowledge.stale, *self.knowledge.impatient]

    def summary(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "sessions": self.sessions,
            "daemons": self.daemons,
            "turns": self.turns,
            "attempts": self.attempts,
            "refused_connections": self.refused,
            "strikes": dict(sorted(self.strikes.items())),
            "facts": self.reckoning.facts,
            "excused": self.reckoning.excused,
            "parted": self.reckoning.parted,
            "lost": len(self.reckoning.lost),
            "doubled": len(self.reckoning.doubled),
            "wrong": len(self.reckoning.wrong) + len(self.totals),
            "knowledge_compared": self.knowledge.compared,
            "knew_late": self.knowledge.late,
            "joined_since": self.knowledge.joined,
            "stale": len(self.knowledge.stale),
            "acknowledgements_given_up": self.given_up,
            "handovers": len(self.claims),
            "handover_p50_ms": round(1000 * percentile(self.claims, 50), 3),
            "handover_p99_ms": round(1000 * percentile(self.claims, 99), 3),
            "faults": self.faults,
        }

    def __str__(self) -> str:
        said = self.summary()
        faults = said.pop("faults")
        return "\n".join([*(f"{name:26} {value}" for name, value in said.items()), *faults])


class Spray:
    """One spray over a gateway of its own.  `run` may be called once."""

    def __init__(
        self,
        provider: ScriptedProvider,
        *,
        sessions: int,
        daemons: int,
        turns: int,
        seed: int,
        settings: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self.report = Report(seed, sessions, daemons)
        self._provider = provider
        self._turns = turns
        self.gateway = Gateway(
            provider, daemons=daemons, programs=witnessed(daemons), **{"tick_seconds": TICK_SECONDS, **settings}
        )
        self.plan = planned(turns, self.gateway.daemons, random.Random(f"{seed}/strikes"))
        self._crowd = Crowd(self.gateway, sessions, seed)
        self._killed_at: defaultdict[str, list[float]] = defaultdict(list)

    def run(self) -> Report:
        with self.gateway:
            self.gateway.start()
            self._crowd.start()
            try:
                self._strike_around()
                self._crowd.wait_for_turns(self._turns)
            finally:
                self._crowd.stop()
            self._check()
            assert not self.report.faults, str(self.report)
        return self.report

    # -- strikes -----------------------------------------------------------------------------------------------------

    def _strike_around(self) -> None:
        for each in self.plan:
            self._crowd.wait_for_turns(each.turns)
            for victim, blow in each.struck.items():
                self._strike(victim, blow)
            time.sleep(each.seconds)  # Not to wait for anything: how long it lasts is what chance chose.
            # The worker first: a daemon that was told to stop waits for its word.
            for victim in sorted(each.struck, key=lambda victim: victim != "worker"):
                self._repair(victim, each.struck[victim])
            self.gateway.wait_ready(PROGRESS_DEADLINE_SECONDS)

    def _strike(self, victim: str, blow: Blow) -> None:
        self.report.strikes[str(Strike(victim.partition("-")[0], blow))] += 1
        if blow is Blow.KILL:
            self._killed_at[victim].append(time.monotonic())
            self.gateway.kill(victim)
        elif blow is Blow.STOP:
            self.gateway.pause(victim)
        else:
            self.gateway.terminate(victim)

    def _repair(self, victim: str, blow: Blow) -> None:
        if blow is Blow.STOP:
            self.gateway.resume(victim)
            return
        self.gateway.wait_stopped(victim, 2 * DEADLINE_SECONDS)
        if victim == "worker":
            self.gateway.start_worker()
        else:
            self.gateway.start_daemon(victim)

    # -- the reckoning -----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        self.gateway.start()
        report, attempts = self.report, self._crowd.attempts
        report.turns, report.attempts, report.refused = self._crowd.turns, len(attempts), self._crowd.refused
        lines = testimony.read(self.gateway.directory / witness.FILE)
        unheard = testimony.given_up(lines)
        report.reckoning = self._settled_reckoning(unheard)
        totals = check_totals(self.gateway)
        report.totals = [*totals.doubled, *totals.wrong]
        lines = testimony.read(self.gateway.directory / witness.FILE)
        sent_at = {attempt.mark: attempt.sent_at for attempt in attempts}
        told = {attempt.mark: attempt.session for attempt in attempts if attempt.session}
        report.knowledge = testimony.knowledge_of(lines, self.gateway.rows(), sent_at, told)
        report.given_up = len(unheard)
        report.claims = [line["waited"] for line in lines if line["what"] == "claimed" and line["epoch"] > 1]

    def _settled_reckoning(self, unheard: frozenset[str]) -> Reckoning:
        """Of what is stored now, or soon: daemons may still be delivering what they kept."""
        deadline = time.monotonic() + 2 * DEADLINE_SECONDS
        attempts, answers = self._crowd.attempts, answers_by_mark(self._provider.answers)
        excused = frozenset(a.mark for a in attempts if a.mark in unheard and self._was_killed_since(a))
        while True:
            aliases = dict(self.gateway.query("SELECT alias, session_id FROM session_alias"))
            found = reckon(attempts, self.gateway.rows(), answers, aliases, unheard=unheard, excused=excused)
            if not found.faults or time.monotonic() > deadline:
                return found
            time.sleep(POLL_SECONDS)

    def _was_killed_since(self, attempt: Attempt) -> bool:
        return any(at > attempt.sent_at for at in self._killed_at[attempt.daemon])


class Crowd:
    """All voices, until they are told to stop."""

    def __init__(self, gateway: Gateway, sessions: int, seed: int) -> None:
        self.attempts: list[Attempt] = []
        self.turns = 0
        self.refused = 0
        self._gateway = gateway
        self._is_over = False
        self._changed = threading.Condition()
        self._numbers = count(1)
        self._threads = [
            threading.Thread(target=self._speak, args=(talk, random.Random(f"{seed}/{place}")), daemon=True)
            for place, talk in enumerate(voices(sessions, seed))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No more requests; return when all have ended."""
        self._is_over = True
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS + DEADLINE_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def wait_for_turns(self, wanted: int) -> None:
        """Return when so many turns were answered; a crowd that stands still fails."""
        with self._changed:
            is_there = self._changed.wait_for(lambda: self.turns >= wanted, PROGRESS_DEADLINE_SECONDS)
        assert is_there, f"{self.turns} turns, not {wanted}: nothing goes on"

    def _speak(self, talk: Conversation, chance: random.Random) -> None:
        text = ""
        while not self._is_over:
            time.sleep(chance.uniform(0.0, THINKING_SECONDS))
            text = text or _question(chance)
            if self._ask(talk, text, chance):
                text = ""
                with self._changed:
                    self.turns += 1
                    self._changed.notify_all()

    def _ask(self, talk: Conversation, text: str, chance: random.Random) -> bool:
        """Send a turn, some of them twice at once; True when an answer came to its end."""
        is_hedged = bool(talk.name) and chance.random() < HEDGED_SHARE
        stream = bool(chance.getrandbits(1))
        patience = IMPATIENCE_SECONDS if chance.random() < IMPATIENT_SHARE else PATIENCE_SECONDS
        sent: list[tuple[RawClient, Attempt]] = []
        with ExitStack() as open_clients:
            for _ in range(2 if is_hedged else 1):
                daemon = chance.choice(self._gateway.daemons)
                try:
                    client = open_clients.enter_context(self._gateway.client(daemon, deadline_seconds=patience))
                except OSError:
                    self.refused += 1
                    continue
                attempt = Attempt(next(self._numbers), talk, text, daemon=daemon)
                self.attempts.append(attempt)
                try:
                    talk.send(client, attempt, stream=stream)
                except OSError:
                    continue  # It died while it was being written to.
                sent.append((client, attempt))
            return self._take(talk, sent)

    def _take(self, talk: Conversation, sent: list[tuple[RawClient, Attempt]]) -> bool:
        """Read what was asked for; the conversation goes on from the first answer that is whole."""
        is_answered = False
        for client, attempt in sent:
            if client.read_first_byte():
                attempt.first_byte_at = time.monotonic()
            answer = client.read()
            attempt.note(answer)
            if answer.complete and answer.status == 200 and not is_answered:
                talk.believe(attempt, answer)
                is_answered = True
            attempt.over = True
        return is_answered


def planned(turns: int, daemons: Sequence[str], chance: random.Random) -> list[Round]:
    """The rounds of a spray of so many turns, spread over all of them: of every combination in the deck as many, in a
    drawn order, on drawn daemons; two at once where they are not of one process."""
    rounds: list[Round] = []
    waiting = _drawn(max(STRIKES_MIN, turns // TURNS_PER_STRIKE), daemons, chance)
    long_stops = len(waiting) // LONG_STOP_EVERY
    while waiting:
        struck = dict([waiting.pop(0)])
        is_long = long_stops > 0 and Blow.STOP in struck.values() and "worker" not in struck
        long_stops -= is_long
        if waiting and not is_long and waiting[0][0] not in struck and chance.random() < TOGETHER_SHARE:
            struck |= dict([waiting.pop(0)])
        rounds.append(Round(0, struck, LONG_STOP_SECONDS if is_long else chance.choice(OUTAGE_SECONDS)))
    width = turns / len(rounds)
    return [each._replace(turns=int((place + chance.random()) * width)) for place, each in enumerate(rounds)]


def _drawn(count: int, daemons: Sequence[str], chance: random.Random) -> list[tuple[str, Blow]]:
    """So many strikes: whole decks, and then a part of one, in which each victim comes first once."""
    whole, rest = divmod(count, len(DECK))
    dealt = [strike for _ in range(whole) for strike in chance.sample(DECK, len(DECK))]
    last = chance.sample(DECK, len(DECK))
    for victim in ("worker", "daemon"):
        place = next(place for place, strike in enumerate(last) if strike.victim == victim)
        last.insert(0, last.pop(place))
    dealt += last[:rest]
    return [(each.victim if each.victim == "worker" else chance.choice(daemons), each.blow) for each in dealt]


def voices(sessions: int, seed: int) -> list[Conversation]:
    """Who speaks: one of three sessions without a name, of the others some with several voices."""
    found: list[Conversation] = []
    for number in range(sessions):
        protocol = PROTOCOLS[number // UNNAMED_EVERY % len(PROTOCOLS)]
        if number % UNNAMED_EVERY == 0:
            found.append(Conversation(protocol))
        else:
            name = f"spray-{seed}-{number}"
            found += [Conversation(protocol, name) for _ in range(VOICES[number % len(VOICES)])]
    return found


def _question(chance: random.Random) -> str:
    words, pause = chance.randint(1, 20), chance.randint(0, EVENT_MILLISECONDS_MAX)
    return f"question {chance.getrandbits(32)} words:{words} delay-ms:{pause}"


def witnessed(daemons: int) -> dict[str, list[str]]:
    """The commands of daemons with a witness, by their names in a gateway."""
    names = ["daemon", *(f"daemon-{number}" for number in range(2, daemons + 1))]
    path = str(Path(witness.__file__).resolve())
    return {name: [sys.executable, "-P", path, name] for name in names}
