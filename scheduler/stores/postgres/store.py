"""Queue and ledger in a PostgreSQL database, shared by processes on any machines.

The same SQL as in a file, by the same functions, each in one transaction. All transactions that write
take one lock, as a file has one: a turn that waits for it gathers more meanwhile, so where many
processes meet, turns grow.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Concatenate, ParamSpec, TypeVar

from scheduler.clock import Clock
from scheduler.errors import ConfigError, StoreError
from scheduler.guards.plain import logger_of
from scheduler.stores.base import NewRequest, StorePrompts
from scheduler.stores.postgres.address import Address, parse
from scheduler.stores.postgres.clock import DatabaseClock
from scheduler.stores.postgres.ears import Ears
from scheduler.stores.postgres.hand import Hand
from scheduler.stores.postgres.link import Link, connect
from scheduler.stores.postgres.session import Session
from scheduler.stores.refusing import in_use
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.store import SqlStore

logger = logger_of("scheduler.stores.postgres")

MOST_BYTES = 2_000  # of what stands in an index
NOTIFY_GAP_S = 0.05  # between two notices that are not urgent, of one process

P = ParamSpec("P")
T = TypeVar("T")


class PostgresStore(SqlStore):
    """A store in a database; see the module.

    Args:
        url: As libpq has it, and ``schema=``, ``notify=off``, ``patience=`` of our own.
        create: Whether to make the tables if there are none.
        store_prompts: What of a request is kept there; see `StorePrompts`.
        connects: Makes a connection; for tests.
    """

    def __init__(
        self, url: str, *, create: bool = True, store_prompts: StorePrompts = "full",
        connects: Callable[[Address], Link] = connect,
    ) -> None:  # fmt: skip
        super().__init__(store_prompts)
        self.address = parse(url)
        del url  # it may hold a password, and a traceback shows what a frame holds
        self._create, self._connects = create, connects
        self._own_clock = DatabaseClock()
        self._clock: Clock | None = self._own_clock
        self._session = Session(self.address, self._transactions, self._own_clock, connects)
        self._hand: Hand | None = None
        self._ears: Ears | None = None
        self._process_id = 0  # that it was opened in
        self._seen = (0, 0)  # the last change, and the last end
        self._notified_s = 0.0
        self._notice: asyncio.TimerHandle | None = None  # that is due
        digest = sha256(self.address.schema.encode()).hexdigest()
        self._channel = f"scheduler_{digest[:16]}"

    def __repr__(self) -> str:
        return f"<PostgresStore {self.address.shown}>"

    @property
    def clock(self) -> Clock | None:
        """See `Store.clock`: it follows the server's; None: time is as callers tell it."""
        return self._clock

    @clock.setter
    def clock(self, clock: Clock | None) -> None:
        self._clock, self._session.uses_clock = clock, False

    async def open(self, now_ms: int) -> None:
        """Connect, and make the tables if need be; a process that only looks writes nothing."""
        if self._hand is not None:
            raise in_use()
        self._process_id = os.getpid()
        self._session = Session(
            self.address, self._transactions, self._own_clock, self._connects,
            uses_clock=self._session.uses_clock,
        )  # fmt: skip
        self._hand = Hand("scheduler postgres")
        try:
            await self._run(self._session.open, create=self._create)
            await self._read(self._transactions.read_budgets, now_ms)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Sign off; what waits is there for the next run."""
        hand, session = self._hand, self._session
        if hand is None or self._is_forked:
            return
        if self._ears is not None:
            await asyncio.to_thread(self._ears.end)
            self._ears = None
        try:
            session.stop()  # from now on it tries nothing again
            if await hand.run(lambda: self._transactions.worker_id):
                await hand.run(session.write, self._leave)
                self._tell_others()
            if self._notice is not None:
                self._notify()
        except StoreError as exc:
            logger.warning("could not sign off from %s: %s", self.address.shown, exc)
        finally:
            self._hand = None
            await hand.run(session.close)
            hand.end()

    def _leave(self, db: Connection) -> None:
        self._transactions.leave(db)
        self._session.forget_marks(db)

    @property
    def _is_forked(self) -> bool:
        return self._process_id != os.getpid()

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._hand is None:
            raise StoreError(f"{self.address.shown} is not open")
        if self._is_forked:
            raise StoreError(
                f"{self.address.shown} was opened before this process was forked, in process "
                f"{self._process_id}. Nothing was sent. Open it in each process after the fork"
            )
        return await self._hand.run(function, *args, **kwargs)

    async def _read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that sees one state of the database throughout."""
        return await self._run(partial(self._session.read, function, *args, **kwargs))

    async def _write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function in one transaction."""
        result = await self._run(partial(self._session.write, function, *args, **kwargs))
        self._tell_others()
        return result

    # Others

    def _tell_others(self) -> None:
        """Wake them, if what was committed matters to them."""
        is_urgent, self._session.told = self._session.told, None
        if is_urgent is None or not self.address.notify or self._hand is None:
            return
        if is_urgent:
            self._notify()
        elif self._transactions.has_company and self._notice is None:
            loop = asyncio.get_running_loop()
            due_s = self._notified_s + NOTIFY_GAP_S
            if loop.time() >= due_s:
                self._notify()
            else:  # and with it all that is committed until then
                self._notice = loop.call_at(due_s, self._notify)

    def _notify(self) -> None:
        if self._notice is not None:
            self._notice.cancel()
            self._notice = None
        session = self._session
        self._notified_s = asyncio.get_running_loop().time()
        if self._hand is not None:
            self._hand.later(lambda: session.notify(self._channel))

    async def changed(self, now_ms: int) -> bool:
        """Whether another process committed; renews the lease when it is due."""
        seen = await self._run(self._session.newest)
        books = self._transactions
        is_new = seen[0] > max(books.changes, self._seen[0]) or seen[1] != self._seen[1]
        self._seen = seen
        lease_due = now_ms - books.seen_at_ms >= self.lease_ms // 3
        return is_new or (lease_due and bool(books.worker_id))

    async def pause_for_others(self, seconds: float) -> None:
        """See `Store.pause_for_others`."""
        if not self.address.notify or not self._session.is_direct or self._hand is None:
            await asyncio.sleep(seconds)
            return
        if self._ears is None:
            self._ears = Ears(self.address, self._channel, self._connects)
        await self._ears.wait(seconds)

    # What cannot be stored

    def prepare(self, new: NewRequest) -> None:
        """See `Store.prepare`."""
        request, lane = new.request, new.lane
        for what, name in (
            ("key", request.key or ""), ("job", request.job), ("model", request.model),
            ("provider", lane.provider), ("service", lane.service),
        ):  # fmt: skip
            if "\0" in name:
                raise ConfigError(
                    what,
                    f"{name!r:.80} holds a NUL, which PostgreSQL cannot store; nothing was sent",
                )
            if len(name) > MOST_BYTES // 4 and len(name.encode(errors="replace")) > MOST_BYTES:
                raise ConfigError(
                    what, f"is longer than {MOST_BYTES:,} bytes, as long as PostgreSQL can find it "
                    "again; nothing was sent",
                )  # fmt: skip
        super().prepare(new)
