"""What calls under way are expected to cost, where a budget takes a risk: as the database has it.

Who is under way, and how earlier calls went, is read only in a transaction in which ceilings do not
fit, once for all its budgets; while they do, nothing is. What calls took and cost is appended to
`lengths` as they are settled, so all processes learn the same, and one that begins knows it at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.foresight import Amounts, Flight, Histories, Kind, Pool, Risk
from scheduler.ledger.account import Needs, ReservationState
from scheduler.stores.sql.codec import decode_budgets
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, TEXT, Insert

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.ledger.account import Account

KEPT = 8_192  # rows of `lengths`
EVERY = 256  # rows between two times that older ones are dropped

_LENGTHS = Insert(
    "lengths",
    {"id": INT, "model": TEXT, "job_id": INT, "made_at_ms": INT, "ended_at_ms": INT, "nusd": INT, "tokens": INT,
     "ceiling_nusd": INT, "ceiling_tokens": INT},
)  # fmt: skip
_LEARNED = (
    "SELECT id, model, job_id, made_at_ms, ended_at_ms, nusd, tokens, ceiling_nusd, ceiling_tokens"
    " FROM lengths WHERE id > ? ORDER BY id"
)
_UNDER_WAY = (
    "SELECT id, request_id, budgets, model, job_id, made_at_ms, ceiling_nusd, ceiling_tokens"
    " FROM reservations WHERE state = 'pending' ORDER BY id"
)


class Learned:
    """What a process has read of `lengths`; it decides nothing alone."""

    def __init__(self) -> None:
        self.histories = Histories()
        self.last_id = 0
        self.added = 0

    def read(self, db: Connection) -> None:
        """Learn what ended since the last time."""
        for id_, *row in db.read(_LEARNED, self.last_id):
            self.learn(tuple(row))
            self.last_id = id_

    def learn(self, row: tuple[Any, ...]) -> None:
        """One call took so long, and cost so much."""
        model, job_id, made_at_ms, ended_at_ms, nusd, tokens, ceiling_nusd, ceiling_tokens = row
        flight = Flight((model, job_id), made_at_ms, (ceiling_nusd, ceiling_tokens))
        self.histories.learn(flight, ended_at_ms, (nusd, tokens))


class Ahead:
    """The same in one transaction."""

    def __init__(self, db: Connection, learned: Learned) -> None:
        self._db, self._learned = db, learned
        self._flights: dict[int, list[tuple[int, Flight]]] | None = None  # by budget
        self._ended: set[int] = set()
        self._rows: list[tuple[Any, ...]] = []

    def pool(self, account: Account, risk: Risk) -> StoredPool:
        """Where calls on an account count."""
        return StoredPool(risk, account.index, self, account.budget_id, self._learned.histories)

    def end(
        self, id: int, kind: Kind, made_at_ms: int, now_ms: int, state: ReservationState,
        cost: Amounts, ceilings: Needs,
    ) -> None:  # fmt: skip
        """A reservation that was under way has been settled."""
        assert self._flights is None, "what has ended is settled before anybody is let in"
        self._ended.add(id)
        if state is ReservationState.SUSPENSE:
            cost = ceilings[:2]
        if state is not ReservationState.VOIDED:
            self._rows.append((*kind, made_at_ms, now_ms, *cost, *ceilings[:2]))

    def under_way(self, budget_id: int) -> Iterable[tuple[int, Flight]]:
        """The calls on a budget, by request, but for those that this transaction ended or began."""
        if self._flights is None:
            self._flights = self._read()
        return self._flights.get(budget_id, ())

    def _read(self) -> dict[int, list[tuple[int, Flight]]]:
        db, histories = self._db, self._learned.histories
        self._learned.read(db)
        for row in self._rows:
            self._learned.learn(row)
        found: dict[int, list[tuple[int, Flight]]] = {
            budget_id: []
            for (budget_id,) in db.read("SELECT budget_id FROM accounts WHERE risk IS NOT NULL")
        }
        histories.forget_flights()
        for id_, request_id, budgets, model, job_id, made_at_ms, *ceilings in db.read(_UNDER_WAY):
            if id_ in self._ended:
                continue
            nusd, tokens = ceilings
            flight = Flight((model, job_id), made_at_ms, (nusd, tokens))
            for budget_id in decode_budgets(budgets):
                if budget_id in found:
                    found[budget_id].append((request_id, flight))
                    histories.enter(request_id, flight)
        return found

    def write(self) -> None:
        """Write what was learned, for all."""
        db, learned, rows = self._db, self._learned, self._rows
        if not rows:
            return
        ids = db.new_ids("lengths", len(rows))
        db.write_many(_LENGTHS, [(id_, *row) for id_, row in zip(ids, rows, strict=True)])
        if self._flights is not None:
            learned.last_id = ids[-1]  # nobody else can have written since it was read
        self._rows = []
        learned.added += len(rows)
        if learned.added >= EVERY:
            learned.added = 0
            db.write("DELETE FROM lengths WHERE id <= ?", ids[-1] - KEPT)


class StoredPool(Pool):
    """Calls under way on one account, read when it is first asked what they count.

    Once its transaction is over, in whichever thread, it tells what it told last.
    """

    def __init__(
        self, risk: Risk, unit: int, ahead: Ahead, budget_id: int, histories: Histories
    ) -> None:
        super().__init__(risk, unit, histories)
        self._ahead, self._budget_id = ahead, budget_id
        self._is_read = False
        self._told: tuple[int, int] | None = None

    @property
    def is_known(self) -> bool:
        """Whether it was asked, so that it can tell."""
        return self._is_read

    def kept(
        self, now_ms: int, oldest_ms: int, kind: Kind | None = None, ceiling: int = 0
    ) -> tuple[int, int]:
        """See `Pool.kept`."""
        if self._told is not None:
            return self._told
        if not self._is_read:
            self._is_read = True
            begun = dict(self._flights)  # in this transaction, which has not written them yet
            for id_, flight in (*self._ahead.under_way(self._budget_id), *begun.items()):
                self.enter(id_, flight)
        return super().kept(now_ms, oldest_ms, kind, ceiling)

    def close(self, now_ms: int, oldest_ms: int) -> None:
        """The transaction is over."""
        self._told = self.kept(now_ms, oldest_ms) if self._is_read else (0, 0)
