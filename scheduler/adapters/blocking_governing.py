"""What people do to a `BlockingScheduler` while it runs, and what they see of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from scheduler.budget import Budget
from scheduler.core.intake import Matched
from scheduler.providers.base import Provider
from scheduler.request import Duration, Request
from scheduler.scheduler import Scheduler
from scheduler.stats import Stats
from scheduler.stores.base import Archive, Unknown

if TYPE_CHECKING:
    from scheduler import events
    from scheduler.rehearsal import Finish
    from scheduler.telemetry.prometheus import Metrics

E_ = TypeVar("E_", bound="events.Event")


class BlockingGoverning:
    """The methods of a `BlockingScheduler` for whoever looks after it."""

    scheduler: Scheduler

    @abstractmethod
    def _do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have it done in the loop, and wait."""

    def _ask_there(self, function: Callable[..., Any], *args: Any) -> Any:
        """As `_do`, for what awaits nothing."""

        async def ask() -> Any:
            return function(*args)

        return self._do(ask)

    # Budgets, and looking

    def set_limit(self, name: str, limit: str | int | float | Decimal | None) -> None:
        """Change a budget's limit; see `Scheduler.set_limit`."""
        self._do(self.scheduler.set_limit, name, limit)

    def define(self, *budgets: Budget) -> None:
        """Create budgets, or change them; see `Scheduler.define`."""
        self._do(self.scheduler.define, *budgets)

    def ensure(self, *budgets: Budget) -> None:
        """Create those budgets that are not there; see `Scheduler.ensure`."""
        self._do(self.scheduler.ensure, *budgets)

    def remove_budget(self, name: str) -> None:
        """Have a budget bind nobody any more; see `Scheduler.remove_budget`."""
        self._do(self.scheduler.remove_budget, name)

    def pause(self, name: str) -> None:
        """Admit nothing on a budget until `resume`."""
        self._do(self.scheduler.pause, name)

    def resume(self, name: str) -> None:
        """Admit on a paused budget again."""
        self._do(self.scheduler.resume, name)

    def prune(
        self, older_than: Duration, *, undelivered: bool = True, archive: Archive | None = None
    ) -> int:
        """Forget requests that ended longer ago; see `Scheduler.prune`."""
        prune = partial(self.scheduler.prune, undelivered=undelivered, archive=archive)
        count: int = self._do(prune, older_than)
        return count

    def budgets_of(self, request: Request) -> Matched:
        """Which budgets a request would draw on, and why; see `Scheduler.budgets_of`."""
        found: Matched = self._ask_there(self.scheduler.budgets_of, request)
        return found

    def suspended(self, *, job: str | None = None, limit: int = 1000) -> Sequence[Unknown]:
        """Attempts whose outcome nobody knows; see `Scheduler.suspended`."""
        ask = partial(self.scheduler.suspended, job=job, limit=limit)
        found: Sequence[Unknown] = self._do(ask)
        return found

    def resolve(self, unknown: Unknown, *, charge: str | int | float | Decimal | None) -> bool:
        """Say what became of a call nobody heard back from; see `Scheduler.resolve`."""
        is_done: bool = self._do(partial(self.scheduler.resolve, charge=charge), unknown)
        return is_done

    # Requests and providers

    def digest(self, request: Request) -> str:
        """Fingerprint of what would be sent for a request."""
        return self.scheduler.digest(request)

    def provider_for(self, request: Request) -> str:
        """The name of the provider that a request goes to."""
        return self.scheduler.provider_for(request)

    def validate(self, request: Request, *, for_others: bool = False) -> None:
        """Raise what `submit`, or `enqueue`, would raise for a request; as `Scheduler.validate`."""
        self._ask_there(partial(self.scheduler.validate, for_others=for_others), request)

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of the providers, the default first."""
        return self.scheduler.providers

    @property
    def concurrency(self) -> int:
        """Most calls under way at once, per provider."""
        return self.scheduler.concurrency

    def add_provider(self, provider: Provider) -> None:
        """Have one provider more; see `Scheduler.add_provider`."""
        self._ask_there(self.scheduler.add_provider, provider)

    def probe(self, provider: str) -> bool:
        """Send one request at once to a provider that is closed; see `Scheduler.probe`."""
        is_needed: bool = self._ask_there(self.scheduler.probe, provider)
        return is_needed

    # Its end

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self.scheduler.is_closed

    def check(self) -> None:
        """Raise `StoreError` if queue and ledger cannot be written any more."""
        self.scheduler.check()

    def join(self) -> None:
        """Wait until nothing of this process waits or runs; see `Scheduler.join`."""
        self._do(self.scheduler.join)

    def drain(self) -> None:
        """Stop admitting and wait until nothing runs; see `Scheduler.drain`."""
        self._do(self.scheduler.drain)

    def stop_admitting(self, provider: str | None = None) -> None:
        """Start nothing new, at one provider or at all; see `Scheduler.stop_admitting`."""
        self._ask_there(self.scheduler.stop_admitting, provider)

    def cancel_running(self) -> None:
        """End all calls under way; see `Scheduler.cancel_running`."""
        self._ask_there(self.scheduler.cancel_running)

    # Looking

    def stats(self) -> Stats:
        """A picture of the scheduler now."""
        picture: Stats = self._ask_there(self.scheduler.stats)
        return picture

    def on(self, kind: type[E_], callback: Callable[[E_], None]) -> Callable[[], None]:
        """Call `callback` with every event of a kind, in the scheduler's thread; see `events`."""
        return self.scheduler.on(kind, callback)

    def metrics(self) -> Metrics:
        """What Prometheus is told; see `Scheduler.metrics`. Its `text` and `app` may be awaited in
        any loop.
        """  # noqa: D205
        found: Metrics = self._ask_there(self.scheduler.metrics)
        return found

    def webhook(self, url: str | None = None, **options: Any) -> None:
        """Tell somebody what is new; see `Scheduler.webhook`."""
        self._ask_there(partial(self.scheduler.webhook, url, **options))

    def forecast(self) -> Finish:
        """When all that waits will be done; see `Scheduler.forecast`. It takes about a second."""
        found: Finish = self._do(self.scheduler.forecast)
        return found
