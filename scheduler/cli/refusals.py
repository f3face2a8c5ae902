"""Providers that refuse the caller, whatever is asked: nothing more goes to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from scheduler.cli.exits import Exit
from scheduler.cli.stopping import Ended, Stopping
from scheduler.errors import CredentialsRefused, ProviderError, SchedulerError
from scheduler.scheduler import Scheduler

ALL_REFUSED = 20  # so many refusals and no answer say that it is not the prompts


class Refusals:
    """Tells a refusal of one prompt from one of the caller, and goes on without that provider.

    Args:
        s: Asks them.
        stopping: Ends it all when nobody is left to ask.
        outcome: Takes why.
        say: Tells the user.
        place: Where refusals are told.

    Attributes:
        locked: Providers to which nothing more goes.
    """

    def __init__(
        self, s: Scheduler, stopping: Stopping, outcome: Ended, say: Callable[[str], None],
        place: str,
    ) -> None:  # fmt: skip
        self._s, self._stopping, self._outcome, self._say = s, stopping, outcome, say
        self._place = place
        self.locked: set[str] = set()
        self._counts: Counter[str] = Counter()  # of providers that have answered nothing else
        self._answered: set[str] = set()  # providers that have

    def answered(self, provider: str) -> None:
        """It answered somebody."""
        self._answered.add(provider)

    def key_refused(self, provider: str, error: CredentialsRefused) -> None:
        """It says that it refuses the key."""
        self.lock(provider, f"{error}. Check the key of {provider!r}; a rerun goes on from here")

    def failed(self, provider: str, error: SchedulerError) -> None:
        """One refusal is about its prompt; when there is nothing else, it is about the caller."""
        if provider in self._answered or not isinstance(error, ProviderError):
            return
        if error.status not in (401, 403):
            self._answered.add(provider)
            return
        self._counts[provider] += 1
        if self._counts[provider] >= ALL_REFUSED:
            self.lock(
                provider,
                f"all of the first {ALL_REFUSED} answers of {provider!r} were refusals ({error}). Check "
                f"what the key may do, and the network; they are in {self._place}, and "
                "--retry-failed sends them again; a rerun goes on from here",
            )

    def lock(self, provider: str, message: str) -> None:
        """Send it nothing more; others go on."""
        if provider in self.locked:
            return
        self.locked.add(provider)
        self._outcome.exit = Exit.CREDENTIALS
        if self.locked >= set(self._s.providers):
            self._stopping.stop(message)
            return
        self._outcome.message = self._outcome.message or message
        self._say(message)
        self._s.stop_admitting(provider)
