"""Limits over fixed windows, and how meters are made and stored; pure.

A fixed window has its whole amount at once and gives nothing back before it ends. When it began,
only the provider knows. So its meter sees to it that *no* stretch of the window's length holds
more than the limit, wherever the windows begin: what was sent counts for one whole span. What the
provider says of the end of its window, in a header or in a refusal, ends that earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scheduler.limits.meter import HEADROOM, Counting, Dimension, Meter, Seen, is_window

ENTRIES = 64  # times at which something was sent that are told apart
GRAIN = 240  # of its span: what is sent that soon after another is one entry
MARGIN_MS = 1_000  # at most, by which what was sent may have arrived later
EXHAUSTED = 0.9  # of a limit: beyond that, a refusal is no surprise


class WindowMeter(Meter):
    """One limit that is kept over fixed windows; see the module.

    Attributes:
        ends_ms: When the provider's window ends: at the earliest, at the latest; 0: not told.
    """

    __slots__ = ("_sent", "_used", "ends_ms")

    def __init__(
        self, dimension: Dimension, limit: int, span_ms: int, burst_s: float, is_given: bool
    ) -> None:
        super().__init__(dimension, limit, span_ms, burst_s, is_given)
        self.burst = self._quota(1.0)
        self._sent: list[list[float]] = []  # first and last instant, how much
        self._used = 0.0
        self.ends_ms = (0.0, 0.0)

    @property
    def _grain_ms(self) -> float:
        return self.span_ms / GRAIN

    def _quota(self, share: float) -> float:
        return max(1.0, float(round(self.limit * HEADROOM * share)))

    def _gone_ms(self, last_ms: float) -> float:
        """When what was sent until then counts no longer."""
        at_ms = last_ms + self.span_ms
        begins_ms, ends_ms = self.ends_ms
        # What was sent right before the end may have arrived after it.
        margin_ms = min(self._grain_ms, MARGIN_MS)
        if last_ms <= begins_ms - margin_ms:
            at_ms = min(at_ms, ends_ms)
        return at_ms + margin_ms

    def _forget(self, now_ms: float) -> None:
        old = 0
        while old < len(self._sent) and self._gone_ms(self._sent[old][1]) <= now_ms:
            self._used -= self._sent[old][2]
            old += 1
        if old:
            del self._sent[:old]
            if not self._sent:
                self._used = 0.0

    def opens_at_ms(self, charge: float, now_ms: float, share: float) -> float:
        """When a charge may go; one beyond the limit goes when nothing else counts."""
        self._forget(now_ms)
        quota = self._quota(share)
        lacking = self._used + min(charge, quota) - quota - 1e-6
        if lacking <= 0:
            return now_ms
        for _, last_ms, amount in self._sent:
            lacking -= amount
            if lacking <= 0:
                return max(now_ms, self._gone_ms(last_ms))
        return now_ms + self.span_ms

    def take(self, charge: float, now_ms: float, share: float, since_ms: float = 0.0) -> None:
        """Count a charge; a negative one gives back what was counted at `since_ms`."""
        self._forget(now_ms)
        if charge < 0:
            self._give_back(-charge, since_ms)
            return
        self._used += charge
        sent = self._sent
        if sent and now_ms - sent[-1][0] < self._grain_ms:
            sent[-1][1], sent[-1][2] = max(sent[-1][1], now_ms), sent[-1][2] + charge
            return
        sent.append([now_ms, now_ms, charge])
        if len(sent) > ENTRIES:
            self._merge()

    def _merge(self) -> None:
        """Make one of the two neighbours whose earlier part then counts least too long."""
        sent = self._sent
        at = min(
            range(len(sent) - 1), key=lambda n: sent[n][2] * (sent[n + 1][1] - sent[n][1])
        )  # fmt: skip
        first, later = sent[at], sent.pop(at + 1)
        sent[at] = [first[0], later[1], first[2] + later[2]]

    def _give_back(self, amount: float, since_ms: float) -> None:
        for entry in self._sent:
            if entry[1] >= since_ms:
                given = min(amount, entry[2])
                entry[2] -= given
                self._used -= given
                amount -= given
                if amount <= 0:
                    return

    def level(self, now_ms: float, share: float) -> float:
        """How much may go now."""
        self._forget(now_ms)
        return self._quota(share) - self._used

    def empty(self, now_ms: float, share: float) -> None:
        """Let nothing more go in this window."""
        left = self.level(now_ms, share)
        if left > 0:
            self.take(left, now_ms, share)

    def ends(self, begins_ms: float, ends_ms: float) -> None:
        """The provider's window ends between these two instants."""
        if abs(begins_ms - self.ends_ms[0]) > self._grain_ms:
            self.ends_ms = (begins_ms, min(ends_ms, begins_ms + self.span_ms))

    def is_used_up(self, now_ms: float) -> bool:
        """Whether a refusal is what was to be expected."""
        self._forget(now_ms)
        return self._used >= EXHAUSTED * self.limit

    def widen(self) -> None:
        """Nothing: all of it may go at once anyway."""

    def compare(self, seen: Seen, level: float, shift: float, share: float, now_ms: float) -> None:
        """Follow the provider's own count where it is higher: others use the limit, too."""
        off = level - (seen.remaining - (self.limit - self._quota(share))) - (self.shift - shift)
        if off >= 1:
            self.shift += off
            self.take(off, now_ms, share)

    def state(self) -> list[Any]:
        """What other processes need to know of it, besides what every meter has."""
        return ["window", self._sent, self.ends_ms]

    def restore(self, state: Sequence[Any], now_ms: int) -> None:
        """Take over what another process wrote; instants to come are not believed."""
        _, sent, (begins_ms, ends_ms) = state[:3]
        self._sent = sorted(
            [min(float(first), now_ms), min(float(last), now_ms), max(0.0, float(amount))]
            for first, last, amount in sent[:ENTRIES]
        )  # fmt: skip
        self._used = sum(amount for _, _, amount in self._sent)
        latest_ms = now_ms + self.span_ms
        self.ends_ms = (min(float(begins_ms), latest_ms), min(float(ends_ms), latest_ms))


def make_meter(
    dimension: Dimension, limit: int, span_ms: int, counting: Counting, *,
    is_given: bool, seen: Seen | None = None,
) -> Meter:  # fmt: skip
    """A meter for a limit that somebody gave, or that was seen in a header."""
    burst_s = counting.at_once_s(dimension)
    is_fixed = counting.is_fixed if seen is None else is_window(seen, span_ms, counting)
    if is_fixed:
        return WindowMeter(dimension, limit, span_ms, burst_s, is_given)
    return Meter(dimension, limit, span_ms, burst_s, is_given, counting.may_try and is_given)


def dump_meter(meter: Meter) -> list[Any]:
    """A meter for JSON."""
    return [
        meter.dimension, meter.limit, meter.span_ms, meter.burst, meter.due_ms, meter.shift,
        meter.is_given, meter.is_wary, meter.state(),
    ]  # fmt: skip


def load_meter(state: Sequence[Any], mine: Meter | None, now_ms: int) -> Meter:
    """What another process wrote; `mine` with what it knew, where that is of the same limit.

    Instants further ahead than any limit reaches are not believed. Raises `ValueError` and kin.
    """
    name, limit, span_ms, burst, due_ms, shift, is_given, is_wary = state[:8]
    more = state[8] if len(state) > 8 else None
    is_fixed = more is not None and more[0] == "window"
    is_same_kind = more is None or is_fixed == isinstance(mine, WindowMeter)
    if mine is not None and (mine.is_given or is_given):
        if mine.limit == limit and not is_same_kind:
            mine = _new(mine.dimension, mine.limit, mine.span_ms, mine.is_given, is_fixed)
    elif mine is None or mine.limit != limit or not is_same_kind:  # else requests under way know it
        mine = _new(Dimension(name), int(limit), int(span_ms), bool(is_given), is_fixed)
    if mine.limit == limit:
        mine.burst, mine.is_wary = float(burst), bool(is_wary)
    mine.due_ms, mine.shift = min(float(due_ms), now_ms + 2.0 * mine.span_ms), float(shift)
    if more is not None and (more[0] == "window") == isinstance(mine, WindowMeter):
        mine.restore(more, now_ms)
    return mine


def _new(
    dimension: Dimension, limit: int, span_ms: int, is_given: bool, is_fixed: bool
) -> Meter:  # fmt: skip
    kind = WindowMeter if is_fixed else Meter
    return kind(dimension, limit, span_ms, 0.0, is_given)
