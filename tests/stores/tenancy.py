"""What every store promises of order: tenants share in dollars, deadlines go first. To inherit."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.admission.fairness import SPAN_MS, Fairness
from scheduler.admission.plan import AGING, MAX_BYPASSED
from scheduler.budget import Budget
from scheduler.request import RequestState
from scheduler.stores.base import Claimed, NewRequest, Outcome
from tests.stores.conformance import QUEUED, T0, Bench, end, new, post

FAIR = Fairness("user", {"heavy": 2})


def of(tenant: str, need: int = 10, budgets: Any = (), **options: Any) -> NewRequest:
    """A request of a tenant, who is also told by its text."""
    made = new(budgets, need, body=tenant, **options)
    made.lane = made.lane._replace(tenant=tenant)
    return made


def due(in_ms: int, need: int = 10, budgets: Any = (), **options: Any) -> NewRequest:
    """A request with a deadline."""
    made = new(budgets, need, body=f"due in {in_ms}", **options)
    made.set_time(T0 + in_ms, T0 + in_ms)
    return made


def text(claimed: Claimed) -> str:
    return str(claimed.request.body["messages"][0]["content"])


async def one_by_one(bench: Bench, count: int, cost: int | None = None) -> list[str]:
    """Start so many, each after the one before has ended; None: it cost what was reserved."""
    order: list[str] = []
    for _ in range(count):
        (claimed,) = (await bench.turn(1)).claimed
        order.append(text(claimed))
        await bench.turn(0, settle=[post(claimed, claimed.ceiling_nusd if cost is None else cost)])
    return order


@pytest.mark.anyio
class Tenancy:
    """Inherit and provide the fixture ``store``: an open, empty store."""

    @pytest.fixture
    async def bench(self, store) -> Bench:
        store.share(FAIR)
        return Bench(store)

    # Tenants

    async def test_a_newcomer_is_served_at_once_however_many_wait(self, bench):
        await bench.submit(*[of("hog") for _ in range(200)], slots=4)
        await bench.submit(*[of("small") for _ in range(3)], slots=0)

        assert [text(each) for each in (await bench.turn(3)).claimed].count("small") >= 2

    async def test_tenants_share_in_dollars_not_in_requests(self, bench):
        await bench.submit(*[of("dear", 100) for _ in range(30)], slots=0)
        await bench.submit(*[of("cheap", 10) for _ in range(300)], slots=0)

        order = await one_by_one(bench, 110)

        assert order.count("dear") == 10

    async def test_a_weight_is_a_share(self, bench):
        await bench.submit(*[of("heavy") for _ in range(60)], slots=0)
        await bench.submit(*[of("light") for _ in range(60)], slots=0)

        assert (await one_by_one(bench, 30)).count("heavy") == 20

    async def test_what_a_call_cost_less_is_given_back(self, bench):
        """Who reserves ten times as much and spends as much as the other gets as many."""
        await bench.submit(*[of("careful", 100) for _ in range(60)], slots=0)
        await bench.submit(*[of("exact", 10) for _ in range(60)], slots=0)

        order = await one_by_one(bench, 40, cost=10)

        assert 18 <= order.count("careful") <= 22

    async def test_an_overrun_is_counted(self, bench):
        await bench.submit(*[of("over", 10) for _ in range(60)], slots=0)
        await bench.submit(*[of("exact", 10) for _ in range(90)], slots=0)
        order = []
        for _ in range(40):
            (claimed,) = (await bench.turn(1)).claimed
            order.append(text(claimed))
            cost = 30 if order[-1] == "over" else 10
            await bench.turn(0, settle=[post(claimed, cost)])

        assert 9 <= order.count("over") <= 11

    async def test_who_was_idle_has_saved_nothing_up(self, bench):
        await bench.submit(of("idle"), of("busy"), slots=0)
        await one_by_one(bench, 2)
        await bench.submit(*[of("busy") for _ in range(100)], slots=0)
        await one_by_one(bench, 50)
        await bench.submit(*[of("idle") for _ in range(50)], slots=0)

        order = await one_by_one(bench, 20)

        assert order[0] == "idle"
        assert 9 <= order.count("idle") <= 11

    async def test_what_was_given_back_is_not_saved_up_while_idle(self, bench):
        """Forty calls at once, of which nearly nothing was spent: no forty for nothing later."""
        claimed = (await bench.submit(*[of("burst", 100) for _ in range(40)], slots=40)).claimed
        await bench.submit(*[of("steady", 10) for _ in range(900)], slots=0)
        await bench.turn(0, settle=[post(each, 1) for each in claimed])
        await one_by_one(bench, 100)
        await bench.submit(*[of("burst", 10) for _ in range(50)], slots=0)

        order = await one_by_one(bench, 40)

        assert 19 <= order.count("burst") <= 21

    async def test_what_was_never_billed_is_given_back(self, bench):
        await bench.submit(*[of("unlucky") for _ in range(10)], slots=0)
        await bench.submit(*[of("other") for _ in range(10)], slots=0)
        (first,) = (await bench.turn(1)).claimed
        assert text(first) == "unlucky"
        again = end(first, Outcome.VOID, QUEUED, is_attempt=False)

        (next_one,) = (await bench.turn(1, settle=[again])).claimed

        assert next_one.request_id == first.request_id

    async def test_without_money_tokens_are_shared(self, bench):
        for name, tokens in (("long", 50), ("short", 10)):
            made = [of(name) for _ in range(60)]
            for each in made:
                each.ceiling_nusd, each.ceiling_tokens = 0, tokens
            await bench.submit(*made, slots=0)
        order = []
        for _ in range(36):
            (claimed,) = (await bench.turn(1)).claimed
            order.append(text(claimed))
            await bench.turn(0, settle=[end(claimed, Outcome.SUSPEND, RequestState.FAILED)])

        assert order.count("long") == 6

    async def test_money_that_is_short_is_shared_too(self, bench):
        """A window that holds two of the dear ones, or twenty of the cheap ones, at a time."""
        await bench.define(Budget("team", "$0.0000002/10s"))
        team = [bench.ids["team"]]
        await bench.submit(*[of("dear", 100, team) for _ in range(100)], slots=0)
        await bench.submit(*[of("cheap", 10, team) for _ in range(900)], slots=0)
        spent = {"dear": 0, "cheap": 0}
        for _ in range(400):
            bench.now_ms += 1_000
            result = await bench.turn(50)
            for claimed in result.claimed:
                spent[text(claimed)] += claimed.ceiling_nusd
            await bench.turn(0, settle=[post(each, each.ceiling_nusd) for each in result.claimed])

        assert sum(spent.values()) > 5_000
        # The bound of passing lets one go before its turn now and then, not more.
        assert 0.8 <= spent["dear"] / spent["cheap"] <= 1.25
        assert await bench.is_sound()

    async def test_of_two_budgets_and_tenants_that_wait_for_both_somebody_always_goes(self, bench):
        await bench.define(Budget("a", "$0.0000001/10s"), Budget("b", "$0.0000001/10s"))
        both = [bench.ids["a"], bench.ids["b"]]
        for name, budgets in (("x", both), ("y", both[:1]), ("z", both[1:])):
            await bench.submit(*[of(name, 60, budgets) for _ in range(40)], slots=0)
        served = set()
        for _ in range(100):
            bench.now_ms += 5_000
            result = await bench.turn(10)
            served |= {text(each) for each in result.claimed}
            await bench.turn(0, settle=[post(each, 60) for each in result.claimed])

        assert served == {"x", "y", "z"}

    async def test_a_reset_gives_nobody_what_they_could_not_have_used(self, bench):
        """Its own budget was spent while others went on: afterwards it shares, no more."""
        await bench.define(Budget("own", "$0.0000001/day"))
        own = [bench.ids["own"]]
        await bench.submit(*[of("shut", 10, own) for _ in range(100)], slots=0)
        await bench.submit(*[of("open") for _ in range(500)], slots=0)
        order = await one_by_one(bench, 100)
        assert order.count("shut") == 10  # and its budget is spent

        bench.now_ms += 86_400_000
        order = await one_by_one(bench, 16)

        assert 7 <= order.count("shut") <= 9

    async def test_how_tenants_are_doing_is_told(self, bench):
        bench.store.share(Fairness("user", {"ann": 3}))
        await bench.submit(*[of("ann", 20) for _ in range(3)], slots=2)
        await bench.submit(of("bob", 5), slots=0)

        found = [tuple(each) for each in await bench.store.tenants(bench.now_ms)]
        assert found == [("ann", 1, 40, 3.0), ("bob", 1, 0, 1.0)]
        assert [tuple(each) for each in bench.store.sharing(bench.now_ms)] == found

        bench.now_ms += 2 * SPAN_MS
        assert [each.served_nusd for each in await bench.store.tenants(bench.now_ms)] == [0, 0]

    async def test_without_tenants_nothing_is_told_and_age_decides(self, bench):
        bench.store.share(None)
        await bench.submit(*[of("hog") for _ in range(5)], of("small"), slots=0)

        assert await one_by_one(bench, 6) == ["hog"] * 5 + ["small"]
        assert await bench.store.tenants(bench.now_ms) == bench.store.sharing(bench.now_ms) == []

    # Deadlines

    async def test_the_earliest_deadline_goes_first(self, bench):
        await bench.submit(new(body="undated"), due(5_000), due(1_000), due(3_000), slots=0)

        order = await one_by_one(bench, 4)

        assert order == ["due in 1000", "due in 3000", "due in 5000", "undated"]

    async def test_deadlines_of_many_pages_go_in_order(self, bench):
        times = [1_000 + 7_919 * n % 1_009 for n in range(300)]
        await bench.submit(*[due(each) for each in times], slots=0)

        claimed = (await bench.turn(5)).claimed + (await bench.turn(290)).claimed

        assert [text(each) for each in claimed] == [f"due in {n}" for n in sorted(times)[:295]]

    async def test_a_deadline_puts_nobody_before_a_more_urgent_priority(self, bench):
        await bench.submit(due(1_000, priority=20), new(body="urgent", priority=0), slots=0)

        assert (await one_by_one(bench, 1)) == ["urgent"]

    async def test_a_tenants_turn_comes_before_anothers_deadline(self, bench):
        dated = due(1_000)
        dated.lane = dated.lane._replace(tenant="dated")
        later = due(2_000)
        later.lane = dated.lane
        await bench.submit(dated, later, of("patient"), slots=0)

        assert await one_by_one(bench, 3) == ["due in 1000", "patient", "due in 2000"]

    async def test_those_without_a_deadline_do_not_starve(self, bench):
        await bench.submit(*[due(60_000) for _ in range(3 * AGING)], new(body="undated"), slots=0)

        assert "undated" in await one_by_one(bench, AGING)

    async def test_a_deadline_that_comes_with_another_caller_moves_the_request(self, bench):
        result = await bench.submit(*[new(body=f"n{n}") for n in range(3)], slots=0)
        sooner = new(body="n2")
        sooner.set_time(None, T0 + 1_000)
        await bench.turn(0, amend=[(result.submitted[2].id, sooner)])
        assert await one_by_one(bench, 1) == ["n2"]

        later = new(body="n1")
        later.set_time(None, T0 + 900)
        await bench.turn(0, amend=[(result.submitted[1].id, later)])
        back = new(body="n1")
        await bench.turn(0, amend=[(result.submitted[1].id, back)])
        assert await one_by_one(bench, 2) == ["n0", "n1"]

    async def test_what_is_asked_instead_keeps_its_deadline(self, bench):
        result = await bench.submit(new(body="old"), due(5_000), slots=0)
        instead = new(body="instead", keeps_time=True)
        await bench.turn(0, amend=[(result.submitted[1].id, instead)])

        assert await one_by_one(bench, 1) == ["instead"]
        assert instead.lane.is_due
        bench.now_ms += 6_000

    async def test_deadlines_hold_where_money_is_short(self, bench):
        """Who is in line first is passed by one with a deadline, uncounted; and money goes to it."""
        await bench.define(Budget("team", "$0.0000001/day"))
        team = [bench.ids["team"]]
        running = (await bench.submit(new(team, 60), slots=1)).claimed
        await bench.submit(new(team, 50, body="undated"), slots=1)
        await bench.submit(due(60_000, 50, team), slots=1)

        result = await bench.settle(post(running[0], 10), slots=1)

        assert [text(each) for each in result.claimed] == ["due in 60000"]

    async def test_who_waits_for_money_is_passed_within_the_bound_whatever_comes(self, bench):
        await bench.define(Budget("team", "$0.0000001/day"))
        team = [bench.ids["team"]]
        held = (await bench.submit(of("h", 20, team), of("h", 10, team), slots=2)).claimed
        await bench.submit(of("w", 90, team), slots=5)  # has to wait for both
        passed = 0
        for n in range(3 * MAX_BYPASSED):
            result = await bench.submit(of(f"t{n % 5}", 10, team), slots=5)
            passed += len(result.claimed)
            await bench.settle(*[post(each, 0) for each in result.claimed], slots=5)
        assert passed <= MAX_BYPASSED

        result = await bench.settle(*[post(each, 0) for each in held], slots=1)
        assert [each.ceiling_nusd for each in result.claimed] == [90]

    async def test_whose_turn_it_is_passes_who_waits_for_money_and_is_not_counted(self, bench):
        """The tenant of the one in line has had its share, those who pass it have spent nothing."""
        await bench.define(Budget("team", "$0.0000001/day"))
        team = [bench.ids["team"]]
        await bench.submit(of("w", 30, team), of("w", 90, team), slots=2)
        passed = 0
        for n in range(2 * MAX_BYPASSED):
            result = await bench.submit(of(f"t{n % 5}", 10, team), slots=5)
            passed += len(result.claimed)
            await bench.settle(*[post(each, 0) for each in result.claimed], slots=5)

        assert passed == 2 * MAX_BYPASSED

    async def test_what_was_given_back_while_it_might_not_go_is_not_saved_up(self, bench):
        """Its budget is spent in requests, so what calls cost less helps it no further."""
        await bench.define(Budget("own", "40 requests/day"))
        own = [bench.ids["own"]]
        claimed = (await bench.submit(*[of("shut", 100, own) for _ in range(80)], slots=40)).claimed
        await bench.turn(1)
        await bench.submit(*[of("open", 100) for _ in range(500)], slots=0)
        await bench.turn(0, settle=[post(each, 1) for each in claimed])
        await one_by_one(bench, 60)

        bench.now_ms += 86_400_000
        order = await one_by_one(bench, 16)

        assert 7 <= order.count("shut") <= 9

    async def test_the_queue_shows_the_tenant_and_the_deadline(self, bench):
        dated = due(5_000)
        dated.lane = dated.lane._replace(tenant="ann")
        await bench.submit(dated, new(), slots=0)

        rows = await bench.store.queue([QUEUED], bench.now_ms)

        assert [(each.tenant, each.due_at_ms) for each in rows] == [("ann", T0 + 5_000), ("", None)]
