"""The keys that daemons of a host share: a copy of the store's, and one for before they know it."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from daemon.keyfile import EARLY_SECONDS, KEY_BYTES, KeyFile

KEY = bytes(range(KEY_BYTES))
OTHER_KEY = bytes(KEY_BYTES)


def test_key_is_kept_where_nobody_has_made_the_directory_yet(tmp_path: Path) -> None:
    """On another machine than the worker's."""
    place = tmp_path / "run" / "hash.key"
    KeyFile(place, logging.getLogger("daemon")).keep(KEY)
    assert KeyFile(place, logging.getLogger("daemon")).read() == KEY
    assert (place.parent.stat().st_mode & 0o777, place.stat().st_mode & 0o777) == (0o700, 0o600)


def test_directory_that_can_not_be_made_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file")
    KeyFile(tmp_path / "run" / "hash.key", logging.getLogger("daemon")).keep(KEY)
    assert "will not know conversations" in caplog.text


def test_early_key_is_that_of_the_first_who_shared_one(tmp_path: Path) -> None:
    ours, theirs = (KeyFile(tmp_path / "run" / "hash.key", logging.getLogger("daemon")) for _ in range(2))
    assert ours.early() is None
    assert ours.share_early(KEY) == KEY
    assert theirs.share_early(OTHER_KEY) == theirs.early() == KEY
    [path] = (tmp_path / "run").iterdir()
    assert path.name == "early.key" and path.stat().st_mode & 0o777 == 0o600
    assert ours.read() is None


def test_early_key_of_another_day_is_looked_for_no_more_and_gives_way(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "hash.key", logging.getLogger("daemon"))
    file.share_early(KEY)
    long_ago = time.time() - EARLY_SECONDS - 60
    os.utime(tmp_path / "early.key", (long_ago, long_ago))
    assert file.early() is None
    assert file.share_early(OTHER_KEY) == file.early() == OTHER_KEY


def test_early_key_that_is_damaged_gives_way(tmp_path: Path) -> None:
    (tmp_path / "early.key").write_text("half of a k")
    assert KeyFile(tmp_path / "hash.key", logging.getLogger("daemon")).share_early(KEY) == KEY


def test_early_key_that_can_not_be_shared_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file")
    file = KeyFile(tmp_path / "run" / "hash.key", logging.getLogger("daemon"))
    assert file.share_early(KEY) == KEY and file.early() is None
    assert "will not know what is said before" in caplog.text
