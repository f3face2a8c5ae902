"""The newest SQLite in the shape of the standard library's `sqlite3`, as far as a store uses it.

Python's own SQLite may be years old. apsw brings the current one along, so the store's real
code can run on it, with its write-ahead log, and on file systems written in Python.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import apsw

from scheduler.stores import file as stores_file
from scheduler.stores import places as stores_places
from scheduler.stores import sqlite as stores_sqlite
from scheduler.stores.sql import upgrade as sqlite_upgrade

sqlite_version = apsw.sqlite_lib_version()
sqlite_version_info = tuple(int(part) for part in sqlite_version.split("."))

_DATA = {apsw.SQLITE_CORRUPT, apsw.SQLITE_NOTADB, apsw.SQLITE_FORMAT}
_CLASSES: dict[int, type[sqlite3.Error]] = {
    apsw.SQLITE_CONSTRAINT: sqlite3.IntegrityError,
    apsw.SQLITE_MISMATCH: sqlite3.IntegrityError,
    apsw.SQLITE_MISUSE: sqlite3.InterfaceError,
    apsw.SQLITE_INTERNAL: sqlite3.InternalError,
    apsw.SQLITE_TOOBIG: sqlite3.DataError,
    **dict.fromkeys(_DATA, sqlite3.DatabaseError),
}


def __getattr__(name: str) -> Any:
    return getattr(sqlite3, name)


def install(
    patch: Callable[[object, str, Any], None] = setattr,
    vfs: str | None = None,
    no_log: str | None = None,
) -> None:
    """Make every store of this process use it.

    Args:
        patch: Sets an attribute of a module; a monkeypatch's undoes it.
        vfs: The file system, if not the system's own.
        no_log: Why there can be no write-ahead log, if so.
    """
    _Module.vfs = vfs
    for module in (stores_file, stores_sqlite, stores_places, sqlite_upgrade):
        patch(module, "sqlite3", _Module())
    if no_log is not None:
        patch(stores_file, "why_no_log", lambda path: no_log)


class _Module:
    """What `sqlite3` is to a module of the stores."""

    vfs: str | None = None
    sqlite_version, sqlite_version_info = sqlite_version, sqlite_version_info

    def connect(self, path: object, **_options: Any) -> Connection:
        return Connection(str(path), self.vfs)

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except apsw.Error as exc:
        code = getattr(exc, "extendedresult", getattr(exc, "result", apsw.SQLITE_ERROR))
        error = _CLASSES.get(code & 0xFF, sqlite3.OperationalError)(str(exc))
        error.sqlite_errorcode = code
        raise error from exc


class Connection:
    """A connection with the methods of `sqlite3.Connection` that the stores call."""

    def __init__(self, path: str, vfs: str | None = None) -> None:
        with _translated():
            self._db = apsw.Connection(path, vfs=vfs)

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        return self.cursor().execute(sql, values)

    def executemany(self, sql: str, rows: Iterable[Any]) -> Cursor:
        cursor = self.cursor()
        with _translated():
            cursor._cursor.executemany(sql, rows)
        return cursor

    def cursor(self) -> Cursor:
        return Cursor(self._db.cursor())

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def backup(self, target: Connection) -> None:
        with _translated(), target._db.backup("main", self._db, "main") as copying:
            copying.step()

    def close(self) -> None:
        # SQLite itself reports no failing checkpoint here; apsw passes on what a Python VFS raised.
        with suppress(apsw.IOError, apsw.FullError, apsw.CantOpenError):
            self._db.close()


class Cursor:
    """A cursor with the methods of `sqlite3.Cursor` that the stores call."""

    def __init__(self, cursor: apsw.Cursor) -> None:
        self._cursor = cursor

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        with _translated():
            self._cursor.execute(sql, values)
        return self

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def fetchone(self) -> Any:
        with _translated():
            return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        with _translated():
            return self._cursor.fetchall()

    def close(self) -> None:
        with _translated():
            self._cursor.close()
