"""What tokens cost: counts in, nano-dollars out.

One rule: a price is known or it is None; it is never guessed and an unknown one is never 0.

Theory of operation.  The price list is the one that comes with the `genai-prices` package; its updates from the
network are never used, so that one version of it gives one price for ever and can be named in the ledger.  Its words
differ from ours: there input tokens are the whole prompt and write tokens are those of every lifetime; ours are
disjoint kinds.  Its own lookup remembers every model name it was ever asked for, and names come from strangers, so
models are looked up here, and only the last `MODELS_REMEMBERED_MAX` are remembered.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Final, NamedTuple

import genai_prices
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, Provider, TieredPrices

from worker.protocol import COUNT_MAX, NANOUSD_MAX, Usage

NANO: Final = 10**9
TOKENS_PER_PRICE: Final = 10**6
"""List prices are in dollars per million tokens."""
MODELS_REMEMBERED_MAX: Final = 256
"""Lookups kept, found or not: a team uses a dozen models, and a search goes through a list of a thousand."""
BUST_COST_USD: Final = Decimal("1.00")
"""What one cache bust may cost: the target that the context cap is steered to."""
AT_MS_MAX: Final = 253_370_764_800_000
"""The first day of the year 9999; a datetime holds no more."""


class _Listed(NamedTuple):
    provider: Provider
    model: ModelInfo


class Prices:
    """The price list, and the models that were looked up in it lately."""

    def __init__(self) -> None:
        self._providers = get_snapshot().providers
        self._find = lru_cache(maxsize=MODELS_REMEMBERED_MAX)(self._search)

    def price_nanousd(self, provider: str, model: str, usage: Usage, at_ms: int) -> int | None:
        """The price of an answer at that time; None if the list does not have it."""
        listed = self._find(provider, model)
        if listed is None:
            return None
        at = _time(at_ms)
        prices = listed.model.get_prices(at)
        if prices.input_mtok is None and prices.output_mtok is None:
            return None
        total = listed.model.calc_price(_listed_usage(usage), listed.provider, genai_request_timestamp=at).total_price
        nanousd = int((total * NANO).to_integral_value(ROUND_HALF_EVEN))
        return nanousd if nanousd <= NANOUSD_MAX else None

    def price_version(self) -> str:
        """The version of the list, to be kept with every price."""
        return genai_prices.__version__

    def cap_ceiling(self, provider: str, model: str) -> int:
        """Tokens that can be written to the cache for `BUST_COST_USD`, at the latest listed price; 0 if unknown."""
        listed = self._find(provider, model)
        if listed is None:
            return 0
        prices = listed.model.get_prices(_time(AT_MS_MAX))
        price = prices.cache_write_mtok if prices.cache_write_mtok is not None else prices.input_mtok
        base = price.base if isinstance(price, TieredPrices) else price
        return min(int(BUST_COST_USD * TOKENS_PER_PRICE / base), COUNT_MAX) if base else 0

    def _search(self, provider: str, model: str) -> _Listed | None:
        """A provider that the list knows by its id sells at its own prices; any other one at those of the maker."""
        named = [entry for entry in self._providers if entry.id == provider]
        for entry in named or [entry for entry in self._providers if _makes(entry, model)]:
            found = entry.find_model(model, all_providers=self._providers)
            return _Listed(entry, found) if found is not None else None
        return None


def _makes(provider: Provider, model: str) -> bool:
    return provider.model_match is not None and provider.model_match.is_match(model.lower())


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(min(max(at_ms, 0), AT_MS_MAX) / 1000, UTC)


def _listed_usage(usage: Usage) -> genai_prices.Usage:
    """Writes for an hour are given beside the sum of all writes: where they have no price of their own, the other
    one holds for them too."""
    return genai_prices.Usage(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_tokens=usage.output_tokens,
    )
