"""Which budgets a request draws on.

It draws on every budget it names, every budget whose rules cover its model and
tags, and all their parents. If it names none and there are budgets without rules,
it draws on the one called ``default``, else on the only one; with several, it has
to say which. An empty tuple names none on purpose.

>>> book = BudgetBook([(1, Budget("org", "$9")), (2, Budget("team", "$5", parent="org")),
...                    (3, Budget("gpt", "$1", models=["gpt-*"]))])
>>> book.draws_on("gpt-4o", {}, "team"), book.draws_on("llama", {}, ())
((1, 2, 3), ())
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from scheduler.budget import Budget
from scheduler.errors import BudgetUnknown

DEFAULT = "default"
_MAX_REMEMBERED = 4096


class BudgetBook:
    """The defined budgets, by id and name."""

    def __init__(self, budgets: Iterable[tuple[int, Budget]] = ()) -> None:
        self._ids: dict[str, int] = {}
        self._budgets: dict[int, Budget] = {}
        for budget_id, budget in budgets:
            self._ids[budget.name] = budget_id
            self._budgets[budget_id] = budget
        self._with_rules = [(i, b) for i, b in self._budgets.items() if b.has_rules]
        self._remembered: dict[object, tuple[int, ...]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._ids

    def __getitem__(self, name: str) -> Budget:
        """The budget of that name. Raises `BudgetUnknown`."""
        return self._budgets[self._id(name)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all budgets, in the order they were defined."""
        return tuple(self._ids)

    def name(self, budget_id: int) -> str:
        """The name of a budget."""
        return self._budgets[budget_id].name

    def draws_on(
        self, model: str, tags: Mapping[str, str], named: str | Sequence[str] | None
    ) -> tuple[int, ...]:
        """Ids of the budgets a request draws on, in ascending order.

        Raises:
            BudgetUnknown: It names one that does not exist, or must name one and does not.
        """
        names = (named,) if isinstance(named, str) else named if named is None else tuple(named)
        labels = tuple(sorted(tags.items())) if tags else ()
        question = (model if self._with_rules else "", names, labels)
        known = self._remembered.get(question)
        if known is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[question] = self._find(model, tags, names)
        return known

    def _find(
        self, model: str, tags: Mapping[str, str], names: tuple[str, ...] | None
    ) -> tuple[int, ...]:
        found = {budget_id for budget_id, b in self._with_rules if b.covers(model, tags)}
        if names is None:
            found |= self._by_default()
        else:
            found |= {self._id(name) for name in names}
        for budget_id in tuple(found):
            found |= self._ancestors(budget_id)
        return tuple(sorted(found))

    def _by_default(self) -> set[int]:
        if DEFAULT in self._ids:
            return {self._ids[DEFAULT]}
        parents = {b.parent for b in self._budgets.values()}
        plain = [i for i, b in self._budgets.items() if not b.has_rules and b.name not in parents]
        if len(plain) > 1:
            raise BudgetUnknown(None, tuple(self._budgets[i].name for i in plain))
        return set(plain)

    def _ancestors(self, budget_id: int) -> set[int]:
        found: set[int] = set()
        parent = self._budgets[budget_id].parent
        while parent is not None and (parent_id := self._id(parent)) not in found:
            found.add(parent_id)
            parent = self._budgets[parent_id].parent
        return found

    def _id(self, name: str) -> int:
        if name not in self._ids:
            raise BudgetUnknown(name, self.names)
        return self._ids[name]
