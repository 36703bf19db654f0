"""The census: counters of all daemons that ever were, gauges of those that are."""

from __future__ import annotations

from worker.census import FORGET_SECONDS, LIVE_SECONDS, RETURNING_MAX, Census, merged
from worker.protocol import Family, Hello, MetricType, Sample


def hello(boot: str, instance: str = "") -> Hello:
    return Hello(boot=boot, instance=instance or boot, version="0", pid=1)


def family(value: float, type: MetricType = "counter", name: str = "turns") -> Family:
    return Family(name, type, "help", [Sample(name, [("model", "m")], value)])


def value_of(census: Census, now: float, name: str = "turns") -> float:
    found = [f for f in census.metrics([], now) if f.name == name]
    return found[0].samples[0].value if found else 0.0


def test_counters_never_fall_over_deaths_and_reconnects() -> None:
    census = Census()
    last = 0.0
    for life in range(200):
        boot, now = f"boot-{life}", float(life * 10)
        census.greet(boot, hello(boot, "daemon-1"), now)
        assert value_of(census, now) >= last
        census.peers[boot].metrics = [family(3.0)]
        last = value_of(census, now)
        assert last == 3.0 * (life + 1)


def test_gauges_die_with_their_daemon_and_counters_stay() -> None:
    census = Census()
    census.greet("a", hello("a"), 0.0)
    census.peers["a"].metrics = [family(5.0), family(7.0, "gauge", "held")]
    assert (value_of(census, 1.0), value_of(census, 1.0, "held")) == (5.0, 7.0)
    silent = LIVE_SECONDS + 1.0
    assert (value_of(census, silent), value_of(census, silent, "held")) == (5.0, 0.0)
    census.leave("a")
    assert (value_of(census, silent), value_of(census, silent, "held")) == (5.0, 0.0)


def test_daemon_back_after_it_was_forgotten_is_not_counted_twice() -> None:
    census = Census()
    census.greet("a", hello("a"), 0.0)
    census.peers["a"].metrics = [family(5.0)]
    later = FORGET_SECONDS + 1.0
    census.forget_silent(later)
    assert not census.heard("a", later)
    census.greet("a", hello("a"), later)
    assert value_of(census, later) == 5.0
    census.peers["a"].metrics = [family(6.0)]
    assert value_of(census, later) == 6.0


def test_what_is_kept_of_the_dead_stays_bounded() -> None:
    census = Census()
    for number in range(10 * RETURNING_MAX):
        census.greet(f"b{number}", hello(f"b{number}"), 0.0)
        census.peers[f"b{number}"].metrics = [family(1.0)]
        census.leave(f"b{number}")
    assert value_of(census, 0.0) == 10.0 * RETURNING_MAX
    assert len(census._gone) == RETURNING_MAX


def test_new_boot_of_an_instance_ends_the_old_one() -> None:
    census = Census()
    census.greet("one-1", hello("one-1", "one"), 0.0)
    census.greet("two-1", hello("two-1", "two"), 0.0)
    census.greet("one-2", hello("one-2", "one"), 0.0)
    assert census.live(0.0) == {"one-2", "two-1"}
    assert not census.heard("one-1", 0.0)


def test_greeting_again_keeps_what_was_counted() -> None:
    census = Census()
    census.greet("a", hello("a"), 0.0)
    census.peers["a"].metrics = [family(5.0)]
    census.greet("a", hello("a"), 1.0)
    assert value_of(census, 1.0) == 5.0


def test_live_are_those_heard_lately() -> None:
    census = Census()
    census.greet("a", hello("a"), 0.0)
    census.greet("b", hello("b"), 0.0)
    assert census.heard("a", LIVE_SECONDS)
    assert census.live(LIVE_SECONDS + 0.5) == {"a"}


def test_merged_adds_samples_of_the_same_name_and_labels_only() -> None:
    one = Family("f", "counter", "h", [Sample("f", [("x", "1")], 1.0), Sample("f", [("x", "2")], 2.0)])
    two = Family("f", "counter", "h", [Sample("f", [("x", "2")], 3.0)])
    assert [(s.labels, s.value) for s in merged([[one], [two]])[0].samples] == [
        ([("x", "1")], 1.0),
        ([("x", "2")], 5.0),
    ]


def test_gauge_in_seconds_is_the_largest_over_all_daemons_and_others_are_added_up() -> None:
    census = Census()
    for boot, age in (("a", 2.0), ("b", 30.0), ("c", 4.0)):
        census.greet(boot, hello(boot), 0.0)
        census.peers[boot].metrics = [family(age, "gauge", "oldest_seconds"), family(age, "counter", "spent_seconds")]
    assert (value_of(census, 1.0, "oldest_seconds"), value_of(census, 1.0, "spent_seconds")) == (30.0, 36.0)


def test_command_is_no_daemon_that_was_started() -> None:
    assert not Census().greet("c-1", Hello(boot="c-1", instance="c-1", version="0", pid=1, is_daemon=False), 0.0)


def test_boot_is_new_once() -> None:
    census = Census()
    assert census.greet("a-1", hello("a-1", "a"), 0.0)
    assert not census.greet("a-1", hello("a-1", "a"), 1.0)
    assert census.greet("a-2", hello("a-2", "a"), 2.0)
    assert not census.greet("a-1", hello("a-1", "a"), 3.0), "it was stopped for long, and comes back"
