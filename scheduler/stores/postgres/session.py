"""One process's way to its database: transactions that happen once, whatever becomes of the network.

When an answer is lost, a transaction that was not to be committed yet did not happen; books are put
right and it is tried again, on another connection. If the answer to the commit itself is lost,
nobody knows. Each transaction notes in the database that it was committed, so the next one, under
the same lock, reads whether it was: then what it found is the answer; else it is tried again.
All of this is within one call of the store, so whoever called hears of none of it.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg

from scheduler.errors import ConfigError, SchedulerError, StoreError, StoreForeign, StoreLocked
from scheduler.guards.plain import logger_of
from scheduler.stores.postgres.address import Address
from scheduler.stores.postgres.clock import DatabaseClock
from scheduler.stores.postgres.connection import CLOCK, PostgresConnection, quoted
from scheduler.stores.postgres.link import (
    MORE_S,
    PREPARED_SQLSTATES,
    Link,
    connect,
    is_direct,
    may_try_again,
)
from scheduler.stores.postgres.schema import VERSION, check_server, make, upgrade, version_of
from scheduler.stores.sql import again
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.turn import Transactions

logger = logger_of("scheduler.stores.postgres")

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
KEPT_MARKS_MS = 7 * 86_400_000

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class _Doubt:
    """A transaction of which nobody knows whether it was committed."""

    result: Any
    before: again.Memo


class Session:
    """See the module. Everything but `stop` is called on one thread.

    Args:
        address: The database.
        books: What the process remembers of it.
        clock: Follows the server's.
        connects: Makes a connection.
        uses_clock: Time is the server's; else as callers tell it.

    Attributes:
        is_direct: No proxy is between.
        told: Whether others should look at what was committed, and at once; None: they need not.
    """

    def __init__(
        self, address: Address, books: Transactions, clock: DatabaseClock,
        connects: Callable[[Address], Link] = connect, *, uses_clock: bool = True,
    ) -> None:  # fmt: skip
        self.address, self._books, self._clock, self._connects = address, books, clock, connects
        self.is_direct = True
        self.transaction = PostgresConnection
        self.uses_clock = uses_clock
        self.told: bool | None = None
        self._link: Link | None = None
        self._may_prepare = True
        self._process = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._is_torn = False  # a transaction did not happen, and the books are not mended yet
        self._stopped = threading.Event()
        changes, ends = f"{quoted(address.schema)}.changes", f"{quoted(address.schema)}.ends"
        self._newest = (
            f"SELECT {CLOCK}, (SELECT coalesce(max(seq), 0) FROM {changes}),"
            f" (SELECT coalesce(max(seq), 0) FROM {ends})"
        ).encode()
        again.prepare(books)

    # Opening and closing

    def open(self, *, create: bool) -> None:
        """Connect, and make the tables if there are none; no patience with what is not there."""
        link = self._connected()
        try:
            check_server(link, self.address)
            version = version_of(link, self.address)
            if version and version < VERSION:
                upgrade(link, self.address, self._books.lease_ms)
            elif not version:
                if not create:
                    raise StoreError(
                        f"there is no store in the schema {self.address.schema!r} of "
                        f"{self.address.shown}; 'scheduler run' makes it"
                    )
                make(link, self.address)
            self.newest()  # and the time
        except psycopg.Error as exc:
            raise self._translated(exc) from None

    def stop(self) -> None:
        """Have it try nothing again from now on; from any thread."""
        self._stopped.set()

    def close(self) -> None:
        """Let go of the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def forget_marks(self, db: Connection) -> None:
        """This process commits nothing more, nor do those that went long ago without a word."""
        now_ms = db.now_ms(0)
        db.write("DELETE FROM commits WHERE process = ? OR at_ms < ?",
                 self._process, now_ms - KEPT_MARKS_MS)  # fmt: skip

    def _connected(self) -> Link:
        if self._link is not None and not self._link.closed:
            return self._link
        self._link = None
        link = self._link = self._connects(self.address)
        self.is_direct = is_direct(link)
        if not self._may_prepare:
            link.prepare_threshold = None
        return link

    # Transactions

    def write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function in one transaction, which happens once; alone among those that write."""
        number, patience = next(self._numbers), _Patience(self.address.patience_s, self._stopped)
        doubt: _Doubt | None = None
        while True:
            db: PostgresConnection | None = None
            before: again.Memo | None = None
            result: Any = None
            try:
                db = self._transaction()
                db.begin(writes=True)
                if doubt is not None:
                    if db.is_marked(self._process, number):
                        db.roll_back()
                        self._is_torn = False
                        return doubt.result  # type: ignore[no-any-return]
                    again.restore(self._books, doubt.before)
                    doubt, self._is_torn = None, True
                before = again.memo(self._books)
                if self._is_torn:
                    again.mend(db, self._books)
                result = function(db, *args, **kwargs)
                if db.has_written:
                    db.mark(self._process, number)
                if db.clock_ms is not None:
                    self._clock.is_(db.clock_ms)
                db.commit()
            except BaseException as exc:
                if db is not None and db.is_committing and before is not None and _is_lost(exc):
                    doubt = _Doubt(result, before)
                elif before is not None and not isinstance(exc, SchedulerError):
                    again.restore(self._books, before)
                    self._is_torn |= db is not None and db.has_begun
                self._left(db, exc)
                patience.wait(self._again(exc, is_in_doubt=doubt is not None))
            else:
                self._is_torn = False
                self.told = db.told if self.told is None else bool(db.told) or self.told
                return result  # type: ignore[no-any-return]

    def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that sees one state throughout, and writes nothing."""
        patience = _Patience(self.address.patience_s, self._stopped)
        since = self._books.definition_changes
        while True:
            db: PostgresConnection | None = None
            try:
                db = self._transaction()
                db.begin(writes=False)
                result = function(db, *args, **kwargs)
                db.commit()
                return result
            except BaseException as exc:
                self._books.definition_changes = since
                self._left(db, exc)
                patience.wait(self._again(exc))

    def newest(self) -> tuple[int, int]:
        """The numbers of the last change, and of the last request that ended."""
        patience = _Patience(self.address.patience_s, self._stopped)
        while True:
            try:
                link = self._connected()
                link.answer_s = MORE_S
                row = link.execute(self._newest).fetchone()
                assert row is not None
                self._clock.is_(row[0])
                return row[1], row[2]
            except psycopg.Error as exc:
                self._left(None, exc)
                patience.wait(self._again(exc))

    def notify(self, channel: str) -> None:
        """Wake who listens, now that it is committed.

        In a transaction of its own, that writes nothing: the server lets those that notify commit
        one after the other, and so they wait for no disk.
        """
        try:
            if self._link is not None and not self._link.closed:
                self._link.execute("SELECT pg_notify(%s, '')", (channel,))
        except psycopg.Error as exc:
            self._left(None, exc)
            logger.debug("could not notify: %s", exc)

    def _transaction(self) -> PostgresConnection:
        clock = self._clock if self.uses_clock else None
        return self.transaction(self._connected(), self.address.schema, clock)

    # What fails

    def _left(self, db: PostgresConnection | None, exc: BaseException) -> None:
        """A transaction has failed: leave it."""
        if isinstance(exc, psycopg.Error) and (exc.sqlstate or "").startswith(PREPARED_SQLSTATES):
            self._may_prepare = False  # there is a proxy after all
        if self._link is None:
            return
        if _is_lost(exc) or not isinstance(exc, Exception):
            self.close()
        elif db is not None:
            db.roll_back()
        if not self._may_prepare and self._link is not None:
            self._link.prepare_threshold = None

    def _again(self, exc: BaseException, *, is_in_doubt: bool = False) -> StoreError:
        """What is said if there is no patience left; raises what does not change by waiting."""
        if isinstance(exc, psycopg.DataError | UnicodeEncodeError):
            raise ConfigError("text", f"cannot be stored in {self.address.shown}: {exc}") from None
        if not may_try_again(exc):
            raise self._translated(exc) if isinstance(exc, psycopg.Error) else exc
        said = self._translated(exc)
        if is_in_doubt:
            said = StoreError(
                f"{self.address.shown}: {exc}; nobody knows whether the last transaction was "
                "committed. It happened as a whole or not at all; nothing new is sent"
            )
        return said

    def _translated(self, exc: BaseException) -> StoreError:
        """What one of the engine's errors means, as one of ours."""
        shown, said = self.address.shown, " ".join(str(exc).split())
        if isinstance(exc, StoreError):
            return exc
        if isinstance(exc, psycopg.errors.LockNotAvailable):
            return StoreLocked(f"{shown} is held by another process for too long ({said})")
        if isinstance(exc, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
            return StoreForeign(
                f"{shown}: {said}; its tables were removed, or are another program's. Nothing new is sent"
            )
        if isinstance(exc, psycopg.errors.InsufficientPrivilege):
            return StoreError(f"{shown}: {said}; let this user use the schema and its tables")
        return StoreError(
            f"{shown}: {said}; what was acknowledged before is safe, nothing new is sent"
        )


def _is_lost(exc: BaseException) -> bool:
    """Whether the connection may be of no use any more."""
    if isinstance(exc, psycopg.InterfaceError):
        return True
    state = getattr(exc, "sqlstate", None)
    is_of_session = state is None or state.startswith(("08", "57P", "25P0"))
    return isinstance(exc, psycopg.OperationalError) and is_of_session


class _Patience:
    """How long the same is tried again."""

    def __init__(self, seconds: float, stopped: threading.Event) -> None:
        self._until_s, self._stopped = time.monotonic() + seconds, stopped
        self._pause_s = SHORTEST_PAUSE_S
        self._has_told = False

    def wait(self, error: StoreError) -> None:
        """Before the next try. Raises the error when the time is over."""
        if time.monotonic() >= self._until_s:
            raise error
        if self._pause_s >= LONGEST_PAUSE_S and not self._has_told:
            self._has_told = True
            logger.warning("trying again: %s", error)
        if self._stopped.wait(self._pause_s * (0.5 + random.random())):
            raise error
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)
