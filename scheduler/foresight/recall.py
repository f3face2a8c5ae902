"""Which calls are remembered: of each length about as many.

Short calls end often, long ones seldom, and of those under way most are long. Who remembers the last
ends alone soon remembers nothing but short ones, and knows nothing of most that is under way. So ends
are told apart by how long they took, in doublings, and what is forgotten is the oldest of the
doubling of which most are remembered.

Then one looks back further at old ages than at young ones. That tells nothing wrong, if of each age
only what happened since a certain instant counts: who ended at that age since then, of all who
reached it since then or were older already, whether or not they have ended (`horizons`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

LAST = 1024  # calls that are remembered as they came
KEPT = 512  # and so many of all lengths

Amounts = tuple[int, int]  # nano-dollars, tokens
Horizons = Sequence[tuple[int, int]]  # from that age on: what ended before is not known
EVER_MS = -(10**18)  # all is


class Seen(NamedTuple):
    """One call that ended."""

    made_at_ms: int
    took_ms: int
    costs: Amounts
    ceilings: Amounts


class Recall:
    """Calls that ended, of each length about as many."""

    __slots__ = ("_by_length", "_count", "_forgot_ms", "_most")

    def __init__(self) -> None:
        self._by_length: dict[int, deque[Seen]] = {}  # by the binary digits of how long they took
        self._forgot_ms: dict[int, int] = {}  # of these: when the last one ended that is forgotten
        self._count, self._most = 0, KEPT  # at most so many are in one

    def add(self, seen: Seen) -> None:
        """One more has ended; told in that order."""
        length = seen.took_ms.bit_length()
        alike = self._by_length.get(length)
        if alike is None:
            alike = self._by_length[length] = deque()
        alike.append(seen)
        if self._count < KEPT:
            self._count += 1
            return
        if len(alike) <= self._most:  # else it is the one
            alike = max(self._by_length.values(), key=len)
            self._most = len(alike)
        oldest = alike.popleft()
        self._forgot_ms[oldest.took_ms.bit_length()] = oldest.made_at_ms + oldest.took_ms

    def copy(self) -> Recall:
        """One that goes on by itself."""
        other = Recall()
        other._by_length = {length: alike.copy() for length, alike in self._by_length.items()}
        other._forgot_ms, other._count, other._most = (
            self._forgot_ms.copy(),
            self._count,
            self._most,
        )
        return other

    def all(self) -> list[Seen]:
        """Those that are remembered."""
        return [seen for alike in self._by_length.values() for seen in alike]

    def horizons(self) -> Horizons:
        """How far back one sees: ages that rise, and instants that fall.

        Who lived through an age has ended at an older one. So no more is known of an age than of
        those above it.
        """
        found: list[tuple[int, int]] = []
        since_ms = EVER_MS
        for length in sorted(self._by_length, reverse=True):
            since_ms = max(since_ms, self._forgot_ms.get(length, EVER_MS))
            if found and found[-1][1] == since_ms:
                found.pop()
            found.append((1 << length >> 1, since_ms))
        if not found:
            return [(0, EVER_MS)]
        found[-1] = 0, since_ms
        found.reverse()
        return found


def first_seen_ms(at_ms: int, horizons: Horizons) -> int:
    """At what age one is first looked at that began then; it may have ended before."""
    first_ms = max(0, horizons[0][1] - at_ms)
    for from_ms, since_ms in horizons:
        if from_ms >= first_ms:
            break
        first_ms = max(from_ms, since_ms - at_ms)
    return first_ms


class Memory:
    """What is remembered of some calls.

    Attributes:
        last: Those that ended last, in that order.
        since_ms: What ended until then is not among these.
        of_each_length: And of each length about as many.
        count: How many were learned of, ever.
    """

    __slots__ = ("count", "last", "of_each_length", "since_ms")

    def __init__(self) -> None:
        self.last: deque[Seen] = deque()
        self.since_ms = EVER_MS
        self.of_each_length = Recall()
        self.count = 0

    def add(self, seen: Seen) -> None:
        """One more has ended; told in that order."""
        if len(self.last) >= LAST:
            oldest = self.last.popleft()
            self.since_ms = oldest.made_at_ms + oldest.took_ms
        self.last.append(seen)
        self.of_each_length.add(seen)
        self.count += 1

    def copy(self) -> Memory:
        """One that goes on by itself."""
        other = Memory()
        other.last, other.since_ms = self.last.copy(), self.since_ms
        other.of_each_length, other.count = self.of_each_length.copy(), self.count
        return other
