"""Reads the lines of batches into the queue: one process at a time for each, which says so in its record.

If that is gone, or says nothing for too long, another one reads them again.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import astuple
from typing import Any

from scheduler.adapters.dialects import Dialect, http_status
from scheduler.batch.results import line_text
from scheduler.errors import QueueFull, SchedulerClosed, SchedulerError, StoreError
from scheduler.providers.base import Provider
from scheduler.request import MESSAGES, Request, RequestState
from scheduler.scheduler import Scheduler
from scheduler.server.batches import forms, record
from scheduler.server.batches.lines import Line, Wrong, read_line
from scheduler.server.batches.record import MAX_ERRORS, Batch, Phase
from scheduler.server.batches.shelf import Shelf
from scheduler.stores.process import Process, is_dead, this_process

CHUNK, CHUNK_CHARS = 100, 1024 * 1024  # lines that are queued in one transaction, and no more text
STEP = 25  # lines that are looked at before others get their turn
SILENT_MS = 90_000  # whoever reads a batch and says nothing for so long is gone
AT_WORK_MS = 10_000  # so often it says that it is there
HEARS_MS = 100  # so often it looks whether it was told to stop, by whichever process
FULL_S = 1.0  # after so long it is tried again to queue what did not fit
_OF_ALL = (SchedulerClosed, StoreError)  # what every line would meet


class Reader:
    """See the module.

    Args:
        scheduler: Open, and in the event loop in which this is used.
        shelf: Where files are.
        choose: The provider for a line, and its model there: by how it is asked, its model, and who
            was named in the path.
        provider: One by its name.
    """

    def __init__(
        self, scheduler: Scheduler, shelf: Shelf,
        choose: Callable[[Dialect, str, str], tuple[str, str]], provider: Callable[[str], Provider],
    ) -> None:  # fmt: skip
        self._s, self._shelf, self._choose, self._provider = scheduler, shelf, choose, provider
        self._process = this_process()
        self._me = [*astuple(self._process), secrets.token_hex(4)]

    def take(self, batch: Batch, *, is_first: bool = False) -> None:
        """Have this process read its lines, unless another one does.

        Args:
            batch: Is changed.
            is_first: This process has just begun, so it cannot know whether one that it does not see
                is there still; to read the lines once more does no harm.
        """
        is_gone = bool(batch.by) and is_dead(self._process, Process(*batch.by[:3]))
        is_seen = bool(batch.by) and batch.by[0] == self._process.host
        is_lost = is_gone or (is_first and not is_seen)
        if batch.is_fed and not batch.is_whole and is_lost and batch.cancelled_ms is None:
            batch.is_fed = False  # what only that process could send
        now_ms = self._s.now_ms()
        if batch.is_over or batch.is_fed or batch.by == self._me:
            return
        if not batch.by or is_gone or now_ms >= batch.seen_ms + SILENT_MS:
            batch.by, batch.seen_ms = self._me, now_ms

    def may_go_on(self, batch: Batch) -> bool:
        """Whether something is to be done before its requests have ended."""
        is_all_there = batch.is_fed and (batch.is_whole or batch.by == self._me)
        return not is_all_there or batch.cancelled_ms is not None

    async def _goes_on(self, batch: Batch, since_ms: int) -> tuple[Batch, int]:
        """How it is now, if that was not looked at lately; others hear that somebody is at work."""
        now_ms = self._s.now_ms()
        if now_ms < since_ms + HEARS_MS:
            return batch, since_ms

        def change(now: Batch) -> None:
            if now.by == self._me and now_ms >= now.seen_ms + AT_WORK_MS:
                now.seen_ms = now_ms

        return await self._amended(batch, change), now_ms

    def _is_mine(self, batch: Batch) -> bool:
        """Whether its lines are to be read on by this process."""
        return batch.by == self._me and batch.cancelled_ms is None and not batch.is_over

    async def read(self, batch: Batch) -> Batch:
        """Bring its lines into the queue, if they are this process's to read."""
        if batch.phase == Phase.VALIDATING and self._is_mine(batch):
            batch = await self._validate(batch)
        if not batch.is_fed and self._is_mine(batch):
            batch = await self._feed(batch)
        return batch

    async def _validate(self, batch: Batch) -> Batch:
        """Read all lines; of OpenAI's nothing is queued if one of them is wrong."""
        errors: list[dict[str, Any]] = []
        keys, total, model = set[str](), 0, None
        seen_ms = self._s.now_ms()
        async for number, text in self._shelf.lines(batch.input_id):
            total += 1
            line = read_line(number, text, batch.endpoint)
            if isinstance(line, Line) and line.key in keys:
                line = Wrong(number, line.key, "duplicate_custom_id",
                             f"the custom_id {line.key!r:.100} stands on an earlier line", "custom_id")  # fmt: skip
            if isinstance(line, Line):
                keys.add(line.key)
                model = model or line.body["model"]
                made = line if batch.is_messages else self._checked(batch, line)
                line = made if isinstance(made, Wrong) else line
            if isinstance(line, Wrong) and not batch.is_messages:
                errors.append(_told(line))
                if len(errors) >= MAX_ERRORS:
                    break
            if total % STEP == 0:
                await asyncio.sleep(0)
                batch, seen_ms = await self._goes_on(batch, seen_ms)
                if not self._is_mine(batch):
                    return batch
        if not total:
            errors.append({"code": "empty_file", "message": "the file has no lines", "param": None,
                           "line": None})  # fmt: skip
        now_ms = self._s.now_ms()

        def change(now: Batch) -> None:
            if not self._is_mine(now) or now.phase != Phase.VALIDATING:
                return
            now.total, now.model, now.seen_ms = total, model, now_ms
            if errors:
                now.phase, now.errors, now.ended_ms = Phase.FAILED, errors, now_ms
            else:
                now.phase, now.begun_ms = Phase.IN_PROGRESS, now_ms

        return await self._amended(batch, change)

    async def _feed(self, batch: Batch) -> Batch:
        """Queue all lines, or as many as there were when it was cancelled."""
        await self._s.store.remove_paper(
            record.REFUSED, batch.id
        )  # as it was told before, if it was
        refused = page = 0
        services, seen_ms = set[str | None](), self._s.now_ms()
        async for lines, wrong in self._chunks(batch):
            wrong += await self._queue(batch, lines, services)
            await self._keep_refused(batch, page, wrong)
            refused, page = refused + len(wrong), page + 1
            batch, seen_ms = await self._goes_on(batch, seen_ms)
            if not self._is_mine(batch):
                return batch

        def change(now: Batch) -> None:
            if now.by == self._me and not now.is_over:
                now.is_fed, now.refused = True, refused
                now.is_whole = self._s.store.is_shared and None not in services

        return await self._amended(batch, change)

    async def drop(self, batch: Batch) -> Batch:
        """Have the rest of the lines of one that was cancelled end so, if they are this process's to read.

        Unless nobody knows yet how many there are: then it had none.
        """
        if batch.by != self._me or batch.is_fed:
            return batch
        refused = dropped = page = 0
        code, problem = forms.UNSENT[RequestState.CANCELLED]
        if batch.total:
            async for lines, wrong in self._chunks(batch):
                found = await self._s.store.pages(record.REFUSED, batch.id, first=page)
                text = "".join(each for number, each in found if number == page)
                told = {
                    each["custom_id"]: each["code"]
                    for each in map(json.loads, text.split("\n")[:-1])
                }
                wrong = [each for each in wrong if each.key not in told]
                keys = [each.key for each in lines if each.key not in told]
                known = await self._s.store.known(batch.id, keys)
                rest = [Wrong(0, each, code, problem) for each in keys if each not in known]
                await self._keep_refused(batch, page, [*wrong, *rest], text)
                again = sum(each == code for each in told.values())
                refused, dropped = (
                    refused + len(told) - again + len(wrong),
                    dropped + again + len(rest),
                )
                page += 1

        def change(now: Batch) -> None:
            if now.by == self._me and not now.is_over:
                now.is_fed, now.refused, now.dropped = True, refused, dropped

        return await self._amended(batch, change)

    async def _chunks(self, batch: Batch) -> AsyncIterator[tuple[list[Line], list[Wrong]]]:
        """Its lines, some at a time: those that are requests, and the others."""
        lines: list[Line] = []
        wrong: list[Wrong] = []
        chars = 0
        async for number, text in self._shelf.lines(batch.input_id):
            line = read_line(number, text, batch.endpoint)
            if isinstance(line, Wrong):
                wrong.append(line)
            else:
                lines.append(line)
            chars += len(text)
            if len(lines) + len(wrong) >= CHUNK or chars >= CHUNK_CHARS:
                yield lines, wrong
                lines, wrong, chars = [], [], 0
        if lines or wrong:
            yield lines, wrong

    async def _keep_refused(
        self, batch: Batch, page: int, wrong: Sequence[Wrong], before: str = ""
    ) -> None:
        if wrong:
            said = [{"custom_id": w.key, "code": w.code, "problem": w.problem} for w in wrong]
            text = before + "".join(f"{line_text(each)}\n" for each in said)
            await self._s.store.write_page(record.REFUSED, batch.id, page, text)

    async def _queue(
        self, batch: Batch, lines: Sequence[Line], services: set[str | None]
    ) -> list[Wrong]:
        """Put these in the queue; what could not be. Who is asked for them is added to `services`."""
        wrong = await self._put(batch, lines, services)
        if not wrong:
            return []
        # Those that were queued by another process, or under other settings, are not refused, too.
        known = await self._s.store.known(batch.id, [each.key for each in wrong])
        return [each for each in wrong if each.key not in known]

    async def _put(
        self, batch: Batch, lines: Sequence[Line], services: set[str | None]
    ) -> list[Wrong]:
        """The same, of which some may be there already."""
        try:
            await self._enqueue(batch, [self._made(batch, line) for line in lines], services)
        except _OF_ALL:
            raise
        except Exception as exc:  # nothing of it was queued: find which lines it was
            if len(lines) == 1:
                return [self._refused(lines[0], exc)]
            half = len(lines) // 2
            await asyncio.sleep(0)
            first = await self._put(batch, lines[:half], services)
            return first + await self._put(batch, lines[half:], services)
        return []

    async def _enqueue(
        self, batch: Batch, requests: Sequence[Request], services: set[str | None]
    ) -> None:
        services |= {self._provider_of(each).service for each in requests}
        seen_ms = self._s.now_ms()
        while requests:
            try:
                await self._s.enqueue(requests, for_others=True)
                return
            except QueueFull:
                await asyncio.sleep(FULL_S)
            batch, seen_ms = await self._goes_on(batch, seen_ms)
            if not self._is_mine(batch):
                return

    def _checked(self, batch: Batch, line: Line) -> Request | Wrong:
        """The request that a line makes, or what is wrong with it as the scheduler sees it."""
        try:
            request = self._made(batch, line)
            self._s.validate(request, for_others=True)
        except _OF_ALL:
            raise
        except Exception as exc:
            return self._refused(line, exc)
        return request

    def _refused(self, line: Line, exc: Exception) -> Wrong:
        if isinstance(exc, SchedulerError):
            _, code, _ = http_status(exc, self._s.now_ms())
            return Wrong(line.number, line.key, code, str(exc), "body")
        # Numbers or texts beyond what Python takes.
        problem = f"it cannot be prepared ({type(exc).__name__}); nothing was sent"
        return Wrong(line.number, line.key, "invalid_body", problem, "body")

    def _made(self, batch: Batch, line: Line) -> Request:
        return Request(
            line.body, url=line.url, key=line.key, job=batch.id, provider=self._asked(batch, line),
            **batch.asked,
        )  # fmt: skip

    def _provider_of(self, request: Request) -> Provider:
        return self._provider(request.provider or self._s.provider_for(request))

    def lacks(self, name: str) -> str:
        """What has to be set here so that a provider can be asked; empty: nothing, as far as is known."""
        try:
            return self._provider(name).lacks
        except KeyError:  # another process's
            return ""

    def _asked(self, batch: Batch, line: Line) -> str | None:
        """Who is asked; None: whom its model leads to."""
        model = line.body["model"]
        if not batch.wanted and self._s.led_to(model)[0] is not None:
            return None
        dialect = Dialect.ANTHROPIC if line.url == MESSAGES else Dialect.OPENAI
        return self._choose(dialect, model, batch.wanted)[0]

    async def refused(self, batch: Batch) -> AsyncIterator[tuple[str, str, str]]:
        """Lines that could not be queued: id, code, and what was wrong."""
        first = 0
        while found := await self._s.store.pages(record.REFUSED, batch.id, first=first):
            for number, page in found:
                for said in map(json.loads, page.split("\n")[:-1]):
                    yield said["custom_id"], said["code"], said["problem"]
                first = number + 1

    async def _amended(self, batch: Batch, change: Callable[[Batch], object]) -> Batch:
        return await record.amend(self._s.store, batch.id, change) or batch


def _told(wrong: Wrong) -> dict[str, Any]:
    return {
        "code": wrong.code, "message": wrong.problem, "param": wrong.param or None,
        "line": wrong.number,
    }  # fmt: skip
