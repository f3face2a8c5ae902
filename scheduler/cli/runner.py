"""A batch from its file to its results: what ``scheduler run`` does.

    input ─ read ─▶ queue (durable, all of it) ─▶ calls ─▶ outcomes ─▶ result files
                                                              │ first to the disk,
                                                              └ then noted as delivered

An outcome is in the store before it is in a file, and noted as delivered only once
it is on the disk, so a crash at any point loses no result and pays for none twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scheduler import events
from scheduler.admission import ParkReason, Shortfall
from scheduler.batch.files import LineFile
from scheduler.batch.input import LineOptions
from scheduler.batch.results import error_line, input_line, line_id, result_line
from scheduler.batch.source import Source
from scheduler.calls import describe
from scheduler.cli.exits import Exit
from scheduler.cli.feeding import CHUNK, MAX_TOLD_BAD, NOT_FINAL, Feeding
from scheduler.cli.process import signals_to
from scheduler.cli.progress import Progress, Snapshot, why
from scheduler.clock import SystemClock
from scheduler.errors import (
    BudgetUnknown,
    CredentialsRefused,
    InputError,
)
from scheduler.money import decimal_usd, format_usd
from scheduler.request import RequestState
from scheduler.scheduler import Scheduler
from scheduler.stats import CapStatus, Stats
from scheduler.stores.base import Finished

TICK_S = 0.1
GRACE_S = 30.0  # after SIGTERM, until what still runs is cancelled
WAITING = (RequestState.QUEUED, RequestState.PARKED, RequestState.RUNNING)


@dataclass(slots=True)
class Files:
    """Where a run reads and writes. `results` None: stdout."""

    input: Path | None  # None: stdin
    results: Path | None
    errors: Path
    parked: Path

    @property
    def job(self) -> str:
        """Names the run, so that the same command goes on where it stopped."""
        source = "-" if self.input is None else str(self.input.resolve())
        return f"{source} → {'-' if self.results is None else self.results.resolve()}"


@dataclass(slots=True)
class RunOptions:
    """What a run may do.

    Attributes:
        stops: End with `Exit.PARKED` when the money is spent, instead of waiting.
        max_wait_ms: Wait for money at most so long; None: as long as it takes.
        is_strict: Send nothing if any line is bad.
        store_option: ``" --store URL"`` for commands shown to people, or empty.
    """

    lines: LineOptions
    stops: bool = False
    max_wait_ms: int | None = None
    retry_failed: bool = False
    is_strict: bool = False
    store_option: str = ""


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    exit: Exit = Exit.DONE
    succeeded: int = 0
    failed: int = 0
    bad: int = 0
    known: int = 0  # succeeded before
    known_failed: int = 0
    left: int = 0
    cost_nusd: int = 0
    reserved_nusd: int = 0
    overruns: int = 0
    seconds: float = 0.0
    message: str = ""

    def as_json(self, files: Files) -> dict[str, Any]:
        """The final object of ``--json``."""
        return {
            "exit": int(self.exit),
            "succeeded": self.succeeded,
            "failed": self.failed,
            "bad_lines": self.bad,
            "known_before": self.known,
            "failed_before": self.known_failed,
            "left": self.left,
            "cost_usd": decimal_usd(self.cost_nusd),
            "reserved_usd": decimal_usd(self.reserved_nusd),
            "overruns": self.overruns,
            "seconds": round(self.seconds, 3),
            "results": None if files.results is None else str(files.results),
            "errors": str(files.errors) if files.errors.exists() else None,
            "parked": str(files.parked) if files.parked.exists() else None,
            "message": self.message,
        }


@dataclass(slots=True)
class _Ends:
    """Result and error lines that are not on the disk yet."""

    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)


class BatchRun:
    """One run; `run` does it."""

    def __init__(
        self,
        scheduler: Scheduler,
        source: Source,
        files: Files,
        options: RunOptions,
        progress: Progress,
    ) -> None:
        self.s, self.files, self.options, self.progress = scheduler, files, options, progress
        self.outcome = Outcome()
        self._job = files.job
        self._ends = _Ends()
        lines = replace(options.lines, job=files.job)
        self._feeding = Feeding(
            scheduler, source, lines, self, options.retry_failed, options.is_strict
        )
        self._stopping = asyncio.Event()  # no more is read or admitted
        self._interrupts = 0
        self._problem: Exception | None = None
        self._budget: Sequence[str] | None = None
        self._told: tuple[object, ...] | None = None
        self._exhausted_since_s: float | None = None
        self._locked: set[str] = set()  # providers that refuse the key
        self._codes: Counter[str] = Counter()
        # Keys of requests that are to be sent again and whose body the store does not keep.
        self._unkept: set[str] = set()

    async def run(self) -> Outcome:
        """Read, send, write, and say how it ended."""
        loop = asyncio.get_running_loop()
        self._started_s = loop.time()
        with contextlib.ExitStack() as stack:
            self._results = self._open_results(stack)
            self._errors = stack.enter_context(LineFile(self.files.errors))
            stack.enter_context(signals_to(self._interrupted))
            stack.callback(self.progress.close)
            self._choose_budget()
            stack.callback(self.s.on(events.Settled, self._on_settled))
            stack.callback(self.s.on(events.Expired, self._on_expired))
            await self._redeliver()
            feeding = asyncio.create_task(self._feeding.run(self._stopping, self._budget))
            try:
                await self._watch(feeding)
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
                await self._write()
            if feeding.done() and not feeding.cancelled() and feeding.exception() is not None:
                raise feeding.exception()  # type: ignore[misc]
            await self._write_parked()
        return self._finish()

    # Files

    def _open_results(self, stack: contextlib.ExitStack) -> LineFile | None:
        if self.files.results is None:
            return None
        file = stack.enter_context(LineFile(self.files.results))
        if file.was_torn:
            self.progress.say(f"cut the torn last line of {self.files.results}")
        return file

    async def _redeliver(self) -> None:
        """Write outcomes that are in the store but did not reach their file."""
        if self._results is not None and self._results.is_empty:
            await self._write_anew()
        if self.options.retry_failed:
            self._errors.clear()
        late = [each async for each in self.s.store.finished(self._job, undelivered=True)]
        if late:
            names = {(line_id(each.id), each.key) for each in late}
            written = await asyncio.to_thread(self._written, names)
            self._ends.ids.extend(e.id for e in late if (line_id(e.id), e.key) in written)
            await self._write_late([e for e in late if (line_id(e.id), e.key) not in written])

    async def _write_anew(self) -> None:
        """Write all results again, since their file is empty or gone."""
        late = []
        async for finished in self.s.store.finished(self._job, undelivered=False):
            if finished.response is not None:
                late.append(finished)
            if len(late) >= CHUNK:
                await self._write_late(late)
                late = []
        await self._write_late(late)

    def _written(self, names: set[tuple[str, str | None]]) -> set[tuple[str, str | None]]:
        """Which of these ends are in a file already."""
        files = [file for file in (self._results, self._errors) if file is not None]
        return {end for file in files for end in file.ends() if end in names}

    async def _write_late(self, late: Sequence[Finished]) -> None:
        for finished in late:
            if finished.response is not None:
                line = result_line(finished.id, finished.key, finished.response)
                self._ends.results.append(line)
            elif finished.error is None or finished.error.get("type") == NOT_FINAL:
                continue
            elif self.options.retry_failed:
                continue  # it is about to be sent again
            else:
                self._ends.errors.append(
                    error_line(
                        finished.id,
                        finished.key,
                        finished.error,
                        finished.cost_nusd,
                        finished.attempts,
                    )
                )
            self._ends.ids.append(finished.id)
        await self._write()

    async def _write(self) -> None:
        """Put what has ended on the disk, then note it as delivered."""
        if self._problem is not None or not (self._ends.ids or self._ends.errors):
            return
        ends, self._ends = self._ends, _Ends()
        try:
            await asyncio.to_thread(self._append, ends)
        except OSError as exc:
            self._problem = exc
            self._stop(
                f"cannot write results: {exc.strerror or exc}. They are safe in the store and "
                "will be written by the next run"
            )
            return
        if ends.ids:
            await self.s.store.delivered(ends.ids)

    def _append(self, ends: _Ends) -> None:
        if self._results is not None:
            self._results.append(ends.results)
        elif ends.results:
            import json

            for line in ends.results:
                print(json.dumps(line, separators=(",", ":"), default=str))
            sys.stdout.flush()
        if ends.errors:
            self._errors.append(ends.errors)

    async def _write_parked(self) -> None:
        """What has no outcome yet, as a batch file of its own."""
        with contextlib.suppress(FileNotFoundError):
            self.files.parked.unlink()
        rows = self._left_rows()
        with LineFile(self.files.parked) as file:
            async for batch in rows:
                file.append(input_line(request) for request in batch)
                self.outcome.left += len(batch)

    async def _left_rows(self) -> Any:
        after_id = 0
        while True:
            now_ms = SystemClock().now_ms()
            rows = await self.s.store.queue(
                WAITING, now_ms, job=self._job, limit=CHUNK, after_id=after_id
            )
            if not rows:
                break
            after_id = rows[-1].id
            self._unkept.update(row.key or "" for row in rows if row.request is None)
            yield [row.request for row in rows if row.request is not None]
        while requests := await self._feeding.rest():
            yield requests
        if self._unkept and not self._feeding.can_reread:
            where = "stdin" if self.files.input is None else "a pipe"
            self.progress.say(
                f"{len(self._unkept):,} requests came from {where} and their prompts are not kept: to "
                "go on, give the same input again"
            )
        elif self._unkept:
            self._feeding.rewind()
            while requests := await self._feeding.rest():
                yield [request for request in requests if request.key in self._unkept]

    # Lines in (see `Feeding`)

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
        self._ends.errors.append(error_line(None, key, {"code": code, "message": str(error)}))

    # Outcomes

    def _on_settled(self, event: events.Settled) -> None:
        if event.job != self._job or not event.state.is_final:
            return
        if event.response is not None:
            self.outcome.succeeded += 1
            self._ends.results.append(result_line(event.request_id, event.key, event.response))
            self._ends.ids.append(event.request_id)
        elif event.error is not None:
            if isinstance(event.error, CredentialsRefused):
                self._unkept.add(event.key or "")
                self._lock(event.provider, event.error)
                return
            self.outcome.failed += 1
            cost_nusd = getattr(event.error, "cost_nusd", 0)
            self._ends.errors.append(
                error_line(
                    event.request_id, event.key, describe(event.error), cost_nusd, event.attempts
                )
            )
            self._ends.ids.append(event.request_id)

    def _lock(self, provider: str, error: CredentialsRefused) -> None:
        """A provider refuses the key: nothing more goes to it, others go on."""
        if provider in self._locked:
            return
        self._locked.add(provider)
        self.outcome.exit = Exit.CREDENTIALS
        message = f"{error}. Check the key of {provider!r}; a rerun goes on from here"
        if self._locked >= set(self.s.providers):
            self._stop(message)
            return
        self.outcome.message = self.outcome.message or message
        self.progress.say(message)
        self.s.stop_admitting(provider)

    def _on_expired(self, event: events.Expired) -> None:
        self.outcome.failed += 1
        self._ends.errors.append(error_line(event.request_id, event.key, describe(event.error)))
        self._ends.ids.append(event.request_id)

    # Watching

    def _choose_budget(self) -> None:
        """Requests draw on the budget 'default', or, where there is none, on none by name."""
        names = [status.budget.name for status in self.s.store.latest()]
        self._budget = None if "default" in names else ()
        if self._budget is None:
            return
        with contextlib.suppress(BudgetUnknown):
            self.progress.say("there is no budget 'default': spend is tracked, not limited")

    async def _watch(self, feeding: asyncio.Task[None]) -> None:
        while not (feeding.done() and self._is_over()):
            if feeding.done() and feeding.exception() is not None:
                raise feeding.exception()  # type: ignore[misc]
            await asyncio.sleep(TICK_S)
            self.s.check()
            await self._write()
            stats = self.s.stats()
            self.progress.update(self._snapshot(stats))
            if feeding.done() or self._feeding.total >= CHUNK:
                self._check_exhausted(stats, feeding)
            self._explain(stats)
        self.progress.update(self._snapshot(self.s.stats()))

    def _is_over(self) -> bool:
        stats = self.s.stats()
        if stats.running or (self._ends.ids and self._problem is None):
            return False
        waiting = stats.queued + sum(stats.parked.values())
        if self._locked:
            lanes = self.s.store.lanes()
            waiting -= sum(lane.waiting for lane in lanes if lane.key.provider in self._locked)
        return self._stopping.is_set() or waiting <= 0

    def _explain(self, stats: Stats) -> None:
        """Say why nothing moves, once per reason."""
        lack = _worst(stats.shortfalls)
        if lack is None or stats.running or stats.queued:
            if lack is None:
                self._told = None
            return
        reason = (lack.reason, lack.budget, lack.resumes_at_ms)
        if reason != self._told and not self._stopping.is_set():
            self._told = reason
            waiting = sum(stats.parked.values())
            now_ms = SystemClock().now_ms()
            self.progress.say(why(lack, waiting, now_ms, self.options.store_option))

    def _check_exhausted(self, stats: Stats, feeding: asyncio.Task[None]) -> None:
        """End when nothing goes on without more money, if the user asked for that."""
        if self._stopping.is_set() or not (
            self.options.stops or self.options.max_wait_ms is not None
        ):
            return None
        parked = sum(stats.parked.values())
        is_stuck = parked and not stats.queued and not stats.running and feeding.done()
        if not is_stuck or all(lack.is_brief for lack in stats.shortfalls):
            self._exhausted_since_s = None
            return None
        now_s = asyncio.get_running_loop().time()
        if self._exhausted_since_s is None:
            self._exhausted_since_s = now_s
        if self.options.stops:
            return self._exhausted(stats)
        assert self.options.max_wait_ms is not None
        waited_ms = (now_s - self._exhausted_since_s) * 1000
        resumes_ms = stats.resumes_at_ms
        ahead_ms = 0 if resumes_ms is None else resumes_ms - SystemClock().now_ms()
        if waited_ms + max(0, ahead_ms) > self.options.max_wait_ms:
            self._exhausted(stats)
        return None

    def _exhausted(self, stats: Stats) -> None:
        lack = _worst(stats.shortfalls)
        assert lack is not None
        waiting = sum(stats.parked.values())
        self.outcome.exit = Exit.PARKED
        self._stop(why(lack, waiting, SystemClock().now_ms(), self.options.store_option))

    def _stop(self, message: str) -> None:
        """Read and admit no more; what runs finishes."""
        self.outcome.message = self.outcome.message or message
        self.progress.say(message)
        self._stopping.set()
        self.s.stop_admitting()

    def _interrupted(self, number: int) -> None:
        self._interrupts += 1
        stats = self.s.stats()
        if self._interrupts == 1:
            self.outcome.exit = Exit.INTERRUPTED
            self._stop(
                f"stopping: {stats.running} running calls ({format_usd(stats.reserved_nusd)} "
                "reserved) are let finish; interrupt again to cancel them"
            )
            if number == signal.SIGTERM:
                asyncio.get_running_loop().call_later(GRACE_S, self._cancel_running)
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
        done = self.outcome.succeeded + self.outcome.known
        failed = self.outcome.failed + self.outcome.known_failed + self.outcome.bad
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
            shortfall=_worst(stats.shortfalls),
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
        if outcome.exit is Exit.DONE:
            if self._codes["price_unknown"] and self._codes["price_unknown"] == self._feeding.total:
                outcome.exit = Exit.CONFIG
            elif outcome.failed or outcome.known_failed or outcome.bad or self._problem is not None:
                outcome.exit = Exit.FAILED
            elif outcome.left:
                outcome.exit = Exit.PARKED
                outcome.message = f"{outcome.left:,} requests are being run by another process"
                self.progress.say(outcome.message)
        return outcome


def _worst(shortfalls: Sequence[Shortfall]) -> Shortfall | None:
    order = list(ParkReason)
    return min(shortfalls, key=lambda lack: order.index(lack.reason), default=None)
