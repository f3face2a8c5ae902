"""Who waits, and how calls went that were answered, as far as it matters when all will be done.

A lane is known by its number and by some of its requests, drawn evenly by steps in an index: however
many wait, it costs the same.
"""

from __future__ import annotations

from scheduler.stats import Queued, Took
from scheduler.stores.sql.codec import decode_budgets
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT

MOST_BACK = 4  # times as many attempts are looked at as calls are wanted: some were not answered
MOST_LANES = 200  # of which requests are looked at
_ASKS = (
    "t.lane_id, t.ceiling_nusd, t.ceiling_tokens, t.expected_nusd, t.input_tokens, t.output_tokens"
)


def took(db: Connection, limit: int) -> list[Took]:
    """`Store.took`."""
    rows = db.read(
        "SELECT v.model, v.nusd, v.tokens, v.settled_at_ms - v.made_at_ms, r.expected_nusd, r.input_tokens"
        " FROM reservations v JOIN requests r ON r.id = v.request_id WHERE v.state = 'posted'"
        " AND v.id > (SELECT max(id) FROM reservations) - ? ORDER BY v.id DESC LIMIT ?",
        MOST_BACK * limit, limit,
    )  # fmt: skip
    return [Took(*row) for row in rows] or _lengths(db, limit)


def _lengths(db: Connection, limit: int) -> list[Took]:
    """What is left of calls whose rows are pruned: of budgets that take a risk."""
    rows = db.read(
        "SELECT model, nusd, tokens, ended_at_ms - made_at_ms FROM lengths ORDER BY id DESC LIMIT ?",
        limit,
    )
    return [Took(*row) for row in rows]


def queued(db: Connection, most: int) -> list[Queued]:
    """`Store.queued`."""
    counts: dict[int, int] = dict(db.read("SELECT id, waiting FROM lanes WHERE waiting > 0"))
    for lane_id, running in db.read(
        "SELECT r.lane_id, count(*) FROM reservations h JOIN requests r ON r.id = h.request_id"
        " WHERE h.state = 'pending' GROUP BY r.lane_id"
    ):
        counts[lane_id] = counts.get(lane_id, 0) + running
    lanes = db.read(
        f"SELECT id, provider, model, priority, budgets FROM lanes WHERE id {db.dialect.among}",
        db.dialect.a_list(counts),
    )
    largest = sorted(counts, key=lambda lane_id: -counts[lane_id])[:MOST_LANES]
    asks = _asks(db, largest, max(1, most // max(1, len(largest))))
    return [
        Queued(provider, model, priority, decode_budgets(budgets), counts[lane_id],
               tuple(asks.get(lane_id, ())))
        for lane_id, provider, model, priority, budgets in lanes
    ]  # fmt: skip


Ask = tuple[int, int, int, int, int]


def _asks(db: Connection, lanes: list[int], few: int) -> dict[int, list[Ask]]:
    """Some of the requests of each lane, from all over it."""
    at = db.dialect.queued_at
    its = "FROM requests AS i WHERE i.lane_id = ? AND i.state = 'queued'"
    steps: list[tuple[int, int]] = []
    for lane_id in lanes:
        first, last = db.read(
            # Apart: of both at once SQLite reads the whole lane.
            f"SELECT (SELECT min({at}) {its}), (SELECT max({at}) {its})", lane_id, lane_id
        )[0]  # fmt: skip
        if first is not None:
            count = min(few, last - first + 1)
            steps += ((lane_id, first + (last - first) * each // count) for each in range(count))
    if not steps:
        return {}
    found: dict[int, list[Ask]] = {}
    where = f"i.lane_id = g.lane_id AND i.state = 'queued' AND {at} >= g.from_id"
    for lane_id, *ask in db.read(
        db.dialect.firsts(_ASKS, {"lane_id": INT, "from_id": INT}, "requests", where, at),
        *db.dialect.row_values(steps), 1,
    ):  # fmt: skip
        nusd, tokens, expected, given, cap = ask
        found.setdefault(lane_id, []).append((nusd, tokens, expected, given, cap))
    return found
