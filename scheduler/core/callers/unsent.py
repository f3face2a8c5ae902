"""How requests end that were not sent: refused, or too late; for all who hold them, or for some.

What its callers' terms are together, `terms` says. A caller who came in the very turn in which
a request ended, on terms by which it would not have, asks for its key anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scheduler import events
from scheduler.admission.notices import brief
from scheduler.core.callers.terms import Terms
from scheduler.core.callers.twins import Twins
from scheduler.core.callers.waiters import Holder, Waiters
from scheduler.core.future import RequestFuture
from scheduler.core.intake import Intake
from scheduler.core.labels import budget_of
from scheduler.core.tally import Tally
from scheduler.core.tries import Tries
from scheduler.errors import DeadlineExceeded, SchedulerError
from scheduler.guards.hooks import as_ours
from scheduler.ledger.matching import BudgetBook
from scheduler.request import RequestState
from scheduler.shortfall import Shortfall
from scheduler.stores.base import ExpiredRequest, NewRequest, Refused, Store

NO_WAIT = "it may not wait for money"
Named = tuple[str | None, str, str, str]


class Unsent:
    """Tells those who wait. Used by `Pump` alone.

    Args:
        store: Knows what is lacking.
        intake: Prepares what is asked instead.
        waiters: Who waits.
        twins: What several of them hold.
        tries: What became of earlier attempts.
        tally: Sums.
        announcer: Tells everybody else.
        submit_again: Has a request submitted anew for somebody.
        amend: Has a request changed in the next turn.
        cancel: Has a request cancelled in the next turn.
    """

    def __init__(
        self,
        store: Store,
        intake: Intake,
        waiters: Waiters,
        twins: Twins,
        tries: Tries,
        tally: Tally,
        announcer: events.Announcer,
        submit_again: Callable[[Holder], None],
        amend: Callable[[int, NewRequest], None],
        cancel: Callable[[int], None],
    ) -> None:
        self._store, self._intake, self._waiters, self._twins = store, intake, waiters, twins
        self._tries, self._tally, self._announcer = tries, tally, announcer
        self._submit_again, self._amend, self._cancel = submit_again, amend, cancel

    def refused(self, refused: Refused, now_ms: int) -> None:
        """It does not fit and may not wait: ask another model, if the user said so."""
        error: SchedulerError = refused.lack.as_error()
        if refused.id in self._twins.holds:
            error = self._tries.left(refused.id, error, NO_WAIT)
            for holder in self._waiters.holders(refused.id):
                if _is_refused(holder.terms):
                    holder.fail(error)
            self._twins.leave(refused.id)
        elif refused.request.fallback:
            self._fall_back(refused)
        else:
            error = self._tries.ended(refused.id, error, NO_WAIT)
            named = self._named(events.Refused, refused.id)
            is_end = self._end(refused.id, RequestState.FAILED, error, _is_refused)
            if is_end and named is not None:
                key, job, *label = named
                self._announcer.emit(events.Refused(now_ms, refused.id, key, job, error, *label))

    def _fall_back(self, refused: Refused) -> None:
        try:
            new = self._intake.prepare_instead(refused.request, refused.lack)
            self._store.prepare(new)
        except Exception as exc:  # its price or budget is no longer there
            error = as_ours(exc)
            for each in self._waiters.take(refused.id):
                each.fail(error)
            self._cancel(refused.id)
            return
        new.lane = new.lane.as_private()
        new.is_kept, new.keeps_time = bool(self._waiters.of(refused.id)), True
        self._amend(refused.id, new)

    def expired(self, expired: ExpiredRequest, now_ms: int) -> None:
        """The time of all is over, as far as it was known when it was last amended."""
        error = self._too_late(expired.id, expired.waited_ms, expired.lack, now_ms)
        self._tries.forget(expired.id)
        named = self._named(events.Expired, expired.id)
        is_end = self._end(
            expired.id, RequestState.EXPIRED, error,
            lambda terms: terms.is_over(expired.expires_at_ms),
        )  # fmt: skip
        if is_end and named is not None:
            _, _, *label = named
            self._announcer.emit(
                events.Expired(now_ms, expired.id, expired.key, expired.job, error, *label)
            )

    def _named(self, kind: type[events.Event], request_id: int) -> Named | None:
        """What a request that ends is called; None: nobody asked for such events."""
        if not self._announcer.hears(kind):
            return None
        return named_by(self._waiters.of(request_id), self._intake.book)

    def _end(
        self, request_id: int, state: RequestState, error: SchedulerError,
        is_meant: Callable[[Terms], bool],
    ) -> bool:  # fmt: skip
        """End a request for those whose terms say so; whether that is all of them."""
        others = []
        for holder in self._waiters.take(request_id):
            if holder.done() or is_meant(holder.terms):
                holder.fail(error)
            else:
                others.append(holder)
        if others:
            self._tally.waiting -= 1
        else:
            self._tally.end_waiting(state)
        for holder in others:
            self._submit_again(holder)
        return not others

    def give_up(self, request_id: int, holder: Holder, now_ms: int) -> None:
        """The time of one caller is over; the request lives on for others."""
        lack = None
        if holder.lane is not None:
            lack = self._store.shortfall(holder.lane)
        elif isinstance(holder, RequestFuture):
            lack = holder.lack
        waited_ms = now_ms - holder.terms.since_ms
        holder.fail(self._too_late(request_id, waited_ms, lack, now_ms))
        self._twins.leave(request_id)

    def _too_late(
        self, request_id: int, waited_ms: int, lack: Shortfall | None, now_ms: int
    ) -> DeadlineExceeded:
        tried = self._tries.of(request_id)
        cost_nusd = 0 if tried is None else tried.error.cost_nusd
        return DeadlineExceeded(waited_ms, self._why_late(request_id, lack, now_ms), cost_nusd)

    def _why_late(self, request_id: int, lack: Shortfall | None, now_ms: int) -> str:
        """What a request waited for when its time was over."""
        if lack is not None:
            return f"parked: {brief(lack)}"
        tried = self._tries.of(request_id)
        if tried is not None:
            return f"between attempts; the last: {tried.error}"
        lanes = [each.lane for each in self._waiters.of(request_id) if each.lane is not None]
        held = lanes and self._store.gates.why_held(lanes[0].provider, lanes[0].model, now_ms)
        return held or "all places were taken"


def named_by(holders: Sequence[Holder], book: BudgetBook) -> Named:
    """Key, job, model and budget of a request that ends unsent, as far as who holds it tells."""
    for each in holders:
        drawn = () if each.lane is None else each.lane.budgets
        request = each.request
        return request.key, request.job, request.model, budget_of(book, request, drawn)
    return None, "", "", ""


def _is_refused(terms: Terms) -> bool:
    return terms.on_exceeded == "raise"
