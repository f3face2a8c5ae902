"""An input into a shared queue, for others to send: what ``scheduler submit`` does.

When it has ended, all of it is in the store: workers send it, whatever becomes of this process.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.batch.files import LineFile
from scheduler.batch.held import Held
from scheduler.batch.input import BatchLine, LineOptions
from scheduler.batch.lock import OutputLock
from scheduler.batch.results import error_line
from scheduler.batch.source import Source
from scheduler.batch.wrong import ErrorFile
from scheduler.cli.exits import Exit
from scheduler.cli.feeding import MAX_TOLD_BAD, Feeding, drawn_on
from scheduler.cli.fleet import unserved_row, unserved_sentence
from scheduler.cli.output import plural
from scheduler.cli.stopping import Stopping
from scheduler.clock import SystemClock
from scheduler.errors import InputError
from scheduler.guards.signals import signals_to
from scheduler.scheduler import Scheduler
from scheduler.stats import Unserved

ANOTHER_JOB = "another --job keeps both"


@dataclass(slots=True)
class Submission:
    """What became of an input.

    Attributes:
        known: Lines whose request was in the store already, under that job and id.
        failed_before: Of these, those that had failed.
        refused: Lines that cannot be sent.
        is_read: Whether all of it was read.
        unserved: What of the job waits for a provider that nobody serves.
    """

    exit: Exit = Exit.DONE
    message: str = ""
    queued: int = 0
    known: int = 0
    failed_before: int = 0
    refused: int = 0
    is_read: bool = False
    unserved: tuple[Unserved, ...] = ()

    def as_json(self, job: str, errors: Path | None) -> dict[str, Any]:
        """The object of ``--json``."""
        return {
            "exit": int(self.exit),
            "job": job,
            "queued": self.queued,
            "known_before": self.known,
            "failed_before": self.failed_before,
            "refused": self.refused,
            "is_read": self.is_read,
            "errors": None if errors is None or not errors.exists() else str(errors),
            "unserved": [unserved_row(each) for each in self.unserved],
            "message": self.message,
        }

    def as_line(self) -> str:
        """The same for people."""
        parts = [f"{self.queued:,} queued", f"{self.known:,} known already"]
        if self.failed_before:
            failed = f"{self.failed_before:,} of them failed (--retry-failed sends them again)"
            parts[-1] += f", {failed}"
        return " · ".join([*parts, f"{self.refused:,} refused"])


class Submitting:
    """Puts one input in the queue; `run` does it."""

    def __init__(
        self, s: Scheduler, source: Source, options: LineOptions, errors: Path | None,
        say: Callable[[str], None], store_option: str, *, retry_failed: bool = False,
        is_strict: bool = False,
    ) -> None:  # fmt: skip
        self._s, self._source, self._job = s, source, options.job
        self._say, self._store_option = say, store_option
        self._is_strict = is_strict
        self.outcome = Submission()
        self._codes: Counter[str] = Counter()
        self._wrong = _Wrong(errors, source.name, say)
        self._stopping = Stopping(s, self.outcome, say, 0)
        self._feeding = Feeding(s, source, options, self, retry_failed, ANOTHER_JOB)

    async def run(self) -> Submission:
        """Queue it; say what became of it, and whether somebody serves it."""
        outcome, stopping = self.outcome, self._stopping
        budget = drawn_on(self._s, self._say)
        with signals_to(self._interrupted), self._wrong:
            if self._is_strict:
                await self._feeding.check(stopping.event, budget)
            await self._feeding.run(stopping.event, budget)
            outcome.is_read = self._feeding.is_read
            self._wrong.finish(None if outcome.is_read else self._feeding.read_to)
        outcome.queued = self._feeding.queued
        outcome.known = self._feeding.total - outcome.queued - outcome.refused
        await self._look_who_serves()
        if outcome.exit is Exit.DONE and outcome.refused:
            is_all = self._codes["price_unknown"] == self._feeding.total
            outcome.exit = Exit.CONFIG if is_all else Exit.FAILED
        return outcome

    async def _look_who_serves(self) -> None:
        found = await self._s.store.unserved(SystemClock().now_ms(), self._job)
        self.outcome.unserved = tuple(found)
        for each in found:
            self._say(unserved_sentence(each, self._store_option))

    def _interrupted(self, number: int) -> None:
        if self._stopping.event.is_set():
            raise SystemExit(Exit.INTERRUPTED)
        self.outcome.exit = Exit.INTERRUPTED
        self._stopping.stop(
            "stopping: what was read is in the queue, and is sent; the same command adds the rest"
        )

    # Lines in (see `Feeding`)

    def bad(self, error: InputError, key: str, code: str) -> None:
        """A line cannot be sent."""
        self.outcome.refused += 1
        self._codes[code] += 1
        if self.outcome.refused <= MAX_TOLD_BAD:
            self._say(f"error: {error}")
        elif self.outcome.refused == MAX_TOLD_BAD + 1:
            self._say(f"more bad lines follow{self._wrong.place}")
        self._wrong.add(error, key, code)

    def is_answered(self, line: BatchLine) -> bool:
        """Nothing is known but what the store has."""
        return False

    def known(self, is_success: bool) -> None:
        """A line has its outcome already."""
        self.outcome.failed_before += not is_success

    def say(self, text: str) -> None:
        """Tell the user."""
        self._say(text)


class _Wrong:
    """The file of lines that are wrong now; there is none while none is.

    Args:
        path: Where it is; None: they are only told.
        source: The input's name in it.
        say: Tells the user.
    """

    def __init__(self, path: Path | None, source: str, say: Callable[[str], None]) -> None:
        self._path, self._source, self._say = path, source, say
        self._stack = contextlib.ExitStack()
        self._file: ErrorFile | None = None
        self._lines: list[str] = []

    @property
    def place(self) -> str:
        """Where they are, for people."""
        return "" if self._path is None else f"; all are in {self._path}"

    def __enter__(self) -> _Wrong:
        if self._path is not None and self._path.exists():
            self._open(self._path)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _open(self, path: Path) -> ErrorFile:
        self._stack.enter_context(OutputLock([path], self._say))
        file = self._stack.enter_context(LineFile(path, self._say))
        self._file = ErrorFile(file, self._source)
        return self._file

    def add(self, error: InputError, key: str, code: str) -> None:
        """One more."""
        if self._path is None:
            return
        file = self._file or self._open(self._path)
        place = (self._source, error.line)
        line = error_line(None, key, {"code": code, "message": str(error)}, place=place)
        if (text := file.bad_line(line)) is not None:
            file.append([text])

    def finish(self, read_to: int | None) -> None:
        """Leave out what is wrong no more."""
        if self._file is not None:
            self._file.tidy(Held(), read_to)


def told(outcome: Submission, job: str, errors: Path | None, store_option: str) -> list[str]:
    """What to say at the end."""
    lines = [outcome.as_line()]
    if outcome.refused and errors is not None and errors.exists():
        lines.append(f"errors: {errors}")
    if not outcome.is_read:
        lines.append(f"the input was not read to its end; {plural(outcome.queued, 'line')} of it wait")
    return lines
