"""What a function's result says of its cost, in the form of a service's answer; pure.

Whole results, and those that come in pieces: objects of SDKs, or mappings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scheduler.adapters.arguments import as_json, member
from scheduler.guards.plain import logger_of
from scheduler.prices.usage import reported_cost_nusd
from scheduler.providers.assembly import Assembly
from scheduler.providers.meaning import most_of
from scheduler.request import Request, StreamEvent

logger = logger_of("scheduler.functions")

_USAGES = ("usage", "usage_metadata")
_TIERS = ("service_tier", "speed")


def has_usage(result: Any) -> bool:
    """Whether it says what was used."""
    return any(member(result, name) for name in _USAGES)


def body_of(result: Any) -> dict[str, Any] | None:
    """What a result says of its usage, its tier, and its provider's own tools; None: nothing."""
    usage = as_json(member(result, "usage"))
    if isinstance(usage, dict):
        tiers = {name: member(result, name) for name in _TIERS}
        return {"usage": usage} | tiers | _listed(result, "output", "choices")
    dump = getattr(member(result, "usage_metadata"), "model_dump", None)  # Google's
    if callable(dump):
        return {"usageMetadata": dump(by_alias=True, exclude_none=True)} | _listed(
            result, "candidates"
        )
    return None


def cost_told_nusd(result: Any, body: Mapping[str, Any] | None) -> int | None:
    """The cost a result reports: LiteLLM's own arithmetic, or the provider's word.

    LiteLLM's zero is not believed, since that is what it says of models it has no price for.
    """
    cost = member(getattr(result, "_hidden_params", None), "response_cost")
    if cost:
        return reported_cost_nusd({"usage": {"cost": cost}})
    return reported_cost_nusd(body)


class Pieces:
    """The body that the pieces of one stream amount to.

    Pieces of a known service are put together as its events are. Of all others the usage is
    taken as they tell it, and never less than was told before.
    """

    def __init__(self, request: Request) -> None:
        self._assembly = Assembly(request, asked_for_usage=False)
        self._told: dict[str, Any] | None = None
        self._misses = False  # something that could not be read

    def take(self, piece: Any) -> None:
        """Add a piece. Never raises: its reader has a right to it, whatever it is."""
        try:
            found = body_of(piece)
            if found is not None:
                self._told = most_of(self._told, found)
            whole = _whole(piece)
            if isinstance(whole, Mapping):
                self._assembly.take(StreamEvent(json.dumps(whole, default=str)))
        except Exception as exc:
            self._misses = True
            logger.debug("a piece of a stream cannot be read, so its quote counts: %r", exc)

    def body(self) -> dict[str, Any] | None:
        """All of them, now that there are no more; None: what was used is not told, or not all."""
        known = self._assembly
        if self._misses:
            return None
        if known.body is None or known.body.keys() <= {"usage"}:
            return self._told
        return known.whole() if known.knows_usage else None


def _whole(piece: Any) -> Any:
    dump = getattr(piece, "model_dump", None)
    return dump(mode="json", by_alias=True, exclude_none=True) if callable(dump) else piece


def _listed(result: Any, *names: str) -> dict[str, Any]:
    """Lists of a result as its JSON has them."""
    found = {name: member(result, name) for name in names}
    return {
        name: [
            each.model_dump(by_alias=True, exclude_none=True)
            if callable(getattr(each, "model_dump", None)) else each
            for each in items
        ]
        for name, items in found.items() if isinstance(items, list)
    }  # fmt: skip
