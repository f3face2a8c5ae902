"""How a request becomes something to queue: its provider, its price, its budgets, its end.

Everything that can be refused is refused here, before anything is stored or sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Literal, get_args
from urllib.parse import urlsplit

from scheduler.admission.fairness import Fairness
from scheduler.admission.notices import brief
from scheduler.admission.plan import LaneKey
from scheduler.clock import Clock
from scheduler.core.aliases import Aliases
from scheduler.core.deployments import tariff_of
from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError, CostTooHigh, PromptTooLong
from scheduler.guards.hooks import PROGRAM_ENDS, gave, name_of, raised
from scheduler.guards.texts import check_name
from scheduler.ledger.matching import BudgetBook
from scheduler.limits import ProviderRules
from scheduler.limits.meter import Limits
from scheduler.money import MAX_USD, NUSD_PER_USD, parse_usd
from scheduler.naming import Asked
from scheduler.prices.book import PriceBook, with_output_cap
from scheduler.prices.routing import Router
from scheduler.prices.tariff import Tariff
from scheduler.providers.base import Provider
from scheduler.providers.descriptors import fitting
from scheduler.providers.known import KNOWN
from scheduler.request import UNTOLD_TOKENS, Priority, Quote, Request
from scheduler.shortfall import Shortfall
from scheduler.stores.base import NewRequest

MAX_CEILING = MAX_USD * NUSD_PER_USD  # no request may cost, or take tokens, beyond any sense
OnExceeded = Literal["wait", "raise", "fallback"]
EXCEEDED: tuple[str, ...] = get_args(OnExceeded)


@dataclass(frozen=True, slots=True)
class Prevention:
    """What is refused at submission, and what is asked instead of what does not fit.

    Attributes:
        max_prompt_tokens: Longer prompts are refused, by an estimate; None: no bound.
        max_cost: In USD, for requests that set none; None: no bound.
        fallback: Models to ask instead, for requests that name none.
        cap_output: Most output tokens for bodies that set no cap; None: sent as they are.
    """

    max_prompt_tokens: int | None = None
    max_cost: str | int | float | Decimal | None = None
    fallback: Sequence[str] = ()
    cap_output: int | None = None


@dataclass(frozen=True, slots=True)
class Matched:
    """Which budgets a request draws on, and why.

    Attributes:
        model: What its provider is asked for.
        provider: Who is asked.
        names: Under what names rules looked at the model.
        rules: Budgets whose rules cover the request.
        budgets: All that it draws on: those it names, or gets by default, these, and parents.
    """

    model: str
    provider: str
    names: tuple[str, ...]
    rules: tuple[str, ...]
    budgets: tuple[str, ...]


class Intake:
    """Turns requests into queue entries; see the module. Used by `Scheduler`."""

    def __init__(
        self,
        providers: Provider | Iterable[Provider],
        prices: PriceBook,
        clock: Clock,
        on_exceeded: OnExceeded,
        prevention: Prevention,
        routes: Mapping[str, str] | None = None,
    ) -> None:
        self.providers = _by_name(providers)
        self.keyless = _keyless(self.providers.values())  # names of those this process cannot ask
        self.default_provider = next(iter(self.providers))
        self.prices = prices
        self._clock, self._on_exceeded, self._prevention = clock, on_exceeded, prevention
        self._tariffs: dict[str, Tariff] = {}
        self._router = Router(self.providers, routes, self._is_of)
        self.book = BudgetBook(names=Aliases(self.providers, self._router.led_by).names)
        self.fairness: Fairness | None = None  # who shares with whom
        self.shares = False  # what is queued may be sent by other processes
        self.circle = ""  # only of those that work on the same thing; empty: of all

    def _is_of(self, name: str, model: str) -> bool:
        """Whether a prefix names the provider of a model.

        A gateway or a server of one's own, which is the default, has names such as
        ``mistral:latest``: there a service's name is its prefix only before a model that this
        service is known to have, or that was priced for it.
        """
        default, provider = self.providers[self.default_provider], self.providers.get(name)
        known = KNOWN.get(name)
        is_at_home = default.price_source is not None and "://" not in default.price_source
        if default is provider or is_at_home or known is None:
            return True
        if known.price_source is None or known.base_url is None:
            return True  # its models are whatever somebody put there
        source: str | None = known.price_source
        if provider is not None:
            if provider.prices or provider.tariff is not None:
                return True
            source = provider.price_source
        return source is None or self.prices.knows(model, source)

    def concurrency(self, most: int, *only: Provider) -> dict[str, int]:
        """Most calls at once of each provider; `most` where it sets no limit itself."""
        providers = only or tuple(self.providers.values())
        limits = {provider.name: provider.limits for provider in providers}
        wanted = {
            name: most if each is None or each.concurrency is None else each.concurrency
            for name, each in limits.items()
        }
        # Those behind HTTP no more than there are sockets for.
        return wanted | fitting({p.name: wanted[p.name] for p in providers if p.base_url})

    def rules(self, most: int, *only: Provider) -> dict[str, ProviderRules]:
        """What stands before the providers."""
        at_once = self.concurrency(most, *only)
        return {
            each.name: ProviderRules(
                each.limits or Limits(), each.model_limits, each.counting, at_once[each.name]
            )
            for each in only or tuple(self.providers.values())
        }

    @property
    def services(self) -> dict[str, str]:
        """What other processes might ask as well, by provider's name."""
        providers = self.providers.values()
        return {
            each.name: f"{each.service} {self.circle}".rstrip()
            for each in providers if each.service is not None
        }  # fmt: skip

    def add(self, provider: Provider) -> None:
        """Have one provider more. Raises `ConfigError` if there is one of that name."""
        check_name("providers", provider.name)
        if provider.name in self.providers:
            raise ConfigError("providers", f"there is one of the name {provider.name!r}")
        self.providers[provider.name] = provider
        self.keyless = _keyless(self.providers.values())

    def provider_at(self, url: str) -> str | None:
        """The provider whose service is behind a URL, by its host; None: none."""
        place = urlsplit(url)
        host = place.netloc.rpartition("@")[2]
        found = {
            each.name: urlsplit(each.base_url).path
            for each in self.providers.values()
            if each.base_url is not None and urlsplit(each.base_url)[:2] == (place.scheme, host)
        }
        return max(
            found, key=lambda name: (place.path.startswith(found[name]), len(found[name])),
            default=None,
        )  # fmt: skip

    def quote(self, request: Request) -> Quote:
        """What one attempt may cost. Raises `PriceUnknown`."""
        request = self._router.route(request)
        return self.quoted(self._provider(request), self._as_sent(request))

    def quoted(self, provider: Provider, request: Request) -> Quote:
        """What a provider's tariff says of a request. Raises `ConfigError` for nonsense."""
        tariff = self.tariff(provider)
        try:
            quote = tariff.quote(request)
        except PROGRAM_ENDS:
            raise
        except BaseException as exc:
            if isinstance(exc, Exception) and not isinstance(exc, StopIteration):
                raise  # who asked is there, and nothing was sent
            problem = f"{name_of(tariff.quote)} {raised(exc)}; nothing was sent"
            raise ConfigError("quote", problem) from exc
        if not _makes_sense(quote):
            raise ConfigError("quote", f"{name_of(tariff.quote)} {gave(quote)}; nothing was sent")
        return quote

    def check(self, request: Request) -> Quote:
        """Its quote, if all would take it that `prepare` and its provider ask of it by itself.

        Raises:
            RequestRejected, ConfigError: It would not be sent.
        """
        request, provider, quote = self._taken(request, self._on_exceeded)
        provider.check(request)
        return quote

    def digest(self, request: Request) -> str:
        """Fingerprint of what would be sent; requests with the same ask the same."""
        return self._as_sent(request).digest()

    def provider_for(self, request: Request) -> str:
        """The provider that a request goes to. Raises `ConfigError`."""
        return self._provider(self._router.route(request)).name

    def led_to(self, model: str) -> tuple[str | None, str]:
        """See `Governing.led_to`."""
        return self._router.find(model)

    def prepare(self, request: Request, on_exceeded: OnExceeded | None) -> NewRequest:
        """Quote a request and find its lane. Raises `RequestRejected` or `ConfigError`."""
        request = self._as_sent(request)
        digest = _digest(request) if request.key is not None else ""
        called, on_exceeded = request.model, on_exceeded or self._on_exceeded
        request, provider, quote = self._taken(request, on_exceeded)
        priority = request.priority
        if priority.__class__ is not Priority:
            priority = Priority.parse(priority)
        may_wait = on_exceeded == "wait" or (on_exceeded == "fallback" and not request.fallback)
        service = self._service(request, provider, may_wait)
        if service and request.provider is None:  # who sends it may have another default
            request = replace(request, provider=provider.name)
        expires_at_ms, due_at_ms = self._times(request)
        fairness = self.fairness
        lane = LaneKey(
            provider.name,
            self.book.draws_on(
                asked_of(request, provider, called) if self.book.asks_models else "",
                request.tags, request.budget,
            ),
            int(priority),
            may_wait, request.model, is_shared=bool(service), service=service,
            tenant="" if fairness is None else fairness.tenant_of(request.tags),
            is_due=due_at_ms is not None,
        )  # fmt: skip
        return NewRequest(
            request, lane, quote.ceiling_nusd, quote.ceiling_tokens, quote.expected_nusd,
            digest, expires_at_ms, due_at_ms, tokens=quote.tokens,
        )  # fmt: skip

    def _service(self, request: Request, provider: Provider, may_wait: bool) -> str:
        """Whom any process might ask for it in place of this one; empty: only this one can."""
        is_whole = self.shares and request.key is not None
        # What is refused or asks another model is decided here.
        is_plain = may_wait and not request.fallback and request.instead_of is None
        if provider.service is None or not (is_whole and is_plain):
            return ""
        return f"{provider.service} {self.circle}".rstrip()

    def _taken(self, request: Request, on_exceeded: OnExceeded) -> tuple[Request, Provider, Quote]:
        """A request as it would be sent, by whom, and its quote, if its size is allowed."""
        request = self._router.route(self._as_sent(request))
        provider = self._provider(request)
        if on_exceeded == "fallback" or request.fallback:
            request = self._with_fallback(request, on_exceeded)
        quote = self.quoted(provider, request)
        most = self._prevention.max_prompt_tokens
        if most is not None and quote.tokens.input > most:
            raise PromptTooLong(quote.tokens.input, most)
        if quote.ceiling_tokens > MAX_CEILING:
            asked = f"for up to {quote.ceiling_tokens:,} tokens; lower max_tokens or n"
            raise ConfigError("request", f"asks {asked}. Nothing was sent")
        if quote.ceiling_nusd > MAX_CEILING:
            raise CostTooHigh(quote.ceiling_nusd, MAX_CEILING)
        max_cost = self._prevention.max_cost if request.max_cost is None else request.max_cost
        if max_cost is not None:
            max_cost_nusd = parse_usd(max_cost, "max_cost")
            if quote.ceiling_nusd > max_cost_nusd:
                raise CostTooHigh(quote.ceiling_nusd, max_cost_nusd)
        return request, provider, quote

    def explain(self, request: Request) -> Matched:
        """Which budgets a request draws on, and why. Raises as `prepare`, but for its price."""
        routed = self._router.route(request)
        provider = self._provider(routed)
        asked = asked_of(routed, provider, request.model)
        drawn = self.book.draws_on(asked, request.tags, request.budget)
        return Matched(
            routed.model, provider.name, self.book.met_as(asked).shown,
            self.book.ruled_by(asked, request.tags), tuple(self.book.name(each) for each in drawn),
        )  # fmt: skip

    def prepare_instead(self, request: Request, lack: Shortfall) -> NewRequest:
        """What to ask in place of a request that may not wait: its next model, or, when none is
        left, its own again, which waits. Raises as `prepare`.
        """  # noqa: D205
        first = request.instead_of or {
            "model": request.model, "provider": request.provider or "", "why": brief(lack)
        }  # fmt: skip
        wanted, *rest = request.fallback
        is_last = not rest
        routed, _ = self._router.find(wanted)
        instead = replace(
            request,
            body=request.body | {"model": wanted},
            provider=first["provider"] or None if is_last or routed is None else None,
            fallback=() if is_last else tuple(rest),
            instead_of=None if is_last else first,
        )
        return self.prepare(instead, "wait" if is_last else "fallback")

    def _with_fallback(self, request: Request, on_exceeded: OnExceeded) -> Request:
        """The request with the models to try, which end with its own: for that it waits."""
        if on_exceeded != "fallback":
            return replace(request, fallback=()) if request.fallback else request
        if request.instead_of is not None:
            return request
        models = request.fallback or self._prevention.fallback
        others = tuple(model for model in models if model != request.model)
        for model in others:  # one without a price is told now, not when it is needed
            routed, _ = self._router.find(model)
            provider = request.provider if routed is None else None
            self.quote(replace(request, body=request.body | {"model": model}, provider=provider))
        return replace(request, fallback=(*others, request.model) if others else ())

    def _as_sent(self, request: Request) -> Request:
        most = self._prevention.cap_output
        return request if most is None else with_output_cap(request, most)

    def _provider(self, request: Request) -> Provider:
        name = request.provider
        if name is None:
            return self.providers[self.default_provider]
        if name not in self.providers:
            known = ", ".join(map(repr, self.providers))
            raise ConfigError("provider", f"no provider is named {name!r} (there are: {known})")
        return self.providers[name]

    def tariff(self, provider: Provider) -> Tariff:
        """How a provider's calls are priced."""
        tariff = self._tariffs.get(provider.name)
        if tariff is None:
            tariff = provider.tariff or tariff_of(provider, self.prices)
            self._tariffs[provider.name] = tariff
        return tariff

    def _times(self, request: Request) -> tuple[int | None, int | None]:
        """When a request is dropped if it was not sent by then, and its deadline."""
        deadline, max_wait = request.deadline, request.max_wait
        if deadline is None and max_wait is None:
            return None, None
        now_ms, due_at_ms = self._clock.now_ms(), None
        if isinstance(deadline, datetime):
            if deadline.tzinfo is None:
                raise ConfigError("deadline", f"{deadline} has no time zone")
            due_at_ms = int(deadline.timestamp() * 1000)
        elif deadline is not None:
            due_at_ms = now_ms + parse_duration_ms(deadline, "deadline")
        if max_wait is None:
            return due_at_ms, due_at_ms
        patient_ms = now_ms + parse_duration_ms(max_wait, "max_wait")
        return patient_ms if due_at_ms is None else min(patient_ms, due_at_ms), due_at_ms


def asked_of(request: Request, provider: Provider, called: str) -> Asked:
    """The model of a request that knows its provider, with what it was called before."""
    others = request.body.get("models")  # a gateway's: it falls back to them by itself
    also = [each for each in others if isinstance(each, str)] if isinstance(others, list) else ()
    return Asked(
        request.model, provider.name, called if called != request.model else "", tuple(also)
    )


def _digest(request: Request) -> str:
    try:
        return request.digest()
    except (TypeError, ValueError, RecursionError) as exc:
        problem = f"has a key, and a body that cannot be written as JSON: {exc}; nothing was sent"
        raise ConfigError("request", problem) from None


def _by_name(providers: Provider | Iterable[Provider]) -> dict[str, Provider]:
    found = [providers] if isinstance(providers, Provider) else list(providers)
    if not found:
        from scheduler.providers.openai import OpenAI

        found = [OpenAI()]
    for provider in found:
        check_name("providers", provider.name)
    named = {provider.name: provider for provider in found}
    if len(named) < len(found):
        raise ConfigError("providers", "two of them have the same name")
    return named


def _keyless(providers: Iterable[Provider]) -> frozenset[str]:
    return frozenset(each.name for each in providers if not each.has_credentials)


def _makes_sense(quote: object) -> bool:
    """Whether a quote is one: whole amounts, none below zero."""
    if not isinstance(quote, Quote):
        return False
    most, likely, tokens = quote.ceiling_nusd, quote.expected_nusd, quote.ceiling_tokens
    is_whole = most.__class__ is likely.__class__ is tokens.__class__ is int
    if not is_whole or most < 0 or likely < 0 or tokens < 0:
        return False
    return quote.tokens is UNTOLD_TOKENS or all(
        amount.__class__ is int and amount >= 0 for amount in quote.tokens
    )
