"""What the provider answers to a request, before any of it is sent.

One rule: no waiting and no sockets here: a request and what came before it decide the answer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Final, NamedTuple

from tests.provider import catalog, chat, messages, responses
from tests.provider.dialog import Dialog, Protocol, Refused, read_dialog, unit_of
from tests.provider.ledger import Answered, Arrived
from tests.provider.prompt_cache import PromptCache, cold_anthropic, prompt_tokens
from tests.provider.reply import Canned, Event, Reply, Verbatim, compose, to_json
from tests.provider.script import Script, parse_script
from worker.protocol import Usage

Override = Callable[[Arrived], Canned | Verbatim | Script | None]

NOT_JSON: Final = b"<html><body>It works, but it is not JSON.</body></html>"

_ROUTES: Final[Mapping[tuple[str, str], Protocol]] = {
    ("POST", "/v1/messages"): "messages",
    ("POST", "/v1/messages/count_tokens"): "count_tokens",
    ("POST", "/v1/chat/completions"): "chat",
    ("POST", "/v1/responses"): "responses",
}
_SHAPES: Final[Mapping[Protocol, ModuleType]] = {"messages": messages, "chat": chat, "responses": responses}


class Streamed(NamedTuple):
    """A healthy answer as events."""

    events: Iterable[Event]


class Plan(NamedTuple):
    """An answer (None: none at all), and how it is to be delivered."""

    answer: Canned | Verbatim | Streamed | None
    script: Script


class Model:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.override: Override | None = None
        self.cache = PromptCache()
        self._attempts: Counter[bytes] = Counter()
        self._stored: dict[str, list[str]] = {}
        """The units of each Responses answer with what came before it, for `previous_response_id`."""

    def plan(self, answered: Answered) -> Plan:
        """Decide, and note in the ledger what was understood."""
        request = answered.request
        override = self.override(request) if self.override else None
        if isinstance(override, Canned | Verbatim):
            return Plan(override, Script())
        protocol = _ROUTES.get((request.method, request.path))
        if protocol is None:
            return Plan(self._beside(request), Script())
        try:
            dialog = read_dialog(protocol, request.body, self._stored)
        except Refused as refusal:
            return Plan(self._error(request, refusal.status, refusal.message, refusal.code), Script())
        answered.user_text = dialog.user_text
        script = override or parse_script(dialog.user_text)
        return Plan(self._attempt(answered, dialog, script), script)

    def headers(self, request: Arrived) -> list[tuple[str, str]]:
        """The provider's own headers of every answer."""
        return catalog.provider_headers(_provider(request), self.seed, request.number)

    def _beside(self, request: Arrived) -> Canned:
        if (request.method, request.path) == ("GET", "/v1/models"):
            return catalog.models(_provider(request))
        return self._error(request, 404, f"Not found: {request.method} {request.path}")

    def _error(self, request: Arrived, status: int, message: str = "", code: str | None = None) -> Canned:
        request_id = catalog.request_id_of(self.seed, request.number)
        return catalog.error(_provider(request), status, request_id, message, code)

    def _attempt(self, answered: Answered, dialog: Dialog, script: Script) -> Canned | Streamed | None:
        """What fails costs nothing and caches nothing."""
        request = answered.request
        body = hashlib.sha256(request.path.encode() + b"\n" + request.body).digest()
        self._attempts[body] += 1
        if script.fails(self._attempts[body]):
            return self._error(request, script.fail_status)
        if script.drops(self._attempts[body]):
            return None
        if script.json_garbage:
            return Canned(body=NOT_JSON)
        if dialog.protocol == "count_tokens":
            return Canned(body=to_json({"input_tokens": prompt_tokens(dialog.units)}))
        return self._speak(answered, dialog, script)

    def _speak(self, answered: Answered, dialog: Dialog, script: Script) -> Canned | Streamed:
        prompt = self._count(answered.request, dialog, script)
        reply = compose(dialog, script, prompt, self.seed, answered.request.number)
        answered.text = reply.text
        if dialog.protocol == "responses":
            self._store(reply)
        shape = _SHAPES[dialog.protocol]
        if dialog.stream:
            return Streamed(shape.events(reply))
        return Canned(body=shape.body(reply), tells=reply.told_usage)

    def _count(self, request: Arrived, dialog: Dialog, script: Script) -> Usage:
        owner = f"{_credential(request)}/{dialog.model}"
        if dialog.protocol == "messages":
            counted = self.cache.count_anthropic(owner, dialog.units, dialog.breakpoints)
            return cold_anthropic(dialog.units, dialog.breakpoints) if script.cold else counted
        counted = self.cache.count_openai(owner, dialog.units)
        return Usage(input_tokens=prompt_tokens(dialog.units)) if script.cold else counted

    def _store(self, reply: Reply) -> None:
        response = responses.finished(reply)
        self._stored[response["id"]] = [*reply.dialog.units, *map(unit_of, response["output"])]


def _provider(request: Arrived) -> catalog.Provider:
    anthropic = request.header("anthropic-version") or request.header("x-api-key")
    return "anthropic" if anthropic or request.path.startswith("/v1/messages") else "openai"


def _credential(request: Arrived) -> str:
    """The same key is the same account, whichever header carries it."""
    return request.header("x-api-key") or request.header("authorization").removeprefix("Bearer ")
