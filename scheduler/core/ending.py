"""How a scheduler comes to an end, whoever ends it.

`Scheduler.aclose`, a program that cancels all its tasks, or the pump's own death: what runs is
ended or let finish, and settled; every future ends; then what was opened is closed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from scheduler.core.pump import Pump
from scheduler.core.resolver import Resolver
from scheduler.core.steady import Steady
from scheduler.core.watching import Companion
from scheduler.duration import parse_duration_ms
from scheduler.guards.plain import logger_of
from scheduler.providers.base import Provider
from scheduler.request import Duration
from scheduler.stores.base import Store

logger = logger_of("scheduler.ending")

CLOSE_S = 10.0  # how long providers may take to close, once nothing runs any more
DRAIN = "5m"  # how long calls may take to finish when a scheduler is closed


def drain_s(timeout: Duration | None) -> float:
    """How long calls may take to finish, in seconds; None: as long as their providers take."""
    return math.inf if timeout is None else parse_duration_ms(timeout, "drain_timeout") / 1000


class Ending:
    """The end of one scheduler. Used by `Scheduler` alone.

    Args:
        pump: Moves requests until it is told to end.
        resolver: Looks after unknown outcomes.
        companions: What ends with it.
        providers: Are closed then.
        store: Likewise, last.
        told: Called when it begins to end: nothing more may be taken in.
    """

    def __init__(
        self,
        pump: Pump,
        resolver: Resolver,
        companions: Sequence[Companion],
        providers: Iterable[Provider],
        store: Store,
        told: Callable[[], None],
    ) -> None:
        self._pump, self._resolver, self._told = pump, resolver, told
        self._companions = companions
        self._providers, self._store = providers, store
        self._closing: asyncio.Task[None] | None = None
        self._ends_at_s: float | None = None  # when what runs is cancelled, on the loop's clock
        self._life: Steady = pump.start(self._let_go, self._torn)

    def begin(self, within_s: float | None = 0) -> None:
        """Come to an end. Of several words the one in the most haste counts.

        Args:
            within_s: How long calls under way may take to finish. None: as was said before, else
                no time.
        """
        if self._life.done() or (within_s is None and self._ends_at_s is not None):
            return
        ends_at_s = asyncio.get_running_loop().time() + (within_s or 0)
        if self._ends_at_s is None or ends_at_s < self._ends_at_s:
            self._ends_at_s = ends_at_s
            self._told()
            self._pump.end(within_s=within_s or 0)

    async def wait(self) -> None:
        """Wait until it has come. Whoever waits may be cancelled; the closing itself goes on."""
        await asyncio.shield(self._life)

    def _torn(self) -> None:
        """Somebody cancels the pump, as programs do that end: they are in a hurry."""
        self._ends_at_s = -math.inf
        self._told()
        if self._closing is not None:
            self._closing.cancel()  # a provider takes its time to close
        else:
            self._pump.end()

    async def _let_go(self) -> None:
        """Close what was opened; the pump's last act."""
        # In a task of its own, since providers are free to use timeouts.
        self._closing = asyncio.create_task(self._close(), name="scheduler close")
        await asyncio.wait([self._closing])
        await self._store.aclose()
        if not self._closing.cancelled():
            self._closing.result()

    async def _close(self) -> None:
        try:
            ending = {
                asyncio.create_task(each.aclose()): type(each).__name__ for each in self._companions
            }
            resolving = asyncio.create_task(self._resolver.aclose())
            ending[resolving] = "asking a provider what became of a call"
            await _within_bounds(ending)
        finally:
            await close_all(self._providers)


async def close_all(providers: Iterable[Provider]) -> None:
    """Close providers, each of them whatever the others do; raises the first of what they raise.

    One that does not end in `CLOSE_S` is named in a warning, and left.
    """
    closing = {provider: asyncio.create_task(_closed(provider)) for provider in providers}
    await _within_bounds({task: f"provider {each.name!r}" for each, task in closing.items()})
    for task in closing.values():
        if task.done() and not task.cancelled():
            task.result()


async def _closed(provider: Provider) -> None:
    await provider.aclose()


async def _within_bounds(tasks: Mapping[asyncio.Task[None], str]) -> None:
    """Wait until tasks have ended, but not for ever; with what each is called."""
    if not tasks:
        return
    late = set(tasks)
    try:
        _, late = await asyncio.wait(tasks, timeout=CLOSE_S)
    finally:
        for task in late:
            task.cancel()
    for task in late:
        task.add_done_callback(_heard)
        logger.warning(
            "%s goes on %g s after it was told to close; it is left", tasks[task], CLOSE_S
        )


def _heard(task: asyncio.Task[None]) -> None:
    """Nobody waits any more for what it may raise."""
    if not task.cancelled():
        task.exception()
