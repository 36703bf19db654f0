"""A seeded sample of bits flipped in every page of a small database, and in every frame of a log; the long form is
`python -m tests.corruption`.

One rule: each thing that finds damage is taken away once, and the same flips must then be served wrongly.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from daemon import state
from tests.conftest import Tell
from tests.corruption.campaign import Campaign
from tests.corruption.damage import KINDS
from tests.worker.peer import short_directory
from worker import store, tables

ROUNDS_MAX: Final = 20
PAGES: Final = 56
"""Of the specimen, about."""


@pytest.fixture
def campaign() -> Iterator[Campaign]:
    with short_directory() as directory:
        yield Campaign(directory, secrets.randbits(31))


@pytest.mark.slow
def test_bits_flipped_in_every_page_and_frame_are_refused_or_harmless(campaign: Campaign, tell: Tell) -> None:
    report = campaign.report
    print(f"seed {report.seed}")
    campaign.pages(PAGES * len(KINDS), clean=True)
    campaign.pages(PAGES, clean=False)
    campaign.frames(100)
    assert report.faults == [], report
    assert report.refused > report.flips / 3, "or the specimen is mostly empty"
    assert report.unseen.total() < report.flips / 20
    tell(str(report))


@pytest.fixture
def control() -> Iterator[Campaign]:
    """With a seed that is known to hit soon."""
    with short_directory() as directory:
        yield Campaign(directory, seed=6)


def assert_served_wrongly(control: Campaign, flip: Callable[[], None]) -> None:
    """Within some rounds of flips, or the suite would not notice either."""
    for _ in range(ROUNDS_MAX):
        flip()
        if control.report.faults:
            break
    assert "served wrongly" in "".join(control.report.faults), control.report


class Anything(int):
    """A checksum that fits whatever it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


def test_without_checksums_of_rows_flips_in_the_ledger_are_served(
    control: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_checksum", lambda _values: Anything())
    assert_served_wrongly(control, lambda: control.pages(16, clean=True, tree="ledger"))


def test_without_checksums_of_snapshots_flips_in_sessions_are_served(
    control: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_gradient_checksum", "_warmup_checksum"):
        monkeypatch.setattr(state, name, lambda *_: Anything())
    assert_served_wrongly(control, lambda: control.pages(20, clean=True, tree="session_state"))


def test_without_a_look_at_indexes_at_the_start_their_flips_are_served(
    control: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_check", lambda *_: None)
    assert_served_wrongly(control, lambda: control.pages(12, clean=True, tree="ledger_by_session"))


def test_without_a_look_at_the_log_damage_in_it_takes_commits_along(
    control: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "hides_commits", lambda *_: False)
    assert_served_wrongly(control, lambda: control.frames(10))


def test_flips_are_those_of_the_seed(tmp_path: Path) -> None:
    def run(name: str) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        again = Campaign(tmp_path / name, seed=7)
        again.pages(8, clean=True, tree="ledger")
        return again.report.as_json()

    assert run("first") == run("second")
