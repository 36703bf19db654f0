"""Whatever is asked for, what is written fits a line of 80 characters, however long the names are that clients give.

One rule: only a single word, such as a path, may be wider: whoever copies it wants all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.clients import AnthropicTalk
from tests.lore_files import lore_database, session
from tests.processes import HOST, Gateway
from tests.provider import ScriptedProvider
from tests.system.test_cli import CORRECTIONS, VERBS, perdure

pytestmark = pytest.mark.system

WIDTH: Final = 80
WORD_MIN: Final = 40
"""A word of that length may be what makes a line long."""
LONG: Final = "a-name-that-somebody-made-longer-than-any-that-was-ever-meant-to-be-read-by-people"
PAGES: Final = (
    *("status", "sessions", "show NAMED", "costs", "costs --by model", "costs --by kind", "costs --rows"),
    *("costs --rows --session NAMED", "doctor --offline", "doctor --full --offline", "session log"),
    *("up --print-config", "up --check-config", "keys PLACE/keys", "keys PLACE/keys --for elsewhere"),
    *("backup PLACE/one.db", "backup --into PLACE --keep 3", "import lore PLACE/lore.db"),
    *("import lore PLACE/lore.db --apply", "session forget OTHER --yes", "session log"),
)
"""In this order: what is changed is shown afterwards."""


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with ScriptedProvider() as provider, Gateway(provider, daemons=2, tick_seconds=0.2) as running:
        running.start()
        with AnthropicTalk(running.url, LONG, model=LONG) as named, AnthropicTalk(running.url) as unnamed:
            for number in range(3):
                named.say(f"turn {number}")
                unnamed.say(f"turn {number}")
        rows = [session("ses_1"), session("ses_2", header_name=None, header_session_id=None)]
        lore_database(running.directory / "lore.db", [*rows, session("ses_3", conversation_turns=-1)])
        yield running


def too_wide(text: str) -> list[str]:
    wide = (line for line in text.splitlines() if len(line) > WIDTH)
    return [line for line in wide if max(map(len, line.split(" "))) < WORD_MIN]


def test_pages_fit(gateway: Gateway) -> None:
    environ = {name: value for name, value in gateway.environment.items() if name.startswith("PERDURE_")}
    sessions = {each["header_session_id"]: each["session_id"] for each in gateway.sessions()}
    meant = {"NAMED": sessions[LONG], "OTHER": sessions[None], "PLACE": str(gateway.directory)}
    wide: dict[str, list[str]] = {}
    for page in PAGES:
        words = page
        for word, meaning in meant.items():
            words = words.replace(word, meaning)
        run = perdure(*words.split(), PERDURE_LISTEN=f"{HOST}:{gateway.port}", **environ)
        assert run.returncode in (0, 75) and run.stdout, run
        wide[page] = too_wide(run.stdout)
    assert {page: lines for page, lines in wide.items() if lines} == {}


@pytest.mark.parametrize(
    "verb", [(), *((verb,) for verb in VERBS), *(("session", name) for name, *_ in CORRECTIONS), ("import", "lore")]
)
def test_help_fits(verb: tuple[str, ...]) -> None:
    assert too_wide(perdure(*verb, "--help", COLUMNS=str(WIDTH)).stdout) == []


def test_line_that_is_too_wide_is_found(tmp_path: Path) -> None:
    assert too_wide("word " * 17) and not too_wide("word " * 16) and not too_wide(f"see {tmp_path}/{LONG}")
