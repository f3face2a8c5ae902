"""Rows of the memory store in the order of their ids, so that a page costs a page."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from scheduler.request import RequestState
from scheduler.stats import Counts
from scheduler.stores.memory.rows import Row

_BITS = 10  # a block is so many ids: blocks are few, and each is short


class Pages:
    """Rows by id, in blocks of ids that are near each other."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[int, Row]] = {}

    def add(self, row: Row) -> None:
        """One row more, in place of one of the same id."""
        block = self._blocks.get(row.id >> _BITS)
        if block is None:
            block = self._blocks[row.id >> _BITS] = {}
        block[row.id] = row

    def drop(self, request_id: int) -> None:
        """That row is not there any more."""
        block = self._blocks[request_id >> _BITS]
        del block[request_id]
        if not block:
            del self._blocks[request_id >> _BITS]

    def after(self, request_id: int = 0) -> Iterator[list[Row]]:
        """All rows with higher ids, in order, some at a time; others may change meanwhile."""
        first = request_id >> _BITS
        for number in sorted(each for each in self._blocks if each >= first):
            block = self._blocks.get(number, {})
            yield [block[each] for each in sorted(block) if each > request_id]

    async def find(
        self, states: set[RequestState], job: str | None, most: int, after_id: int
    ) -> list[Row]:
        """The first of these states and that job; the loop is not held up, however many there are."""
        found: list[Row] = []
        for rows in self.after(after_id):
            found += [
                row for row in rows if row.state_shown in states and job in (None, row.request.job)
            ]
            if len(found) >= most:
                break
            await asyncio.sleep(0)
        return found[:most]

    async def counts_of(self, job: str) -> Counts:
        """How many of a job are in which state; the loop is not held up, as above."""
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for rows in self.after():
            for row in rows:
                if row.request.job == job:
                    counts[row.state_shown.value] += 1
                    if row.why_parked is not None:
                        reasons[row.why_parked.reason.value] += 1
            await asyncio.sleep(0)
        return Counts(**counts, parked_by_reason=dict(reasons))

    async def live_by_job(self) -> dict[str, int]:
        """How many wait or run, by job; the loop is not held up, as above."""
        counts: Counter[str] = Counter()
        for rows in self.after():
            counts.update(row.request.job for row in rows if row.is_live)
            await asyncio.sleep(0)
        return dict(counts)
