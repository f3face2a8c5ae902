"""One admitted request: send it, and say what the attempt means for the ledger.

    answer with a price or usage      post what it cost
    answer without usage              post the ceiling, marked as estimated
    not sent, or refused by the
      provider before doing work      void
    anything else, cancelling too     suspend: it may have been billed

`attempt` is the only place that calls a provider. It never raises: whatever happens
becomes a settlement, so that no reservation is left without an end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from scheduler.errors import CallFailed, RateLimited, SchedulerError
from scheduler.providers.base import Answer, Provider, Tariff
from scheduler.request import RequestState, Response
from scheduler.stores.base import Claimed, Outcome, Settlement

logger = logging.getLogger("scheduler.calls")

MAX_AMOUNT = 10**18  # nano-dollars (a billion dollars) or tokens
MAX_WHY = 300  # characters
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0


@dataclass(slots=True)
class Attempt:
    """How one attempt ended.

    Attributes:
        overrun_nusd: What it cost above its ceiling.
        cooldown_ms: How long nothing should be sent to this provider; None: go on.
        is_sent: False: it was given back before anything was tried.
    """

    claimed: Claimed
    settlement: Settlement
    response: Response | None = None
    error: SchedulerError | None = None
    overrun_nusd: int = 0
    cooldown_ms: int | None = None
    is_sent: bool = True


@dataclass(slots=True)
class CallPolicy:
    """How often to try, and how long to wait in between.

    Attributes:
        wait_s: From the number of the attempt that failed to seconds; None:
            exponential from half a second to half a minute, with full jitter.
    """

    max_attempts: int = 3
    wait_s: Callable[[int], float] | None = None

    def delay_ms(self, attempt: int, error: CallFailed) -> int:
        """How long to wait before the next attempt, at least as long as the provider asked."""
        wait_s = self.wait_s or _jittered
        return max(int(wait_s(attempt) * 1000), error.retry_after_ms or 0)


def _jittered(attempt: int) -> float:
    import tenacity

    state = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = attempt
    return tenacity.wait_random_exponential(FIRST_RETRY_S, LONGEST_RETRY_S)(state)


async def attempt(
    provider: Provider,
    tariff: Tariff,
    claimed: Claimed,
    policy: CallPolicy,
    now_ms: Callable[[], int],
) -> Attempt:
    """Send one admitted request once. Cancelling it suspends the reservation."""
    started_at_ms = now_ms()
    try:
        answer = await provider.send(claimed.request)
        return _succeeded(tariff, claimed, answer, started_at_ms)
    except CallFailed as error:
        return _failed(claimed, error, policy, now_ms())
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return _cancelled(claimed)
        lost = CallFailed("the provider gave the call up by itself")  # nobody here cancelled it
        lost.__cause__ = exc
        return _failed(claimed, lost, policy, now_ms())
    except Exception as exc:
        logger.debug("provider %s raised %r", provider.name, exc)
        unknown = CallFailed(f"the provider raised {type(exc).__name__}: {exc}")
        unknown.__cause__ = exc
        return _failed(claimed, unknown, policy, now_ms())


def _succeeded(tariff: Tariff, claimed: Claimed, answer: Answer, started_at_ms: int) -> Attempt:
    request, usage = claimed.request, answer.usage
    if usage is not None and not is_sane(usage.total_tokens):
        usage = None
    cost_nusd = tariff.cost_nusd(request, answer)
    is_estimated = not is_sane(cost_nusd)
    if cost_nusd is None or is_estimated:
        cost_nusd = claimed.ceiling_nusd
    body = answer.body
    model = body.get("model") if isinstance(body, dict) else None
    response = Response(
        body, answer.status_code, request.key, None, answer.request_id, usage,
        claimed.spent_nusd + cost_nusd, is_estimated, claimed.attempt, claimed.parked_ms,
        max(0, started_at_ms - claimed.submitted_at_ms),
        model if isinstance(model, str) else request.model, request.metadata,
    )  # fmt: skip
    settlement = Settlement(
        claimed.reservation_id, claimed.request_id, Outcome.POST, RequestState.SUCCEEDED, cost_nusd,
        usage.total_tokens if usage is not None else claimed.ceiling_tokens, response=response,
    )  # fmt: skip
    overrun_nusd = max(0, cost_nusd - claimed.ceiling_nusd)
    return Attempt(claimed, settlement, response, overrun_nusd=overrun_nusd)


def is_sane(amount: object) -> bool:
    """Whether an amount can be posted; nonsense counts as not said."""
    return type(amount) is int and 0 <= amount <= MAX_AMOUNT


def _failed(claimed: Claimed, error: CallFailed, policy: CallPolicy, now_ms: int) -> Attempt:
    void = error.is_billed is False
    outcome = Outcome.VOID if void else Outcome.SUSPEND
    error.attempts = claimed.attempt
    error.cost_nusd = claimed.spent_nusd + (0 if void else claimed.ceiling_nusd)
    settlement = Settlement(
        claimed.reservation_id, claimed.request_id, outcome, RequestState.FAILED
    )
    if not void:
        settlement.why, settlement.provider_id = error.message[:MAX_WHY], error.request_id
    ended = Attempt(claimed, settlement, error=error)
    if isinstance(error, RateLimited) and error.is_retryable:
        # The provider's refusal is about its load, not about this request: it uses up no
        # attempt, and everything else for that provider would be refused as well.
        settlement.state, settlement.is_attempt = RequestState.QUEUED, False
        ended.cooldown_ms = error.retry_after_ms or policy.delay_ms(1, error)
    elif error.is_retryable and claimed.attempt < policy.max_attempts:
        settlement.state = RequestState.QUEUED
        settlement.not_before_ms = now_ms + policy.delay_ms(claimed.attempt, error)
    else:
        settlement.error = describe(error)
    return ended


def _cancelled(claimed: Claimed) -> Attempt:
    settlement = Settlement(
        claimed.reservation_id, claimed.request_id, Outcome.SUSPEND, RequestState.CANCELLED,
        why="cancelled after it was sent",
    )  # fmt: skip
    return Attempt(claimed, settlement)


def describe(error: SchedulerError) -> dict[str, object]:
    """An error as it is stored and written to error files."""
    status = getattr(error, "status", None)
    body = getattr(error, "body", None)
    return {
        "code": getattr(error, "code", type(error).__name__),
        "message": str(error),
        "status": status,
        "body": body if isinstance(body, dict) else None,
        "type": type(error).__name__,
    }
