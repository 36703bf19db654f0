"""How an answer gets to the client: framing, coding, and the faults that a script asks for.

One rule: the ledger is written before the bytes it speaks of, and taken back if they could not leave.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from email.utils import formatdate
from typing import Final

from tests.provider.ledger import Answered, Ledger
from tests.provider.model import Plan, Streamed
from tests.provider.reply import Canned, Verbatim
from tests.provider.script import Script
from tests.provider.wire import LAST_CHUNK, ClientGone, Connection, chunk, encoder, response_head
from worker.protocol import Usage

GARBAGE: Final = b"\x16\x03\x01\x00 this is not HTTP \xff\xfe\r\n\r\n"
EVENT_STREAM: Final = (("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-cache"))


class Gates:
    """Named places where requests wait for a test.  To be touched in the provider's loop only; `waiting` may be read
    anywhere."""

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        self._events: dict[str, asyncio.Event] = {}

    def event(self, name: str) -> asyncio.Event:
        return self._events.setdefault(name, asyncio.Event())


class Delivery:
    """One answer on its way."""

    def __init__(self, connection: Connection, answered: Answered, gates: Gates, ledger: Ledger) -> None:
        self._connection = connection
        self._answered = answered
        self._gates = gates
        self._ledger = ledger

    async def deliver(self, plan: Plan, headers: list[tuple[str, str]]) -> bool:
        """Send it; False when the connection is to end with it."""
        answer, script = plan
        await self._pass(script.stall)
        if answer is None:
            return False
        if isinstance(answer, Verbatim):
            return await self._verbatim(answer)
        if script.garbage:
            await self._put(GARBAGE)
            return False
        general = [("Date", formatdate(usegmt=True)), ("Connection", "keep-alive"), *headers]
        if script.encoding:
            general.append(("Content-Encoding", script.encoding))
        if isinstance(answer, Streamed):
            return await self._stream(answer, script, [*EVENT_STREAM, *general])
        if isinstance(answer.body, bytes):
            return await self._whole(answer, answer.body, script, [*answer.headers, *general])
        return await self._chunks(answer, answer.body, script, [*answer.headers, *general])

    async def _stream(self, answer: Streamed, script: Script, headers: list[tuple[str, str]]) -> bool:
        await self._head(200, [*headers, ("Transfer-Encoding", "chunked")], script)
        coding = encoder(script.encoding)
        gate = script.hold
        count = 0
        for count, event in enumerate(answer.events, start=1):
            if script.cut_after is not None and count > script.cut_after:
                return False
            if script.delay_ms:
                await self._connection.unless_gone(asyncio.sleep(script.delay_ms / 1000))
            ends = event.is_last and script.cut_after != count
            await self._put(chunk(coding.feed(event.data)), tells=event.tells, ends=ends)
            if gate and event.is_delta:
                await self._pass(gate)
                gate = ""
        if script.cut_after == count:
            return False
        await self._put(chunk(coding.finish()) + LAST_CHUNK)
        return True

    async def _whole(self, answer: Canned, body: bytes, script: Script, headers: list[tuple[str, str]]) -> bool:
        coding = encoder(script.encoding)
        body = coding.feed(body) + coding.finish()
        await self._head(answer.status, [*headers, ("Content-Length", str(len(body)))], script)
        if self._answered.request.method == "HEAD":
            body = b""
        if script.delay_ms:
            await self._connection.unless_gone(asyncio.sleep(script.delay_ms / 1000))
        if script.cut_after is not None and script.cut_after < len(body):
            await self._put(body[: script.cut_after])
            return False
        half = len(body) // 2 if script.hold else 0
        await self._put(body[:half])
        await self._pass(script.hold)
        await self._put(body[half:], tells=answer.tells, ends=True)
        return True

    async def _chunks(
        self, answer: Canned, body: Sequence[bytes], script: Script, headers: list[tuple[str, str]]
    ) -> bool:
        await self._head(answer.status, [*headers, ("Transfer-Encoding", "chunked")], script)
        for data in body:
            await self._put(chunk(data))
        await self._put(LAST_CHUNK, tells=answer.tells, ends=True)
        return True

    async def _verbatim(self, answer: Verbatim) -> bool:
        """Whether that is an answer, and a complete one, only the test knows: the ledger does not say so."""
        for data in [answer.data] if isinstance(answer.data, bytes) else answer.data:
            await self._put(data)
        if answer.then == "reset":
            await self._connection.reset()
        return answer.then == "keep"

    async def _head(self, status: int, headers: list[tuple[str, str]], script: Script) -> None:
        self._answered.status = status
        line, block = response_head(status, headers)
        await self._put(line)
        await self._pass(script.slow_headers)
        await self._put(block)

    async def _put(self, data: bytes, *, tells: Usage | None = None, ends: bool = False) -> None:
        answered = self._answered
        told = answered.usage
        answered.usage = tells or told
        answered.complete = answered.complete or ends
        try:
            await self._connection.write(data)
        except ClientGone:
            answered.usage = told
            answered.complete = answered.complete and not ends
            raise
        answered.bytes_sent += len(data)

    async def _pass(self, gate: str) -> None:
        """Wait until a gate is open; no name, no gate."""
        if not gate:
            return
        self._gates.waiting[gate] += 1
        self._ledger.announce()
        try:
            await self._connection.unless_gone(self._gates.event(gate).wait())
        finally:
            self._gates.waiting[gate] -= 1
