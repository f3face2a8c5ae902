"""On what terms a request waits, and what they amount to when several callers hold it.

One key is one request. Its callers may come with different terms, and each caller's own hold for
that caller; the request itself goes with what they are `together`:

    priority      the most urgent of theirs
    expiry        the last of theirs; never, if one of them sets none
    deadline      by which it goes before others: the first of theirs
    on_exceeded   "raise" while somebody would rather be refused: what does not fit is refused to
                  these alone, and the others go on. Then "wait", if anybody may wait. Models to
                  fall back on are asked if all of them would take their answer.

The rest (body, budgets, tags, provider) is the request of the first of them who still waits.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from scheduler.admission.plan import LaneKey
from scheduler.core.intake import OnExceeded
from scheduler.request import Request
from scheduler.stores.base import NewRequest


class Terms(NamedTuple):
    """What one caller says of the waiting.

    Attributes:
        priority: Lower runs first.
        on_exceeded: What is to happen if the budget cannot cover it now.
        expires_at_ms: If it was not sent by then, its answer is of no use; None: never.
        since_ms: When this caller began to wait; 0 if that is of no interest.
        due_at_ms: The deadline; None: there is none.
    """

    priority: int
    on_exceeded: OnExceeded
    expires_at_ms: int | None = None
    since_ms: int = 0
    due_at_ms: int | None = None

    def is_over(self, now_ms: int) -> bool:
        """Whether an answer to what was not sent yet is of no use any more."""
        return self.expires_at_ms is not None and self.expires_at_ms <= now_ms


def terms_of(new: NewRequest, since_ms: int = 0) -> Terms:
    """The terms of a submission."""
    return terms_in(new.lane, new.request, new.expires_at_ms, since_ms, new.due_at_ms)


def terms_in(
    lane: LaneKey, request: Request, expires_at_ms: int | None, since_ms: int,
    due_at_ms: int | None,
) -> Terms:  # fmt: skip
    """The terms of a request that was submitted to a lane."""
    on_exceeded: OnExceeded = "wait"
    if not lane.may_wait:
        on_exceeded = "fallback" if request.fallback else "raise"
    return Terms(lane.priority, on_exceeded, expires_at_ms, since_ms, due_at_ms)


def together(terms: Collection[Terms]) -> Terms:
    """The terms of a request that several hold; see the module.

    >>> together([Terms(20, "wait", 900), Terms(0, "raise", 500), Terms(10, "fallback", 700)])
    Terms(priority=0, on_exceeded='raise', expires_at_ms=900, since_ms=0, due_at_ms=None)
    >>> together([Terms(20, "fallback", 900, 0, 900), Terms(30, "wait")])
    Terms(priority=20, on_exceeded='wait', expires_at_ms=None, since_ms=0, due_at_ms=900)
    """
    words = {each.on_exceeded for each in terms}
    on_exceeded: OnExceeded = "fallback"
    if "raise" in words:
        on_exceeded = "raise"
    elif "wait" in words:
        on_exceeded = "wait"
    ends = [each.expires_at_ms for each in terms if each.expires_at_ms is not None]
    return Terms(
        min(each.priority for each in terms),
        on_exceeded,
        max(ends) if len(ends) == len(terms) else None,
        due_at_ms=min(
            (each.due_at_ms for each in terms if each.due_at_ms is not None), default=None
        ),
    )
