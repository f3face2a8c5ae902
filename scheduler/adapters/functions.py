"""Functions that wait for money: LiteLLM's, an SDK's, anybody's.

What one may cost is read from its arguments, what it did cost from its result, and what went
wrong from its exception. The function itself is called where its caller is.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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
from scheduler.adapters.exceptions import billed_for_parts, explain
from scheduler.adapters.followed import Followed, is_stream
from scheduler.adapters.places import Place, place_of_coroutine, place_of_thread
from scheduler.adapters.results import Pieces, body_of, cost_told_nusd
from scheduler.adapters.routers import ByReach, named_with, place_of, reach
from scheduler.adapters.visit import Visit
from scheduler.adapters.watch import watch
from scheduler.answer import Answer
from scheduler.core.calls import CancelledAfter, attempt_around
from scheduler.core.intake import OnExceeded
from scheduler.core.marks import Marks, of_request
from scheduler.core.nested.parts import Bill, Tab, noted_here
from scheduler.errors import (
    CallFailed,
    ConfigError,
    PriceUnknown,
    ProviderRefused,
    ProviderUnavailable,
    words_of,
)
from scheduler.guards.hooks import PROGRAM_ENDS, asked_nusd, bare, complain, quoted_nusd, raised
from scheduler.guards.plain import logger_of
from scheduler.money import parse_usd
from scheduler.prices.book import PriceBook
from scheduler.prices.tariff import Tariff
from scheduler.providers.base import Provider
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
    """One call of a function.

    Attributes:
        posts_unknown: Whether it is posted with the ceilings of parts that nobody knows of, if it
            fails; else it is unknown itself.
    """

    posts_unknown = True

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
        self._kept: Tab | None = None  # of the attempt that is made

    def make_request(self) -> Request:
        """What is asked."""
        return self._request

    async def attempt(self, request: Request) -> Answer:
        """Call the function, and settle by what came by of what it asked."""
        store = self.scheduler.store
        with Tab(store).kept() as tab:
            self._kept = tab
            try:
                answer = await self.send(request)
            except CallFailed as error:
                billed_for_parts(error, self._failure, tab.last_bill(), self.posts_unknown)
                raise
            except asyncio.CancelledError:
                raise CancelledAfter(tab.last_bill().nusd) from None
        if tab.is_waiting:  # for what it left behind, such as a stream that it gave back
            around = attempt_around(store)
            if self.tab is None and around is not None:
                around.is_live = False  # whatever is asked from now on is a call of its own
            self.place.wake()
            await tab.settled()
        return self.with_parts(request, answer, tab.last_bill())

    def with_parts(self, request: Request, answer: Answer, bill: Bill) -> Answer:
        """What a result says of its cost, and what came by, which it is never below."""
        if not bill.parts:
            return answer
        if not (bill.is_bound and answer.has_all_usage):
            least_nusd = max(bill.nusd, answer.cost_nusd or 0)
            return replace(answer, usage=None, cost_nusd=least_nusd, has_all_usage=False)
        return replace(answer, cost_nusd=max(bill.nusd, answer.cost_nusd or 0))

    async def send(self, request: Request) -> Answer:
        """Call the function."""
        self._failure = None
        call = self._as_admitted(request)
        result = await self.there(call)
        if is_stream(result, bool(call.keywords.get("stream"))):
            ended = self.loop.create_future()
            # Where its user says what it cost, it is not asked.
            pieces = Pieces(request) if self._cost is None else None
            assert self._kept is not None
            self._result = Followed(self, result, ended, pieces, self._kept)
            watch(self.scheduler, self._result)
            self.is_read_at(self._result.pace)
            self.place.wake()
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
                return Answer(None, cost_nusd=nusd, has_all_usage=makes_sense)
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
        if self._failure is not None and isinstance(error, CallFailed | ProviderUnavailable):
            note = error.cost_note if isinstance(error, CallFailed) else str(error)
            with contextlib.suppress(Exception):  # one that takes no notes
                self._failure.add_note(f"scheduler: {note}")
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

    posts_unknown = False
    tries_again = True  # since the function's own retries are switched off

    def with_parts(self, request: Request, answer: Answer, bill: Bill) -> Answer:
        """What its result says; if it made several calls, never less than these."""
        if not bill.parts:
            return answer
        told_nusd = self._tariff.cost_nusd(request, answer)
        if told_nusd is not None and (bill.parts == 1 or told_nusd >= bill.nusd):
            return answer
        return super().with_parts(request, answer, bill)

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
        self._tariff = tariff
        if name not in self.scheduler.providers and self.tab is None:
            tariff.quote(self._request)  # raises `PriceUnknown`
        _provider(self.scheduler, name, tariff, tuple(each.model for each in reached))
        return self._request


def _visit_of_call(
    scheduler: Scheduler, call: Arguments, on_exceeded: OnExceeded | None, place: Place
) -> _ModelVisit | None:
    """What `call` amounts to; None: it is a part of a call that is noted as a whole."""
    (tab, is_covered), function = noted_here(scheduler.store), call.func
    if is_covered:
        return None
    try:
        single = once(function, call)
        request = read_arguments(function, single)
    except ConfigError:
        if tab is None:
            raise
        tab.misses()  # the function that asks has a quote
        return None
    visit = _ModelVisit(scheduler, request, on_exceeded, place, single)
    visit.tab = tab
    return visit


async def call(scheduler: Scheduler, call: Arguments, on_exceeded: OnExceeded | None) -> Any:
    """See `Scheduler.call`."""
    require_async(call.func)
    place = place_of_coroutine(scheduler.loop)
    visit = _visit_of_call(scheduler, call, on_exceeded, place)
    if visit is None:
        return await call()
    await visit.wait_at(place)
    return visit.outcome()


def call_in_thread(scheduler: Scheduler, call: Arguments, on_exceeded: OnExceeded | None) -> Any:
    """As `call`, for a function that blocks; called in this thread."""
    if inspect.iscoroutinefunction(call.func):
        raise ConfigError("call", f"{name_of(call.func)} is async; give its sync counterpart")
    if noted_here(scheduler.store)[1]:
        return call()
    place = place_of_thread(scheduler.loop)
    visit = _visit_of_call(scheduler, call, on_exceeded, place)
    if visit is None:
        return call()
    place.wait(visit.start, visit.give_up)
    return visit.outcome()


class Budgeted:
    """How functions are quoted and billed that `Scheduler.budgeted` decorates."""

    def __init__(
        self,
        scheduler: Scheduler,
        quote: Dollars | Callable[..., Dollars],
        cost: Dollars | Cost | None,
        on_exceeded: OnExceeded | None,
        marks: Marks,
    ) -> None:
        if not callable(quote):
            parse_usd(quote, "quote")  # a wrong one is told where it is written
        if cost is not None and not callable(cost):
            parse_usd(cost, "cost")
        self._scheduler, self._quote, self._on_exceeded, self._marks = (
            scheduler, quote, on_exceeded, marks,
        )  # fmt: skip
        self._cost = cost if cost is None or callable(cost) else lambda result: cost

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, decorated: async, to be called in any event loop."""
        if inspect.isasyncgenfunction(bare(function)):
            return self._in_pieces(function)
        require_async(function)

        @wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            call = Arguments(function, *args, **kwargs)
            args, kwargs = (), {}
            if self._is_covered():
                return await call()
            place = place_of_coroutine(self._scheduler.loop)
            visit = self._visit(call, place)
            await visit.wait_at(place)
            return visit.outcome()

        return wrapped

    def _in_pieces(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Likewise, for one that is an async generator."""

        async def begin(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        named = bare(function)
        begin.__module__, begin.__qualname__ = named.__module__, named.__qualname__
        decorated = self(begin)

        @wraps(function)
        async def pieces(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            begun = decorated(*args, **kwargs)
            args, kwargs = (), {}  # no frame of a refusal shows them: there may be keys among them
            async with contextlib.aclosing(await begun) as stream:
                async for each in stream:
                    yield each

        return pieces

    def in_threads(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Likewise; one that is not async is called in the thread that calls it."""
        inner = bare(function)
        if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
            return self(function)

        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            call = Arguments(function, *args, **kwargs)
            args, kwargs = (), {}
            if self._is_covered():
                return call()
            place = place_of_thread(self._scheduler.loop)
            visit = self._visit(call, place)
            place.wait(visit.start, visit.give_up)
            return visit.outcome()

        return wrapped

    def _is_covered(self) -> bool:
        """Whether it is called within a call that is noted as a whole."""
        return noted_here(self._scheduler.store)[1]

    def _visit(self, call: Arguments, place: Place) -> FunctionVisit:
        function, quote, name = call.func, self._quote, name_of(call.func)
        dollars = quote(*call.args, **call.keywords) if callable(quote) else quote
        model = call.keywords.get("model")
        body = {
            "model": model if isinstance(model, str) else name,
            "quote_nusd": quoted_nusd(dollars),
        }
        said = of_request(self._marks) | {
            "provider": _provider(self._scheduler, name_of(function), _ByQuote())
        }
        request = Request(body, url=name, **said)
        visit = FunctionVisit(self._scheduler, request, self._on_exceeded, place, call, self._cost)
        visit.tab, _ = noted_here(self._scheduler.store)
        return visit
