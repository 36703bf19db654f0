"""The model of a disk: what a cut may take, and what it may not."""

from __future__ import annotations

import random
from itertools import islice

from tests.powercut.images import (
    SECTOR_BYTES,
    Created,
    Deleted,
    DirectorySynced,
    Disk,
    Image,
    Operation,
    Renamed,
    Synced,
    Truncated,
    Written,
    digest,
    selections,
)

OLD = {"a": b"old"}
DRAWS = 400


def images_after(*operations: Operation, before: Image = OLD) -> list[Image]:
    """All that may be left, as far as it is drawn."""
    disk = Disk(before)
    for operation in operations:
        disk.apply(operation)
    drawn = islice(selections(disk.pending(), random.Random(1)), DRAWS)
    return list({digest(image): image for image in map(disk.image, drawn)}.values())


def contents_after(*operations: Operation, before: bytes = b"old") -> set[bytes]:
    return {image["a"] for image in images_after(*operations, before={"a": before})}


def test_disk_with_nothing_pending_has_one_image() -> None:
    assert images_after() == [OLD]


def test_synced_write_is_in_every_image() -> None:
    assert contents_after(Written(0, 0, b"new"), Synced(0)) == {b"new"}


def test_unsynced_write_may_be_there_or_not() -> None:
    assert contents_after(Written(0, 0, b"new")) == {b"new", b"old"}


def test_later_write_may_come_to_the_disk_without_the_earlier_one() -> None:
    found = contents_after(Written(0, 0, b"A"), Written(0, 2, b"B"))
    assert found == {b"old", b"Ald", b"olB", b"AlB"}


def test_write_over_several_sectors_may_be_torn_at_each_but_within_none() -> None:
    before, after = b"." * 3 * SECTOR_BYTES, b"#" * 3 * SECTOR_BYTES
    found = contents_after(Written(0, 0, after), before=before)
    sectors = {(image[:SECTOR_BYTES], image[SECTOR_BYTES:-SECTOR_BYTES], image[-SECTOR_BYTES:]) for image in found}
    assert len(found) == 2**3
    assert {sector for each in sectors for sector in each} == {before[:SECTOR_BYTES], after[:SECTOR_BYTES]}


def test_sectors_are_those_of_the_file_not_of_the_write() -> None:
    found = contents_after(Written(0, SECTOR_BYTES - 1, b"##"), before=b"." * 2 * SECTOR_BYTES)
    assert {image[SECTOR_BYTES - 1 : SECTOR_BYTES + 1] for image in found} == {b"..", b"#.", b".#", b"##"}


def test_file_may_have_grown_without_what_made_it_grow() -> None:
    assert b"old\0\0" in contents_after(Written(0, 3, b"er"))


def test_truncation_may_be_there_or_not_also_before_a_later_write() -> None:
    assert contents_after(Truncated(0, 1)) == {b"old", b"o"}
    assert contents_after(Truncated(0, 1), Written(0, 2, b"!")) >= {b"ol!", b"o\0!"}


def test_more_pending_changes_than_have_all_subsets_taken_still_give_the_extremes() -> None:
    found = contents_after(*(Written(0, place, b"#") for place in range(12)), before=b"." * 12)
    assert {b"#" * 12, b"." * 12} <= found
    assert {b"." * place + b"#" + b"." * (11 - place) for place in range(12)} <= found, "each one alone kept"
    assert {b"#" * place + b"." + b"#" * (11 - place) for place in range(12)} <= found, "each one alone missing"
    assert {b"#" * place + b"." * (12 - place) for place in range(12)} <= found, "each prefix"


def test_created_file_is_found_once_its_directory_was_synced() -> None:
    created = (Created("b", 1), Written(1, 0, b"new"), Synced(1))
    assert {image.get("b") for image in images_after(*created)} == {None, b"new"}
    assert images_after(*created, DirectorySynced()) == [{**OLD, "b": b"new"}]


def test_deleted_file_may_be_back_until_its_directory_was_synced() -> None:
    assert {image.get("a") for image in images_after(Deleted("a"))} == {None, b"old"}
    assert images_after(Deleted("a"), DirectorySynced()) == [{}]


def test_file_made_anew_under_an_old_name_is_the_old_one_or_the_new_one_whole() -> None:
    found = images_after(Deleted("a"), Created("a", 1), Written(1, 0, b"brand-new"), Synced(1))
    assert {image.get("a") for image in found} == {None, b"old", b"brand-new"}


def test_renamed_file_has_one_name_or_the_other_and_what_was_synced_of_it() -> None:
    found = images_after(Written(0, 0, b"new"), Renamed("a", "b", 0))
    assert found and all(image in ({"a": b"new"}, {"a": b"old"}, {"b": b"new"}, {"b": b"old"}) for image in found)
    assert len(found) == 4
