"""What does an HTTP answer mean? An answer, or an error that says whether it was billed.

    2xx, a JSON object                       an answer
    2xx, anything else                       BadAnswer            unknown
    3xx                                      ProviderRefused      not billed: never followed
    401, 403                                 CredentialsRefused   not billed
    429                                      RateLimited          not billed
    other 4xx                                ProviderRefused      not billed
    503, 529 with the provider's own error   ProviderOverloaded   not billed: it did no work
    other 5xx                                ProviderOverloaded   unknown

`read_answer` is the only judge of this, for real providers and for the simulated one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pydantic_core import from_json

from scheduler.errors import (
    BadAnswer,
    CredentialsRefused,
    ProviderError,
    ProviderOverloaded,
    ProviderRefused,
    RateLimited,
    brief,
    cut,
)
from scheduler.providers.base import Answer
from scheduler.providers.credit import Credit, credit_of
from scheduler.providers.limit_headers import read_limits, retry_after_ms
from scheduler.usage import extract_usage, reported_cost_nusd

MAX_EXCERPT_CHARS = 200
MAX_MESSAGE_CHARS = 1000
MAX_CODE_CHARS = 100
MAX_KEPT_BYTES = 16_384  # of a refusal's body; of longer ones its beginning, as text
HIDDEN = "[hidden]"

Secrets = Sequence[str]

_DID_NO_WORK = frozenset({503, 529})
_RETRYABLE_REFUSALS = frozenset({408, 409, 425})
_RESULTS = ("choices", "output", "data", "results", "candidates")


def read_answer(
    status: int, headers: Mapping[str, str], content: bytes, secrets: Secrets = ()
) -> Answer:
    """Turn what came back into an answer.

    Args:
        status: The HTTP status.
        headers: Names in lower case, or found in any case.
        content: The whole body.
        secrets: Keys that must not appear in an error, even if the other side repeats them.

    Raises:
        CallFailed: One of its leaves; the module docstring says which.
    """
    if not 200 <= status < 300:
        raise read_error(status, headers, content, secrets)
    body = _decode(content)
    if type(body) is not dict:
        _raise_bad_answer(status, content, secrets, was_json=body is not _NOTHING)
    if body.get("error") and not any(body.get(name) for name in _RESULTS):
        message, codes = _message(body, content, secrets)
        said = f" {codes[0]}" if codes else ""
        problem = f"a success status with an error in it{said}: {message}"
        raise BadAnswer(problem, status, _kept(body, content, secrets))
    return Answer(
        body, status, extract_usage(body), reported_cost_nusd(body), headers.get("x-request-id"),
        headers, read_limits(headers),
    )  # fmt: skip


_NOTHING = object()


def _decode(content: bytes) -> Any:
    """The JSON value, or `_NOTHING` if it is not JSON."""
    try:
        return from_json(content)
    except ValueError as exc:
        if "recursion" in str(exc):  # thousands of brackets, which Python's decoder chokes on
            return _NOTHING
    try:
        # Python's decoder takes what the quick one does not, such as half a surrogate pair:
        # an answer that was paid for is not thrown away for that.
        return json.loads(content)
    except (ValueError, RecursionError):
        return _NOTHING


def _raise_bad_answer(status: int, content: bytes, secrets: Secrets, was_json: bool) -> NoReturn:
    excerpt = _excerpt(content, secrets)
    start = content[:200].lstrip()[:1]
    if was_json:
        problem = "JSON, but not an object"
    elif not len(content):
        problem = "an empty body"
    elif start == b"<":
        problem = "HTML instead of JSON; is the base URL right, is there a proxy or login page?"
    elif start in (b"{", b"["):
        problem = "broken or truncated JSON"
    else:
        problem = "something that is not JSON; is the base URL right?"
    shown = f": {excerpt!r}" if excerpt else ""
    raise BadAnswer(f"HTTP {status} with {problem}{shown}", status, excerpt)


def _excerpt(content: bytes, secrets: Secrets, most: int = MAX_EXCERPT_CHARS) -> str:
    """The beginning, as text. Hidden before it is cut, so that no half of a key is left."""
    enough = 4 * most
    text = hide(content[:enough].decode("utf-8", "replace"), secrets)
    if len(content) > enough:
        text = _without_half_a_secret(text, secrets)
    return cut(" ".join(text.split()), most)


def _without_half_a_secret(text: str, secrets: Secrets) -> str:
    """The text without what it ends with, if that is the beginning of a secret."""
    for secret in secrets:
        for length in range(len(secret) - 1, 0, -1):
            if text.endswith(secret[:length]):
                return text[:-length]
    return text


def hide(text: str, secrets: Secrets) -> str:
    """The text without any of the secrets."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def _kept(body: dict[str, Any], content: bytes, secrets: Secrets) -> Any:
    """What an error keeps of a body: all of it, or the beginning of a long or odd one."""
    if len(content) <= MAX_KEPT_BYTES:
        try:
            return _hide_in(body, secrets)
        except RecursionError:
            pass
    return _excerpt(content, secrets, MAX_MESSAGE_CHARS)


def _hide_in(value: Any, secrets: Secrets) -> Any:
    if isinstance(value, str):
        return hide(value, secrets)
    if isinstance(value, list):
        return [_hide_in(item, secrets) for item in value]
    if isinstance(value, dict):
        return {hide(key, secrets): _hide_in(item, secrets) for key, item in value.items()}
    return value


# Errors


def read_error(
    status: int, headers: Mapping[str, str], content: bytes, secrets: Secrets = ()
) -> ProviderError:
    """Turn an error status and its body into the error that stands for it."""
    decoded = _decode(content)
    if type(decoded) is list and decoded and type(decoded[0]) is dict:
        decoded = decoded[0]  # Gemini's endpoint for OpenAI's clients wraps its errors so
    is_json = type(decoded) is dict
    if is_json:
        message, codes = _message(decoded, content, secrets)
        body = _kept(decoded, content, secrets)
    else:
        body = _excerpt(content, secrets)
        message, codes = body, ()
    if 300 <= status < 400:
        # What comes behind the path may be a secret of the other side.
        where = hide(headers.get("location", "elsewhere").partition("?")[0], secrets)
        message = f"redirected to {cut(where, MAX_EXCERPT_CHARS)}, which is not followed"
    credit = credit_of(status, frozenset(codes), message)
    kind = RateLimited if credit is Credit.HELD else _kind(status)
    wait_ms = retry_after_ms(headers, message, content)
    code = codes[0] if codes else None
    error = kind(status, message or "no reason given", code, body, wait_ms)
    error.limits = read_limits(headers)
    if kind is ProviderOverloaded and status in _DID_NO_WORK and is_json and "error" in decoded:
        error.is_billed = False
    if status in _RETRYABLE_REFUSALS:
        error.is_retryable = True
    should_retry = headers.get("x-should-retry")
    if should_retry in ("true", "false"):
        error.is_retryable = should_retry == "true"
    if credit in (Credit.GONE, Credit.TOO_LARGE) or _is_too_large(message):
        error.is_retryable = False
    if credit is Credit.GONE:
        error.credit = error.message
    return error


def _is_too_large(message: str) -> bool:
    """Whether a request is above the whole limit of a minute: waiting does not help."""
    return "request too large" in message.lower()


def _kind(status: int) -> type[ProviderError]:
    if status in (401, 403):
        return CredentialsRefused
    if status == 429:
        return RateLimited
    return ProviderOverloaded if status >= 500 else ProviderRefused


def _message(
    body: Mapping[str, Any], content: bytes, secrets: Secrets
) -> tuple[str, tuple[str, ...]]:
    """The provider's own words and codes, wherever it puts them; in a length people read."""
    error = body.get("error")
    found = error if isinstance(error, dict) else body
    message = next(
        (found[name] for name in ("message", "detail", "error") if found.get(name)), None
    )
    if message is None:
        message = body
    try:
        text = message if isinstance(message, str) else json.dumps(message)
    except (RecursionError, ValueError):
        text = content.decode("utf-8", "replace")
    text = cut(" ".join(hide(text, secrets).split()), MAX_MESSAGE_CHARS)
    codes = [_code(found.get(name), secrets) for name in ("code", "type", "status")]
    if isinstance(error, str):
        codes.append(_code(error, secrets))
    return text, tuple(code for code in codes if code)


def _code(value: object, secrets: Secrets) -> str:
    if value is None or not isinstance(value, str | int):
        return ""
    return cut(hide(value if isinstance(value, str) else brief(value), secrets), MAX_CODE_CHARS)
