"""Sixty-four worker processes on one database and one budget, some of them killed."""

from __future__ import annotations

import random
import time

import psycopg
import pytest

from scheduler.budget import Budget
from scheduler.stores.postgres.address import parse
from tests.postgres.database import Database
from tests.processes.harness import Children, check_ledger, results, server, wait_for, write_prompts

WORKERS, KILLED, REQUESTS = 64, 8, 192
LISTENING = 16  # a second connection each: with those of others fewer than a hundred in all
LEASE_MS = 15_000
SEED = 17
PRICE = ("--price", "sim-small=0.15/0.60")
# The command with a shorter lease, so that the test need not wait for half a minute.
BRISK = (
    "import sys; from scheduler.stores.postgres.store import PostgresStore;"
    f" PostgresStore.lease_ms = {LEASE_MS}; from scheduler.cli.app import main;"
    " sys.argv[0] = 'scheduler'; main()"
)


@pytest.fixture
def children():
    made = Children()
    yield made
    made.end()


def needs_room(url: str) -> None:
    with psycopg.connect(parse(url).url.get_secret_value()) as db:
        ((most,),) = db.execute("SELECT current_setting('max_connections')::int").fetchall()
    if most < WORKERS + LISTENING + 15:
        pytest.skip(f"the server takes {most} connections")


@pytest.mark.timeout(300)
def test_sixty_four_processes_overspend_nothing_and_lose_nothing(
    url, children, tmp_path, monkeypatch
):
    needs_room(url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-workers-0123456789")
    prompts, out, rng = tmp_path / "p.jsonl", tmp_path / "out.jsonl", random.Random(SEED)
    write_prompts(prompts, REQUESTS)
    base = Database(url)
    with server("--latency", "150ms", "--output-tokens", "20") as provider:
        words = ("--base-url", provider.url, *PRICE)
        rates = ("--max-requests-per-minute", "1000000")  # they need not find out how many it takes

        def start(*more, notify="on"):
            monkeypatch.setenv("SCHEDULER_STORE", f"{url}&notify={notify}")
            return children.start("-c", BRISK, *more)

        def done(*more):
            child = start(*more)
            _, errors = child.communicate(timeout=60)
            assert child.returncode == 0, errors
            return errors

        base.define(Budget("default", "$1"))
        done("submit", str(prompts), "--job", "j", *words)
        ((most, total),) = base("SELECT max(ceiling_nusd), sum(ceiling_nusd) FROM requests")
        limit_nusd = int(total) // 4
        base.define(Budget("default", f"${limit_nusd / 1e9:.9f}"))
        workers = [
            start("worker", "-c", "1", "--until-idle", "--progress", "none", *words, *rates,
                  notify="on" if number < LISTENING else "off")
            for number in range(WORKERS)
        ]  # fmt: skip

        def checked() -> tuple[int, int]:
            posted, reserved = base.balance("default")
            assert posted + reserved <= limit_nusd
            check_ledger(base, provider)
            time.sleep(0.1)
            return posted, reserved

        wait_for(lambda: checked()[0] > limit_nusd // 4, "a quarter of it to be used", 150)
        for victim in rng.sample(workers, KILLED):
            victim.kill()
            victim.communicate()
            workers.remove(victim)
        wait_for(
            lambda: limit_nusd - sum(checked()) < most and not base.in_flight(),
            "all of it to be used", 150,
        )  # fmt: skip
        assert provider.billed_nusd() <= limit_nusd
        assert all(worker.poll() is None for worker in workers)

        base.define(Budget("default", None))
        ended = [worker.communicate(timeout=150) for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * len(workers), ended
        done("collect", "--job", "j", "-o", str(out))

        assert sorted(results(out)) == sorted(f"r{n}" for n in range(REQUESTS))
        ((unknown,),) = base("SELECT count(*) FROM reservations WHERE state = 'suspense'")
        calls = provider.bill()["calls"]
        assert REQUESTS <= calls <= REQUESTS + unknown <= REQUESTS + KILLED
        check_ledger(base, provider)
    assert base.states() == {"succeeded": REQUESTS}
    paid = (
        "SELECT request_id FROM reservations WHERE state = 'posted' GROUP BY 1 HAVING count(*) > 1"
    )
    assert base(paid) == []
    assert base.audit().discrepancies == ()
