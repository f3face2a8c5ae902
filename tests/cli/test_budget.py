import asyncio
import getpass
import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from scheduler.budget import Budget, parse_caps
from scheduler.cli.budget import explained, explanation
from scheduler.stores import open_store
from tests import warm


def at_ms(text):
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)


def listed(cli, store):
    return json.loads(cli("budget", "list", "--json", "--store", store).stdout)


def test_budgets_for_programs_are_a_list_of_objects_with_exact_strings(cli, filled):
    (row,) = listed(cli, filled)

    resets_at = datetime.fromisoformat(row.pop("resets_at"))
    starts_at = datetime.fromisoformat(row.pop("window_starts_at"))
    assert parse_caps(row.pop("cap")) == parse_caps("$1/day @Europe/Athens")
    assert row == {
        "name": "default",
        "unit": "usd",
        "kind": "calendar",
        "limit_usd": "1.00",
        "limit": None,
        "posted_usd": "0.80",
        "posted": None,
        "reserved_usd": "0.05",
        "reserved": None,
        "suspense_usd": "0.05",
        "suspense": None,
        "available_usd": "0.15",
        "available": None,
        "overrun_usd": "0.00",
        "overrun": None,
        "kept_usd": None,
        "kept": None,
        "risk": "none",
        "calls_beyond_ceilings": 0,
        "window": "calendar day, Europe/Athens",
        "paused": False,
    }
    assert resets_at.utcoffset() is not None
    assert (resets_at.hour, resets_at.minute) == (0, 0)
    assert starts_at < datetime.now(UTC) < resets_at


def test_budgets_for_people_show_what_is_left(cli, filled):
    done = cli("budget", "list", "--store", filled)

    heading, line = done.stdout.splitlines()
    assert heading.split()[:2] == ["BUDGET", "LIMIT"]
    for part in ("default", "$0.80", "$0.05", "$0.15", "Europe/Athens", "▕██████████░░▏"):
        assert part in line


def test_setting_a_limit_tells_old_new_and_how_many_wait(cli, filled):
    done = cli("budget", "set", "default", "$20", "--store", filled)

    assert done.exit_code == 0, done.output
    assert "→" in done.stdout
    assert "3 requests parked on it" in done.stdout
    (row,) = listed(cli, filled)
    assert row["limit_usd"] == "20.00"
    assert row["posted_usd"] == "0.80"
    assert row["kind"] == "calendar"


def test_setting_a_limit_for_programs(cli, filled):
    done = cli("budget", "set", "default", "$20", "--json", "--store", filled)

    change = json.loads(done.stdout)
    assert change["name"] == "default"
    assert change["waiting"] == 3
    assert change["caps"][0]["limit_usd"] == "20.00"
    assert change["old"] != change["new"]


def test_none_switches_the_limit_off_and_goes_on_counting(cli, filled):
    assert cli("budget", "set", "default", "none", "--store", filled).exit_code == 0

    (row,) = listed(cli, filled)
    assert row["limit_usd"] is None
    assert row["available_usd"] is None
    assert row["posted_usd"] == "0.80"


def test_a_limit_below_what_is_spent_cancels_nothing_and_says_so(cli, filled):
    done = cli("budget", "set", "default", "$0.10", "--store", filled)

    assert done.exit_code == 0
    assert "nothing is cancelled" in done.stderr
    (row,) = listed(cli, filled)
    assert row["available_usd"] == "-0.75"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["set", "team", "$5"], "'default'"),
        (["pause", "team"], "'default'"),
        (["set", "default", "a lot"], "a lot"),
        (["set", "default", "-$5"], "-"),
    ],
)
def test_what_cannot_be_set_is_one_clear_line_and_changes_nothing(cli, filled, words, told):
    done = cli("budget", words[0], "--store", filled, "--", *words[1:])

    assert done.exit_code == 3
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [row["name"] for row in listed(cli, filled)] == ["default"]


def test_a_budget_can_be_made_when_that_is_asked_for(cli, filled):
    done = cli("budget", "set", "team", "$5/hour,2M tokens/day", "--create", "--store", filled)

    assert done.exit_code == 0, done.output
    assert "made" in done.stdout
    rows = [row for row in listed(cli, filled) if row["name"] == "team"]
    assert [(row["unit"], row["limit_usd"], row["limit"]) for row in rows] == [
        ("usd", "5.00", None),
        ("tokens", None, 2_000_000),
    ]


def test_a_budget_can_be_made_before_the_first_run(cli, tmp_path):
    store = tmp_path / "new.db"

    assert cli("budget", "set", "default", "$5/day", "--create", "--store", store).exit_code == 0
    assert [row["name"] for row in listed(cli, store)] == ["default"]


def test_pausing_and_resuming_are_seen_by_others(cli, filled):
    paused = cli("budget", "pause", "default", "--store", filled)
    assert paused.stdout.startswith("default: paused")
    assert listed(cli, filled)[0]["paused"] is True

    resumed = cli("budget", "resume", "default", "--json", "--store", filled)
    assert json.loads(resumed.stdout)["paused"] is False
    assert listed(cli, filled)[0]["paused"] is False


@pytest.mark.parametrize(
    ("spec", "now", "starts", "resets"),
    [
        (
            "$100/month @Asia/Tokyo",
            "2026-12-31T14:59:59+00:00",
            "2026-12-01T00:00:00+09:00",
            ["2027-01-01T00:00:00+09:00", "2027-02-01T00:00:00+09:00", "2027-03-01T00:00:00+09:00"],
        ),
        (
            "$10/day @Europe/Athens",  # the clock goes back on the 25th
            "2026-10-24T12:00:00+00:00",
            "2026-10-24T00:00:00+03:00",
            ["2026-10-25T00:00:00+03:00", "2026-10-26T00:00:00+02:00", "2026-10-27T00:00:00+02:00"],
        ),
    ],
)
def test_a_calendar_budget_is_explained_with_its_window_and_three_resets(spec, now, starts, resets):
    (cap,) = parse_caps(spec)

    told = explained(cap, at_ms(now))

    assert told["kind"] == "calendar"
    assert told["window_starts_at"] == starts
    assert told["next_resets"] == resets
    assert told["window_ends_at"] == resets[0]
    for instant in (starts, *resets):
        assert instant.replace("T", " ") in explanation(cap, at_ms(now))


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [
        ("$5/24h", "rolling", "never all at once"),
        ("$20", "total", "only a raise helps"),
        ("none", "total", "no limit, only counted"),
        ("500 requests/hour", "calendar", "at most 500 requests"),
    ],
)
def test_every_kind_of_budget_is_explained(spec, kind, text):
    (cap,) = parse_caps(spec)

    assert explained(cap, 0)["kind"] == kind
    assert text in explanation(cap, 0)


def test_explaining_several_caps_gives_a_paragraph_each(cli):
    done = cli("budget", "explain", "$5/hour,$50/day")

    assert done.exit_code == 0, done.output
    assert len(done.stdout.split("\n\n")) == 2


def test_explaining_needs_no_store_and_refuses_nonsense(cli):
    done = cli("budget", "explain", "$5/fortnight", "--json")

    assert done.exit_code == 3
    assert json.loads(done.stdout)["error"]["kind"] == "ConfigError"


def test_an_audit_of_a_sound_ledger_is_clean(cli, filled):
    done = cli("audit", "--json", "--store", filled)

    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["clean"] is True
    assert found["reservations"] == 4
    assert found["balances"] >= 1


def test_an_audit_exits_1_when_a_balance_is_off(cli, filled):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(filled)) as db, db:
        db.execute("UPDATE balances SET posted = posted - 1")

    done = cli("audit", "--store", filled)
    assert done.exit_code == 1
    assert "$0.799999999" in done.stdout
    assert "OFF" in done.stderr

    (off,) = json.loads(cli("audit", "--json", "--store", filled).stdout)["discrepancies"]
    assert (off["what"], off["stored_usd"], off["recomputed_usd"]) == (
        "posted", "0.799999999", "0.80",
    )  # fmt: skip


def test_the_module_runs_as_the_command(filled):
    words = [sys.executable, "-m", "scheduler", "budget", "list", "--json", "--store", str(filled)]

    done = warm.run(words, capture_output=True, text=True, timeout=60, check=True)

    assert json.loads(done.stdout)[0]["name"] == "default"


def test_a_reader_that_goes_away_is_no_error(filled):
    words = [sys.executable, "-m", "scheduler", "queue", "--store", str(filled)]
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = warm.run(words, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60)

    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# Removing, and explaining what rules meet


def test_a_removed_budget_tells_what_it_spent_and_is_listed_no_more(cli, filled):
    done = cli("budget", "remove", "default", "--store", filled)

    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(
        "default: removed; $0.80 spent stays on record; 3 requests parked"
    )
    assert listed(cli, filled) == []
    (row,) = json.loads(cli("spend", "--by", "budget", "--json", "--store", filled).stdout)
    assert (row["budget"], row["spent_usd"]) == ("default", "0.80")
    assert cli("audit", "--store", filled).exit_code == 0
    for words in (["remove", "default"], ["set", "default", "$5"], ["pause", "default"]):
        assert cli("budget", words[0], "--store", filled, "--", *words[1:]).exit_code == 3

    assert cli("budget", "set", "default", "$5/day @Europe/Athens", "--create", "--store", filled)
    assert listed(cli, filled)[0]["posted_usd"] == "0.80"


def test_who_changed_what_is_kept_and_told(cli, filled):
    assert "nothing was changed yet" in cli("budget", "log", "--store", filled).stderr
    for words in (
        ("budget", "set", "default", "$2"), ("budget", "set", "default", "$2"),
        ("budget", "set", "other", "$1/day", "--create"), ("budget", "set", "default", "much"),
        ("budget", "pause", "default"), ("budget", "resume", "default"),
        ("resolve", "--all", "--charge", "$0.01"), ("budget", "remove", "other"),
    ):  # fmt: skip
        cli(*words, "--store", filled)

    told = json.loads(cli("budget", "log", "--json", "--store", filled).stdout)

    assert [(act["what"], act["name"], act["before"], act["after"]) for act in told] == [
        ("remove", "other", "$1/day", ""),
        ("charge", told[1]["name"], "$0.05", "$0.01"),
        ("resume", "default", "paused", "goes on"),
        ("pause", "default", "goes on", "paused"),
        ("limit", "other", "", "$1/day"),
        ("limit", "default", "$1/day @Europe/Athens", "$2/day @Europe/Athens"),
    ]
    assert told[0]["who"] == f"{getpass.getuser()}@{socket.gethostname()} (budget remove)"
    lines = cli("budget", "log", "-n", "2", "--store", filled).stdout.splitlines()
    assert len(lines) == 3
    assert "budget remove" in lines[1]


def test_a_parent_is_not_removed_before_its_children(cli, tmp_path):
    store = tmp_path / "s.db"
    rules(store)

    done = cli("budget", "remove", "org", "--json", "--store", store)

    assert done.exit_code == 3
    assert "is the parent of 'big'" in json.loads(done.stdout)["error"]["message"]
    assert json.loads(cli("budget", "remove", "big", "--json", "--store", store).stdout)["removed"]
    assert cli("budget", "remove", "org", "--store", store).exit_code == 0


def rules(path):
    async def make():
        store = open_store(path)
        await store.open(0)
        budgets = [
            Budget("org", "$9"), Budget("big", "$1", models=["gpt-4*"], parent="org"),
            Budget("ann", "$1", models=["claude-*"], tags={"user": "ann"}),
        ]  # fmt: skip
        await store.define(budgets, 0)
        await store.aclose()

    asyncio.run(make())


def test_it_is_explained_under_which_names_rules_see_a_model(cli, tmp_path):
    store = tmp_path / "s.db"
    rules(store)
    words = (
        "--model",
        "openrouter:openai/GPT-4o-2024-08-06",
        "--tag",
        "user=ann",
        "--store",
        store,
    )
    config = tmp_path / "scheduler.toml"
    config.write_text("[provider.openrouter]\n[provider.openai]\n")

    done = cli("budget", "explain", *words, "--config", config)
    told = json.loads(cli("budget", "explain", *words, "--config", config, "--json").stdout)

    assert done.exit_code == 0, done.output
    for part in ("at openrouter", "gpt-4o\n", "big", "yes", "ann", "no", "draws on org, big"):
        assert part in done.stdout
    assert (told["model"], told["provider"]) == ("openai/GPT-4o-2024-08-06", "openrouter")
    assert {"gpt-4o", "openrouter/openai/gpt-4o-2024-08-06"} <= set(told["names"])
    assert [(row["budget"], row["matches"]) for row in told["rules"]] == [
        ("big", True),
        ("ann", False),
    ]
    assert told["draws_on"] == ["org", "big"]


@pytest.mark.parametrize("words", [(), ("$5", "--model", "gpt-4o")])
def test_either_a_limit_is_explained_or_a_model(cli, words):
    done = cli("budget", "explain", *words)

    assert done.exit_code == 3
    assert "--model NAME, not both" in done.stderr


# Explaining a model where nothing is stored yet


@pytest.mark.parametrize("store", ["memory://", "nowhere.db", "sqlite:///no/such/folder/x.db"])
def test_a_model_is_explained_without_a_store_by_what_is_configured(
    cli, tmp_path, monkeypatch, store
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scheduler.toml").write_text(
        '[provider.openrouter]\nbase_url = "https://openrouter.ai/api/v1"\n'
        '[route]\nfast = "openrouter:openai/gpt-4o"\n'
    )

    done = cli("budget", "explain", "--model", "fast", "--store", store)
    told = json.loads(
        cli("budget", "explain", "--model", "fast", "--store", store, "--json").stdout
    )

    assert done.exit_code == 0, done.output
    assert "at openrouter" in done.stdout
    assert "there is no store" in done.stderr
    assert (told["provider"], told["rules"], told["draws_on"]) == ("openrouter", [], [])
    assert list(tmp_path.iterdir()) == [tmp_path / "scheduler.toml"]  # nothing was made
