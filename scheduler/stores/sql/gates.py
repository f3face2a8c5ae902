"""What the processes that share a file know together of providers' limits, pauses and credit."""

from __future__ import annotations

import json
import sqlite3

from scheduler.guards.plain import logger_of
from scheduler.limits import Front, Gate, Gates, GateStatus
from scheduler.limits.meter import COUNTING, Limits

logger = logger_of("scheduler.sqlite")


def load_gates(db: sqlite3.Connection, gates: Gates, now_ms: int) -> None:
    """Take over what others wrote since this process last wrote or read."""
    if not gates.has_rules:
        return
    for provider, model, is_front, version, state in db.execute(
        "SELECT provider, model, is_front, version, state FROM gates"
    ):
        gate = gates.find(provider, model, bool(is_front))
        if gate is None or gate.version == version:
            continue
        is_first, gate.version = not gate.version, version
        try:
            gate.load(json.loads(state), now_ms)
        except (ValueError, TypeError, LookupError):  # advice only: it is learned again
            logger.warning("what was known of the limits of %s %s cannot be read", provider, model)
        if is_first and gate.closed is not None:
            # Whoever starts anew may have paid the provider's bill, or mended the network.
            gate.closed.hurry()
            gate.is_dirty = True


def save_gates(db: sqlite3.Connection, gates: Gates) -> None:
    """Write what others should know."""
    changed = [gate for gate in gates if gate.is_dirty]
    for gate in changed:
        gate.version, gate.is_dirty = gate.version + 1, False
    db.executemany(
        "INSERT OR REPLACE INTO gates VALUES (?, ?, ?, ?, ?)",
        [
            (gate.provider, gate.model, gate.is_front, gate.version, json.dumps(gate.dump()))
            for gate in changed
        ],
    )


def statuses(db: sqlite3.Connection, now_ms: int) -> list[GateStatus]:
    """What the stored gates hold back now; for those who only look."""
    found = []
    for provider, model, is_front, state in db.execute(
        "SELECT provider, model, is_front, state FROM gates ORDER BY provider, model"
    ):
        counting, limits = COUNTING["default"], Limits()
        gate = (
            Front(provider, counting, limits)
            if is_front
            else Gate(provider, model, counting, limits, 1, is_known=True)
        )
        try:
            gate.load(json.loads(state), now_ms, as_it_is=True)
        except (ValueError, TypeError, LookupError):
            continue
        found.append(gate.status(now_ms))
    return [status for status in found if status is not None]
