"""Papers in rows; see `scheduler.stores.papers`."""

from __future__ import annotations

from scheduler.guards.texts import words
from scheduler.stores.papers import Paper
from scheduler.stores.sql.connection import Connection

_COLUMNS = "kind, name, owner, said, made_at_ms, is_open"


def add(db: Connection, paper: Paper) -> bool:
    """`Store.add_paper`."""
    if find(db, paper.kind, paper.name) is not None:
        return False
    db.write(
        f"INSERT INTO papers ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
        paper.kind, paper.name, paper.owner, _told(db, paper.text), paper.made_at_ms,
        int(paper.is_open),
    )  # fmt: skip
    return True


def find(db: Connection, kind: str, name: str) -> Paper | None:
    """`Store.paper`."""
    rows = db.read(f"SELECT {_COLUMNS} FROM papers WHERE kind = ? AND name = ?", kind, name)
    return _paper(rows[0]) if rows else None


def change(db: Connection, before: Paper, text: str, is_open: bool) -> bool:
    """`Store.change_paper`."""
    now = find(db, before.kind, before.name)
    if now is None or (now.text, now.is_open) != (before.text, before.is_open):
        return False
    db.write(
        "UPDATE papers SET said = ?, is_open = ? WHERE kind = ? AND name = ?",
        _told(db, text), int(is_open), before.kind, before.name,
    )  # fmt: skip
    return True


def listed(
    db: Connection, kind: str, owner: str, limit: int, after: str | None, newest_first: bool
) -> list[Paper]:
    """`Store.papers`."""
    behind, values = "", list[object]()
    if after is not None:
        at = find(db, kind, after)
        if at is None:
            return []
        behind = f" AND (made_at_ms, name) {'<' if newest_first else '>'} (?, ?)"
        values = [at.made_at_ms, at.name]
    way = "DESC" if newest_first else "ASC"
    rows = db.read(
        f"SELECT {_COLUMNS} FROM papers WHERE kind = ? AND owner = ?{behind}"
        f" ORDER BY made_at_ms {way}, name {way} LIMIT ?",
        kind, owner, *values, limit,
    )  # fmt: skip
    return [_paper(row) for row in rows]


def still_open(db: Connection, kind: str) -> list[Paper]:
    """`Store.open_papers`."""
    rows = db.read(
        f"SELECT {_COLUMNS} FROM papers WHERE is_open = 1 AND kind = ? ORDER BY made_at_ms, name",
        kind,
    )
    return [_paper(row) for row in rows]


def remove(db: Connection, kind: str, name: str) -> bool:
    """`Store.remove_paper`."""
    was_there = find(db, kind, name) is not None
    db.write("DELETE FROM papers WHERE kind = ? AND name = ?", kind, name)
    db.write("DELETE FROM pages WHERE kind = ? AND name = ?", kind, name)
    return was_there


def write_page(db: Connection, kind: str, name: str, number: int, text: str) -> None:
    """`Store.write_page`."""
    db.write(
        "INSERT INTO pages (kind, name, number, said) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (kind, name, number) DO UPDATE SET said = excluded.said",
        kind, name, number, _told(db, text),
    )  # fmt: skip


def pages(db: Connection, kind: str, name: str, first: int, limit: int) -> list[tuple[int, str]]:
    """`Store.pages`."""
    rows = db.read(
        "SELECT number, said FROM pages WHERE kind = ? AND name = ? AND number >= ?"
        " ORDER BY number LIMIT ?",
        kind, name, first, limit,
    )  # fmt: skip
    return [(number, said) for number, said in rows]


def _told(db: Connection, text: str) -> str | None:
    return db.dialect.told(words(text))


def _paper(row: tuple[str, str, str, str, int, int]) -> Paper:
    kind, name, owner, text, made_at_ms, is_open = row
    return Paper(kind, name, owner, text, made_at_ms, bool(is_open))
