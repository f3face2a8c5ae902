"""A smaller world in which what waits takes as long as in the real one. Pure.

Of N requests n are played, one for every N/n of them. With f = n/N, so that money lasts as long,

    limits of money and of rates, what was spent     f times as much
    places                                           f times as many, but no fewer than `FEWEST_PLACES`
    a call                                           g times as slow, where there are more of these:
                                                     it is g calls, one after the other
    a ceiling                                        what it costs, and of the rest 1/g, so that calls
                                                     under way hold as much as they really do; or f,
                                                     where there are windows, so that as much of each
                                                     is left over as really is

Where a rate is so low that less than `FEWEST_A_MINUTE` would be left of it, f is larger, and only some are
played. Windows so short that fewer than `FEWEST_IN_WINDOW` of the played ones would fit are made wider, with the
limit. Of more than `MOST_WINDOWS` windows only the first are played; the rest go on like these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from scheduler.budget import Budget, Cap, Unit, Window, WindowKind
from scheduler.ledger.account import unit_index
from scheduler.limits import Limits
from scheduler.limits.meter import COUNTING
from scheduler.rehearsal.lore import Drawn, Shift, spread
from scheduler.rehearsal.scene import Ask, Desk, Group, Purse, Scene

if TYPE_CHECKING:
    from random import Random

FEWEST_PLACES = 8
FEWEST_IN_WINDOW = 8
FEWEST_A_MINUTE = 4
MOST_WINDOWS = 6
PACES_DIFFER = 0.04  # one deviation, as a share: how fast calls and limits turn out to be
MOST_DRAWS = 32  # for one call
WARM, MOST_KNOWN = 50, 256  # calls from which a risk learns

Spent = tuple[str, int, int, int]  # of which budget and cap, in which slot, how much


@dataclass(frozen=True, slots=True)
class Play:
    """One request as it is played; `part` is the number of the part of the world it belongs to."""

    provider: str
    model: str
    priority: int
    budgets: tuple[str, ...]
    ceiling_nusd: int
    ceiling_tokens: int
    input: int
    output: int
    drawn: Drawn
    part: int


@dataclass(slots=True)
class Part:
    """Groups that draw on the same money, directly or through others: they are done together.

    Attributes:
        wanted: How many requests would have to be played for all of it to be done.
        window: The one that takes longest; None: no window holds it up.
        periods: How many of these it takes, roughly.
        played: How many of the wanted are played; the others go on like these.
        slow: How many calls one that is played stands for, one after the other.
    """

    groups: list[Group]
    wanted: float = 0.0
    window: Window | None = None
    periods: float = 0.0
    played: int = 0
    slow: float = 1.0


@dataclass(slots=True)
class World:
    """What is played."""

    now_ms: int
    plays: list[Play]
    parts: list[Part]
    budgets: list[Budget]
    spent: list[Spent]
    paused: list[str]
    desks: list[Desk] = field(default_factory=list)
    last_ms: list[float] = field(default_factory=list)  # how long the last calls of each part go on
    known: list[Play] = field(default_factory=list)  # what such calls came to before


def shrink(scene: Scene, most: int, level: float, rng: Random) -> World:
    """A world with about so many requests, at most half as many again."""
    purses = {each.name: each for each in scene.purses}
    groups = [
        _once_more(replace(each, budgets=tuple(n for n in each.budgets if n in purses)), level, rng)
        for each in scene.groups if each.count and each.asks
    ]  # fmt: skip
    # Providers are not as fast as they were, nor is a small world quite what it stands for.
    slower = 1.0 if level == 0.5 else math.exp(rng.gauss(0.0, PACES_DIFFER))
    means = {id(each): _mean(scene, each, level, slower, rng) for each in groups}
    parts = _parts(groups)
    for part in parts:
        _measure(part, purses, means)
    total = sum(each.count for each in groups)
    longest = max((each.periods for each in parts), default=0.0)
    share = min(1.0, most / total * max(1.0, longest / MOST_WINDOWS)) if total else 1.0
    share = _for_rates(scene, groups, share)
    played = min(1.0, 1.5 * most / (share * total)) if total else 1.0
    fitting = {id(each): _fitting(each, purses, means) for each in groups}
    slow = _slowness(scene, groups, fitting, share)
    plays: list[Play] = []
    for number, part in enumerate(parts):
        part.wanted = 0.0
        for group in part.groups:
            wanted = share * group.count
            part.wanted += wanted
            part.played -= len(plays)
            count = int(wanted * played + rng.random()) if share * played < 1 else group.count
            each = slow[group.provider]
            part.slow = max(part.slow, each)
            rest = 1 / each if part.window is None else share
            scale = _Scale(each, rest, share, number, means[id(group)][1])
            plays += _plays(scene, group, count, scale, rng)
            part.played += len(plays)
    if not plays and groups:
        plays = _plays(scene, groups[0], 1, _Scale(1.0, 1.0, 1.0, 0, Shift()), rng)
    world = World(scene.now_ms, plays, parts, [], [], [])
    for purse in scene.purses:
        _add_purse(world, purse, share, _usual(purse, groups, means))
    world.last_ms = [_last_ms(scene, part, share, fitting, means, rng) for part in parts]
    world.known = [each for each in plays if len(scene.lore.of(each.model).lessons) >= WARM][
        :MOST_KNOWN
    ]
    world.desks = [_desk(scene.desk(name), share, slow[name], slower)
                   for name in {each.provider for each in groups}]  # fmt: skip
    return world


def _once_more(group: Group, level: float, rng: Random) -> Group:
    """As it might be as well: of those that are known by a sample another might have been drawn."""
    if level == 0.5 or not group.is_sampled or group.told <= 1:
        return group
    asks = rng.choices(group.asks, k=len(group.asks))
    return replace(group, asks=asks, told=0)


def _for_rates(scene: Scene, groups: Sequence[Group], share: float) -> float:
    """That much or more, so that the least rate limit is a whole number a minute, and not too small."""
    rates = [
        each.requests_per_minute
        for name in {group.provider for group in groups}
        for each in (scene.desk(name).limits, *scene.desk(name).model_limits.values())
        if each.requests_per_minute
    ]
    if not rates:
        return share
    least = min(rates)
    return min(1.0, max(FEWEST_A_MINUTE, math.ceil(share * least - 1e-9)) / least)


Means = Mapping[int, tuple[Drawn, Shift]]


def _mean(
    scene: Scene, group: Group, level: float, slower: float, rng: Random
) -> tuple[Drawn, Shift]:
    """What one request of a group comes to, and how that differs from what is known."""
    tale = scene.lore.of(group.model)
    shift = tale.shift(level, group.count, rng)
    shift = replace(shift, ms=shift.ms * slower)
    drawn = tale.draw(group.asks, 1, tale.corrected(shift, *group.lacks(group.asks)), rng)
    nusd, tokens, ms = (sum(each) / len(drawn) for each in zip(*drawn, strict=True))
    return Drawn(nusd, tokens, ms), shift


def _parts(groups: Sequence[Group]) -> list[Part]:
    parts: list[tuple[set[str], Part]] = []
    for group in groups:
        names, part = set(group.budgets), Part([group])
        for other in [each for each in parts if each[0] & names]:
            parts.remove(other)
            names |= other[0]
            part.groups += other[1].groups
        parts.append((names, part))
    return [part for _, part in parts]


def _in(unit: Unit, drawn: Drawn) -> float:
    return (drawn.nusd, drawn.tokens, 1.0)[unit_index(unit)]


def _measure(part: Part, purses: Mapping[str, Purse], means: Means) -> None:
    """Note which window takes a part longest."""
    longest_ms = 0.0
    for name in {each for group in part.groups for each in group.budgets} & purses.keys():
        for status in purses[name].caps:
            window, limit = status.cap.window, status.limit
            if not limit or window.kind is WindowKind.TOTAL:
                continue
            need = sum(group.count * _in(status.cap.unit, means[id(group)][0])
                       for group in part.groups if name in group.budgets)  # fmt: skip
            periods = (need - max(0, limit - status.posted)) / limit
            span_ms = period_ms(window, status.window_start_ms)
            if periods > 0 and periods * span_ms > longest_ms:
                longest_ms = periods * span_ms
                part.window, part.periods = window, periods


def period_ms(window: Window, at_ms: int) -> int:
    """How long a window is."""
    if window.kind is WindowKind.ROLLING:
        return window.span_ms + window.bucket_ms
    end_ms = window.resets_at_ms(at_ms)
    assert end_ms is not None, "what has a period has an end"
    return end_ms - window.slot_start_ms(at_ms)


def _slowness(
    scene: Scene, groups: Sequence[Group], fitting: Mapping[int, float], share: float
) -> dict[str, float]:
    """How many calls, one after the other, one that is played stands for, by provider."""
    slow = {}
    for name in {each.provider for each in groups}:
        # No more are under way than money holds ceilings of.
        most = min(fitting[id(each)] for each in groups if each.provider == name)
        at_once = min(scene.desk(name).at_once, max(1.0, most))
        places = max(float(FEWEST_PLACES), share * at_once)
        if at_once == scene.desk(name).at_once:
            places = math.ceil(places - 1e-9)  # there are only whole ones
        slow[name] = places / (share * at_once) if share < 1 else 1.0
    return slow


def _last_ms(
    scene: Scene, part: Part, share: float, fitting: Mapping[int, float], means: Means, rng: Random
) -> float:
    """How long the last calls go on when no other is left to begin.

    As many as are under way at once, each at some point of its time: the longer it is, the more
    likely. In the small world they are fewer, and means of several.
    """
    longest = 0.0
    for group in part.groups if share < 1 else ():
        tale = scene.lore.of(group.model)
        most = min(scene.desk(group.provider).at_once, fitting[id(group)], group.count)
        drawn = tale.draw(group.asks, 1, means[id(group)][1], rng)
        times = [each.ms for each in drawn]
        for ms in rng.choices(times, times, k=max(1, int(most))) if any(times) else ():
            longest = max(longest, ms * rng.random())
    return longest


def _fitting(group: Group, purses: Mapping[str, Purse], means: Means) -> float:
    """How many requests of a group the money that there is at best holds at once."""
    found = math.inf
    for purse in (purses[name] for name in group.budgets if name in purses):
        for status in purse.caps:
            if status.limit is None or status.cap.unit is Unit.REQUESTS:
                continue
            at = unit_index(status.cap.unit)
            need = sum(ask[at] for ask in group.asks) / len(group.asks)
            if purse.risk != "none":
                need = min(need, 1.2 * _in(status.cap.unit, means[id(group)][0]))
            if need > 0:
                found = min(found, status.limit / need)
    return found


@dataclass(frozen=True, slots=True)
class _Scale:
    """How the requests of one group are played.

    Attributes:
        slow: How many calls one stands for, one after the other.
        rest: How much is kept of what a ceiling has beyond the cost.
        share: How much of the real world is played.
    """

    slow: float
    rest: float
    share: float
    part: int
    shift: Shift


def _plays(scene: Scene, group: Group, count: int, scale: _Scale, rng: Random) -> list[Play]:
    if not count:
        return []
    slow, rest = scale.slow, scale.rest
    # What a provider gives back when the answer is there hardly slows anybody down.
    is_given_back = COUNTING.get(scene.desk(group.provider).counting, COUNTING["default"]).corrects
    more = scale.share if is_given_back else 1.0
    picked = spread(sorted(group.asks, key=_expected), count, rng)
    each = min(MOST_DRAWS, max(1, round(slow)))
    tale = scene.lore.of(group.model)
    drawn = tale.draw(picked, each, tale.corrected(scale.shift, *group.lacks(picked)), rng)
    return [
        Play(
            group.provider, group.model, group.priority, group.budgets,
            _ceiling(ask.ceiling_nusd, one.nusd, rest), _ceiling(ask.ceiling_tokens, one.tokens, rest),
            ask.input, _ceiling(ask.output, one.tokens - ask.input, more),
            Drawn(one.nusd, one.tokens, one.ms * slow), scale.part,
        )
        for ask, one in zip(picked, drawn, strict=True)
    ]  # fmt: skip


def _expected(ask: Ask) -> int:
    return ask.expected_nusd


def _ceiling(ceiling: int, cost: float, rest: float) -> int:
    if rest >= 1 or not ceiling:
        return ceiling
    cost = max(0.0, cost)
    return math.ceil(cost + max(0.0, ceiling - cost) * rest)


def _usual(purse: Purse, groups: Sequence[Group], means: Means) -> Drawn:
    """What a request comes to that draws on a budget."""
    mine = [each for each in groups if purse.name in each.budgets]
    count = sum(each.count for each in mine)
    if not count:
        return Drawn(0, 0, 0)
    sums = zip(*((v * g.count for v in means[id(g)][0]) for g in mine), strict=True)
    return Drawn(*(sum(each) / count for each in sums))


def _add_purse(world: World, purse: Purse, share: float, usual: Drawn) -> None:
    caps = []
    for at, status in enumerate(purse.caps):
        cap, limit = status.cap, status.limit
        if limit is None:
            caps.append(cap)
            continue
        small = max(1, round(share * limit))
        cap = _widened(cap, small, _in(cap.unit, usual)) if share < 1 else cap
        if cap.window == status.cap.window:
            cap = replace(cap, limit=small)
            slots = status.slots or ((status.window_start_ms, status.posted),)
            world.spent += [
                (purse.name, at, slot_ms, round(share * amount)) for slot_ms, amount in slots
            ]
            kept = status.suspense
            if kept:
                world.spent.append((purse.name, at, status.window_start_ms, round(share * kept)))
        caps.append(cap)
    budget = Budget(purse.name, risk=purse.risk)
    budget.caps = tuple(caps)
    world.budgets.append(budget)
    if purse.paused:
        world.paused.append(purse.name)


def _widened(cap: Cap, limit: int, each: float) -> Cap:
    """The same over a longer time, if too few would fit into its window."""
    window = cap.window
    times = math.ceil(FEWEST_IN_WINDOW * each / limit)
    if times <= 1 or window.kind is WindowKind.TOTAL or cap.pace is not None:
        return cap
    span_ms = window.span_ms or period_ms(window, 0)
    wide = Window(WindowKind.ROLLING, span_ms=span_ms * times)
    return replace(cap, limit=limit * times, window=wide)


def _desk(desk: Desk, share: float, slow: float, slower: float) -> Desk:
    at_once = max(1, round(share * desk.at_once * slow))
    return Desk(
        desk.name, min(desk.at_once, at_once), _fewer(desk.limits, share / slower),
        {model: _fewer(each, share / slower) for model, each in desk.model_limits.items()}, desk.counting,
    )  # fmt: skip


def _fewer(limits: Limits, share: float) -> Limits:
    if share == 1:
        return limits
    told = (
        limits.requests_per_minute, limits.tokens_per_minute, limits.input_tokens_per_minute,
        limits.output_tokens_per_minute,
    )  # fmt: skip
    return Limits(*(None if each is None else max(1, round(share * each)) for each in told))
