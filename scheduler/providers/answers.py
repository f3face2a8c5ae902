"""An HTTP answer read: the answer, or an error that says whether it was billed.

What is an error, and what it means for money, is decided in `scheduler.providers.meaning`; its
module docstring has the table. `read_answer` is the only reader, for real providers, wrapped
clients and the simulated one; streams come to the same two functions with what they amount to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from pydantic_core import from_json

from scheduler.answer import Answer
from scheduler.errors import (
    BadAnswer,
    CallFailed,
    ProviderError,
    ProviderRefused,
    brief,
    cut,
)
from scheduler.prices.usage import extract_usage, reported_cost_nusd
from scheduler.providers.credit import Credit, affords
from scheduler.providers.limit_headers import read_limits
from scheduler.providers.limit_words import Said, merged, said_limits
from scheduler.providers.masks import hide, without_half
from scheduler.providers.meaning import (
    Problem,
    Told,
    error_in,
    has_output,
    judge,
    problem_of,
    status_told,
    usage_told,
)
from scheduler.providers.waits import retry_after_ms

MAX_EXCERPT_CHARS = 200
MAX_MESSAGE_CHARS = 1000
MAX_CODE_CHARS = 100
MAX_KEPT_BYTES = 16_384  # of a refusal's body; of longer ones its beginning, as text
_MAY_NAME_LIMITS = frozenset({402, 429})

Secrets = Iterable[str]  # never a list in a variable: see `scheduler.providers.hidden`

MAX_ID_CHARS = 200
_IDS = ("x-generation-id", "x-request-id", "request-id")  # OpenRouter's, most others', Anthropic's
_CONTENTS = frozenset({"choices", "output", "data", "results", "candidates", "content", "error"})


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
        found = _unwrapped(body)
        if found is None or error_in(found) is None:
            _raise_bad_answer(status, content, secrets, was_json=body is not _NOTHING)
        body = found
    return answer_of(body, status, headers, secrets)


def answer_of(
    body: dict[str, Any], status: int, headers: Mapping[str, str], secrets: Secrets = ()
) -> Answer:
    """The answer that a body with a success status is. Raises `CallFailed` if it is none."""
    problem = problem_of(body)
    if problem is not None:
        raise read_problem(problem, body, status, headers, secrets)
    return Answer(
        body, status, usage_told(body), reported_cost_nusd(body),
        request_id(headers, secrets), headers, read_limits(headers),
    )  # fmt: skip


def request_id(headers: Mapping[str, str], secrets: Secrets = ()) -> str | None:
    """The service's own id for a call; a key that it repeats there is hidden."""
    told = headers.get("x-request-id") or headers.get("request-id")
    return None if not told else clean_id(told, secrets)


def clean_id(told: str | None, secrets: Secrets) -> str | None:
    """An id as it may be kept and shown: short, on one line, without a key."""
    return None if told is None else cut(" ".join(hide(told, secrets).split()), MAX_ID_CHARS)


def call_id(headers: Mapping[str, str]) -> str | None:
    """The service's own id for a call, by which it may be asked what became of it."""
    return next((headers[name] for name in _IDS if headers.get(name)), None)


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
        text = without_half(text, secrets)
    return cut(" ".join(text.split()), most)


def _kept(body: dict[str, Any], content: bytes | None, secrets: Secrets) -> Any:
    """What an error keeps of a body: all of it, or the beginning of a long or odd one."""
    content = _encoded(body) if content is None else content
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
    decoded = _unwrapped(decoded) or decoded
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
    is_own = is_json and ("error" in decoded or status < 500 or _is_error_object(decoded))
    told = Told(status, codes, message, is_own)
    error = _error(told, headers, body, content, decoded)
    if is_json:  # what tells its usage did some work, whatever its status; perhaps not all of it
        tell(error, decoded, secrets, is_final=error.is_billed is False)
    return error


def read_problem(
    problem: Problem,
    body: Mapping[str, Any],
    status: int,
    headers: Mapping[str, str],
    secrets: Secrets = (),
) -> CallFailed:
    """The error that stands for a body with a success status that is no answer.

    Its `used` has what the body says of usage and cost: that is the bill, if there is any.
    """
    said, message = problem.error, problem.words
    codes: tuple[str, ...] = ()
    if said is not None:
        whole = said if isinstance(said, dict) and error_in(said) is said else {"error": said}
        message, codes = _message(whole, b"", secrets)
        message = f"{problem.words}: {message}" if problem.words else message
    meant = status_told(codes) or problem.status
    kept = _kept(dict(body), None, secrets)
    if meant is None:
        if said is not None:
            shown = f" {codes[0]}" if codes else ""
            message = f"an error in it{shown}: {message}"
        error: CallFailed = BadAnswer(f"a success status with {message}", status, kept)
        error.is_retryable = problem.is_retryable
    else:
        told = Told(meant, codes, message, True, True, has_output(body))
        error = _error(told, headers, kept, _encoded(said), dict(body))
    error.request_id = clean_id(call_id(headers), secrets)
    tell(error, body, secrets)
    return error


def tell(
    error: CallFailed, body: Mapping[str, Any], secrets: Secrets = (), *, is_final: bool = True
) -> None:
    """Note in an error what an answer says of its usage.

    Args:
        error: What went wrong with it.
        body: The answer, as far as it came.
        secrets: Texts not to keep.
        is_final: It is the whole bill; False: it is at least that.
    """
    # Of an answer that broke off the input may be told while output has come that is not.
    usage = usage_told(body) if is_final else extract_usage(body)
    cost_nusd = reported_cost_nusd(body)
    if cost_nusd is None and (usage is None or not usage.total_tokens):
        return
    rest = {name: value for name, value in body.items() if name not in _CONTENTS}
    error.used = Answer(_hide_in(rest, secrets), 200, usage, cost_nusd)
    if is_final:
        error.is_billed = True


def _error(
    told: Told, headers: Mapping[str, str], kept: Any, content: bytes, decoded: Any
) -> ProviderError:
    seen, said = read_limits(headers), Said()
    wait_ms = retry_after_ms(headers, told.message, content, seen)
    if told.status in _MAY_NAME_LIMITS:
        said = said_limits(told.message, decoded, wait_ms is not None)
        seen = merged(said.limits, seen)
        wait_ms = max(wait_ms or 0, said.wait_ms or 0) or wait_ms
        told = replace(told, names_limit=bool(said.limits) or said.wait_ms is not None)
    verdict = judge(told)
    if verdict.is_of_one:  # it names the limit that it is above, not one that is used up
        seen = read_limits(headers)
    code = told.codes[0] if told.codes else None
    if code is None and told.status == 403 and verdict.kind is ProviderRefused:
        code = "forbidden"
    error = verdict.kind(told.status, told.message or "no reason given", code, kept, wait_ms)
    error.limits, error.is_of_one = seen, verdict.is_of_one
    error.is_billed, error.is_retryable = verdict.is_billed, verdict.is_retryable
    should_retry = headers.get("x-should-retry")
    if should_retry in ("true", "false") and not verdict.is_final:
        error.is_retryable = should_retry == "true"
    if verdict.credit is Credit.GONE:
        error.credit, error.affords = error.message, affords(error.message)
    return error


def _unwrapped(decoded: Any) -> dict[str, Any] | None:
    """The object in a list: Gemini's endpoint for OpenAI's clients wraps its errors so."""
    if type(decoded) is list and decoded and type(decoded[0]) is dict:
        return decoded[0]
    return None


def _is_error_object(decoded: Mapping[str, Any]) -> bool:
    """Whether it is an error as vLLM and Mistral write it."""
    return str(decoded.get("object")).lower() == "error"


def _encoded(value: Any) -> bytes:
    try:
        return json.dumps(value, default=str).encode()
    except (ValueError, RecursionError):
        return b""


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
    codes += _reasons(found, secrets)
    return text, tuple(code for code in codes if code)


def _reasons(error: Mapping[str, Any], secrets: Secrets) -> list[str]:
    """Codes that some put deeper: Google in a list of details, Azure in an inner error."""
    details, inner = error.get("details"), error.get("innererror")
    listed = [each.get("reason") for each in (details if isinstance(details, list) else ())
              if isinstance(each, dict)]  # fmt: skip
    listed.append(inner.get("code") if isinstance(inner, dict) else None)
    return [_code(each, secrets) for each in listed[:10]]


def _code(value: object, secrets: Secrets) -> str:
    if value is None or not isinstance(value, str | int):
        return ""
    return cut(hide(value if isinstance(value, str) else brief(value), secrets), MAX_CODE_CHARS)
