"""Whom to admit, whom to park and why, when to look again: one pure decision.

`plan` is given lanes with their waiting requests in order, the accounts they draw
on and the free places at each provider, and returns what to start. It reads no
clock and awaits nothing, so that the same decision is made in every store, inside
the transaction that writes it.

Order. Requests go by priority, then age. One admission in `AGING` goes to the
oldest request of a less urgent priority, so that no priority starves.

What does not fit. Let `need` be a request's ceiling, and of one account

    available = limit − posted − reserved        what could be promised now
    at best   = limit − posted − suspense        what could be, if all calls under way were free

    need ≤ available            admit, if that holds for every account of the request
    available < need ≤ at best  held in flight: it may start when calls settle
    at best < need ≤ limit      window spent: it starts at the reset, or after a raise
    limit < need                larger than the limit: only a raise helps

Of an account that keeps a share for more urgent requests, what is kept from a request counts as part
of its need wherever that is compared with what there is (`keep`).

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

Who was first in line before somebody more urgent came keeps its place and its count. Who waits
for a raise, or for a budget that is paused, is in no line, and joins it anew after that.
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
from collections.abc import Mapping, MutableMapping, Sequence
from operator import itemgetter
from typing import Protocol

from scheduler.admission.closed import (
    leave_all_lines,
    let_some_try,
    line_up_larger,
    meet_closed,
    park_closed,
)
from scheduler.admission.lane import (
    DEPTH,
    NEVER,
    Candidate,
    LaneKey,
    LaneView,
    Plan,
    Scan,
    Verdict,
    has_place,
)
from scheduler.admission.line import (
    MAX_BYPASS_MS,
    MAX_BYPASSED,
    admit,
    describe,
    has_money,
    pass_over,
    worst,
)
from scheduler.limits import size_of

__all__ = [
    "AGING", "DEPTH", "MAX_BYPASSED", "MAX_BYPASS_MS", "MOST_LOOKS", "NEVER", "Candidate",
    "LaneKey", "LaneView", "Lineup", "Plan", "Planner", "Verdict", "plan",
]  # fmt: skip

AGING = 16
MOST_LOOKS = 256


def plan(
    lanes: Sequence[LaneView],
    slots: Mapping[str, int],
    now_ms: int,
    *,
    admitted_before: int = 0,
) -> Plan:
    """Decide whom to admit; reserves in the given accounts as it goes.

    Args:
        lanes: Open lanes with something waiting. Their accounts are changed.
        slots: Free places per provider; missing means none, lent ones neither.
        now_ms: The instant all accounts were looked at.
        admitted_before: How many were admitted earlier; whose turn ageing is depends on it.
    """
    return Planner(_Whole(lanes), slots, now_ms, admitted_before).decide()


class Lineup(Protocol):
    """Open lanes that a plan has not looked at yet.

    A head may be told too low, never too high.
    """

    def always(self) -> Sequence[LaneView]:
        """Those to begin with, whatever places there are."""

    def top(self, below: int | None = None) -> tuple[int, int] | None:
        """Priority and lowest head of the most urgent ones, or of the oldest below a priority."""

    def pull(self, priority: int) -> Sequence[LaneView]:
        """The next ones of a priority, the oldest first."""

    def leave(self, provider: str, model: str | None = None) -> None:
        """Nothing more goes to a provider, or to a model of it, in this plan."""

    def end(self) -> None:
        """It has been decided."""


class _Whole:
    """A lineup that shows everything at once."""

    def __init__(self, lanes: Sequence[LaneView]) -> None:
        self._lanes = lanes

    def always(self) -> Sequence[LaneView]:
        return self._lanes

    def top(self, below: int | None = None) -> None:
        return None

    def pull(self, priority: int) -> Sequence[LaneView]:
        return ()

    def leave(self, provider: str, model: str | None = None) -> None:
        pass

    def end(self) -> None:
        pass


class Planner:
    """Decides by looking at lanes one after the other, the most urgent and oldest head first.

    It asks for a lane when one that it has not seen might come before all that it has, so it looks
    at about as many as it admits; and at no more than `MOST_LOOKS` from which nobody goes: these
    are shut, and the next plan begins behind them.
    """

    def __init__(
        self, lineup: Lineup, slots: Mapping[str, int], now_ms: int, admitted_before: int
    ) -> None:
        self._lineup, self._now_ms, self._before = lineup, now_ms, admitted_before
        self._free = dict(slots)
        self._scans: list[Scan] = []
        self._heads: list[tuple[int, int, int]] = []
        self._result = Plan()
        self._has_all = False  # no lane is left that it has not seen

    def decide(self) -> Plan:
        """Go through the lineup."""
        result = self._result
        self._look_at(self._lineup.always())
        while (scan := self._next()) is not None:
            admitted = len(result.admitted)
            goes_on = _consider(scan, self._free, self._now_ms, result)
            if len(result.admitted) == admitted and scan.left_id is None:
                scan.left_id = scan.head.id
            if len(result.admitted) > admitted:
                self._leave_if_full(scan)
            if goes_on:
                self._advance(scan)
            elif scan.waits_for_place:
                self._leave_those_like(scan)
        self._decide_who_tries()
        result.verdicts = [scan.verdict for scan in self._scans]
        result.rests = [scan.rest_id for scan in self._scans]
        result.is_cut = self._is_cut and any(each.shortfall for each in result.verdicts)
        self._lineup.end()
        return result

    @property
    def _is_cut(self) -> bool:
        looked = len(self._scans) - len(self._heads)  # the others' turn has not come yet
        return looked - len(self._result.admitted) > MOST_LOOKS

    def _look_at(self, views: Sequence[LaneView]) -> None:
        """Take more lanes in; among them may be some that try whether their provider is open again."""
        scans = [Scan(view) for view in views]
        short = [scan for scan in scans if scan.view.larger is not None]
        for scan in short:
            line_up_larger(scan, self._now_ms, self._result)
        if short:
            let_some_try(self._free, self._now_ms, self._result)
        for scan in scans:
            scan.position = len(self._scans)
            self._scans.append(scan)
            self._advance(scan)

    def _advance(self, scan: Scan) -> None:
        if scan.advance():
            order = scan.view.key.priority, scan.head.id, scan.position
            heapq.heappush(self._heads, order)

    def _next(self) -> Scan | None:
        """The lane whose turn it is."""
        heads, lineup = self._heads, self._lineup
        while not (self._has_all or self._is_cut):
            top = lineup.top()
            if top is None:
                self._has_all = True
            elif heads and heads[0][:2] <= top:
                break
            else:
                self._look_at(lineup.pull(top[0]))
        if not heads:
            return None
        first = self._scans[heads[0][2]]
        is_for_aged = (self._before + len(self._result.admitted)) % AGING == AGING - 1
        if is_for_aged and has_place(first.view.key, self._free):  # else nobody goes in its stead
            return self._scans[self._take_aged()]
        heapq.heappop(heads)
        return first

    def _take_aged(self) -> int:
        """Remove and return the oldest lane of those that are less urgent than the first."""
        heads, urgent = self._heads, self._heads[0][0]
        while True:
            aged = min(
                (head for head in heads if head[0] > urgent), key=itemgetter(1), default=None
            )
            other = None if self._is_cut else self._lineup.top(urgent)
            if other is None or (aged is not None and aged[1] < other[1]):
                break
            self._look_at(self._lineup.pull(other[0]))
        if aged is None:
            return heapq.heappop(heads)[2]
        heads.remove(aged)
        heapq.heapify(heads)
        return aged[2]

    def _leave_if_full(self, scan: Scan) -> None:
        """Where the last place was given nobody else need be looked at; who is parked anyhow is."""
        provider = scan.view.key.provider
        if self._free.get(provider, 0) <= 0 and scan.view.closed is None:
            self._lineup.leave(provider)

    def _leave_those_like(self, scan: Scan) -> None:
        """Whoever comes later to the same provider or gate waits behind this one."""
        key, gates = scan.view.key, scan.view.gates
        if self._free.get(key.provider, 0) <= 0 or self._result.is_held(gates[:1]):
            self._lineup.leave(key.provider)
        elif self._result.is_held(gates):
            self._lineup.leave(key.provider, key.model)

    def _decide_who_tries(self) -> None:
        """Of what a provider that is closed has no credit for; all others of it are parked."""
        now_ms, result = self._now_ms, self._result
        short = [scan for scan in self._scans if scan.view.larger is not None]
        for scan in short:
            if not scan.has_lined_up:  # those that were passed over just now
                line_up_larger(scan, now_ms, result)
        let_some_try(self._free, now_ms, result)
        for scan in short:
            if scan.waits_for_place:
                scan.verdict.clear()
            elif scan.view.closed is not None:
                park_closed(scan, scan.view.closed, None, now_ms)
            leave_all_lines(scan, result)


def _consider(scan: Scan, free: MutableMapping[str, int], now_ms: int, result: Plan) -> bool:
    """Admit, refuse or pass over the head of a lane; False: leave the lane for this plan."""
    key, candidate, gates = scan.view.key, scan.head, scan.view.gates
    accounts, needs = scan.view.accounts, candidate.needs
    has_slot = has_place(key, free)
    if gates:
        closed = gates[0].closed
        if closed is not None and size_of(*needs[:2]) > closed.reach(key.model):
            return meet_closed(scan, closed, now_ms, result)
        has_slot = has_slot and not result.holds_back(gates, candidate, now_ms, key.is_lent)
    if not has_slot and key.may_wait:
        scan.verdict.clear()  # it waits for a place, not for money
        scan.waits_for_place = True
        return False
    if has_money(key, candidate, accounts, now_ms):
        if has_slot:
            admit(key, candidate, accounts, result)
            for gate in gates:
                gate.let(candidate.id, candidate.tokens, now_ms)
            free[key.provider] -= 1
            result.admitted.append(candidate)
        return True
    if key.may_wait:
        pass_over(scan, now_ms, result)
    else:
        lack, account = worst(key, candidate, accounts, now_ms)
        result.refused.append((candidate, describe(account, lack, key.priority, now_ms)))
    return True
