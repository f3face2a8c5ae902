"""How often to try again, and how long to wait in between: tenacity's strategies.

An attempt that failed goes back into the queue with a time before which it is not sent; no
place is taken while it waits. A refusal for too high a rate, for want of the provider's own
credit, or by a provider that is down is no attempt and asks nothing here.

Two things bound what is asked here. What may have cost something uses up *attempts*. What
provably cost nothing (no connection, an overload that the provider itself refused) uses up
*patience*, a time that begins with the first such failure; once it is used up, that counts as an
attempt, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import update_wrapper
from typing import TYPE_CHECKING

from scheduler.duration import parse_duration_ms
from scheduler.errors import CallFailed
from scheduler.guards.hooks import HookRaised, decided, seconds
from scheduler.request import Duration

if TYPE_CHECKING:
    from tenacity import RetryCallState

ATTEMPTS, PATIENCE = 3, "2m"
BATCH_ATTEMPTS = 6  # a line of a batch is not sent again by its caller
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
LONGEST_ASKED_S = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class Retry:
    """When to give up, and how long to wait before the next attempt.

    Attributes:
        stop: A stop strategy of tenacity's, such as ``stop_after_attempt(5)``. Times are
            counted from the submission. None: after three attempts.
        wait: A wait strategy of tenacity's. None: exponential from half a second to half a
            minute, with full jitter. What the provider asks for is waited at least.
        on: Others for some errors, by class; of several that fit the most special holds.
        patience: How long failures that provably cost nothing use up no attempt. None: two
            minutes, or no time at all where there is a `stop`, which then decides alone.

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
    patience: Duration | None = None

    def __post_init__(self) -> None:
        if self.patience is not None:
            parse_duration_ms(self.patience, "patience")

    def delay_ms(
        self, attempt: int, error: CallFailed, waited_ms: int = 0, free: int = 0
    ) -> int | None:
        """How long to wait after this attempt; None: give up.

        Args:
            attempt: Number of the attempt that failed, from 1.
            error: How it failed.
            waited_ms: Since the request was submitted.
            free: How many tries were no attempts besides; they widen the wait.
        """
        try:
            return self._delay_ms(attempt, error, waited_ms, free)
        except HookRaised as exc:
            _tell(error, exc)
            return None

    def _delay_ms(self, attempt: int, error: CallFailed, waited_ms: int, free: int) -> int | None:
        import tenacity

        rule = self._rule(error)
        state = _state(attempt, error, waited_ms)
        usual = tenacity.stop_after_attempt(ATTEMPTS)
        is_over = usual(state) if rule.stop is None else decided(rule.stop, state)
        if is_over is None:
            is_over = usual(state)
        return None if is_over else rule._wait_ms(attempt + free, error, waited_ms)

    def free_delay_ms(
        self, tries: int, error: CallFailed, waited_ms: int, impatient_ms: int
    ) -> int | None:
        """How long to wait after a failure that uses up no attempt; None: it does.

        Args:
            tries: How often it was tried, from 1.
            error: How it failed.
            waited_ms: Since the request was submitted.
            impatient_ms: Since the first failure that used up none.
        """
        rule = self._rule(error)
        patience = rule.patience
        if patience is None:
            patience = PATIENCE if rule.stop is None else 0
        if error.is_billed is not False or impatient_ms >= parse_duration_ms(patience, "patience"):
            return None
        try:
            return rule._wait_ms(tries, error, waited_ms)
        except HookRaised:  # it counts as an attempt, and is asked again for that
            return None

    def without_patience(self) -> Retry:
        """The same, but every failure is an attempt."""
        on = {kind: rule.without_patience() for kind, rule in self.on.items()}
        return replace(self, patience=0, on=on)

    def with_attempts(self, most: int) -> Retry:
        """The same, but it is tried so often at most, and as often unless it is of no use."""
        from tenacity import stop_after_attempt

        on = {kind: rule.with_attempts(most) for kind, rule in self.on.items()}
        return replace(self, stop=stop_after_attempt(most), patience=0, on=on)

    def _rule(self, error: CallFailed) -> Retry:
        rule = next((self.on[kind] for kind in type(error).__mro__ if kind in self.on), self)
        return rule if rule is self else rule._rule(error)

    def _wait_ms(self, number: int, error: CallFailed, waited_ms: int) -> int:
        import tenacity

        state, delay_s = _state(number, error, waited_ms), None
        if self.wait is not None:
            delay_s = seconds(self.wait, LONGEST_ASKED_S, state)
        if delay_s is None:
            delay_s = tenacity.wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S)(state)
        return max(int(delay_s * 1000), error.retry_after_ms or 0)


def _tell(error: CallFailed, problem: HookRaised) -> None:
    """It is given up: whoever hears of it learns of both."""
    error.message = f"{error.message}; {problem}"


def _state(attempt: int, error: CallFailed, waited_ms: int) -> RetryCallState:
    import tenacity

    state = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = attempt
    state.start_time, state.outcome_timestamp = 0.0, waited_ms / 1000
    state.outcome = tenacity.Future(attempt)
    state.outcome.set_exception(error)
    return state


def plain_retry(
    max_attempts: int, wait_s: Callable[[int], float] | None, patience: Duration = PATIENCE
) -> Retry:
    """A `Retry` from a number of attempts, a function from the attempt to seconds, and patience.

    Who wants one attempt wants no other, whatever it costs.
    """
    from tenacity import stop_after_attempt

    patience = parse_duration_ms(patience, "patience") / 1000 if max_attempts > 1 else 0
    wait = None
    if wait_s is not None:
        wait = update_wrapper(lambda state: wait_s(state.attempt_number), wait_s)
    return Retry(stop_after_attempt(max_attempts), wait, patience=patience)
