"""What a daemon counts.

One rule: labels are closed sets.  A provider's name is one of the configuration, a model's one of the price list,
whatever a client makes of it; everything else is a word of ours.

`docs/METRICS.md` says what each of them means; a test compares the two.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from daemon.gradient import BUST_RATIO, bust_ratio
from daemon.keepalive import Reason
from worker.protocol import Row, Status

Kind = Literal["turn", "passed", "own", "refused"]
"""Of a request.  turn: of a conversation; passed: anything else for a provider; own: for perdure's paths; refused: by
us, without asking a provider."""
Outcome = Literal["2xx", "3xx", "4xx", "5xx", "cut", "gone"]
"""The class of the answer's status, if the answer was complete; cut: it broke off on our side or the provider's; gone:
the client was."""
Mode = Literal["live", "shadow"]
"""Of a decision over a ping: live, where it is sent; shadow, where it is only counted."""
PingOutcome = Literal["hit", "cold", "nothing", "error", "cut", "unsent", "refused"]
"""hit: it read the cache; cold: it found none and wrote it; nothing: neither; error: the provider's, or none could be
reached; cut: it took too long, or the daemon was stopped; unsent: something came in between; refused: by the worker."""
OTHER_MODEL: Final = "other"
SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bucket bounds for whole requests: coding agents' turns take from half a second to ten minutes."""
ACK_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
"""Bucket bounds for waits on the worker; none is longer than the last."""


LAYERS: Final = 5
"""0: the body was not touched, up to 4."""


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count_requests(self.registry)
        self._count_turns(self.registry)
        self._count_time(self.registry)
        self._count_writes(self.registry)
        registry = self.registry
        self.sessions = Gauge("perdure_sessions", "Sessions in memory", ["state"], registry=registry)
        self.worker_up = Gauge("perdure_worker_up", "Daemons that hear the worker", registry=registry)
        self.start_time = Gauge(
            "perdure_daemon_start_time_seconds", "When a daemon was started, Unix time", ["daemon"], registry=registry
        )
        self._degraded_seconds = Counter(
            "perdure_degraded_seconds", "Time in which a daemon was not ready, since its start", registry=registry
        )
        self._looked_at = 0.0
        self._was_degraded = False
        build = Gauge("perdure_build_info", "Daemons by version", ["version"], registry=registry)
        build.labels(version("perdure")).set(1)

    def _count_requests(self, registry: CollectorRegistry) -> None:
        self._requests = Counter("perdure_requests", "Requests of every kind", ["kind", "outcome"], registry=registry)
        # Those that can be there are there from the beginning: an alert on what never was sees no increase.
        for kind in get_args(Kind):
            for outcome in get_args(Outcome):
                self._requests.labels(kind, outcome)

    def _count_turns(self, registry: CollectorRegistry) -> None:
        by_model = ["provider", "model"]
        self._turns = Counter("perdure_turns", "Turns settled", [*by_model, "status"], registry=registry)
        self._side_calls = Counter("perdure_side_calls", "Calls beside a conversation", ["status"], registry=registry)
        self._pings = Counter("perdure_pings", "Keep-alives of prompt caches", ["status"], registry=registry)
        for status in get_args(Status):
            self._side_calls.labels(status)
            self._pings.labels(status)
        self._outcomes = Counter("perdure_ping_outcomes", "Pings by what came of them", ["outcome"], registry=registry)
        for outcome in get_args(PingOutcome):
            self._outcomes.labels(outcome)
        self._decisions = Counter(
            "perdure_ping_decisions", "What was decided over windows", ["mode", "decision"], registry=registry
        )
        for mode in get_args(Mode):
            for decision in ("send", *get_args(Reason)):
                self._decisions.labels(mode, decision)
        self._tokens = Counter("perdure_tokens", "Tokens by kind, disjoint", [*by_model, "kind"], registry=registry)
        self._cost = Counter("perdure_cost_nanousd", "Known cost, nano-dollars", by_model, registry=registry)
        self._busts = Counter(
            "perdure_cache_busts", "Turns that wrote more of the cache than they read", by_model, registry=registry
        )
        self._layers = Counter("perdure_layer_turns", "Turns by layer", ["layer"], registry=registry)
        for layer in range(LAYERS):
            self._layers.labels(str(layer))

    def _count_time(self, registry: CollectorRegistry) -> None:
        self.request_seconds = Histogram(
            "perdure_request_duration_seconds",
            "Turns, from the request's arrival to the answer's last byte",
            registry=registry,
            buckets=SECONDS,
        )
        self.first_byte_seconds = Histogram(
            "perdure_time_to_first_byte_seconds",
            "Turns, from the request's arrival to the answer's first byte",
            registry=registry,
            buckets=SECONDS,
        )
        self.ack_seconds = Histogram(
            "perdure_ack_duration_seconds",
            "What an answer waited for the worker after the provider's first or last byte",
            registry=registry,
            buckets=ACK_SECONDS,
        )

    def _count_writes(self, registry: CollectorRegistry) -> None:
        self.unacknowledged = Counter(
            "perdure_unacknowledged_answers",
            "First or last bytes sent without the worker's acknowledgement",
            registry=registry,
        )
        self.refused = Counter(
            "perdure_refused_answers", "Frames of the worker that were not understood", registry=registry
        )
        self.snapshots = Counter("perdure_snapshots", "Snapshots of dirty sessions written", registry=registry)
        self.adopted = Counter(
            "perdure_adopted_writes",
            "Writes of daemons that ended while no worker took them, sent to the worker by another one",
            registry=registry,
        )
        self.outbox_writes = Gauge("perdure_outbox_writes", "Writes not yet acknowledged", registry=registry)
        self.outbox_oldest = Gauge(
            "perdure_outbox_oldest_seconds", "Age of the oldest write not yet acknowledged", registry=registry
        )

    def requested(self, kind: Kind, outcome: Outcome) -> None:
        """A request is over."""
        self._requests.labels(kind, outcome).inc()

    def decided(self, mode: Mode, decision: Reason | Literal["send"]) -> None:
        """Whether a window's ping is sent, or why not."""
        self._decisions.labels(mode, decision).inc()

    def pinged(self, outcome: PingOutcome) -> None:
        """A ping is over."""
        self._outcomes.labels(outcome).inc()

    def looked(self, *, is_degraded: bool, now: float) -> None:
        """The time since the last look, in monotonic seconds, was spent as that look found it."""
        if self._was_degraded:
            self._degraded_seconds.inc(now - self._looked_at)
        self._looked_at, self._was_degraded = now, is_degraded

    def settled(self, row: Row, known_name: str) -> None:
        """A row is.  `known_name`: of its model in the price list; empty if it is not there."""
        model = known_name or OTHER_MODEL
        if row.kind == "turn":
            self._turns.labels(row.provider, model, row.status).inc()
            self._layers.labels(str(row.layer)).inc()
            if row.usage is not None and (bust_ratio(row.usage) or 0.0) > BUST_RATIO:
                self._busts.labels(row.provider, model).inc()
        else:
            (self._side_calls if row.kind == "side" else self._pings).labels(row.status).inc()
        if row.usage is not None:
            for kind, count in (
                ("input", row.usage.input_tokens),
                ("cache_read", row.usage.cache_read_tokens),
                ("cache_write", row.usage.cache_write_tokens),
                ("output", row.usage.output_tokens),
            ):
                self._tokens.labels(row.provider, model, kind).inc(count)
        if row.cost_nanousd is not None:
            self._cost.labels(row.provider, model).inc(row.cost_nanousd)
