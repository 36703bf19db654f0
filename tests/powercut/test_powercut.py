"""The power goes after every operation; whatever is left opens, is sound, and holds what was acknowledged.

The second half takes one rule away at a time: then something must be found, or the first half would show nothing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final
from unittest import mock

import pytest

from tests.conftest import Tell
from tests.powercut import workload
from tests.powercut.campaign import Campaign, scratch_folder
from tests.powercut.images import Created, Disk, Grown, Image, Pending, Synced, Written, sectors
from tests.powercut.judge import Judge
from tests.powercut.recording import recording
from tests.powercut.workload import DATABASE, Script, Stage, aging, everyday, pragma_replaced, small
from tests.worker.writing import booking, claim, write
from worker import batch
from worker.store import Store
from worker.tables import SqliteTables

IMAGES_PER_CUT: Final = 2
CONTROL_SEED: Final = 1
"""That the checks can fail must not depend on luck."""

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_cut_after_every_operation_leaves_all_that_was_acknowledged(tell: Tell) -> None:
    campaign = Campaign(int.from_bytes(os.urandom(4), "big"), images_per_cut=IMAGES_PER_CUT)
    campaign.cut_all_scripts()
    report = campaign.report
    tell(str(report))
    assert not report.findings, "\n".join([str(report), *report.findings])
    assert report.cuts == report.operations + report.runs
    assert report.images > report.cuts, "there is hardly more to a cut than all that was written so far"


def test_store_whose_first_page_was_torn_by_a_cut_is_made_anew() -> None:
    """The first transaction's journal is on the disk, and a part of the page that it would make no database."""
    torn = list(_torn_births())
    assert len(torn) > 4
    for image in torn:
        with scratch_folder() as folder:
            for name, content in image.items():
                (folder / name).write_bytes(content)
            store = Store(folder / DATABASE)
            assert workload.state_of(store)["ledger"] == []
            workload.commit(store, [write(booking())], now=1)
            store.close()


def _torn_births() -> Iterator[Image]:
    with scratch_folder() as folder, recording(folder) as recorded:
        Store(folder / DATABASE).close()
    disk = Disk({})
    database = next(each.number for each in recorded.operations if isinstance(each, Created) and each.name == DATABASE)
    for operation in recorded.operations:
        if isinstance(operation, Written) and operation.number == database:
            parts: list[Pending] = [*sectors(operation)]
            for kept in range(len(parts)):
                yield disk.image([*disk.pending(), *parts[:kept]])
                yield disk.image([*disk.pending(), *parts[kept:]])
                yield disk.image([*disk.pending(), Grown(database, len(operation.data)), *parts[:kept]])
            return
        disk.apply(operation)


def test_commit_torn_before_what_a_refused_batch_left_in_the_log_is_no_damage() -> None:
    """Frames of the batch that was rolled back stand behind the commit, and say that they belong to the same log."""
    with scratch_folder() as folder, scratch_folder() as scratch:
        Store(folder / DATABASE).close()
        with recording(folder) as recorded:
            stage = Stage(recorded, random.Random(CONTROL_SEED))
            stage.refuse()
            stage.commit_writes([write(claim())])
            stage.store.abandon()
        judge = Judge(stage.run("refused batch"), scratch)
        disk = Disk(recorded.before)
        last_sync = max(place for place, each in enumerate(recorded.operations) if isinstance(each, Synced))
        for operation in recorded.operations[:last_sync]:
            disk.apply(operation)
        pending, states = disk.pending(), set[int]()
        for missing in range(len(pending)):
            verdict = judge.judge(disk.image([*pending[:missing], *pending[missing + 1 :]]), acknowledged=0)
            assert not verdict.faults
            states |= verdict.states
        # What the commit had overwritten already may be missing.
        assert states == {0, 1}


# -- controls ------------------------------------------------------------------------------------------------------


def test_without_any_sync_acknowledged_commits_are_found_lost() -> None:
    with pragma_replaced("PRAGMA synchronous = FULL", "PRAGMA synchronous = OFF"):
        assert any("lost: " in finding for finding in findings(small))


def test_with_syncs_at_checkpoints_only_acknowledged_commits_are_found_lost() -> None:
    with pragma_replaced("PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"):
        found = findings(small)
    assert any("lost: " in finding for finding in found)


def test_with_acknowledgements_before_the_commit_these_commits_are_found_lost() -> None:
    assert any("lost: " in finding for finding in findings(partial(small, acknowledging_early=True)))


def test_without_one_transaction_for_a_slice_rows_that_are_gone_and_counted_twice_are_found() -> None:
    drop_rows = SqliteTables.drop_rows

    def committing_first(tables: SqliteTables, session_id: str, position: int) -> None:
        tables._execute("COMMIT; BEGIN IMMEDIATE")
        drop_rows(tables, session_id, position)

    with mock.patch.object(SqliteTables, "drop_rows", committing_first):
        found = findings(aging)
    assert any("wrong: " in finding for finding in found)
    assert any("of rows that are gone: " in finding for finding in found)


def always(*_: object) -> bool:
    return True


def never(*_: object) -> bool:
    return False


@pytest.mark.parametrize(
    ("rule", "broken", "table"),
    [
        ("supersedes", always, "ledger"),
        ("is_newer", always, "session_state"),
        ("is_fenced", never, "session_state"),
    ],
)
def test_without_a_rule_late_writes_after_a_cut_are_found(rule: str, broken: Callable[..., bool], table: str) -> None:
    """The rule is taken away from the worker that starts after the cut only: what went before is right."""
    campaign = Campaign(CONTROL_SEED, images_per_cut=1)
    with scratch_folder() as folder:
        run = everyday(folder, campaign.draw)
    with mock.patch.object(batch, rule, broken):
        campaign.cut_everywhere(run)
    assert any(f"in the end, {table} has" in finding for finding in campaign.report.findings), rule


def findings(script: Script) -> list[str]:
    campaign = Campaign(CONTROL_SEED, images_per_cut=IMAGES_PER_CUT)
    campaign.record_and_cut(script)
    return campaign.report.findings
