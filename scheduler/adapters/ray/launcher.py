"""Starts workers as actors on the nodes of a Ray cluster, and keeps them there until they are done.

Ray itself starts an actor again when its process or node is gone, and has it do its work anew; here it
is followed, told, and told to stop. What a worker does is not decided here: it is sent to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from scheduler.adapters.ray.actor import SchedulerWorker, Work
from scheduler.adapters.ray.fitting import Cluster
from scheduler.adapters.ray.fleet import Echo, Ended, Fleet, Member, State, Told
from scheduler.adapters.ray.joining import seen
from scheduler.duration import format_duration
from scheduler.guards.plain import one_line
from scheduler.guards.signals import HANG_UP, signals_to

LOOK_S = 1.0  # so often a worker is asked how it is
SETTLING_S = 30.0  # beyond their grace they may take so long to sign off
FIRST_AGAIN_S, LAST_AGAIN_S = 1.0, 60.0  # between two beginnings of a worker that fails at once
FAILED, INTERRUPTED = 1, 130  # as exit codes of a command


@dataclass(frozen=True, slots=True)
class Plan:
    """How many workers, and where.

    Attributes:
        cpus: What Ray sets aside for each.
        grace_s: How long their calls may take once they are told to stop.
        tell_s: How often it is told how they are.
        runtime_env: What else their processes need, in Ray's own words.
        node_id: The node where all of them are; empty: spread over all nodes.
    """

    workers: int
    cpus: float
    grace_s: float
    tell_s: float = 30.0
    runtime_env: dict[str, Any] | None = field(default=None, repr=False)
    node_id: str = ""


class Launcher:
    """Runs a fleet of workers; `run` is its life.

    Args:
        ray: Ray, connected to a cluster.
        work: What each of them does.
        plan: How many, and where.
        say: Tells people what happens.

    Attributes:
        fleet: How the workers are doing.
    """

    def __init__(self, ray: Any, work: Work, plan: Plan, say: Callable[[str], object]) -> None:
        self._ray, self._work, self._plan, self._say = ray, work, plan, say
        self.fleet = Fleet([Member(number + 1) for number in range(plan.workers)])
        self._echo = Echo(say)
        self._cluster = Cluster([], 0.0)
        self._handles: dict[int, Any] = {}
        self._asking = defaultdict[int, asyncio.Lock](asyncio.Lock)
        self._stopping, self._patience = asyncio.Event(), asyncio.Timeout(None)
        self._signals, self._told = 0, set[str]()  # lives that were told to stop
        self._errands: set[asyncio.Task[None]] = set()

    async def run(self) -> Fleet:
        """Start them, follow them, and end when all of them have ended."""
        self._cluster = await asyncio.to_thread(seen, self._ray)
        for member in self.fleet.members:
            self._handles[member.number] = self._start(member)
        try:
            with signals_to(self._interrupted):
                async with asyncio.TaskGroup() as group:
                    beside = [group.create_task(self._tell())]
                    beside += [group.create_task(self._follow(each)) for each in self.fleet.members]
                    await self._all_ended()
                    for task in (*beside, *self._errands):
                        task.cancel()
        finally:
            for handle in self._handles.values():
                self._ray.kill(handle)
        return self.fleet

    def _start(self, member: Member) -> Any:
        plan = self._plan
        options: dict[str, Any] = {
            "num_cpus": plan.cpus,
            "max_restarts": -1,
            "max_task_retries": -1,
            "scheduling_strategy": "SPREAD",
            "name": f"scheduler-worker-{member.number}",
        }
        if plan.node_id:
            strategies = self._ray.util.scheduling_strategies
            options["scheduling_strategy"] = strategies.NodeAffinitySchedulingStrategy(
                plan.node_id, soft=False
            )
        if plan.runtime_env is not None:
            options["runtime_env"] = plan.runtime_env
        return self._ray.remote(SchedulerWorker).options(**options).remote()

    # Their work

    async def _all_ended(self) -> None:
        """Wait until all have ended; once they are told to, not for ever."""
        with contextlib.suppress(TimeoutError):
            async with self._patience, asyncio.TaskGroup() as lives:
                for member in self.fleet.members:
                    lives.create_task(self._live(member))
        for member in self.fleet.members:
            if member.ended is None:
                why = "it did not end when it was told to; what it had sent keeps counting"
                self._end(member, Ended(INTERRUPTED, why))

    async def _live(self, member: Member) -> None:
        """Have a worker do its work, again if that ends in a way that may pass."""
        exceptions, wait_s = self._ray.exceptions, FIRST_AGAIN_S
        while True:
            began_s = asyncio.get_running_loop().time()
            try:
                # Not with the actor: what is sent with that is kept by the cluster, also on disks.
                ended: Ended = await self._handles[member.number].run.remote(self._work)
            except exceptions.RayTaskError as exc:
                ended = Ended(FAILED, _cause(exc), is_final=False)
            except exceptions.RayError as exc:  # it has no process, and will have none
                is_told = self._stopping.is_set()
                ended = Ended(0) if is_told else Ended(FAILED, f"cannot run: {_cause(exc)}")
            else:
                await self._ask(member)  # its last words
            if ended.is_final or self._stopping.is_set():
                self._end(member, ended)
                return
            if asyncio.get_running_loop().time() - began_s > LAST_AGAIN_S:
                wait_s = FIRST_AGAIN_S
            span = format_duration(int(wait_s * 1000))
            self._hear(member, f"{ended.message}. It begins again in {span}")
            if await _within(self._stopping.wait(), wait_s):
                self._end(member, ended)
                return
            wait_s = min(2 * wait_s, LAST_AGAIN_S)

    def _end(self, member: Member, ended: Ended) -> None:
        member.ends(ended)
        if ended.exit:
            self._hear(member, f"has ended with {ended.exit}: {ended.message}")

    def _hear(self, member: Member, text: str) -> None:
        self._echo.hear(member.number, one_line(text), asyncio.get_running_loop().time())

    # How they are

    async def _follow(self, member: Member) -> None:
        """Ask a worker now and then how it is, until it has ended."""
        while member.state is not State.ENDED:
            if await self._ask(member):
                if self._stopping.is_set() and member.life not in self._told:
                    await self._stop(member)  # it came back meanwhile, and knows of nothing
            elif not self._stopping.is_set() and (news := member.is_lost()):
                self._say(news)
            await asyncio.sleep(LOOK_S)

    async def _ask(self, member: Member) -> bool:
        """Have a worker tell how it is, and tell what is news; returns whether it answered."""
        told = self._handles[member.number].told.options(max_task_retries=0)
        async with self._asking[member.number]:
            try:
                found: Told = await told.remote(member.heard, member.life)
            except self._ray.exceptions.RayError:
                return False
            if member.life != found.life:
                self._cluster = await asyncio.to_thread(seen, self._ray)
            if news := member.hears(found, self._cluster.name_of(found.node_id)):
                self._say(news)
            for text in found.said:
                self._hear(member, text)
        return True

    async def _tell(self) -> None:
        """Say how all of them are: when they are up, when places change, and now and then."""
        loop = asyncio.get_running_loop()
        was, told_s = "", loop.time()
        while True:
            await asyncio.sleep(LOOK_S)
            fleet = self.fleet
            now = f"{fleet.places} {[each.state for each in fleet.members]}"
            is_due = loop.time() - told_s >= self._plan.tell_s
            if is_due or (now != was and not fleet.in_state(State.WAITING)):
                was, told_s = now, loop.time()
                self._say(fleet.as_line())

    # Their end

    def _interrupted(self, number: int) -> None:
        if len(self.fleet.in_state(State.ENDED)) == len(self.fleet.members):
            return
        if number == HANG_UP and self._signals:
            return  # the system and the shell both tell of it
        self._signals += 1
        if self._signals > 2:
            raise SystemExit(INTERRUPTED)
        if self._signals == 1:
            self._stopping.set()
            within_s = self._plan.grace_s + SETTLING_S
            self._patience.reschedule(asyncio.get_running_loop().time() + within_s)
            self._say(f"stopping {len(self.fleet.members)} workers; what waits stays in the store")
        for member in self.fleet.members:
            if member.state is not State.ENDED:
                errand = asyncio.create_task(self._stop(member))
                self._errands.add(errand)
                errand.add_done_callback(self._errands.discard)

    async def _stop(self, member: Member) -> None:
        """Tell a worker to stop; one that has no process has nothing to finish."""
        handle = self._handles[member.number]
        if member.state is State.UP:
            self._told.add(member.life)
            with contextlib.suppress(self._ray.exceptions.RayError):
                await handle.stop.options(max_task_retries=0).remote()
                return
        self._ray.kill(handle)


def _cause(exc: Exception) -> str:
    """What Ray's error is about, in one line: its own tells of stacks and of itself."""
    cause = getattr(exc, "cause", None)
    if cause is not None:
        return one_line(f"{type(cause).__name__}: {cause}")
    lines = str(exc).strip().splitlines() or [type(exc).__name__]
    return one_line(lines[-1])


async def _within(what: Awaitable[Any], span_s: float) -> bool:
    """Wait for something, so long at most; returns whether it came."""
    try:
        async with asyncio.timeout(span_s):
            await what
    except TimeoutError:
        return False
    return True
