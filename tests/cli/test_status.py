import asyncio
import csv
import io
import json
import signal
import subprocess
import sys

import pytest

from scheduler.budget import Unit
from scheduler.cli.status import sentence
from scheduler.shortfall import ParkReason, Shortfall
from scheduler.stores.sqlite import SqliteStore
from tests import warm
from tests.stores.conformance import T0, Bench, new, post

NOW_MS = 1_796_000_000_000


def test_status_tells_what_waits_why_how_much_is_missing_and_until_when(cli, filled):
    done = cli("status", "--store", filled)

    assert done.exit_code == 0, done.output
    assert "3 done, 1 failed, 0 running, 0 queued, 3 parked" in done.stdout
    assert "$0.15 missing of the $0.30 it may need" in done.stdout
    assert "resumes" in done.stdout
    assert "Europe/Athens (in" in done.stdout
    assert "scheduler budget set default" in done.stdout
    assert "$0.80 spent, $0.05 reserved ($0.05 of it for calls with unknown outcome)" in done.stdout


def test_status_for_programs_has_exact_decimal_strings(cli, filled):
    done = cli("status", "--json", "--store", filled)

    status = json.loads(done.stdout)
    assert status["requests"] == {
        "queued": 0, "parked": 3, "running": 0, "succeeded": 3, "failed": 1, "cancelled": 0,
        "expired": 0, "total": 7,
    }  # fmt: skip
    assert status["spend"] == {
        "attempts": 4, "posted_usd": "0.80", "reserved_usd": "0.05", "suspense_usd": "0.05",
    }  # fmt: skip
    (parked,) = status["parked"]
    assert (parked["reason"], parked["requests"]) == ("window_spent", 3)
    (lack,) = parked["shortfalls"]
    assert lack["budget"] == "default"
    assert lack["missing_usd"] == "0.15"
    assert lack["missing"] is None
    assert status["budgets"][0]["available_usd"] == "0.15"


def test_status_says_when_what_waits_will_be_done(cli, filled):
    done = cli("status", "--store", filled)
    told = json.loads(cli("status", "--json", "--store", filled).stdout)

    # Three may need $0.30 each, of a budget of which so much is left tomorrow.
    assert "finish    done " in done.stdout  # "in about 10s", if that is in a moment
    assert "; judged by 3 calls" in " ".join(done.stdout.split())
    assert (told["finish"]["requests"], told["finish"]["calls"]) == (3, 3)
    assert told["finish"]["early"] <= told["finish"]["likely"] <= told["finish"]["late"]
    assert told["burning"] == []


def test_looking_leaves_the_store_as_it_was(cli, filled):
    before = filled.read_bytes()

    for words in (["status"], ["queue"], ["budget", "list"], ["spend"], ["audit"]):
        assert cli(*words, "--store", filled).exit_code == 0

    assert filled.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["queue"],
        ["budget", "list"],
        ["budget", "pause", "default"],
        ["budget", "set", "default", "$2"],
        ["spend"],
        ["audit"],
        ["prices", "remove", "m"],
    ],
)
def test_a_store_that_is_not_there_is_named_and_not_made(cli, tmp_path, words):
    missing = tmp_path / "missing.db"

    done = cli(*words, "--store", missing)

    assert done.exit_code == 3
    assert str(missing) in done.stderr
    assert "--store" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not missing.exists()


def test_a_file_that_is_not_ours_is_refused_and_left_alone(cli, tmp_path):
    foreign = tmp_path / "notes.db"
    foreign.write_text("my notes, not a database\n" * 100)

    done = cli("status", "--json", "--store", foreign)

    assert done.exit_code == 3
    assert json.loads(done.stdout)["error"]["kind"] == "StoreForeign"
    assert foreign.read_text().startswith("my notes")


def test_the_store_may_be_named_by_the_environment(cli, filled):
    done = cli("status", "--json", env={"SCHEDULER_STORE": f"sqlite:///{filled}"})

    assert json.loads(done.stdout)["requests"]["total"] == 7


def test_a_store_in_memory_has_nothing_to_look_at(cli):
    done = cli("status", "--store", "memory://")

    assert done.exit_code == 3
    assert "memory://" in done.stderr


def test_the_queue_lists_live_requests_with_their_reason(cli, filled):
    done = cli("queue", "--store", filled)

    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert "q-4" in lines[1]
    assert "$0.15 missing" in lines[1]
    assert lines[2].endswith('"')


@pytest.mark.parametrize(
    ("states", "keys"),
    [
        (["parked"], ["q-4", "q-5", "q-6"]),
        (["succeeded", "failed"], ["q-0", "q-1", "q-2", "q-3"]),
        (["running"], []),
    ],
)
def test_the_queue_can_be_asked_for_states(cli, filled, states, keys):
    options = [word for state in states for word in ("--state", state)]

    done = cli("queue", "--json", "--store", filled, *options)

    assert [row["key"] for row in json.loads(done.stdout)] == keys


def test_the_queue_says_that_there_is_more_than_it_shows(cli, filled):
    done = cli("queue", "--json", "--limit", 2, "--store", filled)

    assert len(json.loads(done.stdout)) == 2
    assert "more" in done.stderr


def test_the_queue_tells_why_a_request_failed(cli, filled):
    (row,) = json.loads(cli("queue", "--json", "--state", "failed", "--store", filled).stdout)

    assert row["error"]["message"] == "no answer in time"
    assert row["cost_usd"] == "0.05"
    assert row["shortfall"] is None


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_watching_looks_again_and_ctrl_c_ends_it_well(filled, options):
    words = [sys.executable, "-m", "scheduler", "status", "--watch", "--store", str(filled)]
    process = warm.Popen([*words, *options], stdout=subprocess.PIPE, text=True)
    with process:
        marks = 0
        for line in process.stdout:
            marks += line.startswith(("store ", "{"))
            if marks == 2:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()

    assert process.returncode == 0
    assert marks == 2
    assert not options or all(json.loads(each) for each in rest.splitlines())


@pytest.fixture
def tagged(tmp_path):
    """Path of a store in which two users spent something."""

    async def fill(path):
        bench = Bench(SqliteStore(path))
        await bench.store.open(T0)
        for nusd, user in ((10**9, "ann"), (2 * 10**9, "bob")):
            tags = {"user": user, "page": "home"}
            (claimed,) = (await bench.submit(new((), nusd, tags=tags))).claimed
            await bench.settle(post(claimed, nusd))
        await bench.store.aclose()

    asyncio.run(fill(tmp_path / "s.db"))
    return tmp_path / "s.db"


def test_an_unknown_state_is_a_usage_error(cli, filled):
    assert cli("queue", "--state", "asleep", "--store", filled).exit_code == 2


def test_spend_sums_by_model_and_tells_the_total(cli, filled):
    done = cli("spend", "--by", "model", "--store", filled)

    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1][0] == "sim-small"
    assert rows[1][3] == "$0.50"
    assert rows[-1][0] == "total"
    assert rows[-1][3] == "$0.80"


@pytest.mark.parametrize(("by", "name"), [("job", "labels"), ("budget", "default")])
def test_spend_as_csv_has_exact_amounts(cli, filled, by, name):
    done = cli("spend", "--by", by, "--csv", "--store", filled)

    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert row == {
        by: name, "attempts": "4", "spent_usd": "0.80", "reserved_usd": "0.05",
        "suspense_usd": "0.05", "tokens": "300",
    }  # fmt: skip


def test_spend_is_told_by_tags_and_by_the_values_of_one(cli, tagged):
    everything = cli("spend", "--by", "tag", "--store", tagged)
    one = cli("spend", "--by", "tag:user", "--store", tagged)

    rows = [line.split() for line in everything.stdout.splitlines()]
    assert [(row[0], row[3]) for row in rows[1:]] == [
        ("page=home", "$3.00"), ("user=bob", "$2.00"), ("user=ann", "$1.00"),
    ]  # fmt: skip
    rows = [line.split() for line in one.stdout.splitlines()]
    assert rows[0][0] == "USER"
    assert [(row[0], row[3]) for row in rows[1:]] == [
        ("bob", "$2.00"),
        ("ann", "$1.00"),
        ("total", "$3.00"),
    ]
    (row, _) = json.loads(cli("spend", "--by", "tag:user", "--json", "--store", tagged).stdout)
    assert (row["tag"], row["spent_usd"]) == ("bob", "2.00")


@pytest.mark.parametrize("by", ["colour", "tag:", "tags"])
def test_a_heading_that_is_none_is_a_usage_error(cli, tagged, by):
    done = cli("spend", "--by", by, "--store", tagged)

    assert done.exit_code == 2
    assert "tag:NAME" in done.stderr


@pytest.mark.parametrize(("since", "count"), [("7d", 2), ("2020-01-01", 2), ("2100-01-01", 0)])
def test_spend_can_be_bounded_in_time(cli, filled, since, count):
    done = cli("spend", "--since", since, "--json", "--store", filled)

    assert len(json.loads(done.stdout)) == count


def test_a_time_that_is_none_is_a_clear_error(cli, filled):
    done = cli("spend", "--since", "lately", "--store", filled)

    assert done.exit_code == 3
    assert "'lately' is neither a duration" in done.stderr


def _lack(reason, resumes_at_ms=None):
    return Shortfall(
        reason=reason,
        budget="team",
        unit=Unit.USD,
        limit=10_000_000_000,
        posted=9_970_000_000,
        reserved=0,
        needed=40_000_000,
        missing=10_000_000,
        resumes_at_ms=resumes_at_ms,
        zone="Europe/Athens",
        window="calendar day, Europe/Athens",
    )


@pytest.mark.parametrize(
    ("lack", "text"),
    [
        (_lack(ParkReason.PAUSED), "scheduler budget resume team"),
        (_lack(ParkReason.LARGER_THAN_LIMIT), "only a raise helps"),
        (_lack(ParkReason.WINDOW_SPENT, NOW_MS + 60_000), "$0.01 missing of the $0.04"),
        (_lack(ParkReason.WINDOW_SPENT, NOW_MS + 3_600_000), "(in 1h)"),
        (_lack(ParkReason.WINDOW_SPENT), "resumes never by itself"),
        (_lack(ParkReason.HELD_IN_FLIGHT), "when running calls settle"),
        (_lack(ParkReason.PROVIDER_CREDIT), "top it up"),
    ],
)
def test_every_reason_to_wait_says_what_ends_it(lack, text):
    assert text in sentence(lack, NOW_MS)
