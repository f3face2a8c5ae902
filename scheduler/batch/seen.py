"""Which ids of a file have been read? On the disk, so that memory does not grow with the file."""

from __future__ import annotations

import sqlite3


class Seen:
    """Ids with the line where each stood first."""

    def __init__(self) -> None:
        # A database without a name is a temporary file, of which two megabytes are in memory.
        # Reading is done by one thread at a time, not always the same.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;"
            "CREATE TABLE seen(key BLOB PRIMARY KEY, digest TEXT, line INTEGER) WITHOUT ROWID"
        )

    def add(self, key: str, digest: str, line: int) -> tuple[int, bool] | None:
        """Note an id; if it stood before: on which line, and whether for the same body."""
        row = (key.encode(), digest, line)
        if self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", row).rowcount:
            return None
        number, first = self._db.execute(
            "SELECT line, digest FROM seen WHERE key = ?", row[:1]
        ).fetchone()
        return int(number), first == digest

    def close(self) -> None:
        """Forget them."""
        self._db.close()
