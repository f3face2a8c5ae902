"""Who waits in line for an account's money, whom that holds up, and what a request lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scheduler.admission.fairness import size_for
from scheduler.admission.lane import NEVER, Candidate, Plan, Scan
from scheduler.budget import UNLIMITED, WindowKind
from scheduler.ledger.account import NOT_YET, Account, Standing, Waiter
from scheduler.shortfall import SEVERITY, ParkReason, Shortfall

MAX_BYPASSED = 32
MAX_BYPASS_MS = 30_000


def has_money(scan: Scan, now_ms: int) -> bool:
    """Whether every account has what the head of a lane needs, with nobody to go before it."""
    candidate, priority = scan.head, scan.view.key.priority
    for account in scan.view.accounts:
        need = candidate.needs[account.index]
        kept = account.keeps(priority) if account.cap.keep is not None else 0
        if (
            (need + kept > account.available and account.lacks(need, candidate, kept) > 0)
            or account.paused
            or (account.line and first_to_go(account, scan, now_ms) is not None)
        ):
            return False
    return True


class First(NamedTuple):
    """Who in an account's line has to go first, and what others may take from it meanwhile."""

    ahead: int  # what it needs, with those before it
    spare: float
    is_brief: bool  # it waits for calls under way


def first_to_go(account: Account, scan: Scan, now_ms: int) -> First | None:
    """Whose bound is used up, so that admitting the head of a lane would delay it once too often."""
    need, ahead = scan.head.needs[account.index], 0
    if not need or scan.view.key.is_lent:
        return None  # it takes nothing from anybody; or they may wait for its caller
    standing = scan.standing
    for waiter in account.line:
        if waiter.standing >= standing:
            return None
        if waiter.away_until_ms > now_ms:
            continue
        ahead += waiter.need
        kept = account.keeps(waiter.priority)
        if waiter.since_ms == NOT_YET:
            waiter.since_ms, account.line_changed = now_ms, True
        if waiter.bypassed >= MAX_BYPASSED or now_ms - waiter.since_ms >= MAX_BYPASS_MS:
            spare = account.spare(waiter, ahead + kept)
            if need > spare:
                is_brief = account.available < waiter.need + kept <= account.at_best
                return First(ahead + kept, spare, is_brief)
        if ahead + kept > account.available:
            return None  # whoever comes behind it is not the first
    return None


def admit(scan: Scan, now_ms: int, result: Plan, *, is_in_turn: bool) -> None:
    """Take the money of the head of a lane, which goes, and its place in line."""
    view, candidate, standing = scan.view, scan.head, None
    for account in view.accounts:
        need = candidate.needs[account.index]
        if account.line:
            standing = standing or scan.standing  # as long as it has its place in line
            if account.leave_line(candidate.id) or _uncovers(account, need):
                result.moved.add(account.id)
            if need and not view.key.is_lent:
                count_passing(account, need, standing)
        account.reserve(need)
        if account.pool is not None:
            account.begin(candidate.id, candidate.kind, candidate.needs)
    if view.tenant is not None:
        is_in_turn = is_in_turn and not view.key.is_lent
        view.tenant.admit(size_for(candidate.needs), now_ms, is_in_turn=is_in_turn)


def _uncovers(account: Account, need: int) -> bool:
    """Whether somebody in line was to be let go first, and is not when so much is gone."""
    available, ahead = account.available, 0
    for waiter in account.line:
        if waiter.away_until_ms <= account.looked_ms:
            ahead += waiter.need
            if available - need < ahead + account.keeps(waiter.priority) <= available:
                return True
    return False


def count_passing(account: Account, need: int, standing: Standing) -> None:
    """Note whom somebody passes who takes so much, and whom that may delay."""
    ahead = 0
    for waiter in account.line:
        if waiter.away_until_ms > account.looked_ms:
            continue
        ahead += waiter.need
        if waiter.standing > standing:
            return
        reach = ahead + account.keeps(waiter.priority)
        if need > account.spare(waiter, reach):
            waiter.bypassed += 1
            account.line_changed = True
        if reach > account.available:
            return


def pass_over(scan: Scan, now_ms: int, result: Plan) -> None:
    """Note why the head of a lane cannot go, what would wake it, and its place in line."""
    candidate, accounts, priority = scan.head, scan.view.accounts, scan.view.key.priority
    lack, account = worst(scan, now_ms)
    verdict = scan.verdict
    if verdict.shortfall is None:
        verdict.shortfall = describe(account, lack, priority, now_ms)
    scan.blocked += 1
    if lack.first is not None:
        verdict.behind.add(account.id)
    if lack.need < verdict.smallest.get(account.id, math.inf):  # larger ones go no earlier
        verdict.smallest[account.id] = lack.need
        wake, due_ms = _next_look(lack, account, priority, now_ms)
        verdict.wakes[account.id] = min(wake, verdict.wakes.get(account.id, wake))
        if due_ms is not None:
            verdict.resumes_at_ms = min(due_ms, verdict.resumes_at_ms or due_ms)
    if lack.reason is ParkReason.HELD_IN_FLIGHT:
        for each in accounts:  # once any of them cannot give it any more, look again
            amount = candidate.needs[each.index] + each.keeps(priority)
            verdict.held[each.id] = max(amount, verdict.held.get(each.id, 0))
    if lack.first is not None and lack.first.ahead <= account.at_best:
        verdict.held[account.id] = max(lack.first.ahead, verdict.held.get(account.id, 0))
    if lack.reason in (ParkReason.PAUSED, ParkReason.LARGER_THAN_LIMIT):
        leave_lines(candidate, accounts, result)
    elif not scan.is_beyond:
        _get_in_line(scan, now_ms, result)


def _next_look(lack: Lack, account: Account, priority: int, now_ms: int) -> tuple[int, int | None]:
    """What must become available, or until when, for another look to be worth it."""
    first, need = lack.first, lack.need + account.keeps(priority)
    if first is None:
        if lack.reason in (ParkReason.PAUSED, ParkReason.LARGER_THAN_LIMIT):
            return need, None
        return need, account.may_free_at_ms(now_ms, lack.need, priority)
    # It fits, but has to let others go first; the lane hears of it when these leave the line.
    wake = account.available + math.ceil(lack.need - first.spare)
    if first.ahead <= account.available:
        return wake, account.frees_at_ms(now_ms, lack.missing)
    if first.is_brief:
        return min(wake, first.ahead), account.resets_at_ms(now_ms)
    return min(wake, first.ahead), account.frees_at_ms(now_ms, first.ahead - account.available)


def _get_in_line(scan: Scan, now_ms: int, result: Plan) -> None:
    """Take a place in every account, for what there is may not be there any more later.

    Where it waits elsewhere so long that what is taken here will have left, it delays nobody.
    """
    candidate, accounts = scan.head, scan.view.accounts
    needs, (priority, turn, due_ms, id_) = candidate.needs, scan.standing
    order = (priority, due_ms, id_)
    kept = {each.id: each.keeps(priority) for each in accounts}
    if all(needs[each.index] + kept[each.id] <= each.available for each in accounts):
        return  # it only has to let others go first
    wanted = {
        each.id: Waiter(
            priority, id_, needs[each.index], 0, NOT_YET, due_at_ms=due_ms, turn=turn
        )
        for each in accounts if needs[each.index] > 0 and each.limit < UNLIMITED
    }  # fmt: skip
    full = [each.id for each in accounts
            if each.id in wanted and not each.has_room_for(wanted[each.id])]  # fmt: skip
    scan.verdict.beyond.update((each, order) for each in full if each not in scan.verdict.beyond)
    scan.is_beyond = len(full) == len(wanted)
    if scan.is_beyond:
        return
    starts_ms = {
        each.id: _starts_ms(each, needs[each.index] + kept[each.id], priority, now_ms)
        for each in accounts
    }
    last_ms = max(starts_ms.values())
    for each in accounts:
        if each.id not in wanted:
            continue
        waiter = each.waiter_of(candidate.id)
        was_in_line = waiter is not None
        if waiter is None and each.id in full:
            continue
        away_ms = 0 if starts_ms[each.id] == last_ms else _away_until_ms(each, last_ms)
        if waiter is None:
            waiter = wanted[each.id]
            waiter.away_until_ms = away_ms
            each.get_in_line(waiter)
        left = waiter.left
        if starts_ms[each.id] == NEVER:
            left = each.limit - each.suspense
            left = left if waiter.left is None else min(left, waiter.left)
        if (left, away_ms) != (waiter.left, waiter.away_until_ms):
            if was_in_line and away_ms > max(now_ms, waiter.away_until_ms):
                result.moved.add(each.id)
            waiter.left, waiter.away_until_ms, each.line_changed = left, away_ms, True
        each.start_clocks()


def _away_until_ms(account: Account, last_ms: float) -> int:
    """Up to when all that is taken from an account will have left it at that instant."""
    window = account.cap.window
    if last_ms == NEVER:
        return UNLIMITED
    if window.kind is WindowKind.ROLLING:
        return int(last_ms) - window.span_ms - window.bucket_ms
    return 0 if window.kind is WindowKind.TOTAL else window.slot_start_ms(int(last_ms))


def _starts_ms(account: Account, need: int, priority: int, now_ms: int) -> float:
    """When the account has so much, by itself if not by calls under way."""
    if need <= account.at_best:
        return now_ms
    at_ms = account.frees_at_ms(now_ms, need - account.available, priority)
    return NEVER if at_ms is None else at_ms


def leave_lines(candidate: Candidate, accounts: Sequence[Account], result: Plan) -> None:
    """It waits for something else than money that comes back: nothing delays it meanwhile."""
    for account in accounts:
        if account.line and account.leave_line(candidate.id):
            result.moved.add(account.id)


class Lack(NamedTuple):
    """Why one account keeps a request waiting; the larger, the longer."""

    severity: int
    missing: int
    reason: ParkReason
    need: int
    first: First | None = None


def worst(scan: Scan, now_ms: int) -> tuple[Lack, Account]:
    """What the head of a lane lacks most, and in which account; in one of them it cannot go.

    If several are short, the one that makes it wait longest is told.
    """
    candidate = scan.head
    worst: Lack | None = None
    for account in scan.view.accounts:
        need = candidate.needs[account.index]
        kept = account.keeps(scan.view.key.priority)
        missing, first = need + kept - account.available if need else 0, None
        if missing > 0:
            missing = account.lacks(need, candidate, kept)
        if missing <= 0 and not account.paused:
            first = first_to_go(account, scan, now_ms)
            if first is None:
                continue
            missing = min(first.ahead + need, account.limit) - account.available
        reason = _reason(account, need, kept)
        if first is not None and first.is_brief:
            missing = 0
        elif first is not None:
            reason = ParkReason.WINDOW_SPENT
        lack = Lack(-SEVERITY[reason], max(0, missing), reason, need, first)
        if worst is None or lack[:2] > worst[:2]:
            worst, found = lack, account
    assert worst is not None, "asked for the shortfall of a request that fits"
    return worst, found


def _reason(account: Account, need: int, kept: int) -> ParkReason:
    if account.paused:
        return ParkReason.PAUSED
    if need > account.limit:
        return ParkReason.LARGER_THAN_LIMIT
    if need > account.limit - account.posted - account.suspense:
        return ParkReason.WINDOW_SPENT
    if need > account.at_best:
        return ParkReason.PACED
    if need + kept > account.at_best:
        return ParkReason.KEPT
    return ParkReason.HELD_IN_FLIGHT


def describe(account: Account, lack: Lack, priority: int, now_ms: int) -> Shortfall:
    """The same for people."""
    resumes_at_ms, keep = None, account.cap.keep
    if lack.reason in (ParkReason.WINDOW_SPENT, ParkReason.PACED, ParkReason.KEPT):
        resumes_at_ms = account.frees_at_ms(now_ms, lack.missing, priority)
    return Shortfall(
        reason=lack.reason,
        budget=account.budget,
        unit=account.cap.unit,
        limit=account.limit,
        posted=account.posted,
        reserved=account.reserved - account.relief,
        needed=lack.need,
        missing=lack.missing,
        resumes_at_ms=resumes_at_ms,
        zone=account.cap.window.zone,
        window=account.cap.window.describe(),
        words=keep.kept_for(priority)
        if lack.reason is ParkReason.KEPT and keep is not None
        else "",
        allowed=account.allowed if lack.reason is ParkReason.PACED else None,
    )
