"""What the client of one token has asked for and nobody stays on the line for, and how that is ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from scheduler.server.batches import record
from scheduler.server.batches.record import BACKGROUND, Batch
from scheduler.stores.base import Store, Turn
from scheduler.stores.papers import Paper

PAGE = 500


def request_of(paper: Paper) -> int | None:
    """The request that answers a response in the background. None: nobody knows whether it was queued."""
    found: int | None = json.loads(paper.text).get("request_id")
    return found


async def batches(store: Store, owner: str) -> list[Batch]:
    """The batches of an owner that are not over."""
    return [each for each in await record.open_ones(store) if each.owner == owner]


async def responses(store: Store, owner: str) -> list[int]:
    """The requests of an owner's responses in the background that have not ended."""
    live, after = list[int](), None
    while papers := await store.papers(BACKGROUND, owner, limit=PAGE, after=after):
        ids = [found for found in map(request_of, papers) if found is not None]
        live += [each.id for each in await store.pictures(ids) if not each.state.is_final]
        after = papers[-1].name
    return live


async def end_batches(store: Store, those: Sequence[Batch], now_ms: int) -> None:
    """Have them end; gateways do the rest."""
    for each in those:
        await record.amend(store, each.id, partial(record.cancel, now_ms=now_ms))


async def end_responses(store: Store, ids: Sequence[int], now_ms: int) -> int:
    """Cancel what waits of these; what runs comes to its end. How many that were not running."""
    count = 0
    for start in range(0, len(ids), PAGE):
        cancel = ids[start : start + PAGE]
        count += sum((await store.turn(Turn(now_ms, slots=None, cancel=cancel))).cancelled)
    return count
