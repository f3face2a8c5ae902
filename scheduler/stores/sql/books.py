"""Accounts and budgets in a SQLite file: what a transaction reads, changes and writes back.

Balances are read anew in every transaction and written in the same one.
"""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from scheduler.budget import Budget, Cap, Window, parse_caps
from scheduler.errors import BudgetUnknown
from scheduler.ledger.account import Account, Tally, Waiter, cost_in
from scheduler.stats import BudgetStatus
from scheduler.stores.lanes import Lanes
from scheduler.stores.sql.codec import (
    decode_budget,
    decode_budgets,
    encode_budget,
    was_removed,
)
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.spent import MINUTE_MS, Spent, counting_since_ms, recount
from scheduler.stores.views import budget_status, check_childless

MAX_BEHIND_MS = 60_000  # clocks of processes that share a file differ by less
REFRESHED = 200  # budgets looked at again when other processes have written


class _Definition(NamedTuple):
    """A budget as it is stored, and read."""

    text: str
    budget: Budget
    is_removed: bool


class Books:
    """The accounts of one file, as one transaction sees them.

    `db` is in autocommit mode; the caller opens and commits the transaction.
    """

    def __init__(self) -> None:
        self.lanes = Lanes()
        self.spent = Spent()
        self.statuses: dict[int, BudgetStatus] = {}  # as of the last transaction
        self._definitions: dict[int, _Definition] = {}  # by budget, as last heard of
        self._caps: dict[int, tuple[str, Cap]] = {}  # by account: as stored, and read
        self._windows: dict[Window, Window] = {}  # one of each: they remember their boundaries
        self._stalest: deque[int] = deque()  # budgets, the one looked at longest ago first
        self._db: sqlite3.Connection
        self._now_ms = 0
        self._accounts: dict[int, list[Account]] = {}  # by budget, as read in this transaction

    def _begin(self, db: sqlite3.Connection, now_ms: int) -> int:
        """Forget what was read before; time never goes backwards, whatever the clock says.

        Not even when this process waited for the file while another one reserved. One
        whose clock is far ahead is not followed.
        """
        self._db = db
        self._accounts = {}
        self.spent.clear()
        now_ms = max(now_ms, self._now_ms)
        newest = db.execute(
            "SELECT made_at_ms FROM reservations ORDER BY id DESC LIMIT 1"
        ).fetchone()
        if newest is not None and now_ms < newest[0] <= now_ms + MAX_BEHIND_MS:
            now_ms = newest[0]
        self._now_ms = now_ms
        return now_ms

    # Accounts

    def cap_of(self, account_id: int, text: str) -> Cap:
        """A stored cap, read anew only if it was changed."""
        known = self._caps.get(account_id)
        if known is None or known[0] != text:
            cap = parse_caps(text)[0]
            cap = replace(cap, window=self._windows.setdefault(cap.window, cap.window))
            known = self._caps[account_id] = (text, cap)
        return known[1]

    def _accounts_of(self, budgets: tuple[int, ...]) -> list[Account]:
        if len(budgets) == 1:
            return self._accounts.get(budgets[0]) or self._read_accounts(budgets[0])
        return [
            account
            for each in budgets
            for account in self._accounts.get(each) or self._read_accounts(each)
        ]

    def _read_accounts(self, budget_id: int) -> list[Account]:
        accounts = []
        for account_id, name, is_paused, cap, warned, warned_slot_ms, waiter in self._db.execute(
            "SELECT a.id, b.name, b.is_paused, a.cap, a.warned, a.warned_slot_ms, a.waiter"
            " FROM accounts a JOIN budgets b ON b.id = a.budget_id"
            " WHERE a.budget_id = ? ORDER BY a.position",
            (budget_id,),
        ).fetchall():
            account = Account(
                account_id, budget_id, name, self.cap_of(account_id, cap), bool(is_paused)
            )
            account.warned, account.warned_slot_ms = warned, warned_slot_ms
            account.line = decode_line(waiter)
            for slot_ms, *sums in self._db.execute(
                "SELECT slot_ms, posted, reserved, suspense, overrun FROM balances"
                " WHERE account_id = ? AND slot_ms >= ?",
                (account_id, account.cap.window.oldest_counting_ms(self._now_ms)),
            ):
                account.slots[slot_ms] = Tally(*sums)
            account.look(self._now_ms)
            accounts.append(account)
        self._accounts[budget_id] = accounts
        return accounts

    def _load_slot(self, account: Account, slot_ms: int) -> None:
        """Read a slot that no longer counts but still has calls under way."""
        if slot_ms in account.slots or slot_ms >= account.oldest_ms:
            return
        row = self._db.execute(
            "SELECT posted, reserved, suspense, overrun FROM balances"
            " WHERE account_id = ? AND slot_ms = ?",
            (account.id, slot_ms),
        ).fetchone()
        account.slots[slot_ms] = Tally(*(row or ()))

    @staticmethod
    def load_all_slots(db: sqlite3.Connection, account: Account) -> None:
        """Read every slot of an account, whether it counts or not."""
        for slot_ms, *sums in db.execute(
            "SELECT slot_ms, posted, reserved, suspense, overrun FROM balances WHERE account_id = ?",
            (account.id,),
        ):
            account.slots[slot_ms] = Tally(*sums)

    def _write_accounts(self) -> None:
        for accounts in self._accounts.values():
            for account in accounts:
                changed = account.take_changed()
                if changed:
                    self._db.executemany(
                        "INSERT OR REPLACE INTO balances VALUES (?, ?, ?, ?, ?, ?)",
                        [
                            (account.id, slot_ms, t.posted, t.reserved, t.suspense, t.overrun)
                            for slot_ms, t in changed
                        ],
                    )
                if account.line_changed or account.warned_changed:
                    account.line_changed = account.warned_changed = False
                    self._db.execute(
                        "UPDATE accounts SET warned = ?, warned_slot_ms = ?, waiter = ? WHERE id = ?",
                        (
                            account.warned, account.warned_slot_ms, encode_line(account.line),
                            account.id,
                        ),
                    )  # fmt: skip

    # Budgets

    def define(self, db: sqlite3.Connection, budgets: Sequence[Budget], now_ms: int) -> None:
        """`Store.define`."""
        now_ms = self._begin(db, now_ms)
        for budget in budgets:
            row = db.execute(
                "SELECT id, is_paused FROM budgets WHERE name = ?", (budget.name,)
            ).fetchone()
            definition = encode_budget(budget)
            if row is None:
                (budget_id,) = db.execute(
                    "INSERT INTO budgets (name, definition) VALUES (?, ?) RETURNING id",
                    (budget.name, definition),
                ).fetchone()
            else:
                budget_id = row[0]
                self._write_definition(budget_id, definition)
            self._define_accounts(budget_id, budget, is_new=row is None)
            self._definitions[budget_id] = _Definition(definition, budget, False)
            self._defined(budget_id, budget, bool(row and row[1]), now_ms)

    def remove(self, db: sqlite3.Connection, name: str, now_ms: int) -> None:
        """`Store.remove`: its accounts lose their limits, so whoever still draws on it goes on."""
        now_ms = self._begin(db, now_ms)
        found = db.execute("SELECT id, definition FROM budgets WHERE name = ?", (name,)).fetchone()
        known = None if found is None else self._definition(found[0], name, found[1])
        if known is None or known.is_removed:
            raise BudgetUnknown(name, self._names())
        check_childless(name, [
            child for child_id, child, text in db.execute(
                "SELECT id, name, definition FROM budgets"
                " WHERE json_extract(definition, '$.parent') = ?", (name,)
            ).fetchall()
            if not self._definition(child_id, child, text).is_removed
        ])  # fmt: skip
        budget_id, budget = found[0], known.budget.with_limit(None)
        definition = encode_budget(budget, is_removed=True)
        self._write_definition(budget_id, definition)
        db.execute("UPDATE budgets SET is_paused = 0 WHERE id = ?", (budget_id,))
        self._define_accounts(budget_id, budget, is_new=False)
        self._definitions[budget_id] = _Definition(definition, budget, True)
        self._accounts.pop(budget_id, None)
        self.statuses.pop(budget_id, None)
        self.lanes.wake_on(budget_id, now_ms)

    def _write_definition(self, budget_id: int, definition: str) -> None:
        self._db.execute("UPDATE budgets SET definition = ? WHERE id = ?", (definition, budget_id))

    def _defined(self, budget_id: int, budget: Budget, paused: bool, now_ms: int) -> None:
        """Look at one that was changed, and let others look again."""
        accounts = self._read_accounts(budget_id)
        self._note(budget_status(budget_id, budget, paused, accounts, now_ms))
        self.lanes.wake_on(budget_id, now_ms)

    def _note(self, status: BudgetStatus) -> None:
        if status.id not in self.statuses:
            self._stalest.append(status.id)
        self.statuses[status.id] = status

    def _definition(self, budget_id: int, name: str, text: str) -> _Definition:
        """A stored definition, read anew only if it was changed."""
        known = self._definitions.get(budget_id)
        if known is None or known.text != text:
            known = _Definition(text, decode_budget(name, text), was_removed(text))
            self._definitions[budget_id] = known
        return known

    def _names(self) -> tuple[str, ...]:
        """Names of all budgets, in the order they were defined."""
        return tuple(
            name for budget_id, name, text in self._db.execute(
                "SELECT id, name, definition FROM budgets ORDER BY id"
            ).fetchall()
            if not self._definition(budget_id, name, text).is_removed
        )  # fmt: skip

    def defined(self, db: sqlite3.Connection, names: Iterable[str]) -> list[tuple[int, Budget]]:
        """`Store.defined`; writes nothing."""
        rows = db.execute(
            "SELECT id, name, definition FROM budgets"
            " WHERE name IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps(list(names)),),
        ).fetchall()
        found = [(row[0], self._definition(*row)) for row in rows]
        return [(each, known.budget) for each, known in found if not known.is_removed]

    def redefined(
        self, db: sqlite3.Connection, now_ms: int
    ) -> tuple[list[tuple[int, Budget]], list[str]]:
        """`Store.redefined`: of budgets that are as they were it reads no more than their text.

        It also looks at some of all balances for what others spent; in time all have their turn.
        """
        now_ms = self._begin(db, now_ms)
        changed: list[tuple[int, Budget]] = []
        removed: list[str] = []
        paused: dict[int, bool] = {}
        for budget_id, name, text, is_paused in db.execute(
            "SELECT id, name, definition, is_paused FROM budgets"
        ):
            paused[budget_id] = bool(is_paused)
            old = self._definitions.get(budget_id)
            if old is not None and old.text == text:
                continue
            new = self._definition(budget_id, name, text)
            if not new.is_removed:
                changed.append((budget_id, new.budget))
            elif old is None or not old.is_removed:
                removed.append(name)
                self.statuses.pop(budget_id, None)
        again = [self._stalest.popleft() for _ in range(min(REFRESHED, len(self._stalest)))]
        again = [each for each in again if each in self.statuses]
        self._stalest += again
        for budget_id in {*again, *(each for each, _ in changed)}:
            budget, accounts = self._definitions[budget_id].budget, self._read_accounts(budget_id)
            self._note(budget_status(budget_id, budget, paused[budget_id], accounts, now_ms))
        return changed, removed

    def _define_accounts(self, budget_id: int, budget: Budget, is_new: bool) -> None:
        """Keep the account of every cap whose window stays; count anew for the others."""
        db = self._db
        kept = {}
        for account_id, text in db.execute(
            "SELECT id, cap FROM accounts WHERE budget_id = ?", (budget_id,)
        ).fetchall():
            cap = self.cap_of(account_id, text)
            kept[cap.unit, cap.window] = account_id
        for position, cap in enumerate(budget.caps):
            account_id = kept.pop((cap.unit, cap.window), None)
            if account_id is not None:
                db.execute(
                    "UPDATE accounts SET cap = ?, position = ? WHERE id = ?",
                    (str(cap), position, account_id),
                )
                continue
            (account_id,) = db.execute(
                "INSERT INTO accounts (budget_id, position, cap) VALUES (?, ?, ?) RETURNING id",
                (budget_id, position, str(cap)),
            ).fetchone()
            if is_new:
                continue  # nothing was reserved in it
            fresh = Account(account_id, budget_id, budget.name, cap)
            recount(db, fresh, counting_since_ms(db, cap.window, self._now_ms))
            db.executemany(
                "INSERT INTO balances VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (account_id, slot_ms, t.posted, t.reserved, t.suspense, t.overrun)
                    for slot_ms, t in fresh.slots.items()
                ],
            )
        for account_id in kept.values():
            db.execute("DELETE FROM balances WHERE account_id = ?", (account_id,))
            db.execute("DELETE FROM accounts WHERE id = ?", (account_id,))
            self._caps.pop(account_id, None)

    def replay(self, db: Connection, accounts: Iterable[Account]) -> int:
        """Recompute accounts' slots from all reservations; returns how many there are."""
        by_budget: dict[int, list[Account]] = {}
        for account in accounts:
            by_budget.setdefault(account.budget_id, []).append(account)
        count = 0
        for text, state, made_at_ms, nusd, tokens, cost_nusd, cost_tokens in db.scan(
            "SELECT budgets, state, made_at_ms, ceiling_nusd, ceiling_tokens, nusd, tokens"
            " FROM reservations"
        ):
            count += 1
            if state == "voided":
                continue
            for budget_id in decode_budgets(text):
                for account in by_budget.get(budget_id, ()):
                    slot_ms = account.cap.window.slot_start_ms(made_at_ms)
                    tally = account.slots.setdefault(slot_ms, Tally())
                    held = (nusd, tokens, 1)[account.index]
                    if state == "posted":
                        cost = cost_in(account.index, cost_nusd, cost_tokens)
                        tally.posted += cost
                        tally.overrun += max(0, cost - held)
                    else:
                        tally.reserved += held
                        tally.suspense += held if state == "suspense" else 0
        return count + self._replay_sums(db, by_budget)

    @staticmethod
    def _replay_sums(db: Connection, by_budget: dict[int, list[Account]]) -> int:
        """Add what pruned reservations posted; returns how many attempts that were.

        A window defined since counts a sum in its minute's last slot, so that it counts
        rather longer than not.
        """
        count = 0
        for minute_ms, budgets, text, *posted in db.scan(
            "SELECT minute_ms, budgets, slots, nusd, tokens, attempts FROM sums"
        ):
            count += posted[2]
            slots = json.loads(text)
            for budget_id in decode_budgets(budgets):
                for account in by_budget.get(budget_id, ()):
                    slot_ms = slots.get(str(account.id))
                    if slot_ms is None:
                        slot_ms = account.cap.window.slot_start_ms(minute_ms + MINUTE_MS - 1)
                    account.slots.setdefault(slot_ms, Tally()).posted += posted[account.index]
        return count

    def slots_of(
        self, db: sqlite3.Connection, budgets: tuple[int, ...], made_at_ms: int
    ) -> dict[int, int]:
        """The slot in which each of these budgets' accounts counts a reservation."""
        return {
            account_id: self.cap_of(account_id, cap).window.slot_start_ms(made_at_ms)
            for budget_id in budgets
            for account_id, cap in db.execute(
                "SELECT id, cap FROM accounts WHERE budget_id = ? ORDER BY id", (budget_id,)
            )
        }

    def oldest_counting(self, db: sqlite3.Connection, now_ms: int) -> list[tuple[int, int]]:
        """Every account's id, and the oldest slot that still counts in it."""
        return [
            (account_id, self.cap_of(account_id, cap).window.oldest_counting_ms(now_ms))
            for account_id, cap in db.execute("SELECT id, cap FROM accounts").fetchall()
        ]

    def pause(self, db: sqlite3.Connection, name: str, paused: bool, now_ms: int) -> None:
        """`Store.pause`."""
        now_ms = self._begin(db, now_ms)
        found = db.execute("SELECT id, definition FROM budgets WHERE name = ?", (name,)).fetchone()
        known = None if found is None else self._definition(found[0], name, found[1])
        if known is None or known.is_removed:
            raise BudgetUnknown(name, self._names())
        db.execute("UPDATE budgets SET is_paused = ? WHERE id = ?", (paused, found[0]))
        self._defined(found[0], known.budget, paused, now_ms)

    def read_budgets(self, db: sqlite3.Connection, now_ms: int) -> list[BudgetStatus]:
        """`Store.budgets`; writes nothing."""
        now_ms = self._begin(db, now_ms)
        found = []
        for budget_id, name, definition, is_paused in db.execute(
            "SELECT id, name, definition, is_paused FROM budgets ORDER BY id"
        ).fetchall():
            known = self._definition(budget_id, name, definition)
            if not known.is_removed:
                accounts = self._read_accounts(budget_id)
                found.append(
                    budget_status(budget_id, known.budget, bool(is_paused), accounts, now_ms)
                )
        self.statuses = {status.id: status for status in found}
        self._stalest = deque(self.statuses)
        return found


def encode_line(line: Sequence[Waiter]) -> str | None:
    """Who is in line at an account; None: nobody. One alone as programs before wrote it."""
    rows = [
        [each.priority, each.request_id, each.need, each.bypassed, each.since_ms, each.left,
         each.away_until_ms]
        for each in line
    ]  # fmt: skip
    if not rows:
        return None
    return json.dumps(rows[0][:5] if len(rows) == 1 and rows[0][5:] == [None, 0] else rows)


def decode_line(text: str | None) -> list[Waiter]:
    """Who `encode_line` wrote."""
    if text is None:
        return []
    rows = json.loads(text)
    return [Waiter(*row) for row in (rows if isinstance(rows[0], list) else [rows])]


def rows_of_keys(
    db: sqlite3.Connection, columns: str, job_id: int, keys: Sequence[str]
) -> list[tuple[Any, ...]]:
    """Columns of the requests that a job has under these keys."""
    # SQLite's JSON ends a text at a NUL: such names are asked for one by one.
    odd = [key for key in keys if "\0" in key]
    plain = json.dumps([key for key in keys if "\0" not in key])
    select = f"SELECT {columns} FROM requests WHERE job_id = ? AND key"
    found = db.execute(f"{select} IN (SELECT value FROM json_each(?))", (job_id, plain)).fetchall()
    for key in odd:
        found += db.execute(f"{select} = ?", (job_id, key)).fetchall()
    return found
