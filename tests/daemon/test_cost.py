"""Prices, against list prices worked out by hand."""

from __future__ import annotations

from decimal import Decimal
from importlib.metadata import version
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.cost import MODELS_REMEMBERED_MAX, Prices, asks_for_longer_window
from worker.protocol import COUNT_MAX, NANOUSD_MAX, Usage
from worker.settings import Model

AT_MS = 1_760_000_000_000
"""October 2025."""
PRICES = Prices()


@pytest.mark.parametrize(
    ("provider", "model", "usage", "expected"),
    [
        # A dollar per million tokens is a thousand nano-dollars per token: 3 in, 15 out, 0.30 read, 3.75 and 6 written.
        ("anthropic", "claude-sonnet-4-5", Usage(input_tokens=1000), 3_000_000),
        ("anthropic", "claude-sonnet-4-5-20250929", Usage(output_tokens=1000), 15_000_000),
        ("anthropic", "claude-sonnet-4-5", Usage(cache_read_tokens=1000), 300_000),
        ("anthropic", "claude-sonnet-4-5", Usage(cache_write_5m_tokens=1000), 3_750_000),
        ("anthropic", "claude-sonnet-4-5", Usage(cache_write_1h_tokens=1000), 6_000_000),
        (
            "anthropic",
            "claude-sonnet-4-5",
            Usage(
                input_tokens=1000,
                cache_read_tokens=2000,
                cache_write_5m_tokens=3000,
                cache_write_1h_tokens=4000,
                output_tokens=500,
            ),
            3_000_000 + 600_000 + 11_250_000 + 24_000_000 + 7_500_000,
        ),
        # The tier is chosen by the whole prompt, and then holds for every token of it.
        ("anthropic", "claude-sonnet-4-5", Usage(cache_read_tokens=200_000), 60_000_000),
        (
            "anthropic",
            "claude-sonnet-4-5",
            Usage(input_tokens=1, cache_read_tokens=200_000, output_tokens=100),
            6_000 + 120_000_000 + 2_250_000,
        ),
        ("anthropic", "claude-haiku-4-5", Usage(input_tokens=7, output_tokens=3), 7_000 + 15_000),
        # gpt-5: 1.25 in, 0.125 cached, 10 out; writes have no price of their own and cost what input costs.
        (
            "openai",
            "gpt-5",
            Usage(input_tokens=100, cache_read_tokens=900, output_tokens=50),
            125_000 + 112_500 + 500_000,
        ),
        ("openai", "gpt-5", Usage(cache_write_5m_tokens=100), 125_000),
        ("openai", "gpt-5", Usage(cache_write_1h_tokens=100), 125_000),
        # Another name: what the maker of the model asks.
        ("my-proxy", "claude-haiku-4-5", Usage(input_tokens=1), 1_000),
        ("my-proxy", "gpt-5", Usage(input_tokens=8), 10_000),
        ("anthropic", "claude-sonnet-4-5", Usage(), 0),
    ],
)
def test_price_is_the_list_price(provider: str, model: str, usage: Usage, expected: int) -> None:
    assert PRICES.price_nanousd(provider, model, usage, AT_MS) == expected


@pytest.mark.parametrize(("tokens", "expected"), [(1, 38), (2, 75), (3, 112), (4, 150)])
def test_price_of_half_a_nanodollar_is_rounded_to_even(tokens: int, expected: int) -> None:
    """At 37.5 nano-dollars a token: 37.5 → 38 and 112.5 → 112."""
    assert PRICES.price_nanousd("cohere", "command-r7b", Usage(input_tokens=tokens), AT_MS) == expected


def test_price_is_the_one_of_its_day() -> None:
    """o3 became cheaper on 10 June 2025."""
    before, after = 1_749_427_200_000, 1_749_600_000_000
    assert PRICES.price_nanousd("openai", "o3", Usage(input_tokens=1000), before) == 10_000_000
    assert PRICES.price_nanousd("openai", "o3", Usage(input_tokens=1000), after) == 2_000_000


@pytest.mark.parametrize("at_ms", [0, 2**53])
def test_clock_that_is_far_off_still_gives_a_price(at_ms: int) -> None:
    assert PRICES.price_nanousd("anthropic", "claude-haiku-4-5", Usage(input_tokens=1), at_ms) == 1_000


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", ""),
        ("anthropic", "no-such-model"),
        ("anthropic", "gpt-5"),
        ("openai", "claude-sonnet-4-5"),
        ("my-proxy", "no-such-model"),
        ("", ""),
        ("openai", "whisper-1"),
        ("openai", "moderation"),
    ],
)
def test_model_without_a_token_price_is_unknown_and_not_free(provider: str, model: str) -> None:
    assert PRICES.price_nanousd(provider, model, Usage(input_tokens=1000), AT_MS) is None
    assert PRICES.cap_ceiling(provider, model) == 0


counts = st.integers(0, 10**7) | st.just(COUNT_MAX)


@given(
    provider=st.sampled_from(["anthropic", "openai", "openrouter", "x"]) | st.text(),
    model=st.text() | st.sampled_from(["gpt-5", "claude-", "o3", "ft:gpt-4o:x", "a" * 100_000, "anthropic/claude"]),
    usage=st.builds(
        Usage,
        input_tokens=counts,
        cache_read_tokens=counts,
        cache_write_5m_tokens=counts,
        cache_write_1h_tokens=counts,
        output_tokens=counts,
    ),
    at_ms=st.integers(0, 2**53),
)
@settings(max_examples=150, deadline=None, database=None, print_blob=True)
def test_any_model_name_any_usage_and_any_time_give_a_count_or_none(
    provider: str, model: str, usage: Usage, at_ms: int
) -> None:
    price = PRICES.price_nanousd(provider, model, usage, at_ms)
    assert price is None or 0 <= price <= NANOUSD_MAX
    assert PRICES.cap_ceiling(provider, model) >= 0


def test_price_too_large_for_the_ledger_is_unknown() -> None:
    assert PRICES.price_nanousd("anthropic", "claude-opus-4-8", Usage(output_tokens=COUNT_MAX), AT_MS) is None


def test_version_is_that_of_the_list() -> None:
    assert PRICES.price_version("anthropic", "claude-haiku-4-5") == version("genai-prices")


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("anthropic", "claude-sonnet-4-5", 266_666),  # 3.75 a million, the base tier
        ("anthropic", "claude-opus-4-8", 160_000),  # 6.25
        ("anthropic", "claude-haiku-4-5", 800_000),  # 1.25
        ("openai", "gpt-5", 800_000),  # no price for writes: 1.25 for input
        ("my-proxy", "claude-opus-4-8", 160_000),
    ],
)
def test_cap_ceiling_is_what_a_dollar_writes(provider: str, model: str, expected: int) -> None:
    assert PRICES.cap_ceiling(provider, model, is_longer_asked=True) == expected


@pytest.mark.parametrize(
    ("provider", "model", "window"),
    [
        ("anthropic", "claude-sonnet-4-5", 200_000),
        ("anthropic", "claude-haiku-4-5", 200_000),
        ("openai", "gpt-5", 400_000),
        ("my-proxy", "gpt-5", 400_000),
    ],
)
def test_cap_ceiling_is_never_beyond_a_window_of_the_list_that_is_sure(provider: str, model: str, window: int) -> None:
    affordable = PRICES.cap_ceiling(provider, model, is_longer_asked=True)
    assert PRICES.cap_ceiling(provider, model) == window < affordable
    # What fits in proves nothing; what does not fit, that the window is another one.
    assert PRICES.cap_ceiling(provider, model, prompt_tokens=window) == window
    assert PRICES.cap_ceiling(provider, model, prompt_tokens=window + 1) == affordable


@pytest.mark.parametrize(
    ("headers", "is_longer"),
    [
        ([], False),
        ([("anthropic-beta", "context-1m-2025-08-07")], True),
        ([("Anthropic-Beta", "oauth-2025-04-20, CONTEXT-1M-2025-08-07,other")], True),
        ([("anthropic-beta", "other"), ("anthropic-beta", "context-2m-2027-01-01")], True),
        ([("anthropic-beta", "context-management-2025-06-27")], False),
        ([("anthropic-beta", "no-context-1m-2025-08-07")], False),
        ([("x-other", "context-1m-2025-08-07")], False),
    ],
)
def test_request_asks_for_a_longer_window_by_its_header(headers: list[tuple[str, str]], is_longer: bool) -> None:
    assert asks_for_longer_window(headers) is is_longer


def test_names_from_strangers_are_not_remembered_without_bound() -> None:
    prices = Prices()
    for number in range(MODELS_REMEMBERED_MAX + 50):
        prices.cap_ceiling("my-proxy", f"model-{number}")
    assert prices._find.cache_info().currsize == MODELS_REMEMBERED_MAX


# -- what the operator says

OWN = {
    "in-house-9b": Model(input=Decimal("0.1"), output=Decimal(2)),
    "claude-sonnet-4-5": Model(
        input=Decimal(1),
        cache_read=Decimal("0.1"),
        cache_write_5m=Decimal(2),
        cache_write_1h=Decimal(4),
        output=Decimal(8),
        context_window=300_000,
    ),
    "azure/gpt-5": Model(input=Decimal(7), output=Decimal(7)),
    "claude-haiku-4-5": Model(context_window=200_000),
    "free": Model(input=Decimal(0), output=Decimal(0)),
    "unpriced": Model(context_window=64_000),
}
OWN_PRICES = Prices(OWN)
EVERY_KIND = Usage(
    input_tokens=1_000,
    cache_read_tokens=2_000,
    cache_write_5m_tokens=3_000,
    cache_write_1h_tokens=4_000,
    output_tokens=500,
)


@pytest.mark.parametrize(
    ("provider", "model", "usage", "expected"),
    [
        ("anthropic", "claude-sonnet-4-5", EVERY_KIND, 1_000_000 + 200_000 + 6_000_000 + 16_000_000 + 4_000_000),
        # What is left out costs what input costs; nothing is taken from the list.
        ("openai", "in-house-9b", EVERY_KIND, 10_000 * 100 + 1_000_000),
        ("azure", "gpt-5", EVERY_KIND, 10_500 * 7_000),
        # A long prompt costs no more than a short one, where nobody says so.
        ("anthropic", "claude-sonnet-4-5", Usage(input_tokens=1_000_000), 1_000_000_000),
        ("openai", "free", EVERY_KIND, 0),
        # A limit is no price, and another provider's price is not this one's.
        ("anthropic", "claude-haiku-4-5", Usage(input_tokens=7, output_tokens=3), 7_000 + 15_000),
        ("openai", "gpt-5", Usage(input_tokens=8), 10_000),
        ("openai", "unpriced", EVERY_KIND, None),
        # Names are whole names: prices of others are not guessed from them.
        ("openai", "in-house-9b-2", EVERY_KIND, None),
        ("openai", "azure/gpt-5", EVERY_KIND, 10_500 * 7_000),
    ],
)
def test_price_that_the_operator_gives_comes_before_the_lists(
    provider: str, model: str, usage: Usage, expected: int | None
) -> None:
    assert OWN_PRICES.price_nanousd(provider, model, usage, AT_MS) == expected


def test_price_of_the_operator_beyond_the_ledger_is_unknown() -> None:
    assert OWN_PRICES.price_nanousd("x", "in-house-9b", Usage(output_tokens=COUNT_MAX), AT_MS) is None


def test_version_tells_the_operators_prices_apart_and_says_which_rows_were_priced_by_them() -> None:
    def version_with(**said: str) -> str:
        given: dict[str, Any] = {name: Decimal(value) for name, value in said.items()}
        model = Model(**given)
        return Prices({"m": model}).price_version("openai", "m")

    first = version_with(input="3", output="15")
    assert first.startswith("own-") and len(first) < 20
    assert (
        first == version_with(input="3.0", output="15.00") == version_with(input="3", output="15", context_window="9")
    )
    others = {version_with(input="3", output="16"), version_with(input="3", output="15", cache_read="0")}
    assert len({first, *others}) == 3
    # A limit alone makes no price of one's own.
    assert OWN_PRICES.price_version("anthropic", "claude-haiku-4-5") == version("genai-prices")
    assert OWN_PRICES.price_version("openai", "gpt-5") == version("genai-prices")
    assert OWN_PRICES.price_version("azure", "gpt-5").startswith("own-")


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("anthropic", "claude-sonnet-4-5", 300_000),  # 500,000 at 2 a million
        ("openai", "in-house-9b", 10_000_000),  # no price for writes: 0.1 for input
        ("anthropic", "claude-haiku-4-5", 200_000),  # 800,000 by the list's price
        ("openai", "unpriced", 64_000),
        ("openai", "free", 0),
        ("openai", "gpt-5", 400_000),  # the list's window
    ],
)
def test_cap_ceiling_goes_by_the_operators_price_and_never_beyond_the_window(
    provider: str, model: str, expected: int
) -> None:
    assert OWN_PRICES.cap_ceiling(provider, model) == expected


# -- names


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("anthropic", "claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-5-of-my-own-making", "claude-sonnet-4-5"),
        ("openai", "in-house-9b", "in-house-9b"),
        ("azure", "gpt-5", "gpt-5"),
        ("openai", "no-such-model", ""),
        ("openai", "", ""),
    ],
)
def test_known_name_is_one_of_the_list_whatever_a_client_makes_of_it(provider: str, model: str, expected: str) -> None:
    assert OWN_PRICES.known_name(provider, model) == expected
