"""What can go wrong with a call to a simulated provider, how often, and how it is told."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from scheduler.errors import ConfigError
from scheduler.request import GEMINI, MESSAGES


class Fault(StrEnum):
    """What can go wrong with a call, and whether it is billed then."""

    RATE_LIMITED = "429"  # not billed
    NO_CREDIT = "no_credit"  # 429 with code insufficient_quota; not billed
    UNAUTHORIZED = "401"  # not billed
    BAD_REQUEST = "400"  # not billed
    SERVER_ERROR = "500"  # billed or not, as a coin falls
    OVERLOADED = "503"  # with an error body; not billed
    TIMEOUT = "timeout"  # no answer ever; billed
    RESET = "reset"  # the connection breaks off; billed or not, as a coin falls
    HTML = "html"  # a proxy's page with status 200; not billed
    TRUNCATED = "truncated"  # half a body; billed
    NO_USAGE = "no_usage"  # an answer without usage; billed
    HUGE_USAGE = "huge_usage"  # a hundred times what it should be; billed
    STREAM_CUT = "stream_cut"  # a stream breaks off halfway; billed
    STREAM_ERROR = "stream_error"  # a stream ends in an error halfway; billed
    SLOW = "slow"  # ten times the latency, at least a second; billed

    @classmethod
    def parse(cls, name: str) -> Fault:
        """Turn a name into a fault.

        Raises:
            ConfigError: There is none of that name.
        """
        try:
            return cls(str(name))
        except ValueError:
            raise ConfigError("fail", f"{name!r} is not one of {', '.join(cls)}") from None


MAYBE_BILLED = frozenset({Fault.SERVER_ERROR, Fault.RESET})
REFUSALS: dict[Fault, tuple[int, str, str, str]] = {  # status, type, code, message
    Fault.RATE_LIMITED: (429, "requests", "rate_limit_exceeded", "Rate limit reached"),
    Fault.NO_CREDIT: (429, "insufficient_quota", "insufficient_quota", "No credit is left"),
    Fault.UNAUTHORIZED: (401, "invalid_request_error", "invalid_api_key", "Incorrect API key"),
    Fault.BAD_REQUEST: (400, "invalid_request_error", "invalid_value", "Invalid value"),
    Fault.SERVER_ERROR: (500, "server_error", "server_error", "The server had an error"),
    Fault.OVERLOADED: (503, "server_error", "overloaded", "The server is overloaded"),
}
_ANTHROPICS = {
    401: "authentication_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 500: "api_error", 503: "overloaded_error",
}  # fmt: skip
_GOOGLES = {
    401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL",
    503: "UNAVAILABLE",
}  # fmt: skip
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Hotel WiFi</body></html>"

_PLAIN = (Fault.RATE_LIMITED, Fault.SERVER_ERROR, Fault.OVERLOADED)

Failing = Mapping[str, float] | Callable[[str, Mapping[str, Any], int], str | None]
"""Shares of calls by fault, or a function from URL, body and number of the call to a fault."""


class Faults:
    """Decides which calls go wrong, and how.

    Args:
        error_rate: Share of calls that fail with 429, 500 or 503, each as often.
        fail: More of them, by name; or a function that decides about every call.

    Raises:
        ConfigError: An unknown fault, or shares that are more than all calls.
    """

    def __init__(self, error_rate: float, fail: Failing | None) -> None:
        named = {} if fail is None or callable(fail) else fail
        self._ask = fail if callable(fail) else None
        self._shares = [(fault, error_rate / len(_PLAIN)) for fault in _PLAIN if error_rate]
        self._shares += [(Fault.parse(name), share) for name, share in named.items() if share]
        shares = [share for _, share in self._shares]
        if any(not 0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
            raise ConfigError("fail", "shares of calls are between 0 and 1, also when added up")

    def draw(
        self, url: str, body: Mapping[str, Any], number: int, rng: random.Random
    ) -> Fault | None:
        """What goes wrong with this call; None: nothing."""
        if self._ask is not None:
            name = self._ask(url, body, number)
            if name is not None:
                return Fault.parse(name)
        if self._shares:
            draw = rng.random()
            for fault, share in self._shares:
                draw -= share
                if draw < 0:
                    return fault
        return None


def error_body(
    url: str,
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    *,
    param: str | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """An error as the API writes it to which the URL belongs; kind and code are OpenAI's."""
    if url.startswith(MESSAGES):
        type_ = _ANTHROPICS.get(status, "invalid_request_error")
        if code == "insufficient_quota":
            type_ = "enforced_spend_limit_reached"
        error: dict[str, Any] = {"type": type_, "message": message}
        return {"type": "error", "error": error, "request_id": request_id}
    if url in GEMINI or url.startswith("/v1beta/") or ":" in url:
        name = _GOOGLES.get(status, "INVALID_ARGUMENT")
        if code == "insufficient_quota":  # which has no code of its own here: the words tell
            message = "Your prepayment credits are depleted (simulated)."
        return {"error": {"code": status, "message": message, "status": name}}
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
