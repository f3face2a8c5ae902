"""Names that a model has besides its own: at providers, in prices, routes and routers' lists.

A rule of a budget meets a model under every name by which a price is found for it, so that what
can be billed can be limited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from scheduler.naming import Asked, Names, is_snapshot, names_of, same_place
from scheduler.prices.rates import listed_as
from scheduler.providers.base import Provider
from scheduler.providers.known import kind_at


class Aliases:
    """Finds all names of what a request asks for.

    Args:
        providers: By name.
        led_by: The routes by which one comes to a provider's model.
    """

    def __init__(
        self, providers: Mapping[str, Provider], led_by: Callable[[str, str], tuple[str, ...]]
    ) -> None:
        self._providers, self._led_by = providers, led_by

    def names(self, asked: Asked) -> Names:
        """Under what names rules look at a model. Takes up to milliseconds: remember them."""
        provider = self._providers.get(asked.provider)
        if provider is None:
            found = names_of(asked.model, asked.called)
        else:
            found = self._at(provider, asked)
        for each in asked.also:
            found |= self._of_one(each, asked.provider, provider)
        return found

    def _at(self, provider: Provider, asked: Asked) -> Names:
        model = asked.model or provider.deployment or ""
        priced_as = provider.priced_as.get(model) or provider.priced_as.get("*") or ""
        routes = self._led_by(asked.provider, asked.model)
        found = self._of_one(model, asked.provider, provider, asked.called, *routes)
        if priced_as:
            found |= self._of_one(priced_as, asked.provider, provider)
        for each in provider.reaches:  # each has its own provider before it, or none
            found |= self._of_one(each, "", None)
        return found

    @staticmethod
    def _of_one(model: str, name: str, provider: Provider | None, *written: str) -> Names:
        """The names of one model, with those that the catalogue of prices has for it."""
        source, places = None, [name] if name else []
        if provider is not None:
            source = provider.price_source
            places += _services(provider.base_url)
            places += [source] if source is not None and "://" not in source else []
        found = names_of(model, *written, places=places)
        bare = model.casefold().rpartition("/")[2]
        for place, listed in _listed(model, source):
            base = listed.casefold().rpartition("/")[2]
            # What costs the same under another name of the same beginning is another model.
            if is_snapshot(bare, base) or not bare.startswith(base):
                found |= names_of(listed, places=(*places, place))
        return found


def _services(url: str | None) -> list[str]:
    """The service behind a URL, if it is known by it."""
    if url is None:
        return []
    from scheduler.providers.address import is_azure_url

    kind = "azure" if is_azure_url(url) else kind_at(urlsplit(url).hostname)
    return [] if kind is None else [kind]


def _listed(model: str, source: str | None) -> list[tuple[str, str]]:
    """The catalogue's provider and name of a model: where it is asked, and at whoever made it."""
    found = [listed_as(model, source)]
    maker, slash, bare = model.casefold().rpartition("/")
    if slash:
        found += [listed_as(bare, each) for each in same_place(maker.rpartition("/")[2])]
    return [each for each in found if each is not None]
