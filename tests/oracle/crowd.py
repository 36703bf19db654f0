"""Thousands of clients at once, before a desk whose daemons die and whose worker goes away.

One rule: a run is its seed.

Theory of operation.  At each step chance begins a new client, sends a request that a client waits to send, or lets the
provider answer one that is in flight: wholly, with an error, cut in the middle, or to a client that is gone already.
Between steps a daemon or everything is killed, a night passes, the worker leaves and returns.  Whatever the store has
learned is compared with the truth after every request.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

from tests.oracle import clients, plain
from tests.oracle.clients import Life, Said, Script
from tests.oracle.desk import Desk, Exchange
from tests.oracle.speech import Part, Words, drawn_answer
from tests.oracle.truth import Request, Truth, Verdict
from tests.oracle.wire import answer_document, answer_events

CLIENTS_AT_ONCE: Final = 60
NIGHT_MILLISECONDS: Final = 11 * 60 * 60 * 1000
STEP_MILLISECONDS: Final = 500
ABSENCE_STEPS: Final = 150
"""For how long the worker stays away: the requests of some minutes."""

Trouble = Literal["none", "kills", "all"]
"""`kills`: processes die, but nothing is cut and the worker stays."""

KINDS: Final[tuple[tuple[Callable[[Life], Script], int], ...]] = (
    (lambda life: clients.ClaudeCode(life).live(), 5),
    (lambda life: clients.Codex(life).live(), 3),
    (clients.opencode, 3),
    (clients.pi, 2),
    (partial(plain.plain, wire="messages"), 4),
    (partial(plain.plain, wire="chat"), 3),
    (partial(plain.plain, wire="responses"), 2),
    (plain.stateful, 2),
    (plain.with_conversation, 1),
    (plain.with_learned_header, 1),
    (plain.with_shared_header, 1),
    (plain.with_shared_hint, 2),
    (plain.strangers, 1),
)
"""Who comes, and how often."""


@dataclass(eq=False)
class Client:
    """A script, what it asked, and what it was told so far."""

    script: Script
    asked: list[Request] = field(default_factory=list)
    said: dict[int, Said] = field(default_factory=dict)


@dataclass(eq=False)
class Waiting:
    """A request in flight: whose, and which of those asked together."""

    client: Client
    place: int
    exchange: Exchange


class Crowd:
    def __init__(self, seed: int, *, daemons: int = 3, trouble: Trouble = "all") -> None:
        self.rng = random.Random(seed)
        self.desk = Desk(self.rng, daemons, has_key_file=self.rng.random() < 0.5)
        self.truth = Truth(self.desk)
        self.life = Life(Words(self.rng), self.truth)
        self._trouble_allowed = trouble
        self._to_send: list[tuple[Client, int]] = []
        self._in_flight: list[Waiting] = []
        self._asleep: list[Client] = []
        self._clients = 0
        self._absence_ends = 0
        self._steps = 0

    def live(self, arrivals: Iterator[Script]) -> Verdict:
        """Let clients come, one by one, and go on until all is said."""
        while True:
            self._steps += 1
            if self._clients < CLIENTS_AT_ONCE and (script := next(arrivals, None)) is not None:
                self._start(script)
            if self._in_flight or self._to_send:
                self._step()
                self._trouble()
            elif self._asleep:
                self._night()
            elif not self._clients:
                return self.verdict()

    def anybody(self, conversations: int) -> Iterator[Script]:
        """Clients of all kinds, until there were so many conversations."""
        makers, weights = zip(*KINDS, strict=True)
        while len(self.truth.conversations) < conversations:
            yield self.rng.choices(makers, weights)[0](self.life)

    def verdict(self) -> Verdict:
        if self.desk.is_worker_away:
            self.desk.restore_worker()
        self.desk.pump()
        self.truth.resolve()
        return self.truth.judge()

    def _start(self, script: Script) -> None:
        self._clients += 1
        self._ask(Client(script), None)

    def _night(self) -> None:
        """Everything is killed, and tomorrow is another day."""
        for daemon in list(self.desk.daemons):
            self._kill(daemon.boot)
        self.desk.sleep(NIGHT_MILLISECONDS)
        self.life.day += 1
        asleep, self._asleep = self._asleep, []
        for client in asleep:
            self._ask(client, [])

    # -- a step ------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        self.desk.sleep(self.rng.randrange(STEP_MILLISECONDS))
        if self._to_send and (not self._in_flight or self.rng.random() < 0.55):
            client, place = self._to_send.pop(self.rng.randrange(len(self._to_send)))
            exchange = self.desk.send(client.asked[place])
            self.truth.sent(exchange.sent)
            self._in_flight.append(Waiting(client, place, exchange))
            if self.rng.random() < 0.9:
                self.desk.pump()
        else:
            waiting = self._in_flight.pop(self.rng.randrange(len(self._in_flight)))
            self._tell(waiting, self._answered(waiting.exchange))
            # A write takes milliseconds, a client's next request seconds.
            self.desk.pump()
            self.truth.resolve()
        if self.rng.random() < 0.02:
            self.rng.choice(self.desk.daemons).sessions.flush()

    def _answered(self, exchange: Exchange) -> Said:
        """What the provider says, and how much of it the client gets."""
        request = exchange.sent.request
        fate = self.rng.random() if request.may_be_cut and self._trouble_allowed == "all" else 1.0
        parts = request.answer or drawn_answer(self.life.words, request.wants)
        said = answered(exchange, parts, f"{request.wire[:4]}_{self.life.words.hex(24)}", fate)
        if exchange.sent.session_id:
            self.truth.told(exchange.sent)
        return said

    def _tell(self, waiting: Waiting, said: Said) -> None:
        client = waiting.client
        client.said[waiting.place] = said
        if len(client.said) == len(client.asked):
            self._ask(client, [client.said[place] for place in range(len(client.asked))])

    def _ask(self, client: Client, said: list[Said] | None) -> None:
        """Let the script go on."""
        try:
            client.asked = next(client.script) if said is None else client.script.send(said)
        except StopIteration:
            self._clients -= 1
            return
        client.said = {}
        if client.asked:
            self._to_send += [(client, place) for place in range(len(client.asked))]
        else:
            self._asleep.append(client)

    # -- trouble -----------------------------------------------------------------------------------------------------

    def _trouble(self) -> None:
        if self._trouble_allowed == "none":
            return
        if self.desk.is_worker_away and self._steps > self._absence_ends:
            self.desk.restore_worker()
        chance = self.rng.random()
        if chance < 0.0008 and self._trouble_allowed == "all" and not self.desk.is_worker_away:
            self.desk.lose_worker()
            self._absence_ends = self._steps + self.rng.randrange(ABSENCE_STEPS)
        elif 0.001 < chance < 0.004:
            self._kill(self.rng.choice(self.desk.daemons).boot)
        elif 0.004 < chance < 0.0048:
            self._night()

    def _kill(self, boot: str) -> None:
        """A daemon dies, and what it had in flight with it."""
        daemon = next(daemon for daemon in self.desk.daemons if daemon.boot == boot)
        dying = [waiting for waiting in self._in_flight if waiting.exchange.sent.daemon == boot]
        for waiting in dying:
            if not waiting.exchange.sent.request.may_be_cut:
                self._in_flight.remove(waiting)
                self._tell(waiting, self._answered(waiting.exchange))
        self.desk.kill(daemon)
        for waiting in dying:
            if waiting in self._in_flight:
                self._in_flight.remove(waiting)
                waiting.exchange.abandon()
                self._tell(waiting, Said(None))
        self.truth.died(boot)


def answered(exchange: Exchange, parts: tuple[Part, ...], answer_id: str, fate: float = 1.0) -> Said:
    """Let the provider give an answer.  `fate`: below 0.02 an error, then cut, then unread, then whole."""
    request = exchange.sent.request
    kind = "text/event-stream" if request.stream else "application/json"
    headers = [("content-type", kind)]
    whole = (
        answer_events(request.wire, parts, answer_id)
        if request.stream
        else [answer_document(request.wire, parts, answer_id)]
    )
    if fate < 0.02:
        exchange.answer(
            529, [("content-type", "application/json")], [b'{"type":"error","error":{"type":"overloaded_error"}}']
        )
        return Said(None)
    if fate < 0.04:
        seen = whole[:-1] if request.stream else [whole[0][:40]]
        exchange.answer(200, headers, seen, is_cut=True)
        return Said(None, is_begun=request.stream)
    if fate < 0.05:
        exchange.answer_unread(headers, whole)
        return Said(None, is_begun=request.stream)
    exchange.answer(200, headers, whole)
    return Said(parts, answer_id)
