"""What the command says of a name that means nothing, or more than one thing: two messages, each with the way on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.verbs.reading import CANDIDATES_SHOWN
from tests.system.test_cli import perdure
from tests.worker.writing import booking, write
from worker.store import Store

pytestmark = pytest.mark.system

TWINS = ("abcdef-one", "abcdef-two")
CROWD = tuple(f"crowd-{number}" for number in range(CANDIDATES_SHOWN + 2))


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as made:
        store = Store(Path(made) / "perdure.db")
        sessions = [booking(number, session) for number, session in enumerate((*TWINS, *CROWD))]
        rows = [booking(100 + number, TWINS[0], event_id=f"event-{number}") for number in range(3)]
        store.commit([write(body) for body in (*sessions, *rows)], live=frozenset(), now=0)
        store.close()
        yield {"PERDURE_STATE_DIR": made, "PERDURE_RUNTIME_DIR": made}


@pytest.mark.parametrize(
    "verb",
    [
        ("show",),
        ("costs", "--rows", "--session"),
        ("session", "forget", "--yes"),
        ("session", "split", "--from", "event-1"),
    ],
)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody", "no session goes by 'nobody'; `perdure sessions` lists what there is"),
        ("abc", "no session goes by 'abc'; of an id's beginning at least 6 characters are needed; `perdure sessions`"),
        ("abcdef", f"more than one session begins with 'abcdef': {', '.join(TWINS)}; give more of its id"),
        ("crowd-", f"begins with 'crowd-': {', '.join(CROWD[:CANDIDATES_SHOWN])}, …; give more of its id"),
    ],
)
def test_session_that_is_none_or_one_of_several(
    verb: tuple[str, ...], name: str, said: str, environ: dict[str, str]
) -> None:
    run = perdure(*verb, name, **environ)
    assert run.returncode == 2
    assert said in run.stderr


def test_turn_that_is_one_of_several(environ: dict[str, str]) -> None:
    run = perdure("session", "split", TWINS[0], "--only", "event-", **environ)
    assert run.returncode == 2
    assert "begins with 'event-': event-0, event-1, event-2, event-abcdef-one-000000; give more" in run.stderr
    run = perdure("session", "split", TWINS[0], "--only", "no-such", **environ)
    assert f"no turn of this session goes by 'no-such'; `perdure show {TWINS[0]}`" in run.stderr
