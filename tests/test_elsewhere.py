"""Keys that another process on the file has: what waiting for them costs, and that it ends."""

from __future__ import annotations

import asyncio

import pytest

from scheduler import Scheduler
from scheduler.core.callers.elsewhere import PAGE
from scheduler.errors import ConfigError, ProviderOverloaded
from scheduler.providers.simulated.provider import Simulated
from scheduler.request import Request
from scheduler.stores.sqlite import SqliteStore
from tests.conftest import Bench, ask, until

pytestmark = pytest.mark.anyio
MANY = 3_000


class Counted(SqliteStore):
    """Counts about how many requests it is asked."""

    def __init__(self, path):
        super().__init__(path)
        self.outcomes_asked = self.most_seen = self.submitted = 0

    async def outcomes(self, ids):
        self.outcomes_asked += len(ids)
        return await super().outcomes(ids)

    async def pictures(self, ids):
        self.most_seen = max(self.most_seen, len(ids))
        return await super().pictures(ids)

    async def turn(self, turn):
        self.submitted += len(turn.submit)
        return await super().turn(turn)


class Slow(Bench):
    async def _answer(self, request):
        await asyncio.sleep(0.02)
        return await super()._answer(request)


async def test_the_store_is_asked_about_what_ended_and_not_about_all_that_waits(tmp_path):
    path, store = tmp_path / "s.db", Counted(tmp_path / "s.db")
    async with (
        Scheduler(path, providers=Slow(), concurrency=2) as there,
        Scheduler(store, providers=Bench(), poll_interval=0.05) as here,
    ):
        await there.enqueue([ask(n, key=f"k{n}") for n in range(MANY)])
        futures = [here.submit(ask(n, key=f"k{n}")) for n in range(MANY)]
        await asyncio.wait(futures[:3])
        await asyncio.sleep(1.5)
        answered = there.stats().succeeded
        assert sum(each.done() for each in futures) >= 20  # they hear of it as it goes on

        assert store.most_seen <= PAGE
        assert store.outcomes_asked <= 2 * answered + 50
        assert store.submitted <= MANY + 2 * PAGE + 50  # a page again, now and then
        assert here._pump._desk.elsewhere  # the others wait on
        for each in futures:
            each.cancel()
        there.stop_admitting()


class Turning(SqliteStore):
    """Counts its turns, and may forget that they were taken."""

    turns = 0

    async def turn(self, turn):
        self.turns += 1
        return await super().turn(turn)


async def test_who_has_no_place_left_takes_no_turn_for_what_others_change(tmp_path):
    """Where many processes meet, such turns alone would fill the store; the lease is kept."""
    path, store = tmp_path / "s.db", Turning(tmp_path / "s.db")
    store.lease_ms = 3_000
    hold, provider = asyncio.Event(), Bench()

    async def before(request):
        await hold.wait()

    provider.before = before
    async with (
        Scheduler(store, providers=provider, concurrency=1, poll_interval=0.01) as full,
        Scheduler(path, providers=Bench(), poll_interval=0.01) as busy,
    ):
        running, waiting = (full.submit(ask(n, key=f"f{n}", provider="bench")) for n in (1, 2))
        while not provider.running:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        before_all = store.turns
        for n in range(40):
            await busy.run(ask(n))
            await asyncio.sleep(0.02)
        taken = store.turns - before_all
        await asyncio.sleep(1.2)
        renewed = store.turns - before_all - taken
        hold.set()
        await asyncio.gather(running, waiting)

    assert taken <= 4
    assert renewed  # or others would take it for dead


async def test_they_are_taken_over_when_their_process_has_gone(tmp_path):
    path, mine = tmp_path / "s.db", Bench()
    there = Scheduler(path, providers=Slow(), concurrency=1)
    async with Scheduler(path, providers=mine, poll_interval=0.05) as here:
        async with there:
            await there.enqueue([ask(n, key=f"k{n}") for n in range(900)])
            futures = [here.submit(ask(n, key=f"k{n}")) for n in range(900)]
            await futures[0]
        answers = await asyncio.wait_for(asyncio.gather(*futures), 20)

    assert [each.key for each in answers] == [f"k{n}" for n in range(900)]
    assert 800 < len(mine.sent) < 900


# Shared


def simulated():
    provider = Simulated(latency=0.01)
    provider.service = "sim"
    return provider


def asked(n, **options):
    return Request.chat("sim-small", f"q{n}", max_tokens=5, key=f"k{n}", **options)


async def test_a_client_submits_and_a_worker_sends(tmp_path):
    path = tmp_path / "s.db"
    async with Scheduler(path, providers=simulated(), role="client", poll_interval=0.05) as client:
        futures = [client.submit(asked(n)) for n in range(20)]
        await until(lambda: all(each.request_id for each in futures))
        await asyncio.sleep(0.2)  # it looks four times
        assert not any(each.done() for each in futures)
        assert client.stats().queued == 20
        async with Scheduler(path, providers=simulated(), role="worker", poll_interval=0.05) as w:
            answers = await asyncio.wait_for(asyncio.gather(*futures), 20)
            await until(lambda: (client.stats().queued, w.stats().succeeded) == (0, 20))
            with pytest.raises(ConfigError, match="a worker takes in no requests"):
                w.submit(asked(99))
    assert [each.key for each in answers] == [f"k{n}" for n in range(20)]
    assert all(each.cost_nusd > 0 for each in answers)


class Sluggish(SqliteStore):
    """Takes its time before each turn, and until its caller hears of it."""

    async def turn(self, turn):
        await asyncio.sleep(0.03)
        result = await super().turn(turn)
        await asyncio.sleep(0.03)
        return result


async def test_while_a_turn_is_on_its_way_nobody_thinks_that_nothing_waits(tmp_path):
    provider = Bench()
    provider.service = "bench"
    odd = ProviderOverloaded(500, "for now")

    async def fail_at_first(request):
        if len(provider.sent) < 3:
            raise odd

    provider.before = fail_at_first
    async with Scheduler(
        Sluggish(tmp_path / "s.db"), providers=provider, retry_wait_s=lambda attempt: 0.02
    ) as s:
        await s.enqueue([ask(1, key="k")])
        went = []
        while (await s.store.counts()).succeeded == 0:
            stats = s.stats()
            went.append(stats.queued + stats.running + sum(stats.parked.values()))
            await asyncio.sleep(0.001)
        await s.join()

        assert set(went) == {1}
        assert len(provider.sent) == 3
        assert s.stats().queued == 0


class Noting(SqliteStore):
    """Notes what is to be cancelled."""

    async def turn(self, turn):
        self.cancels = [*getattr(self, "cancels", ()), *turn.cancel]
        return await super().turn(turn)


async def test_who_joined_a_request_of_others_and_left_takes_it_from_nobody(tmp_path):
    provider, began, go = Bench(), asyncio.Event(), asyncio.Event()
    provider.service = "bench"

    async def fail_at_first(request):
        began.set()
        await go.wait()
        if len(provider.sent) == 1:
            raise ProviderOverloaded(500, "for now")

    provider.before = fail_at_first
    client, worker = Bench(), Noting(tmp_path / "s.db")
    client.service = "bench"
    async with (
        Scheduler(tmp_path / "s.db", providers=client, role="client", poll_interval=0.05) as here,
        Scheduler(worker, providers=provider, poll_interval=0.05, retry_wait_s=lambda n: 0.02) as s,
    ):
        future = here.submit(ask(1, key="k"))
        await asyncio.wait_for(began.wait(), 10)
        joined, stays = s.submit(ask(1, key="k")), s.submit(ask(1, key="k"))
        await until(lambda: joined.request_id and stays.request_id)
        joined.cancel()
        go.set()

        answers = await asyncio.wait_for(asyncio.gather(future, stays), 20)

        assert [each.key for each in answers] == ["k", "k"]
        assert (worker.cancels, len(provider.sent)) == ([], 2)


@pytest.mark.parametrize("why", ["no key", "streams", "refused rather", "send", "of one process"])
async def test_a_client_takes_nothing_that_no_other_process_could_send(tmp_path, why):
    provider = simulated()
    if why == "of one process":
        provider.service = None
    async with Scheduler(tmp_path / "s.db", providers=provider, role="client") as s:
        submit = {
            "no key": lambda: s.submit(Request.chat("sim-small", "q", max_tokens=5)),
            "streams": lambda: s.stream(asked(1)),
            "refused rather": lambda: s.submit(asked(1), on_exceeded="raise"),
            "send": lambda: s.submit(asked(1), send=provider.send),
            "of one process": lambda: s.submit(asked(1)),
        }
        with pytest.raises(ConfigError, match="a client sends nothing itself"):
            submit[why]()


async def test_a_name_that_means_another_service_is_somebody_elses(tmp_path):
    path, other = tmp_path / "s.db", simulated()
    other.service = "another"
    async with Scheduler(path, providers=simulated(), role="client", poll_interval=0.05) as client:
        future = client.submit(asked(1))
        async with Scheduler(path, providers=other, poll_interval=0.05) as s:
            await asyncio.sleep(0.4)
            assert not future.done()
            assert s.stats().queued == 0
        future.cancel()
        async with asyncio.timeout(20):
            while (await client.store.counts()).cancelled != 1:
                await asyncio.sleep(0.02)


async def test_a_client_in_memory_and_a_role_that_is_none_are_refused():
    with pytest.raises(ConfigError, match="a client needs a store that others share"):
        Scheduler(role="client")
    with pytest.raises(ConfigError, match="'boss' is not one of"):
        Scheduler(role="boss")
