"""Episodes of a campaign, several at once: each with a provider, a crowd and processes of its own.

One rule: whatever becomes of an episode, the others go on, and the report tells of it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from math import inf
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Final

from tests.crash.campaign import MISS_SECONDS, Campaign
from tests.crash.checker import Findings, answers_by_mark, check_totals, settled_findings
from tests.crash.conversation import Attempt
from tests.crash.former import Former, former_versions
from tests.crash.nursery import MarkedGateway, Nursery
from tests.crash.points import MARKS, TICKS_SECONDS, Episode, Setup
from tests.crash.report import Report
from tests.crash.supervised import SupervisedGateway
from tests.processes import Gateway
from tests.provider import ScriptedProvider

JOBS: Final = 2
"""Episodes at once: each has a crowd, a provider and its processes, and waits about half of the time."""


def run(
    episodes: Sequence[Episode], seed: int, jobs: int, *, limit_seconds: float = inf, is_quiet: bool = True
) -> Report:
    """Every episode that can be begun within the limit, several at once, each job with a nursery of its own."""
    deadline = time.monotonic() + limit_seconds
    report = Report(seed)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting: Queue[Episode] = manager.Queue()
        for episode in episodes:
            waiting.put(episode)
        shares = [pool.submit(_run_share, waiting, seed, deadline, is_quiet) for _ in range(jobs)]
        for share in as_completed(shares):
            report.add(share.result())
    report.failed_cycles.sort()
    return report


def _run_share(waiting: Queue[Episode], seed: int, deadline: float, is_quiet: bool) -> Report:
    """One episode after the other, as long as there are any."""
    report = Report(seed)
    started = time.monotonic()
    with Nursery() as nursery, contextlib.suppress(Empty):
        while time.monotonic() < deadline:
            episode = waiting.get_nowait()
            report.add(run_episode(episode, seed, nursery))
            if not is_quiet:
                found, seconds = report.findings, time.monotonic() - started
                said = f"episode {episode.number}: {report.cycles} cycles here, {report.cycles / seconds:.1f} a second"
                print(f"{said}, {found.facts} facts, {len(report.failed_cycles)} failed", flush=True)
    return report


def run_episode(episode: Episode, seed: int, nursery: Nursery, faults: Sequence[str] = ()) -> Report:
    """What does not come to its end, or leaves a traceback in a log, is a finding like any other."""
    report = Report(seed, episodes=1)
    try:
        with ScriptedProvider() as provider:
            if episode.setup is Setup.FORMER:
                _run_migrations(episode, report, provider, nursery)
            else:
                _run_campaign(episode, report, provider, nursery, faults)
    except (AssertionError, TimeoutError, subprocess.TimeoutExpired) as error:
        report.findings.wrong.append(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        print("\n".join([str(error), *getattr(error, "__notes__", [])]), flush=True)
    if not report.findings.are_good:
        report.failed_cycles.append(episode.first_cycle + report.cycles - 1)
        print(f"episode {episode.number}\n{report}", flush=True)
    return report


def _run_campaign(
    episode: Episode, report: Report, provider: ScriptedProvider, nursery: Nursery, faults: Sequence[str]
) -> None:
    how: dict[str, Any] = {
        "daemons": episode.daemons,
        "tick_seconds": episode.tick_seconds(report.seed),
    }
    gateway: Gateway
    if episode.setup is Setup.SUPERVISED:
        gateway = SupervisedGateway(provider, nursery, **how)
    else:
        gateway = MarkedGateway(provider, nursery, faults=faults, **how)
    with gateway:
        Campaign(provider, gateway, episode, report).run()
        if not report.findings.are_good:
            print(gateway.logs(), flush=True)


def _run_migrations(episode: Episode, report: Report, provider: ScriptedProvider, nursery: Nursery) -> None:
    """Each cycle on a database of its own: the worker is killed while it migrates it, once or twice in a row."""
    chance = episode.chance(report.seed)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as directory:
        formers = [Former(Path(directory), version) for version in former_versions()]
        for number, strike in enumerate(episode.strikes, start=episode.first_cycle):
            report.strikes[strike] += 1
            report.cycles += 1
            with MarkedGateway(provider, nursery, tick_seconds=min(TICKS_SECONDS)) as gateway:
                former = chance.choice(formers)
                former.lay(gateway)
                for _ in range(chance.choice((1, 1, 2))):
                    gateway.arm("worker", strike.point, chance.randint(1, MARKS[strike.point].passings))
                    gateway.launch("worker")
                    gateway.wait_gone("worker", MISS_SECONDS)
                    report.missed[strike] += not gateway.disarm("worker")
                    gateway.kill("worker")
                report.findings.add(_gone_on(provider, gateway, former, number, report))
            if not report.findings.are_good:
                return


def _gone_on(
    provider: ScriptedProvider, gateway: MarkedGateway, former: Former, number: int, report: Report
) -> Findings:
    """After the kill everything starts, and a client goes on with a session of before."""
    gateway.start()
    first_row = gateway.query("SELECT count(*) FROM ledger")[0][0]
    first_answer = len(provider.answers)
    talk = former.talk()
    attempts = [Attempt(1_000 * number + turn, talk, f"question {turn}") for turn in range(2)]
    for attempt in attempts:
        with gateway.client() as client:
            talk.exchange(client, attempt, stream=True)
    report.attempts += len(attempts)
    report.answered += sum(attempt.last_byte_at > 0 for attempt in attempts)
    answers = answers_by_mark(provider.answers[first_answer:])
    found = settled_findings(gateway, attempts, answers, first_row=first_row)
    found.wrong += [f"{attempt.mark}: not answered" for attempt in attempts if not attempt.last_byte_at]
    found.add(check_totals(gateway))
    found.add(former.check(gateway))
    return found
