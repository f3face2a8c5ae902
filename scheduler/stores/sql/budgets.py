"""Budgets in the store: what is defined, changed and removed, and how they are doing.

What is done to some of them reads and writes theirs, set-wise, however many others there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.budget import Budget
from scheduler.errors import BudgetUnknown
from scheduler.ledger.account import Account
from scheduler.stats import BudgetStatus
from scheduler.stores.sql import changes
from scheduler.stores.sql.books import Books, Definition
from scheduler.stores.sql.codec import encode_budget
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, TEXT, Delete, Insert, Update
from scheduler.stores.sql.sheet import Sheet
from scheduler.stores.sql.spent import Recount
from scheduler.stores.views import budget_status, check_childless, risk_of

_DEFINITIONS = Insert(
    "budgets", {"name": TEXT, "definition": TEXT},
    "ON CONFLICT (name) DO UPDATE SET definition = excluded.definition",
)  # fmt: skip
_NEW_ACCOUNTS = Insert(
    "accounts", {"id": INT, "budget_id": INT, "position": INT, "cap": TEXT, "risk": TEXT}
)
_CAPS = Update(
    "accounts", "cap = :cap, position = :position, risk = :risk", "id = :id",
    {"cap": TEXT, "position": INT, "risk": TEXT, "id": INT},
)  # fmt: skip
_BALANCES = Insert(
    "balances",
    {"account_id": INT, "slot_ms": INT, "posted": INT, "reserved": INT, "suspense": INT,
     "overrun": INT},
)  # fmt: skip
_NO_BALANCES = Delete("balances", "account_id = :account_id", {"account_id": INT})
_NO_ACCOUNTS = Delete("accounts", "id = :id", {"id": INT})


@dataclass(slots=True)
class Stored:
    """A budget's row."""

    id: int
    name: str
    text: str
    is_paused: bool


def read_stored(db: Connection, names: Iterable[str] | None = None) -> list[Stored]:
    """The rows of these budgets, or of all, in the order in which they were defined."""
    columns = "SELECT id, name, definition, is_paused FROM budgets"
    if names is None:
        rows = db.read(f"{columns} ORDER BY id")
    else:
        wanted = list(names)
        plain = db.dialect.a_list(name for name in wanted if "\0" not in name)
        rows = db.read(f"{columns} WHERE name {db.dialect.among} ORDER BY id", plain)
        for name in wanted:
            if "\0" in name and db.dialect.takes_nul:
                rows += db.read(f"{columns} WHERE name = ?", name)
    return [Stored(id_, name, text, bool(paused)) for id_, name, text, paused in rows]


def _definition(books: Books, stored: Stored) -> Definition:
    return books.definition(stored.id, stored.name, stored.text)


def is_all_the_same(db: Connection, books: Books, budgets: Sequence[Budget]) -> bool:
    """Whether all of these are defined so, and known here: then there is nothing to write."""
    stored = {each.name: each for each in read_stored(db, (each.name for each in budgets))}
    for budget in budgets:
        known = stored.get(budget.name)
        if known is None or known.text != encode_budget(budget):
            return False
    ids = [each.id for each in stored.values()]
    return len(books.statuses(ids)) == len(ids)


def define(sheet: Sheet, budgets: Sequence[Budget]) -> None:
    """`Store.define`."""
    db, books = sheet.db, sheet.books
    last = {budget.name: budget for budget in budgets}
    texts = {name: encode_budget(budget) for name, budget in last.items()}
    old = {each.name: each for each in read_stored(db, last)}
    changed = [name for name in last if name not in old or old[name].text != texts[name]]
    db.write_many(_DEFINITIONS, [(name, texts[name]) for name in changed])
    stored = {each.name: each for each in read_stored(db, last)}
    wanted = {stored[name].id: last[name] for name in changed}
    _define_accounts(sheet, wanted, {stored[name].id for name in changed if name not in old})
    sheet.load(each.id for each in stored.values())
    for each in stored.values():
        budget = last[each.name]
        books.definitions[each.id] = Definition(each.text, budget, False)
        _note(sheet, each.id, budget, each.is_paused)
        if each.id in wanted:
            _tell(sheet, each.id)


def _note(sheet: Sheet, budget_id: int, budget: Budget, is_paused: bool) -> None:
    """Look at one budget; its accounts have been read."""
    if not sheet.books.statuses([budget_id]):
        sheet.books.stalest.append(budget_id)
    accounts = sheet.accounts_of((budget_id,))
    sheet.books.note(budget_status(budget_id, budget, is_paused, accounts, sheet.now_ms))


def _tell(sheet: Sheet, budget_id: int) -> None:
    """Let those look again who draw on a budget that was changed, here and elsewhere."""
    sheet.books.lanes.wake_on(budget_id, sheet.now_ms)
    sheet.news.defined.add(budget_id)


def _define_accounts(sheet: Sheet, budgets: Mapping[int, Budget], new: set[int]) -> None:
    """Keep the account of every cap whose window stays; count anew for the others."""
    db, books = sheet.db, sheet.books
    kept: dict[int, dict[tuple[object, object], int]] = {each: {} for each in budgets}
    for account_id, budget_id, text in db.read(
        f"SELECT id, budget_id, cap FROM accounts WHERE budget_id {db.dialect.among}",
        db.dialect.a_list(budgets),
    ):
        cap = books.cap_of(account_id, text)
        kept[budget_id][cap.unit, cap.window] = account_id
    caps, made = [], []
    for budget_id, budget in budgets.items():
        for position, cap in enumerate(budget.caps):
            account_id = kept[budget_id].pop((cap.unit, cap.window), None)
            if account_id is not None:
                caps.append((str(cap), position, risk_of(cap, budget), account_id))
            else:
                made.append((budget_id, position, cap))
    db.write_many(_CAPS, caps)
    ids = db.new_ids("accounts", len(made)) if made else ()
    db.write_many(_NEW_ACCOUNTS, [
        (id_, budget_id, position, str(cap), risk_of(cap, budgets[budget_id]))
        for id_, (budget_id, position, cap) in zip(ids, made, strict=True)
    ])  # fmt: skip
    fresh = [
        Account(id_, budget_id, budgets[budget_id].name, cap)
        for id_, (budget_id, _, cap) in zip(ids, made, strict=True)
        if budget_id not in new  # in a new budget nothing was reserved
    ]
    if fresh:
        Recount(db, fresh, sheet.now_ms).run()
        db.write_many(_BALANCES, [
            (account.id, slot_ms, t.posted, t.reserved, t.suspense, t.overrun)
            for account in fresh for slot_ms, t in account.slots.items()
        ])  # fmt: skip
    gone = [(account_id,) for caps_of in kept.values() for account_id in caps_of.values()]
    db.write_many(_NO_BALANCES, gone)
    db.write_many(_NO_ACCOUNTS, gone)


def remove(sheet: Sheet, name: str) -> None:
    """`Store.remove`: its accounts lose their limits, so whoever still draws on it goes on."""
    db, books = sheet.db, sheet.books
    stored, known = _known(sheet, name)
    children = [Stored(*row) for row in db.read(
        "SELECT id, name, definition, is_paused FROM budgets WHERE definition LIKE ? ESCAPE '!'",
        f"%{json.dumps(name)[1:-1].replace('!', '!!')}%",
    )]  # fmt: skip
    found = (each for each in children if not _definition(books, each).is_removed)
    check_childless(
        name, [each.name for each in found if _definition(books, each).budget.parent == name]
    )
    budget = known.budget.with_limit(None)
    text = encode_budget(budget, is_removed=True)
    db.write("UPDATE budgets SET definition = ?, is_paused = 0 WHERE id = ?", text, stored.id)
    _define_accounts(sheet, {stored.id: budget}, set())
    books.definitions[stored.id] = Definition(text, budget, True)
    sheet.accounts.pop(stored.id, None)
    books.drop(stored.id)
    _tell(sheet, stored.id)


def pause(sheet: Sheet, name: str, paused: bool) -> None:
    """`Store.pause`."""
    stored, known = _known(sheet, name)
    sheet.db.write("UPDATE budgets SET is_paused = ? WHERE id = ?", int(paused), stored.id)
    sheet.load([stored.id])
    _note(sheet, stored.id, known.budget, paused)
    _tell(sheet, stored.id)


def _known(sheet: Sheet, name: str) -> tuple[Stored, Definition]:
    """The budget of that name. Raises `BudgetUnknown`."""
    db, books = sheet.db, sheet.books
    for stored in read_stored(db, [name]):
        known = _definition(books, stored)
        if not known.is_removed:
            return stored, known
    names = (each.name for each in read_stored(db) if not _definition(books, each).is_removed)
    raise BudgetUnknown(name, tuple(names))


# Reading


def defined(db: Connection, books: Books, names: Iterable[str]) -> list[tuple[int, Budget]]:
    """`Store.defined`; writes nothing."""
    found = [(each.id, _definition(books, each)) for each in read_stored(db, names)]
    return [(id_, known.budget) for id_, known in found if not known.is_removed]


def redefined(sheet: Sheet) -> tuple[list[tuple[int, Budget]], list[str]]:
    """`Store.redefined`; also looks anew at balances that others changed. Writes nothing."""
    db, books = sheet.db, sheet.books
    books.definition_changes, news = changes.heard(db, books.definition_changes, books.worker_id)
    if news.is_all:
        rows = read_stored(db)
    else:
        among, ids = db.dialect.among, db.dialect.a_list(news.defined | news.budgets)
        rows = [Stored(*row) for row in db.read(
            f"SELECT id, name, definition, is_paused FROM budgets WHERE id {among} ORDER BY id", ids
        )] if news.defined or news.budgets else []  # fmt: skip
    changed: list[tuple[int, Budget]] = []
    removed: list[str] = []
    seen: list[tuple[Stored, Budget]] = []
    for stored in rows:
        old = books.definitions.get(stored.id)
        new = _definition(books, stored)
        if new.is_removed:
            if old is None or not old.is_removed:
                removed.append(stored.name)
            books.drop(stored.id)
            continue
        seen.append((stored, new.budget))
        if old is None or old.text != stored.text:
            changed.append((stored.id, new.budget))
    sheet.load(stored.id for stored, _ in seen)
    for stored, budget in seen:
        _note(sheet, stored.id, budget, bool(stored.is_paused))
    return changed, removed


def read_budgets(sheet: Sheet) -> list[BudgetStatus]:
    """`Store.budgets`; writes nothing."""
    books = sheet.books
    if not books.definition_changes:
        books.definition_changes = changes.newest(sheet.db)
    rows = [(each, _definition(books, each)) for each in read_stored(sheet.db)]
    rows = [(each, known) for each, known in rows if not known.is_removed]
    sheet.load(each.id for each, _ in rows)
    for account in (each for accounts in sheet.accounts.values() for each in accounts):
        _ = account.relief  # has who is under way read, where a risk is taken
    found = [
        budget_status(
            each.id, known.budget, each.is_paused, sheet.accounts_of((each.id,)), sheet.now_ms
        )
        for each, known in rows
    ]
    books.note_all(found)
    return found
