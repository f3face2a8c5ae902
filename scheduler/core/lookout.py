"""What other processes on the same store do: looked at while anything depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from scheduler.clock import Clock
from scheduler.core.callers.desk import Desk
from scheduler.core.declared import follow
from scheduler.core.flight import Flight
from scheduler.core.intake import Intake
from scheduler.core.tally import Tally
from scheduler.guards.plain import logger_of
from scheduler.stores.base import Store

logger = logger_of("scheduler.pump")


class Lookout:
    """Looks at a store that others may change, some times a second. Used by `Pump` alone.

    Args:
        store: The store.
        intake: Has the book of budgets, which others may define.
        clock: Tells the time.
        poll_s: How long to wait between two looks.
        flight: The calls under way.
        desk: Who waits, here and for others.
        tally: Sums.
        wake: Has the pump take a turn.
        is_full: Whether nothing could go now, whatever others changed, until a call ends.
        serves: Whether it sends what others submit.

    Attributes:
        was_lost: Others took this process for dead: some keys may be theirs.
    """

    def __init__(
        self, store: Store, intake: Intake, clock: Clock, poll_s: float, flight: Flight,
        desk: Desk, tally: Tally, wake: Callable[[], None], is_full: Callable[[], bool], *,
        serves: bool,
    ) -> None:  # fmt: skip
        self._store, self._intake, self._clock, self._poll_s = store, intake, clock, poll_s
        self._flight, self._desk, self._tally, self._wake = flight, desk, tally, wake
        self._loop = asyncio.get_running_loop()
        self._renewed_s = self._woken_s = self._loop.time()
        self._is_full = is_full
        self._is_server = serves
        self.was_lost = False

    @property
    def serves(self) -> bool:
        """Whether others may submit what this process is to send."""
        return self._is_server and self._intake.shares and bool(self._intake.services)

    async def run(self, stop: Callable[[], object]) -> None:
        """Notice what other processes changed; keep the lease while there is work.

        Args:
            stop: Called if the program ends here: nobody would keep the lease any more.
        """
        try:
            while True:
                await self._store.pause_for_others(self._poll_s)
                if self._is_needed():
                    await self._look_safely()
        except (KeyboardInterrupt, SystemExit):
            stop()
            raise

    def _is_needed(self) -> bool:
        is_due = self._loop.time() - self._renewed_s > self._store.lease_ms / 3000
        if is_due:
            self._renewed_s = self._loop.time()
        if self.serves:
            return True
        elsewhere = self._desk.elsewhere
        return bool(self._tally.waiting or elsewhere or self._desk.read or self.was_lost or is_due)

    def _wake_unless_full(self) -> None:
        """Have a turn taken, unless the end of a call does so soon, and nothing goes before.

        Where many processes meet, such turns alone would fill the store. But the lease is kept.
        """
        now_s = self._loop.time()
        if not self._is_full() or now_s - self._woken_s > self._store.lease_ms / 3000:
            self._woken_s = now_s
            self._wake()

    async def _look_safely(self) -> None:
        try:
            await self._look()
        except Exception as exc:
            logger.warning("cannot look for changes by other processes: %s", exc)

    async def _look(self) -> None:
        elsewhere = self._desk.elsewhere
        if self.was_lost:
            self.was_lost = False
            calls = self._flight.calls
            waiting = [each for each in self._desk.waiters.ids() if each not in calls]
            await elsewhere.look_what_was_taken(waiting)
        now_ms = self._clock.now_ms()  # first: changes may never end
        await elsewhere.follow(now_ms, partial(self._desk.give_up, now_ms=now_ms))
        if await self._store.changed(now_ms):
            self._wake_unless_full()
            await follow(self._store, self._intake.book, self._clock.now_ms())
            await elsewhere.look()
        await elsewhere.look_who_is_there()
        await self._desk.note_read(now_ms)
