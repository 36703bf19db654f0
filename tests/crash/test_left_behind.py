"""Daemons told to stop while no worker takes their writes: what they leave behind arrives with whoever comes next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from daemon.app import FLUSH_SECONDS
from daemon.spill import Write, lines_of
from tests.crash.checker import answers_by_mark, check_totals, settled_findings
from tests.crash.conversation import Attempt, Conversation
from tests.processes import DEADLINE_SECONDS, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.worker.writing import booking
from worker.protocol import Command, Protocol
from worker.runtime import EXIT_OK, EXIT_UNAVAILABLE

PROTOCOLS: Final[tuple[Protocol, ...]] = ("messages", "chat", "responses")
STOP_SECONDS: Final = FLUSH_SECONDS + DEADLINE_SECONDS
BACKLOG_ROWS: Final = 1_500
"""Many times what one daemon has in its outbox at once: it can be killed in the middle."""

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_turns_answered_before_a_stop_without_the_worker_arrive_once_under_the_ids_that_were_told() -> None:
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=3_600) as gateway:
        gateway.start()
        # With an id of their client's, and known by their content alone.
        talks = [Conversation(protocol, name) for protocol in PROTOCOLS for name in ("", f"named-{protocol}")]
        attempts: list[Attempt] = []
        say(gateway, talks, attempts)
        gateway.kill("worker")
        for _ in range(2):
            say(gateway, talks, attempts)
        assert gateway.stop("daemon", STOP_SECONDS) == EXIT_OK
        # A begin and an end of each turn.
        [path] = left_behind(gateway)
        assert f"24 writes that no worker took are kept in {path}" in gateway.log("daemon")
        assert path.stat().st_mode & 0o777 == 0o600
        assert len(gateway.rows()) == len(talks)
        gateway.start()
        say(gateway, talks, attempts)
        assert not left_behind(gateway)
        assert metric(gateway, "perdure_adopted_writes_total") == 24
        assert_all_stored_once(provider, gateway, attempts)
        told = {talk: {attempt.session for attempt in attempts if attempt.conversation is talk} for talk in talks}
        assert all(len(ids) == 1 for ids in told.values()), told
        assert {shown["session_id"] for shown in gateway.sessions()} == set().union(*told.values())


def test_sibling_that_runs_adopts_what_a_daemon_left_that_was_told_to_stop_twice() -> None:
    with ScriptedProvider() as provider, Gateway(provider, daemons=2, tick_seconds=0.2) as gateway:
        gateway.start()
        talk, cut = Conversation("messages", "left-to-a-sibling"), Conversation("chat", "cut-off")
        attempts: list[Attempt] = []
        say(gateway, [talk], attempts, "daemon-2")
        gateway.kill("worker")
        say(gateway, [talk], attempts, "daemon-2")
        attempts.append(Attempt(len(attempts), cut, "question hold:never", daemon="daemon-2"))
        with gateway.client("daemon-2") as client:
            cut.send(client, attempts[-1], stream=True)
            assert client.read_until(b"data: ")
            gateway.terminate("daemon-2")
            eventually(lambda: gateway.readyz("daemon-2") is None, what="nothing new is taken")
            assert gateway.stop("daemon-2", STOP_SECONDS) == EXIT_OK
            attempts[-1].note(client.read())
        assert len(left_behind(gateway)) == 1
        # Without a worker nobody takes it up.
        assert "are sent to the worker" not in gateway.log("daemon")
        say(gateway, [talk], attempts, "daemon")
        gateway.start_worker()
        eventually(lambda: not left_behind(gateway), what=gateway.logs)
        assert_all_stored_once(provider, gateway, attempts)
        assert [row.status for row in gateway.rows() if row.session_id == cut.expected_session] == ["interrupted"]
        assert all(row.is_settled for row in gateway.rows())
        say(gateway, [talk], attempts, "daemon")
        assert_all_stored_once(provider, gateway, attempts)


def test_backlog_whose_adopter_is_killed_arrives_once_with_one_of_two_that_start_at_once() -> None:
    with ScriptedProvider() as provider, Gateway(provider, daemons=3, tick_seconds=0.2, outbox_writes=100) as gateway:
        gateway.start_worker()
        path = leave(gateway, BACKLOG_ROWS)
        gateway.launch("daemon")
        eventually(lambda: "are sent to the worker" in gateway.log("daemon"), what=gateway.logs)
        eventually(lambda: stored(gateway) > BACKLOG_ROWS // 20, what=gateway.logs)
        gateway.kill("daemon")
        assert path.exists() and stored(gateway) < BACKLOG_ROWS, "it was killed too late"
        gateway.launch("daemon-2")
        gateway.launch("daemon-3")
        attempts: list[Attempt] = []
        talk = Conversation("messages", "meanwhile")
        for name in ("daemon-2", "daemon-3"):
            gateway.wait_status("ready", name)
            # An outbox that others fill is not full for those who ask now.
            for _ in range(10):
                say(gateway, [talk], attempts, name)
        eventually(lambda: not path.exists(), what=gateway.logs)
        readers = [
            name for name in ("daemon-2", "daemon-3") if f"{path}: {2 * BACKLOG_ROWS} writes" in gateway.log(name)
        ]
        assert len(readers) == 1, readers
        assert stored(gateway) == BACKLOG_ROWS + len(attempts)
        assert_all_stored_once(provider, gateway, attempts)


def test_conversations_that_begin_before_any_worker_was_heard_go_on_at_daemons_that_start_later() -> None:
    """They name nothing, and two daemons answered them that had no key of a store to know them by."""
    with ScriptedProvider() as provider, Gateway(provider, daemons=2, tick_seconds=3_600) as gateway:
        talks = [Conversation(protocol) for protocol in PROTOCOLS]
        attempts: list[Attempt] = []
        for name in gateway.daemons:
            gateway.launch(name)
            gateway.wait_status("degraded", name)
        for name in ("daemon", "daemon-2", "daemon"):
            say(gateway, talks, attempts, name)
        for name in gateway.daemons:
            assert gateway.stop(name, STOP_SECONDS) == EXIT_OK
        gateway.start()
        say(gateway, talks, attempts, "daemon-2")
        eventually(lambda: not left_behind(gateway), what=gateway.logs)
        say(gateway, talks, attempts, "daemon")
        assert_all_stored_once(provider, gateway, attempts, aliased=True)
        for talk in talks:
            [shown] = [
                shown for shown in gateway.sessions() if shown["session_id"] == attempts_of(talk, attempts)[-1].session
            ]
            assert shown["turns"] == len(attempts_of(talk, attempts)) == 5
        assert len(gateway.sessions()) == len(talks)


def test_writes_that_no_directory_takes_are_lost_with_status_75_and_their_number() -> None:
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=3_600) as gateway:
        gateway.start()
        attempts: list[Attempt] = []
        talk = Conversation("messages", "lost")
        say(gateway, [talk], attempts)
        gateway.kill("worker")
        say(gateway, [talk], attempts)
        for place in places(gateway):
            place.write_text("in the way")
        assert gateway.stop("daemon", STOP_SECONDS) == EXIT_UNAVAILABLE
        [line] = [line for line in gateway.log("daemon").splitlines() if line.startswith("perdure daemon: ")]
        assert line.startswith("perdure daemon: 2 writes are lost: no worker took them, and they could not be kept")
        assert len(gateway.rows()) == 1


# -- helpers ---------------------------------------------------------------------------------------------------------


def say(gateway: Gateway, talks: list[Conversation], attempts: list[Attempt], daemon: str = "daemon") -> None:
    """One turn of each conversation, answered to its end."""
    for talk in talks:
        attempts.append(Attempt(len(attempts), talk, f"question {len(attempts)}", daemon=daemon))
        with gateway.client(daemon) as client:
            answer = talk.exchange(client, attempts[-1], stream=len(attempts) % 2 == 0)
        assert (answer.status, answer.complete) == (200, True), answer


def places(gateway: Gateway) -> tuple[Path, Path]:
    return gateway.directory / "spill", gateway.directory / "run" / "spill"


def left_behind(gateway: Gateway) -> list[Path]:
    return [path for place in places(gateway) if place.is_dir() for path in place.iterdir()]


def leave(gateway: Gateway, rows: int) -> Path:
    """A file as a daemon would have left it, with an open and a settled row for each of so many turns."""
    turns = [(booking(number, settled=False), booking(number)) for number in range(1, rows + 1)]
    writes = [Write(command, body) for turn in turns for command, body in zip(_TURN, turn, strict=True)]
    place = gateway.directory / "spill"
    place.mkdir(mode=0o700)
    path = place / "00000001.writes"
    path.write_bytes(b"".join(lines_of(writes)))
    return path


def stored(gateway: Gateway) -> int:
    [(count,)] = gateway.query("SELECT count(*) FROM ledger WHERE ended_at > 0")
    return int(count)


def metric(gateway: Gateway, name: str) -> float:
    found = gateway.get("/metrics")
    assert found is not None
    line = re.search(rf"^{name} ([0-9.e+]+)$", found[1].decode(), re.MULTILINE)
    assert line is not None, found[1].decode()
    return float(line[1])


def attempts_of(talk: Conversation, attempts: list[Attempt]) -> list[Attempt]:
    return [attempt for attempt in attempts if attempt.conversation is talk]


def assert_all_stored_once(
    provider: ScriptedProvider, gateway: Gateway, attempts: list[Attempt], *, aliased: bool = False
) -> None:
    """`aliased`: a session may have had other names for a while."""
    found = settled_findings(gateway, attempts, answers_by_mark(provider.answers), worker_was_away=aliased)
    found.add(check_totals(gateway))
    assert found.are_good, str(found)
    marked = [row for row in gateway.rows() if row.client.startswith("attempt-")]
    assert len(marked) == len(attempts)


_TURN: Final = (Command.BEGIN, Command.END)
