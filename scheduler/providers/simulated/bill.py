"""What does a simulated provider charge? Its own prices, its own arithmetic, its own count.

Models of its own have the prices below. Real models' names cost what the catalogue of
genai-prices says, by that library's own arithmetic. Nothing here is shared with the price book
or the ledger, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any

from scheduler.errors import ConfigError
from scheduler.request import Usage

SIMULATED_PRICES: dict[str, str] = {
    "sim-small": "0.15/0.60",
    "sim-large": "2.50/10",
    "sim-reasoning": "1.10/4.40",
    "sim-embedding": "0.02/0",
}
"""Models and prices, in USD per million tokens in and out; a `PriceBook` takes it as it is."""

DEFAULT_PRICE = "1/4"  # for models nobody knows: they are answered all the same


class PriceList:
    """Prices by model.

    Args:
        prices: ``IN/OUT`` in USD per million tokens; a third part is taken and not used,
            since nothing is cached here. They come before the catalogue's.

    Raises:
        ConfigError: A price in another form.

    >>> PriceList({"m": "0.15/0.60"}).nusd("m", Usage(1000, 100))
    210000
    """

    def __init__(self, prices: Mapping[str, str]) -> None:
        self._rates = {model: _rates(model, price) for model, price in prices.items()}
        self._others = _rates("any other model", DEFAULT_PRICE)
        self._listed: dict[str, tuple[Any, Any] | None] = {}

    def nusd(self, model: str, usage: Usage, tier: str | None = None) -> int:
        """Nano-dollars: each kind of token times its rate, a fraction rounded up once.

        Args:
            model: As it was asked for.
            usage: What the answer says.
            tier: The service tier or speed that was asked for; None: the standard one.
        """
        if model not in self._rates:
            if model not in self._listed:
                self._listed[model] = _find(model)
            listed = self._listed[model]
            if listed is not None:
                return _catalogue_nusd(*listed, usage, tier)
        into, out = self._rates.get(model, self._others)
        return -(-(usage.input_tokens * into + usage.output_tokens * out) // 1000)


def _find(model: str) -> tuple[Any, Any] | None:
    """The catalogue's provider and listing of a model; None: it has none, or no price."""
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    start, _, rest = model.partition("/")
    for name, provider_id in ((rest, start), (model, None)):
        try:
            provider, listing = snapshot.find_provider_model(name, None, provider_id, None)
        except LookupError:
            continue
        if _is_priced(listing):
            return provider, listing
    bare = model.rpartition("/")[2]
    for each in snapshot.providers:
        found = each.find_model(model) or each.find_model(bare)
        if found is not None and _is_priced(found):
            return each, found
    return None


def _is_priced(listing: Any) -> bool:
    return isinstance(listing.prices, list) or bool(vars(listing.prices))


def _catalogue_nusd(provider: Any, listing: Any, usage: Usage, tier: str | None) -> int:
    import genai_prices

    counted = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        output_image_tokens=usage.output_image_tokens,
        web_searches=usage.web_searches,
    )
    context = None if tier is None else {"service_tier": tier, "speed": tier}
    price = listing.calc_price(counted, provider, price_context=context)
    return int((price.total_price * 10**9).to_integral_value(ROUND_CEILING))


def _rates(model: str, price: str) -> tuple[int, int]:
    """In thousandths of nano-dollars a token."""
    try:
        rates = [int((Decimal(part) * 1_000_000).to_integral_exact()) for part in price.split("/")]
    except (InvalidOperation, ValueError, OverflowError):
        rates = []
    if not 2 <= len(rates) <= 3 or min(rates) < 0:
        raise ConfigError("prices", f"{price!r} for {model} is not IN/OUT such as '0.15/0.60'")
    return rates[0], rates[1]


@dataclass(frozen=True, slots=True)
class Billed:
    """One call the provider billed.

    Attributes:
        headers: Those of the request that were meant for the scheduler, by name: what should
            have been taken off before it was sent.
    """

    key: str | None
    url: str
    body: Mapping[str, Any]
    usage: Usage
    nusd: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Bill:
    """The provider's own count, which knows nothing of any ledger.

    Attributes:
        calls: How many calls were billed.
        received: How many arrived, refused ones included.
        by_model: Nano-dollars per model.
        by_caller: Nano-dollars per caller, where callers are told apart.
        records: Every billed call, if asked for.
    """

    calls: int = 0
    received: int = 0
    nusd: int = 0
    tokens: int = 0
    by_model: dict[str, int] = field(default_factory=dict)
    by_caller: dict[str, int] = field(default_factory=dict)
    records: list[Billed] | None = None

    def add(self, model: str, call: Billed, caller: str) -> None:
        """Count one call."""
        self.calls += 1
        self.nusd += call.nusd
        self.tokens += call.usage.total_tokens
        self.by_model[model] = self.by_model.get(model, 0) + call.nusd
        if caller:
            self.by_caller[caller] = self.by_caller.get(caller, 0) + call.nusd
        if self.records is not None:
            self.records.append(call)
