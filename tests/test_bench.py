"""The benchmarks' judgement: what they would let pass."""

from __future__ import annotations

from typing import Any

import pytest

from bench.identity_latency import PATIENCE_SECONDS, QUIET_TIMES_MAX, beyond_bounds


def report(**p99_seconds: float) -> dict[str, Any]:
    return {"situations": {name: {"identity": {"p99_of_best_round": p99}} for name, p99 in p99_seconds.items()}}


@pytest.mark.parametrize(
    ("quiet", "backup", "is_beyond"),
    [
        (0.002, 0.002 * QUIET_TIMES_MAX, False),
        (0.002, 0.002 * QUIET_TIMES_MAX + 0.001, True),
        (0.1, PATIENCE_SECONDS, False),
        (0.1, PATIENCE_SECONDS + 0.001, True),
    ],
)
def test_identity_that_waits_for_a_backup_is_beyond_its_bounds_by_ratio_and_by_patience(
    quiet: float, backup: float, is_beyond: bool
) -> None:
    said = beyond_bounds(report(quiet=quiet, backup=backup))
    assert bool(said) == is_beyond
    assert all("backup" in line for line in said)


def test_situation_measured_alone_is_bounded_by_patience() -> None:
    assert not beyond_bounds(report(backup=0.2))
    assert beyond_bounds(report(backup=0.3))
