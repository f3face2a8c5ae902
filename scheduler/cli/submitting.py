"""An input into a shared queue, for others to send: what ``scheduler submit`` does.

When it has ended, all of it is in the store: workers send it, whatever becomes of this process.
"""

from __future__ import annotations

import asyncio
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
from scheduler.cli.delivery import stem_of, stored
from scheduler.cli.exits import Exit
from scheduler.cli.feeding import CHUNK, MAX_TOLD_BAD, Feeding, drawn_on
from scheduler.cli.fleet import unserved_row, unserved_sentence
from scheduler.cli.run import lasting
from scheduler.clock import SystemClock
from scheduler.errors import InputError, SchedulerError
from scheduler.guards.signals import signals_to
from scheduler.scheduler import Scheduler
from scheduler.stats import Unserved

ANOTHER_JOB = "another --job keeps both"


def name_of(given: str) -> str:
    """What an input is called in errors, the same from every folder."""
    path = lasting(given)
    return "-" if path is None else stored(path.resolve())


def beside(given: str) -> Path | None:
    """Where lines are told that are refused; None: on stderr alone."""
    path = lasting(given)
    return None if path is None else Path(f"{stem_of(path, None)}.errors.jsonl")


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
        say: Callable[[str], None], store_option: str, *, name: str, retry_failed: bool = False,
        is_strict: bool = False,
    ) -> None:  # fmt: skip
        self._s, self._source, self._job = s, source, options.job
        self._say, self._store_option = say, store_option
        self._is_strict = is_strict
        self.outcome = Submission()
        self._codes: Counter[str] = Counter()
        self._wrong = _Wrong(errors, name, say)
        self._stopping = asyncio.Event()
        self._feeding = Feeding(s, source, options, self, retry_failed, ANOTHER_JOB)

    async def run(self) -> Submission:
        """Queue it; say what became of it, and whether somebody serves it."""
        outcome, stopping = self.outcome, self._stopping
        budget = drawn_on(self._s, self._say)
        with signals_to(self._interrupted), self._wrong:
            if self._is_strict:
                await self._feeding.check(stopping, budget)
            await self._feeding.run(stopping, budget)
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
        if self._stopping.is_set():
            raise SystemExit(Exit.INTERRUPTED)
        self.outcome.exit = Exit.INTERRUPTED
        self.outcome.message = (
            "stopping: what was read is in the queue, and is sent; the same command adds the rest"
        )
        self._say(self.outcome.message)
        self._stopping.set()

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

    Where it cannot be written they are told, and the others are queued all the same.

    Args:
        path: Where it is; None: they are only told.
        source: The input's name in it.
        say: Tells the user.
    """

    def __init__(self, path: Path | None, source: str, say: Callable[[str], None]) -> None:
        self._path, self._source, self._say = path, source, say
        self._stack = contextlib.ExitStack()
        self._file: ErrorFile | None = None
        self._texts: list[str] = []

    @property
    def place(self) -> str:
        """Where they are, for people."""
        return "" if self._path is None else f"; all are in {self._path}"

    def __enter__(self) -> _Wrong:
        if self._path is not None and self._path.exists():
            self._open(self._path)
        return self

    def __exit__(self, *exc: object) -> None:
        self._write()
        self._stack.close()

    def _open(self, path: Path) -> None:
        try:
            self._stack.enter_context(OutputLock([path], self._say))
            file = self._stack.enter_context(LineFile(path, self._say))
            self._file = ErrorFile(file, self._source)
        except (SchedulerError, OSError) as exc:
            self._give_up(exc)

    def _give_up(self, error: Exception) -> None:
        self._say(f"bad lines are only told here: {error}")
        self._path, self._file = None, None

    def add(self, error: InputError, key: str, code: str) -> None:
        """One more."""
        if self._file is None and self._path is not None:
            self._open(self._path)
        if self._file is None:
            return
        place = (self._source, error.line)
        line = error_line(None, key, {"code": code, "message": str(error)}, place=place)
        if (text := self._file.bad_line(line)) is not None:
            self._texts.append(text)
        if len(self._texts) >= CHUNK:
            self._write()

    def _write(self) -> None:
        texts, self._texts = self._texts, []
        if self._file is None or not texts:
            return
        try:
            self._file.append(texts)
        except (SchedulerError, OSError) as exc:
            self._give_up(exc)

    def finish(self, read_to: int | None) -> None:
        """Leave out what is wrong no more; `read_to`: the last line that was read, None: all were."""
        self._write()
        if self._file is not None:
            try:
                self._file.tidy(Held(), read_to)
            except OSError as exc:
                self._give_up(exc)
