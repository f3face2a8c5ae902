"""Rows of the memory store in the order of their ids, so that a page costs a page."""

from __future__ import annotations

from collections.abc import Iterator

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
