"""Money promised and money spent: what a reservation does to the balances.

A reservation is settled exactly once, except that an unknown outcome may still
become known:

    reserve ─▶ PENDING ─ post ─▶ POSTED     it cost this much
                  ├───── void ─▶ VOIDED     provably nothing was sent or billed
                  └─── suspend ▶ SUSPENSE ─▶ POSTED | VOIDED
                                            nobody knows: the promise keeps counting

Who ends a suspense (the provider when it is asked, a policy, a person) assumes: the call's
own answer, should it still come, corrects that once. What an answer said is final.

An *account* is one cap of one budget. It counts in slots: a calendar window and
a total are one slot, a rolling window is sixty. A reservation belongs to the slot
in which it was made and settles there, however late. So

    available = limit − Σ posted − Σ reserved      over the slots that count now

and right after every reserve, posted + reserved ≤ limit. Where the cap is paced, what is `allowed` by
now stands for the limit. Only a call that cost
more than its reservation (an overrun) or a lowered limit makes it negative.

A budget with a risk reserves in full, too, but lets calls in by what is expected of those under
way (`Pool`). So there `available` may be negative; what is left is told by `lacks`.

>>> account = Account(1, 1, "team", parse_caps("$1/day")[0])
>>> account.look(0)
>>> account.reserve(300), account.available
(None, 999999700)
>>> account.settle(0, ReservationState.PENDING, ReservationState.POSTED, 300, 120)
>>> account.posted, account.reserved
(120, 0)
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from scheduler.budget import UNLIMITED, Cap, Unit, WindowKind
from scheduler.foresight import Flight, Kind, Pool
from scheduler.ledger.burning import Burn, Burning

THRESHOLDS = (50, 80, 95, 100)  # percent of a limit, told once a window
MAX_LINE = 8  # those who wait for an account of whom it keeps a place in line
MAX_KEPT = 32  # with those who gave theirs up, but have been the first and are to be again
FAR = 1 << 62  # when something is due that has no deadline
NOT_YET = -1  # since when it has been the first, of one that has not been

Needs = tuple[int, int, int]  # nano-dollars, tokens, requests; index with `unit_index`


def unit_index(unit: Unit) -> int:
    """Position of a unit's amount in `Needs`."""
    return {Unit.USD: 0, Unit.TOKENS: 1, Unit.REQUESTS: 2}[unit]


class ReservationState(StrEnum):
    """Where a reservation is; the module docstring draws the moves."""

    PENDING = "pending"
    POSTED = "posted"
    VOIDED = "voided"
    SUSPENSE = "suspense"

    @property
    def is_end(self) -> bool:
        """Whether it counts what it cost, not what it may cost."""
        return self in (ReservationState.POSTED, ReservationState.VOIDED)

    def may_become(
        self, new: ReservationState, *, was_assumed: bool = False, is_assumed: bool = False
    ) -> bool:
        """Whether settling to `new` changes anything; settling twice does not.

        Args:
            new: The state it is settled to.
            was_assumed: The state so far is an assumption.
            is_assumed: `new` is one: said by somebody else than the call itself.
        """
        if self is ReservationState.PENDING:
            return new is not ReservationState.PENDING and not is_assumed
        if self is ReservationState.SUSPENSE:
            return new.is_end
        return new.is_end and was_assumed and not is_assumed


@dataclass(slots=True)
class Tally:
    """Sums over the reservations of one slot. `reserved` includes `suspense`."""

    posted: int = 0
    reserved: int = 0
    suspense: int = 0
    overrun: int = 0


class Standing(NamedTuple):
    """Before whom a request goes: the lowest is the first.

    Attributes:
        turn: When it is its tenant's turn, where tenants share (`admission.fairness`).
        due_at_ms: Its deadline; `FAR`: none.
    """

    priority: int
    turn: int
    due_at_ms: int
    id: int


@dataclass(slots=True)
class Waiter:
    """The first in line for money that comes back: from calls under way, or bit by bit.

    Later requests may pass it only as long as `admission` allows.

    Attributes:
        bypassed: How many have passed that could delay it.
        since_ms: When it became the first; `NOT_YET`.
        left: In a total from which it waits for more than calls can give back: the limit
            less suspense at that time. What was left then is for whoever it suffices for.
        due_at_ms: Its deadline; `FAR`: none.
        turn: When it was its tenant's turn as it got its place: it keeps that.
    """

    priority: int
    request_id: int
    need: int
    bypassed: int
    since_ms: int
    left: int | None = None
    away_until_ms: int = 0  # it waits elsewhere: what is taken here till then will have left
    due_at_ms: int = FAR
    turn: int = 0

    @property
    def standing(self) -> Standing:
        """Before whom it goes."""
        return Standing(self.priority, self.turn, self.due_at_ms, self.request_id)

    def __lt__(self, other: Waiter) -> bool:
        return self.standing < other.standing


class Asking(Protocol):
    """A request, as far as it matters what it may be expected to cost."""

    @property
    def kind(self) -> Kind:
        """What costs as it does."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """Spending on an account passed a threshold for the first time in its window."""

    budget: str
    cap: Cap
    percent: int
    posted: int
    limit: int
    resets_at_ms: int | None


class Account:
    """One cap of one budget, with the slots that count at the time it was last looked at.

    `look` before use in every transaction; sums are as of that instant.
    """

    __slots__ = (
        "_changed", "_kept", "_rooms", "allowed", "available", "budget", "budget_id", "burn", "cap", "id", "index", "limit",
        "line", "line_changed", "looked_ms", "oldest_ms",
        "paused", "pool", "posted", "reserved", "slot_ms", "slots", "suspense", "tell_at", "warned",
        "warned_changed", "warned_slot_ms",
    )  # fmt: skip

    def __init__(
        self, id: int, budget_id: int, budget: str, cap: Cap, paused: bool = False
    ) -> None:
        self.id, self.budget_id, self.budget, self.paused = id, budget_id, budget, paused
        self.redefine(cap)
        self.slots: dict[int, Tally] = {}
        self.slot_ms = 0  # the slot that reservations made now belong to
        self.oldest_ms = 0  # slots from here on count
        self.looked_ms = -1  # when it was last looked at
        # Sums over the slots that count; `reserved` includes `suspense`.
        self.posted = self.reserved = self.suspense = 0
        self.allowed = self.limit  # by now, where it is paced
        self.available = self.limit
        self.pool: Pool | None = None  # calls under way that count at less than their ceilings
        self.burn: Burn | None = None  # how fast it is spent, where that is watched
        self.line: list[Waiter] = []  # who waits for money that comes back, the first ones
        self.warned, self.warned_slot_ms = 0, 0  # highest threshold told, and in which window
        self.tell_at = 0  # what is posted when the next threshold is passed
        self._changed: set[int] = set()
        self._kept: dict[int, int] = {}  # what is kept now, by priority
        self._rooms: dict[tuple[int, int], float] = {}  # what `_room` found since the last look
        self.line_changed = self.warned_changed = False

    def redefine(self, cap: Cap) -> None:
        """Change the limit; what is posted and reserved stays."""
        self.cap, self.index = cap, unit_index(cap.unit)
        self.limit = UNLIMITED if cap.limit is None else cap.limit
        self._kept = {}

    @property
    def is_paced(self) -> bool:
        """Whether its limit may only be used up bit by bit."""
        return self.cap.pace is not None and self.limit < UNLIMITED

    def look(self, now_ms: int) -> None:
        """Roll to `now_ms`: forget slots that stopped counting, sum the others."""
        window = self.cap.window
        self.looked_ms = now_ms
        self._rooms.clear()
        self._kept.clear()
        self.slot_ms = window.slot_start_ms(now_ms)
        self.oldest_ms = oldest_ms = window.oldest_counting_ms(now_ms)
        self.posted = self.reserved = self.suspense = 0
        for slot_ms in [start for start in self.slots if start < oldest_ms]:
            # An old calendar window still has calls under way: kept until they settle.
            tally = self.slots[slot_ms]
            if not tally.reserved and slot_ms not in self._changed:
                del self.slots[slot_ms]
        for slot_ms, tally in self.slots.items():
            if slot_ms >= oldest_ms:
                self.posted += tally.posted
                self.reserved += tally.reserved
                self.suspense += tally.suspense
        self.allowed = self.limit
        if self.is_paced:
            assert self.cap.pace is not None
            self.allowed = self.cap.pace.allowed(self.limit, window, now_ms)
        self.available = self.allowed - self.posted - self.reserved
        if self.burn is not None:
            self.burn.catch_up(self, now_ms)
        self._rearm()

    def reserve(self, amount: int) -> None:
        """Promise `amount` in the current slot; the caller has checked that it fits."""
        tally = self.slots.get(self.slot_ms)
        if tally is None:
            tally = self.slots[self.slot_ms] = Tally()
        tally.reserved += amount
        self.reserved += amount
        self.available -= amount
        self._changed.add(self.slot_ms)

    def begin(self, id: int, kind: Kind, needs: Needs) -> None:
        """Note that a call is under way whose ceiling was reserved."""
        if self.pool is not None:
            self.pool.enter(id, Flight(kind, self.looked_ms, needs[:2]))

    def keeps(self, priority: int) -> int:
        """What is kept now from requests of a priority, for more urgent ones."""
        if self.cap.keep is None or self.limit >= UNLIMITED:
            return 0
        known = self._kept.get(priority)
        if known is None:
            known = self._kept[priority] = self.cap.keeps(priority, self.looked_ms)
        return known

    def lacks(self, need: int, request: Asking, kept: int = 0) -> int:
        """How much a request lacks here, from which so much is kept; nothing, or less: there is room.

        Where less is kept for calls under way than their ceilings, it, too, counts at less.
        """
        if not need:
            return 0  # what is free fits even after an overrun
        missing, pool, left = need + kept - self.available, self.pool, self.at_best - kept
        if missing <= 0 or pool is None or need > left:
            return missing
        ceilings, kept = pool.kept(self.looked_ms, self.oldest_ms, request.kind, need)
        promised = self.reserved - self.suspense + need
        too_much = -(-promised // pool.risk.stretch) - left
        return min(missing, max(missing - (ceilings - kept), too_much))

    @property
    def relief(self) -> int:
        """What calls under way are expected not to need of their ceilings."""
        if self.pool is None:
            return 0
        ceilings, kept = self.pool.kept(self.looked_ms, self.oldest_ms)
        return ceilings - kept

    def settle(
        self, made_at_ms: int, old: ReservationState, new: ReservationState, held: int, cost: int,
        assumed: int = 0,
    ) -> None:  # fmt: skip
        """Move one reservation's `held` amount from state `old` to `new`.

        Args:
            made_at_ms: When it was reserved; its slot must be loaded.
            old: Its state so far; `old.may_become(new)`.
            new: Its state from now on.
            held: What was reserved, in this account's unit.
            cost: What it really took, in this account's unit; used when posting.
            assumed: What was posted by assumption, if `old` is an end; taken back.
        """
        slot_ms = self.cap.window.slot_start_ms(made_at_ms)
        tally = self.slots.setdefault(slot_ms, Tally())
        counts = slot_ms >= self.oldest_ms
        self._changed.add(slot_ms)
        self._rooms.clear()
        if old in (ReservationState.POSTED, ReservationState.VOIDED):
            posted = cost if new is ReservationState.POSTED else 0
            tally.posted += posted - assumed
            tally.overrun += max(0, posted - held) - max(0, assumed - held)
            if counts:
                self.posted += posted - assumed
                self.available -= posted - assumed
            return
        if old is ReservationState.SUSPENSE:
            tally.suspense -= held
            self.suspense -= held if counts else 0
        if new is ReservationState.SUSPENSE:
            tally.suspense += held
            self.suspense += held if counts else 0
        else:
            posted = cost if new is ReservationState.POSTED else 0
            tally.reserved -= held
            tally.posted += posted
            tally.overrun += max(0, posted - held)
            if counts:
                self.reserved -= held
                self.posted += posted
                self.available += held - posted

    @property
    def waiter(self) -> Waiter | None:
        """The first in line, of those who wait for this account."""
        return next((each for each in self.line if each.away_until_ms <= self.looked_ms), None)

    @waiter.setter
    def waiter(self, waiter: Waiter | None) -> None:
        self.line, self.line_changed = [] if waiter is None else [waiter], True

    def waiter_of(self, request_id: int) -> Waiter | None:
        """A request's place in line, if it has one."""
        return next((each for each in self.line if each.request_id == request_id), None)

    def has_room_for(self, waiter: Waiter) -> bool:
        """Whether it has a place in line, or may take one."""
        line = self.line
        if len(line) < MAX_LINE or waiter < line[0]:
            return True
        return sum(not self._is_spared(each, waiter) for each in line) < MAX_LINE or any(
            each.request_id == waiter.request_id or (each.since_ms == NOT_YET and waiter < each)
            for each in line
        )

    def _is_spared(self, each: Waiter, waiter: Waiter) -> bool:
        """Whether one in line waits elsewhere, and may give up its place to another."""
        return each.need <= self.available < waiter.need or each.away_until_ms > self.looked_ms

    def _whose_place(self, waiter: Waiter) -> Waiter | None:
        """Who leaves a full line for another: who need not remember anything; None: nobody.

        Who has been the first comes back to where it was, so it stays beside those who have a place.
        """
        line = self.line[::-1]
        new = [each for each in line if each.since_ms == NOT_YET]
        for each in new:
            if waiter < each:
                return each
        spared = next((each for each in new if self._is_spared(each, waiter)), None)
        if spared is not None or len(line) < MAX_KEPT:
            return spared
        return next((each for each in line if self._is_spared(each, waiter)), line[0])

    def get_in_line(self, waiter: Waiter) -> None:
        """Take a place in line; whoever has one so far keeps it, and its count."""
        if len(self.line) >= MAX_LINE:
            last = self._whose_place(waiter)
            self.line = [each for each in self.line if each is not last]
        insort(self.line, waiter)
        self.line_changed = True
        self.start_clocks()

    def leave_line(self, request_id: int | None = None) -> bool:
        """Whether that request had a place, which it gives up; None: everybody."""
        kept = [each for each in self.line if request_id not in (None, each.request_id)]
        if len(kept) == len(self.line):
            return False
        self.line, self.line_changed = kept, True
        self.start_clocks()
        return True

    def start_clocks(self) -> None:
        """Note since when the first in line is it, and who comes after those that lack nothing.

        Who waits elsewhere is the first only if nobody before it lacks anything.
        """
        ahead, wanted, there = 0, 0, max(0, self.available)
        for waiter in self.line:
            is_away = waiter.away_until_ms > self.looked_ms
            is_first = wanted <= there < wanted + waiter.need
            wanted += waiter.need
            if waiter.since_ms == NOT_YET and (is_first or not is_away):
                waiter.since_ms, self.line_changed = self.looked_ms, True
            if is_away:
                continue
            ahead += waiter.need
            if ahead + self.keeps(waiter.priority) > self.available:
                return

    def spare(self, waiter: Waiter, ahead: int) -> float:
        """What others may take without delaying one in line; negative: nothing.

        It starts, at the latest, once what leaves the window by itself suffices. What is
        there beyond its need at that instant is taken from nobody.

        Args:
            waiter: The one in line.
            ahead: What it needs, those before it, and what is kept from it.
        """
        kept = self.keeps(waiter.priority)
        if waiter.need > self.limit:
            return math.inf  # only a raise helps
        if ahead <= self.at_best or ahead > self.limit:
            # any call that settles may be what it waits for
            return self.available + self.relief - ahead
        kind = self.cap.window.kind
        if (self.is_paced or kept) and ahead - kept <= self.limit - self.posted - self.suspense:
            # its share comes later if others take of it
            return self.available + self.relief - ahead
        if kind is WindowKind.ROLLING:
            known = self._rooms.get((self.available, ahead))
            if known is None:
                known = self._rooms[self.available, ahead] = self._room(ahead)
            return known - ahead
        if kind is WindowKind.CALENDAR or waiter.left is None:
            return math.inf
        return waiter.left - self.posted - (self.reserved - self.suspense)

    def _room(self, amount: int) -> float:
        """What is there when by itself so much has left a rolling window that `amount` is."""
        room = self.available
        for slot_ms in sorted(self.slots):
            if slot_ms >= self.oldest_ms:
                room += self.slots[slot_ms].posted + self.slots[slot_ms].reserved
                if room >= amount:
                    # What is taken now counts in the newest slot, and leaves with it.
                    return room if slot_ms < self.slot_ms else math.inf
        return math.inf

    @property
    def at_best(self) -> int:
        """What could be promised if all calls under way turned out free.

        What is in suspense does not come back by itself.
        """
        return self.allowed - self.posted - self.suspense

    def crossings(self, now_ms: int) -> Iterator[Crossing]:
        """Thresholds newly passed by what is posted; call when that reaches `tell_at`."""
        if self.limit == UNLIMITED or self.limit <= 0:
            return
        percent = self.posted * 100 // self.limit
        for threshold in THRESHOLDS:
            if self.warned < threshold <= percent:
                self.warned, self.warned_slot_ms, self.warned_changed = (
                    threshold,
                    self.slot_ms,
                    True,
                )
                yield Crossing(
                    self.budget,
                    self.cap,
                    threshold,
                    self.posted,
                    self.limit,
                    self.resets_at_ms(now_ms),
                )
        self._set_tell_at()

    def news(self, now_ms: int) -> Iterator[Crossing | Burning]:
        """What is to be told of what was posted: thresholds that were passed, and that it burns."""
        if self.posted >= self.tell_at:
            yield from self.crossings(now_ms)
        if self.burn is not None:
            yield from self.burn.spend(self, now_ms)

    def _rearm(self) -> None:
        """A new window is told about anew; a rolling one once spending has fallen again."""
        if self.warned:
            told = self.warned
            if self.cap.window.kind is not WindowKind.ROLLING:
                told = self.warned if self.warned_slot_ms == self.slot_ms else 0
            elif self.posted * 100 < told * self.limit:
                told = max(
                    (t for t in THRESHOLDS if t * self.limit <= self.posted * 100), default=0
                )
            if told != self.warned:
                self.warned, self.warned_changed = told, True
        self._set_tell_at()

    def _set_tell_at(self) -> None:
        percent = next((t for t in THRESHOLDS if t > self.warned), None)
        if percent is None or self.limit == UNLIMITED or self.limit <= 0:
            self.tell_at = UNLIMITED
        else:
            self.tell_at = -(-percent * self.limit // 100)

    def resets_at_ms(self, now_ms: int) -> int | None:
        """When its window ends, or anything next leaves a rolling one; None: never."""
        window = self.cap.window
        if window.kind is not WindowKind.ROLLING:
            return window.resets_at_ms(now_ms)
        return self.frees_at_ms(now_ms)

    def frees_at_ms(self, now_ms: int, missing: int = 1, priority: int = 0) -> int | None:
        """When at least `missing` more will be there by itself, for a priority; None: never."""
        window = self.cap.window
        if window.kind is not WindowKind.ROLLING:
            there = self.allowed - self.keeps(priority)
            return self._allowed_at_ms(there + missing, now_ms, priority)
        for slot_ms in sorted(start for start in self.slots if start >= self.oldest_ms):
            missing -= self.slots[slot_ms].posted + self.slots[slot_ms].reserved
            if missing <= 0:
                return window.stops_counting_ms(slot_ms)
        return None

    def may_free_at_ms(self, now_ms: int, need: int, priority: int = 0) -> int | None:
        """The first instant at which `need` may be there, if calls under way turn out free."""
        window, kept = self.cap.window, self.keeps(priority)
        if window.kind is not WindowKind.ROLLING:
            # Where calls under way may give it, they may also not: then it is there later.
            open_ = self.suspense if need + kept > self.at_best else self.reserved - self.relief
            at_ms = self._allowed_at_ms(need + self.posted + open_, now_ms, priority)
            if kept and self.reserved > self.suspense and at_ms is not None:
                # Some of it may come from them, and the rest be released: neither suffices alone.
                step = self.cap.release_step(now_ms)
                return min(at_ms, self.cap.released_ms(step + 1, now_ms))
            return at_ms
        need += kept
        missing = max(1, need - self.at_best)
        for slot_ms in sorted(start for start in self.slots if start >= self.oldest_ms):
            tally = self.slots[slot_ms]
            missing -= tally.posted + (tally.suspense if need > self.at_best else tally.reserved)
            if missing <= 0:
                return window.stops_counting_ms(slot_ms)
        return None

    def _allowed_at_ms(self, amount: int, now_ms: int, priority: int = 0) -> int | None:
        """When so much may be used up by a priority, in this window or by the next one."""
        at_ms, window = None, self.cap.window
        if self.keeps(priority):
            at_ms = self.cap.fits_at_ms(amount, priority, now_ms)
        elif self.is_paced:
            assert self.cap.pace is not None
            at_ms = self.cap.pace.reaches_ms(amount, window, now_ms, self.limit)
        return window.resets_at_ms(now_ms) if at_ms is None else at_ms

    def take_changed(self) -> list[tuple[int, Tally]]:
        """Slots changed since the last call, for the store to write."""
        changed = [(slot_ms, self.slots[slot_ms]) for slot_ms in self._changed]
        self._changed.clear()
        return changed

    @property
    def overrun(self) -> int:
        """Posted above what was reserved, in the slots that count."""
        return sum(t.overrun for start, t in self.slots.items() if start >= self.oldest_ms)


def cost_in(unit: int, nusd: int, tokens: int) -> int:
    """What a posted attempt took, in the unit at that index of `Needs`."""
    return (nusd, tokens, 1)[unit]
