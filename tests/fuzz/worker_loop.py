"""Target: the worker's loop behind its socket, with peers that send anything in any order.

What must hold: the loop lives; whoever greets is answered, and what is said to it is the protocol; a peer beside them
that does as it should is served; and whatever was taken can be read back and shown.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import msgspec
import orjson

from daemon.views import account_object, session_object
from tests.fuzz.choices import Choices, made
from tests.fuzz.coverage import Edges
from tests.fuzz.frames import BETWEEN
from tests.fuzz.guided import Target
from tests.fuzz.writes import POOLS, SESSIONS
from tests.worker.peer import Peer, ThreadedWorker, short_directory
from tests.worker.writing import claim
from worker.metrics import exposition
from worker.protocol import FROM_DAEMON, PROTOCOL, Acks, Command, Family, Query, encode
from worker.records import Account, Record

ODD_PEERS: Final = 2
STEPS_MAX: Final = 8
SEQUENCES: Final = (0, 1, 2, 3, 7, 2**40, 2**62, 2**64 - 1)
ALL: Final = list(FROM_DAEMON)
SERVED: Final = "beside"
"""The session of the peer that does as it should."""
METRIC_POOLS: Final = {**POOLS, "type": ("counter", "histogram", "gauge"), "labels": (("a", "b"), ("le", "0.5"))}


@contextmanager
def opened(_edges: Edges) -> Iterator[Target]:
    rng = random.Random(4)
    seeds = [b"C" + bytes([number]) + rng.randbytes(700) for number in range(len(ALL))]
    seeds += [b"C" + rng.randbytes(size) for size in (300, 900, 2_000)]
    seeds.append(b"R" + BETWEEN.join([PROTOCOL, b"PING", bytes(8), b"{}"]))
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        worker = stack.enter_context(ThreadedWorker(directory))
        good = stack.enter_context(Peer(worker.address))
        odd = [stack.enter_context(Peer(worker.address)) for _ in range(ODD_PEERS)]
        crowd = Crowd(worker, good, odd)
        yield Target(check=crowd.check, seeds=seeds, tokens=[BETWEEN, b"HELLO", b"PING", b"{}"], is_alone=False)


class Crowd:
    """Peers of one worker, and the last sequence of each."""

    def __init__(self, worker: ThreadedWorker, good: Peer, odd: list[Peer]) -> None:
        self._worker = worker
        self._good = good
        self._odd = odd
        self._sequence = 10

    def check(self, data: bytes) -> None:
        """The first byte chooses between frames as they stand and commands that the rest chooses."""
        if data[:1] == b"R":
            self._odd[0].send_frames(data[1:].split(BETWEEN))
        else:
            choices = Choices(data[1:])
            for _ in range(STEPS_MAX):
                self._step(choices)
                if choices.is_spent:
                    break
        try:
            self._serve()
        except AssertionError:
            if self._worker.failure is not None:
                raise self._worker.failure from None
            raise

    def _step(self, choices: Choices) -> None:
        command, peer = choices.pick(ALL), choices.pick(self._odd)
        body = made(FROM_DAEMON[command], choices, METRIC_POOLS)
        frames = encode(command, body, choices.pick(SEQUENCES))
        if choices.number(8) == 7:  # Spoilt in one place.
            place = choices.number(len(frames))
            frames[place] = frames[place][: choices.number(len(frames[place]) + 1)] + choices.raw(choices.number(5))
        peer.send_frames(frames)

    def _serve(self) -> None:
        """Everybody says HELLO and claims: what came before is done then, and was read.  Reading decodes."""
        self._sequence += 1
        for peer in (*self._odd, self._good):
            peer.hello()
            peer.send(Command.CLAIM, claim(SERVED), self._sequence)
        for peer in (*self._odd, self._good):
            acks: Any = peer.expect(Command.ACK).body
            while self._sequence not in {reply.sequence for reply in acks.replies}:
                acks = peer.expect(Command.ACK).body
                assert isinstance(acks, Acks)
        self._read_back()

    def _read_back(self) -> None:
        """As a daemon reads it for people."""
        records = msgspec.json.decode(self._asked(Query(what="sessions", limit=20)), type=list[Record])
        for record in records:
            orjson.dumps(session_object(record, {}))
        session_id = SESSIONS[self._sequence % len(SESSIONS)]
        account = msgspec.json.decode(self._asked(Query(what="session", session_id=session_id)), type=Account | None)
        if account is not None:
            orjson.dumps(account_object(account, {}))
        exposition(msgspec.json.decode(self._asked(Query(what="metrics")), type=list[Family]))

    def _asked(self, query: Query) -> bytes:
        self._good.send(Command.QUERY, query, self._sequence)
        answer: Any = self._good.expect(Command.ANSWER, self._sequence).body
        assert answer.answered, f"{query.what} can not be read"
        return bytes(answer.body)
