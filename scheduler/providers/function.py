"""How any async callable becomes a provider, with a quote and a price of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from scheduler.answer import Answer
from scheduler.guards.hooks import asked_nusd, quoted_nusd
from scheduler.money import parse_usd
from scheduler.prices.usage import reported_cost_nusd
from scheduler.providers.base import Provider
from scheduler.providers.meaning import usage_told
from scheduler.request import Quote, Request

if TYPE_CHECKING:
    from scheduler.stores.base import Unknown

Dollars = str | int | float | Decimal
"""An amount in US dollars: ``"$0.02"``, ``0.02``, ``Decimal("0.02")``; the int 2 is two dollars."""


class FunctionProvider(Provider):
    """Calls ``await call(request)`` and prices it by rules of your own.

    What the callable returns becomes the response's body; a dict in the shape of OpenAI's has
    its usage read. It may also return an `Answer` and fill in more. Any `CallFailed` it raises
    is taken at its word; any other exception counts as an unknown outcome.

    Args:
        name: What `Request.provider` refers to.
        call: The work.
        quote: The most one attempt may cost: dollars, a `Quote` (nano-dollars, with tokens and
            an expected cost), or a function from the request to either.
        cost: What an attempt did cost: dollars, or a function from the request and what `call`
            returned to dollars. None, given or returned: what the answer itself reports
            (`Answer.cost_nusd`, ``usage.cost``), else the ceiling.
        on_unknown: What a call costs that nobody heard back from; see `Provider.on_unknown`.
        look_up: Finds out what became of such a call; see `Provider.look_up`.

    Example:
        >>> async def translate(request):
        ...     return {"text": request.body["text"].upper()}
        >>> provider = FunctionProvider("translator", translate, quote="$0.001")
        >>> provider.tariff.quote(Request({"text": "hello"})).ceiling_nusd
        1000000
    """

    def __init__(
        self,
        name: str,
        call: Callable[[Request], Awaitable[Any]],
        *,
        quote: Dollars | Quote | Callable[[Request], Dollars | Quote],
        cost: Dollars | Callable[[Request, Any], Dollars | None] | None = None,
        on_unknown: str = "charge",
        look_up: Callable[[Unknown], Awaitable[Answer | Literal[False] | None]] | None = None,
    ) -> None:
        self.name, self.on_unknown = name, on_unknown
        self._call, self._look_up = call, look_up
        self.tariff = _OwnTariff(quote, cost)

    async def send(self, request: Request) -> Answer:
        """Make one attempt."""
        result = await self._call(request)
        if type(result) is Answer:
            return result
        if type(result) is dict and "usage" in result:
            return Answer(result, 200, usage_told(result), reported_cost_nusd(result))
        return Answer(result)

    @property
    def can_look_up(self) -> bool:
        """Whether a `look_up` was given."""
        return self._look_up is not None

    async def look_up(self, unknown: Unknown) -> Answer | Literal[False] | None:
        """Ask the function that was given for it."""
        return None if self._look_up is None else await self._look_up(unknown)


class _OwnTariff:
    """A quote and a cost as functions, in nano-dollars."""

    def __init__(
        self,
        quote: Dollars | Quote | Callable[[Request], Dollars | Quote],
        cost: Dollars | Callable[[Request, Any], Dollars | None] | None,
    ) -> None:
        self._ask = quote if callable(quote) else None
        self._fixed = None if callable(quote) else _as_quote(quote)
        self._price = cost if callable(cost) else None
        self._fixed_nusd = None if cost is None or callable(cost) else parse_usd(cost, "cost")

    def quote(self, request: Request) -> Quote:
        """Most and likely cost of one attempt."""
        if self._fixed is not None:
            return self._fixed
        assert self._ask is not None
        return _as_quote(self._ask(request))

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        """What the answer cost; None if nobody says."""
        if self._fixed_nusd is not None:
            return self._fixed_nusd
        if self._price is not None:
            nusd, makes_sense = asked_nusd(self._price, request, answer.body)
            if nusd is not None or not makes_sense:
                return nusd
        return answer.cost_nusd


def _as_quote(value: Dollars | Quote) -> Quote:
    if isinstance(value, Quote):
        return value
    nusd = quoted_nusd(value)
    return Quote(nusd, nusd)
