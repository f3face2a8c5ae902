"""Budgets that take a risk: in memory and in a file, and both at once under a machine."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from scheduler.budget import Budget
from scheduler.foresight import PRESETS, Risk, survival
from scheduler.foresight.survival import History, estimate
from scheduler.ledger.account import ReservationState
from scheduler.stores.sql import again
from scheduler.stores.sql.sheet import begin
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0, Bench, new
from tests.stores.foreseen import Foreseen, warmed
from tests.stores.kinds import InFile, InMemory
from tests.stores.test_machine import StoreMachine


class TestMemory(InMemory, Foreseen):
    pass


class TestSqlite(InFile, Foreseen):
    pass


@pytest.mark.anyio
async def test_a_process_that_begins_knows_what_others_learned(tmp_path):
    first = SqliteStore(tmp_path / "s.db")
    await first.open(T0)
    bench = Bench(first)
    team = await warmed(bench, "$0.0000026")
    second = SqliteStore(tmp_path / "s.db")
    await second.open(bench.now_ms)
    other = Bench(second)
    other.now_ms = bench.now_ms

    claimed = (await other.submit(*[new([team], 100) for _ in range(300)], slots=300)).claimed
    more = (await bench.submit(*[new([team], 100) for _ in range(300)], slots=300)).claimed

    assert len(claimed) > 40
    assert len(more) <= 3  # those of the other one count
    await first.aclose()
    await second.aclose()


@pytest.mark.anyio
async def test_what_a_transaction_learned_that_did_not_happen_is_learned_once(tmp_path):
    store = SqliteStore(tmp_path / "s.db")
    await store.open(T0)
    bench = Bench(store)
    await warmed(bench, "$1", calls=20)
    books = store._transactions
    now_ms = bench.now_ms

    def lost(db):
        sheet = begin(db, books, now_ms)
        kind, posted = ("m", 1), ReservationState.POSTED
        sheet.ahead.end(999, kind, now_ms - 5, now_ms, posted, (10, 10), (100, 100, 1))
        sheet.ahead.under_way(bench.ids["team"])

    def anew(db):
        begin(db, books, now_ms).ahead.under_way(bench.ids["team"])

    again.prepare(books)
    before = again.memo(books)
    await store._read(lost)
    again.restore(books, before)
    await store._read(anew)

    assert books.learned.histories.count == 20
    await store.aclose()


@pytest.mark.anyio
async def test_what_is_remembered_in_a_file_has_an_end(tmp_path):
    ahead = "scheduler.stores.sql.ahead"
    with mock.patch(f"{ahead}.KEPT", 20), mock.patch(f"{ahead}.EVERY", 16):
        store = SqliteStore(tmp_path / "s.db")
        await store.open(T0)
        bench = Bench(store)
        await warmed(bench, "$1", calls=80)
        found = await store._read(lambda db: db.value("SELECT count(*) FROM lengths"))

    assert 20 <= found <= 20 + 16
    await store.aclose()


@pytest.mark.anyio
async def test_without_a_risk_nothing_is_written_of_how_long_calls_take(tmp_path):
    store = SqliteStore(tmp_path / "s.db")
    await store.open(T0)
    bench = Bench(store)
    await bench.define(Budget("team", "$1"))
    for _ in range(3):
        claimed = (await bench.submit(new([bench.ids["team"]], 100), slots=1)).claimed
        await bench.settle(*[post_of(each) for each in claimed], slots=0)
    found = await store._read(lambda db: db.value("SELECT count(*) FROM lengths"))

    assert found == 0
    await store.aclose()


def post_of(claimed):
    from tests.stores.conformance import post

    return post(claimed, 10)


RISKY = [
    "$0.0000001/day risk default",
    "$0.0000002/6h risk high",
    "$0.00000015/hour,$0.0000003/day risk high",
    "220 tokens/day risk default",
    "$0.0000003 risk high",
    "$0.0000002",
]
# So eager that a few calls suffice.
EAGER = {name: Risk(name, 0.5, 0.0, 8, warm=2) for name in PRESETS}


def always_anew(self, unit, under_way, now_ms):
    recall = self.memory.of_each_length
    return estimate(recall.all(), under_way, recall.horizons(), now_ms, unit)


class RiskyMachine(StoreMachine):
    """Both stores let in the same calls, however little they keep for those under way."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [
            mock.patch.dict(PRESETS, EAGER),
            mock.patch.object(survival, "FEW", 1),
            mock.patch.object(History, "curve", always_anew),  # not as of when it was last asked
        ]
        for each in self.patches:
            each.start()

    @initialize(specs=st.lists(st.sampled_from(RISKY), min_size=1, max_size=3))
    def open(self, specs) -> None:
        async def start(_, bench):
            await bench.store.open(T0)
            await bench.define(*[Budget(f"b{i}", spec) for i, spec in enumerate(specs)])

        self.both(start)
        self.names = list(self.benches[0].ids)
        self.ids = [dict(bench.ids) for bench in self.benches]

    def teardown(self) -> None:
        super().teardown()
        for each in self.patches:
            each.stop()


TestMachine = RiskyMachine.TestCase
TestMachine.settings = settings(
    max_examples=30, stateful_step_count=25, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
