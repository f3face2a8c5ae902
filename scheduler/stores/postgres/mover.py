"""Moves all that is in a file into a database: budgets, what was spent, the queue, the answers.

The tables are the same on both engines, so rows are copied as they are, ids too, in one transaction
on the database while nobody else can write to the file. Only when that is committed the file gets
another name, before anybody can write to it again: so there is never a store on both sides, and
what breaks on the way leaves the file as it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from scheduler.errors import ConfigError, StoreError, StoreLocked
from scheduler.stores.file import Writers, translate, version_of
from scheduler.stores.postgres.address import Address, parse
from scheduler.stores.postgres.connection import lock_key, quoted
from scheduler.stores.postgres.link import Link, connect
from scheduler.stores.postgres.schema import check_server, make

PATIENCE_S = 10.0
PAGE = 1_000
# In the order in which they are copied. What processes tell each other of changes is not: there are
# no processes yet.
TABLES = (
    "budgets", "accounts", "balances", "lanes", "jobs", "tallies", "requests", "responses",
    "reservations", "lengths", "sums", "spent", "spent_of_budgets", "spent_of_tags", "gates", "prices",
    "notes", "papers", "pages", "took", "outbox", "tenants",
)  # fmt: skip
COUNTED = (
    "workers",
    "budgets",
    "accounts",
    "lanes",
    "jobs",
    "requests",
    "reservations",
    "lengths",
    "outbox",
)
_ENDING = ".moved"


@dataclass(frozen=True)
class Moved:
    """What was moved.

    Attributes:
        rows: How many, by table.
        was_there: It had been copied before, and only the file kept its name.
        kept: The file as it is called now.
    """

    rows: dict[str, int]
    was_there: bool
    kept: Path


def move(path: Path, url: str) -> Moved:
    """Move a file that no process uses into a database that holds nothing yet.

    Args:
        path: The file, of this version.
        url: The database, as `PostgresStore` takes it.

    Raises:
        StoreLocked: A process works on the file; nothing was changed.
        ConfigError: The database cannot hold a text of it; nothing was changed.
        StoreError: The database holds a store already, or one of both cannot be reached.
    """
    kept = path.with_name(path.name + _ENDING)
    if kept.exists():
        raise StoreError(f"{kept} is there already; nothing was changed. Give it another name")
    address = parse(url)
    with _held(path) as file, closing(connect(address)) as link:
        _check_idle(file, path)
        try:
            check_server(link, address)
            make(link, address)
            with link.transaction():
                rows, was_there = _copy(file, path, link, address)
        except psycopg.DataError as exc:
            said = " ".join(str(exc).split())
            raise ConfigError(
                "text", f"cannot be stored in {address.shown}: {said}; nothing was changed"
            ) from None
        except psycopg.Error as exc:
            raise _broken(exc, path, address) from None
        path.rename(kept)
    return Moved(rows, was_there, kept)


@contextmanager
def _held(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, to which nobody else can write meanwhile."""
    writers = Writers(path, PATIENCE_S)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as file:
            version_of(file, path)
            with writers.alone() as left_s:
                _check_idle(file, path)  # who has it open is in the way of the next statement, too
                file.execute("PRAGMA journal_mode = DELETE").fetchone()  # all of it in one file
                with writers.begun(file, left_s):
                    yield file
                file.close()
    except sqlite3.Error as exc:
        raise translate(exc, path) from exc
    finally:
        writers.lock.close()


def _check_idle(file: sqlite3.Connection, path: Path) -> None:
    rows = file.execute("SELECT pid, host FROM workers ORDER BY id").fetchall()
    if rows:
        who = ", ".join(f"{pid} on {host.split()[0]}" for pid, host in rows[:3])
        raise StoreLocked(
            f"{path} is in use by process {who}{' and others' if len(rows) > 3 else ''}; nothing was "
            "changed. Stop it first; one on another machine is taken for gone after a day"
        )


def _copy(
    file: sqlite3.Connection, path: Path, link: Link, address: Address
) -> tuple[dict[str, int], bool]:
    link.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key(address.schema),))
    link.execute(
        "SELECT set_config('search_path', %s, true)", (f"{quoted(address.schema)}, pg_temp",)
    )
    rows = {table: _count(file, table) for table in TABLES}
    there = {table: _count(link, table) for table in TABLES}
    if any(there.values()):
        if there == rows and _sums(file) == _sums(link):
            return rows, True
        raise StoreError(
            f"{address.shown} holds a store already ({there['budgets']:,} budgets, "
            f"{there['requests']:,} requests), which is not that of {path}; nothing was changed. Name "
            "another schema with ?schema=NAME"
        )
    for table in TABLES:
        _fill(file, link, table)
    for table in COUNTED:
        last = _last_id(file, table)
        if last:
            link.execute(f"SELECT setval('{table}_id_seq', %s)".encode(), (last,))
    return rows, False


def _fill(file: sqlite3.Connection, link: Link, table: str) -> None:
    names = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
    columns = ", ".join(names)
    found = file.execute(f"SELECT {columns} FROM {table}")
    with link.cursor().copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as copy:
        while page := found.fetchmany(PAGE):
            for row in page:
                copy.write_row(row)


def _count(db: Any, table: str) -> int:
    (count,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


def _sums(db: Any) -> list[int]:
    """What would differ if anybody had gone on, here or there."""
    balances = db.execute(
        "SELECT coalesce(sum(posted), 0), coalesce(sum(reserved), 0), coalesce(sum(suspense), 0)"
        " FROM balances"
    ).fetchone()
    requests = db.execute(
        "SELECT coalesce(max(id), 0), coalesce(sum(attempts), 0), coalesce(sum(cost_nusd), 0)"
        " FROM requests"
    ).fetchone()
    return [int(each) for each in (*balances, *requests)]


def _last_id(file: sqlite3.Connection, table: str) -> int:
    """The last one that was ever given, of rows that are gone, too."""
    (last,) = file.execute(
        f"SELECT max(coalesce((SELECT max(id) FROM {table}), 0),"
        " coalesce((SELECT seq FROM sqlite_sequence WHERE name = ?), 0))",
        (table,),
    ).fetchone()
    return int(last)


def _broken(exc: psycopg.Error, path: Path, address: Address) -> StoreError:
    said = " ".join(str(exc).split())
    return StoreError(
        f"{address.shown}: {said}; {path} is as it was. Say it again: if all of it had arrived, "
        "that is seen, and only the file is put aside"
    )
