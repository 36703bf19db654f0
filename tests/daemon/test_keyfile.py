"""The copy of the store's hash key that daemons keep beside them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from daemon.keyfile import KEY_BYTES, KeyFile

KEY = bytes(range(KEY_BYTES))


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
