"""Whether the sums of what was posted are what they are the sums of; reads all of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from scheduler.budget import Unit
from scheduler.stats import Discrepancy
from scheduler.stores.course import QUARTER_MS
from scheduler.stores.sql.codec import decode_budgets
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.spent import POSTED_AS, add
from scheduler.stores.tagged import Label, decode_tags, heading

_UNITS = (Unit.REQUESTS, Unit.USD, Unit.TOKENS)
_NONE = (0, 0, 0)
Sums = Sequence[int]  # attempts, nano-dollars, tokens

# Reservations from before there were sums by tag have none, and neither has what waited then.
_POSTED_WITH = (
    f"SELECT made_at_ms - made_at_ms % {QUARTER_MS}, tags, count(*), sum(nusd), sum(tokens)"
    " FROM reservations WHERE state = 'posted' AND tags IS NOT NULL GROUP BY 1, 2"
)
_PRUNED = (
    f"SELECT minute_ms - minute_ms % {QUARTER_MS}, sum(attempts), sum(nusd), sum(tokens)"
    " FROM sums GROUP BY 1"
)


def discrepancies(db: Connection) -> list[Discrepancy]:
    """Where the sums by model, by budget and by tag differ from what they are the sums of."""
    names: dict[int, str] = dict(db.read("SELECT id, name FROM budgets"))
    right: dict[tuple[str, int], list[int]] = {}
    for quarter_ms, model, budgets, *sums in db.read(POSTED_AS):
        heads = [f"(model {model})", *(names.get(each, "?") for each in decode_budgets(budgets))]
        for head in heads:
            add(right.setdefault((head, quarter_ms), [0, 0, 0]), sums)
    have: dict[tuple[str, int], list[int]] = {}
    for quarter_ms, model, *sums in db.read(
        "SELECT quarter_ms, model, attempts, nusd, tokens FROM spent"
    ):
        add(have.setdefault((f"(model {model})", quarter_ms), [0, 0, 0]), sums)
    for budget_id, quarter_ms, *sums in db.read(
        "SELECT budget_id, quarter_ms, attempts, nusd, tokens FROM spent_of_budgets"
    ):
        add(have.setdefault((names.get(budget_id, "?"), quarter_ms), [0, 0, 0]), sums)
    found = list(_of_tags(db))
    for name, quarter_ms in sorted(right.keys() | have.keys()):
        rows = have.get((name, quarter_ms), [0, 0, 0]), right.get((name, quarter_ms), [0, 0, 0])
        for unit, stored, recomputed in zip(_UNITS, *rows, strict=True):
            if stored != recomputed:
                found.append(
                    Discrepancy(name, "sums", unit, quarter_ms, "spent", stored, recomputed)
                )
    return found


def _of_tags(db: Connection) -> Iterator[Discrepancy]:
    """The same of the sums by tag.

    What was pruned is not known by its tags any more. So in its quarter of an hour a sum may be as
    much more than what is there still as was pruned in all, and no more.
    """
    have: dict[int, dict[Label, Sums]] = {}
    for quarter_ms, tag, value, *sums in db.scan(
        "SELECT quarter_ms, tag, value, attempts, nusd, tokens FROM spent_of_tags"
    ):
        have.setdefault(quarter_ms, {})[tag, value] = sums
    known = {quarter_ms: _by_tag(labels) for quarter_ms, labels in have.items()}
    right: dict[int, dict[Label, list[int]]] = {}
    for quarter_ms, tags, *sums in db.scan(_POSTED_WITH):
        for label in decode_tags(tags):
            under = heading(known.get(quarter_ms, {}), label)
            if under is not None:
                add(right.setdefault(quarter_ms, {}).setdefault(under, [0, 0, 0]), sums)
    pruned: dict[int, Sums] = {each: sums for each, *sums in db.read(_PRUNED)}
    for quarter_ms in sorted(have.keys() | right.keys()):
        stored, least = have.get(quarter_ms, {}), right.get(quarter_ms, {})
        for label in sorted(stored.keys() | least.keys()):
            name = f"(tag {'='.join(label)})"
            yield from _off(
                name, quarter_ms, stored.get(label, _NONE), least.get(label, _NONE),
                pruned.get(quarter_ms, _NONE),
            )  # fmt: skip


def _by_tag(labels: Mapping[Label, Sums]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for tag, value in labels:
        found.setdefault(tag, set()).add(value)
    return found


def _off(
    name: str, quarter_ms: int, stored: Sums, least: Sums, more: Sums
) -> Iterator[Discrepancy]:
    """Where what is stored is less than there is, or so much more that nothing explains it."""
    for unit, have, low, extra in zip(_UNITS, stored, least, more, strict=True):
        right = min(max(have, low), low + extra)
        if have != right:
            yield Discrepancy(name, "sums", unit, quarter_ms, "spent", have, right)
