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
from dataclasses import dataclass, replace
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
from scheduler.admission.plan import LaneKey
from scheduler.core.callers.terms import Terms, together
from scheduler.core.callers.twins import Twins
from scheduler.core.callers.waiters import Enqueued, Waiters
from scheduler.errors import ProviderOverloaded
from scheduler.shortfall import Shortfall
from scheduler.stores.process import Process
from scheduler.testing import VirtualClock, run
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
    monkeypatch.setattr("scheduler.stores.sql.workers.is_dead", lambda me, other: False)


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
                pictures = {(each.state, of_all(each.parked)) for each in waiting.values()}
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


def of_all(lack: Shortfall | None) -> Shortfall | None:
    """Why it is parked, but for what that means to one caller."""
    return lack and replace(lack, too_late_at_ms=None)


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
    max_examples=60,
    suppress_health_check=list(HealthCheck),
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


# Tables


def of_two(first: dict, second: dict, store: str = "memory", *, money: str = "$1", **options):
    """What two callers of one key hear who ask while another call holds the only place."""

    async def main():
        provider = Bench()
        async with opened(
            store, provider, budgets=Budget("team", money), concurrency=1, **options
        ) as (s, _):
            blocker = asyncio.ensure_future(s.run(ask(0, seconds=5)))
            await asyncio.sleep(1)
            futures = []
            for terms in (first, second):
                on_exceeded = terms.pop("on_exceeded", None)
                request = ask(1, key="k", **{"budget": "team", **terms})
                futures.append(s.submit(request, on_exceeded=on_exceeded))
            await asyncio.sleep(0)
            s.submit(ask(2)).add_done_callback(_seen)
            await asyncio.wait([blocker, *futures], timeout=60)
            return [each.body["n"] for each in provider.sent], futures

    return run(main())


def _seen(future: asyncio.Future) -> None:
    if not future.cancelled():
        future.exception()


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize(
    ("first", "second", "comes_first"),
    [("idle", "interactive", True), ("interactive", "idle", True), ("idle", "batch", False)],
)
def test_a_request_goes_with_the_most_urgent_of_who_wait_for_it(store, first, second, comes_first):
    sent, futures = of_two({"priority": first}, {"priority": second}, store)

    assert sent == ([0, 1, 2] if comes_first else [0, 2, 1])
    assert [future.result().cost_nusd for future in futures] == [60, 60]


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("way", ["leaves", "is late"])
def test_it_falls_back_when_the_urgent_one_gives_up(store, way):
    async def main():
        provider = Bench()
        async with opened(store, provider, budgets=Budget("team", "$1"), concurrency=1) as (s, _):
            blocker = s.submit(ask(0, seconds=5))
            patient = s.submit(ask(1, key="k", priority="idle"))
            await asyncio.sleep(1)
            urgent = s.submit(ask(1, key="k", priority="interactive", max_wait="2s"))
            other = s.submit(ask(2))
            await asyncio.sleep(1)
            if way == "leaves":
                urgent.cancel()
            await asyncio.wait([blocker, patient, urgent, other])
            return [each.body["n"] for each in provider.sent], patient.state, urgent.state

    sent, patient, urgent = run(main())
    assert sent == [0, 2, 1]
    assert patient is RequestState.SUCCEEDED
    assert urgent in (RequestState.CANCELLED, RequestState.EXPIRED)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_who_would_rather_be_refused_is_although_all_places_are_taken(store):
    async def main():
        budgets = Budget("team", "$0.00000015")
        async with opened(store, Bench(), budgets=budgets, concurrency=1) as (s, _):
            running = s.submit(ask(0, budget="team", seconds=9))  # it holds what the next one lacks
            patient = s.submit(ask(1, key="k", budget="team"))
            await asyncio.sleep(1)
            request = ask(1, key="k", budget="team", priority="interactive")
            refused = s.submit(request, on_exceeded="raise")
            await asyncio.wait([refused], timeout=1)
            assert isinstance(refused.exception(), BudgetExceeded)
            assert not patient.done()
            await s.set_limit("team", "$1")
            await asyncio.wait([running, patient])
            return patient.result().cost_nusd

    assert run(main()) == 60


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("comes", ["before", "after"])
def test_whoever_enqueued_a_key_holds_it_like_anybody_else(store, comes):
    async def main():
        provider, seen = Bench(), []
        async with opened(store, provider) as (s, _):
            s.on(events.Settled, lambda event: seen.append(event.state))
            if comes == "before":
                await s.enqueue([ask(1, key="k", budget="team", priority="idle")])
            future = s.submit(ask(1, key="k", budget="team", max_wait="5s"))
            await asyncio.sleep(1)
            if comes == "after":
                await s.enqueue([ask(1, key="k", budget="team", priority="idle")])
            assert (future.state, future.parked.budget) == (RequestState.PARKED, "team")
            raised = s.submit(ask(1, key="k", budget="team"), on_exceeded="raise")
            with pytest.raises(BudgetExceeded):
                await raised
            with pytest.raises(DeadlineExceeded, match="parked"):
                await future
            assert (await s.store.counts()).parked == 1
            left = s.submit(ask(1, key="k", budget="team"))
            await asyncio.sleep(1)
            left.cancel()
            await asyncio.sleep(1)
            await s.set_limit("team", "$1")
            await s.join()
            return len(provider.sent), seen

    assert run(main()) == (1, [RequestState.SUCCEEDED])


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_it_is_paid_from_the_budgets_of_the_first_who_still_wants_it(store):
    async def main():
        provider = Bench()
        budgets = [Budget("ann", "$0"), Budget("bob", "$1")]
        async with opened(store, provider, budgets=budgets) as (s, _):
            first = s.submit(ask(1, key="k", budget="ann"))
            second = s.submit(ask(1, key="k", budget="bob"))
            await asyncio.sleep(1)
            assert first.parked == second.parked
            assert second.parked.budget == "ann"  # it is one request, and that is what it lacks
            first.cancel()
            await second
            return {row.name: row.posted_nusd for row in await s.store.spend("budget")}

    assert run(main()) == {"bob": 60}


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_between_attempts_each_has_their_own_time(store):
    busy = ProviderOverloaded(503, "busy")
    busy.is_billed = True

    async def fail(request):
        await asyncio.sleep(2)
        raise busy

    async def main():
        provider = Bench()
        provider.before = fail
        options = {"budgets": Budget("team", "$1"), "max_attempts": 9}
        async with opened(store, provider, **options) as (s, _):
            request = {"key": "k", "budget": "team"}
            first = s.submit(ask(1, max_wait="1s", **request))
            await asyncio.sleep(1.5)  # it runs: to be sent in time is all that was asked
            second = s.submit(ask(1, **request))
            third = s.submit(ask(1, max_wait="20s", **request))
            await asyncio.sleep(1)
            assert isinstance(first.exception(), DeadlineExceeded)
            assert (second.state, third.state) == (RequestState.QUEUED,) * 2
            await asyncio.sleep(22)
            assert isinstance(third.exception(), DeadlineExceeded)
            assert third.exception().cost_nusd > 0  # what its request has cost so far
            assert not second.done()
            second.cancel()

    run(main())


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_key_that_was_refused_may_be_asked_again(store):
    async def main():
        provider = Bench()
        async with opened(store, provider) as (s, _):
            request = ask(1, key="k", budget="team")
            with pytest.raises(BudgetExceeded):
                await s.run(request, on_exceeded="raise")
            patient = s.submit(request)
            await asyncio.sleep(1)
            assert patient.state is RequestState.PARKED
            await s.set_limit("team", "$1")
            return (await patient).cost_nusd, len(provider.sent)

    assert run(main()) == (60, 1)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_another_model_is_asked_only_if_all_would_take_its_answer(store):
    async def main(second: str):
        provider = Bench()
        budgets = [Budget("big", "$0", models=["m"]), Budget("rest", "$1", models=["small"])]
        async with opened(store, provider, budgets=budgets) as (s, _):
            request = ask(1, key="k", fallback=["small"])
            both = [s.submit(request, on_exceeded=each) for each in (second, "fallback")]
            await asyncio.wait(both, timeout=5)
            return [each.body["model"] for each in provider.sent], [each.state for each in both]

    assert run(main("fallback")) == (["small"], [RequestState.SUCCEEDED] * 2)
    assert run(main("raise")) == (["small"], [RequestState.FAILED, RequestState.SUCCEEDED])
    assert run(main("wait")) == ([], [RequestState.PARKED] * 2)


def test_each_gets_their_own_metadata_back():
    async def main():
        async with opened("sqlite", Bench(), budgets=()) as (s, _):
            futures = [s.submit(ask(1, key="k", metadata={"row": n})) for n in range(3)]
            found = [each.metadata for each in await asyncio.gather(*futures)]
            return [*found, (await s.run(ask(1, key="k", metadata="late"))).metadata]

    assert run(main()) == [{"row": 0}, {"row": 1}, {"row": 2}, "late"]


def test_another_process_tells_how_its_request_is_doing():
    async def main():
        async with opened("two processes", Bench()) as (here, there):
            first = here.submit(ask(1, key="k", budget="team", seconds=5))
            await asyncio.sleep(1)
            second = there.submit(ask(1, key="k", budget="team", seconds=5))
            await asyncio.sleep(1)
            assert (second.state, second.parked) == (RequestState.PARKED, first.parked)
            await here.set_limit("team", "$1")
            await asyncio.sleep(1)
            assert (second.state, second.parked) == (RequestState.RUNNING, None)
            return (await second).cost_nusd

    assert run(main()) == 60


PATIENCE = st.one_of(st.none(), st.integers(0, 5))
TERMS = st.lists(
    st.builds(Terms, st.integers(0, 3), st.sampled_from(["wait", "raise", "fallback"]), PATIENCE),
    min_size=1,
)


@given(TERMS, st.randoms())
def test_what_terms_are_together_does_not_depend_on_who_came_first(terms, random):
    whole = together(terms)
    shuffled = random.sample(terms, len(terms))

    assert together(shuffled) == whole == together([*terms, whole])
    assert whole.priority in {each.priority for each in terms}
    assert all(whole.priority <= each.priority for each in terms)
    assert not whole.is_over(3) or all(each.is_over(3) for each in terms)


def test_without_the_rule_the_first_would_speak_for_all(monkeypatch):
    monkeypatch.setattr(Twins, "join", lambda self, id, holder: self._waiters.add(id, holder))

    with pytest.raises(AssertionError):
        check("memory", [Caller(0.0), Caller(1.0, patience_s=3.25)], None)
    with pytest.raises(AssertionError):
        check("memory", [Caller(0.0), Caller(1.0, on_exceeded="raise")], 10.0)


def test_of_those_who_wait_for_a_request_some_may_be_taken_and_the_others_wait_on():
    first, second, third = (
        Enqueued(ask(), LaneKey("bench", (), 10), Terms(10, "wait")) for _ in range(3)
    )
    waiters = Waiters()
    for each in (first, second, third):
        waiters.add(1, each)
    waiters.shared[1] = first.request, first.terms

    assert waiters.take_some(1, {second}) == [second]

    assert waiters.holders(1) == [first, third]
    assert 1 in waiters.shared
    assert waiters.take_some(1, {first, third}) == [first, third]
    assert 1 not in waiters
    assert 1 not in waiters.shared
