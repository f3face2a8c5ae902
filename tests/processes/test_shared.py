"""Several processes, one file, one budget that covers a part of the work."""

from __future__ import annotations

import json
import statistics
import time

import pytest

from scheduler.budget import Budget
from tests.processes.harness import check_ledger, server, wait_for
from tests.stores import newest


def start(children, file, url, **options):
    words = json.dumps({"path": str(file.path), "url": url, **options})
    return children.start("-m", "tests.processes.worker", words)


def team(file) -> tuple[int, int]:
    """What is posted and what is reserved, in one look."""
    ((posted, reserved),) = file(
        "SELECT coalesce(sum(posted), 0), coalesce(sum(reserved), 0) FROM balances b"
        " JOIN accounts a ON a.id = b.account_id JOIN budgets g ON g.id = a.budget_id"
        " WHERE g.name = 'team'"
    )
    return posted, reserved


@pytest.mark.timeout(180)
@pytest.mark.parametrize("sqlite", ["of the system", "newest"])
def test_four_processes_share_a_budget_to_its_last_cent_and_notice_a_raise(
    file, children, sqlite, monkeypatch
):
    if sqlite == "newest":
        newest.install(monkeypatch.setattr)
    limit_nusd = 1_500_000
    file.define(Budget("org", "$1"), Budget("team", f"${limit_nusd / 1e9:.7f}", parent="org"))
    go = file.path.with_name("go")
    with server("--latency", "200ms") as provider:
        workers = [
            start(children, file, provider.url, budget="team", starts_at=str(go),
                  newest=sqlite == "newest",
                  names=[f"w{worker} {n}" for n in range(40)])
            for worker in range(4)
        ]  # fmt: skip
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 4
        go.touch()

        def is_spent():
            posted, reserved = team(file)
            assert posted + reserved <= limit_nusd
            check_ledger(file, provider)
            shut = file("SELECT count(*) FROM lanes WHERE shortfall IS NOT NULL")
            ((most,),) = file("SELECT max(ceiling_nusd) FROM requests")
            return reserved == 0 and shut == [(1,)] and limit_nusd - posted < most

        wait_for(is_spent, "all of it to be used, and the rest to be parked", 60)
        by_worker = dict(file("SELECT worker_id, count(*) FROM reservations GROUP BY 1"))
        assert len(by_worker) == 4  # nobody starves
        assert file("PRAGMA journal_mode") == [("wal",)]

        raised_at_s = time.time()
        file.define(Budget("team", None, parent="org"))
        ended = [worker.communicate(timeout=60) for worker in workers]

        for (out, errors), worker in zip(ended, workers, strict=True):
            assert worker.returncode == 0, errors
            assert "OVERSPENT" not in out
        told = [json.loads(out.splitlines()[-1]) for out, _ in ended]
        assert [each["answers"] for each in told] == [40] * 4
        # One whose own questions were answered by then has ended.
        later_s = [[at_s for at_s in each["unparked_at_s"] if at_s >= raised_at_s] for each in told]
        noticed_s = [min(each) - raised_at_s for each in later_s if each]
        print(f"a raise was noticed after {statistics.median(noticed_s):.2f} s at the median")
        assert max(noticed_s) < 10
        assert provider.bill()["calls"] == 160
        assert file.counted_nusd() == provider.billed_nusd() == sum(e["cost_nusd"] for e in told)
    assert file.audit().discrepancies == ()


@pytest.mark.timeout(120)
def test_processes_that_ask_the_same_keys_pay_once(file, children):
    file.define(Budget("team", "$1"))
    names = [f"k{n}" for n in range(40)]
    with server("--latency", "30ms") as provider:
        workers = [
            start(children, file, provider.url, budget="team", names=names) for _ in range(3)
        ]
        ended = [worker.communicate(timeout=60) for worker in workers]

        assert [worker.returncode for worker in workers] == [0, 0, 0], ended
        assert provider.bill()["calls"] == len(names)
        assert file.counted_nusd() == provider.billed_nusd()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("is_seen", [True, False], ids=["its pid is seen", "only its lease tells"])
def test_what_a_killed_process_had_not_sent_goes_on_elsewhere(file, children, is_seen):
    file.define(Budget("team", "$1"))
    names = [f"k{n}" for n in range(20)]
    far = {} if is_seen else {"host": "far", "lease_ms": 1_500}
    near = {} if is_seen else {"host": "near", "lease_ms": 1_500}
    with server("--latency", "200ms") as provider:
        dying = start(
            children, file, provider.url, budget="team", names=names, concurrency=2, **far
        )
        wait_for(lambda: file.is_ready and file.states().get("succeeded", 0) >= 4, "answers")
        dying.kill()
        dying.communicate()
        in_flight = file.in_flight()

        heir = start(children, file, provider.url, budget="team", names=names, **near)
        out, errors = heir.communicate(timeout=60)

        assert heir.returncode == 0, errors
        assert json.loads(out.splitlines()[-1])["answers"] == len(names)
        assert len(names) <= provider.bill()["calls"] <= len(names) + in_flight
        check_ledger(file, provider)
    assert file.states() == {"succeeded": len(names)}
