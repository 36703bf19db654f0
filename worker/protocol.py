"""The contract between request daemons and the persistence worker: words, frames, limits.

One rule: everything that crosses the ZeroMQ socket is defined here and nowhere else, and this file touches nothing
but values.  `docs/PROTOCOL.md` states the same in prose; a test compares the two.

Theory of operation.  A message is four frames: protocol, command, sequence, body.  The body is one JSON object whose
shape the command names.  Unknown fields are ignored and unknown commands are refused, so that a newer peer of the same
major version can speak to an older one.

A daemon keeps every *write* (CLAIM, BEGIN, END, SNAPSHOT, and AMEND of the command line) in its outbox until an ACK
names its sequence; an ACK means fsynced.  Writes are self-sufficient: each carries all that is needed to apply it,
whatever was lost before it, and applying one twice or late changes nothing.  That is why no table of seen sequences
exists: the sequence only matches an acknowledgement to a write of this boot of this daemon.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

PROTOCOL: Final = b"perdure/1"

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest frame either side accepts (ZMQ_MAXMSGSIZE).  A booking is about 2 KB, a full page of rows about 400 KB."""

FRAMES: Final = 4
SEQUENCE_BYTES: Final = 8
ROWS_PER_REPLY_MAX: Final = 500
"""Ledger rows in one reply; `more` says that there are others after the last one."""
KEYS_PER_PAGE_MAX: Final = 5_000
"""Identity keys in one KEYS page of the preload (about 100 bytes each)."""
CONTINUES_MAX: Final = 256
"""Prefixes of a conversation's chain offered for recognition, newest first.  A turn adds two to a few dozen
messages; a client that was away from the gateway for more than this many is taken for a new conversation."""

SKETCH_HASHES_MAX: Final = 32
"""Hashes in a sketch: with so many an estimated half is between 0.3 and 0.7 of the truth, nineteen times of twenty."""
SAID_MAX: Final = 4
"""Answers offered for recognition beside a hint: what edits a history keeps its end."""
HINTS_MAX: Final = 8
"""Hints of one request; real ones carry two or three."""

HAND_SET_MAX: Final = 1_000
"""Sessions that an operator may set by hand to be kept warm or not: told to every daemon whole, about 100 KB."""
LATCHES_MAX: Final = 32
"""Of one daemon, of those that only its memory holds: an installation has a handful of credentials and upstreams."""
ADOPTIONS_MAX: Final = 25
"""Sessions adopted by one write: about 15 ms of the worker's loop."""
SPLIT_EVENTS_MAX: Final = 1_000
"""Rows named one by one in a split: more than a command line holds."""

WARMUP_CHARACTERS_MAX: Final = 65_536
COUNT_MAX: Final = 2**40
NANOUSD_MAX: Final = 2**50
Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
"""Tokens, positions, generations: a bound far above any real one, low enough that sums never leave 64 bits."""
Money = Annotated[int, Meta(ge=0, le=NANOUSD_MAX)]
"""Nano-dollars of one row, at most about 1.1 million dollars."""
Stored = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""What fits SQLite's integers, whatever it means."""
Text = Annotated[str, Meta(max_length=512)]
Id = Annotated[str, Meta(min_length=1, max_length=512)]
SequenceNumber = Annotated[int, Meta(ge=0)]
"""Whatever the frame's eight octets can hold: it is its sender's own."""
MILLISECONDS_MAX: Final = 2**53
Milliseconds = Annotated[int, Meta(ge=0, le=MILLISECONDS_MAX)]
"""Unix time."""
PageSize = Annotated[int, Meta(ge=1, le=2**20)]
"""What a peer asks for at once; each answer has a bound of its own."""


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of one answer, in four disjoint kinds for every provider; writes are split by the TTL they pay for."""

    input_tokens: Count = 0
    cache_read_tokens: Count = 0
    cache_write_5m_tokens: Count = 0
    cache_write_1h_tokens: Count = 0
    output_tokens: Count = 0

    @property
    def cache_write_tokens(self) -> int:
        return self.cache_write_5m_tokens + self.cache_write_1h_tokens

    @property
    def prompt_tokens(self) -> int:
        """The whole prompt, cached or not."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens


Confidence = Literal["", "certain", "proven", "likely"]
"""certain: the client or the operator said so; proven: by content; likely: concluded from what clients usually do."""


class Why(Struct, frozen=True, kw_only=True):
    """Why a request was given its session."""

    reason: Text = ""
    """In words."""
    origin: Text = ""
    """What says so: a header or body field by name, `content`, `operator`."""
    confidence: Confidence = ""


Kind = Literal["turn", "side", "warmup"]
Status = Literal["interrupted", "error", "complete"]
Protocol = Literal["messages", "chat", "responses"]


class Row(Struct, frozen=True, kw_only=True):
    """One ledger row: a request, its fate, and all that an observation of it needs.

    Born `interrupted` with `ended_at` 0 (open); settled once, by giving it an `ended_at`.  `usage` None means that the
    provider never told; `cost_nanousd` None that no price is known.  `position` is the row's place among the settled
    rows of its session, given by the worker at commit (0 while open): it is the order in which states are folded.
    """

    event_id: Annotated[str, Meta(min_length=8, max_length=64)]
    session_id: Id
    kind: Kind
    status: Status
    started_at: Milliseconds
    ended_at: Milliseconds = 0
    provider: Text
    protocol: Protocol
    model: Text
    client: Text = ""
    account: Text = ""
    boot: Text = ""
    """The daemon that sent the request: an open row of a boot that is gone is interrupted for good."""
    why: Why = Why()
    http_status: Count = 0
    usage: Usage | None = None
    cost_nanousd: Money | None = None
    price_version: Text = ""
    message_count: Count = 0
    cap_ceiling: Count = 0
    """Tokens that one cache bust may cost (see `gradient`); 0 where the model's price is unknown."""
    layer: Annotated[int, Meta(ge=0, le=4)] = 0
    user_turn: bool = True
    """The newest message is the user's own, not a tool's result: only those make idle gaps."""
    text_only: bool = True
    """The answer called no tool."""
    position: Count = 0
    window_started_at: Milliseconds = 0
    """Of a `warmup`: when the request began that last touched the cache.  No session has two of one window; 0 where it
    is of no matter any more, as in a row that an operator moved to another session."""

    @property
    def is_settled(self) -> bool:
        return self.ended_at > 0


KeyKind = Literal["header", "body", "answer", "request", "retry", "history"]


class Key(Struct, frozen=True, kw_only=True):
    """(kind, name, value) that names a session.

    `header` and `body`: a session id minted by the client.  The other three are keyed hashes over a conversation's
    leading messages: `answer` up to and with the last answer, `request` up to the last request whose answer is not
    known, `retry` the last request itself; `history` is an `answer` of a session that its client names, which proves
    forks but names nothing.
    """

    kind: KeyKind
    name: Text
    value: Text


class Shape(Struct, frozen=True, kw_only=True):
    """What a request is set up with, as keyed hashes: tells a session's turns from what else runs under its id.

    `system` and `tools` are sketches: the smallest hashes of the lines of the system prompt and of the tools' names,
    with spaces between them (as a list they would take ten times the memory of an outbox).
    """

    system: Text = ""
    tools: Text = ""
    opening: Text = ""
    """Of the conversation's first message."""
    is_confirmed: bool = False
    """Of a session's: a later turn went on under it.  Until then it may be that of a call that came first."""


HintKind = Literal["session", "header", "field"]


class Hint(Struct, frozen=True, array_like=True):
    """A header or body field that may belong to one conversation, or to many; `value` is a keyed hash with the account.

    `session`: a header whose name speaks of a session; such a one may come to name sessions, once it is learned.
    """

    kind: HintKind
    name: Text
    value: Text


class Naming(Struct, frozen=True, kw_only=True):
    """What a request knows about its session: enough for the worker to find or create it, and to learn its keys."""

    session_id: Id
    """The proposed id, or the worker's own answer once `confirmed`."""
    confirmed: bool
    continues: Annotated[list[Text], Meta(max_length=CONTINUES_MAX)] = []
    """Chain values of the proper prefixes of this conversation, longest first: one that a session holds as `answer`
    or `request` key proves that the request continues it.  Where the client named the session they prove no more than
    what the request is to it, and what it was forked from."""
    retry: Text = ""
    """The `retry` key this request would match if it were sent before."""
    keys: Annotated[list[Key], Meta(max_length=16)] = []
    """To be recorded with the session.  Chain keys replace the session's older ones."""
    chain_length: Count = 0
    """Messages under the chain keys; a shorter chain never replaces a longer one's keys.  0: no matter."""
    header_name: Text = ""
    header_session_id: Text = ""
    client: Text = ""
    account: Text = ""
    parent: Text = ""
    """The session that started this one as its sub-agent."""
    drawn_id: Text = ""
    """A turn of an unnamed session that its owner took for the next one without asking: the id of a session of its own,
    should another daemon have gone on from the same answer first."""
    is_opening: bool = False
    """No answer is in the request."""
    is_spoken: bool = True
    """The newest message is the user's own, not a tool's result."""
    shape: Shape | None = None
    """Where the request might be beside the named session's conversation."""
    is_judged: bool = False
    """Whether it is was decided with the store's knowledge; else the store decides when it enters the row."""
    hints: Annotated[list[Hint], Meta(max_length=HINTS_MAX)] = []
    said: Annotated[list[Text], Meta(max_length=SAID_MAX)] = []
    """The newest answers in the request, each by itself: a learned header names only a session that gave one."""
    why: Why = Why()
    """Why the daemon proposes this session."""

    @property
    def is_named(self) -> bool:
        """By its client: nothing else can name it then."""
        return bool(self.header_name)


class Snapshot(Struct, frozen=True, kw_only=True):
    """The persisted image of a session's gradient and warming state, one field per column of `session_state`.

    `position` says up to which ledger row it is folded; the checksums are the daemon's, one per group that is
    restored together or not at all.  Values are as lenient as a damaged row may be: `daemon.state` judges them.
    """

    generation: Count
    position: Count
    dynamic_context_cap: Stored | None
    bust_rate_ema: float | None
    inter_bust_interval_ema: float | None
    last_layer: Stored | None
    last_known_input: Stored | None
    last_turn_at: Stored | None
    last_bust_at: Stored | None
    gradient_checksum: Stored
    resolved_conversation_ttl: str | None
    warmup_state: Annotated[str, Meta(max_length=WARMUP_CHARACTERS_MAX)] | None
    warmup_checksum: Stored


# -- bodies: daemon to worker ------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, kw_only=True):
    boot: Text
    instance: Text
    version: Text
    pid: Count
    started_at: Milliseconds = 0
    is_daemon: bool = True
    """False: the command line, which comes with one question and goes."""


MetricType = Literal["counter", "histogram", "gauge"]


class Sample(Struct, frozen=True, array_like=True):
    name: Text
    labels: Annotated[list[tuple[Text, Text]], Meta(max_length=8)]
    value: float


class Family(Struct, frozen=True, array_like=True):
    """One metric of one process, in Prometheus' own terms."""

    name: Id
    type: MetricType
    help: Text
    samples: list[Sample]


class Latch(Struct, frozen=True, array_like=True):
    """What keeps caches from being kept warm, beyond one session; known to one daemon."""

    scope: Literal["credential", "upstream"]
    name: Text
    """The account's id, or the provider's name."""
    reason: Text
    until: Milliseconds


class Ping(Struct, frozen=True, kw_only=True):
    metrics: list[Family] | None = None
    """The daemon's own metrics, counted since its start: the worker adds those of all daemons up."""
    state: Text = ""
    """Where its life stands, for people."""
    latches: Annotated[list[Latch], Meta(max_length=LATCHES_MAX)] = []


class IndexRequest(Struct, frozen=True, kw_only=True):
    before: Stored = 2**62
    """Row id to go on below: the newest keys come first."""
    limit: PageSize = KEYS_PER_PAGE_MAX


class Claim(Struct, frozen=True, kw_only=True):
    """Resolve the naming and make the sender the session's owner.  `after` −1: from the snapshot on, else rows
    after that position (a daemon whose snapshot was damaged asks from 0)."""

    naming: Naming
    after: Annotated[int, Meta(ge=-1, le=2**40)] = -1


class Booking(Struct, frozen=True, kw_only=True):
    """The body of BEGIN (row open) and of END (row settled)."""

    naming: Naming
    row: Row
    epoch: Count
    seen: Count
    """Position up to which the sender has folded this session's rows."""


class SnapshotWrite(Struct, frozen=True, kw_only=True):
    session_id: Id
    epoch: Count
    snapshot: Snapshot


class Merge(Struct, frozen=True, kw_only=True, tag_field="verb", tag="merge"):
    """One session becomes part of another; its id goes on as an alias."""

    session_id: Id
    into: Id


class Split(Struct, frozen=True, kw_only=True, tag_field="verb", tag="split"):
    """Rows of a session become one of their own: a row and all that began after it, or only those that are named."""

    session_id: Id
    drawn_id: Id
    """The new session's, if the sender has its way."""
    first_event: Text = ""
    events: Annotated[list[Text], Meta(max_length=SPLIT_EVENTS_MAX)] = []


class Undo(Struct, frozen=True, kw_only=True, tag_field="verb", tag="undo"):
    """An earlier change is taken back."""

    change: Count


class Forget(Struct, frozen=True, kw_only=True, tag_field="verb", tag="forget"):
    """Whatever names a session or tells of it is erased; its rows and sums stay, under an id that nothing leads to."""

    session_id: Id
    drawn_id: Id
    """That id."""
    tree: bool = False
    """With its sub-agents, and theirs; else one that has any is not forgotten."""


class Adoption(Struct, frozen=True, kw_only=True):
    """A session of another gateway, in the terms of this one."""

    foreign_id: Id
    """Its id there, which becomes an alias."""
    session_id: Id
    """The id that its client's next request will propose here; else one that is derived from the foreign one."""
    keys: Annotated[list[Key], Meta(max_length=4)] = []
    header_name: Text = ""
    header_session_id: Text = ""
    fingerprint: Text = ""
    """The other gateway's own: it is shown, and nothing is recognised by it."""
    parent: Text = ""
    client: Text = ""
    provider: Text = ""
    model: Text = ""
    message_count: Count = 0
    first_seen_at: Milliseconds
    last_seen_at: Milliseconds
    """The day on which its figures are booked."""
    turns: Count = 0
    input_tokens: Count = 0
    cache_read_tokens: Count = 0
    cache_write_tokens: Count = 0
    output_tokens: Count = 0
    cost_nanousd: Money = 0
    snapshot: Snapshot | None = None
    """Of position 0: what turns here teach comes after it."""


class Adopt(Struct, frozen=True, kw_only=True, tag_field="verb", tag="adopt"):
    """Sessions of another gateway become known here, with what they cost there as an opening balance."""

    source: Literal["lore"]
    sessions: Annotated[list[Adoption], Meta(max_length=ADOPTIONS_MAX)]


WarmTo = Literal["on", "off", "reset"]


class Warm(Struct, frozen=True, kw_only=True, tag_field="verb", tag="warm"):
    """Prompt caches are kept warm from now on, or not, or what keeps them from it is over; all or one session's."""

    to: WarmTo
    session_id: Text = ""
    """Empty: of all."""


Act = Merge | Split | Undo | Forget | Adopt | Warm


class Amend(Struct, frozen=True, kw_only=True):
    """An operator corrects which session requests were given."""

    request: Id
    """Drawn by the sender: the same request again is the same change."""
    act: Act


class Query(Struct, frozen=True, kw_only=True):
    """A read for `/api` and `/metrics`, answered off the write loop."""

    what: Literal["sessions", "session", "metrics", "costs", "status", "warm"]
    session_id: Text = ""
    after: Text = ""
    limit: PageSize = 200
    since: Text = ""
    """Of costs: the first day that counts, as YYYY-MM-DD; empty: all."""


class Bye(Struct, frozen=True, kw_only=True):
    pass


# -- bodies: worker to daemon ------------------------------------------------------------------------------------


class Welcome(Struct, frozen=True, kw_only=True):
    boot: Text
    incarnation: Text
    """Random id of this store, made anew at creation and at restore."""
    hash_key: Annotated[str, Meta(min_length=64, max_length=64)]
    """Hexadecimal key for keyed hashes, made with the database: chains and accounts are equal on every daemon."""
    version: Text
    schema: Count
    changes: Count = 0
    warming: Count = 0


class Pong(Struct, frozen=True, kw_only=True):
    """Also sent to everybody, unasked, when an operator has changed something."""

    committing: bool = True
    """False while the store refuses writes (disk full, read-only): acknowledgements are not worth waiting for."""
    changes: Count = 0
    """Number of the newest change by an operator: with another one than before, what is remembered of which names mean
    which sessions may be wrong."""
    warming: Count = 0
    """Number of the newest change of the switch: with another one than before it is asked for (QUERY `warm`)."""


HandSetting = Literal["", "on", "off", "auto"]
"""What an operator said of one session; auto: nothing, whatever its state says."""


class HandSet(Struct, frozen=True, array_like=True):
    session_id: Text
    setting: HandSetting
    reset_at: Milliseconds = 0


class Switch(Struct, frozen=True, kw_only=True):
    """Whether prompt caches are kept warm: the answer to QUERY `warm`."""

    change: Count = 0
    """Number of the change that brought it here."""
    is_on: bool = False
    reset_at: Milliseconds = 0
    """Failures of before count no more; …"""
    sessions: Annotated[list[HandSet], Meta(max_length=HAND_SET_MAX)] = []
    """…for a session of these, those before its own."""
    latches: list[Latch] = []
    """Of all daemons."""


class IndexEntry(Struct, frozen=True, array_like=True):
    kind: KeyKind
    value: Text
    session_id: Text


class IndexPage(Struct, frozen=True, kw_only=True):
    entries: list[IndexEntry]
    before: int
    """Pass it on to get the next page; −1 after the last one."""


Outcome = Literal["new", "joined", "updated", "unchanged", "forgotten"]
"""new: there was no such session; joined: there was, with turns of its own; updated: an earlier import knew less of it;
forgotten: an operator had it forgotten since, so that it stays so."""


class Adopted(Struct, frozen=True, array_like=True):
    """What became of an Adoption."""

    session_id: Text
    outcome: Outcome
    is_calibrated: bool = False
    """Its state is the one that came with it."""
    is_alias: bool = False
    """The foreign id leads to it."""
    turns: Count = 0
    """By how much the sums went up, and…"""
    cost_nanousd: Money = 0


class Amended(Struct, frozen=True, kw_only=True):
    """What came of an AMEND."""

    refusal: Text = ""
    """Why nothing was done, in words; empty where it was."""
    change: Count = 0
    """Its number in the log, by which it can be taken back."""
    verb: Text = ""
    session_id: Text = ""
    """The session that was merged or split, and…"""
    other_id: Text = ""
    """…the one that its rows went to; of an undo, those of the change that was taken back; of what was forgotten ''."""
    moved: Count = 0
    """Rows that went to another session; of what was forgotten, those that stay in the sums; sessions that were adopted
    or updated."""
    stayed: Count = 0
    """Rows of `other_id` that an undo left there, since they are newer than the change; sub-agents that were forgotten
    with their session."""
    adopted: list[Adopted] = []
    """In the order of the adoptions; empty for a request that was done before."""


class Reply(Struct, frozen=True, kw_only=True):
    """The acknowledgement of one write: what is now committed."""

    sequence: SequenceNumber
    session_id: Text = ""
    """The canonical id: what the proposed one resolved to."""
    forked: bool = False
    """BEGIN and END: only this turn is of that session, not the one that it was booked on."""
    epoch: Count = 0
    owned: bool = False
    """The sender owns the session at that epoch."""
    role: Literal["turn", "side", "child"] = "turn"
    """CLAIM: what the request is to the session its client named (`worker.roles`); only a turn makes its sender the
    owner.  BEGIN and END: what the row was booked as."""
    shape: Shape | None = None
    """What the session's last turn was set up with: CLAIM, and rows that their sender could not judge."""
    why: Why = Why()
    generation: Count = 0
    position: Count = 0
    """CLAIM: the snapshot's; END: that of the row just settled."""
    snapshot: Snapshot | None = None
    rows: list[Row] = []
    """Settled rows after the position the sender has seen, oldest first."""
    more: bool = False
    amended: Amended | None = None
    """AMEND: what came of it."""
    entered: bool = True
    """BEGIN of a `warmup`: false, and nothing is booked and nothing may be sent, if the window has one already, if the
    sender does not own the session any more, or if it is switched off."""


class Acks(Struct, frozen=True, kw_only=True):
    replies: list[Reply]


class Refusal(Struct, frozen=True, kw_only=True):
    """The write named by the frame's sequence will never be accepted (0: the frame had none that could be read)."""

    reason: Text


class WhoAreYou(Struct, frozen=True, kw_only=True):
    """Sent instead of an answer to a peer this boot of the worker has not greeted: say HELLO and send again."""


class Lost(Struct, frozen=True, kw_only=True):
    """Another daemon claimed the session: stop writing snapshots of it."""

    session_id: Id
    epoch: Count


class Answer(Struct, frozen=True, kw_only=True):
    """The result of a QUERY with the same sequence: a JSON document."""

    body: msgspec.Raw
    after: Text = ""
    """Pass it on to get the next page; empty after the last one."""
    answered: bool = True
    """False: the worker could not read now; the body says nothing."""


Body = (
    Hello
    | Ping
    | IndexRequest
    | Claim
    | Booking
    | SnapshotWrite
    | Amend
    | Query
    | Bye
    | Welcome
    | Pong
    | IndexPage
    | Acks
    | Refusal
    | WhoAreYou
    | Lost
    | Answer
)


class Command(Enum):
    HELLO = b"HELLO"
    PING = b"PING"
    INDEX = b"INDEX"
    CLAIM = b"CLAIM"
    BEGIN = b"BEGIN"
    END = b"END"
    SNAPSHOT = b"SNAPSHOT"
    QUERY = b"QUERY"
    BYE = b"BYE"
    AMEND = b"AMEND"

    WELCOME = b"WELCOME"
    PONG = b"PONG"
    KEYS = b"KEYS"
    ACK = b"ACK"
    REFUSED = b"REFUSED"
    WHO = b"WHO"
    LOST = b"LOST"
    ANSWER = b"ANSWER"


FROM_DAEMON: Final[dict[Command, type[Body]]] = {
    Command.HELLO: Hello,
    Command.PING: Ping,
    Command.INDEX: IndexRequest,
    Command.CLAIM: Claim,
    Command.BEGIN: Booking,
    Command.END: Booking,
    Command.SNAPSHOT: SnapshotWrite,
    Command.QUERY: Query,
    Command.BYE: Bye,
    Command.AMEND: Amend,
}
FROM_WORKER: Final[dict[Command, type[Body]]] = {
    Command.WELCOME: Welcome,
    Command.PONG: Pong,
    Command.KEYS: IndexPage,
    Command.ACK: Acks,
    Command.REFUSED: Refusal,
    Command.WHO: WhoAreYou,
    Command.LOST: Lost,
    Command.ANSWER: Answer,
}
WRITES: Final = frozenset({Command.CLAIM, Command.BEGIN, Command.END, Command.SNAPSHOT, Command.AMEND})
"""What waits in an outbox for its acknowledgement."""


class ProtocolError(Exception):
    """The peer sent something that is not this protocol; `sequence` is 0 where none could be read."""

    def __init__(self, reason: str, sequence: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sequence = sequence


class Message(Struct, frozen=True):
    command: Command
    sequence: int
    body: Body


def encode(command: Command, body: Body, sequence: int = 0) -> list[bytes]:
    """The four frames of a message."""
    return [PROTOCOL, command.value, sequence.to_bytes(SEQUENCE_BYTES, "big"), _encoder.encode(body)]


def decode(frames: list[bytes], direction: dict[Command, type[Body]]) -> Message:
    """Read frames that came from outside.  Raises ProtocolError, whatever they hold; never anything else."""
    if len(frames) != FRAMES:
        raise ProtocolError(f"{len(frames)} frames instead of {FRAMES}")
    version, name, number, body = frames
    if version != PROTOCOL:
        raise ProtocolError(f"protocol {version[:16]!r}, this is {PROTOCOL!r}")
    if len(number) != SEQUENCE_BYTES:
        raise ProtocolError(f"sequence of {len(number)} bytes instead of {SEQUENCE_BYTES}")
    sequence = int.from_bytes(number, "big")
    try:
        command = Command(name)
        shape = direction[command]
    except (ValueError, KeyError):
        raise ProtocolError(f"unknown command {name[:16]!r}", sequence) from None
    try:
        return Message(command, sequence, _decoders[shape].decode(body))
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ProtocolError(f"{command.value.decode()}: {_fault(error)}", sequence) from None


def _fault(error: Exception) -> str:
    """What is wrong with a body, fit to be logged and sent back: the field and the rule, never the value."""
    text = str(error)
    for said in ("Invalid enum value", "Invalid value"):
        if text.startswith(said):
            return f"{said}{text[text.rfind(' - at ') :]}"[:200]
    return text[:200]


_encoder: Final = msgspec.json.Encoder()
_decoders: Final = {shape: msgspec.json.Decoder(shape) for shape in {*FROM_DAEMON.values(), *FROM_WORKER.values()}}
