"""One suite for every store: what `scheduler.stores.base` promises, as tests.

A store's test module makes a subclass with its own `store` fixture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import pytest

from scheduler.admission.plan import LaneKey
from scheduler.budget import Budget
from scheduler.errors import BudgetUnknown, ConfigError
from scheduler.request import Request, RequestState, Response, Usage
from scheduler.shortfall import ParkReason
from scheduler.stores import tagged
from scheduler.stores.base import (
    Claimed,
    ExpiredRequest,
    NewRequest,
    Outcome,
    Settlement,
    Store,
    Turn,
    TurnResult,
)
from scheduler.stores.course import QUARTER_MS, bucket_of
from scheduler.stores.outbox import News
from scheduler.stores.papers import Paper

T0 = 1_767_225_600_000  # 2026-01-01 00:00 UTC
DAY_MS = 86_400_000
QUEUED, PARKED, RUNNING = RequestState.QUEUED, RequestState.PARKED, RequestState.RUNNING
SUCCEEDED, FAILED = RequestState.SUCCEEDED, RequestState.FAILED
CANCELLED, EXPIRED = RequestState.CANCELLED, RequestState.EXPIRED


def new(
    budgets: Sequence[int] = (), need: int = 10, *, key: str | None = None, body: Any = "hi",
    priority: int = 10, may_wait: bool = True, job: str = "", tags: Mapping[str, Any] | None = None,
    **options: Any,
) -> NewRequest:  # fmt: skip
    request = Request.chat("m", body, key=key, job=job, tags=tags or {})
    digest = request.digest() if key is not None else ""
    lane = LaneKey("p", tuple(budgets), priority, may_wait)
    return NewRequest(request, lane, need, need, need // 2, digest, **options)


def post(claimed: Claimed, nusd: int, **options: Any) -> Settlement:
    options.setdefault("state", SUCCEEDED)
    options.setdefault("response", Response({"n": 1}, usage=Usage(1, 2), key=claimed.request.key))
    return Settlement(
        claimed.reservation_id, claimed.request_id, Outcome.POST, nusd=nusd, tokens=3, **options
    )


def end(claimed: Claimed, outcome: Outcome, state: RequestState, **options: Any) -> Settlement:
    return Settlement(claimed.reservation_id, claimed.request_id, outcome, state, **options)


async def spent_by(store: Store, by: str, since_ms: int = 0) -> list[tuple[Any, ...]]:
    """What was spent: names, attempts, posted, reserved, unknown, tokens."""
    return [astuple(row) for row in await store.spend(by, since_ms)]


class Bench:
    """A store with a budget, and shorthands."""

    def __init__(self, store: Store) -> None:
        self.store, self.now_ms = store, T0
        self.ids: dict[str, int] = {}

    async def define(self, *budgets: Budget) -> None:
        await self.store.define(budgets, self.now_ms)
        self.ids = {each.budget.name: each.id for each in await self.store.budgets(self.now_ms)}

    async def turn(self, slots: int | None = 10, **work: Any) -> TurnResult:
        room = None if slots is None else {"p": slots}
        for each in work.get("submit", ()):
            self.store.prepare(each)
        return await self.store.turn(Turn(self.now_ms, slots=room, **work))

    async def submit(self, *requests: NewRequest, slots: int | None = 10) -> TurnResult:
        return await self.turn(slots, submit=requests)

    async def settle(self, *settlements: Settlement, slots: int | None = 10) -> TurnResult:
        return await self.turn(slots, settle=settlements)

    async def balance(self, name: str = "team", cap: int = 0) -> tuple[int, int]:
        for status in await self.store.budgets(self.now_ms):
            if status.budget.name == name:
                return status.caps[cap].posted, status.caps[cap].reserved
        raise AssertionError(name)

    async def is_sound(self) -> bool:
        audit = await self.store.audit(self.now_ms)
        assert audit.discrepancies == ()
        return True


@pytest.mark.anyio
class Conformance:
    """Inherit and provide the fixture ``store``: an open, empty store."""

    odd_key = "a\0b"

    @pytest.fixture
    async def bench(self, store: Store) -> Bench:
        made = Bench(store)
        await made.define(Budget("team", "$0.0000001/day"))  # 100 nano-dollars
        return made

    async def test_a_store_that_is_open_is_nobody_elses(self, bench):
        with pytest.raises(ConfigError, match="in use by another scheduler"):
            await bench.store.open(T0)

        assert (await bench.submit(new([bench.ids["team"]], 30))).claimed

    async def test_a_claim_reserves_what_it_takes(self, bench):
        result = await bench.submit(*[new([bench.ids["team"]], 30) for _ in range(5)])

        assert [claimed.attempt for claimed in result.claimed] == [1, 1, 1]
        assert await bench.balance() == (0, 90)
        assert (await bench.store.counts()).running == 3
        assert (await bench.store.counts()).parked_by_reason == {"held_in_flight": 2}
        assert await bench.is_sound()

    async def test_a_removed_budget_binds_nobody_and_keeps_what_it_spent(self, bench):
        team = bench.ids["team"]
        first = await bench.submit(new([team], 60))
        await bench.settle(post(first.claimed[0], 50))
        running = (await bench.submit(new([team], 30), new([team], 90))).claimed
        assert (await bench.store.counts()).parked == 1

        await bench.store.remove("team", bench.now_ms)
        gone_on = (await bench.turn()).claimed

        assert len(gone_on) == 1
        assert await bench.store.budgets(bench.now_ms) == bench.store.latest() == []
        assert await bench.store.defined(["team"]) == []
        await bench.settle(post(running[0], 20), end(gone_on[0], Outcome.SUSPEND, FAILED))
        assert [(row.name, row.posted_nusd, row.suspense_nusd)
                for row in await bench.store.spend("budget")] == [("team", 70, 90)]  # fmt: skip
        assert await bench.is_sound()
        for change in (bench.store.remove("team", T0), bench.store.pause("team", True, T0)):
            with pytest.raises(BudgetUnknown, match="no budget is named 'team'"):
                await change

    async def test_a_removed_budget_is_the_same_when_its_name_comes_back(self, bench):
        team = bench.ids["team"]
        running = (await bench.submit(new([team], 60))).claimed
        await bench.store.pause("team", True, bench.now_ms)
        await bench.store.remove("team", bench.now_ms)
        await bench.settle(post(running[0], 40))

        await bench.define(Budget("team", "$0.0000001/day, $0.0000002/week"))

        (status,) = await bench.store.budgets(bench.now_ms)
        assert (status.id, status.paused) == (team, False)
        assert [each for each, _ in await bench.store.defined(["team", "x"])] == [team]
        assert await bench.balance() == await bench.balance(cap=1) == (40, 0)
        assert not (await bench.submit(new([bench.ids["team"]], 61))).claimed
        assert await bench.is_sound()

    async def test_a_parent_is_removed_after_its_children(self, bench):
        await bench.define(*[Budget(f"c{i}", "$1", parent="team") for i in range(7)])
        with pytest.raises(
            ConfigError, match=r"the parent of 'c0', .*'c4' and 2 more.*nothing was"
        ):
            await bench.store.remove("team", bench.now_ms)

        await bench.define(Budget("c0", "$1"))  # another parent, here none
        for i in range(1, 7):
            await bench.store.remove(f"c{i}", bench.now_ms)
        await bench.store.remove("team", bench.now_ms)

        assert [each.budget.name for each in await bench.store.budgets(bench.now_ms)] == ["c0"]

    async def test_nothing_is_claimed_without_free_slots(self, bench):
        first = await bench.submit(new(), slots=None)
        second = await bench.turn(0)
        third = await bench.turn(1)

        assert [len(result.claimed) for result in (first, second, third)] == [0, 0, 1]

    async def test_claims_come_in_order_of_priority_then_age(self, bench):
        low = await bench.submit(*[new(priority=20) for _ in range(2)], slots=None)
        high = await bench.submit(*[new(priority=0) for _ in range(2)], slots=None)

        result = await bench.turn(4)

        order = [each.id for each in (*high.submitted, *low.submitted)]
        assert [claimed.request_id for claimed in result.claimed] == order

    async def test_posting_frees_what_was_not_needed_and_the_next_goes_on_at_once(self, bench):
        first = await bench.submit(*[new([bench.ids["team"]], 60) for _ in range(2)])
        assert len(first.claimed) == 1

        result = await bench.settle(post(first.claimed[0], 40))

        assert len(result.claimed) == 1
        assert await bench.balance() == (40, 60)
        assert await bench.is_sound()

    async def test_settling_twice_changes_nothing(self, bench):
        (claimed,) = (await bench.submit(new([bench.ids["team"]], 30))).claimed
        await bench.settle(post(claimed, 20))

        again = await bench.settle(post(claimed, 25), end(claimed, Outcome.VOID, QUEUED))

        assert again.settled == [False, False]
        assert await bench.balance() == (20, 0)
        assert (await bench.store.counts()).succeeded == 1

    async def test_settling_twice_in_one_turn_counts_once(self, bench):
        (claimed,) = (await bench.submit(new([bench.ids["team"]], 30))).claimed

        result = await bench.settle(post(claimed, 20), post(claimed, 20))

        assert result.settled == [True, False]
        assert await bench.balance() == (20, 0)

    async def test_a_void_gives_everything_back(self, bench):
        (claimed,) = (await bench.submit(new([bench.ids["team"]], 30))).claimed

        await bench.settle(end(claimed, Outcome.VOID, FAILED, error={"code": "x"}))

        assert await bench.balance() == (0, 0)
        assert (await bench.store.counts()).failed == 1

    async def test_an_unknown_outcome_keeps_counting_until_it_is_known(self, bench):
        (claimed,) = (await bench.submit(new([bench.ids["team"]], 30))).claimed
        await bench.settle(end(claimed, Outcome.SUSPEND, FAILED))
        assert await bench.balance() == (0, 30)
        (status,) = await bench.store.budgets(bench.now_ms)
        assert status.caps[0].suspense == 30

        late = await bench.settle(post(claimed, 12))

        assert late.settled == [True]
        assert await bench.balance() == (12, 0)
        assert (await bench.store.counts()).failed == 1  # the first end of a request holds
        assert await bench.is_sound()

    async def test_a_cost_above_the_reservation_is_posted_as_it_is(self, bench):
        (claimed,) = (await bench.submit(new([bench.ids["team"]], 90))).claimed

        await bench.settle(post(claimed, 130))

        (status,) = await bench.store.budgets(bench.now_ms)
        assert (status.caps[0].posted, status.caps[0].available) == (130, -30)
        assert status.caps[0].overrun == 40
        assert (await bench.store.audit(bench.now_ms)).overruns == 1

    async def test_all_budgets_fit_or_nothing_is_reserved(self, bench):
        await bench.define(Budget("tight", "$0.00000002/day"))
        both = sorted(bench.ids.values())

        result = await bench.submit(new(both, 15), new(both, 15))

        assert len(result.claimed) == 1
        assert await bench.balance("team") == await bench.balance("tight") == (0, 15)

    async def test_what_is_parked_goes_on_when_the_window_rolls(self, bench):
        first = await bench.submit(*[new([bench.ids["team"]], 60) for _ in range(3)])
        spent = await bench.settle(post(first.claimed[0], 60))
        assert spent.claimed == []
        assert spent.lanes[0].shortfall.reason is ParkReason.WINDOW_SPENT
        assert spent.look_again_at_ms == T0 + DAY_MS

        bench.now_ms = spent.look_again_at_ms
        result = await bench.turn()

        assert len(result.claimed) == 1
        assert result.claimed[0].parked_ms == DAY_MS
        assert await bench.balance() == (0, 60)
        assert await bench.is_sound()

    async def test_what_waits_for_calls_under_way_goes_on_at_a_reset_before_they_end(self, bench):
        ids = [bench.ids["team"]]
        first = await bench.submit(*[new(ids, 60) for _ in range(3)])
        await bench.settle(end(first.claimed[0], Outcome.SUSPEND, FAILED))
        assert (await bench.turn()).claimed == []

        bench.now_ms = T0 + DAY_MS

        (running,) = (await bench.turn()).claimed
        bench.now_ms = T0 + 2 * DAY_MS
        assert len((await bench.turn()).claimed) == 1
        assert running.attempt == 1

    async def test_the_clock_going_back_does_not_bring_a_window_back(self, bench):
        bench.now_ms = T0 + DAY_MS
        await bench.submit(new([bench.ids["team"]], 60))
        bench.now_ms = T0

        result = await bench.submit(new([bench.ids["team"]], 60))

        assert result.claimed == []

    async def test_a_budget_that_is_defined_as_it_was_makes_nobody_look_again(self, bench):
        team = bench.ids["team"]
        (told,) = (await bench.submit(new([team], 60), new([team], 60))).lanes
        assert told.shortfall is not None
        (status,) = [each for each in await bench.store.budgets(bench.now_ms) if each.id == team]

        await bench.store.define([status.budget], bench.now_ms)
        assert (await bench.turn(0)).lanes == []

        await bench.store.define([status.budget.with_limit("$2")], bench.now_ms)
        assert (await bench.turn(0)).lanes

    async def test_raising_the_limit_lets_the_parked_go_on_in_order(self, bench):
        ids = [bench.ids["team"]]
        await bench.submit(new(ids, 60, priority=20), new(ids, 60, priority=20), slots=1)
        urgent = await bench.submit(new(ids, 60, priority=0))
        assert urgent.claimed == []

        await bench.define(Budget("team", "$0.0000002/day"))
        result = await bench.turn()

        assert [claimed.request.priority for claimed in result.claimed] == [10, 10]
        assert result.claimed[0].request_id == urgent.submitted[0].id
        assert await bench.balance() == (0, 180)

    async def test_lowering_a_limit_cancels_nothing(self, bench):
        (claimed,) = (await bench.submit(new([bench.ids["team"]], 60))).claimed

        await bench.define(Budget("team", "$0.00000001/day"))
        result = await bench.submit(new([bench.ids["team"]], 5))

        assert result.claimed == []
        assert (await bench.settle(post(claimed, 50))).settled == [True]
        assert await bench.balance() == (50, 0)

    async def test_a_switched_off_limit_still_counts(self, bench):
        await bench.define(Budget("team", "$0.0000001/day").with_limit(None))

        result = await bench.submit(*[new([bench.ids["team"]], 60) for _ in range(3)])

        assert len(result.claimed) == 3
        assert await bench.balance() == (0, 180)

    async def test_another_window_counts_what_was_spent_already(self, bench):
        first = await bench.submit(*[new([bench.ids["team"]], 30) for _ in range(3)])
        one, two, three = first.claimed
        await bench.settle(
            post(one, 20), end(two, Outcome.SUSPEND, FAILED), end(three, Outcome.VOID, FAILED)
        )

        await bench.define(Budget("team", "$0.0000001, $0.00000005/6h, 9 requests/day"))

        balances = [await bench.balance(cap=cap) for cap in range(3)]
        assert balances == [(20, 30), (20, 30), (1, 1)]
        assert await bench.is_sound()

    async def test_a_paused_budget_admits_nothing_until_resumed(self, bench):
        await bench.store.pause("team", True, bench.now_ms)
        paused = await bench.submit(new([bench.ids["team"]], 1))
        assert paused.lanes[0].shortfall.reason is ParkReason.PAUSED

        await bench.store.pause("team", False, bench.now_ms)

        assert len((await bench.turn()).claimed) == 1
        with pytest.raises(BudgetUnknown):
            await bench.store.pause("nobody", True, bench.now_ms)

    async def test_a_smaller_newcomer_goes_on_although_its_lane_is_parked(self, bench):
        ids = [bench.ids["team"]]
        (claimed,) = (await bench.submit(new(ids, 90))).claimed
        await bench.settle(post(claimed, 90))
        await bench.submit(new(ids, 50))

        result = await bench.submit(new(ids, 10))

        assert [each.request_id for each in result.claimed] == [result.submitted[0].id]

    async def test_a_free_request_passes_a_spent_budget(self, bench):
        ids = [bench.ids["team"]]
        (claimed,) = (await bench.submit(new(ids, 90))).claimed
        await bench.settle(post(claimed, 300))

        assert len((await bench.submit(new(ids, 0))).claimed) == 1

    async def test_what_may_not_wait_is_refused_with_what_lacked(self, bench):
        ids = [bench.ids["team"]]
        await bench.submit(new(ids, 90))

        result = await bench.submit(new(ids, 20, may_wait=False), new(ids, 10, may_wait=False))

        ((refused, _, lack),) = result.refused
        assert refused == result.submitted[0].id
        assert (lack.missing, lack.needed, lack.reserved, lack.limit) == (10, 20, 90, 100)
        assert len(result.claimed) == 1
        assert (await bench.store.counts()).failed == 1

    async def test_who_may_fall_back_still_waits_and_is_asked_something_else(self, bench):
        ids = [bench.ids["team"]]
        await bench.submit(new(ids, 90))
        dear = new(ids, 20, key="a", may_wait=False)
        dear.request.fallback = ("cheap",)
        result = await bench.submit(dear)
        ((refused, request, _),) = result.refused
        assert request.fallback == ("cheap",) or list(request.fallback) == ["cheap"]
        assert (await bench.store.counts()).failed == 0
        cheap = new(ids, 10, key="a", body="instead")
        bench.store.prepare(cheap)

        (claimed,) = (await bench.turn(amend=[(refused, cheap)])).claimed

        assert (claimed.request_id, claimed.ceiling_nusd, claimed.attempt) == (refused, 10, 1)
        assert claimed.request.body == cheap.request.body
        again = await bench.submit(dear)  # the key stands for what was asked first
        assert (again.submitted[0].is_known, again.submitted[0].is_conflict) == (True, False)
        await bench.turn(amend=[(refused, cheap)])  # it runs: nothing happens
        assert (await bench.store.counts()).running == 2

    async def test_cancelling_removes_what_waits_and_only_that(self, bench):
        result = await bench.submit(new(), new(), slots=1)
        (claimed,) = result.claimed
        waiting = next(s.id for s in result.submitted if s.id != claimed.request_id)

        first = await bench.turn(None, cancel=[waiting, claimed.request_id, 10_000])
        again = await bench.turn(None, cancel=[waiting])

        assert (first.cancelled, again.cancelled) == ([True, False, False], [False])
        assert (await bench.turn()).claimed == []
        counts = await bench.store.counts()
        assert (counts.cancelled, counts.running) == (1, 1)

    async def test_cancelling_the_first_in_line_lets_the_others_go(self, bench):
        ids = [bench.ids["team"]]
        (held,) = (await bench.submit(new(ids, 60))).claimed
        large = await bench.submit(new(ids, 50))
        small = await bench.submit(*[new(ids, 1) for _ in range(40)], slots=40)
        assert len(small.claimed) == 32
        assert held.attempt == 1

        result = await bench.turn(40, cancel=[large.submitted[0].id])

        assert len(result.claimed) == 8

    async def test_what_others_hold_lives_on_when_it_is_refused(self, bench):
        result = await bench.submit(
            new([bench.ids["team"]], 200, key="k", may_wait=False), slots=None
        )
        request_id = result.submitted[0].id

        held = await bench.turn(holds={request_id})
        assert [each.id for each in held.refused] == [request_id]
        waits = new([bench.ids["team"]], 200, key="k", expires_at_ms=T0 + 900)
        await bench.turn(amend=[(request_id, waits)])
        (row,) = await bench.store.queue([PARKED], T0)
        assert (row.id, row.priority) == (request_id, 10)

        bench.now_ms += 900
        assert [each.id for each in (await bench.turn()).expired] == [request_id]

    async def test_what_is_amended_lent_and_new_in_one_turn_draws_on_its_own_budgets_each(
        self, bench
    ):
        names = ["ann", "ben", "eve"]
        await bench.define(*[Budget(name, "$0.0000001") for name in names])
        ann, ben, eve = (bench.ids[name] for name in names)
        first, second = (await bench.submit(new([ann]), new([ben]), slots=0)).submitted

        await bench.turn(
            None,
            amend=[(first.id, new([ben], 20))],
            lend=[(second.id, True)],
            submit=[new([eve], 30)],
        )

        claimed = (await bench.turn()).claimed
        got = sorted((each.ceiling_nusd, each.budgets) for each in claimed)
        assert got == [(10, (ben,)), (20, (ben,)), (30, (eve,))]
        assert [await bench.balance(name) for name in names] == [(0, 0), (0, 30), (0, 30)]
        assert await bench.is_sound()

    async def test_what_runs_goes_back_to_the_lane_it_was_amended_to(self, bench):
        (claimed,) = (await bench.submit(new(key="k", priority=20, expires_at_ms=T0 + 500))).claimed
        urgent = new(key="k", priority=0)
        await bench.turn(amend=[(claimed.request_id, urgent)])
        bench.now_ms += 600

        await bench.submit(new(), slots=None)
        again = await bench.settle(end(claimed, Outcome.VOID, QUEUED), slots=1)

        assert [each.request_id for each in again.claimed] == [claimed.request_id]
        assert again.expired == []

    async def test_a_known_key_tells_how_it_waits(self, bench):
        waiting = new(key="k", priority=20, expires_at_ms=T0 + 500)
        first, twin = (await bench.submit(waiting, new(key="k"), slots=None)).submitted
        (later,) = (await bench.submit(new(key="k", priority=0), slots=None)).submitted

        assert first.held is None
        for each in (twin, later):
            assert (each.held.lane.priority, each.held.expires_at_ms) == (20, T0 + 500)
            assert each.held.request.key == "k"

    async def test_a_deadline_drops_what_was_not_sent_by_then(self, bench):
        result = await bench.submit(new(expires_at_ms=T0 + 500), slots=None)
        assert result.look_again_at_ms == T0 + 500

        bench.now_ms = T0 + 500
        late = await bench.turn()

        assert late.expired == [ExpiredRequest(result.submitted[0].id, 500, None, "")]
        assert late.claimed == []
        assert (await bench.store.counts()).expired == 1

    async def test_a_deadline_does_not_touch_what_runs(self, bench):
        (claimed,) = (await bench.submit(new(expires_at_ms=T0 + 500))).claimed
        bench.now_ms = T0 + 1000

        result = await bench.settle(post(claimed, 1))

        assert (result.expired, result.settled) == ([], [True])

    async def test_a_retry_waits_for_its_time_and_keeps_its_place(self, bench):
        first = await bench.submit(new(), new(), slots=1)
        (claimed,) = first.claimed
        retry = end(claimed, Outcome.SUSPEND, QUEUED, not_before_ms=T0 + 300)
        result = await bench.settle(retry, slots=None)
        assert result.look_again_at_ms == T0 + 300
        assert (await bench.store.counts()).queued == 2

        bench.now_ms = T0 + 300
        second = await bench.turn(1)

        assert [(c.request_id, c.attempt) for c in second.claimed] == [(claimed.request_id, 2)]
        assert second.claimed[0].spent_nusd == 10

    async def test_a_late_failure_of_an_older_attempt_does_not_touch_a_retry(self, bench):
        (claimed,) = (await bench.submit(new())).claimed
        retry = end(claimed, Outcome.SUSPEND, QUEUED, not_before_ms=T0 + 300)
        await bench.settle(retry)

        late = await bench.settle(post(claimed, 4, state=FAILED, response=None))

        assert late.settled == [True]
        assert late.look_again_at_ms == T0 + 300
        bench.now_ms = T0 + 300
        (again,) = (await bench.turn()).claimed
        assert (again.attempt, again.spent_nusd) == (2, 4)

    @pytest.mark.parametrize("delay_ms", [None, 300], ids=["queued", "delayed"])
    async def test_a_late_answer_of_a_lost_attempt_ends_the_request_that_waits(
        self, bench, delay_ms
    ):
        not_before_ms = None if delay_ms is None else T0 + delay_ms
        (claimed,) = (await bench.submit(new(key="k"))).claimed
        await bench.settle(
            end(claimed, Outcome.SUSPEND, QUEUED, not_before_ms=not_before_ms), slots=None
        )

        late = await bench.settle(post(claimed, 4))

        assert (late.settled, late.claimed, late.look_again_at_ms) == ([True], [], None)
        (known,) = (await bench.submit(new(key="k"))).submitted
        assert (known.finished.state, known.finished.cost_nusd) == (SUCCEEDED, 4)
        counts = await bench.store.counts()
        assert (counts.succeeded, counts.waiting, counts.running) == (1, 0, 0)

    async def test_a_late_answer_ends_a_request_that_runs_again_and_both_attempts_count(
        self, bench
    ):
        await bench.define(Budget("team", "$1"))
        (lost,) = (await bench.submit(new([bench.ids["team"]], key="k"))).claimed
        (again,) = (await bench.settle(end(lost, Outcome.SUSPEND, QUEUED))).claimed

        both = await bench.settle(post(lost, 4), post(again, 5))

        assert both.settled == [True, True]
        counts = await bench.store.counts()
        assert (counts.succeeded, counts.running, counts.total) == (1, 0, 1)
        assert await bench.balance() == (9, 0)
        assert (await bench.store.audit(T0)).discrepancies == ()

    async def test_what_nobody_knows_is_listed_until_somebody_says(self, bench):
        await bench.define(Budget("team", "$1"))
        (claimed,) = (await bench.submit(new([bench.ids["team"]], key="k", job="j"))).claimed
        await bench.settle(
            end(claimed, Outcome.SUSPEND, FAILED, why="no answer in time", provider_id="gen-1")
        )

        (unknown,) = await bench.store.suspended()

        assert (unknown.id, unknown.key, unknown.job) == (claimed.reservation_id, "k", "j")
        assert (unknown.ceiling_nusd, unknown.why, unknown.provider_id) == (
            10, "no answer in time", "gen-1",
        )  # fmt: skip
        assert unknown.request.body == claimed.request.body
        assert await bench.store.suspended(job="other") == []
        assert await bench.store.suspended(after_id=unknown.id) == []
        assert await bench.balance() == (0, 10)
        charge = post(claimed, 3, state=FAILED, response=None, is_assumed=True)
        assert await bench.store.resolve([charge, charge], T0) == [True, False]
        assert await bench.store.suspended() == []
        assert await bench.balance() == (3, 0)

    @pytest.mark.parametrize("assumed", [Outcome.POST, Outcome.VOID])
    async def test_an_assumption_is_corrected_once_by_the_answer(self, bench, assumed):
        await bench.define(Budget("team", "$1, 100 requests/day"))
        (claimed,) = (await bench.submit(new([bench.ids["team"]], key="k"))).claimed
        await bench.settle(end(claimed, Outcome.SUSPEND, FAILED))
        guess = end(claimed, assumed, FAILED, nusd=7, tokens=7, is_assumed=True)
        assert await bench.store.resolve([guess], T0) == [True]

        truth = await bench.settle(post(claimed, 4), post(claimed, 5))

        assert truth.settled == [True, False]
        assert await bench.balance() == (4, 0)
        assert await bench.balance(cap=1) == (1, 0)
        assert (await bench.store.audit(T0)).discrepancies == ()
        (row,) = await bench.store.spend("model")
        assert (row.attempts, row.posted_nusd, row.tokens) == (1, 4, 3)

    async def test_what_was_resolved_is_told_when_it_passes_a_threshold(self, bench):
        (claimed,) = (await bench.submit(new([bench.ids["team"]], 95))).claimed
        await bench.settle(end(claimed, Outcome.SUSPEND, FAILED))

        assert await bench.store.resolve([post(claimed, 85, is_assumed=True)], T0) == [True]

        assert [each.percent for each in (await bench.turn()).crossings] == [50, 80]
        assert (await bench.turn()).crossings == []

    async def test_what_runs_cannot_be_resolved_from_outside(self, bench):
        await bench.define(Budget("team", "$1"))
        (claimed,) = (await bench.submit(new([bench.ids["team"]]))).claimed

        assert await bench.store.resolve([end(claimed, Outcome.VOID, FAILED)], T0) == [False]
        assert await bench.balance() == (0, 10)

    async def test_resolving_lets_go_on_what_it_kept_waiting(self, bench):
        await bench.define(Budget("team", "$0.000000015"))
        (lost,) = (await bench.submit(new([bench.ids["team"]], key="k"))).claimed
        await bench.settle(end(lost, Outcome.SUSPEND, FAILED))
        assert (await bench.submit(new([bench.ids["team"]]))).claimed == []

        await bench.store.resolve([end(lost, Outcome.VOID, FAILED, is_assumed=True)], T0)

        assert len((await bench.turn()).claimed) == 1

    async def test_pruning_forgets_what_ended_and_changes_no_balance(self, bench):
        await bench.define(Budget("team", "$1/day, 3 requests/90m"), Budget("org", "$1"))
        draws = [bench.ids["team"], bench.ids["org"]]
        claims = (await bench.submit(*[new(draws, key=f"k{n}") for n in range(3)])).claimed
        await bench.settle(post(claims[0], 4), post(claims[1], 15), slots=None)
        await bench.settle(end(claims[2], Outcome.SUSPEND, FAILED), slots=None)
        balances = [
            await bench.balance(name, cap) for name, cap in (("team", 0), ("team", 1), ("org", 0))
        ]
        spend = await bench.store.spend("budget")
        bench.now_ms += 1000
        await bench.submit(new(key="last"), slots=None)
        await bench.store.delivered([claims[0].request_id])

        assert await bench.store.prune(T0, bench.now_ms) == []  # nothing ended before then
        (pruned,) = await bench.store.prune(T0 + 1, bench.now_ms)
        assert (pruned.key, pruned.cost_nusd) == ("k0", 4)
        (rest,) = await bench.store.prune(T0 + 1, bench.now_ms, undelivered=True)
        assert rest.key == "k1"  # the unknown one stays
        assert await bench.store.prune(T0 + 1, bench.now_ms, undelivered=True) == []

        audit = await bench.store.audit(bench.now_ms)
        assert (audit.discrepancies, audit.overruns) == ((), 1)
        assert [
            await bench.balance(name, cap) for name, cap in (("team", 0), ("team", 1), ("org", 0))
        ] == balances
        assert await bench.store.spend("budget") == spend
        (free,) = (await bench.submit(new(draws, key="k0"))).submitted
        assert not free.is_known
        await bench.define(Budget("team", "$1/2d"))  # counted anew, from sums too
        assert (await bench.balance())[0] == 19
        assert (await bench.store.audit(bench.now_ms)).discrepancies == ()

    async def test_a_busy_provider_uses_up_no_attempt(self, bench):
        (claimed,) = (await bench.submit(new())).claimed

        result = await bench.settle(end(claimed, Outcome.VOID, QUEUED, is_attempt=False))

        assert [c.attempt for c in result.claimed] == [1]

    async def test_a_key_gives_back_its_outcome(self, bench):
        first = await bench.submit(new(key="a"))
        await bench.settle(post(first.claimed[0], 7))

        again = await bench.submit(new(key="a"))

        (known,) = again.submitted
        assert (known.is_known, known.id, again.claimed) == (True, first.submitted[0].id, [])
        assert known.finished.response.body == {"n": 1}
        assert known.finished.response.usage == Usage(1, 2)
        assert (known.finished.cost_nusd, known.finished.attempts) == (7, 1)

    async def test_a_key_is_queued_once_while_it_waits_or_runs(self, bench):
        first = await bench.submit(new(key="a"), new(key="a"), slots=None)
        assert [each.is_known for each in first.submitted] == [False, True]
        assert len({each.id for each in first.submitted}) == 1

        running = await bench.submit(new(key="a"))
        again = await bench.submit(new(key="a"))

        assert (len(running.claimed), len(again.claimed)) == (1, 0)
        assert again.submitted[0].finished is None

    async def test_a_known_key_twice_in_one_turn_is_queued_once(self, bench):
        first = await bench.submit(new(key="a"), slots=None)
        await bench.turn(None, cancel=[first.submitted[0].id])

        again = await bench.submit(new(key="a"), new(key="a"))

        assert [each.is_known for each in again.submitted] == [False, True]
        assert len(again.claimed) == 1
        await bench.settle(post(again.claimed[0], 1))
        assert (await bench.turn()).claimed == []

    async def test_those_behind_a_waiter_go_on_when_it_is_hopeless(self, bench):
        ids = [bench.ids["team"]]
        (held,) = (await bench.submit(new(ids, 40))).claimed
        await bench.submit(new(ids, 90))
        small = await bench.submit(*[new(ids, 1) for _ in range(40)], slots=40)
        assert len(small.claimed) == 32

        await bench.settle(post(held, 40), slots=None)
        bench.now_ms += 1000
        result = await bench.turn(40)

        assert len(result.claimed) == 8

    async def test_who_is_first_again_after_many_others_has_been_passed_as_often(self, bench):
        ids = [bench.ids["team"]]
        await bench.submit(new(ids, 60))
        await bench.submit(new(ids, 50))
        small = await bench.submit(*[new(ids, 1) for _ in range(20)], slots=20)
        assert len(small.claimed) == 20
        between = []
        for priority in range(9, 0, -1):  # each the first for a moment, more than have a place
            result = await bench.submit(new(ids, 45, priority=priority))
            between += [each.id for each in result.submitted]
        await bench.turn(cancel=between)

        result = await bench.submit(*[new(ids, 1) for _ in range(20)], slots=20)

        assert len(result.claimed) == 12

    async def test_a_key_with_another_body_is_a_conflict(self, bench):
        await bench.submit(new(key="a"))

        result = await bench.submit(new(key="a", body="other"), new(key="a", body="other", job="j"))

        assert [each.is_conflict for each in result.submitted] == [True, False]
        assert len(result.claimed) == 1  # the other job's

    async def test_a_failed_key_is_tried_again_only_when_asked(self, bench):
        (claimed,) = (await bench.submit(new(key="a"))).claimed
        await bench.settle(end(claimed, Outcome.VOID, FAILED, error={"code": "bad"}))

        plain = await bench.submit(new(key="a"))
        retried = await bench.submit(new(key="a", retry_failed=True))

        assert plain.submitted[0].finished.error == {"code": "bad"}
        assert (len(plain.claimed), len(retried.claimed)) == (0, 1)
        assert (await bench.store.counts()).failed == 0

    async def test_a_cancelled_or_expired_key_is_queued_again(self, bench):
        result = await bench.submit(new(key="a"), new(key="b", expires_at_ms=T0), slots=None)
        await bench.turn(None, cancel=[result.submitted[0].id])

        again = await bench.submit(new(key="a"), new(key="b"))

        assert len(again.claimed) == 2
        assert (await bench.store.counts()).total == 2

    async def test_a_forgotten_job_starts_anew_and_its_costs_stay(self, bench):
        ids = [bench.ids["team"]]
        first = await bench.submit(
            new(ids, 30, key="a", job="j"), new(ids, 80, key="b", job="j"), new(ids, key="c")
        )
        await bench.settle(post(first.claimed[0], 30), slots=None)

        await bench.store.forget("j", bench.now_ms)
        again = await bench.submit(
            new(ids, 30, key="a", body="new", job="j"), new(ids, key="c"), slots=None
        )

        assert [each.is_known for each in again.submitted] == [False, True]
        assert (await bench.balance())[0] == 30
        assert (await bench.store.counts()).cancelled == 1
        assert await bench.is_sound()

    async def test_outcomes_are_kept_until_they_are_delivered(self, bench):
        keys = [new(key=key, job="j") for key in ("a", "b", "c")]
        first = await bench.submit(*keys, new(job="j"))
        await bench.settle(*[post(claimed, 1) for claimed in first.claimed])
        await bench.store.delivered([first.submitted[0].id])

        left = [each.key async for each in bench.store.finished("j")]
        every = [each.key async for each in bench.store.finished("j", undelivered=False)]

        assert (left, every) == (["b", "c"], ["a", "b", "c"])
        assert [f.key for f in await bench.store.outcomes([first.submitted[1].id, 10_000])] == ["b"]

    async def test_what_is_known_of_keys_can_be_looked_up_without_submitting_them(self, bench):
        odd = self.odd_key
        keys = [new([bench.ids["team"]], 90, key=key, job="j") for key in ("a", odd, "waits")]
        first = await bench.submit(*keys, new(key="other", job="k"), slots=2)
        await bench.settle(post(first.claimed[0], 1))

        found = await bench.store.known("j", ["a", odd, "waits", "other", "never"])
        nothing = await bench.store.known("no such job", ["a"])

        assert {key: each.state.is_final for key, each in found.items()} == {
            "a": True, odd: False, "waits": False,
        }  # fmt: skip
        assert nothing == {}
        for each, known in zip(keys, found.values(), strict=True):
            assert known.error is None
            assert not known.is_conflict(each.digest)
            assert known.is_conflict(f"{each.digest}x")

    async def test_the_queue_shows_who_waits_and_why(self, bench):
        ids = [bench.ids["team"]]
        await bench.submit(new(ids, 90, key="runs"), new(ids, 20, key="waits"), new([], 1), slots=1)
        await bench.turn(1)
        bench.now_ms += 250

        parked = await bench.store.queue([PARKED], bench.now_ms)
        everything = await bench.store.queue([PARKED, QUEUED, RUNNING], bench.now_ms)

        assert [(row.key, row.state, row.parked_ms) for row in parked] == [("waits", PARKED, 250)]
        assert parked[0].shortfall.missing == 10
        assert [row.state for row in everything] == [RUNNING, PARKED, RUNNING]
        assert len(await bench.store.queue([RUNNING], bench.now_ms, limit=1)) == 1
        last = everything[1].id
        assert len(await bench.store.queue([RUNNING], bench.now_ms, after_id=last)) == 1

    async def test_spending_adds_up_by_model_job_and_budget(self, bench):
        ids = [bench.ids["team"]]
        result = await bench.submit(new(ids, 30, job="j"), new(ids, 30), new([], 5, job="j"))
        one, two, _ = result.claimed
        await bench.settle(post(one, 20), end(two, Outcome.SUSPEND, FAILED))

        rows = {by: await bench.store.spend(by) for by in ("model", "job", "budget")}

        assert [
            (r.name, r.posted_nusd, r.reserved_nusd, r.suspense_nusd) for r in rows["model"]
        ] == [("m", 20, 35, 30)]
        assert {(r.name, r.posted_nusd, r.reserved_nusd) for r in rows["job"]} == {
            ("j", 20, 5), ("", 0, 30),
        }  # fmt: skip
        assert [(r.name, r.attempts, r.tokens) for r in rows["budget"]] == [("team", 2, 3)]
        assert await bench.store.spend("model", T0 + DAY_MS) == []

    async def test_how_things_stand_is_told_by_priority_and_reason(self, bench):
        ids = [bench.ids["team"]]
        first = await bench.submit(
            new(ids, 60, priority=0), new(ids, 60, job="j"), new(ids, 70), new([], 5, job="j")
        )
        bench.now_ms += 5_000
        _, free = first.claimed
        later = bench.now_ms + 60_000
        await bench.settle(end(free, Outcome.VOID, QUEUED, not_before_ms=later))

        stood = await bench.store.standing(bench.now_ms)

        told = [(x.state, x.priority, x.reason, x.budget, x.requests) for x in stood]
        assert told == [
            (RUNNING, 0, "", "", 1), (QUEUED, 10, "retry_later", "", 1),
            (PARKED, 10, "held_in_flight", "team", 2),
        ]  # fmt: skip
        assert {each.oldest_at_ms for each in stood} == {T0}
        parked = stood[-1]
        assert (parked.since_ms, parked.lack.missing) == (T0, 20)
        assert await bench.store.live_by_job() == {"": 2, "j": 2}

    async def test_when_nothing_lives_nothing_stands(self, bench):
        result = await bench.submit(new([bench.ids["team"]], 30))
        await bench.settle(post(result.claimed[0], 20))

        assert await bench.store.standing(bench.now_ms) == []
        assert await bench.store.live_by_job() == {}

    async def test_how_spending_went_is_told_by_quarters_of_an_hour(self, bench):
        await bench.define(Budget("other", "$1"))
        team, other = bench.ids["team"], bench.ids["other"]
        result = await bench.submit(new([team], 30), new([team, other], 30), new([team], 30))
        one, two, three = result.claimed
        await bench.settle(post(one, 20), end(three, Outcome.SUSPEND, FAILED))
        bench.now_ms += QUARTER_MS
        later = (await bench.submit(new([team], 9))).claimed[0]
        await bench.settle(post(two, 25), post(later, 4))  # in the quarter in which it began
        await bench.store.resolve([replace(post(three, 7), is_assumed=True)], bench.now_ms)

        found = await bench.store.course([team, other], T0)

        quarter_ms = T0 - T0 % QUARTER_MS
        assert [(row.budget_id, row.quarter_ms, row.nusd, row.requests) for row in found] == [
            (team, quarter_ms, 52, 3), (team, quarter_ms + QUARTER_MS, 4, 1), (other, quarter_ms, 25, 1),
        ]  # fmt: skip
        assert await bench.store.course([other], T0 + QUARTER_MS) == []
        assert await bench.store.course([], T0) == []

    async def test_what_was_spent_is_told_by_tags(self, bench):
        ids = [bench.ids["team"]]
        ann, bob = {"user": "ann", "page": "home"}, {"user": "bob"}
        result = await bench.submit(
            new(ids, 30, tags=ann), new(ids, 30, tags=bob), new(ids, 30), new(ids, 9, tags=ann)
        )
        one, two, three, four = result.claimed
        store = bench.store
        held = [
            ("page=home", 2, 0, 39, 0, 0),
            ("user=ann", 2, 0, 39, 0, 0),
            ("user=bob", 1, 0, 30, 0, 0),
        ]
        assert await spent_by(store, "tag") == held

        bench.now_ms += QUARTER_MS
        await bench.settle(post(one, 20), end(two, Outcome.SUSPEND, FAILED), post(three, 25))
        await bench.settle(end(four, Outcome.VOID, FAILED))
        (late,) = (await bench.submit(new(ids, 5, tags=bob))).claimed
        await bench.settle(post(late, 4), post(one, 20))  # said twice

        assert await spent_by(store, "tag:user") == [
            ("ann", 1, 20, 0, 0, 3),
            ("bob", 2, 4, 30, 30, 3),
        ]
        assert await spent_by(store, "tag:page") == [("home", 1, 20, 0, 0, 3)]
        assert await spent_by(store, "tag:none") == []
        assert await spent_by(store, "tag:user", T0 + QUARTER_MS) == [("bob", 1, 4, 0, 0, 3)]
        for by in ("colour", "tags", ""):
            with pytest.raises(
                ConfigError, match="is not one of model, job, budget, tag, tag:NAME"
            ):
                await store.spend(by)

    async def test_an_end_that_is_corrected_is_corrected_under_its_tags(self, bench):
        request = new([bench.ids["team"]], 30, key="k", tags={"user": "ann"})
        (claimed,) = (await bench.submit(request)).claimed
        await bench.settle(end(claimed, Outcome.SUSPEND, FAILED))
        await bench.store.resolve([replace(post(claimed, 30), is_assumed=True)], bench.now_ms)
        again = new([bench.ids["team"]], 30, key="k", tags={"user": "bob"}, retry_failed=True)
        (other,) = (await bench.submit(again)).claimed  # its attempt is another user's
        assert await spent_by(bench.store, "tag") == [
            ("user=ann", 1, 30, 0, 0, 3),
            ("user=bob", 1, 0, 30, 0, 0),
        ]

        await bench.settle(post(claimed, 12), post(other, 5))
        assert await spent_by(bench.store, "tag") == [
            ("user=ann", 1, 12, 0, 0, 3),
            ("user=bob", 1, 5, 0, 0, 3),
        ]
        await bench.submit(new())  # the newest attempt stays
        assert await bench.store.prune(bench.now_ms + 1, bench.now_ms + 1, undelivered=True)
        assert await spent_by(bench.store, "tag:user") == [
            ("ann", 1, 12, 0, 0, 3),
            ("bob", 1, 5, 0, 0, 3),
        ]

    async def test_of_many_values_of_a_tag_the_last_are_summed_together(self, bench, monkeypatch):
        monkeypatch.setattr(tagged, "MOST_VALUES", 2)
        monkeypatch.setattr(tagged, "MOST_TAGS", 2)

        async def spend(*tags):
            result = await bench.submit(*[new((), 30, tags=each) for each in tags])
            await bench.settle(*[post(each, 1) for each in result.claimed])

        await spend({"user": "zoe"}, {"user": "ann"})
        await spend({"user": "bob"}, {"user": "eve", "page": 7})
        await spend({"user": "zoe"}, {"user": "bob"}, {"third": "x"})

        told = {row.name: (row.attempts, row.posted_nusd) for row in await bench.store.spend("tag")}
        assert told == {
            "user=zoe": (2, 2),
            "user=ann": (1, 1),
            "user=(other)": (3, 3),
            "page=7": (1, 1),
        }
        bench.now_ms += QUARTER_MS
        await spend({"user": "bob"})
        assert ("bob", 1, 1, 0, 0, 3) in await spent_by(bench.store, "tag:user")

    async def test_any_text_may_be_a_tag(self, bench):
        tags = {"a\0b": "\0", "long": "v" * 5_000, "half \ud800": "\ud83d", "": "", "ünï": "日本"}
        (claimed,) = (await bench.submit(new((), 30, tags=tags))).claimed
        await bench.settle(post(claimed, 1))

        names = {row.name for row in await bench.store.spend("tag")}
        assert names == {
            "a\\x00b=\\x00", f"long={'v' * 120}", "half \\ud800=\\ud83d", "=", "ünï=日本",
        }  # fmt: skip

    async def test_how_long_answered_attempts_took_is_counted_once(self, bench):
        ids = [bench.ids["team"]]
        result = await bench.submit(new(ids, 30), new(ids, 30), new(ids, 30))
        one, two, three = result.claimed
        bench.now_ms += 1_000
        await bench.settle(post(one, 20))
        bench.now_ms += 20
        await bench.settle(post(two, 5), end(three, Outcome.SUSPEND, FAILED))
        await bench.settle(post(two, 5))  # said twice
        await bench.settle(post(three, 9))  # its outcome was unknown, and so is how long it took

        (row,) = await bench.store.durations(T0)

        quarter_ms = bench.now_ms - bench.now_ms % QUARTER_MS
        assert row == (quarter_ms, "m", bucket_of(1_000), 2, 25, 60)
        assert await bench.store.durations(T0 + 2 * QUARTER_MS) == []

    async def test_what_nobody_knows_is_summed(self, bench):
        assert await bench.store.unknown_sum() == (0, 0, 0)
        result = await bench.submit(new([], 30), new([], 12), new([], 5))
        one, two, three = result.claimed
        bench.now_ms += 1_000
        await bench.settle(end(one, Outcome.SUSPEND, FAILED))
        bench.now_ms += 1_000
        await bench.settle(end(two, Outcome.SUSPEND, FAILED), post(three, 5))

        assert await bench.store.unknown_sum() == (2, 42, T0 + 1_000)

    async def test_news_is_told_once_and_by_one_at_a_time(self, bench):
        store, news = bench.store, [News("ops", "80 %", "{}"), News("mail", "80 %", "{}")]
        await store.announce(news, T0)
        await store.announce([*news, News("ops", "95 %", '{"n": 2}')], T0 + 1)

        taken = await store.take_news({"ops"}, T0 + 1, lease_ms=1_000)
        assert [(x.topic, x.event, x.tries) for x in taken] == [
            ("80 %", "{}", 1), ("95 %", '{"n": 2}', 1),
        ]  # fmt: skip
        assert await store.take_news({"ops"}, T0 + 2, lease_ms=1_000) == []
        await store.told_news(taken[0].id, T0 + 2, None)
        await store.told_news(taken[1].id, T0 + 2, T0 + 10)

        (again,) = await store.take_news({"ops"}, T0 + 10, lease_ms=1_000)
        assert (again.topic, again.tries, again.made_at_ms) == ("95 %", 2, T0 + 1)
        await store.told_news(again.id, T0 + 11, None)
        await store.announce(news, T0 + 12)
        assert await store.take_news({"ops"}, T0 + 10**7, lease_ms=1_000) == []
        assert len(await store.take_news({"mail"}, T0 + 10**7, lease_ms=1_000)) == 1

    async def test_news_that_was_taken_by_who_died_is_anybodys_again(self, bench):
        await bench.store.announce([News("ops", "80 %", "{}")], T0)
        assert await bench.store.take_news({"ops"}, T0, lease_ms=1_000)

        assert not await bench.store.take_news({"ops"}, T0 + 999, lease_ms=1_000)
        (again,) = await bench.store.take_news({"ops"}, T0 + 1_000, lease_ms=1_000)
        assert again.tries == 2

    async def test_what_was_armed_is_fired_by_one(self, bench):
        store = bench.store
        await store.arm(["job:a", "job:b"], T0)
        await store.arm(["job:a"], T0 + 1)
        assert await store.armed() == {"job:a", "job:b"}
        assert await store.take_news({"ops", ""}, T0 + 1, lease_ms=1_000) == []

        fired = [await store.fire("job:a", [News("ops", "done 1", "{}")], T0 + 2) for _ in range(2)]

        assert fired == [True, False]
        assert await store.armed() == {"job:b"}
        assert len(await store.take_news({"ops"}, T0 + 2, lease_ms=1_000)) == 1

    async def test_own_prices_are_kept(self, bench):
        await bench.store.set_price("mine", "1/2")
        await bench.store.set_price("other", "3/4")
        await bench.store.set_price("other", None)

        assert await bench.store.prices() == {"mine": "1/2"}

    async def test_notes_are_kept_by_kind_and_name(self, bench):
        store = bench.store
        assert await store.note("tokens", "ann", '{"a": 1}')
        assert await store.note("tokens", "b\u00e9a \x7f", "half \ud800")
        assert await store.note("hooks", "ann", "other")
        assert not await store.note("tokens", "ann", '{"a": 1}')  # as it was
        assert not await store.note("tokens", "ann", "new", only_new=True)
        assert await store.note("tokens", "cid", "new", only_new=True)
        assert await store.note("tokens", "cid", "newer")

        assert await store.notes("tokens") == {
            "ann": '{"a": 1}', "b\u00e9a \x7f": "half \\ud800", "cid": "newer",
        }  # fmt: skip
        assert await store.note("tokens", "ann", None)
        assert not await store.note("tokens", "ann", None)
        assert list(await store.notes("tokens")) == ["b\u00e9a \x7f", "cid"]
        assert await store.notes("hooks") == {"ann": "other"}
        assert await store.notes("none") == {}

    async def test_papers_are_kept_by_owner_and_changed_by_who_knows_them(self, bench):
        store = bench.store
        first = Paper("batch", "b1", "ann", "half \ud800", 5, True)
        assert await store.add_paper(first)
        assert not await store.add_paper(first._replace(text="other", owner="bob"))
        assert await store.add_paper(Paper("batch", "b2", "bob", "{}", 6, False))
        assert await store.add_paper(Paper("file", "b1", "ann", "{}", 7, True))
        found = await store.paper("batch", "b1")
        assert found == first._replace(text="half \\ud800")
        assert await store.paper("batch", "none") is None

        assert await store.change_paper(found, '{"n": 1}', True)
        assert not await store.change_paper(found, '{"n": 2}', True)  # somebody else did
        found = await store.paper("batch", "b1")
        assert found.text == '{"n": 1}'
        assert await store.open_papers("batch") == [found]
        assert await store.change_paper(found, '{"n": 1}', False)
        assert not await store.change_paper(found, '{"n": 3}', False)
        assert await store.open_papers("batch") == []

        assert await store.remove_paper("batch", "b1")
        assert not await store.remove_paper("batch", "b1")
        assert (await store.paper("file", "b1")).made_at_ms == 7

    async def test_papers_are_listed_a_page_at_a_time(self, bench):
        store = bench.store
        made = [("c", 1), ("a", 2), ("d", 2), ("b", 3)]
        for name, at_ms in made:
            assert await store.add_paper(Paper("batch", name, "ann", "{}", at_ms))
            await store.add_paper(Paper("batch", f"{name}-bobs", "bob", "{}", at_ms))

        async def names(**options):
            return [each.name for each in await store.papers("batch", "ann", **options)]

        assert await names(limit=10) == ["b", "d", "a", "c"]
        assert await names(limit=10, newest_first=False) == ["c", "a", "d", "b"]
        assert await names(limit=2) == ["b", "d"]
        assert await names(limit=2, after="d") == ["a", "c"]
        assert await names(limit=1, after="a", newest_first=False) == ["d"]
        assert await names(limit=2, after="none") == []

    async def test_pages_are_written_over_and_go_with_their_paper(self, bench):
        store = bench.store
        for number in (2, 0, 1):
            await store.write_page("file", "f", number, f"page {number}\n")
        await store.write_page("file", "f", 1, "été\r\n")
        await store.write_page("file", "g", 0, "other")

        assert list(await store.pages("file", "f", limit=2)) == [(0, "page 0\n"), (1, "été\r\n")]
        assert list(await store.pages("file", "f", first=2, limit=9)) == [(2, "page 2\n")]
        assert list(await store.pages("file", "f", first=3)) == []
        await store.add_paper(Paper("file", "f", "ann", "{}", 1))
        await store.remove_paper("file", "f")
        assert list(await store.pages("file", "f", limit=9)) == []
        assert list(await store.pages("file", "g")) == [(0, "other")]

    async def test_thresholds_are_told_once(self, bench):
        first = await bench.submit(*[new([bench.ids["team"]], 30) for _ in range(3)])

        told = [(await bench.settle(post(each, 27))).crossings for each in first.claimed]

        assert [[c.percent for c in crossings] for crossings in told] == [[], [50], [80]]

    async def test_a_turn_with_nothing_to_do_says_nothing(self, bench):
        result = await bench.turn()

        assert replace(result, lease_ms=None) == TurnResult()
