"""What a run could not send, as a batch file of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scheduler.batch.files import Replacement
from scheduler.batch.held import Marks
from scheduler.batch.results import input_line
from scheduler.cli.delivery import Files
from scheduler.cli.feeding import CHUNK, Feeding
from scheduler.clock import SystemClock
from scheduler.errors import SchedulerError
from scheduler.request import Request, RequestState
from scheduler.scheduler import Scheduler
from scheduler.stores.base import Known, Store

WAITING = (RequestState.QUEUED, RequestState.PARKED, RequestState.RUNNING)


async def write_left(
    s: Scheduler,
    job: str,
    files: Files,
    feeding: Feeding,
    unkept: set[str],
    only: Marks | None,
    say: Callable[[str], None],
) -> int:
    """Write what has no outcome yet, in the queue and in the input; returns how much that is.

    What an earlier run left there is replaced at once, when all of it is on the disk.

    Args:
        s: Whose queue it is.
        job: Whose requests.
        files: Where to write.
        feeding: Has the rest of the input.
        unkept: Keys of requests that are to be sent again, whose body is in the input only.
        only: Of the queue only these keys; None: all of the job's.
        say: Tells the user.
    """
    count = 0
    with Replacement(files.parked) as file:
        async for requests in _queued(s.store, job, unkept, only):
            file.add(_text(s, request) for request in requests)
            count += len(requests)
        while requests := await feeding.rest():
            file.add(_text(s, request) for request in requests)
            count += len(requests)
        if unkept and not feeding.can_reread:
            where = "stdin" if files.input is None else "a pipe"
            say(
                f"{len(unkept):,} requests came from {where} and their prompts are not kept: to "
                "go on, give the same input again"
            )
        elif unkept:
            feeding.rewind()
            while requests := await feeding.rest():
                wanted = [request for request in requests if request.key in unkept]
                file.add(_text(s, request) for request in wanted)
                count += len(wanted)
    return count


async def count_foreign(s: Scheduler, job: str, feeding: Feeding) -> int:
    """How many wait that earlier runs were given and this one was not.

    Lines were taken out of the input since, or only the first were asked for.
    """
    counts = await s.store.counts(job)
    if not (counts.queued + counts.parked + counts.running) or not feeding.can_reread:
        return 0
    given = Marks()
    feeding.rewind()
    while requests := await feeding.rest():
        for request in requests:
            given.add(request.key)
    count, after_id = 0, 0
    while rows := await s.store.queue(
        WAITING, SystemClock().now_ms(), job=job, limit=CHUNK, after_id=after_id
    ):
        after_id = rows[-1].id
        count += sum(not given.has(row.key) for row in rows)
    return count


async def write_waiting(store: Store, job: str, path: Path) -> int:
    """Write what waits of a job that is sent by others; returns how much that is.

    Each line says whose it is, so that whoever runs the file sends nothing a second time.
    """
    count = 0
    with Replacement(path) as file:
        async for requests in _queued(store, job, set(), None):
            known = await store.known(job, [request.key or "" for request in requests])
            file.add(
                _line(as_submitted(request, known.get(request.key or "")), job)
                for request in requests
            )
            count += len(requests)
    return count


def as_submitted(request: Request, known: Known | None) -> dict[str, Any]:
    """A line that asks the same, to the letter: with the provider before the model, if it was so."""
    digest = "" if known is None else known.digest
    if not digest or request.digest() == digest:
        return input_line(request)
    return input_line(request, request.provider)


def _line(line: Mapping[str, Any], job: str) -> str:
    return json.dumps({**line, "scheduler": {"job": job}}, separators=(",", ":"))


async def _queued(
    store: Store, job: str, unkept: set[str], only: Marks | None
) -> AsyncIterator[Sequence[Request]]:
    after_id = 0
    while True:
        now_ms = SystemClock().now_ms()
        rows = await store.queue(WAITING, now_ms, job=job, limit=CHUNK, after_id=after_id)
        if not rows:
            return
        after_id = rows[-1].id
        if only is not None:
            rows = [row for row in rows if only.has(row.key)]
        unkept.update(row.key or "" for row in rows if row.request is None)
        yield [row.request for row in rows if row.request is not None]


def _text(s: Scheduler, request: Request) -> str:
    """A line that asks the same: to the letter, and of the same provider."""
    provider = request.provider
    with contextlib.suppress(SchedulerError):  # it was not read far enough to be checked
        if s.provider_for(replace(request, provider=None)) == provider:
            provider = None
    return json.dumps(input_line(request, provider), separators=(",", ":"))
