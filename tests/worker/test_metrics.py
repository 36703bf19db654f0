"""Metrics that travel: what a registry holds comes out of the exposition as it went in, and adds up."""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from worker.census import merged
from worker.metrics import WorkerMetrics, exposition, families_of
from worker.protocol import Family


def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("turns", "Turns", ["model", "status"], registry=made).labels('odd "name"\n', "complete").inc(3)
    Gauge("held", "Held", registry=made).set(2.5)
    Histogram("wait_seconds", "Waits", registry=made, buckets=(0.1, 1.0)).observe(0.5)
    return made


def samples(text: bytes) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_exposition_of_what_travelled_equals_that_of_the_registry() -> None:
    travelled = msgspec.json.decode(msgspec.json.encode(families_of(registry())), type=list[Family])
    assert samples(exposition(travelled)) == samples(generate_latest(registry()))


def test_histograms_of_two_processes_add_up_by_bucket() -> None:
    both = samples(exposition(merged([families_of(registry()), families_of(registry())])))
    assert ("wait_seconds_bucket", (("le", "1.0"),), 2.0) in both
    assert ("wait_seconds_bucket", (("le", "0.1"),), 0.0) in both
    assert ("wait_seconds_count", (), 2.0) in both


def test_worker_counts_under_the_promised_names() -> None:
    metrics = WorkerMetrics()
    metrics.commit_seconds.observe(0.001)
    metrics.wal_bytes.set(4_096)
    names = {name for name, _, _ in samples(exposition(families_of(metrics.registry)))}
    assert {"perdure_commit_duration_seconds_count", "perdure_wal_bytes"} <= names


def test_two_instances_share_nothing() -> None:
    one, two = WorkerMetrics(), WorkerMetrics()
    one.refused.inc()
    assert ("perdure_refused_frames_total", (), 0.0) in samples(exposition(families_of(two.registry)))
