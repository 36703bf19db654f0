"""The contract as values: what decodes, what is refused, and that docs/PROTOCOL.md says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.writing import booking, claim, snapshot_write
from worker import protocol
from worker.protocol import FROM_DAEMON, FROM_WORKER, WRITES, Body, Command, ProtocolError, decode, encode

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "PROTOCOL.md").read_text("utf-8")
PARTS = {
    part.__name__: part
    for part in (
        protocol.Naming,
        protocol.Key,
        protocol.Shape,
        protocol.Hint,
        protocol.Why,
        protocol.Row,
        protocol.Usage,
        protocol.Snapshot,
        protocol.Reply,
        protocol.Merge,
        protocol.Split,
        protocol.Undo,
        protocol.Forget,
        protocol.Adopt,
        protocol.Warm,
        protocol.Latch,
        protocol.Switch,
        protocol.HandSet,
        protocol.Adoption,
        protocol.Adopted,
        protocol.Amended,
        protocol.IndexEntry,
        protocol.Family,
        protocol.Sample,
    )
}
LIMITS = (
    "MESSAGE_BYTES_MAX",
    "ROWS_PER_REPLY_MAX",
    "KEYS_PER_PAGE_MAX",
    "CONTINUES_MAX",
    "SKETCH_HASHES_MAX",
    "SAID_MAX",
    "HINTS_MAX",
    "HAND_SET_MAX",
    "LATCHES_MAX",
    "ADOPTIONS_MAX",
    "SPLIT_EVENTS_MAX",
)


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table under a line that starts with the heading: first cell → the other cells."""
    lines = PAGE[PAGE.index(f"\n{heading}") :].splitlines()[2:]
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows: dict[str, list[str]] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *others = [cell.strip() for cell in line.strip("|").split("|")]
        rows[first.strip("`")] = others
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize(("heading", "direction"), [("From daemons:", FROM_DAEMON), ("From the worker:", FROM_WORKER)])
def test_page_commands_and_their_fields_are_those_of_the_code(
    heading: str, direction: dict[Command, type[Body]]
) -> None:
    written = {command: (cells[0], names(cells[1])) for command, cells in table(heading).items()}
    coded = {
        command.value.decode(): (body.__name__, list(body.__struct_fields__)) for command, body in direction.items()
    }
    assert written == coded


def test_page_parts_and_their_fields_are_those_of_the_code() -> None:
    written = {name.split()[0]: names(cells[0]) for name, cells in table("Parts of bodies:").items()}
    assert written == {name: list(part.__struct_fields__) for name, part in PARTS.items()}


def test_page_limits_and_version_are_those_of_the_code() -> None:
    written = {name: int(cells[0]) for name, cells in table("## Limits").items()}
    assert written == {name: getattr(protocol, name) for name in LIMITS}
    assert f"Version `{protocol.PROTOCOL.decode()}`" in PAGE


def test_page_writes_are_those_of_the_code() -> None:
    sentence = PAGE[PAGE.index("**Writes**") :].split(".")[0]
    assert set(names(sentence)) == {command.value.decode() for command in WRITES}


def test_every_command_has_exactly_one_direction() -> None:
    assert set(FROM_DAEMON) | set(FROM_WORKER) == set(Command)
    assert not set(FROM_DAEMON) & set(FROM_WORKER)


@pytest.mark.parametrize(
    ("command", "body"),
    [(Command.CLAIM, claim()), (Command.BEGIN, booking(settled=False)), (Command.SNAPSHOT, snapshot_write())],
)
def test_message_decoded_is_what_was_encoded(command: Command, body: Body) -> None:
    message = decode(encode(command, body, 2**64 - 1), FROM_DAEMON)
    assert (message.command, message.sequence, message.body) == (command, 2**64 - 1, body)


def test_unknown_field_is_ignored() -> None:
    frames = encode(Command.PING, protocol.Ping())
    assert decode([*frames[:3], b'{"metrics":null,"of_a_later_version":[1]}'], FROM_DAEMON).body == protocol.Ping()


def test_refusal_names_the_sequence_if_it_could_be_read() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode([protocol.PROTOCOL, b"CLAIM", (77).to_bytes(8, "big"), b"{}"], FROM_DAEMON)
    assert caught.value.sequence == 77


@given(st.lists(st.binary(max_size=64), max_size=6))
def test_any_frames_decode_or_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode(frames, FROM_DAEMON)


@given(st.sampled_from(list(FROM_DAEMON)), st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_body_decodes_or_is_refused(command: Command, body: bytes) -> None:
    try:
        decoded = decode([protocol.PROTOCOL, command.value, bytes(8), body], FROM_DAEMON)
    except ProtocolError:
        return
    assert isinstance(decoded.body, FROM_DAEMON[command])
