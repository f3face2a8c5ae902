"""One SQLite file: how it is found, opened and locked, and what its errors mean.

Durability: ``synchronous=FULL``, so what was answered survives a power cut, on
disks that keep their promises. Journal: SQLite 3.7.0 to 3.51.2 can corrupt a
write-ahead log when one process checkpoints while another commits
(https://www.sqlite.org/wal.html#walresetbug), so the log is used from 3.51.3 on and
a rollback journal before that; group commit makes either fast enough. That journal stays
where it is, with a header of zeros: one that is emptied, or removed, at each commit has the
file system write down its size and its blocks each time, which takes half as long again.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from scheduler.errors import ConfigError, StoreError, StoreForeign, StoreLocked, StoreTooNew
from scheduler.stores.sql.connection import Connection, SqliteConnection

APPLICATION_ID = 0x4C4C4D53  # "LLMS", in the file's header
SCHEMA_VERSION = 8
OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
SAFE_WAL_SQLITE = (3, 51, 3)
KEPT_JOURNAL_BYTES = 16 * 1024 * 1024  # a longer one is cut to that
BUSY_MS = 5_000  # reading waits so long for a commit of another process
SHORT_PAUSE_S, LONG_PAUSE_S, SHORT_WAIT_S = 0.003, 0.02, 1.0

P = ParamSpec("P")
T = TypeVar("T")


def journal_mode(sqlite_version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str:
    """The journal mode that is safe for several processes with this SQLite."""
    return "wal" if sqlite_version >= SAFE_WAL_SQLITE else "persist"


@contextmanager
def transaction(db: sqlite3.Connection, patience_s: float) -> Iterator[None]:
    """BEGIN IMMEDIATE to COMMIT; waits while other processes hold the file."""
    db.execute("PRAGMA busy_timeout = 0")
    try:
        _patiently(db, "BEGIN IMMEDIATE", patience_s)
        _check_journal(db)
        yield
        _patiently(db, "COMMIT", patience_s)
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    finally:
        wait_briefly(db)


def wait_briefly(db: sqlite3.Connection) -> None:
    """Have statements outside of a transaction wait for a commit of another process."""
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")


def _patiently(db: sqlite3.Connection, statement: str, patience_s: float) -> None:
    """Repeat a statement that fails for a lock: it changed nothing and can be repeated.

    SQLite's own waiting doubles its pauses up to a tenth of a second, so that among busy
    processes whoever has waited longest gets the file last. Short random pauses are fair.
    """
    began_s = time.monotonic()
    while True:
        try:
            db.execute(statement)
            return
        except sqlite3.OperationalError as exc:
            waited_s = time.monotonic() - began_s
            if not _is_lock(exc) or waited_s >= patience_s:
                raise
        pause_s = SHORT_PAUSE_S if waited_s < SHORT_WAIT_S else LONG_PAUSE_S
        time.sleep(pause_s * (0.2 + random.random()))


def writing(
    function: Callable[Concatenate[Connection, P], T], patience_s: float
) -> Callable[Concatenate[sqlite3.Connection, P], T]:
    """A function that does its work in one transaction."""

    def run(db: sqlite3.Connection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with transaction(db, patience_s):
            return function(SqliteConnection(db), *args, **kwargs)

    return run


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
    with path.open("rb") as file:
        head = file.read(16)
    if head and head != b"SQLite format 3\0":
        raise StoreForeign(
            f"{path} is not a SQLite database; nothing was changed. Name another file with "
            "--store sqlite:///FILE.db"
        )
    if create and not os.access(path, os.W_OK):
        raise StoreError(f"{path} cannot be written: {os.strerror(errno.EACCES)}")


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


def use_journal(db: sqlite3.Connection, path: Path) -> None:
    """Use the journal that is safe here, or refuse to share the other one."""
    wanted = journal_mode()
    (current,) = db.execute("PRAGMA journal_mode").fetchone()
    if current == wanted:
        return
    try:
        (current,) = db.execute(f"PRAGMA journal_mode = {wanted}").fetchone()
    except sqlite3.OperationalError as exc:
        if not _is_lock(exc):
            raise
    if current == "wal" and wanted != "wal":
        raise _log_in_use(path)


def _check_journal(db: sqlite3.Connection) -> None:
    """Another process with a newer SQLite may have changed the journal since this one opened."""
    wanted = journal_mode()
    if wanted != "wal" and db.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        raise _log_in_use(Path(db.execute("PRAGMA database_list").fetchone()[2]))


def _log_in_use(path: Path) -> StoreLocked:
    return StoreLocked(
        f"{path} is open in another process with a newer SQLite and its write-ahead log, which "
        f"this Python's SQLite {sqlite3.sqlite_version} cannot share safely; nothing was changed. "
        "Close it there first, or use the same Python"
    )


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
