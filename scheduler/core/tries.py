"""What became of the earlier attempts of requests that wait for another one.

A request that ends while it waits was not sent *now*; whether it ever was, and what that counts,
only its earlier attempts tell. Nobody may hear that nothing was charged if something may be.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.errors import CallFailed, CallInterrupted, RequestRejected, SchedulerError

MOST_KEPT = 100_000


@dataclass(slots=True)
class Tried:
    """The attempts of one request so far.

    Attributes:
        error: How the last one failed.
        free: How many cost nothing and were not counted as attempts, without those that found
            out that a provider is still down.
        free_since_ms: When the first that cost nothing failed; None: none did.
    """

    error: CallFailed
    free: int = 0
    free_since_ms: int | None = None


class Tries:
    """Those of the requests of one process that were tried, and wait for another attempt."""

    def __init__(self) -> None:
        self._tried: dict[int, Tried] = {}
        self._answered: set[str] = set()

    def of(self, request_id: int) -> Tried | None:
        """The attempts of a request; None: it was not tried, or not here."""
        return self._tried.get(request_id)

    def free(self, request_id: int) -> int:
        """How often a request was tried without using up an attempt."""
        tried = self._tried.get(request_id) if self._tried else None
        return 0 if tried is None else tried.free

    def note(
        self, request_id: int, error: CallFailed, *, is_free: bool, is_probe: bool, now_ms: int
    ) -> None:
        """An attempt failed, and the request waits for another."""
        tried = self._tried.get(request_id)
        if tried is None:
            if len(self._tried) >= MOST_KEPT:  # other processes may have ended them
                del self._tried[next(iter(self._tried))]
            tried = self._tried[request_id] = Tried(error)
        tried.error = error
        if is_free:
            tried.free += not is_probe
            if tried.free_since_ms is None:
                tried.free_since_ms = now_ms

    def heard_from(self, provider: str) -> None:
        """A provider has answered: from now on it can be down, but it is not a wrong address."""
        self._answered.add(provider)

    def is_known(self, provider: str) -> bool:
        """Whether a provider ever answered this process."""
        return provider in self._answered

    def forget(self, request_id: int) -> None:
        """The request has ended."""
        if self._tried:
            self._tried.pop(request_id, None)

    def ended(self, request_id: int, error: SchedulerError, why: str) -> SchedulerError:
        """What to tell of a request that ends while it waits; it is forgotten then.

        Args:
            request_id: Which one.
            error: What it would hear if it had never been tried.
            why: Why there is no further attempt.
        """
        error = self.left(request_id, error, why)
        self.forget(request_id)
        return error

    def left(self, request_id: int, error: SchedulerError, why: str) -> SchedulerError:
        """As `ended`, for one caller of a request that waits on for others."""
        tried = self._tried.get(request_id) if self._tried else None
        if tried is None or not tried.error.cost_nusd or not isinstance(error, RequestRejected):
            return error
        last = tried.error
        if isinstance(last, CallInterrupted):
            return last
        ended = CallInterrupted(f"{why}, so there is no further attempt; the last: {last.message}")
        ended.attempts, ended.cost_nusd = last.attempts, last.cost_nusd
        ended.request_id, ended.__cause__ = last.request_id, last
        return ended
