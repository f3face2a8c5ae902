"""Providers that are closed: who tries whether they are open again, and who waits for it."""

from __future__ import annotations

from collections.abc import MutableMapping
from itertools import islice
from typing import TYPE_CHECKING

from scheduler.admission.lane import Candidate, Plan, Scan, Trier, has_place
from scheduler.admission.line import admit, describe, has_money, leave_lines, pass_over, worst
from scheduler.budget import Unit
from scheduler.limits import MOST_TRIED, size_of
from scheduler.shortfall import ParkReason, Shortfall

if TYPE_CHECKING:
    from scheduler.limits import Closed


def meet_closed(scan: Scan, closed: Closed, now_ms: int, result: Plan) -> bool:
    """The provider is closed for the head of a lane; True: there may be others for whom it is not."""
    if closed.may_probe(now_ms):
        _line_up(scan, closed, scan.head, result)
        scan.blocked += 1
        return closed.is_of_credit or scan.head.id in closed.tried
    if not scan.view.key.may_wait:
        result.refused.append((scan.head, _lack_of_provider(scan, closed, scan.head, now_ms)))
        return True
    park_closed(scan, closed, scan.head, now_ms)
    leave_lines(scan.head, scan.view.accounts, result)
    scan.blocked += 1
    return closed.is_ajar


def leave_all_lines(scan: Scan, result: Plan) -> None:
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


def line_up_larger(scan: Scan, now_ms: int, result: Plan) -> None:
    """Of what a provider has no credit for, somebody may try: before all others, being one."""
    closed, larger = scan.view.closed, scan.view.larger
    if closed is None or larger is None or not closed.may_probe(now_ms):
        return
    for candidate in islice(larger(), MOST_TRIED + 1):
        _line_up(scan, closed, candidate, result)
        scan.has_lined_up = True
        if candidate.id not in closed.tried:
            return  # the others of this lane come after it in any case


def _line_up(scan: Scan, closed: Closed, candidate: Candidate, result: Plan) -> None:
    key, size = scan.view.key, size_of(*candidate.needs[:2])
    rank = closed.rank(key.model, key.priority, candidate.id, size)
    result.triers.setdefault(key.provider, []).append(Trier(rank, scan, candidate))


def let_some_try(free: MutableMapping[str, int], now_ms: int, result: Plan) -> None:
    """For each provider that is closed, one request at most."""
    for triers in result.triers.values():
        for _, scan, candidate in sorted(triers, key=lambda trier: trier.rank):
            _let_try(scan, candidate, free, now_ms, result)
    result.triers.clear()


def _let_try(
    scan: Scan, candidate: Candidate, free: MutableMapping[str, int], now_ms: int, result: Plan
) -> None:
    """Admit who tries whether its provider is open again, unless another one does."""
    key, gates = scan.view.key, scan.view.gates
    closed, scan.head = scan.view.closed, candidate
    assert closed is not None
    can_pay = has_money(scan, now_ms)
    if not closed.may_probe(now_ms):
        if key.may_wait:
            park_closed(scan, closed, candidate, now_ms)
        else:
            result.refused.append((candidate, _lack_of_provider(scan, closed, candidate, now_ms)))
    elif not can_pay and key.may_wait:
        pass_over(scan, now_ms, result)
    elif not can_pay:
        lack, account = worst(scan, now_ms)
        result.refused.append((candidate, describe(account, lack, key.priority, now_ms)))
    elif has_place(key, free) and not result.holds_back(gates, candidate, now_ms, key.is_lent):
        admit(scan, now_ms, result, is_in_turn=False)
        for gate in gates:
            gate.take(candidate.id, candidate.tokens, now_ms)
        free[key.provider] -= 1
        result.admitted.append(candidate)
        if key.may_wait:
            park_closed(scan, closed, candidate, now_ms)
    elif key.may_wait:
        scan.verdict.clear()
        scan.waits_for_place = True


def park_closed(scan: Scan, closed: Closed, candidate: Candidate | None, now_ms: int) -> None:
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
    scan: Scan, closed: Closed, candidate: Candidate | None, now_ms: int
) -> Shortfall:
    needed = 0 if candidate is None else candidate.needs[0]
    reach = max(0, closed.reach(scan.view.key.model)) if closed.is_ajar else 0
    is_money = needed > 0 or (candidate is None and reach > 0)
    return Shortfall(
        ParkReason(closed.reason), scan.view.key.provider, Unit.USD if is_money else Unit.REQUESTS,
        reach if is_money else 0, 0, 0, needed, max(0, needed - reach), closed.next_at_ms(now_ms),
        "UTC", "", closed.words,
    )  # fmt: skip
