"""The files a batch writes: JSON lines that survive crashes."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scheduler.errors import ConfigError


class LineFile:
    """A JSONL file that is appended to, safely.

    Opening makes it if need be (mode 0600) and cuts a last line that was torn by a
    crash. `append` returns when the lines are on the disk.

    Raises:
        ConfigError: It cannot be written, or holds something else than JSON lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.was_torn = False
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise ConfigError("output", f"cannot write {path}: {exc.strerror}") from None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            # It could not be read again to resume, and must not be removed when it is empty.
            os.close(self._fd)
            raise ConfigError("output", f"{path} is no regular file; '-' writes to stdout")
        try:
            self._cut_torn_line()
        except ConfigError:
            os.close(self._fd)
            raise

    def _cut_torn_line(self) -> None:
        size = os.lseek(self._fd, 0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65_536)
            os.lseek(self._fd, start, os.SEEK_SET)
            block = os.read(self._fd, end - start)
            newline = block.rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        # Whatever else it is (a database, somebody's notes), it must stay as it is.
        begins = os.pread(self._fd, 1, 0) + os.pread(self._fd, 1, end)
        if begins.strip(b"{\0"):  # zeros are what a file system leaves after a power cut
            problem = f"{self.path} holds something else than lines of JSON, and was left as it is"
            raise ConfigError("output", f"{problem}; name another file")
        if end != size:
            os.ftruncate(self._fd, end)
            self.was_torn = True
        os.lseek(self._fd, 0, os.SEEK_END)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write whole lines and wait until they are on the disk; all of them or none.

        Raises:
            OSError: The disk is full, or worse; the file ends with a whole line.
        """
        data = "".join(
            json.dumps(line, separators=(",", ":"), default=str) + "\n" for line in lines
        )
        end = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            view = memoryview(data.encode())
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, end)
            raise

    def ends(self) -> Iterator[tuple[str, str | None]]:
        """The ``id`` and ``custom_id`` of every line that ends a request.

        Both, since bad lines have a ``custom_id`` only, and another store counts its
        requests from 1 again.
        """
        with self.path.open("rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                    name, key = line.get("id"), line.get("custom_id")
                except (ValueError, AttributeError):
                    continue
                if isinstance(name, str):
                    yield name, key

    @property
    def is_empty(self) -> bool:
        """Whether there is no line yet."""
        return os.fstat(self._fd).st_size == 0

    def clear(self) -> None:
        """Remove all lines."""
        os.ftruncate(self._fd, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):  # removed by somebody meanwhile
            if error is None and self.path.stat().st_size == 0:
                self.path.unlink()
