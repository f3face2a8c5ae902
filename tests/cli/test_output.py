import json

import pytest

from scheduler import errors
from scheduler.cli import exits, output
from scheduler.cli.exits import Exit

MIDNIGHT_ATHENS_MS = 1_796_076_000_000  # 2026-12-01 00:00 Europe/Athens, which is 22:00 UTC before


def test_a_table_aligns_numbers_to_the_right_and_never_cuts():
    text = output.table(("name", "spent"), [("a", "$1.00"), ("long name" * 20, "$100.00")], "spent")

    lines = text.splitlines()
    assert lines[0].split() == ["NAME", "SPENT"]
    assert lines[1].endswith("  $1.00")
    assert lines[2].endswith("long name  $100.00")
    assert len(lines[0]) == len(lines[1]) == len(lines[2])


def test_a_missing_cell_is_a_dash_and_control_characters_do_not_reach_the_terminal():
    text = output.table(("key", "why"), [(None, "\x1b[31mred\x07\nsecond line")])

    assert text.splitlines()[1].startswith("-")
    assert not {"\x1b", "\x07"} & set(text)
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    ("part", "whole", "picture"),
    [
        (0, 10, "▕░░░░▏"),
        (5, 10, "▕██░░▏"),
        (9, 10, "▕███░▏"),
        (10, 10, "▕████▏"),
        (99, 10, "▕████▏"),
        (0, 0, "▕████▏"),
        (-5, 10, "▕░░░░▏"),
    ],
)
def test_a_bar_is_full_only_when_nothing_is_left(part, whole, picture):
    assert output.bar(part, whole, width=4) == picture


@pytest.mark.parametrize(
    ("at_ms", "zone", "text"),
    [
        (MIDNIGHT_ATHENS_MS, "Europe/Athens", "2026-12-01T00:00:00+02:00"),
        (MIDNIGHT_ATHENS_MS, "UTC", "2026-11-30T22:00:00+00:00"),
        (MIDNIGHT_ATHENS_MS + 5, "UTC", "2026-11-30T22:00:00.005+00:00"),
        (None, "UTC", None),
    ],
)
def test_instants_for_programs_carry_the_offset_of_the_zone(at_ms, zone, text):
    assert output.iso(at_ms, zone) == text


@pytest.mark.parametrize(
    ("before_ms", "text"),
    [
        (3 * 3_600_000 + 12 * 60_000, "2026-12-01 00:00 Europe/Athens (in 3h12m)"),
        (8_000, "2026-12-01 00:00:00 Europe/Athens (in 8s)"),
        (-60_000, "00:00 Europe/Athens (in 0s)"),
    ],
)
def test_until_tells_the_time_in_the_zone_and_how_long_it_takes(before_ms, text):
    now_ms = MIDNIGHT_ATHENS_MS - before_ms

    assert output.until(MIDNIGHT_ATHENS_MS, "Europe/Athens", now_ms) == text


def test_what_never_resets_is_said_to():
    assert output.until(None, "UTC", 0) == "never by itself"


def test_amounts_for_programs_are_exact_strings_in_dollars_and_integers_in_other_units():
    usd = output.amounts("usd", limit=None, posted=1_234_567)
    tokens = output.amounts("tokens", limit=None, posted=1_234_567)

    assert usd == {"limit_usd": None, "limit": None, "posted_usd": "0.001234567", "posted": None}
    assert tokens == {"limit_usd": None, "limit": None, "posted_usd": None, "posted": 1_234_567}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("--store", "there is none"), Exit.CONFIG),
        (errors.ConfigError("OPENAI_API_KEY", "is not set"), Exit.CREDENTIALS),
        (errors.CredentialsRefused(401, "bad key"), Exit.CREDENTIALS),
        (errors.PriceUnknown("m"), Exit.CONFIG),
        (errors.BudgetUnknown("team", ("default",)), Exit.CONFIG),
        (errors.StoreLocked("locked"), Exit.CONFIG),
        (errors.StoreTooNew("x.db", 9, 1), Exit.CONFIG),
        (errors.LedgerInconsistent("off"), Exit.FAILED),
        (errors.InputError("in.jsonl", 3, "not JSON"), Exit.USAGE),
        (errors.ProviderOverloaded(503, "busy"), Exit.FAILED),
        (errors.CostTooHigh(2, 1), Exit.FAILED),
    ],
)
def test_every_kind_of_error_has_its_exit_code(error, code):
    assert exits.exit_for(error) is code


def test_an_error_is_one_line_on_stderr_and_an_object_on_stdout(capsys, monkeypatch):
    monkeypatch.delenv("SCHEDULER_DEBUG", raising=False)

    exits.report(errors.ConfigError("budget", "no\nsuch \x1b[1mthing"), as_json=True)

    told = capsys.readouterr()
    assert told.err == "error: budget: no such [1mthing\n"
    assert json.loads(told.out) == {
        "error": {"kind": "ConfigError", "message": "budget: no such [1mthing"}
    }


def test_debugging_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("SCHEDULER_DEBUG", "1")

    exits.report(errors.StoreLocked("held by another process"))

    assert "StoreLocked" in capsys.readouterr().err


def test_the_help_names_every_exit_code():
    assert list(exits.CODES) == list(Exit)
