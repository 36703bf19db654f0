"""The worker's loop: receive what is there, commit it in one transaction, acknowledge.

One rule: one thread, and nothing in it waits for anybody but the disk.  A daemon that does not read loses its
acknowledgements and sends again; a read for people runs in another thread on a connection of its own.

Theory of operation.  There is no timer that collects writes: while one commit is fsynced the next batch gathers in the
socket, so a lone write is committed at once and a crowd shares its fsyncs.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec
import zmq
from msgspec.structs import replace

from worker import protocol
from worker.batch import Outcome, Write
from worker.census import Census
from worker.curve import Door, WorkerKeys, over_tcp
from worker.idle import Place
from worker.logs import fields
from worker.measuring import Files
from worker.metrics import WorkerMetrics, families_of
from worker.protocol import Command, Message, ProtocolError
from worker.records import CostPages, account_of, page_of_sessions
from worker.retention import Schedule
from worker.runtime import PASSING
from worker.standing import Durations, Standing
from worker.store import CHECKPOINT_PAGES, Reader, Store, StoreBusy, StoreRefused, WriteRejected, damaged
from worker.tables import DamagedRow

BATCH_WRITES_MAX: Final = 2_000
"""Writes in one transaction: about 100 ms of work, below any daemon's patience."""
RECEIVE_HWM: Final = 2_000
SEND_HWM: Final = 1_000
"""Messages ZeroMQ queues per peer; beyond it acknowledgements are dropped and asked for again."""
IDLE_SECONDS: Final = 0.5
"""How long the loop sleeps when nothing happens."""
REST_SECONDS: Final = 1.0
"""How often, at most, it shows that it is alive, checkpoints, and looks for silent peers."""
RETRY_SECONDS: Final = (0.1, 5.0)
"""First and longest pause before a refused transaction is tried again."""
QUERIES_MAX: Final = 32
"""Reads waiting for the reading thread; further ones are answered empty."""
ANSWER_BYTES_MAX: Final = protocol.MESSAGE_BYTES_MAX - 8_192
"""The document in an answer; the rest is room for what surrounds it."""
SHOWN_ROWS: Final = 50
"""Newest ledger rows in the account of one session."""


class AddressRefused(Exception):
    """The address can not be bound; the message says why.  `is_passing`: it is taken now, or its disk is full."""

    def __init__(self, message: str, *, is_passing: bool) -> None:
        super().__init__(message)
        self.is_passing = is_passing


class Phase(Enum):
    """What the loop is doing, as one sentence."""

    IDLE = "nothing has arrived, and when something does…"
    GATHERING = "…take everything that is there, up to a bound, and…"
    COMMITTING = "…make it durable in one transaction, and only then…"
    REPLYING = "…tell every sender, and look again"


class Server:
    """Owns the ROUTER socket.  `run` returns after `stop`; raises StoreRefused when the database is damaged, and
    AddressRefused."""

    def __init__(
        self,
        store: Store,
        address: str,
        *,
        keys: WorkerKeys | None = None,
        version: str,
        boot: str,
        log: logging.Logger,
        beat: Callable[[], None],
        bound: Callable[[], None] = lambda: None,
        ledger_days: int = 0,
        session_days: int = 0,
    ) -> None:
        """`bound` is called once the address is listened on."""
        self.phase = Phase.IDLE
        self._store = store
        self._address = address
        self._log = log
        self._beat = beat
        self._bound = bound
        self._welcome = protocol.Welcome(
            boot=boot,
            incarnation=store.incarnation,
            hash_key=store.hash_key,
            version=version,
            schema=store.schema,
        )
        self._changes = store.changes
        self._warming = store.warming
        self._retention = Schedule(ledger_days, session_days, wall=_wall(), monotonic=time.monotonic())
        self._place = Place()
        self._census = Census()
        self._metrics = WorkerMetrics(version=version, schema=store.schema, started_at=_wall() / 1000)
        self._files = Files(store.path)
        self._durations = Durations()
        self._started_at = _wall()
        self._kept: list[Write] = []
        self._stored = 0
        self._trouble = ""
        self._retry_at = 0.0
        self._rest_at = 0.0
        self._pause_seconds = RETRY_SECONDS[0]
        self._suspects: set[str] = set()
        self._stopping = False
        self._asked: deque[Callable[[], None]] = deque()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._queries = Queries(store.path, self._wake, log)
        self._context = zmq.Context()
        self._door = Door(self._context, keys, self._metrics.strangers.inc, log) if keys else None
        self._socket = _router(self._context, self._door)

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        if self._door is not None:
            poller.register(self._door.socket, zmq.POLLIN)
        try:
            self._bind()
            self._bound()
            while not self._stopping:
                self.phase = Phase.IDLE
                poller.poll(self._patience_milliseconds())
                self._drain_wake()
                while self._asked:
                    self._asked.popleft()()
                if self._door is not None:
                    self._door.answer()
                self._gather()
                self._commit()
                self._send_answers()
                self._rest()
                self._roll_up()
            self._gather()
            self._commit()
        finally:
            self._close()

    def stop(self) -> None:
        """Make `run` return after one last batch.  Safe in a signal handler."""
        self._stopping = True
        self._wake()

    def status(self) -> str:
        """What it is doing, in one line for people."""
        peers = len(self._census.peers)
        held = f"{peers} daemon{'' if peers == 1 else 's'}, {self._stored:,} writes stored, {len(self._kept):,} waiting"
        return f"not committing ({self._trouble}): {held}" if self._retry_at else f"ready: {held}"

    def soon(self, act: Callable[[], None]) -> None:
        """Have something done between two batches.  Safe in a signal handler."""
        self._asked.append(act)
        self._wake()

    def keep_ledger(self, days: int, session_days: int) -> None:
        """Other limits for the age of rows and of sessions."""
        self._retention.keep(days, session_days, monotonic=time.monotonic())
        self._place = Place()

    def _bind(self) -> None:
        try:
            self._socket.bind(self._address)
        except zmq.ZMQError as error:
            raise AddressRefused(
                f"{self._address}: {error.strerror}", is_passing=error.errno in (errno.EADDRINUSE, *PASSING)
            ) from error

    # -- gathering -------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        self.phase = Phase.GATHERING
        for _ in range(BATCH_WRITES_MAX):
            try:
                sender, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            # Latin-1 keeps every byte: whatever a peer calls itself, it is answered, and not taken for another.
            self._receive(sender.decode("latin-1"), frames)

    def _receive(self, boot: str, frames: list[bytes]) -> None:
        now = time.monotonic()
        try:
            message = protocol.decode(frames, protocol.FROM_DAEMON)
        except ProtocolError as error:
            self._refuse(boot, error)
            return
        if isinstance(message.body, protocol.Hello):
            if self._census.greet(boot, message.body, now):
                self._metrics.boots.inc()
            self._send(boot, Command.WELCOME, replace(self._welcome, changes=self._changes, warming=self._warming))
        elif not self._census.heard(boot, now):
            self._send(boot, Command.WHO, protocol.WhoAreYou(), message.sequence)
        else:
            self._take(boot, message)

    def _take(self, boot: str, message: Message) -> None:
        match message.body:
            case protocol.Claim() | protocol.Booking() | protocol.SnapshotWrite() | protocol.Amend():
                # Beyond the bound a write is forgotten: its sender keeps it and sends it again.
                if len(self._kept) < BATCH_WRITES_MAX:
                    self._kept.append(Write(boot, message.sequence, message.body))
            case protocol.Ping(metrics=metrics, state=state, latches=latches):
                self._census.peers[boot].state = state
                self._census.peers[boot].latches = latches
                if metrics is not None:
                    self._census.peers[boot].metrics = metrics
                self._send(boot, Command.PONG, self._pong())
            case protocol.IndexRequest(before=before, limit=limit):
                self._send_keys(boot, before, min(limit, protocol.KEYS_PER_PAGE_MAX))
            case protocol.Query(what="metrics"):
                self._answer(boot, message.sequence, self._all_metrics())
            case protocol.Query(what="status"):
                standing = msgspec.json.encode(self._standing())
                self._answer(boot, message.sequence, protocol.Answer(body=msgspec.Raw(standing)))
            case protocol.Query(what="warm"):
                self._answer(boot, message.sequence, self._switch())
            case protocol.Query() as query:
                if not self._queries.ask(boot, message.sequence, query):
                    self._answer(boot, message.sequence, _NO_ANSWER)
            case protocol.Bye():
                self._census.leave(boot)

    def _refuse(self, boot: str, error: ProtocolError) -> None:
        self._metrics.refused.inc()
        if boot not in self._suspects and len(self._suspects) < SUSPECTS_MAX:
            self._suspects.add(boot)
            self._log.warning("refused a frame of %r: %s (further ones of this peer are only counted)", boot, error)
        self._send(boot, Command.REFUSED, protocol.Refusal(reason=error.reason), error.sequence)

    # -- committing ------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        if not self._kept or time.monotonic() < self._retry_at:
            return
        self.phase = Phase.COMMITTING
        self._beat()
        started = time.monotonic()
        try:
            outcome = self._committed(self._kept, self._census.live(started))
        except StoreBusy as error:
            self._postpone(error)
            return
        seconds = time.monotonic() - started
        self._metrics.commit_seconds.observe(seconds)
        self._durations.add(seconds)
        self._metrics.writes.inc(len(self._kept))
        self._metrics.batch_writes.observe(len(self._kept))
        self._stored += len(self._kept)
        self._kept = []
        self._recovered()
        self.phase = Phase.REPLYING
        self._tell(outcome)
        if self._store.wal_pages() >= CHECKPOINT_PAGES:
            self._checkpoint()

    def _committed(self, writes: list[Write], live: frozenset[str]) -> Outcome:
        """Commit them; one that SQLite does not take is found by halving and refused, so that it never comes again."""
        try:
            return self._store.commit(writes, live=live, now=_wall())
        except WriteRejected as error:
            if len(writes) == 1:
                self._refuse(writes[0].boot, ProtocolError(str(error), writes[0].sequence))
                return Outcome([], [])
        middle = len(writes) // 2
        first, second = self._committed(writes[:middle], live), self._committed(writes[middle:], live)
        return Outcome(
            [*first.replies, *second.replies],
            [*first.lost, *second.lost],
            max(first.changes, second.changes),
            max(first.warming, second.warming),
        )

    def _postpone(self, error: StoreBusy) -> None:
        """Keep the batch, acknowledge nothing, try again after a pause: nothing is lost while the disk is full."""
        self._metrics.failed_commits.inc()
        self._trouble = str(error)
        if not self._retry_at:
            self._log.error("the store can not be written (%s); writes are kept and tried again", error)
        self._retry_at = time.monotonic() + self._pause_seconds
        self._pause_seconds = min(self._pause_seconds * 2, RETRY_SECONDS[1])

    def _recovered(self) -> None:
        if self._retry_at:
            self._log.warning("the store can be written again")
        self._retry_at = 0.0
        self._pause_seconds = RETRY_SECONDS[0]

    # -- replying --------------------------------------------------------------------------------------------------

    def _tell(self, outcome: Outcome) -> None:
        replies: defaultdict[str, list[protocol.Reply]] = defaultdict(list)
        for boot, reply in outcome.replies:
            replies[boot].append(reply)
        for boot, own in replies.items():
            self._acknowledge(boot, own)
        # After the acknowledgements: who claimed in this batch hears first that it is the owner, then that no more.
        for boot, lost in outcome.lost:
            self._send(boot, Command.LOST, lost)
        if outcome.changes > self._changes or outcome.warming > self._warming:
            for boot, reply in outcome.replies:
                self._log_change(boot, reply.amended)
            # After the acknowledgements, which may still hold a name as it was.
            self._changes = max(self._changes, outcome.changes)
            self._warming = max(self._warming, outcome.warming)
            for boot in self._census.peers:
                self._send(boot, Command.PONG, self._pong())

    def _log_change(self, boot: str, done: protocol.Amended | None) -> None:
        """What an operator did, also where nobody looks into `session log`."""
        if done is not None and done.change > 0 and not done.refusal:
            ids = fields(session=done.session_id or None, other=done.other_id or None, rows=done.moved, by=boot)
            self._log.info("change %d: %s", done.change, done.verb, extra=ids)

    def _acknowledge(self, boot: str, replies: list[protocol.Reply]) -> None:
        """One ACK for all, in order, or several: a frame beyond the limit costs the daemon its connection."""
        frames = protocol.encode(Command.ACK, protocol.Acks(replies=replies))
        middle = len(replies) // 2
        if len(frames[-1]) <= protocol.MESSAGE_BYTES_MAX:
            self._send_frames(boot, frames)
        elif middle:
            self._acknowledge(boot, replies[:middle])
            self._acknowledge(boot, replies[middle:])
        else:
            rows = replies[0].rows
            self._acknowledge(boot, [replace(replies[0], rows=rows[: len(rows) // 2], more=True)])

    def _pong(self) -> protocol.Pong:
        return protocol.Pong(committing=not self._retry_at, changes=self._changes, warming=self._warming)

    def _send_keys(self, boot: str, before: int, limit: int) -> None:
        try:
            page = self._store.keys_before(before, limit)
        except StoreBusy as error:
            # An index is a hint: a daemon without this page asks the store about each key instead.
            self._log.warning("the index can not be read now (%s)", error)
            page = _NO_KEYS
        frames = protocol.encode(Command.KEYS, page)
        if len(frames[-1]) > protocol.MESSAGE_BYTES_MAX:
            self._send_keys(boot, before, limit // 2)
        else:
            self._send_frames(boot, frames)

    def _answer(self, boot: str, sequence: int, answer: protocol.Answer) -> None:
        fits = len(bytes(answer.body)) <= ANSWER_BYTES_MAX
        self._send(boot, Command.ANSWER, answer if fits else _NO_ANSWER, sequence)

    def _send(self, boot: str, command: Command, body: protocol.Body, sequence: int = 0) -> None:
        self._send_frames(boot, protocol.encode(command, body, sequence))

    def _send_frames(self, boot: str, frames: list[bytes]) -> None:
        try:
            self._socket.send_multipart([boot.encode("latin-1"), *frames], zmq.NOBLOCK)
        except zmq.Again:
            return  # Its queue is full: it does not read.  It will ask again.
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            # It is gone.  What was to be acknowledged is committed; its next boot finds it.

    def _send_answers(self) -> None:
        for boot, sequence, answer in self._queries.done():
            self._answer(boot, sequence, answer)

    def _all_metrics(self) -> protocol.Answer:
        self._metrics.wal_bytes.set(self._store.wal_bytes())
        self._metrics.committing.set(not self._retry_at)
        self._metrics.waiting.set(len(self._kept))
        self._files.measure(self._metrics)
        families = self._census.metrics(families_of(self._metrics.registry), time.monotonic())
        return protocol.Answer(body=msgspec.Raw(msgspec.json.encode(families)))

    def _switch(self) -> protocol.Answer:
        try:
            switch = replace(self._store.switch(), latches=self._census.latches())
        except StoreBusy as error:
            self._log.warning("the switch for keep-alive can not be read now (%s)", error)
            return _NO_ANSWER
        return protocol.Answer(body=msgspec.Raw(msgspec.json.encode(switch)))

    def _standing(self) -> Standing:
        return Standing(
            pid=os.getpid(),
            version=self._welcome.version,
            started_at=self._started_at,
            schema=self._welcome.schema,
            is_committing=not self._retry_at,
            waiting_writes=len(self._kept),
            wal_bytes=self._store.wal_bytes(),
            commits=self._durations.commits(),
            daemons=self._census.standing(time.monotonic()),
        )

    # -- the loop's own --------------------------------------------------------------------------------------------

    def _patience_milliseconds(self) -> int:
        if self._retry_at:
            return max(1, int(1000 * min(IDLE_SECONDS, self._retry_at - time.monotonic())))
        return int(1000 * IDLE_SECONDS)

    def _rest(self) -> None:
        """What can wait until nobody does, but not for ever: with many daemons there is always a ping."""
        now = time.monotonic()
        if now < self._rest_at:
            return
        self._rest_at = now + REST_SECONDS
        self._beat()
        self._census.forget_silent(now)
        if self._store.wal_pages():
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Two fsyncs, as a commit may be: on a sick disk these are seconds, and more of them in one silence would look
        like a hang."""
        self._beat()
        self._store.checkpoint()
        self._beat()

    def _roll_up(self) -> None:
        """Old rows go, then idle sessions, a slice at a time, and only while nobody waits."""
        started = time.monotonic()
        if not self._retention.is_due(started) or self._kept or self._socket.poll(0):
            return
        before = self._retention.before(wall=_wall(), monotonic=started)
        self._beat()
        remove = self._forget_idle if self._retention.is_over_sessions else self._roll_up_rows
        try:
            remove(started, before, frozenset(self._census.peers))
        except StoreBusy:
            self._retention.failed(started)

    def _roll_up_rows(self, started: float, before: int, live: frozenset[str]) -> None:
        done = self._store.roll_up(self._retention.after, before=before, live=live)
        ended = time.monotonic()
        rows = self._retention.did(done, seconds=ended - started, monotonic=ended)
        if rows:
            self._log.info("%d ledger rows were older than is kept; their sums stay", rows)

    def _forget_idle(self, started: float, before: int, live: frozenset[str]) -> None:
        done = self._store.forget_idle(self._place, before=before, live=live)
        ended = time.monotonic()
        self._place = done.place
        for boot, lost in done.lost:
            self._send(boot, Command.LOST, lost)
        sessions = self._retention.forgot(done.sessions, is_last=done.is_last, seconds=ended - started, monotonic=ended)
        if sessions:
            self._log.info("%d sessions were idle for longer than is kept; the sums of their days stay", sessions)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            return  # The pipe is full: the loop is awake.

    def _drain_wake(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return

    def _close(self) -> None:
        self._queries.close()
        self._socket.close(linger=0)
        if self._door is not None:
            self._door.close()
        self._context.term()
        # The pipe stays open: a second signal may come while the store is being closed.


class Queries:
    """Reads for people, one at a time in a thread and on a read-only connection of their own."""

    def __init__(self, path: Path, wake: Callable[[], None], log: logging.Logger) -> None:
        self._path = path
        self._wake = wake
        self._log = log
        self._has_complained = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="queries")
        self._reader: Reader | None = None
        self._costs = CostPages()
        self._waiting = 0
        self._done: deque[tuple[str, int, protocol.Answer]] = deque()

    def ask(self, boot: str, sequence: int, query: protocol.Query) -> bool:
        """Take a query; False when too many wait."""
        if self._waiting >= QUERIES_MAX:
            return False
        self._waiting += 1
        self._pool.submit(self._work, boot, sequence, query)
        return True

    def done(self) -> list[tuple[str, int, protocol.Answer]]:
        found = [self._done.popleft() for _ in range(len(self._done))]
        self._waiting -= len(found)
        return found

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._reader is not None:
            self._reader.close()

    def _work(self, boot: str, sequence: int, query: protocol.Query) -> None:
        answer = _NO_ANSWER
        try:
            answer = self._read(query)
        except StoreBusy:
            pass  # Said as "not answered".
        except (StoreRefused, DamagedRow) as error:
            if not self._has_complained:
                self._has_complained = True
                said = error if isinstance(error, StoreRefused) else damaged(self._path, error)
                self._log.error("what was asked for can not be read: %s", said)
        finally:
            self._done.append((boot, sequence, answer))
            self._wake()

    def _read(self, query: protocol.Query) -> protocol.Answer:
        if self._reader is None:
            self._reader = Reader(self._path)
        if query.what == "session":
            account = account_of(self._reader.execute, query.session_id, SHOWN_ROWS)
            return protocol.Answer(body=msgspec.Raw(msgspec.json.encode(account)))
        if query.what == "costs":
            page = self._costs.page(self._reader.execute, query.since, query.after)
            if page is None:
                return _NO_ANSWER
            return protocol.Answer(body=msgspec.Raw(msgspec.json.encode(page[0])), after=page[1])
        return _page(self._reader, query.after, min(query.limit, SESSIONS_PER_PAGE_MAX))


def _page(reader: Reader, after: str, limit: int) -> protocol.Answer:
    """As many sessions as fit into one answer, up to `limit`."""
    page = page_of_sessions(reader.execute, after, limit)
    body = msgspec.json.encode(page.records)
    if len(body) > ANSWER_BYTES_MAX and limit > 1:
        return _page(reader, after, limit // 2)
    if len(body) > ANSWER_BYTES_MAX:
        # One that is too large alone is shown as of its snapshot, rather than hiding all that come after it.
        body = msgspec.json.encode([replace(record, rows=[]) for record in page.records])
    return protocol.Answer(body=msgspec.Raw(body), after=page.after)


def _wall() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def _router(context: zmq.Context[zmq.Socket[bytes]], door: Door | None) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    if door is not None:
        door.guard(socket)
        over_tcp(socket)
    # An acknowledgement that can not be routed raises instead of vanishing; with NOBLOCK one stopped daemon can not
    # hang the loop, which a blocking send of a mandatory ROUTER at its high-water mark would.
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, protocol.MESSAGE_BYTES_MAX)
    socket.setsockopt(zmq.RCVHWM, RECEIVE_HWM)
    socket.setsockopt(zmq.SNDHWM, SEND_HWM)
    socket.setsockopt(zmq.LINGER, 0)
    return socket


SUSPECTS_MAX: Final = 1_000
"""Peers whose refused frames were logged; peers beyond are only counted."""
SESSIONS_PER_PAGE_MAX: Final = 500
_NO_KEYS: Final = protocol.IndexPage(entries=[], before=-1)
_NO_ANSWER: Final = protocol.Answer(body=msgspec.Raw(b"null"), answered=False)
