"""What a program declares of budgets, beside what its store has: learned, and told once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scheduler.budget import Budget
from scheduler.errors import ConfigError
from scheduler.guards.plain import logger_of
from scheduler.ledger.matching import BudgetBook
from scheduler.stores import acts
from scheduler.stores.base import Store

logger = logger_of("scheduler.budgets")

MOST_TOLD = 5  # names in one line


async def open_budgets(
    store: Store, book: BudgetBook, wanted: Sequence[Budget], now_ms: int
) -> None:
    """Define what the program wants, learn what else there is, and say what binds by name alone."""
    if wanted:
        await check_parents(store, book, wanted)
        before = {
            budget.name: budget for _, budget in await store.defined(each.name for each in wanted)
        }
        await store.define(wanted, now_ms)
        changed = acts.limits(now_ms, acts.this_process(), before, wanted, with_new=False)
        await acts.note(store, *changed)
    book.update((status.id, status.budget) for status in await store.budgets(now_ms))
    declare(book, wanted)


async def check_parents(store: Store, book: BudgetBook, budgets: Sequence[Budget]) -> None:
    """Refuse budgets above which there is one that does not exist, or themselves.

    Raises:
        ConfigError: There is; nothing is changed.
    """
    given = {each.name: each for each in budgets}
    for budget in budgets:
        path, name = [budget.name], budget.parent
        while name is not None:
            if name in path:
                circle = " → ".join(map(repr, [*path, name]))
                problem = f"is above itself, by their parents: {circle}; nothing was changed"
                raise ConfigError("budget", f"{name!r} {problem}")
            found = given.get(name) or await _known(store, book, name)
            if found is None:
                raise ConfigError(
                    "budget",
                    f"{path[-1]!r} has the parent {name!r}, which is not defined; nothing was "
                    "changed. Define that one first, or both together",
                )
            path.append(name)
            name = found.parent


async def _known(store: Store, book: BudgetBook, name: str) -> Budget | None:
    if name in book:
        return book[name]
    found = await store.defined([name])
    return found[0][1] if found else None


def declare(book: BudgetBook, budgets: Iterable[Budget]) -> None:
    """These are the program's own; with the first of them it is told what others there are."""
    was_told = book.has_declared
    book.declare(each.name for each in budgets)
    left_out = [] if was_told else book.left_out
    if left_out:
        rest = len(left_out) - MOST_TOLD
        logger.warning(
            "the store has budgets that this program does not declare: %s%s. Only requests that "
            "name them draw on them. Declare those that are still wanted (budgets=[...]); "
            "'scheduler budget remove NAME' ends one, and keeps what it spent on record",
            ", ".join(map(repr, left_out[:MOST_TOLD])), f" and {rest:,} more" if rest > 0 else "",
        )  # fmt: skip


async def read_budgets(store: Store, book: BudgetBook, names: Iterable[str]) -> None:
    """Learn of these budgets, as they are now: other processes may have changed them."""
    wanted = set(names)
    found = await store.defined(wanted)
    book.update(found)
    book.remove(wanted - {budget.name for _, budget in found})


async def follow(store: Store, book: BudgetBook, now_ms: int) -> None:
    """Learn what other processes made, changed and removed."""
    changed, removed = await store.redefined(now_ms)
    book.update(changed)
    book.remove(removed)
