"""`perdure session merge | split | undo | log` with real processes: two daemons, and conversations that go on.

One rule: what a correction has done is seen in the session that a conversation's next turn is given, on either daemon.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from tests.clients import AnthropicTalk
from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.test_cli import PERDURE, perdure
from tests.system.turns import sum_of_rows
from worker.backup import verify
from worker.protocol import Usage

pytestmark = pytest.mark.system

DAEMONS = ("daemon", "daemon-2")


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider, daemons=2, tick_seconds=0.2) as running:
        running.start()
        yield running


@pytest.fixture
def talks(gateway: Gateway) -> Iterator[Talks]:
    """Begins conversations, and ends them with the test."""
    begun: list[Conversation] = []

    def talk(name: str, *, is_named: bool = True) -> Conversation:
        begun.append(Conversation(gateway, name, is_named=is_named))
        return begun[-1]

    yield talk
    for conversation in begun:
        conversation.close()


class Talks(Protocol):
    def __call__(self, name: str, *, is_named: bool = True) -> Conversation: ...


class Conversation:
    """One conversation that is led over either daemon."""

    def __init__(self, gateway: Gateway, name: str, *, is_named: bool) -> None:
        self._name = name
        session = name if is_named else None
        self._talks = {daemon: AnthropicTalk(gateway.url_of(daemon), session) for daemon in DAEMONS}
        self._number = 0
        self.usage = Usage()

    def say(self, daemon: str = "daemon") -> str:
        """One turn; the session that it was given."""
        self._number += 1
        talk = self._talks[daemon]
        said = talk.say(f"{self._name} says {self._number}", stream=self._number % 2 == 0)
        for other in self._talks.values():
            other.history = talk.history.copy()
        assert said.usage is not None
        self.usage = added(self.usage, said.usage)
        return said.session

    def close(self) -> None:
        for talk in self._talks.values():
            talk.close()


def test_conversations_split_wrongly_are_merged_on_both_daemons_and_come_apart_again(
    gateway: Gateway, talks: Talks
) -> None:
    one, two = talks("one"), talks("two")
    ids = {one: one.say("daemon"), two: two.say("daemon-2")}
    for conversation, session_id in ids.items():
        assert {conversation.say(daemon) for daemon in DAEMONS} == {session_id}

    merged = change(gateway, "merge", ids[one], ids[two])
    assert (merged["change"], merged["moved"], merged["other_id"]) == (1, 3, ids[two])
    for daemon in DAEMONS:
        assert one.say(daemon) == two.say(daemon) == ids[two]
    totals_are_exact(gateway, one, two)
    assert [shown["session_id"] for shown in gateway.sessions()] == [ids[two]]

    undone = change(gateway, "undo", "1")
    # Four turns were made since: nobody can say whose they are but by asking where they were put.
    assert (undone["moved"], undone["stayed"]) == (3, 4)
    for daemon in reversed(DAEMONS):
        assert (one.say(daemon), two.say(daemon)) == (ids[one], ids[two])
    totals_are_exact(gateway, one, two)
    assert gateway.session(ids[one])["turns"] == 5
    assert gateway.session(ids[two])["turns"] == 3 + 4 + 2


def test_conversations_without_an_id_are_merged_by_their_content_and_come_apart_again(
    gateway: Gateway, talks: Talks
) -> None:
    one, two = talks("first", is_named=False), talks("second", is_named=False)
    ids = {one: one.say("daemon"), two: two.say("daemon-2")}
    assert (one.say("daemon-2"), two.say("daemon")) == (ids[one], ids[two])

    change(gateway, "merge", ids[one][:12], ids[two][:12])
    change(gateway, "undo", "1")
    assert (one.say("daemon"), two.say("daemon-2")) == (ids[one], ids[two])

    change(gateway, "merge", ids[one], ids[two])
    assert one.say("daemon") == ids[two]
    assert one.say("daemon-2") == ids[two]
    totals_are_exact(gateway, one, two)


def test_conversation_split_off_goes_on_in_its_new_session_on_both_daemons(gateway: Gateway, talks: Talks) -> None:
    talk = talks("long", is_named=False)
    session_id = talk.say()
    assert {talk.say(daemon) for daemon in DAEMONS} == {session_id}
    second = gateway.rows()[1].event_id

    split = change(gateway, "split", session_id, "--from", second[:16])
    new_id = split["other_id"]

    assert (split["moved"], gateway.session(new_id)["forked_from"]) == (2, session_id)
    assert [talk.say(daemon) for daemon in DAEMONS] == [new_id, new_id]
    totals_are_exact(gateway, talk)
    assert gateway.session(session_id)["turns"] == 1
    shown = " ".join(perdure("show", new_id, **environ(gateway)).stdout.split())  # However its lines are cut.
    assert f"change 1, {split_at(gateway)}: split 2 rows off {session_id} into {new_id}" in shown
    assert f"split from {session_id} by the operator (change 1)" in shown


def test_daemon_that_slept_through_an_undo_hears_of_it_from_the_next_worker(gateway: Gateway, talks: Talks) -> None:
    one, two = talks("awake"), talks("asleep")
    ids = {one: one.say("daemon-2"), two: two.say("daemon-2")}
    change(gateway, "merge", ids[one], ids[two])
    assert one.say("daemon-2") == ids[two]

    gateway.pause("daemon-2")
    change(gateway, "undo", "1")
    gateway.kill("worker")
    start = gateway.log_size("daemon-2")
    gateway.start_worker()
    gateway.resume("daemon-2")
    hears_the_new_worker(gateway, "daemon-2", start)

    assert (one.say("daemon-2"), two.say("daemon-2")) == (ids[one], ids[two])


def test_forgotten_sessions_begin_anew_on_both_daemons_and_cost_what_they_cost(gateway: Gateway, talks: Talks) -> None:
    named, unnamed, other = talks("minted-for-this-one"), talks("unknown", is_named=False), talks("other")
    ids = {each: [each.say(daemon) for daemon in DAEMONS].pop() for each in (named, unnamed, other)}
    minted = gateway.session(ids[named])["header_session_id"].encode()
    spent = gateway.query("SELECT * FROM day_total ORDER BY 1, 2, 3, 4, 5, 6")
    merged = change(gateway, "merge", ids[named], ids[other])["change"]
    change(gateway, "undo", str(merged))
    change(gateway, "merge", ids[other], ids[named])

    forgotten = change(gateway, "forget", ids[named], "--yes")

    assert (forgotten["rows_kept"], forgotten["sub_agents"], forgotten["no_longer_undoable"]) == (4, 0, [3])
    assert "perdure restore" in perdure("session", "undo", "4", **environ(gateway)).stderr
    assert change(gateway, "forget", ids[unnamed][:12], "--yes")["rows_kept"] == 2
    assert gateway.sessions() == []
    assert perdure("show", ids[named], **environ(gateway)).returncode == 2
    assert gateway.query("SELECT * FROM day_total ORDER BY 1, 2, 3, 4, 5, 6") == spent
    log = perdure("session", "log", **environ(gateway)).stdout.splitlines()
    newest, before = (line.split()[3:] for line in log[1:3])
    assert newest[:2] == ["forget", "2"] and ids[unnamed].startswith(newest[2])
    assert before[:2] == ["forget", "4"] and ids[named].startswith(before[2])

    assert "INFO" in (line := next(each for each in gateway.log("worker").splitlines() if "forget" in each)), line
    gateway.stop("worker")
    assert minted not in gateway.database.read_bytes(), "what no table holds is not in the file's gaps either"
    gateway.kill_all()
    gateway.start()
    assert gateway.sessions() == []
    again = {each: [each.say(daemon) for daemon in DAEMONS] for each in (named, unnamed, other)}
    # What its client names has a hash of that name for its id; the other is somebody new.
    assert again[named] == [ids[named]] * 2 and again[other] == [ids[other]] * 2
    assert len({*again[unnamed], ids[unnamed]}) == 2
    assert [shown["turns"] for shown in gateway.sessions()] == [2, 2, 2]
    verify(gateway.database, lambda _: (), lambda *_: None)


def test_daemon_that_slept_while_its_session_was_forgotten_knows_nothing_of_it(gateway: Gateway, talks: Talks) -> None:
    talk = talks("asleep")
    session_id = [talk.say("daemon-2") for _ in range(3)].pop()
    eventually(lambda: gateway.session(session_id)["warmup"]["turns"] == 3, what=gateway.logs)
    gateway.pause("daemon-2")
    change(gateway, "forget", session_id, "--yes")
    gateway.resume("daemon-2")

    assert talk.say("daemon-2") == session_id

    eventually(lambda: gateway.query("SELECT 1 FROM session_state WHERE generation > 0"), what=gateway.logs)
    assert gateway.session(session_id)["warmup"]["turns"] == 1


@pytest.mark.parametrize("said", ["n", "", "y"])
def test_forgetting_asks_at_a_terminal(said: str, gateway: Gateway, talks: Talks) -> None:
    session_id = talks("asked").say()
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        command = [PERDURE, "session", "forget", session_id]
        run = subprocess.Popen(
            command, env=environ(gateway), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        os.close(theirs)
        terminal.write(f"{said}\n".encode())
        output, errors = run.communicate(timeout=40)

    assert f"Forget session {session_id}".encode() in errors and b"1 turns" not in errors
    assert run.returncode == (0 if said == "y" else 2)
    assert len(gateway.sessions()) == (0 if said == "y" else 1)
    assert (b"backups that were made before still hold it" in output) is (said == "y")


@pytest.mark.crash
@pytest.mark.parametrize("moment", ["before it hears", "as it hears", "as it is committed"])
def test_merge_while_the_worker_is_killed_is_done_once_when_it_returns(
    moment: str, gateway: Gateway, talks: Talks
) -> None:
    one, two = talks("left"), talks("right")
    ids = (one.say(), two.say())
    rows = len(gateway.rows())
    gateway.pause("worker")
    command = [PERDURE, "session", "merge", *ids, "--json"]
    with subprocess.Popen(command, env=environ(gateway), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        if moment != "before it hears":
            gateway.resume("worker")
        if moment == "as it is committed":
            eventually(lambda: gateway.query("SELECT 1 FROM session_change"), what=gateway.logs)
        gateway.kill("worker", signal.SIGKILL)
        done = gateway.query("SELECT count(*) FROM session_change")[0][0]
        assert (len(gateway.sessions()), done) in [(2, 0), (1, 1)]
        logged = {daemon: gateway.log_size(daemon) for daemon in DAEMONS}
        gateway.start_worker()
        output, errors = run.communicate(timeout=40)

    assert (run.returncode, errors) == (0, b""), errors
    assert json.loads(output)["change"] == 1
    assert len(gateway.sessions()) == 1 and len(gateway.rows()) == rows
    for daemon, start in logged.items():
        hears_the_new_worker(gateway, daemon, start)
    assert one.say() == two.say() == ids[1]
    totals_are_exact(gateway, one, two)


def test_corrections_without_a_worker_say_so_and_the_log_is_read_all_the_same(gateway: Gateway, talks: Talks) -> None:
    one, two = talks("uno"), talks("due")
    ids = (one.say(), two.say())
    known = environ(gateway)
    assert perdure("session", "log", **known).stdout == "no session was ever changed\n"
    assert perdure("session", "merge", *ids, **known).returncode == 0
    gateway.kill("worker")

    for arguments in (("merge", *ids), ("undo", "1")):
        run = perdure("session", *arguments, **known)
        # An alias is one session with what it means: known without any worker to ask.
        assert run.returncode == 75 and "perdure up" in run.stderr
    log = json.loads(perdure("session", "log", "--json", **known).stdout)
    assert [(each["change"], each["verb"], each["session_id"], each["other_id"]) for each in log] == [
        (1, "merge", *ids)
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("merge", "nobody", "{id}"), "perdure sessions"),
        (("merge", "{id}", "{id}"), "one session already"),
        (("split", "{id}", "--only", "nothing"), "perdure show"),
        (("split", "{id}", "--from", "{event}"), "all turns"),
        (("split", "{id}"), "--help"),
        (("undo", "7"), "session log"),
        (("undo", "0"), "--help"),
        (("forget", "{id}"), "--yes"),
        (("forget", "nobody", "--yes"), "perdure sessions"),
    ],
)
def test_wrong_correction_is_status_2_and_one_line_with_the_remedy(
    arguments: tuple[str, ...], words: str, quiet: Gateway
) -> None:
    row = quiet.rows()[0]
    meant = [each.format(id=row.session_id, event=row.event_id) for each in arguments]

    run = perdure("session", *meant, **environ(quiet))

    assert run.returncode == 2 and words in run.stderr
    assert run.stdout == "" and len(quiet.sessions()) == 1


@pytest.fixture(scope="module")
def quiet(provider: ScriptedProvider) -> Iterator[Gateway]:
    """One session with one turn."""
    with Gateway(provider) as running:
        running.start()
        with AnthropicTalk(running.url, "only") as talk:
            talk.say("hello")
        yield running


# -- helpers -----------------------------------------------------------------------------------------------------------


def environ(gateway: Gateway) -> dict[str, str]:
    return {
        "PERDURE_STATE_DIR": str(gateway.directory),
        "PERDURE_RUNTIME_DIR": str(gateway.directory / "run"),
        "PERDURE_LISTEN": f"127.0.0.1:{gateway.port}",
    }


def change(gateway: Gateway, *arguments: str) -> dict[str, Any]:
    """Have a correction done; what the command says of it."""
    run = perdure("session", *arguments, "--json", **environ(gateway))
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def hears_the_new_worker(gateway: Gateway, daemon: str, start: int) -> None:
    eventually(lambda: "is there" in gateway.log(daemon, start), what=gateway.logs)


def split_at(gateway: Gateway) -> str:
    log = json.loads(perdure("session", "log", "--json", **environ(gateway)).stdout)
    return str(log[0]["at"])[:19].replace("T", " ")


def totals_are_exact(gateway: Gateway, *conversations: Conversation) -> None:
    """What clients were told is what the ledger says, and the sums over sessions and days say the same."""
    told = Usage()
    for conversation in conversations:
        told = added(told, conversation.usage)
    rows = gateway.rows()
    assert sum_of_rows(rows) == told
    for shown in gateway.sessions():
        own = [row for row in rows if row.session_id == shown["session_id"]]
        summed = sum_of_rows(own)
        assert (shown["turns"], shown["output_tokens"]) == (len(own), summed.output_tokens)
        assert shown["cache_read_tokens"] == summed.cache_read_tokens
        assert shown["cost_nanousd"] == sum(row.cost_nanousd or 0 for row in own)
        assert sorted(row.position for row in own) == list(range(1, len(own) + 1))
    days = gateway.query("SELECT sum(turns), sum(output_tokens), sum(cost_nanousd) FROM day_total")
    assert days == [(len(rows), told.output_tokens, sum(row.cost_nanousd or 0 for row in rows))]
    assert gateway.query("SELECT * FROM pragma_foreign_key_check") == []
    assert gateway.query("SELECT * FROM pragma_integrity_check") == [("ok",)]


def added(some: Usage, more: Usage) -> Usage:
    return Usage(**{name: getattr(some, name) + getattr(more, name) for name in Usage.__struct_fields__})
