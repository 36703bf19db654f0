"""`PERDURE_DAEMONS=4 perdure up`: one listening socket, four daemons, one worker, and they are one gateway."""

from __future__ import annotations

import os
import random
import signal
import socket
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count

import pytest

from tests.clients import RawClient
from tests.crash.conversation import Attempt, Conversation
from tests.many.pooled import connections_of
from tests.many.rolling import RESTART_SECONDS
from tests.processes import DEADLINE_SECONDS, HOST, eventually
from tests.provider import ScriptedProvider
from tests.system.test_supervisord import Up
from tests.system.turns import WIRES, send_turn
from worker.store import Reader

pytestmark = [pytest.mark.crash, pytest.mark.system, pytest.mark.slow]

TALKS = 12
STREAMS = 12
ROUNDS_MAX = 40
"""The kernel wakes whom it likes: all four have been met long before."""


def test_up_with_four_daemons_is_one_gateway_and_ctrl_c_ends_it_well() -> None:
    with ScriptedProvider() as provider, Up(provider, daemons=4) as perdure:
        perdure.wait_status("ready")
        numbers = count(1)
        talks = [Conversation(WIRES[n % 3], f"talk-{n}" if n % 2 else "") for n in range(TALKS)]
        with ThreadPoolExecutor(TALKS) as pool:
            for _ in range(ROUNDS_MAX):
                told = list(pool.map(lambda talk: _say(perdure, talk, next(numbers)), talks))
                assert all(told)
                if len(_instances(perdure)) == 4:
                    break
        assert _instances(perdure) == {f"daemon-{number}" for number in range(4)}

        turns = sum(talk.turns for talk in talks)
        # Every daemon's counts come with its next beat; any daemon tells all of them.
        eventually(lambda: _counted_turns(perdure) == turns, what=lambda: f"{_counted_turns(perdure)} of {turns} turns")
        shown = perdure.sessions()
        assert len(shown) == TALKS
        assert sum(each["turns"] for each in shown.values()) == turns
        assert sum(each["output_tokens"] for each in shown.values()) == provider.usage_total().output_tokens
        # Each conversation went through more than one of them, and is one session.
        assert sorted(each["turns"] for each in shown.values()) == [turns // TALKS] * TALKS

        perdure.process.send_signal(signal.SIGINT)
        assert perdure.process.wait(RESTART_SECONDS) == 0
        assert not perdure.children()
        with socket.create_server((HOST, perdure.port)):
            pass
        log = perdure.supervisor_log()
        assert [log.count(f"stopped: daemon-{n} (exit status 0)") for n in range(4)] == [1] * 4
        assert sum(each["turns"] for each in perdure.sessions().values()) == turns


def test_up_with_four_daemons_one_killed_in_mid_stream_cuts_its_own_streams_and_no_others() -> None:
    with ScriptedProvider() as provider, Up(provider, daemons=4) as perdure, ExitStack() as streams:
        perdure.wait_status("ready")
        clients = [streams.enter_context(RawClient(HOST, perdure.port, deadline_seconds=30)) for _ in range(STREAMS)]
        for number, client in enumerate(clients):
            send_turn(client, "messages", f"question {number} hold:open", session=f"talk-{number}", stream=True)
        assert all(client.read_until(b"content_block_delta") for client in clients)
        # The one with the most streams, but never all of them.
        own = {pid: len(connections_of(pid, perdure.port)) for pid in perdure.pids("daemon")}
        assert sum(own.values()) == STREAMS
        killed = max(own, key=lambda pid: (own[pid] < STREAMS, own[pid], pid))
        os.kill(killed, signal.SIGKILL)
        provider.release("open")
        answers = [client.read() for client in clients]
        assert sum(answer.complete for answer in answers) == STREAMS - own[killed]

        perdure.wait_successor("daemon", killed, RESTART_SECONDS)
        perdure.wait_status("ready")
        statuses = sorted(status for (status,) in _query(perdure, "SELECT status FROM ledger"))
        assert statuses == ["complete"] * (STREAMS - own[killed]) + ["interrupted"] * own[killed]
        # What was cut is asked again, of whoever answers, and belongs to the same session.
        with RawClient(HOST, perdure.port, deadline_seconds=DEADLINE_SECONDS) as client:
            cut = next((n for n, answer in enumerate(answers) if not answer.complete), 0)
            send_turn(client, "messages", f"question {cut} hold:open", session=f"talk-{cut}", stream=True)
            assert client.read().complete
        assert len(perdure.sessions()) == STREAMS


def _say(perdure: Up, talk: Conversation, number: int) -> bool:
    with RawClient(HOST, perdure.port, deadline_seconds=DEADLINE_SECONDS) as client:
        chance = random.Random(number)
        text = f"question {number} words:{chance.randint(1, 20)} delay-ms:5"
        return talk.exchange(client, Attempt(number, talk, text), stream=bool(number % 2)).complete


def _instances(perdure: Up) -> set[str]:
    """Who has booked anything: a boot is an instance and a number of its own."""
    return {boot.rpartition("-")[0] for (boot,) in _query(perdure, "SELECT DISTINCT boot FROM ledger")}


def _counted_turns(perdure: Up) -> int:
    with urllib.request.urlopen(f"{perdure.url}/metrics", timeout=DEADLINE_SECONDS) as response:
        lines = response.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("perdure_turns_total{")))


def _query(perdure: Up, sql: str) -> Sequence[tuple[str, ...]]:
    reader = Reader(perdure.directory / "perdure.db")
    try:
        return list(reader.execute(sql))
    finally:
        reader.close()
