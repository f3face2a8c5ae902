"""A transaction on PostgreSQL: what is written goes along with the next read, and with the commit.

Who writes takes the store's lock first (`pg_advisory_xact_lock`, which ends with the transaction and
so passes through any proxy), and reads at READ COMMITTED: each statement sees all that was committed
before that lock was given. Who only reads sees one state throughout and waits for nobody.

Time is the server's, read under the lock, so that clocks of machines which differ change nothing:
leases and windows are judged by one clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256
from typing import Any

import psycopg

from scheduler.clock import Clock
from scheduler.stores.postgres.dialect import POSTGRES, numbered
from scheduler.stores.postgres.link import MORE_S, Link
from scheduler.stores.sql.connection import Connection, Row
from scheduler.stores.sql.dialect import Bulk

WRITING_MS, READING_MS = 60_000, 600_000  # what one statement may take
LOCK_MS = 30_000
IDLE_MS = 10_000  # who stands still with the lock is cut off, or all would stand
PAGE = 5_000
COUNTED = (
    "accounts",
    "lanes",
    "lengths",
    "requests",
    "reservations",
)  # of which ids are given here
CLOCK = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

_SETTINGS = {
    "search_path": "$1",
    "statement_timeout": "$2",
    "lock_timeout": f"'{LOCK_MS}'",
    "idle_in_transaction_session_timeout": f"'{IDLE_MS}'",
    # What was answered is on the disk, whatever the server does otherwise.
    "synchronous_commit": "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
    " ELSE current_setting('synchronous_commit') END",
}
_SET = ", ".join(f"set_config('{name}', {value}, true)" for name, value in _SETTINGS.items())
_LAST = ", ".join(
    f"(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {table}_id_seq)"
    for table in COUNTED
)
_OPENING = f"SELECT {_SET}"
_LOCKED = f"SELECT {_SET}, pg_advisory_xact_lock($3)"
_STATE = f"SELECT {CLOCK}, {_LAST}"
_MARK = (
    "INSERT INTO commits (process, number, at_ms) VALUES ($1, $2, $3)"
    " ON CONFLICT (process) DO UPDATE SET number = excluded.number, at_ms = excluded.at_ms"
)


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def lock_key(schema: str) -> int:
    """The number of a store's lock, among all of its database."""
    digest = sha256(f"llm-budget-scheduler {schema}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class PostgresConnection(Connection):
    """See the module.

    Args:
        link: The connection.
        schema: Where the tables are.
        clock: What the server's clock says about now; None: time is as callers tell it.

    Attributes:
        has_written: Anything at all.
        is_committing: COMMIT was sent: if no answer comes, nobody knows.
        told: None: others need not look. Else whether they should at once.
    """

    dialect = POSTGRES

    def __init__(self, link: Link, schema: str, clock: Clock | None = None) -> None:
        self._link, self._schema, self._clock = link, schema, clock
        self._pipelining = ExitStack()
        self._pipeline: psycopg.Pipeline | None = None
        self._clock_ms: int | None = None
        self._last: dict[str, int] = {}
        self._state: psycopg.Cursor[Row] | None = None  # asked, and not looked at yet
        self._ahead: dict[tuple[object, ...], psycopg.Cursor[Row]] = {}
        self._has_heard = False
        self.has_written = self.is_committing = False
        self.told: bool | None = None

    # Transactions

    def begin(self, *, writes: bool) -> None:
        """Open it. Who writes has the store to itself from the first answer on."""
        most_ms = WRITING_MS if writes else READING_MS
        settings = (f"{quoted(self._schema)}, pg_temp", str(most_ms))
        self._link.answer_s = most_ms / 1000 + MORE_S
        self._pipeline = self._pipelining.enter_context(self._link.pipeline())
        if writes:
            self._execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            self._execute(_LOCKED, (*settings, lock_key(self._schema)))
            self._state = self._execute(_STATE)
        else:
            self._execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            self._execute(_OPENING, settings)

    @property
    def has_begun(self) -> bool:
        """Whether anything was heard in it yet; before that nobody can have decided anything."""
        return self._has_heard

    def _look(self) -> None:
        """What the store's state was when the lock was given."""
        if self._state is not None:
            clock_ms, *last = self._of(self._state)[0]
            self._clock_ms, self._last = clock_ms, dict(zip(COUNTED, last, strict=True))
            self._state = None

    def mark(self, process: str, number: int) -> None:
        """Have it told, after a lost answer, whether this was committed."""
        self._look()
        self._execute(_MARK, (process, number, self._clock_ms or 0))

    def is_marked(self, process: str, number: int) -> bool:
        """Whether the last transaction of that process which wrote was this one."""
        rows = self._fetch("SELECT number FROM commits WHERE process = $1", (process,))
        return rows == [(number,)]

    def commit(self) -> None:
        """End it."""
        self._execute("COMMIT")
        self.is_committing = True
        self._pipelining.close()

    def roll_back(self) -> None:
        """Leave it, whatever its state; what cannot be left is closed."""
        try:
            try:
                self._pipelining.close()
            except psycopg.Error:
                if self._link.closed:
                    return
            if self._link.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                self._link.execute("ROLLBACK")
        except psycopg.Error:
            self._link.close()

    @property
    def clock_ms(self) -> int | None:
        """What the server's clock said when it began; None: it was not asked."""
        self._look()
        return self._clock_ms

    def now_ms(self, told_ms: int) -> int:
        """See `Connection.now_ms`."""
        if self._clock is None:
            return told_ms
        return self._clock.now_ms() if self.clock_ms is None else self.clock_ms

    def tell(self, *, is_urgent: bool) -> None:
        """See `Connection.tell`."""
        self.told = bool(self.told) or is_urgent

    # Statements

    def read(self, sql: str, *values: object) -> list[Row]:
        """See `Connection.read`."""
        cursor = self._ahead.pop((sql, *values), None) if self._ahead else None
        return self.ask(sql, *values)() if cursor is None else self._of(cursor)

    def ahead(self, sql: str, *values: object) -> None:
        """See `Connection.ahead`."""
        self._ahead[sql, *values] = self._execute(numbered(sql), values)

    def drop_ahead(self) -> None:
        """See `Connection.drop_ahead`."""
        self._ahead.clear()

    def ask(self, sql: str, *values: object) -> Callable[[], list[Row]]:
        """See `Connection.ask`: what is written behind it is done while this is worked on."""
        if not sql.startswith("SELECT"):
            self.has_written = True  # and returns something
        cursor = self._execute(numbered(sql), values)
        self._expect_all()
        return lambda: self._hear(cursor)

    def scan(self, sql: str, *values: object) -> Iterator[Row]:
        """See `Connection.scan`."""
        self._execute(f"DECLARE scanned NO SCROLL CURSOR FOR {numbered(sql)}", values)
        while True:
            rows = self._fetch(f"FETCH {PAGE} FROM scanned")
            yield from rows
            if len(rows) < PAGE:
                self._execute("CLOSE scanned")
                return

    def write(self, sql: str, *values: object) -> None:
        """See `Connection.write`."""
        self.has_written = True
        self._execute(numbered(sql), values)

    def write_many(self, bulk: Bulk, rows: Sequence[Sequence[Any]]) -> None:
        """See `Connection.write_many`."""
        if rows:
            self.write(self.dialect.bulk(bulk), *self.dialect.row_values(rows))

    def new_ids(self, table: str, count: int) -> Sequence[int]:
        """See `Connection.new_ids`."""
        # Whoever writes is alone; what a transaction that is rolled back took stays taken.
        self._look()
        last = self._last[table]
        if count:
            self._last[table] = last + count
            self._execute(f"SELECT setval('{table}_id_seq', $1)", (last + count,))
        return range(last + 1, last + 1 + count)

    def _execute(self, sql: str, values: Sequence[object] = ()) -> psycopg.Cursor[Row]:
        cursor = psycopg.RawCursor[Row](self._link)
        cursor.execute(sql.encode(), values)
        return cursor

    def _fetch(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        cursor = self._execute(sql, values)
        self._expect_all()
        return self._hear(cursor)

    def _of(self, cursor: psycopg.Cursor[Row]) -> list[Row]:
        """What was asked ahead."""
        if cursor.pgresult is None:
            self._expect_all()
        return self._hear(cursor)

    def _expect_all(self) -> None:
        """Have all answers sent that are due. Not just flushed: until then the server does not count
        how long it hears nothing more.
        """  # noqa: D205
        assert self._pipeline is not None
        self._link.expect_all(self._pipeline)

    def _hear(self, cursor: psycopg.Cursor[Row]) -> list[Row]:
        """Wait for this answer, and not for what was asked behind it."""
        assert self._pipeline is not None
        self._link.hear(self._pipeline, cursor)
        self._has_heard = True
        return cursor.fetchall()
