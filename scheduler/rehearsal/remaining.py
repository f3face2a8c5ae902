"""What waits in a store, as it is rehearsed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from random import Random

from scheduler.limits import Limits
from scheduler.rehearsal.lore import Lesson, Lore
from scheduler.rehearsal.scene import AT_ONCE, Ask, Desk, Group, Purse, Scene
from scheduler.stats import BudgetStatus, Queued, Took, WorkerStatus
from scheduler.stores.base import Store

MOST_CALLS = 2_000  # that are learned from

Key = tuple[str, str, int, tuple[str, ...]]


async def remaining(store: Store, now_ms: int, at_once: Mapping[str, int] | None = None) -> Scene:
    """What waits or runs in a store, for whose money, and what is known of calls like these.

    Args:
        store: It is only read.
        now_ms: The time.
        at_once: How many calls at once, by provider, where no process says that it sends for others;
            missing: 64.
    """
    queued = await store.queued()
    budgets = await store.budgets(now_ms) if queued else []
    names = {each.id: each.budget.name for each in budgets}
    groups = list(_groups(queued, names))
    drawn = {name for group in groups for name in group.budgets}
    desks = {}
    if groups:
        workers, rates = await store.workers(now_ms), await store.rates(now_ms)
        desks = desks_of({each.provider for each in groups}, workers, rates, at_once or {})
    return Scene(
        now_ms, groups, purses_of(budgets, drawn), desks,
        lore_of(await store.took(MOST_CALLS)) if groups else Lore(),
    )  # fmt: skip


def _groups(queued: Iterable[Queued], names: Mapping[int, str]) -> Iterable[Group]:
    """Those who wait, put together by what matters; of whom nothing is known others speak."""
    found: dict[Key, Group] = {}
    rng = Random(0)
    for each in queued:
        budgets = tuple(sorted(names[one] for one in each.budgets if one in names))
        key = (each.provider, each.model, each.priority, budgets)
        group = found.setdefault(key, Group(*key))
        for ask in each.asks:
            group.add(Ask(*ask), rng)
        group.count += each.count - len(each.asks)
    for group in found.values():
        if not group.asks:
            group.asks = next(
                (other.asks for other in found.values() if other.asks and other.model == group.model),
                [Ask(0)],
            )  # fmt: skip
    return found.values()


def purses_of(budgets: Iterable[BudgetStatus], names: Collection[str]) -> list[Purse]:
    """Those of these names."""
    return [
        Purse(each.budget.name, each.caps, each.budget.risk, each.paused)
        for each in budgets if each.budget.name in names
    ]  # fmt: skip


def desks_of(
    names: Iterable[str], workers: Iterable[WorkerStatus], rates: Mapping[tuple[str, str], Limits],
    otherwise: Mapping[str, int],
) -> dict[str, Desk]:  # fmt: skip
    """Providers, as their workers and the limits that were met tell of them."""
    live, found = [each for each in workers if each.is_live], {}
    for name in names:
        at_once = sum(each.concurrency for each in live if name in each.serves)
        at_once = at_once or otherwise.get(name, AT_ONCE)
        models = {model: each for (its, model), each in rates.items() if its == name and model}
        found[name] = Desk(name, at_once, rates.get((name, ""), Limits()), models)
    return found


def lore_of(took: Iterable[Took]) -> Lore:
    """What calls tell; they come newest first."""
    by_model: dict[str, list[Lesson]] = {}
    for each in took:
        lesson = Lesson(each.nusd, each.tokens, each.ms, each.expected_nusd, each.guess)
        by_model.setdefault(each.model, []).append(lesson)
    return Lore({model: list(reversed(lessons)) for model, lessons in by_model.items()})
