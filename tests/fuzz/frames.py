"""Target: the frames between daemons and the worker, in both directions.

What must hold: frames are a message or a ProtocolError, never anything else; a message read comes out of `encode` as it
went in; and the reason of a refusal fits the frame that carries it and never quotes a value.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.fuzz.choices import Choices, made
from tests.fuzz.coverage import Edges
from tests.fuzz.guided import Target
from worker.protocol import FROM_DAEMON, FROM_WORKER, PROTOCOL, Body, Command, ProtocolError, Refusal, decode, encode

BETWEEN: Final = b"\x1c\x1c"
"""Between frames in an input."""
SECRET: Final = "zebra-7f"
"""Stands for a text in seeds: in no refusal."""
DIRECTIONS: Final = (FROM_DAEMON, FROM_WORKER)
CHOICES_BYTES: Final = 600
POOLS: Final = dict.fromkeys(("value", "account", "reason", "client", "model", "origin", "name"), (SECRET,))


@contextmanager
def opened(_edges: Edges) -> Iterator[Target]:
    tokens = [PROTOCOL, BETWEEN, b'"\\ud800"', b'"verb":"', b",", b"null", b"\xff", *(each.value for each in Command)]
    yield Target(check=check, seeds=_seeds(), tokens=tokens)


def check(data: bytes) -> None:
    """The first byte chooses between frames as they stand and a body of the program's own, made by the rest."""
    if data[:1] == b"M":
        _check_made(Choices(data[1:]))
    else:
        frames = data.split(BETWEEN)
        for direction in DIRECTIONS:
            _check_frames(frames, direction)


def _check_frames(frames: list[bytes], direction: dict[Command, type[Body]]) -> None:
    try:
        message = decode(frames, direction)
    except ProtocolError as error:
        _check_refusal(Refusal(reason=error.reason), frames)
        return
    assert decode(encode(message.command, message.body, message.sequence), direction) == message


def _check_refusal(refusal: Refusal, frames: list[bytes]) -> None:
    assert decode(encode(Command.REFUSED, refusal), FROM_WORKER).body == refusal
    # What is no frame of ours is quoted in part; the body of one never is.
    if SECRET.encode() not in b"".join(frames[:3]):
        assert SECRET not in refusal.reason, "a refusal quotes a value"


def _check_made(choices: Choices) -> None:
    direction = choices.pick(DIRECTIONS)
    command = choices.pick(list(direction))
    body = made(direction[command], choices, {})
    sequence = choices.pick((0, 1, 2**40, 2**63, 2**64 - 1))
    message = decode(encode(command, body, sequence), direction)
    assert (message.command, message.sequence, message.body) == (command, sequence, body)


def _seeds() -> list[bytes]:
    rng = random.Random(1)
    seeds = []
    for direction in DIRECTIONS:
        for command, shape in direction.items():
            body = made(shape, Choices(rng.randbytes(CHOICES_BYTES)), POOLS)
            seeds.append(BETWEEN.join(encode(command, body, 7)))
            seeds.append(b"M" + rng.randbytes(CHOICES_BYTES))
    amend = b'{"request":"%s","act":{"verb":"%s","change":1}}'
    for verb in (b"undo", b"forget", SECRET.encode()):
        seeds.append(BETWEEN.join([PROTOCOL, b"AMEND", bytes(8), amend % (SECRET.encode(), verb)]))
    return seeds
