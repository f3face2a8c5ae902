"""Tags: what code says of all requests made within a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Unpack

from scheduler.core.marks import NO_MARKS, Marks, merge

_MARKS: ContextVar[Mapping[object, Marks]] = ContextVar(
    "scheduler_marks", default=MappingProxyType({})
)


class Tagging:
    """The methods of a `Scheduler` that say something of the requests made within a block."""

    def __init__(self) -> None:
        self._id = object()  # by which `tag` knows it; not its `id`, which may come again

    @contextlib.contextmanager
    def tag(self, **marks: Unpack[Marks]) -> Iterator[None]:
        """Say things of all requests made within the block, where they do not say them themselves.

        They hold for tasks begun in it, too, and for calls of wrapped clients; an inner block
        comes before an outer one, and tags add up.

        Args:
            marks: Fields of `Request`: ``budget``, ``priority``, ``job``, ``deadline``,
                ``max_wait``, ``max_cost``, ``provider``, and ``tags``, a mapping.

        Raises:
            ConfigError: There is no such mark, or no such priority.
        """
        said = _MARKS.get()
        token = _MARKS.set({**said, self._id: merge(said.get(self._id, NO_MARKS), marks)})
        try:
            yield
        finally:
            _MARKS.reset(token)

    @property
    def marks(self) -> Marks:
        """What `tag` says here and now."""
        return _MARKS.get().get(self._id, NO_MARKS)
