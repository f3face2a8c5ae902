"""How often to try again, and how long to wait in between: tenacity's strategies.

An attempt that failed goes back into the queue with a time before which it is not sent; no
place is taken while it waits. A refusal for too high a rate, for want of the provider's own
credit, or by a provider that is down is no attempt and asks nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scheduler.errors import CallFailed

if TYPE_CHECKING:
    from tenacity import RetryCallState

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Retry:
    """When to give up, and how long to wait before the next attempt.

    Attributes:
        stop: A stop strategy of tenacity's, such as ``stop_after_attempt(5)``. Times are
            counted from the submission. None: after three attempts.
        wait: A wait strategy of tenacity's. None: exponential from half a second to half a
            minute, with full jitter. What the provider asks for is waited at least.
        on: Others for some errors, by class; of several that fit the most special holds.

    Example:
        >>> from tenacity import stop_after_attempt, wait_fixed
        >>> from scheduler import CallTimeout
        >>> retry = Retry(stop_after_attempt(5), on={CallTimeout: Retry(stop_after_attempt(1))})
        >>> retry.delay_ms(4, CallFailed("reset")) is None, retry.delay_ms(1, CallTimeout("slow"))
        (False, None)
    """

    stop: Callable[[RetryCallState], bool] | None = None
    wait: Callable[[RetryCallState], float] | None = None
    on: Mapping[type[CallFailed], Retry] = field(default_factory=dict)

    def delay_ms(self, attempt: int, error: CallFailed, waited_ms: int = 0) -> int | None:
        """How long to wait after this attempt; None: give up.

        Args:
            attempt: Number of the attempt that failed, from 1.
            error: How it failed.
            waited_ms: Since the request was submitted.
        """
        rule = next((self.on[kind] for kind in type(error).__mro__ if kind in self.on), self)
        if rule is not self:
            return rule.delay_ms(attempt, error, waited_ms)
        import tenacity

        state = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type]
        state.attempt_number = attempt
        state.start_time, state.outcome_timestamp = 0.0, waited_ms / 1000
        state.outcome = tenacity.Future(attempt)
        state.outcome.set_exception(error)
        stop = self.stop or tenacity.stop_after_attempt(3)
        if stop(state):
            return None
        wait = self.wait or tenacity.wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S)
        return max(int(wait(state) * 1000), error.retry_after_ms or 0)


def plain_retry(max_attempts: int, wait_s: Callable[[int], float] | None) -> Retry:
    """A `Retry` from a number of attempts, and a function from the attempt to seconds."""
    from tenacity import stop_after_attempt

    wait = None if wait_s is None else lambda state: wait_s(state.attempt_number)
    return Retry(stop_after_attempt(max_attempts), wait)
