"""What a process looks at when others write: what they changed, however much else there is."""

from __future__ import annotations

import contextlib

import pytest

from scheduler.budget import Budget
from scheduler.limits import Gates, ProviderRules
from scheduler.limits.meter import Limits
from scheduler.stores.base import Outcome
from scheduler.stores.process import Process
from tests.simulation.stores import InlineSqlite
from tests.stores.conformance import FAILED, QUEUED, T0, Bench, end, new, post

pytestmark = pytest.mark.anyio
FEW, MANY = 20, 600


class Measured:
    """Steps of SQLite's machine, in tens, and rows that came out of it."""

    def __init__(self, store):
        self.db, self.steps = store._db, 0

    def __enter__(self):
        self.db.set_progress_handler(self.count, 10)
        return self

    def count(self):
        self.steps += 1
        return 0

    def __exit__(self, *_):
        self.db.set_progress_handler(None, 10)


@pytest.fixture
async def processes(tmp_path):
    """Makes processes on files of their own name, which end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(name, number):
            store = InlineSqlite(
                tmp_path / name, Process(f"host {number}", number, "1"), 10**9, lambda sql: None
            )
            await store.open(T0)
            stack.push_async_callback(store.aclose)
            return Bench(store)

        yield begin


async def two_with_parked(begin, count):
    """One process with that many budgets, each with a request that waits; and another one."""
    one, other = await begin(f"{count}.db", 1), await begin(f"{count}.db", 2)
    budgets = [Budget(f"b{n}", "$0.00000001") for n in range(count)]  # 10 nano-dollars
    await one.define(*budgets, Budget("else", "$1"))
    other.ids = one.ids
    full = [new([one.ids[each.name]], 10, key=f"full {each.name}") for each in budgets]
    running = (await other.submit(*full, slots=count)).claimed
    waits = [new([one.ids[each.name]], 5, key=each.name) for each in budgets]
    await one.submit(*waits, slots=count)
    while (await one.turn(count)).lanes:
        pass
    assert (await one.store.counts()).parked == count
    await other.turn()
    return one, other, running


async def steps_of(bench, **work):
    with Measured(bench.store) as measured:
        result = await bench.turn(**work)
    return measured.steps, result


async def test_what_others_do_elsewhere_costs_nothing_however_much_waits_here(processes):
    found = {}
    for count in (FEW, MANY):
        one, other, _ = await two_with_parked(processes, count)
        await one.store.redefined(one.now_ms)
        (claimed,) = (await other.submit(new([one.ids["else"]], 1))).claimed
        await other.settle(post(claimed, 1))
        with Measured(one.store) as measured:
            await one.store.redefined(one.now_ms)
        steps, result = await steps_of(one)
        assert (result.claimed, result.lanes) == ([], [])
        found[count] = (steps, measured.steps)

    assert all(few <= 200 for few in found[FEW]), found
    for few, many in zip(found[FEW], found[MANY], strict=True):
        assert many <= 1.5 * few + 5, found


@pytest.mark.parametrize("change", ["settled", "raised", "resolved"])
async def test_what_others_change_in_one_budget_lets_that_one_go_on(processes, change):
    found = {}
    for count in (FEW, MANY):
        one, other, running = await two_with_parked(processes, count)
        if change == "settled":
            await other.settle(end(running[7], Outcome.VOID, FAILED), slots=0)
        elif change == "raised":
            await other.store.define([Budget("b7", "$1")], T0)
        else:
            await other.settle(end(running[7], Outcome.SUSPEND, FAILED), slots=0)
            await one.turn()
            lost = end(running[7], Outcome.VOID, FAILED, is_assumed=True)
            assert await other.store.resolve([lost], T0) == [True]
        steps, result = await steps_of(one)
        assert [each.request.key for each in result.claimed] == ["b7"]
        found[count] = steps

    assert found[MANY] <= 1.5 * found[FEW] + 5, found


async def test_budgets_that_others_make_or_change_are_all_that_is_read_again(processes):
    found = {}
    for count in (FEW, MANY):
        one, other, _ = await two_with_parked(processes, count)
        await one.store.redefined(T0)
        await other.store.define([Budget("made", "$3"), Budget("b3", "$2")], T0)
        await other.store.remove("b5", T0)
        with Measured(one.store) as measured:
            changed, removed = await one.store.redefined(T0)
        assert sorted(budget.name for _, budget in changed) == ["b3", "made"]
        assert removed == ["b5"]
        assert await one.store.redefined(T0) == ([], [])
        assert {each.budget.name for each in one.store.latest()} >= {"made", "b3"}
        assert "b5" not in {each.budget.name for each in one.store.latest()}
        found[count] = measured.steps

    assert found[MANY] <= 1.5 * found[FEW] + 10, found


async def test_what_others_spent_is_seen_with_the_next_look(processes):
    one, other, running = await two_with_parked(processes, FEW)
    await one.store.redefined(T0)
    await other.settle(post(running[2], 8), slots=0)
    await one.store.redefined(T0)

    (seen,) = one.store.balances([one.ids["b2"]])

    assert (seen.caps[0].posted, seen.caps[0].reserved) == (8, 0)


@pytest.mark.parametrize("kind", ["max_wait", "late already", "retried later"])
async def test_rows_of_another_process_that_are_due_some_day_are_not_walked(processes, kind):
    found = {}
    for count in (FEW, MANY):
        one, other = await processes(f"{kind} {count}", 1), await processes(f"{kind} {count}", 2)
        await one.define(Budget("team", "$1"))
        team = [one.ids["team"]]
        at_ms = T0 + 50 if kind == "late already" else T0 + 10**6
        requests = [new(team, 1, key=f"{n}", expires_at_ms=at_ms) for n in range(count)]
        if kind == "retried later":
            requests = [new(team, 1, key=f"{n}") for n in range(count)]
            claimed = (await other.submit(*requests, slots=count)).claimed
            later = [end(each, Outcome.VOID, QUEUED, not_before_ms=T0 + 50) for each in claimed]
            await other.settle(*later, slots=0)
        else:
            await other.submit(*requests, slots=0)
        await one.submit(new(team, 1, key="mine", expires_at_ms=T0 + 10**7), slots=0)
        one.now_ms = T0 + 100  # past what the other has not looked at yet
        steps, result = await steps_of(one, slots=0)
        assert (result.expired, result.claimed) == ([], [])
        assert result.look_again_at_ms == T0 + 10**7
        found[count] = steps

    assert found[MANY] <= 1.5 * found[FEW] + 5, found


async def test_a_thousand_models_that_were_seen_are_not_read_and_written_each_time(processes):
    found = {}
    for count in (FEW, MANY):
        bench = await processes(f"{count} models", 1)
        limits = Limits(requests_per_minute=10**6)
        bench.store.use(
            Gates({"p": ProviderRules(Limits(), {f"m{n}": limits for n in range(count)})})
        )
        await bench.define(Budget("team", "$1"))
        requests = []
        for number in range(count):
            requests.append(new([bench.ids["team"]], 1))
            requests[-1].lane = requests[-1].lane._replace(model=f"m{number}")
        claimed = (await bench.submit(*requests, slots=count)).claimed
        assert len(claimed) == count
        await bench.settle(*[post(each, 1) for each in claimed], slots=0)
        again = new([bench.ids["team"]], 1)
        again.lane = again.lane._replace(model="m3")
        steps, result = await steps_of(bench, submit=[again])
        assert len(result.claimed) == 1
        found[count] = steps

    assert found[MANY] <= 1.5 * found[FEW] + 5, found


async def test_a_shared_lane_is_found_or_made_however_many_there_are(processes):
    def shared(bench, name, **options):
        made = new([bench.ids[name]], 10, key=f"{name} {options}", **options)
        made.lane = made.lane._replace(is_shared=True)
        return made

    found = {}
    for count in (FEW, MANY):
        one, other = await processes(f"{count}.db", 1), await processes(f"{count}.db", 2)
        names = [f"b{n}" for n in range(count)]
        await one.define(*[Budget(each, "$1") for each in names])
        other.ids = one.ids
        claimed = (await one.submit(*[shared(one, each) for each in names], slots=count)).claimed
        await one.settle(*[post(each, 1) for each in claimed])
        await other.turn()
        again, _ = await steps_of(other, submit=[shared(other, "b3", body="again", job="j")])
        made, result = await steps_of(other, submit=[shared(other, "b4", priority=0)])
        assert [each.budgets for each in result.claimed] == [(one.ids["b4"],)]
        (lanes,) = other.store._db.execute("SELECT count(*) FROM lanes").fetchone()
        assert lanes == count + 1
        found[count] = again, made

    for few, many in zip(found[FEW], found[MANY], strict=True):
        assert many <= 1.5 * few + 5, found
