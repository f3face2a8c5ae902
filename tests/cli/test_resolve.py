"""Unknown outcomes and old requests from the command line."""

import json
import sqlite3
import time

import pytest


def unknown(cli, store):
    return json.loads(cli("queue", "--state", "suspense", "--json", "--store", store).stdout)


def reserved(cli, store):
    (row,) = json.loads(cli("budget", "list", "--json", "--store", store).stdout)
    return row["posted_usd"], row["suspense_usd"]


def test_unknown_outcomes_are_listed_with_what_is_known(cli, filled):
    (row,) = unknown(cli, filled)

    assert (row["key"], row["job"], row["state"]) == ("q-3", "labels", "suspense")
    assert (row["model"], row["provider"], row["ceiling_usd"]) == ("sim-small", "openai", "0.05")
    shown = cli("queue", "--state", "suspense", "--store", filled)
    assert "q-3" in shown.stdout
    assert "scheduler resolve" in shown.stderr


def test_budgets_show_how_much_is_unknown(cli, filled):
    shown = cli("budget", "list", "--store", filled).stdout

    assert "UNKNOWN" in shown.splitlines()[0]
    assert "$0.05" in shown


def test_other_states_can_be_asked_for_beside_it(cli, filled):
    rows = cli("queue", "--state", "suspense", "--state", "parked", "--json", "--store", filled)

    assert {row["state"] for row in json.loads(rows.stdout)} == {"suspense", "parked"}


def test_charging_an_unknown_outcome_frees_the_rest(cli, filled):
    done = cli("resolve", "q-3", "--charge", "$0.02", "--store", filled)

    assert done.exit_code == 0
    assert done.stdout == "1 attempt resolved: $0.02 charged; $0.03 counts no longer\n"
    assert unknown(cli, filled) == []
    assert reserved(cli, filled) == ("0.82", "0.00")
    assert cli("audit", "--store", filled).exit_code == 0


def test_charging_more_than_was_reserved_is_told_as_it_is(cli, filled):
    done = cli("resolve", "q-3", "--charge", "$0.06", "--store", filled)

    assert "$0.06 charged; $0.01 more than was reserved, which counts from now on" in done.stdout


def test_a_job_that_does_not_exist_is_an_error(cli, filled):
    done = cli("resolve", "--all", "--void", "--job", "lables", "--store", filled)

    assert done.exit_code == 3
    assert "there is no job 'lables'; nothing was changed" in done.stderr


def test_voiding_gives_everything_back(cli, filled):
    done = cli("resolve", "q-3", "--void", "--json", "--store", filled)

    told = json.loads(done.stdout)
    assert (told["charged_usd"], told["freed_usd"]) == ("0.00", "0.05")
    assert told["resolved"][0]["key"] == "q-3"
    assert reserved(cli, filled) == ("0.80", "0.00")


def test_an_attempt_can_be_named_by_its_id_and_all_at_once(cli, filled):
    (row,) = unknown(cli, filled)
    wrong = cli("resolve", "--attempt", 99, "--void", "--store", filled)
    assert wrong.exit_code == 3
    assert "99 is no unknown outcome; nothing was changed" in wrong.stderr

    assert cli("resolve", "--attempt", row["attempt"], "--void", "--store", filled).exit_code == 0
    again = cli("resolve", "--all", "--void", "--store", filled)
    assert (again.exit_code, again.stderr) == (0, "no outcome is unknown\n")


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("q-3",), 2, "say either --charge AMOUNT or --void"),
        (("q-3", "--void", "--charge", "1"), 2, "say either"),
        (("--void",), 2, "name one of: KEY, --attempt ID, --all"),
        (("q-3", "--all", "--void"), 2, "name one of"),
        (("q-1", "--void"), 3, "no outcome is unknown for the key 'q-1'; nothing was changed"),
        (("q-3", "--charge", "lots"), 3, "lots"),
    ],
)
def test_what_is_not_clear_is_refused(cli, filled, words, code, problem):
    refused = cli("resolve", *words, "--store", filled)

    assert refused.exit_code == code
    assert problem in " ".join(refused.stderr.split())
    assert reserved(cli, filled) == ("0.80", "0.05")


def test_a_key_with_several_unknown_attempts_is_charged_one_by_one(cli, filled):
    db = sqlite3.connect(filled)
    columns = "request_id, worker_id, job_id, budgets, model, state, made_at_ms, ceiling_nusd, ceiling_tokens"
    db.execute(
        f"INSERT INTO reservations ({columns}) SELECT {columns} FROM reservations WHERE state = 'suspense'"
    )
    db.commit()
    db.close()

    refused = cli("resolve", "q-3", "--charge", "$0.01", "--store", filled)

    assert refused.exit_code == 3
    assert "2 attempts nobody heard back from" in refused.stderr


def test_pruning_forgets_old_ends_and_keeps_every_sum(cli, filled, tmp_path):
    spent = cli("spend", "--json", "--store", filled).stdout
    time.sleep(0.01)
    archive = tmp_path / "old.jsonl"

    kept = cli("prune", "--before", "1ms", "--store", filled)
    done = cli("prune", "--before", "1ms", "--undelivered", "--archive", archive, "--store", filled)

    assert kept.stdout == "0 requests forgotten\n"
    assert done.stdout == f"3 requests forgotten; they are in {archive}\n"
    lines = [json.loads(line) for line in archive.read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["q-0", "q-1", "q-2"]
    assert archive.stat().st_mode & 0o777 == 0o600
    assert cli("spend", "--json", "--store", filled).stdout == spent
    assert cli("audit", "--store", filled).exit_code == 0
    assert reserved(cli, filled) == ("0.80", "0.05")
    assert len(unknown(cli, filled)) == 1


def test_an_archive_that_cannot_be_written_leaves_everything(cli, filled, tmp_path):
    refused = cli(
        "prune", "--before", "1ms", "--undelivered", "--archive", tmp_path / "no" / "a.jsonl",
        "--store", filled,
    )  # fmt: skip

    assert refused.exit_code == 3
    rows = cli("queue", "--state", "succeeded", "--json", "--store", filled)
    assert len(json.loads(rows.stdout)) == 3
