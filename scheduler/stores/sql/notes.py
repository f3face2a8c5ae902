"""What is noted beside queue and ledger: prices of the user's own, and what reached its file."""

from __future__ import annotations

from collections.abc import Sequence

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
