"""Who waits in a lane of a SQLite store, in the order in which admission looks at them.

While a provider is short of credit those that it can pay for come by age, and whoever is larger
is passed once (`Lane.passed_id`): however many of these there are, a smaller one costs no more.
The smallest of the larger ones are read when one of them may try.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scheduler.admission.plan import LaneView
from scheduler.ledger.account import Account, Needs
from scheduler.limits import MOST_TRIED, NOTHING, Pair
from scheduler.request import Tokens
from scheduler.stores.lanes import Lane

# How much a request asks of its provider's credit: `limits.size_of`.
_SIZE = "(CASE ceiling_nusd WHEN 0 THEN ceiling_tokens ELSE ceiling_nusd END)"


@dataclass(slots=True)
class Waiting:
    """A queued row, as admission sees it."""

    id: int
    needs: Needs
    tokens: Tokens
    row: tuple[int, int, int, str, int, int, int, int, int, int, str, str]


def view(
    db: sqlite3.Connection,
    cursor: sqlite3.Cursor,
    lane: Lane,
    accounts: Sequence[Account],
    gates: Pair,
) -> LaneView:
    """A lane as `plan` sees it; the cursor reads those who wait in it."""
    closed = gates[0].closed if gates else None
    if closed is None or not closed.is_of_credit or not lane.key.may_wait:
        lane.passed_id, lane.passed_reach = 0, NOTHING
        return LaneView(lane.key, accounts, _candidates(cursor, lane), gates)
    reach = closed.reach(lane.key.model)
    small = _Small(db, cursor, lane, reach)
    return LaneView(lane.key, accounts, iter(small), gates, small.larger, small.size_by_id)


class _Small:
    """Those of a lane that are no larger than that, oldest first; whoever is is passed once."""

    def __init__(
        self, db: sqlite3.Connection, cursor: sqlite3.Cursor, lane: Lane, reach: int
    ) -> None:
        self._db, self._cursor, self._lane, self._reach = db, cursor, lane, reach
        self._is_over = reach < 0  # all others have been passed

    def __iter__(self) -> Iterator[Waiting]:
        lane, reach = self._lane, self._reach
        if self._is_over:
            return
        if reach > lane.passed_reach:
            lane.passed_id = 0
        lane.passed_reach = reach
        is_first = True
        where = f" AND id >= ? AND {_SIZE} <= ?"
        for each in _candidates(self._cursor, lane, where, (lane.passed_id, reach)):
            if is_first:
                lane.passed_id, is_first = each.id, False
            yield each
        if is_first:
            (last,) = self._db.execute("SELECT coalesce(max(id), 0) FROM requests").fetchone()
            lane.passed_id = last + 1
        self._is_over = True

    def size_by_id(self, request_id: int) -> int | None:
        """The size of who waits in the lane; None: it does not."""
        row = self._db.execute(
            f"SELECT {_SIZE} FROM requests WHERE id = ? AND lane_id = ? AND state = 'queued'",
            (request_id, self._lane.id),
        ).fetchone()
        return None if row is None else int(row[0])

    def larger(self) -> Iterator[Waiting]:
        """Those that were passed, smallest first."""
        where, values = f" AND {_SIZE} > ?", [self._reach]
        if not self._is_over:
            where, values = f" AND id < ?{where}", [self._lane.passed_id, self._reach]
        order = f"{_SIZE}, id LIMIT {MOST_TRIED + 1}"
        yield from _candidates(self._db.cursor(), self._lane, where, values, order)


def _candidates(
    cursor: sqlite3.Cursor, lane: Lane, where: str = "", values: Sequence[int] = (),
    order: str = "id",
) -> Iterator[Waiting]:  # fmt: skip
    rows = cursor.execute(
        "SELECT id, ceiling_nusd, ceiling_tokens, payload, attempts, cost_nusd, submitted_at_ms,"
        " parked_mark_ms, parked_ms, job_id, model, digest, input_tokens, output_tokens"
        f" FROM requests WHERE lane_id = ? AND state = 'queued'{where} ORDER BY {order}",
        (lane.id, *values),
    )
    for row in rows:
        yield Waiting(row[0], (row[1], row[2], 1), Tokens(row[12], row[13]), (lane.id, *row[1:12]))
