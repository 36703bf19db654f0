"""One turn's two writes: the open row that is sent with the request, the settled row that is sent with the answer.

One rule: a turn that was begun is ended exactly once, whatever happens to it.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from daemon.cost import Prices
from daemon.held import Held
from daemon.identity import Known, answered
from daemon.metrics import Metrics
from daemon.providers import Answer, Turn
from daemon.sessions import Place, Sessions
from daemon.worker_client import WorkerClient
from worker import protocol
from worker.protocol import Command, Naming, Row, Status


class Booking:
    """The ledger's side of one turn.  `begin` raises OutboxFull."""

    def __init__(
        self,
        *,
        held: Held,
        naming: Naming,
        known: Known,
        row: Row,
        sessions: Sessions,
        link: WorkerClient,
        prices: Prices,
        metrics: Metrics,
        now: Callable[[], int],
    ) -> None:
        self._held = held
        self._naming = naming
        self._known = known
        self._row = row
        self._sessions = sessions
        self._link = link
        self._prices = prices
        self._metrics = metrics
        self._now = now
        self._begun = 0
        self.is_settled = False

    @property
    def row(self) -> Row:
        """As it was written last."""
        return self._row

    @property
    def session_id(self) -> str:
        """The session's id as it is known now: an acknowledgement may have told its true one."""
        return self._current.session_id

    @property
    def is_child(self) -> bool:
        """It is a sub-agent's."""
        return bool(self._naming.parent)

    @property
    def _current(self) -> Held:
        return self._sessions.current(self._held, self._row.event_id)

    def begin(self) -> None:
        self._begun = self._put(Command.BEGIN, self._row, self._naming)
        self._current.turns_in_flight += 1
        self._sessions.begun(self._current, self._naming, self._row)

    async def is_begun(self) -> bool:
        """Wait, a little, until identity and the open row are committed."""
        return await self._link.acknowledged(self._begun)

    def settle(self, answer: Answer, status: Status, http_status: int) -> int:
        """Write the end; gives its sequence.  Never waits: a handler that is being cancelled can do it too."""
        assert not self.is_settled
        self.is_settled = True
        self._row = settled_row(self._row, answer, status, http_status, prices=self._prices, at=self._now())
        naming = self._naming
        if status == "complete":
            naming = answered(naming, self._known, answer)
        self._current.turns_in_flight -= 1
        self._sessions.settled(self._held, naming, self._row)
        self._metrics.settled(self._row, self._prices.known_name(self._row.provider, self._row.model))
        return self._put(Command.END, self._row, naming)

    def _put(self, command: Command, row: Row, naming: Naming) -> int:
        held = self._current
        body = protocol.Booking(naming=naming, row=row, epoch=held.epoch, seen=held.position)
        return self._link.put(command, body)


def settled_row(row: Row, answer: Answer, status: Status, http_status: int, *, prices: Prices, at: int) -> Row:
    """The row as it ended, at that time (Unix milliseconds)."""
    cost, ceiling = None, row.cap_ceiling
    if answer.usage is not None:
        cost = prices.price_nanousd(row.provider, row.model, answer.usage, row.started_at)
        prompt_tokens = answer.usage.prompt_tokens
        # Longer than was thought possible, or than is thrifty: which of them, the prices know.
        if prompt_tokens > ceiling > 0:
            ceiling = prices.cap_ceiling(row.provider, row.model, prompt_tokens=prompt_tokens)
    return replace(
        row,
        status=status,
        # A row is settled once it has an end; the clock may have stepped back since its start.
        ended_at=max(at, row.started_at, 1),
        http_status=http_status,
        usage=answer.usage,
        cost_nanousd=cost,
        price_version=prices.price_version(row.provider, row.model) if cost is not None else "",
        text_only=answer.text_only,
        cap_ceiling=ceiling,
    )


def open_row(
    *,
    event_id: str,
    place: Place,
    turn: Turn,
    known: Known,
    provider: str,
    boot: str,
    started_at: int,
    prices: Prices,
    is_longer_asked: bool,
) -> Row:
    return Row(
        event_id=event_id,
        session_id=place.held.session_id,
        kind="turn" if place.role == "turn" else "side",
        status="interrupted",
        started_at=started_at,
        provider=provider,
        protocol=turn.protocol,
        model=turn.model,
        client=known.client,
        account=known.account,
        boot=boot,
        why=place.naming.why,
        message_count=turn.message_count,
        cap_ceiling=prices.cap_ceiling(provider, turn.model, is_longer_asked=is_longer_asked),
        user_turn=turn.user_turn,
    )
