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
from scheduler.cli.exits import Exit, exit_for
from scheduler.cli.feeding import MAX_TOLD_BAD, Feeding
from scheduler.cli.left import count_foreign, write_left
from scheduler.cli.outcome import Outcome, RunOptions
from scheduler.cli.output import plural
from scheduler.cli.patience import Patience, worst
from scheduler.cli.progress import Progress, Snapshot
from scheduler.clock import SystemClock
from scheduler.core.calls import describe, has_spoken
from scheduler.duration import format_duration
from scheduler.errors import (
    BudgetUnknown,
    CredentialsRefused,
    InputError,
    ProviderError,
    SchedulerError,
)
from scheduler.guards.signals import HANG_UP, signals_to
from scheduler.money import format_usd
from scheduler.scheduler import Scheduler
from scheduler.stats import CapStatus, Stats

TICK_S = 0.1
ALL_REFUSED = 20  # so many refusals and no answer say that it is not the prompts


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
        self._stopping = asyncio.Event()  # no more is read or admitted
        self._interrupts = 0
        self._news = ""  # the last that was said of what waits
        self._failure: Exception | None = None  # what ended it
        self._budget: Sequence[str] | None = None
        self._locked: set[str] = set()  # providers to which nothing more goes
        self._refusals: Counter[str] = Counter()  # of providers that have answered nothing else
        self._answered: set[str] = set()  # providers that have
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
            stack.enter_context(signals_to(self._interrupted))
            stack.callback(self.progress.close)
            self._choose_budget()
            await self._choose_job()
            self._company.job, self._company.is_part = self._job, self._is_part
            self.s.keep_to(self._pen.circle)
            stack.callback(self.s.on(events.Settled, self._on_settled))
            stack.callback(self.s.on(events.Expired, self._on_expired))
            self._feeding = Feeding(
                self.s, self._source, replace(self.options.lines, job=self._job), self,
                self.options.retry_failed,
            )  # fmt: skip
            if self.options.is_strict:  # before anything is forgotten, moved or written
                await self._feeding.check(self._stopping, self._budget)
            if self.options.is_fresh:
                await self.s.store.forget(self._job, SystemClock().now_ms())
                move_aside(self.files)
            if self._pen.is_held:
                await self._begin_to_write(stack)
            else:
                self.progress.say(JOINED)
                await self._delivery.peek()
            feeding = asyncio.create_task(self._feeding.run(self._stopping, self._budget))
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
                self._stop(
                    f"the run ends: {_of_itself(error)}; {plural(running, 'running call')} are let "
                    f"finish, for up to {format_duration(int(self.options.grace_s * 1000))}"
                )
        self._stopping.set()
        self.s.stop_admitting()

    async def _end(self) -> None:
        """Let finish what runs, within bounds; settle it, write it, and what is left."""
        try:
            await self._let_finish()
        except SchedulerError as exc:  # the store failed, and with it what ran
            self._failure = self._failure or exc
        for step in (self._deliver_rest, self._write_parked) if self._pen.is_held else ():
            try:
                await step()
            except (SchedulerError, OSError) as exc:
                self._failure = self._failure or exc

    async def _let_finish(self) -> None:
        loop = asyncio.get_running_loop()
        until_s, is_cancelled = loop.time() + self.options.grace_s, False
        while self.s.stats().running:
            if loop.time() > until_s and not is_cancelled:
                is_cancelled = True
                self._cancel_running()
            await asyncio.sleep(TICK_S)
            self.s.check()
            await self._delivery.write()

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
            self._answered.add(event.provider)
            self.outcome.succeeded += 1
            self._delivery.succeeded(event.request_id, event.key, event.response, event.digest)
        elif event.error is not None:
            if isinstance(event.error, CredentialsRefused):
                self._unkept.add(event.key or "")
                self._lock(event.provider, f"{event.error}. Check the key of {event.provider!r}")
                return
            self.outcome.failed += 1
            self._delivery.failed(
                event.request_id, event.key, describe(event.error),
                getattr(event.error, "cost_nusd", 0), event.attempts, event.digest,
            )  # fmt: skip
            self._count_refusal(event.provider, event.error)

    def _count_refusal(self, provider: str, error: SchedulerError) -> None:
        """One refusal is about its prompt; when there is nothing else, it is about the caller."""
        if provider in self._answered or not isinstance(error, ProviderError):
            return
        if error.status not in (401, 403):
            self._answered.add(provider)
            return
        self._refusals[provider] += 1
        if self._refusals[provider] >= ALL_REFUSED:
            self._lock(
                provider,
                f"all of the first {ALL_REFUSED} answers of {provider!r} were refusals ({error}). Check "
                f"what the key may do, and the network; they are in {self.files.errors}, and "
                "--retry-failed sends them again",
            )

    def _lock(self, provider: str, problem: str) -> None:
        """A provider refuses the caller: nothing more goes to it, others go on."""
        if provider in self._locked:
            return
        self._locked.add(provider)
        self.outcome.exit = Exit.CREDENTIALS
        message = f"{problem}; a rerun goes on from here"
        if self._locked >= set(self.s.providers):
            self._stop(message)
            return
        self.outcome.message = self.outcome.message or message
        self.progress.say(message)
        self.s.stop_admitting(provider)

    def _on_expired(self, event: events.Expired) -> None:
        if event.job != self._job:
            return
        self.outcome.failed += 1
        self._delivery.failed(event.request_id, event.key, describe(event.error), 0, 0, "")

    # Watching

    def _choose_budget(self) -> None:
        """Requests draw on the budget 'default', or, where there is none, on none by name."""
        names = [status.budget.name for status in self.s.store.latest()]
        self._budget = None if "default" in names else ()
        if self._budget is None:
            return
        with contextlib.suppress(BudgetUnknown):
            self.progress.say("there is no budget 'default': spend is tracked, not limited")

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
        if self._pen.is_held or self._stopping.is_set() or await self._company.is_done():
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
            self._stop(
                f"cannot write results: {why}. They are safe in the store and will be written by the "
                "next run"
            )

    async def _is_over(self) -> bool:
        stats = self.s.stats()
        if stats.running or self._delivery.is_pending:
            return False
        waiting = stats.queued + sum(stats.parked.values())
        if self._locked:
            lanes = self.s.store.lanes()
            waiting -= sum(lane.waiting for lane in lanes if lane.key.provider in self._locked)
        if self._stopping.is_set():
            return True
        return waiting <= 0 and await self._company.is_done()

    def _check_patience(self, stats: Stats, is_fed: bool) -> None:
        """Say why nothing moves; end when it was waited for long enough."""
        if self._stopping.is_set():
            return
        now_s, now_ms = asyncio.get_running_loop().time(), SystemClock().now_ms()
        enough = self._patience.enough(stats, now_s, now_ms, is_fed=is_fed)
        if enough is not None:
            self.outcome.exit = Exit.PARKED
            self._stop(enough)
            return
        news = self._patience.news(stats, now_ms)
        if news is not None:
            self._news = news
            self.progress.say(news)

    def _stop(self, message: str) -> None:
        """Read and admit no more; what runs finishes."""
        self.outcome.message = self.outcome.message or message
        if message != self._news:  # said a moment ago
            self.progress.say(message)
        self._stopping.set()
        self.s.stop_admitting()

    def _interrupted(self, number: int) -> None:
        if number == HANG_UP and self._interrupts:
            return  # the system and the shell both tell of it
        self._interrupts += 1
        stats = self.s.stats()
        if self._interrupts == 1:
            self.outcome.exit = Exit.INTERRUPTED
            grace_s = self.options.grace_s
            self._stop(
                f"stopping: {stats.running} running calls ({format_usd(stats.reserved_nusd)} "
                "reserved) are let finish; interrupt again to cancel them, which happens by itself after "
                f"{format_duration(int(grace_s * 1000))}"
            )
            asyncio.get_running_loop().call_later(grace_s, self._cancel_running)
        elif self._interrupts == 2:
            self._cancel_running()
        else:
            raise SystemExit(Exit.INTERRUPTED)

    def _cancel_running(self) -> None:
        stats = self.s.stats()
        if stats.running:
            self.progress.say(
                f"cancelling {stats.running} running calls; {format_usd(stats.reserved_nusd)} "
                "stays reserved, since the provider may bill them"
            )
            self.s.cancel_running()

    def _snapshot(self, stats: Stats) -> Snapshot:
        now_s = asyncio.get_running_loop().time() - self._started_s
        told = self.outcome
        done = told.succeeded + told.known + told.elsewhere
        failed = told.failed + told.known_failed + told.failed_elsewhere + told.bad
        parked = sum(stats.parked.values())
        ended = self.outcome.succeeded + self.outcome.failed
        left = self._feeding.total - done - failed
        eta_ms = (
            int(left * now_s / ended * 1000)
            if ended and self._feeding.is_read and not parked
            else None
        )
        return Snapshot(
            at_ms=SystemClock().now_ms(),
            done=done,
            failed=failed,
            total=self._feeding.total,
            is_read=self._feeding.is_read,
            running=stats.running,
            parked=parked,
            shortfall=worst(stats.shortfalls),
            posted_nusd=stats.posted_nusd,
            reserved_nusd=stats.reserved_nusd + stats.suspense_nusd,
            cap=self._tightest_cap(stats),
            per_hour_nusd=int(stats.posted_nusd / now_s * 3600) if now_s > 1 else 0,
            eta_ms=eta_ms,
            limited=stats.limited[0].sentence if stats.queued and stats.limited else "",
        )

    def _tightest_cap(self, stats: Stats) -> CapStatus | None:
        caps = [
            cap
            for status in stats.budgets
            if status.budget.name == "default"
            for cap in status.caps
            if cap.limit is not None and cap.cap.unit == "usd"
        ]
        return min(caps, key=lambda cap: cap.available or 0, default=None)

    def _finish(self) -> Outcome:
        outcome, stats = self.outcome, self.s.stats()
        outcome.seconds = asyncio.get_running_loop().time() - self._started_s
        outcome.cost_nusd, outcome.overruns = stats.posted_nusd, stats.overruns
        outcome.reserved_nusd = stats.reserved_nusd + stats.suspense_nusd
        self._tell_failure()
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

    def _tell_failure(self) -> None:
        """An error ended the run; what was sent before has its outcome all the same."""
        error, outcome = self._failure, self.outcome
        if error is None:
            return
        sent = outcome.succeeded + outcome.failed
        is_bug = not isinstance(error, SchedulerError | OSError)
        if is_bug or not (sent or outcome.cost_nusd or outcome.reserved_nusd):
            raise error
        outcome.exit = exit_for(error) if isinstance(error, SchedulerError) else Exit.FAILED
        kept = ""
        if outcome.reserved_nusd:
            kept = f" and {format_usd(outcome.reserved_nusd)} is kept reserved"
        outcome.message = (
            f"{_of_itself(error)}. That ended the run; {plural(sent, 'request')} had an outcome by "
            f"then, {format_usd(outcome.cost_nusd)} was spent{kept}. A rerun goes on from here"
        )
        self.progress.say(f"error: {outcome.message}")


def _of_itself(error: Exception) -> str:
    """An error's words; what they say of money holds for what it stopped, not for the run."""
    return str(error).replace("othing was sent", "othing was sent of this")
