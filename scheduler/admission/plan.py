"""Whom to admit, whom to park and why, when to look again: one pure decision.

A `Planner` is given lanes with their waiting requests in order, the accounts they draw
on and the free places at each provider, and finds what to start. It reads no
clock and awaits nothing, so that the same decision is made in every store, inside
the transaction that writes it.

Looking. A turn costs what it has places to give, however many lanes are open. The book of lanes
(`stores.lanes.Lanes.batch`) gives the next ones worth a look, most urgent and oldest heads first,
and tells what comes first of those it has not given (`Planner.beyond`); whoever comes later than
these waits until they have been looked at. So the planner decides the same as if it saw all lanes.
Only where `MOST_IN_VAIN` lanes were looked at of which none had anything to start it does not look
further: they are shut, the next turn goes on with the others.

Order. Requests go by priority, then age. One admission in `AGING` goes to the
oldest request of a less urgent priority, so that no priority starves.

What does not fit. Let `need` be a request's ceiling, and of one account

    available = limit − posted − reserved        what could be promised now
    at best   = limit − posted − suspense        what could be, if all calls under way were free

    need ≤ available            admit, if that holds for every account of the request
    available < need ≤ at best  held in flight: it may start when calls settle
    at best < need ≤ limit      window spent: it starts at the reset, or after a raise
    limit < need                larger than the limit: only a raise helps

Who may pass. Unlike processors, money that was spent does not come back, so a
small request that passes a large one can delay it for good. Who waits for money
that comes back, from calls under way or bit by bit, is the account's *waiter*:
later or less urgent ones pass it at most `MAX_BYPASSED` times and for at most
`MAX_BYPASS_MS`, except where that cannot delay it; then the account drains until
the waiter fits. Passing delays nobody where, at the instant at which enough will
have left the window by itself, there is room for both (backfilling). So

    calls under way   any of them may bring what is lacking: bounded
    a rolling window  bounded, beyond what the bucket frees that lets the waiter go
    a calendar window who waits for the reset is passed freely, and is first after it
    a total           gives nothing back by itself: what was left when the waiter began
                      to wait is for whoever it suffices for; what a raise or a resolved
                      outcome adds is kept for the waiter

Who was first in line before somebody more urgent came keeps its place and its count.
Per lane the plan looks `DEPTH` requests past the first one that does not fit; smaller
ones further back wait until those in front move.

Not money. A gate (`gates`) that is shut for now holds back the lane's head, which waits for
its place without being parked, and whoever comes later to the same gate waits behind it. A
provider that is closed, for want of its own credit or because it does not answer, parks its
lanes; one request at a time tries whether it is open again: of all that wait for it the one that
`Closed.rank` puts first, which is the smallest where it is credit that lacks. What is known to be
small enough (`Closed.reach`) is held back by nothing.

Who is waited for. A request for which a call under way waits runs on that one's place (`nesting`):
it needs no free one, and lets no waiter go first, since those may wait for that very call.
Rates and money hold for it as for all.

A *lane* is the set of requests for one model that draw on the same budgets and provider with
the same priority. Parking shuts the lane with the shortfall of its first request, so
that a reset which frees a million requests is one step.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from scheduler.admission.closed import (
    Triers,
    leave_all_lines,
    let_some_try,
    line_up_larger,
    meet_closed,
    park_closed,
)
from scheduler.admission.lane import DEPTH, Candidate, LaneKey, LaneView, Plan, Scan, Verdict
from scheduler.admission.line import (
    MAX_BYPASS_MS,
    MAX_BYPASSED,
    describe,
    has_money,
    pass_over,
    reserve,
    worst,
)
from scheduler.admission.places import Places
from scheduler.limits import size_of

__all__ = [
    "AGING", "DEPTH", "MAX_BYPASSED", "MAX_BYPASS_MS", "MOST_IN_VAIN", "Candidate", "LaneKey",
    "LaneView", "Plan", "Planner", "Verdict", "plan",
]  # fmt: skip

AGING = 16
MOST_IN_VAIN = 128  # lanes looked at in one turn of which nothing goes


class Planner:
    """Decides whom to admit, batch by batch of lanes; reserves in the accounts it is shown.

    Args:
        slots: Free places per provider; missing means none, lent ones neither.
        now_ms: The instant all accounts were looked at.
        admitted_before: How many were admitted earlier; whose turn ageing is depends on it.

    Attributes:
        places: What is left of the places, and where somebody waits at a gate.
        beyond: By priority the oldest that may wait in a lane not looked at; empty: all were.
        is_cut: It is to look at no more lanes, though there are.
    """

    def __init__(self, slots: Mapping[str, int], now_ms: int, *, admitted_before: int = 0) -> None:
        self.places = Places(slots)
        self.now_ms = now_ms
        self.beyond: dict[int, int] = {}
        self.is_cut = False
        self._plan = Plan(self.places, now_ms)
        self._admitted_before = admitted_before
        self._scans: list[Scan] = []
        self._short: list[Scan] = []  # lanes of a provider that is short of credit
        self._waiting = 0  # lanes whose next request waits for a place
        self._triers: Triers = {}
        self._heads: list[tuple[int, int, int]] = []  # heap of (priority, request, lane)

    @property
    def found(self) -> int:
        """Lanes that were not looked at in vain: so many start, or wait for a place only."""
        return len(self._plan.admitted) + self._waiting

    def aged(self, most: int) -> int:
        """How many of the next `most` to be admitted are those that ageing takes."""
        so_far = self._admitted_before + len(self._plan.admitted)
        return (so_far + most) // AGING - so_far // AGING

    def look(self, views: Sequence[LaneView]) -> list[Verdict]:
        """Look at some lanes more; their verdicts hold once all are looked at (`finish`)."""
        scans = [Scan(view, Verdict()) for view in views]
        first, short = len(self._scans), []
        self._scans += scans
        self._plan.verdicts += [scan.verdict for scan in scans]
        for scan in scans:
            if scan.view.larger is not None:
                short.append(scan)
                line_up_larger(scan, self.now_ms, self._triers)
        if short:
            self._short += short
            let_some_try(self._triers, self._plan)
        for position, scan in enumerate(scans, first):
            self._go_on(position, scan)
        self._decide()
        return [scan.verdict for scan in scans]

    def finish(self) -> Plan:
        """What was decided; all lanes worth a look have been looked at."""
        plan = self._plan
        self.beyond = {}
        self._decide()
        for scan in self._short:
            if not scan.has_lined_up:  # those that were passed over just now
                line_up_larger(scan, self.now_ms, self._triers)
        let_some_try(self._triers, plan)
        for scan in self._short:
            if scan.waits_for_place:
                scan.verdict.clear()
            elif scan.view.closed is not None:
                park_closed(scan, scan.view.closed, None, self.now_ms)
            leave_all_lines(scan, plan)
        # Whoever looked in vain has something to wait for, or the next turn would be the same.
        is_any_new = bool(plan.admitted) or any(each.shortfall for each in plan.verdicts)
        plan.is_cut = self.is_cut and is_any_new
        return plan

    def _go_on(self, position: int, scan: Scan) -> None:
        """Put a lane where its next request belongs in the order."""
        if scan.advance():
            heapq.heappush(self._heads, (scan.view.key.priority, scan.head.id, position))

    def _decide(self) -> None:
        """Go through those who wait, as far as nobody in a lane not looked at comes before them."""
        admitted = self._plan.admitted
        while self._heads:
            position = self._next((self._admitted_before + len(admitted)) % AGING == AGING - 1)
            if position is None:
                return
            scan = self._scans[position]
            if self._consider(scan):
                self._go_on(position, scan)

    def _next(self, is_of_aged: bool) -> int | None:
        """Take the lane whose turn it is; None: it may be one that was not looked at."""
        heads, beyond = self._heads, self.beyond
        top = heads[0][0]
        if beyond and min(beyond.items()) < heads[0][:2]:
            return None
        if not is_of_aged or self._waits(heads[0]):
            return heapq.heappop(heads)[2]
        later = [head for head in heads if head[0] > top]
        aged = min(later, key=_age, default=None)
        unseen = [oldest for priority, oldest in beyond.items() if priority > top]
        if unseen and (aged is None or min(unseen) < aged[1]):
            return None
        if aged is None:
            return heapq.heappop(heads)[2]
        heads.remove(aged)
        heapq.heapify(heads)
        return aged[2]

    def _waits(self, head: tuple[int, int, int]) -> bool:
        """Whether a head of a lane has to wait for a place, so that it is nobody's turn."""
        view = self._scans[head[2]].view
        key = view.key
        if not key.may_wait or key.is_lent or view.closed is not None:
            return False
        return not self.places.has_one(key) or self.places.is_held(key.provider, key.model)

    def _consider(self, scan: Scan) -> bool:
        """Admit, refuse or pass over the head of a lane; False: leave the lane for this plan."""
        plan, places, now_ms = self._plan, self.places, self.now_ms
        key, candidate, gates = scan.view.key, scan.head, scan.view.gates
        accounts, needs = scan.view.accounts, candidate.needs
        has_place = places.has_one(key)
        if gates:
            closed = gates[0].closed
            if closed is not None and size_of(*needs[:2]) > closed.reach(key.model):
                return meet_closed(scan, closed, plan, self._triers)
            has_place = has_place and not places.hold_back(gates, key, candidate, now_ms)
        if not has_place and key.may_wait:
            scan.stays()
            scan.verdict.clear()  # it waits for a place, not for money
            scan.waits_for_place = True
            self._waiting += 1
            return False
        if has_money(key, candidate, accounts, now_ms):
            if has_place:
                reserve(key, candidate, accounts, plan)
                for gate in gates:
                    gate.let(candidate.id, candidate.tokens, now_ms)
                places.take(key)
                plan.admitted.append(candidate)
            else:
                scan.stays()
            return True
        if key.may_wait:
            pass_over(scan, plan)
        else:
            scan.stays()
            lack, account = worst(key, candidate, accounts, now_ms)
            plan.refused.append((candidate, describe(account, lack, now_ms)))
        return True


def _age(head: tuple[int, int, int]) -> int:
    return head[1]


def plan(
    lanes: Sequence[LaneView],
    slots: Mapping[str, int],
    now_ms: int,
    *,
    admitted_before: int = 0,
) -> Plan:
    """Decide about these lanes, as `Planner` does, at once; their accounts are changed."""
    planner = Planner(slots, now_ms, admitted_before=admitted_before)
    planner.look(lanes)
    return planner.finish()
