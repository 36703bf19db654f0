"""A gateway whose processes live in faulty worlds, each in its own, which a test may change at any time.

One rule: what the clients were promised is judged by the crash tests' checker, as after any other fault.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from tests.crash.checker import Findings, answers_by_mark, check_totals, settled_findings
from tests.crash.conversation import Attempt
from tests.faults.program import Sky, Weather, command
from tests.processes import Gateway
from tests.provider import ScriptedProvider

SEED: Final = 11
PACE_SECONDS: Final = 0.02
"""Four clients at this pace are at most two hundred turns a second."""


class Clients(Protocol):
    attempts: list[Attempt]


class Outdoors(Gateway):
    """A Gateway; the processes named in `under` have a world of their own, with that weather at the start."""

    def __init__(
        self, provider: ScriptedProvider, *, under: Mapping[str, Weather], daemons: int = 1, **settings: object
    ) -> None:
        self._skies = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
        self.skies = {name: Sky(self._skies / name) for name in under}
        for name, weather in under.items():
            self.skies[name].set(weather)
        programs = {name: command(name.partition("-")[0], self._skies / name) for name in under}
        super().__init__(provider, daemons=daemons, programs=programs, **settings)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            # What runs out of memory may say where.
            for name in (name for name, sky in self.skies.items() if sky.now().memory_bytes):
                (self.directory / f"{name}.log").unlink()
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self._skies)
            super().__exit__(kind, error, trace)

    def set(self, name: str, weather: Weather) -> None:
        self.skies[name].set(weather)


def counted(gateway: Gateway, metric: str, daemon: str = "daemon") -> float:
    """A metric without labels, as one scrape shows it; 0 while nobody tells."""
    _status, text = gateway.get("/metrics", daemon) or (0, b"")
    found = re.search(rf"^{metric}(?:_total)? (\S+)$", text.decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def assert_all_stored(
    gateway: Gateway, provider: ScriptedProvider, *crowds: Clients, worker_was_away: bool = True
) -> Findings:
    """Every client was answered, and what it was promised is stored, once."""
    attempts = [attempt for crowd in crowds for attempt in crowd.attempts]
    assert {attempt.status for attempt in attempts} == {200}
    found = settled_findings(gateway, attempts, answers_by_mark(provider.answers), worker_was_away=worker_was_away)
    found.add(check_totals(gateway))
    assert found.are_good, str(found)
    assert len(gateway.rows()) == len(attempts)
    return found
