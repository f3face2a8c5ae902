"""Opening a SQLite file that may not be written: looking needs no right to change anything.

SQLite reads such a file by itself, except in two cases. A write-ahead log and its index are only
read where they are: made by somebody who may not write the file they would stay, and its owner could
not write to them. And a file whose last writer crashed has to be put in order first. Then a copy
is looked at, that only its owner can read, and that is dropped when it is closed.

A look never brings a log into its file, so it needs no turn among those who write (`lockfile`).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

from scheduler.errors import StoreError

_LEFTOVERS = ("-wal", "-journal")


def may_write(path: Path) -> bool:
    """Whether this process may write the file, and the journal next to it."""
    return os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK)


class Look:
    """One look at a file, from `connect` to `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None

    def connect(self) -> sqlite3.Connection:
        """A connection that reads, and refuses to write."""
        try:
            if not self._has_log():
                return _reading(self.path, "mode=ro")
            if self._beside("-wal").exists():
                return _reading(self.path, "mode=ro&readonly_shm=1")
        except sqlite3.OperationalError as exc:
            if getattr(exc, "sqlite_errorcode", 0) & 0xFF not in (
                sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR,
            ):  # fmt: skip
                raise
        if not self._left():
            return _reading(self.path, "mode=ro&immutable=1")  # nothing has to be put in order
        return _reading(self._copied(), "mode=rw")

    def _has_log(self) -> bool:
        with self.path.open("rb") as file:
            return file.read(20)[18:19] == b"\x02"

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}{ending}")

    def _left(self) -> list[Path]:
        places = [self._beside(end) for end in _LEFTOVERS]
        return [place for place in places if place.is_file() and place.stat().st_size]

    def _copied(self) -> Path:
        self._copy = tempfile.TemporaryDirectory(prefix="scheduler-look-")
        for place in (self.path, *self._left()):
            shutil.copyfile(place, Path(self._copy.name) / place.name)
        return Path(self._copy.name) / self.path.name

    def close(self) -> None:
        """Drop the copy, if there is one."""
        if self._copy is not None:
            self._copy.cleanup()


def _reading(path: Path, how: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{how}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        db.execute("PRAGMA query_only = ON")
    except BaseException:
        db.close()
        raise
    return db


def check_version(path: Path, version: int, newest: int) -> None:
    """Refuse to look at a file that would have to be made, or brought up to date, first.

    Raises:
        StoreError: It would.
    """
    if version == newest:
        return
    what = f"has schema version {version}, this package has {newest}" if version else "is empty"
    raise StoreError(
        f"{path} {what}, and it cannot be brought up to date, since it cannot be written here; "
        "nothing was changed. Look at it once as its owner, or at a copy of it"
    )
