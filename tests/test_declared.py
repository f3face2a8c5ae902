"""What a program declares binds its requests; what it does not binds by name and by rule."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import BudgetExceeded, BudgetUnknown, ConfigError, Request, Scheduler, events
from scheduler.budget import Budget
from scheduler.ledger.matching import BudgetBook
from scheduler.stores import open_store
from scheduler.stores.memory.store import MemoryStore
from scheduler.testing import run
from tests.conftest import Bench, ask, until

PLENTY = "$1"


def told(caplog):
    return [each.getMessage() for each in caplog.records if each.name == "scheduler.budgets"]


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    """Opens the same budgets again and again, as one program after another does."""
    kept = MemoryStore()
    return lambda: kept if request.param == "memory" else open_store(tmp_path / "s.db")


async def earlier(store, *budgets):
    async with Scheduler(store(), budgets=budgets, providers=Bench()):
        pass


async def spent(s):
    found = await s.store.budgets(s.now_ms())
    return {each.budget.name: each.caps[0].posted for each in found}


def test_a_budget_that_the_program_forgot_binds_no_request_that_names_none(store, caplog):
    async def main():
        await earlier(store, Budget("default", "$5"), Budget("old", "$0"))
        async with Scheduler(
            store(), budgets=Budget("team", "$0.00000007"), providers=Bench()
        ) as s:
            with pytest.raises(BudgetExceeded, match="'team'"):
                await s.run(ask(), on_exceeded="raise")
            await s.set_limit("team", PLENTY)
            await s.run(ask())
            await s.run(ask(budget="default"))
            return await spent(s)

    assert asyncio.run(main()) == {"default": 60, "old": 0, "team": 60}
    (line,) = told(caplog)
    for part in ("'default'", "'old'", "budgets=[...]", "scheduler budget remove"):
        assert part in line
    assert "'team'" not in line


@pytest.mark.parametrize("how", ["define", "ensure", "redefine"])
def test_a_budget_is_declared_in_any_way(store, how, caplog):
    async def main():
        await earlier(store, Budget("default", "$5"))
        s = Scheduler(store(), providers=Bench())
        if how == "redefine":
            s.redefine(Budget("team", PLENTY))
        async with s:
            if how != "redefine":
                await getattr(s, how)(Budget("team", PLENTY))
                await getattr(s, how)(Budget("ann", PLENTY, parent="team"))
                await s.remove_budget("ann")
            await s.run(ask())
            return await spent(s)

    assert asyncio.run(main()) == {"default": 0, "team": 60}
    (line,) = told(caplog)
    assert "'default'." in line


def test_a_program_that_declares_none_uses_what_the_store_has(store, caplog):
    async def main():
        await earlier(store, Budget("default", "$5"), Budget("old", "$0"))
        async with Scheduler(store(), providers=Bench()) as s:
            await s.run(ask())
            return await spent(s)

    assert asyncio.run(main())["default"] == 60
    assert told(caplog) == []


def test_rules_and_parents_bind_whoever_declared_them(store, caplog):
    async def main():
        await earlier(
            store, Budget("org", PLENTY), Budget("ruled", PLENTY, models=["m"]),
            Budget("tagged", PLENTY, tags={"user": "*"}), Budget("team", PLENTY, parent="org"),
        )  # fmt: skip
        mine = Budget("team", PLENTY, parent="org")
        async with Scheduler(store(), budgets=mine, providers=Bench()) as s:
            await s.run(ask(tags={"user": "ann"}))
            return await spent(s)

    assert set(asyncio.run(main()).values()) == {60}
    assert told(caplog) == []


def test_a_parent_is_declared_with_its_children_and_no_longer(store):
    async def main():
        await earlier(store, Budget("default", PLENTY))
        async with Scheduler(store(), budgets=Budget("team", PLENTY), providers=Bench()) as s:
            await s.ensure(Budget("ann", PLENTY, parent="default"))
            await s.run(ask())  # which is named, and so chosen
            await s.remove_budget("ann")
            await s.run(ask())
            return await spent(s)

    assert asyncio.run(main()) == {"default": 60, "team": 60}


def test_children_of_what_is_declared_are_not_told_and_names_have_an_end(store, caplog):
    async def main():
        users = [Budget(f"user-{i}", PLENTY, parent="app") for i in range(3)]
        others = [Budget(f"other-{i}", PLENTY) for i in range(9)]
        await earlier(store, Budget("app", PLENTY), *users, *others)
        async with Scheduler(store(), budgets=Budget("app", PLENTY), providers=Bench()) as s:
            await s.run(ask())
            return (await spent(s))["app"]

    assert asyncio.run(main()) == 60
    (line,) = told(caplog)
    assert "user-" not in line
    assert "'other-4' and 4 more" in line


NAMES = ["default", "a", "b", "org"]
BUDGETS = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(st.booleans(), st.sampled_from([None, None, "org"])),
    max_size=4,
)


def made(name, has_rules, parent):
    models = ["m*"] if has_rules else []
    return Budget(name, 1, models=models, parent=None if parent == name else parent)


@settings(max_examples=1000)
@given(BUDGETS, BUDGETS, st.sampled_from(["m", "x"]), st.sampled_from([None, "a", "default", ()]),
       st.randoms())  # fmt: skip
def test_declared_and_stored_budgets_bind_by_one_rule(stored, declared, model, named, order):
    budgets = {name: made(name, *more) for name, more in (stored | declared).items()}
    if any(b.parent is not None for b in budgets.values()):
        budgets.setdefault("org", made("org", False, None))
    ids = {name: number for number, name in enumerate(budgets, 1)}
    steps = [(ids[name], budget) for name, budget in budgets.items()]
    book = BudgetBook(steps)
    book.declare(declared)
    grown = BudgetBook()  # the same in another order, with changes and removals on the way
    grown.update((i, Budget(b.name, 2, models=["z"], parent="org" if b.name != "org" else None))
                 for i, b in steps if order.random() < 0.5)  # fmt: skip
    grown.declare(declared)
    grown.remove([name for name in budgets if order.random() < 0.3])
    grown.update(order.sample(steps, len(steps)))

    def expected():
        mine = {name for name in declared if name in budgets}
        for name in tuple(mine):  # with a budget its parents are named
            while (parent := budgets[name].parent) is not None and parent not in mine:
                mine.add(parent)
                name = parent
        pool = {name: budgets[name] for name in budgets if name in mine} or budgets
        found = {name for name, b in budgets.items() if b.covers(model, {})}
        if named is None and "default" in pool:
            found.add("default")
        elif named is None:
            parents = {b.parent for b in pool.values()}
            plain = [name for name, b in pool.items() if not b.has_rules and name not in parents]
            if len(plain) > 1:
                return "several"
            found |= set(plain)
        elif named and named not in budgets:
            return "unknown"
        elif named:
            found.add(named)
        for name in tuple(found):
            while (parent := budgets[name].parent) is not None and parent not in found:
                found.add(parent)
                name = parent
        return tuple(sorted(ids[name] for name in found))

    for each in (book, grown):
        for _ in range(2):  # the second time from memory
            try:
                found = each.draws_on(model, {}, named)
            except BudgetUnknown as exc:
                found = "several" if exc.name is None else "unknown"
            assert found == expected()


# Removing


def test_what_waits_only_for_a_removed_budget_goes_on_and_its_spend_stays(store):
    async def main():
        provider, seen = Bench(), []
        budgets = [Budget("team", "$0.0000001"), Budget("tight", "$0")]
        async with Scheduler(store(), budgets=budgets, providers=provider) as s:
            s.on(events.Unparked, seen.append)
            await s.run(ask(budget="team"))
            waiting = [s.submit(ask(budget="team")), s.submit(ask(budget=("team", "tight")))]
            await until(lambda: all(each.parked for each in waiting))
            await s.remove_budget("team")
            await waiting[0]
            assert not waiting[1].done()
            with pytest.raises(BudgetUnknown, match="'team'"):
                s.submit(ask(budget="team"))
            assert [each.budget.name for each in s.stats().budgets] == ["tight"]
            rows = {row.name: row.posted_nusd for row in await s.store.spend("budget")}
            assert rows["team"] == 120
            assert (await s.store.audit(s.now_ms())).discrepancies == ()
            waiting[1].cancel()
            await s.define(Budget("team", "$0.0000002"))
            assert (await spent(s))["team"] == 120  # it is the same again
            with pytest.raises(BudgetExceeded):
                await s.run(ask(budget="team"), on_exceeded="raise")
        assert ("team",) in [each.budgets for each in seen]

    asyncio.run(main())


def test_calls_under_way_settle_in_a_budget_that_was_removed(store):
    async def main():
        async with Scheduler(store(), budgets=Budget("team", "$1/day"), providers=Bench()) as s:
            running = s.submit(ask(seconds=0.1))
            await until(lambda: running.is_running)
            await s.remove_budget("team")
            await running
            await s.run(ask())  # draws on nothing
            await s.define(Budget("team", "$1/day, $2"))
            (status,) = await s.store.budgets(s.now_ms())
            assert [(cap.posted, cap.reserved) for cap in status.caps] == [(60, 0), (60, 0)]
            assert (await s.store.audit(s.now_ms())).discrepancies == ()

    asyncio.run(main())


def test_a_parent_is_not_removed_before_its_children(store):
    async def main():
        budgets = [Budget("org", "$1"), Budget("team", "$1", parent="org")]
        async with Scheduler(store(), budgets=budgets, providers=Bench()) as s:
            with pytest.raises(
                ConfigError, match=r"'org' is the parent of 'team'.*nothing was changed"
            ):
                await s.remove_budget("org")
            await s.remove_budget("team")
            await s.remove_budget("org")
            assert s.stats().budgets == ()
            with pytest.raises(BudgetUnknown):
                await s.remove_budget("org")
            with pytest.raises(BudgetUnknown):
                await s.set_limit("org", "$5")
            with pytest.raises(BudgetUnknown):
                await s.pause("org")

    asyncio.run(main())


def test_a_paused_budget_that_is_removed_holds_nobody(store):
    async def main():
        async with Scheduler(store(), budgets=Budget("team", "$1"), providers=Bench()) as s:
            await s.pause("team")
            waiting = s.submit(ask())
            await until(lambda: waiting.parked)
            await s.remove_budget("team")
            await waiting

    asyncio.run(main())


def test_another_process_notices_what_was_removed_and_made(tmp_path):
    async def main():
        path = tmp_path / "s.db"
        options = {"providers": Bench(), "poll_interval": 0.02}
        budgets = [Budget("team", "$0"), Budget("other", "$0")]
        async with (
            Scheduler(path, budgets=budgets, **options) as here,
            Scheduler(path, budgets=budgets, **options) as there,
        ):
            stays, waiting = there.submit(ask(budget="other")), there.submit(ask(budget="team"))
            await until(lambda: stays.parked and waiting.parked)
            await here.remove_budget("team")
            await here.define(Budget("new", "$1"))
            async with asyncio.timeout(60):
                await waiting
                while "team" in there._intake.book or "new" not in there._intake.book:
                    await asyncio.sleep(0.02)
            with pytest.raises(BudgetUnknown):
                there.submit(ask(budget="team"))
            with pytest.raises(BudgetUnknown):
                await there.set_limit("team", "$1")
            assert {each.budget.name for each in there.stats().budgets} == {"other", "new"}
            assert not stays.done()
            await here.ensure(Budget("team", "$1"))
            async with asyncio.timeout(60):
                while "team" not in there._intake.book:
                    await asyncio.sleep(0.02)
            await there.run(ask(budget="team"))
            rows = {row.name: row.posted_nusd for row in await here.store.spend("budget")}
            assert rows["team"] == 120

    asyncio.run(main())


def test_what_others_spend_is_seen_by_all_in_time(tmp_path):
    async def main():
        path = tmp_path / "s.db"
        options = {"providers": Bench(), "poll_interval": 0.02}
        budgets = [Budget("team", "$0"), *(Budget(f"b{i}", "$1") for i in range(5))]
        async with (
            Scheduler(path, budgets=budgets, **options) as here,
            Scheduler(path, budgets=budgets, **options) as there,
        ):
            there.submit(ask(budget="team"))
            await here.run(ask(budget="b3"))
            async with asyncio.timeout(60):
                while {s.budget.name: s.caps[0].posted for s in there.stats().budgets}["b3"] != 60:
                    await asyncio.sleep(0.02)

    asyncio.run(main())


def test_a_budget_says_for_a_request_what_binds_it():
    async def main():
        budgets = [Budget("org", "$1"), Budget("gpt", "$1", models=["gpt-4*"], parent="org"),
                   Budget("team", "$1")]  # fmt: skip
        async with Scheduler(budgets=budgets, providers=Bench("openai")) as s:
            found = s.budgets_of(Request({"model": "openai/GPT-4o"}, budget="team"))
            assert (found.rules, found.budgets) == (("gpt",), ("org", "gpt", "team"))
            assert "gpt-4o" in found.names

    run(main())


def test_a_thread_removes_a_budget_too():
    import scheduler

    with scheduler.open(budgets=Budget("team", "$0"), providers=Bench()) as s:
        s.remove_budget("team")
        assert s.stats().budgets == ()


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["define", "ensure", "given"])
@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        (
            [Budget("kid", "$1", parent="nosuch")],
            "'kid' has the parent 'nosuch', which is not defined",
        ),
        ([Budget("a", "$1", parent="b"), Budget("b", "$1", parent="a")], "'a' → 'b' → 'a'"),
        ([Budget("org", "$1", parent="team")], "'org' → 'team' → 'org'"),
    ],
)
async def test_a_parent_that_is_not_there_or_is_a_child_is_refused(budgets, words, how, tmp_path):
    async with Scheduler(
        tmp_path / "s.db", budgets=[Budget("org", "$1"), Budget("team", "$1", parent="org")],
        providers=Bench(),
    ) as s:  # fmt: skip
        if how == "ensure" and budgets[0].name == "org":
            return  # it is there, and left alone
        other = Scheduler(tmp_path / "s.db", budgets=budgets, providers=Bench())
        made = other.__aenter__() if how == "given" else getattr(s, how)(*budgets)
        with pytest.raises(ConfigError, match=re.escape(words)):
            await made
        assert {each.budget.name for each in s.stats().budgets} == {"org", "team"}
        await s.define(Budget("kid", "$1", parent="team"))
