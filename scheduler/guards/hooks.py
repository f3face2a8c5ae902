"""Functions of a user's own: whatever they give or raise, nothing is lost that was paid for.

What makes no sense is told once for each function, and something known takes its place: the quote
for a cost, the usual wait for a strategy's, the computer's clock for another one. A strategy that
raises ends its request's attempts, and its error says so. Before anything is sent nonsense is an
error, and what is raised reaches who asked.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, SupportsFloat, TypeVar

from scheduler.errors import ConfigError, SchedulerError, brief
from scheduler.guards.plain import logger_of, one_line
from scheduler.money import parse_usd

logger = logger_of("scheduler.hooks")

T_ = TypeVar("T_")

PROGRAM_ENDS = (KeyboardInterrupt, SystemExit)
MOST_TOLD = 1_000
LATEST_MS = 2**53  # a later instant is none

_told: set[str] = set()


def bare(function: Any) -> Any:
    """The function behind partials and decorators."""
    for _ in range(10):  # some objects have whatever they are asked for, without end
        inner = function.func if isinstance(function, partial) else None
        inner = inner or getattr(function, "__wrapped__", None)
        if inner is None:
            break
        function = inner
    return function


def name_of(function: Any) -> str:
    """Its module and name, whatever it is."""
    function = bare(function)
    code = getattr(function, "__code__", None)
    at = "" if code is None or "<lambda>" not in code.co_name else f" (line {code.co_firstlineno})"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}{at}"


def complain(function: Any, problem: str, instead: str) -> None:
    """Say, once for each function, that it is of no use, and what takes its place."""
    try:
        name = name_of(function)
    except Exception:  # it cannot even say what it is
        name = type(function).__name__
    if name in _told:
        return
    if len(_told) >= MOST_TOLD:
        _told.clear()
    _told.add(name)
    logger.warning("%s %s: %s (told once)", name, one_line(problem), instead)


def raised(exc: BaseException) -> str:
    """What a function did, in words."""
    return f"raised {brief(exc)}"


def gave(value: object) -> str:
    """What a function gave, in words; what nobody will await is closed."""
    if inspect.iscoroutine(value):
        value.close()
        return "is async, which it may not be"
    return f"gave {brief(value)}"


def asked_nusd(function: Callable[..., Any], *args: Any) -> tuple[int | None, bool]:
    """What a function says that something cost, and whether that makes sense; None: nothing."""
    try:
        value = function(*args)
    except PROGRAM_ENDS:
        raise
    except BaseException as exc:
        complain(function, raised(exc), "what was quoted counts")
        return None, False
    if value is None:
        return None, True
    try:
        return parse_usd(value, "cost"), True
    except Exception:
        complain(function, gave(value), "what was quoted counts")
        return None, False


def quoted_nusd(value: Any) -> int:
    """What a function quotes, in nano-dollars. Raises `ConfigError` for nonsense."""
    if inspect.iscoroutine(value):
        raise ConfigError("quote", gave(value))
    return parse_usd(value, "quote")


def counted(function: Callable[..., Any], *args: Any) -> int:
    """A number of tokens. Raises `ConfigError` for nonsense: nothing was sent yet."""
    value = function(*args)
    if type(value) is not int or value < 0:
        raise ConfigError(
            "count_tokens", f"{name_of(function)} {gave(value)}, not a number of tokens"
        )
    return value


def as_ours(exc: Exception) -> SchedulerError:
    """What a function raised where nobody is there who asked, as an error of ours."""
    if isinstance(exc, SchedulerError):
        return exc
    error = ConfigError("quote", f"what quotes a request {raised(exc)}; nothing was sent")
    error.__cause__ = exc
    return error


class HookRaised(Exception):
    """A function of the user's own raised; it says which, and what."""


def seconds(function: Callable[..., Any], most_s: float, *args: Any) -> float | None:
    """A span in seconds; None, after a complaint: nonsense. Raises `HookRaised`."""

    def read(value: Any) -> float | None:
        is_number = isinstance(value, SupportsFloat) and not isinstance(value, bool)
        span_s = float(value) if is_number else math.nan
        return span_s if 0 <= span_s <= most_s else None

    return _read(function, args, read, "the usual wait holds")


def decided(function: Callable[..., Any], *args: Any) -> bool | None:
    """Yes or no; None, after a complaint: nonsense. Raises `HookRaised`."""

    def read(value: Any) -> bool | None:
        return None if inspect.iscoroutine(value) or isinstance(value, str | bytes) else bool(value)

    return _read(function, args, read, "the usual rule holds")


def _read(
    function: Callable[..., Any], args: tuple[Any, ...], read: Callable[[Any], T_ | None],
    instead: str,
) -> T_ | None:  # fmt: skip
    """What a function says, as it is read; None, after a complaint, where that makes no sense."""
    try:
        value = function(*args)
        found = read(value)
        if found is not None:
            return found
        problem = gave(value)
    except PROGRAM_ENDS:
        raise
    except BaseException as exc:
        raise HookRaised(f"{name_of(function)} {raised(exc)}") from exc
    complain(function, problem, instead)
    return None


def instant_ms(function: Callable[[], Any], usual: Callable[[], int]) -> int:
    """What time it is; by the usual clock where that is nonsense."""
    try:
        value = function()
        if type(value) is int and 0 <= value < LATEST_MS:
            return value
        problem = gave(value)
    except PROGRAM_ENDS:
        raise
    except BaseException as exc:
        problem = raised(exc)
    complain(function, problem, "the computer's clock holds")
    return usual()
