"""Which of several processes may write to a file, or tidy up its log, at this moment?

Whoever holds ``FILE.write-lock``. SQLite's own locks keep two writers apart, but until 3.51.3 not a
writer from a checkpoint, which can damage the file (https://www.sqlite.org/wal.html#walresetbug).
So both happen under one lock more, which nobody else takes. It lies on a file of its own: closing any
file of a process ends all of SQLite's locks on it.

The lock is ``flock``, not a record lock: it belongs to what was opened, so that two stores of one
process keep each other out as well, and closing another one frees nothing. The system frees it when
its process ends, however it ends. A fork would hold it on, so what it inherits is closed there.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from scheduler.errors import StoreError, StoreLocked

ENDING = ".write-lock"
SHORT_PAUSE_S, LONG_PAUSE_S, SHORT_WAIT_S = 0.003, 0.02, 1.0

if sys.platform == "win32":
    import msvcrt

    def _take(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError as exc:
            raise BlockingIOError(exc.errno, exc.strerror) from None

    def _free(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _free(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


def pause(waited_s: float) -> None:
    """Wait a little for others.

    Pauses that double, as SQLite's own do, give the file last to whoever has waited longest among
    busy processes. Short random ones are fair.
    """
    longest_s = SHORT_PAUSE_S if waited_s < SHORT_WAIT_S else LONG_PAUSE_S
    time.sleep(longest_s * (0.2 + random.random()))


class LockFile:
    """The lock of one file, for one store: its thread alone takes and frees it.

    Args:
        path: The file that is locked, under any of its names. The lock's own file is made when it is
            first taken, with the rights of that one, and stays.
    """

    def __init__(self, path: Path) -> None:
        self.of = path
        self.path = Path(f"{os.path.realpath(path)}{ENDING}")
        self.is_held = False
        self._file: int | None = None
        _all.add(self)

    @contextmanager
    def held(self, patience_s: float) -> Iterator[float]:
        """While it is held; gives how many seconds of the patience are left.

        Raises:
            StoreLocked: Others held it for so long.
            StoreError: It cannot be locked here.
        """
        assert not self.is_held
        until_s = time.monotonic() + patience_s
        self._take(patience_s)
        self.is_held = True
        try:
            yield max(0.0, until_s - time.monotonic())
        finally:
            self.is_held = False
            if self._file is not None:  # a fork in between has none any more
                with suppress(OSError):
                    _free(self._file)

    def _take(self, patience_s: float) -> None:
        began_s = time.monotonic()
        while not self._is_taken():
            waited_s = time.monotonic() - began_s
            if waited_s >= patience_s:
                raise StoreLocked(
                    f"{self.of} is held by another process ({self.path.name} is locked); nothing was "
                    "changed. Try again, or find it with 'scheduler doctor'"
                )
            pause(waited_s)

    def _is_taken(self) -> bool:
        try:
            while True:
                if self._file is None:
                    self._file = self._opened()
                _take(self._file)
                if self._is_named(self._file):
                    return True
                self.close()  # somebody removed it: others would lock the next one
        except BlockingIOError:
            return False
        except OSError as exc:
            raise StoreError(
                f"{self.of} cannot be locked: {exc.strerror or exc} ({self.path}); nothing was changed. "
                "Do it as the file's owner, and where its folder can be written"
            ) from exc

    def _opened(self) -> int:
        """Made for whoever may write the file itself, whoever makes it."""
        try:
            return os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            pass
        stat = os.stat(self.of)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        if sys.platform != "win32":
            with suppress(OSError):  # it is another's, who made it meanwhile
                os.chmod(file, stat.st_mode & 0o666)
                if os.geteuid() == 0:
                    os.chown(file, stat.st_uid, stat.st_gid)
        return file

    def _is_named(self, file: int) -> bool:
        ours = os.fstat(file)
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def close(self) -> None:
        """Let go of it; it can be taken again."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)


_all: WeakSet[LockFile] = WeakSet()


def _forget() -> None:
    """Close in a fork what it inherited, else it would hold on what a parent that is killed held."""
    for each in list(_all):
        each.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
