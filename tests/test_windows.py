"""Window arithmetic against a table worked out by hand, and properties over many zones."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.budget import Budget, parse_caps
from scheduler.errors import ConfigError
from scheduler.window import Window, WindowKind

HOUR_MS, DAY_MS = 3_600_000, 86_400_000


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def window(spec: str) -> Window:
    return parse_caps(f"$1/{spec}")[0].window


# All instants in UTC. Columns: window, an instant, the window's start and end.
CALENDAR = [
    # plain
    ("minute", "2026-05-05T10:20:30", "2026-05-05T10:20", "2026-05-05T10:21"),
    ("hour", "2026-05-05T10:20:30", "2026-05-05T10:00", "2026-05-05T11:00"),
    ("day", "2026-05-05T10:20:30", "2026-05-05T00:00", "2026-05-06T00:00"),
    ("week", "2026-05-05T10:20:30", "2026-05-04T00:00", "2026-05-11T00:00"),
    ("month", "2026-05-05T10:20:30", "2026-05-01T00:00", "2026-06-01T00:00"),
    ("year", "2026-05-05T10:20:30", "2026-01-01T00:00", "2027-01-01T00:00"),
    # an instant on a boundary belongs to the new window
    ("day", "2026-05-05T00:00", "2026-05-05T00:00", "2026-05-06T00:00"),
    ("month", "2026-12-01T00:00", "2026-12-01T00:00", "2027-01-01T00:00"),
    ("day", "2026-05-04T23:59:59.999", "2026-05-04T00:00", "2026-05-05T00:00"),
    # zones without changes of clocks
    ("day @Asia/Tokyo", "2026-03-01T15:00", "2026-03-01T15:00", "2026-03-02T15:00"),
    ("day @Asia/Tokyo", "2026-03-01T14:59", "2026-02-28T15:00", "2026-03-01T15:00"),
    ("month @Asia/Tokyo", "2026-02-28T15:00", "2026-02-28T15:00", "2026-03-31T15:00"),
    ("hour @Asia/Kolkata", "2026-05-05T10:20", "2026-05-05T09:30", "2026-05-05T10:30"),
    ("hour @Asia/Kathmandu", "2026-05-05T10:20", "2026-05-05T10:15", "2026-05-05T11:15"),
    ("day @Asia/Kolkata", "2026-05-05T10:20", "2026-05-04T18:30", "2026-05-05T18:30"),
    # Athens: +2, +3 from 2026-03-29 01:00 UTC to 2026-10-25 01:00 UTC
    ("day @Europe/Athens", "2026-03-29T12:00", "2026-03-28T22:00", "2026-03-29T21:00"),
    ("day @Europe/Athens", "2026-10-25T12:00", "2026-10-24T21:00", "2026-10-25T22:00"),
    ("month @Europe/Athens", "2026-03-15T00:00", "2026-02-28T22:00", "2026-03-31T21:00"),
    ("month @Europe/Athens", "2026-11-23T00:00", "2026-10-31T22:00", "2026-11-30T22:00"),
    ("week @Europe/Athens", "2026-03-27T00:00", "2026-03-22T22:00", "2026-03-29T21:00"),
    ("hour @Europe/Athens", "2026-03-29T01:00", "2026-03-29T01:00", "2026-03-29T02:00"),
    # the repeated hour is two windows
    ("hour @Europe/Athens", "2026-10-25T00:30", "2026-10-25T00:00", "2026-10-25T01:00"),
    ("hour @Europe/Athens", "2026-10-25T01:30", "2026-10-25T01:00", "2026-10-25T02:00"),
    # New York: 2026-03-08 07:00 UTC and 2026-11-01 06:00 UTC
    ("day @America/New_York", "2026-03-08T12:00", "2026-03-08T05:00", "2026-03-09T04:00"),
    ("day @America/New_York", "2026-11-01T12:00", "2026-11-01T04:00", "2026-11-02T05:00"),
    # a day that starts within the skipped hour starts when the clocks have moved
    (
        "day @America/New_York from 02:30",
        "2026-03-08T12:00",
        "2026-03-08T07:00",
        "2026-03-09T06:30",
    ),
    # a day that starts within the repeated hour starts the first time
    (
        "day @America/New_York from 01:30",
        "2026-11-01T12:00",
        "2026-11-01T05:30",
        "2026-11-02T06:30",
    ),
    # Lord Howe moves by half an hour: 2026-04-04 15:00 UTC, 11:00 → 10:30
    ("day @Australia/Lord_Howe", "2026-04-05T00:00", "2026-04-04T13:00", "2026-04-05T13:30"),
    ("hour @Australia/Lord_Howe", "2026-04-04T15:10", "2026-04-04T15:00", "2026-04-04T15:30"),
    ("hour @Australia/Lord_Howe", "2026-04-04T14:50", "2026-04-04T14:00", "2026-04-04T15:00"),
    # midnights that did not exist: São Paulo 2018-11-04, Cairo 2023-04-28
    ("day @America/Sao_Paulo", "2018-11-04T12:00", "2018-11-04T03:00", "2018-11-05T02:00"),
    ("day @Africa/Cairo", "2023-04-28T12:00", "2023-04-27T22:00", "2023-04-28T21:00"),
    # a midnight reached twice: São Paulo 2018-02-18 went back to 23:00 of the 17th
    ("day @America/Sao_Paulo", "2018-02-18T02:30", "2018-02-17T02:00", "2018-02-18T03:00"),
    # a day that never was: Apia had no 2011-12-30
    ("day @Pacific/Apia", "2011-12-30T09:59", "2011-12-29T10:00", "2011-12-30T10:00"),
    ("day @Pacific/Apia", "2011-12-30T10:00", "2011-12-30T10:00", "2011-12-31T10:00"),
    # leap days and uneven months
    ("month", "2028-02-29T12:00", "2028-02-01T00:00", "2028-03-01T00:00"),
    ("month", "2027-02-28T12:00", "2027-02-01T00:00", "2027-03-01T00:00"),
    ("day", "2028-02-29T12:00", "2028-02-29T00:00", "2028-03-01T00:00"),
    ("year from 02-29", "2027-03-01T00:00", "2027-02-28T00:00", "2028-02-29T00:00"),
    ("year from 02-29", "2028-03-01T00:00", "2028-02-29T00:00", "2029-02-28T00:00"),
    ("month from 15", "2026-05-14T12:00", "2026-04-15T00:00", "2026-05-15T00:00"),
    ("month from 15", "2026-05-15T00:00", "2026-05-15T00:00", "2026-06-15T00:00"),
    ("month from 31", "2026-02-15T00:00", "2026-01-31T00:00", "2026-02-28T00:00"),
    ("month from 31", "2026-03-30T00:00", "2026-02-28T00:00", "2026-03-31T00:00"),
    ("month from 31", "2028-02-29T00:00", "2028-02-29T00:00", "2028-03-31T00:00"),
    ("month from 15", "2026-01-03T00:00", "2025-12-15T00:00", "2026-01-15T00:00"),
    ("year from 04-01", "2026-03-31T23:59", "2025-04-01T00:00", "2026-04-01T00:00"),
    ("week from sun", "2026-05-05T12:00", "2026-05-03T00:00", "2026-05-10T00:00"),
    ("week from wed", "2026-05-05T12:00", "2026-04-29T00:00", "2026-05-06T00:00"),
    ("day from 06:00", "2026-05-05T05:59", "2026-05-04T06:00", "2026-05-05T06:00"),
    ("day @Europe/Athens from 06:00", "2026-03-29T12:00", "2026-03-29T03:00", "2026-03-30T03:00"),
]


@pytest.mark.parametrize(("spec", "at", "start", "end"), CALENDAR)
def test_calendar_windows_start_and_end_where_people_expect(spec, at, start, end):
    found = window(spec)

    assert found.kind is WindowKind.CALENDAR
    assert (found.slot_start_ms(ms(at)), found.resets_at_ms(ms(at))) == (ms(start), ms(end))


@pytest.mark.parametrize(("spec", "hours"), [("48h", 48), ("36h", 36), ("2d", 48), ("90m", 1.5)])
def test_a_rolling_window_is_exactly_as_long_as_it_says(spec, hours):
    rolling = window(spec)

    assert rolling.span_ms == hours * HOUR_MS
    assert rolling.describe().startswith("rolling ")
    assert rolling.resets_at_ms(0) is None


def test_a_total_never_resets():
    total = window("total")

    assert (total.slot_start_ms(10**13), total.oldest_counting_ms(10**13)) == (0, 0)
    assert (total.stops_counting_ms(0), total.next_resets_ms(0)) == (None, [])


def test_the_next_resets_follow_each_other():
    resets = window("month @Asia/Tokyo").next_resets_ms(ms("2026-01-15T00:00"))

    assert resets == [ms("2026-01-31T15:00"), ms("2026-02-28T15:00"), ms("2026-03-31T15:00")]


ZONES = [
    "UTC", "Europe/Athens", "Europe/London", "Europe/Dublin", "Europe/Moscow", "Europe/Istanbul",
    "America/New_York", "America/Sao_Paulo", "America/St_Johns", "America/Havana", "America/Caracas",
    "America/Santiago", "America/Asuncion", "Asia/Tokyo", "Asia/Kolkata", "Asia/Kathmandu",
    "Asia/Tehran", "Asia/Beirut", "Asia/Gaza", "Asia/Pyongyang", "Africa/Cairo", "Africa/Casablanca",
    "Africa/El_Aaiun", "Australia/Lord_Howe", "Australia/Adelaide", "Australia/Eucla",
    "Pacific/Apia", "Pacific/Chatham", "Pacific/Kiritimati", "Pacific/Norfolk", "Antarctica/Troll",
    "Antarctica/Casey",
]  # fmt: skip
ANCHORED = ["day", "day from 00:30", "day from 23:45", "week", "week from sat", "month",
            "month from 31", "year", "year from 12-31", "hour", "minute"]  # fmt: skip


@settings(max_examples=400)
@given(
    zone=st.sampled_from(ZONES),
    spec=st.sampled_from(ANCHORED),
    at_ms=st.integers(ms("2000-01-01T00:00"), ms("2037-12-31T00:00")),
)
def test_windows_follow_each_other_without_gap_or_overlap(zone, spec, at_ms):
    period, _, anchor = spec.partition(" from ")
    found = Window.parse(period, zone, anchor or None)
    start_ms = found.slot_start_ms(at_ms)
    end_ms = found.resets_at_ms(at_ms)

    assert start_ms <= at_ms < end_ms
    fresh = Window.parse(period, zone, anchor or None)  # nothing remembered
    assert fresh.slot_start_ms(end_ms) == end_ms
    assert fresh.slot_start_ms(end_ms - 1) == fresh.slot_start_ms(start_ms) == start_ms
    if period not in ("hour", "minute") and not anchor:
        local = datetime.fromtimestamp(start_ms / 1000, ZoneInfo(zone))
        before = datetime.fromtimestamp((start_ms - 1) / 1000, ZoneInfo(zone))
        assert before.date() != local.date()


@settings(max_examples=300)
@given(
    span_s=st.integers(1, 100_000),
    spends=st.lists(st.tuples(st.integers(0, 400_000_000), st.integers(1, 60)), max_size=30),
)
def test_no_interval_of_a_rolling_windows_length_holds_more_than_its_limit(span_s, spends):
    limit, rolling = 100, Window.parse(f"{span_s}s")
    made: list[tuple[int, int]] = []
    for at_ms, amount in sorted(spends):
        oldest_ms = rolling.oldest_counting_ms(at_ms)
        counted = sum(a for t, a in made if rolling.slot_start_ms(t) >= oldest_ms)
        if counted + amount <= limit:
            made.append((at_ms, amount))

    for first_ms, _ in made:
        inside = [a for t, a in made if first_ms <= t <= first_ms + rolling.span_ms]
        assert sum(inside) <= limit


@given(span_s=st.integers(1, 10**6), at_ms=st.integers(0, 10**13))
def test_a_slot_counts_until_it_stops_counting(span_s, at_ms):
    rolling = Window.parse(f"{span_s}s")
    slot_ms = rolling.slot_start_ms(at_ms)
    until_ms = rolling.stops_counting_ms(slot_ms)

    assert (
        rolling.oldest_counting_ms(until_ms - 1) <= slot_ms < rolling.oldest_counting_ms(until_ms)
    )
    assert at_ms + rolling.span_ms <= until_ms <= at_ms + rolling.span_ms + 2 * rolling.bucket_ms


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dayly", "'dayly' is not one of minute, hour.*did you mean 'day'"),
        ("0s", "shorter than a second"),
        ("11y", "is not a span of time"),
        ("day @Europe/Athen", "there is no time zone 'Europe/Athen'; did you mean Europe/Athens"),
        ("day @../etc", "there is no time zone"),
        ("24h @UTC", "needs a calendar window"),
        ("total @UTC", "needs a calendar window"),
        ("hour from 3", "an? hour cannot start 'from 3'"),
        ("day from 25:00", "a day starts from a time such as"),
        ("week from 15", "a week starts from a weekday"),
        ("month from 32", "a month starts from a day of the month"),
        ("year from 02-30", "there is no day 02-30"),
    ],
)
def test_a_wrong_window_is_a_clear_error(text, problem):
    with pytest.raises(ConfigError, match=problem):
        Budget("b", f"$1/{text}")
