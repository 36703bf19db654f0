"""The tick, on a clock of the test's own."""

from __future__ import annotations

import asyncio

from daemon.app import tick


def test_tick_works_once_per_interval_and_not_before() -> None:
    slept: list[float] = []
    worked_at: list[int] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) > 3:
            raise asyncio.CancelledError

    async def work() -> None:
        worked_at.append(len(slept))

    async def scenario() -> None:
        try:
            await tick(30.0, work, sleep)
        except asyncio.CancelledError:
            return

    asyncio.run(scenario())

    assert slept == [30.0] * 4
    assert worked_at == [1, 2, 3]
