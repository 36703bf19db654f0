"""The worker over real ZeroMQ sockets: who is answered, what is refused, and that nothing a peer sends ends it."""

from __future__ import annotations

import json
import logging
import resource
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from daemon.state import EMPTY, decode, encode, fold
from tests.worker.peer import Peer, ThreadedWorker, WorkerProcess, short_directory, wait_until
from tests.worker.writing import booking, claim, naming, row, snapshot, snapshot_write
from worker import protocol
from worker import server as server_module
from worker.batch import Write
from worker.protocol import (
    HINTS_MAX,
    PROTOCOL,
    Booking,
    Claim,
    Command,
    Hint,
    Key,
    Naming,
    Row,
    Shape,
    Snapshot,
    SnapshotWrite,
    Usage,
    Why,
)
from worker.runtime import EXIT_CONFIGURATION, EXIT_OK, EXIT_UNAVAILABLE
from worker.server import QUERIES_MAX
from worker.store import Reader, StoreBusy


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as made:
        yield made


@pytest.fixture
def worker(directory: Path) -> Iterator[ThreadedWorker]:
    with ThreadedWorker(directory) as running:
        yield running


def stored_events(directory: Path) -> set[str]:
    reader = Reader(directory / "perdure.db")
    try:
        return {event for (event,) in reader.execute("SELECT event_id FROM ledger")}
    finally:
        reader.close()


# -- greeting ------------------------------------------------------------------------------------------------------


def test_peer_not_greeted_is_asked_who_it_is_and_its_write_is_not_kept(worker: ThreadedWorker, directory: Path) -> None:
    with Peer(worker.address, greet=False) as stranger:
        stranger.send(Command.BEGIN, booking(), 5)
        assert stranger.receive().command is Command.WHO
        assert stored_events(directory) == set()
        welcome = stranger.hello()
        assert welcome.hash_key == worker.store.hash_key and welcome.schema == worker.store.schema
        assert stranger.write(Command.BEGIN, booking(), 5).session_id == "session-1"


def test_peer_named_with_any_bytes_is_answered_as_itself(worker: ThreadedWorker) -> None:
    """Ids that differ only beyond ASCII are two peers: greeting one does not admit the other."""
    with Peer(worker.address, b"\xff\xfe\x01"), Peer(worker.address, b"\xfe\xff\x01", greet=False) as other:
        other.send(Command.CLAIM, claim(), 1)
        assert other.receive().command is Command.WHO


def test_peer_that_said_bye_must_greet_again(worker: ThreadedWorker) -> None:
    with Peer(worker.address) as peer:
        peer.send(Command.BYE, protocol.Bye())
        peer.send(Command.CLAIM, claim(), 1)
        assert peer.receive().command is Command.WHO


# -- writes --------------------------------------------------------------------------------------------------------


def test_write_repeated_and_late_counts_once(worker: ThreadedWorker, directory: Path) -> None:
    with Peer(worker.address) as peer:
        first = peer.write(Command.END, booking(), 2)
        assert peer.write(Command.END, booking(), 2) == first
        peer.write(Command.BEGIN, booking(settled=False), 1)
        record = json.loads(bytes(peer.query(what="session", session_id="session-1").body))["record"]
    assert record["sums"][0] == 1 and record["session"]["last_position"] == 1
    assert first.position == 1


def test_claim_by_another_tells_the_former_owner(worker: ThreadedWorker) -> None:
    with Peer(worker.address) as former, Peer(worker.address) as latter:
        assert former.write(Command.CLAIM, claim(), 1).epoch == 1
        assert latter.write(Command.CLAIM, claim(), 1).epoch == 2
        assert former.expect(Command.LOST).body == protocol.Lost(session_id="session-1", epoch=2)
        assert not former.write(Command.SNAPSHOT, snapshot_write(epoch=1), 2).owned


def test_index_pages_over_the_wire_give_every_key(worker: ThreadedWorker) -> None:
    with Peer(worker.address) as peer:
        for number in range(5):
            peer.send(Command.END, booking(number, f"s-{number}"), number)
        peer.replies(set(range(5)))
        found: list[str] = []
        before = 2**62
        while before != -1:
            peer.send(Command.INDEX, protocol.IndexRequest(before=before, limit=2))
            page = peer.expect(Command.KEYS).body
            assert isinstance(page, protocol.IndexPage)
            found += [entry.session_id for entry in page.entries]
            before = page.before
    assert found == [f"s-{number}" for number in (4, 3, 2, 1, 0)]


def test_query_pages_over_the_wire_give_every_session(worker: ThreadedWorker) -> None:
    with Peer(worker.address) as peer:
        for number in range(5):
            peer.send(Command.END, booking(number, f"s-{number}"), number)
        peer.replies(set(range(5)))
        found: list[str] = []
        after = ""
        while True:
            answer = peer.query(what="sessions", after=after, limit=2)
            found += [record["session"]["session_id"] for record in json.loads(bytes(answer.body))]
            after = answer.after
            if not after:
                break
    assert found == [f"s-{number}" for number in (4, 3, 2, 1, 0)]


@pytest.mark.parametrize("after", ["²", "9" * 400, "-5:x", ":", "x:y:z", "\x00"])
def test_query_with_odd_page_mark_is_answered(worker: ThreadedWorker, after: str) -> None:
    with Peer(worker.address) as peer:
        peer.write(Command.END, booking(), 1)
        assert isinstance(json.loads(bytes(peer.query(what="sessions", after=after).body)), list)


def test_query_of_damaged_row_is_answered_with_nothing_again_and_again(worker: ThreadedWorker, directory: Path) -> None:
    with Peer(worker.address) as peer:
        peer.write(Command.END, booking(), 1)
        other = apsw.Connection(str(directory / "perdure.db"))
        other.execute("UPDATE ledger SET output_tokens = output_tokens + 1")
        other.close()
        for sequence in range(40):
            assert bytes(peer.query(sequence, what="session", session_id="session-1").body) == b"null"


def test_query_that_fails_unexpectedly_gives_its_place_back(
    worker: ThreadedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def account_of(*_: Any) -> Any:
        raise ArithmeticError("nobody thought of this")

    with Peer(worker.address) as peer:
        peer.write(Command.END, booking(), 1)
        with monkeypatch.context() as patch:
            patch.setattr(server_module, "account_of", account_of)
            for sequence in range(QUERIES_MAX + 1):
                assert not peer.query(sequence, what="session", session_id="session-1").answered
        assert peer.query(what="session", session_id="session-1").answered


# -- size ----------------------------------------------------------------------------------------------------------


def test_page_of_sessions_too_large_for_a_message_comes_in_smaller_ones(worker: ThreadedWorker) -> None:
    wide: dict[str, Any] = {"model": "\x01" * 512, "client": "\x02" * 512, "account": "\x03" * 512}
    with Peer(worker.address) as peer:
        for number in range(600):
            peer.send(Command.END, booking(number, f"s-{number % 4}", **wide), number)
        peer.replies(set(range(600)))
        found: list[str] = []
        after = ""
        while True:
            answer = peer.query(what="sessions", after=after)
            found += [record["session"]["session_id"] for record in json.loads(bytes(answer.body))]
            after = answer.after
            if not after:
                break
    assert sorted(found) == ["s-0", "s-1", "s-2", "s-3"]


def test_rows_too_large_for_a_message_come_in_parts_that_say_so(worker: ThreadedWorker) -> None:
    text = "\x01" * 512
    wide: dict[str, Any] = dict.fromkeys(("model", "client", "account", "price_version"), text)
    wide["why"] = Why(reason=text)
    with Peer(worker.address) as writer, Peer(worker.address) as peer:
        for number in range(400):
            writer.send(Command.END, booking(number, **wide), number)
        writer.replies(set(range(400)))
        positions: list[int] = []
        more = True
        while more:
            after = positions[-1] if positions else 0
            reply = peer.write(Command.CLAIM, Claim(naming=naming(), after=after), after + 1)
            positions += [one.position for one in reply.rows]
            more = reply.more
    assert positions == list(range(1, 401))


def test_acknowledgements_of_many_large_snapshots_arrive(worker: ThreadedWorker) -> None:
    with Peer(worker.address) as owner:
        for number in range(100):
            name = f"s-{number}"
            owner.send(Command.CLAIM, claim(name), number)
            owner.send(Command.SNAPSHOT, snapshot_write(name, warmup_state="x" * 65_000), 1_000 + number)
        owner.replies(set(range(100)) | set(range(1_000, 1_100)))
        for number in range(100):
            owner.send(Command.CLAIM, claim(f"s-{number}"), 2_000 + number)
        replies = owner.replies(set(range(2_000, 2_100)))
    assert all(reply.snapshot and len(reply.snapshot.warmup_state or "") == 65_000 for reply in replies.values())


# -- garbage -------------------------------------------------------------------------------------------------------

GOOD_BODY = msgspec.json.encode(booking())
ONE = (1).to_bytes(8, "big")
GARBAGE: dict[str, list[bytes]] = {
    "no frames to speak of": [b""],
    "three frames": [PROTOCOL, b"BEGIN", ONE],
    "five frames": [PROTOCOL, b"BEGIN", ONE, GOOD_BODY, b""],
    "many frames": [b"x"] * 1_000,
    "the version before": [b"perdure/0", b"BEGIN", ONE, GOOD_BODY],
    "no version": [b"", b"BEGIN", ONE, GOOD_BODY],
    "unknown command": [PROTOCOL, b"DROP", ONE, b"{}"],
    "a worker's command": [PROTOCOL, b"ACK", ONE, b'{"replies":[]}'],
    "command not in ASCII": [PROTOCOL, b"\xff\xfe", ONE, b"{}"],
    "sequence too short": [PROTOCOL, b"BEGIN", b"\x01", GOOD_BODY],
    "sequence too long": [PROTOCOL, b"BEGIN", bytes(9), GOOD_BODY],
    "no body": [PROTOCOL, b"BEGIN", ONE, b""],
    "not JSON": [PROTOCOL, b"BEGIN", ONE, b"\x00\x01\x02\xff"],
    "JSON of another shape": [PROTOCOL, b"BEGIN", ONE, b"[1,2,3]"],
    "fields missing": [PROTOCOL, b"BEGIN", ONE, b'{"epoch":1}'],
    "wrong type": [PROTOCOL, b"BEGIN", ONE, GOOD_BODY.replace(b'"epoch":1', b'"epoch":"one"')],
    "half a token": [PROTOCOL, b"BEGIN", ONE, GOOD_BODY.replace(b'"input_tokens":10', b'"input_tokens":10.5')],
    "deep nesting": [PROTOCOL, b"BEGIN", ONE, b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"],
    "lone surrogate": [PROTOCOL, b"BEGIN", ONE, GOOD_BODY.replace(b"model-1", rb"\ud800")],
    "not UTF-8": [PROTOCOL, b"BEGIN", ONE, GOOD_BODY.replace(b"model-1", b"\xff\xfe")],
    "number beyond 64 bits": [PROTOCOL, b"BEGIN", ONE, GOOD_BODY.replace(b'"epoch":1', b'"epoch":' + b"9" * 40)],
    "number of 5,000 digits": [PROTOCOL, b"BEGIN", ONE, GOOD_BODY.replace(b'"epoch":1', b'"epoch":' + b"9" * 5_000)],
    "negative tokens": [PROTOCOL, b"BEGIN", ONE, GOOD_BODY.replace(b'"input_tokens":10', b'"input_tokens":-1')],
    "infinite average": [
        PROTOCOL,
        b"SNAPSHOT",
        ONE,
        msgspec.json.encode(snapshot_write()).replace(b'"bust_rate_ema":0.5', b'"bust_rate_ema":1e999'),
    ],
    "endless text": [PROTOCOL, b"BEGIN", ONE, GOOD_BODY.replace(b"model-1", b"m" * 513)],
    "page of none": [PROTOCOL, b"INDEX", ONE, b'{"limit":0}'],
    "page beyond 64 bits": [PROTOCOL, b"INDEX", ONE, b'{"before":99999999999999999999}'],
    "rows after beyond 64 bits": [
        PROTOCOL,
        b"CLAIM",
        ONE,
        msgspec.json.encode(claim()).replace(b'"after":-1', b'"after":' + b"9" * 30),
    ],
}


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_refused_and_counted_and_others_are_served(
    directory: Path, frames: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "worker"),
        ThreadedWorker(directory) as worker,
        Peer(worker.address) as bad,
        Peer(worker.address) as good,
    ):
        for _ in range(3):
            bad.send_frames(frames)
            bad.expect(Command.REFUSED)
        assert good.write(Command.END, booking(), 1).position == 1
        families = {family[0]: family for family in json.loads(bytes(good.query(what="metrics").body))}
        assert families["perdure_refused_frames"][3][0][2] == 3.0
    assert len([record for record in caplog.records if "refused a frame" in record.message]) == 1


def test_body_over_the_limit_costs_its_sender_the_connection_and_nobody_else(worker: ThreadedWorker) -> None:
    with Peer(worker.address) as bad, Peer(worker.address) as good:
        bad.send_frames([PROTOCOL, b"BEGIN", ONE, b" " * (5 * 1024 * 1024)])
        assert good.write(Command.END, booking(), 1).position == 1


def test_refusal_and_log_never_quote_a_value(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = "sk-ant-something-to-keep"
    bodies = [
        GOOD_BODY.replace(b'"kind":"turn"', f'"kind":"{secret}"'.encode()),
        b'{"epoch":"' + secret.encode() + b'"}',
    ]
    with caplog.at_level(logging.DEBUG), ThreadedWorker(directory) as worker, Peer(worker.address) as peer:
        for body in bodies:
            peer.send_frames([PROTOCOL, b"BEGIN", ONE, body])
            refusal = peer.expect(Command.REFUSED, 1).body
            assert isinstance(refusal, protocol.Refusal)
            assert secret not in refusal.reason
            assert "$." in refusal.reason or "missing" in refusal.reason
    assert secret not in caplog.text


SQL = "'; DROP TABLE ledger; --"


@pytest.mark.parametrize("text", ["\x00", "a\x00b", SQL, "\U0010ffff", "\ufeff", "’", "%s%n", "\\u0000"])
def test_odd_text_is_kept_as_it_is(worker: ThreadedWorker, text: str) -> None:
    with Peer(worker.address) as peer:
        keys = [Key(kind="header", name=text, value=text)]
        named = naming(f"s{text}", keys=keys, header_name=text, header_session_id=text, why=Why(reason=text))
        body = Booking(naming=named, row=row(1, f"s{text}", model=text, account=text), epoch=1, seen=0)
        assert peer.write(Command.END, body, 1).session_id == f"s{text}"
        account = json.loads(bytes(peer.query(what="session", session_id=f"s{text}").body))
    assert account["newest"][0]["model"] == text and account["keys"] == [["header", text, text]]


# -- poison: what is well-formed, and yet can not be stored --------------------------------------------------------


def test_write_that_can_not_be_stored_is_refused_alone_and_the_rest_of_its_batch_commits(
    worker: ThreadedWorker, directory: Path
) -> None:
    with Peer(worker.address) as peer:
        peer.write(Command.END, booking(1, "full"), 1)
        other = apsw.Connection(str(directory / "perdure.db"))
        other.execute("UPDATE session_total SET cost_nanousd = ?", (2**63 - 1,))
        other.close()
        for sequence in range(10, 30):
            poison = sequence == 20
            body = booking(sequence, "full", cost_nanousd=2**50) if poison else booking(sequence, f"s-{sequence}")
            peer.send(Command.END, body, sequence)
        peer.expect(Command.REFUSED, 20)
        peer.send(Command.END, booking(99, "s-99"), 99)
        peer.replies({99})
    wanted = {f"event-s-{n}-{n:06d}" for n in (*range(10, 20), *range(21, 30))}
    assert wanted <= stored_events(directory)
    assert "event-full-000020" not in stored_events(directory)


# What a hand or a disk may leave in a session's row, and what the daemon then finds damaged.
DAMAGED: dict[str, tuple[str, tuple[str, ...]]] = {
    "generation below zero": ("generation = -1", ()),
    "generation beyond any": ("generation = 9223372036854775807", ()),
    "cap beyond any": ("dynamic_context_cap = 9223372036854775807", ("gradient",)),
    "position beyond any": ("snapshot_position = 4611686018427387904", ("gradient", "warming")),
    "position below zero": ("snapshot_position = -5", ("gradient", "warming")),
    "text that is not UTF-8": ("warmup_state = CAST(x'7bfffe7d' AS TEXT)", ("warming",)),
    "text of 100 KB": ("warmup_state = printf('%.*c', 102400, 'x')", ("warming",)),
    "TTL that is not UTF-8": ("resolved_conversation_ttl = CAST(x'ff' AS TEXT)", ("warming",)),
}


@pytest.mark.parametrize(("damage", "groups"), DAMAGED.values(), ids=DAMAGED.keys())
def test_claim_of_a_damaged_row_is_acknowledged_with_its_whole_batch_and_judged_by_the_daemon(
    worker: ThreadedWorker, directory: Path, monkeypatch: pytest.MonkeyPatch, damage: str, groups: tuple[str, ...]
) -> None:
    with Peer(worker.address) as peer:
        peer.write(Command.CLAIM, claim(), 1)
        settled = peer.write(Command.END, booking(1), 2)
        state = fold(EMPTY, [row(1, position=settled.position)])
        peer.write(Command.SNAPSHOT, SnapshotWrite(session_id="session-1", epoch=1, snapshot=encode(state, 5)), 3)
        other = apsw.Connection(str(directory / "perdure.db"))
        other.execute(f"UPDATE session_state SET {damage}")
        other.close()
        commit_only_batches_of(worker, monkeypatch, writes=4)
        peer.send(Command.END, booking(1, "before"), 10)
        peer.send(Command.CLAIM, claim(), 11)
        peer.send(Command.END, booking(2, "after"), 12)
        peer.send(Command.CLAIM, claim("another"), 13)
        reply = peer.replies({10, 11, 12, 13})[11]
        assert isinstance(json.loads(bytes(peer.query(what="sessions").body)), list)
    assert reply.owned and reply.snapshot is not None
    restored = decode(reply.snapshot)
    assert tuple(warning.split()[0] for warning in restored.warnings) == groups
    if not groups:
        assert (restored.gradient, restored.warming) == (state.gradient, state.warming)


def commit_only_batches_of(worker: ThreadedWorker, monkeypatch: pytest.MonkeyPatch, *, writes: int) -> None:
    """Let the store be busy until so many writes are together."""
    real = worker.store.commit

    def commit(batch: Sequence[Write], **named: Any) -> Any:
        if len(batch) < writes:
            raise StoreBusy("not enough of them yet")
        return real(batch, **named)

    monkeypatch.setattr(worker.store, "commit", commit)


TEXT = st.text(max_size=12) | st.sampled_from(["", "\x00", "a" * 512, "\U0010ffff" * 40, SQL, "session-1"])
ID = TEXT.filter(bool)
COUNT = st.sampled_from([0, 1, 2**31, 2**40]) | st.integers(0, 2**40)
STORED = st.none() | st.sampled_from([-(2**63), -1, 0, 2**63 - 1])
REAL = st.none() | st.floats(allow_nan=False, allow_infinity=False)
WHY = st.builds(Why, reason=TEXT, origin=TEXT, confidence=st.sampled_from(["", "certain", "proven", "likely"]))
NAMINGS = st.builds(
    Naming,
    session_id=ID,
    confirmed=st.booleans(),
    continues=st.lists(TEXT, max_size=4),
    retry=TEXT,
    keys=st.lists(
        st.builds(
            Key,
            kind=st.sampled_from(["header", "body", "answer", "request", "retry", "history"]),
            name=TEXT,
            value=TEXT,
        ),
        max_size=4,
    ),
    chain_length=COUNT,
    header_name=TEXT,
    header_session_id=TEXT,
    client=TEXT,
    account=TEXT,
    parent=TEXT,
    is_opening=st.booleans(),
    is_judged=st.booleans(),
    shape=st.none() | st.builds(Shape, system=TEXT, tools=TEXT, opening=TEXT),
    hints=st.lists(st.builds(Hint, st.sampled_from(["session", "header", "field"]), TEXT, TEXT), max_size=HINTS_MAX),
    why=WHY,
)
ROWS = st.builds(
    Row,
    event_id=st.sampled_from(["event-00", "event-01", "\x00" * 8, "e" * 64]) | st.text(min_size=8, max_size=64),
    session_id=ID,
    kind=st.sampled_from(["turn", "side", "warmup"]),
    status=st.sampled_from(["interrupted", "error", "complete"]),
    started_at=st.sampled_from([0, 1, 2**53]),
    ended_at=st.sampled_from([0, 1, 2**53]),
    provider=TEXT,
    protocol=st.sampled_from(["messages", "chat", "responses"]),
    model=TEXT,
    client=TEXT,
    account=TEXT,
    boot=TEXT,
    why=WHY,
    http_status=COUNT,
    usage=st.none() | st.builds(Usage, input_tokens=COUNT, cache_write_1h_tokens=COUNT, output_tokens=COUNT),
    cost_nanousd=st.none() | st.sampled_from([0, 1, 2**50]),
    price_version=TEXT,
    message_count=COUNT,
    cap_ceiling=COUNT,
    layer=st.integers(0, 4),
    user_turn=st.booleans(),
    text_only=st.booleans(),
    position=COUNT,
)
SNAPSHOTS = st.builds(
    Snapshot,
    generation=COUNT,
    position=COUNT,
    dynamic_context_cap=STORED,
    bust_rate_ema=REAL,
    inter_bust_interval_ema=REAL,
    last_layer=STORED,
    last_known_input=STORED,
    last_turn_at=STORED,
    last_bust_at=STORED,
    gradient_checksum=st.sampled_from([-(2**62), 0, 2**62]),
    resolved_conversation_ttl=st.none() | TEXT,
    warmup_state=st.none() | TEXT,
    warmup_checksum=st.sampled_from([-(2**62), 0, 2**62]),
)
WRITES = st.one_of(
    st.tuples(st.just(Command.CLAIM), st.builds(Claim, naming=NAMINGS, after=st.sampled_from([-1, 0, 2**40]))),
    st.tuples(
        st.sampled_from([Command.BEGIN, Command.END]),
        st.builds(Booking, naming=NAMINGS, row=ROWS, epoch=COUNT, seen=COUNT),
    ),
    st.tuples(st.just(Command.SNAPSHOT), st.builds(SnapshotWrite, session_id=ID, epoch=COUNT, snapshot=SNAPSHOTS)),
)


def test_extreme_but_well_formed_writes_are_all_acknowledged_and_sums_hold(directory: Path) -> None:
    with ThreadedWorker(directory) as worker, Peer(worker.address) as peer:
        sequence = iter(range(1, 10**9))

        # No shrinking: the store remembers, so a failing example means nothing without those before it.
        @settings(
            max_examples=80,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(WRITES, min_size=1, max_size=8))
        def storm(writes: list[tuple[Command, Any]]) -> None:
            numbered = [(next(sequence), command, body) for command, body in writes]
            for number, command, body in numbered:
                peer.send(command, body, number)
            peer.replies({number for number, _, _ in numbered})

        storm()
        assert isinstance(json.loads(bytes(peer.query(what="sessions").body)), list)
    check_sums(directory)


def check_sums(directory: Path) -> None:
    names = "sum(turns), sum(interrupted), sum(input_tokens), sum(output_tokens), sum(priced), sum(unpriced)"
    ledger = (
        "count(*), sum(status = 'interrupted'), sum(coalesce(input_tokens, 0)), sum(coalesce(output_tokens, 0)), "
        "sum(cost_nanousd IS NOT NULL), sum(cost_nanousd IS NULL)"
    )
    db = apsw.Connection(str(directory / "perdure.db"))
    assert list(db.execute(f"SELECT {names} FROM day_total")) == list(db.execute(f"SELECT {ledger} FROM ledger"))
    by_session = "SELECT session_id, turns, interrupted, input_tokens FROM session_total WHERE turns ORDER BY 1"
    rows = (
        "SELECT session_id, count(*), sum(status = 'interrupted'), sum(coalesce(input_tokens, 0)) "
        "FROM ledger WHERE kind = 'turn' GROUP BY 1 ORDER BY 1"
    )
    assert list(db.execute(by_session)) == list(db.execute(rows))
    assert next(iter(db.execute("PRAGMA integrity_check")))[0] == "ok"
    db.close()


# -- peers and disks that do not do their part ---------------------------------------------------------------------


def test_peer_that_does_not_read_holds_nobody_up(worker: ThreadedWorker, directory: Path) -> None:
    with Peer(worker.address, receive_limit=1) as deaf, Peer(worker.address) as good:
        # Each is answered by a message of its own: more than all queues between the two can hold.
        for _ in range(20_000):
            deaf.send(Command.PING, protocol.Ping())
        deaf.send(Command.END, booking(1, "the-last-of-the-deaf"), 9_999)
        for number in range(20):
            good.write(Command.END, booking(number, "good"), number)
        wait_until(lambda: len(stored_events(directory)) == 21, "writes of a peer that does not read are committed")


def test_store_that_is_busy_keeps_the_batch_and_acknowledges_after_it_recovers(
    worker: ThreadedWorker, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = worker.store.commit
    full = True

    def commit(*arguments: Any, **named: Any) -> Any:
        if full:
            raise StoreBusy("FullError: disk full")
        return real(*arguments, **named)

    monkeypatch.setattr(worker.store, "commit", commit)
    with Peer(worker.address) as peer:
        assert peer.is_committing()
        peer.send(Command.END, booking(), 1)
        wait_until(lambda: not peer.is_committing(), "the worker says that it does not commit")
        assert stored_events(directory) == set()
        full = False
        assert peer.replies({1})[1].position == 1
        assert peer.is_committing()
    assert len(stored_events(directory)) == 1


def test_index_that_can_not_be_read_is_answered_empty_and_ends_nobody(
    worker: ThreadedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys_before(_before: int, _limit: int) -> protocol.IndexPage:
        raise StoreBusy("IOError: disk I/O error")

    with Peer(worker.address) as peer:
        peer.write(Command.END, booking(), 1)
        monkeypatch.setattr(worker.store, "keys_before", keys_before)
        peer.send(Command.INDEX, protocol.IndexRequest())
        assert peer.expect(Command.KEYS).body == protocol.IndexPage(entries=[], before=-1)
        assert peer.write(Command.END, booking(2), 2).position == 2


# -- the process ---------------------------------------------------------------------------------------------------


def test_process_on_a_full_disk_goes_on_and_commits_once_there_is_space(directory: Path) -> None:
    """The kernel's limit on a file's size stands for the full disk: it can be set and lifted from outside."""
    with WorkerProcess(directory) as worker, Peer(worker.address) as peer:
        peer.write(Command.END, booking(1), 1)
        _, hard = resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (4_096, hard))
        for number in range(2, 30):
            peer.send(Command.END, booking(number), number)
        wait_until(lambda: not peer.is_committing(), "the worker says that it does not commit")
        assert worker.process.poll() is None
        assert len(stored_events(directory)) == 1
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        replies = peer.replies(set(range(2, 30)))
        assert [replies[number].position for number in range(2, 30)] == list(range(2, 30))


def test_process_told_to_stop_commits_what_arrived_and_exits_clean(directory: Path) -> None:
    with WorkerProcess(directory) as worker, Peer(worker.address) as peer:
        worker.process.send_signal(signal.SIGSTOP)
        for number in range(50):
            peer.send(Command.END, booking(number), number)
        # Frames leave through a thread of the library's own; what it could not hand over yet is not on its way.
        peer.send(Command.PING, protocol.Ping())
        worker.process.send_signal(signal.SIGCONT)
        peer.expect(Command.PONG)
        worker.process.send_signal(signal.SIGTERM)
        status, said = worker.end()
        assert status == EXIT_OK and "Traceback" not in said
    assert not (directory / "perdure.db-wal").exists()
    assert len(stored_events(directory)) == 50


def test_process_told_to_stop_again_while_it_closes_exits_clean(directory: Path) -> None:
    """A read transaction keeps the log from being emptied, so that the second signal finds the store closing."""
    with WorkerProcess(directory) as worker:
        with Peer(worker.address) as peer:
            peer.write(Command.END, booking(1), 1)
            reading = apsw.Connection(str(directory / "perdure.db"))
            list(reading.execute("BEGIN; SELECT count(*) FROM ledger"))
            peer.write(Command.END, booking(2), 2)
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_listened_to(directory / "run" / "worker.sock"), "the worker closes")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.poll() is None, "it must still have been closing"
        reading.close()
        status, said = worker.end()
    assert status == EXIT_OK, said
    assert "internal error" not in said and "Traceback" not in said
    assert len(stored_events(directory)) == 2


def is_listened_to(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(address)) == 0


def test_process_second_on_the_directory_is_refused_with_the_pid_of_the_first(directory: Path) -> None:
    with WorkerProcess(directory) as first, Peer(first.address), WorkerProcess(directory) as second:
        status, said = second.end()
        assert status == EXIT_UNAVAILABLE
        assert f"pid {first.process.pid}" in said and len(said.splitlines()) == 1
        with Peer(first.address) as peer:
            assert peer.write(Command.END, booking(), 1).position == 1


def test_process_after_sigkill_has_the_lock_and_the_rows(directory: Path) -> None:
    with WorkerProcess(directory) as worker:
        with Peer(worker.address) as peer:
            peer.write(Command.END, booking(1), 1)
        worker.process.kill()
        worker.process.communicate()
        worker.start()
        with Peer(worker.address) as peer:
            assert peer.write(Command.END, booking(2), 1).position == 2


def start_fails(directory: Path, *, status: int = EXIT_CONFIGURATION, **environment: str) -> str:
    with WorkerProcess(directory, **environment) as worker:
        ended, said = worker.end()
    assert ended == status, said
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_process_with_text_file_for_database_exits_78_with_one_line(directory: Path) -> None:
    (directory / "perdure.db").write_text("my notes\n" * 100)
    assert "not a SQLite database" in start_fails(directory)
    assert (directory / "perdure.db").read_text() == "my notes\n" * 100


def test_process_with_address_that_is_taken_exits_75_with_one_line(directory: Path) -> None:
    """Somebody else may leave: a supervisor tries again."""
    (directory / "taken").mkdir()
    said = start_fails(directory, status=EXIT_UNAVAILABLE, PERDURE_WORKER_URL=f"ipc://{directory}/taken")
    assert "taken" in said


def test_process_with_state_directory_under_a_file_exits_78_with_one_line(directory: Path) -> None:
    (directory / "file").write_text("")
    assert "name a directory" in start_fails(directory, PERDURE_STATE_DIR=f"{directory}/file/state")


def test_process_with_unknown_key_in_its_file_exits_78_with_the_right_one(directory: Path) -> None:
    (directory / "c.toml").write_text("tick_second = 5\n")
    assert "'tick_seconds'" in start_fails(directory, PERDURE_CONFIG=f"{directory}/c.toml")


def test_process_makes_files_for_its_user_alone(directory: Path) -> None:
    with WorkerProcess(directory / "state") as worker, Peer(worker.address):
        modes = {p.name: p.stat().st_mode & 0o777 for p in (directory / "state").rglob("*")}
    assert modes["perdure.db"] == 0o600 and modes["perdure.lock"] == 0o600 and modes["run"] == 0o700
    assert modes["worker.sock"] & 0o077 == 0


def test_snapshot_helper_is_what_the_protocol_takes() -> None:
    """The other tests stand on it: what they send must be valid, or their refusals would prove nothing."""
    body = msgspec.json.encode(SnapshotWrite(session_id="s", epoch=1, snapshot=snapshot()))
    assert msgspec.json.decode(body, type=SnapshotWrite).snapshot == snapshot()
