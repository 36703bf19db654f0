"""Every call that the store makes of its disk fails once, and from then on; all of them by `python -m tests.faults`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import pytest

from tests.conftest import Tell
from tests.faults.faulty import Fault, FaultyDisk
from tests.faults.images import make_images
from tests.faults.sweep import SCENES, Careless, Scene, Sweep, faults_of

NUMBERS_MAX: Final = 4
"""Of each kind of call, in this part of the sweep: the first, and others evenly."""
LAST_READS: Final = 60
BY_NAME: Final = {scene.name: scene for scene in SCENES}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    directory = tmp_path_factory.mktemp("sweep")
    images = directory / "images"
    make_images(images)
    with contextlib.closing(FaultyDisk(syncing=False)) as disk:
        yield Sweep(disk, directory / "work", images)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_call_of_the_disk_that_fails_loses_nothing_and_halves_nothing(sweep: Sweep, scene: Scene, tell: Tell) -> None:
    calls, states = sweep.calls_of(scene)
    runs = 0
    for fault in faults_of(calls, NUMBERS_MAX):
        try:
            desk = sweep.run(scene, fault, states)
        except Exception as error:
            error.add_note(f"{scene.name}: {fault}")
            raise
        # None of these is damage, and none is a mistake in the configuration: the worker waits, and does not exit.
        assert desk.refused == [], fault
        runs += 1
    assert runs
    tell(f"errors of the disk, {scene.name}: {runs} faults in {sum(calls.values())} calls, nothing lost or halved")


def test_desk_that_acknowledges_what_was_refused_is_found_out(sweep: Sweep) -> None:
    scene = BY_NAME["commits"]
    calls, states = sweep.calls_of(scene)
    # In the middle is the commit of many turns.  One that is lost between a BEGIN and its END would be made good.
    fault = Fault(call="xWrite", error="ENOSPC", number=calls["xWrite"] // 2)
    with pytest.raises(AssertionError, match="not what it should be"):
        sweep.run(scene, fault, states, Careless)


def test_fault_at_a_call_that_never_comes_is_found_out(sweep: Sweep) -> None:
    scene = BY_NAME["a close"]
    calls, states = sweep.calls_of(scene)
    with pytest.raises(AssertionError, match="no such call"):
        sweep.run(scene, Fault(call="xSync", error="EIO", number=calls["xSync"] + 1), states)


@pytest.mark.parametrize("name", ["a store that was closed", "a store that was killed"])
def test_read_error_at_any_moment_of_the_last_steps_of_an_opening_is_waited_out(sweep: Sweep, name: str) -> None:
    """What a store says of itself is read last, and from another place than what is looked at first."""
    calls, states = sweep.calls_of(BY_NAME[name])
    for number in range(max(1, calls["xRead"] - LAST_READS), calls["xRead"] + 1):
        assert sweep.run(BY_NAME[name], Fault(call="xRead", error="EIO", number=number), states).refused == []
