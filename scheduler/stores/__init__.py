"""Where queue and ledger live; see `base` for the contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scheduler.errors import ConfigError
from scheduler.guards.plain import without_password
from scheduler.stores.base import KEEP_FINISHED, Store, StorePrompts

if TYPE_CHECKING:
    from scheduler.stores.postgres.store import PostgresStore

INSTALL = "pip install 'llm-budget-scheduler[postgres]'"


def open_store(
    url: str | Path | None = None,
    *,
    create: bool = True,
    store_prompts: StorePrompts = "full",
    keep_finished: int | None = KEEP_FINISHED,
) -> Store:
    """Make the store a URL names; it still has to be opened.

    Args:
        url: ``memory://`` or None for one in memory; ``sqlite:///relative.db``,
            ``sqlite:////absolute.db`` or a path for one in a file; ``postgresql://…`` for one in
            a database, with ``?schema=NAME`` of its own.
        create: Whether opening may create it. If not, a file that cannot be written may be looked
            at all the same.
        store_prompts: What of a request goes to the disk; see `StorePrompts`.
        keep_finished: Most outcomes of keys that one in memory keeps; a file keeps all.

    Raises:
        ConfigError: Nothing known by that name.
    """
    if url is None or url == "memory://":
        from scheduler.stores.memory.store import MemoryStore

        return MemoryStore(keep_finished)
    if keep_finished != KEEP_FINISHED:
        raise ConfigError(
            "keep_finished",
            "is of stores in memory; a file keeps what has ended until it is pruned",
        )
    if isinstance(url, str) and url.startswith(("postgresql://", "postgres://")):
        kind = _postgres()
        try:
            return kind(url, create=create, store_prompts=store_prompts)
        except ConfigError as exc:
            problem = exc.with_traceback(None)  # its frames hold the URL, and this one does
        url = without_password(url)
        raise problem
    from scheduler.stores.sqlite import SqliteStore

    if isinstance(url, Path):
        return SqliteStore(url, create=create, store_prompts=store_prompts)
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        return SqliteStore(path, create=create, store_prompts=store_prompts)
    if "://" not in url and url.endswith((".db", ".sqlite", ".sqlite3")):
        return SqliteStore(Path(url), create=create, store_prompts=store_prompts)
    url = without_password(url)  # in the frame as in the words: a traceback may show it
    raise ConfigError(
        "store",
        f"{url!r} is not memory://, sqlite:///FILE.db, postgresql://… or a path ending in .db",
    )


def file_of(url: str) -> Path | None:
    """The file a store's URL names; None: it names none."""
    if url.startswith("sqlite:///"):
        return Path(url.removeprefix("sqlite:///"))
    return None if "://" in url else Path(url)


def _postgres() -> type[PostgresStore]:
    try:
        from scheduler.stores.postgres.store import PostgresStore
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] != "psycopg":
            raise
        raise ConfigError(
            "store", "for PostgreSQL psycopg 3 is needed, which is not installed: "
            f"{INSTALL}",
        ) from None  # fmt: skip
    return PostgresStore
