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
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scheduler.budget import UNLIMITED, Unit, WindowKind
from scheduler.ledger.account import NOT_YET, Account, Needs, Waiter
from scheduler.limits import MOST_TRIED, size_of
from scheduler.request import Tokens
from scheduler.shortfall import SEVERITY, ParkReason, Shortfall

if TYPE_CHECKING:
    from scheduler.limits import Closed, Metered, Rank

AGING = 16
MAX_BYPASSED = 32
MAX_BYPASS_MS = 30_000
DEPTH = 100
NEVER = math.inf
BEHIND_MS = 200  # how soon to look again at those that fit but must let a waiter go first


class LaneKey(NamedTuple):
    """What the requests of one lane have in common.

    `may_wait` False: refuse what does not fit instead of parking it. `is_lent`: a call under way
    waits for it, and lends it its place. `is_shared`: any process that serves the provider may
    send them.
    """

    provider: str
    budgets: tuple[int, ...]
    priority: int
    may_wait: bool = True
    model: str = ""
    is_lent: bool = False
    is_shared: bool = False


class Candidate(Protocol):
    """A waiting request, as far as admission is concerned."""

    @property
    def id(self) -> int: ...  # noqa: D102
    @property
    def needs(self) -> Needs: ...  # noqa: D102
    @property
    def tokens(self) -> Tokens: ...  # noqa: D102


@dataclass(slots=True)
class LaneView:
    """A lane as `plan` sees it: its accounts, looked at now, who waits, oldest first, its gates.

    Attributes:
        larger: Of a provider that is short of credit: those that need more than `Closed.reach`,
            smallest first. They are then not among the candidates. None: all are.
        size_by_id: With these: the size of who waits in the lane; None: it does not.
    """

    key: LaneKey
    accounts: Sequence[Account]
    candidates: Iterator[Candidate]
    gates: Sequence[Metered] = ()
    larger: Callable[[], Iterator[Candidate]] | None = None
    size_by_id: Callable[[int], int | None] | None = None

    @property
    def closed(self) -> Closed | None:
        """Why nothing goes to its provider but a probe; None: it is open."""
        return self.gates[0].closed if self.gates else None


@dataclass(slots=True)
class Verdict:
    """What the plan found for one lane.

    Attributes:
        shortfall: What the first request that does not fit lacks; None: the lane stays open.
        wakes: Account id → amount that must become available for another look.
        smallest: Account id → the smallest amount of those that wait for it.
        behind: Accounts in whose line somebody has to go first, or give up.
        beyond: Account id → the first for whom there was no place in line, by priority and id.
        held: Account id → most that a request hopes to get from calls under way; once
            so much has been spent that they cannot give it, it waits for something else.
        resumes_at_ms: The earliest reset that lets one of its requests go on.
        fits: The largest size (`gates.size_of`) that a closed provider lets go meanwhile.
    """

    shortfall: Shortfall | None = None
    wakes: dict[int, int] = field(default_factory=dict)
    smallest: dict[int, int] = field(default_factory=dict)
    behind: set[int] = field(default_factory=set)
    beyond: dict[int, tuple[int, int]] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    resumes_at_ms: int | None = None
    fits: int = -1

    def clear(self) -> None:
        """Nothing is lacking after all."""
        self.shortfall, self.resumes_at_ms, self.fits = None, None, -1
        self.wakes.clear()
        self.smallest.clear()
        self.behind.clear()
        self.beyond.clear()
        self.held.clear()


@dataclass(slots=True)
class Plan:
    """Whom to admit, in order, what to refuse, and a verdict for each lane given.

    Attributes:
        opens_at_ms: When the first gate opens that holds somebody back; `NEVER`: none, or
            only when calls under way end.
        moved: Accounts in whose line somebody gave up its place, which lets others go on.
    """

    admitted: list[Candidate] = field(default_factory=list)
    refused: list[tuple[Candidate, Shortfall]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    opens_at_ms: float = NEVER
    moved: set[int] = field(default_factory=set)
    _held: dict[int, float] = field(default_factory=dict)  # gate where somebody waits → until when
    _triers: dict[str, list[_Trier]] = field(default_factory=dict)  # who may probe, by provider

    @property
    def look_again_at_ms(self) -> int | None:
        """When a gate opens by itself; None: none does."""
        return None if self.opens_at_ms == NEVER else math.ceil(self.opens_at_ms)

    def holds_back(
        self, gates: Sequence[Metered], candidate: Candidate, now_ms: int, is_lent: bool = False
    ) -> bool:
        """Whether a gate is shut for the candidate, or for somebody before it.

        With a lent place it passes whoever waits for a place.
        """
        opens_at_ms = 0.0
        for gate in gates:
            held_until_ms = self._held.get(id(gate)) if self._held else None
            if held_until_ms is not None and not (is_lent and held_until_ms == NEVER):
                return True
            at_ms = gate.opens_at_ms(candidate.tokens, now_ms, is_lent)
            if at_ms > now_ms:
                self._held[id(gate)] = at_ms
                opens_at_ms = max(opens_at_ms, at_ms)
        if not opens_at_ms:
            return False
        self.opens_at_ms = min(self.opens_at_ms, opens_at_ms)
        return True


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
    result = Plan(verdicts=[Verdict() for _ in lanes])
    free = dict(slots)
    scans = [_Scan(view, verdict) for view, verdict in zip(lanes, result.verdicts, strict=True)]
    short = [scan for scan in scans if scan.view.larger is not None]
    for scan in short:
        _line_up_larger(scan, now_ms, result)
    _let_some_try(free, now_ms, result)
    heads = [(scan.view.key.priority, scan.head.id, position)
             for position, scan in enumerate(scans) if scan.advance()]  # fmt: skip
    heapq.heapify(heads)
    while heads:
        oldest_first = (admitted_before + len(result.admitted)) % AGING == AGING - 1
        position = _take(heads, oldest_first)
        scan = scans[position]
        if _consider(scan, free, now_ms, result) and scan.advance():
            heapq.heappush(heads, (scan.view.key.priority, scan.head.id, position))
    for scan in short:
        if not scan.has_lined_up:  # those that were passed over just now
            _line_up_larger(scan, now_ms, result)
    _let_some_try(free, now_ms, result)
    for scan in short:
        if scan.waits_for_place:
            scan.verdict.clear()
        elif scan.view.closed is not None:
            _park_closed(scan, scan.view.closed, None, now_ms)
        _leave_all_lines(scan, result)
    return result


class _Trier(NamedTuple):
    """Who may try whether its provider is open again."""

    rank: Rank
    scan: _Scan
    candidate: Candidate


class _Scan:
    """Where the plan is in one lane."""

    __slots__ = (
        "blocked",
        "has_lined_up",
        "head",
        "is_beyond",
        "verdict",
        "view",
        "waits_for_place",
    )

    def __init__(self, view: LaneView, verdict: Verdict) -> None:
        self.view, self.verdict, self.blocked = view, verdict, 0
        self.is_beyond = False  # there was no place in line for one: nor is there for later ones
        self.waits_for_place = self.has_lined_up = False
        self.head: Candidate

    def advance(self) -> bool:
        """Go to the next candidate; False at the end or when looked deep enough."""
        if self.blocked > DEPTH and not self.view.key.is_lent:
            return False
        head = next(self.view.candidates, None)
        if head is None:
            return False
        self.head = head
        return True


def _take(heads: list[tuple[int, int, int]], oldest_first: bool) -> int:
    """Remove and return the lane whose turn it is."""
    if oldest_first and heads[0][0] != max(heads)[0]:
        top = heads[0][0]
        aged = min((head for head in heads if head[0] > top), key=lambda head: head[1])
        heads.remove(aged)
        heapq.heapify(heads)
        return aged[2]
    return heapq.heappop(heads)[2]


def _consider(scan: _Scan, free: MutableMapping[str, int], now_ms: int, result: Plan) -> bool:
    """Admit, refuse or pass over the head of a lane; False: leave the lane for this plan."""
    key, candidate, gates = scan.view.key, scan.head, scan.view.gates
    accounts, needs = scan.view.accounts, candidate.needs
    has_slot = _has_place(key, free)
    if gates:
        closed = gates[0].closed
        if closed is not None and size_of(*needs[:2]) > closed.reach(key.model):
            return _meet_closed(scan, closed, now_ms, result)
        has_slot = has_slot and not result.holds_back(gates, candidate, now_ms, key.is_lent)
    if not has_slot and key.may_wait:
        scan.verdict.clear()  # it waits for a place, not for money
        scan.waits_for_place = True
        return False
    if _has_money(key, candidate, accounts, now_ms):
        if has_slot:
            _admit(key, candidate, accounts, result)
            for gate in gates:
                gate.let(candidate.id, candidate.tokens, now_ms)
            free[key.provider] -= 1
            result.admitted.append(candidate)
        return True
    if key.may_wait:
        _pass_over(scan, now_ms, result)
    else:
        lack, account = _worst(key, candidate, accounts, now_ms)
        result.refused.append((candidate, _describe(account, lack, now_ms)))
    return True


def _has_place(key: LaneKey, free: Mapping[str, int]) -> bool:
    return free.get(key.provider, 0) > 0 or (key.is_lent and key.provider in free)


def _has_money(
    key: LaneKey, candidate: Candidate, accounts: Sequence[Account], now_ms: int
) -> bool:
    for account in accounts:
        need = candidate.needs[account.index]
        if (
            (need > account.available and need > 0)  # what is free fits even after an overrun
            or account.paused
            or (account.line and _first_to_go(account, key, candidate, now_ms) is not None)
        ):
            return False
    return True


def _meet_closed(scan: _Scan, closed: Closed, now_ms: int, result: Plan) -> bool:
    """The provider is closed for the head of a lane; True: there may be others for whom it is not."""
    if closed.may_probe(now_ms):
        _line_up(scan, closed, scan.head, result)
        scan.blocked += 1
        return closed.is_of_credit or scan.head.id in closed.tried
    if not scan.view.key.may_wait:
        result.refused.append((scan.head, _lack_of_provider(scan, closed, scan.head, now_ms)))
        return True
    _park_closed(scan, closed, scan.head, now_ms)
    _leave_lines(scan.head, scan.view.accounts, result)
    scan.blocked += 1
    return closed.is_ajar


def _leave_all_lines(scan: _Scan, result: Plan) -> None:
    """Who has to wait for its provider's credit is in line for no money meanwhile."""
    closed, size_by_id = scan.view.closed, scan.view.size_by_id
    if closed is None or size_by_id is None:
        return
    for account in scan.view.accounts:
        for waiter in tuple(account.line):
            size = size_by_id(waiter.request_id)
            if size is not None and size > closed.reach(scan.view.key.model):
                account.leave_line(waiter.request_id)
                result.moved.add(account.id)


def _line_up_larger(scan: _Scan, now_ms: int, result: Plan) -> None:
    """Of what a provider has no credit for, somebody may try: before all others, being one."""
    closed, larger = scan.view.closed, scan.view.larger
    if closed is None or larger is None or not closed.may_probe(now_ms):
        return
    for candidate in islice(larger(), MOST_TRIED + 1):
        _line_up(scan, closed, candidate, result)
        scan.has_lined_up = True
        if candidate.id not in closed.tried:
            return  # the others of this lane come after it in any case


def _line_up(scan: _Scan, closed: Closed, candidate: Candidate, result: Plan) -> None:
    key, size = scan.view.key, size_of(*candidate.needs[:2])
    rank = closed.rank(key.model, key.priority, candidate.id, size)
    result._triers.setdefault(key.provider, []).append(_Trier(rank, scan, candidate))


def _let_some_try(free: MutableMapping[str, int], now_ms: int, result: Plan) -> None:
    """For each provider that is closed, one request at most."""
    for triers in result._triers.values():
        for _, scan, candidate in sorted(triers, key=lambda trier: trier.rank):
            _let_try(scan, candidate, free, now_ms, result)
    result._triers.clear()


def _let_try(
    scan: _Scan, candidate: Candidate, free: MutableMapping[str, int], now_ms: int, result: Plan
) -> None:
    """Admit who tries whether its provider is open again, unless another one does."""
    key, accounts, gates = scan.view.key, scan.view.accounts, scan.view.gates
    closed, scan.head = scan.view.closed, candidate
    assert closed is not None
    has_money = _has_money(key, candidate, accounts, now_ms)
    if not closed.may_probe(now_ms):
        if key.may_wait:
            _park_closed(scan, closed, candidate, now_ms)
        else:
            result.refused.append((candidate, _lack_of_provider(scan, closed, candidate, now_ms)))
    elif not has_money and key.may_wait:
        _pass_over(scan, now_ms, result)
    elif not has_money:
        lack, account = _worst(key, candidate, accounts, now_ms)
        result.refused.append((candidate, _describe(account, lack, now_ms)))
    elif _has_place(key, free) and not result.holds_back(gates, candidate, now_ms, key.is_lent):
        _admit(key, candidate, accounts, result)
        for gate in gates:
            gate.take(candidate.id, candidate.tokens, now_ms)
        free[key.provider] -= 1
        result.admitted.append(candidate)
        if key.may_wait:
            _park_closed(scan, closed, candidate, now_ms)
    elif key.may_wait:
        scan.verdict.clear()
        scan.waits_for_place = True


def _park_closed(scan: _Scan, closed: Closed, candidate: Candidate | None, now_ms: int) -> None:
    """Shut the lane of a provider that is closed, but for what it lets go."""
    if scan.waits_for_place or closed.may_probe(now_ms):
        return  # if nobody tries although somebody may, it is for want of something else
    lack, verdict = _lack_of_provider(scan, closed, candidate, now_ms), scan.verdict
    if verdict.shortfall is None:
        verdict.shortfall = lack
    due_ms = lack.resumes_at_ms
    assert due_ms is not None
    verdict.resumes_at_ms = min(due_ms, verdict.resumes_at_ms or due_ms)
    verdict.fits = closed.reach(scan.view.key.model)


def _lack_of_provider(
    scan: _Scan, closed: Closed, candidate: Candidate | None, now_ms: int
) -> Shortfall:
    needed = 0 if candidate is None else candidate.needs[0]
    reach = max(0, closed.reach(scan.view.key.model)) if closed.is_ajar else 0
    is_money = needed > 0 or (candidate is None and reach > 0)
    return Shortfall(
        ParkReason(closed.reason), scan.view.key.provider, Unit.USD if is_money else Unit.REQUESTS,
        reach if is_money else 0, 0, 0, needed, max(0, needed - reach), closed.next_at_ms(now_ms),
        "UTC", "", closed.words,
    )  # fmt: skip


class _First(NamedTuple):
    """Who in an account's line has to go first, and what others may take from it meanwhile."""

    ahead: int  # what it needs, with those before it
    spare: float
    is_brief: bool  # it waits for calls under way


def _first_to_go(
    account: Account, key: LaneKey, candidate: Candidate, now_ms: int
) -> _First | None:
    """Whose bound is used up, so that admitting the candidate would delay it once too often."""
    need, ahead = candidate.needs[account.index], 0
    if not need or key.is_lent:
        return None  # it takes nothing from anybody; or they may wait for its caller
    for waiter in account.line:
        if (waiter.priority, waiter.request_id) >= (key.priority, candidate.id):
            return None
        if waiter.away_until_ms > now_ms:
            continue
        ahead += waiter.need
        if waiter.since_ms == NOT_YET:
            waiter.since_ms, account.line_changed = now_ms, True
        if waiter.bypassed >= MAX_BYPASSED or now_ms - waiter.since_ms >= MAX_BYPASS_MS:
            spare = account.spare(waiter, ahead)
            if need > spare:
                return _First(ahead, spare, account.available < waiter.need <= account.at_best)
        if ahead > account.available:
            return None  # whoever comes behind it is not the first
    return None


def _admit(key: LaneKey, candidate: Candidate, accounts: Sequence[Account], result: Plan) -> None:
    for account in accounts:
        need = candidate.needs[account.index]
        if account.line:
            if account.leave_line(candidate.id):
                result.moved.add(account.id)
            _count_passing(account, key, candidate)
        account.reserve(need)


def _count_passing(account: Account, key: LaneKey, candidate: Candidate) -> None:
    """Note whom the candidate passes that it may delay."""
    need, ahead = candidate.needs[account.index], 0
    for waiter in account.line if need and not key.is_lent else ():
        if waiter.away_until_ms > account.looked_ms:
            continue
        ahead += waiter.need
        if (waiter.priority, waiter.request_id) > (key.priority, candidate.id):
            return
        if need > account.spare(waiter, ahead):
            waiter.bypassed += 1
            account.line_changed = True
        if ahead > account.available:
            return


def _pass_over(scan: _Scan, now_ms: int, result: Plan) -> None:
    """Note why the head of a lane cannot go, what would wake it, and its place in line."""
    key, candidate, accounts = scan.view.key, scan.head, scan.view.accounts
    lack, account = _worst(key, candidate, accounts, now_ms)
    verdict = scan.verdict
    if verdict.shortfall is None:
        verdict.shortfall = _describe(account, lack, now_ms)
    scan.blocked += 1
    if lack.first is not None:
        verdict.behind.add(account.id)
    if lack.need < verdict.smallest.get(account.id, math.inf):  # larger ones go no earlier
        verdict.smallest[account.id] = lack.need
        wake, due_ms = _next_look(lack, account, now_ms)
        verdict.wakes[account.id] = min(wake, verdict.wakes.get(account.id, wake))
        if due_ms is not None:
            verdict.resumes_at_ms = min(due_ms, verdict.resumes_at_ms or due_ms)
    if lack.reason is ParkReason.HELD_IN_FLIGHT:
        for each in accounts:  # once any of them cannot give it any more, look again
            amount = candidate.needs[each.index]
            verdict.held[each.id] = max(amount, verdict.held.get(each.id, 0))
    if lack.first is not None and lack.first.ahead <= account.at_best:
        verdict.held[account.id] = max(lack.first.ahead, verdict.held.get(account.id, 0))
    if lack.reason in (ParkReason.PAUSED, ParkReason.LARGER_THAN_LIMIT):
        _leave_lines(candidate, accounts, result)
    elif not scan.is_beyond:
        _get_in_line(scan, now_ms, result)


def _next_look(lack: _Lack, account: Account, now_ms: int) -> tuple[int, int | None]:
    """What must become available, or until when, for another look to be worth it."""
    first = lack.first
    if first is None:
        if lack.reason in (ParkReason.PAUSED, ParkReason.LARGER_THAN_LIMIT):
            return lack.need, None
        return lack.need, account.may_free_at_ms(now_ms, lack.need)
    # It fits, but has to let others go first; the lane hears of it when these leave the line.
    wake = account.available + math.ceil(lack.need - first.spare)
    if first.ahead <= account.available:
        return wake, account.frees_at_ms(now_ms, lack.missing)
    if first.is_brief:
        return min(wake, first.ahead), now_ms + BEHIND_MS
    return min(wake, first.ahead), account.frees_at_ms(now_ms, first.ahead - account.available)


def _get_in_line(scan: _Scan, now_ms: int, result: Plan) -> None:
    """Take a place in every account, for what there is may not be there any more later.

    Where it waits elsewhere so long that what is taken here will have left, it delays nobody.
    """
    key, candidate, accounts = scan.view.key, scan.head, scan.view.accounts
    order, needs = (key.priority, candidate.id), candidate.needs
    if all(needs[each.index] <= each.available for each in accounts):
        return  # it only has to let others go first
    wanted = {each.id: Waiter(*order, needs[each.index], 0, NOT_YET)
              for each in accounts if needs[each.index] > 0 and each.limit < UNLIMITED}  # fmt: skip
    full = [each.id for each in accounts
            if each.id in wanted and not each.has_room_for(wanted[each.id])]  # fmt: skip
    scan.verdict.beyond.update((each, order) for each in full if each not in scan.verdict.beyond)
    scan.is_beyond = len(full) == len(wanted)
    if scan.is_beyond:
        return
    starts_ms = {each.id: _starts_ms(each, needs[each.index], now_ms) for each in accounts}
    last_ms = max(starts_ms.values())
    for each in accounts:
        if each.id not in wanted:
            continue
        waiter = each.waiter_of(candidate.id)
        was_in_line = waiter is not None
        if waiter is None and each.id not in full:
            waiter = wanted[each.id]
            each.get_in_line(waiter)
        if waiter is None:
            continue
        away_ms = 0 if starts_ms[each.id] == last_ms else _away_until_ms(each, last_ms)
        left = waiter.left
        if starts_ms[each.id] == NEVER:
            left = each.limit - each.suspense
            left = left if waiter.left is None else min(left, waiter.left)
        if (left, away_ms) != (waiter.left, waiter.away_until_ms):
            if was_in_line and away_ms > max(now_ms, waiter.away_until_ms):
                result.moved.add(each.id)
            waiter.left, waiter.away_until_ms, each.line_changed = left, away_ms, True


def _away_until_ms(account: Account, last_ms: float) -> int:
    """Up to when all that is taken from an account will have left it at that instant."""
    window = account.cap.window
    if last_ms == NEVER:
        return UNLIMITED
    if window.kind is WindowKind.ROLLING:
        return int(last_ms) - window.span_ms - window.bucket_ms
    return 0 if window.kind is WindowKind.TOTAL else window.slot_start_ms(int(last_ms))


def _starts_ms(account: Account, need: int, now_ms: int) -> float:
    """When the account has so much, by itself if not by calls under way."""
    if need <= account.at_best:
        return now_ms
    at_ms = account.frees_at_ms(now_ms, need - account.available)
    return NEVER if at_ms is None else at_ms


def _leave_lines(candidate: Candidate, accounts: Sequence[Account], result: Plan) -> None:
    """It waits for something else than money that comes back: nothing delays it meanwhile."""
    for account in accounts:
        if account.line and account.leave_line(candidate.id):
            result.moved.add(account.id)


class _Lack(NamedTuple):
    """Why one account keeps a request waiting; the larger, the longer."""

    severity: int
    missing: int
    reason: ParkReason
    need: int
    first: _First | None = None


def _worst(
    key: LaneKey, candidate: Candidate, accounts: Sequence[Account], now_ms: int
) -> tuple[_Lack, Account]:
    """What a request lacks most, and in which account; in one of them it cannot go.

    If several are short, the one that makes it wait longest is told.
    """
    worst: _Lack | None = None
    for account in accounts:
        need = candidate.needs[account.index]
        missing, first = need - account.available if need else 0, None
        if missing <= 0 and not account.paused:
            first = _first_to_go(account, key, candidate, now_ms)
            if first is None:
                continue
            missing = min(first.ahead + need, account.limit) - account.available
        reason = _reason(account, need)
        if first is not None and first.is_brief:
            missing = 0
        elif first is not None:
            reason = ParkReason.WINDOW_SPENT
        lack = _Lack(-SEVERITY[reason], max(0, missing), reason, need, first)
        if worst is None or lack[:2] > worst[:2]:
            worst, found = lack, account
    assert worst is not None, "asked for the shortfall of a request that fits"
    return worst, found


def _reason(account: Account, need: int) -> ParkReason:
    if account.paused:
        return ParkReason.PAUSED
    if need > account.limit:
        return ParkReason.LARGER_THAN_LIMIT
    if need > account.at_best:
        return ParkReason.WINDOW_SPENT
    return ParkReason.HELD_IN_FLIGHT


def _describe(account: Account, lack: _Lack, now_ms: int) -> Shortfall:
    resumes_at_ms = None
    if lack.reason is ParkReason.WINDOW_SPENT:
        resumes_at_ms = account.frees_at_ms(now_ms, lack.missing)
    return Shortfall(
        reason=lack.reason,
        budget=account.budget,
        unit=account.cap.unit,
        limit=account.limit,
        posted=account.posted,
        reserved=account.reserved,
        needed=lack.need,
        missing=lack.missing,
        resumes_at_ms=resumes_at_ms,
        zone=account.cap.window.zone,
        window=account.cap.window.describe(),
    )
