"""Processes that do anything at once to random trees of budgets: no deadlock, nothing overspent."""

from __future__ import annotations

import json
import random

import pytest

from tests.postgres.database import Database
from tests.postgres.tangle import tree
from tests.processes.harness import Children

PROCESSES, TURNS = 6, 30
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@pytest.fixture
def children():
    made = Children()
    yield made
    made.end()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_trees_of_budgets_end_in_no_deadlock_and_no_overspending(seed, url, children):
    base, trees = Database(url), tree(random.Random(seed))
    base.define(*trees)
    before = base(DEADLOCKS)
    running = [
        children.start("-m", "tests.postgres.tangle", json.dumps(
            {"store": url, "seed": seed, "turns": TURNS, "me": me, "of": PROCESSES}
        ))
        for me in range(PROCESSES)
    ]  # fmt: skip
    while any(each.poll() is None for each in running):
        base.check_limits()
    ended = [each.communicate(timeout=60) for each in running]

    said = f"seed {seed}: {ended}"
    assert [each.returncode for each in running] == [0] * PROCESSES, said
    sent = [each for out, _ in ended for each in json.loads(out)["sent"]]
    ((attempts,), states) = base("SELECT count(*) FROM reservations")[0], base.states()
    assert len(sent) == attempts > 4 * TURNS, said  # each claim is one process's
    assert base("SELECT count(*) FROM reservations WHERE state = 'pending'") == [(0,)], said
    assert set(states) <= {"queued", "succeeded", "failed", "cancelled"}, said
    assert states["succeeded"] > TURNS, said
    base.check_limits()
    assert base.audit().discrepancies == (), said
    assert base(DEADLOCKS) == before, said
