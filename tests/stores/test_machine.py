"""Any order of operations on both stores at once: they agree, and the invariants hold.

The model is a plain list of reservations; it checks invariants 1, 2, 5, 6, 7 and 10
after every step, while the two stores check each other.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.budget import Budget
from scheduler.errors import BudgetUnknown
from scheduler.request import RequestState
from scheduler.stores.base import Outcome, Settlement, Store
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0, Bench, new

SPECS = [
    "$0.0000001/day",
    "$0.0000001/6h",
    "$0.00000005/hour,$0.0000003/day",
    "120 tokens/day",
    "5 requests/hour",
    "$0.0000002",
]
FAILED = RequestState.FAILED
STATES = [RequestState.SUCCEEDED, RequestState.FAILED, RequestState.QUEUED, RequestState.CANCELLED]


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.benches = [Bench(MemoryStore()), Bench(self.database())]
        self.asked: dict[tuple[int, int], tuple[str, str]] = {}  # key and body of those with one
        self.requests: list[tuple[int, int]] = []  # ids in either store, in order of submission
        self.live: list[list] = []  # claims not settled for good, one per store
        self.assumed: list[tuple] = []  # unknown outcomes that were settled by assumption
        self.keys: dict[str, str] = {}
        self.removed: set[str] = set()

    def database(self) -> Store:
        return SqliteStore(Path(self.folder.name) / "s.db")

    def both(self, operation):
        return [self.runner.run(operation(position, b)) for position, b in enumerate(self.benches)]

    @initialize(specs=st.lists(st.sampled_from(SPECS), min_size=1, max_size=3))
    def open(self, specs) -> None:
        async def start(_, bench):
            await bench.store.open(T0)
            await bench.define(*[Budget(f"b{i}", spec) for i, spec in enumerate(specs)])

        self.both(start)
        self.names = list(self.benches[0].ids)
        self.ids = [dict(bench.ids) for bench in self.benches]  # of removed ones, too

    def teardown(self) -> None:
        self.both(lambda _, bench: bench.store.aclose())
        self.runner.close()
        self.folder.cleanup()

    def turn(self, slots, **work) -> None:
        """One turn on both stores; their answers must be the same."""

        def ids(position, bench):
            return {pair[position]: order for order, pair in enumerate(self.requests)}

        one, two = results = self.both(
            lambda position, bench: bench.turn(slots, **{k: v[position] for k, v in work.items()})
        )
        assert one.settled == two.settled
        assert one.cancelled == two.cancelled
        assert one.look_again_at_ms == two.look_again_at_ms
        for left, right in zip(one.submitted, two.submitted, strict=True):
            assert (left.is_known, left.is_conflict) == (right.is_known, right.is_conflict)
            if not left.is_known and (left.id, right.id) not in self.requests:
                self.requests.append((left.id, right.id))
        order = [ids(position, bench) for position, bench in enumerate(self.benches)]
        said = []
        for position, result in enumerate(results):
            said.append(
                (
                    [
                        (order[position][c.request_id], c.attempt, c.spent_nusd)
                        for c in result.claimed
                    ],
                    [
                        (order[position][id], lack.reason, lack.missing)
                        for id, _, lack in result.refused
                    ],
                    sorted((order[position][e.id], e.waited_ms, e.key) for e in result.expired),
                    sorted(repr((lane.waiting, lane.shortfall)) for lane in result.lanes),
                    [repr(each) for each in result.crossings],
                )
            )
        assert said[0] == said[1]
        self.live += [list(pair) for pair in zip(one.claimed, two.claimed, strict=True)]
        self.check_limits()

    def check_limits(self) -> None:
        """Invariant 1, as far as no limit was cut and nothing overran."""
        for status in self.runner.run(self.benches[0].store.budgets(self.benches[0].now_ms)):
            for cap in status.caps:
                assert min(cap.posted, cap.reserved, cap.suspense) >= 0

    @rule(
        budgets=st.sets(st.integers(0, 2), max_size=3), need=st.integers(0, 110),
        count=st.integers(1, 4), priority=st.sampled_from([0, 10, 20]), slots=st.integers(0, 4),
        may_wait=st.sampled_from([True, True, True, False]),
        expires=st.sampled_from([None, None, 1000, 7_200_000]),
    )  # fmt: skip
    def submit(self, budgets, need, count, priority, slots, may_wait, expires) -> None:
        names = [name for i, name in enumerate(self.names) if i in budgets]
        at_ms = None if expires is None else self.benches[0].now_ms + expires
        batches = []
        for ids in self.ids:
            draws = sorted(ids[name] for name in names)
            batches.append(
                [
                    new(draws, need, priority=priority, may_wait=may_wait, expires_at_ms=at_ms)
                    for _ in range(count)
                ]
            )
        self.turn(slots, submit=batches)

    @rule(key=st.sampled_from("abc"), body=st.sampled_from(["x", "x", "y"]), retry=st.booleans())
    def submit_key(self, key, body, retry) -> None:
        batches = [
            [new([ids["b0"]], 5, key=key, body=body, retry_failed=retry)] for ids in self.ids
        ]
        known = self.keys.setdefault(key, body)
        before = len(self.requests)
        self.turn(2, submit=batches)
        self.asked.update((pair, (key, body)) for pair in self.requests[before:])
        if known != body:
            assert len(self.requests) == before  # invariant 7: nothing was queued for it

    @rule(
        data=st.data(), outcome=st.sampled_from(list(Outcome)), state=st.sampled_from(STATES),
        nusd=st.integers(0, 120), delay=st.sampled_from([None, None, 5000]),
        slots=st.integers(0, 4), twice=st.booleans(),
    )  # fmt: skip
    def settle(self, data, outcome, state, nusd, delay, slots, twice) -> None:
        if not self.live:
            return
        claims = data.draw(st.sampled_from(self.live))
        at_ms = None if delay is None else self.benches[0].now_ms + delay
        batches = []
        for claimed in claims:
            one = Settlement(
                claimed.reservation_id, claimed.request_id, outcome, state, nusd, nusd, at_ms
            )
            batches.append([one, one] if twice else [one])
        if outcome is not Outcome.SUSPEND:
            self.live.remove(claims)
        self.turn(slots, settle=batches)

    @rule(
        data=st.data(), outcome=st.sampled_from([Outcome.POST, Outcome.VOID]),
        nusd=st.integers(0, 120), is_assumed=st.booleans(),
    )  # fmt: skip
    def resolve(self, data, outcome, nusd, is_assumed) -> None:
        """A policy, a person or the provider says what became of an unknown outcome."""
        one, two = self.both(lambda _, bench: bench.store.suspended())
        assert [(e.key, e.ceiling_nusd) for e in one] == [(e.key, e.ceiling_nusd) for e in two]
        claims = list(zip(one, two, strict=True)) + self.assumed
        if not claims:
            return
        pair = data.draw(st.sampled_from(claims))
        answers = self.both(
            lambda position, bench: bench.store.resolve(
                [
                    Settlement(
                        pair[position].id,
                        pair[position].request_id,
                        outcome,
                        FAILED,
                        nusd,
                        nusd,
                        is_assumed=is_assumed,
                    )
                ],
                bench.now_ms,
            )
        )
        assert answers[0] == answers[1]
        if pair in self.assumed:
            assert not (is_assumed and answers[0][0])  # only the truth corrects an assumption
        else:
            assert answers[0] == [True]
            if is_assumed:
                self.assumed.append(pair)
        self.turn(2)

    @rule(data=st.data())
    def cancel(self, data) -> None:
        if self.requests:
            pair = data.draw(st.sampled_from(self.requests))
            self.turn(1, cancel=[[pair[0]], [pair[1]]])

    @rule(
        data=st.data(), budgets=st.sets(st.integers(0, 2), max_size=3),
        need=st.sampled_from([5, 60]), priority=st.sampled_from([0, 10, 20]), may_wait=st.booleans(),
        expires=st.sampled_from([None, 1000, 7_200_000]), keeps_time=st.booleans(),
        is_held=st.booleans(),
    )  # fmt: skip
    def amend(
        self, data, budgets, need, priority, may_wait, expires, keeps_time, is_held
    ) -> None:  # fmt: skip
        """Who holds a request has changed: it waits, or would wait, on other terms."""
        if not self.requests:
            return
        pair = data.draw(st.sampled_from(self.requests))
        at_ms = None if expires is None else self.benches[0].now_ms + expires
        amends = []
        for position, bench in enumerate(self.benches):
            draws = sorted(
                bench.ids[name] for i, name in enumerate(self.names)
                if i in budgets and name not in self.removed
            )  # fmt: skip
            key, body = self.asked.get(pair, (None, "hi"))
            changed = new(
                draws, need, key=key, body=body, priority=priority, may_wait=may_wait, expires_at_ms=at_ms,
                keeps_time=keeps_time,
            )  # fmt: skip
            amends.append([(pair[position], changed)])
        holds = [{pair[position]} if is_held else () for position in range(2)]
        self.turn(2, amend=amends, holds=holds)

    @rule(passed_ms=st.sampled_from([1, 900, 60_000, 3_600_000, 40_000_000, 86_400_000]))
    def wait(self, passed_ms) -> None:
        for bench in self.benches:
            bench.now_ms += passed_ms
        self.turn(3)

    @rule(i=st.integers(0, 2), spec=st.sampled_from([*SPECS, "none"]))
    def redefine(self, i, spec) -> None:
        name = self.names[i % len(self.names)]
        before = self.spent()
        self.both(lambda _, bench: bench.define(Budget(name, spec)))
        self.removed.discard(name)
        assert self.spent() == before
        self.turn(2)

    @rule(i=st.integers(0, 2))
    def remove(self, i) -> None:
        """It binds nobody any more: what lacked only that goes on, what it spent stays."""
        name = self.names[i % len(self.names)]
        before = self.spent()

        async def try_it(_, bench):
            try:
                await bench.store.remove(name, bench.now_ms)
            except BudgetUnknown:
                return False
            return True

        assert self.both(try_it) == [name not in self.removed] * 2
        self.removed.add(name)
        assert self.spent() == before
        self.turn(2)

    def spent(self):
        """What every budget there ever was has spent, promised and tried."""

        async def rows(_, bench):
            return [row for row in await bench.store.spend("budget") if row.attempts]

        one, two = self.both(rows)
        assert one == two
        return one

    @rule(i=st.integers(0, 2), paused=st.booleans())
    def pause(self, i, paused) -> None:
        name = self.names[i % len(self.names)]
        if name in self.removed:
            return
        self.both(lambda _, bench: bench.store.pause(name, paused, bench.now_ms))
        self.turn(2)

    @invariant()
    def the_stores_agree_and_every_balance_adds_up(self) -> None:
        async def picture(_, bench):
            budgets = await bench.store.budgets(bench.now_ms)
            audit = await bench.store.audit(bench.now_ms)
            assert audit.discrepancies == ()
            assert {b.budget.name for b in budgets} == set(self.names) - self.removed
            lacks = [lane.shortfall.budget for lane in bench.store.lanes() if lane.shortfall]
            assert not self.removed & set(lacks)
            caps = [
                [(cap.posted, cap.reserved, cap.suspense, cap.resets_at_ms) for cap in b.caps]
                for b in budgets
            ]
            return caps, await bench.store.counts()

        one, two = self.both(picture)
        assert one == two
        assert one[1].total == len(self.requests)  # invariant 5: none is lost, none counted twice


TestStores = StoreMachine.TestCase
# Not shrunk: a failing run of both stores takes minutes to shrink and reads well as it is.
TestStores.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
