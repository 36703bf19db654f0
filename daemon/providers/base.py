"""The words every wire format is read into: a turn, an answer, and units of conversation.

One rule: values only, the same for all providers; what is particular to one of them lives in its own file.

Theory of operation.  A request is read into a `Turn` and the copy of a response into an `Answer`, whatever API they
belong to.  Both hold their texts as `Unit`s, the normal form of `normal.py`, so that an answer given today and the
same answer sent back tomorrow as history are equal.  Nothing here is ever sent on: bytes go their own way, untouched.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from worker.protocol import Usage

WireFormat = Literal["messages", "chat", "responses"]

ABSENT: Final = msgspec.Raw(b"null")
"""A field that is not there, where the others are kept undecoded."""

USER: Final = "user"
ASSISTANT: Final = "assistant"

MODEL_CHARACTERS_MAX: Final = 200
"""A model's name is a ledger field and a metric label; the longest real ones have about 80 characters."""
ID_CHARACTERS_MAX: Final = 256
"""Ids minted by clients and providers have 20 to 130 characters.  A longer one is not an id and counts as absent."""


class Unit(NamedTuple):
    """What one side said before the other spoke again, in normal form."""

    role: str
    text: str


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A request, as far as identity and bookkeeping need it."""

    protocol: WireFormat
    model: str = ""
    stream: bool = False
    message_count: int = 0
    user_turn: bool = False
    """The newest message is the user's own rather than a tool's result."""
    minted: tuple[tuple[str, str], ...] = ()
    """Session ids (place, value) that the client put into the body, in the order of the configured places."""
    hints: tuple[tuple[str, str], ...] = ()
    """Names and values that may belong to this conversation alone, or to all of an application's."""
    account_claim: str = ""
    output_limit: int | None = None
    """Tokens that the client will take at most."""
    has_state: bool = False
    """The provider keeps the history: this request holds only what is new."""
    state_id: str = ""
    """The response that such a request goes on from; empty where it goes on from a conversation, which has an id of
    its own among the configured places."""
    has_prompt: bool = False
    """The provider keeps a prompt that this request names."""
    thinks: bool = False
    """It grants a budget for thinking, which the limit of the answer has to exceed."""
    system: msgspec.Raw = ABSENT
    """What the client says as system beside the conversation, not decoded."""
    tools: msgspec.Raw = ABSENT
    entries: tuple[msgspec.Raw, ...] = ()
    """The conversation's messages or items, not decoded: most requests are recognised without their texts."""

    @property
    def is_answerable(self) -> bool:
        """There is something that a model could answer.  A request without a conversation, here or at the provider, is
        refused by every provider, and is no turn of any session: no row is owed for it.  One without a model is not
        among these: servers that have a single one answer it, and so does a kept prompt that names its own."""
        return bool(self.entries) or self.has_state or self.has_prompt


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A response, as far as it was seen."""

    usage: Usage | None = None
    """None: the provider never told, or not in a way that can be read."""
    finished: bool = False
    """It came to its proper end, and that was no error."""
    failed: bool = False
    """The provider reported an error inside the answer."""
    unit: Unit | None = None
    """The answer in normal form; None unless it is finished, fully known and not empty."""
    other_forms: tuple[Unit, ...] = ()
    """The same answer as some clients send it back otherwise: parts left out, or ids in the place of what they name."""
    text_only: bool = True
    """No tool call was seen in it."""
    response_id: str = ""

    @property
    def forms(self) -> tuple[Unit, ...]:
        """The answer as a later request may hold it, in any of these ways."""
        return self.other_forms if self.unit is None else (self.unit, *self.other_forms)


class AnswerReader(Protocol):
    """Looks on while an answer passes.  Never raises, whatever the bytes and however they are split."""

    @property
    def terminal(self) -> bool:
        """The event that ends the answer has been seen completely."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body, as they came from the provider."""

    def close(self, whole: bool) -> Answer:
        """No more is coming; `whole`: the body arrived completely.  Later calls give the first call's answer."""
