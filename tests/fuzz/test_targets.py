"""A short hunt of every target, and the same with a rule of the program taken away, where it must find that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from daemon import identity, state, upstream
from daemon.http_server import Incoming
from daemon.providers import usage
from tests.conftest import Tell
from tests.fuzz.guided import MEMORY_MB_MAX, hunt
from tests.fuzz.targets import TARGETS
from worker import batch, protocol, server, settings, tables

SEED: Final = 20
INPUTS: Final = {
    "frames": 2_500,
    "worker": 120,
    "writes": 120,
    "http": 100,
    "relay": 60,
    "answers": 250,
    "settings": 700,
    "rows": 1_200,
    "stored": 150,
    "bodies": 1_500,
}
"""One or two seconds of each on an idle machine; `make fuzz` goes on for as long as one likes."""


@pytest.mark.parametrize("name", TARGETS)
def test_target_of_a_short_hunt_holds(name: str, tell: Tell) -> None:
    report = hunt(name, TARGETS[name], seed=SEED, executions=INPUTS[name])
    tell(str(report))
    assert not report.findings, report.details()
    assert report.executions >= INPUTS[name] and report.corpus > 0
    assert report.peak_growth_mb <= MEMORY_MB_MAX


async def _write_loudly(incoming: Incoming, data: bytes, _write: Callable[..., Any] = Incoming.write) -> None:
    await _write(incoming, data.upper())


TAKEN_AWAY: Final[dict[str, tuple[str, object, str, object]]] = {
    "refusals quote no value": ("frames", protocol, "_fault", str),
    "answers to readers are bounded by what they may be": ("worker", server, "ANSWER_BYTES_MAX", 10),
    "a row is settled once": ("writes", batch, "supersedes", lambda _row, _before: True),
    "a session has one owner": ("writes", batch, "is_fenced", lambda _session, _write, _boot: False),
    "hop-by-hop headers end here": ("http", upstream, "end_to_end", list),
    "bytes are the client's": ("relay", Incoming, "write", _write_loudly),
    "a count is plausible": ("answers", usage, "COUNT_MAX", 2**62),
    "a message is one line": ("settings", settings, "_one_line", str),
    "ledger rows have checksums": ("rows", tables, "_checksum", lambda _values: 0),
    "gradients have checksums": ("rows", state, "_gradient_checksum", lambda _gradient, _position: 0),
    "an epoch is one that a frame may hold": ("stored", tables, "_is_count", lambda _value, _largest: True),
    "an id is one that can be printed": ("bodies", identity, "is_id", bool),
}


@pytest.mark.parametrize(("name", "owner", "attribute", "instead"), TAKEN_AWAY.values(), ids=TAKEN_AWAY)
def test_target_without_its_rule_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, owner: object, attribute: str, instead: object
) -> None:
    monkeypatch.setattr(owner, attribute, instead)
    report = hunt(name, TARGETS[name], seed=SEED, executions=4 * INPUTS[name], findings_max=1, minimises=False)
    assert report.findings, str(report)
