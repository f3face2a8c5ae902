"""procrastinate: a queue of jobs in PostgreSQL, without budgets; jobs that do nothing.

A turn defers so many at once, and lets its worker run until none is left.
"""

from __future__ import annotations

import logging

import procrastinate

from benchmarks.postgres.gauge import Watch


def app_of(dsn: str) -> procrastinate.App:
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))


async def prepare(dsn: str) -> None:
    async with app_of(dsn).open_async() as app:
        await app.schema_manager.apply_schema_async()


class Worker:
    """See the module."""

    def __init__(self, dsn: str, name: str) -> None:
        logging.getLogger("procrastinate").setLevel(logging.WARNING)
        self.app, self.done = app_of(dsn), 0
        self.held = Watch()

        @self.app.task(name="ask")
        async def ask(content: str) -> None:
            self.done += 1

        self.ask = ask

    async def begin(self) -> None:
        await self.app.open_async()

    async def turn(self, size: int) -> int:
        """How many it did; others do some of its own."""
        before = self.done
        await self.ask.batch_defer_async(*[{"content": "hi"} for _ in range(size)])
        await self.app.run_worker_async(
            wait=False, concurrency=size, listen_notify=False, install_signal_handlers=False
        )
        return self.done - before

    async def end(self) -> None:
        await self.app.close_async()
