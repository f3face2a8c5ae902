"""How a request leaves: two methods, and a way to price what they do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from scheduler.request import Quote, Request, Usage


@dataclass(slots=True)
class Answer:
    """What a provider gave back for one attempt.

    Attributes:
        body: The decoded JSON body (any object for providers without HTTP).
        usage: Tokens used; None if the provider did not say.
        cost_nusd: The cost the provider itself reported, in nano-dollars; None: price the usage.
        request_id: The provider's id for the call, for support tickets.
        headers: Response headers, lower-case names.
    """

    body: Any
    status_code: int = 200
    usage: Usage | None = None
    cost_nusd: int | None = None
    request_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Tariff(Protocol):
    """Prices requests before they are sent and answers after: the same rates for both."""

    def quote(self, request: Request) -> Quote:
        """Most and likely cost of one attempt. Raises `PriceUnknown`; never guesses zero."""

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        """What the answer cost, in nano-dollars; None if the answer does not tell."""


class Provider(ABC):
    """Sends requests to one kind of service.

    To add one, write `send`. Raise a `CallFailed` from `scheduler.errors` for
    anything but a good answer: its ``is_billed`` tells the ledger whether money
    may have been spent (False: provably not; None: nobody knows), its
    ``is_retryable`` whether another attempt makes sense. Any other exception
    counts as an unknown outcome, is not retried, and reaches the caller as the
    cause of a `CallFailed`.
    """

    name: str
    """Chosen by the user; `Request.provider` refers to it."""

    tariff: Tariff | None = None
    """How this provider's calls are priced. None: by the scheduler's price book."""

    price_source: str | None = None
    """Provider id or base URL by which the price book finds the rates. None: by model alone."""

    prices: Mapping[str, str] | None = None
    """Prices it brings along, as `PriceBook` takes them; the user's own come first."""

    @abstractmethod
    async def send(self, request: Request) -> Answer:
        """Make one attempt. Never retries by itself: every attempt has its own reservation."""

    async def aclose(self) -> None:  # noqa: B027 - optional: most have nothing to close
        """Let go of connections. No call is under way by then."""
