"""Several rehearsals with different luck: early, likely, late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from scheduler.budget import WindowKind
from scheduler.limits.gate import FIRST_WINDOW
from scheduler.rehearsal.lore import GUESSED_MS, Drawn
from scheduler.rehearsal.scale import MOST_WINDOWS, Part, Play, World, period_ms, shrink
from scheduler.rehearsal.scene import Desk, Scene
from scheduler.rehearsal.stage import Played, play
from scheduler.window import Window

LEVELS = tuple(k / 10 for k in range(1, 10))  # of luck, run by run
MOST = 300  # requests that are played in one run
FEW = 120  # the same where somebody waits for it, or others need the processor
LONGEST_MS = 400 * 86_400_000  # without a window
FEWEST_EVEN = 20  # requests from which it is judged how evenly they go
ROUNDS = 6  # of as many calls as may go at once, until all of them do
MOST_AT_ONCE = 256
MOST_STEPS = 20_000  # windows that are counted one by one


@dataclass(frozen=True, slots=True)
class Finish:
    """When what waits will be done, in Unix milliseconds; None: not without a raise.

    Attributes:
        early_ms: In about one of ten cases it is done before.
        late_ms: In about one of ten cases it takes longer.
        requests: How many wait.
        calls: On how many calls it rests.
    """

    early_ms: int | None
    likely_ms: int | None
    late_ms: int | None
    requests: int
    calls: int


def finish(
    scene: Scene, *, seed: int = 0, levels: Sequence[float] = LEVELS, most: int = MOST
) -> Finish:
    """When all that waits will be done.

    Each run has its own luck: so unlucky in what calls cost and take (its level), so fast, and with other
    calls. So the truth is as one run more, and of nine and that one it is the first or the last in two
    of ten cases: it lies between them in eight.

    It takes two to four seconds of processor time, however much waits; so ask it where people ask, and
    in a thread where an event loop runs.

    Args:
        scene: What waits, and what is known.
        seed: The same one gives the same dates.
        levels: One run for each.
        most: How many requests are played in one run, about.
    """
    if not scene.count:
        return Finish(scene.now_ms, scene.now_ms, scene.now_ms, 0, scene.lore.count)
    found = [
        finish_once(scene, level, Random(f"{seed}/{at}"), most) for at, level in enumerate(levels)
    ]
    known = sorted(each for each in found if each is not None)
    usual_ms, longest_ms = _one_ms(scene, 0.9), _one_ms(scene, 1.0)
    # After a reset few may be left, which all begin at once: none of them need be a long one.
    has_windows = any(
        c.cap.window.kind is not WindowKind.TOTAL for p in scene.purses for c in p.caps
    )
    early_ms = longest_ms if has_windows else usual_ms
    middle = sorted(found, key=lambda each: (each is None, each))[len(found) // 2]
    return Finish(
        max(scene.now_ms, known[0] - early_ms) if known else None,
        middle,
        known[-1] + usual_ms if len(known) == len(found) else None,
        scene.count,
        scene.lore.count,
    )


def finish_once(scene: Scene, level: float, rng: Random, most: int = MOST) -> int | None:
    """One rehearsal: when all would be done, in Unix milliseconds; None: not without a raise.

    Args:
        scene: What waits, and what is known.
        level: How unlucky: in that share of cases calls cost and take less.
        rng: Draws.
        most: How many requests are played, about.
    """
    world = shrink(scene, most, level, rng)
    ended = play(world, _horizon_ms(world))
    is_small = len(world.plays) < scene.count  # else its beginning has been played
    latest = scene.now_ms
    for number, part in enumerate(world.parts):
        its = [each for each in ended if each.part == number]
        at_ms = _end_ms(part, its, world.last_ms[number], scene.now_ms)
        if at_ms is None:
            return None
        # Where it goes on in another window its beginning is long over by then.
        begins = scene.begins and is_small and part.window is None
        latest = max(latest, at_ms + (beginning_ms(scene) if begins else 0))
    return latest


def _one_ms(scene: Scene, share: float) -> int:
    """What a long call takes, which that share of them do not exceed.

    Nobody knows any better when the last of them ends.
    """
    longest = 0
    for group in scene.groups:
        times = sorted(each.ms for each in scene.lore.of(group.model).lessons)
        longest = max(longest, times[int(share * (len(times) - 1))] if times else GUESSED_MS)
    return longest


def beginning_ms(scene: Scene) -> int:
    """What it costs a run that it starts with few calls at once, in milliseconds.

    That takes as many answers in a small world as in the real one, so it is played by itself.
    """
    latest = 0
    for name in sorted({each.provider for each in scene.groups}):
        desk = scene.desk(name)
        model = next(each.model for each in scene.groups if each.provider == name)
        is_known = desk.limits.per_minute() or desk.model_limits
        if is_known or desk.at_once <= FIRST_WINDOW:
            continue
        lessons = scene.lore.of(model).lessons
        ms = sum(each.ms for each in lessons) / len(lessons) if lessons else GUESSED_MS
        latest = max(latest, round(ms * _rounds_lost(min(desk.at_once, MOST_AT_ONCE))))
    return latest


@lru_cache(maxsize=64)
def _rounds_lost(at_once: int) -> float:
    """How many times what a call takes."""
    one = Play("p", "m", 0, (), 0, 0, 0, 0, Drawn(0, 0, 1_000.0), 0)
    world = World(0, [one] * (ROUNDS * at_once), [], [], [], [], [Desk("p", at_once)])
    return play(world, LONGEST_MS)[-1].ended_ms / 1_000 - ROUNDS


def _horizon_ms(world: World) -> int:
    spans = [period_ms(part.window, world.now_ms) for part in world.parts if part.window]
    if len(spans) < len(world.parts) or max(each.periods for each in world.parts) <= MOST_WINDOWS:
        return LONGEST_MS
    return (MOST_WINDOWS + 1) * max(spans)


def _end_ms(part: Part, played: Sequence[Played], last_ms: float, now_ms: int) -> int | None:
    """When the last of a part ends, if it goes on as in the windows that were played."""
    if not played:
        return now_ms if part.wanted < 1 else None
    if len(played) >= part.wanted - 1:
        began_ms = max(each.began_ms for each in played)
        if not last_ms:
            return now_ms + played[-1].ended_ms
        # What is played slowly stands for several calls, of which the others begin later still.
        open_ms = [each.ended_ms - began_ms for each in played if each.ended_ms > began_ms]
        more_ms = sum(open_ms) / max(1, len(open_ms)) * (1 - 1 / part.slow)
        return now_ms + round(began_ms + more_ms + last_ms)
    if part.window is None:
        return _on_and_on_ms(part, played, last_ms, now_ms)
    times = sorted(now_ms + each.began_ms for each in played)
    starts = _starts(part.window, now_ms, times[-1])
    if len(starts) < 3:
        return None
    # What went in whole windows; the first one was under way when it was looked at.
    each = sum(starts[0] <= at < starts[-1] for at in times) / (len(starts) - 1)
    if not each:
        return None
    before = sum(at < starts[-1] for at in times)
    windows, rest = divmod(part.wanted - before, each)
    start_ms = _after(part.window, starts[-1], int(windows))
    last = [at - starts[-2] for at in times if starts[-2] <= at < starts[-1]]
    more_ms = last[min(len(last) - 1, int(rest / each * len(last)))] if last else 0
    return start_ms + round(more_ms + last_ms)


def _on_and_on_ms(part: Part, played: Sequence[Played], last_ms: float, now_ms: int) -> int | None:
    """When it ends if the rest begins as evenly as what was played; None: that came to a stop."""
    if len(played) < part.played or len(played) < FEWEST_EVEN:
        return None
    times = sorted(each.began_ms for each in played)
    since = len(times) // 5  # what goes at once at the beginning says nothing of later
    each_ms = (times[-1] - times[since]) / (len(times) - 1 - since)
    return now_ms + round(times[-1] + each_ms * (part.wanted - len(times)) + last_ms)


def _starts(window: Window, now_ms: int, until_ms: int) -> list[int]:
    """When windows begin that are played to their ends."""
    found = []
    at_ms = now_ms if window.kind is WindowKind.ROLLING else window.resets_at_ms(now_ms)
    while at_ms is not None and at_ms <= until_ms:
        found.append(at_ms)
        at_ms = at_ms + period_ms(window, at_ms)
    return found


def _after(window: Window, start_ms: int, count: int) -> int:
    if window.kind is WindowKind.ROLLING or count > MOST_STEPS:
        return start_ms + count * period_ms(window, start_ms)
    for _ in range(count):
        start_ms = window.resets_at_ms(start_ms) or start_ms
    return start_ms
