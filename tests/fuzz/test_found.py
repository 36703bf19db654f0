"""What hunts found, each situation by its name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.worker.peer import Peer, ThreadedWorker, short_directory
from tests.worker.writing import claim
from worker import protocol
from worker.metrics import exposition
from worker.protocol import (
    FROM_DAEMON,
    PROTOCOL,
    Amend,
    Command,
    Family,
    Merge,
    Ping,
    ProtocolError,
    Sample,
    Split,
)
from worker.settings import MESSAGE_CHARACTERS_MAX, BadSettings, load

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
