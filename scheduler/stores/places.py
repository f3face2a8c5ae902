"""Can a file that lies there have a write-ahead log?

All who use a log share memory, and find it next to the file. Through a network, or through what a
virtual machine or a program shows of other folders, each sees memory of its own, and the file would be
damaged. Nor may the file alone be mounted somewhere: its log would be looked for in two folders.
"""

from __future__ import annotations

import importlib
import os
import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

# Those of this machine alone. What is not among them may be elsewhere, under a name nobody thought of:
# Docker Desktop shows the folders of its host as "fakeowner", once it showed them as "virtiofs".
_LOCAL = frozenset((
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs", "nilfs2", "reiserfs", "ubifs",
    "tmpfs", "ramfs", "rootfs", "overlay", "aufs", "ecryptfs", "squashfs", "erofs", "vfat", "msdos", "fat",
    "fat32", "exfat", "ntfs", "ntfs3", "fuseblk", "fuse.fuse-overlayfs", "refs", "apfs", "hfs", "ufs", "ffs",
))  # fmt: skip
Mount = tuple[str, str]  # where, and the kind of file system


def why_no_log(path: Path) -> str | None:
    """Why a file of this name takes no write-ahead log, as told by where it lies; None: it may."""
    place = os.path.realpath(path)
    if place.startswith("\\\\"):
        return "it is in a network folder"
    return told_by(_mounts(), place)


def told_by(mounts: Iterable[Mount], place: str) -> str | None:
    """The same, of what is mounted in this order.

    >>> told_by([("/", "ext4"), ("/data", "nfs4")], "/data/s.db")
    'it is on a file system (nfs4) of which it is not known that all who open a file share memory'
    >>> told_by([("/", "ext4"), ("/data", "nfs4")], "/database/s.db")
    """
    best, kind = "", ""
    for where, found in mounts:
        folder = where.rstrip("/\\")
        if (place == folder or place.startswith((f"{folder}/", f"{folder}\\"))) and len(
            folder
        ) >= len(best):
            best, kind = folder, found.lower()
    if best == place:
        return "it is mounted without its folder, in which its log has to be"
    if kind not in _LOCAL:
        name = kind or "nobody tells which"
        return f"it is on a file system ({name}) of which it is not known that all who open a file share memory"
    return None


def _mounts() -> list[Mount]:
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _by_psutil()
    found = []
    for line in lines.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()[:1]
        if len(fields) > 4 and kind:
            found.append((_plain(fields[4]), kind[0]))
    return found


def _plain(field: str) -> str:
    """A path as it is; spaces and the like are written as octal numbers there."""
    for number in ("040", "011", "012", "134"):
        field = field.replace(f"\\{number}", chr(int(number, 8)))
    return field


def _by_psutil() -> list[Mount]:
    try:
        parts = importlib.import_module("psutil").disk_partitions(all=True)
    except OSError:
        return []
    return [(p.mountpoint, "remote" if "remote" in p.opts else p.fstype) for p in parts]


def tried(folder: Path) -> str | None:
    """Try a log in the folder, on a small file that is dropped again; why it does not work there."""
    try:
        with tempfile.TemporaryDirectory(prefix=".scheduler-log-", dir=folder) as name:
            return _tried(f"{name}/log.db")
    except (OSError, sqlite3.Error) as exc:
        return f"its folder takes none: {exc}"


def _tried(path: str) -> str | None:
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as one,
        closing(sqlite3.connect(path, isolation_level=None)) as two,
    ):
        one.execute("PRAGMA synchronous = OFF")
        if one.execute("PRAGMA journal_mode = wal").fetchone() != ("wal",):
            return "SQLite keeps none in its folder"
        one.execute("CREATE TABLE tried (n)")
        two.execute("INSERT INTO tried VALUES (1)")
        seen = one.execute("SELECT n FROM tried").fetchall()
        return None if seen == [(1,)] else "two that open a file in its folder share no memory"
