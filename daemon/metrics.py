"""What a daemon counts.  Labels are closed sets: a model's name is one only if the price list knows it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worker.protocol import Row

OTHER_MODEL: Final = "other"
SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bucket bounds for whole requests: coding agents' turns take from half a second to ten minutes."""
ACK_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
"""Bucket bounds for waits on the worker; none is longer than the last."""


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._turns = Counter("perdure_turns", "Turns settled", ["provider", "model", "status"], registry=registry)
        self._tokens = Counter(
            "perdure_tokens", "Tokens by kind, disjoint", ["provider", "model", "kind"], registry=registry
        )
        self._cost = Counter(
            "perdure_cost_nanousd", "Known cost, nano-dollars", ["provider", "model"], registry=registry
        )
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
        self.sessions = Gauge("perdure_sessions", "Sessions in memory", ["state"], registry=registry)
        self.worker_up = Gauge("perdure_worker_up", "Daemons that hear the worker", registry=registry)
        build = Gauge("perdure_build_info", "Daemons by version", ["version"], registry=registry)
        build.labels(version("perdure")).set(1)

    def settled(self, row: Row, known_name: str) -> None:
        """`known_name`: of the row's model in the price list; empty if it is not there."""
        model = known_name or OTHER_MODEL
        if row.kind == "turn":
            self._turns.labels(row.provider, model, row.status).inc()
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
