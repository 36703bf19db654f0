"""What the suite says at its end: what it ran, by area, and what its long tests have to tell (figures, seeds)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath

import pytest

Tell = Callable[[str], None]


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """A line for the end of the run."""
    return lambda line: record_property("told", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    areas = Counter(str(PurePosixPath(report.nodeid.partition("::")[0]).parent) for report in reports)
    terminalreporter.section("what was run")
    for area, count in sorted(areas.items()):
        terminalreporter.write_line(f"{area:20} {count:5} tests")
    for report in reports:
        for _, line in report.user_properties:
            terminalreporter.write_line(f"- {line}")
