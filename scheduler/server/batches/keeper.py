"""Brings batches on: has their lines read, ends them when told, sums them up at their end.

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
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from scheduler import events
from scheduler.batch.results import line_text
from scheduler.errors import SchedulerError
from scheduler.guards.plain import logger_of
from scheduler.request import RequestState, Response
from scheduler.scheduler import Scheduler
from scheduler.server.batches import forms, record
from scheduler.server.batches.reader import Reader
from scheduler.server.batches.record import BACKGROUND, Batch, Phase
from scheduler.server.batches.shelf import Shelf, new_file
from scheduler.shortfall import Shortfall
from scheduler.stats import Counts, Unserved
from scheduler.stores.base import Finished

logger = logger_of("scheduler.server")

STEP = 25  # results that are looked at before others get their turn
PAGE = 1_000
LOOK_S = 30.0  # so often it is looked what other processes did
SETTLE_S = 0.05  # ends that come together are looked at together
GOES_ON_S = 1.0  # so often it is looked at a batch of which some ended, but not all that were left


class Keeper:
    """See the module.

    Args:
        scheduler: Open, and in the event loop in which this is used.
        shelf: Where its files are.
        reader: Reads its lines.
        answered: Told of each answer that nobody waited for.

    Attributes:
        reader: The same.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        shelf: Shelf,
        reader: Reader,
        answered: Callable[[Response], object],
    ) -> None:
        self._s, self._shelf, self.reader, self._answered = scheduler, shelf, reader, answered
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._open = set[str]()
        self._news, self._heard = set[str](), asyncio.Event()
        self._left, self._stale = dict[str, int](), set[str]()
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Go on with what is there, and with what comes, while the block lasts."""
        batches = await self._tidied()
        stops = (
            self._s.on(events.Settled, self._settled),
            self._s.on(events.Expired, self._ended_one),
        )
        first = partial(self.reader.take, is_first=True)
        for batch in batches:
            await record.amend(self._s.store, batch.id, first)
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
        """Those with which there is something to do, after what goes by the clock."""
        try:
            batches = await self._tidied()
            live = await self._s.store.live_by_job() if batches else {}
            self._open.update(each.id for each in batches)
            return {
                each.id for each in batches if self.reader.may_go_on(each) or each.id not in live
            }
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
            batch = await record.amend(self._s.store, name, self.reader.take)
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
        for names in (self._open, self._stale):
            names.discard(name)
        self._left.pop(name, None)

    async def _work(self, batch: Batch) -> None:
        batch = await self.reader.read(batch)
        if not batch.is_over and batch.cancelled_ms is not None:
            await self._withdraw(batch)
            batch = await self.reader.drop(batch)
        if not batch.is_over:
            await self._end_if_done(batch)

    # Its end

    async def cancel(self, name: str) -> Batch | None:
        """End a batch: what waits is withdrawn, what runs comes to its end. None: there is none."""
        change = partial(record.cancel, now_ms=self._s.now_ms())
        batch = await record.amend(self._s.store, name, change)
        if batch is not None and not batch.is_over:
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

    async def unserved(self, batch: Batch, counts: Counts) -> list[tuple[Unserved, str]]:
        """What of a batch no live process could send, and the key's variable that is missing here."""
        if not counts.queued:
            return []
        found = await self._s.store.unserved(self._s.now_ms(), batch.id)
        return [(each, self.reader.lacks(each.provider)) for each in found]

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
            async for key, code, problem in self.reader.refused(batch):
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


def _add(sums: dict[str, int], finished: Finished) -> None:
    usage = None if finished.response is None else finished.response.usage
    if usage is not None:
        sums["input"] += usage.input_tokens
        sums["output"] += usage.output_tokens
        sums["cached"] += usage.cached_tokens
        sums["reasoning"] += usage.reasoning_tokens
