"""What an exception of somebody else's client means for money, and for the next attempt.

LiteLLM's and the SDKs' are told by what they carry (a status, a response, a cause), so that none
of them has to be installed. What cannot be told is an unknown outcome, which keeps counting.

>>> explain(TimeoutError("too late")).is_billed is None
True
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic_core import to_json

from scheduler.adapters.http import family_of
from scheduler.answer import Answer
from scheduler.core.nested.parts import Bill
from scheduler.errors import (
    CallFailed,
    CallTimeout,
    ProviderRefused,
    RateLimited,
    RequestRejected,
    SchedulerError,
)
from scheduler.providers.answers import Secrets, read_error
from scheduler.providers.engines import explain_httpx
from scheduler.providers.hidden import mask

_NO_HEADERS: Mapping[str, str] = {}
_TIMEOUTS = ("Timeout", "APITimeoutError", "ReadTimeout", "WriteTimeout")
_WRAPPED = (
    "original_exception", "exception", "inner_exception", "original_error", "orig_exc", "error",
    "cause", "reason",
)  # fmt: skip
_MOST_LOOKED_AT = 1000
_AFTER_THE_ANSWER = "Validation"  # it came, was billed, and did not please


def refusal_of(exc: BaseException) -> SchedulerError | None:
    """Why a call was refused here, whatever was raised in the end; None: its provider refused it.

    It is looked for in the exception, in what caused it or was being handled, in the members of
    groups, and where libraries keep what they wrap: LiteLLM's ``original_exception``, tenacity's
    ``last_attempt``, instructor's ``failed_attempts``.

    Args:
        exc: An error of an SDK, such as ``openai.APIStatusError``, or of what is built on one.
    """
    return _refusal(exc, _behind)


def refusal_behind(exc: BaseException) -> SchedulerError | None:
    """As `refusal_of`, but for what was merely being handled, which need not be why it failed."""
    return _refusal(exc, _wrapped_by)


def _refusal(
    exc: BaseException, behind: Callable[[BaseException], Iterator[Any]]
) -> SchedulerError | None:
    found, seen = [exc], set[int]()
    for each in found:  # it grows: what is nearest comes first
        if isinstance(each, SchedulerError) and not isinstance(each, CallFailed):
            return each
        error = _told(each)
        if error is not None:
            return error
        if len(seen) > _MOST_LOOKED_AT:
            break
        for other in behind(each):
            if isinstance(other, BaseException) and id(other) not in seen:
                seen.add(id(other))
                found.append(other)
    return None


def _told(exc: BaseException) -> SchedulerError | None:
    """What the response in an exception says."""
    for name in ("response", "raw_response"):
        error = _member(_member(exc, name), "extensions")
        error = error.get("scheduler.error") if isinstance(error, Mapping) else None
        if isinstance(error, SchedulerError):
            return error
    return None


def _behind(exc: BaseException) -> Iterator[Any]:
    yield from _wrapped_by(exc)
    yield exc.__context__


def _wrapped_by(exc: BaseException) -> Iterator[Any]:
    """The exceptions that one wraps, the one that tells most first."""
    yield exc.__cause__
    for name in _WRAPPED:
        yield _member(exc, name)
    attempt = _member(exc, "last_attempt")  # a future that is done
    with contextlib.suppress(Exception):
        yield attempt.exception(timeout=0) if attempt is not None else None
    attempts = _member(exc, "failed_attempts")
    for each in reversed(attempts) if isinstance(attempts, list | tuple) else ():
        yield _member(each, "exception")
    if isinstance(exc, BaseExceptionGroup):
        yield from exc.exceptions
    yield from exc.args


def _member(thing: Any, name: str) -> Any:
    """A member; None: it has none, or one that cannot be had."""
    try:
        return getattr(thing, name, None)
    except Exception:  # properties of other people's classes may raise whatever they like
        return None


def explain(exc: BaseException, secrets: Secrets = ()) -> CallFailed:
    """The exception as one of ours: was it billed, is it worth another attempt, and when?

    Args:
        exc: What a client or function raised.
        secrets: Texts that must not appear in an error that is kept.
    """
    if isinstance(exc, CallFailed):
        return exc
    error = _explain(exc, secrets)
    mask(error, secrets)
    return error


def billed_for_parts(
    error: CallFailed, raised: BaseException | None, bill: Bill, posts_unknown: bool
) -> None:
    """Let an error of a function count what came by of what it asked, and no less.

    Args:
        error: What the function's exception means by itself.
        raised: That exception; None: the error is our own.
        bill: What came by.
        posts_unknown: Whether parts of which nobody knows are posted, at their ceilings.
    """
    is_refusal = raised is not None and isinstance(refusal_behind(raised), RequestRejected)
    if isinstance(raised, CallFailed) or not (bill.parts or is_refusal):
        is_settled = False  # its own word
    else:
        is_settled = bill.is_bound and (bill.is_known or posts_unknown)
    if is_settled:
        error.is_billed = bill.nusd > 0
    elif bill.nusd and error.is_billed is False:
        error.is_billed = None if not bill.is_known else True
    if bill.nusd and (error.used is None or is_settled):
        error.used = Answer(None, cost_nusd=bill.nusd)


def _explain(exc: BaseException, secrets: Secrets) -> CallFailed:
    kind, text = type(exc).__name__, str(exc) or type(exc).__name__
    said = f"{kind}: {text}"
    if kind == "BudgetExceededError" or "crossed budget" in text:
        # LiteLLM's own budgets, the Router's among them: like a provider's empty purse.
        error: CallFailed = ProviderRefused(400, said, "budget_exceeded")
        error.credit = said
        return error
    cooldown = getattr(exc, "cooldown_time", None)
    if isinstance(cooldown, int | float) and "No deployments available" in text:
        return RateLimited(429, said, retry_after_ms=int(cooldown * 1000))
    # LiteLLM gives all of them a status, broken connections too: what it translates is asked first.
    for cause in _causes(exc):
        family = family_of(cause)
        if family is not None and isinstance(cause, family.RequestError):
            return explain_httpx(cause, 0, family)
        if type(cause).__module__.startswith("litellm.") or _is_timeout(cause):
            continue  # some have a status that no server sent
        if _status(cause) is not None:
            return _by_status(cause, said, secrets)
    if _is_timeout(exc):
        return CallTimeout(said)
    error = _by_status(exc, said, secrets)
    if getattr(error, "status", 0) >= 500:
        error.is_billed = None  # a translation: whether it worked cannot be told any more
    return error


def _is_timeout(exc: BaseException) -> bool:
    return type(exc).__name__ in _TIMEOUTS or isinstance(exc, TimeoutError)


def _status(exc: BaseException) -> int | None:
    """The HTTP status it carries."""
    for holder in (exc, getattr(exc, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """The exception and what led to it."""
    seen: set[int] = set()
    cause: BaseException | None = exc
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        # What was merely being handled may be another attempt's, one that was answered even.
        # LiteLLM alone says by it what it translates.
        is_litellms = type(cause).__module__.startswith("litellm")
        cause = cause.__cause__ or (cause.__context__ if is_litellms else None)


def _by_status(exc: BaseException, said: str, secrets: Secrets) -> CallFailed:
    status = _status(exc)
    if status is None or status < 400 or _AFTER_THE_ANSWER in type(exc).__name__:
        return CallFailed(f"the call raised {said}")
    headers = getattr(getattr(exc, "response", None), "headers", None) or _NO_HEADERS
    body = getattr(exc, "body", None)
    if not isinstance(body, dict):
        body = {"message": str(exc)}
    told = body if "error" in body else {"error": body}
    return read_error(status, headers, to_json(told, fallback=str), secrets)
