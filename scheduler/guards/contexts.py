"""Variables of a context, whoever ends the block in which they are set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def set_within(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Set a variable within the block, also where that is ended by another context.

    As that of a coroutine, or a generator, which is dropped: there is nothing to be set back there.
    """
    token = variable.set(value)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            variable.reset(token)
