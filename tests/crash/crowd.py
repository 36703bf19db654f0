"""A crowd of clients that talk until they are told to be silent.

One rule: a client goes on as clients do: what was not answered to its end is sent again, on a new connection; and with
several daemons, every attempt to any of them.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import Final, Self

from tests.crash.conversation import Attempt, Conversation
from tests.processes import DEADLINE_SECONDS, POLL_SECONDS, Gateway, eventually
from worker.protocol import Protocol

NAMED: Final[tuple[tuple[Protocol, bool], ...]] = (
    ("messages", True),
    ("chat", True),
    ("responses", True),
    ("messages", True),
)
"""Who talks at once: (protocol, whether the client mints a session id)."""
EVERYBODY: Final[tuple[tuple[Protocol, bool], ...]] = (*NAMED, ("messages", False), ("chat", False))
STAYING: Final = (0.0, 0.75)
"""How likely a client that may hop stays with a daemon for its next turn: never, or for a few turns."""
TURNS_PER_CONVERSATION: Final = 12
"""Long enough to be killed several times, short enough that thousands of cycles do not grow endless prompts."""


class Crowd:
    """A context manager: the clients live while it is entered, and are silent until `open`."""

    def __init__(
        self,
        gateway: Gateway,
        seed: int | str,
        *,
        speakers: Sequence[tuple[Protocol, bool]] = EVERYBODY,
        daemon: str = "daemon",
        hopping: bool = False,
        pace_seconds: float = 0.0,
    ) -> None:
        """`hopping`: to any daemon of the gateway, attempt by attempt; else all to `daemon`."""
        self.attempts: list[Attempt] = []
        self.talks: dict[int, Conversation] = {}
        """The conversation each client has now."""
        self._gateway = gateway
        self._seed = seed
        self._speakers = speakers
        self._daemons = gateway.daemons if hopping else [daemon]
        self._pace_seconds = pace_seconds
        self._floor = Floor()
        # Marks are unique over all crowds of a gateway, by their daemon.
        self._numbers = count(1_000_000 * gateway.daemons.index(daemon) + 1)
        self._threads = [
            threading.Thread(target=self._speak, args=(place, random.Random(f"{seed}/{daemon}/{place}")), daemon=True)
            for place in range(len(speakers))
        ]

    def __enter__(self) -> Self:
        print(f"seed {self._seed}", flush=True)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._floor.close()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)

    def open(self, gate: str = "") -> None:
        """Let clients speak, and have the provider hold their answers at this gate ("": nowhere)."""
        self._floor.open(gate)

    def silence(self) -> None:
        """Let nobody begin, and return when all have ended."""
        self._floor.silence()

    def wait_for_attempts(self, wanted: int) -> None:
        """Return when so many more attempts have ended, one way or another."""
        wanted += self._over()
        eventually(lambda: self._over() >= wanted, what="clients get on")

    def ask_once_more(self, chance: random.Random) -> list[Attempt]:
        """One more turn of every conversation that was answered before, one after the other: by the daemon that it
        spoke to last, which may think that it still owns the session, or by any."""
        last = {attempt.conversation: attempt.daemon for attempt in self.attempts}
        asked: list[Attempt] = []
        for place, talk in sorted(self.talks.items()):
            if talk.turns:
                daemon = chance.choice((last[talk], chance.choice(self._daemons)))
                assert self._attempt(talk, f"question once more {place}", daemon, stream=False), f"{talk} at {daemon}"
                asked.append(self.attempts[-1])
        return asked

    def _over(self) -> int:
        return sum(attempt.over for attempt in self.attempts)

    def _speak(self, place: int, chance: random.Random) -> None:
        """One client's life: a turn until it is answered, then the next; a new conversation after a dozen."""
        talk = self._new_conversation(place)
        text = ""
        staying = chance.choice(STAYING)
        daemon = chance.choice(self._daemons)
        while (gate := self._floor.enter()) is not None:
            try:
                text = text or _text(chance, gate)
                daemon = daemon if chance.random() < staying else chance.choice(self._daemons)
                if self._attempt(talk, text, daemon, stream=bool(chance.getrandbits(1))):
                    text = ""
                if talk.turns == TURNS_PER_CONVERSATION:
                    talk = self._new_conversation(place)
            finally:
                self._floor.leave()
            time.sleep(self._pace_seconds)  # How fast this client talks; 0: as fast as it can.

    def _new_conversation(self, place: int) -> Conversation:
        protocol, is_named = self._speakers[place]
        talk = Conversation(protocol, f"client-{self._seed}-{next(self._numbers)}" if is_named else "")
        self.talks[place] = talk
        return talk

    def _attempt(self, talk: Conversation, text: str, daemon: str, *, stream: bool) -> bool:
        """Send it once; True when it was answered to its end."""
        try:
            client = self._gateway.client(daemon)
        except OSError:
            time.sleep(POLL_SECONDS)  # Nobody listens now: asked again soon, as clients do.
            return False
        with client:
            attempt = Attempt(next(self._numbers), talk, text, daemon=daemon)
            self.attempts.append(attempt)
            try:
                return talk.exchange(client, attempt, stream=stream).complete
            except ConnectionError:
                return False  # The daemon died while it was being written to.
            finally:
                attempt.over = True


class Floor:
    """Whether clients may speak, and who does: silence is when nothing is in flight."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_open = False
        self._is_closed = False
        self._gate = ""
        self._speaking = 0

    def open(self, gate: str) -> None:
        """Let clients speak, and have the provider hold their answers at this gate ("": nowhere)."""
        with self._changed:
            self._is_open, self._gate = True, gate
            self._changed.notify_all()

    def silence(self) -> None:
        """Let nobody begin, and return when all have ended."""
        with self._changed:
            self._is_open = False
            assert self._changed.wait_for(lambda: not self._speaking, DEADLINE_SECONDS), "a client hangs"

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def enter(self) -> str | None:
        """Wait for leave to speak; the gate at which to be held, or None when it is all over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or self._is_closed)
            if self._is_closed:
                return None
            self._speaking += 1
            return self._gate

    def leave(self) -> None:
        with self._changed:
            self._speaking -= 1
            self._changed.notify_all()


def _text(chance: random.Random, gate: str) -> str:
    """What the user says: of some length, answered at some length, sometimes after the cache has expired."""
    padding = "x" * chance.randint(0, 400)
    return " ".join(
        part
        for part in (
            f"question {chance.getrandbits(32)} {padding}",
            f"words:{chance.randint(1, 60)}",
            "cold" if chance.random() < 0.2 else "",
            f"hold:{gate}" if gate else "",
        )
        if part
    )
