"""Where the outcomes of a run go: result and error files, each line once.

An outcome is in the store before it is in a file. It is delivered when it is in the file of that
name: what the file holds decides, and the store's mark is a hint. So whatever happens to a file,
what is missing from it is written again, at no cost, and what it holds is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scheduler.batch.files import LineFile, lines_of, marked
from scheduler.batch.held import Held, Marks, is_answer
from scheduler.batch.results import error_line, line_text, result_line
from scheduler.batch.wrong import ErrorFile
from scheduler.cli.feeding import NOT_FINAL
from scheduler.cli.output import say
from scheduler.errors import ConfigError, DeadlineExceeded, InputError
from scheduler.request import Request, RequestState, Response
from scheduler.stores.base import Finished, Store

PAGE = 500


@dataclass(slots=True)
class Files:
    """Where a run reads and writes.

    Attributes:
        input: None: stdin.
        results: None: stdout.
        named: The job, where it was submitted under a name of its own, and nothing is read.
    """

    input: Path | None
    results: Path | None
    errors: Path
    parked: Path
    named: str = ""

    @property
    def source(self) -> str:
        """Names the input."""
        if self.named:
            return f"job {self.named}"
        return "-" if self.input is None else stored(self.input.resolve())

    @property
    def job(self) -> str:
        """Names the run, so that the same command goes on where it stopped."""
        if self.named:
            return self.named
        return f"{self.source} → {'-' if self.results is None else stored(self.results.resolve())}"

    @property
    def has_errors(self) -> bool:
        """Whether an error is told; a killed run leaves its file behind, empty."""
        return self.errors.exists() and self.errors.stat().st_size > 0

    @property
    def outputs(self) -> list[Path]:
        """What one writer at a time may write."""
        return [self.errors] if self.results is None else [self.results, self.errors]


def stem_of(source: Path | None, results: Path | None) -> str:
    """What the names of a run's files begin with."""
    if results is None:
        return str(source or "stdin").removesuffix(".jsonl")
    return str(results).removesuffix(".jsonl").removesuffix(".results")


def stored(path: Path) -> str:
    """A path as the store keeps it: what is no UTF-8 in a name is spelled out, in any locale."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def parked_of(job: str) -> str | None:
    """The file into which a job puts what it could not send; None: it is no batch file's job."""
    source, arrow, results = job.rpartition(" → ")
    if not arrow:
        return None
    stem = stem_of(
        None if source == "-" else Path(source), None if results == "-" else Path(results)
    )
    return stored(Path(f"{stem}.parked.jsonl").resolve())


async def job_of(store: Store, files: Files) -> tuple[str, bool]:
    """The job whose requests an input has, and whether it is what another run of that job left."""
    job, is_part = files.job, False
    if files.input is not None:
        wanted, jobs = stored(files.input.resolve()), await store.jobs()
        named = await asyncio.to_thread(marked, files.input)
        if named and named in jobs:
            return named, True
        for each in jobs:
            if parked_of(each) != wanted:
                continue
            counts = await store.counts(each)
            if not is_part or counts.queued + counts.parked + counts.running:
                job, is_part = each, True
    return job, is_part


def answers_in(lines: Iterable[tuple[str, dict[str, Any]]]) -> Held:
    """The requests whose answers stand among the lines of a results file."""
    held = Held()
    for _, line in lines:
        if is_answer(line):
            held.read(line)
    return held


UNSENT = {
    RequestState.CANCELLED: {"code": "cancelled", "message": "it was cancelled by its caller"},
    RequestState.EXPIRED: {
        "code": DeadlineExceeded.__name__,
        "message": "not sent in time: its deadline had passed",
    },
}


@dataclass(slots=True)
class _Ends:
    """Result and error lines that are not on the disk yet."""

    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any] | str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.results or self.errors or self.ids)


class Delivery:
    """Puts outcomes into their files; use it in a ``with`` while their lock is held.

    Before that it takes nothing down but what is wrong with lines: outcomes are in the store.

    Args:
        files: Where they go.
        say: Tells the user.
        tells_unsent: Whether what was cancelled, or came too late, is told as an error.

    Attributes:
        problem: Why nothing can be written any more; None: it can.
        is_open: Whether this process writes.
    """

    def __init__(
        self, files: Files, say: Callable[[str], None], *, tells_unsent: bool = False
    ) -> None:
        self.files, self._say, self._tells_unsent = files, say, tells_unsent
        self.problem: OSError | ConfigError | None = None
        self._ends = _Ends()
        self._held = Held()
        self._stack = contextlib.ExitStack()
        self._results: LineFile | None = None
        self._store: Store
        self._job = ""
        self.is_open = False
        self._bad: list[tuple[InputError, str, str]] = []  # that were told before it was open

    def __enter__(self) -> Delivery:
        with contextlib.ExitStack() as stack:
            if self.files.results is not None:
                self._results = stack.enter_context(LineFile(self.files.results, self._say))
            errors = stack.enter_context(LineFile(self.files.errors, self._say))
            self._errors = ErrorFile(errors, self.files.source)
            self._stack = stack.pop_all()
        self.is_open = True
        for bad in self._bad:
            self.bad_line(*bad)
        self._bad.clear()
        for file in filter(None, (self._results, errors)):
            if file.was_torn:
                self._say(f"cut the torn last line of {file.path}")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    # What a run tells

    @property
    def is_pending(self) -> bool:
        """Whether something waits to be written, and can be."""
        return bool(self._ends) and self.problem is None

    def succeeded(self, id: int, key: str | None, response: Response, digest: str) -> None:
        """A request has its answer."""
        if not self.is_open:
            return
        if self._held.add(id, key, digest):
            self._ends.results.append(result_line(id, key, response, digest))
        self._ends.ids.append(id)

    def failed(
        self, id: int, key: str | None, error: Mapping[str, Any], cost_nusd: int, attempts: int,
        digest: str,
    ) -> None:  # fmt: skip
        """A request has failed for good."""
        if not self.is_open:
            return
        self._errors.held.add(id, key, digest)
        self._ends.errors.append(error_line(id, key, error, cost_nusd, attempts, digest))
        self._ends.ids.append(id)

    def bad_line(self, error: InputError, key: str, code: str) -> None:
        """A line of the input is no request."""
        if not self.is_open:
            self._bad.append((error, key, code))
            return
        place = (self.files.source, error.line)
        line = error_line(None, key, {"code": code, "message": str(error)}, place=place)
        text = self._errors.bad_line(line)
        if text is not None:
            self._ends.errors.append(text)

    def is_answered(self, request: Request, digest: Callable[[Request], str]) -> bool:
        """Whether the results file holds the answer, whatever the store has forgotten."""
        return bool(self._held) and self._held.answers(request.key or "", digest(request))

    # Into the files

    async def write(self) -> None:
        """Put what has ended on the disk, then note it as delivered; sets `problem` if it fails."""
        if not self.is_pending:
            return
        ends, self._ends = self._ends, _Ends()
        try:
            await asyncio.to_thread(self._append, ends)
        except (OSError, ConfigError) as exc:
            self.problem, self._ends = exc, ends
            return
        if ends.ids:
            await self._store.delivered(ends.ids)

    def _append(self, ends: _Ends) -> None:
        if ends.results:
            if self._results is not None:
                self._results.append(ends.results)
            else:
                print("\n".join(map(line_text, ends.results)))
                sys.stdout.flush()
            ends.results = []  # never twice, if the errors cannot be written
        if ends.errors:
            self._errors.append(ends.errors)
            ends.errors = []

    # What other processes did

    async def peek(self) -> None:
        """Learn which answers stand in the results file that another process writes."""
        if self.files.results is not None and self.files.results.exists():
            self._held = await asyncio.to_thread(
                lambda path: answers_in(lines_of(path)), self.files.results
            )

    async def collect(self) -> None:
        """Write what has ended in other processes."""
        async for each in self._store.finished(self._job, undelivered=True):
            if self._has(each):
                self._ends.ids.append(each.id)
            else:
                self._take(each)
            if len(self._ends.ids) >= PAGE:
                await self.write()

    @staticmethod
    async def has_undelivered(store: Store, job: str) -> bool:
        """Whether an outcome is in no file yet."""
        async for each in store.finished(job, undelivered=True):
            if each.error is None or each.error.get("type") != NOT_FINAL:
                return True
        return False

    # What is missing from the files

    async def start(self, store: Store, job: str, *, retry_failed: bool, is_part: bool) -> None:
        """Learn what the files hold, and write what is missing there.

        Args:
            store: Where the outcomes are.
            job: Whose they are.
            retry_failed: What failed is about to be sent again: it need not be told.
            is_part: Only some of the job's requests belong here; which, is known at the end.
        """
        self._store, self._job = store, job
        await asyncio.to_thread(self._scan)
        if is_part:
            return
        async for each in store.finished(job, undelivered=True):
            if self._has(each):
                self._ends.ids.append(each.id)
            elif each.response is not None or not retry_failed:
                self._take(each)
            if len(self._ends.ids) >= PAGE:
                await self.write()
        await self.write()
        await self.restore(None, failures=not retry_failed)

    async def restore(self, only: Marks | None, *, failures: bool = True) -> None:
        """Write outcomes that are in no file of that name; with `only`, of these keys."""
        missing: list[int] = []
        async for each in self._store.ended(self._job):
            if self._has(each) or (only is not None and not only.has(each.key)):
                continue
            if failures or each.state is RequestState.SUCCEEDED:
                missing.append(each.id)
            if len(missing) >= PAGE:
                await self._fetch(missing)
                missing = []
        await self._fetch(missing)

    async def _fetch(self, ids: list[int]) -> None:
        for each in await self._store.outcomes(ids) if ids else ():
            self._take(each)
        await self.write()

    def _has(self, each: Finished) -> bool:
        """Whether its file holds an outcome."""
        if each.state is not RequestState.SUCCEEDED:
            return self._errors.held.has(each.id, each.key, each.digest)
        # What went to stdout is gone: there the store's mark is all there is.
        is_gone = self._results is None and each.response is None
        return is_gone or self._held.has(each.id, each.key, each.digest)

    def _take(self, each: Finished) -> None:
        if each.response is not None:
            self.succeeded(each.id, each.key, each.response, each.digest)
            return
        error = each.error
        if error is None and self._tells_unsent:
            error = UNSENT.get(each.state)
        if error is not None and error.get("type") != NOT_FINAL:
            self.failed(each.id, each.key, error, each.cost_nusd, each.attempts, each.digest)

    def _scan(self) -> None:
        self._errors.read()
        if self._results is not None:
            self._held = answers_in(self._results.lines())

    # The end

    async def finish(self, only: Marks | None, read_to: int | None, *, restores: bool) -> None:
        """See that everything is in its file, and that the errors are those of now.

        Args:
            only: As for `restore`.
            read_to: The last line of the input that was read; None: all were.
            restores: Outcomes may be missing, whatever the files look like.
        """
        self.problem = None  # the disk may have room again
        await self.write()
        try:
            if await asyncio.to_thread(self._look) or restores:
                await asyncio.to_thread(self._scan)
                await self.restore(only)
            if self.problem is None:
                await asyncio.to_thread(self._errors.tidy, self._held, read_to)
        except (OSError, ConfigError) as exc:
            self.problem = self.problem or exc

    def _look(self) -> bool:
        """Whether others changed a file since it was opened."""
        files = [file for file in (self._results, self._errors.file) if file is not None]
        for file in files:
            file.look()
        return any(file.is_changed for file in files)


def move_aside(files: Files) -> None:
    """Keep earlier results and errors under other names, rather than mix with them."""
    for path in files.outputs:
        if path.exists():
            number = 1
            while (aside := path.with_name(f"{path.name}.{number}")).exists():
                number += 1
            os.rename(path, aside)
            say(f"moved {path} to {aside}")
