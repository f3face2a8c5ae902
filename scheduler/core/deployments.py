"""Prices for what is not called by its model's name, such as a deployment at Azure; pure.

A deployment is named by whoever made it, so its name says nothing of its price. Which model it
is, the configuration says (`Provider.priced_as`); a price of the user's own comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from scheduler.answer import Answer
from scheduler.errors import PriceUnknown
from scheduler.prices.book import PriceBook
from scheduler.prices.tariff import Tariff
from scheduler.providers.base import Provider
from scheduler.request import Quote, Request


def tariff_of(provider: Provider, prices: PriceBook) -> Tariff:
    """Prices as a provider's calls are billed."""
    listed = provider.prices or {}
    tariff = prices.tariff(provider.price_source, listed, provider.name, provider.base_url)
    if not provider.priced_as and provider.price_source != "azure":
        return tariff
    return _Renamed(tariff, provider, prices, listed)


class _Renamed:
    """A tariff that is asked for the model behind a name."""

    def __init__(
        self, tariff: Tariff, provider: Provider, prices: PriceBook, listed: Mapping[str, str]
    ) -> None:
        self._tariff, self._prices, self._listed = tariff, prices, listed
        self._name, self._models = provider.name, dict(provider.priced_as)
        self._deployment = provider.deployment or ""

    def quote(self, request: Request) -> Quote:
        try:
            return self._tariff.quote(self._as_model(request))
        except PriceUnknown as exc:
            raise self._explained(exc) from None

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        return self._tariff.cost_nusd(self._as_model(request), answer)

    def _as_model(self, request: Request) -> Request:
        name = request.model or self._deployment
        own = self._prices.own_rates
        if name not in self._listed and not (own(name) or own(f"{self._name}:{name}")):
            name = self._models.get(name) or self._models.get("*") or name
        return request if name == request.model else replace(
            request, body={**request.body, "model": name}
        )  # fmt: skip

    def _explained(self, exc: PriceUnknown) -> PriceUnknown:
        """Say how to name the model of a deployment."""
        name = exc.model or "DEPLOYMENT"
        how = (
            f"if it is a deployment, say in scheduler.toml which model it is: "
            f'[provider.{self._name}.models."{name}"] priced_as = "gpt-4o"'
        )
        return PriceUnknown(exc.model, exc.provider, "; ".join(filter(None, (exc.hint, how))))
