"""What an answer means: was it billed, is it worth another attempt, whose fault is it? Pure.

One table, for whole bodies and for streams, for real providers, wrapped clients and the simulated
one. *Inside* means: told within an answer whose HTTP status was a success.

    what came back                            is                    billed           tried again
    2xx, with what was asked for              an answer             by its usage     –
    2xx, cut short by a cap or a filter,      an answer: the        by its usage     –
      a prompt blocked (Gemini)               service's last word
    2xx, a choice that ended in an error,     as the error's own    by its usage,    as the status
      an error object, a failed response        status              else as below
    2xx, an error that names no status        BadAnswer             by its usage,    no
                                                                    else unknown
    2xx, no choices or no candidates          BadAnswer             likewise         yes
    2xx, HTML, half a body, no JSON object    BadAnswer             unknown          no
    3xx                                       ProviderRefused       no               no
    401; 400 or 403 that says that the key    CredentialsRefused    no               no
      or its account is refused
    429, and money held by calls under way    RateLimited           no               yes
    402, 429, … that say "no credit"          by status             no               waits for it
    400 content_filter (Azure bills it)       ProviderRefused       unknown          no
    other 4xx, other 403 among them           ProviderRefused       no               408, 409, 425
    503, 529 with the service's own error     ProviderOverloaded    no: no work      yes
    other 5xx; 503 and 529 inside             ProviderOverloaded    unknown          yes
    any of them inside, after some output     likewise              unknown          as the status

A 403 is the key's only if it says so. Most are about one prompt or one model, and another line of
the same batch may well be answered. Read in November 2026, from the services' pages on errors:

    OpenAI      403 model_not_found "Project … does not have access to model"; 403
                unsupported_country_region_territory; 401 invalid_api_key, account_deactivated
    Azure       400 content_filter; "calls that resulted in a 200 or 400 code … contribute towards
                the billed token count" (learn.microsoft.com, answers 1632971); 403 "blocked"
    Anthropic   403 permission_error "Your API key does not have permission …"; 529 overloaded_error
    Google      403 PERMISSION_DENIED with a reason (API_KEY_SERVICE_BLOCKED, CONSUMER_SUSPENDED,
                SERVICE_DISABLED) or "reported as leaked"; 400 API_KEY_INVALID; errors in a list
    OpenRouter  403 moderation, with flagged_input; 200 with error.code 429 or 502, in the body or in
                a choice with finish_reason "error"; all of it in streams, too
    Groq        403 model_permission_blocked_org, …_project; "requires terms acceptance"
    xAI         400 "Incorrect API key provided"; 403 about content, with a code for no permission
    DeepSeek    finish_reason insufficient_system_resource; Mistral: finish_reason error
    vLLM        {"object": "error", "message", "type", "code"}, at any status; finish_reason abort
    Ollama      {"error": "words"}; Together, Fireworks: as OpenAI; Cloudflare, nginx: HTML
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from scheduler.errors import (
    CredentialsRefused,
    ProviderError,
    ProviderOverloaded,
    ProviderRefused,
    RateLimited,
)
from scheduler.prices.usage import extract_usage
from scheduler.providers.credit import Credit, credit_of
from scheduler.request import Usage

DID_NO_WORK = frozenset({503, 529})
RETRYABLE_REFUSALS = frozenset({408, 409, 425})
PROMPT_WAS_READ = frozenset({"content_filter", "responsibleaipolicyviolation"})

_KEY_CODES = frozenset({
    "invalid_api_key", "incorrect_api_key", "api_key_invalid", "invalid_key", "api_key_missing",
    "missing_api_key", "no_api_key", "api_key_expired", "expired_api_key", "token_expired",
    "invalid_token", "authentication_error", "authentication_failed", "invalid_authentication",
    "unauthenticated", "account_deactivated", "account_suspended", "account_disabled",
    "organization_deactivated", "organization_disabled", "api_key_service_blocked",
    "api_key_http_referrer_blocked", "api_key_ip_address_blocked", "api_key_android_app_blocked",
    "api_key_ios_app_blocked", "consumer_suspended", "consumer_invalid", "service_disabled",
    "key_disabled", "key_revoked", "ip_not_authorized", "invalidclienttokenid",
    "unrecognizedclientexception", "expiredtokenexception",
})  # fmt: skip
_WHO = r"(?:(?:api|access|secret|subscription)?[ _-]?keys?|credentials?|accounts?|organi[sz]ation|consumer)"
_DEAD = (
    r"(?:invalid|incorrect|not valid|expired|revoked|leaked|suspended|deactivated|disabled|banned|"
    r"terminated|blocked|unknown)"
)
_KEY_IS_DEAD = re.compile(rf"\b{_WHO}\b[^.]{{0,60}}\b{_DEAD}\b|\b{_DEAD} {_WHO}\b", re.I)
_ONE_REQUEST = re.compile(
    r"\b(?:models?|deployments?|engine|moderation|flagged|content|polic(?:y|ies)|guardrails?|safety|"
    r"prompts?|inputs?|files?|images?|countr(?:y|ies)|regions?|locations?|territor(?:y|ies))\b",
    re.I,
)
_KEY_MAY_NOT = re.compile(
    rf"\b(?:{_WHO}|caller|authentication|user)\b[^.]{{0,60}}\b(?:permissions?|not allowed|not "
    r"authorized|unauthorized|forbidden|scopes?)\b|\binsufficient permissions\b|has not been used in "
    r"project",
    re.I,
)
_MODEL_ACCESS = re.compile(r"access to (?:the )?model|access model|model_access", re.I)

_MORE_THAN_ALL = re.compile(
    r"\blimit:? (?P<limit>\d[\d,]{0,20})\b.{0,60}?\brequested:? (?P<asked>\d[\d,]{0,20})\b", re.I
)

# Statuses that words stand for, where an error inside an answer names none.
_STATUSES = {
    "rate_limit_exceeded": 429, "rate_limit_error": 429, "too_many_requests": 429,
    "resource_exhausted": 429, "insufficient_quota": 429, "billing_error": 402,
    "overloaded_error": 529, "unavailable": 503, "service_unavailable": 503,
    "invalid_request_error": 400, "badrequesterror": 400, "bad_request": 400,
    "invalid_argument": 400, "failed_precondition": 400, "invalid_prompt": 400,
    "context_length_exceeded": 400, "content_filter": 400, "authentication_error": 401,
    "invalid_api_key": 401, "unauthenticated": 401, "permission_error": 403,
    "permission_denied": 403, "model_not_found": 404, "not_found_error": 404, "not_found": 404,
    "notfounderror": 404, "request_too_large": 413, "server_error": 500, "api_error": 500,
    "internal_server_error": 500, "internalservererror": 500, "internal_error": 500,
    "internal": 500, "bad_gateway": 502, "timeout_error": 504, "deadline_exceeded": 504,
}  # fmt: skip
_PARTS = (("rate_limit", 429), ("ratelimit", 429), ("overloaded", 529))
SERVER_ERROR, BAD_GATEWAY = 500, 502

# How a choice ends that the service, not the model, cut off.
_FAILED_ENDS = frozenset({
    "error", "abort", "aborted", "network_error", "insufficient_system_resource", "engine_error",
    "server_error", "timeout",
})  # fmt: skip
_WORDS = ("message", "detail", "msg", "error_msg", "error_message")
_RESULTS = ("choices", "output", "data", "results", "candidates", "content", "embedding",
            "embeddings", "predictions", "usage", "usageMetadata")  # fmt: skip
_RESULTS_SET = frozenset(_RESULTS)


# Where answers have what a model wrote.
_SAID = ("content", "parts", "text", "refusal", "reasoning", "reasoning_content", "thinking",
         "tool_calls")  # fmt: skip
_GIVEN = ("function_call", "functionCall", "input", "arguments")
_CALLS = ("tool_use", "function", "function_call")


@dataclass(frozen=True, slots=True)
class Told:
    """An error as a service tells it.

    Attributes:
        status: Of HTTP; of one inside an answer, the status that it names.
        codes: Its code, type, status word and reasons, as far as it has any.
        is_own: The service itself says it: a JSON object with an error, no proxy's page.
        is_inside: It was told in an answer whose HTTP status was a success.
        has_output: Something had been generated before it.
        names_limit: It names a limit on rates, such as a day's.
    """

    status: int
    codes: tuple[str, ...] = ()
    message: str = ""
    is_own: bool = True
    is_inside: bool = False
    has_output: bool = False
    names_limit: bool = False

    @property
    def is_too_large(self) -> bool:
        """Whether the request is larger than the whole limit of a minute, so that it never fits."""
        if "request too large" in self.message.lower():
            return True
        said = _MORE_THAN_ALL.search(self.message) if self.status == 429 else None
        return said is not None and _count(said["asked"]) > _count(said["limit"])


class Verdict(NamedTuple):
    """What an error means.

    Attributes:
        is_billed: None: nobody knows.
        is_final: Another attempt is of no use, whatever the service's headers say.
        is_of_one: It is refused for its own size, and says nothing of any other.
    """

    kind: type[ProviderError]
    is_billed: bool | None
    is_retryable: bool
    is_final: bool
    credit: Credit
    is_of_one: bool = False


def judge(told: Told) -> Verdict:
    """What an error means; see the table.

    >>> judge(Told(403, message="Your input was flagged")).kind.__name__
    'ProviderRefused'
    >>> judge(Told(403, message="Your API key was reported as leaked.")).kind.__name__
    'CredentialsRefused'
    """
    credit = credit_of(told.status, frozenset(told.codes), told.message)
    if credit is Credit.GONE and told.status == 429 and told.names_limit:
        credit = Credit.FINE  # "you exceeded your quota" of a day is a matter of time, not of money
    kind = RateLimited if credit is Credit.HELD else _kind(told)
    can_pass = kind in (RateLimited, ProviderOverloaded) or told.status in RETRYABLE_REFUSALS
    # A request above the whole limit of a minute, or of a budget, is so for ever.
    is_too_large = credit is Credit.TOO_LARGE or told.is_too_large
    is_final = is_too_large or credit is Credit.GONE
    return Verdict(
        kind, _is_billed(told, kind), can_pass and not is_final, is_final, credit, is_too_large
    )


def _kind(told: Told) -> type[ProviderError]:
    status = told.status
    if status == 429:
        return RateLimited
    if status >= 500:
        return ProviderOverloaded
    is_keys = status == 401 or (status in (400, 403) and told.is_own)
    return CredentialsRefused if is_keys and _is_about_key(told) else ProviderRefused


def _is_about_key(told: Told) -> bool:
    """Whether the key itself is refused, and not what was asked with it."""
    codes = {code.lower() for code in told.codes}
    words = " ".join((told.message, *told.codes))
    if told.status == 401:
        return _MODEL_ACCESS.search(words) is None
    if codes & _KEY_CODES or _KEY_IS_DEAD.search(told.message):
        return True
    if told.status == 400 or _ONE_REQUEST.search(words.replace("_", " ")):
        return False
    return _KEY_MAY_NOT.search(told.message) is not None or "permission_denied" in codes


def _is_billed(told: Told, kind: type[ProviderError]) -> bool | None:
    if told.has_output:
        return None
    if kind is ProviderOverloaded:
        did_no_work = told.status in DID_NO_WORK and told.is_own and not told.is_inside
        return False if did_no_work else None
    return None if PROMPT_WAS_READ & {code.lower() for code in told.codes} else False


def _count(digits: str) -> int:
    return int(digits.replace(",", ""))


def status_told(codes: Iterable[str]) -> int | None:
    """The HTTP status that an error's codes stand for; None: for none.

    >>> status_told(["429"]), status_told(["overloaded_error"]), status_told(["odd"])
    (429, 529, None)
    """
    known = [code.lower() for code in codes]
    for code in known:
        if code.isascii() and code.isdigit() and len(code) == 3 and 400 <= int(code) < 600:
            return int(code)
        if code in _STATUSES:
            return _STATUSES[code]
    return next((status for part, status in _PARTS for code in known if part in code), None)


# Whole bodies with a success status, and chunks of streams


def error_in(body: Mapping[str, Any]) -> Any:
    """The error in a JSON object, wherever services put it; None: there is none."""
    if body.get("error"):
        return body["error"]
    if str(body.get("object")).lower() == "error" or body.get("type") == "error":
        return body
    errors = body.get("errors")
    if isinstance(errors, list) and errors and not any(body.get(name) for name in _RESULTS):
        return errors[0]
    if body.get("success") is False or body.get("status") in ("error", "failure"):
        return body
    if not _RESULTS_SET.isdisjoint(body):
        return None
    kind = body.get("type")
    if isinstance(kind, str) and status_told([kind, str(body.get("code"))]) is None:
        return None  # an event of another kind
    says = any(isinstance(body.get(name), str) and body[name] for name in _WORDS)
    return body if says else None


class Problem(NamedTuple):
    """Why a body with a success status is no answer.

    Attributes:
        error: What the service says of it; None: nothing.
        words: What is wrong, where nothing says it.
        status: The status it stands for where it names none; None: for none.
        is_retryable: Whether it may pass, where it stands for no status.
    """

    error: Any
    words: str = ""
    status: int | None = None
    is_retryable: bool = False


def problem_of(body: Mapping[str, Any]) -> Problem | None:
    """Why a body with a success status is no answer; None: it is one."""
    is_response = "output" in body or body.get("object") == "response"
    if is_response and body.get("status") in ("failed", "cancelled"):
        failed = body["status"] == "failed"
        words = f"the response has {body['status']}" if failed else "the response was cancelled"
        return Problem(body.get("error"), words, SERVER_ERROR if failed else None)
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and has_failed(choice):
            words = f"a choice ended with {choice.get('finish_reason')!r}"
            return Problem(choice.get("error") or body.get("error"), words, BAD_GATEWAY)
    error = error_in(body)
    if error is not None and not _has_ended_well(choices):
        return Problem(error)
    if "choices" in body and not choices:
        return Problem(None, "no choices in it", None, is_retryable=True)
    if _lacks_candidates(body):
        return Problem(None, "no candidates in it", None, is_retryable=True)
    return None


def has_failed(choice: Mapping[str, Any]) -> bool:
    """Whether the service cut a choice off, by an error or by its end."""
    return bool(choice.get("error")) or str(choice.get("finish_reason")).lower() in _FAILED_ENDS


def _has_ended_well(choices: Any) -> bool:
    return isinstance(choices, list) and bool(choices) and all(
        isinstance(choice, dict) and choice.get("finish_reason") for choice in choices
    )  # fmt: skip


def _lacks_candidates(body: Mapping[str, Any]) -> bool:
    """Whether an answer of Google's has nothing in it, and no reason for that either."""
    if body.get("candidates") or body.get("promptFeedback"):
        return False
    return "candidates" in body or ("usageMetadata" in body and "modelVersion" in body
                                    and not {"embedding", "embeddings"} & body.keys())  # fmt: skip


def usage_told(body: Any) -> Usage | None:
    """Tokens an answer says it used; None if it does not say, or says what cannot be.

    Nothing read, or nothing written where there is something, is what gateways fill in when they
    do not know.
    """
    usage = extract_usage(body)
    if usage is None or (not usage.input_tokens and not usage.audio_seconds):
        return None
    return None if not usage.output_tokens and has_output(body) else usage


def has_output(body: Mapping[str, Any]) -> bool:
    """Whether a model wrote something in an answer of a known form."""
    return any(_is_written(part) for part in _written(body))


def _written(body: Mapping[str, Any]) -> Iterable[Any]:
    for name in ("choices", "candidates", "output", "content"):
        listed = body.get(name)
        for each in listed if isinstance(listed, list) else ():
            if isinstance(each, dict):
                yield each
                yield each.get("message")
                yield each.get("content")


def _is_written(part: Any) -> bool:
    if isinstance(part, list):
        return any(map(_is_written, part))
    if not isinstance(part, dict):
        return isinstance(part, str) and bool(part)
    return (
        part.get("type") in _CALLS
        or any(part.get(name) for name in _GIVEN)
        or any(_is_written(part.get(name)) for name in _SAID)
    )


def most_of(old: Any, new: Any) -> Any:
    """Usage told twice: of each number the larger one, of all else what was told last.

    >>> most_of({"a": 9, "b": {"c": 1}}, {"a": 0, "b": {"c": 2}, "d": None})
    {'a': 9, 'b': {'c': 2}, 'd': None}
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: most_of(old.get(key), value) for key, value in new.items()}}
    if _is_number(old):
        return max(old, new) if _is_number(new) else old
    return old if new is None or (new == [] and old) else new


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
