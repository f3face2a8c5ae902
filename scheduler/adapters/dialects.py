"""Which HTTP requests are calls to a model, what they ask, and how they are refused; pure.

>>> call = read_call("POST", "/openai/v1/chat/completions", b'{"model": "m", "messages": []}')
>>> call.url, call.body["model"], call.dialect.value
('/v1/chat/completions', 'm', 'openai')
>>> read_call("GET", "/v1/models", b"") is read_call("POST", "/v1/files", b"{}") is None
True
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast
from urllib.parse import unquote

from pydantic_core import from_json, to_json

from scheduler.errors import (
    BudgetExceeded,
    BudgetUnknown,
    ConfigError,
    CostTooHigh,
    KeyConflict,
    PriceUnknown,
    PromptTooLong,
    ProviderUnavailable,
    RequestRejected,
    SchedulerClosed,
    SchedulerError,
)
from scheduler.marks import Marks
from scheduler.money import decimal_usd
from scheduler.request import (
    CHAT,
    COMPLETIONS,
    EMBED_CONTENT,
    EMBEDDINGS,
    GENERATE,
    MESSAGES,
    MODERATIONS,
    RESPONSES,
)

HEADER_PREFIX = "x-scheduler-"
_HEADERS = {
    "x-scheduler-budget": "budget",
    "x-scheduler-priority": "priority",
    "x-scheduler-job": "job",
    "x-scheduler-deadline": "deadline",
    "x-scheduler-max-cost": "max_cost",
}


class Dialect(StrEnum):
    """Whose forms are spoken."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"


# Ends of paths, the longer before the shorter; and the member without which a body is no call.
_ENDPOINTS = (
    ("/chat/completions", CHAT, "messages", Dialect.OPENAI),
    ("/responses", RESPONSES, "input", Dialect.OPENAI),
    ("/embeddings", EMBEDDINGS, "input", Dialect.OPENAI),
    ("/completions", COMPLETIONS, "prompt", Dialect.OPENAI),
    ("/moderations", MODERATIONS, "input", Dialect.OPENAI),
    ("/messages", MESSAGES, "messages", Dialect.ANTHROPIC),
)
_OF_GOOGLE = {
    "generateContent": (GENERATE, "contents"),
    "streamGenerateContent": (GENERATE, "contents"),
    "embedContent": (EMBED_CONTENT, "content"),
    "batchEmbedContents": (EMBED_CONTENT, "requests"),
}
_GOOGLE_PATH = re.compile(r"/models/(?P<model>[^/:]+):(?P<method>\w+)$")


@dataclass(frozen=True, slots=True)
class Call:
    """A call to a model, as an HTTP request has it.

    Attributes:
        url: The endpoint, as `Request.url` names it.
        body: The JSON body; a model that stands in the path is in it, too.
    """

    url: str
    body: dict[str, Any]
    dialect: Dialect

    def encode(self, body: Mapping[str, Any]) -> bytes:
        """Another body for the same call, as it is sent."""
        if self.dialect is Dialect.GOOGLE:
            body = {name: value for name, value in body.items() if name not in ("model", "stream")}
        try:
            return to_json(body)
        except ValueError:  # half a surrogate pair
            return json.dumps(body).encode()

    def path(self, path: str, body: Mapping[str, Any]) -> str:
        """The path for another body, where it tells the model."""
        if self.dialect is not Dialect.GOOGLE or body.get("model") == self.body["model"]:
            return path
        return _GOOGLE_PATH.sub(rf"/models/{body.get('model')}:\g<method>", path)


def read_call(method: str, path: str, content: bytes) -> Call | None:
    """The call that an HTTP request makes; None: it is about something else.

    Args:
        method: Such as ``"POST"``.
        path: Of its URL, without the query.
        content: Its whole body.
    """
    if method != "POST":
        return None
    found = _GOOGLE_PATH.search(path)
    if found is not None:
        return _read_google(unquote(found["model"]), found["method"], content)
    for end, url, needed, dialect in _ENDPOINTS:
        if path.endswith(end):
            body = _decode(content)
            return None if body is None or needed not in body else Call(url, body, dialect)
    return None


def _read_google(model: str, method: str, content: bytes) -> Call | None:
    url, needed = _OF_GOOGLE.get(method, ("", ""))
    body = _decode(content) if url else None
    if body is None or needed not in body:
        return None
    body["model"] = model
    if method == "streamGenerateContent":
        body["stream"] = True
    return Call(url, body, Dialect.GOOGLE)


def _decode(content: bytes) -> dict[str, Any] | None:
    try:
        body = from_json(content)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def read_marks(headers: Mapping[str, str]) -> Marks:
    """What the ``X-Scheduler-…`` headers say.

    Args:
        headers: Found by names in lower case.

    Raises:
        ConfigError: There is no such header.
    """
    marks: dict[str, Any] = {}
    for name in headers:
        lower = name.lower()
        if not lower.startswith(HEADER_PREFIX):
            continue
        mark, value = _HEADERS.get(lower), headers[name].strip()
        if mark is None:
            known = ", ".join(each.title() for each in _HEADERS)
            raise ConfigError("headers", f"{name!r} is not one of {known}; nothing was sent")
        marks[mark] = value
    if "," in marks.get("budget", ""):
        marks["budget"] = [name.strip() for name in marks["budget"].split(",")]
    if marks.get("priority", "").isdecimal():
        marks["priority"] = int(marks["priority"][:3])
    return cast(Marks, marks)


# Refusals


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer made up here: nothing was sent."""

    status: int
    headers: dict[str, str]
    content: bytes


_WILL_NOT_RUN = (BudgetExceeded, CostTooHigh, PriceUnknown, PromptTooLong)
_ANTHROPIC_TYPES = {
    400: "invalid_request_error", 402: "billing_error", 409: "invalid_request_error",
    429: "rate_limit_error", 503: "api_error",
}  # fmt: skip
_GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT", 402: "FAILED_PRECONDITION", 409: "ABORTED", 429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}  # fmt: skip


def refusal(error: SchedulerError, dialect: Dialect, now_ms: int) -> Refusal:
    """A refusal as an answer in the provider's own form, which its SDK raises as its own error.

    402: it will not run as it is. 429: it may, later. Neither is tried again by an SDK.
    """
    status, code, retry_after_s = http_status(error, now_ms)
    message = str(error)
    details = {"code": code, **_numbers(error)}
    if dialect is Dialect.ANTHROPIC:
        said: dict[str, Any] = {"type": _ANTHROPIC_TYPES[status], "message": message}
        body = {"type": "error", "error": said, "scheduler": details}
    elif dialect is Dialect.GOOGLE:
        said = {"code": status, "message": message, "status": _GOOGLE_STATUSES[status]}
        body = {"error": said, "scheduler": details}
    else:
        said = {"message": message, "type": code, "param": None, "code": code}
        body = {"error": said, "scheduler": details}
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
    return Refusal(status, headers, to_json(body))


def http_status(error: SchedulerError, now_ms: int) -> tuple[int, str, int | None]:
    """A refusal as HTTP status, code, and seconds after which to try again, if any."""
    if isinstance(error, BudgetExceeded):
        after_s = _seconds_until(error.resets_at_ms, now_ms)
        return (402 if after_s is None else 429), "budget_exceeded", after_s
    if isinstance(error, ProviderUnavailable):
        return 429, error.reason, _seconds_until(error.retries_at_ms, now_ms)
    code = _snake(type(error).__name__)
    if isinstance(error, _WILL_NOT_RUN):
        return 402, code, None
    if isinstance(error, KeyConflict):
        return 409, code, None
    if isinstance(error, ConfigError | BudgetUnknown):
        return 400, code, None
    if isinstance(error, RequestRejected) and not isinstance(error, SchedulerClosed):
        return 429, code, None
    return 503, code, None


def _seconds_until(instant_ms: int | None, now_ms: int) -> int | None:
    return None if instant_ms is None else max(1, math.ceil((instant_ms - now_ms) / 1000))


def _numbers(error: SchedulerError) -> dict[str, Any]:
    if not isinstance(error, BudgetExceeded):
        return {}
    names = ("limit", "posted", "reserved", "needed")
    amounts = {name: getattr(error, name) for name in names}
    if error.unit == "usd":
        amounts = {f"{name}_usd": decimal_usd(each) for name, each in amounts.items()}
    resets = None if error.resets_at is None else error.resets_at.isoformat()
    return {"budget": error.budget, "unit": error.unit, **amounts, "resets_at": resets}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
