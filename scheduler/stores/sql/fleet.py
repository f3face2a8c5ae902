"""Who sends what others submit, and what waits for somebody who does; nothing here writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container

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

    What only a circle may send is not told of: it waits for its own command. What a process had
    claimed that is not live waits for another one to notice, so it counts, too.
    """
    lanes = db.read(
        "SELECT id, provider, service, waiting FROM lanes WHERE worker_id = 0 AND waiting > 0"
        " ORDER BY provider, service"
    )
    claimed = db.read(
        "SELECT h.worker_id, l.provider, l.service, count(*) FROM reservations h"
        " JOIN requests r ON r.id = h.request_id JOIN lanes l ON l.id = r.lane_id"
        f" WHERE h.state = 'pending' AND l.worker_id = 0{'' if job is None else _OF_JOB}"
        " GROUP BY h.worker_id, l.provider, l.service",
        *(() if job is None else (job,)),
    )
    if not (lanes or claimed):
        return []
    live = [each for each in workers(db, books, now_ms) if each.is_live]
    served = {item for each in live for item in each.serves.items() if item[0] not in each.own}
    lanes = [lane for lane in lanes if _is_left(lane[1], lane[2], served)]
    waiting = {lane[0]: lane[3] for lane in lanes}
    if job is not None and lanes:
        waiting = dict(
            db.read(
                f"SELECT r.lane_id, count(*) FROM requests r WHERE r.{LIVE}{_OF_JOB}"
                f" AND r.state = 'queued' AND r.lane_id {db.dialect.among} GROUP BY r.lane_id",
                job, db.dialect.a_list(waiting),
            )
        )  # fmt: skip
    sums: Counter[tuple[str, str]] = Counter()
    for lane_id, provider, service, _ in lanes:
        sums[provider, service] += waiting.get(lane_id, 0)
    ids = {each.id for each in live}
    for worker_id, provider, service, count in claimed:
        if worker_id not in ids and _is_left(provider, service, served):
            sums[provider, service] += count
    return [Unserved(*name, count) for name, count in sorted(sums.items()) if count]


_OF_JOB = " AND r.job_id = (SELECT id FROM jobs WHERE name = ?)"


def _is_left(provider: str, service: str, served: Container[tuple[str, str]]) -> bool:
    return CIRCLE not in service and (provider, service) not in served
