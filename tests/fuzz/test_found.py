"""What hunts found, each situation by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.worker.peer import Peer, ThreadedWorker, short_directory
from tests.worker.writing import booking, claim, naming, write
from worker import protocol
from worker.metrics import exposition
from worker.protocol import (
    FROM_DAEMON,
    PROTOCOL,
    Amend,
    Booking,
    Claim,
    Command,
    Family,
    Forget,
    Merge,
    Ping,
    ProtocolError,
    Sample,
    Split,
)
from worker.settings import MESSAGE_CHARACTERS_MAX, BadSettings, load
from worker.store import Store, StoreRefused

# -- between daemons and the worker --------------------------------------------------------------------------------


def test_refusal_of_an_unknown_verb_does_not_quote_it() -> None:
    body = b'{"request":"r","act":{"verb":"a-secret","change":1}}'
    with pytest.raises(ProtocolError) as refused:
        protocol.decode([PROTOCOL, b"AMEND", bytes(8), body], FROM_DAEMON)
    assert "a-secret" not in refused.value.reason and "$.act.verb" in refused.value.reason


@pytest.mark.parametrize("sequence", [2**40 + 1, 2**63, 2**64 - 1])
def test_write_with_any_sequence_that_eight_octets_hold_is_acknowledged(sequence: int) -> None:
    with short_directory() as directory, ThreadedWorker(directory) as worker, Peer(worker.address) as peer:
        assert peer.write(Command.CLAIM, claim(), sequence).sequence == sequence


@pytest.mark.parametrize(
    "act",
    [
        Merge(session_id="x" * 512, into="y" * 512),
        Split(session_id="x" * 512, drawn_id="z", first_event="e" * 512),
    ],
)
def test_correction_of_the_longest_ids_is_refused_in_words_that_arrive(act: Merge | Split) -> None:
    with short_directory() as directory, ThreadedWorker(directory) as worker, Peer(worker.address) as peer:
        peer.write(Command.CLAIM, claim("x" * 512), 1)
        amended = peer.write(Command.AMEND, Amend(request="r", act=act), 2).amended
        assert amended is not None and amended.refusal


def test_figures_beyond_any_of_a_daemon_leave_the_metrics_of_all_readable() -> None:
    with short_directory() as directory, ThreadedWorker(directory) as worker, Peer(worker.address) as peer:
        for name, value in (("up", 1e308), ("down", -1e308)):
            sample = Sample(name, [], value)
            peer.send(Command.PING, Ping(metrics=[Family(name, "counter", "h", [sample, sample])]))
            told = msgspec.json.decode(bytes(peer.query(what="metrics").body), type=list[Family])
            assert exposition(told)


def test_family_of_metrics_without_a_name_is_refused_and_leaves_the_metrics_of_all_readable() -> None:
    with short_directory() as directory, ThreadedWorker(directory) as worker, Peer(worker.address) as peer:
        peer.send(Command.PING, Ping(metrics=[Family("", "counter", "h", [])]), 5)
        assert peer.expect(Command.REFUSED).sequence == 5
        assert exposition(msgspec.json.decode(bytes(peer.query(what="metrics").body), type=list[Family]))


# -- the store -----------------------------------------------------------------------------------------------------

LONG = "printf('%.*c', 70000, 'x')"
"""A text that no frame may hold: a daemon would refuse whatever else is in its frame, again and again."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "perdure.db")
    put(opened, claim("one"), claim("two"), booking(1, "one"))
    put(opened, Claim(naming=naming("proposed", confirmed=False, continues=["chain-one-1"])))
    put(opened, Amend(request="r", act=Merge(session_id="two", into="one")))
    yield opened
    opened.close()


def put(store: Store, *bodies: Claim | Booking | Amend) -> None:
    store.commit([write(body, number) for number, body in enumerate(bodies, 1)], live=frozenset(), now=1)


def damage(store: Store, sql: str) -> None:
    store._db.execute(f"PRAGMA foreign_keys = OFF; {sql}; PRAGMA foreign_keys = ON")


@pytest.mark.parametrize("value", [LONG, "'another'"])
def test_alias_of_a_session_that_is_not_there_is_damage_and_makes_no_session(store: Store, value: str) -> None:
    damage(store, f"UPDATE session_alias SET session_id = {value} WHERE alias = 'proposed'")
    with pytest.raises(StoreRefused, match="session alias 'proposed'"):
        put(store, claim("proposed"))


@pytest.mark.parametrize("change", ["moved = -1", "stayed = 1 << 62", f"other_id = {LONG}", f"verb = {LONG}"])
def test_change_that_no_acknowledgement_can_tell_of_is_damage(store: Store, change: str) -> None:
    damage(store, f"UPDATE session_change SET {change}")
    with pytest.raises(StoreRefused, match="session change"):
        put(store, Amend(request="r", act=Merge(session_id="two", into="one")))


@pytest.mark.parametrize("number", [-1, 2**62])
def test_number_of_the_newest_change_that_no_welcome_can_tell_is_damage(store: Store, number: int) -> None:
    damage(store, f"UPDATE session_change SET id = {number}")
    store.close()
    with pytest.raises(StoreRefused, match="session change"):
        Store(store.path)


def test_session_of_which_no_daemon_can_be_told_that_it_lost_it_is_damage(store: Store) -> None:
    damage(store, f"UPDATE session_state SET session_id = {LONG}, parent_session_id = 'one'")
    put(store, claim("one"))
    with pytest.raises(StoreRefused, match="its id"):
        put(store, Amend(request="s", act=Forget(session_id="one", drawn_id="blank", tree=True)))


@pytest.mark.parametrize("column", ["value", "session_id"])
def test_key_that_no_page_of_the_index_can_hold_is_damage(store: Store, column: str) -> None:
    damage(store, f"UPDATE session_key SET {column} = {LONG}")
    with pytest.raises(StoreRefused, match="session key"):
        store.keys_before(2**62, 100)


# -- configuration -------------------------------------------------------------------------------------------------

NESTED = "a = " + "[" * 2_000
WRONG_FILES = {
    "nested too deeply": NESTED,
    "a number of 5,000 digits": "daemons = " + "9" * 5_000,
    "a number beyond floats": "tick_seconds = 1" + "0" * 400,
    "a key of two lines": '[providers]\n"a\\nb" = "http://x"',
    "an account of two lines": '[account_aliases]\n"a\\nb" = 5',
    "an unknown key of 2,000 characters": "x" * 2_000 + " = 1",
    "a NUL in a path": 'state_dir = "/tmp/\\u0000"',
    "a NUL in the certificates": 'ca_file = "\\u0000"',
    "a NUL in an address": 'anthropic_url = "http://a\\u0000b"',
    "an address of two lines": 'openai_url = "http://a\\u000bb"',
}


@pytest.mark.parametrize("text", WRONG_FILES.values(), ids=WRONG_FILES)
def test_file_that_no_setting_can_come_from_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "perdure.toml"
    path.write_text(text, "utf-8")
    said = refusal({"PERDURE_CONFIG": str(path)})
    assert said.isprintable() and len(said) <= MESSAGE_CHARACTERS_MAX + 1


WRONG_VARIABLES = {
    "a port of 5,000 digits": {"PERDURE_LISTEN": "127.0.0.1:" + "9" * 5_000},
    "a worker's port of 5,000 digits": {
        "PERDURE_WORKER_URL": "tcp://127.0.0.1:" + "9" * 5_000,
        "PERDURE_CURVE_DIR": "/tmp",
    },
    "the home of nobody": {"PERDURE_STATE_DIR": "~nobody-of-that-name/x"},
    "a runtime directory in the home of nobody": {"PERDURE_RUNTIME_DIR": "~nobody-of-that-name/x"},
    "a level of two lines": {"PERDURE_LOG_LEVEL": "a\nb"},
    "an address of two lines": {"PERDURE_LISTEN": "a\nb:80"},
}


@pytest.mark.parametrize("environ", WRONG_VARIABLES.values(), ids=WRONG_VARIABLES)
def test_variable_that_no_setting_can_come_from_is_refused_in_one_line(environ: dict[str, str]) -> None:
    said = refusal(environ)
    assert said.isprintable() and len(said) <= MESSAGE_CHARACTERS_MAX + 1


def test_socket_whose_path_is_no_text_is_measured_in_bytes() -> None:
    assert load({}, {"PERDURE_WORKER_URL": "ipc:///tmp/\udcff"}).worker_url.endswith("\udcff")
    assert "longer" in refusal({"PERDURE_WORKER_URL": "ipc:///tmp/" + "\udcff" * 200})


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(BadSettings) as refused:
        load({}, environ)
    return str(refused.value)
