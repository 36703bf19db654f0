"""What is said in the generated conversations: words drawn by chance, and what a client remembers of a conversation.

One rule: chance is an argument; the same seed says the same words.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field, replace
from typing import Final

SHORT_ANSWERS: Final = ("ok", "Done.", "Yes.", "I see.", "Fixed.")
"""Answers that many conversations get: they prove nothing."""
SHARED_OPENINGS: Final = ("hi", "hello", "Continue from where you left off.", "run the tests")
"""First messages that many conversations begin with."""
_NOUNS: Final = """
parser cache index folder branch release queue header socket token ledger worker daemon schema column migration test
fixture timeout retry buffer stream event loop thread lock file path line error warning result value key build script
module class method function argument default option flag report table row total sum price
"""
_VERBS: Final = "fix rename move split explain review delete rewrite check measure document simplify test"


class Words:
    """Texts, ids and keys, from one source of chance."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._nouns = _NOUNS.split()
        self._verbs = _VERBS.split()

    def sentence(self, words: int = 9) -> str:
        """A text that no other conversation holds: thousands of words drawn, and a number beside them."""
        chosen = " ".join(self.rng.choice(self._nouns) for _ in range(words))
        return f"{self.rng.choice(self._verbs)} the {chosen}, case {self.rng.randrange(10**9)}"

    def paragraph(self) -> str:
        return "\n\n".join(self.sentence().capitalize() + "." for _ in range(self.rng.randrange(1, 4)))

    def hex(self, characters: int) -> str:
        return f"{self.rng.getrandbits(4 * characters):0{characters}x}"

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def lines(self, count: int) -> list[str]:
        """Lines of a prompt."""
        return [self.sentence(6) for _ in range(count)]


@dataclass(frozen=True)
class Part:
    """A piece of an answer.  `kind` is text, thinking or call; a call's text is its arguments as JSON."""

    kind: str
    text: str
    call_id: str = ""


@dataclass(frozen=True)
class Entry:
    """One message: the user's words, the assistant's parts, or what tools gave back, by call id."""

    role: str
    text: str = ""
    parts: tuple[Part, ...] = ()
    results: tuple[tuple[str, str], ...] = ()


@dataclass
class Dialogue:
    """A conversation as its client remembers it."""

    entries: list[Entry] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.entries.append(Entry("user", text))

    def hear(self, parts: tuple[Part, ...]) -> None:
        self.entries.append(Entry("assistant", parts=parts))

    def run_tools(self, words: Words) -> None:
        """Add what the tools that the last answer called gave back."""
        calls = [part for part in self.entries[-1].parts if part.kind == "call"]
        results = tuple((call.call_id, f"exit 0\n{words.sentence(4)}") for call in calls)
        self.entries.append(Entry("user", results=results))

    def begin_anew(self, summary: str) -> None:
        """Compaction: the history goes, a summary stays."""
        self.entries = [Entry("user", summary)]

    def copy(self, length: int | None = None) -> Dialogue:
        return Dialogue(list(self.entries[:length]))

    @property
    def turning_points(self) -> list[int]:
        """Lengths at which the history ends in a whole answer and later went on: where a fork can turn off."""
        return [
            length
            for length in range(2, len(self.entries) - 1)
            if self.entries[length - 1].role == "assistant"
            and not any(part.kind == "call" for part in self.entries[length - 1].parts)
        ]


def trimmed(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """As clients send an answer back that cut off the white space around it."""
    return tuple(replace(part, text=part.text.strip()) if part.kind == "text" else part for part in parts)


def without_thinking(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return tuple(part for part in parts if part.kind != "thinking")


def drawn_answer(words: Words, wants: str) -> tuple[Part, ...]:
    """What a model says.  `wants`: `text`, `any` (it may call tools) or `short`."""
    rng = words.rng
    chance = rng.random()
    if wants == "short" or (chance < 0.25 and wants != "unique"):
        return (Part("text", rng.choice(SHORT_ANSWERS)),)
    thinking = (Part("thinking", words.sentence()),) if rng.random() < 0.3 else ()
    text = (Part("text", rng.choice(("", " ", "\n")) + words.paragraph() + rng.choice(("", "\n", "  "))),)
    if wants == "any" and chance > 0.65:
        calls = tuple(
            Part("call", '{"command": "make test"}', f"toolu_{words.hex(24)}") for _ in range(rng.choice((1, 1, 2)))
        )
        return thinking + (text if rng.random() < 0.5 else ()) + calls
    return thinking + text
