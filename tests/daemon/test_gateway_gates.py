"""The two gates of a turn: no first byte before its begin is committed, no last byte before its end is.

One rule: the daemon is the real one, in this process; the worker is a few lines that acknowledge only what a test
lets them, so that every order of events can be brought about.

Theory.  That something does not happen is shown by what overtakes it: after the provider's bytes are sent, other
requests go through the same event loop several times, and a gate that does not hold would have let its bytes pass long
before.  The wait for an acknowledgement is made long where a gate must hold, so that a slow machine does not open it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio
from msgspec.structs import replace

from daemon import app, own, worker_client
from daemon.app import Daemon, Phase
from daemon.identity import derived_id
from daemon.spill import Write
from daemon.spillfiles import SpillFiles
from tests.daemon.raw_http import PATIENCE_SECONDS, Peer, Script, a_client, a_provider, answering, run, until
from tests.processes import free_ports
from tests.worker.writing import booking
from worker import protocol
from worker.protocol import Booking, Claim, Command, Message
from worker.settings import Settings

FOR_EVER_SECONDS = 600.0
"""A wait that no test outlives: what is seen before it is over has not waited."""
OVERTAKING_REQUESTS = 10
SESSION = "session-of-the-client"

PATHS = {"messages": "/v1/messages", "chat": "/v1/chat/completions", "responses": "/v1/responses"}
DELTAS = {
    "messages": b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":5}}}\n\n',
    "chat": b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n',
    "responses": b'event: response.created\ndata: {"type":"response.created","response":{"id":"r"}}\n\n',
}
TERMINALS = {
    "messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "chat": b"data: [DONE]\n\n",
    "responses": b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r"}}\n\n',
}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DOCUMENT = b'{"type":"message","content":[{"type":"text","text":"hi"}],"usage":{"input_tokens":5,"output_tokens":2}}'
ANSWER_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(DOCUMENT)
ANSWER = ANSWER_HEAD + DOCUMENT


class FakeWorker:
    """Greets, and acknowledges writes as if they were committed, unless told to withhold or refuse them."""

    def __init__(self, address: str) -> None:
        self.withheld: set[Command] = set()
        self.refused: set[Command] = set()
        self.is_silent = False
        self.canonical: dict[str, str] = {}
        """What a proposed session id resolves to, where that is another."""
        self.writes: list[Message] = []
        """Every write that arrived, once."""
        self.index = {protocol.IndexRequest().before: protocol.IndexPage(entries=[], before=-1)}
        """Its pages by what asks for them; another one is not answered."""
        self.asked_pages: list[int] = []
        self._welcome = WELCOME
        self._greeted: set[bytes] = set()
        self._address = address
        self._kept: list[tuple[bytes, Message]] = []
        self._metrics: list[protocol.Family] = []
        self._positions = 0
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._socket.bind(self._address)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._socket.close(linger=0)
        self._context.term()

    def of(self, command: Command) -> list[Message]:
        return [message for message in self.writes if message.command is command]

    def rows(self, command: Command) -> list[protocol.Row]:
        return [message.body.row for message in self.of(command) if isinstance(message.body, Booking)]

    async def acknowledge(self) -> None:
        """From now on acknowledge everything, and all that was withheld."""
        self.withheld, self.is_silent = set(), False
        kept, self._kept = self._kept, []
        for sender, message in kept:
            await self._answer(sender, message)

    def restart(self) -> None:
        """From now on be another process of the same store: nobody is known, nothing is on its way."""
        self._welcome = replace(self._welcome, boot="w-2")
        self._greeted, self._kept = set(), []

    async def _run(self) -> None:
        while True:
            sender, *frames = await self._socket.recv_multipart()
            message = protocol.decode(frames, protocol.FROM_DAEMON)
            if sender not in self._greeted and message.command is not Command.HELLO:
                await self._send(sender, Command.WHO, protocol.WhoAreYou(), message.sequence)
                continue
            if message.command in protocol.WRITES and message.sequence not in {known.sequence for known in self.writes}:
                self.writes.append(message)
            if self.is_silent or message.command in self.withheld:
                self._kept.append((sender, message))
            else:
                await self._answer(sender, message)

    async def _answer(self, sender: bytes, message: Message) -> None:
        match message.body:
            case _ if message.command in self.refused:
                refusal = protocol.Refusal(reason="as the test wants it")
                await self._send(sender, Command.REFUSED, refusal, message.sequence)
            case protocol.Hello():
                self._greeted.add(sender)
                await self._send(sender, Command.WELCOME, self._welcome)
            case protocol.Ping(metrics=metrics):
                self._metrics = metrics or self._metrics
                await self._send(sender, Command.PONG, protocol.Pong())
            case protocol.IndexRequest(before=before):
                self.asked_pages.append(before)
                if before in self.index:
                    await self._send(sender, Command.KEYS, self.index[before])
            case protocol.Query():
                body = msgspec.Raw(msgspec.json.encode(self._metrics))
                await self._send(sender, Command.ANSWER, protocol.Answer(body=body), message.sequence)
            case Claim() | Booking() | protocol.SnapshotWrite():
                await self._send(sender, Command.ACK, protocol.Acks(replies=[self._reply(message)]))
            case _:
                assert isinstance(message.body, protocol.Bye)

    def _reply(self, message: Message) -> protocol.Reply:
        body = message.body
        assert isinstance(body, Claim | Booking | protocol.SnapshotWrite)
        proposed = body.session_id if isinstance(body, protocol.SnapshotWrite) else body.naming.session_id
        self._positions += message.command is Command.END
        return protocol.Reply(
            sequence=message.sequence,
            session_id=self.canonical.get(proposed, proposed),
            epoch=1,
            owned=True,
            position=self._positions if message.command is Command.END else 0,
        )

    async def _send(self, sender: bytes, command: Command, body: protocol.Body, sequence: int = 0) -> None:
        await self._socket.send_multipart([sender, *protocol.encode(command, body, sequence)])


WELCOME = protocol.Welcome(boot="w-1", incarnation="i-1", hash_key="ab" * 32, version="0", schema=1)


class Stage:
    """A daemon, its worker, and the provider it forwards to."""

    def __init__(self, worker: FakeWorker, daemon: Daemon, port: int, spill: Path) -> None:
        self.worker = worker
        self.spill = spill
        self.daemon = daemon
        self.port = port

    async def ask(self, client: Peer, path: str = "/v1/messages") -> None:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "input": "hi"}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nx-session-id: {SESSION}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        await client.send(head.encode() + body)

    def left_behind(self) -> list[str]:
        return sorted(path.name for path in self.spill.iterdir()) if self.spill.is_dir() else []

    async def get(self, path: str) -> bytes:
        async with a_client(self.port) as client:
            await client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return await client.rest()

    async def overtake(self) -> None:
        """Let the daemon do whatever it would do now."""
        for _ in range(OVERTAKING_REQUESTS):
            assert (await self.get("/healthz")).startswith(b"HTTP/1.1 200")

    async def until_ready(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while b'"ready"' not in await self.get("/readyz"):
                pass

    async def unacknowledged(self) -> float:
        text = (await self.get("/metrics")).decode()
        line = next(line for line in text.splitlines() if line.startswith("perdure_unacknowledged_answers_total"))
        return float(line.split()[1])


@asynccontextmanager
async def a_stage(
    script: Script,
    *,
    worker_is_there: bool = True,
    index: dict[int, protocol.IndexPage] | None = None,
    left_behind: Sequence[Write] = (),
    is_to_run: bool = True,
) -> AsyncIterator[Stage]:
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
    spill = directory / "spill"
    if left_behind:
        SpillFiles([spill], logging.getLogger("daemon")).keep(left_behind)
    address = f"ipc://{directory}/worker.sock"
    [port] = free_ports(1)
    worker = FakeWorker(address)
    worker.index = index or worker.index
    async with a_provider(script) as provider:
        settings = Settings(
            listen=f"127.0.0.1:{port}",
            anthropic_url=provider.url,
            openai_url=provider.url,
            state_dir=str(directory),
            worker_url=address,
            tick_seconds=3_600.0,
            drain_seconds=1.0,
        )
        daemon = Daemon(settings, instance="daemon", listen_fd=None, log=logging.getLogger("daemon"))
        running = asyncio.create_task(daemon.run())
        if worker_is_there:
            worker.start()
        try:
            await until(lambda: daemon.phase is Phase.RUNNING or running.done() or not is_to_run)
            yield Stage(worker, daemon, port, spill)
        finally:
            # The last flush waits for its acknowledgements.
            if not worker_is_there:
                worker.start()
            worker.refused = set()
            await worker.acknowledge()
            if daemon.phase in (Phase.STARTING, Phase.RUNNING):
                daemon.stop()
            await running
            await worker.close()
            shutil.rmtree(directory)


class Steps:
    """A streaming provider that sends the next piece when it is told to."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self._told = asyncio.Semaphore(0)
        self.sent = 0

    def go_on(self) -> None:
        self._told.release()

    async def __call__(self, peer: Peer) -> None:
        await peer.request()
        for piece in self._pieces:
            await self._told.acquire()
            await peer.send(piece)
            self.sent += 1


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Reading:
    """Reads all that arrives, so that a test can look what has arrived so far."""

    def __init__(self, client: Peer) -> None:
        self.seen = b""
        self._client = client
        self._task = asyncio.create_task(self._run())

    async def until(self, needle: bytes) -> None:
        await until(lambda: needle in self.seen or self._task.done())
        assert needle in self.seen, self.seen

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while data := await self._client.reader.read(65_536):
            self.seen += data


@asynccontextmanager
async def reading(client: Peer) -> AsyncIterator[Reading]:
    running = Reading(client)
    try:
        yield running
    finally:
        await running.stop()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for an acknowledgement do not end by themselves."""
    monkeypatch.setattr(worker_client, "ACK_WAIT_SECONDS", FOR_EVER_SECONDS)


@pytest.mark.parametrize("status", [b"200 OK", b"429 Too Many Requests"])
@pytest.mark.usefixtures("patient")
def test_first_byte_waits_until_the_begin_is_acknowledged(status: bytes) -> None:
    async def scenario() -> None:
        answer = ANSWER.replace(b"200 OK", status)
        async with a_stage(answering(answer)) as stage, a_client(stage.port) as client, reading(client) as read:
            stage.worker.withheld = {Command.BEGIN}
            await stage.ask(client)
            await until(lambda: bool(stage.worker.of(Command.BEGIN)))
            await stage.overtake()
            assert read.seen == b""
            await stage.worker.acknowledge()
            await read.until(DOCUMENT)
            assert read.seen.startswith(b"HTTP/1.1 " + status)

    run(scenario())


@pytest.mark.usefixtures("patient")
def test_error_of_our_own_waits_for_its_end_too() -> None:
    async def scenario() -> None:
        async def hang_up(peer: Peer) -> None:
            await peer.request()
            peer.close()

        async with a_stage(hang_up) as stage, a_client(stage.port) as client, reading(client) as read:
            stage.worker.withheld = {Command.END}
            await stage.ask(client)
            await until(lambda: bool(stage.worker.of(Command.END)))
            await stage.overtake()
            assert read.seen == b""
            await stage.worker.acknowledge()
            await read.until(b"}}")
            assert read.seen.startswith(b"HTTP/1.1 502")
            assert stage.worker.rows(Command.END)[0].status == "error"

    run(scenario())


@pytest.mark.parametrize("protocol_name", PATHS)
@pytest.mark.usefixtures("patient")
def test_terminal_event_waits_until_the_end_is_acknowledged(protocol_name: str) -> None:
    delta, terminal = DELTAS[protocol_name], TERMINALS[protocol_name]

    async def scenario() -> None:
        provider = Steps(STREAM_HEAD + chunk(delta), chunk(terminal), b"0\r\n\r\n")
        async with a_stage(provider) as stage, a_client(stage.port) as client, reading(client) as read:
            stage.worker.withheld = {Command.END}
            await stage.ask(client, PATHS[protocol_name])
            provider.go_on()
            await read.until(delta)
            assert not stage.worker.of(Command.END)
            provider.go_on()
            await until(lambda: bool(stage.worker.of(Command.END)))
            provider.go_on()
            await stage.overtake()
            assert terminal not in read.seen
            await stage.worker.acknowledge()
            await read.until(b"0\r\n\r\n")
            assert terminal in read.seen
            assert [row.status for row in stage.worker.rows(Command.END)] == ["complete"]

    run(scenario())


@pytest.mark.usefixtures("patient")
def test_last_byte_of_a_document_waits_until_the_end_is_acknowledged() -> None:
    async def scenario() -> None:
        middle = len(DOCUMENT) // 2
        provider = Steps(ANSWER_HEAD + DOCUMENT[:middle], DOCUMENT[middle:])
        async with a_stage(provider) as stage, a_client(stage.port) as client, reading(client) as read:
            stage.worker.withheld = {Command.END}
            await stage.ask(client)
            provider.go_on()
            await read.until(b"\r\n\r\n")
            provider.go_on()
            await until(lambda: bool(stage.worker.of(Command.END)))
            await stage.overtake()
            assert DOCUMENT[:middle] in read.seen, "what is not the end is forwarded as it arrives"
            assert DOCUMENT not in read.seen
            await stage.worker.acknowledge()
            await read.until(DOCUMENT)

    run(scenario())


@pytest.mark.usefixtures("patient")
def test_stream_that_ends_politely_without_its_terminal_event_waits_with_its_last_chunk() -> None:
    async def scenario() -> None:
        provider = Steps(STREAM_HEAD + chunk(DELTAS["messages"]), b"0\r\n\r\n")
        async with a_stage(provider) as stage, a_client(stage.port) as client, reading(client) as read:
            stage.worker.withheld = {Command.END}
            await stage.ask(client)
            provider.go_on()
            await read.until(DELTAS["messages"])
            provider.go_on()
            await until(lambda: bool(stage.worker.of(Command.END)))
            await stage.overtake()
            assert not read.seen.endswith(b"0\r\n\r\n")
            await stage.worker.acknowledge()
            await read.until(b"0\r\n\r\n")
            assert [row.status for row in stage.worker.rows(Command.END)] == ["interrupted"]

    run(scenario())


@pytest.mark.usefixtures("patient")
def test_without_a_worker_nothing_waits() -> None:
    async def scenario() -> None:
        async with a_stage(answering(ANSWER), worker_is_there=False) as stage:
            async with a_client(stage.port) as client, reading(client) as read:
                await stage.ask(client)
                await read.until(DOCUMENT)
                assert derived_id("x-session-id", SESSION).encode() in read.seen
            assert b'"degraded"' in await stage.get("/readyz")
            assert await stage.unacknowledged() == 2
            worker = stage.worker
        assert [len(worker.of(each)) for each in (Command.CLAIM, Command.BEGIN, Command.END)] == [1, 1, 1]

    run(scenario())


def test_worker_that_falls_silent_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_seconds = 1.0

    async def scenario() -> None:
        async with a_stage(answering(ANSWER)) as stage, a_client(stage.port) as client:
            monkeypatch.setattr(worker_client, "ACK_WAIT_SECONDS", wait_seconds)
            stage.worker.is_silent = True
            asked = time.monotonic()
            await stage.ask(client)
            async with reading(client) as read:
                await read.until(DOCUMENT)
            # Claim, begin and end of this turn are all unacknowledged; each would be worth a wait of its own.
            assert wait_seconds <= time.monotonic() - asked < 2 * wait_seconds
            assert b"not heard" in await stage.get("/readyz")
            monkeypatch.setattr(worker_client, "ACK_WAIT_SECONDS", FOR_EVER_SECONDS)
            await stage.ask(client)
            async with reading(client) as read:
                await read.until(DOCUMENT)
            await stage.worker.acknowledge()
            await until(lambda: len(stage.worker.of(Command.END)) == 2)

    run(scenario())


def test_worker_that_answers_late_costs_the_wait_and_is_counted() -> None:
    async def scenario() -> None:
        async with a_stage(answering(ANSWER)) as stage, a_client(stage.port) as client, reading(client) as read:
            assert await stage.unacknowledged() == 0
            stage.worker.withheld = {Command.BEGIN, Command.END}
            await stage.ask(client)
            await read.until(DOCUMENT)
            assert await stage.unacknowledged() == 2
            # It answers pings, so it is soon heard again and worth waiting for.
            await stage.until_ready()
            await stage.worker.acknowledge()
            read.seen = b""
            await stage.ask(client)
            await read.until(DOCUMENT)
            assert await stage.unacknowledged() == 2

    run(scenario())


@pytest.mark.parametrize("command", [Command.CLAIM, Command.BEGIN, Command.END])
@pytest.mark.usefixtures("patient")
def test_refused_write_holds_nobody_up(command: Command) -> None:
    async def scenario() -> None:
        async with a_stage(answering(ANSWER)) as stage, a_client(stage.port) as client, reading(client) as read:
            stage.worker.refused = {command}
            await stage.ask(client)
            await read.until(DOCUMENT)
            stage.worker.refused = set()
            read.seen = b""
            await stage.ask(client)
            await read.until(DOCUMENT)
            assert [row.status for row in stage.worker.rows(Command.END)] == ["complete"] * 2

    run(scenario())


@pytest.mark.usefixtures("patient")
def test_answer_names_the_session_that_the_worker_found() -> None:
    async def scenario() -> None:
        async with a_stage(answering(ANSWER)) as stage, a_client(stage.port) as client, reading(client) as read:
            stage.worker.canonical = {derived_id("x-session-id", SESSION): "known-by-another-name"}
            await stage.ask(client)
            await read.until(DOCUMENT)
            assert b"x-perdure-session: known-by-another-name\r\n" in read.seen
            [begin] = stage.worker.of(Command.BEGIN)
            assert isinstance(begin.body, Booking) and begin.body.naming.session_id == "known-by-another-name"

    run(scenario())


@pytest.mark.usefixtures("patient")
def test_client_that_leaves_before_the_gate_opens_is_booked_as_interrupted() -> None:
    async def scenario() -> None:
        async with a_stage(answering(ANSWER)) as stage:
            stage.worker.withheld = {Command.BEGIN}
            async with a_client(stage.port) as client:
                await stage.ask(client)
                await until(lambda: bool(stage.worker.of(Command.BEGIN)))
            await until(lambda: bool(stage.worker.of(Command.END)))
            [begun], [ended] = stage.worker.rows(Command.BEGIN), stage.worker.rows(Command.END)
            assert (ended.event_id, ended.status, ended.is_settled) == (begun.event_id, "interrupted", True)

    run(scenario())


@pytest.mark.usefixtures("patient")
def test_request_travels_while_its_begin_is_not_acknowledged() -> None:
    async def scenario() -> None:
        asked = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            asked.set()
            await peer.send(ANSWER)

        async with a_stage(script) as stage, a_client(stage.port) as client:
            stage.worker.withheld = {Command.BEGIN}
            await stage.ask(client)
            await asyncio.wait_for(asked.wait(), 10)
            async with reading(client) as read:
                await stage.worker.acknowledge()
                await read.until(DOCUMENT)

    run(scenario())


def test_index_is_asked_for_again_when_the_worker_restarts_before_its_last_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own, "PRELOAD_WAIT_SECONDS", 0.1)
    newest, older = protocol.IndexRequest().before, 7
    first = protocol.IndexPage(
        entries=[protocol.IndexEntry(kind="answer", value="x", session_id="known")], before=older
    )

    async def scenario() -> None:
        async with a_stage(answering(ANSWER), index={newest: first}) as stage:
            await until(lambda: stage.worker.asked_pages == [newest, older])
            assert b"not loaded" in await stage.get("/readyz")
            stage.worker.restart()
            stage.worker.index[older] = protocol.IndexPage(entries=[], before=-1)
            await stage.until_ready()
            assert stage.worker.asked_pages == [newest, older, newest, older]

    run(scenario())


def test_last_write_that_is_refused_while_draining_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "FLUSH_SECONDS", FOR_EVER_SECONDS)

    async def scenario() -> None:
        async with a_stage(answering(ANSWER)) as stage:
            stage.worker.withheld = stage.worker.refused = {Command.END}
            async with a_client(stage.port) as client, reading(client) as read:
                await stage.ask(client)
                await read.until(DOCUMENT)
            stage.daemon.stop()
            await until(lambda: stage.daemon.phase is Phase.FLUSHING)
            assert len(stage.worker.of(Command.END)) == 1
            await stage.worker.acknowledge()
            await until(lambda: stage.daemon.phase is Phase.STOPPED)

    run(scenario())


# -- what daemons left behind ------------------------------------------------------------------------------------------

LEFT = [Write(Command.BEGIN, booking(1, settled=False)), Write(Command.END, booking(1))]


def test_file_that_was_left_behind_is_gone_with_its_last_acknowledgement_and_not_before() -> None:
    async def scenario() -> None:
        async with a_stage(answering(ANSWER), worker_is_there=False, left_behind=LEFT) as stage:
            stage.worker.withheld = {Command.END}
            stage.worker.start()
            await until(lambda: len(stage.worker.writes) == len(LEFT))
            await stage.overtake()
            assert stage.left_behind() == ["00000001.writes"]
            assert [(message.command, message.body) for message in stage.worker.writes] == [
                (write.command, write.body) for write in LEFT
            ]
            await stage.worker.acknowledge()
            await until(lambda: not stage.left_behind())

    run(scenario())


def test_turn_waits_at_start_until_what_was_left_behind_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "PRELOAD_WAIT_SECONDS", FOR_EVER_SECONDS)

    async def scenario() -> None:
        async with a_stage(answering(ANSWER), worker_is_there=False, left_behind=LEFT, is_to_run=False) as stage:
            stage.worker.withheld = {Command.END}
            stage.worker.start()
            await until(lambda: bool(stage.worker.of(Command.END)))
            async with a_client(stage.port) as client, reading(client) as read:
                await stage.ask(client)
                await stage.overtake()
                assert not stage.worker.of(Command.CLAIM)
                await stage.worker.acknowledge()
                await read.until(DOCUMENT)

    run(scenario())


def test_daemon_told_to_stop_while_it_adopts_keeps_no_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "FLUSH_SECONDS", 0.1)

    async def scenario() -> None:
        async with a_stage(answering(ANSWER), worker_is_there=False, left_behind=LEFT) as stage:
            stage.worker.withheld = {Command.END}
            stage.worker.start()
            await until(lambda: bool(stage.worker.of(Command.END)))
            stage.daemon.stop()
            await until(lambda: stage.daemon.phase is Phase.STOPPED)
            assert stage.left_behind() == ["00000001.writes"]

    run(scenario())


def test_file_whose_last_writes_are_acknowledged_in_the_drain_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "FLUSH_SECONDS", FOR_EVER_SECONDS)

    async def scenario() -> None:
        async with a_stage(answering(ANSWER), worker_is_there=False, left_behind=LEFT) as stage:
            stage.worker.withheld = {Command.END}
            stage.worker.start()
            await until(lambda: bool(stage.worker.of(Command.END)))
            stage.daemon.stop()
            await until(lambda: stage.daemon.phase is Phase.FLUSHING)
            await stage.worker.acknowledge()
            await until(lambda: stage.daemon.phase is Phase.STOPPED)
            assert not stage.left_behind()

    run(scenario())
