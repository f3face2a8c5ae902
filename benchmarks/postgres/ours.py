"""The store itself: each turn settles what it had, submits as many new ones, and claims them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.postgres.gauge import Watch
from scheduler.admission.plan import LaneKey
from scheduler.budget import Budget
from scheduler.request import Request, RequestState, Response, Usage
from scheduler.stores.base import Claimed, NewRequest, Outcome, Settlement, Turn
from scheduler.stores.postgres.store import PostgresStore

PROVIDER = "p"


def settled(claimed: Claimed) -> Settlement:
    """It was answered at once, and cost half of what it might have."""
    return Settlement(
        claimed.reservation_id, claimed.request_id, Outcome.POST, RequestState.SUCCEEDED, 5, 3,
        response=Response({"n": 1}, usage=Usage(1, 2), key=claimed.request.key),
    )  # fmt: skip


def submitted(key: str, lane: LaneKey) -> NewRequest:
    request = Request.chat("m", "hi", key=key)
    return NewRequest(request, lane, 10, 10, 5, request.digest())


async def prepare(dsn: str) -> None:
    store = PostgresStore(dsn)
    await store.open(0)
    await store.define([Budget("team", "$100")], 0)
    await store.aclose()


class Worker:
    """See the module."""

    def __init__(self, dsn: str, name: str) -> None:
        self.store, self.name, self.number = PostgresStore(dsn), name, 0
        self.claimed: list[Claimed] = []
        self.held = Watch()

    async def begin(self) -> None:
        store = self.store
        await store.open(0)
        self.lane = LaneKey(PROVIDER, tuple(each.id for each in await store.budgets(0)), 10)
        write: Callable[..., Any] = store._session.write

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.held:
                return write(*args, **kwargs)

        store._session.write = watched  # type: ignore[method-assign]

    async def turn(self, size: int) -> int:
        """How many came to their end in it."""
        batch = [submitted(f"{self.name}-{self.number + n}", self.lane) for n in range(size)]
        self.number += size
        for each in batch:
            self.store.prepare(each)
        turn = Turn(
            0, [settled(each) for each in self.claimed], submit=batch, slots={PROVIDER: size}
        )
        done, self.claimed = len(self.claimed), (await self.store.turn(turn)).claimed
        return done

    async def end(self) -> None:
        await self.store.turn(Turn(0, [settled(each) for each in self.claimed]))
        await self.store.aclose()
