"""Rolling restarts under load: `python -m tests.many.rolling --rounds 20`.  Exit status 1 if a request failed.

One rule: one process at a time is told to stop, and the next one only when its successor works.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.many.pooled import Load
from tests.processes import eventually
from tests.provider import ScriptedProvider
from tests.system.test_supervisord import SUPERVISORCTL, Up

CLIENTS: Final = 16
DAEMONS: Final = 4
ANSWERS_BETWEEN: Final = 40
"""Requests answered between one restart and the next."""
RESTART_SECONDS: Final = 30.0
"""Deadline for what takes three: an idle connection's last two seconds, and a program's start."""


@dataclass
class Tally:
    restarts: int
    answered: int
    kept: int
    stale: int
    faults: list[str]

    def __str__(self) -> str:
        figures = f"{self.restarts} restarts, {self.answered} requests answered, {self.kept} on a kept connection, of "
        return figures + f"which {self.stale} were stale; {len(self.faults)} failed"


def roll(perdure: Up, provider: ScriptedProvider, seed: int, rounds: int) -> Tally:
    """Restart every daemon and then the worker, over and over, while clients ask."""
    restarts = 0
    with Load(seed, CLIENTS, lambda _: perdure.port) as load:
        for _ in range(rounds):
            load.wait_for_answers(ANSWERS_BETWEEN)
            for number in range(DAEMONS):
                restart(perdure, f"daemon-{number}", by_supervisor=bool(number % 2))
                load.wait_for_answers(ANSWERS_BETWEEN)
            (worker,) = perdure.pids("worker")
            os.kill(worker, signal.SIGTERM)
            perdure.wait_successor("worker", worker, RESTART_SECONDS)
            load.wait_for_answers(ANSWERS_BETWEEN)
            restarts += DAEMONS + 1
    perdure.wait_status("ready")
    faults = [failure.what for failure in load.failures] + ledger_faults(perdure, provider, load)
    return Tally(restarts, load.answered, load.kept, load.stale, faults)


def restart(perdure: Up, name: str, *, by_supervisor: bool) -> None:
    """By a signal, which its supervisor makes good; or by the supervisor, told to."""
    pid = int(supervisorctl(perdure, "pid", f"daemon:{name}"))
    if by_supervisor:
        supervisorctl(perdure, "restart", f"daemon:{name}")
    else:
        os.kill(pid, signal.SIGTERM)
    eventually(
        lambda: pid not in (now := perdure.pids("daemon")) and len(now) == DAEMONS, RESTART_SECONDS, f"{name} is back"
    )


def supervisorctl(perdure: Up, *words: str) -> str:
    # Not from the checkout: there supervisorctl would read supervisord.conf, which needs perdure's environment.
    told = subprocess.run(
        [SUPERVISORCTL, "-s", f"unix://{perdure.directory}/run/sv.sock", *words],
        check=True,
        capture_output=True,
        text=True,
        cwd=perdure.directory,
        timeout=RESTART_SECONDS,
    )
    return told.stdout


def ledger_faults(perdure: Up, provider: ScriptedProvider, load: Load) -> list[str]:
    """Every answer once in the sums of its session, and nothing else."""
    shown = perdure.sessions().values()
    turns, interrupted = sum(each["turns"] for each in shown), sum(each["interrupted"] for each in shown)
    tokens = sum(each["output_tokens"] for each in shown)
    told = provider.usage_total().output_tokens
    asked = load.answered + len(load.failures)
    faults = [f"{interrupted} turns are interrupted"] if interrupted else []
    faults += [f"{turns} turns are stored, {asked} were asked for"] if turns != asked else []
    return faults + ([f"{tokens} tokens are stored, {told} were told"] if tokens != told else [])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.many.rolling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how often everything is restarted")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="drawn if not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with ScriptedProvider() as provider, Up(provider, daemons=DAEMONS) as perdure:
        perdure.wait_status("ready")
        tally = roll(perdure, provider, options.seed, options.rounds)
    print(tally, *tally.faults, sep="\n")
    if options.json:
        figures = {"seed": options.seed, "rounds": options.rounds, **asdict(tally)}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
