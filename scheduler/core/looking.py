"""What a `Scheduler` tells of itself, and to whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from scheduler import events
from scheduler.clock import Clock
from scheduler.core.tally import Tally
from scheduler.core.watching import Companion, Watcher, Watchers
from scheduler.request import RequestState
from scheduler.stores.base import Store

if TYPE_CHECKING:
    from scheduler.core.pump import Pump
    from scheduler.stats import Stats

E_ = TypeVar("E_", bound=events.Event)


class Looking:
    """The methods of a `Scheduler` for whoever looks at it."""

    store: Store
    _clock: Clock
    _pump: Pump | None
    _announcer: events.Announcer
    _watchers: Watchers
    _companions: list[Companion]

    def stats(self) -> Stats:
        """A picture of this scheduler now; awaits nothing."""
        from scheduler.stats import Stats

        parked: Counter[str] = Counter()
        shortfalls = []
        for lane in self.store.lanes():
            if lane.shortfall is not None:
                parked[lane.shortfall.reason.value] += lane.waiting
                shortfalls.append(lane.shortfall)
        resumes = [s.resumes_at_ms for s in shortfalls if s.resumes_at_ms is not None]
        tally = Tally() if self._pump is None else self._pump.tally
        return Stats(
            queued=0 if self._pump is None else max(0, self._pump.waiting - parked.total()),
            parked=dict(parked),
            running=0 if self._pump is None else self._pump.running,
            succeeded=tally.ended[RequestState.SUCCEEDED],
            failed=tally.ended[RequestState.FAILED],
            cancelled=tally.ended[RequestState.CANCELLED],
            expired=tally.ended[RequestState.EXPIRED],
            posted_nusd=tally.posted_nusd,
            reserved_nusd=tally.reserved_nusd,
            suspense_nusd=tally.suspense_nusd,
            overruns=tally.overruns,
            resumes_at_ms=min(resumes, default=None),
            shortfalls=tuple(shortfalls),
            budgets=tuple(self.store.latest()),
            limited=tuple(self.store.gates.statuses(self._clock.now_ms())),
            tenants=tuple(self.store.sharing(self._clock.now_ms())),
        )

    @property
    def running(self) -> int:
        """How many calls of this process are under way; from any thread."""
        return 0 if self._pump is None else self._pump.running

    def on(self, kind: type[E_], callback: Callable[[E_], None]) -> Callable[[], None]:
        """Call `callback` with every event of this kind; returns a way to stop it."""
        return self._announcer.on(kind, callback)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have requests watched from now on, as tracing does; returns a way to stop it."""
        self._watchers.add(watcher)
        return lambda: self._watchers.remove(watcher)

    def accompany(self, companion: Companion) -> None:
        """Have something begin when this is open, at once if it is, and end before it is closed."""
        self._companions.append(companion)
        if self._pump is not None:
            companion.begin()
