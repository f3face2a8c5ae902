"""What is noted beside queue and ledger: prices of the user's own, what reached its file, and
what others of this package keep here.
"""  # noqa: D205

from __future__ import annotations

from collections.abc import Sequence

from scheduler.guards.texts import words
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, Update

_DELIVERED = Update("requests", "is_delivered = 1", "id = :id", {"id": INT})


def prices(db: Connection) -> dict[str, str]:
    """`Store.prices`."""
    return dict(db.read("SELECT model, price FROM prices"))


def set_price(db: Connection, model: str, price: str | None) -> None:
    """`Store.set_price`."""
    if price is None:
        db.write("DELETE FROM prices WHERE model = ?", model)
    else:
        db.write(
            "INSERT INTO prices (model, price) VALUES (?, ?)"
            " ON CONFLICT (model) DO UPDATE SET price = excluded.price",
            model, price,
        )  # fmt: skip


def delivered(db: Connection, ids: Sequence[int]) -> None:
    """`Store.delivered`."""
    db.write_many(_DELIVERED, [(each,) for each in dict.fromkeys(ids)])


def notes(db: Connection, kind: str) -> dict[str, str]:
    """`Store.notes`."""
    return dict(db.read("SELECT name, said FROM notes WHERE kind = ? ORDER BY name", kind))


def note(db: Connection, kind: str, name: str, text: str | None, only_new: bool) -> bool:
    """`Store.note`."""
    before = db.read("SELECT said FROM notes WHERE kind = ? AND name = ?", kind, name)
    if text is None:
        db.write("DELETE FROM notes WHERE kind = ? AND name = ?", kind, name)
        return bool(before)
    said = db.dialect.told(words(text))
    if before and (only_new or before[0][0] == said):
        return False
    db.write(
        "INSERT INTO notes (kind, name, said) VALUES (?, ?, ?)"
        " ON CONFLICT (kind, name) DO UPDATE SET said = excluded.said",
        kind, name, said,
    )  # fmt: skip
    return True
