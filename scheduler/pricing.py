"""What a request may cost before it is sent, and what its answer did cost.

    ceiling  = dearest input rate × bound on input tokens
             + dearest output rate × n × the request's own output cap

With no cap in the body the model's known maximum is taken, else its context window,
else `DEFAULT_OUTPUT`, which is then no bound and said so. Rates come from the user's
own table first, then from the catalogue of genai-prices; a model found in neither is
an error, never free.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from scheduler.errors import PriceUnknown
from scheduler.providers.base import Answer, Tariff
from scheduler.rates import ATTO_PER_USD_A_MILLION, Rates, Steps, from_catalogue
from scheduler.request import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MODERATIONS,
    RESPONSES,
    Quote,
    Request,
    Usage,
)  # fmt: skip
from scheduler.tokens import TokenBound, bound_input_tokens

DEFAULT_OUTPUT = 16_384
EXPECTED_OUTPUT = 300  # tokens of an ordinary answer, for forecasts only
EXPECTED_BYTES_PER_TOKEN = 4
LEAST_BYTES_PER_TOKEN = 8
_OUTPUT_CAPS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_STANDARD_TIERS = (None, "auto", "default", "standard")

# Most output tokens by model, from the providers' model pages (November 2026); the longest
# prefix counts. Anthropic's models are missing on purpose: their API demands a cap.
MAX_OUTPUT = {
    "gpt-3.5-turbo": 4_096,
    "gpt-4-turbo": 4_096,
    "gpt-4o": 16_384,
    "gpt-4.1": 32_768,
    "gpt-5": 128_000,
    "o1": 100_000,
    "o3": 100_000,
    "o4-mini": 100_000,
}


@dataclass(frozen=True, slots=True)
class PriceInfo:
    """A model's prices for people, in USD per million tokens; None: no price of its own."""

    model: str
    source: str  # "own", or the catalogue's provider
    input: Decimal
    output: Decimal
    cached: Decimal | None
    cache_write: Decimal | None
    has_steps: bool
    max_output_tokens: int | None
    context_tokens: int | None


class PriceBook:
    """Prices by model, the user's own first.

    Args:
        own: Model to ``"IN/OUT"`` or ``"IN/OUT/CACHED"`` in USD per million tokens.
        count_tokens: An exact or upper count of a request's input tokens, in place of
            the bound by bytes.
        now_ms: Tells the time, for prices that change by date or hour. None: the
            computer's clock.

    Raises:
        ConfigError: A price that cannot be one.
    """

    def __init__(
        self,
        own: Mapping[str, str] | None = None,
        *,
        count_tokens: Callable[[Request], int] | None = None,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self._own: dict[str, tuple[str, Rates]] = {}
        self.count_tokens, self._now_ms = count_tokens, now_ms
        self._found: dict[tuple[str, str | None, str | None], _Found] = {}
        for model, price in (own or {}).items():
            self.set(model, price)

    @property
    def own(self) -> dict[str, str]:
        """The user's own prices as they were given."""
        return {model: text for model, (text, _) in self._own.items()}

    def set(self, model: str, price: str) -> None:
        """Add or change a price of the user's own: ``"IN/OUT"`` in USD per million tokens."""
        self._own[model] = (price, Rates.parse(price, f"price of {model}"))

    def tariff(self, price_source: str | None = None) -> Tariff:
        """Prices as one provider's calls are billed.

        Args:
            price_source: The catalogue's id of the provider, or its base URL. None, or
                a URL the catalogue does not know: found by the model's name alone.
        """
        return _BookTariff(self, price_source)

    def rates(self, model: str, price_source: str | None = None, tier: str | None = None) -> Rates:
        """Rates of a model now. Raises `PriceUnknown`."""
        if model in self._own:
            return self._own[model][1]
        return self._find(model, price_source, tier).now(self._now())

    def ceilings(
        self, model: str, price_source: str | None = None, tier: str | None = None
    ) -> tuple[Rates, ...]:
        """All rates a call sent now may be billed by. Raises `PriceUnknown`."""
        if model in self._own:
            return (self._own[model][1],)
        now = self._now()
        found = self._find(model, price_source, None).possible(now)
        if tier in _STANDARD_TIERS:
            return found
        return found + self._find(model, price_source, tier).possible(now)

    def describe(self, model: str, price_source: str | None = None) -> PriceInfo:
        """A model's prices for people. Raises `PriceUnknown`."""
        rates = self.rates(model, price_source)
        is_own = model in self._own
        return PriceInfo(
            model=model,
            source="own" if is_own else self._find(model, price_source, None).provider,
            input=_usd_a_million(rates.input),
            output=_usd_a_million(rates.output),
            cached=None if rates.cache_read is None else _usd_a_million(rates.cache_read),
            cache_write=None if rates.cache_write is None else _usd_a_million(rates.cache_write),
            has_steps=len(rates.input) > 1,
            max_output_tokens=_known_max_output(model),
            context_tokens=rates.context_tokens,
        )

    def _now(self) -> datetime | None:
        if self._now_ms is None:
            return None
        return datetime.fromtimestamp(self._now_ms() / 1000, UTC)

    def _find(self, model: str, price_source: str | None, tier: str | None) -> _Found:
        tier = None if tier in _STANDARD_TIERS else tier
        key = (model, price_source, tier)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = _look_up(model, price_source, tier)
        return found


class _BookTariff:
    """A price book as one provider's tariff."""

    def __init__(self, book: PriceBook, price_source: str | None) -> None:
        self._book, self._source = book, price_source

    def quote(self, request: Request) -> Quote:
        body, url = request.body, request.url
        if url == MODERATIONS:
            return Quote(0, 0)  # moderation is free at every provider that has it
        tier = body.get("service_tier")
        candidates = self._book.ceilings(
            request.model, self._source, tier if isinstance(tier, str) else None
        )
        bound = self._bound_input(request)
        output = bound_output_tokens(request, candidates[0].context_tokens)
        ceiling_nusd = max(rates.most_nusd(bound.tokens, output.tokens) for rates in candidates)
        rates, size = candidates[0], bound.tokens
        likely = Usage(size // EXPECTED_BYTES_PER_TOKEN, min(output.tokens, EXPECTED_OUTPUT))
        least = Usage(size // LEAST_BYTES_PER_TOKEN, min(output.tokens, 1))
        return Quote(
            ceiling_nusd,
            min(ceiling_nusd, rates.cost_nusd(likely)),
            bound.tokens + output.tokens,
            min(ceiling_nusd, rates.cost_nusd(least)),
            bound.is_bound and output.is_bound and all(each.is_complete for each in candidates),
        )

    def _bound_input(self, request: Request) -> TokenBound:
        if self._book.count_tokens is not None:
            return TokenBound(self._book.count_tokens(request))
        return bound_input_tokens(request.url, request.body)

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        if answer.cost_nusd is not None:
            return answer.cost_nusd
        if request.url == MODERATIONS:
            return 0
        if answer.usage is None:
            return None
        tier = answer.body.get("service_tier") if isinstance(answer.body, dict) else None
        if tier is None:
            tier = request.body.get("service_tier")
        rates = self._book.rates(
            request.model, self._source, tier if isinstance(tier, str) else None
        )
        return rates.cost_nusd(answer.usage)


def bound_output_tokens(request: Request, context_tokens: int | None) -> TokenBound:
    """Most tokens the output of a request can be."""
    body = request.body
    if request.url in (EMBEDDINGS, MODERATIONS):
        return TokenBound(0)
    caps = [body[name] for name in _OUTPUT_CAPS if _is_positive(body.get(name))]
    most = _known_max_output(request.model) or context_tokens
    known = min(max(caps), most) if caps and most else max(caps, default=most or 0)
    answers = max(_count(body.get("n")), _count(body.get("best_of")))
    return TokenBound((known or DEFAULT_OUTPUT) * answers, bool(known))


def with_output_cap(request: Request, tokens: int) -> Request:
    """The request with an output cap written into its body, if it has none."""
    if any(name in request.body for name in _OUTPUT_CAPS):
        return request
    if request.url == RESPONSES:
        name = "max_output_tokens"
    elif request.url == CHAT:
        reasons = request.model.startswith(("o1", "o3", "o4", "gpt-5"))
        name = "max_completion_tokens" if reasons else "max_tokens"
    elif request.url == COMPLETIONS:
        name = "max_tokens"
    else:
        return request
    return replace(request, body={**request.body, name: tokens})


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 1


def _known_max_output(model: str) -> int | None:
    found = max((name for name in MAX_OUTPUT if model.startswith(name)), key=len, default=None)
    return None if found is None else MAX_OUTPUT[found]


def _usd_a_million(steps: Steps) -> Decimal:
    return (Decimal(steps[0][1]) / ATTO_PER_USD_A_MILLION).normalize()


# The catalogue


@dataclass(slots=True)
class _Found:
    """A model in the catalogue, with its prices compiled as they are first needed."""

    provider: str
    model: Any  # genai_prices.types.ModelInfo
    context: dict[str, str] | None
    fixed: Rates | None  # the rates, if they depend on neither date nor hour

    def now(self, at: datetime | None) -> Rates:
        if self.fixed is not None:
            return self.fixed
        prices = self.model.get_prices(at or datetime.now(UTC), self.context)
        return from_catalogue(prices, self.model.context_window)

    def possible(self, at: datetime | None) -> tuple[Rates, ...]:
        """The rates now, and those of other hours and announced dates."""
        if self.fixed is not None:
            return (self.fixed,)
        at = at or datetime.now(UTC)
        prices = self.model.prices
        others = (
            from_catalogue(dated.prices, self.model.context_window)
            for dated in (prices if isinstance(prices, list) else ())
            if dated.constraint is not None and not _has_begun(dated.constraint, at)
        )
        return (self.now(at), *others)


def _has_begun(constraint: Any, at: datetime) -> bool:
    start = getattr(constraint, "start_date", None)
    return start is not None and start <= at.date()


def _look_up(model: str, price_source: str | None, tier: str | None) -> _Found:
    if not model:
        raise PriceUnknown("", price_source or "", "the request names no model")
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    for provider_id, url, name in _ways_to_ask(model, price_source):
        try:
            provider, info = snapshot.find_provider_model(name, None, provider_id, url)
        except LookupError:
            continue
        context = {"service_tier": tier} if tier is not None else None
        fixed = None
        has_dated_variant = any(v.constraint is not None for v in info.price_variants or ())
        if not isinstance(info.prices, list) and not (context and has_dated_variant):
            prices = info.get_prices(datetime.now(UTC), context)
            fixed = from_catalogue(prices, info.context_window)
        return _Found(provider.id, info, context, fixed)
    raise PriceUnknown(model, price_source or "", _hint(model, snapshot.providers))


def _ways_to_ask(
    model: str, price_source: str | None
) -> Iterable[tuple[str | None, str | None, str]]:
    """(provider id, URL, model) to try in turn."""
    if price_source is not None and "://" not in price_source:
        yield price_source, None, model
        return
    if price_source is not None:
        yield None, price_source, model
        from genai_prices.data_snapshot import get_snapshot

        try:
            get_snapshot().find_provider(None, None, price_source)
        except LookupError:
            pass  # a proxy, a gateway or a local server
        else:
            return
    for separator in ("/", ":"):
        provider_id, found, rest = model.partition(separator)
        if found:
            yield provider_id, None, rest
    yield None, None, model


def _hint(model: str, providers: Iterable[Any]) -> str:
    names = {info.id for provider in providers for info in provider.models}
    near = difflib.get_close_matches(model, names, 3, 0.75)
    return f"the catalogue has {', '.join(near)}" if near else ""
