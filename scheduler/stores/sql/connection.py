"""The seam between what a store does, as SQL, and the engine that does it.

Everything in this room is plain synchronous functions of a `Connection` that is within a
transaction; whoever opened it commits. A statement is one round trip, so nothing here asks once
for each of many rows: it reads by a list, and writes in bulk.

Two transactions that write never overlap, and one that began later sees what the earlier ones wrote.
SQLite's BEGIN IMMEDIATE sees to that, on PostgreSQL a lock that each takes first. Locks on the
accounts alone do not suffice, as a trial with four workers on PostgreSQL 18 showed: who draws on no
budget was sent twice, and a cancellation wrote over what another worker had just claimed, since a
turn reads its requests before it knows whose accounts to lock. The numbers in `changes` and `ends`
also follow commits only if no two are under way. A turn is 20 to 27 statements, half of them reads,
however many requests it has: what cannot be waited for, so that round trips count, are the reads,
while writes are sent along with the next read.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from scheduler.stores.sql.dialect import SQLITE, Bulk, Dialect

Row = tuple[Any, ...]


class Connection(ABC):
    """An open transaction on an engine."""

    dialect: Dialect

    @abstractmethod
    def read(self, sql: str, *values: object) -> list[Row]:
        """All rows that a statement gives."""

    @abstractmethod
    def scan(self, sql: str, *values: object) -> Iterator[Row]:
        """The same one by one, of a statement that reads all there is."""

    @abstractmethod
    def write(self, sql: str, *values: object) -> None:
        """Execute a statement."""

    @abstractmethod
    def write_many(self, bulk: Bulk, rows: Sequence[Sequence[object]]) -> None:
        """Execute a bulk write for these rows: one statement, however many; none for none."""

    @abstractmethod
    def new_ids(self, table: str, count: int) -> Sequence[int]:
        """So many ids for new rows, in ascending order, none of them given before."""

    def ahead(self, sql: str, *values: object) -> None:  # noqa: B027 - not all engines can
        """The same will be read soon, and nothing of it is written before: it may be asked now.

        So what does not depend on each other takes one round trip.
        """

    def ask(self, sql: str, *values: object) -> Callable[[], list[Row]]:
        """The rows as they are now, to be had later: the engine may go on meanwhile."""
        rows = self.read(sql, *values)
        return lambda: rows

    def drop_ahead(self) -> None:  # noqa: B027
        """Something else is written first: what was asked ahead is to be asked again."""

    def now_ms(self, told_ms: int) -> int:
        """The time: by the engine's clock if it has one, else what the caller was told."""
        return told_ms

    def tell(self, *, is_urgent: bool) -> None:  # noqa: B027 - not all engines can
        """Others have something to look at once this is committed: soon, or at once."""

    def one(self, sql: str, *values: object) -> Row | None:
        """The first row that a statement gives; None: it gives none."""
        rows = self.read(sql, *values)
        return rows[0] if rows else None

    def value(self, sql: str, *values: object) -> Any:
        """The first column of a statement's first row, which it has."""
        return self.read(sql, *values)[0][0]


class SqliteConnection(Connection):
    """SQLite, by the standard library's module."""

    dialect = SQLITE

    def __init__(self, raw: sqlite3.Connection) -> None:
        self.raw = raw
        self._given: dict[str, int] = {}  # by table: the last id, whose row may not be written yet

    def read(self, sql: str, *values: object) -> list[Row]:
        """See `Connection.read`."""
        return self.raw.execute(sql, values).fetchall()

    def scan(self, sql: str, *values: object) -> Iterator[Row]:
        """See `Connection.scan`."""
        return iter(self.raw.execute(sql, values))

    def write(self, sql: str, *values: object) -> None:
        """See `Connection.write`."""
        self.raw.execute(sql, values)

    def write_many(self, bulk: Bulk, rows: Sequence[Sequence[object]]) -> None:
        """See `Connection.write_many`."""
        if rows:
            self.raw.executemany(self.dialect.bulk(bulk), rows)

    def new_ids(self, table: str, count: int) -> Sequence[int]:
        """See `Connection.new_ids`."""
        # Whoever writes is alone in the file; a table whose ids are never given twice, although
        # rows are removed, has its last one in `sqlite_sequence`.
        last = self.value(
            f"SELECT max(coalesce((SELECT max(id) FROM {table}), 0), coalesce((SELECT seq FROM"
            " sqlite_sequence WHERE name = ?), 0))",
            table,
        )
        last = max(last, self._given.get(table, 0))
        self._given[table] = last + count
        return range(last + 1, last + 1 + count)
