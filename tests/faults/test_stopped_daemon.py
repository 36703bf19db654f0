"""A daemon that is stopped while others take its sessions over: when it goes on, it can not put them back."""

from __future__ import annotations

from typing import Final

import pytest

from tests.crash.checker import answers_by_mark, check_totals, settled_findings
from tests.crash.conversation import Attempt, Conversation
from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider

TURNS: Final = 6
NAME: Final = "handed-over"

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_daemon_that_goes_on_after_a_stop_finds_its_session_taken_and_does_not_overwrite_it() -> None:
    with ScriptedProvider() as provider, Gateway(provider, daemons=2, tick_seconds=0.2) as gateway:
        gateway.start()
        talk = Conversation("messages", NAME)
        attempts: list[Attempt] = []
        say(gateway, "daemon", talk, attempts, TURNS)
        eventually(lambda: snapshot(gateway)[2] == TURNS)
        former, epoch, _position = snapshot(gateway)
        # One turn more, so that the daemon that is stopped has something to write when it goes on.
        say(gateway, "daemon", talk, attempts, 1)
        gateway.pause("daemon")
        say(gateway, "daemon-2", talk, attempts, TURNS)
        eventually(lambda: snapshot(gateway)[2] == 2 * TURNS + 1)
        owner, later_epoch, _position = snapshot(gateway)
        assert owner != former and later_epoch > epoch
        gateway.resume("daemon")
        gateway.wait_ready()
        # Writes of one daemon keep their order: with this turn, what it had to write of the other session has arrived.
        say(gateway, "daemon", Conversation("messages", "its-own"), attempts, 1)
        eventually(lambda: sum(row.is_settled for row in gateway.rows()) == 2 * TURNS + 2)
        assert snapshot(gateway) == (owner, later_epoch, 2 * TURNS + 1), "put back by a daemon that was stopped"
        say(gateway, "daemon-2", talk, attempts, 1)
        eventually(lambda: snapshot(gateway) == (owner, later_epoch, 2 * TURNS + 2))
        # And it knows every turn that finished elsewhere, once it is asked.
        say(gateway, "daemon", talk, attempts, 1)
        eventually(lambda: snapshot(gateway)[2] == 2 * TURNS + 3)
        found = settled_findings(gateway, attempts, answers_by_mark(provider.answers))
        found.add(check_totals(gateway))
        assert found.are_good, str(found)
        assert snapshot(gateway)[0] == former and len(gateway.sessions()) == 2


def say(gateway: Gateway, daemon: str, talk: Conversation, attempts: list[Attempt], turns: int) -> None:
    for _ in range(turns):
        attempts.append(Attempt(len(attempts), talk, f"question {len(attempts)}"))
        with gateway.client(daemon) as client:
            answer = talk.exchange(client, attempts[-1], stream=bool(len(attempts) % 2))
        assert (answer.status, answer.complete) == (200, True)


def snapshot(gateway: Gateway) -> tuple[str, int, int]:
    """Of the session that is handed over: its owner, the epoch, and up to which row its snapshot tells."""
    sql = "SELECT owner, epoch, snapshot_position FROM session_state WHERE header_session_id = ?"
    [(owner, epoch, position)] = gateway.query(sql, (NAME,))
    return owner, epoch, position
