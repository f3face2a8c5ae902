"""Who is stopped by a budget hears of it: on the logger, and with what ends the wait."""

from __future__ import annotations

import asyncio
import logging

import pytest

from scheduler import Budget, DeadlineExceeded, Scheduler
from scheduler.cli.run import not_told_twice
from scheduler.errors import ProviderOverloaded, ProviderRefused, TransportFailed
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench, ask


def opened(spec="$0.0000001", provider=None, **options):
    budgets = options.pop("budgets", Budget("team", spec))
    return Scheduler(
        budgets=budgets, providers=provider or Bench(), clock=VirtualClock(), **options
    )


@pytest.fixture
def told(caplog):
    """What was logged, as (level, text)."""
    caplog.set_level(logging.INFO, "scheduler")

    def lines():
        return [(each.levelname, each.getMessage()) for each in caplog.records]

    return lines


def notes_of(error: BaseException | None) -> str:
    """The notes of an exception and of those that it came from."""
    found = []
    while error is not None:
        found += getattr(error, "__notes__", [])
        error = error.__cause__ or error.__context__
    return "\n".join(found)


async def parked(s: Scheduler, **options) -> asyncio.Future:
    future = s.submit(ask(**options))
    await asyncio.sleep(1)
    assert future.parked is not None
    return future


def test_what_can_never_start_is_a_warning_with_what_to_do(told):
    async def main():
        async with opened() as s:
            await parked(s, ceiling=150)
            await parked(s, ceiling=150)

    run(main())
    ((level, text),) = told()
    assert level == "WARNING"
    for words in ("'team'", "$0.00000015", "$0.00000005 missing", "(total)", "no reset will help",
                  "max_tokens in the body", "cap_output=", "--cap-output", "s.set_limit('team'",
                  "scheduler budget set team", "(1 waiting)"):  # fmt: skip
        assert words in text


def test_what_ends_by_itself_is_information(told):
    async def main():
        async with opened("$0.0000001/day") as s:
            await s.run(ask())
            await parked(s)

    run(main())
    ((level, text),) = told()
    assert level == "INFO"
    assert "is spent for now" in text
    assert "resumes 2026-01-02 00:00:00 UTC (in 1d)" in text
    assert "$0.00000006 missing" in text


def test_a_total_that_is_spent_ends_by_nobody_and_is_a_warning(told):
    async def main():
        async with opened() as s:
            await s.run(ask())
            await parked(s)

    run(main())
    ((level, text),) = told()
    assert (level, "never by itself" in text) == ("WARNING", True)


def test_a_pause_is_a_warning(told):
    async def main():
        async with opened("$1") as s:
            await s.pause("team")
            await parked(s)

    run(main())
    ((level, text),) = told()
    assert (level, "scheduler budget resume team" in text) == ("WARNING", True)


@pytest.mark.parametrize("credit", [False, True])
def test_a_provider_that_is_down_or_has_no_credit_is_a_warning_told_once(told, credit):
    def refusal():
        if not credit:
            return TransportFailed("connection refused", is_billed=False)
        error = ProviderRefused(402, "top up")
        error.credit = "top up"
        return error

    provider = Bench()

    async def before(request):
        if VirtualClock().now_ms() < VirtualClock().start_ms + 3_000_000:
            raise refusal()

    provider.before = before

    async def main():
        async with opened("$1", provider) as s:
            s._pump._tries.heard_from("bench")
            await asyncio.gather(*(s.submit(ask(n)) for n in range(6)))

    run(main())
    ((level, text),) = told()
    assert level == "WARNING"
    assert ("top it up" if credit else "connection refused") in text
    assert "one request tries again" in text


def test_calls_that_hold_the_money_for_a_moment_are_told_once_a_minute(told):
    async def main():
        async with opened("$0.00001", Bench(cost_nusd=10)) as s:
            await asyncio.gather(*(s.submit(ask(n, ceiling=9_000, seconds=1)) for n in range(100)))

    run(main())
    assert {level for level, _ in told()} == {"INFO"}
    assert 1 <= len(told()) <= 2
    assert "held by running calls" in told()[0][1]


def test_it_is_told_again_after_it_was_unparked(told):
    async def main():
        async with opened() as s:
            first = await parked(s, ceiling=150)
            await s.set_limit("team", "$0.00001")
            await first
            await s.set_limit("team", "$0.0000001")
            await parked(s, ceiling=150)

    run(main())
    assert [level for level, _ in told()] == ["WARNING", "WARNING"]


def test_requests_that_come_and_go_are_not_told_one_by_one(told):
    async def main():
        async with opened() as s:
            for _ in range(20):
                with pytest.raises(DeadlineExceeded):
                    await s.run(ask(ceiling=150, max_wait=3))

    run(main())
    assert len(told()) == 1


def test_nothing_else_is_told(told):
    async def main():
        async with opened("$1") as s:
            await asyncio.gather(*(s.submit(ask(n)) for n in range(50)))
            with pytest.raises(ProviderRefused):
                await s.run(ask(fail=ProviderRefused(400, "no")))

    run(main())
    assert told() == []


# With the exception that ends the wait


async def by_wait_for(s):
    await asyncio.wait_for(s.run(ask(ceiling=150)), 60)


async def by_wait_for_a_future(s):
    await asyncio.wait_for(s.submit(ask(ceiling=150)), 60)


async def by_timeout(s):
    async with asyncio.timeout(5):
        await s.run(ask(ceiling=150))


async def by_cancelling_the_task(s):
    task = asyncio.create_task(s.run(ask(ceiling=150)))
    await asyncio.sleep(5)
    task.cancel()
    await task


async def by_cancelling_the_future(s):
    future = s.submit(ask(ceiling=150))
    await asyncio.sleep(5)
    future.cancel()
    await future


async def by_timeout_of_a_stream(s):
    async with asyncio.timeout(5), s.stream(ask(ceiling=150)) as stream:
        async for _ in stream:
            pass


async def by_timeout_of_a_function(s):
    async def work():
        pass

    async with asyncio.timeout(5):
        await s.budgeted(quote="$0.00000015")(work)()


async def by_timeout_of_a_map(s):
    async with asyncio.timeout(5):
        async for _ in s.map([ask(ceiling=150)], ordered=True):
            pass


@pytest.mark.parametrize("end", [
    by_wait_for, by_wait_for_a_future, by_timeout, by_cancelling_the_task, by_cancelling_the_future,
    by_timeout_of_a_stream, by_timeout_of_a_function, by_timeout_of_a_map,
])  # fmt: skip
def test_whoever_gives_up_a_parked_request_hears_why_it_waited(end):
    async def main():
        async with opened() as s:
            with pytest.raises((asyncio.CancelledError, TimeoutError)) as caught:
                await end(s)
            assert "the whole limit of budget 'team'" in notes_of(caught.value)
            assert "--cap-output" in notes_of(caught.value)
            assert notes_of(caught.value).count("--cap-output") == 1

    run(main())


def test_who_gives_up_a_request_that_runs_hears_nothing_of_budgets():
    async def main():
        async with opened("$1") as s:
            with pytest.raises(TimeoutError) as caught:
                await asyncio.wait_for(s.run(ask(seconds=60)), 60)
            assert notes_of(caught.value) == ""

    run(main())


# With the deadline that ends it


def why(budget="$1", provider=None, **options):
    """The reason of the `DeadlineExceeded` that ends a request, and when it came."""

    async def main():
        async with opened(budget, provider) as s:
            with pytest.raises(DeadlineExceeded) as caught:
                await s.run(ask(max_wait="10m", **options))
            assert "nothing was charged" in str(caught.value)
            return caught.value.reason, caught.value.waited_ms

    return run(main())


def test_a_deadline_tells_which_budget_lacked_what():
    reason, waited_ms = why("$0.0000001", ceiling=150)

    assert reason == "parked: larger_than_limit: budget 'team' lacked $0.00000005"
    assert waited_ms == 600_000


@pytest.mark.parametrize("others", [0, 20])
def test_a_deadline_bounds_the_wait_for_a_provider_that_is_down(others):
    provider = Bench()

    async def before(request):
        raise TransportFailed("connection refused", is_billed=False)

    provider.before = before

    async def main():
        async with opened("$1", provider) as s:
            s._pump._tries.heard_from("bench")
            futures = [s.submit(ask(n, max_wait="10m")) for n in range(others + 1)]
            await asyncio.wait(futures)
            assert VirtualClock().now_ms() == VirtualClock().start_ms + 600_000
            for future in futures:
                error = future.exception()
                assert isinstance(error, DeadlineExceeded)
                assert "connection refused" in error.reason

    run(main())


def test_a_deadline_bounds_the_wait_between_attempts_and_tells_what_they_cost():
    async def main():
        async with opened("$1", max_attempts=9, retry_wait_s=lambda n: 100.0) as s:
            with pytest.raises(DeadlineExceeded, match="counted as spent") as caught:
                await s.run(ask(max_wait=30, fail=ProviderOverloaded(500, "oops")))
            assert VirtualClock().now_ms() == VirtualClock().start_ms + 30_000
            assert caught.value.cost_nusd == 100
            assert caught.value.reason.startswith("between attempts; the last: HTTP 500")

    run(main())


def test_a_run_of_the_command_tells_it_itself_and_leaves_the_logger_as_it_was(told):
    async def main():
        async with opened() as s:
            await parked(s, ceiling=150)

    with not_told_twice():
        run(main())
    assert told() == []
    run(main())
    assert [level for level, _ in told()] == ["WARNING"]


def test_whose_time_is_over_before_the_reset_hears_of_both_instants(told):
    """It is not failed early: somebody may raise the limit."""

    async def main():
        async with opened("$0.0000001/day") as s:
            await s.run(ask(ceiling=100, cost=100))
            late, early = await parked(s, deadline="1h"), await parked(s, deadline="2d")
            lack, midnight = late.parked, early.parked.resumes_at_ms
            assert (lack.too_late_at_ms, early.parked.too_late_at_ms) == (late.expires_at_ms, None)
            assert lack.resumes_at_ms == midnight > lack.too_late_at_ms
            assert "resumes 2026-01-02 00:00:00 UTC" in late.notice
            assert "Its own time is over before that, 2026-01-01 01:00:0" in late.notice
            assert "own time" not in early.notice
            assert not late.done()
            await s.set_limit("team", "$0.000001")
            await late

    run(main())
    assert not [text for _, text in told() if "own time" in text]  # the lane's notice is of all


def test_whose_time_is_over_although_only_a_raise_helps_hears_of_it():
    async def main():
        async with opened("$0.0000001") as s:
            future = await parked(s, ceiling=150, max_wait="1h")
            assert future.parked.too_late_at_ms == future.expires_at_ms
            assert "Its own time is over 2026-01-01 01:00:00 UTC" in future.notice

    run(main())
