"""What a run is fed: lines go into the queue, and one that cannot is told and left behind.

Nothing that a line does ends the run, and what is under way does not depend on the feeding.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from scheduler.batch.input import DUPLICATE, BadLine, BatchLine, LineOptions, read_source
from scheduler.batch.source import Source
from scheduler.errors import (
    MAX_PROBLEM_CHARS,
    BudgetUnknown,
    ConfigError,
    CostTooHigh,
    CredentialsRefused,
    InputError,
    PriceUnknown,
    PromptTooLong,
    QueueFull,
    SchedulerClosed,
    SchedulerError,
    StoreError,
    cut,
)
from scheduler.ledger.matching import DEFAULT
from scheduler.request import Request, RequestState
from scheduler.scheduler import Scheduler
from scheduler.stores.base import Submitted

CHUNK = 500
SILENT_S = 0.2  # whoever writes to a pipe more slowly has what there is sent
MAX_TOLD_BAD = 20
MAX_TOLD_COLUMNS = 20
# An end that says nothing about the request itself: a rerun sends it again.
NOT_FINAL = CredentialsRefused.__name__

CODES: dict[type[Exception], str] = {
    PriceUnknown: "price_unknown",
    CostTooHigh: "cost_too_high",
    PromptTooLong: "prompt_too_long",
}
"""What refuses one line, and its code in the errors file; anything else is a ``bad_line``."""
OF_ALL = (BudgetUnknown, QueueFull, SchedulerClosed, StoreError)
"""What a line meets that all others would meet as well: it ends the feeding."""


class Sink(Protocol):
    """Who hears what became of lines that were not queued."""

    def bad(self, error: InputError, key: str, code: str) -> None:
        """One cannot be sent."""

    def is_answered(self, line: BatchLine) -> bool:
        """Whether one has its answer, so that it need not be asked, whatever the store knows."""

    def known(self, is_success: bool) -> None:
        """One has its outcome from an earlier run."""

    def say(self, text: str) -> None:
        """Tell the user."""


def refused(error: Exception, name: str, line: BatchLine) -> BadLine:
    """The bad line that an error makes of one that could not be prepared.

    Raises:
        SchedulerError: `error` itself, if it is not about this line alone.
    """
    if isinstance(error, OF_ALL):
        raise error
    problem = cut(str(error), MAX_PROBLEM_CHARS)
    if isinstance(error, RecursionError):
        problem = "nested too deep"
    elif not isinstance(error, SchedulerError):  # numbers or texts beyond what Python takes
        problem = f"cannot be prepared ({type(error).__name__}: {cut(problem, 200)}); not sent"
    code = CODES.get(type(error), "bad_line")
    return BadLine(InputError(name, line.number, problem), line.request.key or "", code)


def told_columns(line: BatchLine, told: set[str]) -> str:
    """What to say of the columns that are not sent; empty: nothing, or all of it was said."""
    new = [name for name in line.dropped if name not in told]
    if not new or len(told) >= MAX_TOLD_COLUMNS:
        return ""
    told.update(new)
    names = ", ".join(repr(cut(name, 40)) for name in new[:MAX_TOLD_COLUMNS])
    return (
        f"not sent, since {line.request.url} has no such parameters: {names} (first on line "
        f"{line.number:,}; what stands under 'body' is sent whole)"
    )


def is_sent_again(error: Mapping[str, Any] | None) -> bool:
    """Whether a request that ended with this is sent again by any run."""
    return error is not None and error.get("type") == NOT_FINAL


def drawn_on(s: Scheduler, say: Callable[[str], None]) -> Sequence[str] | None:
    """The budgets that lines draw on: 'default', or, where there is none, none by name."""
    if any(status.budget.name == DEFAULT for status in s.store.latest()):
        return None
    say(f"there is no budget {DEFAULT!r}: spend is tracked, not limited")
    return ()


ANOTHER_RUN = "--fresh forgets earlier answers, another -o keeps both"


def conflict(name: str, line: BatchLine, way_out: str = ANOTHER_RUN) -> InputError:
    """What to say of an id under which something else was asked before."""
    key = line.request.key
    if line.named_by:
        problem = (
            f"{line.named_by} {key!r} was used before for another body; nothing was sent for "
            f"it. Give it a new id, or: {way_out}"
        )
    else:
        problem = (
            f"has no id, so it is known as {key!r}, where an earlier run of this file had another "
            "request: lines were added, moved or changed; nothing was sent for it. Give the "
            f"lines ids, or: {way_out}"
        )
    return InputError(name, line.number, problem)


class _Chunks:
    """Lines, some at a time: a chunk of them, or those that came before their source fell silent.

    The reading goes on in its thread whoever waits for it, so nothing is lost when that is cancelled.
    """

    def __init__(self, lines: Iterator[BatchLine | BadLine] = iter(())) -> None:
        self._lines = lines
        self._ready: list[BatchLine | BadLine] = []
        self._reading: asyncio.Task[int] | None = None

    async def take(self) -> list[BatchLine | BadLine]:
        """The next ones; empty at the end."""
        while not self._ready or self._reading is not None:
            if self._reading is None:
                self._reading = asyncio.create_task(asyncio.to_thread(self._read))
            done, _ = await asyncio.wait({self._reading}, timeout=SILENT_S)
            if done:
                reading, self._reading = self._reading, None
                if not reading.result() and not self._ready:
                    return []
            elif self._ready:
                break
        count = len(self._ready)  # the thread may add to it meanwhile
        chunk = self._ready[:count]
        del self._ready[:count]
        return chunk

    def _read(self) -> int:
        count = 0
        for line in itertools.islice(self._lines, CHUNK):
            self._ready.append(line)
            count += 1
        return count

    def put_back(self, chunk: Sequence[BatchLine | BadLine]) -> None:
        """Let them be the next again."""
        self._ready[:0] = chunk


class Feeding:
    """Puts an input in a scheduler's queue, a chunk at a time.

    Attributes:
        total: Lines read so far, bad ones too.
        queued: Of these, those that were not known before.
        read_to: The number of the last one.
        is_read: Whether that is all of them.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        source: Source,
        options: LineOptions,
        sink: Sink,
        retry_failed: bool = False,
        way_out: str = ANOTHER_RUN,
    ) -> None:
        self.total, self.queued, self.read_to, self.is_read = 0, 0, 0, False
        self._s, self._source, self._options, self._sink = scheduler, source, options, sink
        self._retry_failed, self._way_out = retry_failed, way_out
        self._budget: Sequence[str] | None = None
        self._lines = _Chunks()
        self._columns: set[str] = set()

    async def run(self, stopping: asyncio.Event, budget: Sequence[str] | None) -> None:
        """Queue all of it, or until the run is stopping.

        Raises:
            SchedulerError: Nothing more can be queued.
        """
        self._budget, self._source.is_stopping = budget, stopping.is_set
        self._lines = _Chunks(read_source(self._source, self._options))
        while not stopping.is_set():
            chunk = await self._lines.take()
            if not chunk:
                self.is_read = True
                return
            self.total += len(chunk)
            try:
                await self._queue(chunk)
            except Exception:
                self._lines.put_back(chunk)  # it is not in the store: `rest` has it
                raise

    async def rest(self) -> Sequence[Request]:
        """Some of what was not read, for whoever writes down what is left; empty at the end."""
        while chunk := await self._lines.take():
            requests = [line.request for line in chunk if isinstance(line, BatchLine)]
            if requests:
                return requests
        return ()

    @property
    def can_reread(self) -> bool:
        """Whether the input can be read a second time."""
        return self._source.can_rewind

    def rewind(self) -> None:
        """Let `rest` begin at the beginning."""
        self._source.rewind()
        self._lines = _Chunks(read_source(self._source, self._options))

    async def check(self, stopping: asyncio.Event, budget: Sequence[str] | None) -> None:
        """Read all of it and queue nothing, to know whether every line can be sent.

        Raises:
            InputError: A line is bad.
            ConfigError: It cannot be read a second time.
        """
        if not self.can_reread:
            raise ConfigError(
                "--strict", f"{self._source.name} is a pipe, which cannot be read twice. Write it to "
                "a file first, and give that; nothing was sent",
            )  # fmt: skip
        self._budget = budget
        self._lines = _Chunks(read_source(self._source, self._options))
        bad: list[InputError] = []
        count = 0
        while (chunk := await self._lines.take()) and not stopping.is_set():
            checked = [self._checked(line) for line in chunk]
            found = [line.error for line in checked if isinstance(line, BadLine)]
            count, bad = count + len(found), bad + found[: MAX_TOLD_BAD - len(bad)]
        for error in bad:
            self._sink.say(f"error: {error}")
        if bad:
            more = f" ({count:,} bad lines in all)" if count > 1 else ""
            problem = f"{bad[0].problem}{more}; with --strict nothing was sent"
            raise InputError(self._source.name, bad[0].line, problem)
        self.rewind()

    def _checked(self, line: BatchLine | BadLine) -> BatchLine | BadLine:
        """The line, or what is wrong with it as the scheduler sees it."""
        if isinstance(line, BadLine):
            return line
        line.request.budget = self._budget
        try:
            self._s.validate(line.request)
        except Exception as exc:  # whatever it is: one line's error is no end of the others
            return refused(exc, self._source.name, line)
        return line

    async def _queue(self, chunk: Sequence[BatchLine | BadLine]) -> None:
        lines = self._good(chunk)
        try:
            submitted = await self._enqueue(lines, self._retry_failed)
        except OF_ALL:
            raise
        except Exception:  # nothing of the chunk was queued: find which lines it was
            lines = self._good([self._checked(line) for line in lines])
            submitted = await self._enqueue(lines, self._retry_failed)
        again = []
        for line, answer in zip(lines, submitted, strict=True):
            if answer.finished is not None and is_sent_again(answer.finished.error):
                again.append(line)
            elif answer.is_conflict:
                error = conflict(self._source.name, line, self._way_out)
                self._sink.bad(error, line.request.key or "", DUPLICATE)
            elif answer.finished is not None:
                self._sink.known(answer.finished.state is RequestState.SUCCEEDED)
        if again:
            await self._enqueue(again, True)

    def _good(self, chunk: Sequence[BatchLine | BadLine]) -> list[BatchLine]:
        """The lines that can be sent; the others are told."""
        lines: list[BatchLine] = []
        for line in chunk:
            if isinstance(line, BadLine):
                self._sink.bad(line.error, line.key, line.code)
                self.read_to = max(self.read_to, line.error.line)
                continue
            self.read_to = max(self.read_to, line.number)
            line.request.budget = self._budget
            if self._sink.is_answered(line):
                self._sink.known(True)
                continue
            lines.append(line)
            if line.dropped and (words := told_columns(line, self._columns)):
                self._sink.say(words)
        return lines

    async def _enqueue(self, lines: Sequence[BatchLine], retry_failed: bool) -> list[Submitted]:
        requests = [line.request for line in lines]
        if not requests:
            return []
        submitted = await self._s.enqueue(requests, retry_failed=retry_failed)
        self.queued += sum(not each.is_known for each in submitted)
        return submitted
