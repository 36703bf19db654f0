"""Restarts under load: nobody whose connection was not cut notices."""

from __future__ import annotations

import os
import random
import signal
from typing import Final

import pytest

from tests.conftest import Tell
from tests.many.pooled import Load, connections_of, said
from tests.many.rolling import ANSWERS_BETWEEN, CLIENTS, DAEMONS, RESTART_SECONDS, roll
from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.test_supervisord import Up

pytestmark = [pytest.mark.crash, pytest.mark.system, pytest.mark.slow]

NOTICE_SECONDS: Final = 2.0
"""Longer than a balancer's news is old here: it asks /readyz before every connection."""
KILLS: Final = 2


def test_rolling_restart_of_four_daemons_and_the_worker_under_load_fails_no_request(tell: Tell) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    with ScriptedProvider() as provider, Up(provider, daemons=DAEMONS) as perdure:
        perdure.wait_status("ready")
        tally = roll(perdure, provider, seed, rounds=1)
        tell(f"rolling restarts, seed {seed}: {tally}")
        assert tally.faults == []
        assert tally.kept > 0


def test_daemon_killed_under_load_fails_only_what_was_on_its_own_connections(tell: Tell) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    with ScriptedProvider() as provider, Up(provider, daemons=DAEMONS) as perdure:
        perdure.wait_status("ready")
        own: set[int] = set()
        with Load(seed, CLIENTS, lambda _: perdure.port) as load:
            for _ in range(KILLS):
                load.wait_for_answers(ANSWERS_BETWEEN)
                victim = random.Random(seed).choice(sorted(perdure.pids("daemon")))
                # Stopped, it accepts nothing more: these are all the connections that die with it.
                _stop(victim)
                own |= connections_of(victim, perdure.port)
                os.kill(victim, signal.SIGKILL)
                perdure.wait_successor("daemon", victim, RESTART_SECONDS)
                load.wait_for_answers(ANSWERS_BETWEEN)
        perdure.wait_status("ready")
        tell(f"daemons killed under load, seed {seed}: {KILLS}, {load.answered} answered, {len(load.failures)} cut")
        assert [failure for failure in load.failures if failure.client_port not in own] == []
        assert load.answered > KILLS * ANSWERS_BETWEEN


def test_daemons_behind_a_balancer_that_asks_readyz_restart_without_a_failed_connection(tell: Tell) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    with ScriptedProvider() as provider, Gateway(provider, daemons=2, notice_seconds=NOTICE_SECONDS) as gateway:
        gateway.start()

        def ready_one(chance: random.Random) -> int:
            """As a balancer would: any daemon that says it is ready."""
            names = chance.sample(gateway.daemons, len(gateway.daemons))
            return eventually(lambda: next((gateway.ports[name] for name in names if _is_ready(gateway, name)), 0))

        with Load(seed, CLIENTS // 2, ready_one) as load:
            for name in gateway.daemons:
                load.wait_for_answers(ANSWERS_BETWEEN)
                assert gateway.stop(name, RESTART_SECONDS) == 0
                gateway.start_daemon(name)
                gateway.wait_status("ready", name)
        tell(f"restarts behind a balancer, seed {seed}: {load.answered} answered, {len(load.failures)} failed")
        assert load.failures == [], said(load.failures)
        assert [row.status for row in gateway.rows()] == ["complete"] * load.answered


def _is_ready(gateway: Gateway, name: str) -> bool:
    return (gateway.get("/readyz", name) or (0, b""))[0] == 200


def _stop(pid: int) -> None:
    """Returns when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: _is_stopped(pid), what="it stands still")


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"
