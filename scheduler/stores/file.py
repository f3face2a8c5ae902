"""One SQLite file: how it is found, opened and locked, and what its errors mean.

Durability: ``synchronous=FULL``, so what was answered survives a power cut, on
disks that keep their promises. Journal: a write-ahead log, which takes one sync a commit. SQLite
3.7.0 to 3.51.2 can corrupt it when one process checkpoints while another commits
(https://www.sqlite.org/wal.html#walresetbug), so both are done under a lock of ours, with any SQLite
(`lockfile`). What may checkpoint is the end of a commit, the close of the last connection, and a
change of the journal. Reading does not, and needs no lock; nor does a recovery, which has all of
SQLite's own.

Where no log can be (`places`) there is a rollback journal, at five syncs a commit. It stays
where it is, with a header of zeros: one that is emptied, or removed, at each commit has the
file system write down its size and its blocks each time, which takes half as long again.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from scheduler.errors import ConfigError, StoreError, StoreForeign, StoreLocked, StoreTooNew
from scheduler.stores import forks
from scheduler.stores.lockfile import LockFile, pause
from scheduler.stores.places import tried, why_no_log
from scheduler.stores.sql.connection import Connection, SqliteConnection

APPLICATION_ID = 0x4C4C4D53  # "LLMS", in the file's header
SCHEMA_VERSION = 9
OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
KEPT_JOURNAL_BYTES = 16 * 1024 * 1024  # a longer one is cut to that
BUSY_MS = 5_000  # reading waits so long for a commit of another process
CHANGING_MS = 200  # as long for others' reads to change the journal; else who opens it next does
CLOSING_S = 2.0  # closing waits so long for its turn

P = ParamSpec("P")
T = TypeVar("T")


class Writers:
    """All who write to a file, in any process: one at a time.

    Args:
        path: The file, which is there.
        patience_s: How long to wait while others hold it.
        looks: Nothing is to be written, so nobody has to be alone.
    """

    def __init__(self, path: Path, patience_s: float, *, looks: bool = False) -> None:
        self.path, self.patience_s = path, patience_s
        self.no_log = why_no_log(path)  # None: there may be a write-ahead log
        self.lock = LockFile(path)
        self._looks = looks

    def alone(self, patience_s: float | None = None) -> AbstractContextManager[float]:
        """While no other store commits or checkpoints; gives the patience that is left.

        Raises:
            StoreLocked: Another one did all the time.
        """
        patience_s = self.patience_s if patience_s is None else patience_s
        # Elsewhere locks of files may not work either, and a rollback journal needs none of ours.
        is_free = self._looks or self.no_log is not None
        return nullcontext(patience_s) if is_free else self.lock.held(patience_s)

    @contextmanager
    def transaction(self, db: sqlite3.Connection) -> Iterator[None]:
        """BEGIN IMMEDIATE to COMMIT; waits while other processes hold the file."""
        with self.alone() as left_s, self.begun(db, left_s):
            yield

    @contextmanager
    def begun(self, db: sqlite3.Connection, patience_s: float) -> Iterator[None]:
        """The same for who is alone already."""
        db.execute("PRAGMA busy_timeout = 0")
        try:
            _patiently(db, "BEGIN IMMEDIATE", patience_s)
            # Another process, which sees the file elsewhere, may have changed it meanwhile.
            if self.no_log is not None and journal_of(db) == "wal":
                raise self._log_in_use()
            yield
            _patiently(db, "COMMIT", self.patience_s)
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        finally:
            wait_briefly(db)

    def writing(
        self, function: Callable[Concatenate[Connection, P], T]
    ) -> Callable[Concatenate[sqlite3.Connection, P], T]:
        """A function that does its work in one transaction."""

        def run(db: sqlite3.Connection, /, *args: P.args, **kwargs: P.kwargs) -> T:
            with self.transaction(db):
                return function(SqliteConnection(db), *args, **kwargs)

        return run

    def use_journal(self, db: sqlite3.Connection) -> None:
        """Use the journal that can be here, or refuse to share the other one.

        One that is in others' use stays. Whoever opens the file next changes it; the file says itself
        which one it has, and all who are in it see that at their next statement.
        """
        current = journal_of(db)
        if self.no_log is None and current != "wal":
            self.no_log = tried(self.path.absolute().parent)
        wanted = "wal" if self.no_log is None else "persist"
        if current == wanted:
            return
        with self.alone():
            current = _changed(db, wanted)
        if current == "wal" and wanted != "wal":
            raise self._log_in_use()

    def close(self, db: sqlite3.Connection) -> None:
        """Close the connection; the last one of all brings what is in the log into the file.

        If others let it wait too long it does so without a turn: SQLite lets the last one do that only
        while nobody else has the file.
        """
        try:
            with self.alone(min(self.patience_s, CLOSING_S)):
                db.close()
        except StoreError:
            db.close()
        finally:
            self.lock.close()

    def _log_in_use(self) -> StoreLocked:
        return StoreLocked(
            f"{self.path} is open in another process with a write-ahead log, which cannot be shared "
            f"from here: {self.no_log}; nothing was changed. Close it there first"
        )


def journal_of(db: sqlite3.Connection) -> str:
    """Which journal the file has."""
    return str(db.execute("PRAGMA journal_mode").fetchone()[0])


def _changed(db: sqlite3.Connection, wanted: str) -> str:
    """Change the journal, unless others use the file; which one it has then."""
    db.execute(f"PRAGMA busy_timeout = {CHANGING_MS}")
    try:
        if journal_of(db) == "persist":
            db.execute("PRAGMA journal_mode = delete").fetchone()  # its file would stay for ever
        return str(db.execute(f"PRAGMA journal_mode = {wanted}").fetchone()[0])
    except sqlite3.OperationalError as exc:
        if not _is_lock(exc):
            raise
        current = journal_of(db)
        if current != "wal":
            db.execute("PRAGMA journal_mode = persist").fetchone()
        return current
    finally:
        wait_briefly(db)


def wait_briefly(db: sqlite3.Connection) -> None:
    """Have statements outside of a transaction wait for a commit of another process."""
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")


def _patiently(db: sqlite3.Connection, statement: str, patience_s: float) -> None:
    """Repeat a statement that fails for a lock: it changed nothing and can be repeated."""
    began_s = time.monotonic()
    while True:
        try:
            db.execute(statement)
            return
        except sqlite3.OperationalError as exc:
            waited_s = time.monotonic() - began_s
            if not _is_lock(exc) or waited_s >= patience_s:
                raise
        pause(waited_s)


def reading(
    function: Callable[Concatenate[Connection, P], T],
) -> Callable[Concatenate[sqlite3.Connection, P], T]:
    """A function that sees one state of the file throughout."""

    def run(db: sqlite3.Connection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        db.execute("BEGIN")
        try:
            return function(SqliteConnection(db), *args, **kwargs)
        finally:
            db.execute("ROLLBACK")

    return run


def check_file(path: Path, create: bool) -> None:
    """Clear errors for what SQLite would only call 'unable to open database file'."""
    if "\0" in str(path):
        raise ConfigError("store", f"{str(path)!r} is not the name of a file")
    if path.is_dir():
        raise StoreForeign(f"{path} is a folder; name a file with --store sqlite:///FILE.db")
    if not path.exists():
        if not create:
            raise StoreError(
                f"there is no store at {path}; name one with --store sqlite:///FILE.db, or make one "
                "with 'scheduler run'"
            )
        if not path.parent.is_dir():
            raise StoreError(f"cannot make {path}: there is no folder {path.parent}")
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        return
    head = b"" if forks.is_held(path) else _head(path)
    if head and head != b"SQLite format 3\0":
        raise StoreForeign(
            f"{path} is not a SQLite database; nothing was changed. Name another file with "
            "--store sqlite:///FILE.db"
        )
    if create and not os.access(path, os.W_OK):
        raise StoreError(f"{path} cannot be written: {os.strerror(errno.EACCES)}")


def _head(path: Path) -> bytes:
    """How the file begins; not to be asked while this process has it open.

    Closing it here would end all locks that SQLite has on it in this process.
    """
    with path.open("rb") as file:
        return file.read(16)


def named(path: Path) -> tuple[int, int] | None:
    """Which file has the name; None: none that the system tells."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def moved(path: Path) -> StoreError:
    """The error for a file that is not under its name any more."""
    return StoreError(
        f"{path} was removed, renamed or replaced while it was open; nothing more is sent. Put it "
        "back under its name: what it holds is what was spent"
    )


def version_of(db: sqlite3.Connection, path: Path) -> int:
    """The schema's version; 0 if the file is empty."""
    # In this order: another process may make the file meanwhile, and whoever saw no tables
    # before, or its mark after, does not take it for a stranger's.
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID and (tables or application):
        raise StoreForeign(
            f"{path} is a SQLite database of another program; nothing was changed. "
            "Name another file with --store sqlite:///FILE.db"
        )
    if version > SCHEMA_VERSION:
        raise StoreTooNew(str(path), version, SCHEMA_VERSION)
    return int(version)


def create_schema(db: sqlite3.Connection) -> None:
    """Make the tables of an empty file, within the caller's transaction."""
    script = files("scheduler.stores.sql").joinpath("schema.sql").read_text(encoding="utf-8")
    text = "\n".join(line.partition("--")[0] for line in script.splitlines())
    for statement in text.split(";"):
        if statement.strip():
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _is_lock(exc: sqlite3.Error) -> bool:
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def translate(exc: sqlite3.Error, path: Path) -> StoreError:
    """What one of SQLite's errors means, as one of ours."""
    if _is_lock(exc):
        return StoreLocked(
            f"{path} is held by another process ({exc}); nothing was changed. Try again, or find "
            "it with 'scheduler doctor'"
        )
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if getattr(exc, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_DBMOVED:
        return moved(path)
    if code == sqlite3.SQLITE_READONLY:
        return StoreError(
            f"{path} cannot be written: {os.strerror(errno.EACCES)} ({exc}); nothing was changed. "
            "Do it as the file's owner, and where its folder can be written"
        )
    if code == sqlite3.SQLITE_NOTADB:
        return StoreForeign(f"{path} is not a SQLite database, or a damaged one ({exc})")
    return StoreError(f"{path}: {exc}; what was acknowledged before is safe, nothing new is sent")
