"""One admitted request: send it, and say what the attempt means for the ledger.

    answer with a price or usage      post what it cost
    answer without usage              post the ceiling, marked as estimated
    no answer, but its bill is told   post that; it failed all the same
    not sent, or refused by the
      provider before doing work      void
    anything else, cancelling too     suspend: it may have been billed

`attempt` is the only place that calls a provider. Whatever happens becomes a settlement, so that
no reservation is left without an end; what tears the task itself away, or ends the program, is
raised, and `lost` makes a settlement of that.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from scheduler.answer import Answer
from scheduler.core.steady import is_running
from scheduler.core.tries import Tries
from scheduler.errors import (
    CallFailed,
    CallInterrupted,
    CallTimeout,
    ProviderOverloaded,
    RateLimited,
    SchedulerError,
    TransportFailed,
    cut,
    words_of,
)
from scheduler.events import Settled
from scheduler.guards.contexts import set_within
from scheduler.guards.hooks import PROGRAM_ENDS, complain, gave, raised
from scheduler.guards.plain import logger_of
from scheduler.limits import Heard, Report
from scheduler.limits.meter import Seen
from scheduler.limits.retry import Retry
from scheduler.prices.tariff import Tariff
from scheduler.providers.base import Send
from scheduler.request import Request, RequestState, Response, Usage
from scheduler.stores.base import Claimed, Outcome, Settlement

logger = logger_of("scheduler.calls")

MAX_AMOUNT = 10**18  # nano-dollars (a billion dollars) or tokens
MAX_WHY = 300  # characters


class UnderWay:
    """One attempt while it lasts: what is sent within it is a part of it, and counted with it.

    What is submitted within it is a request of its own, which never waits for it (`nesting`).

    Attributes:
        owner: The store of the scheduler that admitted it.
        request_id: Whose attempt it is.
        outer: The attempt within which it was made; None: within none.
        is_live: Whether it lasts. A task that was begun within it may live longer.
        has_waited: Not for its provider alone: for calls within it, or for its reader.
    """

    __slots__ = ("has_waited", "is_live", "outer", "owner", "request_id")

    def __init__(self, owner: object, request_id: int) -> None:
        self.owner, self.request_id, self.is_live = owner, request_id, True
        self.has_waited = False
        self.outer: UnderWay | None = _under_way.get()
        while self.outer is not None and not self.outer.is_live:
            self.outer = self.outer.outer  # it would be kept for nothing

    def __enter__(self) -> None:
        _under_way.set(self)

    def __exit__(self, *exc: object) -> None:
        self.is_live = False


_under_way: ContextVar[UnderWay | None] = ContextVar("scheduler_under_way", default=None)


if hasattr(os, "register_at_fork"):  # in the fork nothing is under way: its calls are not counted
    os.register_at_fork(after_in_child=lambda: _under_way.set(None))


def going_on_within(attempt: UnderWay | None) -> AbstractContextManager[None]:
    """Run something within a call under way that is run by somebody else, such as its reader."""
    return set_within(_under_way, attempt)


def attempt_around(owner: object) -> UnderWay | None:
    """The admitted call, of the scheduler with this store, within which this code runs."""
    attempt = _under_way.get()
    while attempt is not None and not (attempt.owner is owner and attempt.is_live):
        attempt = attempt.outer
    return attempt


def caller_of_one_more(owner: object) -> UnderWay | None:
    """`attempt_around` for a request that is submitted: whoever makes it may wait for it."""
    attempt = _under_way.get()
    while attempt is not None:
        attempt.has_waited = True
        attempt = attempt.outer
    return attempt_around(owner)


def is_within_call(owner: object) -> bool:
    """Whether this code runs within an admitted call of the scheduler with this store."""
    return attempt_around(owner) is not None


class CancelledAfter(asyncio.CancelledError):
    """Cancels an attempt of which something has been billed already: so much, at the least."""

    def __init__(self, nusd: int) -> None:
        super().__init__()
        self.nusd = nusd


@dataclass(slots=True)
class Attempt:
    """How one attempt ended.

    Attributes:
        overrun_nusd: What it cost above its ceiling.
        told: What it cost at the least, in nano-dollars and tokens, as far as a lost answer told.
        seen: What an answer's headers said about rate limits.
        is_sent: False: it was given back before anything was tried.
        first_ms: How long it took until the first event of a stream came; None: it was no stream.
    """

    claimed: Claimed
    settlement: Settlement
    response: Response | None = None
    error: SchedulerError | None = None
    overrun_nusd: int = 0
    seen: tuple[Seen, ...] = ()
    is_sent: bool = True
    told: tuple[int, int] | None = None
    first_ms: int | None = None


async def attempt(
    provider: str,
    tariff: Tariff,
    claimed: Claimed,
    retry: Retry,
    now_ms: Callable[[], int],
    send: Send,
    tries: Tries,
) -> Attempt:
    """Send one admitted request once. Cancelling it suspends the reservation.

    Args:
        provider: The name of who is asked.
        tariff: What the answer costs.
        claimed: The request, and what is reserved for it.
        retry: Whether and when to try again.
        now_ms: Tells the time.
        send: Asks.
        tries: What became of earlier attempts.
    """
    me, started_at_ms, began_s = asyncio.current_task(), now_ms(), time.monotonic()
    try:
        answer = await send(claimed.request)
        ended = _succeeded(tariff, claimed, answer, started_at_ms, tries)
        if answer.first_s is not None:
            ended.first_ms = max(0, round(1_000 * (answer.first_s - began_s)))
    except CallFailed as error:
        ended = _failed(provider, tariff, claimed, error, retry, now_ms(), tries)
    except asyncio.CancelledError as exc:
        if me is not None and me.cancelling():
            ended = _cancelled(claimed, exc.nusd if isinstance(exc, CancelledAfter) else 0)
        else:
            given_up = CallFailed("the provider gave the call up by itself")  # nobody cancelled it
            given_up.__cause__ = exc
            ended = _failed(provider, tariff, claimed, given_up, retry, now_ms(), tries)
    except PROGRAM_ENDS:
        raise
    except BaseException as exc:
        if isinstance(exc, GeneratorExit) and not is_running(me):
            raise  # the loop is gone, and everything with it
        unknown = CallFailed(f"the provider raised {words_of(exc)}")
        logger.debug("%s: %s", provider, unknown.message)
        unknown.__cause__ = exc
        ended = _failed(provider, tariff, claimed, unknown, retry, now_ms(), tries)
    if ended.response is not None or has_spoken(ended.error):
        tries.heard_from(provider)
    ended.settlement.report = _report(provider, ended, now_ms())
    return ended


def lost(claimed: Claimed, provider: str, now_ms: int, why: str) -> Attempt:
    """The end of a call that was torn away, and of which nobody knows whether it was billed.

    It says nothing about the request, whose key may be submitted again.
    """
    ended = _cancelled(claimed)
    interrupt(ended, why)
    ended.settlement.report = _report(provider, ended, now_ms)
    return ended


def interrupt(ended: Attempt, why: str) -> None:
    """Say why a call was ended from here, to whoever still waits for it."""
    claimed = ended.claimed
    error = CallInterrupted(f"{why}; it may be billed, and what it reserved keeps counting")
    error.attempts = claimed.attempt
    error.cost_nusd = claimed.spent_nusd + max(claimed.ceiling_nusd, ended.settlement.nusd)
    ended.error, ended.settlement.why = error, why[:MAX_WHY]


def _succeeded(
    tariff: Tariff, claimed: Claimed, answer: Answer, started_at_ms: int, tries: Tries
) -> Attempt:
    request, usage = claimed.request, answer.usage
    if usage is not None and not _makes_sense(usage):
        answer, usage = replace(answer, usage=None), None
    cost_nusd = cost_of(tariff, request, answer)
    is_estimated = not is_sane(cost_nusd)
    if cost_nusd is None or is_estimated:
        cost_nusd = claimed.ceiling_nusd
    if not answer.has_all_usage:
        usage, is_estimated = None, True
        cost_nusd = max(cost_nusd, claimed.ceiling_nusd)
    body = answer.body
    model = body.get("model") if isinstance(body, dict) else None
    response = Response(
        body, answer.status_code, request.key, None, answer.request_id, usage,
        claimed.spent_nusd + cost_nusd, is_estimated,
        claimed.attempt + tries.free(claimed.request_id), claimed.parked_ms,
        max(0, started_at_ms - claimed.submitted_at_ms),
        model if isinstance(model, str) else request.model, request.metadata, request.instead_of,
    )  # fmt: skip
    settlement = Settlement(
        claimed.reservation_id, claimed.request_id, Outcome.POST, RequestState.SUCCEEDED, cost_nusd,
        usage.total_tokens if usage is not None else claimed.ceiling_tokens, response=response,
    )  # fmt: skip
    overrun_nusd = max(0, cost_nusd - claimed.ceiling_nusd)
    return Attempt(claimed, settlement, response, overrun_nusd=overrun_nusd, seen=answer.limits)


def cost_of(tariff: Tariff, request: Request, answer: Answer) -> int | None:
    """What an answer cost; None: nobody says, or nothing that makes sense: it is there, and paid."""
    try:
        cost_nusd = tariff.cost_nusd(request, answer)
    except PROGRAM_ENDS:
        raise
    except BaseException as exc:
        complain(tariff.cost_nusd, raised(exc), "what was quoted counts")
        return None
    if cost_nusd is None or is_sane(cost_nusd):
        return cost_nusd
    complain(tariff.cost_nusd, gave(cost_nusd), "what was quoted counts")
    return None


def _makes_sense(usage: object) -> bool:
    if not isinstance(usage, Usage):
        return False
    return is_sane(usage.input_tokens) and is_sane(usage.output_tokens) and is_sane(
        usage.cached_tokens
    ) and is_sane(usage.total_tokens)  # fmt: skip


def is_sane(amount: object) -> bool:
    """Whether an amount can be posted; nonsense counts as not said."""
    return type(amount) is int and 0 <= amount <= MAX_AMOUNT


def _failed(
    provider: str,
    tariff: Tariff,
    claimed: Claimed,
    error: CallFailed,
    retry: Retry,
    now_ms: int,
    tries: Tries,
) -> Attempt:
    void = error.is_billed is False
    told_nusd = None if void else _told_nusd(tariff, claimed, error)
    posted_nusd = _to_post_nusd(claimed, error, told_nusd)
    counted_nusd = claimed.ceiling_nusd if posted_nusd is None else posted_nusd
    tried, free = tries.of(claimed.request_id), tries.free(claimed.request_id)
    error.attempts = claimed.attempt + free
    error.cost_nusd = claimed.spent_nusd + (0 if void else counted_nusd)
    settlement = Settlement(
        claimed.reservation_id, claimed.request_id, Outcome.VOID if void else Outcome.SUSPEND,
        RequestState.FAILED,
    )  # fmt: skip
    ended = Attempt(claimed, settlement, error=error)
    if posted_nusd is not None:
        settlement.outcome, settlement.nusd = Outcome.POST, posted_nusd
        usage = error.used.usage if _makes_sense(error.used.usage) else None
        settlement.tokens = claimed.ceiling_tokens if usage is None else usage.total_tokens
        ended.overrun_nusd = max(0, posted_nusd - claimed.ceiling_nusd)
    elif not void:
        settlement.why, settlement.provider_id = error.message[:MAX_WHY], error.request_id
        usage = None if told_nusd is None else error.used.usage
        if told_nusd is not None and usage is not None:
            ended.told = told_nusd, usage.total_tokens
    # What cost something is an attempt, whatever it was refused for: else it is paid without end.
    is_limited = isinstance(error, RateLimited) and error.is_retryable
    if void and (error.credit is not None or is_limited):
        # It says nothing about this request, and uses up no attempt: all others would meet the
        # same. The gate knows when to go on.
        settlement.state, settlement.is_attempt = RequestState.QUEUED, False
        return ended
    delay_ms = None
    settlement.is_decided = void and not error.is_retryable  # no other try is of any use, or wanted
    if error.is_retryable or error.credit is not None:
        waited_ms = now_ms - claimed.submitted_at_ms
        since_ms = None if tried is None else tried.free_since_ms
        impatient_ms = 0 if since_ms is None else now_ms - since_ms
        delay_ms = retry.free_delay_ms(error.attempts, error, waited_ms, impatient_ms)
        settlement.is_attempt = delay_ms is None
        if delay_ms is None:
            # Who never answered has a wrong address, rather than being down for a while.
            settlement.is_decided = void and not tries.is_known(provider)
            delay_ms = retry.delay_ms(claimed.attempt, error, waited_ms, free)
    if delay_ms is not None:
        settlement.state = RequestState.QUEUED
        settlement.not_before_ms = now_ms + delay_ms
    else:
        settlement.error = describe(error)
    return ended


def _told_nusd(tariff: Tariff, claimed: Claimed, error: CallFailed) -> int | None:
    """What a failed answer told of its cost; None: nothing that can be."""
    if error.used is None:
        return None
    return cost_of(tariff, claimed.request, error.used)


def _to_post_nusd(claimed: Claimed, error: CallFailed, told_nusd: int | None) -> int | None:
    """What is to be posted of what a failed answer told; None: its ceiling counts on.

    Where that is the least it cost, and is above the ceiling, the ceiling is added for the rest.
    """
    if told_nusd is None or error.is_billed is True:
        return told_nusd
    rest_nusd = claimed.ceiling_nusd
    return told_nusd + rest_nusd if told_nusd > rest_nusd else None


def _cancelled(claimed: Claimed, least_nusd: int = 0) -> Attempt:
    settlement = Settlement(
        claimed.reservation_id, claimed.request_id, Outcome.SUSPEND, RequestState.CANCELLED,
        why="cancelled after it was sent",
    )  # fmt: skip
    overrun_nusd = max(0, least_nusd - claimed.ceiling_nusd)
    if overrun_nusd:  # what is known counts, above what was reserved, too
        settlement.outcome, settlement.nusd = Outcome.POST, least_nusd
        settlement.tokens = claimed.ceiling_tokens
    return Attempt(claimed, settlement, overrun_nusd=overrun_nusd)


def _report(provider: str, ended: Attempt, now_ms: int) -> Report:
    """What the attempt says about the provider."""
    claimed, error = ended.claimed, ended.error
    report = Report(
        claimed.request_id, provider, claimed.request.model, _heard(ended), now_ms, seen=ended.seen
    )
    report.size = claimed.ceiling_nusd or claimed.ceiling_tokens  # `limits.size_of`
    if isinstance(error, CallFailed):
        report.is_free = error.is_billed is False
        if error.affords is not None:
            from scheduler.providers.credit import Affords

            assert isinstance(error.affords, Affords)
            report.affords = error.affords.size(report.size, claimed.ceiling_tokens)
        report.seen, report.retry_after_ms = error.limits, error.retry_after_ms
        report.words = cut(error.credit or error.message, MAX_WHY)
    usage = None if ended.response is None else ended.response.usage
    if usage is not None:
        report.usage = (usage.input_tokens, usage.output_tokens, usage.cached_tokens)
    return report


def _heard(ended: Attempt) -> Heard:
    error = ended.error
    if error is None:
        return Heard.ANSWERED if ended.response is not None else Heard.OTHER
    if isinstance(error, CallFailed) and error.is_unsent:
        return Heard.UNSENT
    if isinstance(error, CallFailed) and error.credit is not None:
        return Heard.NO_CREDIT
    if isinstance(error, RateLimited):
        return Heard.OTHER if error.is_of_one else Heard.LIMITED
    if isinstance(error, ProviderOverloaded):
        return Heard.BUSY if error.is_billed is False else Heard.DOWN
    is_silent = isinstance(error, TransportFailed | CallTimeout) and not error.has_spoken
    return Heard.DOWN if is_silent else Heard.OTHER


def has_spoken(error: BaseException | None) -> bool:
    """Whether a provider had begun to answer the call that failed so."""
    return isinstance(error, CallFailed) and error.has_spoken


def unsent(claimed: Claimed, provider: str, now_ms: int) -> Report:
    """The report of a call that was given back before anything was sent."""
    return Report(claimed.request_id, provider, claimed.request.model, Heard.UNSENT, now_ms)


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


def settled(
    ended: Attempt, now_ms: int, provider: str, is_superseded: bool, budget: str = ""
) -> Settled:
    """The event that tells of an attempt's end."""
    claimed, settlement = ended.claimed, ended.settlement
    request, cost_nusd = claimed.request, settlement.nusd
    if settlement.outcome is Outcome.SUSPEND:
        cost_nusd = claimed.ceiling_nusd
    return Settled(
        now_ms, claimed.request_id, request.key, request.job, request.model,
        settlement.outcome.value, cost_nusd, ended.overrun_nusd, settlement.state, claimed.attempt,
        ended.response, ended.error, provider, claimed.digest, is_superseded, budget,
        claimed.ceiling_nusd, max(0, now_ms - claimed.made_at_ms), ended.first_ms,
    )  # fmt: skip
