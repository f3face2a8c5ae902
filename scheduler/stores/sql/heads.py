"""Those who wait in a batch of lanes, in the order in which admission looks at them.

All lanes are read at once, a page of each; whoever is looked at further is read further, with all
others that are near the end of their page. What they ask is not read: few of them go.

While a provider is short of credit those that it can pay for come by age, and whoever is larger
is passed once (`Lane.passed`): however many of these there are, a smaller one costs no more.
The smallest of the larger ones are read when one of them may try.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from scheduler.admission.fairness import Tenant, tenant_key
from scheduler.admission.lane import Head
from scheduler.admission.plan import LaneView
from scheduler.foresight import Kind
from scheduler.ledger.account import FAR, Needs
from scheduler.limits import MOST_TRIED, NOTHING
from scheduler.request import Tokens
from scheduler.stores.lanes import Lane
from scheduler.stores.sql.connection import Row
from scheduler.stores.sql.dialect import INT, Type
from scheduler.stores.sql.gates import know_gates
from scheduler.stores.sql.sheet import FAR_MS, Sheet
from scheduler.stores.sql.tenants import know_tenants
from scheduler.stores.sql.waiting import BY_DATE, DATED

FEW, MANY, MOST = 2, 128, 4_096  # of a page

# How much a request asks of its provider's credit: `limits.size_of`.
_SIZE = "(CASE {0}.ceiling_nusd WHEN 0 THEN {0}.ceiling_tokens ELSE {0}.ceiling_nusd END)"
_COLUMNS = (
    "t.id, t.lane_id, t.ceiling_nusd, t.ceiling_tokens, t.input_tokens, t.output_tokens, t.attempts,"
    " t.cost_nusd, t.submitted_at_ms, t.parked_mark_ms, t.parked_ms, t.job_id, t.model, t.digest,"
    " t.tags, t.due_at_ms"
)
_QUEUED = (
    "i.lane_id = g.lane_id AND i.state = 'queued' AND {at} >= g.from_id"
    " AND (i.expires_at_ms IS NULL OR i.expires_at_ms > ?)"
)
# Those with deadlines, by an index of their own.
_DATED = (
    f"i.lane_id = g.lane_id AND i.state = 'queued'{DATED}"
    " AND (i.due_at_ms, i.id) >= (g.from_ms, g.from_id)"
    " AND (i.expires_at_ms IS NULL OR i.expires_at_ms > ?)"
)


@dataclass(slots=True)
class Waiting:
    """A queued request, as admission sees it."""

    id: int
    lane_id: int
    needs: Needs
    tokens: Tokens
    attempts: int
    cost_nusd: int
    submitted_at_ms: int
    parked_mark_ms: int
    parked_ms: int
    job_id: int
    model: str
    digest: str
    tags: str | None
    due_at_ms: int | None

    @property
    def kind(self) -> Kind:
        """What costs as it does."""
        return self.model, self.job_id


def _waiting(row: Row) -> Waiting:
    (id_, lane_id, nusd, tokens, input_tokens, output_tokens, attempts, cost_nusd, submitted_at_ms,
     mark_ms, parked_ms, job_id, model, digest, tags, due_at_ms) = row  # fmt: skip
    return Waiting(
        id_, lane_id, (nusd, tokens, 1), Tokens(input_tokens, output_tokens), attempts, cost_nusd,
        submitted_at_ms, mark_ms, parked_ms, job_id, model, digest, tags, due_at_ms,
    )  # fmt: skip


class _Pages:
    """The first of several lanes, read page by page."""

    def __init__(self, sheet: Sheet, page: int, where: str, *, is_due: bool) -> None:
        self._sheet, self._page, self._is_due = sheet, page, is_due
        at = sheet.db.dialect.queued_at
        self._order = BY_DATE if is_due else at
        self._where = (_DATED if is_due else _QUEUED.format(at=at)) + where
        self._rows: dict[int, deque[Row]] = {}
        self._from: dict[int, Head] = {}
        self._reach: dict[int, int] = {}
        self._sizes: dict[int, int] = {}  # of the last page; 0: there is no further one

    def add(self, lane: Lane, start: Head, reach: int = 0) -> None:
        """One lane more, to be read from there on."""
        self._rows[lane.id] = deque()
        self._from[lane.id], self._reach[lane.id] = start, reach
        self._sizes[lane.id] = self._page

    def of(self, lane: Lane) -> Iterator[Waiting]:
        """Those of one lane."""
        rows = self._rows[lane.id]
        while True:
            if not rows:
                if not self._sizes[lane.id]:
                    return
                self._read()
                if not rows:
                    return
            yield _waiting(rows.popleft())

    def read(self) -> None:
        """The first page of all."""
        if self._rows:
            self._read()

    def _read(self) -> None:
        """A page more of all lanes of whose last one little is left."""
        low = [
            each for each, size in self._sizes.items() if size and len(self._rows[each]) * 2 <= size
        ]
        db, page, is_due = self._sheet.db, self._page, self._is_due
        found = db.ask(
            db.dialect.firsts(_COLUMNS, _groups(is_due), "requests", self._where, self._order),
            *db.dialect.row_values([
                (each, *_from(self._from[each], is_due), self._reach[each]) for each in low
            ]),
            self._sheet.now_ms, page,
        )  # fmt: skip
        self._sheet.write_ended()
        counts = dict.fromkeys(low, 0)
        for row in sorted(found(), key=_by_date if is_due else None):
            self._rows[row[1]].append(row)
            self._from[row[1]] = row[-1] if is_due else FAR, row[0] + 1
            counts[row[1]] += 1
        for each, count in counts.items():
            self._sizes[each] = page if count == page else 0
        self._page = min(MOST, max(MANY, 2 * page))


def _by_date(row: Row) -> Head:
    return row[-1], row[0]


def _groups(is_due: bool) -> dict[str, Type]:
    """What tells lanes apart, and from where on they are read."""
    dates: dict[str, Type] = {"from_ms": INT} if is_due else {}
    return {"lane_id": INT, **dates, "from_id": INT, "reach": INT}


def _from(head: Head, is_due: bool) -> Sequence[int]:
    return head if is_due else head[1:]


class Heads:
    """What admission sees of a batch of lanes."""

    def __init__(self, sheet: Sheet, lanes: Sequence[Lane], places: int) -> None:
        self._sheet, self._lanes = sheet, lanes
        page = max(FEW, min(2 * MANY, places // max(1, len(lanes))) + 2)
        small = f" AND {_SIZE.format('i')} <= g.reach"
        # Of lanes without deadlines, and of those with.
        self._plain = [_Pages(sheet, page, "", is_due=each) for each in (False, True)]
        self._small = [_Pages(sheet, page, small, is_due=each) for each in (False, True)]
        self._short: dict[int, _Short] = {}  # lanes of a provider that is short of credit
        self._larger: dict[int, list[Waiting]] = {}
        self._sizes: dict[int, tuple[int, int]] | None = None  # lane and size of those in line

    def views(self) -> list[LaneView]:
        """The lanes, with those who wait in them."""
        sheet, gates = self._sheet, self._sheet.books.gates
        know_gates(sheet, ((lane.key.provider, lane.key.model) for lane in self._lanes))
        know_tenants(sheet, (tenant_key(lane.key) for lane in self._lanes))
        sheet.load({budget_id for lane in self._lanes for budget_id in lane.key.budgets})
        views = [
            self._view(lane, LaneView(
                lane.key, sheet.accounts_of(lane.key.budgets), iter(()),
                gates.of(lane.key.provider, lane.key.model), tenant=self._tenant(lane),
            ))
            for lane in self._lanes
        ]  # fmt: skip
        for pages in (*self._plain, *self._small):
            pages.read()
        return views

    def _tenant(self, lane: Lane) -> Tenant | None:
        """Whose requests are in a lane."""
        books = self._sheet.books
        if books.shares.fairness is None:
            return None
        key = tenant_key(lane.key)
        books.lanes.rise(key)
        return books.shares.of(key)

    def _view(self, lane: Lane, view: LaneView) -> LaneView:
        closed = view.closed
        if closed is None or not closed.is_of_credit or not lane.key.may_wait:
            lane.passed, lane.passed_reach = lane.key.lowest, NOTHING
            pages = self._plain[lane.key.is_due]
            pages.add(lane, lane.key.lowest)
            view.candidates = pages.of(lane)
            return view
        short = self._short[lane.id] = _Short(lane, closed.reach(lane.key.model))
        if not short.is_over:
            self._small[lane.key.is_due].add(lane, lane.passed, short.reach)
            view.candidates = self._smaller(short)
        view.larger = partial(self._largest, short)
        view.size_by_id = partial(self._size_by_id, lane)
        return view

    def _smaller(self, short: _Short) -> Iterator[Waiting]:
        """Those that are no larger than what there is credit for; whoever is is passed once."""
        lane, is_first = short.lane, True
        for each in self._small[lane.key.is_due].of(lane):
            if is_first:
                lane.passed, is_first = lane.key.head(each), False
            yield each
        if is_first:
            last = self._sheet.db.value("SELECT coalesce(max(id), 0) + 1 FROM requests")
            lane.passed = (FAR, last)
        short.is_over = True

    def _largest(self, short: _Short) -> Iterator[Waiting]:
        """Those that were passed, smallest first."""
        if short.lane.id not in self._larger:
            self._read_larger()
        return iter(self._larger.pop(short.lane.id))

    def _read_larger(self) -> None:
        db, size = self._sheet.db, _SIZE.format("i")
        self._larger = {lane_id: [] for lane_id in self._short}
        for is_due in (False, True):
            where = _DATED if is_due else _QUEUED.format(at=db.dialect.queued_at)
            until = "(i.due_at_ms, i.id) < (g.to_ms, g.to_id)" if is_due else "i.id < g.to_id"
            ends: dict[str, Type] = {"to_ms": INT} if is_due else {}
            groups = [
                (lane_id, *_from(each.lane.key.lowest, is_due), each.reach, *_from(each.end, is_due))
                for lane_id, each in self._short.items() if each.lane.key.is_due is is_due
            ]  # fmt: skip
            if not groups:
                continue
            rows = db.read(
                db.dialect.firsts(
                    _COLUMNS, {**_groups(is_due), **ends, "to_id": INT}, "requests",
                    f"{where} AND {until} AND {size} > g.reach", f"{size}, i.id",
                ),
                *db.dialect.row_values(groups), self._sheet.now_ms, MOST_TRIED + 1,
            )  # fmt: skip
            for waiting in sorted(map(_waiting, rows), key=_size_and_id):
                self._larger[waiting.lane_id].append(waiting)

    def _size_by_id(self, lane: Lane, request_id: int) -> int | None:
        """The size of who waits in a lane; None: it does not."""
        if self._sizes is None:
            self._sizes = {}
        if request_id not in self._sizes:
            self._read_sizes(request_id)
        lane_id, size = self._sizes[request_id]
        return size if lane_id == lane.id else None

    def _read_sizes(self, request_id: int) -> None:
        """Read them for all who are in line for what these lanes draw on."""
        assert self._sizes is not None
        db = self._sheet.db
        ids = {request_id} | {
            waiter.request_id
            for accounts in self._sheet.accounts.values()
            for account in accounts
            for waiter in account.line
        }
        self._sizes |= dict.fromkeys(ids, (0, 0))
        for id_, lane_id, size in db.read(
            f"SELECT i.id, i.lane_id, {_SIZE.format('i')} FROM requests i WHERE i.state = 'queued'"
            f" AND i.id {db.dialect.among}",
            db.dialect.a_list(ids),
        ):
            self._sizes[id_] = (lane_id, size)


class _Short:
    """A lane whose provider has credit for small requests only, if for any."""

    def __init__(self, lane: Lane, reach: int) -> None:
        self.lane, self.reach = lane, reach
        self.is_over = reach < 0  # all others have been passed
        if self.is_over:
            return
        if reach > lane.passed_reach:
            lane.passed = lane.key.lowest
        lane.passed_reach = reach

    @property
    def end(self) -> Head:
        """Who is before this has been passed."""
        return (FAR, FAR_MS) if self.is_over else self.lane.passed


def _size_and_id(waiting: Waiting) -> tuple[int, int]:
    nusd, tokens, _ = waiting.needs
    return (nusd or tokens, waiting.id)
