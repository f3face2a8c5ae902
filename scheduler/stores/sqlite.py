"""Queue and ledger in a SQLite file that several processes may share.

Every operation is one synchronous function that runs whole on the connection's
own thread, so cancelling a caller never leaves a transaction open. The pump hands
over everything that waits at once: while one commit is on its way to the disk, the
next one gathers.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from scheduler.errors import ConfigError, StoreError
from scheduler.guards.plain import logger_of
from scheduler.stores import forks
from scheduler.stores.base import StorePrompts
from scheduler.stores.file import (
    KEPT_JOURNAL_BYTES,
    OLDEST_SQLITE,
    SCHEMA_VERSION,
    Writers,
    check_file,
    create_schema,
    moved,
    named,
    reading,
    translate,
    version_of,
    wait_briefly,
)
from scheduler.stores.refusing import in_use
from scheduler.stores.sql import upgrade as sqlite_upgrade
from scheduler.stores.sql.connection import Connection, SqliteConnection
from scheduler.stores.sql.look import Look, check_version, may_write
from scheduler.stores.sql.store import SqlStore
from scheduler.stores.thread import Thread

logger = logger_of("scheduler.stores.sqlite")

PATIENCE_S = 60.0  # how long a turn keeps trying while others hold the file
LOG_PAGES = 4_000  # the commit that brings the log to so many puts them into the file

P = ParamSpec("P")
T = TypeVar("T")


class SqliteStore(SqlStore):
    """A store in a file; see the module.

    Args:
        path: The file; its folder must exist. Created with mode 0600.
        create: Whether to create it if it is missing. If not, one that cannot be written may be
            looked at all the same.
        patience_s: How long to wait while other processes hold the file.
        store_prompts: What of a request is kept in the file; see `StorePrompts`.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        patience_s: float = PATIENCE_S,
        store_prompts: StorePrompts = "full",
    ) -> None:
        super().__init__(store_prompts)
        self.path, self._create, self._patience_s = path, create, patience_s
        self._connection: Thread | None = None
        self._writers: Writers | None = None  # since it was opened
        self._look: Look | None = None  # at a file that cannot be written
        self._version = 0  # `PRAGMA data_version` when last looked
        self._place = path  # as it was when the file was opened, wherever the process goes
        self._held: forks.Held | None = None  # as forks of this process hear of it
        self._file: tuple[int, int] | None = None  # which one was opened; None: not told

    def __repr__(self) -> str:
        return f"<SqliteStore {self.path}>"

    async def open(self, now_ms: int) -> None:
        """Open or create the file; a process that only looks writes nothing."""
        if self._connection is not None:
            raise in_use()
        self._place, self._file = self.path.absolute(), None
        with self._translated():
            self._enter()
            connection = self._connection = Thread(self._connect, 64)
            connection._thread.daemon = True  # a forgotten store must not keep the process alive
            try:
                await connection
            except BaseException:
                self._connection = None
                forks.let_go(self._held)
                # Its thread reports to this loop once more before it ends.
                await asyncio.to_thread(connection._thread.join, 5)
                raise
        try:
            await self._run(self._set_up, now_ms)
            await self._read(self._transactions.read_budgets, now_ms)
        except BaseException:
            await self.aclose()
            raise

    def _enter(self) -> None:
        """See whether it may be opened, and note that it will be."""
        with forks.entering:
            check_file(self.path, self._create)
            forks.refuse_inherited(self.path)
            self._held = forks.hold(self._place)
        self._look = Look(self.path) if not self._create and not may_write(self.path) else None
        looks = self._look is not None
        self._writers = Writers(self._place, self._patience_s, looks=looks)

    async def aclose(self) -> None:
        """Let go of the file; what waits is there for the next run."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            with self._translated():
                # Asked on the thread: a turn may still be on its way there.
                if await connection.run(lambda db: self._transactions.worker_id):
                    await connection.run(self._writing(self._transactions.leave))
        except StoreError as exc:
            logger.warning("could not sign off from %s: %s", self.path, exc)
        finally:
            with suppress(StoreError, sqlite3.Error):
                await connection.run(self._shared().close)
            await connection.close()
            forks.let_go(self._held)
            if self._look is not None:
                self._look.close()

    def _connect(self) -> sqlite3.Connection:
        if self._look is not None:
            db = self._look.connect()
        else:
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        wait_briefly(db)
        return db

    def _set_up(self, db: sqlite3.Connection, now_ms: int) -> None:
        """Check that the file is ours, or make it so."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreError(
                f"this Python has SQLite {sqlite3.sqlite_version}; at least "
                f"{'.'.join(map(str, OLDEST_SQLITE))} is needed"
            )
        version = version_of(db, self.path)
        if self._look is not None:
            check_version(self.path, version, SCHEMA_VERSION)
        for pragma in ("synchronous = FULL", "temp_store = MEMORY", "mmap_size = 0",
                       "cache_size = -32768", f"wal_autocheckpoint = {LOG_PAGES}",
                       f"journal_size_limit = {KEPT_JOURNAL_BYTES}"):  # fmt: skip
            db.execute(f"PRAGMA {pragma}")
        if self._look is None:
            self._prepare(db, self._shared(), version, now_ms)
        (self._version,) = db.execute("PRAGMA data_version").fetchone()
        self._file = None if self._look is not None else named(self._place)

    def _prepare(self, db: sqlite3.Connection, writers: Writers, version: int, now_ms: int) -> None:
        """Have all in it that this version writes to."""
        if 0 < version < SCHEMA_VERSION:
            self._upgrade(db, writers, now_ms)  # first: until then older processes may be in it
        writers.use_journal(db)
        if version == 0:
            with writers.transaction(db):
                if version_of(db, self.path) == 0:  # nobody else did it meanwhile
                    create_schema(db)

    def _upgrade(self, db: sqlite3.Connection, writers: Writers, now_ms: int) -> None:
        """Bring an older file up to date, in one transaction, after a copy of it is made."""
        with writers.transaction(db):
            version = version_of(db, self.path)
            if version == SCHEMA_VERSION:
                return  # somebody else did it meanwhile
            me = self._transactions.process
            saved = sqlite_upgrade.upgrade(SqliteConnection(db), self.path, version, me, now_ms)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        logger.info("%s was upgraded to version %d; a copy of it as it was is %s",
                    self.path, SCHEMA_VERSION, saved)  # fmt: skip

    async def _run(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        if self._connection is None:
            raise StoreError(f"{self.path} is not open")
        with self._translated():
            return await self._connection.run(self._while_named(function), *args, **kwargs)

    async def _read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that sees one state of the file throughout."""
        return await self._run(reading(function), *args, **kwargs)

    async def _write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function in one transaction."""
        return await self._run(self._writing(function), *args, **kwargs)

    def _writing(
        self, function: Callable[Concatenate[Connection, P], T]
    ) -> Callable[Concatenate[sqlite3.Connection, P], T]:
        return self._shared().writing(function)

    def _shared(self) -> Writers:
        if self._writers is None:
            raise StoreError(f"{self.path} is not open")
        return self._writers

    def _while_named(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T]
    ) -> Callable[Concatenate[sqlite3.Connection, P], T]:
        """A function that works on the file of this name only.

        With a write-ahead log SQLite itself would go on in a file that was removed, while the next
        process makes a new one, with all of the budget in it.
        """

        def run(db: sqlite3.Connection, /, *args: P.args, **kwargs: P.kwargs) -> T:
            if self._file is not None and named(self._place) != self._file:
                raise moved(self.path)
            return function(db, *args, **kwargs)

        return run

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The one place where SQLite's errors become ours."""
        try:
            yield
        except sqlite3.Error as exc:
            raise translate(exc, self.path) from exc
        except UnicodeEncodeError as exc:
            problem = f"{exc.object[exc.start : exc.end]!a} cannot be stored in {self.path}"
            raise ConfigError("text", problem) from None
        except OSError as exc:
            raise StoreError(f"{self.path}: {exc.strerror or exc}") from exc

    async def changed(self, now_ms: int) -> bool:
        """Whether another process committed; renews the lease when it is due."""
        version = await self._run(lambda db: int(db.execute("PRAGMA data_version").fetchone()[0]))
        is_new = version != self._version
        self._version = version
        lease_due = now_ms - self._transactions.seen_at_ms >= self.lease_ms // 3
        return is_new or (lease_due and bool(self._transactions.worker_id))
