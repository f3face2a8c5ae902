"""Any order of what two processes do with shared lanes on one file, and of their deaths.

Each request is sent by one of them at a time, money stays within its limits and adds up, and
whatever fits is sent by whoever is left.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.budget import Budget
from scheduler.stores.base import Outcome
from scheduler.stores.process import Process
from tests.simulation.stores import InlineSqlite
from tests.stores.conformance import FAILED, QUEUED, SUCCEEDED, T0, Bench, end, new, post

LIMIT, LEASE_MS = 200, 30_000
WHO = st.integers(0, 1)


class SharedMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.path = Path(self.stack.enter_context(tempfile.TemporaryDirectory())) / "s.db"
        self.dead: set[int] = set()
        self.stack.enter_context(
            mock.patch(
                "scheduler.stores.sql.workers.is_dead", lambda me, other: other.pid in self.dead
            )
        )
        self.number, self.now_ms, self.keys = 0, T0, 0
        self.benches = [self.begin(), self.begin()]
        self.sending: list[dict] = [{}, {}]  # by request, what each of them was given to send
        self.ended: set[int] = set()
        self.doubted: set[int] = set()
        self.submitted: dict[int, str] = {}
        self.run(
            self.benches[0].define(Budget("team", f"{LIMIT} tokens/hour"), Budget("other", "$1"))
        )
        self.benches[1].ids = self.benches[0].ids

    def run(self, doing):
        return self.runner.run(doing)

    def begin(self) -> Bench:
        """A process, on the file that all share."""
        self.number += 1
        host = "here" if self.number % 2 else "far"  # of those far away only their silence tells
        store = self.store_of(Process(host, self.number, "1"))
        bench = Bench(store)
        self.run(store.open(self.now_ms))
        if self.number > 2:
            bench.ids = self.benches[0].ids
        return bench

    def store_of(self, process: Process):
        return InlineSqlite(self.path, process, LEASE_MS, lambda sql: None)

    def look(self, bench: Bench, sql: str) -> list[tuple]:
        return bench.store._db.execute(sql).fetchall()

    def teardown(self) -> None:
        if not hasattr(self, "benches"):
            return
        with self.stack:
            self.finish()
            for bench in self.benches:
                self.run(bench.store.aclose())

    def turn(self, who: int, slots, **work):
        bench = self.benches[who]
        bench.now_ms = self.now_ms
        for each in (0, 1):
            if self.is_lost(each):
                self.doubted.update(self.sending[each])
        result = self.run(bench.turn(slots, **work))
        for claimed in result.claimed:
            assert claimed.request_id not in self.ended, "sent after its end"
            mine, others = self.sending[who], self.sending[1 - who]
            if claimed.request_id in mine or claimed.request_id in others:
                # Only what may have been taken from a process that was silent, and lives after all.
                assert claimed.request_id in self.doubted
            mine[claimed.request_id] = claimed
        self.ended |= {each.id for each in result.expired}
        for request_id, done in zip(work.get("cancel", ()), result.cancelled, strict=True):
            if done:
                self.ended.add(request_id)
        return result

    def is_lost(self, who: int) -> bool:
        """Whether others may have taken a process for dead meanwhile."""
        return self.now_ms - self.benches[who].store._transactions.seen_at_ms >= LEASE_MS

    @rule(who=WHO, count=st.integers(1, 4), need=st.integers(1, 120),
          priority=st.sampled_from([0, 10]), slots=st.sampled_from([None, 0, 1, 3]),
          budget=st.sampled_from(["team", "other"]),
          expires=st.sampled_from([None, None, None, 20_000]))  # fmt: skip
    def submit(self, who, count, need, priority, slots, budget, expires) -> None:
        batch = []
        for _ in range(count):
            self.keys += 1
            batch.append(new([self.benches[who].ids[budget]], need, key=f"k{self.keys}",
                             priority=priority,
                             expires_at_ms=None if expires is None else self.now_ms + expires))  # fmt: skip
            batch[-1].lane = batch[-1].lane._replace(is_shared=True)
        for each, key in zip(self.turn(who, slots, submit=batch).submitted, batch, strict=True):
            assert not each.is_known
            self.submitted[each.id] = key.request.key

    @rule(who=WHO, slots=st.integers(0, 4))
    def take_a_turn(self, who, slots) -> None:
        self.turn(who, slots)

    @precondition(lambda self: any(self.sending))
    @rule(data=st.data(), cost=st.integers(0, 100), slots=st.sampled_from([None, 0, 2]),
          outcome=st.sampled_from(list(Outcome)),
          state=st.sampled_from([SUCCEEDED, SUCCEEDED, FAILED, QUEUED]),
          delay=st.sampled_from([None, 5_000]))  # fmt: skip
    def settle(self, data, cost, slots, outcome, state, delay) -> None:
        who = data.draw(st.sampled_from([n for n in (0, 1) if self.sending[n]]))
        request_id = data.draw(st.sampled_from(sorted(self.sending[who])))
        claimed = self.sending[who].pop(request_id)
        if outcome is Outcome.POST:
            said = post(claimed, min(cost, claimed.ceiling_nusd))
            said.tokens = min(cost, claimed.ceiling_tokens)
        elif state is SUCCEEDED:
            said = end(claimed, outcome, FAILED)
        else:
            not_before_ms = None if delay is None else self.now_ms + delay
            said = end(claimed, outcome, state, not_before_ms=not_before_ms)
        result = self.turn(who, slots, settle=[said])
        if said.state is not QUEUED and claimed.reservation_id not in result.superseded:
            self.ended.add(request_id)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data(), who=WHO)
    def cancel(self, data, who) -> None:
        self.turn(who, 0, cancel=[data.draw(st.sampled_from(sorted(self.submitted)))])

    @rule(who=WHO, limit=st.sampled_from([50, 200, 400]))
    def set_limit(self, who, limit) -> None:
        budget = Budget("team", f"{limit} tokens/hour")
        self.run(self.benches[who].store.define([budget], self.now_ms))

    @rule(ms=st.sampled_from([1, 5_000, 31_000, 3_600_000]))
    def wait(self, ms) -> None:
        self.now_ms += ms

    @rule(who=WHO, politely=st.booleans())
    def die(self, who, politely) -> None:
        """A process ends, with a word or without, and another one begins."""
        bench = self.benches[who]
        if politely:
            self.run(bench.store.aclose())
        else:
            bench.store.drop()
            self.dead.add(bench.store._transactions.process.pid)
        self.sending[who] = {}
        self.benches[who] = self.begin()

    @invariant()
    def every_balance_adds_up(self) -> None:
        bench = self.benches[0]
        bench.now_ms = self.now_ms
        assert self.run(bench.is_sound())
        with_rows = self.look(
            bench,
            "SELECT l.id, l.waiting, (SELECT count(*) FROM requests r WHERE r.lane_id = l.id"
            " AND r.state = 'queued') FROM lanes l",
        )
        assert all(counted == real for _, counted, real in with_rows), with_rows

    def finish(self) -> None:
        """One of them dies, the other sends all that waits: nothing was lost."""
        left, dying = self.number % 2, 1 - self.number % 2
        self.set_limit(dying, 10**6)
        self.benches[dying].store.drop()
        self.dead.add(self.benches[dying].store._transactions.process.pid)
        self.sending[dying] = {}
        self.now_ms += LEASE_MS + 1
        for _ in range(400):
            claims = self.sending[left]
            self.turn(left, 3, settle=[post(claims.pop(each), 0) for each in sorted(claims)])
            self.now_ms += 100
            if not self.sending[left] and not self.left():
                break
        assert self.left() == []
        self.benches = [self.benches[left]]

    def left(self):
        return self.look(
            self.benches[self.number % 2],
            "SELECT id, key, state FROM requests WHERE state NOT IN"
            " ('succeeded', 'failed', 'cancelled', 'expired')",
        )


TestSharedLanes = SharedMachine.TestCase
TestSharedLanes.settings = settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
)
