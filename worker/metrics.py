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


BATCH_WRITES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
"""Bucket bounds, up to the largest batch there is."""


class WorkerMetrics:
    """What the worker counts about itself.  `docs/METRICS.md` says what each means; a test compares the two."""

    def __init__(self, *, version: str = "", schema: int = 0, started_at: float = 0.0) -> None:
        registry = self.registry = CollectorRegistry()
        self._count_commits(registry)
        self.refused = Counter("perdure_refused_frames", "Frames refused by the worker", registry=registry)
        self.strangers = Counter("perdure_strangers", "Peers turned away, whose key is not known", registry=registry)
        self.boots = Counter("perdure_daemon_boots", "Daemons greeted for the first time", registry=registry)
        self._measure_files(registry)
        start = Gauge("perdure_worker_start_time_seconds", "When the worker was started, Unix time", registry=registry)
        start.set(started_at)
        labels = ["version", "schema"]
        build = Gauge("perdure_worker_build_info", "The worker's version and schema", labels, registry=registry)
        build.labels(version, str(schema)).set(1)

    def _count_commits(self, registry: CollectorRegistry) -> None:
        self.commit_seconds = Histogram(
            "perdure_commit_duration_seconds",
            "One transaction of the store, fsync included",
            registry=registry,
            buckets=COMMIT_SECONDS,
        )
        self.batch_writes = Histogram(
            "perdure_batch_writes", "Writes in one transaction", registry=registry, buckets=BATCH_WRITES
        )
        self.writes = Counter("perdure_committed_writes", "Writes committed", registry=registry)
        self.failed_commits = Counter(
            "perdure_failed_commits", "Transactions the disk refused, to be tried again", registry=registry
        )
        self.committing = Gauge("perdure_committing", "1 while the store takes writes, else 0", registry=registry)
        self.waiting = Gauge("perdure_waiting_writes", "Writes received and not yet committed", registry=registry)

    def _measure_files(self, registry: CollectorRegistry) -> None:
        self.wal_bytes = Gauge("perdure_wal_bytes", "Size of SQLite's write-ahead log", registry=registry)
        self.database_bytes = Gauge(
            "perdure_database_bytes", "Size of the database, without its log", registry=registry
        )
        self.disk_bytes = Gauge("perdure_disk_bytes", "Size of the file system with the database", registry=registry)
        self.disk_free_bytes = Gauge("perdure_disk_free_bytes", "What is free there for perdure", registry=registry)
        self.last_backup = Gauge(
            "perdure_last_backup_timestamp_seconds", "When the newest backup was begun, Unix time", registry=registry
        )


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
