"""What hooks are to be told, in rows; see `scheduler.stores.outbox`.

What was told stays, without its text, so that it is not told again: a row for each threshold of each
window. What is older than a year is dropped. Whatever is armed is a row of no hook, that is never due.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from scheduler.stores.outbox import News
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, TEXT, Insert, Update

KEPT_MS = 400 * 86_400_000
_ADD = Insert(
    "outbox",
    {"hook": TEXT, "topic": TEXT, "event": TEXT, "made_at_ms": INT, "due_at_ms": INT},
    "ON CONFLICT (hook, topic) DO NOTHING",
)
_TAKE = Update(
    "outbox", "due_at_ms = :due_at_ms, tries = tries + 1", "id = :id", {"due_at_ms": INT, "id": INT}
)
DUE = "SELECT 1 FROM outbox WHERE due_at_ms <= ? LIMIT 1"


def announce(db: Connection, news: Sequence[News], now_ms: int) -> None:
    """`Store.announce`."""
    rows = {(each.hook, each.topic): each.event for each in news}
    db.write_many(_ADD, [(*key, event, now_ms, now_ms) for key, event in rows.items()])


def is_any_due(db: Connection, now_ms: int) -> bool:
    """Whether anything is to be told; asked before anybody is kept from writing."""
    return db.one(DUE, now_ms) is not None


def take_news(
    db: Connection, hooks: Collection[str], now_ms: int, lease_ms: int, limit: int
) -> list[News]:
    """`Store.take_news`."""
    rows = db.read(
        "SELECT hook, topic, event, id, tries + 1, made_at_ms FROM outbox WHERE due_at_ms <= ?"
        f" AND hook {db.dialect.among} ORDER BY due_at_ms, id LIMIT ?",
        now_ms, db.dialect.a_list(sorted(hooks)), limit,
    )  # fmt: skip
    taken = [News(*row) for row in rows]
    db.write_many(_TAKE, [(now_ms + lease_ms, each.id) for each in taken])
    return taken


def told_news(db: Connection, id: int, now_ms: int, again_at_ms: int | None) -> None:
    """`Store.told_news`."""
    if again_at_ms is not None:
        db.write("UPDATE outbox SET due_at_ms = ? WHERE id = ?", again_at_ms, id)
        return
    db.write("UPDATE outbox SET due_at_ms = NULL, event = NULL WHERE id = ?", id)
    db.write(
        "DELETE FROM outbox WHERE due_at_ms IS NULL AND hook <> '' AND made_at_ms < ?",
        now_ms - KEPT_MS,
    )


def arm(db: Connection, topics: Collection[str], now_ms: int) -> None:
    """`Store.arm`."""
    db.write_many(_ADD, [("", topic, None, now_ms, None) for topic in sorted(set(topics))])


def armed(db: Connection) -> set[str]:
    """`Store.armed`."""
    return {topic for (topic,) in db.read("SELECT topic FROM outbox WHERE hook = ''")}


def fire(db: Connection, topic: str, news: Sequence[News], now_ms: int) -> bool:
    """`Store.fire`."""
    row = db.one("SELECT id FROM outbox WHERE hook = '' AND topic = ?", topic)
    if row is None:
        return False
    db.write("DELETE FROM outbox WHERE id = ?", row[0])
    announce(db, news, now_ms)
    return True
