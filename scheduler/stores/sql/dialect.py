"""What differs between the engines that speak our SQL, and nothing else.

SQL is written once, with ``?`` for values, in what SQLite (3.37) and PostgreSQL share. To be kept
to, so that both take it: an upsert names its key (``ON CONFLICT (id) DO UPDATE SET n = t.n +
excluded.n``), truth is an integer (``is_lost = 0``), the greater of two is a CASE, and money is
never summed with a float.

>>> SQLITE.among
'IN (SELECT value FROM json_each(?))'
>>> SQLITE.a_list([3, 4])
'[3,4]'
>>> SQLITE.bulk(Insert("tallies", {"job_id": INT, "state": TEXT, "count": INT}))
'INSERT INTO tallies (job_id, state, count) VALUES (?, ?, ?)'
>>> SQLITE.bulk(Update("requests", "cost_nusd = cost_nusd + :nusd", "id = :id", {"nusd": INT, "id": INT}))
'UPDATE requests SET cost_nusd = cost_nusd + ? WHERE id = ?'

`scheduler.stores.postgres.dialect` says the same with one array per column.

So these hold for what is given to a connection, and the tests check it on SQLite: no bool for a
number, no rows that are none, no two rows of one key in a bulk write (PostgreSQL would take either,
or refuse), an ESCAPE to each LIKE, and no word that only SQLite knows. A plus before a column
(``+made_at_ms``) keeps SQLite from an index that would be the wrong one; PostgreSQL reads over it.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Type = Literal["int", "text"]
INT: Type = "int"
TEXT: Type = "text"
Value = int | str | None

NAMED = re.compile(r":([a-z_]+)")


@dataclass(frozen=True, eq=False)
class Insert:
    """Rows to put into a table, in one statement.

    Attributes:
        columns: Names and types, in the order in which rows have them.
        more: What comes behind the values, as ``ON CONFLICT (id) DO NOTHING``.
    """

    table: str
    columns: Mapping[str, Type]
    more: str = ""


@dataclass(frozen=True, eq=False)
class Update:
    """Rows to change, in one statement.

    Attributes:
        sets: What is set, as SQL, with ``:name`` for a value of the row.
        where: Which row, likewise.
        columns: The names in `sets` and `where`, each once, in that order, with their types.
    """

    table: str
    sets: str
    where: str
    columns: Mapping[str, Type]

    def __post_init__(self) -> None:
        _check(self, f"{self.sets} {self.where}")


@dataclass(frozen=True, eq=False)
class Delete:
    """Rows to remove, in one statement; see `Update`."""

    table: str
    where: str
    columns: Mapping[str, Type]

    def __post_init__(self) -> None:
        _check(self, self.where)


Bulk = Insert | Update | Delete


def _check(bulk: Update | Delete, text: str) -> None:
    named, told = NAMED.findall(text), list(bulk.columns)
    assert named == told, f"{bulk.table}: {named} are asked for, {told} are given"


class Dialect(ABC):
    """How one engine says what both can do. Stateless but for statements it has rendered."""

    among: str
    """Membership in a list that is one value: ``f"id {dialect.among}"``, with `a_list`."""

    queued_at = "i.id"
    """A row's place in its lane, as the index of those that are queued has it."""

    takes_nul = False
    """Whether a text may hold a NUL; given by itself, never in a list."""

    def __init__(self) -> None:
        self._bulks: dict[Bulk, str] = {}

    def told(self, words: str | None) -> str | None:
        """What others say, so that it can be stored: a NUL written out, where none can be."""
        return words if words is None or self.takes_nul else words.replace("\0", "\\x00")

    @abstractmethod
    def a_list(self, values: Iterable[Value]) -> object:
        """Values of one type, as one value."""

    @abstractmethod
    def rows(self, alias: str, columns: Mapping[str, Type]) -> str:
        """Rows given by the caller, to read FROM: as many ``?`` as `row_values` makes of them."""

    @abstractmethod
    def row_values(self, rows: Iterable[Sequence[Value]]) -> tuple[object, ...]:
        """What stands for them, in a statement with `rows`; there is at least one."""

    @abstractmethod
    def firsts(
        self, columns: str, groups: Mapping[str, Type], table: str, where: str, order: str
    ) -> str:
        """The first rows of each of many groups at once.

        Takes the groups, by `row_values`, then how many of each.

        Args:
            columns: Of the rows, as ``t.id``.
            groups: What tells a group; ``g.name`` in `where`.
            table: Where they are; it has a column ``id``.
            where: Which rows belong to a group, as ``i.lane_id = g.lane_id``.
            order: Of a group's rows, as ``i.id``. What comes out is in any order.
        """

    def bulk(self, bulk: Bulk) -> str:
        """The statement for a bulk write."""
        text = self._bulks.get(bulk)
        if text is None:
            text = self._bulks[bulk] = self.rendered(bulk)
        return text

    @abstractmethod
    def rendered(self, bulk: Bulk) -> str:
        """The same, put together anew."""


class Sqlite(Dialect):
    """SQLite: a list is JSON.

    Its JSON ends a text at a NUL: texts that may hold one are not given as lists.
    """

    among = "IN (SELECT value FROM json_each(?))"
    takes_nul = True

    def a_list(self, values: Iterable[Value]) -> object:
        """See `Dialect.a_list`."""
        return _dumps(list(values))

    def rows(self, alias: str, columns: Mapping[str, Type]) -> str:
        """See `Dialect.rows`."""
        picked = ", ".join(
            f"json_extract(value, '$[{at}]') AS {name}" for at, name in enumerate(columns)
        )
        return f"(SELECT {picked} FROM json_each(?)) AS {alias}"

    def row_values(self, rows: Iterable[Sequence[Value]]) -> tuple[object, ...]:
        """See `Dialect.row_values`."""
        given = list(rows)
        assert given, "of no rows an engine with an array per column knows no columns"
        return (_dumps(given),)

    def firsts(
        self, columns: str, groups: Mapping[str, Type], table: str, where: str, order: str
    ) -> str:
        """See `Dialect.firsts`."""
        # CROSS JOIN, so that groups come first: then each list is a few steps in an index.
        return (
            f"SELECT {columns} FROM {self.rows('g', groups)} CROSS JOIN {table} AS t ON t.id IN"
            f" (SELECT i.id FROM {table} AS i WHERE {where} ORDER BY {order} LIMIT ?)"
        )

    def rendered(self, bulk: Bulk) -> str:
        """See `Dialect.rendered`."""
        if isinstance(bulk, Insert):
            marks = ", ".join("?" * len(bulk.columns))
            more = f" {bulk.more}" if bulk.more else ""
            return f"INSERT INTO {bulk.table} ({', '.join(bulk.columns)}) VALUES ({marks}){more}"
        where = NAMED.sub("?", bulk.where)
        if isinstance(bulk, Delete):
            return f"DELETE FROM {bulk.table} WHERE {where}"
        return f"UPDATE {bulk.table} SET {NAMED.sub('?', bulk.sets)} WHERE {where}"


_dumps = json.JSONEncoder(separators=(",", ":")).encode
SQLITE = Sqlite()
