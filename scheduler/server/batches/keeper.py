"""Brings batches on: reads their lines into the queue, ends them when told, sums them up at their end.

    validating ──all lines fit──▶ in_progress ──all have ended──▶ finalizing ──▶ ended
        │ one does not (OpenAI's)      │ cancelled: what waits is withdrawn
        ▼                              ▼
      failed                         ended, as soon as what runs has

One process reads the lines of a batch, and says so in its record; only it can say that no more will
come, and so nobody ends the batch before. If it is gone, the next reads them again: a key of a batch is
queued once, whoever submits it, and how often. Nothing is looked for while nothing happens, but for
what other processes did, every half minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

from scheduler import events
from scheduler.adapters.dialects import Dialect, http_status
from scheduler.batch.results import line_text
from scheduler.errors import QueueFull, SchedulerClosed, SchedulerError, StoreError
from scheduler.guards.plain import logger_of
from scheduler.providers.base import Provider
from scheduler.providers.http import HttpProvider
from scheduler.request import MESSAGES, Request, RequestState, Response
from scheduler.scheduler import Scheduler
from scheduler.server.batches import forms, record
from scheduler.server.batches.lines import Line, Wrong, read_line
from scheduler.server.batches.record import BACKGROUND, MAX_ERRORS, Batch, Phase
from scheduler.server.batches.shelf import Shelf, new_file
from scheduler.shortfall import Shortfall
from scheduler.stats import Counts
from scheduler.stores.base import Finished
from scheduler.stores.process import Process, is_dead, this_process

logger = logger_of("scheduler.server")

CHUNK, CHUNK_CHARS = 100, 1024 * 1024  # lines that are queued in one transaction, and no more text
STEP = 25  # lines that are looked at before others get their turn
PAGE = 1_000
LOOK_S = 30.0  # so often it is looked what other processes did
SETTLE_S = 0.05  # ends that come together are looked at together
GOES_ON_S = 1.0  # so often it is looked at a batch of which some ended, but not all that were left
SILENT_MS = 90_000  # whoever feeds a batch and says nothing for so long is gone
AT_WORK_MS = 10_000  # so often it says that it is there
HEARS_MS = 100  # so often it looks whether it was told to stop, by whichever process
FULL_S = 1.0  # after so long it is tried again to queue what did not fit
_OF_ALL = (SchedulerClosed, StoreError)  # what every line would meet


class Keeper:
    """See the module.

    Args:
        scheduler: Open, and in the event loop in which this is used.
        shelf: Where its files are.
        choose: The provider for a line, and its model there: by how it is asked, its model, and who
            was named in the path.
        provider: One by its name.
        answered: Told of each answer that nobody waited for.
    """

    def __init__(
        self, scheduler: Scheduler, shelf: Shelf, choose: Callable[[Dialect, str, str], tuple[str, str]],
        provider: Callable[[str], Provider], answered: Callable[[Response], object],
    ) -> None:  # fmt: skip
        self._answered = answered
        self._s, self._shelf, self._choose, self._provider = scheduler, shelf, choose, provider
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._open, self._to_end = set[str](), set[str]()
        self._news, self._heard = set[str](), asyncio.Event()
        self._left, self._stale = dict[str, int](), set[str]()
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._process = this_process()
        self._me = [*astuple(self._process), secrets.token_hex(4)]

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Go on with what is there, and with what comes, while the block lasts."""
        batches = await self._tidied()
        stops = (
            self._s.on(events.Settled, self._settled),
            self._s.on(events.Expired, self._ended_one),
        )
        for batch in batches:
            self.take_up(batch.id)
        self._watching = asyncio.create_task(self._watch(), name="batches")
        try:
            yield
        finally:
            for stop in stops:
                stop()
            if self._timer is not None:
                self._timer.cancel()
            tasks = [self._watching, *self._at_work.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _settled(self, event: events.Settled) -> None:
        is_ours = event.job in self._open or (event.job == BACKGROUND and event.key is not None)
        if is_ours and event.response is not None:
            self._answered(event.response)
        self._ended_one(event)

    def _ended_one(self, event: events.Settled | events.Expired) -> None:
        """Look at a batch when all that was left of it has ended; before that, now and then."""
        job = event.job
        if job not in self._open:
            return
        self._left[job] = left = self._left.get(job, 0) - 1
        if left <= 0:
            self._hear(job)
            return
        self._stale.add(job)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(GOES_ON_S, self._hear_stale)

    def _hear(self, *jobs: str) -> None:
        self._news.update(jobs)
        self._heard.set()

    def _hear_stale(self) -> None:
        self._timer = None
        self._hear(*self._stale)
        self._stale.clear()

    async def _watch(self) -> None:
        """Take up what has news, and now and then what others may have changed."""
        loop = asyncio.get_running_loop()
        look_s = loop.time() + LOOK_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(look_s):
                    await self._heard.wait()
            await asyncio.sleep(SETTLE_S)
            self._heard.clear()
            news, self._news = self._news, set()
            if loop.time() >= look_s:  # however much news there is
                look_s = loop.time() + LOOK_S
                news |= await self._looked()
            for each in news:
                self.take_up(each)

    async def _looked(self) -> set[str]:
        """All that are not over, after what goes by the clock."""
        try:
            return {each.id for each in await self._tidied()}
        except SchedulerError as exc:
            logger.warning("cannot look for batches: %s", exc)
        except Exception:
            logger.exception("cannot look for batches")
        return set()

    async def _tidied(self) -> list[Batch]:
        """Those that are not over; files that nobody needs and that have had their time are removed."""
        batches = await record.open_ones(self._s.store)
        await self._shelf.tidy(self._s.now_ms(), {each.input_id for each in batches})
        return batches

    def take_up(self, name: str) -> asyncio.Task[None]:
        """Do what there is to be done for a batch; what is given back is done when it is."""
        task = self._at_work.get(name)
        if task is not None:
            self._news.add(name)  # when that is done, it is looked at again
            return task
        self._open.add(name)
        task = asyncio.create_task(self._bring_on(name), name=f"batch {name}")
        self._at_work[name] = task
        task.add_done_callback(lambda done: self._laid_down(name))
        return task

    def _laid_down(self, name: str) -> None:
        del self._at_work[name]
        if name in self._news:
            self._heard.set()

    async def _bring_on(self, name: str) -> None:
        try:
            batch = await record.amend(self._s.store, name, self._taken)
            if batch is None or batch.is_over:
                self._laid_aside(name)
                return
            await self._work(batch)
        except asyncio.CancelledError:
            raise
        except SchedulerError as exc:  # it is tried again when it is looked at next
            logger.warning("batch %s: %s", name, exc)
        except Exception:
            logger.exception("batch %s: failed in a way that it should not", name)

    def _laid_aside(self, name: str) -> None:
        """It is over."""
        for names in (self._open, self._to_end, self._stale):
            names.discard(name)
        self._left.pop(name, None)

    # Who reads its lines

    def _taken(self, batch: Batch) -> None:
        """Have this process read its lines, unless another one does."""
        is_gone = bool(batch.by) and is_dead(self._process, Process(*batch.by[:3]))
        if batch.is_fed and not batch.is_whole and is_gone and batch.cancelled_ms is None:
            batch.is_fed = False  # what only that process could send
        now_ms = self._s.now_ms()
        if batch.is_over or batch.is_fed or batch.by == self._me:
            return
        if not batch.by or is_gone or now_ms >= batch.seen_ms + SILENT_MS:
            batch.by, batch.seen_ms = self._me, now_ms

    async def _goes_on(self, batch: Batch, since_ms: int) -> tuple[Batch, int]:
        """How it is now, if that was not looked at lately; others hear that somebody is at work."""
        now_ms = self._s.now_ms()
        if now_ms < since_ms + HEARS_MS and batch.id not in self._to_end:
            return batch, since_ms

        def change(now: Batch) -> None:
            if now.by == self._me and now_ms >= now.seen_ms + AT_WORK_MS:
                now.seen_ms = now_ms

        return await self._amended(batch, change), now_ms

    def _is_mine(self, batch: Batch) -> bool:
        """Whether its lines are to be read on by this process."""
        return batch.by == self._me and batch.cancelled_ms is None and not batch.is_over

    async def _work(self, batch: Batch) -> None:
        if batch.phase == Phase.VALIDATING and self._is_mine(batch):
            batch = await self._validate(batch)
        if not batch.is_fed and self._is_mine(batch):
            batch = await self._feed(batch)
        if not batch.is_over and batch.cancelled_ms is not None:
            await self._withdraw(batch)
            if batch.by == self._me and not batch.is_fed:
                batch = await self._drop(batch)
        if not batch.is_over:
            await self._end_if_done(batch)

    # Its lines

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

    async def _drop(self, batch: Batch) -> Batch:
        """Have the rest of its lines end as cancelled, as far as it is known how many there are."""
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
                await self._s.enqueue(requests)
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
            self._s.validate(request)
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
        request = Request(
            line.body, url=line.url, key=line.key, job=batch.id, provider=self._asked(batch, line),
            **batch.asked,
        )  # fmt: skip
        provider = self._provider_of(request)
        if isinstance(provider, HttpProvider):
            provider.require_key()
        return request

    def _provider_of(self, request: Request) -> Provider:
        return self._provider(request.provider or self._s.provider_for(request))

    def _asked(self, batch: Batch, line: Line) -> str | None:
        """Who is asked; None: whom its model leads to."""
        model = line.body["model"]
        if not batch.wanted and self._s.led_to(model)[0] is not None:
            return None
        dialect = Dialect.ANTHROPIC if line.url == MESSAGES else Dialect.OPENAI
        return self._choose(dialect, model, batch.wanted)[0]

    # Its end

    async def cancel(self, name: str) -> Batch | None:
        """End a batch: what waits is withdrawn, what runs comes to its end. None: there is none."""
        change = partial(record.cancel, now_ms=self._s.now_ms())
        batch = await record.amend(self._s.store, name, change)
        if batch is not None and not batch.is_over:
            self._to_end.add(name)
            self.take_up(name)
        return batch

    async def _withdraw(self, batch: Batch) -> None:
        """Cancel what waits of it, wherever that was submitted."""
        states = [RequestState.QUEUED, RequestState.PARKED]
        after_id = 0
        while rows := await self._s.store.queue(
            states, self._s.now_ms(), job=batch.id, limit=PAGE, after_id=after_id
        ):
            await self._s.withdraw(row.id for row in rows)
            after_id = rows[-1].id

    async def look(self, name: str) -> tuple[Batch | None, Counts | None]:
        """How a batch is doing, summed up if it has just ended; counts are None where it says itself."""
        batch = await record.find(self._s.store, name)
        if batch is None or batch.is_over or batch.phase == Phase.VALIDATING:
            return batch, None
        counts = await self._s.store.counts(name)
        if _is_done(batch, counts):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S * 10):  # small ones are, at once
                    await asyncio.shield(self.take_up(name))
            batch = await record.find(self._s.store, name)
        return batch, None if batch is None or batch.is_over else counts

    async def lacks(self, batch: Batch, counts: Counts) -> Shortfall | None:
        """Why a batch waits, as its first one that is parked says; None: none is."""
        if not counts.parked:
            return None
        rows = await self._s.store.queue(
            [RequestState.PARKED], self._s.now_ms(), job=batch.id, limit=1
        )
        return rows[0].shortfall if rows else None

    async def _end_if_done(self, batch: Batch) -> None:
        counts = await self._s.store.counts(batch.id)
        self._left[batch.id] = counts.waiting + counts.running
        if not _is_done(batch, counts):
            return
        now_ms = self._s.now_ms()
        batch = await self._amended(batch, lambda now: _finalizing(now, now_ms))
        ended = dict.fromkeys(("succeeded", "failed", "cancelled", "expired"), 0)
        usage = dict.fromkeys(("input", "output", "cached", "reasoning"), 0)
        sizes = {"output": 0, "errors": 0}
        cost_nusd = count = 0
        async for each in self._s.store.finished(batch.id, undelivered=False):
            ended[each.state.value] += 1
            cost_nusd += each.cost_nusd
            _add(usage, each)
            if not batch.is_messages:
                part = "output" if forms.is_in("output", each) else "errors"
                sizes[part] += len(line_text(forms.result(each))) + 1
            count += 1
            if count % STEP == 0:
                await asyncio.sleep(0)
        if not batch.is_messages:
            async for key, code, problem in self.refused(batch):
                sizes["errors"] += len(line_text(forms.refused_line(key, code, problem))) + 1
        files = await self._name_files(batch, sizes)
        ended_ms = self._s.now_ms()

        def change(now: Batch) -> None:
            if not now.is_over:
                now.phase, now.ended_ms = Phase.ENDED, ended_ms
                now.ended, now.usage, now.cost_nusd, now.files = ended, usage, cost_nusd, files

        await self._amended(batch, change)
        if batch.is_messages:
            await self._shelf.remove(batch.input_id)  # which nobody can read any more
        self._laid_aside(batch.id)

    async def _name_files(self, batch: Batch, sizes: dict[str, int]) -> dict[str, str]:
        files: dict[str, str] = {}
        for part, size in sizes.items():
            if size:
                name = f"file-{batch.id.removeprefix('batch_')}-{part}"
                now_ms, stays_s = self._s.now_ms(), batch.output_stays_s
                file = new_file(
                    batch.owner, f"{batch.id}_{part}.jsonl", "batch_output", now_ms, bytes=size,
                    batch=batch.id, part=part, id=name,
                    expires_ms=None if stays_s is None else now_ms + stays_s * 1000,
                )  # fmt: skip
                await self._shelf.keep(file)
                files[part] = name
        return files

    async def refused(self, batch: Batch) -> AsyncIterator[tuple[str, str, str]]:
        """Lines that could not be queued: id, code, and what was wrong."""
        first = 0
        while found := await self._s.store.pages(record.REFUSED, batch.id, first=first):
            for number, page in found:
                for said in map(json.loads, page.split("\n")[:-1]):
                    yield said["custom_id"], said["code"], said["problem"]
                first = number + 1

    def results(self, batch: Batch) -> AsyncIterator[Finished]:
        """What became of its requests."""
        return self._s.store.finished(batch.id, undelivered=False)

    async def delivered(self, ids: Sequence[int]) -> None:
        """These were read to the end, so `prune` may forget them."""
        for start in range(0, len(ids), PAGE):
            await self._s.store.delivered(ids[start : start + PAGE])

    async def let_go(self, batch: Batch, part: str) -> None:
        """The same of all that stands in one of its files, or in both, which nobody wants to read."""
        ids = [each.id async for each in self._s.store.ended(batch.id)
               if not part or forms.is_in(part, each)]  # fmt: skip
        await self.delivered(ids)

    async def forget(self, batch: Batch) -> None:
        """Let go of it, and of its results."""
        await self.let_go(batch, "")
        await self._s.store.remove_paper(batch.kind, batch.id)
        await self._s.store.remove_paper(record.REFUSED, batch.id)
        await self._shelf.remove(batch.input_id)

    async def _amended(self, batch: Batch, change: Callable[[Batch], object]) -> Batch:
        return await record.amend(self._s.store, batch.id, change) or batch


def _is_done(batch: Batch, counts: Counts) -> bool:
    return batch.is_fed and not (counts.waiting or counts.running)


def _finalizing(batch: Batch, now_ms: int) -> None:
    if not batch.is_over:
        batch.phase, batch.finalizing_ms = Phase.FINALIZING, now_ms


def _told(wrong: Wrong) -> dict[str, Any]:
    return {
        "code": wrong.code, "message": wrong.problem, "param": wrong.param or None,
        "line": wrong.number,
    }  # fmt: skip


def _add(sums: dict[str, int], finished: Finished) -> None:
    usage = None if finished.response is None else finished.response.usage
    if usage is not None:
        sums["input"] += usage.input_tokens
        sums["output"] += usage.output_tokens
        sums["cached"] += usage.cached_tokens
        sums["reasoning"] += usage.reasoning_tokens
