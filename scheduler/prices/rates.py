"""What the catalogue of genai-prices knows of a model: its rates, at any time.

Where it has no price for something that providers are known to ask more for than for text,
the dearest it lists for that stands in, and the rates say that it is a guess.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache
from itertools import product
from typing import Any

from scheduler.errors import PriceUnknown
from scheduler.prices.billing import YOCTO_PER_USD, Rates, Steps, dearest_of, yocto
from scheduler.prices.surcharges import variant_of
from scheduler.request import Usage

_FIELDS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "long_cache_write",
    "input_audio_mtok": "input_audio",
    "output_audio_mtok": "output_audio",
    "cache_audio_read_mtok": "cache_audio",
    "input_image_mtok": "input_image",
    "output_image_mtok": "output_image",
    "cache_image_read_mtok": "cache_image",
    "input_video_mtok": "input_video",
    "output_video_mtok": "output_video",
    "cache_video_read_mtok": "cache_video",
    "output_reasoning_mtok": "reasoning",
    "output_citation_mtok": "citation",
}
_STAND_INS = {"input": "input_text_mtok", "output": "output_text_mtok"}
_CALLS = {  # USD per thousand
    "requests_kcount": "per_call",
    "web_searches_kcount": "web_search",
    "storage_searches_kcount": "file_search",
    "code_executions_kcount": "code_session",
}
_HOURS = ("audio_hours", "input_audio_hours")  # of sound, the latter a part of the former
# Service tiers and speeds that cost more, and how many times as much at most, where the catalogue
# does not tell: OpenAI's page on priority processing (gpt-5.5), Anthropic's on fast mode (Opus 4.6),
# November 2026.
_DEARER_TIERS = {"priority": Decimal("2.5"), "fast": Decimal(6)}
# Those that cost no more than the standard one, listed or not; of any other nobody knows.
_NO_DEARER_TIERS = ("batch", "flex", "on_demand", "scale")
# What providers are known to ask more for than for text.
_DEAR_KINDS = ("input_audio_mtok", "output_audio_mtok", "output_image_mtok", "output_video_mtok")
# Their lists name a price for sound wherever it differs from that of text.
_TELLS_OF_AUDIO = ("google",)


def from_catalogue(
    prices: Any, context_tokens: int | None, provider: str = "", model: str = "",
    with_media: bool = False,
) -> Rates:  # fmt: skip
    """Rates from a `genai_prices.types.ModelPrice`.

    Args:
        prices: What the catalogue has.
        context_tokens: The model's context window.
        provider: The catalogue's id of the provider.
        model: And of the model.
        with_media: Have prices for sound and pictures too, even if others' must stand in.
    """
    listed = {name: value for name, value in vars(prices).items() if value is not None}
    fields: dict[str, Any] = {
        field: _steps(listed[name]) for name, field in _FIELDS.items() if name in listed
    }
    for kind, stand_in in _STAND_INS.items():
        if kind not in fields:
            fields[kind] = _steps(listed[stand_in]) if stand_in in listed else ((0, 0),)
    for name, field in _CALLS.items():
        if name in listed:
            fields[field] = yocto(_base(listed[name]) * 1000)
    hours = [_base(listed[name]) for name in _HOURS if name in listed]
    if hours:
        fields["audio_second"] = -(-int(max(hours) * YOCTO_PER_USD) // 3600)
    known = {*_FIELDS, *_CALLS, *_HOURS, *_STAND_INS.values()}
    guessed = set[str]()
    for name in _DEAR_KINDS if with_media else ():
        if name in listed or (provider in _TELLS_OF_AUDIO and "audio" in name):
            continue
        own = fields["input" if name.startswith("input") else "output"]
        guess = dearest_listed(provider, name) or 0
        fields[_FIELDS[name]] = dearest_of((own, ((0, guess),)))
        guessed.add(_FIELDS[name])
    for name, field in _CALLS.items():
        if name not in listed and field != "per_call":
            guessed.add(field)
            found = dearest_listed(provider, name)
            if found is not None:
                fields[field] = found
    return Rates(
        **fields, context_tokens=context_tokens, guessed=frozenset(guessed | {"made_image"}),
        is_complete=listed.keys() <= known
        and ("image" not in model.lower() or "output_image_mtok" in listed),
    )  # fmt: skip


@lru_cache(512)
def dearest_listed(provider: str, name: str) -> int | None:
    """The dearest price the catalogue has for a kind, at a provider or else at any; None: none.

    In yocto-dollars for a token, or for a call.
    """
    from genai_prices.data_snapshot import get_snapshot

    found: dict[bool, int] = {}
    scale = 1000 if name in _CALLS else 1
    for each in get_snapshot().providers:
        for info in each.models:
            dated = info.prices if isinstance(info.prices, list) else None
            for prices in [info.prices] if dated is None else [one.prices for one in dated]:
                value = vars(prices).get(name)
                if value is not None:
                    own = each.id == provider
                    found[own] = max(found.get(own, 0), yocto(_base(value) * scale))
    return found.get(True, found.get(False))


def _base(price: Any) -> Decimal:
    """A price, or the dearest of its tiers."""
    tiers: Iterable[Any] = getattr(price, "tiers", ())
    base: Decimal = getattr(price, "base", price)
    dearest: Decimal = max([base, *(tier.price for tier in tiers)])
    return dearest


def _steps(price: Any) -> Steps:
    """A price, or a price with tiers, as steps."""
    tiers = getattr(price, "tiers", ())
    base = getattr(price, "base", price)
    return (
        (0, yocto(base)),
        *((tier.start, yocto(tier.price)) for tier in tiers),
    )


class Listing:
    """A model in the catalogue: its rates at any time, compiled when they are first needed.

    Attributes:
        provider: The catalogue's id of the provider.
        fixed: The rates, if they depend on neither date nor hour; else None.
    """

    __slots__ = (
        "_constraints", "_context", "_guess", "_has_media", "_media", "_minute", "_model", "_possible",
        "_tier", "fixed", "provider",
    )  # fmt: skip

    def __init__(
        self, provider: str, model: Any, tier: str | None, with_media: bool = False,
        guess: str = "",
    ) -> None:  # fmt: skip
        self.provider, self._model, self._tier, self._guess = provider, model, tier, guess
        self._has_media, self._media = with_media, self if with_media else None
        self._context = None if tier is None else {"service_tier": tier, "speed": tier}
        dated = [*(model.prices if isinstance(model.prices, list) else ())]
        dated += model.price_variants or () if tier is not None else ()
        self._constraints = [each.constraint for each in dated if each.constraint is not None]
        self._minute = -1  # for which `_possible` holds
        self._possible: tuple[Rates, ...] = ()
        self.fixed: Rates | None = None if self._constraints else self._compile(_EPOCH)

    def with_media(self) -> Listing:
        """The same, with prices for sound and pictures even where others' must stand in."""
        if self._media is None:
            self._media = Listing(self.provider, self._model, self._tier, True, self._guess)
        return self._media

    def stands_in(self) -> Listing:
        """The same for a variant of the model, which may cost more."""
        return Listing(self.provider, self._model, self._tier, self._has_media, "variant")

    def is_same(self, other: Listing) -> bool:
        """Whether it is the same model, under whichever of its names."""
        return self._model is other._model and self._guess == other._guess

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
        rates = from_catalogue(
            prices, self._model.context_window, self.provider, self._model.id, self._has_media
        )
        if self._guess:
            rates = rates.times(Decimal(1), self._guess)
        if self._tier is None or self._tier in _NO_DEARER_TIERS or self._lists_tier():
            return rates
        return rates.times(_DEARER_TIERS.get(self._tier, Decimal(1)), "tier")

    def _lists_tier(self) -> bool:
        """Whether the catalogue has a price for the tier, be it one that starts later."""
        variants = self._model.price_variants or ()
        return any(self._tier in each.when.values() for each in variants)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def look_up(model: str, price_source: str | None, tier: str | None) -> Listing:
    """Find a model in the catalogue of genai-prices.

    Args:
        model: As requests name it.
        price_source: The catalogue's id of the provider, or its base URL. None, or a URL
            the catalogue does not know: by the model's name alone, wherever it is if it costs
            the same everywhere.
        tier: Service tier or speed; None: the standard one.

    Raises:
        PriceUnknown: It is not there, or at several providers for different prices.
    """
    if not model:
        raise PriceUnknown("", price_source or "", "the request names no model")
    found = find(model, price_source, tier)
    if found is not None:
        return found
    from genai_prices.data_snapshot import get_snapshot

    names = {info.id for provider in get_snapshot().providers for info in provider.models}
    near = difflib.get_close_matches(model, names - {model}, 3, 0.75)
    hint = f"the catalogue has {', '.join(near)}; " if near else ""
    raise PriceUnknown(model, price_source or "", hint + _in_python(model))


def find(model: str, price_source: str | None, tier: str | None) -> Listing | None:
    """As `look_up`, without looking for what is near; None: it is not there.

    Raises:
        PriceUnknown: It is at several providers for different prices.
    """
    # Imported late: those who price everything themselves never need its thousands of models.
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    found, variant = _listed(model, price_source, tier, snapshot), variant_of(model)
    if found is None and variant is not None:
        found = _listed(variant.model, price_source, tier, snapshot)
        if found is not None and not variant.is_bounded:
            found = found.stands_in()
    return found


def _listed(
    model: str, price_source: str | None, tier: str | None, snapshot: Any
) -> Listing | None:
    """A model under just this name; None: it is not there. Raises as `look_up`."""
    for provider_id, url, name in _ways_to_ask(model, price_source, snapshot):
        try:
            provider, info = snapshot.find_provider_model(name, None, provider_id, url)
        except LookupError:
            continue
        if _has_price(info):
            return Listing(provider.id, info, tier)
    return _anywhere(model, snapshot, tier) if _is_elsewhere(price_source, snapshot) else None


def listed_as(model: str, price_source: str | None) -> tuple[str, str] | None:
    """The catalogue's ids of the provider and the model that a name finds; None: none, or several.

    Args:
        model: As for `look_up`.
        price_source: Likewise.
    """
    if not model:
        return None
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    for provider_id, url, name in _ways_to_ask(model, price_source, snapshot):
        try:
            provider, info = snapshot.find_provider_model(name, None, provider_id, url)
        except LookupError:
            continue
        return provider.id, info.id
    return None


def _in_python(model: str) -> str:
    return f"in Python: Scheduler(prices={{{model!r}: 'IN/OUT'}})"


def _has_price(info: Any) -> bool:
    """Whether a listing has a price of tokens: some are there for their names alone."""
    dated = info.prices if isinstance(info.prices, list) else None
    return any(
        name.endswith("_mtok") and value is not None
        for prices in ([info.prices] if dated is None else [each.prices for each in dated])
        for name, value in vars(prices).items()
    )


def _is_elsewhere(price_source: str | None, snapshot: Any) -> bool:
    """Whether nobody said whose prices hold: a proxy, a gateway or a server of one's own."""
    if price_source is None:
        return True
    if "://" not in price_source:
        return False
    try:
        snapshot.find_provider(None, None, price_source)
    except LookupError:
        return True
    return False


def _anywhere(model: str, snapshot: Any, tier: str | None) -> Listing | None:
    """The model at whoever has it, if all of them ask the same; None: nobody has it.

    Raises:
        PriceUnknown: They ask different prices; it says who asks which.
    """
    bare = model.rpartition("/")[2]
    for name in dict.fromkeys((model, bare, f"*/{bare}")):
        asks: dict[frozenset[tuple[Steps, Steps]], list[Listing]] = {}
        for provider in snapshot.providers:
            info = _find(provider, name)
            if info is None or not _has_price(info):
                continue
            listing = Listing(provider.id, info, tier)
            prices = frozenset((rates.input, rates.output) for rates in listing.possible(0))
            if prices != _FREE:  # for trial at one place, which says nothing about another
                asks.setdefault(prices, []).append(listing)
        if len(asks) == 1:
            # Of equal ones the one that grants the fewest discounts.
            return max(next(iter(asks.values())), key=_dearness)
        if asks:
            raise PriceUnknown(model, "", _who_asks_what(model, asks.values()))
    return None


def _find(provider: Any, name: str) -> Any:
    """A provider's model, by its name, or as ``*/name`` by what its id ends with."""
    start, _, end = name.partition("*/")
    if start or not end:
        return provider.find_model(name)
    end = f"/{end.lower()}"
    return next((each for each in provider.models if each.id.lower().endswith(end)), None)


_FREE = frozenset({(((0, 0),), ((0, 0),))})
_MANY = 10**6


def _dearness(listing: Listing) -> tuple[int, int]:
    rates = listing.possible(0)[0]
    cached = rates.cost_nusd(Usage(_MANY, _MANY, cached_tokens=_MANY))
    return cached, rates.most_nusd(_MANY, _MANY)


def _who_asks_what(model: str, asks: Iterable[list[Listing]]) -> str:
    """Providers with their prices, for people; the dearest first."""
    by_price = sorted(asks, key=lambda listings: _dearness(listings[0]), reverse=True)
    shown = [
        f"{', '.join(each.provider for each in listings[:3])}"
        f"{' and others' if len(listings) > 3 else ''} {_in_words(listings[0])}"
        for listings in by_price[:MOST_SHOWN]
    ]
    rest = f"; {len(by_price) - MOST_SHOWN} more prices" if len(by_price) > MOST_SHOWN else ""
    return (
        f"several ask different prices for it, in USD per million tokens: {'; '.join(shown)}{rest}. "
        f"Say which by that price; {_in_python(model)}, or on the provider "
        f"price_source = {by_price[0][0].provider!r}"
    )


MOST_SHOWN = 8  # prices of one model in an error


def _in_words(listing: Listing) -> str:
    rates = listing.possible(0)[0]
    return "/".join(
        f"{(Decimal(steps[0][1]) / yocto(Decimal(1))).normalize():f}"
        for steps in (rates.input, rates.output)
    )


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
