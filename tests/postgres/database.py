"""A store in PostgreSQL, looked at from outside."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg

from scheduler.budget import parse_caps
from scheduler.stores.base import Store
from scheduler.stores.postgres.address import parse
from scheduler.stores.postgres.store import PostgresStore
from tests.processes.harness import Place


@dataclass
class Database(Place):
    """See the module; it may be gone for a moment."""

    url: str

    def __call__(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        address = parse(self.url)
        until_s = time.monotonic() + 30
        while True:
            try:
                with psycopg.connect(address.url.get_secret_value()) as db:
                    db.execute(f"SET search_path = {address.schema}")
                    return db.execute(sql.replace("?", "%s"), values or None).fetchall()
            except psycopg.OperationalError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.05)

    def open(self) -> Store:
        return PostgresStore(self.url)

    def balance(self, budget: str) -> tuple[int, int]:
        """What is posted and what is reserved, in one look."""
        ((posted, reserved),) = self(
            "SELECT coalesce(sum(posted), 0), coalesce(sum(reserved), 0) FROM balances b"
            " JOIN accounts a ON a.id = b.account_id JOIN budgets g ON g.id = a.budget_id"
            " WHERE g.name = ?",
            budget,
        )
        return int(posted), int(reserved)

    def check_limits(self) -> None:
        """Nothing stands above its limit, in one look."""
        for name, cap, posted, reserved in self(
            "SELECT g.name, a.cap, sum(b.posted)::bigint, sum(b.reserved)::bigint FROM balances b"
            " JOIN accounts a ON a.id = b.account_id JOIN budgets g ON g.id = a.budget_id"
            " GROUP BY 1, 2, a.id"
        ):
            limit = parse_caps(cap)[0].limit
            assert limit is None or posted + reserved <= limit, (name, cap, posted, reserved)
