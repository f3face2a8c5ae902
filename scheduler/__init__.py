"""An asyncio request scheduler for LLM calls that never overspends.

A request enters a priority queue; it is admitted only when what it may cost fits
what is left of its budgets; what does not fit is parked until the budget resets
or its limit is raised, then goes on by itself. Results come back through futures.

    >>> import asyncio
    >>> from scheduler import Budget, Request, Scheduler, Simulated
    >>> async def main():
    ...     async with Scheduler(budgets=Budget("team", "$1/day"), providers=Simulated()) as s:
    ...         response = await s.run(Request.chat("sim-small", "Say hello", max_tokens=20))
    ...         return response.usage.output_tokens <= 20
    >>> asyncio.run(main())
    True
"""

from __future__ import annotations

__distribution__ = "llm-budget-scheduler"  # by which `installed` knows this file

TYPE_CHECKING = False  # as in `typing`, which is not loaded for it
if TYPE_CHECKING:
    from typing import Any

    from scheduler import events
    from scheduler.adapters.blocking import BlockingScheduler
    from scheduler.adapters.blocking import open as open
    from scheduler.adapters.client import AsyncClient, Client
    from scheduler.adapters.exceptions import refusal_of
    from scheduler.adapters.instrument import instrument
    from scheduler.answer import Answer
    from scheduler.budget import Budget
    from scheduler.core.future import RequestFuture
    from scheduler.core.stream import ResponseStream
    from scheduler.errors import (
        BadAnswer,
        BudgetExceeded,
        BudgetUnknown,
        CallFailed,
        CallInterrupted,
        CallTimeout,
        ConfigError,
        CostTooHigh,
        CredentialsRefused,
        DeadlineExceeded,
        HeldByCallers,
        KeyConflict,
        PriceUnknown,
        PromptTooLong,
        ProviderError,
        ProviderOverloaded,
        ProviderRefused,
        ProviderUnavailable,
        QueueFull,
        RateLimited,
        RequestRejected,
        SchedulerClosed,
        SchedulerError,
        StoreError,
        StreamBroken,
        TransportFailed,
        UncountedCalls,
        WaitsForItself,
        WrongLoop,
    )
    from scheduler.limits.meter import Limits
    from scheduler.limits.retry import Retry
    from scheduler.prices.book import PriceBook
    from scheduler.providers.anthropic import Anthropic
    from scheduler.providers.base import Provider
    from scheduler.providers.function import FunctionProvider
    from scheduler.providers.openai import OpenAI
    from scheduler.providers.simulated.provider import Simulated
    from scheduler.request import (
        Priority,
        Quote,
        Request,
        RequestState,
        Response,
        StreamEvent,
        Usage,
    )
    from scheduler.scheduler import Scheduler
    from scheduler.shortfall import ParkReason, Shortfall
    from scheduler.stats import Stats
    from scheduler.stores.base import Unknown

__version__ = "0.1.0"

# Imported when first asked for: `import scheduler` takes no time, and needs nothing.
_LAZY = {
    "Answer": "scheduler.providers.base",
    "Anthropic": "scheduler.providers.anthropic",
    "AsyncClient": "scheduler.adapters.client",
    "BadAnswer": "scheduler.errors",
    "BlockingScheduler": "scheduler.adapters.blocking",
    "Budget": "scheduler.budget",
    "BudgetExceeded": "scheduler.errors",
    "BudgetUnknown": "scheduler.errors",
    "CallFailed": "scheduler.errors",
    "CallInterrupted": "scheduler.errors",
    "CallTimeout": "scheduler.errors",
    "Client": "scheduler.adapters.client",
    "ConfigError": "scheduler.errors",
    "CostTooHigh": "scheduler.errors",
    "CredentialsRefused": "scheduler.errors",
    "DeadlineExceeded": "scheduler.errors",
    "FunctionProvider": "scheduler.providers.function",
    "HeldByCallers": "scheduler.errors",
    "KeyConflict": "scheduler.errors",
    "Limits": "scheduler.limits.meter",
    "OpenAI": "scheduler.providers.openai",
    "ParkReason": "scheduler.shortfall",
    "PriceBook": "scheduler.prices.book",
    "PriceUnknown": "scheduler.errors",
    "Priority": "scheduler.request",
    "PromptTooLong": "scheduler.errors",
    "Provider": "scheduler.providers.base",
    "ProviderError": "scheduler.errors",
    "ProviderOverloaded": "scheduler.errors",
    "ProviderRefused": "scheduler.errors",
    "ProviderUnavailable": "scheduler.errors",
    "QueueFull": "scheduler.errors",
    "Quote": "scheduler.request",
    "RateLimited": "scheduler.errors",
    "Request": "scheduler.request",
    "RequestFuture": "scheduler.core.future",
    "RequestRejected": "scheduler.errors",
    "RequestState": "scheduler.request",
    "Response": "scheduler.request",
    "ResponseStream": "scheduler.core.stream",
    "Retry": "scheduler.limits.retry",
    "Scheduler": "scheduler.scheduler",
    "SchedulerClosed": "scheduler.errors",
    "SchedulerError": "scheduler.errors",
    "Shortfall": "scheduler.shortfall",
    "Simulated": "scheduler.providers.simulated.provider",
    "Stats": "scheduler.stats",
    "StoreError": "scheduler.errors",
    "StreamBroken": "scheduler.errors",
    "StreamEvent": "scheduler.request",
    "TransportFailed": "scheduler.errors",
    "UncountedCalls": "scheduler.errors",
    "Unknown": "scheduler.stores.base",
    "Usage": "scheduler.request",
    "WaitsForItself": "scheduler.errors",
    "WrongLoop": "scheduler.errors",
    "instrument": "scheduler.adapters.instrument",
    "open": "scheduler.adapters.blocking",  # not in __all__: it would hide the built-in one
    "refusal_of": "scheduler.adapters.exceptions",
}
_MODULES = ("errors", "events")

__all__ = [
    "Answer",
    "Anthropic",
    "AsyncClient",
    "BadAnswer",
    "BlockingScheduler",
    "Budget",
    "BudgetExceeded",
    "BudgetUnknown",
    "CallFailed",
    "CallInterrupted",
    "CallTimeout",
    "Client",
    "ConfigError",
    "CostTooHigh",
    "CredentialsRefused",
    "DeadlineExceeded",
    "FunctionProvider",
    "HeldByCallers",
    "KeyConflict",
    "Limits",
    "OpenAI",
    "ParkReason",
    "PriceBook",
    "PriceUnknown",
    "Priority",
    "PromptTooLong",
    "Provider",
    "ProviderError",
    "ProviderOverloaded",
    "ProviderRefused",
    "ProviderUnavailable",
    "QueueFull",
    "Quote",
    "RateLimited",
    "Request",
    "RequestFuture",
    "RequestRejected",
    "RequestState",
    "Response",
    "ResponseStream",
    "Retry",
    "Scheduler",
    "SchedulerClosed",
    "SchedulerError",
    "Shortfall",
    "Simulated",
    "Stats",
    "StoreError",
    "StreamBroken",
    "StreamEvent",
    "TransportFailed",
    "UncountedCalls",
    "Unknown",
    "Usage",
    "WaitsForItself",
    "WrongLoop",
    "events",
    "instrument",
    "refusal_of",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"scheduler.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'scheduler' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
