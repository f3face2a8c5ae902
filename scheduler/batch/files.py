"""The files a batch writes: JSON lines that survive crashes, editors and log rotation."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from scheduler.batch.lock import check_regular
from scheduler.batch.results import line_text
from scheduler.errors import ConfigError

MAX_MARKED_BYTES = 1 << 24  # of the first line of a file that may say whose it is
TRIES = 5  # how often a file that is replaced while it is written is opened again


class LineFile:
    """A JSONL file that is appended to, safely; it is whatever file has this name.

    Opening makes it if need be (mode 0600) and cuts a last line that was torn by a crash. `append`
    returns when the lines are on the disk, in the file of that name: one that was replaced, removed
    or made shorter meanwhile is opened anew.

    Attributes:
        was_torn: A last line was cut when it was opened.
        is_changed: Others changed it since it was opened, or since `look` said so: lines may be
            missing from it.

    Raises:
        ConfigError: It cannot be written, or holds something else than JSON lines.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.path, self._say = path, say
        self.was_torn = self.is_changed = False
        self._is_mine = not path.exists()
        self._fd = -1
        self._open()

    # Opening

    def _open(self) -> None:
        check_regular(self.path)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as exc:
            raise ConfigError("output", f"cannot write {self.path}: {exc.strerror}") from None
        self._close()
        self._fd = fd
        try:
            self._mend()
        except ConfigError:
            self._close()
            raise
        self._note()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _mend(self) -> None:
        """Have it end with a whole line: a torn one is cut, one without its newline gets it."""
        size = os.lseek(self._fd, 0, os.SEEK_END)
        end = _end_of_lines(self._fd, self.path)
        if end == size:
            return
        if _is_object(os.pread(self._fd, size - end, end)):  # an editor left it so
            os.write(self._fd, b"\n")
        else:
            os.ftruncate(self._fd, end)
            self.was_torn = True

    # Whose it is

    def _note(self, size: int | None = None) -> None:
        """Remember how this process left it, and of what size, whatever was done to it since."""
        left = _state(os.fstat(self._fd))
        self._left = left if size is None else (*left[:2], size, left[3])

    def look(self) -> bool:
        """Make sure that it is the file of this name; whether others had changed it.

        Raises:
            OSError: There is none by that name, and none can be made.
            ConfigError: What has the name now is no file of lines.
        """
        if self._fd < 0:  # what had the name was no file of lines; it may be gone by now
            self._open()
            return True
        try:
            named: os.stat_result | None = os.stat(self.path)
        except FileNotFoundError:
            named = None
        if named is not None and _state(named) == self._left:
            return False
        self.is_changed = True
        if named is None or not os.path.samestat(named, os.fstat(self._fd)):
            happened = "was replaced by another file" if named else "was removed or renamed"
            self._say(f"{self.path} {happened}; what follows goes to the one of that name")
            self._is_mine = self._is_mine and named is not None
            self._open()
        elif named.st_size != self._left[2]:
            is_shorter = named.st_size < self._left[2]
            happened = "was made shorter" if is_shorter else "was written to"
            self._say(f"{self.path} {happened} by somebody else meanwhile")
            self._mend()
        self._note()
        return True

    # Writing

    def append(self, lines: Iterable[Mapping[str, Any] | str]) -> None:
        """Write whole lines and wait until they are on the disk; all of them or none.

        Texts are written as they are, other lines as `line_text` writes them.

        Raises:
            OSError: The disk is full, or worse; the file ends with a whole line.
            ConfigError: Something else has its name now.
        """
        texts = [line if isinstance(line, str) else line_text(line) for line in lines]
        for _ in range(TRIES):
            self.look()
            size = self._write("".join(text + "\n" for text in texts).encode())
            if not self._is_elsewhere():
                self._note(size)
                return
            self.look()
            # Whoever put another file there may have copied some of them into it already.
            copied = {text for text, _ in self.lines()}
            texts = [text for text in texts if text not in copied]
        raise OSError(errno.EBUSY, f"{self.path} is replaced again and again")

    def _write(self, data: bytes) -> int:
        """Add some bytes; returns the size that the file has then."""
        end = os.fstat(self._fd).st_size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, end)
            self._note()
            raise
        return end + len(data)

    def _is_elsewhere(self) -> bool:
        """Whether the name leads to another file than the one that was written."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return True

    def rewrite(self, lines: Iterable[str]) -> None:
        """Put these lines in place of all, at once: a crash leaves the old file or the new one.

        Raises:
            OSError: It could not be done; the file is as it was.
        """
        with Replacement(self.path) as file:
            file.add(lines)
        self._is_mine = True
        self._open()

    # Reading

    def lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Its lines that are objects, as text and read."""
        return lines_of(self.path)

    @property
    def is_empty(self) -> bool:
        """Whether there is no line yet."""
        return os.fstat(self._fd).st_size == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        is_mine = self._is_mine and self._fd >= 0 and self.is_empty and not self._is_elsewhere()
        self._close()
        if is_mine:  # what others made stays, empty or not
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()


def lines_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a file that are objects, as text and read."""
    with path.open("rb") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                yield text.decode().rstrip("\r\n"), line


def marked(path: Path) -> str:
    """The job that a file's first line says it is a part of; empty: it says none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.is_file():  # what can be read a second time
            with path.open("rb") as file:
                line = json.loads(file.readline(MAX_MARKED_BYTES))
            extras = line.get("scheduler") if isinstance(line, dict) else None
            job = extras.get("job") if isinstance(extras, dict) else None
            return job if isinstance(job, str) else ""
    return ""


def check_lines(path: Path) -> None:
    """Refuse to write over what holds something else than lines of JSON. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            _end_of_lines(file.fileno(), path)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ConfigError("output", f"cannot read {path}: {exc.strerror}") from None


def _end_of_lines(fd: int, path: Path) -> int:
    """Where the last line ends that has its newline."""
    end = os.lseek(fd, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65_536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    # Whatever else it is (a database, somebody's notes), it must stay as it is.
    begins = os.pread(fd, 1, 0) + os.pread(fd, 1, end)
    if begins.strip(b"{\0"):  # zeros are what a file system leaves after a power cut
        problem = f"{path} holds something else than lines of JSON, and was left as it is"
        raise ConfigError("output", f"{problem}; name another file")
    return end


class Replacement:
    """A file of lines that takes the place of another at once, when its ``with`` ends.

    Until then, and whatever goes wrong, the old file is as it was. Without a line there is no file
    in the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()  # what a symbolic link leads to is replaced, not the link
        self._beside = self._path.with_name(f".{self._path.name}.new")
        self._file: TextIO | None = None

    def add(self, lines: Iterable[str]) -> None:
        """Write these, too. Raises `OSError`."""
        for line in lines:
            if self._file is None:
                self._file = self._made()
            self._file.write(line + "\n")

    def _made(self) -> TextIO:
        self._beside.unlink(missing_ok=True)  # a killed process left it
        fd = os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with contextlib.suppress(FileNotFoundError):
            self._beside.chmod(self._path.stat().st_mode & 0o777)
        return open(fd, "w", encoding="utf-8", newline="\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:
            if kind is None:
                self._path.unlink(missing_ok=True)
            return
        try:
            with self._file as file:
                if kind is None:
                    file.flush()
                    os.fsync(file.fileno())
            if kind is None:
                self._beside.replace(self._path)
                _sync_folder(self._path.parent)
        finally:
            with contextlib.suppress(OSError):
                self._beside.unlink()


def _sync_folder(folder: Path) -> None:
    """Have a file's new place on the disk, where the system can say so of a folder."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _state(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
