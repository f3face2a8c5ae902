"""kill -9, again and again: the provider's own bill is the truth."""

from __future__ import annotations

import random
import time

import pytest

from scheduler.budget import Budget
from tests.processes.harness import check_ledger, results, server, wait_for, write_prompts

KILLS = 24
PROMPTS = 420
PRICE = ("--price", "sim-small=0.15/0.60")


def is_there(file, child):
    """Whether a child uses the file, or has ended."""
    found = file("SELECT 1 FROM workers WHERE pid = ?", child.pid)
    return bool(found) or child.poll() is not None


@pytest.mark.timeout(600)
def test_killed_dozens_of_times_a_batch_loses_nothing_and_overspends_nothing(
    tmp_path, file, children
):
    """Also with the budget spent and raised in between, so that it is killed while parked."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    write_prompts(prompts, PROMPTS)
    limit = 0.002
    file.define(Budget("default", f"${limit}"))
    sent_twice_at_most = 0
    with server("--latency", "40ms", "--record") as provider:
        words = ("-m", "scheduler", "run", str(prompts), "-o", str(out), "--store",
                 f"sqlite:///{file.path}", "--base-url", provider.url, "-c", "6", *PRICE)  # fmt: skip
        for number in range(KILLS):
            child = children.start(*words)
            wait_for(lambda: is_there(file, child), "a start")  # noqa: B023
            # The first after a raise is killed in its work, however slow the machine is.
            goal = provider.bill()["calls"] + (rng.randint(1, 20) if number % 4 == 0 else 0)
            wait_for(lambda: provider.bill()["calls"] >= goal, "some calls")  # noqa: B023
            until_s = time.monotonic() + rng.uniform(0, 0.6)
            while time.monotonic() < until_s:
                check_ledger(file, provider)
                time.sleep(0.02)
            child.kill()
            child.communicate()
            sent_twice_at_most += file.in_flight()
            check_ledger(file, provider)
            if number % 4 == 3:
                limit += 0.002
                file.define(Budget("default", f"${limit}"))
        killed_at = provider.bill()["calls"]
        file.define(Budget("default", "$1"))

        last = children.start(*words)
        _, errors = last.communicate(timeout=240)

        assert last.returncode == 0, f"seed {seed}: {errors}"
        assert sorted(results(out)) == sorted(f"r{n}" for n in range(PROMPTS)), f"seed {seed}"
        check_ledger(file, provider)
        calls = provider.bill()["calls"]
    assert 0 < killed_at < PROMPTS + sent_twice_at_most
    assert PROMPTS <= calls <= PROMPTS + sent_twice_at_most, f"seed {seed}"
    assert file.states() == {"succeeded": PROMPTS}
    assert file.audit().discrepancies == ()


@pytest.mark.timeout(120)
def test_a_provider_that_is_killed_and_started_again_loses_no_request(tmp_path, file, children):
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    write_prompts(prompts, 120)
    with server("--latency", "60ms") as provider:
        child = children.start(
            "-m", "scheduler", "run", str(prompts), "-o", str(out), "--store",
            f"sqlite:///{file.path}", "--base-url", provider.url, "-c", "6", "--budget", "$1",
            "--max-attempts", "9", *PRICE,
        )  # fmt: skip
        wait_for(lambda: out.exists() and len(results(out)) >= 20, "some results")
        billed_nusd = provider.billed_nusd()
        provider.kill()
        provider.billed_before_nusd = billed_nusd
        time.sleep(0.5)
        provider.start()

        _, errors = child.communicate(timeout=90)

        assert child.returncode == 0, errors
        check_ledger(file, provider)
    assert sorted(results(out)) == sorted(f"r{n}" for n in range(120))
    assert file.audit().discrepancies == ()
