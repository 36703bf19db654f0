"""One seeded virtual clock, the hosts that live by it, and the wire between them.

One rule: nothing here waits; whatever happens is an event on one heap, and equal seeds make equal histories.

Theory of operation.  The daemon's coroutines run on a trampoline: they are written for asyncio, yet all they ever
await here is a `Wait`, whose `arm` puts the way to go on where it will be found.  A host that is dead drops what it is
told, and one that is stopped (SIGSTOP) finds everything in order when it wakes.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Coroutine, Generator
from itertools import count
from typing import Any

Resume = Callable[[Any], None]


class Clock:
    """Virtual milliseconds, and what is to happen."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 1_000
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()

    @property
    def seconds(self) -> float:
        return self.now / 1000

    def after(self, milliseconds: int, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + milliseconds, next(self._order), act))

    def run_until(self, milliseconds: int) -> None:
        while self._heap and self._heap[0][0] <= milliseconds:
            self.now, _, act = heapq.heappop(self._heap)
            act()
        self.now = milliseconds

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def draw_id(self) -> str:
        return f"{self.rng.getrandbits(64):016x}"


class Wait:
    """What a coroutine awaits: `arm` is given the function that makes it go on."""

    def __init__(self, arm: Callable[[Resume], None]) -> None:
        self.arm = arm

    def __await__(self) -> Generator[Wait, Any, Any]:
        return (yield self)


class Host:
    """A process: it runs, is stopped for a while, or is dead for good."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_alive = True
        self.stopped_until = 0
        self._tasks: list[Coroutine[Wait, Any, None]] = []

    def kill(self) -> None:
        self.is_alive = False
        for task in self._tasks:
            task.close()

    def do(self, act: Callable[[], None]) -> None:
        """Now, or when it wakes, or never."""
        if not self.is_alive:
            return
        if self.clock.now < self.stopped_until:
            self.clock.after(self.stopped_until - self.clock.now, lambda: self.do(act))
        else:
            act()

    def after(self, milliseconds: int, act: Callable[[], None]) -> None:
        self.clock.after(milliseconds, lambda: self.do(act))

    def every(self, milliseconds: int, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self.after(milliseconds, again)

        self.after(self.clock.rng.randrange(milliseconds), again)

    def start(self, task: Coroutine[Wait, Any, None]) -> None:
        self._tasks.append(task)
        self._step(task, None)

    def sleep(self, milliseconds: int) -> Wait:
        return Wait(lambda resume: self.clock.after(milliseconds, lambda: resume(None)))

    def _step(self, task: Coroutine[Wait, Any, None], value: Any) -> None:
        try:
            wait = task.send(value)
        except StopIteration:
            self._tasks.remove(task)
            return
        gone_on = False

        def resume(value: Any) -> None:
            nonlocal gone_on
            if not gone_on:
                gone_on = True
                self.do(lambda: self._step(task, value))

        wait.arm(resume)


class Weather:
    """What the wire does to messages.  Each seed has its own."""

    def __init__(self, rng: random.Random) -> None:
        self.loss = rng.choice([0.0, 0.02, 0.1, 0.25])
        self.repetition = rng.choice([0.0, 0.05, 0.2])
        self.lateness = rng.choice([0.0, 0.05, 0.2])
        """Share of messages that later ones overtake."""
        self.late_milliseconds = rng.choice([300, 2_000, 6_000])


class Wire:
    """Carries messages between the worker and each daemon, both ways alike."""

    def __init__(self, clock: Clock, weather: Weather) -> None:
        self._clock = clock
        self._weather = weather
        self.is_healed = False
        self.cut_until: dict[int, int] = {}
        """When the partition of each daemon's place ends."""

    def carry(self, place: int, deliver: Callable[[], None]) -> None:
        clock, weather = self._clock, self._weather
        if self.is_healed:
            clock.after(1, deliver)
            return
        if clock.now < self.cut_until.get(place, 0) or clock.chance(weather.loss):
            return
        for _ in range(2 if clock.chance(weather.repetition) else 1):
            late = clock.chance(weather.lateness)
            clock.after(clock.rng.randrange(1, weather.late_milliseconds if late else 8), deliver)
