"""The shell from the outside, in virtual time: futures, parking, cancelling, events."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
from datetime import UTC, datetime, timedelta

import pytest

from scheduler import (
    Budget,
    BudgetExceeded,
    BudgetUnknown,
    CallFailed,
    CallInterrupted,
    ConfigError,
    CostTooHigh,
    DeadlineExceeded,
    KeyConflict,
    QueueFull,
    RequestState,
    Scheduler,
    SchedulerClosed,
    events,
)
from scheduler.errors import ProviderRefused, RateLimited, StoreError, TransportFailed
from scheduler.shortfall import ParkReason
from scheduler.stores.memory.store import MemoryStore
from scheduler.testing import START_MS, VirtualClock, run
from tests.conftest import Bench, ask

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def virtual(test):
    """Run an async test in virtual time."""

    def wrapped():
        run(test())
        gc.collect()  # a future's forgotten exception would be reported here

    wrapped.__name__ = test.__name__
    return wrapped


def open_scheduler(provider=None, budgets=(), **options):
    options.setdefault("clock", VirtualClock())
    options.setdefault("retry_wait_s", lambda attempt: 10.0 * attempt)
    return Scheduler(budgets=budgets, providers=provider or Bench(), **options)


def team(spec="$0.0000001/day"):  # 100 nano-dollars, one call's ceiling
    return Budget("team", spec)


@virtual
async def test_a_request_is_answered_and_charged_what_it_cost():
    provider = Bench()
    async with open_scheduler(provider, team()) as s:
        response = await s.run(ask(7))

        assert (response.body, response.cost_nusd, response.attempts) == ({"answer": 7}, 60, 1)
        assert s.stats().posted_nusd == provider.billed_nusd == 60
        assert (s.stats().budgets[0].caps[0].posted, s.stats().reserved_nusd) == (60, 0)
    assert provider.closed


@virtual
async def test_what_does_not_fit_is_parked_until_the_window_rolls():
    async with open_scheduler(budgets=team()) as s:
        await s.run(ask())
        future = s.submit(ask())
        await asyncio.sleep(1)
        assert future.state is RequestState.PARKED
        assert future.parked.reason is ParkReason.WINDOW_SPENT
        assert (future.parked.missing, future.parked.resumes_at_ms) == (60, START_MS + DAY_MS)

        response = await future

        assert VirtualClock().now_ms() == START_MS + DAY_MS
        assert (response.parked_ms, response.waited_ms) == (DAY_MS, DAY_MS)


@virtual
async def test_a_burst_of_200_on_a_budget_for_two_never_overspends():
    provider = Bench(cost_nusd=100)
    async with open_scheduler(provider, team("$0.0000002/day")) as s:
        futures = [s.submit(ask(i)) for i in range(200)]
        await asyncio.sleep(60)

        assert (len(provider.sent), s.stats().parked) == (2, {"window_spent": 198})
        await asyncio.gather(*futures[:6])
        assert VirtualClock().now_ms() == START_MS + 2 * DAY_MS


@virtual
async def test_raising_the_limit_lets_the_parked_go_on_at_once():
    async with open_scheduler(budgets=team()) as s:
        await s.run(ask())
        future = s.submit(ask())
        await asyncio.sleep(1)

        await s.set_limit("team", "$0.000001")
        await future

        assert VirtualClock().now_ms() == START_MS + 1000


@virtual
async def test_switching_the_limit_off_lets_everything_go_on():
    async with open_scheduler(budgets=team("$0")) as s:
        future = s.submit(ask())
        await asyncio.sleep(1)
        assert future.parked.reason is ParkReason.LARGER_THAN_LIMIT

        await s.set_limit("team", None)

        assert (await future).cost_nusd == 60


@virtual
async def test_a_paused_budget_goes_on_when_resumed():
    async with open_scheduler(budgets=team()) as s:
        await s.pause("team")
        future = s.submit(ask())
        await asyncio.sleep(3600)
        assert future.parked.reason is ParkReason.PAUSED

        await s.resume("team")
        await future


@virtual
async def test_priorities_run_in_order():
    provider = Bench()
    async with open_scheduler(provider, concurrency=1) as s:
        words = ["idle", "batch", "normal", "interactive", 5]
        await asyncio.gather(*[s.submit(ask(word, priority=word)) for word in words])

    order = [request.body["n"] for request in provider.sent]
    assert order == ["interactive", 5, "normal", "batch", "idle"]


@virtual
async def test_no_more_calls_run_at_once_than_allowed():
    provider = Bench()
    async with open_scheduler(provider, concurrency=7) as s:
        await asyncio.gather(*[s.submit(ask(seconds=1)) for _ in range(50)])

    assert provider.most_running == 7


@virtual
async def test_raise_mode_raises_at_once_with_the_numbers():
    async with open_scheduler(budgets=team(), on_exceeded="raise") as s:
        await s.run(ask())
        with pytest.raises(BudgetExceeded) as caught:
            await s.run(ask())

    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.budget, error.limit, error.posted, error.reserved) == ("team", 100, 60, 0)
    assert (error.needed, error.resets_at_ms) == (100, START_MS + DAY_MS)
    assert str(error) == (
        "Cost tracking budget exceeded: current usage 60% of limit 0.0000001 USD (budget 'team': "
        "spent 0.00000006, reserved 0.00; this request needs up to 0.0000001; "
        "resets 2026-01-02 00:00 UTC)"
    )


@virtual
async def test_one_request_may_raise_while_others_wait():
    async with open_scheduler(budgets=team()) as s:
        await s.run(ask())
        waiting = s.submit(ask())
        with pytest.raises(BudgetExceeded):
            await s.run(ask(), on_exceeded="raise")
        assert not waiting.done()


@virtual
async def test_several_budgets_must_all_fit():
    budgets = [Budget("wide", "$1"), Budget("narrow", "$0.0000001/hour")]
    async with open_scheduler(budgets=budgets) as s:
        both = ["wide", "narrow"]
        await asyncio.gather(s.submit(ask(budget=both)), s.submit(ask(budget=both)))

        assert VirtualClock().now_ms() == START_MS + HOUR_MS
        assert [b.caps[0].posted for b in s.stats().budgets] == [120, 60]


@virtual
async def test_budgets_are_chosen_by_model_tags_and_parents():
    budgets = [
        Budget("org", "$1"),
        Budget("gpt", "$1", models=["m*"], parent="org"),
        Budget("ann", "$1", tags={"user": "ann"}),
        Budget("other", "$1", models=["x"]),
    ]
    async with open_scheduler(budgets=budgets) as s:
        await s.run(ask(budget=(), tags={"user": "ann"}))

        posted = {b.budget.name: b.caps[0].posted for b in s.stats().budgets}
        assert posted == {"org": 60, "gpt": 60, "ann": 60, "other": 0}


@virtual
async def test_a_request_that_has_to_name_its_budget_is_told_so():
    async with open_scheduler(budgets=[Budget("a", "$1"), Budget("b", "$1")]) as s:
        with pytest.raises(BudgetUnknown, match="names no budget and there are several"):
            s.submit(ask())
        with pytest.raises(BudgetUnknown, match="no budget is named 'c'"):
            s.submit(ask(budget="c"))
        await s.run(ask(budget=()))


@virtual
async def test_a_deadline_that_passes_unsent_costs_nothing():
    provider = Bench()
    async with open_scheduler(provider, team("$0")) as s:
        by_wait = s.submit(ask(max_wait="90s"))
        by_span = s.submit(ask(deadline=timedelta(hours=1)))
        at = datetime.fromtimestamp(START_MS / 1000, UTC) + timedelta(hours=2)
        by_instant = s.submit(ask(deadline=at))
        for future, waited_ms in [(by_wait, 90_000), (by_span, HOUR_MS), (by_instant, 2 * HOUR_MS)]:
            with pytest.raises(DeadlineExceeded) as caught:
                await future
            assert caught.value.waited_ms == waited_ms
            assert future.state is RequestState.EXPIRED
        assert (provider.sent, s.stats().expired) == ([], 3)


@virtual
async def test_refusals_at_submission_queue_nothing():
    async with open_scheduler(max_queue=1, budgets=team("$0")) as s:
        with pytest.raises(CostTooHigh, match=r"may cost up to \$0.0000001"):
            s.submit(ask(max_cost="$0.00000005"))
        with pytest.raises(ConfigError, match="provider"):
            s.submit(ask(provider="nobody"))
        with pytest.raises(ConfigError, match="time zone"):
            s.submit(ask(deadline=datetime(2030, 1, 1)))  # noqa: DTZ001 - what is tested
        with pytest.raises(ConfigError, match="priority"):
            s.submit(ask(priority="soon"))
        s.submit(ask())
        with pytest.raises(QueueFull):
            s.submit(ask())
        assert s.stats().queued + sum(s.stats().parked.values()) == 1


@virtual
async def test_cancelling_what_waits_removes_it_and_frees_nothing_but_itself():
    provider = Bench()
    async with open_scheduler(provider, team()) as s:
        await s.run(ask(1))
        first, second = s.submit(ask(2)), s.submit(ask(3))
        await asyncio.sleep(1)
        first.cancel()
        await second

        assert [request.body["n"] for request in provider.sent] == [1, 3]
        assert (s.stats().cancelled, s.stats().posted_nusd) == (1, 120)


@virtual
async def test_cancelling_before_the_first_transaction_sends_nothing():
    provider = Bench()
    async with open_scheduler(provider, team()) as s:
        s.submit(ask()).cancel()
        await s.join()
        assert (provider.sent, s.stats().cancelled, s.stats().running) == ([], 1, 0)


@virtual
async def test_a_key_that_is_cancelled_and_submitted_anew_is_answered():
    provider = Bench()
    async with open_scheduler(provider, team("$1")) as s:
        first = s.submit(ask(key="a", seconds=5))
        await asyncio.sleep(1)
        first.cancel()
        second = s.submit(ask(key="a", seconds=5))
        await asyncio.sleep(0)
        third = s.submit(ask(key="a", seconds=5))

        with contextlib.suppress(asyncio.CancelledError):
            await second
        assert (await third).cost_nusd >= 60


@virtual
async def test_a_provider_that_gives_up_by_itself_is_an_unknown_outcome():
    provider = Bench()

    async def before(request):
        raise asyncio.CancelledError

    provider.before = before
    async with open_scheduler(provider, team()) as s:
        with pytest.raises(CallFailed, match="gave the call up by itself"):
            await s.run(ask())
        assert s.stats().suspense_nusd == 100


@virtual
async def test_requests_with_one_key_keep_their_own_index():
    async with open_scheduler() as s:
        requests = [ask(0, key="a"), ask(0, key="a"), ask(2)]
        assert [r.index async for r in s.map(requests, ordered=True)] == [0, 1, 2]


@virtual
async def test_absurd_answers_are_charged_their_ceiling_and_harm_nobody():
    async with open_scheduler(budgets=team("$1")) as s:
        for cost in (10**30, -5, 0.5):
            response = await s.run(ask(cost=cost))
            assert (response.cost_nusd, response.is_estimated) == (100, True)
        assert s.stats().budgets[0].caps[0].posted == 300


@virtual
async def test_an_absurd_ceiling_is_refused_and_harms_nobody():
    async with open_scheduler() as s:
        with pytest.raises(CostTooHigh):
            s.submit(ask(ceiling=10**30))
        await s.run(ask())


@virtual
async def test_waiting_for_the_end_ends_when_the_scheduler_is_closed():
    async with open_scheduler(budgets=team("$0")) as s:
        s.submit(ask())
        joining = asyncio.create_task(s.join())
        await asyncio.sleep(1)
    with pytest.raises(SchedulerClosed):
        await joining


@virtual
async def test_closing_goes_on_when_who_waits_for_it_is_cancelled():
    provider = Bench()
    async with open_scheduler(provider) as s:
        running = s.submit(ask(seconds=30))
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await s.aclose(drain=True)
    assert (await running).cost_nusd == 60
    assert provider.closed


@virtual
async def test_who_stops_admitting_is_no_longer_first_in_line():
    async with open_scheduler(budgets=team("$0.0000002")) as s:
        s.submit(ask(seconds=900))
        s.submit(ask(ceiling=150))
        await asyncio.sleep(1)
        assert s.store._budgets._get("team").accounts[0].waiter is not None
        s.stop_admitting()
        s.submit(ask(ceiling=1))
        await asyncio.sleep(1)
        assert s.store._budgets._get("team").accounts[0].waiter is None


@virtual
async def test_cancelling_what_runs_keeps_its_reservation():
    async with open_scheduler(budgets=team()) as s:
        task = asyncio.create_task(s.run(ask(seconds=5)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await s.join()

        cap = s.stats().budgets[0].caps[0]
        assert (cap.posted, cap.reserved, cap.suspense) == (0, 100, 100)
        assert s.stats().suspense_nusd == 100


@virtual
async def test_cancelling_what_was_admitted_but_not_sent_yet_costs_nothing():
    provider = Bench()
    async with open_scheduler(provider, team()) as s:
        s.on(events.Admitted, lambda event: future.cancel())
        future = s.submit(ask())
        await asyncio.sleep(1)

        cap = s.stats().budgets[0].caps[0]
        assert (provider.sent, cap.posted, cap.reserved) == ([], 0, 0)
        assert (s.stats().cancelled, s.stats().running) == (1, 0)


@virtual
async def test_closing_in_the_moment_of_admission_gives_everything_back():
    provider = Bench()
    async with open_scheduler(provider, team()) as s:
        s.on(events.Admitted, lambda event: s.cancel_running())
        future = s.submit(ask())
        await asyncio.sleep(1)
        assert (provider.sent, s.stats().queued, s.stats().reserved_nusd) == ([], 1, 0)
    assert isinstance(future.exception(), SchedulerClosed)


@virtual
async def test_a_timeout_around_a_parked_request_cancels_it():
    async with open_scheduler(budgets=team("$0")) as s:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await s.run(ask())
        await s.join()
        assert s.stats().cancelled == 1


@virtual
async def test_an_unsent_failure_is_free_and_tried_again():
    provider = Bench()
    fail = TransportFailed("refused", is_billed=False)
    async with open_scheduler(provider, team("$0.000001"), max_attempts=3) as s:
        with pytest.raises(TransportFailed) as caught:
            await s.run(ask(fail=fail))

        # For two minutes that uses up no attempt; then it does, since it never answered at all. Those
        # that only find out that it is still down count as none.
        assert (caught.value.attempts, caught.value.cost_nusd) == (7, 0)
        assert "7 attempts, nothing charged" in str(caught.value)
        assert VirtualClock().now_ms() == START_MS + 241_000
        cap = s.stats().budgets[0].caps[0]
        assert (cap.posted, cap.reserved) == (0, 0)


@virtual
async def test_every_attempt_with_an_unknown_outcome_keeps_counting():
    provider = Bench()
    async with open_scheduler(provider, team("$0.000001"), max_attempts=2) as s:
        with pytest.raises(TransportFailed) as caught:
            await s.run(ask(fail=TransportFailed("reset")))

        assert (caught.value.attempts, caught.value.cost_nusd) == (2, 200)
        assert s.stats().budgets[0].caps[0].reserved == 200 >= provider.billed_nusd


@virtual
async def test_an_unexpected_exception_counts_as_unknown_and_reaches_the_caller():
    async with open_scheduler(budgets=team()) as s:
        with pytest.raises(CallFailed, match="ValueError: boom") as caught:
            await s.run(ask(fail=ValueError("boom")))

        assert isinstance(caught.value.__cause__, ValueError)
        assert s.stats().suspense_nusd == 100


@virtual
async def test_a_wrong_request_fails_once_and_costs_nothing():
    provider = Bench()
    async with open_scheduler(provider, team()) as s:
        with pytest.raises(ProviderRefused, match=r"HTTP 400 bad_request: no .1 attempt, nothing"):
            await s.run(ask(fail=ProviderRefused(400, "no")))
        assert (len(provider.sent), s.stats().budgets[0].caps[0].reserved) == (1, 0)


@virtual
async def test_a_busy_provider_is_left_alone_and_uses_up_no_attempt():
    provider = Bench()
    refusals = [RateLimited(429, "slow down", retry_after_ms=60_000) for _ in range(5)]

    async def before(request):
        if refusals:
            raise refusals.pop()

    provider.before = before
    async with open_scheduler(provider, team("$1"), max_attempts=1, concurrency=1) as s:
        response = await s.run(ask())

    assert (response.attempts, len(provider.sent)) == (1, 6)
    assert 300_000 <= response.waited_ms < 300_200


@virtual
async def test_a_cost_above_the_ceiling_is_posted_and_counted():
    async with open_scheduler(budgets=team()) as s:
        response = await s.run(ask(cost=130))

        assert response.cost_nusd == 130
        assert s.stats().overruns == 1
        assert s.stats().budgets[0].caps[0].available == -30


@virtual
async def test_an_answer_without_usage_is_charged_its_ceiling():
    provider = Bench()
    provider.tariff.cost_nusd = lambda request, answer: None
    async with open_scheduler(provider, team()) as s:
        response = await s.run(ask())

    assert (response.cost_nusd, response.is_estimated) == (100, True)


@virtual
async def test_one_key_is_sent_once_however_often_it_is_submitted():
    provider = Bench()
    async with open_scheduler(provider) as s:
        first = await asyncio.gather(*[s.submit(ask(key="a", seconds=1)) for _ in range(5)])
        again = await s.run(ask(key="a", seconds=1))
        with pytest.raises(KeyConflict, match="key 'a' was used before"):
            await s.run(ask(key="a", seconds=2))

    assert len(provider.sent) == 1
    assert {response.cost_nusd for response in (*first, again)} == {60}


@virtual
async def test_cancelling_one_of_two_waiters_for_a_key_does_not_take_it_from_the_other():
    provider = Bench()
    async with open_scheduler(provider) as s:
        one, two = s.submit(ask(key="a", seconds=5)), s.submit(ask(key="a", seconds=5))
        await asyncio.sleep(1)
        one.cancel()
        assert (await two).cost_nusd == 60


@virtual
async def test_map_gives_every_response_its_index_and_key():
    requests = [ask(i, key=f"k{i}", seconds=10 - i) for i in range(10)]
    async with open_scheduler() as s:
        done = [(r.index, r.key, r.body["answer"]) async for r in s.map(iter(requests))]
        ordered = [r.index async for r in s.map(requests, ordered=True)]

    assert done == [(i, f"k{i}", i) for i in reversed(range(10))]
    assert ordered == list(range(10))


@virtual
async def test_map_takes_in_only_a_few_ahead():
    taken = []

    def requests():
        for i in range(1000):
            taken.append(i)
            yield ask(i, seconds=1)

    async with open_scheduler(concurrency=2) as s:
        async for response in s.map(requests(), window=5):
            assert len(taken) <= response.index + 5 + 2
            if response.index == 20:
                break
        await asyncio.sleep(0)


@virtual
async def test_map_raises_the_first_error_or_gives_it_back():
    bad = ProviderRefused(400, "no")
    requests = [ask(0), ask(1, fail=bad), ask(2)]
    async with open_scheduler() as s:
        with pytest.raises(ProviderRefused):
            async for _ in s.map(requests, ordered=True):
                pass
        results = [r async for r in s.map(requests, ordered=True, return_exceptions=True)]

    assert [r.index for r in results] == [0, 1, 2]
    assert isinstance(results[1], ProviderRefused)


@virtual
async def test_enqueued_requests_run_without_anybody_waiting():
    seen = []
    async with open_scheduler() as s:
        s.on(events.Settled, seen.append)
        submitted = await s.enqueue([ask(i, key=f"k{i}", job="j") for i in range(5)])
        await s.join()

        assert [each.is_known for each in submitted] == [False] * 5
        assert sorted(event.key for event in seen) == [f"k{i}" for i in range(5)]
        assert {event.state for event in seen} == {RequestState.SUCCEEDED}
        assert len([f async for f in s.store.finished("j")]) == 5


def tell(event):
    name = type(event).__name__
    if name == "BudgetBurning":
        return f"{name} {event.level}"
    return f"{name} {event.percent}" if name == "ThresholdCrossed" else name


@virtual
async def test_events_tell_the_story_once():
    story = []
    async with open_scheduler(budgets=team("$0.0000002/day"), concurrency=1) as s:
        s.on(events.Event, lambda event: story.append(tell(event)))
        await asyncio.gather(*[s.submit(ask(cost=100)) for _ in range(3)])

    assert story == [
        "Admitted", "Settled", "ThresholdCrossed 50", "Admitted", "Settled",
        "ThresholdCrossed 80", "ThresholdCrossed 95", "ThresholdCrossed 100", "Parked",
        "Unparked", "Admitted", "Settled", "ThresholdCrossed 50", "BudgetBurning page",
        "BudgetBurning warn", "BudgetBurning projected",
    ]  # fmt: skip


@virtual
async def test_a_callback_that_raises_harms_nobody():
    async with open_scheduler() as s:
        stop = s.on(events.Settled, lambda event: 1 / 0)
        await s.run(ask())
        stop()
        await s.run(ask())


@virtual
async def test_closing_ends_what_waits_and_what_runs():
    async with open_scheduler(budgets=team()) as s:
        running, waiting = s.submit(ask(seconds=60)), s.submit(ask())
        await asyncio.sleep(1)
    with pytest.raises(SchedulerClosed):
        await waiting
    with pytest.raises(CallInterrupted, match="may be billed") as caught:
        await running
    assert (caught.value.attempts, caught.value.cost_nusd) == (1, 100)
    with pytest.raises(SchedulerClosed):
        s.submit(ask())


class Failing(MemoryStore):
    """A store whose transactions fail from the second one on."""

    turns = 0

    async def turn(self, turn):
        self.turns += 1
        if self.turns > 1:
            raise StoreError("disk full")
        return await super().turn(turn)


@virtual
async def test_nothing_is_sent_without_a_committed_reservation_and_everybody_is_told():
    provider = Bench()
    async with open_scheduler(provider, store=Failing()) as s:
        first = s.submit(ask(seconds=1))
        await asyncio.sleep(0.5)
        second = s.submit(ask())

        for future in (first, second):
            with pytest.raises(StoreError, match="disk full"):
                await future
        with pytest.raises(StoreError, match="the store failed earlier: disk full"):
            s.submit(ask())
        with pytest.raises(StoreError, match="disk full"):
            await s.enqueue([ask()])
        with pytest.raises(StoreError):
            await s.join()
    assert len(provider.sent) == 1


@virtual
async def test_draining_lets_what_runs_finish():
    async with open_scheduler(budgets=team()) as s:
        running, waiting = s.submit(ask(seconds=60)), s.submit(ask())
        await asyncio.sleep(1)
        await s.aclose(drain=True)
        assert (await running).cost_nusd == 60
        with pytest.raises(SchedulerClosed):
            await waiting


@virtual
async def test_two_schedulers_share_no_budget_by_accident():
    async with open_scheduler(budgets=team()) as one, open_scheduler(budgets=team()) as two:
        await asyncio.gather(one.run(ask()), two.run(ask()))
        assert VirtualClock().now_ms() == START_MS
        assert one.stats().posted_nusd == two.stats().posted_nusd == 60


@virtual
async def test_the_repr_is_a_status_line():
    async with open_scheduler(budgets=team(), concurrency=1) as s:
        future = s.submit(ask(seconds=1))
        s.submit(ask())
        await asyncio.sleep(0.5)
        assert repr(s) == (
            "<Scheduler 1 running | 1 queued, 0 parked | 0 done, 0 failed | "
            "$0.00 spent, $0.0000001 reserved>"
        )
        await future


@virtual
async def test_waiting_takes_no_turns():
    async with open_scheduler(budgets=team()) as s:
        await s.run(ask())
        s.submit(ask())
        await asyncio.sleep(1)
        turns, turn = [], s.store.turn
        s.store.turn = lambda work: turns.append(work) or turn(work)

        await asyncio.sleep(20 * 3600)

        assert turns == []
