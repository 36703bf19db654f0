"""The runbook in docs/OPERATING.md: an entry for every fault, and nothing in it that the programs do not know.

One rule: what an entry quotes is looked for where it comes from: logs and metrics in the source, alerts in their rules.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
README: Final = (ROOT / "README.md").read_text("utf-8")
OPERATING: Final = (ROOT / "docs" / "OPERATING.md").read_text("utf-8")
FAULTS: Final = (
    "A daemon is killed between turns",
    "A daemon is killed in mid-answer",
    "The worker is killed",
    "Everything is killed, or the power goes",
    "A daemon is killed while the worker is away",
    "The worker hangs",
    "A daemon hangs",
    "The disk is full, read-only or sick",
    "The database is damaged, or newer than the program",
    "A value in a row makes no sense",
    "A request is malformed or too large",
    "A provider is down, slow, or refuses",
    "A client goes away in mid-answer",
    "A client reads slowly",
    "Somebody sends garbage to the worker",
    "A daemon does not read what the worker says",
    "The clock steps",
    "It is told to stop",
)
"""What perdure promises to survive: each has tests of its own, and somebody who meets it at night."""
PARTS: Final = ("Seen", "By itself", "Do", "Lost")
SECTION: Final = OPERATING.partition("\n## Faults\n")[2].partition("\n## ")[0]
ENTRIES: Final[dict[str, str]] = dict(re.findall(r"^### (.+?)\n\n(.*?)(?=^### |\Z)", SECTION, re.MULTILINE | re.DOTALL))
SOURCE: Final = "\n".join(
    path.read_text("utf-8") for folder in ("daemon", "worker") for path in sorted((ROOT / folder).rglob("*.py"))
)
ALERTS: Final = ROOT / "docs" / "alerts.yml"


def slug(heading: str) -> str:
    """As the pages of repositories make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_there_is_an_entry_for_every_fault_and_for_nothing_else() -> None:
    assert tuple(ENTRIES) == FAULTS


@pytest.mark.parametrize("fault", FAULTS)
def test_entry_says_what_is_seen_what_happens_what_to_do_and_what_is_lost(fault: str) -> None:
    found = re.findall(r"^- \*\*(.+?)\*\*: (.+)$", ENTRIES[fault], re.MULTILINE)
    assert tuple(part for part, _ in found) == PARTS
    assert all(len(text) > len("nothin.") for _, text in found)


def test_every_fault_of_the_readme_leads_to_its_entry() -> None:
    table = README.partition("\n## What survives what\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    targets = [re.match(r"\| \[[^\]]+\]\(docs/OPERATING\.md#([^)]+)\) \|", row) for row in rows]
    assert len(rows) >= 8
    assert [row for row, target in zip(rows, targets, strict=True) if target is None] == []
    assert {target[1] for target in targets if target} <= {slug(fault) for fault in FAULTS}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_an_entry_quotes_from_logs_is_what_they_say(fault: str) -> None:
    plain = ENTRIES[fault].replace("**", "")
    said = [" ".join(words.split()) for words in re.findall(r"(?<!\w)\*([^*]+)\*(?!\w)", plain)]
    assert [words for words in said if words not in SOURCE] == []


def test_metrics_and_alerts_that_are_named_exist() -> None:
    metrics = set(re.findall(r"`(perdure_[a-z_]+)`", OPERATING))
    assert metrics
    assert [name for name in metrics if name.removesuffix("_total") not in SOURCE] == []
    alerts = set(re.findall(r"`(Perdure[A-Z]\w+)`", OPERATING))
    assert alerts
    assert [name for name in alerts if f"alert: {name}\n" not in ALERTS.read_text("utf-8")] == []
