"""Is a budget burning: spent so fast that somebody should look? Pure.

As in site reliability engineering, over a long and a short window, a twelfth of it: the long one says
that it matters, the short one that it still goes on. It is told when in both at least

    a share f of the limit · (length / long window)

was spent. Of a daily budget that is 10 % in 15 minutes (page: 9.6 times the even rate) and 25 % in 2
hours (warn: 3 times); of other windows the same shares of a 96th and of a twelfth of them. Each is told
once a window. So is that a calendar window will be used up before its reset, if it goes on at the rate of
its last twelfth. Spending at the even rate, or below, is never told.

What was spent when is noted as it is seen, at most every 2,304th of the window, so it costs a request
a comparison. A process that begins knows nothing of before; that is on the safe side.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.budget import UNLIMITED, Cap, WindowKind

if TYPE_CHECKING:
    from scheduler.ledger.account import Account

SHORT = 12  # so many short windows are a long one
PARTS = 2_304  # of the window, between two notes
MOST_NOTES = 4 * PARTS // 12
SHORTEST_MS = 3_600_000  # of a window that is watched
EARLY = 1.1  # times the rate that would use it up at the reset
LATEST = 12  # in the last such part of a window nothing is said of its end


@dataclass(frozen=True, slots=True)
class Level:
    """When to tell: `percent` of the limit within one of `parts` of the window."""

    name: str
    percent: int
    parts: int


LEVELS = (Level("page", 10, 96), Level("warn", 25, 12))
PROJECTED = "projected"


@dataclass(frozen=True, slots=True)
class Burning:
    """A budget is burning, or will be used up before its reset: see the module.

    Attributes:
        level: ``"page"``, ``"warn"`` or ``"projected"``.
        spent: So much, in the last `within_ms`.
        used_up_at_ms: When nothing is left if it goes on like this; None: not before the reset.
    """

    budget: str
    cap: Cap
    level: str
    spent: int
    within_ms: int
    posted: int
    limit: int
    used_up_at_ms: int | None
    resets_at_ms: int | None


class Burn:
    """What was spent on an account, and when, as far as this process has seen."""

    __slots__ = ("_at_ms", "_last_ms", "_next_ms", "_spent", "_told", "_total", "_was")

    def __init__(self) -> None:
        self._next_ms = 0  # before that nothing is told
        self._last_ms = 0  # when something was spent that is not noted yet; 0: nothing
        self._was: dict[int, int] | None = None  # what was posted in each slot
        self._total = 0
        self._at_ms: list[int] = []
        self._spent: list[int] = []  # in all by then
        self._told: dict[str, int] = {}  # level to the window it was told of

    @staticmethod
    def watches(cap: Cap) -> bool:
        """Whether there is anything to watch: a limit on a window that is not too short."""
        return cap.limit is not None and cap.limit > 0 and length_ms(cap) >= SHORTEST_MS

    def catch_up(self, account: Account, now_ms: int) -> None:
        """Note what was spent before now; to be called before anything is spent now."""
        if self._last_ms and now_ms >= self._next_ms:
            self._note(account, self._last_ms)

    def spend(self, account: Account, now_ms: int) -> Iterator[Burning]:
        """Something was spent; the account has been looked at. Tells what is new."""
        if now_ms < self._next_ms:
            self._last_ms = now_ms
            return
        self._note(account, now_ms)
        self._next_ms = now_ms + length_ms(account.cap) // PARTS
        if account.limit in (0, UNLIMITED):
            return
        whole_ms = length_ms(account.cap)
        for level in LEVELS:
            long_ms = whole_ms // level.parts
            spent = self.spent(now_ms, long_ms)
            least = level.percent * account.limit
            if 100 * spent >= least and 100 * SHORT * self.spent(now_ms, long_ms // SHORT) >= least:
                yield from self._tell(level.name, account, spent, long_ms, now_ms)
        yield from self._project(account, whole_ms, now_ms)

    def spent(self, now_ms: int, within_ms: int) -> int:
        """What was spent within that time, and maybe a little before it."""
        since = bisect_right(self._at_ms, now_ms - within_ms) - 1
        return self._total - self._spent[max(0, since)] if self._spent else 0

    def _note(self, account: Account, now_ms: int) -> None:
        now = {at: tally.posted for at, tally in account.slots.items() if at >= account.oldest_ms}
        was = self._was
        if was is not None:
            self._total += sum(posted - was.get(at, 0) for at, posted in now.items())
        self._was, self._last_ms = now, 0
        self._at_ms.append(now_ms)
        self._spent.append(self._total)
        if len(self._at_ms) > MOST_NOTES:
            del self._at_ms[: MOST_NOTES // 2], self._spent[: MOST_NOTES // 2]

    def _project(self, account: Account, whole_ms: int, now_ms: int) -> Iterator[Burning]:
        """Whether it will be used up before its reset, by the last twelfth of a window."""
        resets_ms = account.cap.window.resets_at_ms(now_ms)
        long_ms, short_ms = spans_ms(whole_ms)
        if resets_ms is None or not self._at_ms or self._at_ms[0] > now_ms - long_ms:
            return  # or seen for too short a time
        spent = self.spent(now_ms, long_ms)
        rates = (spent, long_ms), (self.spent(now_ms, short_ms), short_ms)
        if is_early(rates, account.limit - account.posted, resets_ms - now_ms, whole_ms):
            yield from self._tell(PROJECTED, account, spent, long_ms, now_ms)

    def _tell(
        self, level: str, account: Account, spent: int, within_ms: int, now_ms: int
    ) -> Iterator[Burning]:
        window = account.cap.window
        told = self._told.get(level)
        if window.kind is WindowKind.ROLLING:
            if told is not None and now_ms < told + window.span_ms:
                return
            self._told[level] = now_ms
        elif told == account.slot_ms:
            return
        else:
            self._told[level] = account.slot_ms
        left = max(0, account.limit - account.posted)
        used_up_ms = now_ms + round(left * within_ms / spent)
        resets_ms = window.resets_at_ms(now_ms)
        if resets_ms is not None and used_up_ms >= resets_ms:
            used_up_ms = 0
        yield Burning(
            account.budget, account.cap, level, spent, within_ms, account.posted, account.limit,
            used_up_ms or None, resets_ms,
        )  # fmt: skip


def spans_ms(whole_ms: int) -> tuple[int, int]:
    """Over how long it is seen how fast a window is used up: its last twelfth, and a twelfth of that."""
    return whole_ms // LATEST, whole_ms // LATEST // SHORT


def is_early(
    rates: tuple[tuple[int, int], tuple[int, int]], left: int, left_ms: int, whole_ms: int
) -> bool:
    """Whether a window will be used up clearly before its reset, if it goes on like this.

    Args:
        rates: What was spent over both of `spans_ms`, about, and how long each was. The lower counts.
        left: What may still be spent.
        left_ms: How long it is until the reset; at the very end of a window nothing is said.
        whole_ms: How long the window is.

    >>> is_early(((20, 2), (10, 1)), 109, 12, 24), is_early(((20, 2), (10, 1)), 110, 12, 24)
    (True, False)
    """
    if left_ms < whole_ms // LATEST:
        return False
    rate = min(spent / ms for spent, ms in rates)
    return rate * left_ms >= EARLY * max(0, left) > 0


def length_ms(cap: Cap) -> int:
    """How long a window is, about; 0: it has no length."""
    match cap.window.kind:
        case WindowKind.ROLLING:
            return cap.window.span_ms
        case WindowKind.TOTAL:
            return 0
    return LENGTHS_MS[cap.window.period]


_DAY_MS = 86_400_000
LENGTHS_MS = {
    "minute": 60_000, "hour": 3_600_000, "day": _DAY_MS, "week": 7 * _DAY_MS, "month": 30 * _DAY_MS,
    "year": 365 * _DAY_MS,
}  # fmt: skip
