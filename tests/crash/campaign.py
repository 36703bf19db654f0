"""The kill campaign: clients talk, processes are killed at random moments, and every fact is checked after each kill.

One rule: all chance comes from one seed, and a cycle ends with everything running, nobody speaking, nothing unchecked.

Theory.  A cycle draws what is killed (worker, daemon, both) and when (between turns, in mid-stream, at any moment
under load).  The clients go on as clients do: what was not answered to its end is sent again.  While the worker alone
is dead they are answered; so the campaign lets some of them be, restarts it, and demands everything.  A daemon is only
killed when the worker had confirmed all of the cycles before, because what the worker never confirmed dies with it:
`checker` says what else is excused.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Final

from tests.crash.checker import Findings, answers_by_mark, check_totals, excused_from, settled_findings
from tests.crash.crowd import EVERYBODY, Crowd
from tests.processes import Gateway
from tests.provider import ScriptedProvider

TICK_SECONDS: Final = 0.1
"""Snapshots are written all the time, so that kills meet them too."""
WARM_UP_ATTEMPTS: Final = (1, 8)
"""How many attempts are over, from … to …, before a strike."""
STRIKE_DELAY_SECONDS: Final = 0.02
"""A strike under load falls anywhere within this time: a turn takes about as long, a commit a tenth of it."""
CYCLES_PER_TOTAL: Final = 25
"""Sums and states of everything are checked this often, and at the end."""


class Target(Enum):
    WORKER = ("worker",)
    DAEMON = ("daemon",)
    BOTH = ("worker", "daemon")


class Moment(Enum):
    BETWEEN_TURNS = "between turns"
    MID_STREAM = "in mid-stream"
    ANY = "under load"


@dataclass
class Report:
    seed: int
    cycles: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    answered: int = 0
    findings: Findings = field(default_factory=Findings)

    def __str__(self) -> str:
        found = self.findings
        strikes = ", ".join(f"{strike} {times}" for strike, times in sorted(self.strikes.items()))
        return "\n".join(
            [
                f"seed      {self.seed}",
                f"cycles    {self.cycles} ({strikes})",
                f"attempts  {self.attempts}, answered to the end {self.answered}",
                f"facts     {found.facts} checked, {found.excused} excused",
                f"lost      {len(found.lost)}",
                f"doubled   {len(found.doubled)}",
                f"wrong     {len(found.wrong)}",
                *found.lost,
                *found.doubled,
                *found.wrong,
            ]
        )


class Campaign:
    """Runs cycles on a gateway of its own; `report` grows with each."""

    def __init__(self, provider: ScriptedProvider, gateway: Gateway, seed: int) -> None:
        self.report = Report(seed)
        self._provider = provider
        self._gateway = gateway
        self._chance = random.Random(seed)
        self._crowd = Crowd(gateway, seed)

    def run(self, cycles: int) -> Report:
        """Stops early at the first loss: what comes after it would only repeat it."""
        self._gateway.start()
        with self._crowd:
            for target, moment in self._strikes(cycles):
                self._cycle(target, moment)
                self.report.cycles += 1
                if self.report.cycles % CYCLES_PER_TOTAL == 0:
                    self.report.findings.add(check_totals(self._gateway))
                if not self.report.findings.are_good:
                    return self.report
            self.report.findings.add(check_totals(self._gateway))
        return self.report

    # -- the striker -------------------------------------------------------------------------------------------------

    def _strikes(self, cycles: int) -> Iterator[tuple[Target, Moment]]:
        """Every combination equally often, in a drawn order."""
        deck: list[tuple[Target, Moment]] = []
        for _ in range(cycles):
            if not deck:
                deck = [(target, moment) for target in Target for moment in Moment]
                self._chance.shuffle(deck)
            yield deck.pop()

    def _cycle(self, target: Target, moment: Moment) -> None:
        self.report.strikes[f"{'+'.join(target.value)} {moment.value}"] += 1
        first_attempt, first_answer = len(self._crowd.attempts), len(self._provider.answers)
        first_row = self._gateway.query("SELECT count(*) FROM ledger")[0][0]
        log_start = self._gateway.log_size("daemon")
        self._strike(target, moment)
        excused = inf if target is Target.WORKER else excused_from(self._gateway, "daemon", log_start)
        self._go_on(target)
        attempts = self._crowd.attempts[first_attempt:]
        answers = answers_by_mark(self._provider.answers[first_answer:])

        found = settled_findings(
            self._gateway,
            attempts,
            answers,
            first_row=first_row,
            excused_from_seconds=excused,
            worker_was_away=target is Target.WORKER,
        )
        if target is Target.WORKER:
            cut = [attempt.mark for attempt in attempts if not attempt.last_byte_at]
            found.wrong += [f"{mark}: cut, though only the worker was killed" for mark in cut]
        found.wrong += [f"{a.mark}: status {a.status}" for a in attempts if a.last_byte_at and a.status != 200]
        self.report.attempts += len(attempts)
        self.report.answered += sum(attempt.last_byte_at > 0 for attempt in attempts)
        self.report.findings.add(found)

    def _strike(self, target: Target, moment: Moment) -> None:
        gate = f"cycle-{self.report.cycles}" if moment is Moment.MID_STREAM else ""
        self._crowd.open(gate)
        if gate:
            self._provider.wait_held(gate)
        else:
            self._crowd.wait_for_attempts(self._chance.randint(*WARM_UP_ATTEMPTS))
        if moment is Moment.BETWEEN_TURNS:
            self._crowd.silence()
        else:
            # Not to wait for anything: the delay is the moment that chance chose.
            time.sleep(self._chance.uniform(0.0, STRIKE_DELAY_SECONDS))
        if target is Target.BOTH:
            self._gateway.kill_all()
        else:
            self._gateway.kill(target.value[0])
        self._crowd.open()
        if gate:
            self._provider.release(gate)

    def _go_on(self, target: Target) -> None:
        """Some turns without the worker, if only that is dead; then everything runs, some more turns, and silence."""
        if target is Target.WORKER:
            self._crowd.wait_for_attempts(self._chance.randint(*WARM_UP_ATTEMPTS))
        self._gateway.start()
        self._crowd.wait_for_attempts(len(EVERYBODY))
        self._crowd.silence()
