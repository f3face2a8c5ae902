"""What a model's tokens cost, in integers; the same rates for quotes and bills.

Rates are in yocto-dollars (1e-24 USD) per token, so every published price is exact:
a dollar per million tokens is 10**18. A cost is summed exactly and rounded up to
nano-dollars once. Prices may step up with the length of the input; a step applies to
all tokens of the call, as providers bill it.

>>> Rates.parse("0.15/0.60").cost_nusd(Usage(1_000, 100))
210000
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from itertools import product
from typing import Any

from scheduler.errors import ConfigError, PriceUnknown
from scheduler.request import Usage

YOCTO_PER_NANO = 10**15
YOCTO_PER_USD_A_MILLION = 10**18  # yocto-dollars per token for one dollar per million tokens
MAX_USD_A_MILLION = 100_000  # above it a price was surely meant per token or per thousand

Steps = tuple[tuple[int, int], ...]  # (input tokens above which it holds, yocto-dollars per token)


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of one model.

    A kind of token without a price of its own counts as what it is part of: cached
    input as input, reasoning as output.

    Attributes:
        long_cache_write: For caches kept longer.
        per_call: Yocto-dollars for each call, beside its tokens.
        context_tokens: The most tokens a call may have; None: not known.
        is_complete: False: the model also bills by something that is not counted here.
    """

    input: Steps
    output: Steps = ((0, 0),)
    cache_read: Steps | None = None
    cache_write: Steps | None = None
    long_cache_write: Steps | None = None
    input_audio: Steps | None = None
    output_audio: Steps | None = None
    reasoning: Steps | None = None
    per_call: int = 0
    context_tokens: int | None = None
    is_complete: bool = True
    _dear_input: Steps = field(init=False, repr=False, compare=False)
    _dear_output: Steps = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kinds_in = (
            self.input, self.cache_read, self.cache_write, self.long_cache_write, self.input_audio,
        )  # fmt: skip
        object.__setattr__(self, "_dear_input", _dearest(kinds_in))
        kinds_out = (self.output, self.output_audio, self.reasoning)
        object.__setattr__(self, "_dear_output", _dearest(kinds_out))

    @classmethod
    def parse(cls, price: str, what: str = "price") -> Rates:
        """Read a price of the user's own: ``"IN/OUT"`` or ``"IN/OUT/CACHED"``, USD per million.

        Raises:
            ConfigError: Not such a price, negative, or absurd.
        """
        parts = price.replace("$", "").split("/")
        if not 2 <= len(parts) <= 3:
            raise ConfigError(
                what, f"{price!r} is not IN/OUT in USD per million tokens, like 0.10/0.20"
            )
        steps = [((0, _yocto_per_token(part, what)),) for part in parts]
        return cls(steps[0], steps[1], steps[2] if len(steps) > 2 else None)

    def cost_nusd(self, usage: Usage) -> int:
        """What a call with this usage costs, rounded up to nano-dollars."""
        length, rest_in, rest_out = usage.input_tokens, usage.input_tokens, usage.output_tokens
        total = self.per_call
        # Without a price of their own they are ordinary ones.
        long_written = usage.long_cache_write_tokens if self.long_cache_write is not None else 0
        for steps, count in (
            (self.cache_read, usage.cached_tokens),
            (self.long_cache_write, usage.long_cache_write_tokens),
            (self.cache_write, usage.cache_write_tokens - long_written),
            (self.input_audio, usage.input_audio_tokens),
        ):
            if steps is not None and count:
                count = min(count, rest_in)
                rest_in -= count
                total += _at(steps, length) * count
        for steps, count in (
            (self.output_audio, usage.output_audio_tokens),
            (self.reasoning, usage.reasoning_tokens),
        ):
            if steps is not None and count:
                count = min(count, rest_out)
                rest_out -= count
                total += _at(steps, length) * count
        total += _at(self.input, length) * rest_in + _at(self.output, length) * rest_out
        return -(-total // YOCTO_PER_NANO)

    def plain_nusd(self, input_tokens: int, output_tokens: int) -> int:
        """What a call costs whose tokens are all of the ordinary kind."""
        total = self.per_call + _at(self.input, input_tokens) * input_tokens
        total += _at(self.output, input_tokens) * output_tokens
        return -(-total // YOCTO_PER_NANO)

    def most_nusd(self, input_tokens: int, output_tokens: int) -> int:
        """The most that a call with up to so many tokens can cost, however they split."""
        total = self.per_call + _at(self._dear_input, input_tokens) * input_tokens
        total += _at(self._dear_output, input_tokens) * output_tokens
        return -(-total // YOCTO_PER_NANO)


def _at(steps: Steps, length: int) -> int:
    """The rate for an input of this length."""
    rate = steps[0][1]
    if len(steps) > 1:
        for above, stepped in steps:
            if length > above:
                rate = stepped
    return rate


def _dearest(kinds: Iterable[Steps | None]) -> Steps:
    """Steps of the highest rate of any kind for an input of any length up to the given one."""
    listed = [steps for steps in kinds if steps is not None]
    highest = max(steps[0][1] for steps in listed)
    dearest = [(0, highest)]
    for above, rate in sorted(step for steps in listed for step in steps[1:]):
        highest = max(highest, rate)
        dearest.append((above, highest))
    return tuple(dearest)


def _yocto_per_token(text: str, what: str) -> int:
    try:
        price = Decimal(text.strip())
    except InvalidOperation:
        raise ConfigError(what, f"{text!r} is not a price in USD per million tokens") from None
    if not price.is_finite() or not 0 <= price <= MAX_USD_A_MILLION:
        raise ConfigError(
            what,
            f"{text!r} is not between 0 and {MAX_USD_A_MILLION:,} USD per million tokens; is it "
            "meant per thousand?",
        )
    return _yocto(price)


def _yocto(usd_a_million: Decimal) -> int:
    """Yocto-dollars a token; what is finer, which no provider publishes, is rounded up."""
    return int((usd_a_million * YOCTO_PER_USD_A_MILLION).to_integral_value(ROUND_CEILING))


# The catalogue

_FIELDS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "long_cache_write",
    "input_audio_mtok": "input_audio",
    "output_audio_mtok": "output_audio",
    "output_reasoning_mtok": "reasoning",
}
_STAND_INS = {"input": "input_text_mtok", "output": "output_text_mtok"}
# Billed only for tools the provider runs, which make a quote no bound anyway; or a finer
# kind than usage tells apart, and cheaper than the kind it is counted as.
_BESIDE = ("web_searches_kcount", "storage_searches_kcount", "cache_audio_read_mtok")


def from_catalogue(prices: Any, context_tokens: int | None) -> Rates:
    """Rates from a `genai_prices.types.ModelPrice`."""
    listed = {name: value for name, value in vars(prices).items() if value is not None}
    fields: dict[str, Any] = {}
    is_complete = True
    for name, value in listed.items():
        if name in _FIELDS:
            fields[_FIELDS[name]] = _steps(value)
        elif name == "requests_kcount":
            fields["per_call"] = _yocto(value * 1000)  # USD per thousand calls
        elif name not in _STAND_INS.values():
            is_complete = is_complete and name in _BESIDE
    for kind, stand_in in _STAND_INS.items():
        if kind not in fields:
            fields[kind] = _steps(listed[stand_in]) if stand_in in listed else ((0, 0),)
    return Rates(**fields, context_tokens=context_tokens, is_complete=is_complete)


def _steps(price: Any) -> Steps:
    """A price, or a price with tiers, as steps."""
    tiers = getattr(price, "tiers", ())
    base = getattr(price, "base", price)
    return (
        (0, _yocto(base)),
        *((tier.start, _yocto(tier.price)) for tier in tiers),
    )


class Listing:
    """A model in the catalogue: its rates at any time, compiled when they are first needed.

    Attributes:
        provider: The catalogue's id of the provider.
        fixed: The rates, if they depend on neither date nor hour; else None.
    """

    __slots__ = ("_constraints", "_context", "_minute", "_model", "_possible", "fixed", "provider")

    def __init__(self, provider: str, model: Any, tier: str | None) -> None:
        self.provider, self._model = provider, model
        self._context = None if tier is None else {"service_tier": tier, "speed": tier}
        dated = [*(model.prices if isinstance(model.prices, list) else ())]
        dated += model.price_variants or () if tier is not None else ()
        self._constraints = [each.constraint for each in dated if each.constraint is not None]
        self._minute = -1  # for which `_possible` holds
        self._possible: tuple[Rates, ...] = ()
        self.fixed: Rates | None = None if self._constraints else self._compile(_EPOCH)

    def now(self, at_ms: int) -> Rates:
        """The rates at an instant."""
        return self.fixed or self.possible(at_ms)[0]

    def possible(self, at_ms: int) -> tuple[Rates, ...]:
        """The rates at an instant, then those of other hours and of announced dates."""
        if self.fixed is not None:
            return (self.fixed,)
        minute = at_ms // 60_000  # prices change at full minutes
        if minute != self._minute:
            at = datetime.fromtimestamp(minute * 60, UTC)
            found = {self._compile(each): None for each in (at, *self._turns(at))}
            self._minute, self._possible = minute, tuple(found)
        return self._possible

    def _turns(self, at: datetime) -> Iterable[datetime]:
        """Instants from today on that stand for every price there will be."""
        days, times = {at.date()}, {time(0, tzinfo=UTC)}
        for constraint in self._constraints:
            start: date | None = getattr(constraint, "start_date", None)
            if start is not None:
                days.add(max(start, at.date()))
            for name in ("start_time", "end_time"):
                of_day: time | None = getattr(constraint, name, None)
                if of_day is not None:
                    aware = of_day if of_day.tzinfo else of_day.replace(tzinfo=UTC)
                    times.add(datetime.combine(at.date(), aware).astimezone(UTC).timetz())
        return (datetime.combine(day, of_day) for day, of_day in product(days, times))

    def _compile(self, at: datetime) -> Rates:
        prices = self._model.get_prices(at, self._context)
        return from_catalogue(prices, self._model.context_window)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def look_up(model: str, price_source: str | None, tier: str | None) -> Listing:
    """Find a model in the catalogue of genai-prices.

    Args:
        model: As requests name it.
        price_source: The catalogue's id of the provider, or its base URL. None, or a URL
            the catalogue does not know: by the model's name alone.
        tier: Service tier or speed; None: the standard one.

    Raises:
        PriceUnknown: It is not there.
    """
    if not model:
        raise PriceUnknown("", price_source or "", "the request names no model")
    # Imported late: those who price everything themselves never need its thousands of models.
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    for provider_id, url, name in _ways_to_ask(model, price_source, snapshot):
        try:
            provider, info = snapshot.find_provider_model(name, None, provider_id, url)
        except LookupError:
            continue
        return Listing(provider.id, info, tier)
    names = {info.id for provider in snapshot.providers for info in provider.models}
    near = difflib.get_close_matches(model, names, 3, 0.75)
    hint = f"the catalogue has {', '.join(near)}" if near else ""
    raise PriceUnknown(model, price_source or "", hint)


def _ways_to_ask(
    model: str, price_source: str | None, snapshot: Any
) -> Iterable[tuple[str | None, str | None, str]]:
    """(provider id, URL, model) to try in turn."""
    if price_source is not None and "://" not in price_source:
        yield price_source, None, model
        return
    if price_source is not None:
        yield None, price_source, model
        try:
            snapshot.find_provider(None, None, price_source)
        except LookupError:
            pass  # a proxy, a gateway or a local server
        else:
            return
    for separator in ("/", ":"):
        provider_id, found, rest = model.partition(separator)
        if found:
            yield provider_id, None, rest
    yield None, None, model
