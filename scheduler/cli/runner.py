"""A batch from its file to its results: what ``scheduler run`` does.

    input ─ read ─▶ queue (durable, all of it) ─▶ calls ─▶ outcomes ─▶ result files
                                                              │ first to the disk,
                                                              └ then noted as delivered

An outcome is in the store before it is in a file, and noted as delivered only once
it is on the disk, so a crash at any point loses no result and pays for none twice.
Whatever ends the reading, calls under way are let finish, settled and written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from scheduler import events
from scheduler.batch.held import Marks
from scheduler.batch.input import BatchLine
from scheduler.batch.pen import Pen
from scheduler.batch.source import Source
from scheduler.cli.company import JOINED, LEAVES, UNWRITTEN, WRITES, Company
from scheduler.cli.delivery import Delivery, Files, job_of, move_aside
from scheduler.cli.exits import Exit
from scheduler.cli.feeding import MAX_TOLD_BAD, Feeding, drawn_on
from scheduler.cli.left import count_foreign, write_left
from scheduler.cli.outcome import Outcome, RunOptions, of_itself
from scheduler.cli.output import plural
from scheduler.cli.patience import Patience
from scheduler.cli.progress import Progress, Snapshot
from scheduler.cli.refusals import Refusals
from scheduler.cli.snapshots import Work, snapshot
from scheduler.cli.stopping import TICK_S, Stopping
from scheduler.clock import SystemClock
from scheduler.core.calls import describe, has_spoken
from scheduler.duration import format_duration
from scheduler.errors import CredentialsRefused, InputError, SchedulerError
from scheduler.guards.signals import signals_to
from scheduler.scheduler import Scheduler
from scheduler.stats import Stats


class BatchRun:
    """One run; `run` does it."""

    def __init__(
        self,
        scheduler: Scheduler,
        source: Source,
        files: Files,
        options: RunOptions,
        progress: Progress,
        pen: Pen | None = None,
    ) -> None:
        pen = pen or Pen.of_one()
        self._source, self._pen = source, pen
        self.s, self.files, self.options, self.progress = scheduler, files, options, progress
        self.outcome = Outcome()
        self._job = files.job
        self._is_part = False  # the input is what another run of this job left
        self._delivery = Delivery(files, progress.say)
        self._company = Company(scheduler, pen, self._delivery, self.outcome)
        self._patience = Patience(options.stops, options.max_wait_ms, options.store_option)
        self._stopping = Stopping(scheduler, self.outcome, progress.say, options.grace_s)
        self._refusals = Refusals(
            scheduler, self._stopping, self.outcome, progress.say, str(files.errors)
        )
        self._failure: Exception | None = None  # what ended it
        self._budget: Sequence[str] | None = None
        self._codes: Counter[str] = Counter()
        self._seen = Marks()  # ids of the input, where it is part of a job
        self._is_superseded = False
        # Keys of requests that are to be sent again and whose body the store does not keep.
        self._unkept: set[str] = set()

    async def run(self) -> Outcome:
        """Read, send, write, and say how it ended."""
        loop = asyncio.get_running_loop()
        self._started_s = loop.time()
        with contextlib.ExitStack() as stack:
            stack.enter_context(signals_to(self._stopping.interrupted))
            stack.callback(self.progress.close)
            self._budget = await self._draw_on()
            await self._choose_job()
            self._company.job, self._company.is_part = self._job, self._is_part
            self.s.keep_to(self._pen.circle)
            stack.callback(self.s.on(events.Settled, self._on_settled))
            stack.callback(self.s.on(events.Expired, self._on_expired))
            self._feeding = self._make_feeding()
            if self.options.is_strict:  # before anything is forgotten, moved or written
                await self._feeding.check(self._stopping.event, self._budget)
            if self.options.is_fresh:
                await self.s.store.forget(self._job, SystemClock().now_ms())
                move_aside(self.files)
            if self._pen.is_held:
                await self._begin_to_write(stack)
            else:
                self.progress.say(JOINED)
                await self._delivery.peek()
            feeding = asyncio.create_task(self._feeding.run(self._stopping.event, self._budget))
            try:
                await self._watch(feeding, stack)
            except Exception as exc:
                self._break_off(exc)
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
            await self._end()
            await self._company.count()
            if not self._pen.is_held:
                self.outcome.left = self._company.left
        return self._finish()

    async def _draw_on(self) -> Sequence[str] | None:
        """The budgets that lines draw on; None: 'default', and those whose rules match."""
        return drawn_on(self.s, self.progress.say)

    def _make_feeding(self) -> Feeding:
        lines = replace(self.options.lines, job=self._job)
        return Feeding(self.s, self._source, lines, self, self.options.retry_failed)

    async def _begin_to_write(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(self._delivery)
        await self._delivery.start(
            self.s.store, self._job, retry_failed=self.options.retry_failed, is_part=self._is_part
        )

    async def _choose_job(self) -> None:
        """What another run left are that run's requests: the same keys, answered once."""
        if self.options.is_fresh:
            return
        self._job, self._is_part = await job_of(self.s.store, self.files)
        if self._is_part:
            self.progress.say(
                f"{self.files.input} is what the job {self._job!r} left: its requests are that job's, "
                "and none is sent twice"
            )

    # The end

    def _break_off(self, error: Exception) -> None:
        """Something went wrong with the run itself: end it, and lose nothing of what was sent."""
        self._failure = error
        running = self.s.stats().running
        with contextlib.suppress(Exception):  # it may be the telling that went wrong
            if running:  # what went wrong is told in any case, at the end
                self._stopping.stop(
                    f"the run ends: {of_itself(error)}; {plural(running, 'running call')} are let "
                    f"finish, for up to {format_duration(int(self.options.grace_s * 1000))}"
                )
        self._stopping.stop_silently()

    async def _end(self) -> None:
        """Let finish what runs, within bounds; settle it, write it, and what is left."""
        try:
            await self._stopping.let_finish(self._delivery.write)
        except SchedulerError as exc:  # the store failed, and with it what ran
            self._failure = self._failure or exc
        for step in (self._deliver_rest, self._write_parked) if self._pen.is_held else ():
            try:
                await step()
            except (SchedulerError, OSError) as exc:
                self._failure = self._failure or exc

    async def _deliver_rest(self) -> None:
        is_all = self._feeding.is_read and self.options.lines.limit is None
        await self._delivery.finish(
            self._seen if self._is_part else None,
            None if is_all else self._feeding.read_to,
            restores=self._is_part or self._is_superseded or self._company.was_there,
        )

    async def _write_parked(self) -> None:
        self.outcome.left = await write_left(
            self.s, self._job, self.files, self._feeding, self._unkept,
            self._seen if self._is_part else None, self.progress.say,
        )  # fmt: skip
        if self.outcome.exit is Exit.DONE and self._feeding.is_read and not self._is_part:
            self._tell_foreign(await count_foreign(self.s, self._job, self._feeding))

    def _tell_foreign(self, count: int) -> None:
        """What this run was not given is no work of its own: no rerun would send it."""
        if not count:
            return
        place = f"; {self.files.parked} has them" if self.outcome.left else ""
        self.outcome.left = max(0, self.outcome.left - count)
        self.outcome.message = (
            f"{plural(count, 'request')} of earlier runs wait that this run was not given, and are not "
            f"sent{place}. --fresh forgets them"
        )
        self.progress.say(self.outcome.message)

    # Lines in (see `Feeding`)

    def is_answered(self, line: BatchLine) -> bool:
        """Whether the answer to a line stands in the results file."""
        if self._is_part:
            self._seen.add(line.request.key)
        return self._delivery.is_answered(line.request, self.s.digest)

    def known(self, is_success: bool) -> None:
        """A line has its outcome from an earlier run."""
        self.outcome.known += is_success
        self.outcome.known_failed += not is_success

    def say(self, text: str) -> None:
        """Tell the user."""
        self.progress.say(text)

    def bad(self, error: InputError, key: str, code: str) -> None:
        """A line cannot be sent."""
        self.outcome.bad += 1
        self._codes[code] += 1
        if self.outcome.bad <= MAX_TOLD_BAD:
            self.progress.say(f"error: {error}")
        elif self.outcome.bad == MAX_TOLD_BAD + 1:
            self.progress.say(f"more bad lines follow; all are in {self.files.errors}")
        self._delivery.bad_line(error, key, code)

    # Outcomes

    def _on_settled(self, event: events.Settled) -> None:
        if event.job != self._job:
            return
        if event.is_superseded:
            self._is_superseded = True  # whoever took it over has the last word
            return
        if event.response is not None or has_spoken(event.error):
            self._patience.answered()
        if not event.state.is_final:
            return
        if event.response is not None:
            self._refusals.answered(event.provider)
            self.outcome.succeeded += 1
            self._delivery.succeeded(event.request_id, event.key, event.response, event.digest)
        elif event.error is not None:
            if isinstance(event.error, CredentialsRefused):
                self._unkept.add(event.key or "")
                self._refusals.key_refused(event.provider, event.error)
                return
            self.outcome.failed += 1
            self._delivery.failed(
                event.request_id, event.key, describe(event.error),
                getattr(event.error, "cost_nusd", 0), event.attempts, event.digest,
            )  # fmt: skip
            self._refusals.failed(event.provider, event.error)

    def _on_expired(self, event: events.Expired) -> None:
        if event.job != self._job:
            return
        self.outcome.failed += 1
        self._delivery.failed(event.request_id, event.key, describe(event.error), 0, 0, "")

    # Watching

    async def _watch(self, feeding: asyncio.Task[None], stack: contextlib.ExitStack) -> None:
        while not (feeding.done() and await self._is_over()):
            if feeding.done():
                feeding.result()  # raises what ended it
            await asyncio.sleep(TICK_S)
            self.s.check()
            await self._look_at_others(stack)
            await self._write()
            stats = self.s.stats()
            self.progress.update(self._snapshot(stats))
            self._check_patience(stats, feeding.done())
        feeding.result()
        self.progress.update(self._snapshot(self.s.stats()))

    async def _look_at_others(self, stack: contextlib.ExitStack) -> None:
        """See what other processes did for this batch; write it, if that falls to this one."""
        if not await self._company.look(asyncio.get_running_loop().time()):
            return
        if self._pen.is_held or self._stopping.event.is_set() or await self._company.is_done():
            return
        if self._pen.take():
            self.progress.say(WRITES)
            await self._begin_to_write(stack)

    async def _write(self) -> None:
        """Put what has ended on the disk; where that fails nothing more is sent."""
        had = self._delivery.problem
        await self._delivery.write()
        problem = self._delivery.problem
        if problem is not None and had is None:
            why = getattr(problem, "strerror", None) or problem
            if self.outcome.exit is Exit.DONE:
                self.outcome.exit = Exit.FAILED
            self._stopping.stop(
                f"cannot write results: {why}. They are safe in the store and will be written by the "
                "next run"
            )

    async def _is_over(self) -> bool:
        stats = self.s.stats()
        if stats.running or self._delivery.is_pending:
            return False
        waiting = stats.queued + sum(stats.parked.values())
        if locked := self._refusals.locked:
            lanes = self.s.store.lanes()
            waiting -= sum(lane.waiting for lane in lanes if lane.key.provider in locked)
        if self._stopping.event.is_set():
            return True
        return waiting <= 0 and await self._company.is_done()

    def _check_patience(self, stats: Stats, is_fed: bool) -> None:
        """Say why nothing moves; end when it was waited for long enough."""
        if self._stopping.event.is_set():
            return
        now_s, now_ms = asyncio.get_running_loop().time(), SystemClock().now_ms()
        enough = self._patience.enough(stats, now_s, now_ms, is_fed=is_fed)
        if enough is not None:
            self.outcome.exit = Exit.PARKED
            self._stopping.stop(enough)
            return
        news = self._patience.news(stats, now_ms)
        if news is not None:
            self._stopping.news = news
            self.progress.say(news)

    def _snapshot(self, stats: Stats) -> Snapshot:
        told = self.outcome
        work = Work(
            done=told.succeeded + told.known + told.elsewhere,
            failed=told.failed + told.known_failed + told.failed_elsewhere + told.bad,
            ended=told.succeeded + told.failed,
            total=self._feeding.total,
            is_read=self._feeding.is_read,
        )
        return snapshot(stats, work, asyncio.get_running_loop().time() - self._started_s)

    def _finish(self) -> Outcome:
        outcome, stats = self.outcome, self.s.stats()
        outcome.seconds = asyncio.get_running_loop().time() - self._started_s
        outcome.cost_nusd, outcome.overruns = stats.posted_nusd, stats.overruns
        outcome.reserved_nusd = stats.reserved_nusd + stats.suspense_nusd
        if self._failure is not None:
            outcome.tell_failure(self._failure, self.progress.say)
        if outcome.exit is not Exit.DONE and self._company.goes_on:
            self.progress.say(LEAVES)
        if outcome.exit is Exit.DONE:
            is_bad = outcome.failed or outcome.known_failed or outcome.bad
            is_bad = is_bad or outcome.failed_elsewhere
            if self._codes["price_unknown"] and self._codes["price_unknown"] == self._feeding.total:
                outcome.exit = Exit.CONFIG
            elif is_bad or self._delivery.problem is not None:  # at the very end
                outcome.exit = Exit.FAILED
            elif outcome.left:
                outcome.exit = Exit.PARKED
                outcome.message = f"{outcome.left:,} requests are being run by another process"
                self.progress.say(outcome.message)
            elif self._company.is_unwritten and not self._pen.is_held:
                outcome.exit, outcome.message = Exit.PARKED, UNWRITTEN
                self.progress.say(outcome.message)
        return outcome
