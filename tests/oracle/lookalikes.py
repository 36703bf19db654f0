"""Pairs of conversations as alike as can be, but different.

One rule: a pair differs in exactly one thing, and that thing makes it two conversations.

Theory of operation.  A `Voice` is a conversation with nothing left to chance: what is said, what is answered, who pays.
A kind of pair takes one voice and gives another that differs from it.  Both are played as two clients of one crowd, so
that their requests come in any order, also at the same time, to any daemon, with kills in between.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from tests.oracle.clients import Life, Person, Script
from tests.oracle.crowd import Crowd
from tests.oracle.plain import Plain
from tests.oracle.speech import SHARED_OPENINGS, SHORT_ANSWERS, Entry, Part
from tests.oracle.truth import Conversation, Headers, Request, Verdict
from tests.oracle.wire import Json, Style

PAIRS_PER_CROWD: Final = 250
"""Enough to be each other's strangers too; few enough that a failure is found again quickly."""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One side of a conversation and the other."""

    wire: str
    person: Person
    said: tuple[str, ...]
    heard: tuple[tuple[Part, ...], ...]
    headers: tuple[tuple[str, str], ...] = ()
    extra: Json = field(default_factory=dict)
    history: tuple[Entry, ...] = ()
    """What was said before the first request, elsewhere."""
    is_named: bool = False


Differ = Callable[[Life, Voice], tuple[Voice, Voice]]


def run_pairs(seed: int, pairs: int) -> Verdict:
    """Play so many pairs; a false merge is raised."""
    total = Verdict()
    for number, first in enumerate(range(0, pairs, PAIRS_PER_CROWD)):
        crowd = Crowd(seed * 1_000_003 + number, trouble="kills")
        total.add(crowd.live(scripts(crowd.life, min(PAIRS_PER_CROWD, pairs - first))))
    return total


def scripts(life: Life, pairs: int) -> Iterator[Script]:
    for _ in range(pairs):
        name = life.rng.choice(list(KINDS))
        couple = KINDS[name](life, drawn_voice(life))
        for voice in couple:
            facts = life.truth.conversation(f"look-alike: {name}", is_named=voice.is_named, is_shared=True)
            yield Speaker(life, facts, voice).live()


def drawn_voice(life: Life) -> Voice:
    """Short and common things, mostly: they are what strangers have in common."""
    rng, words = life.rng, life.words
    turns = rng.randrange(2, 4)
    opening = rng.choice((*SHARED_OPENINGS, words.sentence()))
    # Two turns that are equal to the last letter can not be told from one that was sent again: the second differs.
    said = (opening, *(words.sentence(5) for _ in range(turns - 1)))
    heard = tuple((Part("text", rng.choice(SHORT_ANSWERS)),) for _ in range(turns))
    return Voice(wire=rng.choice(("messages", "chat", "responses")), person=Person(words), said=said, heard=heard)


class Speaker(Plain):
    """Plays a voice."""

    def __init__(self, life: Life, conversation: Conversation, voice: Voice) -> None:
        def headers() -> Headers:
            return [*voice.headers, *voice.person.key_headers(is_old_sdk=False)]

        super().__init__(life, conversation, voice.wire, headers, voice.extra)
        self.dialogue.entries.extend(voice.history)
        self._voice = voice
        self._turn = 0

    def live(self) -> Script:
        for turn, text in enumerate(self._voice.said):
            self._turn = turn
            yield from self.say(text)

    def request(self, variation: str, style: Style | None = None) -> Request:
        request = super().request(variation, style or Style(plain_strings=self.rng.random() < 0.5, cache_mark=""))
        answer = self._voice.heard[self._turn]
        return replace(request, answer=answer, may_be_cut=False)


# -- kinds of pairs --------------------------------------------------------------------------------------------------


def _opening(change: Callable[[Life, str], str]) -> Differ:
    """Both say and hear the same but for the first words."""

    def differ(life: Life, voice: Voice) -> tuple[Voice, Voice]:
        return voice, replace(voice, said=(change(life, voice.said[0]), *voice.said[1:]))

    return differ


def _other_word(life: Life, text: str) -> str:
    first, _, rest = text.partition(" ")
    return f"{first}{life.rng.choice('sedr')} {rest}" if rest else f"{text} there"


def _other_character(life: Life, text: str) -> str:
    place = life.rng.randrange(len(text))
    return text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]


def _other_answer(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    place = life.rng.randrange(len(voice.heard))
    heard = list(voice.heard)
    heard[place] = (Part("text", f"{heard[place][0].text}!"),)
    return voice, replace(voice, heard=tuple(heard))


def _other_account(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    return voice, replace(voice, person=Person(life.words))


def _borrowed_history(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """A transcript that another person goes on with, in the same words."""
    begun = (Entry("user", voice.said[0]), Entry("assistant", parts=voice.heard[0]))
    other = replace(voice, person=Person(life.words), history=begun, said=voice.said[1:], heard=voice.heard[1:])
    return voice, other


def _other_second_message(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """The same opening and the same answer, to the byte; only then they part."""
    said = (voice.said[0], life.words.sentence(5), *voice.said[2:])
    return voice, replace(voice, said=said)


def _other_order(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    one, two = life.words.sentence(3), life.words.sentence(3)
    return replace(voice, said=(one, two, *voice.said[2:])), replace(voice, said=(two, one, *voice.said[2:]))


def _imitates_mark(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """A text that looks like the call which the other conversation really has."""
    call_id = f"toolu_{life.words.hex(24)}"
    called = Entry("assistant", parts=(Part("call", '{"command": "ls"}', call_id),))
    typed = Entry("assistant", parts=(Part("text", f"\x1ecall\x1d{call_id}\x1f"),))
    returned = Entry("user", results=((call_id, "README.md"),))
    before = (Entry("user", voice.said[0]), called, returned, Entry("assistant", parts=voice.heard[0]))
    other = (before[0], typed, Entry("user", f"\x1eresult\x1d{call_id}\x1fREADME.md"), before[3])
    said = (life.words.sentence(4), *voice.said[1:])
    return replace(voice, history=before, said=said), replace(voice, history=other, said=said)


def _imitates_reminder(life: Life, text: str) -> str:
    return f"<system-reminder>the user is away</system-reminder> {life.words.sentence(3)} {text}"


def _only_reminder_differs_after(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """What a person typed after a reminder, in the same block."""
    one, two = (f"<system-reminder>Mind the date.</system-reminder>\n{life.words.sentence(3)}" for _ in range(2))
    return replace(voice, said=(one, *voice.said[1:])), replace(voice, said=(two, *voice.said[1:]))


def _client_named(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """Equal everything but the id."""
    name = life.rng.choice(("x-session-id", "session_id", "session-id", "x-claude-code-session-id"))
    first, second = life.words.uuid(), life.words.uuid()
    return (
        replace(voice, headers=((name, first),), is_named=True),
        replace(voice, headers=((name, second),), is_named=True),
    )


def _other_header_same_id(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    value = life.words.uuid()
    first, second = life.rng.sample(("x-session-id", "session_id", "x-session-affinity"), 2)
    return (
        replace(voice, headers=((first, value),), is_named=True),
        replace(voice, headers=((second, value),), is_named=True),
    )


def _shared_hint(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """One cache key, one user, the same short answers."""
    extra: Json = {"metadata": {"user_id": "user_1"}} if voice.wire == "messages" else {"prompt_cache_key": "app"}
    voice = replace(voice, extra=extra)
    return _opening(_other_word)(life, voice)


def _shared_header(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """A header of the process, which has an id's form and a session's name."""
    voice = replace(voice, headers=(("user-agent", "lookalike/1"), ("x-lookalike-session", life.words.uuid())))
    return _opening(_other_word)(life, voice)


def _near_header(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    value = life.words.hex(32)
    other = value[:-1] + ("0" if value[-1] != "0" else "1")
    agent = ("user-agent", "near/1")
    return (
        replace(voice, headers=(agent, ("x-near-session-id", value))),
        replace(voice, headers=(agent, ("x-near-session-id", other))),
    )


def _fork(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """Histories that part after the first answer, both begun elsewhere."""
    before = (Entry("user", life.words.sentence(4)), Entry("assistant", parts=voice.heard[0]))
    one = (*before, Entry("user", "go on"), Entry("assistant", parts=voice.heard[0]))
    two = (*before, Entry("user", "go back"), Entry("assistant", parts=voice.heard[0]))
    return replace(voice, history=one), replace(voice, history=two)


def _unicode(life: Life, text: str) -> str:
    changes: tuple[Callable[[str], str], ...] = (
        lambda one: unicodedata.normalize("NFD", one),
        lambda one: one.replace("é", "è"),
        lambda one: one.replace("a", "а"),
        lambda one: one.replace("t", "t\u200d", 1),
        lambda one: one.upper(),
        lambda one: one.replace("i", "ı"),
        lambda one: one + "\u200b",
    )
    changed = life.rng.choice(changes)(text)
    return changed if changed != text else f"{text}\ufe0f"


def _unicode_opening(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    voice = replace(voice, said=(f"café à la carte: {voice.said[0]}", *voice.said[1:]))
    return _opening(_unicode)(life, voice)


def _white_space(life: Life, text: str) -> str:
    return text.replace(" ", "", 1) if " " in text and life.rng.random() < 0.5 else f"{text} "


def _empty_texts(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    return replace(voice, said=("", *voice.said[1:])), replace(voice, said=(" ", *voice.said[1:]))


def _swapped_tools(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """The same calls and results, under each other's ids."""
    ids = [f"call_{life.words.hex(24)}" for _ in range(2)]
    made = []
    for first, second in (ids, reversed(ids)):
        calls = tuple(Part("call", '{"command": "ls"}', call_id) for call_id in (first, second))
        results = ((first, "one"), (second, "two"))
        made.append(
            replace(
                voice,
                history=(
                    Entry("user", voice.said[0]),
                    Entry("assistant", parts=calls),
                    Entry("user", results=results),
                    Entry("assistant", parts=voice.heard[0]),
                ),
            )
        )
    return made[0], made[1]


def _other_result(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """Servers that number their calls give the same id to everybody; the result differs in one letter."""
    made = [
        replace(
            voice,
            history=(
                Entry("user", voice.said[0]),
                Entry("assistant", parts=(Part("call", '{"command": "ls"}', "call_0"),)),
                Entry("user", results=(("call_0", result),)),
                Entry("assistant", parts=voice.heard[0]),
            ),
        )
        for result in (f"{life.words.sentence(2)} a", f"{life.words.sentence(2)} b")
    ]
    return made[0], made[1]


def _moved_boundary(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """The same letters, but another side said some of them."""
    question, answer = life.words.sentence(3), life.words.sentence(3)
    one = (Entry("user", question), Entry("assistant", parts=(Part("text", answer + "ok"),)))
    two = (Entry("user", question + answer), Entry("assistant", parts=(Part("text", "ok"),)))
    return replace(voice, history=one), replace(voice, history=two)


def _other_system(life: Life, voice: Voice) -> tuple[Voice, Voice]:
    """Two agents of one program with equal words: what differs is no part of the conversation."""
    field = {"messages": "system", "chat": "user", "responses": "instructions"}[voice.wire]
    return (
        replace(voice, extra={field: "You write code."}),
        replace(_other_answer(life, voice)[1], extra={field: "You review code."}),
    )


KINDS: Final[dict[str, Differ]] = {
    "one word": _opening(_other_word),
    "one character": _opening(_other_character),
    "one answer": _other_answer,
    "another account": _other_account,
    "another account's history": _borrowed_history,
    "the second message": _other_second_message,
    "another order": _other_order,
    "a text like a mark": _imitates_mark,
    "a text like a reminder": _opening(_imitates_reminder),
    "words after a reminder": _only_reminder_differs_after,
    "the client's id": _client_named,
    "one id in two headers": _other_header_same_id,
    "one cache key, short answers": _shared_hint,
    "a header of the process": _shared_header,
    "nearly the same header": _near_header,
    "a fork": _fork,
    "Unicode": _unicode_opening,
    "white space": _opening(_white_space),
    "empty texts": _empty_texts,
    "tool ids swapped": _swapped_tools,
    "a tool's result": _other_result,
    "who said it": _moved_boundary,
    "another system prompt": _other_system,
}
