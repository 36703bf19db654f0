"""The hunt itself: it goes step by step where chance alone does not arrive, and sees what must not be."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.fuzz import guided
from tests.fuzz.coverage import Edges
from tests.fuzz.guided import Finding, Hang, Opened, Target, attempt, hunt, smallest
from tests.fuzz.mutation import INPUT_BYTES_MAX, mutated

INPUTS = 8_000
WORD = b"sesame"


def opened(check: Callable[[bytes], None], seed: bytes = b"....") -> Opened:
    @contextmanager
    def target(_edges: Edges) -> Iterator[Target]:
        yield Target(check=check, seeds=[seed], tokens=[b"a", b"e", b"m", b"s"])

    return target


def lock(data: bytes) -> None:
    """Opens for one word, and shows how much of it is right."""
    if data[:1] != b"s":
        return
    if data[1:2] != b"e":
        return
    if data[2:3] != b"s":
        return
    if data[3:4] != b"a":
        return
    if data[4:5] != b"m":
        return
    if data[5:6] == b"e":
        raise ValueError("it is open")


def test_hunt_that_sees_its_way_opens_the_lock_and_one_that_does_not_never() -> None:
    seeing = hunt("lock", opened(lock), seed=1, executions=INPUTS, findings_max=1, edges=Edges((__file__,)))
    blind = hunt("lock", opened(lock), seed=1, executions=INPUTS, findings_max=1, edges=Edges(("/nowhere/",)))
    assert [found.data for found in seeing.findings] == [WORD]
    assert not blind.findings and blind.corpus == 1


def test_hunt_with_the_same_seed_is_the_same() -> None:
    def executions(seed: int) -> int:
        edges = Edges((__file__,))
        return hunt("lock", opened(lock), seed=seed, executions=INPUTS, findings_max=1, edges=edges).executions

    assert executions(1) == executions(1)


def test_finding_comes_down_to_what_it_takes() -> None:
    def check(data: bytes) -> None:
        assert b"x" not in data, "an x"

    first = attempt(check, b"much before it x and much after it")
    assert first is not None
    assert smallest(check, first).data == b"x"


def test_input_without_end_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_data: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr(guided, "INPUT_SECONDS_MAX", 0.2)
    finding = attempt(check, b"")
    assert isinstance(finding, Finding) and finding.what.startswith(Hang.__name__)


def test_memory_that_an_input_takes_is_told_though_it_is_given_back() -> None:
    def check(_data: bytes) -> None:
        assert bytearray(80_000_000)[-1] == 0

    assert hunt("memory", opened(check), seed=1, executions=1).peak_growth_mb >= 70


@pytest.mark.parametrize("seed", range(3))
def test_mutation_is_repeatable_and_bounded(seed: int) -> None:
    data = b'{"a":[1,"\xc3\xa9",{"b":null}]} and 123 more'
    for number in range(300):
        one, other = (
            mutated(random.Random(seed * 1_000 + number), data, b"other" * 9_000, [b"token"]) for _ in range(2)
        )
        assert one == other and len(one) <= INPUT_BYTES_MAX
