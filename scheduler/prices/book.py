"""What a request may cost before it is sent, and what its answer did cost.

    ceiling  = dearest input rate × bound on input tokens
             + dearest output rate × n × the request's own output cap

With no cap in the body the model's known maximum is taken, else its context window,
else `DEFAULT_OUTPUT`, which is then no bound and said so. Rates come from the user's
own table first, then from the catalogue of genai-prices; a model found in neither is
an error, never free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from scheduler.answer import Answer
from scheduler.errors import PriceUnknown, brief
from scheduler.guards.hooks import counted, instant_ms
from scheduler.prices.billing import ONLY_TEXT, YOCTO_PER_USD_A_MILLION, Asked, Rates, Steps
from scheduler.prices.outputs import (
    DEFAULT_OUTPUT,
    MAX_OUTPUT,
    answers_of,
    bound_output_tokens,
    known_max_output,
    output_of,
    prompt_only,
    stated_output_tokens,
    with_output_cap,
)
from scheduler.prices.rates import Listing, find, look_up
from scheduler.prices.searches import as_billed, dear_searches_nusd
from scheduler.prices.surcharges import (
    RAISING,
    dearer,
    geo_percent,
    is_elsewhere,
    others_of,
    raised,
    region_of,
    together,
)
from scheduler.prices.tariff import Tariff
from scheduler.prices.tokens import Input, bare_name, count_input
from scheduler.prices.usage import iterations_of, whole_of
from scheduler.request import (
    MODERATIONS,
    Quote,
    Request,
    Tokens,
    Usage,
)

__all__ = [
    "DEFAULT_OUTPUT", "MAX_OUTPUT", "PriceBook", "PriceInfo", "answers_of", "bound_output_tokens",
    "prompt_only", "stated_output_tokens", "with_output_cap",
]  # fmt: skip

EXPECTED_OUTPUT = 300  # tokens of an ordinary answer, for forecasts only
EXPECTED_BYTES_PER_TOKEN = 4
LEAST_BYTES_PER_TOKEN = 8
MAX_CACHED = 10_000  # models remembered, found or not
MAX_NAME = 500  # characters of a name that an answer tells and that is looked for
_GUESSES = frozenset({"tier", "variant"})  # of which the quote says that they are
_STANDARD_TIERS = (None, "", "auto", "default", "standard", "standard_only", "unspecified")
_TIERS = ("speed", "service_tier", "serviceTier")
_FREE = Quote(0, 0)
_DEEPEST = 8  # at which a mark for a cache can stand: a part of a tool's result in a message

_Place = tuple[str, str | None, str | None]  # model, price source, tier


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

    What it found in the catalogue it keeps, so a quote takes microseconds.

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
        self._found: dict[_Place, Listing] = {}
        self._missing: dict[_Place, str] = {}  # and the hint, which takes long to find
        self._answering: dict[tuple[str | None, str, str], str] = {}
        for model, price in (own or {}).items():
            self.set(model, price)

    @property
    def own(self) -> dict[str, str]:
        """The user's own prices as they were given."""
        return {model: text for model, (text, _) in self._own.items()}

    def set(self, model: str, price: str) -> None:
        """Add or change a price of the user's own: ``"IN/OUT"`` in USD per million tokens."""
        self._own[model] = (price, Rates.parse(price, f"price of {model}"))
        self._answering.clear()

    def own_rates(self, model: str) -> Rates | None:
        """The user's own rates for a model; None: they have none."""
        found = self._own.get(model)
        return None if found is None else found[1]

    def knows(self, model: str, price_source: str | None) -> bool:
        """Whether there is a price for a model at a provider."""
        try:
            self.rates(model, price_source)
        except PriceUnknown:
            return False
        return True

    def tariff(
        self, price_source: str | None = None, brought: Mapping[str, str] | None = None,
        provider: str | None = None, base_url: str | None = None,
    ) -> Tariff:  # fmt: skip
        """Prices as one provider's calls are billed.

        Args:
            brought: Prices that hold for this provider alone, after the user's own; the
                model ``"*"`` stands for all others.
            price_source: The catalogue's id of the provider, or its base URL. None, or
                a URL the catalogue does not know: found by the model's name alone.
            provider: Its name, by which the user's prices may tell its models from others':
                ``"mistral:mistral-large-latest"``.
            base_url: Where it is, which may cost more than elsewhere. None: as the price source
                says.
        """
        listed = {model: Rates.parse(price, f"price of {model}")
                  for model, price in (brought or {}).items()}  # fmt: skip
        return _BookTariff(self, price_source, listed, provider, base_url)

    def rates(
        self, model: str, price_source: str | None = None, tier: str | None = None,
        with_media: bool = False,
    ) -> Rates:  # fmt: skip
        """Rates of a model now. Raises `PriceUnknown`.

        Args:
            model: As requests name it.
            price_source: As for `tariff`.
            tier: The service tier, or speed; None: the standard one.
            with_media: Have prices for sound and pictures too, even if others' must stand in.
        """
        if model in self._own:
            return self._own[model][1]
        listing = self._find(model, price_source, tier)
        if with_media:
            listing = listing.with_media()
        return listing.fixed or listing.now(self._at_ms())

    def ceilings(
        self, model: str, price_source: str | None = None, tier: str | None = None,
        with_media: bool = False,
    ) -> tuple[Rates, ...]:  # fmt: skip
        """All rates a call sent from now on may be billed by. Raises `PriceUnknown`.

        Those of the tier, which come first, of the standard one to which a provider may fall
        back, of other hours and of announced dates.
        """
        if model in self._own:
            return (self._own[model][1],)
        listing = self._find(model, price_source, tier)
        if with_media:
            listing = listing.with_media()
        found = listing.possible(0 if listing.fixed else self._at_ms())
        if tier in _STANDARD_TIERS:
            return found
        return found + self.ceilings(model, price_source, None, with_media)

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
            max_output_tokens=known_max_output(model),
            context_tokens=rates.context_tokens,
        )

    def answering(self, price_source: str | None, asked: str, told: str) -> str:
        """The model that answered, as it is priced, where the answer tells a name.

        That is the one asked if the name is another of its own, such as of a dated snapshot; it is
        empty if nobody knows what the name stands for.
        """
        place = (price_source, asked, told)
        found = self._answering.get(place)
        if found is None:
            if len(self._answering) >= MAX_CACHED:
                self._answering.clear()
            found = self._answering[place] = self._answers(price_source, asked, told)
        return found

    def _answers(self, price_source: str | None, asked: str, told: str) -> str:
        if told in self._own:
            return told
        if bare_name(told) == bare_name(asked):
            return asked
        listing = self._known(told, price_source)
        if listing is None and "/" in told:  # who serves it may stand before its name there
            told = told.rpartition("/")[2]
            listing = self._known(told, price_source)
        elif listing is None and "/" in asked:  # or be left out
            told = f"{asked.rpartition('/')[0]}/{told}"
            listing = self._known(told, price_source)
        if listing is None:
            return asked if bare_name(told).startswith(bare_name(asked)) else ""
        try:
            is_same = listing.is_same(self._find(asked, price_source, None))
        except PriceUnknown:
            is_same = False
        return asked if is_same else told

    @staticmethod
    def _known(told: str, price_source: str | None) -> Listing | None:
        try:
            return find(told, price_source, None) if len(told) <= MAX_NAME else None
        except PriceUnknown:  # at several prices
            return None

    def _at_ms(self) -> int:
        return _now_ms() if self._now_ms is None else instant_ms(self._now_ms, _now_ms)

    def _find(self, model: str, price_source: str | None, tier: str | None) -> Listing:
        place = (model, price_source, None if tier in _STANDARD_TIERS else tier)
        listing = self._found.get(place)
        if listing is not None:
            return listing
        if place in self._missing:
            raise PriceUnknown(model, price_source or "", self._missing[place])
        if len(self._found) + len(self._missing) >= MAX_CACHED:
            self._found.clear()
            self._missing.clear()
        try:
            listing = self._found[place] = look_up(*place)
        except PriceUnknown as exc:
            self._missing[place] = exc.hint
            raise
        return listing


class _BookTariff:
    """A price book as one provider's tariff."""

    def __init__(
        self, book: PriceBook, price_source: str | None, brought: Mapping[str, Rates],
        provider: str | None, base_url: str | None = None,
    ) -> None:  # fmt: skip
        self._region = region_of(base_url or price_source)
        if self._region is not None and (price_source is None or "://" in price_source):
            price_source = self._region.price_source
        self._book, self._source, self._brought = book, price_source, brought
        self._prefix = "" if provider is None else f"{provider}:"

    def _fixed(self, model: str) -> Rates | None:
        """What the user or the provider says it costs."""
        own = self._book.own_rates
        return (
            own(self._prefix + model)
            or own(model)
            or self._brought.get(model)
            or self._brought.get("*")
        )

    def quote(self, request: Request) -> Quote:
        if request.url == MODERATIONS:
            return _FREE  # at every provider that has it
        if self._region is None and RAISING.isdisjoint(request.body):
            return self._quote(request)
        return self._raised(request)

    def _raised(self, request: Request) -> Quote:
        """A quote where the body, or the place, may make it dearer than the model asked is."""
        body, others = request.body, others_of(request.body)
        quotes, unpriced = list[Quote](), ""
        for model in (request.model, *others.names):
            is_asked = model == request.model
            try:
                quote = self._quote(
                    request if is_asked else replace(request, body={**body, "model": model})
                )
            except PriceUnknown:
                if is_asked:
                    raise
                unpriced = unpriced or model
                continue
            if self._fixed(model) is None:
                quote = dearer(raised(body, quote), self._percent(model))
            else:  # it costs what the user says, wherever it runs
                quote = raised({**body, "inference_geo": None}, quote)
            quotes.append(quote)
        return together(quotes, others, unpriced)

    def _percent(self, model: str) -> int:
        return 0 if self._region is None else self._region.percent_of(model)

    def _quote(self, request: Request) -> Quote:
        found = self._input(request)
        asked = found.asked
        model = request.model
        fixed = self._fixed(model)
        candidates = (
            (fixed,) if fixed is not None
            else self._book.ceilings(
                model, self._source, _tier(request.body), asked is not ONLY_TEXT
            )
        )  # fmt: skip
        rates, why = candidates[0], found.why_unbound
        into = _within_context(found, rates)
        output = output_of(request, model, rates.context_tokens)
        out, beside = output.tokens, 0
        if asked is not ONLY_TEXT:
            asked = as_billed(request, asked)
            beside = dear_searches_nusd(request, candidates, asked.web_searches)
            unknown = rates.unknown(asked)
            if unknown:
                # Said first: what is missing is a price, which can be given.
                why = f"no price is known for {unknown}: the dearest that is known stands in"
        ceiling_nusd = max([each.most_nusd(into, out, asked) for each in candidates]) + beside
        is_complete = True
        for each in candidates:
            is_complete = is_complete and each.is_complete
            if not _GUESSES.isdisjoint(each.guessed):
                what = (
                    f"the {brief(_tier(request.body))} tier: what is known of others stands in"
                    if "tier" in each.guessed else "this variant of the model: its own stands in"
                )  # fmt: skip
                why = f"no price is known for {what}"
        if not why and not output.is_bound:
            why = (
                "nothing caps the output" if output.is_count_read
                else "how many answers it asks for cannot be read as a number"
            )  # fmt: skip
        if not why and not is_complete:
            why = "the model also bills by what has no price here"
        likely = rates.plain_nusd(
            found.media + (into - found.media) // EXPECTED_BYTES_PER_TOKEN
            if into > found.media
            else into,
            min(out, EXPECTED_OUTPUT), _once(asked),
        )  # fmt: skip
        if beside:
            likely += dear_searches_nusd(request, candidates, 1)
        least = rates.plain_nusd(into // LEAST_BYTES_PER_TOKEN, min(out, 1))
        return Quote(
            ceiling_nusd,
            min(ceiling_nusd, likely),
            into + out,
            min(ceiling_nusd, least),
            not why,
            self._tokens(into, output.stated),
            why,
        )

    def _tokens(self, into: int, stated: int) -> Tokens:
        """What rate limits may count of it."""
        if self._book.count_tokens is None:
            into = -(-into // EXPECTED_BYTES_PER_TOKEN)
        return Tokens(into, stated)

    def _input(self, request: Request) -> Input:
        if self._book.count_tokens is None:
            return count_input(request.url, request.body)
        told = count_input(request.url, request.body)  # what it asks for beside text
        return told._replace(
            tokens=counted(self._book.count_tokens, request), media=0,
            why_unbound=told.why_unbound if told.asked is not ONLY_TEXT else "",
        )  # fmt: skip

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        if answer.cost_nusd is not None:
            return answer.cost_nusd
        if request.url == MODERATIONS:
            return 0
        usage = answer.usage
        if usage is None:
            return None
        body, model = answer.body, request.model
        told, raw = None, None
        if isinstance(body, dict):
            told, raw = body.get("model") or body.get("modelVersion"), body.get("usage")
        if (
            self._region is None
            and (told is None or told == model or not isinstance(told, str)
                 or self._fixed(model) is not None
                 or self._book.answering(self._source, model, told) == model)
            and not (isinstance(raw, dict) and is_elsewhere(raw))
            and RAISING.isdisjoint(request.body)
        ):  # fmt: skip
            return self._bill_nusd(request, model, usage, body)
        return self._raised_nusd(request, usage, body, told if isinstance(told, str) else "")

    def _bill_nusd(
        self, request: Request, model: str, usage: Usage, body: Any, percent: int = 0
    ) -> int:
        """What this usage costs at a model's price, and so many percent more."""
        usage = _as_written(request, body, as_billed(request, usage))
        fixed = self._fixed(model)
        found = (fixed,) if fixed is not None else [
            self._book.rates(
                model, self._source, tier, _has_media(usage) and _deals_in_media(request)
            ) for tier in _tiers(body, request.body)
        ]  # fmt: skip
        if percent and fixed is None:
            found = [each.times(1 + Decimal(percent) / 100) for each in found]
        return max([
            rates.cost_nusd(usage) + (
                dear_searches_nusd(request, (rates,), usage.web_searches) if usage.web_searches else 0
            ) for rates in found
        ])  # fmt: skip

    def _raised_nusd(self, request: Request, usage: Usage, body: Any, told: str) -> int:
        """What an answer costs where another model, or another place, may have given it."""
        asked, others = request.model, others_of(request.body).names
        raw = body.get("usage") if isinstance(body, dict) else None
        raw = raw if isinstance(raw, dict) else {}
        geo = raw.get("inference_geo")
        more = geo_percent(request.body.get("inference_geo") if geo is None else geo)

        def most_nusd(models: Iterable[str], used: Usage) -> int:
            return max(
                self._bill_nusd(request, each, used, body, more + self._percent(each))
                for each in models
            )

        answered = self._billed_as(asked, told, others)
        steps = iterations_of(raw)
        if not any(model for model, _ in steps):
            return most_nusd(answered, usage)
        # What is beside tokens is told of all of them together.
        beside = {
            field: getattr(usage, field)
            for field in ("web_searches", "file_searches", "code_sessions", "made_images")
        }
        whole, total_nusd = whole_of(raw), 0
        for n, (model, used) in enumerate(steps):
            known = self._book.answering(self._source, asked, model) if model else ""
            total_nusd += most_nusd(
                (known,) if known else answered, used if n else replace(used, **beside)
            )
        if whole is None:
            return total_nusd
        return max(total_nusd, most_nusd(answered, replace(whole, **beside)))

    def _billed_as(self, asked: str, told: str, others: tuple[str, ...]) -> tuple[str, ...]:
        """At whose price an answer is billed: at the dearest of these models.

        The one that answered, where the body let it answer. Else the dearer of it and the one asked,
        since a gateway may tell another name than it bills by; a price of the user's own for the model
        asked holds whoever answers. Where nobody knows who answered, it may be any that could.
        """
        if others:
            priced = tuple([each for each in others if self._has_price(each)])
            for each in (asked, *priced):
                if told and self._book.answering(self._source, each, told) == each:
                    return (each,)
            known = self._book.answering(self._source, asked, told) if told else ""
            return (asked, *priced, *((known,) if known else ()))
        known = self._book.answering(self._source, asked, told) if told else ""
        if not known or known == asked or self._fixed(asked) is not None:
            return (asked,)
        return (asked, known)

    def _has_price(self, model: str) -> bool:
        return self._fixed(model) is not None or self._book.knows(model, self._source)


def _within_context(found: Input, rates: Rates) -> int:
    """Its tokens: what is an estimate cannot be more than the model takes in at all."""
    most = rates.context_tokens
    if not found.media or most is None or found.tokens <= most or most < rates.input[-1][0]:
        return found.tokens
    return max(found.tokens - found.media, most)


_DEALS_IN_MEDIA = ("audio", "realtime", "voice", "omni", "sonic", "speech", "image", "video")


def _once(asked: Asked) -> Asked:
    """What is likely of what is asked for: each tool runs once."""
    if asked is ONLY_TEXT:
        return asked
    tools = ("web_searches", "file_searches", "code_sessions", "made_images")
    return asked._replace(**{name: min(1, getattr(asked, name)) for name in tools})


def _has_media(usage: Usage) -> bool:
    return bool(
        usage.input_audio_tokens or usage.output_audio_tokens
        or usage.output_image_tokens or usage.output_video_tokens
    )  # fmt: skip


def _deals_in_media(request: Request) -> bool:
    """Whether a model's answers, or this one, can have sound or pictures in them or before them."""
    name = request.model.lower()
    if any(word in name for word in _DEALS_IN_MEDIA):
        return True
    return count_input(request.url, request.body).asked is not ONLY_TEXT


def _as_written(request: Request, body: Any, usage: Usage) -> Usage:
    """The same with all that was written to a cache kept for an hour, where the request asks for
    that anywhere and the answer does not tell how long each is kept.
    """  # noqa: D205
    if not usage.cache_write_tokens or usage.long_cache_write_tokens:
        return usage
    told = body.get("usage") if isinstance(body, dict) else None
    if isinstance(told, dict) and isinstance(told.get("cache_creation"), dict):
        return usage
    if not _keeps_long(request.body):
        return usage
    return replace(usage, long_cache_write_tokens=usage.cache_write_tokens)


def _keeps_long(value: Any, depth: int = 0) -> bool:
    """Whether a mark for a cache says that it is to be kept for an hour."""
    if isinstance(value, Mapping):
        mark = value.get("cache_control")
        if isinstance(mark, Mapping) and mark.get("ttl") == "1h":
            return True
        value = list(value.values())
    return (
        isinstance(value, list) and depth < _DEEPEST
        and any(_keeps_long(each, depth + 1) for each in value)
    )  # fmt: skip


def _tier(body: Any) -> str | None:
    """The service tier or speed a body names: of several the first that is not the standard one."""
    if not isinstance(body, dict):
        return None
    standard = None
    told = body.get("usageMetadata")  # where Google's answers tell it
    for holder in (body, told) if isinstance(told, dict) else (body,):
        for name in _TIERS:
            tier = holder.get(name)
            if isinstance(tier, str):
                named = tier.lower().removeprefix("service_tier_")
                if named not in _STANDARD_TIERS:
                    return named
                standard = standard or named
    if standard is not None:
        return standard
    usage = body.get("usage")  # Anthropic's; its tier there is about capacity that is paid before
    speed = usage.get("speed") if isinstance(usage, dict) else None
    return speed.lower() if isinstance(speed, str) else None


def _tiers(body: Any, asked_for: Any) -> tuple[str | None, ...]:
    """Those that an answer may be billed as."""
    told = _tier(body)
    if told is not None:
        return (told,)
    asked = _tier(asked_for)
    # Where nobody says that it was granted, a cheaper tier may have been ignored.
    return (None,) if asked is None else (asked, None)


def _usd_a_million(steps: Steps) -> Decimal:
    return (Decimal(steps[0][1]) / YOCTO_PER_USD_A_MILLION).normalize()


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)
