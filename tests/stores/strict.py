"""A connection to SQLite that takes only what PostgreSQL takes as well."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from scheduler.stores.sql.connection import Row, SqliteConnection
from scheduler.stores.sql.dialect import Bulk, Insert

ONLY_SQLITE = re.compile(r"INSERT OR |\bIFNULL\b|\bGLOB\b|\browid\b|\bPRAGMA\b|last_insert", re.I)
KINDS = {"int": int, "text": str}


class StrictConnection(SqliteConnection):
    """See the module."""

    def read(self, sql: str, *values: object) -> list[Row]:
        check(sql, values)
        return super().read(sql, *values)

    def scan(self, sql: str, *values: object) -> Iterator[Row]:
        check(sql, values)
        return super().scan(sql, *values)

    def write(self, sql: str, *values: object) -> None:
        check(sql, values)
        super().write(sql, *values)

    def write_many(self, bulk: Bulk, rows: Sequence[Sequence[object]]) -> None:
        assert not ONLY_SQLITE.search(self.dialect.bulk(bulk)), bulk
        for row in rows:
            for value, kind in zip(row, bulk.columns.values(), strict=True):
                assert value is None or type(value) is KINDS[kind], (bulk.table, value, kind)
        keys = [tuple(row[at] for at in positions(bulk)) for row in rows]
        assert len(set(keys)) == len(keys), f"{bulk.table}: two rows of one key in one statement"
        super().write_many(bulk, rows)


def check(sql: str, values: Sequence[object]) -> None:
    """Each value has its mark, and is a number, a text, or nothing; no dialect of SQLite's own."""
    assert not ONLY_SQLITE.search(sql), sql
    assert "LIKE" not in sql or "ESCAPE" in sql, sql  # each engine has another way of its own
    assert sql.count("?") == len(values), (sql, values)
    for value in values:
        assert value is None or type(value) in (int, str), (sql, value)


def positions(bulk: Bulk) -> list[int]:
    """The columns that tell which row a row of values is about."""
    names = list(bulk.columns)
    if isinstance(bulk, Insert):
        key = re.search(r"ON CONFLICT \(([^)]*)\)", bulk.more)
        return (
            [names.index(name.strip()) for name in key[1].split(",")]
            if key
            else [*range(len(names))]
        )
    return [names.index(name) for name in re.findall(r":([a-z_]+)", bulk.where)]
