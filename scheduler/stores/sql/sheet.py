"""The working paper of one transaction: what it has read, what it changes, what it writes.

Accounts and balances are read anew in every transaction, set-wise, and written in the same one:
*gather* with `load`, decide in memory, *apply* with `write`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from scheduler.admission.fairness import Place, TenantKey
from scheduler.admission.lane import Head
from scheduler.foresight import PRESETS
from scheduler.ledger.account import FAR, Account, Tally, Waiter
from scheduler.stores.lanes import Lane
from scheduler.stores.sql import changes
from scheduler.stores.sql.ahead import Ahead, StoredPool
from scheduler.stores.sql.books import Books
from scheduler.stores.sql.codec import encode_budgets, encode_shortfall
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, TEXT, Insert, Update
from scheduler.stores.sql.rows import Row, insert_rows, read_rows, update_rows
from scheduler.stores.sql.spent import Spent

MAX_BEHIND_MS = 60_000  # clocks of processes that share a file differ by less
FAR_MS = 1 << 62

_ACCOUNTS = (
    "SELECT a.id, a.budget_id, a.position, b.name, b.is_paused, a.cap, a.warned, a.warned_slot_ms,"
    " a.waiter, a.risk FROM accounts a JOIN budgets b ON b.id = a.budget_id WHERE a.budget_id"
)
_BALANCES = Insert(
    "balances",
    {"account_id": INT, "slot_ms": INT, "posted": INT, "reserved": INT, "suspense": INT,
     "overrun": INT},
    "ON CONFLICT (account_id, slot_ms) DO UPDATE SET posted = excluded.posted,"
    " reserved = excluded.reserved, suspense = excluded.suspense, overrun = excluded.overrun",
)  # fmt: skip
_LINES = Update(
    "accounts", "warned = :warned, warned_slot_ms = :warned_slot_ms, waiter = :waiter", "id = :id",
    {"warned": INT, "warned_slot_ms": INT, "waiter": TEXT, "id": INT},
)  # fmt: skip
_TALLIES = Insert(
    "tallies", {"job_id": INT, "state": TEXT, "count": INT},
    "ON CONFLICT (job_id, state) DO UPDATE SET count = tallies.count + excluded.count",
)  # fmt: skip
_RESERVATIONS = Update(
    "reservations",
    "state = :state, settled_at_ms = :settled_at_ms, nusd = :nusd, tokens = :tokens,"
    " is_assumed = :is_assumed, provider_id = coalesce(:provider_id, provider_id),"
    " why = coalesce(:why, why)",
    "id = :id",
    {"state": TEXT, "settled_at_ms": INT, "nusd": INT, "tokens": INT, "is_assumed": INT,
     "provider_id": TEXT, "why": TEXT, "id": INT},
)  # fmt: skip
_RESPONSES = Insert(
    "responses", {"request_id": INT, "response": TEXT},
    "ON CONFLICT (request_id) DO UPDATE SET response = excluded.response",
)  # fmt: skip
_NEW_LANES = Insert(
    "lanes",
    {"id": INT, "worker_id": INT, "provider": TEXT, "budgets": TEXT, "priority": INT,
     "may_wait": INT, "model": TEXT, "service": TEXT, "tenant": TEXT, "is_due": INT},
)  # fmt: skip
_MORE_WAITING = Update(
    "lanes", "waiting = CASE WHEN waiting + :more < 0 THEN 0 ELSE waiting + :again END", "id = :id",
    {"more": INT, "again": INT, "id": INT},
)  # fmt: skip
_SHUT = Update(
    "lanes",
    "shortfall = :shortfall, shut_since_ms = :shut_since_ms, parked_total_ms = :parked_total_ms",
    "id = :id",
    {"shortfall": TEXT, "shut_since_ms": INT, "parked_total_ms": INT, "id": INT},
)  # fmt: skip


class Owner(NamedTuple):
    """Whose a lane is that is not in the books."""

    budgets: tuple[int, ...]
    is_alive: bool
    tenant: TenantKey


class Sheet:
    """One transaction of one process.

    Attributes:
        accounts: By budget, as read in this transaction, and as changed.
        rows: Requests that were read or made in it.
        owners: Of lanes that are not in the books: whose, and the budgets they draw on.
        tallies: By job and state, how many requests more there are.
        spent: What is added to the sums of what was ever posted.
        news: What others have to be told of.
        more: By lane in which others count, too: how many more wait, of which its row does not know.
        hear: Takes what was asked and can wait until all is written.
        tenants: Those that were read in it,
        clocks: and the clocks they go by.
        save: Writes what was changed of these.
    """

    def __init__(self, db: Connection, books: Books, now_ms: int) -> None:
        self.db, self.books, self.now_ms = db, books, now_ms
        self.accounts: dict[int, list[Account]] = {}
        self.rows: dict[int, Row] = {}
        self.new: list[Row] = []
        self.new_lanes: list[Lane] = []
        self.owners: dict[int, Owner] = {}
        self.tallies: Counter[tuple[int, str]] = Counter()
        self.settled: dict[int, tuple[object, ...]] = {}  # reservations, each once
        self.responses: list[tuple[int, str]] = []
        self.spent = Spent(books.tagged)
        self.news = changes.News()
        self.hear: Callable[[], None] = lambda: None
        self._oldest: dict[int, int] = {}  # by window: the oldest slot that counts
        self.more: Counter[int] = Counter()
        self.ahead = Ahead(db, books.learned)
        self.tenants: set[TenantKey] = set()
        self.clocks: set[Place] = set()
        self.save: Callable[[], None] = lambda: None

    # Gather

    def load(
        self, budgets: Iterable[int], made: Iterable[tuple[tuple[int, ...], int]] = ()
    ) -> None:
        """Read the accounts of these budgets, unless that was done, with the slots that count.

        Args:
            budgets: Their ids.
            made: Budgets, and when a reservation was made in them: its slot is read, too.
        """
        db = self.db
        missing = set(budgets) - self.accounts.keys()
        fresh: list[Account] = []
        if missing:
            self.accounts |= {budget_id: [] for budget_id in missing}
            rows = db.read(f"{_ACCOUNTS} {db.dialect.among}", db.dialect.a_list(missing))
            for row in rows:
                account = self._account(row)
                fresh.append(account)
                self.accounts[account.budget_id].append(account)
            positions = {row[0]: row[2] for row in rows}
            for each in missing:
                if len(self.accounts[each]) > 1:
                    self.accounts[each].sort(key=lambda account: positions[account.id])
        old = self._old_slots(made)
        if not fresh and not old:
            return
        spans = [(each.id, each.oldest_ms, FAR_MS) for each in fresh]
        spans += [(account_id, slot_ms, slot_ms) for account_id, slot_ms in old]
        wanted = db.dialect.rows("k", {"account_id": INT, "from_ms": INT, "to_ms": INT})
        found: dict[int, dict[int, Tally]] = {}
        for account_id, slot_ms, *sums in db.read(
            "SELECT b.account_id, b.slot_ms, b.posted, b.reserved, b.suspense, b.overrun"
            f" FROM {wanted} CROSS JOIN balances b WHERE b.account_id = k.account_id"
            " AND b.slot_ms BETWEEN k.from_ms AND k.to_ms",
            *db.dialect.row_values(spans),
        ):
            found.setdefault(account_id, {})[slot_ms] = Tally(*sums)
        for account in fresh:
            slots = found.get(account.id)
            if slots is not None and old:
                slots = {at: slots[at] for at in slots if at >= account.oldest_ms}
            account.slots = slots or {}
            account.look(self.now_ms)
        for (account_id, slot_ms), account in old.items():
            account.slots[slot_ms] = found.get(account_id, {}).get(slot_ms) or Tally()

    def _account(self, row: tuple[object, ...]) -> Account:
        account_id, budget_id, _, name, is_paused, cap, warned, warned_slot_ms, line, risk = row
        read = self.books.cap_of(account_id, cap)  # type: ignore[arg-type]
        account = Account(account_id, budget_id, name, read, bool(is_paused))  # type: ignore[arg-type]
        account.warned, account.warned_slot_ms = warned, warned_slot_ms  # type: ignore[assignment]
        account.line = decode_line(line)  # type: ignore[arg-type]
        account.burn = self.books.burn_of(account)
        if risk is not None:
            account.pool = self.ahead.pool(account, PRESETS[risk])  # type: ignore[index]
        oldest_ms = self._oldest.get(id(read.window))  # many accounts have the same one
        if oldest_ms is None:
            oldest_ms = self._oldest[id(read.window)] = read.window.oldest_counting_ms(self.now_ms)
        account.oldest_ms = oldest_ms
        return account

    def _old_slots(
        self, made: Iterable[tuple[tuple[int, ...], int]]
    ) -> dict[tuple[int, int], Account]:
        """Slots that count no more, but have calls under way, or what is corrected."""
        return {
            (account.id, slot_ms): account
            for budgets, made_at_ms in made
            for account in self._of(budgets)
            if made_at_ms < account.oldest_ms
            and (slot_ms := account.cap.window.slot_start_ms(made_at_ms)) not in account.slots
        }

    def accounts_of(self, budgets: tuple[int, ...]) -> list[Account]:
        """The accounts of these budgets; those that were not foreseen are read now."""
        if len(budgets) == 1 and budgets[0] in self.accounts:
            return self.accounts[budgets[0]]
        if any(each not in self.accounts for each in budgets):
            self.load(budgets)
        return self._of(budgets)

    def _of(self, budgets: tuple[int, ...]) -> list[Account]:
        if len(budgets) == 1:
            return self.accounts.get(budgets[0], [])
        return [account for each in budgets for account in self.accounts.get(each, ())]

    def load_rows(self, ids: Iterable[int]) -> None:
        """Read these requests, unless that was done."""
        missing = set(ids) - self.rows.keys()
        if missing:
            self.rows |= {row.id: row for row in read_rows(self.db, missing)}

    def meet(self, row: Row) -> Row:
        """A request that was read: as this transaction has it already, if it has."""
        return self.rows.setdefault(row.id, row)

    # What changes

    def enter(self, lane: Lane, head: Head) -> None:
        """One more waits in a lane of the books, at that place."""
        self.books.lanes.add(lane, head)
        self._count(lane, 1)

    def leave(self, lane: Lane, count: int = 1) -> None:
        """So many fewer wait in a lane of the books."""
        self.books.lanes.remove(lane, self.now_ms, count)
        self._count(lane, -count)

    def _count(self, lane: Lane, more: int) -> None:
        if lane.key.is_shared:
            self.more[lane.id] += more
            self.news.lanes.add(lane.id)

    def count_elsewhere(self, lane_id: int, more: int) -> None:
        """So many more wait in a lane that is not in the books."""
        self.more[lane_id] += more
        self.news.lanes.add(lane_id)

    def leave_lines(self, request_id: int, budgets: tuple[int, ...]) -> None:
        """A request waits no more for money of these budgets: who came behind it may go on."""
        left = [
            account.id for account in self.accounts_of(budgets)
            if account.line and account.leave_line(request_id)
        ]  # fmt: skip
        self.moved(left)

    def moved(self, accounts: Sequence[int]) -> None:
        """In these accounts' lines somebody gave up their place."""
        if accounts:
            self.news.moved.update(accounts)
            self.books.lanes.wake_behind(accounts, self.now_ms)

    # Apply

    def write(self) -> None:
        """Write requests, lanes' rows, reservations and answers, so that they can be read again."""
        self.write_waiting()
        self.write_ended()

    def write_waiting(self) -> None:
        """Write as much as whoever looks for those that wait has to see."""
        db, books = self.db, self.books
        if self.new_lanes:
            db.write_many(_NEW_LANES, [lane_row(books.worker_id, each) for each in self.new_lanes])
            self.new_lanes = []
        if self.new:
            insert_rows(db, self.new)
            self.new = []
        update_rows(db, (row for row in self.rows.values() if not row.has_only_ended))

    def write_ended(self) -> None:
        """Write what has ended."""
        db = self.db
        update_rows(db, self.rows.values())
        db.write_many(_RESERVATIONS, list(self.settled.values()))
        db.write_many(_RESPONSES, self.responses)
        self.settled, self.responses = {}, []

    def finish(self) -> None:
        """Write all that is left. How this process's lanes are doing waits for its next turn."""
        self.write()
        self.ahead.write()
        self._write_accounts()
        self.db.write_many(_MORE_WAITING, [(n, n, id_) for id_, n in self.more.items() if n])
        self.more.clear()
        self.db.write_many(_TALLIES, [(*key, n) for key, n in self.tallies.items() if n])
        self.tallies.clear()
        self.spent.write(self.db)
        self.save()
        drop_old = changes.tell(self.db, self.books, self.news)
        self.hear()
        drop_old()
        self.books.saw(self.accounts, self.now_ms)

    def _write_accounts(self) -> None:
        slots, lines = [], []
        for budget_id, accounts in self.accounts.items():
            for account in accounts:
                changed = account.take_changed()
                if changed:
                    self.news.budgets.add(budget_id)
                    slots += [
                        (account.id, slot_ms, t.posted, t.reserved, t.suspense, t.overrun)
                        for slot_ms, t in changed
                    ]
                if isinstance(account.pool, StoredPool):
                    account.pool.close(account.looked_ms, account.oldest_ms)
                if account.line_changed or account.warned_changed:
                    account.line_changed = account.warned_changed = False
                    lines.append((
                        account.warned, account.warned_slot_ms, encode_line(account.line), account.id
                    ))  # fmt: skip
        self.db.write_many(_BALANCES, slots)
        self.db.write_many(_LINES, lines)

    def write_lanes(self) -> list[Lane]:
        """Write how lanes are doing; returns those that were shut or opened."""
        lanes = self.books.lanes
        changed = lanes.take_changed()
        self.db.write_many(_SHUT, [
            (None if lane.shortfall is None else encode_shortfall(lane.shortfall),
             lane.shut_since_ms, lane.parked_total_ms, lane.id)
            for lane in changed
        ])  # fmt: skip
        # Others may have put requests back meanwhile: these count besides, until it hears of them.
        for lane in lanes.take_counted():
            if not lane.key.is_shared:
                self.more[lane.id] += lane.waiting - lane.noted
                lane.noted = lane.waiting
        return changed


def begin(db: Connection, books: Books, now_ms: int) -> Sheet:
    """A sheet for a transaction; time never goes backwards in it, whatever the clock says.

    Not even when this process waited for the store while another one reserved. One
    whose clock is far ahead is not followed. An engine with a clock of its own goes by that.
    """
    newest = db.one("SELECT made_at_ms FROM reservations ORDER BY id DESC LIMIT 1")
    now_ms = max(db.now_ms(now_ms), books.now_ms)
    if newest is not None and now_ms < newest[0] <= now_ms + MAX_BEHIND_MS:
        now_ms = newest[0]
    books.now_ms = now_ms
    return Sheet(db, books, now_ms)


def lane_row(worker_id: int, lane: Lane) -> tuple[object, ...]:
    """A lane as it is stored."""
    key = lane.key
    owner = 0 if key.is_shared else worker_id
    return (
        lane.id, owner, key.provider, encode_budgets(key.budgets), key.priority, int(key.may_wait),
        key.model, key.service, key.tenant, int(key.is_due),
    )  # fmt: skip


def encode_line(line: Sequence[Waiter]) -> str | None:
    """Who is in line at an account; None: nobody. One alone as programs before wrote it."""
    rows = [
        [each.priority, each.request_id, each.need, each.bypassed, each.since_ms, each.left,
         each.away_until_ms, each.due_at_ms, each.turn]
        for each in line
    ]  # fmt: skip
    if not rows:
        return None
    rows = [row[:7] if row[7:] == [FAR, 0] else row for row in rows]
    return json.dumps(rows[0][:5] if len(rows) == 1 and rows[0][5:] == [None, 0] else rows)


def decode_line(text: str | None) -> list[Waiter]:
    """Who `encode_line` wrote."""
    if text is None:
        return []
    rows = json.loads(text)
    return [Waiter(*row) for row in (rows if isinstance(rows[0], list) else [rows])]
