"""Sketches of what a request is set up with, and what shows by itself to be no turn."""

from __future__ import annotations

import random
import string

import pytest

from daemon.providers import Setup
from daemon.shape import PROBE_TOKENS_MAX, TITLE_PROMPT_CHARACTERS_MAX, aside_by_itself, shape_of
from tests.conftest import Tell
from worker.protocol import SKETCH_HASHES_MAX
from worker.roles import alike

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
PAIRS = 300
CHANGED_SHARE = 16
"""Of the lines one in so many is another: with 400 lines an estimate that says less than half comes once in 10⁷."""


def setup(system: list[str], tools: list[str] | None = None) -> Setup:
    return Setup(tuple(system), tuple(tools or ()))


def sketch(system: list[str], key: bytes = KEY) -> str:
    return shape_of(setup(system), "", key).system


def lines(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(string.ascii_letters + " ", k=rng.randrange(5, 80))) for _ in range(count)]


def test_shape_holds_no_word_of_the_prompt_and_fits_its_field() -> None:
    shape = shape_of(setup(lines(random.Random(1), 900), [f"tool-{n}" for n in range(400)]), "fix it", KEY)

    assert "tool" not in shape.tools and "fix" not in shape.opening
    assert len(shape.system.split()) == len(shape.tools.split()) == SKETCH_HASHES_MAX
    assert max(map(len, (shape.system, shape.tools, shape.opening))) < 512


def test_shape_of_lines_in_another_order_or_twice_is_the_same() -> None:
    assert sketch(["a", "b", "c"]) == sketch(["c", "a", "b", "a"])


def test_shape_in_another_store_shares_nothing() -> None:
    one, other = (shape_of(setup(["a"], ["b"]), "c", key) for key in (KEY, OTHER_KEY))

    assert not {one.system, one.tools, one.opening} & {other.system, other.tools, other.opening}


def test_shape_of_another_opening_differs_in_that_alone() -> None:
    one, other = (shape_of(setup(["a"], ["b"]), opening, KEY) for opening in ("x", "y"))

    assert one.opening != other.opening
    assert (one.system, one.tools) == (other.system, other.tools)


def test_sketch_is_the_smallest_hashes_in_every_process() -> None:
    many = lines(random.Random(2), 200)

    assert sketch(many).split() == sorted(sketch([line]) for line in many)[:SKETCH_HASHES_MAX]


def test_sketch_of_nothing_is_empty() -> None:
    assert sketch([]) == ""
    assert alike(sketch([]), sketch([])) and not alike(sketch([]), sketch(["a"]))


@pytest.mark.parametrize("count", [4, 30, 400])
def test_sketches_of_a_prompt_that_drifts_are_alike(count: int, tell: Tell) -> None:
    """A date, a branch, a note of the project."""
    seed = random.randrange(2**32)
    tell(f"sketches of {count} lines that drift: seed {seed}")
    rng = random.Random(seed)
    for _ in range(PAIRS):
        before = lines(rng, count)
        others = count // CHANGED_SHARE
        after = [*rng.sample(before, count - others), *lines(rng, others)]
        rng.shuffle(after)
        assert alike(sketch(before), sketch(after)), f"seed {seed}"


@pytest.mark.parametrize(("count", "shared"), [(4, 1), (30, 4), (400, 40)])
def test_sketches_of_strangers_are_not_alike(count: int, shared: int, tell: Tell) -> None:
    """Prompts of one program share its first lines."""
    seed = random.randrange(2**32)
    tell(f"sketches of {count} lines of strangers: seed {seed}")
    rng = random.Random(seed)
    for _ in range(PAIRS):
        first = lines(rng, shared)
        one, other = ([*first, *lines(rng, count - shared)] for _ in range(2))
        assert not alike(sketch(one), sketch(other)), f"seed {seed}"


TITLES = [
    "Generate a concise title for this conversation.",
    "You are a title generator.",
    "Analyze if this message indicates a new conversation topic. If so, extract a 2-3 word title.",
    "Summarize this coding conversation in under 50 characters.",
    "Return JSON with the field title.",
]
WORK = [
    "You are a coding agent.",
    "Each section of the page is entitled to a heading.",
    "Write the subtitles into a file.",
    "",
]


@pytest.mark.parametrize("line", TITLES)
def test_short_opening_without_tools_that_asks_for_a_title_is_aside(line: str) -> None:
    assert aside_by_itself(setup(["You are helpful.", line]), 512, is_opening=True)


@pytest.mark.parametrize("line", TITLES)
def test_title_asked_for_within_the_work_is_a_turn(line: str) -> None:
    long = ["x" * TITLE_PROMPT_CHARACTERS_MAX, line]

    assert not aside_by_itself(setup([line], ["bash"]), 512, is_opening=True)
    assert not aside_by_itself(setup([line]), 512, is_opening=False)
    assert not aside_by_itself(setup(long), 512, is_opening=True)


@pytest.mark.parametrize("line", WORK)
def test_opening_that_asks_for_no_title_is_a_turn(line: str) -> None:
    assert not aside_by_itself(setup([line]), None, is_opening=True)


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, True), (PROBE_TOKENS_MAX, True), (PROBE_TOKENS_MAX + 1, False), (None, False)]
)
def test_request_for_no_more_than_one_token_is_a_probe(limit: int | None, *, expected: bool) -> None:
    for is_opening in (True, False):
        assert bool(aside_by_itself(setup(["You are a coding agent."], ["bash"]), limit, is_opening=is_opening)) is (
            expected
        )
