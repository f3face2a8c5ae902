"""Balances recomputed from the reservations, and from what pruned ones posted."""

from __future__ import annotations

import json
from collections.abc import Iterable

from scheduler.ledger.account import Account, Tally, cost_in
from scheduler.stores.sql.codec import decode_budgets
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.spent import MINUTE_MS


def replay(db: Connection, accounts: Iterable[Account]) -> int:
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
    return count + _replay_sums(db, by_budget)


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
