"""The kill campaign: clients talk, processes are killed, and every fact is checked after each kill.

One rule: all chance comes from one seed, and a cycle ends with everything running, nobody speaking, nothing unchecked.

Theory.  The plan (`points`) says who is struck where.  The clients go on as clients do: what was not answered to its
end is sent again, to any daemon.  While the worker alone is dead they are answered; so the campaign lets some of them
be, starts it again, and demands everything.  A daemon is only killed when the worker had confirmed all of the cycles
before, because what the worker never confirmed dies with it: `checker` says what else is excused.  At its end an
episode asks every conversation once more, stops everything in order, and demands snapshots that know every turn.

What a seed repeats: the plan, the points and passings, the delays, what each client says and to whom it turns first.
What it does not: how threads and processes take turns, the ids and keys that the programs draw, the kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Final

from tests.crash.checker import (
    Excuse,
    Findings,
    Memory,
    answers_by_mark,
    check_totals,
    excuse_of,
    settled_findings,
)
from tests.crash.conversation import Attempt
from tests.crash.crowd import EVERYBODY, Crowd
from tests.crash.nursery import MarkedGateway
from tests.crash.points import MARKS, Episode, Point, Strike, Victim, When
from tests.crash.report import Report
from tests.crash.supervised import SupervisedGateway
from tests.processes import Gateway
from tests.provider import ScriptedProvider

WARM_UP_ATTEMPTS: Final = (1, 8)
"""How many attempts are over, from … to …, before a strike."""
STRIKE_DELAY_SECONDS: Final = 0.02
"""A strike under load falls anywhere within this time: a turn takes about as long, a commit a tenth of it."""
MISS_SECONDS: Final = 4.0
"""How long a marked process may take to come to its mark; then it is killed where it is."""
CYCLES_PER_TOTAL: Final = 8
"""Sums, states and all that was ever seen are checked this often, and at the end of an episode."""
PACE_SECONDS: Final = 0.02
"""Between a client's turns: a crowd that never breathes is all that a small machine has time for."""


class Campaign:
    """The cycles of an episode on a gateway of its own; `report` grows with each."""

    def __init__(self, provider: ScriptedProvider, gateway: Gateway, episode: Episode, report: Report) -> None:
        self.report = report
        self._provider = provider
        self._gateway = gateway
        self._episode = episode
        self._chance = episode.chance(report.seed)
        self._memory = Memory()
        self._crowd = Crowd(gateway, f"{report.seed}-{episode.number}", hopping=True, pace_seconds=PACE_SECONDS)

    def run(self) -> None:
        """Stops early at the first loss: what comes after it would only repeat it."""
        self._gateway.start()
        with self._crowd:
            for number, strike in enumerate(self._episode.strikes, start=self._episode.first_cycle):
                self.report.cycles += 1
                self._cycle(number, strike)
                if self.report.cycles % CYCLES_PER_TOTAL == 0:
                    self._add(self._look_at_everything())
                if not self.report.findings.are_good:
                    return
            self._add(self._end())

    def _cycle(self, number: int, strike: Strike) -> None:
        self.report.strikes[strike] += 1
        first_attempt, first_answer = len(self._crowd.attempts), len(self._provider.answers)
        first_row = self._gateway.query("SELECT count(*) FROM ledger")[0][0]
        log_starts = {name: self._gateway.log_size(name) for name in self._gateway.daemons}
        killed, worker_gone_at = self._strike(number, strike)
        excuses = {
            name: excuse_of(self._gateway, name, log_starts[name], worker_gone_at) for name in killed & {*log_starts}
        }
        self._go_on(strike)
        attempts = self._crowd.attempts[first_attempt:]
        found = self._found(attempts, first_answer, first_row, excuses)
        served = [attempt for attempt in attempts if attempt.daemon not in killed]
        found.checked["answered by those that live"] += len(served)
        found.wrong += [f"{a.mark}: cut, though {a.daemon} was not killed" for a in served if not a.last_byte_at]
        found.wrong += [f"{a.mark}: status {a.status}" for a in attempts if a.last_byte_at and a.status != 200]
        self._add(found)

    def _found(
        self, attempts: Sequence[Attempt], first_answer: int, first_row: int, excuses: dict[str, Excuse]
    ) -> Findings:
        self.report.attempts += len(attempts)
        self.report.answered += sum(attempt.last_byte_at > 0 for attempt in attempts)
        return settled_findings(
            self._gateway,
            attempts,
            answers_by_mark(self._provider.answers[first_answer:]),
            first_row=first_row,
            excuses=excuses,
            worker_was_away=True,
        )

    def _add(self, found: Findings) -> None:
        self.report.findings.add(found)

    def _look_at_everything(self) -> Findings:
        found = check_totals(self._gateway)
        found.add(self._memory.check(self._gateway))
        return found

    # -- striking ----------------------------------------------------------------------------------------------------

    def _strike(self, number: int, strike: Strike) -> tuple[set[str], float]:
        """Kill; gives who was, and since when the worker was away, if it was before the daemons were killed."""
        if strike.victim is Victim.SUPERVISORD:
            self._at_a_moment(number, strike.point, self._kill_supervisor)
            return {"daemon"}, inf
        worker = [] if strike.victim is Victim.DAEMON else ["worker"]
        daemons = {
            Victim.WORKER: [],
            Victim.DAEMON: [self._chance.choice(self._gateway.daemons)],
            Victim.BOTH: self._gateway.daemons,
        }[strike.victim]
        if strike.point not in MARKS:
            self._at_a_moment(number, strike.point, lambda: self._kill([*worker, *daemons]))
            return {*worker, *daemons}, inf
        if MARKS[strike.point].program == "daemon":
            daemons = self._chance.sample(daemons, len(daemons))
            names = [*daemons, *worker]
        else:
            names = [*worker, *daemons]
        return {*names}, self._at_a_mark(strike, names[0], names[1:])

    def _at_a_moment(self, number: int, point: Point, kill: Callable[[], None]) -> None:
        gate = f"cycle-{number}" if point is Point.MID_STREAM else ""
        self._crowd.open(gate)
        if gate:
            self._provider.wait_held(gate)
        else:
            self._crowd.wait_for_attempts(self._chance.randint(*WARM_UP_ATTEMPTS))
        if point is Point.BETWEEN_TURNS:
            self._crowd.silence()
        else:
            # Not to wait for anything: the delay is the moment that chance chose.
            time.sleep(self._chance.uniform(0.0, STRIKE_DELAY_SECONDS))
        kill()
        self._crowd.open()
        if gate:
            self._provider.release(gate)

    def _at_a_mark(self, strike: Strike, name: str, others: Sequence[str]) -> float:
        """Have a process come to its mark, and die there with the others."""
        gateway, mark = self._gateway, MARKS[strike.point]
        assert isinstance(gateway, MarkedGateway)
        self._crowd.open()
        self._crowd.wait_for_attempts(self._chance.randint(*WARM_UP_ATTEMPTS))
        worker_gone_at = inf
        if mark.when is When.STARTING:
            worker_gone_at = time.monotonic()
            gateway.kill(name)
        gateway.arm(name, strike.point, self._chance.randint(1, mark.passings), others)
        if mark.when is When.STARTING:
            gateway.launch(name)
        elif mark.when is When.STOPPING:
            worker_gone_at = time.monotonic() if name == "worker" else inf
            gateway.terminate(name)
        gateway.wait_gone(name, MISS_SECONDS)
        if not gateway.disarm(name):
            self.report.missed[strike] += 1
        self._kill([name, *others])
        return worker_gone_at

    def _kill(self, names: Iterable[str]) -> None:
        """As close together as signals can be sent; returns when all are gone."""
        if {*names} == {"worker", *self._gateway.daemons}:
            self._gateway.kill_all()
        else:
            for name in names:
                self._gateway.kill(name)

    def _kill_supervisor(self) -> None:
        gateway = self._gateway
        assert isinstance(gateway, SupervisedGateway)
        orphans = gateway.kill_supervisor()
        self._crowd.open()
        for gate in range(self._episode.first_cycle + len(self._episode.strikes)):
            self._provider.release(f"cycle-{gate}")
        self.report.findings.checked["supervisor gone: lock and port are free"] += 2
        self.report.findings.wrong += gateway.wait_orphans_gone(orphans)

    def _go_on(self, strike: Strike) -> None:
        """Some turns without those that are dead, if anybody lives; then everything runs, some more, and silence."""
        if any(map(self._gateway.is_running, self._gateway.daemons)):
            self._crowd.wait_for_attempts(self._chance.randint(*WARM_UP_ATTEMPTS))
        self._gateway.start()
        self._crowd.wait_for_attempts(len(EVERYBODY))
        self._crowd.silence()

    # -- the end of an episode -----------------------------------------------------------------------------------------

    def _end(self) -> Findings:
        """Every conversation once more, at any daemon; then all is stopped in order, and nothing is left unwritten."""
        gateway = self._gateway
        first_answer = len(self._provider.answers)
        first_row = gateway.query("SELECT count(*) FROM ledger")[0][0]
        asked = self._crowd.ask_once_more(self._chance)
        found = self._found(asked, first_answer, first_row, {})
        found.wrong += _stopped(gateway)
        sessions = {attempt.session for attempt in asked}
        positions = {
            name: marks
            for name, *marks in gateway.query("SELECT session_id, snapshot_position, last_position FROM session_state")
        }
        for session in sessions:
            found.checked["the daemon that answered knew every turn"] += 1
            snapshot, last = positions.get(session, (0, -1))
            if snapshot != last:
                found.wrong.append(f"session {session}: its last snapshot knows {snapshot} of {last} turns")
        found.add(self._look_at_everything())
        return found


def _stopped(gateway: Gateway) -> list[str]:
    """Stop everything as an operator would; what is not as it should be then, in words."""
    if isinstance(gateway, SupervisedGateway):
        statuses = {"perdure up": gateway.end()}
    else:
        for name in gateway.daemons:
            gateway.terminate(name)
        statuses = {name: gateway.wait_stopped(name) for name in gateway.daemons}
        gateway.terminate("worker")
        statuses["worker"] = gateway.wait_stopped("worker")
    wrong = [f"{name} told to stop: exit status {status}" for name, status in statuses.items() if status]
    log = gateway.database.with_name(f"{gateway.database.name}-wal")
    if log.exists() and log.stat().st_size:
        wrong.append("the worker stopped and left a log behind")
    return wrong
