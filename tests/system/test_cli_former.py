"""The command at a database of an earlier perdure, which the worker has not upgraded yet: as between an upgrade of the
package and the restart of the worker.

One rule: what can not be read yet is not called damaged, and nobody is told to put a backup in its place.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.system.test_cli import perdure
from tests.worker.test_migrations import STEPS, at_schema, put_old_rows

pytestmark = pytest.mark.system

OFTEN = (("sessions",), ("costs", "--rows"))
LOOKS = (
    *(("status",), ("sessions", "--json"), ("show", "former"), ("costs",), ("costs", "--rows", "--session", "old")),
    *(("session", "log"), ("session", "split", "old", "--only", "x"), ("doctor", "--offline"), ("warm",)),
)


@pytest.mark.parametrize("version", range(1, len(STEPS)))
def test_database_of_an_earlier_schema_is_shown_or_waits_for_its_worker(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_newest = version == len(STEPS) - 1
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as made:
        path = Path(made) / "perdure.db"
        at_schema(path, version, monkeypatch)
        put_old_rows(path)
        for words in (*OFTEN, *(LOOKS if is_newest else ())):
            run = perdure(*words, PERDURE_STATE_DIR=made)
            said = run.stdout + run.stderr
            assert "damaged" not in said and "perdure restore" not in said, (words, said)
            assert run.returncode in (0, 2, 75), (words, run)
            if run.returncode == 75 and words[0] not in ("status", "doctor"):
                assert f"of an earlier perdure (schema {version}, this one reads {len(STEPS)})" in run.stderr, words
