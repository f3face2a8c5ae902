"""Requests and responses as JSON text, for stores that outlive the process."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from scheduler.budget import Budget, Unit
from scheduler.errors import ConfigError, StoreError
from scheduler.request import CHAT, Priority, Request, Response, Usage
from scheduler.shortfall import ParkReason, Shortfall

P = ParamSpec("P")
T = TypeVar("T")


def _names_the_damaged(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Tell what it was that could not be read; a damaged row is no bug of the reader."""

    def wrap(decode: Callable[P, T]) -> Callable[P, T]:
        @wraps(decode)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return decode(*args, **kwargs)
            except (TypeError, ValueError, LookupError, RecursionError, AttributeError) as exc:
                raise StoreError(
                    f"a stored {what} cannot be read ({type(exc).__name__}: {exc}); the file is "
                    "damaged. Go back to a copy, or look at it with: scheduler audit"
                ) from exc

        return checked

    return wrap


def _fields(text: str) -> dict[str, Any]:
    fields = json.loads(text)
    if type(fields) is not dict:
        raise TypeError(f"not an object but {type(fields).__name__}")
    return fields


def encode_request(request: Request) -> str:
    """A request as JSON; deadlines and priorities are stored beside it.

    Raises:
        ConfigError: Its body or metadata cannot be written as JSON.
    """
    fields: dict[str, Any] = {"body": request.body}
    if request.url != CHAT:
        fields["url"] = request.url
    # Written out: this is on the way of every submission.
    if request.key is not None:
        fields["key"] = request.key
    if request.provider is not None:
        fields["provider"] = request.provider
    if request.budget is not None:
        fields["budget"] = request.budget
    if request.tags:
        fields["tags"] = request.tags
    if request.job:
        fields["job"] = request.job
    if request.fallback:
        fields["fallback"] = list(request.fallback)
    if request.instead_of is not None:
        fields["instead_of"] = request.instead_of
    if request.metadata is not None:
        fields["metadata"] = request.metadata
    if request.trace is not None:
        fields["trace"] = request.trace
    fields["priority"] = Priority.parse(request.priority)
    try:
        text = _to_json(fields)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError("request", f"cannot be stored as JSON: {exc}; nothing was sent") from None
    return text


@_names_the_damaged("request")
def decode_request(text: str) -> Request:
    """The request `encode_request` wrote. Raises `StoreError`, as all of these do."""
    return Request(**_fields(text))


def encode_response(response: Response) -> str:
    """A response as JSON; a body that is no JSON becomes its text."""
    fields = {name: getattr(response, name) for name in _RESPONSE_FIELDS}
    usage = response.usage
    if usage is not None:
        fields["usage"] = [getattr(usage, name) for name in _USAGE_FIELDS]
    try:
        return _to_any_json(fields)
    except Exception:  # objects of the caller's own, which may raise anything when looked at
        fields["body"], fields["metadata"] = _in_words(response.body), None
        return _to_any_json(fields)


def _in_words(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return f"(a {type(value).__name__} that cannot be stored)"


@_names_the_damaged("answer")
def decode_response(text: str) -> Response:
    """The response `encode_response` wrote."""
    fields = _fields(text)
    if fields["usage"] is not None:
        fields["usage"] = Usage(*fields["usage"])
    return Response(**fields)


def encode_shortfall(lack: Shortfall) -> str:
    """A shortfall as JSON."""
    return json.dumps({name: getattr(lack, name) for name in Shortfall.__slots__})


@_names_the_damaged("shortfall")
def decode_shortfall(text: str) -> Shortfall:
    """The shortfall `encode_shortfall` wrote."""
    fields = _fields(text)
    fields["reason"], fields["unit"] = ParkReason(fields["reason"]), Unit(fields["unit"])
    return Shortfall(**fields)


def encode_budget(budget: Budget, *, is_removed: bool = False) -> str:
    """A budget's definition as JSON, without its name.

    Programs that know nothing of removed budgets see one without a limit.
    """
    fields = {
        "spec": budget.spec,
        "models": list(budget.models),
        "tags": dict(budget.tags),
        "parent": budget.parent,
    }
    if budget.risk != "none":
        fields["risk"] = budget.risk
    return json.dumps(fields | ({"is_removed": True} if is_removed else {}))


def encode_budgets(budgets: tuple[int, ...]) -> str:
    """Budget ids so that SQL can search for one: ``",1,2,"``."""
    return f",{','.join(map(str, budgets))}," if budgets else ""


def decode_budgets(text: str) -> tuple[int, ...]:
    """The ids `encode_budgets` wrote."""
    return tuple(map(int, text.strip(",").split(","))) if text else ()


@_names_the_damaged("budget")
def was_removed(text: str) -> bool:
    """Whether a definition is that of a budget that was removed."""
    return bool(_fields(text).get("is_removed"))


@_names_the_damaged("budget")
def decode_budget(name: str, text: str) -> Budget:
    """The budget `encode_budget` wrote."""
    fields = _fields(text)
    return Budget(
        name, fields["spec"], models=fields["models"], tags=fields["tags"],
        parent=fields["parent"], risk=fields.get("risk"),
    )  # fmt: skip


# Text stays ASCII, so that lone surrogates in a prompt survive.
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_to_any_json = json.JSONEncoder(separators=(",", ":"), default=str).encode
_RESPONSE_FIELDS = tuple(Response.__slots__)
_USAGE_FIELDS = tuple(Usage.__slots__)
