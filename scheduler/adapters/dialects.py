"""Which HTTP requests are calls to a model, what they ask, and how they are refused; pure.

>>> call = read_call("/openai/v1/chat/completions", b'{"model": "m", "messages": []}')
>>> call.url, call.body["model"], call.dialect.value, call.asks
('/v1/chat/completions', 'm', 'openai', True)
>>> is_endpoint("/v1/models"), is_endpoint("/v1/files")
(False, False)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

from pydantic_core import from_json, to_json

from scheduler.core.marks import Marks
from scheduler.errors import (
    BudgetExceeded,
    BudgetUnknown,
    ConfigError,
    CostTooHigh,
    KeyConflict,
    PriceUnknown,
    PromptTooLong,
    ProviderRefused,
    ProviderUnavailable,
    RequestRejected,
    SchedulerClosed,
    SchedulerError,
    WaitsForItself,
    WrongLoop,
)
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

    @classmethod
    def of(cls, path: str) -> Dialect:
        """The dialect of an endpoint."""
        if _hosted(path) is not None:
            return cls.ANTHROPIC
        if _GOOGLE_PATH.search(path):
            return cls.GOOGLE
        return next((each[3] for each in _ENDPOINTS if path.rstrip("/").endswith(each[0])),
                    cls.OPENAI)  # fmt: skip


_Endpoint = tuple[str, str, str, Dialect]
_SHORT = 200  # characters: longer paths are looked at each time
# Ends of paths, the longer before the shorter; and the member without which a body is no call.
_ENDPOINTS: tuple[_Endpoint, ...] = (
    ("/chat/completions", CHAT, "messages", Dialect.OPENAI),
    ("/agents/completions", CHAT, "messages", Dialect.OPENAI),  # Mistral's
    ("/responses", RESPONSES, "input", Dialect.OPENAI),
    ("/embeddings", EMBEDDINGS, "input", Dialect.OPENAI),
    ("/completions", COMPLETIONS, "prompt", Dialect.OPENAI),
    ("/moderations", MODERATIONS, "input", Dialect.OPENAI),
    ("/messages", MESSAGES, "messages", Dialect.ANTHROPIC),
)
_ENDS = tuple(each[0] for each in _ENDPOINTS)
_OF_GOOGLE = {
    "generateContent": (GENERATE, "contents"),
    "streamGenerateContent": (GENERATE, "contents"),
    "embedContent": (EMBED_CONTENT, "content"),
    "batchEmbedContents": (EMBED_CONTENT, "requests"),
}
_GOOGLE_PATH = re.compile(r"/models/(?P<model>[^/:]+):(?P<method>\w+)$")
# Anthropic's models at Google's and at Amazon's: the model stands in the path.
_HOSTED_PATHS = (
    re.compile(r"/publishers/anthropic/models/(?P<model>[^/:]+)(?P<end>:(rawP|streamRawP)redict)$"),
    re.compile(r"/model/(?P<model>.+)(?P<end>/invoke)$"),
)
_BINARY_STREAM = re.compile(r"/model/.+/invoke-with-response-stream$")
_COUNTS_TOKENS = "count-tokens"
_DEPLOYMENT = re.compile(r"/deployments/[^/]+/")


@dataclass(frozen=True, slots=True)
class Call:
    """A call to a model, as an HTTP request has it.

    Attributes:
        url: The endpoint, as `Request.url` names it.
        body: The JSON body; a model that stands in the path is in it, too.
        asks: Whether the body has what makes it one: others have paths that end alike.
        in_path: Members of `body` that stand in the path, and not in the body that is sent.
    """

    url: str
    body: dict[str, Any]
    dialect: Dialect
    asks: bool = True
    in_path: tuple[str, ...] = ()

    def encode(self, body: Mapping[str, Any]) -> bytes:
        """Another body for the same call, as it is sent."""
        body = {name: value for name, value in body.items() if name not in self.in_path}
        try:
            return to_json(body)
        except ValueError:  # half a surrogate pair
            return json.dumps(body).encode()

    def path(self, path: str, body: Mapping[str, Any]) -> str:
        """The path for another body, where it tells the model: Google's, and Azure's deployment."""
        model = quote(str(body.get("model")), safe="")
        if model == quote(str(self.body.get("model")), safe=""):
            return path
        hosted = _hosted(path)
        if hosted is not None:
            return f"{path[: hosted.start('model')]}{model}{hosted['end']}"
        if self.dialect is Dialect.GOOGLE:
            return _GOOGLE_PATH.sub(rf"/models/{model}:\g<method>", path)
        return _DEPLOYMENT.sub(rf"/deployments/{model}/", path)


def is_endpoint(path: str) -> bool:
    """Whether calls to models are made at such a path."""
    if _hosted(path) is not None:
        return True
    found = _GOOGLE_PATH.search(path)
    if found is not None:
        return found["method"] in _OF_GOOGLE
    return path.rstrip("/").endswith(_ENDS)


def _hosted(path: str) -> re.Match[str] | None:
    """Where the path of a hosted model of Anthropic's tells it."""
    found = next(filter(None, (each.search(path) for each in _HOSTED_PATHS)), None)
    return None if found is None or found["model"] == _COUNTS_TOKENS else found


def is_binary_stream(path: str) -> bool:
    """Whether a call is answered in Amazon's own binary stream, which nobody here can follow."""
    return _BINARY_STREAM.search(path) is not None


def asks(url: str, body: object) -> bool:
    """Whether a POST asks a model.

    Args:
        url: As an SDK names it: a path, or a whole URL, maybe with a query.
        body: What is sent; one that cannot be looked into is taken for a question.

    >>> asks("/v1/messages?beta=true", {"messages": []}), asks("/threads/1/messages", {"role": "u"})
    (True, False)
    """
    path = urlsplit(url).path
    if not is_endpoint(path) or not isinstance(body, Mapping):
        return is_endpoint(path)
    if _hosted(path) is not None:
        return "messages" in body and "anthropic_version" in body
    found = _GOOGLE_PATH.search(path)
    if found is not None:
        return _OF_GOOGLE[found["method"]][1] in body
    return next(each[2] for each in _ENDPOINTS if path.rstrip("/").endswith(each[0])) in body


def read_call(path: str, content: bytes) -> Call | None:
    """The call that a POST to an endpoint makes; None: its body is no JSON object.

    Args:
        path: Of its URL, without the query.
        content: Its whole body.
    """
    body = decoded(content)
    if body is None:
        return None
    plain = _plain(path) if len(path) <= _SHORT else None
    if plain is not None:
        _, url, needed, dialect = plain
        return Call(url, body, dialect, needed in body)
    hosted = _hosted(path)
    if hosted is not None:
        in_path = tuple(name for name in ("model", "stream") if name not in body)
        is_one = "messages" in body and "anthropic_version" in body
        body["model"] = unquote(hosted["model"])
        return Call(MESSAGES, body, Dialect.ANTHROPIC, is_one, in_path)
    found = _GOOGLE_PATH.search(path)
    if found is not None:
        url, needed = _OF_GOOGLE[found["method"]]
        body["model"] = unquote(found["model"])
        if found["method"] == "streamGenerateContent":
            body["stream"] = True
        return Call(url, body, Dialect.GOOGLE, needed in body, ("model", "stream"))
    _, url, needed, dialect = next(
        each for each in _ENDPOINTS if path.rstrip("/").endswith(each[0])
    )
    return Call(url, body, dialect, needed in body)


@lru_cache(maxsize=1_000)
def _plain(path: str) -> _Endpoint | None:
    """The endpoint at a path that tells no model; None: it does, or is none."""
    if _hosted(path) is not None or _GOOGLE_PATH.search(path) is not None:
        return None
    return next((each for each in _ENDPOINTS if path.rstrip("/").endswith(each[0])), None)


def decoded(content: bytes) -> dict[str, Any] | None:
    """The JSON object that a body is; None: it is none."""
    try:
        body = from_json(content)
    except ValueError:
        try:
            body = json.loads(content)  # which takes half a surrogate pair
        except (ValueError, RecursionError):
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
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error",
    403: "permission_error", 404: "not_found_error", 405: "invalid_request_error",
    408: "invalid_request_error", 409: "invalid_request_error", 413: "request_too_large",
    429: "rate_limit_error", 504: "timeout_error",
}  # fmt: skip
_GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED", 404: "NOT_FOUND", 405: "INVALID_ARGUMENT", 408: "DEADLINE_EXCEEDED",
    409: "ABORTED", 413: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 502: "UNAVAILABLE",
    503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip


def refusal(error: SchedulerError, dialect: Dialect, now_ms: int) -> Refusal:
    """A refusal as an answer in the provider's own form, which its SDK raises as its own error.

    402: it will not run as it is. 429: it may, later. Neither is tried again by an SDK.
    """
    status, code, retry_after_s = http_status(error, now_ms)
    body = refusal_body(dialect, status, code, str(error))
    body["scheduler"] = {"code": code, **numbers_of(error)}
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
    return Refusal(status, headers, to_json(body))


def refusal_body(dialect: Dialect, status: int, code: str, message: str) -> dict[str, Any]:
    """An error as a provider would write it."""
    if dialect is Dialect.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    if dialect is Dialect.GOOGLE:
        kind = _GOOGLE_STATUSES.get(status, "INTERNAL")
        return {"error": {"code": status, "message": message, "status": kind}}
    return {"error": {"message": message, "type": code, "param": None, "code": code}}


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
    if isinstance(error, KeyConflict | WaitsForItself):
        return 409, code, None
    if isinstance(error, ConfigError | BudgetUnknown):
        return 400, code, None
    if isinstance(error, RequestRejected) and not isinstance(error, SchedulerClosed | WrongLoop):
        return 429, code, None
    if isinstance(error, ProviderRefused):
        return 400, error.code, None
    return 503, code, None


def _seconds_until(instant_ms: int | None, now_ms: int) -> int | None:
    return None if instant_ms is None else max(1, math.ceil((instant_ms - now_ms) / 1000))


def numbers_of(error: SchedulerError) -> dict[str, Any]:
    """The budget that lacked something, and its amounts; empty for other refusals."""
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
