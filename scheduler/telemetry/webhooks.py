"""Tells hooks what is new, while a scheduler is open: looks, notes what is news, and delivers it.

Any number of processes on one store may do so with the same hooks: what is news is noted once, and one of
them delivers it. Nobody waits for that: it is a task of its own, and a hook that does not answer holds up
no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote

from scheduler import events
from scheduler.errors import ConfigError, SchedulerError
from scheduler.guards.plain import logger_of, without_password
from scheduler.stores.outbox import News
from scheduler.telemetry.delivery import again_at_ms, deliver
from scheduler.telemetry.hooks import Webhook, configured
from scheduler.telemetry.news import DONE, PROJECTED, Item, items, job_done
from scheduler.telemetry.picture import look

if TYPE_CHECKING:
    from scheduler.config import Config
    from scheduler.core.shell import Shell
    from scheduler.scheduler import Scheduler
    from scheduler.stores.base import Store

logger = logger_of("scheduler.webhooks")

LOOK_EVERY_S = 5.0
LEAST_PAUSE_S = 0.5  # between two looks, whatever happens
LAST_WORDS_S = 8.0  # when the scheduler ends
AT_ONCE = 4
QUIET = 2  # looks in which nothing of a job waits or runs, until it is done
_JOB = "job:"


class Herald:
    """Tells the hooks of one scheduler; see the module. It lives as long as that does.

    Args:
        s: The scheduler.
    """

    def __init__(self, s: Shell) -> None:
        self._s = s
        self._hooks: dict[str, Webhook] = {}
        self._source = source_of(s.store)
        self._known: set[tuple[str, str]] = set()  # topics that are noted, as far as is known here
        self._worked: set[str] = set()  # jobs of which something ended since the last look
        self._quiet: dict[str, int] = {}  # looks since a job was seen alive
        self._telling: dict[str, asyncio.Task[None]] = {}
        self._due: set[str] = set()  # hooks for which there may be news since they were last read
        self._signal: asyncio.Event | None = None
        self._life: asyncio.Task[None] | None = None
        s.on(events.ThresholdCrossed, self._hear)
        s.on(events.Settled, self._note_job)

    def add(self, hook: Webhook) -> None:
        """Tell one more. Raises `ConfigError` if there is one of its name."""
        if hook.name in self._hooks:
            raise ConfigError("webhook", f"there is one of the name {hook.name!r} already")
        self._hooks[hook.name] = hook
        self._hear(None)

    def begin(self) -> None:
        """The scheduler is open."""
        if self._life is None:
            self._signal = asyncio.Event()
            self._life = asyncio.get_running_loop().create_task(self._live(), name="scheduler news")

    async def aclose(self) -> None:
        """Look once more, and tell what there is to be told, as far as there is time for it."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._look(is_last=True)
                    await self._tell_all()
                    if self._telling:
                        await asyncio.wait(self._telling.values())
        finally:  # what was not told is in the store, for the next process
            for task in self._telling.values():
                task.cancel()

    def _hear(self, event: object) -> None:
        if self._signal is not None:
            self._signal.set()

    def _note_job(self, event: events.Settled) -> None:
        if event.job and event.state.is_final:
            self._worked.add(event.job)

    async def _live(self) -> None:
        assert self._signal is not None
        while True:
            self._signal.clear()
            await self._look()
            await self._tell_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._signal.wait()
            await asyncio.sleep(LEAST_PAUSE_S)

    # What is news

    async def _look(self, *, is_last: bool = False) -> None:
        """Note what is news; what cannot be looked at now is looked at later."""
        try:
            await self._note_news()
            if any(DONE in hook.wanted.kinds for hook in self._hooks.values()):
                await self._look_at_jobs(is_last=is_last)
        except SchedulerError as exc:
            logger.debug("the store cannot be looked at for news: %s", exc)

    async def _note_news(self) -> None:
        now_ms = self._s.now_ms()
        burned = any(PROJECTED in hook.wanted.kinds for hook in self._hooks.values())
        picture = await look(self._s.store, "", now_ms, spend=(), burned=burned)
        found = [
            self._news(hook, item, now_ms)
            for hook in self._hooks.values()
            for item in items(picture, hook.wanted)
            if (hook.name, item.topic) not in self._known
        ]
        if found:
            await self._s.store.announce(found, now_ms)
            self._known |= {(each.hook, each.topic) for each in found}

    def _news(self, hook: Webhook, item: Item, now_ms: int) -> News:
        event = item.event(hook.name, self._source, now_ms)
        return News(hook.name, item.topic, json.dumps(event, separators=(",", ":")))

    async def _look_at_jobs(self, *, is_last: bool) -> None:
        """Jobs are armed while they live, and fired when nothing of them does, for a while."""
        now_ms, live = self._s.now_ms(), await self._s.store.live_by_job()
        for topic in await self._arm(live, now_ms):
            job = topic.removeprefix(_JOB)
            self._quiet[job] = 0 if job in live else self._quiet.get(job, 0) + 1
            if self._quiet[job] >= QUIET or (is_last and self._quiet[job]):
                del self._quiet[job]
                await self._fire(job, now_ms)

    async def _arm(self, live: Iterable[str | None], now_ms: int) -> set[str]:
        """Arm the jobs that live or were worked on here; all that are armed."""
        store, worked = self._s.store, self._worked
        self._worked = set()
        try:
            armed = await store.armed()
            fresh = {_JOB + job for job in (*live, *worked) if job} - armed
            if fresh:
                await store.arm(fresh, now_ms)
        except BaseException:  # the store failed, or the scheduler ends: the next look sees to it
            self._worked |= worked
            raise
        return armed | fresh

    async def _fire(self, job: str, now_ms: int) -> None:
        store = self._s.store
        counts = await store.counts(job)
        spent = {row.name: row for row in await store.spend("job")}
        item = job_done(job, counts, spent.get(job), now_ms)
        wanting = [hook for hook in self._hooks.values() if DONE in hook.wanted.kinds]
        await store.fire(_JOB + job, [self._news(each, item, now_ms) for each in wanting], now_ms)

    # Telling it

    async def _tell_all(self) -> None:
        """Begin to tell each hook what is due, unless that is under way."""
        for name, hook in self._hooks.items():
            self._due.add(name)
            task = self._telling.get(name)
            if task is None or task.done():
                task = asyncio.create_task(self._tell(hook), name=f"scheduler webhook {name}")
                self._telling[name] = task
        await asyncio.sleep(0)

    async def _tell(self, hook: Webhook) -> None:
        store, lease_ms = self._s.store, int(1000 * (AT_ONCE * hook.timeout_s + 30))
        try:
            while hook.name in self._due:
                self._due.discard(hook.name)
                while taken := await store.take_news(
                    {hook.name}, self._s.now_ms(), lease_ms=lease_ms, limit=AT_ONCE
                ):
                    for news in taken:
                        await self._tell_one(hook, news)
        except SchedulerError as exc:
            logger.debug("news for %s cannot be had from the store: %s", hook.name, exc)

    async def _tell_one(self, hook: Webhook, news: News) -> None:
        told = await deliver(hook, news, self._s.now_ms())
        now_ms = self._s.now_ms()
        at_ms = again_at_ms(news, told, now_ms) if told.problem else None
        if told.problem:
            what = "it is given up" if at_ms is None else "it is tried again"
            level = logger.warning if at_ms is None or news.tries == 1 else logger.debug
            level("webhook %s was not told %r: %s; %s", hook.name, news.topic, told.problem, what)
        await self._s.store.told_news(news.id, now_ms, at_ms)


def start_webhooks(s: Scheduler, config: Config | str | None = None) -> None:
    """Tell the hooks of a configuration what is new, until the scheduler is closed.

    Args:
        s: The scheduler; it need not be open yet.
        config: The configuration, or its file. None: ``SCHEDULER_CONFIG``, else ``scheduler.toml``
            in the working directory, if that is there.

    Raises:
        ConfigError: One of them makes no sense, or a variable that it names is not set.
    """
    if config is None or isinstance(config, str):
        from scheduler.config import load_config

        config = load_config(config)
    for each in configured(config):
        s.herald.add(each)


def source_of(store: Store) -> str:
    """Which store it is about, as a URI, without a password."""
    place = getattr(store, "path", None) or getattr(store, "address", None)
    shown = getattr(place, "shown", None) or getattr(place, "name", None) or "memory"
    return f"urn:scheduler:{quote(without_password(str(shown)), safe='/:@')}"
