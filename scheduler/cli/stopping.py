"""How the work of a command is ended: by itself, by a signal, and by a second one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from scheduler.cli.exits import Exit
from scheduler.duration import format_duration
from scheduler.guards.signals import HANG_UP
from scheduler.money import format_usd
from scheduler.scheduler import Scheduler

TICK_S = 0.1


class Ended(Protocol):
    """How a command's work ended."""

    exit: Exit
    message: str


class Stopping:
    """Ends what a scheduler does for a command: nothing new is begun, what runs may finish.

    Args:
        s: Does the work.
        outcome: Takes why it ended.
        say: Tells the user.
        grace_s: How long calls under way may take then.
        told_to: The exit code when a signal ended it, and what ran has finished.

    Attributes:
        event: Set once it is to end.
        news: The last that was said of what waits: it need not be said again.
    """

    def __init__(
        self, s: Scheduler, outcome: Ended, say: Callable[[str], None], grace_s: float,
        told_to: Exit = Exit.INTERRUPTED,
    ) -> None:  # fmt: skip
        self._s, self._outcome, self._say, self.grace_s = s, outcome, say, grace_s
        self._told_to, self._signals = told_to, 0
        self.event = asyncio.Event()
        self.news = ""

    def stop(self, message: str) -> None:
        """Begin nothing more; what runs finishes."""
        self._outcome.message = self._outcome.message or message
        if message != self.news:  # said a moment ago
            self._say(message)
        self.stop_silently()

    def stop_silently(self) -> None:
        """As `stop`, where the reason is told later."""
        self.event.set()
        self._s.stop_admitting()

    def interrupted(self, number: int) -> None:
        """A signal says that it is to end; a second one, that it is to end now."""
        if number == HANG_UP and self._signals:
            return  # the system and the shell both tell of it
        self._signals += 1
        stats = self._s.stats()
        if self._signals == 1:
            self._outcome.exit = self._told_to
            self.stop(
                f"stopping: {stats.running} running calls ({format_usd(stats.reserved_nusd)} "
                "reserved) are let finish; interrupt again to cancel them, which happens by itself after "
                f"{format_duration(int(self.grace_s * 1000))}"
            )
            asyncio.get_running_loop().call_later(self.grace_s, self._cut_short)
        elif self._signals == 2:
            self._cut_short()
        else:
            raise SystemExit(Exit.INTERRUPTED)

    def _cut_short(self) -> None:
        if self._s.stats().running:
            self._outcome.exit = Exit.INTERRUPTED
            self.cancel_running()

    def cancel_running(self) -> None:
        """End what runs; what it reserved keeps counting."""
        stats = self._s.stats()
        if stats.running:
            self._say(
                f"cancelling {stats.running} running calls; {format_usd(stats.reserved_nusd)} "
                "stays reserved, since the provider may bill them"
            )
            self._s.cancel_running()

    async def let_finish(self, tick: Callable[[], Awaitable[object]]) -> None:
        """Wait until nothing runs, for as long as it may take; something is done meanwhile."""
        loop = asyncio.get_running_loop()
        until_s, is_cancelled = loop.time() + self.grace_s, False
        while self._s.stats().running:
            if loop.time() > until_s and not is_cancelled:
                is_cancelled = True
                self.cancel_running()
            await asyncio.sleep(TICK_S)
            self._s.check()
            await tick()
