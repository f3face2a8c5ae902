"""A service that its callers reach themselves, with a client of their own.

It stands for the service in queue, limits and ledger; the scheduler only says when.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from scheduler.answer import Answer
from scheduler.errors import ProviderRefused
from scheduler.providers.base import Provider
from scheduler.providers.known import KNOWN, kind_at
from scheduler.request import Request


class Outside(Provider):
    """A service that is called by wrapped clients only.

    Args:
        base_url: Its scheme, host and port.
    """

    def __init__(self, base_url: str) -> None:
        place = urlsplit(base_url)
        host = place.netloc.rpartition("@")[2]  # a password is nobody else's business
        self.name, self.base_url = host, f"{place.scheme}://{host}"
        kind = kind_at(place.hostname)
        known = None if kind is None else KNOWN[kind]
        self.price_source = (known and known.price_source) or self.base_url
        self.counting = known.counting if known else "default"

    async def send(self, request: Request) -> Answer:
        """Refuse: nobody gave it a key."""
        raise ProviderRefused(
            400,
            f"{self.name} is known from a wrapped client only, and only that client has its key; "
            "nothing was sent. Add it to the scheduler's providers",
            "provider_without_client",
        )
