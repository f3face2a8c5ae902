"""A ledger as one writes it first: each request is queued, reserved and settled by itself.

The balance's row is locked from the look at it until the commit, with round trips in between.
"""

from __future__ import annotations

import psycopg

from benchmarks.postgres import bare
from benchmarks.postgres.gauge import Watch

prepare = bare.prepare
_RESERVE = (
    "INSERT INTO reservations (request_id, state, ceiling, posted) VALUES (%s, 'pending', 10, 0)"
    " RETURNING id"
)
_HEAD = (
    "SELECT id, payload FROM requests WHERE state = 'queued' ORDER BY id LIMIT 1"
    " FOR UPDATE SKIP LOCKED"
)


class Worker:
    """See the module."""

    def __init__(self, dsn: str, name: str) -> None:
        self.dsn, self.name, self.number = dsn, name, 0
        self.held = Watch()

    async def begin(self) -> None:
        self.db = psycopg.connect(self.dsn, autocommit=True)

    async def turn(self, size: int) -> int:
        """So many, one after the other."""
        for _ in range(size):
            self.number += 1
            self._one(f"{self.name}-{self.number}")
        return size

    def _one(self, key: str) -> None:
        db = self.db
        db.execute(bare._SUBMIT, (bare.PAYLOAD, [key]))
        with self.held:
            db.execute("BEGIN")
            db.execute(bare._LOCK).fetchone()
            head = db.execute(_HEAD).fetchone()
            assert head is not None
            reservation = db.execute(_RESERVE, (head[0],)).fetchone()
            assert reservation is not None
            db.execute(bare._START, ([head[0]],))
            db.execute(bare._BALANCE, (0, 10))
            db.execute("COMMIT")
        with self.held:
            db.execute("BEGIN")
            db.execute(bare._LOCK).fetchone()
            db.execute(bare._POST, ([reservation[0]],))
            db.execute(bare._END, (bare.RESPONSE, [head[0]]))
            db.execute(bare._BALANCE, (5, -10))
            db.execute("COMMIT")

    async def end(self) -> None:
        self.db.close()
