"""Under which budget a request is counted, of all those on which it draws."""

from __future__ import annotations

from collections.abc import Collection

from scheduler.errors import BudgetUnknown
from scheduler.ledger.matching import BudgetBook
from scheduler.request import Request


def budget_of(book: BudgetBook, request: Request, drawn: Collection[int]) -> str:
    """The budget that a request names, several joined by ``+``.

    One that names none: those on which it draws, without their parents.

    Args:
        book: Knows the names.
        request: The request.
        drawn: The ids of all budgets on which it draws.
    """
    named = request.budget
    if isinstance(named, str):
        return named
    if named:
        return "+".join(named)
    names = [book.name(each) for each in drawn]
    if len(names) > 1:
        parents = set()
        for name in names:
            try:
                parents.add(book[name].parent)
            except BudgetUnknown:  # it was removed meanwhile
                continue
        names = [name for name in names if name not in parents]
    return "+".join(sorted(names))
