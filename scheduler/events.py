"""What happened, as frozen facts; observe them with `Scheduler.on`.

A callback runs in the event loop right after the fact is durable. It must be
quick and must not raise: an exception is logged and the scheduler goes on. It runs
in an empty context: the fact may be of anybody's request.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

from scheduler.errors import SchedulerError
from scheduler.guards.plain import logger_of
from scheduler.request import Priority, RequestState, Response
from scheduler.shortfall import Shortfall


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all facts. Subscribe to it to see everything."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class Parked(Event):
    """A group of requests that share budgets and provider cannot go on now.

    Emitted once when the group is parked and again when the reason changes,
    not once per request.

    Attributes:
        lane: Tells this group from others; equal to `RequestFuture.lane`.
    """

    shortfall: Shortfall
    waiting: int
    provider: str
    lane: Hashable = None


@dataclass(frozen=True, slots=True)
class Unparked(Event):
    """A parked group goes on."""

    waiting: int
    provider: str
    budgets: tuple[str, ...]
    lane: Hashable = None


@dataclass(frozen=True, slots=True)
class Admitted(Event):
    """A request's reservation is committed; it is being sent.

    Attributes:
        waited_ms: From its submission until now, whatever it waited for.
        budget: The budget that it names; several are joined by ``+``.
    """

    request_id: int
    key: str | None
    job: str
    attempt: int
    reserved_nusd: int
    parked_ms: int
    model: str = ""
    provider: str = ""
    priority: int = Priority.NORMAL
    budget: str = ""
    waited_ms: int = 0


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
        digest: Fingerprint of what was asked; empty without a key, or if it is not kept.
        is_superseded: Others had taken this process for dead and its request over: what the
            attempt cost is booked, but what becomes of the request is theirs to say.
        budget: As of `Admitted`.
        reserved_nusd: What had been put aside for it.
        took_ms: From its reservation to its end.
        first_chunk_ms: Of a streamed answer, from sending it until the first event came.
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
    provider: str = ""
    digest: str = ""
    is_superseded: bool = False
    budget: str = ""
    reserved_nusd: int = 0
    took_ms: int = 0
    first_chunk_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Expired(Event):
    """A request ran out of time before it was sent; it cost nothing."""

    request_id: int
    key: str | None
    job: str
    error: SchedulerError
    model: str = ""
    budget: str = ""


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """A request did not fit and may not wait; it was never sent, and cost nothing."""

    request_id: int
    key: str | None
    job: str
    error: SchedulerError
    model: str = ""
    budget: str = ""


@dataclass(frozen=True, slots=True)
class Cancelled(Event):
    """A request was cancelled while it waited; it cost nothing, but for earlier attempts."""

    request_id: int
    key: str | None
    job: str
    model: str = ""
    budget: str = ""


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


@dataclass(frozen=True, slots=True)
class BudgetBurning(Event):
    """A budget is spent so fast that somebody should look; each level is told once a window.

    Amounts in the cap's unit. Of budgets with a window of an hour or longer; each process tells what
    it has seen itself since it began.

    Attributes:
        level: ``"page"``: a tenth of the limit within a 96th of the window (of a day: 15 minutes), and
            it still goes on. ``"warn"``: a quarter within a twelfth (2 hours). ``"projected"``: at the
            rate of the last twelfth it will be used up before its reset.
        spent: So much, in the last `within_ms`.
        used_up_at_ms: When nothing is left if it goes on like this; None: not before the reset.
    """

    budget: str
    cap: str
    level: str
    spent: int
    within_ms: int
    posted: int
    limit: int
    used_up_at_ms: int | None
    resets_at_ms: int | None


E = TypeVar("E", bound=Event)

logger = logger_of("scheduler.events")


class Announcer:
    """Tells events to those who asked for their kind."""

    def __init__(self) -> None:
        self.on_exit: Callable[[BaseException], None] = _say_nothing
        """Takes what a callback raises to end the program."""
        self._listeners: dict[type[Event], list[Callable[[Any], None]]] = {}

    def on(self, kind: type[E], callback: Callable[[E], None]) -> Callable[[], None]:
        """Call `callback` with every event of this kind; returns a way to stop it."""
        callbacks = self._listeners.setdefault(kind, [])
        callbacks.append(callback)
        return lambda: callbacks.remove(callback) if callback in callbacks else None

    def hears(self, kind: type[Event]) -> bool:
        """Whether anybody asked; if not, the event need not be made."""
        listeners = self._listeners
        return bool(listeners) and bool(listeners.get(kind) or listeners.get(Event))

    def emit(self, event: Event) -> None:
        """Tell an event; a callback that raises is logged and harms nobody."""
        for kind in (type(event), Event):
            for callback in tuple(self._listeners.get(kind, ())):
                try:
                    Context().run(callback, event)
                except (
                    BaseException
                ) as exc:  # whatever it is: the ledger is in the middle of a turn
                    logger.exception("a callback for %s raised", type(event).__name__)
                    if isinstance(exc, KeyboardInterrupt | SystemExit):
                        self.on_exit(exc)


def _say_nothing(error: BaseException) -> None:
    pass
