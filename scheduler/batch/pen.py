"""Who writes the files of a batch that several processes work on: one of them, at any time.

Whoever holds the lock of the output has the pen. The others send their share, and try for the pen
now and then: it falls to one of them when its holder ends, however that ends. What its holder left
unwritten is in the store, and what it wrote is in the files, so nothing is lost or written twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from scheduler.batch.lock import OutputLock
from scheduler.errors import OutputInUse


class Pen:
    """The right to write; use it in a ``with``, which takes it, or joins those who work on the same.

    Args:
        outputs: What is written.
        work: What tells this work from other work on the same files.
        say: Tells the user.
        joins: Whether to work with others; False: there must be none.

    Attributes:
        is_held: Whether this process writes.
        circle: Names those who work together.

    Raises:
        OutputInUse: Another process writes the same files, and works on something else.
        ConfigError: One of them cannot be written.
    """

    def __init__(
        self, outputs: Sequence[Path], work: Mapping[str, str], say: Callable[[str], None], *,
        joins: bool,
    ) -> None:  # fmt: skip
        self._outputs, self._work, self._say, self._joins = outputs, work, say, joins
        self.is_held = False
        self.circle = uuid.uuid4().hex
        self._lock = self._made()

    @classmethod
    def of_one(cls) -> Self:
        """Of a process that is alone, and holds it without a lock."""
        pen = cls((), {}, lambda text: None, joins=False)
        pen.is_held = True
        return pen

    def _made(self) -> OutputLock:
        return OutputLock(self._outputs, self._say, {**self._work, "circle": self.circle})

    def __enter__(self) -> Self:
        try:
            self._take()
        except OutputInUse:
            note = self._lock.held_with()
            circle, is_same = note.get("circle"), self._work.items() <= note.items()
            if not (self._joins and is_same and isinstance(circle, str)):
                raise
            self.circle, self._lock = circle, self._made()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.is_held:
            self.is_held = False
            self._lock.__exit__(*exc)

    def _take(self) -> None:
        self._lock.__enter__()
        self.is_held = True

    def take(self) -> bool:
        """Take it, if nobody has it; whether this process writes from now on."""
        if not self.is_held:
            try:
                self._take()
            except OutputInUse:
                return False
        return True
