"""Plays a small world on the real scheduler, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

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
    from scheduler.rehearsal.scale import World
    from scheduler.rehearsal.scene import Desk

LOOK_S = 600  # virtual
AHEAD = 4  # requests that wait in a lane


class Steady(VirtualClock):
    """One that nobody sets, so that one timer is enough however far off an instant is."""

    is_steady = True


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


class Played(NamedTuple):
    """One request that was played: to which part it belongs, and from when to when, from now on."""

    part: int
    began_ms: int
    ended_ms: int


def play(world: World, horizon_ms: int) -> list[Played]:
    """What was done when, in the order in which it ended.

    At `horizon_ms` the curtain falls, or when nothing can go on by itself.
    """
    return run(_Rehearsal(world).play(horizon_ms))


class _Rehearsal:
    """One run."""

    def __init__(self, world: World) -> None:
        self._world, self._played = world, list[Played]()
        self._began: dict[int, int] = {}
        self._done, self._hungry = asyncio.Event(), asyncio.Event()
        self._lines: dict[tuple[Any, ...], deque[int]] = {}  # who comes next, by lane
        self._left: list[tuple[Any, ...]] = []  # lanes from which one has gone
        for at, one in enumerate(world.plays):
            lane = (one.provider, one.model, one.priority, one.budgets)
            self._lines.setdefault(lane, deque()).append(at)

    async def play(self, horizon_ms: int) -> list[Played]:
        """To its end."""
        world, store = self._world, Stage(keep_finished=0)
        await store.prepare_for(world)
        providers = [self._provider(each) for each in world.desks]
        most = max(each.at_once for each in world.desks)
        shell = Shell(
            store, providers=providers, clock=Steady(world.now_ms), concurrency=most,
            retry=plain_retry(1, None, 0),
        )  # fmt: skip
        async with shell:
            shell.on(Settled, self._note)
            await shell.enqueue(self._first())
            tasks = [asyncio.create_task(each) for each in (self._feed(shell), self._watch(shell))]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(horizon_ms / 1000):
                    await self._done.wait()
            for task in tasks:
                task.cancel()
        return self._played

    def _provider(self, desk: Desk) -> FunctionProvider:
        provider = FunctionProvider(desk.name, self._call, quote=self._quote)
        provider.limits, provider.model_limits = desk.limits, desk.model_limits
        provider.counting = desk.counting
        return provider

    async def _call(self, request: Request) -> Answer:
        at = request.body["at"]
        one = self._world.plays[at]
        self._began[at] = self._now_ms
        self._left.append((one.provider, one.model, one.priority, one.budgets))
        self._hungry.set()
        await asyncio.sleep(one.drawn.ms / 1000)
        tokens = max(1, round(one.drawn.tokens))
        usage = Usage(min(one.input, tokens), max(0, tokens - one.input))
        return Answer(at, usage=usage, cost_nusd=round(one.drawn.nusd))

    def _quote(self, request: Request) -> Quote:
        one = self._world.plays[request.body["at"]]
        tokens = Tokens(one.input, one.output)
        return Quote(one.ceiling_nusd, one.ceiling_nusd, one.ceiling_tokens, tokens=tokens)

    def _note(self, event: Settled) -> None:
        if event.state is RequestState.QUEUED or event.response is None:
            return
        began_ms = self._began.pop(event.response.body)
        self._played.append(Played(int(event.job), began_ms, self._now_ms))
        if len(self._played) == len(self._world.plays):
            self._done.set()

    @property
    def _now_ms(self) -> int:
        return round(asyncio.get_running_loop().time() * 1000)

    def _first(self) -> list[Request]:
        """The first ones of each lane."""
        return [self._request(line.popleft()) for line in self._lines.values()
                for _ in range(min(len(line), AHEAD))]  # fmt: skip

    async def _feed(self, shell: Shell) -> None:
        """Have some wait in each lane, not all: a plan looks at a hundred of those who do not fit."""
        while True:
            await self._hungry.wait()
            self._hungry.clear()
            left, self._left = self._left, []
            lines = [self._lines[lane] for lane in left]
            if more := [self._request(line.popleft()) for line in lines if line]:
                await shell.enqueue(more)

    async def _watch(self, shell: Shell) -> None:
        """End it when nothing runs and nothing will go on by itself."""
        while True:
            stats, wait_s = shell.stats(), float(LOOK_S)
            if not (stats.running or stats.queued):
                if stats.resumes_at_ms is None:
                    self._done.set()
                    return
                # Nothing happens before: a look every ten minutes of some years takes minutes.
                wait_s = max(wait_s, (stats.resumes_at_ms - shell.now_ms()) / 1000)
            await asyncio.sleep(wait_s)

    def _request(self, at: int) -> Request:
        one = self._world.plays[at]
        return Request(
            {"model": one.model, "at": at}, provider=one.provider, budget=one.budgets,
            priority=one.priority, job=str(one.part),
        )  # fmt: skip
