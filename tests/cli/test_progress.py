"""What a run tells while it runs: one line of text, why it waits, and in which manner."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.cells import cell_len

from scheduler.budget import Budget, Unit
from scheduler.cli.progress import Snapshot, line, progress, why
from scheduler.shortfall import ParkReason, Shortfall
from scheduler.stats import CapStatus

USD = 1_000_000_000
NOW_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC

BEGUN = Snapshot(NOW_MS, 0, 0, 0, False, 0, 0, None, 0, 0, None, 0, None)


def cap(spec: str, posted: int, reserved: int) -> CapStatus:
    only = Budget("default", spec).caps[0]
    return CapStatus(only, only.limit, posted, reserved, 0, NOW_MS, None)


def lack(reason: ParkReason, resumes_at_ms: int | None = None, **changes) -> Shortfall:
    whole = Shortfall(
        reason, "default", Unit.USD, 10 * USD, 9 * USD, USD // 2, USD, USD // 2,
        resumes_at_ms, "UTC", "day",
    )  # fmt: skip
    return replace(whole, **changes)


SPENT = lack(ParkReason.WINDOW_SPENT, NOW_MS + 11_520_000)


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (BEGUN, "0/0+ · 0 running · $0.00 spent + $0.00 reserved, no limit (spend is tracked)"),
        (
            replace(BEGUN, done=990, failed=10, total=12_000, is_read=True, running=64,
                    posted_nusd=2 * USD, reserved_nusd=USD // 50, per_hour_nusd=7 * USD,
                    eta_ms=90_000),
            "1,000/12,000 · 10 failed · 64 running · $2.00 spent + $0.0200 reserved, "
            "no limit (spend is tracked) · $7.00/h · about 1m30s left",
        ),
        (
            replace(BEGUN, done=5, total=9, is_read=True, running=1,
                    cap=cap("$10/day", 9 * USD, USD // 2)),
            "5/9 · 1 running · $9.00 spent + $0.5000 reserved of $10.00 (calendar day, UTC)",
        ),
        (
            replace(BEGUN, done=5, total=9, is_read=True, parked=4, shortfall=SPENT, eta_ms=1,
                    cap=cap("$10/day", 9 * USD, 0)),
            "5/9 · 0 running · 4 parked (window_spent) · $9.00 spent + $0.00 reserved of $10.00 "
            "(calendar day, UTC) · resumes 03:12 UTC (in 3h12m)",
        ),
        (
            replace(BEGUN, total=9, parked=4, running=2, shortfall=SPENT),
            "0/9+ · 2 running · 4 parked (window_spent) · $0.00 spent + $0.00 reserved, "
            "no limit (spend is tracked)",
        ),
        (
            replace(BEGUN, total=1, parked=1, shortfall=lack(ParkReason.PAUSED)),
            "0/1+ · 0 running · 1 parked (paused) · $0.00 spent + $0.00 reserved, "
            "no limit (spend is tracked) · resumes when somebody raises or resumes it",
        ),
        (
            replace(BEGUN, total=1, parked=1, shortfall=lack(ParkReason.HELD_IN_FLIGHT)),
            "0/1+ · 0 running · 1 parked (held_in_flight) · $0.00 spent + $0.00 reserved, "
            "no limit (spend is tracked) · resumes when running calls settle",
        ),
    ],
)  # fmt: skip
def test_a_line_tells_how_a_run_is_doing(now, text):
    assert line(now) == text


def test_the_bar_shows_the_share_that_has_ended():
    assert line(replace(BEGUN, done=1, failed=2, total=6), with_bar=True).startswith(
        "3/6+ ▕██████░"
    )


@pytest.mark.parametrize(
    ("shortfall", "text"),
    [
        (
            SPENT,
            "parked 1,200: budget 'default' is spent for now ($9.00 spent and $0.50 reserved of "
            "$10.00, $0.50 missing); resumes 03:12 UTC (in 3h12m). "
            "To go on now: scheduler budget set default 'MORE' --store x.db",
        ),
        (
            lack(ParkReason.PAUSED, budget="my team"),
            "parked 1,200: budget 'my team' is paused ($9.00 spent and $0.50 reserved of "
            "$10.00, $0.50 missing); resumes when somebody raises or resumes it. "
            "To go on now: scheduler budget resume 'my team' --store x.db",
        ),
        (
            lack(ParkReason.LARGER_THAN_LIMIT, unit=Unit.TOKENS, limit=1000, posted=0, reserved=1,
                 missing=500),
            "parked 1,200: one request exceeds the whole limit of 'default' (0 tokens spent and "
            "1 token reserved of 1,000 tokens, 500 tokens missing); resumes when somebody raises "
            "or resumes it. To let it go, cap its output (max_tokens in the body, or --cap-output N), or raise the limit: scheduler budget set default 'MORE' --store x.db",
        ),
    ],
)  # fmt: skip
def test_why_tells_what_is_missing_until_when_and_how_to_go_on(shortfall, text):
    assert why(shortfall, 1200, NOW_MS, " --store x.db") == text


def steps(mode: str, *snapshots: Snapshot) -> list[str]:
    out = io.StringIO()
    shown = progress(mode, out)
    for each in snapshots:
        shown.update(each)
    shown.close()
    return out.getvalue().splitlines()


def at(seconds: float, done: int) -> Snapshot:
    return replace(BEGUN, at_ms=NOW_MS + int(seconds * 1000), done=done, total=100, is_read=True)


@pytest.mark.parametrize(
    ("instants", "told"),
    [
        ([(0, 0), (0.1, 0), (29, 4)], [0]),
        ([(0, 0), (30, 1), (59, 2), (60, 3)], [0, 1, 3]),
        ([(0, 0), (0.1, 5), (0.2, 9), (0.3, 10), (0.4, 100)], [0, 5, 10, 100]),
    ],
)
def test_plain_progress_is_a_line_each_half_minute_and_each_twentieth(instants, told):
    lines = steps("plain", *(at(*each) for each in instants))

    assert [int(text.partition("/")[0]) for text in lines] == told


def test_json_progress_is_an_object_each_half_second_and_one_at_the_end():
    lines = steps("json", *(at(n / 10, n) for n in range(13)))

    objects = [json.loads(text) for text in lines]
    assert [each["done"] for each in objects] == [0, 5, 10, 12]
    assert {each["event"] for each in objects} == {"progress"}
    assert (objects[0]["posted_usd"], objects[0]["reason"]) == ("0.00", None)


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("none", "careful"),
        ("plain", "careful"),
        ("json", '{"event": "message", "text": "careful"}'),
    ],
)
def test_what_matters_is_said_in_every_manner(mode, told):
    out = io.StringIO()

    progress(mode, out).say("careful")

    assert out.getvalue() == f"{told}\n"


def test_none_shows_no_progress():
    assert steps("none", at(0, 0), at(60, 50)) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "env", "kind"),
    [
        (Terminal, {"TERM": "xterm"}, "_Bar"),
        (Terminal, {"TERM": "xterm", "CI": "1"}, "_Plain"),
        (Terminal, {"TERM": "dumb"}, "_Plain"),
        (Terminal, {}, "_Plain"),
        (io.StringIO, {"TERM": "xterm"}, "_Plain"),
    ],
)
def test_auto_draws_a_bar_only_where_somebody_can_see_it(monkeypatch, stream, env, kind):
    for name in ("TERM", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    shown = progress("auto", stream())
    shown.close()

    assert type(shown).__name__ == kind


def test_the_bar_leaves_its_last_line_and_what_was_said(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    shown = progress("bar", out)
    shown.update(at(0, 0))
    shown.say("[careful] this is no markup")
    shown.update(at(1, 100))
    shown.close()

    assert "[careful] this is no markup" in out.getvalue()
    assert "100/100 ▕████████████▏" in out.getvalue()


# In the width that there is

LONG = "a-budget-with-a-very-long-name-for-the-team-in-日本-and-its-😀-friends"
PARKED = replace(
    BEGUN, done=1_000, failed=12, total=12_000, is_read=True, parked=10_988,
    shortfall=replace(SPENT, budget=LONG), per_hour_nusd=3 * USD,
    cap=cap("$1000.50/day @America/Argentina/ComodRivadavia", 999 * USD, 123_456),
)  # fmt: skip
RUNNING = replace(
    PARKED, parked=0, running=64, shortfall=None, eta_ms=3_600_000,
    limited=f"provider {LONG!r} holds back: 500 requests a minute",
)  # fmt: skip


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (
            150,
            "1,012/12,000 ▕░░░░░░▏ · 12 failed · 0 running · 10,988 parked (window_spent) · $999.00 + "
            "$0.000123 of $1000.50 · resumes 03:12 UTC (in 3h12m)",
        ),
        (
            100,
            "1,012/12,000 · 12 failed · 10,988 parked (window_spent) · $999.00 of $1000.50 · "
            "resumes in 3h12m",
        ),
        (
            80,
            "1,012/12,000 ▕░░░░░░▏ · 12 failed · 0 running · 10,988 parked (window_spent)\n"
            "$999.00 spent + $0.000123 reserved of $1000.50 · resumes 03:12 UTC (in 3h12m)",
        ),
        (
            60,
            "1,012/12,000 · 12 failed · 10,988 parked (window_spent)\n"
            "$999.00 + $0.000123 of $1000.50 · $3.00/h · resumes in 3h12m",
        ),
        (
            40,
            "1,012/12,000 ▕█░░░░░░░░░░░▏ · 12 failed\n0 running · 10,988 parked (window_spent)\n"
            "$999.00 of $1000.50 · resumes in 3h12m",
        ),
    ],
)
def test_a_line_keeps_in_any_width_what_matters(width, text):
    assert line(PARKED, with_bar=True, width=width) == text


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 130, 200])
@pytest.mark.parametrize("now", [BEGUN, PARKED, RUNNING, replace(RUNNING, cap=None)])
def test_no_line_is_wider_than_there_is_room_and_no_amount_is_cut(now, width):
    lines = line(now, with_bar=True, width=width).split("\n")

    assert max(map(cell_len, lines)) <= width
    told, whole = " ".join(lines), line(now, with_bar=True).replace(",", "")
    assert all(word.replace(",", "") in whole.split() for word in told.split() if "$" in word)
    assert f"{now.done + now.failed:,}/{now.total:,}" in told
    if now.cap is not None:
        assert "$999.00" in told
        assert "$1000.50" in told


def test_a_long_name_is_told_by_its_ends():
    told = line(PARKED, width=400)

    assert "10,988 parked (window_spent: a-budget-wit…-😀-friends)" in told


def test_the_bar_follows_the_width_of_the_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "130")
    out = Terminal()
    shown = progress("bar", out)
    for width in (130, 60, 130, 40):
        shown._moving._console.size = (width, 20)
        out.truncate(0)
        shown.update(PARKED)
        told = line(PARKED, with_bar=True, width=width - 1)
        assert all(each in out.getvalue() for each in told.split("\n"))
    shown.close()
