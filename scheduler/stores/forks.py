"""Which database files were open when this process was forked.

SQLite keeps in memory which locks its process has, and a fork copies that without the locks. A file
opened on both sides is written by one of them without a lock, and when the first side closes a
write-ahead log, what the other commits after that is lost: money spent that nobody counts. So what was
open at the fork is refused in it, and in its own forks.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from scheduler.errors import StoreError

Held = tuple[int, int, int]  # process, device, inode
_held: list[Held] = []
entering = threading.Lock()
"""From the look at a file to `hold`: two that open it at once must know of each other."""


def refuse_inherited(path: Path) -> None:
    """Raise `StoreError` if the file was open when this process, or one before it, was forked."""
    found = _seen(path)
    if found is None:
        return  # there is none yet
    for held in _held:
        if held[0] != os.getpid() and held[1:] == found[1:]:
            raise StoreError(
                f"{path} was open when this process was forked, in process {held[0]}. A fork does not "
                "copy SQLite's locks, so what both write could be lost. Nothing was sent. Open it in "
                "each process after the fork, and not before it; or start processes by 'spawn'"
            )


def is_held(path: Path) -> bool:
    """Whether this process has the file open."""
    return _seen(path) in _held


def hold(path: Path) -> Held | None:
    """Note that this process has a file open, until `let_go`; None: the system tells no file."""
    held = _seen(path)
    if held is not None:
        _held.append(held)
    return held


def let_go(held: Held | None) -> None:
    """The file is closed; what a fork inherited stays, whatever is closed in it."""
    if held in _held and held[0] == os.getpid():
        _held.remove(held)


def _seen(path: Path) -> Held | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return os.getpid(), stat.st_dev, stat.st_ino
