"""What every store promises a process that has no key for a provider. To inherit."""

from __future__ import annotations

import pytest

from scheduler.budget import Budget
from scheduler.stores.base import NewRequest, Turn
from tests.stores.conformance import Bench, new, post

SERVED = {"p": "https://one.example/v1", "q": "https://two.example/v1"}


def shared(provider: str, key: str, **options: object) -> NewRequest:
    """A request that anybody may send who has the key."""
    made = new(key=key, **options)  # type: ignore[arg-type]
    made.lane = made.lane._replace(is_shared=True, service=SERVED[provider], provider=provider)
    return made


@pytest.mark.anyio
class Leaving:
    """Inherit and provide the fixture ``store``: an open, empty store."""

    @pytest.fixture
    async def bench(self, store) -> Bench:
        made = Bench(store)
        await made.define(Budget("team", "$1"))
        return made

    async def claims(self, bench: Bench, *requests: NewRequest, slots: int = 10) -> list[str]:
        """Keys of what a turn lets start, which is then answered."""
        for each in requests:
            bench.store.prepare(each)
        room = {"p": slots, "q": slots}
        result = await bench.store.turn(Turn(bench.now_ms, slots=room, submit=requests))
        await bench.turn(None, settle=[post(each, 1) for each in result.claimed])
        return [str(each.request.key) for each in result.claimed]

    async def test_what_anybody_may_send_is_left_to_who_has_the_key(self, bench):
        bench.store.serve(SERVED, at_once=4, left=["q"])

        keys = await self.claims(bench, shared("q", "left"), shared("p", "mine"))

        assert keys == ["mine"]
        assert await self.claims(bench) == []
        counts = await bench.store.counts()
        assert (counts.queued, counts.succeeded) == (1, 1)

    async def test_what_only_this_process_can_send_is_its_own(self, bench):
        bench.store.serve(SERVED, at_once=4, left=["p"])

        assert await self.claims(bench, new(key="own"), shared("p", "left")) == ["own"]

    async def test_it_does_not_count_as_what_it_is_to_send(self, bench):
        bench.store.serve(SERVED, at_once=4, left=["q"])
        more = [shared("q", f"k{n}") for n in range(3)]

        result = await bench.submit(*more, shared("p", "mine"), slots=0)
        if bench.store.is_shared:
            assert result.waiting_shared == 1
        ids = [each.id for each in result.submitted]
        result = await bench.turn(0, cancel=ids[:1])  # it may be withdrawn all the same

        assert result.cancelled == [True]
        assert (await bench.store.counts()).queued == 3

    async def test_with_the_key_it_is_sent_in_its_order(self, bench):
        bench.store.serve(SERVED, at_once=4, left=["q"])
        await self.claims(bench, *[shared("q", f"k{n}") for n in range(3)])

        bench.store.serve(SERVED, at_once=4)

        assert await self.claims(bench, slots=2) == ["k0", "k1"]
        if bench.store.is_shared:
            assert (await bench.turn(0)).waiting_shared == 1
        bench.store.serve(SERVED, at_once=4, left=["q"])
        assert await self.claims(bench) == []
        assert await bench.is_sound()

    async def test_time_is_over_for_what_is_left_too(self, bench):
        bench.store.serve(SERVED, at_once=4, left=["q"])
        await self.claims(bench, shared("q", "late", expires_at_ms=bench.now_ms + 1_000))

        bench.now_ms += 1_000
        result = await bench.turn(10)

        assert [each.key for each in result.expired] == ["late"]
