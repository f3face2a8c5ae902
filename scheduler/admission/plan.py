"""Whom to admit, whom to park and why, when to look again: one pure decision.

`plan` is given lanes with their waiting requests in order, the accounts they draw
on and the free places at each provider, and returns what to start. It reads no
clock and awaits nothing, so that the same decision is made in every store, inside
the transaction that writes it.

Order. Requests go by priority; within one, at a provider, by their tenants' turns, where tenants
share (`fairness`); of one tenant those with deadlines go first, the earliest before all; then age
decides. Between providers it is how far the tenant is ahead of its provider's clock, then deadline
and age. One admission in `AGING` goes to the oldest of those who are first in a less urgent
priority, or without a deadline in the same one, so that nobody of these starves.

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

Who was first in line before somebody more urgent came, or before it had to wait for another budget
first, keeps its place and its count. Who waits for a raise, or for a budget that is paused, is in
no line, and joins it anew after that. Per lane the plan looks `DEPTH` requests past the first one
that does not fit; smaller ones further back wait until those in front move.

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
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
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
    Level,
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
from scheduler.ledger.account import FAR
from scheduler.limits import size_of

__all__ = [
    "AGING", "DEPTH", "MAX_BYPASSED", "MAX_BYPASS_MS", "MOST_LOOKS", "NEVER", "Candidate",
    "LaneKey", "LaneView", "Lineup", "Plan", "Planner", "Verdict", "plan",
]  # fmt: skip

AGING = 16
Rank = tuple[int, int, int]  # within a level at a provider: its tenant's start, deadline, id
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

    A rank may be told too low, never too high.
    """

    def always(self) -> Sequence[LaneView]:
        """Those to begin with, whatever places there are."""

    def providers(self) -> Sequence[str]:
        """Where lanes wait for a place."""

    def top(self, provider: str) -> tuple[int, Rank] | None:
        """Priority and rank of the first of a provider's lanes."""

    def lead(self, provider: str, priority: int, start: int) -> int:
        """How far a start is ahead of the clock there."""

    def below(self, level: Level) -> Iterator[tuple[str, Level, Rank]]:
        """Of each provider, the first of each level that is less urgent."""

    def pull(self, provider: str, level: Level) -> Sequence[LaneView]:
        """The next ones of a level at a provider, the first of them first."""

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

    def providers(self) -> Sequence[str]:
        return ()

    def top(self, provider: str) -> None:
        return None

    def lead(self, provider: str, priority: int, start: int) -> int:
        return 0

    def below(self, level: Level) -> Iterator[tuple[str, Level, Rank]]:
        return iter(())

    def pull(self, provider: str, level: Level) -> Sequence[LaneView]:
        return ()

    def leave(self, provider: str, model: str | None = None) -> None:
        pass

    def end(self) -> None:
        pass


_Head = tuple[int, int, int, int, int]  # priority, start, deadline, id, and which scan it is


# Who is first at a provider: its priority, how far its tenant is ahead of the clock there, deadline,
# id, the provider; and the level of one that was not looked at yet. None: it was.
_First = tuple[int, int, int, int, str, Level | None]


def _id_of(first: tuple[tuple[str, Level], tuple[Rank, _Head | None]]) -> int:
    return first[1][0][2]


class Planner:
    """Decides by looking at lanes one after the other, that whose turn it is first.

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
        self._heads: dict[str, list[_Head]] = {}  # by provider
        self._firsts: dict[str, _First] = {}  # who is the first there
        self._moved: set[str] = set()  # providers at which that may have changed
        self._waiting = 0  # lanes whose turn has not come yet
        self._was_cut = False
        self._only = ""  # the one provider at which anybody waits; empty: there are others
        self._last: list[_Head] | None = None  # where all others wait, once all were looked at
        self._result = Plan()

    def decide(self) -> Plan:
        """Go through the lineup."""
        result = self._result
        self._look_at(self._lineup.always())
        providers = self._lineup.providers()
        self._moved.update(providers)
        if len(self._moved) == 1:
            self._only = next(iter(self._moved))
        while (found := self._next()) is not None:
            scan, is_in_turn = found
            while self._consider(scan, is_in_turn):
                if self._last or self._last is None or scan.view.tenant is not None:
                    self._advance(scan)
                    break
                if not scan.advance():  # nobody waits but in this lane: the next one of it
                    break
        self._decide_who_tries()
        result.verdicts = [scan.verdict for scan in self._scans]
        result.rests = [scan.rest for scan in self._scans]
        if len(self._scans) > MOST_LOOKS:
            result.is_cut = self._is_cut and any(each.shortfall for each in result.verdicts)
        self._lineup.end()
        return result

    def _consider(self, scan: Scan, is_in_turn: bool) -> bool:
        """Decide about the head of a lane; False: leave the lane for this plan."""
        result = self._result
        admitted = len(result.admitted)
        goes_on = _consider(scan, self._free, self._now_ms, result, is_in_turn)
        if len(result.admitted) > admitted:
            self._leave_if_full(scan)
        elif scan.left is None:
            scan.left = scan.view.key.head(scan.head)
        if not goes_on and scan.waits_for_place:
            self._leave_those_like(scan)
        return goes_on

    @property
    def _is_cut(self) -> bool:
        looked = len(self._scans) - self._waiting
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
            key = scan.view.key
            provider, (due_ms, id_) = key.provider, key.head(scan.head)
            heads = self._heads.get(provider)
            if heads is None:
                heads = self._heads[provider] = []
            start = 0 if scan.view.tenant is None else scan.start
            heapq.heappush(heads, (key.priority, start, due_ms, id_, scan.position))
            self._waiting += 1
            self._moved.add(provider)

    def _next(self) -> tuple[Scan, bool] | None:
        """The lane whose turn it is; False: it goes before its turn, being old."""
        heads = self._last
        if heads is None:
            first = self._first()
            while first is not None and first[5] is not None:
                self._pull(first[4], first[5])
                first = self._first()
            if first is None:
                return None
            heads = self._heads[first[4]]
            if not self._only and len(self._heads) == 1 and not self._lineup.providers():
                self._last = heads
        elif self._first_seen(heads) is None:
            return None
        scan = self._scans[heads[0][4]]
        is_for_aged = (self._before + len(self._result.admitted)) % AGING == AGING - 1
        if is_for_aged and has_place(scan.view.key, self._free):  # else nobody goes in its stead
            aged = self._take_aged(scan.view.key.level)
            if aged is not None:
                return aged, False
        heapq.heappop(heads)
        self._waiting -= 1
        self._moved.add(scan.view.key.provider)
        return scan, True

    def _first(self) -> _First | None:
        """Of all providers the one whose first goes next."""
        if len(self._scans) > MOST_LOOKS and self._is_cut is not self._was_cut:
            self._was_cut = not self._was_cut
            self._moved.update(self._lineup.providers())
        if self._only:
            return self._first_of(self._only)
        for provider in self._moved:
            found = self._first_of(provider)
            if found is not None:
                self._firsts[provider] = found
            else:
                self._firsts.pop(provider, None)
        self._moved.clear()
        if len(self._firsts) == 1:
            return next(iter(self._firsts.values()))
        return min(self._firsts.values(), default=None)

    def _first_of(self, provider: str) -> _First | None:
        """Who is the first at a provider, or that it is somebody who was not looked at yet."""
        heads = self._heads.get(provider)
        seen = self._first_seen(heads) if heads else None
        top = None if self._was_cut else self._lineup.top(provider)
        is_alone, lead = bool(self._only), 0
        if top is not None:
            priority, (start, due_ms, id_) = top
            if seen is None or (priority, start, due_ms, id_) < seen:
                if not is_alone:
                    lead = self._lineup.lead(provider, priority, start)
                return priority, lead, due_ms, id_, provider, (priority, due_ms == FAR)
        elif is_alone and not self._was_cut:
            self._last = heads  # nobody else is to come
        if seen is None:
            return None
        tenant = None if is_alone else self._scans[seen[4]].view.tenant
        if tenant is not None:
            lead = seen[1] - tenant.clock.now
        return seen[0], lead, seen[2], seen[3], provider, None

    def _first_seen(self, heads: list[_Head]) -> _Head | None:
        """The first of those that were looked at."""
        while heads:
            head = heads[0]
            scan = self._scans[head[4]]
            if scan.view.tenant is None or (start := scan.start) == head[1]:
                return head
            heapq.heapreplace(heads, (head[0], start, *head[2:]))  # it has gone on since
        return None

    def _pull(self, provider: str, level: Level) -> None:
        self._look_at(self._lineup.pull(provider, level))
        self._moved.add(provider)

    def _take_aged(self, urgent: Level) -> Scan | None:
        """Remove and return the oldest of those who are first in a less urgent level."""
        while True:
            firsts: dict[tuple[str, Level], tuple[Rank, _Head | None]] = {}
            for provider, heads in self._heads.items():
                for head in heads:
                    level = head[0], head[2] == FAR
                    if level > urgent:
                        rank = (self._scans[head[-1]].start, *head[2:4])
                        known = firsts.get((provider, level))
                        if known is None or rank < known[0]:
                            firsts[provider, level] = rank, head
            for provider, level, rank in () if self._was_cut else self._lineup.below(urgent):
                known = firsts.get((provider, level))
                if known is None or rank < known[0]:
                    firsts[provider, level] = rank, None
            if not firsts:
                return None
            (provider, level), (_, oldest) = min(firsts.items(), key=_id_of)
            if oldest is not None:
                heads = self._heads[provider]
                heads.remove(oldest)
                heapq.heapify(heads)
                self._waiting -= 1
                self._moved.add(provider)
                return self._scans[oldest[4]]
            self._pull(provider, level)

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


def _consider(
    scan: Scan, free: MutableMapping[str, int], now_ms: int, result: Plan, is_in_turn: bool
) -> bool:
    """Admit, refuse or pass over the head of a lane; False: leave the lane for this plan."""
    key, candidate, gates = scan.view.key, scan.head, scan.view.gates
    has_slot = has_place(key, free)
    if gates:
        closed = gates[0].closed
        if closed is not None and size_of(*candidate.needs[:2]) > closed.reach(key.model):
            return meet_closed(scan, closed, now_ms, result)
        has_slot = has_slot and not result.holds_back(gates, candidate, now_ms, key.is_lent)
    if not has_slot and key.may_wait:
        scan.verdict.clear()  # it waits for a place, not for money
        scan.waits_for_place = True
        return False
    if has_money(scan, now_ms):
        if has_slot:
            admit(scan, now_ms, result, is_in_turn=is_in_turn)
            for gate in gates:
                gate.let(candidate.id, candidate.tokens, now_ms)
            free[key.provider] -= 1
            result.admitted.append(candidate)
        return True
    if key.may_wait:
        pass_over(scan, now_ms, result)
    else:
        lack, account = worst(scan, now_ms)
        result.refused.append((candidate, describe(account, lack, key.priority, now_ms)))
    return True
