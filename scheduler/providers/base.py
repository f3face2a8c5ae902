"""How a request leaves: a method or two, and a way to price what they do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from scheduler.answer import Answer as Answer
from scheduler.errors import ProviderRefused
from scheduler.limits.meter import Limits
from scheduler.prices.tariff import Tariff
from scheduler.request import Request, StreamEvent

if TYPE_CHECKING:
    from scheduler.limits.retry import Retry
    from scheduler.stores.base import Unknown


Emit = Callable[[StreamEvent], Awaitable[None]]
"""Takes one event of a stream; returns when its reader has room for more."""


Send = Callable[[Request], Awaitable[Answer]]
"""Makes one attempt, as `Provider.send` does."""


class Provider(ABC):
    """Sends requests to one kind of service.

    To add one, write `send`. Raise a `CallFailed` from `scheduler.errors` for
    anything but a good answer: its ``is_billed`` tells the ledger whether money
    may have been spent (False: provably not; None: nobody knows; True: what its ``used`` says), its
    ``is_retryable`` whether another attempt makes sense. Any other exception
    counts as an unknown outcome, is not retried, and reaches the caller as the
    cause of a `CallFailed`.
    """

    name: str
    """Chosen by the user; `Request.provider` refers to it."""

    base_url: str | None = None
    """Where its service is, if it is behind HTTP."""

    service: str | None = None
    """What this provider asks, where any process might do so: one that has a provider of the same
    name and service may send what was submitted here. None: only this process can.
    """

    tariff: Tariff | None = None
    """How this provider's calls are priced. None: by the scheduler's price book."""

    price_source: str | None = None
    """Provider id or base URL by which the price book finds the rates. None: by model alone."""

    prices: Mapping[str, str] | None = None
    """Prices it brings along, as `PriceBook` takes them; the user's own come first."""

    priced_as: Mapping[str, str] = {}
    """Which model a name stands for, where it is none itself, such as a deployment at Azure.

    The model ``"*"`` stands for all others.
    """

    deployment: str | None = None
    """The one deployment that all calls go to, where its URL says one."""

    reaches: Sequence[str] = ()
    """Models that may answer its calls, where what is asked is an alias of several."""

    on_unknown: str = "charge"
    """What to assume of a call nobody heard back from, unless somebody finds out.

    ``"charge"``: it cost all that was reserved. ``"input_only"`` or ``"input_only after 10m"``:
    its prompt was read, and nothing was written but what the lost answer told. ``"release after
    1h"``: it cost nothing. The last two may count less than the provider bills; an answer that comes late corrects them.
    """

    limits: Limits | None = None
    """What the provider allows over all models together. None: learned as far as it tells."""

    model_limits: Mapping[str, Limits] = {}
    """What it allows for single models, by name."""

    retry: Retry | None = None
    """How often to try again. None: as the scheduler does."""

    counting: str = "default"
    """How it counts tokens against its limits: a name in `scheduler.limits.COUNTING`."""

    @property
    def has_credentials(self) -> bool:
        """Whether there is something to authenticate with, or nothing is needed.

        Without, what others could send, too, is left to those of them that have it.
        """
        return True

    @property
    def lacks(self) -> str:
        """What has to be set where this process runs, so that it can ask; empty: nothing."""
        return ""

    def check(self, request: Request) -> None:  # noqa: B027 - optional: most take whatever comes
        """Refuse what it could never send, before anything is queued or reserved.

        Raises:
            ConfigError: Says what cannot be sent, and what to do instead.
        """

    @abstractmethod
    async def send(self, request: Request) -> Answer:
        """Make one attempt. Never retries by itself: every attempt has its own reservation."""

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """As `send`, but hand over every event of the answer as it comes.

        Returns:
            The answer put together from the events, as `send` would have given it.
        """
        raise ProviderRefused(
            400, f"provider {self.name!r} does not stream; nothing was sent", "stream_unsupported"
        )

    @property
    def can_look_up(self) -> bool:
        """Whether `look_up` is worth calling: a subclass has its own."""
        return type(self).look_up is not Provider.look_up

    async def look_up(self, unknown: Unknown) -> Answer | Literal[False] | None:
        """Ask the service what became of a call nobody heard back from.

        Write it where the service can tell, as by an id it gave (`Unknown.provider_id`) or
        by the request's own key. It is asked again on a widening timer for a day.

        Returns:
            What was answered and billed (`Answer.cost_nusd`, or its usage, is posted);
            False if it provably billed nothing; None if it cannot tell, or not yet.
        """
        return None

    async def aclose(self) -> None:  # noqa: B027 - optional: most have nothing to close
        """Let go of connections. No call is under way by then."""
