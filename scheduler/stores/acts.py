"""Who changed what, when, from what to what: kept in the store beside what was changed.

Whatever changes a limit, pauses, resumes or removes a budget, or says what an unknown outcome cost, notes
it here: a page, a command, a program. The last `KEPT` are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from scheduler.budget import Budget
from scheduler.errors import SchedulerError
from scheduler.guards.plain import logger_of
from scheduler.money import format_usd
from scheduler.stores.base import Store, Unknown

KIND = "act"
KEPT = 500
MOST_AT_ONCE = 20  # told one by one
logger = logger_of("scheduler.store")


class Act(NamedTuple):
    """One change.

    Attributes:
        who: How they came: by which address, command or process.
        what: ``limit``, ``pause``, ``resume``, ``remove``, ``charge`` or ``void``.
        name: Of the budget, or the attempt.
        before: What it was, in words; empty: nothing.
        after: What it is since then.
    """

    at_ms: int
    who: str
    what: str
    name: str
    before: str
    after: str


async def noted(store: Store) -> list[Act]:
    """The last changes, newest first."""
    found = await store.notes(KIND)
    return [Act(*json.loads(text)) for _, text in sorted(found.items(), reverse=True)][:KEPT]


async def note(store: Store, *acts: Act) -> None:
    """Keep changes that were made; of very many the oldest are dropped.

    Of many at once, which are alike, the first ones are told one by one.

    What cannot be noted is told in the log: it has happened all the same.
    """
    told = list(acts)
    if len(told) > MOST_AT_ONCE:
        more = f"{len(told) - MOST_AT_ONCE:,} more"
        told[MOST_AT_ONCE:] = [told[-1]._replace(name=more, before="", after="")]
    try:
        found = sorted(await store.notes(KIND)) if told else []
        for name in found[: max(0, len(found) - KEPT + len(told))]:
            await store.note(KIND, name, None)
        for act in told:
            await _keep(store, act, found[-1] if found else "")
    except SchedulerError as exc:
        what = ", ".join(f"{act.what} {act.name}" for act in told)
        logger.warning("who changed something could not be noted (%s): %s", what, exc)


async def _keep(store: Store, act: Act, last: str) -> None:
    number = int(last[-4:]) + 1 if last.startswith(f"{act.at_ms:014}") else 0
    while not await store.note(
        KIND, f"{act.at_ms:014}-{number:04}", json.dumps(act), only_new=True
    ):
        number += 1  # another one in the same millisecond


# What is noted


def here(how: str) -> str:
    """Who it is in this process: ``ann@host (scheduler budget set)``.

    Args:
        how: They do it.
    """
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # it has no name
        user = str(os.getuid()) if hasattr(os, "getuid") else "?"
    return f"{user}@{socket.gethostname()} ({how})"


def this_process() -> str:
    """The same of a program that is no command of this package's."""
    return here(f"process {os.getpid()}")


def paused(at_ms: int, who: str, name: str, *, was: bool, is_now: bool) -> Act:
    """A budget was paused, or goes on."""
    words = ("goes on", "paused")
    return Act(at_ms, who, "pause" if is_now else "resume", name, words[was], words[is_now])


def removed(at_ms: int, who: str, budget: Budget) -> Act:
    """A budget binds nobody any more."""
    return Act(at_ms, who, "remove", budget.name, budget.text, "")


def resolved(at_ms: int, who: str, unknown: Unknown, nusd: int) -> Act:
    """It was said what an unknown outcome cost."""
    what = "charge" if nusd else "void"
    return Act(
        at_ms, who, what, str(unknown.id), format_usd(unknown.ceiling_nusd), format_usd(nusd)
    )


def limits(
    at_ms: int, who: str, before: Mapping[str, Budget], after: Iterable[Budget],
    *, with_new: bool = True,
) -> Sequence[Act]:  # fmt: skip
    """Budgets were defined: those that are other than they were.

    Args:
        at_ms: When,
        who: and by whom.
        before: As they were, by name.
        after: As they are now.
        with_new: Also those that were not there.
    """
    found = []
    for budget in after:
        old = before.get(budget.name)
        words = "" if old is None else old.text
        if words != budget.text and (with_new or old is not None):
            found.append(Act(at_ms, who, "limit", budget.name, words, budget.text))
    return found
