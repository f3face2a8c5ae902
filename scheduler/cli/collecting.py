"""The results of a job that others send, into files: what ``scheduler collect`` does.

It asks nobody and sends nothing: whatever ends it, all outcomes are in the store, and the same
command writes what is missing from the files.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from scheduler.batch.lock import OutputLock
from scheduler.cli.delivery import Delivery, Files
from scheduler.cli.exits import Exit
from scheduler.cli.feeding import is_sent_again
from scheduler.cli.fleet import unserved_sentence
from scheduler.cli.left import write_waiting
from scheduler.cli.outcome import Outcome
from scheduler.cli.output import plural
from scheduler.cli.patience import Patience
from scheduler.cli.progress import Progress
from scheduler.cli.snapshots import Work, snapshot
from scheduler.clock import SystemClock
from scheduler.duration import format_duration
from scheduler.errors import ConfigError, SchedulerError
from scheduler.guards.signals import signals_to
from scheduler.request import RequestState
from scheduler.shortfall import Shortfall
from scheduler.stats import Counts, SpendRow, Stats
from scheduler.stores.base import Store

LOOK_S = 0.25  # so often what has ended is written
SHOW_S = 1.0  # so often it is shown how things are
SUM_S = 10.0  # so often what was spent is summed
SAMPLE = 200  # parked requests looked at to tell why they wait
MOST_NAMED = 5  # jobs


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """What a collection may do.

    Attributes:
        waits: Until nothing of the job waits or runs.
        max_wait_ms: But no longer than that; None: as long as it takes.
        store_option: For commands shown to people.
    """

    waits: bool = False
    max_wait_ms: int | None = None
    store_option: str = ""


class Collecting:
    """One collection; `run` does it.

    Args:
        store: An open store.
        files: Where to write, and the job.
        options: What it may do.
        shown: Tells the user.
    """

    def __init__(
        self, store: Store, files: Files, options: CollectOptions, shown: Progress
    ) -> None:
        self._store, self._files, self._options = store, files, options
        self._shown, self._job = shown, files.job
        self._delivery = Delivery(files, shown.say, tells_unsent=True)
        self._patience = Patience(stops=False, max_wait_ms=None, store_option=options.store_option)
        self._patience.answered()
        self.outcome = Outcome()
        self._stopping = asyncio.Event()
        self._unserved: object = ()  # that was told
        self._spend = SpendRow(self._job, 0, 0, 0, 0, 0)
        self._shown_s = self._summed_s = float("-inf")

    async def run(self) -> Outcome:
        """Write what there is; with `CollectOptions.waits` until it is all there."""
        began_s = self._began_s = _now_s()
        with contextlib.ExitStack() as stack:
            stack.enter_context(signals_to(self._interrupted))
            stack.callback(self._shown.close)
            await self._require_job()
            stack.enter_context(OutputLock(self._files.outputs, self._shown.say))
            stack.enter_context(self._delivery)
            await self._delivery.start(self._store, self._job, retry_failed=False, is_part=False)
            if self._options.waits:
                await self._wait()
            await self._delivery.finish(None, None, restores=self._options.waits)
            self.outcome.left = await self._write_waiting()
        self.outcome.seconds = _now_s() - began_s
        return await self._finish()

    async def _require_job(self) -> None:
        jobs = await self._store.jobs()
        if self._job in jobs:
            return
        known = ", ".join(map(repr, jobs[-MOST_NAMED:])) or "none"
        more = f" and {len(jobs) - MOST_NAMED:,} more" if len(jobs) > MOST_NAMED else ""
        raise ConfigError(
            "--job", f"the store has no job {self._job!r} (it has: {known}{more}). 'scheduler submit' "
            "makes one; nothing was written",
        )  # fmt: skip

    def _interrupted(self, number: int) -> None:
        if self._stopping.is_set():
            raise SystemExit(Exit.INTERRUPTED)
        self._end(Exit.INTERRUPTED, "stopping: what waits goes on without this command")

    def _end(self, code: Exit, message: str) -> None:
        self.outcome.exit, self.outcome.message = code, message
        self._shown.say(message)
        self._stopping.set()

    # Waiting

    async def _wait(self) -> None:
        """Write what ends, until nothing of the job waits or runs, or it was waited enough."""
        looked_s = float("-inf")
        while self._delivery.problem is None and not self._stopping.is_set():
            is_new = await self._store.changed(SystemClock().now_ms())
            if is_new or _now_s() > looked_s + SHOW_S:  # counting what is parked takes its time
                looked_s = _now_s()
                await self._delivery.collect()
                await self._delivery.write()
                counts = await self._store.counts(self._job)
                await self._show(counts)
                if not (counts.waiting + counts.running):
                    await self._delivery.collect()  # what ended between the two looks
                    return
                self._check_patience(counts)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._stopping.wait()

    def _check_patience(self, counts: Counts) -> None:
        most_ms, waited_ms = self._options.max_wait_ms, int((_now_s() - self._began_s) * 1000)
        if most_ms is not None and waited_ms > most_ms:
            left = counts.waiting + counts.running
            self._end(
                Exit.PARKED,
                f"waited {format_duration(waited_ms)}; {plural(left, 'request')} have no outcome yet",
            )

    async def _show(self, counts: Counts) -> None:
        """Say how things are, now and then: how many are done, and why others are not."""
        now_s, now_ms = _now_s(), SystemClock().now_ms()
        is_over = not (counts.waiting + counts.running)
        if now_s < self._shown_s + SHOW_S and not is_over:
            return
        self._shown_s = now_s
        stats = await self._stats(counts, now_s, now_ms)
        done, failed = counts.succeeded, counts.failed + counts.cancelled + counts.expired
        work = Work(done, failed, ended=0, total=counts.total, is_read=True)
        self._shown.update(snapshot(stats, work, now_s - self._began_s))
        news = self._patience.news(stats, now_ms)
        if news is not None:
            self._shown.say(news)
        await self._tell_unserved(now_ms)

    async def _tell_unserved(self, now_ms: int) -> None:
        found = await self._store.unserved(now_ms, self._job)
        told = {(each.provider, each.service) for each in found}
        if told != self._unserved:
            self._unserved = told
            for each in found:
                self._shown.say(unserved_sentence(each, self._options.store_option))

    async def _stats(self, counts: Counts, now_s: float, now_ms: int) -> Stats:
        if now_s >= self._summed_s + SUM_S:
            self._summed_s = now_s
            await self._sum()
        lacks: dict[tuple[str, str], Shortfall] = {}
        if counts.parked:
            rows = await self._store.queue(
                [RequestState.PARKED], now_ms, job=self._job, limit=SAMPLE
            )
            for lack in (row.shortfall for row in rows):
                if lack is not None:
                    lacks.setdefault((lack.reason, lack.budget), lack)
        spend = self._spend
        return Stats(
            queued=counts.queued, parked=counts.parked_by_reason, running=counts.running,
            succeeded=counts.succeeded, failed=counts.failed, cancelled=counts.cancelled,
            expired=counts.expired, posted_nusd=spend.posted_nusd,
            reserved_nusd=spend.reserved_nusd - spend.suspense_nusd,
            suspense_nusd=spend.suspense_nusd, overruns=0, resumes_at_ms=None,
            shortfalls=tuple(lacks.values()), budgets=tuple(await self._store.budgets(now_ms)),
            limited=tuple(await self._store.limited(now_ms)),
        )  # fmt: skip

    async def _sum(self) -> None:
        """What the job has cost so far."""
        rows = await self._store.spend("job")
        self._spend = next((row for row in rows if row.name == self._job), self._spend)

    # The end

    async def _write_waiting(self) -> int:
        try:
            await write_waiting(self._store, self._job, self._files.parked)
        except (SchedulerError, OSError) as exc:
            self._shown.say(f"cannot write {self._files.parked}: {exc}")
        counts = await self._store.counts(self._job)
        return counts.waiting + counts.running

    async def _finish(self) -> Outcome:
        outcome, counts = self.outcome, await self._store.counts(self._job)
        outcome.succeeded = counts.succeeded
        outcome.failed = counts.failed + counts.cancelled + counts.expired
        await self._sum()
        outcome.cost_nusd, outcome.reserved_nusd = (
            self._spend.posted_nusd,
            self._spend.reserved_nusd,
        )
        problem = self._delivery.problem
        refused = await self._refused() if problem is None else 0
        if problem is not None:
            why = getattr(problem, "strerror", None) or problem
            self._fail(
                Exit.FAILED,
                f"cannot write results: {why}. They are safe in the store; the same command writes them",
            )
        elif outcome.exit is not Exit.DONE:
            pass
        elif outcome.left:
            outcome.exit = Exit.PARKED
            await self._tell_unserved(SystemClock().now_ms())
        elif refused:
            self._fail(
                Exit.CREDENTIALS,
                f"{plural(refused, 'request')} ended since the key of whoever sent them was refused; "
                "submit them again",
            )
        elif outcome.failed:
            outcome.exit = Exit.FAILED
        return outcome

    def _fail(self, code: Exit, message: str) -> None:
        self.outcome.exit, self.outcome.message = code, message
        self._shown.say(message)

    async def _refused(self) -> int:
        """How many ended in a way that says nothing of themselves."""
        count = 0
        async for each in self._store.finished(self._job, undelivered=True):
            count += is_sent_again(each.error)
        return count


def _now_s() -> float:
    return asyncio.get_running_loop().time()
