"""SIGTERM drains; a process that stands still beyond its lease comes back harmless."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from scheduler.budget import Budget
from tests.processes.harness import (
    check_ledger,
    freeze,
    results,
    server,
    wait_for,
    write_prompts,
)

PRICE = ("--price", "sim-small=0.15/0.60")
LEASE_MS = 1_500


@pytest.mark.timeout(120)
def test_sigterm_lets_what_runs_finish_and_leaves_nothing_pending(tmp_path, file, children):
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    write_prompts(prompts, 80)
    with server("--latency", "150ms") as provider:
        words = ("-m", "scheduler", "run", str(prompts), "-o", str(out), "--store",
                 f"sqlite:///{file.path}", "--base-url", provider.url, "-c", "5", "--budget", "$1",
                 *PRICE)  # fmt: skip
        child = children.start(*words)
        wait_for(lambda: out.exists() and len(results(out)) >= 10, "some results")

        child.terminate()
        _, errors = child.communicate(timeout=60)

        assert child.returncode == 130, errors
        assert "running calls" in errors
        assert file.in_flight() == 0
        assert file("SELECT count(*) FROM reservations WHERE state IN ('pending', 'suspense')") == [
            (0,)
        ]
        assert file("SELECT count(*) FROM workers") == [(0,)]
        assert file.counted_nusd() == provider.billed_nusd()
        again = children.start(*words)
        _, errors = again.communicate(timeout=60)
        assert again.returncode == 0, errors
        assert provider.bill()["calls"] == 80  # nothing was sent twice
        assert file.counted_nusd() == provider.billed_nusd()
    assert sorted(results(out)) == sorted(f"r{n}" for n in range(80))


@pytest.mark.timeout(120)
def test_a_process_stopped_beyond_its_lease_sends_nothing_that_others_took_over(file, children):
    """Its pid cannot be seen, as in another container, so only its lease tells."""
    names = [f"k{n}" for n in range(12)]

    def options(host: str, url: str) -> str:
        return json.dumps(
            {"path": str(file.path), "url": url, "names": names, "host": host, "concurrency": 3,
             "budget": "team", "lease_ms": LEASE_MS}
        )  # fmt: skip

    with server("--latency", "1000ms") as provider:
        file.define(Budget("team", "$1"))
        zombie = children.start("-m", "tests.processes.worker", options("far", provider.url))
        wait_for(lambda: file.is_ready and file.states().get("succeeded", 0) >= 3, "answers")
        freeze(zombie, file, provider, 2)
        in_flight = file.in_flight()
        answered = file.states()["succeeded"]
        time.sleep(LEASE_MS / 1000 + 0.3)

        other = children.start("-m", "tests.processes.worker", options("near", provider.url))
        wait_for(lambda: file("SELECT 1 FROM reservations WHERE why LIKE '%silent%'"), "a takeover")
        check_ledger(file, provider)
        out, errors = other.communicate(timeout=60)
        assert other.returncode == 0, errors
        assert json.loads(out.splitlines()[-1])["answers"] == len(names)
        check_ledger(file, provider)
        sent = provider.bill()["calls"]

        os.kill(zombie.pid, signal.SIGCONT)
        out, errors = zombie.communicate(timeout=60)

        assert zombie.returncode == 0, errors
        assert json.loads(out.splitlines()[-1])["answers"] == len(names)  # from the other one
        assert provider.bill()["calls"] == sent  # it sent nothing new
        assert answered + in_flight <= sent <= len(names) + in_flight
        check_ledger(file, provider)
    # What it had sent before it was stopped is booked truthfully, once its answers came.
    assert file("SELECT count(*) FROM reservations WHERE state = 'pending'") == [(0,)]
    assert file.states() == {"succeeded": len(names)}
    assert file.audit().discrepancies == ()
