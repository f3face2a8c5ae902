"""How things stand at a glance, from lanes, what is open, and what is summed; nothing here writes.

What waits is told by its lanes, of which each is asked for its oldest request by index; what runs
holds money. So none of it depends on how many requests there are, or ever were.
"""

from __future__ import annotations

from scheduler.request import RequestState
from scheduler.stats import Standing, UnknownSum
from scheduler.stores.sql.codec import decode_shortfall
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.rows import DELAYED
from scheduler.stores.views import Stood

WAITING = (
    "SELECT l.priority, l.shortfall, l.shut_since_ms, l.waiting,"
    " (SELECT i.submitted_at_ms FROM requests i WHERE i.lane_id = l.id AND i.state = 'queued'"
    "  ORDER BY {queued_at} LIMIT 1) FROM lanes l WHERE l.waiting > 0"
)
LATER = (
    "SELECT l.priority, count(*), min(r.submitted_at_ms) FROM requests r JOIN lanes l"
    f" ON l.id = r.lane_id WHERE r.state = '{DELAYED}' GROUP BY l.priority"
)
RUNNING = (
    "SELECT l.priority, count(*), min(h.made_at_ms) FROM reservations h"
    " JOIN requests r ON r.id = h.request_id JOIN lanes l ON l.id = r.lane_id"
    " WHERE h.state = 'pending' GROUP BY l.priority"
)
UNKNOWN = (
    "SELECT count(*), coalesce(sum(ceiling_nusd), 0),"
    " coalesce(min(coalesce(settled_at_ms, made_at_ms)), 0) FROM reservations"
    " WHERE state = 'suspense'"
)


def standing(db: Connection, now_ms: int) -> list[Standing]:
    """`Store.standing`."""
    stood = Stood(now_ms)
    for priority, text, shut_since_ms, waiting, oldest_at_ms in db.read(
        WAITING.format(queued_at=db.dialect.queued_at)
    ):
        lack = None if text is None else decode_shortfall(text)
        stood.wait(priority, waiting, oldest_at_ms, lack, shut_since_ms)
    for row in db.read(LATER):
        stood.later(*row)
    for row in db.read(RUNNING):
        stood.run(*row)
    return stood.found()


def unknown_sum(db: Connection) -> UnknownSum:
    """`Store.unknown_sum`."""
    return UnknownSum(*db.read(UNKNOWN)[0])


def live_by_job(db: Connection) -> dict[str, int]:
    """`Store.live_by_job`."""
    return dict(
        db.read(
            "SELECT j.name, sum(t.count) FROM tallies t JOIN jobs j ON j.id = t.job_id"
            f" WHERE t.state IN ('{RequestState.QUEUED}', '{RequestState.RUNNING}')"
            " AND t.count > 0 GROUP BY j.name"
        )
    )
