"""How a request becomes something to queue: its provider, its price, its budgets, its end.

Everything that can be refused is refused here, before anything is stored or sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from scheduler.admission import LaneKey
from scheduler.clock import Clock
from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError, CostTooHigh
from scheduler.matching import BudgetBook
from scheduler.money import MAX_USD, NUSD_PER_USD, parse_usd
from scheduler.pricing import PriceBook, with_output_cap
from scheduler.providers.base import Provider, Tariff
from scheduler.request import Priority, Quote, Request
from scheduler.stats import BudgetStatus
from scheduler.stores.base import NewRequest

MAX_CEILING = MAX_USD * NUSD_PER_USD  # no request may cost, or take tokens, beyond any sense
OnExceeded = Literal["wait", "raise"]


class Intake:
    """Turns requests into queue entries; see the module. Used by `Scheduler`."""

    def __init__(
        self,
        providers: Provider | Iterable[Provider],
        prices: PriceBook,
        clock: Clock,
        on_exceeded: OnExceeded,
        cap_output: int | None,
    ) -> None:
        self.providers = _by_name(providers)
        self.default_provider = next(iter(self.providers))
        self.prices, self.book = prices, BudgetBook()
        self._clock, self._on_exceeded, self._cap_output = clock, on_exceeded, cap_output
        self._tariffs: dict[str, Tariff] = {}
        for provider in self.providers.values():
            for model, price in (provider.prices or {}).items():
                if model not in prices.own:
                    prices.set(model, price)

    def read_budgets(self, statuses: Iterable[BudgetStatus]) -> None:
        """Learn which budgets there are."""
        self.book = BudgetBook([(status.id, status.budget) for status in statuses])

    def quote(self, request: Request) -> Quote:
        """What one attempt may cost. Raises `PriceUnknown`."""
        return self.tariff(self._provider(request)).quote(self._as_sent(request))

    def prepare(self, request: Request, on_exceeded: OnExceeded | None) -> NewRequest:
        """Quote a request and find its lane. Raises `RequestRejected` or `ConfigError`."""
        provider = self._provider(request)
        request = self._as_sent(request)
        quote = self.tariff(provider).quote(request)
        if quote.ceiling_tokens > MAX_CEILING:
            asked = f"for up to {quote.ceiling_tokens:,} tokens; lower max_tokens or n"
            raise ConfigError("request", f"asks {asked}. Nothing was sent")
        if quote.ceiling_nusd > MAX_CEILING:
            raise CostTooHigh(quote.ceiling_nusd, MAX_CEILING)
        if request.max_cost is not None:
            max_cost_nusd = parse_usd(request.max_cost, "max_cost")
            if quote.ceiling_nusd > max_cost_nusd:
                raise CostTooHigh(quote.ceiling_nusd, max_cost_nusd)
        priority = request.priority
        if priority.__class__ is not Priority:
            priority = Priority.parse(priority)
        lane = LaneKey(
            provider.name,
            self.book.draws_on(request.model, request.tags, request.budget),
            int(priority),
            (on_exceeded or self._on_exceeded) == "wait",
        )
        return NewRequest(
            request, lane, quote.ceiling_nusd, quote.ceiling_tokens, quote.expected_nusd,
            request.digest() if request.key is not None else "", self._expiry(request),
        )  # fmt: skip

    def _as_sent(self, request: Request) -> Request:
        return request if self._cap_output is None else with_output_cap(request, self._cap_output)

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
            tariff = provider.tariff or self.prices.tariff(provider.price_source)
            self._tariffs[provider.name] = tariff
        return tariff

    def _expiry(self, request: Request) -> int | None:
        if request.deadline is None and request.max_wait is None:
            return None
        now_ms, instants = self._clock.now_ms(), []
        if isinstance(request.deadline, datetime):
            if request.deadline.tzinfo is None:
                raise ConfigError("deadline", f"{request.deadline} has no time zone")
            instants.append(int(request.deadline.timestamp() * 1000))
        elif request.deadline is not None:
            instants.append(now_ms + parse_duration_ms(request.deadline, "deadline"))
        if request.max_wait is not None:
            instants.append(now_ms + parse_duration_ms(request.max_wait, "max_wait"))
        return min(instants)


def _by_name(providers: Provider | Iterable[Provider]) -> dict[str, Provider]:
    found = [providers] if isinstance(providers, Provider) else list(providers)
    if not found:
        from scheduler.providers.openai import OpenAI

        found = [OpenAI()]
    named = {provider.name: provider for provider in found}
    if len(named) < len(found):
        raise ConfigError("providers", "two of them have the same name")
    return named
