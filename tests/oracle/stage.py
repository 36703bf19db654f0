"""One conversation at a time, each step chosen by the test: for what must hold always, not only most of the time.

One rule: the same desk, clients and truth as in the crowd; only chance is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.oracle.clients import ClaudeCode, ClaudeThread, Life, Person, Said, Thread
from tests.oracle.crowd import NIGHT_MILLISECONDS, Crowd, answered
from tests.oracle.desk import Desk, Exchange
from tests.oracle.plain import Plain
from tests.oracle.speech import Part
from tests.oracle.truth import Headers, Request, Sent
from tests.oracle.wire import Style

WHOLE = 1.0
CUT = 0.03
UNREAD = 0.045
REFUSED = 0.01
"""Fates of an answer, as `answered` takes them."""


class Stage:
    def __init__(self, seed: int = 1) -> None:
        crowd = Crowd(seed, daemons=2, trouble="none")
        crowd.desk.key_file = None
        self.desk: Desk = crowd.desk
        self.life: Life = crowd.life
        self.truth = crowd.truth

    # -- who speaks --------------------------------------------------------------------------------------------------

    def plain(self, wire: str = "messages", headers: Callable[[], Headers] | None = None, **facts: Any) -> Plain:
        """A conversation that names nothing."""
        person = Person(self.life.words)
        conversation = self.life.truth.conversation("plain", is_named=False)
        return Plain(self.life, conversation, wire, headers or (lambda: person.key_headers(is_old_sdk=True)), **facts)

    def claude(self) -> ClaudeThread:
        return ClaudeCode(self.life).new_session()

    # -- what they do ------------------------------------------------------------------------------------------------

    def turn(
        self, thread: Thread, text: str = "", style: Style | None = None, parts: tuple[Part, ...] | None = None
    ) -> Sent:
        """One request, answered."""
        thread.dialogue.say(text or self.life.words.sentence())
        return self.ask(thread, style, parts)

    def ask(self, thread: Thread, style: Style | None = None, parts: tuple[Part, ...] | None = None) -> Sent:
        sent, said = self.send(thread.request("step", style or Style()), parts=parts)
        thread.heard(said)
        return sent

    def send(self, request: Request, fate: float = WHOLE, parts: tuple[Part, ...] | None = None) -> tuple[Sent, Said]:
        return self.finish(self.begin(request), fate, parts)

    def begin(self, request: Request) -> Exchange:
        """A request that stays in flight."""
        exchange = self.desk.send(request)
        self.truth.sent(exchange.sent)
        self.desk.pump()
        return exchange

    def finish(
        self, exchange: Exchange, fate: float = WHOLE, parts: tuple[Part, ...] | None = None
    ) -> tuple[Sent, Said]:
        words = self.life.words
        said = answered(exchange, parts or (Part("text", words.paragraph()),), f"resp_{words.hex(24)}", fate)
        self.desk.pump()
        self.truth.resolve()
        return exchange.sent, said

    def next_day(self) -> None:
        """Everything is killed, and a night passes."""
        for daemon in list(self.desk.daemons):
            self.desk.kill(daemon)
        self.desk.sleep(NIGHT_MILLISECONDS)
        self.life.day += 1

    # -- what came of it ---------------------------------------------------------------------------------------------

    def ids(self, thread: Thread) -> set[str]:
        """The sessions of a conversation, as the store has them now."""
        self.desk.pump()
        self.truth.resolve()
        booked = [self.desk.booked(sent.event_id) for sent in thread.conversation.sent]
        return {each.session_id for each in booked if each is not None}

    def session(self, thread: Thread) -> Any:
        """The one session of a conversation."""
        ids = self.ids(thread)
        assert len(ids) == 1, [str(sent) for sent in thread.conversation.sent]
        return self.desk.session(ids.pop())

    def kind(self, sent: Sent) -> str:
        booked = self.desk.booked(sent.event_id)
        assert booked is not None
        return booked.kind
