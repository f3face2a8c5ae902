"""The whole system under virtual time, driven by a seed, checked after every step.

A world has processes with their own schedulers on one store, a provider that keeps its
own bill, clients that submit, cancel and come back after a crash, somebody who changes
limits, and a clock that is set back and forth. Everything is drawn from one seed, so a
failure repeats exactly. What is checked, by the names of the invariants:

    1   after every transaction that reserves, no budget it drew on is above its limit
    2   no reservation is settled twice (an assumption may be corrected once)
    3   whatever arrives at the provider has a reservation, and its request is running
    4   the ledger counts at least what was billed, in every budget, after every transaction
    5   every request ends, once; every future is done; none is lost
    6   what was never sent costs nothing (4 turned round: no more than was reserved)
    7   one key has one answer, and nothing is sent for it once that is stored; of those who ask
        for it each one waits on terms of their own
    8   with money for all, everything ends within a bounded time: no wake-up is lost; what its
        provider has credit for does not wait for that, whatever it has none for
    9   whoever waits for money that comes back is passed within the bound (one process)
    10  balances recomputed from the reservations are the stored ones
    11  a change of a limit cancels nothing
    12  waiting costs nothing: no turns without end that do nothing
    13  no call waits for one that waits for it: who makes calls within a call gets on, or is told
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from scheduler import Budget, Request, RequestFuture, Scheduler
from scheduler.budget import Unit
from scheduler.core.calls import UnderWay, attempt_around
from scheduler.core.steady import Steady
from scheduler.errors import (
    BudgetExceeded,
    CallFailed,
    DeadlineExceeded,
    ProviderUnavailable,
    RequestRejected,
    SchedulerClosed,
    SchedulerError,
)
from scheduler.request import RequestState
from scheduler.shortfall import ParkReason
from scheduler.stores.base import Outcome, Store, Turn, TurnResult
from scheduler.stores.process import Process
from scheduler.testing import VirtualClock, run
from tests.simulation.line import Line
from tests.simulation.provider import CEILING, Askable, SimulatedProvider
from tests.simulation.stores import Handle, InlineSqlite, Surviving

# A day before clocks change in Athens, and days that are nothing special.
STARTS = [datetime(2026, 3, 28, 20, tzinfo=UTC), datetime(2026, 10, 24, 20, tzinfo=UTC),
          datetime(2026, 6, 15, tzinfo=UTC), datetime(2026, 12, 31, 12, tzinfo=UTC)]  # fmt: skip
# Limits, and what they are cut to.
SPECS = {
    "$0.0000005": "$0.0000001",
    "$0.0000004/day @Europe/Athens": "$0.0000001/day @Europe/Athens",
    "$0.00000015/hour": "$0.00000005/hour",
    "$0.000002/month": "$0.0000004/month",
    "$0.0000002/45m": "$0/45m",
    "$0.0000001/10m, $0.000001/day": "$0.00000005/10m, $0.000001/day",
    "6 requests/hour": "2 requests/hour",
    "40 tokens/20m": "20 tokens/20m",
}
REFUSALS = (BudgetExceeded, ProviderUnavailable)
LEASE_MS, GONE_MS = 180_000, 900_000
INNER = [[], [], [], [], [[]], [[], []], [[[]], []]]  # what calls make calls within them
# Two of the longest times between probes, and a process that stood still.
LONGEST_POOR_S = 2 * 3600.0
LONGEST_DEED_S = 1800.0  # of what a process does itself, such as to end in good order
LAST_S = 4 * 3600.0  # with money for all and no faults, everything ends by then


class Died(BaseException):
    """The process ended here."""


def end(task: asyncio.Task[Any]) -> None:
    """End a task of a process that is no more."""
    if isinstance(task, Steady):
        task.tear()
    else:
        task.cancel()


@dataclass(slots=True)
class Report:
    """What a world saw."""

    seed: int
    steps: int = 0
    transactions: int = 0
    sent: int = 0
    answered: int = 0
    crashes: int = 0
    points: int = 0
    events: Counter[str] = field(default_factory=Counter)


class Computer:
    """One process: a scheduler and the tasks of those who use it."""

    def __init__(self, world: World, number: int, store: Store) -> None:
        self.world, self.number, self.inner = world, number, store
        self.is_dead = self.is_buried = False
        self.stalled_until_s = 0.0
        self.stalls_next_s = 0.0  # it stands still right after it has claimed something
        self.futures: dict[str, RequestFuture] = {}
        # Of those who asked on terms of their own: what they do without money, and until when.
        self.terms: dict[RequestFuture, tuple[str, int | None]] = {}
        self.handle = Handle(store, self.point, self.committed)
        self.handle.has_gates = world.provider.purse is not None
        rng = world.rng
        self.scheduler = Scheduler(
            self.handle, providers=world.provider, clock=world.clock,
            concurrency=rng.choice([1, 3, 8]), poll_interval=50 if store.is_shared else 0.2,
            retry_wait_s=lambda attempt: rng.choice([0.0, 2.0, 40.0]), fair_by=world.fair_by,
            weights={"bob": 3} if world.fair_by else None,
        )  # fmt: skip

    async def point(self) -> None:
        """Where this process may die, stand still, or just wait for its disk."""
        world = self.world
        world.report.points += 1
        if world.dies_here():
            world.kill(self)
        await self._rest_in_peace()
        now_s = asyncio.get_running_loop().time()
        await asyncio.sleep(
            max(world.rng.choice([0, 0, 0.001, 0.05]), self.stalled_until_s - now_s)
        )
        await self._rest_in_peace()

    async def _rest_in_peace(self) -> None:
        """Of a dead process nothing runs any more, nor does it clean up after itself."""
        if self.is_buried:
            raise asyncio.CancelledError
        if self.is_dead:
            try:
                await asyncio.Event().wait()
            finally:
                self.is_buried = True

    def committed(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        try:
            if name == "turn":
                self.world.after_turn(self, args[0], result)
                if result.claimed and self.stalls_next_s:
                    now_s = asyncio.get_running_loop().time()
                    self.stalled_until_s, self.stalls_next_s = now_s + self.stalls_next_s, 0.0
            elif name == "resolve":
                self.world.after_resolve(args[0], result)
        except AssertionError as exc:
            self.world.failure = self.world.failure or exc
            raise

    def statement(self, sql: str) -> None:
        """Between two statements of a transaction a process may die as well."""
        world = self.world
        if world.is_checking:
            return
        if world.may_die and not self.is_dead and world.rng.random() < world.statement_risk:
            world.kill(self)
            raise Died


class World:
    """See the module.

    Args:
        seed: Decides everything.
        steps: How many things the clients do.
        store: ``memory``: one process at a time. ``sqlite``: several on one file.
        crash_at: Kill the process at this point and nowhere else. None: by the seed.
    """

    takes = "none"  # the risk of all budgets

    def __init__(
        self, seed: int, steps: int = 60, store: str = "memory", crash_at: int | None = None
    ) -> None:
        self.rng = random.Random(f"{seed} {store}")
        self.steps, self.kind, self.crash_at = steps, store, crash_at
        self.report = Report(seed)
        self.clock = VirtualClock(int(self.rng.choice(STARTS).timestamp() * 1000))
        kind = self.rng.choice([SimulatedProvider, SimulatedProvider, Askable])
        self.provider = kind(self.rng, self.sending, self.within)
        purse = random.Random(f"{seed} {store} purse")  # so that other worlds are as without
        if seed % 2:  # what has a key is sent by any process
            self.provider.service = self.provider.name
        self.provider.purse = purse.choice([None, None, None, 10, 40])
        # Likewise; who shares with whom, and who is to go first.
        self.order = random.Random(f"{seed} {store} order")
        is_plain = crash_at is not None  # as many awaits as ever
        self.fair_by = None if is_plain else self.order.choice([None, None, "user"])
        self.has_deadlines = not is_plain and self.order.random() < 0.5
        self.provider.tells = purse.random() < 0.5
        self.poor_since_s: dict[int, float] = {}  # futures that wait although there is credit
        self.may_die = True
        self.risk = self.rng.choice([0.0, 0.002, 0.01]) if crash_at is None else 0.0
        self.statement_risk = self.risk / 20
        self.computers: list[Computer] = []
        self.budgets: list[Budget] = []
        self.parents: dict[str, str | None] = {}
        self.requests: dict[str, Request] = {}  # by question: those with a key
        self.waived: set[str] = set()  # questions nobody asks any more
        self.answers: dict[str, Any] = {}
        self.settled: dict[int, bool] = {}  # reservation → whether by assumption
        self.claimed: dict[int, tuple[int, tuple[str, ...]]] = {}
        self.asked = 0
        self.within_calls: dict[RequestFuture, UnderWay] = {}  # and the calls that wait for them
        self.told: Counter[str] = Counter()  # what these were told
        self.turned_s = 0.0
        self.orphans: list[asyncio.Task[Any]] = []  # tasks of those who died
        self.clock_set_ms = 0
        self.idle_turns, self.idle_since_s = 0, 0.0
        self.is_checking = False  # what the world itself reads is nobody's doing
        self.failure: AssertionError | None = None
        self.tell: Callable[[str], None] | None = None  # told what happens, when replaying

    # The run

    def run(self) -> Report:
        """Live to the end. Raises AssertionError at the first thing that is not right."""
        turn = "scheduler.stores.sql.workers"
        self.queue_line = Line(self)
        with (
            mock.patch("scheduler.stores.memory.store.Planner", self.queue_line.planner),
            tempfile.TemporaryDirectory(dir=_memory_disk()) as folder,
            mock.patch(f"{turn}.is_dead", self.is_dead),
            mock.patch(f"{turn}.GONE_MS", GONE_MS),
        ):
            self.path = Path(folder) / "s.db"
            self.inner = Surviving()
            self.open_reader()
            try:
                run(self._main())
            except BaseException as exc:
                # What is wrong was found inside a transaction, and broke more than itself.
                if self.failure is not None and exc is not self.failure:
                    raise self.failure from None
                raise
            finally:
                self.reader.close()
                for computer in self.computers:
                    if computer.inner is not self.inner:
                        computer.inner.drop()
        return self.report

    # Where it is kept, if several processes share it

    def store_of(self, process: Process, statement: Callable[[str], None]) -> Any:
        """A store of that process's."""
        return InlineSqlite(self.path, process, LEASE_MS, statement)

    def open_reader(self) -> None:
        """Have a look of the world's own at what is stored."""
        self.reader = sqlite3.connect(self.path)

    def read_state(self, question: str) -> str:
        """The state of a key's request, as it is stored."""
        sql = "SELECT state FROM requests WHERE key = ?"
        return str(self.reader.execute(sql, (question,)).fetchone()[0])

    async def _main(self) -> None:
        rng = self.rng
        specs = rng.sample(list(SPECS), 3)
        self.parents = {"org": None, "team": "org", "other": None}
        self.budgets = [
            Budget(name, spec, parent=self.parents[name], risk=self.takes)
            for name, spec in zip(self.parents, specs, strict=True)
        ]
        for _ in range(1 if self.kind == "memory" else rng.choice([1, 2, 3])):
            await self.start()
        for _ in range(self.steps):
            if self.failure is not None:
                raise self.failure
            self.report.steps += 1
            await asyncio.sleep(rng.choice([0, 0.5, 5, 60, 600, 2400]))
            self.check_waits()
            await self.step()
        await self.end()

    async def step(self) -> None:
        """One thing that happens."""
        weights = {
            self.submit: 40, self.submit_keyless: 12, self.ask_again: 8, self.ask_on_terms: 10,
            self.cancel: 8,
            self.change_limit: 8, self.pause: 3, self.set_clock: 3, self.stall: 4, self.close: 3,
            self.reboot: 8,
        }  # fmt: skip
        action = self.rng.choices(list(weights), list(weights.values()))[0]
        self.report.events[action.__name__] += 1
        if self.tell is not None:
            self.tell(f"{asyncio.get_running_loop().time():10.2f} s  {action.__name__}")
        await action()

    # Processes

    async def start(self) -> Computer | None:
        """Begin a process; it asks again for everything that has no answer yet."""
        number = len(self.computers)
        self.queue_line.forget()  # whoever waits gets in line anew
        if self.kind == "memory":
            inner: Store = self.inner
        else:
            # Of the second one nobody can see whether it lives: its lease counts.
            host = "far" if number % 3 == 1 else "here"
            inner = self.store_of(
                Process(host, number + 1, "1"), lambda sql: computer.statement(sql)
            )
        computer = Computer(self, number, inner)
        self.computers.append(computer)
        try:
            await self._alive(computer, computer.scheduler.__aenter__())
            if number == 0 or not await self._knows_budgets(computer):
                await self._alive(computer, computer.scheduler.define(*self.budgets))
        except Died:
            return None
        for question in self.open_questions():
            self.ask(computer, question)
        return computer

    async def _knows_budgets(self, computer: Computer) -> bool:
        return len(await computer.inner.budgets(self.clock.now_ms())) == len(self.budgets)

    async def _alive(self, computer: Computer, doing: Any) -> Any:
        """Wait for something a process does; raises `Died` if it dies meanwhile."""
        task = asyncio.ensure_future(doing)
        task.add_done_callback(_look)
        computer.world.orphans.append(task)
        until_s = asyncio.get_running_loop().time() + LONGEST_DEED_S
        while not task.done():
            await asyncio.wait([task], timeout=1.0)
            assert asyncio.get_running_loop().time() < until_s, f"it never ends: {doing}"  # 5
            if computer.is_dead:
                raise Died
        return task.result()

    def living(self) -> list[Computer]:
        return [
            each for each in self.computers
            if not each.is_dead and each.scheduler._state == "open"
        ]  # fmt: skip

    def dies_here(self) -> bool:
        if not self.may_die:
            return False
        if self.crash_at is not None:
            return self.report.points == self.crash_at
        return self.rng.random() < self.risk

    def kill(self, computer: Computer) -> None:
        """kill -9: nothing of it runs from here on; the provider knows nothing of that."""
        if computer.is_dead:
            return
        computer.is_dead = True
        self.report.crashes += 1
        if self.tell is not None:
            self.tell(
                f"{asyncio.get_running_loop().time():10.2f} s  process {computer.number} dies"
            )
        me = asyncio.current_task()
        pump = computer.scheduler._pump
        tasks = [] if pump is None else list(pump.tasks())
        resolver = computer.scheduler._resolver
        if resolver is not None and resolver._task is not None:
            tasks.append(resolver._task)
        for task in tasks:
            if task is not me:
                end(task)
        self.orphans += tasks
        if self.kind == "memory":
            # Its transaction is whole or not at all: whoever comes next sees to the rest.
            asyncio.get_running_loop().call_soon(self.inner.bury)
        else:
            asyncio.get_running_loop().call_soon(computer.inner.drop)

    def is_dead(self, me: Process, other: Process) -> bool:
        """What the operating system would say; of another host it says nothing."""
        return other.host == me.host and self.computers[other.pid - 1].is_dead

    # What clients do

    async def submit(self) -> None:
        """Ask something new, or several things, with keys."""
        for _ in range(self.rng.choice([1, 1, 2, 4])):
            self.asked += 1
            question = f"q{self.asked}"
            self.requests[question] = self._request(question, key=question)
            self._ask_somewhere(question)

    async def submit_keyless(self) -> None:
        """Ask something for the moment."""
        self.asked += 1
        question = f"x{self.asked}"
        computers = self.living()
        if not computers:
            return
        computer = self.rng.choice(computers)
        request = self._request(question, max_wait=self.rng.choice([None, "20m"]))
        on_exceeded = self.rng.choice(["wait", "wait", "raise"])
        future = computer.scheduler.submit(request, on_exceeded=on_exceeded)
        future.add_done_callback(_look)
        computer.futures[question] = future

    async def within(self, request: Request) -> None:
        """A call makes others, one after the other or together, and makes the best of errors."""
        computer = next((each for each in self.computers if attempt_around(each.handle)), None)
        if computer is None:
            return
        inner = request.body["inner"]
        if self.rng.random() < 0.5:
            await asyncio.gather(*(self._ask_within(computer, each) for each in inner))
        else:
            for each in inner:
                await self._ask_within(computer, each)

    async def _ask_within(self, computer: Computer, inner: list[Any]) -> None:
        self.asked += 1
        request = self._request(f"i{self.asked}")
        request.body["inner"] = inner
        try:
            future = computer.scheduler.submit(request)
        except SchedulerError:
            return  # it is being closed
        caller = attempt_around(computer.handle)
        assert caller is not None
        self.within_calls[future] = caller
        try:
            await future
        except SchedulerError as error:
            self.told[type(error).__name__] += 1
        finally:
            del self.within_calls[future]

    async def ask_again(self) -> None:
        """The same key from somewhere else, or from the same process."""
        if self.requests:
            self._ask_somewhere(self.rng.choice(list(self.requests)))

    async def ask_on_terms(self) -> None:
        """The same key on terms of one's own, which are nothing to those who asked before."""
        computers = self.living()
        if not computers or not self.requests:
            return
        rng, computer = self.rng, self.rng.choice(computers)
        question = rng.choice(list(self.requests)[-6:])
        minutes = rng.choice([None, 2, 20])
        request = replace(
            self.requests[question], priority=rng.choice(["interactive", "idle"]),
            max_wait=None if minutes is None else f"{minutes}m",
        )  # fmt: skip
        on_exceeded = rng.choice(["wait", "raise"])
        future = computer.scheduler.submit(request, on_exceeded=on_exceeded)
        now_ms = self.clock.now_ms()
        ends_ms = None if minutes is None else now_ms + minutes * 60_000
        computer.terms[future] = on_exceeded, ends_ms
        computer.futures[f"{question} {len(computer.futures)} twin"] = future
        future.add_done_callback(lambda done: self.answered(computer, question, done))

    def _ask_somewhere(self, question: str) -> None:
        computers = self.living()
        if computers:
            self.ask(self.rng.choice(computers), question)

    def _request(self, question: str, **options: Any) -> Request:
        rng = self.rng
        draws = rng.choice([("team", "org"), ("team", "org"), ("other",), ("org",), ()])
        ceiling = rng.choice([CEILING, CEILING, 40, 10, 0])
        return Request(
            {"model": "m", "n": question, "ceiling": ceiling, "draws": list(draws),
             "inner": rng.choice(INNER)},
            budget=draws[:1], priority=rng.choice(["interactive", "normal", "batch"]),
            tags={"user": self.order.choice(["ann", "bob", "eve"])} if self.fair_by else {},
            deadline=self.order.choice([None, "300d", "400d"]) if self.has_deadlines else None,
            **options,
        )  # fmt: skip

    def ask(self, computer: Computer, question: str) -> None:
        """Submit a keyed question and compare the answer with what was answered before."""
        old = computer.futures.get(question)
        future = computer.scheduler.submit(self.requests[question])
        computer.futures[question] = future
        if old is not None and not old.done():
            computer.futures[f"{question} {len(computer.futures)}"] = old
        future.add_done_callback(lambda done: self.answered(computer, question, done))

    def answered(self, computer: Computer, question: str, future: RequestFuture) -> None:
        error = _look(future)
        if computer.is_dead or future.cancelled():
            return
        if error is None:
            said = future.result().body
            assert said == {"answer": question}  # 7
            self.answers.setdefault(question, said)
        elif isinstance(error, CallFailed):
            self.waived.add(question)
        elif isinstance(error, RequestRejected) and not isinstance(error, SchedulerClosed):
            on_exceeded, ends_ms = computer.terms.get(future, ("wait", None))
            meant = ends_ms is not None if isinstance(error, DeadlineExceeded) else False
            meant = meant or (isinstance(error, REFUSALS) and on_exceeded == "raise")
            if not meant:  # 7: nobody's terms but their own
                wrong = AssertionError(f"{question} was rejected: {error!r}")
                self.failure = self.failure or wrong
                raise wrong

    async def cancel(self) -> None:
        """Somebody loses interest."""
        alive = [
            (name, future)
            for each in self.living()
            for name, future in each.futures.items()
            if not future.done()
        ]
        if alive:
            name, future = self.rng.choice(alive)
            if future.key is not None:
                self.waived.add(name.partition(" ")[0])
            future.cancel()

    async def change_limit(self) -> None:
        """A raise, a cut, or no limit at all."""
        budget = self.rng.choice(self.budgets)
        limit = self.rng.choice([budget.spec, SPECS[budget.spec], None])
        await self._change(lambda s: s.set_limit(budget.name, limit))

    async def _change(self, change: Any) -> None:
        computers = self.living()
        if not computers:
            return
        computer = self.rng.choice(computers)
        with contextlib.suppress(Died, SchedulerClosed):
            await self._alive(computer, change(computer.scheduler))

    async def pause(self) -> None:
        """Hold a budget, and let it go on a little later."""
        name = self.rng.choice(self.budgets).name
        await self._change(lambda s: s.pause(name))
        await asyncio.sleep(self.rng.choice([1, 100]))
        await self._change(lambda s: s.resume(name))

    async def set_clock(self) -> None:
        """The computer's clock is set; leases need clocks that run, so not with several hosts."""
        if self.kind == "memory":
            self.clock.start_ms += self.rng.choice([-3_600_000, -2_000, 900, 7_200_000])
            self.clock_set_ms = self.clock.now_ms()

    async def stall(self) -> None:
        """A process stands still for longer than its lease."""
        for each in self.living():
            if each.inner.is_shared and self.rng.random() < 0.5:
                now_s = asyncio.get_running_loop().time()
                span_s = self.rng.choice([5.0, 250.0, 700.0, 1500.0])
                if self.rng.random() < 0.5:
                    each.stalls_next_s = span_s
                else:
                    each.stalled_until_s = now_s + span_s

    async def close(self) -> None:
        """A process ends in good order."""
        computers = self.living()
        if computers:
            computer = self.rng.choice(computers)
            drain = self.rng.random() < 0.5
            with contextlib.suppress(Died):
                await self._alive(computer, computer.scheduler.aclose(drain=drain))

    async def reboot(self) -> None:
        """If nobody is left, or few are, start another process."""
        most = 1 if self.kind == "memory" else 3
        if len(self.living()) < most:
            await self.start()

    # The end

    def open_questions(self) -> list[str]:
        return [q for q in self.requests if q not in self.waived and q not in self.answers]

    async def end(self) -> None:
        """No more faults, money for all: everything has to end by itself."""
        self.may_die, self.provider.is_kind = False, True
        while not self.living():
            await self.start()
        last = self.living()[0]
        for question in self.requests:  # those too in which somebody lost interest
            if question not in last.futures or last.futures[question].cancelled():
                self.ask(last, question)
        for budget in self.budgets:
            await self._change(lambda s, name=budget.name: s.resume(name))
            await self._change(lambda s, name=budget.name: s.set_limit(name, None))
        futures = [f for each in self.living() for f in each.futures.values() if not f.done()]
        if futures:
            _, late = await asyncio.wait(futures, timeout=LAST_S)
            assert not late, f"never ended: {[self._describe(each) for each in late][:3]}"  # 5, 8
        # What died without a sign is found out by whoever lives.
        await asyncio.sleep(2 * GONE_MS / 1000)
        for each in self.living():
            try:
                await asyncio.wait_for(each.scheduler.join(), LAST_S)
            except TimeoutError:
                raise AssertionError(f"something still waits: {each.scheduler!r}") from None  # 8
        self.check_all()
        await self.check_end(self.living()[0])
        for each in self.living():
            await each.scheduler.aclose()
        for task in self.orphans:
            end(task)
        if self.orphans:
            await asyncio.wait(self.orphans, timeout=1)

    def _describe(self, future: RequestFuture) -> str:
        return f"{future.request.body['n']} {future.state} {future.parked} id {future.request_id}"

    async def check_end(self, computer: Computer) -> None:
        inner = computer.inner
        counts = await inner.counts()
        assert (counts.running, counts.waiting) == (0, 0), counts  # 5
        keyed = await inner.queue(list(RequestState), self.clock.now_ms(), limit=100_000)
        stored = {row.key: row.state for row in keyed if row.key is not None}
        for question in self.requests:
            is_answered = stored[question] is RequestState.SUCCEEDED
            assert is_answered or stored[question] is RequestState.FAILED, question  # 5
            assert is_answered == (question in self.answers), question  # 7
        for status in await inner.budgets(self.clock.now_ms()):
            for cap in status.caps:
                assert cap.reserved == cap.suspense  # nothing runs: what is left is unknown
        if self.kind == "sqlite":
            believed = self.reader.execute("SELECT id, waiting FROM lanes WHERE waiting <> 0")
            assert believed.fetchall() == []

    # Checks

    def sending(self, request: Request) -> None:
        """Something arrives at the provider."""
        self.report.sent += 1
        question = request.body["n"]
        try:
            assert self.open_claims(question), f"{question} was sent without a reservation"  # 3
            assert question not in self.answers, f"{question} was sent after its answer"  # 7
            state = self.stored_state(question)
            assert state in (None, "running"), f"{question} was sent while it was {state}"  # 3
        except AssertionError as exc:
            self.failure = self.failure or exc
            raise

    def stored_state(self, question: str) -> str | None:
        """What the store says of a question with a key, whoever sends it."""
        if question not in self.requests:
            return None
        if self.kind == "memory":
            return self.inner._keys["", question].state.value
        return self.read_state(question)

    def open_claims(self, question: str) -> list[int]:
        return [
            reservation
            for reservation, (_, names) in self.claimed.items()
            if names[0] == question and reservation not in self.settled
        ]

    def after_turn(self, computer: Computer, turn: Turn, result: TurnResult) -> None:
        self.report.transactions += 1
        self.turned_s = asyncio.get_running_loop().time()
        self.check_rest(turn, result)
        if self.tell is not None:
            self.tell(self._told(computer, turn, result))
        for each, is_first in zip(turn.settle, result.settled, strict=True):
            if is_first and each.outcome is not Outcome.SUSPEND:
                self._settle(each.reservation_id, each.is_assumed)
            if is_first and each.state is RequestState.SUCCEEDED and each.response is not None:
                self.report.answered += 1
        reserved: set[tuple[str, Unit]] = set()
        for claim in result.claimed:
            draws = tuple(claim.request.body["draws"])
            assert claim.reservation_id not in self.claimed  # 2
            self.claimed[claim.reservation_id] = (
                claim.ceiling_nusd,
                (claim.request.body["n"], *draws),
            )
            needs = zip(Unit, (claim.ceiling_nusd, claim.ceiling_tokens, 1), strict=True)
            reserved.update((name, unit) for unit, need in needs if need for name in draws)
        self.check_limits(computer, reserved)
        self.check_bill(computer)
        if self.report.transactions % 8 == 0:
            self.check_all()

    def _told(self, computer: Computer, turn: Turn, result: TurnResult) -> str:
        now_s = asyncio.get_running_loop().time()
        parts = [f"{now_s:10.2f} s  process {computer.number}"]
        parts += [
            f"{each.outcome} {each.request_id}/{each.reservation_id} → {each.state}"
            for each in turn.settle
        ]
        parts += [
            f"cancel {each} {done}"
            for each, done in zip(turn.cancel, result.cancelled, strict=True)
        ]
        parts += [
            f"submit {new.request.body['n']} = {each.id}{' known' * each.is_known}"
            for new, each in zip(turn.submit, result.submitted, strict=True)
        ]
        parts += [f"claim {each.request_id}/{each.reservation_id}" for each in result.claimed]
        parts += [f"refuse {each}" for each, *_ in result.refused]
        parts += [f"expire {each.id}" for each in result.expired]
        return ", ".join(parts)

    def after_resolve(self, settlements: Any, result: list[bool]) -> None:
        for each, is_first in zip(settlements, result, strict=True):
            if is_first:
                self._settle(each.reservation_id, each.is_assumed)

    def _settle(self, reservation: int, is_assumed: bool) -> None:
        was_assumed = self.settled.get(reservation)
        assert was_assumed is None or (was_assumed and not is_assumed)  # 2
        self.settled[reservation] = is_assumed

    def check_limits(self, computer: Computer, reserved: set[tuple[str, Unit]]) -> None:
        """Right after a reserve, no budget it drew on is above its limit."""
        for status in computer.inner.latest() if reserved else ():
            for cap in status.caps:
                if cap.limit is not None and (status.budget.name, cap.cap.unit) in reserved:
                    assert cap.posted + cap.reserved <= cap.limit, (status.budget.name, cap)  # 1

    def check_waits(self) -> None:
        """Whatever waits has a reason that still holds."""
        now_s, now_ms = asyncio.get_running_loop().time(), self.clock.now_ms()
        for computer in self.living():
            self.check_credit(computer)
            pump = computer.scheduler._pump
            is_idle = pump is not None and not pump._turning and not pump._signal.is_set()
            if is_idle and self.kind == "memory" and self.turned_s < now_s - 1:
                self.check_inner(computer)
            if not is_idle or pump.running or computer.stalled_until_s > now_s - 300:
                continue
            for future, (_, ends_ms) in computer.terms.items():
                if ends_ms is None or future.done() or future.is_running:
                    continue
                is_late = now_ms > max(ends_ms, self.clock_set_ms) + 200_000
                assert not is_late, f"{self._describe(future)} waits beyond its own time"  # 7
            for lane in computer.inner.lanes():
                lack = lane.shortfall
                if lack is None or now_ms < self.clock_set_ms + 200_000:
                    continue
                late = lack.resumes_at_ms is not None and lack.resumes_at_ms + 200_000 < now_ms
                assert not late, f"the reset at {lack.resumes_at_ms} was missed: {lack}"  # 8
                held = self.kind == "memory" and lack.reason is ParkReason.HELD_IN_FLIGHT
                assert not held, f"waits for calls, and none is under way: {lack}"  # 8

    def check_inner(self, computer: Computer) -> None:
        """Somebody works, or some inner call waits for something else than for those who wait."""
        assert computer.scheduler._pump is not None
        calls, now_ms = computer.scheduler._pump._flight.calls, self.clock.now_ms()
        waiting = self._waiting_within(computer)
        for future in waiting:
            row = self.inner._rows[future.request_id]
            if row.is_delayed:
                return
            if row.state is not RequestState.QUEUED:
                continue
            found = [self._lacks(status, row.needs, now_ms)
                     for status in computer.inner.balances(row.lane.key.budgets)]  # fmt: skip
            if "held" not in found or "other" in found:
                return
        if any(each.request_id not in calls for each in waiting):  # nobody works
            self.failure = self.failure or AssertionError("all wait for each other")  # 13
            raise self.failure

    def _waiting_within(self, computer: Computer) -> list[RequestFuture]:
        """What calls under way wait for, if all of them do: nobody works."""
        pump = computer.scheduler._pump
        waiting = [
            future for future, caller in self.within_calls.items()
            if caller.owner is computer.handle and not future.done()
        ]  # fmt: skip
        callers = {self.within_calls[each].request_id for each in waiting}
        return waiting if pump and len(callers) >= len(pump._flight.calls) else []

    def _lacks(self, status: Any, needs: tuple[int, int, int], now_ms: int) -> str:
        """What a request lacks of a budget: nothing, what calls hold, or something else."""
        found = ""
        for cap in status.caps:
            need = needs[list(Unit).index(cap.cap.unit)]
            if status.paused or (
                cap.limit is not None and need > cap.limit - cap.posted - cap.suspense
            ):
                return "other" if need or status.paused else found
            if cap.limit is not None and need > 0 and need > cap.available:
                found = "held"
                window = cap.cap.window
                ends_ms = window.stops_counting_ms(window.slot_start_ms(now_ms))
                if ends_ms is not None and ends_ms < now_ms + 70_000:
                    return "other"
        return found

    def check_credit(self, computer: Computer) -> None:
        """What draws on no budget, and is small enough, waits for its provider's credit in no case.

        But for as long as a probe may take to find out what is small enough, and while all places
        are with calls that wait for others themselves.
        """
        now_s, purse = asyncio.get_running_loop().time(), self.provider.purse
        for future in computer.futures.values() if purse is not None else ():
            body, lack = future.request.body, None if future.done() else future.parked
            is_poor = lack is not None and lack.reason is ParkReason.PROVIDER_CREDIT
            is_due = is_poor and body["ceiling"] <= purse and not body["draws"]
            if is_due and not self._waiting_within(computer):
                waited_s = now_s - self.poor_since_s.setdefault(id(future), now_s)
                if waited_s > LONGEST_POOR_S:
                    self.failure = AssertionError(f"waited {waited_s:g} s: {lack}")  # 8
                    raise self.failure
            else:
                self.poor_since_s.pop(id(future), None)

    def check_rest(self, turn: Turn, result: TurnResult) -> None:
        """Waiting costs nothing: turns that do nothing do not follow each other."""
        now_s = asyncio.get_running_loop().time()
        if turn.settle or turn.submit or turn.cancel or result.claimed or result.expired:
            self.idle_turns, self.idle_since_s = 0, now_s
        self.idle_turns += 1
        often = self.idle_turns > 500 + 20 * (now_s - self.idle_since_s)
        assert not often, (
            f"{self.idle_turns} turns in {now_s - self.idle_since_s:g} s did nothing"
        )  # 12

    def check_bill(self, computer: Computer) -> None:
        """In every budget the ledger counts at least what was billed."""
        rows = self._now(computer.inner.spend("budget"))
        counted = {row.name: row.posted_nusd + row.reserved_nusd for row in rows}
        for name, billed_nusd in self.provider.billed_nusd.items():
            assert counted.get(name, 0) >= billed_nusd, (name, counted, billed_nusd)  # 4

    def check_all(self) -> None:
        for computer in self.living()[:1]:
            audit = self._now(computer.inner.audit(self.clock.now_ms()))
            assert audit.discrepancies == (), audit.discrepancies  # 10

    def _now(self, coroutine: Any) -> Any:
        """The result of a coroutine that does not really wait."""
        self.is_checking = True
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value
        finally:
            self.is_checking = False
        raise AssertionError("it waited")


def _look(done: asyncio.Future[Any]) -> BaseException | None:
    """The error of something that is done, so that asyncio does not complain."""
    return None if done.cancelled() else done.exception()


def _memory_disk() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
