"""Queue and ledger in a SQLite file that several processes may share.

Every operation is one synchronous function that runs whole on the connection's
own thread, so cancelling a caller never leaves a transaction open. The pump hands
over everything that waits at once: while one commit is on its way to the disk, the
next one gathers.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, get_args

from scheduler.admission.plan import LaneKey
from scheduler.budget import Budget
from scheduler.errors import ConfigError, StoreError
from scheduler.guards.plain import logger_of
from scheduler.limits import Gates, GateStatus
from scheduler.request import RequestState
from scheduler.shortfall import Shortfall
from scheduler.stats import (
    Audit,
    BudgetStatus,
    Counts,
    QueueRow,
    SpendRow,
    Unserved,
    WorkerStatus,
)
from scheduler.stores import forks
from scheduler.stores.base import (
    Archive,
    Finished,
    Known,
    LaneStatus,
    NewRequest,
    Picture,
    Settlement,
    Store,
    StorePrompts,
    Turn,
    TurnResult,
    Unknown,
    in_use,
)
from scheduler.stores.file import (
    OLDEST_SQLITE,
    SCHEMA_VERSION,
    check_file,
    create_schema,
    moved,
    named,
    reading,
    transaction,
    translate,
    use_journal,
    version_of,
    wait_briefly,
    writing,
)
from scheduler.stores.process import this_process
from scheduler.stores.sql import changes, fleet
from scheduler.stores.sql import gates as sqlite_gates
from scheduler.stores.sql import listing as sqlite_listing
from scheduler.stores.sql import prune as sqlite_prune
from scheduler.stores.sql import upgrade as sqlite_upgrade
from scheduler.stores.sql import views as sqlite_views
from scheduler.stores.sql.codec import encode_request
from scheduler.stores.sql.connection import Connection, SqliteConnection
from scheduler.stores.sql.dialect import INT, Update
from scheduler.stores.sql.look import Look, check_version, may_write
from scheduler.stores.sql.turn import Transactions
from scheduler.stores.thread import Thread

logger = logger_of("scheduler.stores.sqlite")

PATIENCE_S = 60.0  # how long a turn keeps trying while others hold the file
PAGE = 1_000

_DELIVERED = Update("requests", "is_delivered = 1", "id = :id", {"id": INT})

P = ParamSpec("P")
T = TypeVar("T")


class SqliteStore(Store):
    """A store in a file; see the module.

    Args:
        path: The file; its folder must exist. Created with mode 0600.
        create: Whether to create it if it is missing. If not, one that cannot be written may be
            looked at all the same.
        patience_s: How long to wait while other processes hold the file.
        store_prompts: What of a request is kept in the file; see `StorePrompts`.
    """

    is_shared = True

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        patience_s: float = PATIENCE_S,
        store_prompts: StorePrompts = "full",
    ) -> None:
        if store_prompts not in get_args(StorePrompts):
            known = ", ".join(get_args(StorePrompts))
            raise ConfigError("store_prompts", f"{store_prompts!r} is not one of {known}")
        self.path, self._create, self._patience_s = path, create, patience_s
        self._transactions = Transactions(this_process(), self.lease_ms)
        self._transactions.store_prompts = store_prompts
        self._sweep = sqlite_prune.Sweep()
        self._connection: Thread | None = None
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
            check_file(self.path, self._create)
            forks.refuse_inherited(self.path)
            self._look = Look(self.path) if not self._create and not may_write(self.path) else None
            connection = self._connection = Thread(self._connect, 64)
            connection._thread.daemon = True  # a forgotten store must not keep the process alive
            try:
                await connection
            except BaseException:
                self._connection = None
                # Its thread reports to this loop once more before it ends.
                await asyncio.to_thread(connection._thread.join, 5)
                raise
        self._held = forks.hold(self._place)
        try:
            await self._run(self._set_up, now_ms)
            await self._read(self._transactions.read_budgets, now_ms)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Let go of the file; what waits is there for the next run."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            with self._translated():
                # Asked on the thread: a turn may still be on its way there.
                if await connection.run(lambda db: self._transactions.worker_id):
                    await connection.run(writing(self._transactions.leave, self._patience_s))
        except StoreError as exc:
            logger.warning("could not sign off from %s: %s", self.path, exc)
        finally:
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
        else:
            use_journal(db, self.path)
        if version == 0:
            with transaction(db, self._patience_s):
                if version_of(db, self.path) == 0:  # nobody else did it meanwhile
                    create_schema(db)
        elif version < SCHEMA_VERSION:
            self._upgrade(db, now_ms)
        for pragma in ("synchronous = FULL", "temp_store = MEMORY", "mmap_size = 0",
                       "cache_size = -32768"):  # fmt: skip
            db.execute(f"PRAGMA {pragma}")
        (self._version,) = db.execute("PRAGMA data_version").fetchone()
        self._file = None if self._look is not None else named(self._place)

    def _upgrade(self, db: sqlite3.Connection, now_ms: int) -> None:
        """Bring an older file up to date, in one transaction, after a copy of it is made."""
        with transaction(db, self._patience_s):
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
        return await self._run(writing(function, self._patience_s), *args, **kwargs)

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

    # The turn

    def use(self, gates: Gates) -> None:
        """See `Store.use`."""
        self.gates = self._transactions.gates = gates

    def serve(self, services: Mapping[str, str], *, at_once: int | None = None) -> None:
        """See `Store.serve`."""
        self._transactions.serve(services, at_once)

    @property
    def keeps_whole(self) -> bool:  # type: ignore[override]
        """See `Store.keeps_whole`."""
        return self._transactions.store_prompts == "full"

    def prepare(self, new: NewRequest) -> None:
        """Write the request as JSON, on the caller's time."""
        super().prepare(new)
        new.payload = encode_request(new.request)

    async def turn(self, turn: Turn) -> TurnResult:
        """One transaction; see `Store.turn`."""
        return await self._write(self._transactions.turn, turn)

    async def changed(self, now_ms: int) -> bool:
        """Whether another process committed; renews the lease when it is due."""
        version = await self._run(lambda db: int(db.execute("PRAGMA data_version").fetchone()[0]))
        is_new = version != self._version
        self._version = version
        lease_due = now_ms - self._transactions.seen_at_ms >= self.lease_ms // 3
        return is_new or (lease_due and bool(self._transactions.worker_id))

    def latest(self) -> list[BudgetStatus]:
        """Budgets as of this process's last transaction."""
        return self._transactions.statuses()

    def balances(self, budgets: Collection[int]) -> list[BudgetStatus]:
        """Those of these, as of this process's last transaction."""
        return self._transactions.statuses(budgets)

    def lanes(self) -> list[LaneStatus]:
        """This process's lanes in which something waits."""
        lanes = list(self._transactions.lanes)
        return [
            LaneStatus(lane.key, lane.waiting, lane.shortfall) for lane in lanes if lane.waiting
        ]

    def shortfall(self, key: LaneKey) -> Shortfall | None:
        """Why a lane is shut."""
        lane = self._transactions.lanes.find(key)
        return None if lane is None else lane.shortfall

    async def limited(self, now_ms: int) -> list[GateStatus]:
        """See `Store.limited`."""
        return await self._read(sqlite_gates.statuses, now_ms)

    # What nobody knows

    async def suspended(
        self, *, job: str | None = None, limit: int = PAGE, after_id: int = 0
    ) -> list[Unknown]:
        """See `Store.suspended`."""
        return await self._read(sqlite_views.suspended, job, limit, after_id)

    async def suspended_since(
        self, since_ms: int, *, after_id: int = 0, limit: int = 10 * PAGE
    ) -> list[tuple[int, int]]:
        """See `Store.suspended_since`."""
        return await self._read(sqlite_views.suspended_since, since_ms, after_id, limit)

    async def suspended_of(self, ids: Sequence[int]) -> list[Unknown]:
        """See `Store.suspended_of`."""
        return await self._read(sqlite_views.suspended_of, ids)

    async def resolve(self, settlements: Sequence[Settlement], now_ms: int) -> list[bool]:
        """See `Store.resolve`."""
        return await self._write(self._transactions.resolve, settlements, now_ms)

    async def still_mine(self, ids: Sequence[int]) -> set[int]:
        """See `Store.still_mine`."""
        mine = await self._read(sqlite_views.lanes_of, self._transactions.worker_id, ids)
        for taken in set(ids) - mine:
            self._transactions.kept.pop(taken, None)
        return mine

    async def processes(self) -> frozenset[int]:
        """See `Store.processes`."""
        rows = await self._run(
            lambda db: db.execute("SELECT id FROM workers WHERE is_lost = 0").fetchall()
        )
        return frozenset(worker_id for (worker_id,) in rows)

    async def workers(self, now_ms: int) -> list[WorkerStatus]:
        """See `Store.workers`."""
        return await self._read(fleet.workers, self._transactions, now_ms)

    async def unserved(self, now_ms: int, job: str | None = None) -> list[Unserved]:
        """See `Store.unserved`."""
        return await self._read(fleet.unserved, self._transactions, now_ms, job)

    # Budgets and prices

    async def define(self, budgets: Sequence[Budget], now_ms: int) -> None:
        """See `Store.define`; what is as it was is only read."""
        if await self._read(self._transactions.is_all_the_same, budgets):
            return
        await self._write(self._transactions.define, budgets, now_ms)

    async def remove(self, name: str, now_ms: int) -> None:
        """See `Store.remove`."""
        await self._write(self._transactions.remove, name, now_ms)

    async def defined(self, names: Iterable[str]) -> list[tuple[int, Budget]]:
        """See `Store.defined`."""
        return await self._read(self._transactions.defined, list(names))

    async def redefined(self, now_ms: int) -> tuple[list[tuple[int, Budget]], list[str]]:
        """See `Store.redefined`."""
        return await self._read(self._transactions.redefined, now_ms)

    async def budgets(self, now_ms: int) -> list[BudgetStatus]:
        """See `Store.budgets`."""
        return await self._read(self._transactions.read_budgets, now_ms)

    async def pause(self, name: str, paused: bool, now_ms: int) -> None:
        """See `Store.pause`."""
        await self._write(self._transactions.pause, name, paused, now_ms)

    async def prices(self) -> dict[str, str]:
        """See `Store.prices`."""
        return dict(
            await self._run(lambda db: db.execute("SELECT model, price FROM prices").fetchall())
        )

    async def set_price(self, model: str, price: str | None) -> None:
        """See `Store.set_price`."""
        if price is None:
            await self._run(lambda db: db.execute("DELETE FROM prices WHERE model = ?", (model,)))
        else:
            await self._run(
                lambda db: db.execute("INSERT OR REPLACE INTO prices VALUES (?, ?)", (model, price))
            )

    # Looking

    async def counts(self, job: str | None = None) -> Counts:
        """See `Store.counts`."""
        return await self._read(sqlite_views.counts, job)

    async def queue(
        self, states: Iterable[RequestState], now_ms: int, *, job: str | None = None,
        limit: int = PAGE, after_id: int = 0,
    ) -> list[QueueRow]:  # fmt: skip
        """See `Store.queue`."""
        wanted = list(states)
        return await self._read(sqlite_listing.queue, wanted, now_ms, job, limit, after_id)

    async def spend(self, by: str, since_ms: int = 0) -> list[SpendRow]:
        """See `Store.spend`."""
        return await self._read(sqlite_views.spend, by, since_ms)

    async def audit(self, now_ms: int) -> Audit:
        """See `Store.audit`."""
        return await self._read(sqlite_views.audit, self._transactions, now_ms)

    async def finished(self, job: str, *, undelivered: bool = True) -> AsyncIterator[Finished]:
        """See `Store.finished`."""
        async for each in self._paged(sqlite_views.finished_page, job, undelivered):
            yield each

    async def ended(self, job: str) -> AsyncIterator[Finished]:
        """See `Store.ended`."""
        async for each in self._paged(sqlite_views.ended_page, job):
            yield each

    async def _paged(
        self, read: Callable[..., list[Finished]], *args: object
    ) -> AsyncIterator[Finished]:
        after_id = 0
        while True:
            page = await self._read(read, *args, after_id, PAGE)
            for each in page:
                yield each
            if len(page) < PAGE:
                return
            after_id = page[-1].id

    async def jobs(self) -> list[str]:
        """See `Store.jobs`."""
        return await self._read(sqlite_views.jobs)

    async def known(self, job: str, keys: Sequence[str]) -> dict[str, Known]:
        """See `Store.known`."""
        return await self._read(sqlite_views.known, job, keys)

    async def outcomes(self, ids: Sequence[int]) -> list[Finished]:
        """See `Store.outcomes`."""
        return await self._read(sqlite_views.outcomes, ids)

    async def ended_since(self, seq: int) -> tuple[int, list[int] | None]:
        """See `Store.ended_since`."""
        return await self._read(changes.ended_since, seq)

    async def pictures(self, ids: Sequence[int]) -> list[Picture]:
        """See `Store.pictures`."""
        return await self._read(sqlite_views.pictures, ids)

    async def forget(self, job: str, now_ms: int) -> None:
        """See `Store.forget`."""
        await self._write(self._transactions.forget, job, now_ms)

    async def delivered(self, ids: Sequence[int]) -> None:
        """See `Store.delivered`."""

        def write(db: Connection) -> None:
            db.write_many(_DELIVERED, [(each,) for each in ids])

        await self._write(write)

    async def prune(
        self, before_ms: int, now_ms: int, *, undelivered: bool = False, limit: int = PAGE,
        archive: Archive | None = None,
    ) -> list[Finished]:  # fmt: skip
        """See `Store.prune`; the file does not shrink, its free pages are used again."""
        return await self._write(sqlite_prune.prune, self._transactions, self._sweep, before_ms, now_ms, undelivered, limit, archive,
        )  # fmt: skip
