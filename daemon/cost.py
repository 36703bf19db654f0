"""What tokens cost: counts in, nano-dollars out.

One rule: a price is known or it is None; it is never guessed and an unknown one is never 0.

Theory of operation.  The price list is the one that comes with the `genai-prices` package; its updates from the
network are never used, so that one version of it gives one price for ever and can be named in the ledger.  Its words
differ from ours: there input tokens are the whole prompt and write tokens are those of every lifetime; ours are
disjoint kinds.  Its own lookup remembers every model name it was ever asked for, and names come from strangers, so
models are looked up here, and only the last `MODELS_REMEMBERED_MAX` are remembered.

What the operator says of a model comes first, by the name that requests call it by.  A price of his is taken as a
whole and for every length of a prompt; the list fills no gaps in it, since that would change with an upgrade.  A kind
that has none costs what input costs, and a write for an hour what the other one does.  Such a price has a version of
its own, a hash of what it says: what was priced by it can be found, and priced again.

A context window of the list is only a limit from above, for advice that must not name a length which can not be sent.
It is not believed where it may be another one: a header can ask for a longer one, and lists grow old.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

import genai_prices
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, Provider, TieredPrices

from worker.protocol import COUNT_MAX, NANOUSD_MAX, Usage
from worker.settings import Model

NANO: Final = 10**9
TOKENS_PER_PRICE: Final = 10**6
"""List prices are in dollars per million tokens."""
MODELS_REMEMBERED_MAX: Final = 256
"""Lookups kept, found or not: a team uses a dozen models, and a search goes through a list of a thousand."""
BUST_COST_USD: Final = Decimal("1.00")
"""What one cache bust may cost: the target that the context cap is steered to."""
HASH_CHARACTERS: Final = 12
"""Of a price's version: an operator has hundreds of prices in a life, not millions."""
AT_MS_MAX: Final = 253_370_764_800_000
"""The first day of the year 9999; a datetime holds no more."""


class _Listed(NamedTuple):
    provider: Provider
    model: ModelInfo


class Prices:
    """The operator's prices, the price list, and the models that were looked up in it lately."""

    def __init__(self, models: Mapping[str, Model] = MappingProxyType({})) -> None:
        self._models = models
        self._providers = get_snapshot().providers
        self._find = lru_cache(maxsize=MODELS_REMEMBERED_MAX)(self._search)

    def price_nanousd(self, provider: str, model: str, usage: Usage, at_ms: int) -> int | None:
        """The price of an answer at that time; None if it is not known."""
        own = self._own(provider, model)
        dollars = _own_price(own, usage) if own.is_priced else self._listed_price(provider, model, usage, at_ms)
        if dollars is None:
            return None
        nanousd = int((dollars * NANO).to_integral_value(ROUND_HALF_EVEN))
        return nanousd if nanousd <= NANOUSD_MAX else None

    def price_version(self, provider: str, model: str) -> str:
        """What a price was taken from, to be kept with it: the version of the list, or the hash of what the operator
        says."""
        own = self._own(provider, model)
        return f"own-{_hash_of(own)}" if own.is_priced else genai_prices.__version__

    def cap_ceiling(self, provider: str, model: str, *, is_longer_asked: bool = False, prompt_tokens: int = 0) -> int:
        """Tokens that can be written to the cache for `BUST_COST_USD`, at the latest price, and never more than the
        model's window; 0 if nothing limits them.

        That window is the operator's, or the list's where it is sure: not of a request that asks for a longer one, and
        not where a prompt of so many tokens was answered, which proves that it is longer.
        """
        own = self._own(provider, model)
        price = _own_write_price(own) if own.is_priced else self._listed_write_price(provider, model)
        limits = [int(BUST_COST_USD * TOKENS_PER_PRICE / price)] if price else []
        if own.context_window is not None:
            limits.append(own.context_window)
        elif not is_longer_asked and (window := self._listed_window(provider, model)) >= max(prompt_tokens, 1):
            limits.append(window)
        return min([*limits, COUNT_MAX]) if limits else 0

    def known_name(self, provider: str, model: str) -> str:
        """What the operator or the list calls a model; "" if neither knows it.  Clients may call one by any of a number
        of names without end, and there is an end to these."""
        if self._own(provider, model) is not _NOTHING:
            return model
        listed = self._find(provider, model)
        return listed.model.id if listed is not None else ""

    def _own(self, provider: str, model: str) -> Model:
        return self._models.get(f"{provider}/{model}") or self._models.get(model) or _NOTHING

    def _listed_price(self, provider: str, model: str, usage: Usage, at_ms: int) -> Decimal | None:
        listed = self._find(provider, model)
        if listed is None:
            return None
        at = _time(at_ms)
        prices = listed.model.get_prices(at)
        if prices.input_mtok is None and prices.output_mtok is None:
            return None
        return listed.model.calc_price(_listed_usage(usage), listed.provider, genai_request_timestamp=at).total_price

    def _listed_write_price(self, provider: str, model: str) -> Decimal | None:
        """Of a million tokens."""
        listed = self._find(provider, model)
        if listed is None:
            return None
        prices = listed.model.get_prices(_time(AT_MS_MAX))
        price = prices.cache_write_mtok if prices.cache_write_mtok is not None else prices.input_mtok
        return price.base if isinstance(price, TieredPrices) else price

    def _listed_window(self, provider: str, model: str) -> int:
        """0: it is not known."""
        listed = self._find(provider, model)
        return (listed.model.context_window or 0) if listed is not None else 0

    def _search(self, provider: str, model: str) -> _Listed | None:
        """A provider that the list knows by its id sells at its own prices; any other one at those of the maker."""
        named = [entry for entry in self._providers if entry.id == provider]
        for entry in named or [entry for entry in self._providers if _makes(entry, model)]:
            found = entry.find_model(model, all_providers=self._providers)
            return _Listed(entry, found) if found is not None else None
        return None


def asks_for_longer_window(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a request opts into a longer context window than its model has by itself, as by Anthropic's
    `context-1m-2025-08-07`."""
    asked = (value for name, value in headers if name.lower() == "anthropic-beta")
    return any(_LONGER_WINDOW.match(beta.strip().lower()) for value in asked for beta in value.split(","))


def _own_price(own: Model, usage: Usage) -> Decimal | None:
    if own.input is None or own.output is None:
        return None
    read = own.cache_read if own.cache_read is not None else own.input
    write = own.cache_write_5m if own.cache_write_5m is not None else own.input
    long_write = own.cache_write_1h if own.cache_write_1h is not None else write
    millionths = (
        own.input * usage.input_tokens
        + read * usage.cache_read_tokens
        + write * usage.cache_write_5m_tokens
        + long_write * usage.cache_write_1h_tokens
        + own.output * usage.output_tokens
    )
    return millionths / TOKENS_PER_PRICE


def _own_write_price(own: Model) -> Decimal | None:
    return own.cache_write_5m if own.cache_write_5m is not None else own.input


def _hash_of(own: Model) -> str:
    """Of the prices alone, however they are written: 3, 3.0 and 3.00 are one price."""
    prices = [own.input, own.cache_read, own.cache_write_5m, own.cache_write_1h, own.output]
    text = "/".join("" if price is None else f"{price.normalize():f}" for price in prices)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARACTERS]


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


_LONGER_WINDOW: Final = re.compile(r"context-\d+[km]\b")
"""Others of that beginning, like `context-management-…`, have nothing to do with its length."""
_NOTHING: Final = Model()
"""What is said of a model that the operator says nothing of."""
