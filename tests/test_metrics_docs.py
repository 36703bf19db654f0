"""docs/METRICS.md and docs/alerts.yml tell of the metrics that there are: names, types and labels, both ways.

One rule: what is compared with is made by the programs' own classes, and alerts are evaluated on scrapes of a gateway
that is well, and of one that is not.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.metrics import Metrics
from tests.processes import Gateway, eventually
from tests.promql import Expression, Scrape, Selector, Window
from tests.provider import ScriptedProvider
from tests.system.turns import take_turn
from worker.metrics import WorkerMetrics, families_of
from worker.protocol import Family, Row, Usage

ROOT: Final = Path(__file__).resolve().parents[1]
ALERTS: Final = ROOT / "docs" / "alerts.yml"
DAY: Final = 86_400.0


class Documented(NamedTuple):
    type: str
    labels: frozenset[str]


def documented() -> dict[str, Documented]:
    """The rows of its tables: name, type, labels, unit, meaning."""
    lines = (ROOT / "docs" / "METRICS.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `perdure_")]
    assert all(len(row) == 5 and row[3] and row[4] for row in rows)
    assert len(rows) == len({row[0] for row in rows}), "a metric stands there twice"
    return {row[0].strip("`"): Documented(row[1], frozenset(re.findall(r"`(\w+)`", row[2]))) for row in rows}


def all_families() -> list[Family]:
    """Of both programs, each label with a value."""
    metrics, worker = Metrics(), WorkerMetrics(version="1", schema=1)
    usage = Usage(input_tokens=1, cache_read_tokens=1, cache_write_5m_tokens=9, output_tokens=1)
    row: dict[str, Any] = {"event_id": "12345678", "session_id": "s", "started_at": 1, "ended_at": 2}
    row |= {"provider": "openai", "protocol": "chat", "model": "m", "usage": usage, "cost_nanousd": 5}
    metrics.settled(Row(**row, kind="turn", status="complete"), "m")
    metrics.sessions.labels("held").set(1)
    metrics.start_time.labels("daemon-0").set(1)
    return [*families_of(metrics.registry), *families_of(worker.registry)]


def exposed(family: Family) -> str:
    """As it is scraped: counters end in _total."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels_of(family: Family) -> frozenset[str]:
    return frozenset(label for sample in family.samples for label, _ in sample.labels) - {"le"}


class Alert(NamedTuple):
    name: str
    expression: str
    text: str


def alerts() -> list[Alert]:
    """Read by lines: the file keeps to a form that needs no more of YAML."""
    found = []
    for block in ALERTS.read_text("utf-8").split("\n      - alert: ")[1:]:
        name, _, rest = block.partition("\n")
        lines = rest.splitlines()
        (first,) = (number for number, line in enumerate(lines) if line.startswith("        expr: "))
        expression = lines[first].removeprefix("        expr: ").removeprefix(">-")
        for line in lines[first + 1 :]:
            if not line.startswith("          "):
                break
            expression += " " + line.strip()
        found.append(Alert(name, expression.strip(), rest))
    assert len(found) > 10
    return found


# -- names


def test_every_metric_is_documented_with_its_type_and_labels_and_no_other() -> None:
    real = {exposed(family): Documented(family.type, labels_of(family)) for family in all_families()}
    assert documented() == real


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_alert_names_metrics_and_labels_that_there_are(alert: Alert) -> None:
    series: dict[str, frozenset[str]] = {}
    for family in all_families():
        for sample in family.samples:
            series[sample.name] = series.get(sample.name, frozenset()) | {label for label, _ in sample.labels}
    parsed = Expression(alert.expression)
    assert parsed.selectors
    for selector in parsed.selectors:
        assert set(selector.labels) <= series[selector.name], selector
    known = frozenset().union(*(series[selector.name] for selector in parsed.selectors))
    assert parsed.grouped <= known
    assert set(re.findall(r"\$labels\.(\w+)", alert.text)) <= known - parsed.grouped
    assert "severity: " in alert.text and "summary: " in alert.text and "description: " in alert.text


def test_alerts_are_rules_to_prometheus_itself() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; the Debian package prometheus has it")
    done = subprocess.run([promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_expression_that_is_not_understood_is_an_error() -> None:
    for wrong in ("a <", "a > 1 b", "sum by (x) (a)", "a{b!='c'}", "topk(3, a)"):
        with pytest.raises((AssertionError, IndexError)):
            Expression(wrong)
    assert Expression('a{b=~"x|y"} / a').selectors == [Selector("a", ("b",)), Selector("a", ())]


# -- what they say of a gateway


def scrape(gateway: Gateway) -> Scrape:
    found = gateway.get("/metrics")
    assert found is not None
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(found[1].decode())
        for sample in family.samples
    }


def firing(before: Scrape, after: Scrape, seconds: float = 60.0) -> set[str]:
    window = Window(before, after, time.time(), seconds)
    return {alert.name for alert in alerts() if Expression(alert.expression, window).fires}


def value(found: Scrape, name: str) -> float:
    return sum(each for (each_name, _), each in found.items() if each_name == name)


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.mark.system
def test_alerts_are_silent_on_a_gateway_that_is_well_and_tell_what_ails_another(provider: ScriptedProvider) -> None:
    with Gateway(provider, tick_seconds=0.1) as gateway:
        gateway.start()
        well = scrape(gateway)
        (gateway.directory / "last-backup.json").write_text(
            f'{{"at": {int(time.time() * 1000) - 60_000}, "path": "/b", "bytes": 1, "turns": 1}}'
        )
        with gateway.client() as client:
            for _ in range(3):
                take_turn(client, "chat", "hello", session="alerted")
        still_well = scrape(gateway)
        # Room on this machine's disk is not the gateway's affair.
        assert firing(well, still_well) - {"PerdureDiskNearlyFull"} == set()
        assert value(still_well, "perdure_last_backup_timestamp_seconds") == pytest.approx(time.time() - 60, abs=30)

        gateway.kill("worker", signal.SIGKILL)
        gateway.wait_status("degraded")
        with gateway.client() as client:
            take_turn(client, "chat", "hello", session="alerted")
        ailing = scrape(gateway)
        found = firing(still_well, ailing)
        assert {"PerdureWorkerDown", "PerdureUnacknowledgedAnswers"} <= found
        assert value(ailing, "perdure_outbox_writes") > 0
        # What needs time to become an alert, with the time it needs.
        waited = {**ailing, ("perdure_outbox_oldest_seconds", frozenset()): 31.0}
        assert "PerdureOutboxGrows" in firing(still_well, waited)
        degraded = value(ailing, "perdure_degraded_seconds_total")
        eventually(lambda: value(scrape(gateway), "perdure_degraded_seconds_total") > degraded + 0.5)
        longer = {**ailing, ("perdure_degraded_seconds_total", frozenset()): degraded + 61.0}
        assert "PerdureDegraded" in firing(still_well, longer) and "PerdureDegraded" not in found

        gateway.start_worker()
        gateway.wait_status("ready")
        assert "PerdureWorkerDown" not in firing(scrape(gateway), scrape(gateway))


def changed(found: Scrape, **values: float) -> Scrape:
    """A scrape with other values of metrics, whatever their labels."""
    return {(name, labels): values.get(name, each) for (name, labels), each in found.items()}


def test_alerts_fire_on_what_they_are_for() -> None:
    def scraped(**values: float) -> Scrape:
        plain: Scrape = {
            (sample.name, frozenset(sample.labels)): sample.value
            for family in all_families()
            for sample in family.samples
        }
        good = {"perdure_disk_bytes": 1e12, "perdure_disk_free_bytes": 9e11, "perdure_committing": 1.0}
        good |= {"perdure_worker_up": 1.0, "perdure_last_backup_timestamp_seconds": time.time()}
        return changed(plain, **good | values)

    def fired(**values: float) -> set[str]:
        return firing(scraped(), scraped(**values))

    assert fired() == set()
    assert fired(perdure_worker_up=0.0) == {"PerdureWorkerDown"}
    assert fired(perdure_committing=0.0) == {"PerdureCommitsFail"}
    assert fired(perdure_wal_bytes=3e8) == {"PerdureLogLarge"}
    assert fired(perdure_disk_free_bytes=4e10) == {"PerdureDiskNearlyFull"}
    assert fired(perdure_disk_free_bytes=9e8) == {"PerdureDiskNearlyFull"}
    assert fired(perdure_strangers_total=1.0) == {"PerdureStrangers"}
    assert (
        fired(perdure_refused_frames_total=1.0) == fired(perdure_refused_answers_total=1.0) == {"PerdureFramesRefused"}
    )
    assert fired(perdure_last_backup_timestamp_seconds=time.time() - 3 * DAY) == {"PerdureNoBackup"}
    assert fired(perdure_last_backup_timestamp_seconds=0.0) == {"PerdureNeverBackedUp"}
    slow = fired(perdure_commit_duration_seconds_sum=60.0, perdure_commit_duration_seconds_count=100.0)
    assert slow == {"PerdureCommitsSlow"}
    assert firing(scraped(), {}) == {"PerdureAbsent"}
    assert fired(perdure_requests_total=1.0) == {"PerdureInternalErrors"}
    turns = ("perdure_turns_total", frozenset({("provider", "openai"), ("model", "m"), ("status", "error")}))
    assert firing(scraped(), {**scraped(), turns: 30.0}) == {"PerdureProviderErrors"}
    assert firing(scraped(), {**scraped(), turns: 3.0}) == set()
    assert version("perdure") in {dict(labels).get("version") for (name, labels) in scraped() if "build" in name}


def test_restarts_are_told_by_what_changes_within_the_window() -> None:
    """`changes` counts within the window; two scrapes show one change, which is not yet a loop."""
    (alert,) = (each for each in alerts() if each.name == "PerdureRestartsLoop")
    assert alert.expression.count("> 3") == 2
    once = alert.expression.replace("> 3", "> 0")
    place = ("perdure_daemon_start_time_seconds", frozenset({("daemon", "daemon-0")}))
    assert Expression(once, Window({place: 1.0}, {place: 2.0}, 0.0)).fires
    assert not Expression(once, Window({place: 1.0}, {place: 1.0}, 0.0)).fires
    assert not Expression(alert.expression, Window({place: 1.0}, {place: 2.0}, 0.0)).fires
