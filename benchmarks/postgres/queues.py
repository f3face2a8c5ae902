"""What a claim takes in a short queue and in a very long one, with few budgets and with very many.

Rows are put there by SQL, as `submit` would leave them. The same worker then settles and claims by
turns; what is compared is a turn's median time with that of the shortest queue, in the same run.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import psycopg

from benchmarks.postgres.gauge import Server, load
from benchmarks.postgres.ours import PROVIDER, settled, submitted
from scheduler.admission.plan import LaneKey
from scheduler.budget import Budget
from scheduler.request import Request
from scheduler.stores.base import Claimed, NewRequest, Turn
from scheduler.stores.postgres.address import parse
from scheduler.stores.postgres.store import PostgresStore
from scheduler.stores.sql.codec import encode_request

SIZE, TURNS = 16, 28
PAGE = 1_000_000
CLIENT = Request.chat("m", "hi", key="k")

_LANES = (
    "INSERT INTO lanes (worker_id, provider, budgets, priority, may_wait, waiting, model, service)"
    " SELECT 0, %s, ',' || b.id || ',', 10, 1, 0, 'm', '' FROM budgets b ORDER BY b.id"
)
_ROWS = (
    "INSERT INTO requests (id, job_id, key, digest, lane_id, worker_id, state, model, ceiling_nusd,"
    " ceiling_tokens, expected_nusd, submitted_at_ms, parked_mark_ms, is_delivered, payload)"
    " SELECT i, 1, 'key-' || i, md5(i::text), %s + i %% %s, 0, 'queued', 'm', 10, 10, 5, %s, 0, 0, %s"
    " FROM generate_series(%s::bigint, %s::bigint) AS i"
)


@dataclass
class Queue:
    """A store's schema, filled by SQL."""

    url: str
    budgets: int = 1
    rows: int = 0

    async def make(self) -> None:
        """The tables, the budgets, and a lane for each."""
        store = PostgresStore(self.url)
        await store.open(0)
        await store.define([Budget(f"user-{n}", "$100") for n in range(self.budgets)], 0)
        await store.aclose()
        with self.connect() as db:
            db.execute("INSERT INTO jobs (id, name) VALUES (1, '')")
            db.execute(_LANES, (PROVIDER,))

    def connect(self) -> psycopg.Connection:
        address = parse(self.url)
        db = psycopg.connect(address.url.get_secret_value(), autocommit=True)
        db.execute(f"SET search_path = {address.schema}")
        return db

    def fill(self, rows: int) -> None:
        """So many wait, in all."""
        now_ms, payload = int(time.time() * 1000), encode_request(CLIENT)
        with self.connect() as db:
            first = db.execute("SELECT min(id) FROM lanes").fetchone()[0]
            for start in range(self.rows + 1, rows + 1, PAGE):
                last = min(rows, start + PAGE - 1)
                db.execute(_ROWS, (first, self.budgets, now_ms, payload, start, last))
            db.execute("SELECT setval('requests_id_seq', %s)", (rows,))
            db.execute(
                "UPDATE lanes SET waiting = (SELECT count(*) FROM requests r"
                " WHERE r.lane_id = lanes.id AND r.state = 'queued')"
            )
            db.execute(
                "INSERT INTO tallies VALUES (1, 'queued', %s) ON CONFLICT (job_id, state) DO UPDATE"
                " SET count = tallies.count + excluded.count",
                (rows - self.rows,),
            )
        self.rows = rows


@dataclass(frozen=True)
class Claims:
    """What turns took, in milliseconds: a worker's first, and the median of the others."""

    rows: int
    budgets: int
    first_ms: float
    turn_ms: float
    load: str


async def claims(queue: Queue, turns: int = TURNS, size: int = SIZE) -> Claims:
    """A worker that comes anew settles and claims so many times."""
    store = PostgresStore(queue.url)
    await store.open(0)
    taken: list[Claimed] = []
    times = []
    for _ in range(turns):
        began = time.perf_counter()
        result = await store.turn(
            Turn(0, [settled(each) for each in taken], slots={PROVIDER: size})
        )
        times.append(1000 * (time.perf_counter() - began))
        assert len(result.claimed) == size, f"{len(result.claimed)} of {size} were claimed"
        taken = result.claimed
    await store.turn(Turn(0, [settled(each) for each in taken]))
    await store.aclose()
    return Claims(queue.rows, queue.budgets, times[0], statistics.median(times[1:]), load())


async def look(queue: Queue) -> Claims:
    """The better of two workers, once the server has looked at its tables, as it does by itself."""
    with queue.connect() as db:
        db.execute("ANALYZE")
    return min([await claims(queue), await claims(queue)], key=lambda each: each.turn_ms)


async def by_rows(dsn: str, counts: Sequence[int]) -> list[Claims]:
    """One queue that grows."""
    queue, found = Queue(f"{dsn}?schema=rows"), []
    await queue.make()
    for rows in counts:
        queue.fill(rows)
        found.append(await look(queue))
    return found


async def by_budgets(dsn: str, counts: Sequence[int], rows: int) -> list[Claims]:
    """The same queue, drawn on more and more budgets: one for each user, all in use."""
    found = []
    for number in counts:
        queue = Queue(f"{dsn}?schema=budgets_{number}", number)
        await queue.make()
        queue.fill(rows)
        found.append(await look(queue))
    return found


@dataclass(frozen=True)
class Submitted:
    """Rows a second, and microseconds of CPU of a row."""

    way: str
    per_s: float
    client_us: float
    server_us: float


async def submits(server: Server, rows: int, batch: int = 10_000) -> list[Submitted]:
    """What the store submits, prepared beforehand; and the same rows by COPY, and nothing else."""
    queue = Queue(f"{server.dsn}?schema=submits")
    await queue.make()
    store = PostgresStore(queue.url)
    await store.open(0)
    lane = LaneKey(PROVIDER, tuple(each.id for each in await store.budgets(0)), 10)
    batches = [
        [submitted(f"new-{start + n}", lane) for n in range(batch)]
        for start in range(0, rows, batch)
    ]
    for each in batches:
        for new in each:
            store.prepare(new)
    gc.collect()
    found = [await _timed(server, "ours", rows, lambda: _submit(store, batches))]
    await store.aclose()
    with queue.connect() as db:
        columns, like = _columns(db)
        found.append(await _timed(server, "COPY", rows, lambda: _copy(db, columns, like, rows)))
    return found


async def _submit(store: PostgresStore, batches: Sequence[Sequence[NewRequest]]) -> None:
    for batch in batches:
        await store.turn(Turn(0, submit=batch))


def _columns(db: psycopg.Connection) -> tuple[list[str], tuple[object, ...]]:
    cursor = db.execute("SELECT * FROM requests ORDER BY id DESC LIMIT 1")
    row = cursor.fetchone()
    assert row is not None
    assert cursor.description is not None
    return [each.name for each in cursor.description], row


async def _copy(
    db: psycopg.Connection, columns: list[str], like: tuple[object, ...], rows: int
) -> None:
    at, key = columns.index("id"), columns.index("key")
    with db.cursor().copy(f"COPY requests ({', '.join(columns)}) FROM STDIN") as copy:
        for number in range(rows):
            row = list(like)
            row[at], row[key] = like[at] + 1 + number, f"copied-{number}"
            copy.write_row(row)


async def _timed(
    server: Server, way: str, rows: int, do: Callable[[], Awaitable[None]]
) -> Submitted:
    (before_s, _), cpu_s, began_s = server.read(), time.process_time(), time.perf_counter()
    await do()
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    server_s = server.read()[0] - before_s
    return Submitted(way, rows / wall_s, cpu_s / rows * 1e6, server_s / rows * 1e6)
