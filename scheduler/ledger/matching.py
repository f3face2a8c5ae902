"""Which budgets a request draws on.

It draws on every budget it names, every budget whose rules cover its model and
tags, and all their parents. If it names none and there are budgets without rules,
it draws on the one called ``default``, else on the only one; with several, it has
to say which. An empty tuple names none on purpose.

Where the program has declared budgets, only these are chosen from for a request that
names none. All others bind whoever names them, and by their rules everybody.

>>> book = BudgetBook([(1, Budget("org", "$9")), (2, Budget("team", "$5", parent="org")),
...                    (3, Budget("gpt", "$1", models=["gpt-*"]))])
>>> book.draws_on("gpt-4o", {}, "team"), book.draws_on("llama", {}, ())
((1, 2, 3), ())
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from scheduler.budget import Budget
from scheduler.errors import BudgetUnknown
from scheduler.naming import Asked, Names, names_of, written_as

DEFAULT = "default"
MAX_REMEMBERED = 4096
_WILD = frozenset("*?[")
_NO_NAMES = names_of()

T = TypeVar("T")


class BudgetBook:
    """The defined budgets, by id and name; a change costs what it changes.

    Args:
        budgets: Those there are.
        names: Finds the names of a model. None: those that follow from how it is written.
    """

    def __init__(
        self,
        budgets: Iterable[tuple[int, Budget]] = (),
        names: Callable[[Asked], Names] | None = None,
    ) -> None:
        self._ids: dict[str, int] = {}
        self._budgets: dict[int, Budget] = {}
        self._names: dict[int, str] = {}  # of those that were removed as well
        self._rules = _Rules()
        self._all, self._declared = _Choice(), _Choice()
        self._declared_names: set[str] = set()
        self._names_of = names or _as_written
        self._remembered: _Memory[tuple[int, ...]] = _Memory()
        self._met: _Memory[Names] = _Memory()
        self.update(budgets)

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
        """The name of a budget, even of one that was removed."""
        return self._names.get(budget_id) or f"#{budget_id}"  # another process's, made just now

    # Changes

    def update(self, budgets: Iterable[tuple[int, Budget]]) -> None:
        """Take in budgets that were made or changed."""
        for budget_id, budget in budgets:
            old = self._budgets.get(budget_id)
            self._budgets[budget_id] = budget
            if old is not None and (old.models, old.tags, old.parent) == (
                budget.models, budget.tags, budget.parent
            ):  # fmt: skip
                continue  # only its limit: nobody draws on others
            if old is not None:
                self._take_out(budget_id, old)
            self._ids[budget.name], self._names[budget_id] = budget_id, budget.name
            self._all.add(budget_id, budget)
            if budget.name in self._declared_names or self._declared.is_parent(budget.name):
                self._include(budget.name)
            if budget.has_rules:
                self._rules.add(budget_id, budget)
            if old is not None or budget.has_rules:
                self._remembered.clear()

    def remove(self, names: Iterable[str]) -> None:
        """Forget budgets: they bind nobody any more."""
        for name in names:
            budget_id = self._ids.pop(name, None)
            if budget_id is not None:
                self._take_out(budget_id, self._budgets.pop(budget_id))
                self._remembered.clear()

    def declare(self, names: Iterable[str]) -> None:
        """The program names these budgets as its own, now or once they are there."""
        for name in names:
            self._declared_names.add(name)
            self._include(name)

    @property
    def has_declared(self) -> bool:
        """Whether the program declared any."""
        return bool(self._declared_names)

    def _include(self, name: str | None) -> None:
        """A budget is declared; with it its parents are named."""
        while name in self._ids and (budget_id := self._ids[name]) not in self._declared:
            self._declared.add(budget_id, self._budgets[budget_id])
            name = self._budgets[budget_id].parent

    def _take_out(self, budget_id: int, budget: Budget) -> None:
        """It is gone, or to be put in anew."""
        self._all.remove(budget_id, budget)
        self._rules.remove(budget_id, budget)
        if self._declared.remove(budget_id, budget):
            self._exclude(budget.parent)

    def _exclude(self, name: str | None) -> None:
        """A parent that nobody names any more."""
        while (
            name in self._ids and name not in self._declared_names
            and not self._declared.is_parent(name)
        ):  # fmt: skip
            budget = self._budgets[self._ids[name]]
            if not self._declared.remove(self._ids[name], budget):
                return
            name = budget.parent

    @property
    def left_out(self) -> list[str]:
        """Budgets that the program did not declare, so that only requests which name them draw
        on them; none if it declared none. Children of declared ones are not among them.
        """  # noqa: D205
        if not self._declared:
            return []
        return [
            budget.name for budget_id, budget in self._budgets.items()
            if not budget.has_rules and budget_id not in self._declared
            and not self._all.is_parent(budget.name) and not self._is_under_declared(budget)
        ]  # fmt: skip

    def _is_under_declared(self, budget: Budget) -> bool:
        seen = {budget.name}
        while budget.parent in self._ids and budget.parent not in seen:
            parent_id = self._ids[budget.parent]
            if parent_id in self._declared:
                return True
            seen.add(budget.parent)
            budget = self._budgets[parent_id]
        return False

    # Questions

    @property
    def asks_models(self) -> bool:
        """Whether it matters to any rule what model a request asks for."""
        return self._rules.ask_models > 0

    def draws_on(
        self, model: str | Asked, tags: Mapping[str, str], named: str | Sequence[str] | None
    ) -> tuple[int, ...]:
        """Ids of the budgets a request draws on, in ascending order.

        Raises:
            BudgetUnknown: It names one that does not exist, or must name one and does not.
        """
        if named is None:
            named = self._by_default()
        names = (named,) if isinstance(named, str) else tuple(named)
        asked = self._rules.tags  # what else a request is tagged with makes no difference
        labels = tuple(sorted(tag for tag in tags.items() if tag[0] in asked)) if asked else ()
        question = (model if self._rules.ask_models else "", names, labels)
        known = self._remembered.young.get(question) or self._remembered.get(question)
        if known is None:
            known = self._find(model, tags, names)
            self._remembered.put(question, known)
        return known

    def ruled_by(self, model: str | Asked, tags: Mapping[str, str]) -> tuple[str, ...]:
        """Names of the budgets whose rules cover a request."""
        return tuple(sorted(self.name(each) for each in self._covering(model, tags)))

    def met_as(self, model: str | Asked) -> Names:
        """Under what names rules look at a model."""
        asked = Asked(model) if isinstance(model, str) else model
        known = self._met.get(asked)
        if known is None:
            known = self._names_of(asked)
            self._met.put(asked, known)
        return known

    def _find(
        self, model: str | Asked, tags: Mapping[str, str], names: tuple[str, ...]
    ) -> tuple[int, ...]:
        found = self._covering(model, tags)
        found |= {self._id(name) for name in names}
        for budget_id in tuple(found):
            found |= self._ancestors(budget_id)
        return tuple(sorted(found))

    def _covering(self, model: str | Asked, tags: Mapping[str, str]) -> set[int]:
        if not self._rules:
            return set()
        met = self.met_as(model) if self._rules.ask_models else _NO_NAMES
        return {each for each, budget in self._rules.near(met, tags) if budget.covers(met, tags)}

    def _by_default(self) -> tuple[str, ...]:
        choice = self._declared or self._all
        if DEFAULT in self._ids and self._ids[DEFAULT] in choice:
            return (DEFAULT,)
        if len(choice.plain) > 1:
            raise BudgetUnknown(None, tuple(self._names[i] for i in sorted(choice.plain)))
        return tuple(self._names[i] for i in choice.plain)

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


def _as_written(asked: Asked) -> Names:
    places = (asked.provider,) if asked.provider else ()
    return names_of(asked.model, asked.called, *asked.also, places=places)


class _Choice:
    """Budgets from which a request that names none gets one.

    Attributes:
        plain: Those that have no rules, and no children among them.
    """

    def __init__(self) -> None:
        self._members: dict[int, Budget] = {}
        self._by_name: dict[str, int] = {}
        self._children: Counter[str] = Counter()
        self.plain: dict[int, None] = {}

    def __bool__(self) -> bool:
        return bool(self._members)

    def __contains__(self, budget_id: int) -> bool:
        return budget_id in self._members

    def is_parent(self, name: str) -> bool:
        """Whether any of them has it for a parent."""
        return name in self._children

    def add(self, budget_id: int, budget: Budget) -> None:
        if budget_id in self._members:
            return
        self._members[budget_id], self._by_name[budget.name] = budget, budget_id
        if not budget.has_rules and budget.name not in self._children:
            self.plain[budget_id] = None
        if budget.parent is not None:
            self._children[budget.parent] += 1
            self.plain.pop(self._by_name.get(budget.parent, 0), None)

    def remove(self, budget_id: int, budget: Budget) -> bool:
        if self._members.pop(budget_id, None) is None:
            return False
        del self._by_name[budget.name]
        self.plain.pop(budget_id, None)
        if budget.parent is not None:
            self._children[budget.parent] -= 1
            if not self._children[budget.parent]:
                del self._children[budget.parent]
                parent_id = self._by_name.get(budget.parent)
                if parent_id is not None and not self._members[parent_id].has_rules:
                    self.plain[parent_id] = None
        return True


class _Rules:
    """Budgets with rules, found by the tags and models that these name, so that a rule for each of
    many users costs nothing to the others.

    Attributes:
        tags: By which tags they ask, and how many each.
        ask_models: How many of them look at the model.
    """  # noqa: D205

    def __init__(self) -> None:
        self._at: dict[_Place, dict[int, Budget]] = {}
        self._places: dict[int, tuple[_Place, ...]] = {}
        self._lengths: dict[tuple[str, str], Counter[int]] = {}  # of beginnings and ends, by tag
        self.tags: Counter[str] = Counter()
        self.ask_models = 0

    def __bool__(self) -> bool:
        return bool(self._places)

    def near(self, names: Names, tags: Mapping[str, str]) -> Iterator[tuple[int, Budget]]:
        """Those that may cover a request for this model with these tags, with their ids."""
        for place in self._met(names, tags):
            yield from self._at.get(place, {}).items()

    def _met(self, names: Names, tags: Mapping[str, str]) -> Iterator[_Place]:
        yield _ANYWHERE
        for name in names.plain | names.at:
            yield "model", name, ""
        for tag, value in tags.items():
            if tag in self.tags:
                yield "tag", tag, value
                yield "has", tag, ""
                for length in self._lengths.get(("begins", tag), ()):
                    yield "begins", tag, value[:length]
                for length in self._lengths.get(("ends", tag), ()):
                    yield "ends", tag, value[-length:]

    def add(self, budget_id: int, budget: Budget) -> None:
        places = self._places_for(budget)
        for place in places:
            self._at.setdefault(place, {})[budget_id] = budget
        self._places[budget_id] = places
        self._count(budget, places, 1)

    def remove(self, budget_id: int, budget: Budget) -> None:
        places = self._places.pop(budget_id, ())
        for place in places:
            del self._at[place][budget_id]
            if not self._at[place]:
                del self._at[place]
        if places:
            self._count(budget, places, -1)

    def _count(self, budget: Budget, places: tuple[_Place, ...], change: int) -> None:
        self.ask_models += change * bool(budget.models)
        _change(self.tags, budget.tags, change)
        for kind, tag, part in places:
            if kind in ("begins", "ends"):
                _change(self._lengths.setdefault((kind, tag), Counter()), [len(part)], change)

    def _places_for(self, budget: Budget) -> tuple[_Place, ...]:
        """Where to find a budget: by the tag that the fewest others are found by."""
        if budget.tags:
            found = [_place_of(tag, value) for tag, value in budget.tags.items()]
            return (min(found, key=lambda place: len(self._at.get(place, ()))),)
        names = [written_as(pattern) for pattern in budget.models]
        if all(names):
            return tuple({("model", name, "") for each in names for name in each})
        return (_ANYWHERE,)


_Place = tuple[str, str, str]  # of what kind, the tag or the model, and its value or a part of it
_ANYWHERE: _Place = ("anywhere", "", "")


def _place_of(tag: str, value: str) -> _Place:
    """Where a rule is found that asks for this value, or for one of this pattern."""
    wild = [at for at, letter in enumerate(value) if letter in "*?[]"]
    if not _WILD & set(value):
        return "tag", tag, value
    if value[: wild[0]]:
        return "begins", tag, value[: wild[0]]
    if value[wild[-1] + 1 :]:
        return "ends", tag, value[wild[-1] + 1 :]
    return "has", tag, ""


def _change(counter: Counter[T], names: Iterable[T], change: int) -> None:
    for name in names:
        counter[name] += change
        if not counter[name]:
            del counter[name]


class _Memory(Generic[T]):
    """Answers by question: of the last some thousands, in two halves of which the older goes.

    Attributes:
        young: The newer half, to be asked first where that is asked often.
    """

    def __init__(self) -> None:
        self.young: dict[object, T] = {}
        self._old: dict[object, T] = {}

    def get(self, question: object) -> T | None:
        known = self.young.get(question)
        if known is None:
            known = self._old.get(question)
            if known is not None:
                self.put(question, known)
        return known

    def put(self, question: object, answer: T) -> None:
        if len(self.young) >= MAX_REMEMBERED // 2:
            self._old, self.young = self.young, {}
        self.young[question] = answer

    def clear(self) -> None:
        self.young, self._old = {}, {}
