"""What the processes on one store know together of providers' limits, pauses and credit."""

from __future__ import annotations

import json
from collections.abc import Iterable

from scheduler.guards.plain import logger_of
from scheduler.limits import Front, Gate, GateStatus
from scheduler.limits.meter import COUNTING, Limits
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, TEXT, Insert
from scheduler.stores.sql.sheet import Sheet

logger = logger_of("scheduler.sqlite")

Name = tuple[str, str, bool]  # provider, model, and whether it is the provider's front

_GATES = Insert(
    "gates", {"provider": TEXT, "model": TEXT, "is_front": INT, "version": INT, "state": TEXT},
    "ON CONFLICT (provider, model, is_front) DO UPDATE SET version = excluded.version,"
    " state = excluded.state",
)  # fmt: skip


def know_gates(sheet: Sheet, pairs: Iterable[tuple[str, str]]) -> None:
    """Read what is known of the gates before these models, if that was not done yet."""
    books = sheet.books
    if not books.gates.has_rules:
        return
    names: list[Name] = []
    for provider, model in dict.fromkeys(pairs):
        for gate in books.gates.of(provider, model):
            name = (gate.provider, gate.model, gate.is_front)
            if name not in books.known_gates:
                books.known_gates.add(name)
                names.append(name)
    load_gates(sheet, names)


def know_fronts(sheet: Sheet, providers: Iterable[str]) -> None:
    """Read what is known of these providers, if that was not done yet."""
    books = sheet.books
    if not books.gates.has_rules:
        return
    fronts = [front for each in providers if (front := books.gates.front(each)) is not None]
    names = [(front.provider, front.model, True) for front in fronts]
    new = [name for name in names if name not in books.known_gates]
    books.known_gates.update(new)
    load_gates(sheet, new)


def load_gates(sheet: Sheet, names: Iterable[Name]) -> None:
    """Take over what others wrote of these gates since this process last wrote or read it."""
    gates, now_ms, db = sheet.books.gates, sheet.now_ms, sheet.db
    wanted = [(provider, model, int(is_front)) for provider, model, is_front in names
              if "\0" not in provider + model]  # fmt: skip
    if not wanted or not gates.has_rules:
        return
    asked = db.dialect.rows("k", {"provider": TEXT, "model": TEXT, "is_front": INT})
    for provider, model, is_front, version, state in db.read(
        f"SELECT t.provider, t.model, t.is_front, t.version, t.state FROM {asked} CROSS JOIN gates t"
        " WHERE t.provider = k.provider AND t.model = k.model AND t.is_front = k.is_front",
        *db.dialect.row_values(wanted),
    ):
        gate = gates.find(provider, model, bool(is_front))
        if gate is None or gate.version == version:
            continue
        is_first, gate.version = not gate.version, version
        was_closed = gate.closed is not None
        try:
            gate.load(json.loads(state), now_ms)
        except (ValueError, TypeError, LookupError):  # advice only: it is learned again
            logger.warning("what was known of the limits of %s %s cannot be read", provider, model)
        if is_first and gate.closed is not None:
            # Whoever starts anew may have paid the provider's bill, or mended the network.
            gate.closed.hurry()
            gate.is_dirty = True
        if was_closed:
            sheet.books.lanes.wake_for({provider}, now_ms)


def save_gates(sheet: Sheet) -> None:
    """Write what others should know."""
    changed = sheet.books.saved_gates = sheet.books.gates.take_dirty()
    for gate in changed:
        gate.version += 1
        sheet.news.gates.add((gate.provider, gate.model, gate.is_front))
    sheet.db.write_many(_GATES, [
        (gate.provider, gate.model, int(gate.is_front), gate.version, json.dumps(gate.dump()))
        for gate in changed
    ])  # fmt: skip


def statuses(db: Connection, now_ms: int) -> list[GateStatus]:
    """What the stored gates hold back now; for those who only look."""
    found = (gate.status(now_ms) for gate in _stored(db, now_ms))
    return [status for status in found if status is not None]


def rates(db: Connection, now_ms: int) -> dict[tuple[str, str], Limits]:
    """What the stored gates know of limits; for those who only look."""
    return {(gate.provider, gate.model): gate.limits for gate in _stored(db, now_ms) if gate.meters}


def _stored(db: Connection, now_ms: int) -> list[Front | Gate]:
    found: list[Front | Gate] = []
    for provider, model, is_front, state in db.read(
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
        found.append(gate)
    return found
