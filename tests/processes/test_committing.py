"""Processes that commit, checkpoint, open, close and are killed on one write-ahead log."""

from __future__ import annotations

import json
import os
import time
from itertools import count
from random import Random

import pytest

from scheduler.budget import Budget
from tests.processes.committer import COST, NEED

PROCESSES = 4
SECONDS = float(os.environ.get("SCHEDULER_COMMIT_SECONDS", "6"))


@pytest.mark.timeout(120 + SECONDS * 2)
def test_a_log_stays_whole_and_keeps_what_was_answered_whoever_is_killed(file, children):
    file.define(Budget("team", "$1"))
    random, numbers = Random(7), count()

    def start():
        number = next(numbers)
        words = {"path": str(file.path), "name": f"p{number}", "newest": number % 3 == 2}
        return children.start("-m", "tests.processes.committer", json.dumps(words))

    running = [start() for _ in range(PROCESSES)]
    ended = []
    until_s = time.monotonic() + SECONDS
    while time.monotonic() < until_s:
        time.sleep(random.uniform(0.05, 0.5))
        ended.append(running.pop(random.randrange(len(running))))
        ended[-1].kill()
        running.append(start())
    for each in running:
        each.kill()
    answered, errors = set(), []
    for each in ended + running:
        out, told = each.communicate()
        errors += [told] if told else []
        lines = out.split("\n")[:-1]  # the last one may be cut
        answered |= {key for line in lines for key in json.loads(line)}

    assert errors == []
    assert file("PRAGMA journal_mode") == [("wal",)]
    assert file("PRAGMA integrity_check") == [("ok",)]
    assert file.audit().discrepancies == ()
    posted = {key for (key,) in file("SELECT key FROM requests WHERE state = 'succeeded'")}
    assert answered <= posted
    assert len(answered) > 20 * SECONDS
    # Each of the others was the last of its process: it was killed before it could tell.
    assert len(posted - answered) <= 3 * len(ended + running)
    unsettled = file("SELECT count(*) FROM reservations WHERE state NOT IN ('posted', 'voided')")
    assert file.counted_nusd() == COST * len(posted) + NEED * unsettled[0][0]
