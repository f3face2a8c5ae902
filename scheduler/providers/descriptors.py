"""How many connections may be open at once? The system says, with its limit of open files.

Whoever meets that limit fails in odd places: a socket, a name that is looked up, a module that is
imported. So the limit is raised as far as it may be, and what is sent at once stays below it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from scheduler.guards.plain import logger_of

logger = logger_of("scheduler.providers")

SPARE = 24  # for the store, result files, modules that are imported late
# A call may need a second descriptor for a moment: to look a name up, to try another address.
PER_CALL = 2

MANY = 65_536  # more than anybody connects to one process

_told: set[tuple[int, int]] = set()


def fitting(wanted: Mapping[str, int]) -> dict[str, int]:
    """As many calls at once as there are descriptors for; tells once where that is fewer.

    Args:
        wanted: Calls at once, by provider.
    """
    total = sum(wanted.values())
    places = _places(total)
    if places is None or total <= places:
        return dict(wanted)
    _tell(total, places)
    return {name: max(1, most * places // total) for name, most in wanted.items()}


def _places(wanted: int) -> int | None:
    """How many calls there are descriptors for; None: the system knows no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    taken = _open_now() + SPARE
    needed = taken + PER_CALL * wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
        except (ValueError, OSError):  # some systems have a lower bound than they say
            pass
    return max(1, (soft - taken) // PER_CALL)


def raise_limit() -> None:
    """Let this process open as many files as it may, for one that many connect to."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MANY:
        return
    most = MANY if hard == resource.RLIM_INFINITY else min(MANY, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_clients() -> int | None:
    """How many may be connected, so that there is room for what is sent, too; None: any number."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft * 3 // 4


def _open_now() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 16


def _tell(wanted: int, places: int) -> None:
    if (wanted, places) in _told:
        return
    _told.add((wanted, places))
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    logger.warning(
        "%d calls at once are wanted, and this process may open %d files (at most %d): no more "
        "than %d calls are sent at once. Raise the limit with 'ulimit -n %d', or lower the "
        "concurrency",
        wanted, soft, hard, places, PER_CALL * wanted + SPARE + 64,
    )  # fmt: skip
