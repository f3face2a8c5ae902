"""What the shell costs that grows: steps of the loop, memory of `map`, keys of others, rules, imports."""

from __future__ import annotations

import asyncio
import gc
import resource
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.dispatch import BODY, provider
from benchmarks.harness import Row
from scheduler import Budget, Request, Scheduler
from scheduler.ledger.matching import BudgetBook

STEP_MS = 20.0
NAMES = "from scheduler import Scheduler, Request, Budget"
OTHER = """
import asyncio, sys
from scheduler import Budget, FunctionProvider, Quote, Request, Scheduler

async def call(request):
    await asyncio.sleep(0.01)
    return {"text": "ok"}

async def main(path, count):
    p = FunctionProvider("f", call, quote=Quote(1000, 500, 10), cost="0.0000005")
    async with Scheduler(path, providers=p, budgets=Budget("team", "$1000"), concurrency=4) as s:
        body = {"model": "m", "messages": []}
        for start in range(0, count, 1000):
            await s.enqueue([Request(body, key=str(n)) for n in range(start, start + 1000)])
        print("ready", flush=True)
        await asyncio.sleep(float(sys.argv[3]))
        print(s.stats().succeeded, flush=True)
        s.stop_admitting()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@asynccontextmanager
async def steps() -> AsyncIterator[list[float]]:
    """Processor time of the loop's thread in each of its steps, in milliseconds, longest last.

    Without the steps of whoever measures, what is submitted, cancelled or waited for in one step of
    theirs is theirs; and without collections of garbage, which take as long as much is alive.
    """
    spent: list[float] = []
    run: Any = asyncio.events.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        begun, is_mine = time.thread_time(), mine in handle._context  # type: ignore[attr-defined]
        run(handle)
        if not is_mine:
            spent.append(1000 * (time.thread_time() - begun))

    mine: ContextVar[bool] = ContextVar("mine")
    mine.set(True)
    gc.collect()
    gc.disable()
    asyncio.events.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        asyncio.events.Handle._run = run  # type: ignore[method-assign]
        gc.enable()
        spent.sort()


def step_row(what: str, spent: list[float]) -> Row:
    return Row(
        f"longest step of the loop: {what}", f"{spent[-1]:.1f} ms", f"{sum(spent):,.0f} ms in all",
        None, f"{STEP_MS:.0f} ms", spent[-1] < STEP_MS,
    )  # fmt: skip


async def stored(futures: list[Any]) -> None:
    """Wait until they are in the store."""
    while any(each.request_id is None for each in futures):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def submitted(s: Scheduler, count: int, **options: Any) -> list[asyncio.Future[Any]]:
    futures: list[asyncio.Future[Any]] = []
    for start in range(0, count, 500):
        futures += [
            s.submit(Request(BODY, **options)) for _ in range(start, min(count, start + 500))
        ]
        await asyncio.sleep(0)
    await stored(futures)
    return futures


async def late(count: int) -> Row:
    async with Scheduler(providers=provider(), budgets=Budget("team", "$0")) as s:
        at = datetime.fromtimestamp(s.now_ms() / 1000 + 30, UTC)
        futures = await submitted(s, count, deadline=at)
        async with steps() as spent:
            await asyncio.wait(futures)
            await asyncio.sleep(0.1)
    return step_row(f"{count:,} ends of max_wait at one instant", spent)


async def cancelled(count: int) -> Row:
    async with Scheduler(providers=provider(), budgets=Budget("team", "$0")) as s:
        futures = await submitted(s, count)
        async with steps() as spent:
            for future in futures:
                future.cancel()
            await s.join()
    return step_row(f"{count:,} futures cancelled at once", spent)


async def at_once(count: int) -> Row:
    waiting = Scheduler(providers=provider(), budgets=Budget("team", "$0"))
    async with waiting as s, steps() as spent:
        futures = [s.submit(Request(BODY)) for _ in range(count)]
        await stored(futures)
    return step_row(f"{count:,} requests submitted at once", spent)


async def raised(count: int) -> Row:
    async with Scheduler(providers=provider(), budgets=Budget("team", "$0")) as s:
        for _ in range(0, count, 1000):
            await s.enqueue([Request(BODY) for _ in range(1000)])
        async with steps() as spent:
            await s.set_limit("team", "$1")
            await asyncio.sleep(2)
    return step_row(f"a raise with {count:,} parked", spent)


class Mark:
    """Lives as long as a request that holds it."""


async def mapped(count: int, ordered: bool) -> Row:
    """How many requests that `map` took in are alive at the most."""
    alive, most = weakref.WeakSet[Any](), 0

    def requests() -> Iterator[Request]:
        for n in range(count):
            body = {"model": "m", "messages": [{"role": "user", "content": str(n)}]}
            mark = Mark()
            alive.add(mark)
            yield Request(body, metadata=mark)  # type: ignore[arg-type]

    async with Scheduler(
        providers=provider(), budgets=Budget("team", "$1000"), concurrency=64
    ) as s:
        done = before = 0
        async for _ in s.map(requests(), ordered=ordered):
            done += 1
            if done % (count // 20) == 0:
                most = max(most, len(alive))
                before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    how = "in order" if ordered else "as they complete"
    return Row(
        f"map over {count:,}, {how}", f"{most:,} alive, {grown:+.0f} MiB", "4 x 64 taken ahead",
        most / 256, "what is taken ahead", most <= 3 * 256 and grown < 32,
    )  # fmt: skip


def the_same_keys(count: int, seconds: float) -> list[Row]:
    """A process that works, and one that waits for the same keys: what waiting costs."""

    def worked(path: Path) -> tuple[subprocess.Popen[str], int]:
        words = [sys.executable, "-c", OTHER, str(path), str(count), str(seconds)]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        return child, count

    def answers(child: subprocess.Popen[str]) -> int:
        out, _ = child.communicate()
        return int(out.split()[-1])

    async def wait(path: Path) -> float:
        async with Scheduler(path, providers=provider()) as s:
            futures = await _keyed(s, count)
            cpu, began = time.process_time(), time.monotonic()
            await asyncio.sleep(seconds * 0.6)
            share = (time.process_time() - cpu) / (time.monotonic() - began)
            for future in futures:
                future.cancel()
        return share

    with tempfile.TemporaryDirectory() as folder:
        alone = answers(worked(Path(folder) / "alone.db")[0])
        child, _ = worked(Path(folder) / "both.db")
        share = asyncio.run(wait(Path(folder) / "both.db"))
        both = answers(child)
    return [
        Row(f"waiting for {count:,} keys of another process", f"{share:.0%} of a core", "-", None,
            "20 %", share < 0.2),
        Row(f"the other one's answers in {seconds:.0f} s", f"{both:,}", f"alone {alone:,}",
            both / max(1, alone), ">= 0.7", both >= 0.7 * alone),
    ]  # fmt: skip


async def _keyed(s: Scheduler, count: int) -> list[asyncio.Future[Any]]:
    futures: list[asyncio.Future[Any]] = []
    body = {"model": "m", "messages": []}
    for start in range(0, count, 1000):
        futures += [s.submit(Request(body, key=str(n))) for n in range(start, start + 1000)]
        await asyncio.sleep(0)
    await stored(futures)
    return futures


def by_tag(count: int) -> list[Row]:
    rules: dict[str, Callable[[int], dict[str, str]]] = {
        "a user each": lambda n: {"user": f"u{n}"},
        "a team and a user each": lambda n: {"team": "a", "user": f"u{n}"},
        "a pattern each": lambda n: {"user": f"u{n}-*"},
    }
    rows = []
    for name, rule in rules.items():
        book = BudgetBook((n, Budget(f"b{n}", "$1", tags=rule(n))) for n in range(1, count + 1))
        times, begun = 200, time.process_time()
        for n in range(times):
            tags = {"team": "a", "user": f"u{n + 1}-x", "request": str(n)}
            book.draws_on("m", tags, ())
        us = (time.process_time() - begun) / times * 1e6
        rows.append(Row(f"{count:,} rules, {name}: one request", f"{us:,.0f} us", "-", None, "100 us",
                        us < 100))  # fmt: skip
    return rows


def importing() -> list[Row]:
    """Processor time of whole processes, the least of several; bytecode is there, as installed."""

    def ms(*words: str) -> float:
        least = float("inf")
        for _ in range(15):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            least = min(least, 1000 * spent)
        return least

    bare = ms(sys.executable, "-c", "pass")
    loop = ms(sys.executable, "-c", "import asyncio")
    names = ms(sys.executable, "-c", NAMES)
    helped = ms(sys.executable, "-m", "scheduler", "--help")
    beside = f"python alone {bare:.0f} ms, with asyncio {loop:.0f}"
    return [
        Row(NAMES, f"{names:.0f} ms", beside, names / bare, "100 ms", names < 100),
        Row("scheduler --help", f"{helped:.0f} ms", beside, helped / bare, "150 ms", helped < 150),
    ]


def run(quick: bool) -> list[Row]:
    many = 10_000 if quick else 100_000
    rows = [
        asyncio.run(late(many // 2)),
        asyncio.run(cancelled(many)),
        asyncio.run(at_once(many)),
        asyncio.run(raised(10 * many)),
        asyncio.run(mapped(2 * many, ordered=False)),
        asyncio.run(mapped(2 * many, ordered=True)),
    ]
    rows += the_same_keys(many // 2, 4 if quick else 10)
    rows += by_tag(many // 10)
    return rows + importing()
