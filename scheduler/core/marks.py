"""What code says of the requests made within it: budget, priority, job, without passing it on.

>>> from scheduler.request import Request
>>> marks = {"budget": "team-a", "priority": "batch", "tags": {"user": "ann"}}
>>> request = apply(marks, Request.chat("m", "hi", budget="team-b", tags={"page": "1"}))
>>> request.budget, request.priority, request.tags
('team-b', 'batch', {'user': 'ann', 'page': '1'})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, TypedDict

from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError
from scheduler.money import parse_usd
from scheduler.request import Duration, Priority, Request


class Marks(TypedDict, total=False):
    """Fields of `Request` that can be said for all requests of a block; what is missing is open.

    ``client_budgets`` is about headers: which budgets these may name in place of the one said.
    """

    budget: str | Sequence[str] | None
    priority: str | int
    job: str
    deadline: Duration | datetime | None
    max_wait: Duration | None
    max_cost: str | int | float | Decimal | None
    tags: Mapping[str, str]
    provider: str | None
    client_budgets: Sequence[str]


NO_MARKS: Marks = {}
MARKS = frozenset(Marks.__annotations__)
_UNSET: Mapping[str, Any] = {
    "budget": None, "priority": Priority.NORMAL, "job": "", "deadline": None, "max_wait": None,
    "max_cost": None, "provider": None,
}  # fmt: skip


def merge(outer: Marks, inner: Marks) -> Marks:
    """Marks of a block within another: what the inner one says holds; tags add up.

    Raises:
        ConfigError: There is no such mark.
    """
    unknown = sorted(inner.keys() - MARKS)
    if unknown:
        known = ", ".join(sorted(MARKS))
        raise ConfigError("tag", f"{unknown[0]!r} is not one of {known}")
    if inner.get("priority") is not None:
        Priority.parse(inner["priority"])
    merged = Marks(**{**outer, **inner})
    if "tags" in outer and "tags" in inner:
        merged["tags"] = {**outer["tags"], **inner["tags"]}
    return merged


def apply(marks: Marks, request: Request) -> Request:
    """The request with the marks where it says nothing itself."""
    changes: dict[str, Any] = {
        name: value
        for name, value in marks.items()
        if name in _UNSET and getattr(request, name) is _UNSET[name]
    }
    if "tags" in marks:
        changes["tags"] = {**marks["tags"], **request.tags}
    return replace(request, **changes) if changes else request


def of_request(marks: Marks) -> dict[str, Any]:
    """Those of the marks that are fields of a request."""
    return {name: value for name, value in marks.items() if name != "client_budgets"}


def within(said: Marks, asked: Marks, now_ms: int) -> dict[str, Any]:
    """What is said of a call, and what its headers ask, which may be a stranger's.

    An app may hand the headers of its own clients on, so these set what it left open, and may make
    it tighter, no more: a less urgent priority, an earlier deadline, a lower `max_cost`. A budget
    and a job that were said stay; a budget may be chosen from ``client_budgets``, where given.

    Args:
        said: By the app: tags, and marks of what was wrapped.
        asked: By headers.
        now_ms: When deadlines that are spans begin.

    >>> within({"budget": "bob", "priority": "normal"}, {"budget": "ann", "priority": "idle"}, 0)
    {'budget': 'bob', 'priority': 'idle'}
    >>> within({"budget": "a", "client_budgets": ("b",)}, {"budget": "b"}, 0)
    {'budget': 'b'}
    """
    merged: dict[str, Any] = dict(asked)
    merged.update((name, value) for name, value in said.items() if value is not None)
    if _are_allowed(asked.get("budget"), merged.pop("client_budgets", None)):
        merged["budget"] = asked["budget"]
    for name, rank in _RANKS.items():
        both = (said.get(name), asked.get(name))
        if None not in both:
            merged[name] = min(both, key=partial(rank, now_ms=now_ms))
    return merged


def _are_allowed(asked: str | Sequence[str] | None, allowed: Sequence[str] | None) -> bool:
    if not asked or allowed is None:
        return False
    names = {asked} if isinstance(asked, str) else set(asked)
    return names <= ({allowed} if isinstance(allowed, str) else set(allowed))


def _rank_of_priority(priority: Any, now_ms: int) -> int:
    return -Priority.parse(priority)


def _rank_of_deadline(deadline: Any, now_ms: int) -> int:
    if isinstance(deadline, datetime):
        return int(deadline.timestamp() * 1000)
    return now_ms + parse_duration_ms(deadline, "deadline")


def _rank_of_cost(cost: Any, now_ms: int) -> int:
    return parse_usd(cost, "max_cost")


_RANKS: Mapping[str, Callable[..., int]] = {
    "priority": _rank_of_priority, "deadline": _rank_of_deadline, "max_cost": _rank_of_cost,
}  # fmt: skip
"""The lowest is the tightest."""
