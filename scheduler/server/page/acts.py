"""Who changed what, when, from what to what: kept in the store beside what was changed."""

from __future__ import annotations

import json
from typing import NamedTuple

from scheduler.stores.base import Store

KIND = "act"
KEPT = 500


class Act(NamedTuple):
    """One change by a person.

    Attributes:
        who: How they came: by which address or command.
        what: ``limit``, ``pause``, ``resume``, ``charge`` or ``void``.
        name: Of the budget, or the attempt.
        before: What it was, in words; empty: nothing.
        after: What it is since then.
    """

    at_ms: int
    who: str
    what: str
    name: str
    before: str
    after: str


async def noted(store: Store) -> list[Act]:
    """The last changes, newest first."""
    found = await store.notes(KIND)
    return [Act(*json.loads(text)) for _, text in sorted(found.items(), reverse=True)][:KEPT]


async def note(store: Store, act: Act) -> None:
    """Keep a change; of very many the oldest are dropped."""
    found = sorted(await store.notes(KIND))
    for name in found[: max(0, len(found) - KEPT + 1)]:
        await store.note(KIND, name, None)
    last = found[-1] if found else ""
    number = int(last[-4:]) + 1 if last.startswith(f"{act.at_ms:014}") else 0
    while not await store.note(
        KIND, f"{act.at_ms:014}-{number:04}", json.dumps(act), only_new=True
    ):
        number += 1  # another one in the same millisecond
