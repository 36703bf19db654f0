"""Turns at a steady pace over a real socket, as a process: `python -m bench.load ADDRESS RATE SESSIONS SEED`.

One rule: the pace does not depend on the answers.  A turn is due when it is due, and its first wait is counted from
then; who would wait for a slow worker before sending more would not see what that costs.

Prints, when its standard input closes, one JSON object: seconds per kind of write, in the order of their answers.
"""

from __future__ import annotations

import random
import sys
import time
from collections import deque
from itertools import count
from typing import Final

import msgspec
import zmq
from msgspec.structs import replace

from bench.database import HEADER, session_name
from tests.worker.peer import Peer
from worker.protocol import (
    FROM_WORKER,
    Acks,
    Booking,
    Claim,
    Command,
    Key,
    Naming,
    Ping,
    Reply,
    Row,
    Usage,
    Why,
    decode,
)

ANSWER_SECONDS: Final = 0.02
"""From a turn's begin to its end: the provider's part, cut short so that few turns are under way."""
PING_SECONDS: Final = 1.0
RECENT: Final = 50
"""Sessions whose turns make most of the load; the others are found somewhere in the database."""
SHARES: Final = {"recent": 0.6, "somewhere": 0.3, "new": 0.1}


class Turn:
    """Claim, begin, end: each is sent when the one before was answered, the end after the provider's part."""

    def __init__(self, naming: Naming, event_id: str, due_at: float) -> None:
        self.naming = naming
        self.event_id = event_id
        self.waits_since = due_at
        self.stage = "claim"
        self.reply = Reply(sequence=0, session_id="")


class Load:
    def __init__(self, peer: Peer, rate: float, sessions: int, seed: int) -> None:
        self.seconds: dict[str, list[float]] = {"claim": [], "begin": [], "end": []}
        self._peer = peer
        self._rng = random.Random(seed)
        self._sessions = sessions
        self._pause = 1 / rate
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._sequences = count(1)
        self._waiting: dict[int, Turn] = {}
        self._ending: deque[tuple[float, Turn]] = deque()

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._peer._socket, zmq.POLLIN)
        poller.register(sys.stdin.fileno(), zmq.POLLIN)
        turn_at = ping_at = time.monotonic()
        while True:
            now = time.monotonic()
            while turn_at <= now:
                self._begin(turn_at)
                turn_at += self._pause
            while self._ending and self._ending[0][0] <= now:
                self._send(self._ending.popleft()[1], "end", time.monotonic())
            if ping_at <= now:
                self._peer.send(Command.PING, Ping())
                ping_at = now + PING_SECONDS
            next_at = min(turn_at, self._ending[0][0] if self._ending else turn_at)
            ready = dict(poller.poll(max(0, int(1_000 * (next_at - time.monotonic())))))
            self._receive()
            if sys.stdin.fileno() in ready:
                return

    def _begin(self, due_at: float) -> None:
        rng = self._rng
        [kind] = rng.choices(list(SHARES), list(SHARES.values()))
        if kind == "recent" and self._recent:
            session_id = rng.choice(self._recent)
        elif kind == "new":
            session_id = f"n{rng.getrandbits(124):031x}"
        else:
            session_id = session_name(rng.randint(1, self._sessions))
        self._recent.append(session_id)
        keys = [Key(kind="header", name=HEADER, value=session_id)]
        naming = Naming(
            session_id=session_id,
            confirmed=False,
            keys=keys,
            header_name=HEADER,
            header_session_id=session_id,
            client="claude-code/2.1.37",
            account="4f1c2b9d0a7e6f53",
            why=Why(reason=f"the client named it: header {HEADER}", origin=f"header {HEADER}", confidence="certain"),
        )
        self._send(Turn(naming, f"{rng.getrandbits(128):032x}", due_at), "claim", due_at)

    def _send(self, turn: Turn, stage: str, waits_since: float) -> None:
        turn.stage, turn.waits_since = stage, waits_since
        sequence = next(self._sequences)
        self._waiting[sequence] = turn
        if stage == "claim":
            self._peer.send(Command.CLAIM, Claim(naming=turn.naming), sequence)
            return
        keys, position = turn.naming.keys, turn.reply.rows[-1].position if turn.reply.rows else turn.reply.position
        if stage == "end":
            keys = [*keys, Key(kind="history", name="", value=f"{self._rng.getrandbits(128):032x}")]
        row = _row(turn, self._peer.boot.decode(), is_settled=stage == "end")
        naming = replace(turn.naming, session_id=turn.reply.session_id, confirmed=True, keys=keys, is_judged=True)
        body = Booking(naming=naming, row=row, epoch=turn.reply.epoch, seen=position)
        self._peer.send(Command.END if stage == "end" else Command.BEGIN, body, sequence)

    def _receive(self) -> None:
        while True:
            try:
                frames = self._peer._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            heard_at = time.monotonic()
            body = decode(frames, FROM_WORKER).body
            for reply in body.replies if isinstance(body, Acks) else ():
                self._answered(self._waiting.pop(reply.sequence), reply, heard_at)

    def _answered(self, turn: Turn, reply: Reply, heard_at: float) -> None:
        self.seconds[turn.stage].append(heard_at - turn.waits_since)
        if turn.stage == "claim":
            turn.reply = reply
            self._send(turn, "begin", heard_at)
        elif turn.stage == "begin":
            self._ending.append((heard_at + ANSWER_SECONDS, turn))


def _row(turn: Turn, boot: str, *, is_settled: bool) -> Row:
    now = time.time_ns() // 1_000_000
    return Row(
        event_id=turn.event_id,
        session_id=turn.reply.session_id,
        kind="turn",
        status="complete" if is_settled else "interrupted",
        started_at=now,
        ended_at=now if is_settled else 0,
        provider="anthropic",
        protocol="messages",
        model="claude-opus-4-5",
        client=turn.naming.client,
        account=turn.naming.account,
        boot=boot,
        usage=Usage(input_tokens=900, cache_read_tokens=90_000, output_tokens=700) if is_settled else None,
        cost_nanousd=80_000_000 if is_settled else None,
    )


def main() -> None:
    address, rate, sessions, seed = sys.argv[1:]
    with Peer(address) as peer:
        load = Load(peer, float(rate), int(sessions), int(seed))
        load.run()
        print(msgspec.json.encode(load.seconds).decode())


if __name__ == "__main__":
    main()
