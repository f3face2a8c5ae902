"""What is news: once a topic, with exact figures, and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.budget import Budget, Unit
from scheduler.request import RequestState
from scheduler.shortfall import ParkReason, Shortfall
from scheduler.stats import BudgetStatus, CapStatus, Counts, SpendRow, Standing, UnknownSum
from scheduler.stores.course import HOUR_MS
from scheduler.telemetry.news import Item, Wanted, items, job_done
from scheduler.telemetry.picture import Lately, Picture, burned_since_ms
from tests.test_burning import Spending, steadily

T0 = 1_767_225_600_000  # 2026-01-01 00:00 UTC, a Thursday
NOON = T0 + 12 * HOUR_MS
USD = 10**9


def picture(posted=0, limit="$10/day", *, at_ms=NOON, rate=0, name="team", **more):
    budget = Budget(name, limit)
    caps = tuple(
        CapStatus(
            cap, cap.limit, posted, 0, 0, cap.window.slot_start_ms(at_ms),
            next(iter(cap.window.next_resets_ms(at_ms, 1)), None)
            if cap.window.kind.value == "calendar" else None,
        )
        for cap in budget.caps
    )  # fmt: skip
    rates = {
        since_ms: {name: SpendRow(name, 1, rate * (at_ms - since_ms) // HOUR_MS, 0, 0, 0)}
        for cap in caps for since_ms in burned_since_ms(cap, at_ms)
    }  # fmt: skip
    made = Picture(
        "s", at_ms, Counts(), (), (), (BudgetStatus(1, budget, False, caps),), (), (), (), (),
        Lately(at_ms - HOUR_MS), UnknownSum(), (), rates,
    )  # fmt: skip
    return replace(made, **more)


def kinds(found):
    return [each.kind for each in found]


@pytest.mark.parametrize(
    ("posted", "told"), [(7_999_999_999, []), (8 * USD, [80]), (10 * USD, [100]), (11 * USD, [100])]
)
def test_the_highest_threshold_that_was_passed_is_told(posted, told):
    found = items(picture(posted), Wanted(frozenset(["budget.threshold"])))

    assert [each.data["threshold_percent"] for each in found] == told


def test_a_threshold_is_one_topic_a_window_and_limit():
    wanted = Wanted(frozenset(["budget.threshold"]))

    def topic(posted, limit="$10/day", at_ms=NOON):
        (item,) = items(picture(posted, limit, at_ms=at_ms), wanted)
        return item.topic

    first = topic(8 * USD)
    assert topic(9 * USD, at_ms=NOON + HOUR_MS) == first
    assert topic(10 * USD) != first
    assert topic(8 * USD, at_ms=NOON + 24 * HOUR_MS) != first
    assert topic(9 * USD, "$11/day") != first  # after a raise it is news again


def test_a_threshold_is_told_in_exact_figures_and_in_words():
    (item,) = items(picture(8_100_000_001), Wanted(frozenset(["budget.threshold"])))

    assert item.data["posted_usd"] == "8.100000001"
    assert (item.data["limit_usd"], item.data["available_usd"]) == ("10.00", "1.899999999")
    assert item.data["resets_at"] == "2026-01-02T00:00:00.000Z"
    assert item.text == ("Budget 'team' has spent $8.100000001 of $10.00 (81 %); it resets in 12h.")


def test_only_the_budgets_that_were_asked_for_are_told():
    wanted = Wanted(frozenset(["budget.threshold"]), budgets=("team-*",))

    assert not items(picture(9 * USD, name="other"), wanted)
    assert items(picture(9 * USD, name="team-a"), wanted)


@pytest.mark.parametrize(
    ("posted", "rate", "is_told"),
    [(5 * USD, USD // 4, False), (4 * USD, USD // 2, False), (5 * USD, USD // 2, True),
     (10 * USD, USD, False), (0, 0, False)],
)  # fmt: skip
def test_what_will_be_spent_before_its_reset_is_told_before_it_is(posted, rate, is_told):
    found = items(picture(posted, rate=rate), Wanted(frozenset(["budget.projected"])))

    assert kinds(found) == ["budget.projected"] * is_told
    if is_told:
        assert found[0].data["projected_usd"] == "11.00"
        assert found[0].data["projected_at"] == "2026-01-01T22:00:00.000Z"


def test_what_has_stopped_is_not_projected():
    made = picture(5 * USD, rate=USD)
    _, short_ms = burned_since_ms(made.budgets[0].caps[0], NOON)
    wanted = Wanted(frozenset(["budget.projected"]))

    assert items(made, wanted)
    assert not items(replace(made, burned={**made.burned, short_ms: {}}), wanted)
    assert not items(replace(made, burned={}), wanted)  # it was not asked for


@pytest.mark.parametrize("per_minute", [500, 750, 760, 2_000])
def test_it_is_projected_when_the_event_is_told(per_minute):
    spending = Spending("1000000 tokens/day", T0)
    steadily(spending, per_minute, 180)
    at_ms, posted = spending.at_ms, spending.account.posted

    def made(since_ms):
        return SpendRow("team", 1, 0, 0, 0, per_minute * (at_ms - since_ms) // 60_000)

    seen = picture(posted, "1000000 tokens/day", at_ms=at_ms)
    instants = burned_since_ms(seen.budgets[0].caps[0], at_ms)
    seen = replace(seen, burned={since_ms: {"team": made(since_ms)} for since_ms in instants})

    told = items(seen, Wanted(frozenset(["budget.projected"])))
    assert bool(told) is ("projected" in spending.levels) is (per_minute > 755)


def parked(since_ms, reason="window_spent", resumes_at_ms=T0 + 24 * HOUR_MS, budget="team"):
    lack = Shortfall(ParkReason(reason), budget, Unit.USD, 0, 0, 0, 0, 0, resumes_at_ms, "UTC", "")
    return Standing(RequestState.PARKED, 10, reason, budget, 7, since_ms, since_ms, lack)


def test_what_is_parked_for_too_long_is_told_once_until_it_goes_on():
    wanted = Wanted(frozenset(["requests.parked"]), parked_after_ms=HOUR_MS)
    short = picture(standing=(parked(NOON - HOUR_MS + 1),))
    long = picture(standing=(parked(NOON - HOUR_MS), parked(NOON - 2 * HOUR_MS)))

    assert not items(short, wanted)
    (item,) = items(long, wanted)
    assert (item.data["requests"], item.data["parked_seconds"]) == (14, 7200)
    assert item.text.startswith("14 requests parked for 2h: budget 'team', window spent")
    later = replace(long, at_ms=NOON + HOUR_MS)
    assert [each.topic for each in items(later, wanted)] == [item.topic]


def test_what_is_parked_without_an_end_is_told_once_a_day():
    wanted = Wanted(frozenset(["requests.parked"]))
    made = picture(standing=(parked(T0, "paused", None),))

    topics = {
        items(replace(made, at_ms=T0 + hours * HOUR_MS), wanted)[0].topic for hours in range(1, 48)
    }
    assert len(topics) == 2


def test_unknown_outcomes_are_told_once_a_day():
    wanted = Wanted(frozenset(["outcomes.unknown"]), unknown_after_ms=HOUR_MS)
    young = picture(unknown=UnknownSum(2, USD // 2, NOON - HOUR_MS + 1))
    old = picture(unknown=UnknownSum(2, USD // 2, NOON - HOUR_MS))

    assert not items(young, wanted)
    (item,) = items(old, wanted)
    assert item.data == {
        "outcomes": 2, "held_usd": "0.50", "oldest_at": "2026-01-01T11:00:00.000Z"
    }  # fmt: skip
    assert items(replace(old, at_ms=NOON + HOUR_MS), wanted)[0].topic == item.topic


def test_an_end_of_a_job_is_told_with_what_it_came_to():
    item = job_done(
        "labels", Counts(succeeded=1990, failed=10), SpendRow("labels", 0, 3 * USD, 0, 0, 0), NOON
    )

    assert item.text == "Job 'labels' is done: 1,990 answered, 10 not; $3.00 spent."
    assert item.data["posted_usd"] == "3.00"


def test_an_event_is_a_cloudevent_whose_id_is_the_same_for_whoever_tells_it():
    item = Item("budget.threshold", "t", "team", "Words.", {"a": 1})

    event = item.event("ops", "urn:scheduler:s.db", NOON)

    assert event["specversion"] == "1.0"
    assert event["type"] == "io.scheduler.budget.threshold"
    assert (event["subject"], event["time"]) == ("team", "2026-01-01T12:00:00.000Z")
    assert event["data"] == {"text": "Words.", "a": 1}
    assert event["id"] == item.event("ops", "urn:scheduler:s.db", NOON + 5)["id"]
    assert event["id"] != item.event("mail", "urn:scheduler:s.db", NOON)["id"]
