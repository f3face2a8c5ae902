"""Outputs belong to one writer at a time.

The lock is a file beside each output (``.NAME.lock``), not the output itself, which may be
replaced while it is written. It ends with its process, however that ends, and is removed when a
run is over; one that a killed run left behind locks nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from scheduler.errors import ConfigError, OutputInUse
from scheduler.guards.plain import command, without_password

# Of network file systems whose server keeps no locks.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


class OutputLock:
    """Holds the files that a run writes, against other runs; use it in a ``with``.

    Nothing but the lock is made or changed. A symbolic link is locked as what it leads to.

    Args:
        paths: The files.
        say: Tells the user.
        note: What whoever meets the lock is to know, besides who holds it.

    Raises:
        OutputInUse: Another process writes one of them.
        ConfigError: One of them cannot be written.
    """

    def __init__(
        self, paths: Sequence[Path], say: Callable[[str], None] = lambda text: None,
        note: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._say, self._note = say, note or {}
        self._paths = {path.resolve(): path for path in paths}
        self._held: list[tuple[FileLock, Path | None]] = []

    def __enter__(self) -> Self:
        try:
            for path, shown in self._paths.items():
                self._take(path, shown)
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def held_with(self) -> Mapping[str, object]:
        """What the holder of the first file said in its note; empty: nothing, or there is none."""
        path = next(iter(self._paths))
        with contextlib.suppress(OSError, ValueError):
            note = json.loads(path.with_name(f".{path.name}.lock").read_text(encoding="utf-8"))
            return note if isinstance(note, dict) else {}
        return {}

    def _take(self, path: Path, shown: Path) -> None:
        check_regular(shown)
        if not path.parent.is_dir():  # the library would make it
            raise ConfigError("output", f"cannot write {shown}: {os.strerror(errno.ENOENT)}")
        beside: Path | None = path.with_name(f".{path.name}.lock")
        try:
            try:
                lock = self._locked(beside or path)
            except OSError as exc:
                if exc.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not path.exists():
                    raise
                # Nothing can be made in this folder, so nobody can replace the file either.
                beside, lock = None, self._locked(path)
        except Timeout:
            raise OutputInUse(str(shown), _holder(beside)) from None
        except OSError as exc:
            if exc.errno in NO_LOCKS:
                self._say(
                    f"{shown} cannot be locked ({exc.strerror}): see to it that no other run writes it"
                )
                return
            raise ConfigError("output", f"cannot write {shown}: {exc.strerror}") from None
        self._held.append((lock, beside))
        if beside is not None:
            _sign(beside, self._note)

    @staticmethod
    def _locked(path: Path) -> FileLock:
        lock = FileLock(str(path), timeout=0, mode=0o600)
        lock.acquire()
        return lock

    def _let_go(self) -> None:
        while self._held:
            lock, beside = self._held.pop()
            if beside is not None:
                # Before it is let go: whoever opened it meanwhile sees that it has no name left.
                with contextlib.suppress(OSError):
                    beside.unlink()
            lock.release()


def check_regular(path: Path) -> None:
    """Refuse what is there already and cannot be read again to resume.

    Raises:
        ConfigError: It is a device, a pipe or a folder.
    """
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError("output", f"{path} is no regular file; '-' writes to stdout")


def _sign(path: Path, more: Mapping[str, str]) -> None:
    """Say who holds the lock, for people who meet it."""
    note = {
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command(*map(without_password, sys.argv))[:500],
        **more,
    }
    with contextlib.suppress(OSError):
        if path.stat().st_size and not path.read_bytes().lstrip().startswith(b"{"):
            return  # the library's own note, where the system has no locks
        path.write_text(json.dumps(note) + "\n", encoding="utf-8")


def _holder(path: Path | None) -> str:
    """Who holds the lock, as far as it says."""
    try:
        note = json.loads((path or Path()).read_text(encoding="utf-8"))
        return f"process {note['pid']} (since {note['since']})"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
