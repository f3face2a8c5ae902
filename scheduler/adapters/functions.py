"""Functions that wait for money: LiteLLM's, an SDK's, anybody's.

What one may cost is read from its arguments, what it did cost from its result, and what went
wrong from its exception. The function itself is called where its caller is.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, cast

from scheduler.adapters.arguments import (
    TELLING,
    Arguments,
    name_of,
    once,
    read_arguments,
    require_async,
    with_arguments,
)
from scheduler.adapters.exceptions import explain
from scheduler.adapters.followed import Followed, is_stream
from scheduler.adapters.places import Place, place_of_coroutine, place_of_thread
from scheduler.adapters.results import Pieces, body_of, cost_told_nusd
from scheduler.adapters.routers import ByReach, named_with, place_of, reach
from scheduler.adapters.visit import Visit
from scheduler.adapters.watch import watch
from scheduler.calls import is_within_call
from scheduler.errors import CallFailed, ConfigError, PriceUnknown, ProviderRefused, words_of
from scheduler.hooks import PROGRAM_ENDS, asked_nusd, complain, quoted_nusd, raised
from scheduler.intake import OnExceeded
from scheduler.marks import Marks, of_request
from scheduler.money import parse_usd
from scheduler.plain import logger_of
from scheduler.pricing import PriceBook
from scheduler.providers.base import Answer, Provider, Tariff
from scheduler.providers.function import Dollars
from scheduler.providers.hidden import Secrets, mask
from scheduler.providers.known import KNOWN
from scheduler.providers.meaning import usage_told
from scheduler.request import Quote, Request

if TYPE_CHECKING:
    from scheduler.scheduler import Scheduler

logger = logger_of("scheduler.functions")

_SECRET_WORDS = ("key", "token", "secret", "password", "authorization")

Cost = Callable[[Any], Dollars | None]


class FunctionVisit(Visit):
    """One call of a function."""

    def __init__(
        self,
        scheduler: Scheduler,
        request: Request,
        on_exceeded: OnExceeded | None,
        place: Place,
        call: partial[Any],
        cost: Cost | None = None,
    ) -> None:
        super().__init__(scheduler, on_exceeded, place)
        self._request, self._call, self._cost = request, call, cost
        self._secrets = _secrets(call.keywords)
        self._result: Any = None

    def make_request(self) -> Request:
        """What is asked."""
        return self._request

    async def send(self, request: Request) -> Answer:
        """Call the function."""
        self._failure = None
        call = self._as_admitted(request)
        result = await self.there(call)
        if is_stream(result, bool(call.keywords.get("stream"))):
            ended = self.loop.create_future()
            # Where its user says what it cost, it is not asked.
            pieces = Pieces(request) if self._cost is None else None
            self._result = Followed(self, result, ended, pieces)
            watch(self.scheduler, self._result)
            self.is_read_at(self._result.pace)
            self._place.wake()
            answer: Answer = await ended
            return answer
        self._result = result
        return self.read(result)

    def _as_admitted(self, request: Request) -> partial[Any]:
        """The call, with what admission changed of it: another model, or a cap on its output."""
        was = self._request.body
        changed = {
            name: value for name, value in request.body.items()
            if name in (*TELLING, "generationConfig") and was.get(name) != value
        }  # fmt: skip
        return with_arguments(self._call, changed) if changed else self._call

    def explain(self, exc: BaseException) -> CallFailed:
        """What an exception of the function means: it may have made several calls."""
        if isinstance(exc, CallFailed):
            return exc
        error = CallFailed(f"the function raised {words_of(exc)}")
        mask(error, self._secrets)
        return error

    def read(self, result: Any, pieces: Pieces | None = None) -> Answer:
        """What a result says of its cost; one that came in pieces is represented by the last of
        them that tells a usage.
        """  # noqa: D205
        if self._cost is not None:
            nusd, makes_sense = asked_nusd(self._cost, result)
            if nusd is not None or not makes_sense:
                return Answer(None, cost_nusd=nusd)
        try:
            body = body_of(result) if pieces is None else pieces.body()
            return Answer(body, usage=usage_told(body), cost_nusd=cost_told_nusd(result, body))
        except PROGRAM_ENDS:
            raise
        except BaseException as exc:  # the result is paid for: it is not thrown away for that
            complain(self._call.func, f"gave what {raised(exc)}", "what was quoted counts")
            return Answer(None)

    def outcome(self) -> Any:
        """The function's result, or what it raised; or why it was not called."""
        error, result, self._result = self.error, self._result, None
        if error is None or (result is not None and not isinstance(error, CallFailed)):
            return result
        if self._failure is not None and isinstance(error, CallFailed):
            with contextlib.suppress(Exception):  # one that takes no notes
                self._failure.add_note(f"scheduler: {error.cost_note}")
            raise self._failure
        raise error


def _secrets(kwargs: Mapping[str, Any]) -> Secrets:
    """Arguments that must not appear in an error that is kept."""
    return Secrets(
        value for name, value in kwargs.items()
        if isinstance(value, str) and any(word in name.lower() for word in _SECRET_WORDS)
    )  # fmt: skip


# What is called, for queue, limits and ledger


class Called(Provider):
    """A function, and its model, as a provider: what one of them meets, others need not."""

    def __init__(self, name: str, tariff: Tariff, reaches: Sequence[str] = ()) -> None:
        self.name, self.tariff, self.reaches = name, tariff, reaches

    async def send(self, request: Request) -> Answer:
        """Refuse: who submitted it is gone, and the function with it."""
        raise ProviderRefused(
            400, f"{self.name} is a function of another process; nothing was sent",
            "function_without_caller",
        )  # fmt: skip


class _ByModel:
    """Prices calls by the model they name, also in LiteLLM's way: ``groq/llama-3.3-70b``."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book

    def quote(self, request: Request) -> Quote:
        """Most and likely cost of one attempt."""
        (tariff, whole), (other, bare) = self._readings(request)
        try:
            return tariff.quote(whole)
        except PriceUnknown as unknown:
            try:
                return other.quote(bare)
            except PriceUnknown:
                raise unknown from None

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        """What the answer cost."""
        for tariff, read in self._readings(request):
            with contextlib.suppress(PriceUnknown):
                return tariff.cost_nusd(read, answer)
        return None

    def _readings(self, request: Request) -> tuple[tuple[Tariff, Request], ...]:
        """The model under its whole name, as prices of the user's own have it, then without the
        service's.
        """  # noqa: D205
        service, _, bare = request.model.rpartition("/")
        known = KNOWN.get(service)
        source = None if known is None else known.price_source
        renamed = replace(request, body={**request.body, "model": bare})
        return (self._book.tariff(), request), (self._book.tariff(source), renamed)


class _ByQuote:
    """Prices calls by what their function said beforehand."""

    def quote(self, request: Request) -> Quote:
        """What was said."""
        nusd = request.body["quote_nusd"]
        return Quote(nusd, nusd)

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        """What was read from the result."""
        return answer.cost_nusd


def _provider(scheduler: Scheduler, name: str, tariff: Tariff, reaches: Sequence[str] = ()) -> str:
    if name not in scheduler.providers:
        scheduler.add_provider(Called(name, tariff, reaches))
    return name


# Scheduler.call and Scheduler.budgeted


class _ModelVisit(FunctionVisit):
    """One call of a function that names its model, and makes one call of it."""

    def explain(self, exc: BaseException) -> CallFailed:
        """What an exception of the function means."""
        return explain(exc, self._secrets)

    def make_request(self) -> Request:
        """What is asked, at a provider that is added when there is a price."""
        book = self.scheduler.prices
        name, tariff = self._request.provider or "", cast("Tariff", _ByModel(book))
        model = self._request.model
        reached = reach(self._call.func, model, self._call.keywords.get("fallbacks"))
        is_whole = bool(reached) and book.own_rates(model) is not None  # a price of the alias
        reached = reached or named_with(model, self._call.keywords)
        if reached and not is_whole:
            name, tariff = place_of(name, reached), ByReach(book, tariff, reached)
            self._request = replace(self._request, provider=name)
        if name not in self.scheduler.providers:
            tariff.quote(self._request)  # raises `PriceUnknown`
        _provider(self.scheduler, name, tariff, tuple(each.model for each in reached))
        return self._request


async def call(scheduler: Scheduler, call: Arguments, on_exceeded: OnExceeded | None) -> Any:
    """See `Scheduler.call`."""
    function = call.func
    require_async(function)
    if is_within_call(scheduler.store):  # it is a part of that call
        return await call()
    single = once(function, call)
    place = place_of_coroutine(scheduler.loop)
    request = read_arguments(function, single)
    visit = _ModelVisit(scheduler, request, on_exceeded, place, single)
    await visit.wait_at(place)
    return visit.outcome()


def call_in_thread(scheduler: Scheduler, call: Arguments, on_exceeded: OnExceeded | None) -> Any:
    """As `call`, for a function that blocks; called in this thread."""
    function = call.func
    if inspect.iscoroutinefunction(function):
        raise ConfigError("call", f"{name_of(function)} is async; give its sync counterpart")
    if is_within_call(scheduler.store):
        return call()
    single = once(function, call)
    place = place_of_thread(scheduler.loop)
    request = read_arguments(function, single)
    visit = _ModelVisit(scheduler, request, on_exceeded, place, single)
    place.wait(visit.start, visit.give_up)
    return visit.outcome()


def budgeted(
    scheduler: Scheduler,
    quote: Dollars | Callable[..., Dollars],
    cost: Dollars | Cost | None,
    on_exceeded: OnExceeded | None,
    marks: Marks,
) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Coroutine[Any, Any, Any]]]:
    """See `Scheduler.budgeted`."""
    if not callable(quote):
        parse_usd(quote, "quote")  # a wrong one is told where it is written
    if cost is not None and not callable(cost):
        parse_usd(cost, "cost")
    spent = cost if cost is None or callable(cost) else lambda result: cost

    def decorate(
        function: Callable[..., Awaitable[Any]],
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        require_async(function)
        name = name_of(function)

        @wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            if is_within_call(scheduler.store):  # it is a part of that call
                return await function(*args, **kwargs)
            dollars = quote(*args, **kwargs) if callable(quote) else quote
            model = kwargs.get("model")
            body = {
                "model": model if isinstance(model, str) else name,
                "quote_nusd": quoted_nusd(dollars),
            }
            place = place_of_coroutine(scheduler.loop)
            said = of_request(marks) | {"provider": _provider(scheduler, name, _ByQuote())}
            request, done = Request(body, url=name, **said), Arguments(function, *args, **kwargs)
            args, kwargs = (), {}
            visit = FunctionVisit(scheduler, request, on_exceeded, place, done, spent)
            await visit.wait_at(place)
            return visit.outcome()

        return wrapped

    return decorate
