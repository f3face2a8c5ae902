"""What is done in one process, and heard, or seen otherwise, in all the others."""

from __future__ import annotations

import json
import time

import pytest

from scheduler.budget import Budget
from tests.postgres.database import Database
from tests.processes.harness import Children, check_ledger, server, wait_for

PROCESSES = 5
HOUR_S = 3_600


@pytest.fixture
def children():
    made = Children()
    yield made
    made.end()


def start(children, url, provider, number, **options):
    words = {"store": url, "url": provider.url, "budget": "team", "concurrency": 2,
             "names": [f"w{number} {n}" for n in range(3)]} | options  # fmt: skip
    return children.start("-m", "tests.processes.worker", json.dumps(words))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("notify", "poll_s"), [("on", 600), ("off", 0.2)])
def test_one_raise_wakes_every_process_that_waits(url, children, notify, poll_s):
    """By notices alone, and by looking alone."""
    url = f"{url}&notify={notify}"
    base = Database(url)
    base.define(Budget("org", "$1"), Budget("team", "$0.000000001", parent="org"))
    with server() as provider:
        workers = [start(children, url, provider, n, poll_s=poll_s) for n in range(PROCESSES)]
        wait_for(
            lambda: base("SELECT sum(waiting) FROM lanes") == [(3 * PROCESSES,)],
            "all to wait", 60,
        )  # fmt: skip
        time.sleep(0.5)  # so that they listen
        assert provider.bill()["calls"] == 0

        base.define(Budget("team", "$0.5", parent="org"))
        ended = [worker.communicate(timeout=60) for worker in workers]

        assert [worker.returncode for worker in workers] == [0] * PROCESSES, ended
        told = [json.loads(out.splitlines()[-1]) for out, _ in ended]
        assert [each["answers"] for each in told] == [3] * PROCESSES
        assert provider.bill()["calls"] == 3 * PROCESSES
    assert base.audit().discrepancies == ()


@pytest.mark.timeout(120)
def test_processes_whose_clocks_are_hours_wrong_share_a_window_and_keep_their_leases(url, children):
    """By their own clocks the window of each would be another, and each would take others for dead."""
    limit_nusd, lease_ms = 200_000, 5_000
    base = Database(url)
    base.define(Budget("team", f"${limit_nusd / 1e9:.7f}/day"))
    with server("--latency", "200ms") as provider:
        workers = [
            start(children, url, provider, number, clock_off_s=off_h * HOUR_S, lease_ms=lease_ms,
                  host=f"far {number}", names=[f"w{number} {n}" for n in range(12)])
            for number, off_h in enumerate((-30, -2, 0, 25, 400))
        ]  # fmt: skip

        def is_spent():
            posted, reserved = base.balance("team")
            assert posted + reserved <= limit_nusd
            check_ledger(base, provider)
            ((most,),) = base("SELECT max(ceiling_nusd) FROM requests")
            return reserved == 0 and most is not None and limit_nusd - posted < most

        wait_for(is_spent, "all of the day's money to be used", 60)
        assert base("SELECT count(DISTINCT slot_ms) FROM balances WHERE posted > 0") == [(1,)]
        base.define(Budget("team", "$1/day"))
        ended = [worker.communicate(timeout=60) for worker in workers]

        assert [worker.returncode for worker in workers] == [0] * len(workers), ended
        assert all("OVERSPENT" not in out for out, _ in ended)
        assert provider.bill()["calls"] == 12 * len(workers)  # nobody was taken for dead
        assert base.counted_nusd() == provider.billed_nusd()
    ((wrong,),) = base(
        "SELECT count(*) FROM reservations WHERE"
        " abs(made_at_ms - extract(epoch FROM now()) * 1000) > 300000"
    )
    assert wrong == 0
    assert base.audit().discrepancies == ()
