"""A few lines of a batch, sent to learn what all of it will cost; and what earlier calls tell."""

import json
import os
import sys
from decimal import Decimal

import pytest

from tests import warm

LINES = 120


def line(number, **more):
    return {
        "custom_id": f"c{number}", "model": "gpt-4o-mini", "max_tokens": 1000,
        "messages": [{"role": "user", "content": "x" * (50 + number)}], **more,
    }  # fmt: skip


@pytest.fixture
def scheduler(tmp_path):
    """Runs a command in a process of its own, as people do."""
    env = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("OPENAI", "SCHEDULER"))
    }  # fmt: skip

    def call(*words, stdin=None):
        return warm.run(
            [sys.executable, "-m", "scheduler", *words],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, input=stdin,
        )  # fmt: skip

    return call


def write(path, lines):
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))


def quoted(done):
    return json.loads(done.stdout)


SIM = ("--base-url", "sim:")


def test_sampled_answers_are_kept_and_paid_once(scheduler, tmp_path):
    write(tmp_path / "p.jsonl", [line(n) for n in range(LINES)])

    found = quoted(
        scheduler("quote", "p.jsonl", *SIM, "--sample", "40", "--budget", "$0.10", "--json")
    )
    ran = json.loads(scheduler("run", "p.jsonl", *SIM, "--json").stdout)

    assert found["sample"]["answered"] == 40
    assert found["known_before"] == 40
    assert found["requests"] == LINES - 40
    assert (ran["succeeded"], ran["known_before"], ran["failed"]) == (LINES - 40, 40, 0)
    texts = (tmp_path / "p.results.jsonl").read_text().splitlines()
    keys = [json.loads(each)["custom_id"] for each in texts]
    assert sorted(keys) == sorted(f"c{n}" for n in range(LINES))
    spent = json.loads(scheduler("status", "--json").stdout)["spend"]
    assert spent["attempts"] == LINES
    assert Decimal(spent["posted_usd"]) == Decimal(ran["cost_usd"]) + Decimal(
        found["sample"]["spent_usd"]
    )
    estimate = found["estimate"]
    assert estimate["calls"] == 40
    assert estimate["from"] == "this_batch"
    assert 0.6 < float(ran["cost_usd"]) / float(estimate["expected_usd"]) < 1.6
    assert (
        float(estimate["low_usd"]) < float(estimate["expected_usd"]) < float(estimate["high_usd"])
    )
    assert float(estimate["high_usd"]) <= float(found["most_usd"])


def test_a_sample_spends_no_more_than_it_may_and_leaves_nothing_behind(scheduler, tmp_path):
    write(tmp_path / "p.jsonl", [line(n) for n in range(LINES)])

    done = scheduler("quote", "p.jsonl", *SIM, "--sample", "60", "--budget", "$0.002", "--json")
    found, status = quoted(done), json.loads(scheduler("status", "--json").stdout)

    assert 0 < found["sample"]["answered"] < 60
    assert float(found["sample"]["spent_usd"]) <= 0.002
    assert "may cost more than is left" in found["sample"]["why_not_whole"]
    assert "budget set" not in done.stderr
    assert status["budgets"] == []
    assert status["requests"]["queued"] == status["requests"]["parked"] == 0
    assert not (tmp_path / "p.parked.jsonl").exists()
    ran = json.loads(scheduler("run", "p.jsonl", *SIM, "--json").stdout)
    assert ran["succeeded"] + ran["known_before"] == LINES


def test_the_sample_draws_on_the_stored_budget_too(scheduler, tmp_path):
    write(tmp_path / "p.jsonl", [line(n) for n in range(LINES)])
    scheduler("run", "p.jsonl", *SIM, "--limit", "1", "--budget", "$0.001/day")
    (before,) = json.loads(scheduler("status", "--json").stdout)["budgets"]

    found = quoted(
        scheduler("quote", "p.jsonl", *SIM, "--sample", "60", "--budget", "$1", "--json")
    )
    rows = json.loads(scheduler("status", "--json").stdout)["budgets"]

    assert found["budget"] == "$0.001/day"
    assert [row["name"] for row in rows] == ["default"]
    assert 0 < float(rows[0]["posted_usd"]) <= 0.001
    spent = Decimal(rows[0]["posted_usd"]) - Decimal(before["posted_usd"])
    assert Decimal(found["sample"]["spent_usd"]) == spent > 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--sample", "5"), 2, "not what they may cost"),
        (("--sample", "5", "--budget", "$1/day"), 3, "what the sample may cost"),
        (("--sample", "5", "--budget", "10 requests/hour"), 3, "what the sample may cost"),
    ],
)
def test_nothing_is_sampled_that_nothing_bounds(scheduler, tmp_path, words, code, said):
    write(tmp_path / "p.jsonl", [line(1)])

    done = scheduler("quote", "p.jsonl", *SIM, *words)

    assert done.returncode == code
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "scheduler.db").exists()


def test_a_pipe_is_not_sampled(scheduler, tmp_path):
    done = scheduler(
        "quote", "-", *SIM, "--sample", "5", "--budget", "$1", stdin=json.dumps(line(1))
    )

    assert done.returncode == 3
    assert "is a pipe" in " ".join(done.stderr.split())


def test_without_a_sample_nothing_is_sent(scheduler, tmp_path):
    write(tmp_path / "p.jsonl", [line(1)])

    found = quoted(scheduler("quote", "p.jsonl", *SIM, "--budget", "$1", "--json"))

    assert found["estimate"] is None
    assert "sample" not in found
    assert not (tmp_path / "scheduler.db").exists()


def test_what_an_interrupted_run_left_waiting_is_not_sent_by_a_sample(scheduler, tmp_path):
    write(tmp_path / "p.jsonl", [line(n) for n in range(LINES)])
    words = ("--budget", "$0.001", "--on-exhausted", "stop")
    assert scheduler("run", "p.jsonl", *SIM, *words).returncode == 75
    before = json.loads(scheduler("status", "--json").stdout)["spend"]

    done = scheduler("quote", "p.jsonl", *SIM, "--sample", "20", "--budget", "$1", "--json")

    assert json.loads(scheduler("status", "--json").stdout)["spend"] == before
    assert quoted(done)["sample"]["asked"] == 0


def test_earlier_calls_of_the_same_model_tell_what_to_expect(scheduler, tmp_path):
    write(tmp_path / "a.jsonl", [line(n) for n in range(LINES)])
    write(tmp_path / "b.jsonl", [line(n, model="gpt-4o-mini") for n in range(500, 560)])
    write(tmp_path / "c.jsonl", [line(n, model="gpt-4o") for n in range(9)])
    scheduler("run", "a.jsonl", *SIM)

    found = quoted(scheduler("quote", "b.jsonl", *SIM, "--json"))
    told = " ".join(scheduler("quote", "b.jsonl", *SIM).stdout.split())
    other = quoted(scheduler("quote", "c.jsonl", *SIM, "--json"))

    assert f"from {LINES} earlier calls of the same models" in told
    assert (found["estimate"]["calls"], found["estimate"]["from"]) == (LINES, "earlier_calls")
    expected = float(found["expected_usd"])
    assert expected == pytest.approx(float(found["estimate"]["expected_usd"]), rel=0.01)
    real = json.loads(scheduler("run", "b.jsonl", *SIM, "--json").stdout)["cost_usd"]
    assert 0.6 < float(real) / expected < 1.6
    assert other["estimate"] is None


def test_the_same_seed_draws_the_same_lines(scheduler, tmp_path):
    answered = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "p.jsonl", [line(n) for n in range(LINES)])
        scheduler(
            "quote", f"{name}/p.jsonl", *SIM, "--sample", "10", "--budget", "$1", "--seed", "7",
            "--store", f"{name}.db",
        )  # fmt: skip
        results = (tmp_path / name / "p.results.jsonl").read_text().splitlines()
        answered.append(sorted(json.loads(each)["custom_id"] for each in results))

    assert answered[0] == answered[1]
    assert len(answered[0]) == 10
    assert answered[0] != [f"c{n}" for n in range(10)]


def test_it_says_when_it_would_be_done(scheduler, tmp_path):
    write(tmp_path / "a.jsonl", [line(n) for n in range(LINES)])
    write(tmp_path / "b.jsonl", [line(n) for n in range(LINES)])
    scheduler("run", "a.jsonl", *SIM)

    def finish(*budget):
        return quoted(scheduler("quote", "b.jsonl", *SIM, *budget, "--json"))["finish"]

    none, day, never = finish(), finish("--budget", "$0.005/day"), finish("--budget", "$0.005")

    assert none["calls"] == LINES
    assert none["early"] <= none["likely"] <= none["late"]
    assert none["late"] < day["early"] <= day["likely"] <= day["late"]
    assert day["likely"][11:16] == "00:00"  # the calls of a day take no minute
    assert never["likely"] is None
    assert list(day["others"]) == ["$0.01/day", "$0.025/day"]
    assert day["smallest_for_today"].endswith("/day")
