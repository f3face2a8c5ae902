"""Calls made on behalf of running ones: they never wait for those, by place or by money."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler import (
    BlockingScheduler,
    Budget,
    BudgetExceeded,
    CallFailed,
    DeadlineExceeded,
    FunctionProvider,
    HeldByCallers,
    Limits,
    Quote,
    RateLimited,
    Request,
    Scheduler,
    SchedulerClosed,
    SchedulerError,
    StreamEvent,
    WaitsForItself,
)
from scheduler.core.nested.nesting import Nesting
from scheduler.core.nested.stuck import PATIENCE_S
from scheduler.request import RequestState
from scheduler.shortfall import ParkReason, Shortfall
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.process import Process
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench, ask
from tests.simulation.stores import InlineSqlite

DAY_S = 86_400
PRICES = {"m": "1/4"}
MESSAGES = [{"role": "user", "content": "Hi"}]


class Streaming(FunctionProvider):
    """One that can be asked for a stream, too."""

    async def stream(self, request, emit):
        answer = await self.send(request)
        await emit(StreamEvent("all of it"))
        return answer


class Trees:
    """A scheduler whose providers make the calls that their request's tree says.

    Attributes:
        most_running: Of the calls of one provider.
    """

    def __init__(self, limit="$1", places=1, store=None, **options):
        self.running = self.most_running = 0
        providers = [
            Streaming(name, self.play, quote=self.quote, cost=self.cost) for name in ("a", "b")
        ]
        self.s = Scheduler(
            store, budgets=[Budget("team", limit)] if limit else (), providers=providers,
            clock=VirtualClock(), concurrency=places, retry_wait_s=lambda attempt: 0.0, **options,
        )  # fmt: skip
        self.ended: dict[int, object] = {}
        self.nodes: list[Node] = []  # as requests name them
        self.agent = self.s.budgeted(quote="$0.000001", cost="$0")(self.inside)

    def node(self, request):
        return self.nodes[request.body["node"]]

    def quote(self, request):
        return Quote(self.node(request).nusd, 0)

    def cost(self, request, body):
        return self.node(request).cost / 10**9

    async def play(self, request):
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self.inside(self.node(request))
        finally:
            self.running -= 1

    async def inside(self, node):
        await asyncio.sleep(node.seconds)
        if node.is_parallel:
            outcomes = await asyncio.gather(*map(self.ask, node.children))
        else:
            outcomes = [await self.ask(child) for child in node.children]
        failed = [each for each in outcomes if isinstance(each, SchedulerError)]
        if failed and node.gives_up:
            error = CallFailed("a part of it failed")
            error.is_billed = False
            raise error
        return {"n": node.n}

    async def ask(self, node):
        """What became of it, and when."""
        self.nodes.append(node)
        request = Request({"model": "m", "node": len(self.nodes) - 1}, provider=node.provider)
        try:
            if node.way == "budgeted":
                outcome = await self.agent(node)
            elif node.way == "call":
                outcome = await self.s.call(
                    self.plain, node=node, model="m", messages=MESSAGES, max_tokens=1
                )
            elif node.way == "submit":
                outcome = await self.s.submit(request)
            elif node.way == "map":
                outcome = [each async for each in self.s.map([request], window=1)]
            elif node.way == "stream":
                async with self.s.stream(request) as stream:
                    outcome = await stream.response()
            else:
                outcome = await self.s.run(request)
        except SchedulerError as error:
            outcome = error
        self.ended[node.n] = outcome
        return outcome

    async def plain(self, node, **kwargs):
        await self.inside(node)
        return {"usage": {"prompt_tokens": 0, "completion_tokens": 0}}


@dataclass
class Node:
    """One call, and those it makes."""

    nusd: int = 100
    children: list[Node] = field(default_factory=list)
    way: str = "run"
    is_parallel: bool = False
    gives_up: bool = False
    seconds: float = 1.0
    cost: int = 0
    provider: str = "a"
    n: int = 0

    def __iter__(self):
        yield self
        for child in self.children:
            yield from child


def chain(depth, nusd=100, **options):
    node = Node(nusd, **options)
    for _ in range(depth):
        node = Node(nusd, [node], **options)
    return node


# Places


@pytest.mark.parametrize("way", ["run", "submit", "map", "stream", "budgeted", "call"])
@pytest.mark.parametrize("is_parallel", [False, True])
def test_calls_within_calls_end_however_few_the_places(way, is_parallel):
    async def main():
        trees = Trees(places=2, prices=PRICES)
        async with trees.s:
            leaves = [Node(way="run", n=9) for _ in range(3)]
            roots = [
                Node(way=way, children=[Node(children=leaves, is_parallel=is_parallel)])
                for _ in range(5)
            ]
            outcomes = await asyncio.gather(*map(trees.ask, roots))
            assert not any(isinstance(each, Exception) for each in outcomes)

    run(main())


def test_one_inner_call_at_a_time_goes_beyond_the_places():
    async def main():
        trees = Trees(places=1)
        async with trees.s:
            root = Node(children=[Node() for _ in range(4)], is_parallel=True)
            assert not isinstance(await trees.ask(root), Exception)
            assert trees.most_running == 2

    run(main())


async def parked(s, number):
    """Wait until so many requests lack money."""
    for _ in range(1000):
        if sum(s.stats().parked.values()) == number:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not parked")


class Agents(Bench):
    """Each asks for what its request says, then answers."""

    def __init__(self):
        super().__init__()
        self.s, self.named = None, []

    def agent(self, number, *asked):
        """A request that asks for others; bodies name them by their position."""
        self.named += asked
        asks = list(range(len(self.named) - len(asked), len(self.named)))
        return ask(number, budget="rich", asks=asks)

    async def send(self, request):
        asked = [self.named[each] for each in request.body.get("asks", ())]
        await asyncio.gather(*map(self.s.run, asked))
        return await super().send(request)


def poor_and_rich(store=None, places=1):
    provider = Agents()
    budgets = [Budget("poor", "$0"), Budget("rich", "$1")]
    s = Scheduler(
        store, budgets=budgets, providers=provider, clock=VirtualClock(), concurrency=places
    )
    provider.s = s
    return s, provider.agent


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_callers_whose_calls_lack_money_hold_up_nobody(store, depth, tmp_path):
    async def main():
        process = Process("here", 1, "1")
        file = InlineSqlite(tmp_path / "s.db", process, 10**9, lambda sql: None)
        s, agent = poor_and_rich(file if store == "sqlite" else None)
        async with s:
            inner = ask(100, budget="poor")
            for level in range(depth):
                inner = agent(level, inner)
            waits = [s.submit(inner) for _ in range(3)]
            await parked(s, 3)
            others = await asyncio.gather(*(s.run(ask(n, budget="rich")) for n in range(9)))
            assert len(others) == 9
            assert not any(each.done() for each in waits)

            await s.set_limit("poor", "$1")
            await asyncio.gather(*waits)
            await asyncio.gather(*(s.run(ask(n, budget="rich")) for n in range(3)))
            assert s._pump._flight.slots == {"bench": 1}

    run(main())


def test_a_call_that_lacks_money_gives_its_callers_place_to_one_that_does_not():
    async def main():
        s, agent = poor_and_rich()
        async with s:
            asked = [ask(1, budget="poor"), ask(2, budget="rich"), ask(3, budget="rich")]
            whole = s.submit(agent(0, *asked))
            await parked(s, 1)
            await asyncio.sleep(1)
            assert s.stats().succeeded == 2
            await s.set_limit("poor", "$1")
            await whole

    run(main())


def test_an_inner_call_of_another_provider_needs_no_place_there():
    async def main():
        trees = Trees(places=1)
        async with trees.s:
            there = [Node(provider="b", children=[Node(provider="a")])]
            here = [Node(provider="a", children=[Node(provider="b")])]
            outcomes = await asyncio.gather(*map(trees.ask, there + here))
            assert not any(isinstance(each, Exception) for each in outcomes)

    run(main())


def test_rates_hold_for_inner_calls_too():
    async def main():
        provider = FunctionProvider("a", lambda request: agent(request), quote="$0")
        provider.limits = Limits(requests_per_minute=60, concurrency=1)
        clock, begun = VirtualClock(), []

        async def agent(request):
            begun.append(clock.now_ms())
            if request.body["d"]:
                await asyncio.gather(*(s.run(Request({"d": 0})) for _ in range(30)))

        async with Scheduler(providers=provider, clock=clock) as s:
            await asyncio.gather(*(s.run(Request({"d": 1})) for _ in range(4)))
        assert len(begun) == 124
        assert all(b - a >= 900 for a, b in itertools.pairwise(begun))

    run(main())


def test_what_a_call_waits_for_besides_its_provider_slows_nobody_down():
    provider = Bench()
    s = Scheduler(
        budgets=Budget("team", "$0.0000001/hour"), providers=provider, clock=VirtualClock()
    )
    refusals = [RateLimited(429, "busy", retry_after_ms=500)]

    async def before(request):
        if refusals:
            raise refusals.pop()
        if request.body.get("is_outer"):
            await s.submit(ask(ceiling=100, budget="team"))

    async def main():
        provider.before = before
        async with s:
            await s.run(ask(ceiling=0, cost=0))  # from now on as evenly as calls take
            await s.run(ask(cost=100, budget="team"))
            await s.run(ask(ceiling=0, cost=0, is_outer=True))
            waited_s = asyncio.get_running_loop().time()
            for _ in range(10):
                await s.run(ask(ceiling=0, cost=0, seconds=1))
            return waited_s, asyncio.get_running_loop().time() - waited_s

    waited_s, took_s = run(main())

    assert waited_s > 600
    assert took_s < 30


def test_an_inner_call_of_a_key_that_waits_outside_takes_it_along():
    async def main():
        async def agent(request):
            if request.key is None:
                return (await s.run(Request({"x": 1}, key="shared"))).body
            return "found"

        provider = FunctionProvider("a", agent, quote="$0")
        async with Scheduler(providers=provider, clock=VirtualClock(), concurrency=1) as s:
            outer = s.submit(Request({"x": 0}))
            outside = s.submit(Request({"x": 1}, key="shared"))
            assert (await outer).body == (await outside).body == "found"

    run(main())


def test_a_key_that_waits_for_itself_is_an_error():
    async def main():
        async def agent(request):
            with pytest.raises(WaitsForItself, match="nothing was sent for it"):
                await s.run(request)
            return "told"

        provider = FunctionProvider("a", agent, quote="$0.1")
        async with Scheduler(providers=provider, clock=VirtualClock(), budgets="$1") as s:
            response = await s.run(Request({"x": 1}, key="mine"))
            assert response.body == "told"

    run(main())


# Money


def test_what_its_own_caller_holds_is_an_error_at_once_with_the_numbers():
    async def main():
        trees = Trees("$0.0000001")
        async with trees.s:
            root = Node(60, [Node(60, n=1)])
            began_s = asyncio.get_running_loop().time()
            await trees.ask(root)
            error = trees.ended[1]
            assert isinstance(error, HeldByCallers)
            assert isinstance(error, BudgetExceeded)
            assert (error.held, error.needed, error.posted) == (60, 60, 0)
            assert "nothing was sent for it. Raise the budget" in str(error)
            assert asyncio.get_running_loop().time() - began_s < 2

    run(main())


@pytest.mark.parametrize("window", ["", "/24h", "/day"])
def test_what_is_kept_for_others_is_not_there_for_an_inner_call(window):
    """It would fit but for what is kept, which nobody releases in time."""

    async def main():
        trees = Trees(f"$0.0000001{window} keep 20% for interactive")
        async with trees.s:
            began_s = asyncio.get_running_loop().time()
            await trees.ask(Node(40, [Node(50, n=1)]))
            error = trees.ended[1]
            assert isinstance(error, HeldByCallers)
            assert (error.held, error.kept) == (40, 20)
            assert "0.00000002 of it kept for more urgent requests" in str(error)
            assert asyncio.get_running_loop().time() - began_s < 2

    run(main())


@pytest.mark.parametrize("spent", [40, 55])
def test_an_inner_call_waits_for_what_is_kept_where_no_caller_holds_it(spent):
    async def main():
        trees = Trees("$0.0000001/hour keep 20% for interactive")
        async with trees.s:
            await trees.ask(Node(spent, cost=spent))
            await asyncio.sleep(1 if spent == 55 else 3_555)
            # Neither its caller's end would help, nor is it far to the end of the window.
            outer = asyncio.create_task(trees.ask(Node(10, [Node(40)])))
            assert not isinstance(await asyncio.wait_for(outer, 3_600), Exception)

    run(main())


def test_of_two_agents_with_half_of_the_budget_each_only_one_gets_an_error():
    async def main():
        trees = Trees("$0.0000001", places=8)
        async with trees.s:
            roots = [Node(50, [Node(50, n=n)], gives_up=True, n=10 + n) for n in (1, 2)]
            await asyncio.gather(*map(trees.ask, roots))
            assert isinstance(trees.ended[2], HeldByCallers)
            assert not isinstance(trees.ended[1], Exception)

    run(main())


def test_who_waits_for_a_callers_money_does_not_hold_up_its_inner_calls():
    async def main():
        trees = Trees("$0.0000001", places=8)
        async with trees.s:
            agent = asyncio.create_task(trees.ask(Node(30, [Node(30)], seconds=100, gives_up=True)))
            await asyncio.sleep(1)
            large = asyncio.create_task(trees.ask(Node(100)))  # the account's waiter
            assert not isinstance(await asyncio.wait_for(agent, 1000), Exception)
            assert not isinstance(await asyncio.wait_for(large, 1000), Exception)

    run(main())


def test_a_caller_that_is_told_may_end_before_another_of_its_calls_is():
    async def main():
        inner = []

        async def agent(request):
            if request.body["d"]:
                inner.extend(s.submit(Request({"d": 0})) for _ in range(2))
                await asyncio.gather(*inner)

        provider = FunctionProvider("f", agent, quote=Quote(60, 0), cost="$0")
        budget = Budget("team", "$0.0000001")
        async with Scheduler(providers=provider, budgets=budget, clock=VirtualClock()) as s:
            with pytest.raises(CallFailed):
                await s.run(Request({"d": 1}))
            await s.set_limit("team", None)
            outcomes = await asyncio.gather(*inner, return_exceptions=True)
            assert [isinstance(each, HeldByCallers) for each in outcomes] == [False, True]

    run(main())


def test_what_it_calls_through_a_wrapped_client_stays_a_part_of_a_call():
    async def main():
        async with Scheduler(
            providers=FunctionProvider("f", lambda request: agent(request), quote="$0.6"),
            budgets="$1", prices=PRICES, clock=VirtualClock(), concurrency=1,
        ) as s:  # fmt: skip
            body = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
            transport = httpx.MockTransport(lambda request: httpx.Response(200, json=body))
            client = s.wrap(httpx.AsyncClient(transport=transport))

            async def agent(request):
                asked = {"model": "m", "messages": MESSAGES, "max_tokens": 5}
                answer = await client.post("http://h/v1/chat/completions", json=asked)
                if request.body["d"]:
                    await s.run(Request({"d": 0}, budget=()))
                return answer.json()

            response = await s.run(Request({"d": 1}))
            assert response.body == body
            assert s.providers == ("f",)

    run(main())


def test_money_of_a_call_that_waits_for_nothing_is_waited_for():
    async def main():
        trees = Trees("$0.0000001", places=8)
        async with trees.s:
            busy = Node(40, seconds=5000, n=3)
            outcomes = await asyncio.gather(
                trees.ask(Node(50, [Node(50)], gives_up=True)), trees.ask(busy)
            )
            assert not any(isinstance(each, Exception) for each in outcomes)

    run(main())


def test_money_of_a_caller_whose_own_call_gets_on_is_waited_for():
    async def main():
        trees = Trees("$0.0000001", places=8)
        async with trees.s:
            other = Node(40, [Node(0, [Node(0, seconds=500)])])
            agent = Node(50, [Node(40)], gives_up=True)
            outcomes = await asyncio.gather(*map(trees.ask, [other, agent]))
            assert not any(isinstance(each, Exception) for each in outcomes)

    run(main())


@pytest.mark.parametrize("what", ["raise", "reset"])
def test_an_inner_call_waits_for_a_raise_and_for_a_reset(what):
    async def main():
        spec = "$0.0000001" if what == "raise" else "$0.0000001/hour"
        trees = Trees(spec, places=8)
        async with trees.s:
            await trees.ask(Node(60, cost=60))
            outer = asyncio.create_task(trees.ask(Node(20, [Node(60)])))
            await asyncio.sleep(1800)
            assert not outer.done()
            if what == "raise":
                await trees.s.set_limit("team", "$1")
            assert not isinstance(await asyncio.wait_for(outer, 3600), Exception)

    run(main())


def test_what_other_processes_hold_is_waited_for_for_a_stated_time(tmp_path):
    async def main():
        stores = [
            InlineSqlite(tmp_path / "s.db", Process("here", n, "1"), 10**9, lambda sql: None)
            for n in (1, 2)
        ]
        with mock.patch("scheduler.stores.sql.workers.is_dead", return_value=False):
            trees = Trees("$0.0000001", places=8, store=stores[0])
            other = Scheduler(stores[1], providers=Bench("a"), clock=VirtualClock())
            async with trees.s, other:
                theirs = other.submit(ask(ceiling=60, cost=0, seconds=100_000, budget="team"))
                await asyncio.sleep(1)
                began_s = asyncio.get_running_loop().time()
                await trees.ask(Node(30, [Node(30, n=1)]))
                assert isinstance(trees.ended[1], HeldByCallers)
                waited_s = asyncio.get_running_loop().time() - began_s
                assert PATIENCE_S <= waited_s < PATIENCE_S + 10
                theirs.cancel()

    run(main())


def test_a_caller_that_does_not_wait_gives_its_money_back_itself():
    async def main():
        async def agent(request):
            if request.body["d"]:
                future = s.submit(Request({"d": 0}))
                await asyncio.sleep(10)
                return {"parked": future.parked.reason}
            return "ran"

        provider = FunctionProvider("a", agent, quote="$0.6", cost="$0")
        async with Scheduler(providers=provider, clock=VirtualClock(), budgets="$1") as s:
            response = await s.run(Request({"d": 1}))
            assert response.body == {"parked": ParkReason.HELD_IN_FLIGHT}
            await s.join()
            assert s.stats().succeeded == 2

    run(main())


# Ends


def test_an_inner_calls_own_time_runs_out():
    async def main():
        async def agent(request):
            if request.body["d"]:
                with pytest.raises(DeadlineExceeded):
                    await s.run(Request({"d": 0}, budget="team", max_wait="30s"))
            return "ended"

        provider = FunctionProvider("a", agent, quote="$0.6")
        budget = Budget("team", "$0.5")
        async with Scheduler(providers=provider, clock=VirtualClock(), budgets=budget) as s:
            assert (await s.run(Request({"d": 1}, budget=()))).body == "ended"

    run(main())


@pytest.mark.parametrize("how", ["aclose", "drain", "drain it", "cancel"])
def test_nested_calls_come_to_an_end_with_the_scheduler(how):
    async def main():
        trees = Trees(places=1)
        async with trees.s:
            roots = [asyncio.ensure_future(trees.ask(chain(3, n=n))) for n in range(3)]
            await asyncio.sleep(2.5)
            if how == "cancel":
                for each in roots:
                    each.cancel()
            elif how == "drain it":
                await trees.s.drain()
            else:
                await trees.s.aclose(drain=how == "drain", drain_timeout=None)
            if how in ("drain", "drain it"):
                done = [each for each in roots if each.done()]
                assert not isinstance(done[0].result(), Exception), "what ran was let finish"
        assert trees.running == 0
        outcomes = await asyncio.wait_for(asyncio.gather(*roots, return_exceptions=True), 10)
        assert all(
            isinstance(each, SchedulerClosed | CallFailed | asyncio.CancelledError) or each
            for each in outcomes
        )

    run(main())


def test_an_inner_call_of_a_provider_to_which_nothing_goes_any_more_ends():
    async def main():
        trees = Trees(places=1)
        async with trees.s:
            root = asyncio.create_task(trees.ask(Node(children=[Node(provider="b", n=1)])))
            await asyncio.sleep(0.5)
            trees.s.stop_admitting("b")
            assert not isinstance(await root, Exception)
            assert isinstance(trees.ended[1], SchedulerClosed)

    run(main())


def test_threads_may_call_within_calls():
    async def call(request):
        if request.body["d"]:
            return await asyncio.to_thread(
                lambda: blocking.run(Request({"d": request.body["d"] - 1})).body
            )
        return "leaf"

    provider = FunctionProvider("a", call, quote="$0.01", cost="$0")
    blocking = BlockingScheduler(Scheduler(providers=provider, concurrency=2, budgets="$0.05"))
    with blocking:
        futures = [blocking.submit(Request({"d": 1})) for _ in range(4)]
        futures += [blocking.submit(Request({"d": 3}))]
        for each in futures:
            with contextlib.suppress(CallFailed):  # five cents are not enough for all at once
                assert each.result(timeout=60).body == "leaf"


# Any tree


WAYS = ["run", "run", "submit", "map", "stream", "budgeted", "call"]


@st.composite
def nodes(draw, depth):
    count = draw(st.integers(0, 2 if depth else 0))
    return Node(
        draw(st.sampled_from([10, 30, 50, 80])),
        [draw(nodes(depth - 1)) for _ in range(count)],
        draw(st.sampled_from(WAYS)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([0, 0.5, 3])),
        draw(st.sampled_from([0, 0, 10])),
        draw(st.sampled_from("ab")),
    )


worlds = st.tuples(
    st.lists(nodes(3), min_size=1, max_size=4),
    st.sampled_from(["$0.0000001", "$0.00000013", "$0.0000002", ""]),
    st.sampled_from([1, 2, 5]),
    st.lists(st.sampled_from([0.0, 1.0, 4.0]), min_size=4, max_size=4),
)


MOST_TURNS = 1000  # of a world: about five a call


class Life(NamedTuple):
    """How a world went.

    Attributes:
        told: The requests that were told that they would wait for ever, in order.
        late: How many roots had not ended when the limit was raised.
        waits: Why the lanes were shut in which something waited then.
        untold: The first error beyond `most_errors`, which nobody was told.
        raises: The requests that only that raise could help.
    """

    told: list[int]
    late: int
    waits: list[Shortfall | None]
    untold: list[SchedulerError]
    raises: list[int]


async def for_a_raise(store, now_ms):
    """Those that need more than is there when all calls have turned out free."""
    caps = [cap for status in await store.budgets(now_ms) for cap in status.caps]
    left = min((cap.limit - cap.posted - cap.suspense for cap in caps if cap.limit), default=0)
    rows = await store.queue([RequestState.PARKED], now_ms)
    return [row.id for row in rows if row.ceiling_nusd > left]


def live(world, make_store, most_errors=10**9):
    """Let a world live for a day, then raise its limit."""
    roots, limit, places, pauses = world
    for n, node in enumerate(node for root in roots for node in root):
        node.n = n
    told, trees, untold, turns, raises = [], [], [], [], []

    async def main():
        store = make_store()
        turn, stuck = store.turn, Nesting.stuck

        async def checked(what):
            turns.append(what.now_ms)
            assert len(turns) < MOST_TURNS, "waiting is not free"
            result = await turn(what)
            for status in store.latest() if result.claimed else ():
                for cap in status.caps:
                    assert cap.limit is None or cap.posted + cap.reserved <= cap.limit
            return result

        def limited(self, now_ms):
            if len(told) >= most_errors and untold:
                return None
            found = stuck(self, now_ms)
            if found is not None and len(told) >= most_errors:
                untold.append(found[1])
                return None
            if found is not None:
                told.append(trees[0].node(found[0].request).n)
            return found

        with (
            mock.patch.object(store, "turn", checked),
            mock.patch.object(Nesting, "stuck", limited),
        ):
            forest = Trees(limit, places, store, prices=PRICES, poll_interval=3600)
            trees.append(forest)
            async with forest.s:
                tasks = []
                for root, pause in zip(roots, pauses, strict=False):
                    await asyncio.sleep(pause)
                    tasks.append(asyncio.create_task(forest.ask(root)))
                _, late = await asyncio.wait(tasks, timeout=DAY_S)
                waits = [each.shortfall for each in store.lanes() if each.waiting]
                raises.extend(await for_a_raise(store, forest.s.now_ms()))
                if limit:
                    await forest.s.set_limit("team", None)
                done, never = await asyncio.wait(tasks, timeout=DAY_S)
                assert not never, "with money for all, everything ends"
                assert all(each.exception() is None for each in done)
                audit = await store.audit(forest.s.now_ms())
                assert audit.discrepancies == ()
        return len(late), waits

    late, waits = run(main())
    return Life(told, late, waits, untold, raises)


def check(world, make_store):
    told, late, waits, _, raises = live(world, make_store)
    if late:  # all that waits waits for a raise, or for the money of callers of what does
        assert all(lack is not None for lack in waits)
        assert raises
    for count in range(min(len(told), 3)):
        some, late, _, (error,), _ = live(world, make_store, count)
        assert some == told[:count]
        assert late, "without that error everything would have ended"
        # Others may spend on meanwhile: only at that moment it lacked just what callers held.
        left = error.limit - error.posted
        assert left - error.held < error.needed <= left


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(worlds)
def test_any_tree_ends_and_an_error_comes_only_where_waiting_would_be_for_ever(world):
    check(world, MemoryStore)


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(worlds)
def test_any_tree_ends_on_a_file_too(world):
    with tempfile.TemporaryDirectory() as folder:
        paths = iter(range(100))

        def make_store():
            path = Path(folder) / f"{next(paths)}.db"
            return InlineSqlite(path, Process("here", 1, "1"), 10**9, lambda sql: None)

        check(world, make_store)


def test_one_that_waits_for_a_raise_behind_one_that_waits_for_calls_is_told_no_error():
    """In one lane, which tells why its first one waits."""
    first = Node(10, [Node(10, [Node(10, cost=10), Node(50)])])
    other = Node(10, [Node(10, [Node(10, [Node(10)], cost=10)], cost=10), Node(80)])

    check(([first, other], "$0.0000001", 2, [0.0] * 4), MemoryStore)


def test_who_waits_for_the_money_of_callers_of_what_waits_for_a_raise_is_told_no_error():
    roots = [Node(30, cost=30), Node(10, [Node(80, provider="b")]), Node(10, [Node(60)])]
    told, late, waits, _, _ = live((roots, "$0.0000001", 1, [0.0] * 3), MemoryStore)

    assert (told, late) == ([], 2)
    reasons = [lack.reason for lack in waits]
    assert sorted(reasons) == [ParkReason.HELD_IN_FLIGHT, ParkReason.WINDOW_SPENT]


def test_the_trees_are_deep_enough_to_be_stuck_without_the_rule():
    """A property that holds of everything would show nothing."""
    world = ([Node(80, [Node(80)])], "$0.0000001", 1, [0.0])

    assert live(world, MemoryStore).told == [1]
    stuck = live(world, MemoryStore, 0)
    assert [lack.reason for lack in stuck.waits] == [ParkReason.HELD_IN_FLIGHT]
    assert (stuck.late, stuck.raises) == (1, [])
