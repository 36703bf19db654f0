"""A supervisor that dies while it starts its programs: none of them may stay, with nobody to stop it."""

from __future__ import annotations

import pytest

from tests.crash.nursery import Nursery
from tests.crash.supervised import UP_SECONDS, SupervisedGateway
from tests.processes import eventually
from tests.provider import ScriptedProvider

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@pytest.mark.parametrize("children", [1, 2, 3])
def test_supervisor_killed_while_its_programs_start_leaves_no_orphans(children: int) -> None:
    """A program that has not been read yet can not ask to die with its parent: it must have been born so."""
    with (
        Nursery() as nursery,
        ScriptedProvider() as provider,
        SupervisedGateway(provider, nursery, daemons=2) as gateway,
    ):
        gateway.start_supervisor()
        eventually(lambda: len(gateway.children()) >= children, UP_SECONDS, "the supervisor has begun")
        assert gateway.wait_orphans_gone(gateway.kill_supervisor()) == []
