"""A process that sends what others submit: what ``scheduler worker`` does.

It goes on until it is told to stop: then it claims nothing new, and what runs finishes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler import events
from scheduler.cli.exits import Exit
from scheduler.cli.patience import Patience
from scheduler.cli.progress import Progress, Snapshot
from scheduler.cli.refusals import Refusals
from scheduler.cli.snapshots import Work, snapshot
from scheduler.cli.stopping import TICK_S, Stopping
from scheduler.clock import SystemClock
from scheduler.core.calls import has_spoken
from scheduler.duration import format_duration
from scheduler.errors import ConfigError, CredentialsRefused
from scheduler.guards.plain import without_password
from scheduler.guards.signals import signals_to
from scheduler.money import decimal_usd, format_usd
from scheduler.providers.base import Provider
from scheduler.providers.http import HttpProvider
from scheduler.request import RequestState
from scheduler.scheduler import Scheduler
from scheduler.stats import Stats

PAGE = 500
PRICES_S = 2.0  # so often it is looked whether somebody set a price
STILL = 3  # so many looks with nothing to do, one after the other, are an end of it
WORKERS_RESULTS = "the results of their jobs"


def able(providers: Sequence[Provider], wanted: Sequence[str] = ()) -> list[Provider]:
    """The providers that this process can ask for others, the default first.

    Args:
        providers: Those that are configured.
        wanted: Names; empty: all for which there is a key, or none is needed.

    Raises:
        ConfigError: One that is wanted is not configured, or lacks its key; or there is none.
    """
    by_name = {each.name: each for each in providers}
    for name in wanted:
        if name not in by_name:
            known = ", ".join(map(repr, by_name))
            problem = f"no provider is named {name!r} (there are: {known}); nothing was sent"
            raise ConfigError("--provider", problem)
        _require_key([by_name[name]])
    found = [
        each for each in providers
        if each.service is not None and each.has_credentials and (not wanted or each.name in wanted)
    ]  # fmt: skip
    if not found:
        _require_key(providers)
        raise ConfigError(
            "--provider", "there is none that any process could ask; see scheduler.toml"
        )
    return found


def _require_key(providers: Iterable[Provider]) -> None:
    for each in providers:
        if isinstance(each, HttpProvider):
            each.require_key()


@dataclass(slots=True)
class Served:
    """What a worker did, and how it ended."""

    exit: Exit = Exit.DONE
    message: str = ""
    succeeded: int = 0
    failed: int = 0
    waiting: int = 0  # of what it serves
    cost_nusd: int = 0
    reserved_nusd: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {
            "exit": int(self.exit),
            "succeeded": self.succeeded,
            "failed": self.failed,
            "waiting": self.waiting,
            "cost_usd": decimal_usd(self.cost_nusd),
            "reserved_usd": decimal_usd(self.reserved_nusd),
            "seconds": round(self.seconds, 3),
            "message": self.message,
        }

    def as_line(self) -> str:
        """The same for people."""
        parts = [f"sent {self.succeeded + self.failed:,}: {self.succeeded:,} succeeded"]
        parts += [f"{self.failed:,} failed"] if self.failed else []
        parts += [f"{self.waiting:,} wait"] if self.waiting else []
        parts.append(f"{format_usd(self.cost_nusd)} spent")
        if self.reserved_nusd:
            parts.append(f"{format_usd(self.reserved_nusd)} kept reserved (outcome unknown)")
        return " · ".join([*parts, f"in {format_duration(int(self.seconds * 1000))}"])


class Serving:
    """One worker; `run` is its life.

    Args:
        s: An open scheduler, a worker.
        shown: Tells the user.
        store: As it is told to people.
        store_option: For commands shown to people.
        grace_s: How long calls under way may take once it is told to stop.
        until_idle: End when nothing waits that it serves.
        stops: End as well when the money is spent.
        max_wait_ms: End as well when nothing could be sent for so long.
    """

    def __init__(
        self, s: Scheduler, shown: Progress, store: str, store_option: str, *, grace_s: float,
        until_idle: bool = False, stops: bool = False, max_wait_ms: int | None = None,
    ) -> None:  # fmt: skip
        self._s, self._shown, self._store = s, shown, store
        self._until_idle = until_idle
        self.outcome = Served()
        self._stopping = Stopping(s, self.outcome, shown.say, grace_s, told_to=Exit.DONE)
        self._refusals = Refusals(s, self._stopping, self.outcome, shown.say, WORKERS_RESULTS)
        self._patience = Patience(stops, max_wait_ms, store_option)
        if not until_idle:
            self._patience.answered()  # whoever is down is waited for
        self._still, self._priced_s = 0, 0.0

    async def run(self, providers: Sequence[Provider]) -> Served:
        """Send what waits, until it is told to stop, or there is nothing more to do."""
        loop = asyncio.get_running_loop()
        self._began_s = loop.time()
        stop_listening = self._s.on(events.Settled, self._on_settled)
        try:
            with signals_to(self._stopping.interrupted):
                await self._s.begun()
                self._shown.say(self._greeting(providers))
                while not self._stopping.event.is_set():
                    await asyncio.sleep(TICK_S)
                    self._s.check()
                    await self._look()
                await self._stopping.let_finish(self._show)
        finally:
            stop_listening()
            self._shown.close()
        return self._finish()

    def stop(self) -> None:
        """As a signal does: what runs may finish; told again, it is cancelled."""
        self._stopping.interrupted(0)

    def _greeting(self, providers: Sequence[Provider]) -> str:
        names = ", ".join(f"{each.name} ({without_password(each.service)})" for each in providers)
        until = "nothing waits" if self._until_idle else "it is told to stop"
        return (
            f"serves {names} on {self._store}, {self._s.concurrency} calls at once, until {until}"
        )

    def _on_settled(self, event: events.Settled) -> None:
        if event.is_superseded:
            return
        if event.response is not None or has_spoken(event.error):
            self._patience.answered()
        if isinstance(event.error, CredentialsRefused):
            self._refusals.lock(
                event.provider,
                f"{event.error}. Check the key of {event.provider!r}: it is not served here any more, "
                "and its requests wait for another worker",
            )
        if not event.state.is_final:
            return
        if event.response is not None:
            self._refusals.answered(event.provider)
            self.outcome.succeeded += 1
        elif event.error is not None:
            self.outcome.failed += 1
            self._refusals.failed(event.provider, event.error)

    async def _look(self) -> None:
        """Show how things are; end when there is nothing more to do, or it was waited enough."""
        if self._seconds > self._priced_s + PRICES_S:
            self._priced_s = self._seconds
            await self._s.learn_prices()  # else what it sends would count at its ceiling
        stats = self._s.stats()
        self._shown.update(self._snapshot(stats))
        now_s, now_ms = asyncio.get_running_loop().time(), SystemClock().now_ms()
        news = self._patience.news(stats, now_ms)
        if news is not None:
            self._stopping.news = news
            self._shown.say(news)
        if not self._until_idle or self._stopping.event.is_set():
            return
        is_still = not stats.running and not self._waiting(stats)
        self._still = self._still + 1 if is_still else 0
        if self._still >= STILL:
            if not await self._is_something_later():
                self._stopping.stop_silently()
                return
            self._still = 0
        enough = self._patience.enough(stats, now_s, now_ms)
        if enough is not None:
            self.outcome.exit = Exit.PARKED
            self._stopping.stop(enough)

    async def _is_something_later(self) -> bool:
        """Whether something may still come back: to be tried again after a while, or of another worker.

        What one of these has under way waits again if it fails for now, or if that worker dies.
        """
        serves, after_id = self._s.serves, 0
        states = [RequestState.QUEUED, RequestState.RUNNING]
        while rows := await self._s.store.queue(
            states, SystemClock().now_ms(), limit=PAGE, after_id=after_id
        ):
            if any(row.service and serves.get(row.provider) == row.service for row in rows):
                return True
            after_id = rows[-1].id
        return False

    def _waiting(self, stats: Stats) -> int:
        """How many wait that it serves."""
        lanes, locked = self._s.store.lanes(), self._refusals.locked
        left = sum(lane.waiting for lane in lanes if lane.key.provider in locked)
        return max(0, stats.queued + sum(stats.parked.values()) - left)

    async def _show(self) -> None:
        self._shown.update(self._snapshot(self._s.stats()))

    def _snapshot(self, stats: Stats) -> Snapshot:
        ended = self.outcome.succeeded + self.outcome.failed
        total = ended + stats.running + self._waiting(stats)
        work = Work(self.outcome.succeeded, self.outcome.failed, ended, total, is_read=False)
        return snapshot(stats, work, self._seconds)

    @property
    def _seconds(self) -> float:
        return asyncio.get_running_loop().time() - self._began_s

    def _finish(self) -> Served:
        outcome, stats = self.outcome, self._s.stats()
        outcome.seconds, outcome.waiting = self._seconds, self._waiting(stats)
        outcome.cost_nusd = stats.posted_nusd
        outcome.reserved_nusd = stats.reserved_nusd + stats.suspense_nusd
        return outcome
