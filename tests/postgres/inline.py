"""The PostgreSQL store without its thread, as one of several processes that can die anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scheduler.stores.postgres.connection import PostgresConnection
from scheduler.stores.postgres.store import PostgresStore
from scheduler.stores.process import Process


class InlinePostgres(PostgresStore):
    """See the module.

    Args:
        url: The store they share.
        process: Who this one is.
        lease_ms: How long it may be silent.
        statement: Called before every statement; what it raises is where it stops.
    """

    def __init__(
        self, url: str, process: Process, lease_ms: int,
        statement: Callable[[str], None] = lambda sql: None,
    ) -> None:  # fmt: skip
        super().__init__(url)
        self.clock = None
        self._transactions.process = process
        self.lease_ms = self._transactions.lease_ms = lease_ms

        class Watched(PostgresConnection):
            def _execute(self, sql: str, values: Sequence[object] = ()) -> Any:
                statement(sql)
                return super()._execute(sql, values)

        self._session.transaction = Watched

    async def open(self, now_ms: int) -> None:
        self._session.open(create=True)
        await self.budgets(now_ms)

    async def _run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    async def aclose(self) -> None:
        if self._session._link is not None:
            await self.leave()
            self.drop()

    async def leave(self) -> None:
        """Sign off, as closing does."""
        if self._transactions.worker_id:
            self._session.write(self._leave)

    def drop(self) -> None:
        """Close the connection without a word, as dying does."""
        self._session.close()
