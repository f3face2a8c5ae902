"""What a gateway answers by itself, in the form that its client's SDK raises as its own error."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic_core import to_json

from scheduler.adapters.dialects import Dialect, http_status, numbers_of, refusal_body
from scheduler.errors import (
    BudgetExceeded,
    CallFailed,
    CallInterrupted,
    CallTimeout,
    CredentialsRefused,
    ProviderError,
    SchedulerError,
)
from scheduler.money import decimal_usd

JSON = (b"content-type", b"application/json")
NOT_AGAIN = (b"x-should-retry", b"false")

Fields = list[tuple[bytes, bytes]]


class Whole(NamedTuple):
    """An answer with all that belongs to it."""

    status: int
    headers: Fields
    content: bytes


class Unserved(Exception):
    """A call that is not even looked at: what is wrong with it, as an answer.

    Args:
        status: Of HTTP.
        code: For programs.
        problem: For people; says that nothing was sent.
        headers: Besides the usual ones.
        is_final: An SDK is not to ask again by itself.
    """

    def __init__(
        self, status: int, code: str, problem: str, *headers: tuple[bytes, bytes],
        is_final: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(status, code, problem)
        self.status, self.code, self.problem, self.headers = status, code, problem, headers
        self.is_final = is_final

    def as_answer(self, dialect: Dialect) -> Whole:
        """In a provider's form."""
        body = refusal_body(dialect, self.status, self.code, self.problem)
        usual = [JSON, NOT_AGAIN] if self.is_final else [JSON]
        return Whole(self.status, [*usual, *self.headers], to_json(body))


def refused(
    error: BaseException, dialect: Dialect, now_ms: int, request_id: int | None = None
) -> Whole:
    """An error of ours as an answer; one that a provider gave is told as its own by others.

    402: it will not run as it is. 429: it may, later. None is tried again by an SDK.
    """
    retry_after_s: int | None = None
    if not isinstance(error, SchedulerError):
        status, code, message = 500, "internal_error", "the gateway failed; see its log"
    elif isinstance(error, CallFailed):
        status, code, message = _of_call(error), _code(error), str(error)
    else:
        status, code, retry_after_s = http_status(error, now_ms)
        message = str(error)
    body = refusal_body(dialect, status, code, message)
    details: dict[str, Any] = {"code": code, "request_id": _id(request_id)}
    if isinstance(error, SchedulerError):
        details |= numbers_of(error)
    if isinstance(error, BudgetExceeded) and error.unit == "usd":
        left_nusd = max(0, error.limit - error.posted - error.reserved)
        details["remaining_usd"] = decimal_usd(left_nusd)
    body["error"] = {**details, **body["error"]}  # what a provider says keeps its meaning
    headers = [JSON, NOT_AGAIN]
    if retry_after_s is not None:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    return Whole(status, headers, to_json(body))


def as_event(whole: Whole, dialect: Dialect) -> bytes:
    """An error in the middle of a stream, as its reader's SDK raises it."""
    name = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
    return b"%sdata: %s\n\n" % (name, b" ".join(whole.content.splitlines()))


def _of_call(error: CallFailed) -> int:
    if isinstance(error, CallTimeout):
        return 504
    if isinstance(error, CallInterrupted):
        return 503
    if isinstance(error, CredentialsRefused):
        return 401
    is_ours = isinstance(error, ProviderError) and 400 <= error.status < 500
    return error.status if is_ours else 502  # type: ignore[attr-defined]


def _code(error: CallFailed) -> str:
    return str(getattr(error, "code", None) or type(error).__name__)


def _id(request_id: int | None) -> str | None:
    return None if request_id is None else str(request_id)
