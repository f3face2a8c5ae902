"""Plays a small world on the real scheduler, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from scheduler.answer import Answer
from scheduler.core.shell import Shell
from scheduler.events import Settled
from scheduler.foresight import Flight
from scheduler.limits.retry import plain_retry
from scheduler.providers.function import FunctionProvider
from scheduler.request import Quote, Request, RequestState, Tokens, Usage
from scheduler.stores.memory.store import MemoryStore
from scheduler.testing import VirtualClock, run

if TYPE_CHECKING:
    from scheduler.rehearsal.scale import Play, World
    from scheduler.rehearsal.scene import Desk

LOOK_S = 60  # virtual


class Stage(MemoryStore):
    """A store in memory that begins with something spent."""

    async def prepare_for(self, world: World) -> None:
        """Have its budgets, with what was spent of them."""
        await self.define(world.budgets, world.now_ms)
        for name, at, slot_ms, amount in world.spent:
            self._budgets.begin_with(name, at, slot_ms, amount)
        for name in world.paused:
            await self.pause(name, True, world.now_ms)
        for one in world.known:
            drawn = one.drawn
            flight = Flight((one.model, str(one.part)), 0, (one.ceiling_nusd, one.ceiling_tokens))
            self._budgets.learn(flight, round(drawn.ms), (round(drawn.nusd), round(drawn.tokens)))


def play(world: World, horizon_ms: int) -> list[tuple[int, int]]:
    """What ended when, in milliseconds from now, and to which part it belongs, in that order.

    At `horizon_ms` the curtain falls, or when nothing can go on by itself.
    """
    return run(_play(world, horizon_ms))


async def _play(world: World, horizon_ms: int) -> list[tuple[int, int]]:
    plays, ended, done = world.plays, [], asyncio.Event()
    loop = asyncio.get_running_loop()

    async def call(request: Request) -> Answer:
        drawn = plays[request.body["at"]].drawn
        await asyncio.sleep(drawn.ms / 1000)
        tokens, said = max(1, round(drawn.tokens)), request.body["input"]
        usage = Usage(min(said, tokens), max(0, tokens - said))
        return Answer(None, usage=usage, cost_nusd=round(drawn.nusd))

    def quote(request: Request) -> Quote:
        one = plays[request.body["at"]]
        return Quote(
            one.ceiling_nusd, one.ceiling_nusd, one.ceiling_tokens,
            tokens=Tokens(one.input, one.output),
        )  # fmt: skip

    def note(event: Settled) -> None:
        if event.state is not RequestState.QUEUED:
            ended.append((round(loop.time() * 1000), int(event.job)))
            if len(ended) == len(plays):
                done.set()

    store = Stage(keep_finished=0)
    await store.prepare_for(world)
    most = max(each.at_once for each in world.desks)
    shell = Shell(
        store, providers=[_provider(each, call, quote) for each in world.desks],
        clock=VirtualClock(world.now_ms), concurrency=most, retry=plain_retry(1, None, 0),
    )  # fmt: skip
    async with shell:
        shell.on(Settled, note)
        await shell.enqueue([_request(at, each) for at, each in enumerate(plays)])
        watch = asyncio.create_task(_stall(shell, done))
        try:
            async with asyncio.timeout(horizon_ms / 1000):
                await done.wait()
        except TimeoutError:
            pass
        watch.cancel()
    return ended


async def _stall(shell: Shell, done: asyncio.Event) -> None:
    """End it when nothing runs and nothing will go on by itself."""
    while True:
        stats = shell.stats()
        waits = stats.running or stats.queued
        if not waits and stats.resumes_at_ms is None:
            done.set()
            return
        await asyncio.sleep(LOOK_S)


def _request(at: int, one: Play) -> Request:
    return Request(
        {"model": one.model, "at": at, "input": one.input}, provider=one.provider,
        budget=one.budgets, priority=one.priority, job=str(one.part),
    )  # fmt: skip


def _provider(desk: Desk, call: Any, quote: Any) -> FunctionProvider:
    provider = FunctionProvider(desk.name, call, quote=quote)
    provider.limits, provider.model_limits = desk.limits, desk.model_limits
    provider.counting = desk.counting
    return provider
