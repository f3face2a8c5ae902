"""Who sends what others submit, and what waits for somebody who does; nothing here writes."""

from __future__ import annotations

import json
from collections.abc import Iterable

from scheduler.stats import Unserved, WorkerStatus
from scheduler.stores.process import Process, is_dead
from scheduler.stores.sql.books import Books
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.listing import LIVE

CIRCLE = " "  # between a service and the circle of those who share only some work


def workers(db: Connection, books: Books, now_ms: int) -> list[WorkerStatus]:
    """`Store.workers`."""
    found = []
    for worker_id, host, pid, started, seen_at_ms, is_lost, about, running in db.read(
        "SELECT w.id, w.host, w.pid, w.started, w.seen_at_ms, w.is_lost, w.about,"
        " (SELECT count(*) FROM reservations h WHERE h.state = 'pending' AND h.worker_id = w.id)"
        " FROM workers w WHERE w.about IS NOT NULL ORDER BY w.id"
    ):
        told = json.loads(about)
        is_silent = bool(is_lost) or now_ms - seen_at_ms > books.lease_ms
        is_live = not is_silent and not is_dead(books.process, Process(host, pid, started))
        services = {name: each.partition(CIRCLE) for name, each in told["serves"].items()}
        found.append(
            WorkerStatus(
                worker_id, host.split(CIRCLE)[0], pid, {n: each[0] for n, each in services.items()},
                frozenset(n for n, each in services.items() if each[2]), told["at_once"],
                told["since_ms"], seen_at_ms, running, is_live,
            )
        )  # fmt: skip
    return found


def unserved(db: Connection, books: Books, now_ms: int, job: str | None) -> list[Unserved]:
    """`Store.unserved`.

    What only a circle may send is told by none of its lanes: it waits for its own command.
    """
    lanes = db.read(
        "SELECT id, provider, service, waiting FROM lanes WHERE worker_id = 0 AND waiting > 0"
        " ORDER BY provider, service"
    )
    lanes = [lane for lane in lanes if CIRCLE not in lane[2]]
    served = _served(workers(db, books, now_ms)) if lanes else set()
    lanes = [lane for lane in lanes if lane[1:3] not in served]
    waiting = {lane[0]: lane[3] for lane in lanes}
    if job is not None and lanes:
        waiting = dict(
            db.read(
                "SELECT lane_id, count(*) FROM requests"
                f" WHERE job_id = (SELECT id FROM jobs WHERE name = ?) AND {LIVE}"
                f" AND state = 'queued' AND lane_id {db.dialect.among} GROUP BY lane_id",
                job, db.dialect.a_list(waiting),
            )
        )  # fmt: skip
    sums: dict[tuple[str, str], int] = {}
    for lane_id, provider, service, _ in lanes:
        count = sums.get((provider, service), 0) + waiting.get(lane_id, 0)
        sums[provider, service] = count
    return [Unserved(*name, count) for name, count in sums.items() if count]


def _served(those: Iterable[WorkerStatus]) -> set[tuple[str, str]]:
    return {
        item for each in those if each.is_live
        for item in each.serves.items() if item[0] not in each.own
    }  # fmt: skip
