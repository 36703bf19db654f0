"""Prometheus' instruments as values that can travel: both programs count with `prometheus_client`, daemons send what
they counted with their heartbeat, and one scrape shows the sum.

One rule: no counter lives anywhere but in a registry that its owner made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample as PrometheusSample

from worker.protocol import Family, MetricType, Sample

COMMIT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bucket bounds: an fsync takes 0.2 ms on a good disk and seconds on a sick one."""


class WorkerMetrics:
    """What the worker counts about itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.commit_seconds = Histogram(
            "perdure_commit_duration_seconds",
            "One transaction of the store, fsync included",
            registry=self.registry,
            buckets=COMMIT_SECONDS,
        )
        self.writes = Counter("perdure_committed_writes", "Writes committed", registry=self.registry)
        self.refused = Counter("perdure_refused_frames", "Frames refused by the worker", registry=self.registry)
        self.strangers = Counter(
            "perdure_strangers", "Peers turned away, whose key is not known", registry=self.registry
        )
        self.failed_commits = Counter(
            "perdure_failed_commits", "Transactions the disk refused, to be tried again", registry=self.registry
        )
        self.wal_bytes = Gauge("perdure_wal_bytes", "Size of SQLite's write-ahead log", registry=self.registry)


def families_of(registry: CollectorRegistry) -> list[Family]:
    """What a registry holds now.  Creation times are left out: they do not add up."""
    return [
        Family(metric.name, cast(MetricType, metric.type), metric.documentation, list(_samples(metric)))
        for metric in registry.collect()
        if metric.type in ("counter", "histogram", "gauge")
    ]


def exposition(families: Iterable[Family]) -> bytes:
    """Prometheus' text format."""
    shown = CollectorRegistry()
    shown.register(cast(Collector, _Shown(families)))
    return generate_latest(shown)


class _Shown:
    """A collector of values that were counted elsewhere."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.help, family.type)
            metric.samples = [PrometheusSample(s.name, dict(s.labels), s.value) for s in family.samples]
            yield metric


def _samples(metric: Metric) -> Iterator[Sample]:
    for sample in metric.samples:
        if not sample.name.endswith("_created"):
            yield Sample(sample.name, sorted(sample.labels.items()), float(sample.value))
