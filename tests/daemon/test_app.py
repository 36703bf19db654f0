"""The tick, on a clock of the test's own, and the rules that are made of settings."""

from __future__ import annotations

import asyncio
from typing import Any

from daemon.app import rules_of, tick
from daemon.providers import parse_turn
from worker.settings import RELOADED, Settings


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


def test_rules_are_those_of_the_settings() -> None:
    lists: dict[str, Any] = {name: (f"x-{name}",) for name in sorted(RELOADED) if name.endswith("_headers")}
    assert len(lists) == 4
    rules = rules_of(Settings(session_fields=("house.thread",), **lists))
    assert {name: getattr(rules, name) for name in lists} == lists
    turn = parse_turn("chat", b'{"house": {"thread": "t-1"}}', rules.fields)
    assert turn is not None
    assert turn.minted == (("house.thread", "t-1"),)
