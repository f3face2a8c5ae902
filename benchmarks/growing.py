"""What is kept costs nobody anything: views of a file with few and with very many finished requests."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from benchmarks.harness import Row, undisturbed
from scheduler.budget import Budget
from scheduler.request import RequestState
from scheduler.stores.base import Store
from scheduler.stores.sqlite import SqliteStore

T0 = 1_800_000_000_000
STEP_MS = 1_000  # between two requests: three millions are five weeks
TEAM = Budget("team", "$9000/year")
LIVE = [RequestState.QUEUED, RequestState.PARKED, RequestState.RUNNING]
FEW, PAGE = 1_000, 100
GOAL = 1.5
SLACK_MS = 2.0

_COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
_REQUESTS = (
    "INSERT INTO requests (id, job_id, key, digest, lane_id, state, model, ceiling_nusd,"
    " ceiling_tokens, expected_nusd, submitted_at_ms, attempts, cost_nusd, parked_mark_ms,"
    " reservation_id, is_delivered, payload, ended_at_ms)"
    f" {_COUNT} SELECT i, 1, 'key-' || i, 'd' || i, 1, 'succeeded', 'model-' || (i % 3), 1000, 100,"
    " 500, {at}, 1, 400, 0, i, {delivered}, NULL, {at} + 50 FROM n"
)
_RESERVATIONS = (
    "INSERT INTO reservations (id, request_id, worker_id, job_id, budgets, model, state,"
    " made_at_ms, settled_at_ms, ceiling_nusd, ceiling_tokens, nusd, tokens)"
    " SELECT id, id, 99, job_id, ',1,', model, 'posted', submitted_at_ms, ended_at_ms, 1000, 100,"
    " 400, 40 FROM requests WHERE state = 'succeeded'"
)
_UNKNOWN = "UPDATE reservations SET state = 'suspense', nusd = 0, tokens = 0 WHERE id <= {unknown}"
_WAITING = (
    "INSERT INTO requests (id, job_id, key, digest, lane_id, state, model, ceiling_nusd,"
    " ceiling_tokens, expected_nusd, submitted_at_ms, parked_mark_ms, is_delivered, payload)"
    f" {_COUNT} SELECT {{after}} + i, 2, 'key-' || i, 'd' || i, 2, 'queued', 'model', 1000, 100,"
    " 500, {at}, 0, 0, NULL FROM n"
)


def fill(path: Path, finished: int, *, unknown: int = 0, waiting: int = PAGE * 2) -> None:
    """A file as a long run leaves it, by SQL: to run three millions would take minutes."""
    asyncio.run(_begin(path))
    at = f"{T0} + {STEP_MS} * i"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        for job in ("old", "new"):
            db.execute("INSERT INTO jobs (name) VALUES (?)", (job,))
            db.execute(
                "INSERT INTO lanes (worker_id, provider, budgets, priority, may_wait, waiting)"
                " VALUES (99, 'sim', ',1,', 20, 1, ?)",
                (waiting if job == "new" else 0,),
            )
        db.execute(_REQUESTS.format(count=finished, at=at, delivered=1))
        db.execute(_RESERVATIONS)
        db.execute(_UNKNOWN.format(unknown=unknown))
        db.execute(_WAITING.format(count=waiting, after=finished, at=at))
        db.execute(
            "INSERT INTO tallies VALUES (1, 'succeeded', ?), (2, 'queued', ?)", (finished, waiting)
        )
        _sum_up(db)
        db.execute("COMMIT")


async def _begin(path: Path) -> None:
    store = SqliteStore(path)
    await store.open(T0)
    await store.define([TEAM], T0)
    await store.aclose()


def _sum_up(db: sqlite3.Connection) -> None:
    """Keep the sums that settling keeps, as an older file gets them."""
    from scheduler.stores.sql import upgrade

    for statement in upgrade.STEPS.get(3, ()):
        if statement.startswith("INSERT INTO spent"):
            db.execute(statement)
    db.execute(
        "INSERT INTO balances SELECT 1, ?, coalesce(sum(nusd), 0),"
        " coalesce(sum(CASE state WHEN 'suspense' THEN ceiling_nusd END), 0),"
        " coalesce(sum(CASE state WHEN 'suspense' THEN ceiling_nusd END), 0), 0 FROM reservations",
        (TEAM.caps[0].window.slot_start_ms(T0),),
    )


Doing = Callable[[Store, int], Awaitable[object]]


async def ensure_total(store: Store, finished: int) -> None:
    await store.define([Budget("team", "$9000")], _now_ms(finished))


async def ensure_new(store: Store, finished: int) -> None:
    await store.define([Budget("another", "$1")], _now_ms(finished))


async def queue(store: Store, finished: int) -> None:
    assert len(await store.queue(LIVE, _now_ms(finished), limit=PAGE)) == PAGE


async def queue_of_job(store: Store, finished: int) -> None:
    assert len(await store.queue(LIVE, _now_ms(finished), job="new", limit=PAGE)) == PAGE


async def queue_parked(store: Store, finished: int) -> None:
    assert not await store.queue([RequestState.PARKED], _now_ms(finished), limit=PAGE)


async def spend(store: Store, finished: int) -> None:
    assert len(await store.spend("model")) == 3


async def spend_of_a_week(store: Store, finished: int) -> None:
    assert len(await store.spend("budget", T0 + 1)) == 1


async def ended(store: Store, finished: int) -> None:
    seen = 0
    async for _ in store.ended("old"):
        seen += 1
    assert seen == finished


async def prune(store: Store, finished: int) -> None:
    """A second page, behind what has to stay."""
    for _ in range(2):
        await store.prune(_now_ms(finished), _now_ms(finished), limit=PAGE)


async def outcomes(store: Store, finished: int) -> None:
    """Whoever waits for what another process runs asks whether any of it has ended."""
    waiting = await store.queue(LIVE[:1], _now_ms(finished), limit=50_000)
    assert not await store.outcomes([row.id for row in waiting])


async def audit(store: Store, finished: int) -> None:
    assert not (await store.audit(_now_ms(finished))).discrepancies


def _now_ms(finished: int) -> int:
    return T0 + STEP_MS * finished + 3_600_000


VIEWS: dict[str, Doing] = {
    "queue": queue, "queue of one job": queue_of_job, "queue of parked ones": queue_parked,
    "spend by model": spend, "spend by budget since": spend_of_a_week,
    "ensure a new budget": ensure_new, "ensure one as a total": ensure_total,
}  # fmt: skip


def measured(path: Path, doing: Doing, finished: int) -> float:
    """Milliseconds of one view of a file that was just opened."""

    async def main() -> float:
        store = SqliteStore(path)
        await store.open(_now_ms(finished))
        await store.counts()
        with undisturbed():
            begun = time.perf_counter()
            await doing(store, finished)
            spent_s = time.perf_counter() - begun
        await store.aclose()
        return 1000 * spent_s

    return asyncio.run(main())


def run(quick: bool) -> list[Row]:
    many = 100_000 if quick else 3_000_000
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {count: Path(folder) / f"{count}.db" for count in (FEW, many)}
        for count, path in files.items():
            fill(path, count)
        for name, doing in VIEWS.items():
            times = 1 if name.startswith("ensure") else 3  # what is ensured once is there
            few, much = (
                min(measured(path, doing, count) for _ in range(times))
                for count, path in files.items()
            )
            rows.append(_row(f"{name}, {many:,} finished", few, much))
        for name, doing, size in (("ended, a row", ended, 1), ("audit, a reservation", audit, 1)):
            few, much = (
                measured(path, doing, count) / count * size for count, path in files.items()
            )
            rows.append(_row(f"{name} of {many:,}", few, much, "us", 1000))
        rows += upkeep(Path(folder), many // 20)
    return rows


def upkeep(folder: Path, many: int) -> list[Row]:
    """Pages behind what has to stay, in a file where it is few, and where it is many."""
    found = []
    for count in (FEW, many):
        path = folder / f"unknown-{count}.db"
        fill(path, count + 4 * PAGE, unknown=count)
        found.append(measured(path, prune, count + 4 * PAGE))
    return [_row(f"prune behind {many:,} unknown ones", *found)]


def _row(name: str, few: float, much: float, unit: str = "ms", factor: float = 1) -> Row:
    is_met = much <= GOAL * few + SLACK_MS / factor
    return Row(
        name, f"{much * factor:,.2f} {unit}", f"{FEW:,}: {few * factor:,.2f}", much / few,
        f"{GOAL}x", is_met,
    )  # fmt: skip
