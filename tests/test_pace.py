"""Budgets that are spent bit by bit: how much by when, in every store, and what people are told."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import Budget, BudgetExceeded, ConfigError, Scheduler
from scheduler.admission.plan import plan
from scheduler.budget import UNLIMITED, parse_caps
from scheduler.pace import HOUR_MS, PARTS, Pace
from scheduler.shortfall import ParkReason
from scheduler.stores.process import Process
from scheduler.testing import START_MS, VirtualClock, run
from scheduler.window import Window
from tests.conftest import Bench, ask
from tests.simulation.stores import InlineSqlite
from tests.test_admission import account, admitted, lane

DAY = Window.parse("day")
DAY_MS = 24 * HOUR_MS
ATHENS = Window.parse("day", zone="Europe/Athens")
EVENING = "000000000000000000011995"  # hours from 19:00 on


# The share of a window


@pytest.mark.parametrize(
    ("text", "window", "at_h", "allowed"),
    [
        ("", "day", 0, 1_000),
        ("", "day", 6, 7_000),
        ("", "day", 23.5, 24_000),
        ("", "hour", 0.5, 13_000),  # a twenty-fourth of it at once, too
        ("", "minute", 0.25, 1_000),
        ("9-17", "day", 8, 1_000),
        ("9-17", "day", 9.5, 2_500),
        ("9-17", "day", 20, 24_000),
        ("22:00-06:00", "day", 3, 10_000),
        ("22:00-06:00", "day", 12, 19_000),
        ("22:00-06:00", "day", 23, 22_000),
        ("09:30-10:30", "day", 10, 13_000),
        (EVENING, "day", 19, 1_000),
        (EVENING, "day", 21, 2_920),  # two hours of 25 in weight
        (EVENING, "day", 22, 11_560),
        ("9-17", "hour", 20.5, 13_000),  # none of its hours: evenly
    ],
)
def test_how_much_may_be_spent_by_when(text, window, at_h, allowed):
    found = Pace.parse(text).allowed(24_000, Window.parse(window), int(at_h * HOUR_MS))
    assert found == allowed


@pytest.mark.parametrize(
    ("day", "hour", "allowed"),
    [
        ("2026-03-29", 0, 2_000),  # 23 hours: clocks go forward at 03:00
        ("2026-03-29", 12, 24_000),  # eleven of 23 hours have passed at noon, and one at once
        ("2026-10-25", 12, 28_000),  # thirteen of 25
        ("2026-07-01", 12, 26_000),
    ],
)
def test_days_on_which_clocks_are_changed_are_as_long_as_they_are(day, hour, allowed):
    hours = {"2026-03-29": 23, "2026-10-25": 25}.get(day, 24)
    start_ms = ATHENS.slot_start_ms(
        int(datetime.fromisoformat(f"{day}T12:00+00:00").timestamp() * 1000)
    )
    passed_h = hour if hours == 24 or hour < 3 else hour + hours - 24
    found = Pace().allowed(2_000 * hours, ATHENS, start_ms + passed_h * HOUR_MS)
    assert found == allowed


def test_hours_are_those_of_the_windows_zone():
    office, noon_utc_ms = Pace.parse("09:00-18:00"), 1_782_907_200_000  # 2026-07-01, 15:00 there
    assert datetime.fromtimestamp(noon_utc_ms / 1000, UTC).hour == 12
    assert office.allowed(24_000, ATHENS, noon_utc_ms) == 6 * 24_000 // 9 + 1_000
    assert office.allowed(24_000, DAY, noon_utc_ms) == 3 * 24_000 // 9 + 1_000


PACES = st.sampled_from(["", "9-17", "22:30-06:15", EVENING, "1" * 24, "900000000000000000000001"])
WINDOWS = st.builds(
    Window.parse,
    st.sampled_from(["minute", "hour", "day", "week", "month", "year"]),
    st.sampled_from(["UTC", "Europe/Athens", "Asia/Kathmandu", "Australia/Lord_Howe"]),
)
INSTANTS = st.integers(1_700_000_000_000, 1_900_000_000_000)
LIMITS = st.integers(0, 10**13)


@settings(max_examples=150)
@given(PACES, WINDOWS, INSTANTS, LIMITS, st.floats(0, 1), st.floats(0, 1))
def test_the_share_only_grows_and_when_it_suffices_is_known_to_the_millisecond(
    text, window, at_ms, limit, part, share
):
    pace = Pace.parse(text)
    start_ms, end_ms = window.slot_start_ms(at_ms), window.resets_at_ms(at_ms)
    later_ms = at_ms + int(part * (end_ms - 1 - at_ms))
    now, later = pace.allowed(limit, window, at_ms), pace.allowed(limit, window, later_ms)
    assert 0 <= pace.allowed(limit, window, start_ms) <= now <= later <= limit
    # Whatever its last hours weigh.
    assert pace.allowed(limit, window, end_ms - 1) >= limit * 0.95 - PARTS

    amount = int(share * limit)
    reached_ms = pace.reaches_ms(amount, window, at_ms, limit)
    assert reached_ms is not None
    assert at_ms <= reached_ms <= end_ms
    if reached_ms < end_ms:
        assert pace.allowed(limit, window, reached_ms) >= amount
    if reached_ms > at_ms:
        assert pace.allowed(limit, window, reached_ms - 1) < amount
    assert pace.reaches_ms(limit + 1, window, at_ms, limit) is None


# How it is written


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("$100/day paced", "$100/day paced"),
        ("$100/day PACED uniform", "$100/day paced"),
        ("$100/day paced 9-18 @Europe/Athens", "$100/day @Europe/Athens paced 09:00-18:00"),
        ("$100/day @Europe/Athens from 06:00 paced 22:00-06:00",
         "$100/day @Europe/Athens from 06:00 paced 22:00-06:00"),
        (f"5M tokens/month paced {EVENING}, $9/hour", f"5000000 tokens/month paced {EVENING}, $9/hour"),
        ("none/day paced", "none/day paced"),
    ],
)  # fmt: skip
def test_a_pace_is_part_of_the_text_of_a_budget(spec, text):
    budget = Budget("b", spec)
    assert budget.spec == text
    assert Budget("b", text).caps == budget.caps


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("$100 paced", "a pace needs a calendar window"),
        ("$100/24h paced", "not 'rolling 24h'"),
        ("$100/day paced soon", "'soon' is not a pace"),
        ("$100/day paced 25-26", "no span of a day"),
        ("$100/day paced 9-9", "no span of a day"),
        ("$100/day paced 9:75-10", "no span of a day"),
        (f"$100/day paced {'0' * 24}", "leaves no hour"),
        ("$100/day paced 123", "'123' is not a pace"),
    ],
)
def test_a_pace_that_makes_no_sense_is_a_clear_error(spec, problem):
    with pytest.raises(ConfigError, match=problem):
        Budget("b", spec)


def test_a_pace_may_be_given_beside_the_limit():
    budget = Budget("b", "$5/day, $9/24h, $50/month paced 9-17", pace="uniform")
    assert budget.spec == "$5/day paced, $9/24h, $50/month paced 09:00-17:00"
    assert budget.with_limit("$8/day").spec == "$8/day"
    with pytest.raises(ConfigError, match="calendar window"):
        Budget("b", "$5", pace="uniform")
    assert Budget("b", "$5/day paced").with_limit("$8").spec == "$8/day paced"


# Who goes


def paced(at_h, spec="$0.0000024/day paced", **sums):
    """An account of 2,400 a day, at an hour of the first day."""
    made = account(spec=spec, **sums)
    made.look(int(at_h * HOUR_MS))
    return made


def test_what_exceeds_the_share_waits_until_it_is_there():
    made, now_ms = paced(5, posted=400, reserved=100), 5 * HOUR_MS
    assert (made.allowed, made.available, made.at_best) == (600, 100, 200)

    result = plan([lane([made], [100, 250, 300])], {"p": 9}, now_ms)
    lack = result.verdicts[0].shortfall

    assert admitted(result) == [1]
    assert (lack.reason, lack.allowed, lack.missing) == (ParkReason.PACED, 600, 250)
    assert (
        lack.resumes_at_ms == 15 * HOUR_MS // 2
    )  # 600 used up, and 250 more, of which 100 are there at once
    assert result.verdicts[0].resumes_at_ms <= lack.resumes_at_ms


@pytest.mark.parametrize(
    ("at_h", "posted", "reserved", "need", "reason"),
    [
        (1, 150, 0, 51, ParkReason.PACED),
        (1, 100, 50, 60, ParkReason.HELD_IN_FLIGHT),
        (1, 150, 0, 2_251, ParkReason.WINDOW_SPENT),
        (1, 0, 0, 2_401, ParkReason.LARGER_THAN_LIMIT),
        (23.5, 2_400, 0, 1, ParkReason.WINDOW_SPENT),
    ],
)
def test_why_it_waits(at_h, posted, reserved, need, reason):
    made, now_ms = paced(at_h, posted=posted, reserved=reserved), int(at_h * HOUR_MS)
    verdict = plan([lane([made], [need])], {"p": 9}, now_ms).verdicts[0]
    assert verdict.shortfall.reason is reason
    if reason is ParkReason.HELD_IN_FLIGHT:
        # Should the calls cost all that is reserved, its share comes later all the same.
        assert verdict.resumes_at_ms > now_ms + 60_000


def test_an_account_without_limit_is_not_paced():
    made = account(spec="none/day paced")
    assert (made.allowed, made.available) == (UNLIMITED, UNLIMITED)


def test_whoever_is_first_is_not_kept_waiting_by_smaller_ones_for_good():
    """At one a minute they would use up all of the share, and it would never go."""
    made, gone = paced(0), []
    ids = itertools.count(10)
    for minute in range(1, 400):
        now_ms = minute * 60_000
        made.look(now_ms)
        big, small = lane([made], [200], 1), lane([made], [1, 1, 1], next(ids) * 3)
        gone += admitted(plan([big, small], {"p": 9}, now_ms))
        if 1 in gone:
            break
    assert 1 in gone
    assert minute <= 100


# Together


@pytest.mark.parametrize(
    ("is_file", "window"),
    [(False, "day paced"), (False, "day paced 09:00-17:00"), (True, "hour paced")],
)
def test_under_backlog_it_is_spent_along_the_course_and_whole_by_the_reset(
    is_file, window, tmp_path
):
    """At each admission what is spent and reserved is within the share; nothing is left in the end."""
    cap = parse_caps(f"$0.000006/{window}")[0]
    start_ms = START_MS - START_MS % DAY_MS
    span_ms = cap.window.resets_at_ms(start_ms) - start_ms
    clock, store = VirtualClock(start_ms), None
    if is_file:
        me = Process("here", 1, "1")
        store = InlineSqlite(tmp_path / "s.db", me, 30_000, lambda sql: None)
    seen = []

    async def main():
        provider = Bench(ceiling_nusd=100, cost_nusd=60)

        async def before(request):
            others = provider.running - 1  # which are billed already
            counted = provider.billed_nusd - 60 * others + 100 * provider.running
            share = cap.pace.allowed(cap.limit, cap.window, clock.now_ms())
            seen.append((clock.now_ms(), counted, share))

        provider.before = before
        budget = Budget("team", str(cap))
        async with Scheduler(
            store, budgets=budget, providers=provider, clock=clock, concurrency=8
        ) as s:
            futures = [s.submit(ask(n, seconds=10)) for n in range(140)]
            await asyncio.sleep(span_ms / 1000 - 30)
            spent = (await s.store.budgets(clock.now_ms()))[0].caps[0]
            turns = s.stats()
            for future in futures:
                future.cancel()
            return spent, turns

    spent, stats = run(main())

    assert all(counted <= share for _, counted, share in seen)
    assert spent.posted >= cap.limit - 100  # less than what one more might have taken
    assert spent.posted <= cap.limit
    half = [counted for at_ms, counted, _ in seen if at_ms < start_ms + span_ms // 2]
    assert max(half) < 0.6 * cap.limit
    assert stats.parked


def test_waiting_for_a_share_takes_no_turns(monkeypatch):
    """One timer, at the instant at which it is there."""
    turns = []

    async def main():
        clock = VirtualClock(START_MS - START_MS % DAY_MS)
        async with Scheduler(
            budgets=Budget("team", "$0.0000024/day paced"), providers=Bench(), clock=clock
        ) as s:
            turn = s.store.turn

            async def counted(wanted):
                turns.append(clock.now_ms())
                return await turn(wanted)

            monkeypatch.setattr(s.store, "turn", counted)
            first = await s.run(ask(1, ceiling=100, cost=100))
            waiting = s.submit(ask(2, ceiling=1_000, cost=10))
            await asyncio.sleep(1)
            parked = waiting.parked
            before = len(turns)
            answer = await waiting
            return first, parked, answer, len(turns) - before, clock.now_ms()

    _, parked, answer, count, _ = run(main())

    assert (parked.reason, parked.allowed) == (ParkReason.PACED, 100)
    assert answer.parked_ms == 10 * HOUR_MS  # 1,100 of 2,400 are there at ten o'clock
    assert count <= 4


def test_a_raise_lets_it_go_at_once_and_who_does_not_wait_is_told_when():
    async def main():
        clock = VirtualClock(START_MS - START_MS % DAY_MS + 6 * HOUR_MS)
        async with Scheduler(
            budgets=Budget("team", "$0.0000024/day paced"), providers=Bench(), clock=clock
        ) as s:
            with pytest.raises(BudgetExceeded) as told:
                await s.run(ask(1, ceiling=1_000), on_exceeded="raise")
            waiting = s.submit(ask(2, ceiling=1_000, cost=10))
            await asyncio.sleep(1)
            assert waiting.parked is not None
            await s.set_limit("team", "$0.00001")
            answer = await waiting
            return told.value, answer, (await s.store.budgets(clock.now_ms()))[0].caps[0]

    error, answer, cap = run(main())

    assert "0.0000007 of it may be used up by now, more from" in str(error)
    assert error.resets_at - datetime.fromtimestamp(START_MS / 1000, UTC).replace(
        hour=0, minute=0, second=0, microsecond=0
    ) == timedelta(hours=9)
    assert answer.parked_ms <= 1_000
    assert cap.allowed is not None
    assert cap.available == cap.allowed - cap.posted - cap.reserved
