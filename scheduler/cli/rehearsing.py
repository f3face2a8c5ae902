"""When a batch would be done, with this budget and with others; a part of ``scheduler quote``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

from scheduler.budget import Unit
from scheduler.cli.dates import basis, end_of_day_ms, moment, row, sentence
from scheduler.cli.output import tell
from scheduler.limits import Limits
from scheduler.rehearsal import Ask, Desk, Finish, Group, Purse, Scene, finish, finish_once

if TYPE_CHECKING:
    from scheduler.core.intake import Intake
    from scheduler.rehearsal import Lore
    from scheduler.request import Quote, Request
    from scheduler.stats import BudgetStatus, CapStatus

AT_ONCE = 64  # as many calls as a run makes, unless it is told otherwise
BUDGET = "default"
FEW = 200  # requests that are played to compare budgets
STEPS = 10  # by which the smallest one is looked for
MOST_TIMES = 4_096  # of the limit
OTHERS = (2, 5)  # times the limit


@dataclass(slots=True)
class Lines:
    """What of a batch is to be sent, lane by lane."""

    _groups: dict[tuple[str, str, int], Group] = field(default_factory=dict)
    _rng: Random = field(default_factory=lambda: Random(0))

    def add(self, request: Request, quote: Quote, intake: Intake) -> None:
        """Count one more."""
        from scheduler.request import Priority

        key = (intake.provider_for(request), request.model, Priority.parse(request.priority))
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key, (BUDGET,))
        group.add(
            Ask(quote.ceiling_nusd, quote.ceiling_tokens, quote.expected_nusd, *quote.tokens),
            self._rng,
        )

    def scene(
        self, now_ms: int, purses: Sequence[Purse], desks: Mapping[str, Desk], lore: Lore
    ) -> Scene:
        """All of them, as they are rehearsed."""
        return Scene(now_ms, list(self._groups.values()), purses, desks, lore, begins=True)


def desks(intake: Intake, rates: Mapping[tuple[str, str], Limits]) -> dict[str, Desk]:
    """Providers as a run would use them, with the limits that are known."""
    found = {}
    for name, at_once in intake.concurrency(AT_ONCE).items():
        provider = intake.providers[name]
        models = {model: each for (its, model), each in rates.items() if its == name and model}
        limits = provider.limits or rates.get((name, "")) or Limits()
        found[name] = Desk(
            name, at_once, limits, {**models, **provider.model_limits}, provider.counting
        )
    return found


@dataclass(slots=True)
class Dates:
    """When a batch would be done.

    Attributes:
        others: Of other limits of the first cap in dollars, and when it would be done with them.
        smallest: The smallest limit with which it is done today; None: none, or there is no such cap.
        is_today: Whether it would be done today without any limit.
    """

    told: Finish
    others: list[tuple[str, int | None]] = field(default_factory=list)
    smallest: str | None = None
    is_today: bool = True


def purse(caps: Sequence[CapStatus], risk: str) -> Purse:
    """The budget that a batch draws on."""
    return Purse(BUDGET, tuple(caps), risk)


def risk_of(budget: str | None, statuses: Sequence[BudgetStatus]) -> str:
    """Which risk is taken with the budget."""
    from scheduler.budget import Budget

    if budget is not None:
        return Budget(BUDGET, budget).risk
    return next((each.budget.risk for each in statuses if each.budget.name == BUDGET), "none")


def dates(scene: Scene, seed: int) -> Dates:
    """Rehearse a batch, with its budget and with others."""
    found = Dates(finish(scene, seed=seed))
    at = _varied(scene)
    if at is None or not scene.count:
        return found

    def ends(limit: int | None) -> int | None:
        return finish_once(_with_limit(scene, at, limit), 0.5, Random(seed), FEW)

    zone = zone_of(scene)
    today_ms = end_of_day_ms(scene.now_ms, zone)
    status = scene.purses[0].caps[at]
    limit = status.limit
    assert limit is not None
    likely_ms = found.told.likely_ms
    if likely_ms is None or likely_ms > today_ms:
        for times in OTHERS:
            found.others.append((_text(status, limit * times), ends(limit * times)))
    unlimited_ms = ends(None)
    found.is_today = unlimited_ms is not None and unlimited_ms <= today_ms
    if found.is_today:
        smallest = _smallest(ends, limit, today_ms)
        found.smallest = None if smallest is None else _text(status, smallest)
    return found


def _varied(scene: Scene) -> int | None:
    """Which cap is asked about: the first in dollars; None: there is none."""
    for purse_ in scene.purses:
        for at, status in enumerate(purse_.caps):
            if status.cap.unit is Unit.USD and status.limit:
                return at
    return None


def zone_of(scene: Scene) -> str:
    """The zone in which people of its budget live."""
    return next((c.cap.window.zone for each in scene.purses for c in each.caps), "UTC")


def _with_limit(scene: Scene, at: int, limit: int | None) -> Scene:
    first, *others = scene.purses
    caps = list(first.caps)
    if limit is None:
        del caps[at]
    else:
        caps[at] = replace(caps[at], limit=limit)
    return replace(scene, purses=[replace(first, caps=tuple(caps)), *others])


def _smallest(ends: Callable[[int | None], int | None], limit: int, today_ms: int) -> int | None:
    """The smallest limit with which it is done by then, to about two digits; None: far more."""

    def is_enough(some: float) -> bool:
        at_ms = ends(round(some))
        return at_ms is not None and at_ms <= today_ms

    low, high = limit / MOST_TIMES, float(limit)
    while not is_enough(high):
        low, high = high, high * 4
        if high > limit * MOST_TIMES:
            return None
    for _ in range(STEPS):
        if high / low < 1.02:
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    digit = int(10 ** max(0, math.floor(math.log10(high)) - 1))
    return math.ceil(high / digit) * digit


def _text(status: CapStatus, limit: int) -> str:
    return str(replace(status.cap, limit=limit))


def tell_dates(found: Dates, scene: Scene) -> None:
    """Say it to people."""
    if not scene.count:
        return
    told, now_ms, zone = found.told, scene.now_ms, zone_of(scene)
    most = max((scene.desk(each.provider).at_once for each in scene.groups), default=AT_ONCE)
    tell(f"{sentence(told, zone, now_ms)}, with {most} calls at once; {basis(told)}")
    words = [
        f"with {text} {'not without a raise' if at_ms is None else moment(at_ms, zone, now_ms)}"
        for text, at_ms in found.others
    ]
    if found.smallest is not None:
        words.append(f"the smallest that is done today is about {found.smallest}")
    elif not found.is_today and _varied(scene) is not None:
        words.append("no budget has it done today: the calls themselves take longer")
    if words:
        tell("other budgets: " + "; ".join(words))


def as_json_row(found: Dates, scene: Scene) -> dict[str, object]:
    """The same for programs."""
    from scheduler.cli.output import iso

    zone = zone_of(scene)
    return {
        **row(found.told, zone),
        "others": {text: iso(at_ms, zone) for text, at_ms in found.others},
        "smallest_for_today": found.smallest,
    }
