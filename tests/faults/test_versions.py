"""Peers of other versions: a later one of the same protocol is understood, one of another protocol is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import pytest
from msgspec import inspect

from tests.crash.crowd import NAMED, Crowd
from tests.faults.outdoors import PACE_SECONDS, SEED, Outdoors, assert_all_stored, counted
from tests.faults.program import NEWS, Weather, with_new_fields
from tests.processes import eventually
from tests.provider import ScriptedProvider
from worker import protocol
from worker.protocol import FROM_DAEMON, FROM_WORKER, Body, Command, ProtocolError

DIRECTIONS: Final = {"to the worker": FROM_DAEMON, "to a daemon": FROM_WORKER}
MESSAGES: Final = [
    pytest.param(direction, command, id=f"{command.name} {name}")
    for name, direction in DIRECTIONS.items()
    for command in direction
]
TOLD: Final = {"worker": ("daemon", "perdure_refused_answers"), "daemon": ("worker", "perdure_refused_frames")}
"""Who hears what a later version of the one says, and what counts what is not understood of it."""
OTHER: Final = "perdure/2"
REFUSED_FRAMES_MIN: Final = 20
"""A daemon that nobody welcomes calls ten times a second: what is logged with every call is seen."""


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


# -- as values


@pytest.mark.parametrize(("direction", "command"), MESSAGES)
def test_fields_of_a_later_version_are_ignored_at_any_depth(
    direction: dict[Command, type[Body]], command: Command
) -> None:
    plain = msgspec.json.encode(example(inspect.type_info(direction[command])))
    later = msgspec.json.encode(with_new_fields(msgspec.json.decode(plain)))
    assert later != plain
    message = [protocol.PROTOCOL, command.value, bytes(protocol.SEQUENCE_BYTES)]
    understood = protocol.decode([*message, plain], direction)
    if command is not Command.ANSWER:  # Its body is a document of its own, not the protocol's.
        assert protocol.decode([*message, later], direction) == understood


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_command_of_a_later_version_is_refused_by_its_name_and_sequence(direction: dict[Command, type[Body]]) -> None:
    with pytest.raises(ProtocolError, match="unknown command b'NEWS'") as refused:
        protocol.decode([protocol.PROTOCOL, NEWS, (7).to_bytes(protocol.SEQUENCE_BYTES, "big"), b"{}"], direction)
    assert refused.value.sequence == 7


def example(kind: inspect.Type) -> Any:
    """A JSON value of a type, with all its fields."""
    match kind:
        case inspect.StructType(array_like=True, fields=fields):
            return [example(field.type) for field in fields]
        case inspect.StructType(fields=fields, tag_field=tag_field, tag=tag):
            tagged = {tag_field: tag} if tag_field else {}
            return tagged | {field.encode_name: example(field.type) for field in fields}
        case inspect.UnionType(types=types):
            return example(next(inner for inner in types if not isinstance(inner, inspect.NoneType)))
        case inspect.ListType(item_type=item):
            return [example(item)]
        case inspect.TupleType(item_types=items):
            return [example(item) for item in items]
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.StrType(min_length=length):
            return "x" * (length or 1)
        case inspect.BoolType():
            return True
        case inspect.RawType():
            return {"a": 1}
        case inspect.IntType() | inspect.FloatType():
            return 1
    raise AssertionError(f"no example of {kind}")


# -- as processes


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("later", ["worker", "daemon"])
def test_later_version_of_one_program_works_with_the_other_as_it_is(provider: ScriptedProvider, later: str) -> None:
    with (
        Outdoors(provider, under={later: Weather(is_later=True)}, tick_seconds=0.2) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        crowd.open()
        crowd.wait_for_attempts(40)
        told, metric = TOLD[later]
        eventually(lambda: counted(gateway, metric) > 1, what=gateway.logs)
        crowd.wait_for_attempts(40)
        assert (gateway.readyz() or {})["status"] == "ready"
        crowd.silence()
        assert_all_stored(gateway, provider, crowd, worker_was_away=False)
        assert gateway.log(told).count(NEWS.decode()) == 1
        assert gateway.stop("daemon") == 0 and gateway.stop("worker") == 0


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("other", ["worker", "daemon"])
def test_other_protocol_is_left_alone_said_once_and_costs_nothing_when_the_right_worker_comes(
    provider: ScriptedProvider, other: str
) -> None:
    with (
        Outdoors(provider, under={other: Weather(speaks=OTHER)}, tick_seconds=0.2) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.launch("worker")
        gateway.start_daemon()
        gateway.wait_status("degraded")
        crowd.open()
        crowd.wait_for_attempts(40)
        eventually(lambda: "perdure/" in (gateway.readyz() or {})["checks"]["worker"], what=gateway.logs)
        eventually(lambda: counted(gateway, "perdure_refused_answers") > REFUSED_FRAMES_MIN, what=gateway.logs)
        for name in ("worker", "daemon"):
            assert gateway.is_running(name)
            assert gateway.log(name).count(OTHER) == 1, gateway.logs()
        assert gateway.database.exists() and gateway.rows() == []
        if other == "worker":
            gateway.kill("worker")
            gateway.set("worker", Weather())
            gateway.launch("worker")
            gateway.wait_ready()
            crowd.silence()
            assert_all_stored(gateway, provider, crowd)
