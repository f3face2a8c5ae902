"""What is kept of requests that have ended, for how long, and what a forgotten key means."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import Budget, ConfigError, Scheduler
from scheduler import open as open_blocking
from scheduler.errors import CallFailed, ProviderRefused, StoreError
from scheduler.stores.memory.store import MemoryStore
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench, ask

BYTES_PER_ROW = 1_700  # with an answer of a few words


def opened(store=None, provider=None, **options):
    return Scheduler(store, providers=provider or Bench(), **options)


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return None if request.param == "memory" else f"sqlite:///{tmp_path}/s.db"


def test_memory_keeps_no_more_keys_than_it_was_told_and_the_newest():
    async def main():
        provider = Bench()
        async with opened(provider=provider, keep_finished=10) as s:
            for n in range(50):
                await s.run(ask(n, key=f"k{n}"))
            assert len(s.store._rows) == len(s.store._keys) == 10
            assert len(s.store._finished._order) <= 2 * 10 + 16
            await s.run(ask(49, key="k49"))
            assert len(provider.sent) == 50  # remembered
            await s.run(ask(0, key="k0"))
            assert len(provider.sent) == 51  # forgotten: sent and paid again
            assert s.stats().posted_nusd == 51 * 60
            assert (await s.store.audit(s.now_ms())).discrepancies == ()

    run(main())


def test_what_waits_or_has_an_unknown_outcome_is_not_forgotten():
    async def main():
        provider = Bench()
        async with opened(
            provider=provider, keep_finished=3, max_attempts=1, budgets=Budget("none", "$0"),
            clock=VirtualClock(),
        ) as s:  # fmt: skip

            async def lose(request):
                if request.body["n"] >= 900:
                    raise CallFailed("no answer")

            provider.before = lose
            waiting = s.submit(ask(1, key="waits", budget="none"))
            for n in range(900, 905):
                with pytest.raises(CallFailed):
                    await s.run(ask(n, key=f"lost {n}", budget=()))
            for n in range(20):
                await s.run(ask(n, key=f"k{n}", budget=()))
            assert {key for _, key in s.store._keys} >= {
                "waits",
                *(f"lost {n}" for n in range(900, 905)),
            }
            for unknown in await s.suspended():
                await s.resolve(unknown, charge=None)
            for n in range(20, 40):
                await s.run(ask(n, key=f"k{n}", budget=()))
            assert len(s.store._rows) <= 3 + 1 + 5  # an assumption may still be corrected
            waiting.cancel()

    run(main())


@pytest.mark.parametrize("most", [0, 1, 5, None])
@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["run", "run", "fail", "forget"]))))
def test_however_keys_end_and_come_again_the_bound_holds(most, events):
    async def main():
        provider = Bench()
        async with opened(provider=provider, keep_finished=most, max_attempts=1) as s:
            for n, what in events:
                if what == "forget":
                    await s.store.forget("", s.now_ms())
                    continue
                future = s.submit(ask(n, key=f"k{n}", seconds=1))
                if what == "fail":
                    await asyncio.sleep(0)
                    future.cancel()
                await asyncio.wait([future])
                store = s.store
                ended = [row for row in store._rows.values() if not row.is_live]
                assert store._finished.count == len(ended)
                unknown = len(store._open)
                assert most is None or len(ended) <= most + unknown
                assert set(store._keys.values()) <= set(store._rows.values())

    run(main())


def test_a_finished_row_is_small():
    async def main():
        provider = Bench()
        async with opened(provider=provider, clock=VirtualClock()) as s:
            await s.run(ask(0, key="warm"))
            prompt = "word " * 2_000
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for n in range(1_000):
                await s.run(ask(n, key=f"key {n}", prompt=f"{n} {prompt}"))
                provider.sent.clear()
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            return grown / 1_000

    assert run(main()) < BYTES_PER_ROW


async def test_prune_forgets_what_ended_long_ago_and_keeps_every_balance(url):
    provider, archived = Bench(), []
    async with opened(url, provider, budgets=Budget("team", "$1")) as s:
        for n in range(5):
            await s.run(ask(n, key=f"k{n}", budget="team"))
        waiting = s.submit(ask(7, key="waits", budget="team", seconds=9))
        assert await s.prune("7d") == 0
        await asyncio.sleep(0.05)
        kept = {row.name: row.posted_nusd for row in await s.store.spend("budget")}
        count = await s.prune("10ms", archive=lambda page: archived.extend(page))
        assert count in (4, 5)  # a file keeps the newest of all: its id must not be given again
        assert sorted(each.key for each in archived)[:4] == [f"k{n}" for n in range(4)]
        assert {row.name: row.posted_nusd for row in await s.store.spend("budget")} == kept
        assert (await s.store.audit(s.now_ms())).discrepancies == ()
        sent = len(provider.sent)
        await s.run(ask(0, key="k0", budget="team"))
        assert len(provider.sent) == sent + 1
        assert (await s.store.audit(s.now_ms())).discrepancies == ()
        waiting.cancel()


async def test_what_somebody_has_read_is_no_longer_kept_for_them(url):
    """What nobody has read stays, as lines of a batch do that are in no file yet."""

    class Refusing(Bench):
        async def _answer(self, request):
            if request.body["n"] == 4:
                raise ProviderRefused(400, "no")
            return await super()._answer(request)

    async with opened(url, Refusing(), budgets=Budget("team", "$1")) as s:
        await s.enqueue([ask(n, key=f"batch{n}") for n in range(3)])
        await s.join()
        read = [s.submit(ask(n, key=f"k{n}")) for n in range(3)]
        failed = s.submit(ask(4, key="fails"))
        late = s.submit(ask(5, key="late", budget="team", ceiling=2 * 10**9, max_wait="10ms"))
        await asyncio.gather(*read, failed, late, return_exceptions=True)
        assert (await s.run(ask(0, key="batch0"))).key == "batch0"  # it was answered before
        await s.run(ask(6, key="newest"))  # which a file keeps
        gone, known = [], {"k0", "k1", "k2", "batch0", "fails", "late"}

        def keys():
            return {each.key for each in gone} - {"newest"}

        async with asyncio.timeout(60):
            while not known <= keys():  # that they were read is noted now and then
                await asyncio.sleep(0.05)
                await s.prune(0, undelivered=False, archive=gone.extend)

    assert keys() == known


async def test_what_the_archive_raises_leaves_everything(url):
    async with opened(url) as s:
        for n in range(3):
            await s.run(ask(n, key=f"k{n}"))
        await asyncio.sleep(0.02)

        def full(page):
            raise OSError(28, "No space left on device")

        with pytest.raises((OSError, StoreError)):
            await s.prune("1ms", archive=full)
        assert await s.prune("1ms") >= 2


def test_those_who_block_can_prune_too():
    with open_blocking(providers=Bench()) as s:
        s.run(ask(1, key="k"))
        assert s.prune("7d") == 0
        assert s.prune(0) in (0, 1)


def test_a_wrong_bound_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match="keep_finished"):
        opened(keep_finished=-1)
    with pytest.raises(ConfigError, match="stores in memory"):
        opened(f"sqlite:///{tmp_path}/s.db", keep_finished=5)
    with pytest.raises(ConfigError, match="on the store"):
        opened(MemoryStore(), keep_finished=5)
