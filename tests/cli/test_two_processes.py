"""One process runs on a store while another looks at it and changes its limits."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager

from tests import warm
from tests.processes.harness import wait_for

RUN = """
import asyncio, sys
from scheduler import Budget, FunctionProvider, Request, Scheduler

async def call(request):
    return "done"

async def main(path, spec):
    provider = FunctionProvider("own", call, quote="0.30", cost=lambda request, result: "0.30")
    async with Scheduler(path, budgets=[Budget("default", spec)], providers=provider) as s:
        futures = [s.submit(Request.chat("m", str(n), key=str(n))) for n in range(6)]
        for future in asyncio.as_completed(futures):
            await future
            print("answered", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def running(store, spec):
    """A process that asks six questions at $0.30 each."""
    words = [sys.executable, "-c", RUN, str(store), spec]
    process = warm.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def parked(cli, store):
    """Status once three requests are parked and nothing runs; None before."""
    if not store.exists():
        return None
    done = cli("status", "--json", "--store", store)
    status = json.loads(done.stdout) if done.exit_code == 0 else {"requests": {}}
    counts = status["requests"]
    return status if counts.get("parked") == 3 and counts.get("running") == 0 else None


def test_a_raise_from_another_process_lets_parked_requests_go_on_within_a_second(cli, tmp_path):
    store = tmp_path / "scheduler.db"
    with running(store, "$1") as process:
        status = wait_for(lambda: parked(cli, store), "three to be parked", 20)
        assert status["budgets"][0]["posted_usd"] == "0.90"

        change = cli("budget", "set", "default", "$20", "--json", "--store", store)
        raised_s = time.monotonic()
        answers = [process.stdout.readline() for _ in range(6)]
        waited_s = time.monotonic() - raised_s
        code = process.wait(20)

    assert json.loads(change.stdout)["waiting"] == 3
    assert answers == ["answered\n"] * 6
    assert code == 0
    assert waited_s < 1.0
    assert cli("audit", "--store", store).exit_code == 0
    spent = json.loads(cli("spend", "--json", "--store", store).stdout)
    assert [row["spent_usd"] for row in spent] == ["1.80"]


def test_a_budget_paused_from_another_process_admits_nothing_until_it_is_resumed(cli, tmp_path):
    store = tmp_path / "scheduler.db"
    with running(store, "$1") as process:
        wait_for(lambda: parked(cli, store), "three to be parked", 20)
        assert cli("budget", "pause", "default", "--store", store).exit_code == 0
        assert cli("budget", "set", "default", "none", "--store", store).exit_code == 0

        def is_told():
            status = json.loads(cli("status", "--json", "--store", store).stdout)
            return [row["reason"] for row in status["parked"]] == ["paused"]

        wait_for(is_told, "the pause to be told", 20)
        assert parked(cli, store)["requests"]["succeeded"] == 3

        assert cli("budget", "resume", "default", "--store", store).exit_code == 0
        assert process.wait(20) == 0
