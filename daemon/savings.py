"""What keeping caches warm has cost and saved, and what it would have where it was not done: from the ledger's rows.

One rule: net, and nothing is credited without the turn that proves it.  A ping that nobody came back to is a cost.

Theory of operation.  The rows are gone through in the order of their entry, each session's state folded on the way, as
it was then.  A pause ends with the next turn.  Were there pings in it, they have cost what their rows say, and have
saved something if that turn still read what would have been cold without them.  Were there none, the same function that
decides in a daemon (`keepalive.decide`) is asked at every moment at which a ping would have been due, and what it says
costs a read each, and saves the write of the turn that found the cache cold.  Pauses that go on are counted until now.

The ledger does not know how a client had logged in, or whether it signed: sessions of which a daemon would not send
anything for that are counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from daemon.keepalive import MARGIN_SECONDS, WINDOW_SECONDS, Facts, decide, stakes_of, ttl_after
from daemon.warming import GAP_BINS, Ttl, Warming, observe, touches_cache
from worker.protocol import HandSetting, Row, Usage

DAY_MILLISECONDS: Final = 24 * 3_600 * 1_000
RATES_MAX: Final = 100_000
"""Remembered at once, some tens of megabytes: a year of a dozen models has half of it."""

PriceOf = Callable[[Row, Usage], int | None]
"""Nano-dollars of some tokens at a row's model and time."""


class Rates:
    """Prices for a whole ledger: what one token of a kind costs is looked up once for a model, a day and the order of
    magnitude of a prompt, by which price lists have tiers."""

    def __init__(self, price: Callable[[str, str, Usage, int], int | None]) -> None:
        """`price`: of a provider's model at a time, in Unix milliseconds."""
        self._price = price
        self._known: dict[tuple[str, str, int, str, int], float | None] = {}

    def price_of(self, row: Row, usage: Usage) -> int | None:
        total = 0.0
        for kind in usage.__struct_fields__:
            tokens = getattr(usage, kind)
            rate = self._rate(row, kind, tokens) if tokens else 0.0
            if rate is None:
                return None
            total += rate * tokens
        return round(total)

    def _rate(self, row: Row, kind: str, tokens: int) -> float | None:
        size = int(float(f"{tokens:.0e}"))
        place = (row.provider, row.model, row.started_at // DAY_MILLISECONDS, kind, size)
        if place not in self._known:
            if len(self._known) >= RATES_MAX:
                self._known.clear()
            price = self._price(row.provider, row.model, Usage(**{kind: size}), row.started_at)
            self._known[place] = None if price is None else price / size
        return self._known[place]


class Saving(Struct, frozen=True):
    """Pings and what became of them, in nano-dollars."""

    pings: int = 0
    hits: int = 0
    """Pauses that ended with a turn which found warm what would have been cold."""
    cost_nanousd: int = 0
    saved_nanousd: int = 0

    @property
    def net_nanousd(self) -> int:
        return self.saved_nanousd - self.cost_nanousd

    def plus(self, other: Saving) -> Saving:
        return Saving(
            self.pings + other.pings,
            self.hits + other.hits,
            self.cost_nanousd + other.cost_nanousd,
            self.saved_nanousd + other.saved_nanousd,
        )


class Told(NamedTuple):
    """Of one session."""

    session_id: str
    client: str
    sent: Saving
    shadow: Saving
    """Of the pauses in which nothing was sent."""


class _Session:
    """As it was after the last row."""

    def __init__(self, is_child: bool, setting: HandSetting) -> None:
        self.is_child = is_child
        self.setting = setting
        self.warming = Warming()
        self.ttl: Ttl | None = None
        self.turn: Row | None = None
        """The last that touched the cache."""
        self.client = ""
        self.has_pings = False
        """In the present pause."""
        self.sent = Saving()
        self.shadow = Saving()


class Savings:
    """Rows in, in the order of entry; figures out."""

    def __init__(
        self, price: PriceOf, *, children: Collection[str] = (), settings: Mapping[str, HandSetting] | None = None
    ) -> None:
        self._price = price
        self._children = children
        self._settings = settings or {}
        self._sessions: dict[str, _Session] = {}
        self._host_gaps = [0] * GAP_BINS

    def add(self, row: Row) -> None:
        if row.protocol != "messages" or row.kind == "side" or not row.is_settled:
            return
        session = self._sessions.get(row.session_id)
        if session is None:
            session = self._sessions[row.session_id] = _Session(
                row.session_id in self._children, self._settings.get(row.session_id, "")
            )
        if row.kind == "warmup":
            session.has_pings = True
            session.sent = session.sent.plus(Saving(pings=1, cost_nanousd=row.cost_nanousd or 0))
        elif row.usage is not None:
            self._end_pause(session, row, row.usage)
            session.client = row.client or session.client
        before = session.warming.gap_counts
        session.warming = observe(session.warming, row)
        if session.warming.gap_counts is not before:
            for place, (now, then) in enumerate(zip(session.warming.gap_counts, before, strict=True)):
                self._host_gaps[place] += now - then

    def told(self, now: int) -> list[Told]:
        """Of every session that had pings, or would have; the best first.  `now`: Unix milliseconds."""
        found = []
        for session_id, session in self._sessions.items():
            going_on, _ = self._would_have(session, now) if not session.has_pings else (Saving(), 0)
            told = Told(session_id, session.client, session.sent, session.shadow.plus(going_on))
            if told.sent.pings or told.shadow.pings:
                found.append(told)
        return sorted(found, key=lambda told: (-told.sent.net_nanousd, -told.shadow.net_nanousd, told.session_id))

    def _end_pause(self, session: _Session, row: Row, usage: Usage) -> None:
        turn = session.turn
        if turn is not None and turn.usage is not None and session.ttl is not None:
            was_over = row.started_at - turn.started_at > 1_000 * WINDOW_SECONDS[session.ttl]
            cached = turn.usage.cache_read_tokens + turn.usage.cache_write_tokens
            if session.has_pings and was_over:
                saved = self._saved(row, min(cached, usage.cache_read_tokens), session.ttl)
                session.sent = session.sent.plus(Saving(hits=int(saved > 0), saved_nanousd=saved))
            elif not session.has_pings:
                shadow, warm_until = self._would_have(session, row.started_at)
                is_hit = was_over and row.started_at < warm_until
                saved = self._saved(row, min(cached, usage.cache_write_tokens), session.ttl) if is_hit else 0
                session.shadow = session.shadow.plus(shadow).plus(Saving(hits=int(saved > 0), saved_nanousd=saved))
        session.ttl = ttl_after(usage, session.ttl)
        if touches_cache(row):
            session.turn, session.has_pings = row, False

    def _would_have(self, session: _Session, until: int) -> tuple[Saving, int]:
        """The pings of a pause up to a moment, and until when they would have kept the cache warm."""
        turn, ttl, warming = session.turn, session.ttl, session.warming
        if turn is None or turn.usage is None or ttl is None:
            return Saving(), 0
        step = WINDOW_SECONDS[ttl] - MARGIN_SECONDS[ttl]
        due, pings, warm_until = turn.started_at + int(1_000 * step), 0, 0
        if due >= until:
            return Saving(), 0  # As nearly always: prices are looked up for the others alone.
        stakes = stakes_of(turn.usage, ttl, lambda usage: self._price(turn, usage))
        while due < until:
            facts = Facts(
                warming=replace(warming, break_warmups=pings),
                ttl=ttl,
                age_seconds=step,
                idle_seconds=(due - warming.last_user_turn_at) / 1_000,
                ping_nanousd=stakes.ping_nanousd,
                saves_nanousd=stakes.saves_nanousd,
                host_gaps=self._host_gaps,
                layer=turn.layer,
                is_child=session.is_child,
                setting=session.setting,
            )
            if not decide(facts).send:
                break
            pings += 1
            warm_until = due + int(1_000 * WINDOW_SECONDS[ttl])
            due += int(1_000 * step)
        return Saving(pings=pings, cost_nanousd=pings * (stakes.ping_nanousd or 0)), warm_until

    def _saved(self, row: Row, tokens: int, ttl: Ttl) -> int:
        """What writing so many tokens would have cost more than reading them."""
        stakes = stakes_of(Usage(cache_read_tokens=tokens), ttl, lambda usage: self._price(row, usage))
        return max(0, stakes.saves_nanousd or 0)


def total_of(told: Collection[Told]) -> tuple[Saving, Saving]:
    """What was sent, and what would have been."""
    sent, shadow = Saving(), Saving()
    for each in told:
        sent, shadow = sent.plus(each.sent), shadow.plus(each.shadow)
    return sent, shadow
