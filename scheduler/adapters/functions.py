"""Async functions that wait for money: LiteLLM's, an SDK's, anybody's.

What one may cost is read from its arguments, what it did cost from its result, and what went
wrong from its exception. The function itself is called where its caller is.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from scheduler.adapters.exceptions import explain
from scheduler.adapters.places import Place, place_of_coroutine, place_of_thread
from scheduler.adapters.visit import Visit
from scheduler.calls import under_way
from scheduler.errors import CallFailed, ConfigError, PriceUnknown, ProviderRefused
from scheduler.intake import OnExceeded
from scheduler.marks import Marks
from scheduler.money import parse_usd
from scheduler.pricing import PriceBook
from scheduler.providers.base import Answer, Provider, Tariff
from scheduler.providers.function import Dollars
from scheduler.providers.known import KNOWN
from scheduler.request import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Quote, Request
from scheduler.usage import extract_usage, reported_cost_nusd

if TYPE_CHECKING:
    from scheduler.scheduler import Scheduler

# Arguments that tell what a call may cost. No others are kept: there may be keys among them.
_TELLING = (
    "model", "messages", "input", "prompt", "system", "instructions", "suffix", "tools",
    "functions", "tool_choice", "max_tokens", "max_completion_tokens", "max_output_tokens", "n",
    "best_of", "response_format", "reasoning_effort", "service_tier", "stream", "modalities",
    "audio", "prediction", "web_search_options", "dimensions",
)  # fmt: skip
_PLAIN = (str, int, float, bool, type(None))


class FunctionVisit(Visit):
    """One call of a function."""

    def __init__(
        self,
        scheduler: Scheduler,
        request: Request,
        on_exceeded: OnExceeded | None,
        place: Place,
        call: partial[Any],
        cost: Callable[[Any], Dollars | None] | None = None,
    ) -> None:
        super().__init__(scheduler, request, on_exceeded, place)
        self._call, self._cost = call, cost
        self._result: Any = None
        self._failure: Exception | None = None

    async def send(self, request: Request) -> Answer:
        """Call the function."""
        self._failure = None
        try:
            result = await self._place.run(self._as_admitted(request))
        except Exception as exc:
            self._failure = exc
            raise explain(exc) from exc
        self._result = result
        if hasattr(result, "__aiter__") and not hasattr(result, "usage"):
            ended = self.loop.create_future()
            self._result = _Followed(self, result, ended)
            self._place.wake()
            answer: Answer = await ended
            return answer
        return self.read(result)

    def _as_admitted(self, request: Request) -> partial[Any]:
        """The call, with what admission changed of it: another model, or a cap on its output."""
        was = self._request.body
        changed = {
            name: value for name, value in request.body.items()
            if name in _TELLING and was.get(name) != value
        }  # fmt: skip
        return partial(self._call, **changed) if changed else self._call

    def read(self, result: Any) -> Answer:
        """What a result says of its cost."""
        if self._cost is not None:
            dollars = self._cost(result)
            if dollars is not None:
                return Answer(None, cost_nusd=parse_usd(dollars, "cost"))
        usage = _as_json(getattr(result, "usage", None) or _member(result, "usage"))
        body = {"usage": usage} if isinstance(usage, dict) else None
        return Answer(body, usage=extract_usage(body), cost_nusd=_reported_nusd(result, body))

    def outcome(self) -> Any:
        """The function's result, or what it raised; or why it was not called."""
        error, result, self._result = self.error, self._result, None
        if error is None or (result is not None and not isinstance(error, CallFailed)):
            return result
        if self._failure is not None and isinstance(error, CallFailed):
            self._failure.add_note(f"scheduler: {error.cost_note}")
            raise self._failure
        raise error


def _reported_nusd(result: Any, body: Mapping[str, Any] | None) -> int | None:
    """The cost a result reports: LiteLLM's own arithmetic, or the provider's word.

    LiteLLM's zero is not believed, since that is what it says of models it has no price for.
    """
    hidden = getattr(result, "_hidden_params", None)
    cost = _member(hidden, "response_cost")
    if cost:
        return reported_cost_nusd({"usage": {"cost": cost}})
    return reported_cost_nusd(body)


def _member(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _as_json(thing: Any) -> Any:
    dump = getattr(thing, "model_dump", None)
    return dump(exclude_none=True) if callable(dump) else thing


class _Followed:
    """A stream on its way to its reader; the last usage in it is what it cost."""

    def __init__(self, visit: FunctionVisit, stream: Any, ended: Any) -> None:
        self._visit, self._stream, self._ended = visit, stream, ended
        self._last: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aiter__(self) -> AsyncIterator[Any]:
        is_over = False
        try:
            async for chunk in self._stream:
                if getattr(chunk, "usage", None) or _member(chunk, "usage"):
                    self._last = chunk
                yield chunk
            is_over = True
        except Exception as exc:
            self._tell(None, explain(exc))
            raise
        finally:
            if is_over:
                last = self._stream if self._last is None else self._last
                self._tell(self._visit.read(last), None)
                await self._visit.settled()
            else:
                self._visit.give_up()  # what it reserved keeps counting

    def _tell(self, answer: Answer | None, error: CallFailed | None) -> None:
        if self._ended.done():
            return
        if error is not None:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(answer)

    def __del__(self) -> None:
        if not self._ended.done() and not self._visit.scheduler.is_closed:
            self._visit.give_up()


# What is called, for queue, limits and ledger


class Called(Provider):
    """A function, and its model, as a provider: what one of them meets, others need not."""

    def __init__(self, name: str, tariff: Tariff) -> None:
        self.name, self.tariff = name, tariff

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
        whole, bare = self._readings(request)
        try:
            return whole[0].quote(whole[1])
        except PriceUnknown as unknown:
            try:
                return bare[0].quote(bare[1])
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


def _provider_of(scheduler: Scheduler, name: str, tariff: Callable[[], Tariff]) -> str:
    if name not in scheduler.providers:
        scheduler.add_provider(Called(name, tariff()))
    return name


# Scheduler.call and Scheduler.budgeted


def make_request(scheduler: Scheduler, function: Callable[..., Any], kwargs: Any) -> Request:
    """The request that a call of a function amounts to.

    Raises:
        ConfigError: Its arguments name no model.
    """
    body = {
        name: _plain(kwargs[name]) for name in _TELLING if kwargs.get(name) is not None
    }  # fmt: skip
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise ConfigError(
            "model",
            f"{_name_of(function)} was called without model=…, so nobody knows what it may cost; it "
            "was not called. Name the model, or use s.budgeted(quote=…)",
        )
    package = (getattr(function, "__module__", None) or type(function).__module__).partition(".")[0]
    name = f"{package}/{model}"
    provider = _provider_of(scheduler, name, lambda: _ByModel(scheduler.prices))
    return Request(body, url=_url_of(function, body), provider=provider)


def _url_of(function: Callable[..., Any], body: Mapping[str, Any]) -> str:
    if "messages" in body:
        return CHAT
    if "prompt" in body:
        return COMPLETIONS
    return EMBEDDINGS if "embed" in _name_of(function).lower() else RESPONSES


def _plain(value: Any) -> Any:
    """An argument as JSON has it; what has no form there as text, for its length."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    dumped = _as_json(value)
    return str(value) if dumped is value else _plain(dumped)


def _name_of(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", None) or type(function).__module__
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}.{name}"


async def call(
    scheduler: Scheduler,
    function: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    on_exceeded: OnExceeded | None,
) -> Any:
    """See `Scheduler.call`."""
    _require_async(function)
    if under_way.get():  # it is a part of that call
        return await function(*args, **kwargs)
    request = make_request(scheduler, function, kwargs)
    return await _visit(scheduler, request, on_exceeded, partial(function, *args, **kwargs))


def call_in_thread(
    scheduler: Scheduler,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    on_exceeded: OnExceeded | None,
) -> Any:
    """As `call`, for a function that blocks; called in this thread."""
    if inspect.iscoroutinefunction(function):
        raise ConfigError("call", f"{_name_of(function)} is async; give its sync counterpart")
    if under_way.get():  # it is a part of that call
        return function(*args, **kwargs)
    place = place_of_thread(scheduler.loop)
    request = make_request(scheduler, function, kwargs)
    visit = FunctionVisit(
        scheduler, request, on_exceeded, place, partial(function, *args, **kwargs)
    )
    place.wait(visit.start, visit.give_up)
    return visit.outcome()


async def _visit(
    scheduler: Scheduler,
    request: Request,
    on_exceeded: OnExceeded | None,
    call: partial[Any],
    cost: Callable[[Any], Dollars | None] | None = None,
) -> Any:
    place = place_of_coroutine(scheduler.loop)
    visit = FunctionVisit(scheduler, request, on_exceeded, place, call, cost)
    await place.wait(visit.start, visit.give_up)
    return visit.outcome()


def budgeted(
    scheduler: Scheduler,
    quote: Dollars | Callable[..., Dollars],
    cost: Dollars | Callable[[Any], Dollars | None] | None,
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
        _require_async(function)
        name = _name_of(function)

        @wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            if under_way.get():  # it is a part of that call
                return await function(*args, **kwargs)
            dollars = quote(*args, **kwargs) if callable(quote) else quote
            model = kwargs.get("model")
            body = {
                "model": model if isinstance(model, str) else name,
                "quote_nusd": parse_usd(dollars, "quote"),
            }
            provider = _provider_of(scheduler, name, _ByQuote)
            said: Marks = {**marks, "provider": provider}
            request = Request(body, url=name, **said)
            done = partial(function, *args, **kwargs)
            return await _visit(scheduler, request, on_exceeded, done, spent)

        return wrapped

    return decorate


def _require_async(function: Callable[..., Any]) -> None:
    bare = function
    while isinstance(bare, partial):
        bare = bare.func
    bare = inspect.unwrap(bare)
    if inspect.isfunction(bare) and not inspect.iscoroutinefunction(bare):
        raise ConfigError(
            "call",
            f"{_name_of(bare)} is not async and would block everything; give its async "
            "counterpart, or use scheduler.open() and call it there",
        )
