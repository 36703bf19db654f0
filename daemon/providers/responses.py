"""OpenAI's Responses API: its turns, its event stream, its answers.

One rule: an item is read by the same function whether it is history or an answer.

Theory of operation.  A conversation is a flat list of items: messages, calls, outputs, reasoning and more kinds every
year, so an item of an unknown kind is known by its `call_id` if it has one and by its type if not.  A stream grows
items piece by piece, repeats each one complete when it is done, and ends with an event that holds the whole response.
Some servers leave the items out of that last event, so the complete items are kept until it comes.

What the provider stores, a client may send back as references: some refer to every item, some to all but the calls of
functions, whose outputs are paired with them by `call_id`.  So an answer has several forms (`_FORMS`), and a later
request holds the newest answer in any of them.  A form that changes for answers further back (a conversation saved
without ids and taken up again) can not be known: a request's own references name texts that nobody here has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from daemon.providers.base import ABSENT, ASSISTANT, USER, Answer, Turn, Unit
from daemon.providers.body import CommonBody, Named, hints_in, is_streamed, limit_in, model_of
from daemon.providers.fields import (
    Field,
    Object,
    id_at,
    is_id,
    natural_at,
    object_at,
    object_of,
    objects_in,
    string_under,
    text_at,
)
from daemon.providers.normal import (
    LEFT_OUT,
    SYSTEM_ROLES,
    Draft,
    Reading,
    call_mark,
    content_text,
    is_user_turn,
    mark,
    other_forms,
    result_text,
    unreadable,
)
from daemon.providers.setup import leading_texts
from daemon.providers.sse import Event
from daemon.providers.usage import Tally

ENDED: Final = frozenset({"completed", "incomplete"})
"""States of a response that is an answer; the others are on their way, cancelled or failed."""
LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})
HEARD_EVENTS: Final = LAST_EVENTS | {"response.created", "response.output_item.done"}
"""The others, nearly all of a stream, only grow what these repeat: they are not even decoded."""
REFERENCE: Final = "item_reference"
UNREFERRED: Final = ("rs_", "mcpl_")
"""How the ids of reasoning and of lists of tools begin: some clients refer to them, others leave them out."""

TOOL_NAME_PATHS: Final = (("name",), ("type",))


class Body(CommonBody):
    input: Field = None
    instructions: msgspec.Raw = ABSENT
    previous_response_id: msgspec.Raw = ABSENT
    conversation: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    max_output_tokens: msgspec.Raw = ABSENT


def turn_of(body: Body, minted: Named) -> Turn:
    entries = _entries(body.input)
    response_id = string_under(body.previous_response_id)
    conversation_id = string_under(body.conversation) or string_under(body.conversation, ("id",))
    return Turn(
        protocol="responses",
        model=model_of(body),
        stream=is_streamed(body),
        message_count=len(entries),
        user_turn=is_user_turn(entries, read_entry),
        minted=minted,
        hints=hints_in(body),
        output_limit=limit_in(body.max_output_tokens),
        has_state=bool(response_id or conversation_id),
        state_id=response_id if is_id(response_id) else "",
        has_prompt=bool(string_under(body.prompt, ("id",))),
        system=body.instructions,
        tools=body.tools,
        entries=entries,
    )


def system_texts(turn: Turn) -> Iterator[str]:
    yield string_under(turn.system)
    yield from leading_texts(turn.entries)


def _entries(source: Field) -> tuple[msgspec.Raw, ...]:
    if isinstance(source, str):
        return (msgspec.Raw(msgspec.json.encode({"role": "user", "content": source})),)
    return tuple(source) if isinstance(source, list) else ()


def read_entry(entry: msgspec.Raw) -> Reading:
    """One item of a request, in normal form."""
    item = object_of(entry)
    return unreadable(entry) if item is None else _read_item(item)


def _read_item(item: Object) -> Reading:
    kind, role, call_id = text_at(item, "type"), text_at(item, "role"), text_at(item, "call_id")
    if role in SYSTEM_ROLES or kind == "reasoning":
        return LEFT_OUT
    if kind == REFERENCE or (not kind and item.keys() <= {"id", "type"}):
        return Reading(ASSISTANT, _reference(text_at(item, "id")))
    if role or kind == "message":
        side = ASSISTANT if role == "assistant" else USER
        return Reading(side, content_text(item.get("content"), side))
    if kind.endswith("_output"):
        result = result_text(call_id or text_at(item, "id"), item.get("output"))
        return Reading(USER, result, has_result=True)
    if kind == "mcp_approval_response":
        return Reading(USER, mark("result", text_at(item, "approval_request_id")), has_result=True)
    is_call = kind.endswith("_call")
    return Reading(ASSISTANT, call_mark(call_id) if call_id else mark("item", kind), has_call=is_call)


def _reference(item_id: str) -> str:
    """The item that the provider stores under that id, whatever it is."""
    return "" if item_id.startswith(UNREFERRED) else mark("reference", item_id)


def read_document(document: Object) -> Answer:
    """A whole response, as it is answered without a stream and at the end of one."""
    items = _Items()
    for index, item in enumerate(objects_in(document.get("output"))):
        items.put(index, item)
    return _answer_of(document, items, ended=text_at(document, "status") in ENDED)


def _answer_of(document: Object, items: _Items, *, ended: bool) -> Answer:
    tally = Tally()
    tally.note_inclusive(object_at(document, "usage"), prompt="input", answer="output")
    failed = text_at(document, "status") == "failed" or document.get("error") is not None
    forms = items.units(is_stored=document.get("store") is not False) if ended and not failed else [None]
    return Answer(
        usage=tally.inclusive(),
        finished=not failed,
        failed=failed,
        unit=forms[0],
        other_forms=other_forms(forms[0], forms),
        text_only=not items.has_call,
        response_id=id_at(document, "id"),
    )


# -- the forms of an answer ----------------------------------------------------------------------------------------


T = TypeVar("T")


class _Forms(NamedTuple, Generic[T]):
    """What clients make of an item, or of a whole answer, when they send it back; None: it can not be told."""

    in_full: T | None
    plain: T | None
    """Without what the provider's own tools did: some clients know only texts and calls of their own."""
    referred: T | None
    referred_but_functions: T | None


def _forms_of(item: Object) -> _Forms[str]:
    """Empty where clients leave the item out."""
    reading, kind, item_id = _read_item(item), text_at(item, "type"), text_at(item, "id")
    # Outputs of the provider's own tools make two sides, which no answer has.
    in_full = reading.text if reading.role == ASSISTANT or not reading.text else None
    plain = (in_full or "") if kind == "message" or text_at(item, "call_id") else ""
    nameless = "" if kind == "reasoning" else None
    referred = _reference(item_id) if item_id else nameless
    return _Forms(in_full, plain, referred, in_full if kind == "function_call" else referred)


class _Items:
    """The items of an answer, as far as they are known, in every form."""

    def __init__(self) -> None:
        self.has_call = False
        self._drafts = [Draft() for _ in _Forms._fields]

    def put(self, index: int | None, item: Object) -> None:
        self.has_call |= _read_item(item).has_call
        for draft, text in zip(self._drafts, _forms_of(item), strict=True):
            draft.known &= text is not None and index is not None
            draft.put((index or 0,), text or "")

    def lose(self) -> None:
        """Something of the answer was not understood."""
        for draft in self._drafts:
            draft.known = False

    def units(self, *, is_stored: bool) -> list[Unit | None]:
        """The answer in full, and in the other forms; only what is stored can be referred to."""
        units = _Forms(*(draft.unit() for draft in self._drafts))
        return list(units) if is_stored else [units.in_full, units.plain]


class Stream:
    """A streamed answer, event by event."""

    def __init__(self) -> None:
        self.terminal = False
        self._answer = Answer()
        self._items = _Items()

    def hear(self, event: Event) -> None:
        if event.name.startswith("response.") and event.name not in HEARD_EVENTS:
            return
        data = object_of(event.data) if event.data is not None else None
        if data is None:
            self._items.lose()
        data = data or {}
        kind = text_at(data, "type") or event.name
        response = object_at(data, "response")
        if kind == "response.created":
            self._answer = Answer(response_id=id_at(response, "id"))
        elif kind == "response.output_item.done":
            self._items.put(natural_at(data, "output_index"), object_at(data, "item"))
        elif kind in LAST_EVENTS:
            self.terminal = True
            self._answer = self._last_answer(response, failed=kind in ("response.failed", "error"))

    def answer(self, whole: bool) -> Answer:
        """`whole` says nothing here: a stream without its last event was cut, however politely."""
        return self._answer if self.terminal else replace(self._answer, text_only=not self._items.has_call)

    def _last_answer(self, response: Object, *, failed: bool) -> Answer:
        """What the last event says, the items from the earlier ones where it leaves them out."""
        has_items = bool(objects_in(response.get("output")))
        said = read_document(response) if has_items else _answer_of(response, self._items, ended=not failed)
        failed = failed or said.failed
        return replace(
            said,
            finished=not failed,
            failed=failed,
            unit=None if failed else said.unit,
            other_forms=() if failed else said.other_forms,
            text_only=said.text_only and not self._items.has_call,
            response_id=said.response_id or self._answer.response_id,
        )
