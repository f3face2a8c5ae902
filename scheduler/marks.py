"""What code says of the requests made within it: budget, priority, job, without passing it on.

>>> from scheduler.request import Request
>>> marks = {"budget": "team-a", "priority": "batch", "tags": {"user": "ann"}}
>>> request = apply(marks, Request.chat("m", "hi", budget="team-b", tags={"page": "1"}))
>>> request.budget, request.priority, request.tags
('team-b', 'batch', {'user': 'ann', 'page': '1'})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, TypedDict

from scheduler.errors import ConfigError
from scheduler.request import Duration, Priority, Request


class Marks(TypedDict, total=False):
    """Fields of `Request` that can be said for all requests of a block; what is missing is open."""

    budget: str | Sequence[str] | None
    priority: str | int
    job: str
    deadline: Duration | datetime | None
    max_wait: Duration | None
    max_cost: str | int | float | Decimal | None
    tags: Mapping[str, str]
    provider: str | None


NO_MARKS: Marks = {}
_NAMES = frozenset(Marks.__annotations__)
_UNSET: Mapping[str, Any] = {
    "budget": None, "priority": Priority.NORMAL, "job": "", "deadline": None, "max_wait": None,
    "max_cost": None, "provider": None,
}  # fmt: skip


def merge(outer: Marks, inner: Marks) -> Marks:
    """Marks of a block within another: what the inner one says holds; tags add up.

    Raises:
        ConfigError: There is no such mark.
    """
    unknown = sorted(inner.keys() - _NAMES)
    if unknown:
        known = ", ".join(sorted(_NAMES))
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
        if name != "tags" and getattr(request, name) is _UNSET[name]
    }
    if "tags" in marks:
        changes["tags"] = {**marks["tags"], **request.tags}
    return replace(request, **changes) if changes else request
