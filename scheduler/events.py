"""What happened, as frozen facts; observe them with `Scheduler.on`.

A callback runs in the event loop right after the fact is durable. It must be
quick and must not raise: an exception is logged and the scheduler goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.admission import Shortfall
from scheduler.errors import SchedulerError
from scheduler.request import RequestState, Response


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all facts. Subscribe to it to see everything."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class Parked(Event):
    """A group of requests that share budgets and provider cannot go on now.

    Emitted once when the group is parked and again when the reason changes,
    not once per request.
    """

    shortfall: Shortfall
    waiting: int
    provider: str


@dataclass(frozen=True, slots=True)
class Unparked(Event):
    """A parked group goes on."""

    waiting: int
    provider: str
    budgets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Admitted(Event):
    """A request's reservation is committed; it is being sent."""

    request_id: int
    key: str | None
    job: str
    attempt: int
    reserved_nusd: int
    parked_ms: int


@dataclass(frozen=True, slots=True)
class Settled(Event):
    """An attempt ended in the ledger.

    Attributes:
        outcome: ``"post"``, ``"void"`` or ``"suspend"``.
        cost_nusd: What the attempt cost; for ``"suspend"`` what keeps counting.
        overrun_nusd: How much it cost above its ceiling.
        state: SUCCEEDED, FAILED or CANCELLED; QUEUED if it will be tried again.
        response: The answer, if it succeeded.
        error: Why it failed, if it did.
    """

    request_id: int
    key: str | None
    job: str
    model: str
    outcome: str
    cost_nusd: int
    overrun_nusd: int
    state: RequestState
    attempts: int
    response: Response | None
    error: SchedulerError | None


@dataclass(frozen=True, slots=True)
class Expired(Event):
    """A request ran out of time before it was sent; it cost nothing."""

    request_id: int
    key: str | None
    job: str
    error: SchedulerError


@dataclass(frozen=True, slots=True)
class ThresholdCrossed(Event):
    """Spending passed 50, 80, 95 or 100 % of a limit; told once a window.

    Amounts in the cap's unit.
    """

    budget: str
    cap: str
    percent: int
    posted: int
    limit: int
    resets_at_ms: int | None
