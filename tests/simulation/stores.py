"""Stores whose processes can be killed: what was committed stays, everything else is lost.

Both run without threads, so that a run repeats itself exactly. `Surviving` is the memory
store as if it lived outside the process. `InlineSqlite` is the SQLite store with its
transactions run in place; several of them on one file are several processes.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scheduler.limits import Gates
from scheduler.request import RequestState
from scheduler.stores.base import (
    NewRequest,
    Outcome,
    Settlement,
    Store,
    Submitted,
    TurnResult,
)
from scheduler.stores.file import Writers, check_file
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.process import Process
from scheduler.stores.sqlite import SqliteStore


class Surviving(MemoryStore):
    """A memory store that outlives its process."""

    def __init__(self) -> None:
        super().__init__()
        self._orphans: set[int] = set()  # requests that wait for their key to come again

    async def aclose(self) -> None:
        self.bury()

    def bury(self) -> None:
        """Its process has ended: what `SqliteStore` does when it finds that out."""
        self._is_open = False
        now_ms = self._now_ms
        for hold in list(self._holds.values()):
            if hold.state.value == "pending":
                state = RequestState.CANCELLED if hold.request.key is None else RequestState.QUEUED
                lost = Settlement(hold.id, hold.request_id, Outcome.SUSPEND, state)
                self._settle(lost, now_ms, TurnResult())
        for row in list(self._rows.values()):
            if row.state is not RequestState.QUEUED or row.id in self._orphans:
                continue
            if row.key is None:
                self._drop(row, RequestState.CANCELLED, now_ms)
            else:
                self._leave_lane(row, now_ms)
                row.is_delayed, row.ticket = False, -1
                self._orphans.add(row.id)

    def _submit(self, new: NewRequest, now_ms: int) -> Submitted:
        row = self._keys.get((new.request.job, new.request.key or ""))
        if row is None or row.id not in self._orphans or row.digest != new.digest:
            return super()._submit(new, now_ms)
        self._orphans.discard(row.id)
        row.lane, row.request = self._lane(new.lane), new.request
        row.needs = (new.ceiling_nusd, new.ceiling_tokens, 1)
        row.attempts, row.expires_at_ms = 0, new.expires_at_ms
        if new.expires_at_ms is not None:
            heapq.heappush(self._expiring, (new.expires_at_ms, row.id))
        self._enqueue(row, now_ms)
        return Submitted(row.id)

    def _is_expiring(self, at_ms: int, request_id: int) -> bool:
        """Nobody's requests expire with whoever takes them over, on terms of their own."""
        return request_id not in self._orphans and super()._is_expiring(at_ms, request_id)

    def _answered_late(self, row: Any, settlement: Settlement, now_ms: int) -> None:
        if row.id in self._orphans:
            self._orphans.discard(row.id)
            row.is_delayed = True  # it is in no lane
        super()._answered_late(row, settlement, now_ms)


class InlineSqlite(SqliteStore):
    """The SQLite store without its thread, as one of several processes.

    Args:
        path: The file they share.
        process: Who this one is.
        lease_ms: How long it may be silent.
        statement: Called before every statement; what it raises is where it stops.
    """

    def __init__(
        self, path: Path, process: Process, lease_ms: int, statement: Callable[[str], None]
    ) -> None:
        super().__init__(path)
        self._transactions.process = process
        self.lease_ms = self._transactions.lease_ms = lease_ms
        self._statement = statement
        self._db: sqlite3.Connection | None = None

    async def open(self, now_ms: int) -> None:
        check_file(self.path, create=True)
        self._writers = Writers(self.path, 0)
        statement = self._statement

        class Watched(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                statement(sql)
                return super().execute(sql, *rest)

            def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
                statement(sql)
                return super().executemany(sql, rows)

        self._db = sqlite3.connect(self.path, isolation_level=None, factory=Watched)
        await self._run(self._set_up, now_ms)
        self._db.execute("PRAGMA synchronous = OFF")  # nobody cuts the power here
        await self.budgets(now_ms)

    async def _run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        with self._translated():
            return function(self._db, *args, **kwargs)

    async def aclose(self) -> None:
        if self._db is not None:
            await self.leave()
            self.drop()

    async def leave(self) -> None:
        """Sign off, as closing does."""
        if self._transactions.worker_id:
            await self._run(self._writing(self._transactions.leave))

    def drop(self) -> None:
        """Close the file without a word, as dying does."""
        if self._db is not None:
            self._db.close()
            self._db = None


METHODS = (
    "open", "aclose", "turn", "changed", "define", "remove", "defined", "redefined", "budgets", "pause",
    "prices", "set_price",
    "counts", "queue", "spend", "audit", "outcomes", "known", "forget", "delivered", "suspended",
    "suspended_since", "suspended_of", "resolve", "still_mine", "prune", "pictures",
    "processes", "ended_since",
)  # fmt: skip


class Handle(Store):
    """A process's way to its store: everything passes a point where the process can die.

    Args:
        inner: The store.
        point: Awaited before and after every operation.
        committed: Told what was done, before the process hears of it.
    """

    def __init__(self, inner: Store, point: Any, committed: Any) -> None:
        self.inner, self._point, self._committed = inner, point, committed
        self.is_shared, self.lease_ms = inner.is_shared, inner.lease_ms
        self.latest, self.lanes = inner.latest, inner.lanes
        self.shortfall, self.prepare = inner.shortfall, inner.prepare
        self.finished, self.serve = inner.finished, inner.serve
        self.notes, self.note = inner.notes, inner.note  # who changed what is no matter of money
        self.keeps_whole = inner.keeps_whole
        self.most_per_turn = inner.most_per_turn
        self.has_gates = False

    def use(self, gates: Gates) -> None:
        """Without gates a world is only about money; with them also about what its provider says."""
        if self.has_gates:
            super().use(gates)
            self.inner.use(gates)


def _passing(name: str) -> Any:
    async def call(self: Handle, *args: Any, **kwargs: Any) -> Any:
        await self._point()
        result = await getattr(self.inner, name)(*args, **kwargs)
        self._committed(name, args, result)
        await self._point()
        return result

    return call


async def _delivered(self: Handle, ids: Any) -> None:
    await self.inner.delivered(ids)  # a hint for `prune`: it may be lost with its process


for _name in METHODS:
    setattr(Handle, _name, _passing(_name))
Handle.delivered = _delivered  # type: ignore[method-assign]
Handle.__abstractmethods__ = frozenset()
