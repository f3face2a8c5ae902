"""A share of a budget that is kept for more urgent requests, and released by the reset."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import Budget, BudgetExceeded, ConfigError, Scheduler
from scheduler.admission.plan import plan
from scheduler.keep import STEPS, Keep
from scheduler.ledger.account import ReservationState
from scheduler.pace import HOUR_MS
from scheduler.shortfall import ParkReason
from scheduler.stores.process import Process
from scheduler.testing import START_MS, VirtualClock, run
from tests.conftest import Bench, ask
from tests.simulation.stores import InlineSqlite
from tests.test_admission import account, admitted, lane

DAY_MS = 24 * HOUR_MS
MINUTE_MS = 60_000
INTERACTIVE, NORMAL, BATCH, IDLE = 0, 10, 20, 30
_POSTED = (ReservationState.PENDING, ReservationState.POSTED)
SPEC = "$0.000006/day keep 20% for interactive"  # of 6,000 are 1,200 kept in the beginning


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("$100/day keep 20% for interactive", "$100/day keep 20% for interactive"),
        ("$100/day KEEP 20 % FOR Interactive", "$100/day keep 20% for interactive"),
        ("$5/24h keep 2.5% for 7", "$5/24h keep 2.5% for 7"),
        ("$5 keep 10% for normal", "$5 keep 10% for normal"),
        (
            "$9/day @Europe/Athens paced 9-17 keep 10% for normal and 20% for interactive",
            "$9/day @Europe/Athens paced 09:00-17:00 keep 20% for interactive and 10% for normal",
        ),
        ("$5/hour, $50/day keep 5% for normal", "$5/hour, $50/day keep 5% for normal"),
    ],
)
def test_what_is_kept_reads_back_as_it_is_written(text, spec):
    assert Budget("b", text).spec == spec
    assert Budget("b", spec) == Budget("b", text)
    assert Budget("b", f"{text} risk low").risk == "low"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("$1/day keep 20%", "does not say how much for whom"),
        ("$1/day keep 20% for somebody", "'somebody' is not one of interactive"),
        ("$1/day keep 0% for normal", "is no share"),
        ("$1/day keep 100% for normal", "is no share"),
        ("$1/day keep 60% for normal and 50% for interactive", "leaves nothing"),
    ],
)
def test_what_makes_no_sense_is_a_clear_error(text, problem):
    with pytest.raises(ConfigError, match=problem):
        Budget("b", text)


def test_it_may_be_given_beside_the_limit_and_stays_with_another_amount():
    budget = Budget("b", "$5/day, $9/24h keep 1% for normal", keep={"interactive": 0.2})

    assert budget.spec == "$5/day keep 20% for interactive, $9/24h keep 1% for normal"
    assert (
        Budget("b", "$5/day keep 20% for normal").with_limit("$8").spec
        == "$8/day keep 20% for normal"
    )


def test_each_priority_is_kept_from_what_is_for_more_urgent_ones():
    keep = Keep.of({"interactive": 0.2, "normal": 0.1})

    assert [keep.amount(6_000, each, 0) for each in (INTERACTIVE, NORMAL, BATCH)] == [
        0,
        1_200,
        1_800,
    ]
    assert keep.amount(6_000, BATCH, STEPS - 1) == 0


def kept(at_h, spec=SPEC, **sums):
    made = account(spec=spec, **sums)
    made.look(int(at_h * HOUR_MS))
    return made


@pytest.mark.parametrize(
    ("at_h", "posted", "reserved", "need", "priority", "reason"),
    [
        (0, 4_700, 0, 100, BATCH, None),
        (0, 4_800, 0, 100, BATCH, ParkReason.KEPT),
        (0, 4_800, 0, 100, INTERACTIVE, None),
        (0, 4_700, 100, 100, BATCH, ParkReason.HELD_IN_FLIGHT),
        (12, 5_300, 0, 100, BATCH, None),  # half of it has been released
        (12, 5_400, 0, 100, BATCH, ParkReason.KEPT),
        (23.9, 5_900, 0, 100, BATCH, None),
        (0, 6_000, 0, 100, BATCH, ParkReason.WINDOW_SPENT),
        (0, 0, 0, 6_001, BATCH, ParkReason.LARGER_THAN_LIMIT),
    ],
)
def test_who_goes_and_why_others_wait(at_h, posted, reserved, need, priority, reason):
    made, now_ms = kept(at_h, posted=posted, reserved=reserved), int(at_h * HOUR_MS)

    lack = plan([lane([made], [need], priority=priority)], {"p": 9}, now_ms).verdicts[0].shortfall

    assert (None if lack is None else lack.reason) is reason
    if reason is ParkReason.KEPT:
        assert lack.words == "interactive"
        assert now_ms < lack.resumes_at_ms < DAY_MS


def test_of_a_total_it_is_never_released_and_of_a_rolling_window_neither():
    total, rolling = (
        kept(9, "$0.000006 keep 20% for normal"),
        kept(9, "$0.000006/5h keep 20% for normal"),
    )

    assert total.keeps(BATCH) == rolling.keeps(BATCH) == 1_200
    assert total.frees_at_ms(9 * HOUR_MS, 1, BATCH) is None


windows = st.sampled_from(["day", "day paced", "day paced 09:00-17:00", "hour", "5h", "total"])


@settings(max_examples=150)
@given(
    windows, st.integers(0, 23 * 60), st.integers(0, 6_000), st.integers(0, 2_000),
    st.integers(1, 3_000), st.sampled_from([NORMAL, BATCH]),
)  # fmt: skip
def test_it_is_looked_at_again_no_later_than_it_fits(
    window, minute, posted, reserved, need, priority
):
    """Whatever calls under way turn out to cost: no wake-up is lost."""
    spec = f"$0.000006/{window} keep 20% for interactive and 10% for normal"
    now_ms = minute * MINUTE_MS

    def made(at_ms, cost):
        found = account(spec=spec)
        found.look(now_ms)
        found.reserve(posted + cost)
        found.look(at_ms)
        return found

    here = made(now_ms, reserved)
    here.settle(now_ms, *_POSTED, posted, posted)
    if need + here.keeps(priority) <= here.available:
        return
    look_ms = here.may_free_at_ms(now_ms, need, priority)
    end_ms = here.cap.window.resets_at_ms(now_ms) or now_ms + 24 * HOUR_MS
    for at_ms in range(now_ms + MINUTE_MS, end_ms, 7 * MINUTE_MS):
        free = made(at_ms, 0)  # all calls under way were free
        fits = need + free.keeps(priority) <= free.available
        if fits and need + here.keeps(priority) > here.available + reserved:
            assert look_ms is not None
            assert look_ms <= at_ms
            break
    held = here.frees_at_ms(now_ms, need + here.keeps(priority) - here.available, priority)
    if held is not None and held < end_ms and here.cap.window.period:
        then = made(held, reserved)
        assert need + then.keeps(priority) <= then.available
        before = made(held - 1, reserved)
        assert need + before.keeps(priority) > before.available


@settings(max_examples=150)
@given(
    windows, st.integers(0, 23), st.integers(0, 6_000), st.integers(0, 1_000),
    st.lists(st.integers(1, 900), max_size=5), st.lists(st.integers(1, 900), max_size=5),
    st.integers(1, 9),
)  # fmt: skip
def test_the_urgent_never_wait_for_the_share_of_others(
    window, hour, posted, reserved, urgent, batch, slots
):
    """They go as if nothing were kept, whoever waits beside them."""

    def went(keep):
        spec = f"$0.000006/{window}{keep}"
        made = account(spec=spec, posted=posted, reserved=reserved)
        made.look(hour * HOUR_MS)
        views = [
            lane([made], batch, 1, BATCH), lane([made], urgent, 100, INTERACTIVE),
        ]  # fmt: skip
        result = plan(views, {"p": slots}, hour * HOUR_MS)
        assert made.posted + made.reserved <= max(6_000, posted + reserved)
        return [each for each in admitted(result) if each >= 100], made, admitted(result)

    with_keep, made, all_of_them = went(" keep 20% for interactive")
    without, _, _ = went("")

    assert with_keep == without
    if any(each < 100 for each in all_of_them):  # the last of them left what is kept
        assert made.available >= made.keeps(BATCH) - sum(urgent)


@pytest.mark.parametrize("is_file", [False, True])
def test_a_backlog_leaves_what_is_kept_and_uses_all_of_it_by_the_reset(is_file, tmp_path):
    start_ms = START_MS - START_MS % DAY_MS
    clock, store = VirtualClock(start_ms), None
    if is_file:
        store = InlineSqlite(tmp_path / "s.db", Process("here", 1, "1"), 30_000, lambda sql: None)

    async def main():
        budget = Budget("team", SPEC)
        async with Scheduler(
            store, budgets=budget, providers=Bench(ceiling_nusd=100, cost_nusd=60), clock=clock,
            concurrency=4, poll_interval=10,  # of a day, in which nobody else changes the file
        ) as s:  # fmt: skip
            waiting = [s.submit(ask(n, seconds=5, priority="batch")) for n in range(140)]
            await asyncio.sleep(3_600)
            parked = waiting[-1].parked
            spent = (await s.store.budgets(clock.now_ms()))[0].caps[0].posted
            begun = clock.now_ms()
            for _ in range(3):
                await s.run(ask(seconds=5, priority="interactive"))
            urgent_ms = clock.now_ms() - begun
            with pytest.raises(BudgetExceeded):
                await s.run(ask(priority="normal"), on_exceeded="raise")
            await asyncio.sleep(11 * 3_600)
            noon = (await s.store.budgets(clock.now_ms()))[0].caps[0].posted
            await asyncio.sleep(12 * 3_600 - 60)
            last = (await s.store.budgets(clock.now_ms()))[0].caps[0].posted
            is_sound = not (await s.store.audit(clock.now_ms())).discrepancies
            for future in waiting:
                future.cancel()
            return parked, spent, urgent_ms, noon, last, is_sound

    parked, spent, urgent_ms, noon, last, is_sound = run(main())

    assert (parked.reason, parked.words) == (ParkReason.KEPT, "interactive")
    assert 4_700 <= spent <= 4_860
    assert urgent_ms == 15_000
    assert 5_200 <= noon <= 5_460
    assert last >= 5_900
    assert is_sound


def test_waiting_for_what_is_kept_takes_no_turns(monkeypatch):
    turns = []

    async def main():
        clock = VirtualClock(START_MS - START_MS % DAY_MS)
        async with Scheduler(budgets=Budget("team", SPEC), providers=Bench(), clock=clock) as s:
            await s.run(ask(1, ceiling=4_800, cost=4_800))
            turn = s.store.turn

            async def counted(wanted):
                turns.append(clock.now_ms())
                return await turn(wanted)

            monkeypatch.setattr(s.store, "turn", counted)
            answer = await s.submit(ask(2, ceiling=600, cost=10, priority="batch"))
            return answer, clock.now_ms()

    answer, _ = run(main())

    assert abs(answer.parked_ms - 12 * HOUR_MS) <= 24 * MINUTE_MS  # a step
    assert len(turns) <= 5


def test_what_a_call_gives_back_and_what_is_released_may_suffice_together():
    """Neither would by itself for hours; and another call goes on for long."""

    async def main():
        clock = VirtualClock(START_MS - START_MS % DAY_MS)
        async with Scheduler(budgets=Budget("team", SPEC), providers=Bench(), clock=clock) as s:
            await s.run(ask(1, ceiling=3_500, cost=3_500, priority="interactive"))
            long = s.submit(ask(2, ceiling=600, cost=600, seconds=72_000, priority="interactive"))
            short = s.submit(ask(3, ceiling=600, cost=300, seconds=3_600, priority="interactive"))
            await asyncio.sleep(1)
            answer = await s.submit(ask(4, ceiling=600, cost=10, priority="batch"))
            assert not long.done()
            await short
            return answer.parked_ms

    # Of 6,000 are 3,800 spent and 600 held: from a sixth of the day on 1,000 are kept.
    assert 3.9 * HOUR_MS <= run(main()) <= 5 * HOUR_MS
