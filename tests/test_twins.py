"""One key is one request, whoever asks for it, and each caller's own terms hold for that caller.

`Case` is a handful of callers of one key who come, give up, and would rather be refused or not, in
any order, before and after there is money. What each of them has to hear, and when, follows from
the rule alone; it is compared with what happens in memory, in a SQLite file, and in two processes
on one file, all in virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from scheduler import (
    Budget,
    BudgetExceeded,
    DeadlineExceeded,
    RequestState,
    Scheduler,
    events,
)
from scheduler.errors import ProviderOverloaded
from scheduler.stores.process import Process
from scheduler.terms import Terms, together
from scheduler.testing import VirtualClock, run
from scheduler.twins import Twins
from tests.conftest import Bench, ask
from tests.simulation.stores import InlineSqlite

POLL_S = 0.2
LATE_S = 4 * POLL_S + 0.01  # how much later another process may know
STORES = ["memory", "sqlite", "two processes"]


@contextlib.asynccontextmanager
async def opened(
    store: str, provider: Bench, folder: str | None = None, **options
) -> AsyncIterator[list[Scheduler]]:
    """Schedulers on one store: two of them in two processes, else one and the same twice."""
    options = {
        "providers": provider, "clock": VirtualClock(), "poll_interval": POLL_S,
        "budgets": Budget("team", "$0"), "retry_wait_s": lambda attempt: 10.0,
    } | options  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as made:
        path = Path(made) / "s.db"

        def inline(number: int) -> InlineSqlite:
            return InlineSqlite(path, Process("here", number, "1"), 60_000, lambda sql: None)

        async with contextlib.AsyncExitStack() as stack:
            inner = None if store == "memory" else inline(1)
            first = second = await stack.enter_async_context(Scheduler(inner, **options))
            if store == "two processes":
                options.pop("budgets")
                second = await stack.enter_async_context(Scheduler(inline(2), **options))
            yield [first, second]


@pytest.fixture(autouse=True)
def _all_live(monkeypatch):
    monkeypatch.setattr("scheduler.stores.sqlite_turn.is_dead", lambda me, other: False)


@dataclass(frozen=True)
class Caller:
    """One who asks: when, on which terms, in which process, and when they lose interest."""

    at_s: float
    priority: str = "normal"
    on_exceeded: str = "wait"
    patience_s: float | None = None
    leaves_after_s: float | None = None
    place: int = 0

    def request(self):
        key = {"deadline" if self.place else "max_wait": self.patience_s}
        return ask(1, key="k", budget="team", priority=self.priority, seconds=TAKES_S, **key)


CALLERS = st.builds(
    Caller,
    at_s=st.sampled_from([0.0, 0.0, 1.0, 2.0, 2.0, 4.0, 11.0, 12.0, 20.0]),
    priority=st.sampled_from(["interactive", "normal", "idle"]),
    on_exceeded=st.sampled_from(["wait", "wait", "raise", "fallback"]),
    patience_s=st.sampled_from([None, None, 0.5, 3.25, 5.25, 20.0]),
    leaves_after_s=st.sampled_from([None, None, None, 1.5, 3.5]),
    place=st.integers(0, 1),
)
TAKES_S = 3
MONEY = [None, 0.0, 10.0]  # when there is money; None: never


NEVER = float("inf")


def expected(callers: list[Caller], money_s: float | None) -> list[tuple[str, float]] | None:
    """What each hears, and when; None: all might leave during the call, which is another story."""
    unsent: list[tuple[str, float]] = []  # how it ends for each if it is not sent by then
    for each in callers:
        ways = [("nothing", NEVER)]
        if each.on_exceeded == "raise" and (money_s is None or each.at_s < money_s):
            ways.append(("refused", each.at_s))
        if each.patience_s is not None:
            ways.append(("late", each.at_s + each.patience_s))
        if each.leaves_after_s is not None:
            ways.append(("left", each.at_s + each.leaves_after_s))
        unsent.append(min(ways, key=lambda way: way[1]))
    begins = [
        max(each.at_s, money_s)
        for each, (_, end_s) in zip(callers, unsent, strict=True)
        if money_s is not None and end_s > money_s
    ]
    if not begins:
        return unsent
    sent_s = min(begins)
    done_s = sent_s + TAKES_S
    heard = []
    for each, end in zip(callers, unsent, strict=True):
        if each.at_s <= sent_s and end[1] <= sent_s:
            heard.append(end)
            continue
        if each.leaves_after_s is not None and each.at_s + each.leaves_after_s <= done_s:
            return None
        heard.append(("answer", max(each.at_s, done_s)))
    return heard


async def live(store: str, callers: list[Caller], money_s: float | None, folder: str | None):
    provider = Bench()
    loop = asyncio.get_running_loop()
    heard: list[tuple[str, float]] = [("nothing", 0.0)] * len(callers)
    waiting = {}

    def word_of(future: asyncio.Future) -> str:
        if future.cancelled():
            return "left"
        error = future.exception()
        kinds = {BudgetExceeded: "refused", DeadlineExceeded: "late"}
        return "answer" if error is None else kinds.get(type(error), repr(error))

    async with opened(store, provider, folder) as schedulers:
        async def call(position: int, caller: Caller) -> None:
            await asyncio.sleep(caller.at_s)
            s = schedulers[caller.place]
            future = s.submit(caller.request(), on_exceeded=caller.on_exceeded)
            waiting[position] = future
            if caller.leaves_after_s is not None:
                loop.call_later(caller.leaves_after_s, future.cancel)
            await asyncio.wait([future])
            del waiting[position]
            heard[position] = word_of(future), loop.time()

        async def pay() -> None:
            if money_s is not None:
                await asyncio.sleep(money_s)
                await schedulers[0].set_limit("team", "$1")

        async def watch() -> None:
            await asyncio.sleep(0.9)
            while True:
                pictures = {(each.state, each.parked) for each in waiting.values()}
                assert len(pictures) <= 1 or store == "two processes", pictures
                await asyncio.sleep(1.0)

        watching = asyncio.create_task(watch())
        calls = [pay()] + [call(i, each) for i, each in enumerate(callers)]
        tasks = [asyncio.create_task(each) for each in calls]
        await asyncio.wait([*tasks, watching], timeout=55, return_when=asyncio.FIRST_EXCEPTION)
        await asyncio.sleep(1)
        assert not watching.done(), watching.exception()
        for each in waiting.values():  # and nobody is left but for want of money
            assert each.state is RequestState.PARKED
            assert each.parked.budget == "team"
        watching.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)
        assert (await schedulers[0].store.audit(VirtualClock().now_ms())).discrepancies == ()
        posted = {s.posted_nusd for s in await schedulers[0].store.spend("budget")} or {0}
    return heard, len(provider.sent), posted


def check(store: str, callers: list[Caller], money_s: float | None) -> None:
    should = expected(callers, money_s)
    if should is None:
        return
    sent = int("answer" in {word for word, _ in should})
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
    heard, really_sent, posted = run(live(store, callers, money_s, folder))
    late_s = LATE_S if store == "two processes" else 0.01
    for position, ((word, at_s), (really, then_s)) in enumerate(zip(should, heard, strict=True)):
        if word == "nothing":
            assert really == "nothing", (position, really)
            continue
        assert really == word, (position, word, really, then_s)
        assert at_s - 0.01 <= then_s <= at_s + late_s, (position, word, at_s, then_s)
    assert really_sent == sent
    assert posted == {60 * sent}


ALL = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@pytest.mark.parametrize("store", STORES)
@ALL
@given(callers=st.lists(CALLERS, min_size=2, max_size=5), money_s=st.sampled_from(MONEY))
@example([Caller(0.0), Caller(1.0, patience_s=3.25)], None)
@example([Caller(0.0, patience_s=3.25), Caller(1.0)], 10.0)
@example([Caller(0.0), Caller(1.0, on_exceeded="raise")], 10.0)
@example([Caller(0.0, on_exceeded="raise"), Caller(0.0)], 10.0)
@example([Caller(0.0, patience_s=3.25), Caller(0.0, patience_s=5.25)], None)
@example([Caller(0.0, leaves_after_s=1.5), Caller(1.0, on_exceeded="fallback")], 10.0)
def test_each_caller_of_a_key_hears_what_their_own_terms_say(store, callers, money_s):
    if store == "two processes":
        callers = [_apart(each) for each in callers]
    check(store, callers, money_s)


def _apart(caller: Caller) -> Caller:
    """What happens in one process at an instant is known in the other a little later."""
    return Caller(
        caller.at_s * 1.5 + caller.place * 0.75, caller.priority, caller.on_exceeded,
        caller.patience_s and caller.patience_s + 0.45, caller.leaves_after_s, caller.place,
    )  # fmt: skip
