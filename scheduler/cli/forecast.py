"""What a batch will cost, what of it can start, and when it would be done: arithmetic on quotes.

A request starts when all it may cost is available, and when it ends only what it did cost is
gone. So it needs its ceiling for a moment, and its expected cost for good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scheduler.budget import Cap, Unit, WindowKind
from scheduler.prices.book import answers_of, prompt_only, stated_output_tokens
from scheduler.request import Priority, Quote, Request
from scheduler.stats import CapStatus

MAX_WINDOWS = 100_000
EXPECTED_OUTPUT = 300  # tokens of an ordinary answer


@dataclass(slots=True)
class Total:
    """Sums over quotes."""

    requests: int = 0
    least_nusd: int = 0
    expected_nusd: int = 0
    ceiling_nusd: int = 0
    unbounded: int = 0

    def add(self, quote: Quote) -> None:
        """Count one more."""
        self.requests += 1
        self.least_nusd += quote.least_nusd
        self.expected_nusd += quote.expected_nusd
        self.ceiling_nusd += quote.ceiling_nusd
        self.unbounded += not quote.is_bound


@dataclass(slots=True)
class Never:
    """Requests that may need more than a whole limit, so that no reset starts them.

    Attributes:
        needs: The most that one of them may need, in the cap's unit.
        least: The least of what each may need.
        cap_output: With this as their output cap those would fit that set none of their own.
        max_tokens: And this those that set one, if they said no more.
        by_prompt: How many do not fit for their prompts alone.
        share: Of a limit what is kept from them for more urgent ones, for good.
    """

    cap: Cap
    room: int
    share: float = 0.0
    requests: int = 0
    needs: int = 0
    least: int | None = None
    cap_output: int | None = None
    max_tokens: int | None = None
    by_prompt: int = 0

    @property
    def raise_to(self) -> int:
        """The limit that would do for all of them."""
        limit = self.cap.limit or 0
        used = limit - self.room - math.floor(limit * self.share)
        return (
            math.ceil((used + self.needs) / (1 - self.share)) if self.share else used + self.needs
        )


@dataclass(slots=True)
class _Window:
    """One cap on its way through time."""

    cap: Cap
    room: int  # most there can ever be for one request
    left: int  # at their expected cost
    held: int  # what is left when all that start now hold their ceilings
    resets_at_ms: int | None

    def next_reset_ms(self, now_ms: int) -> int | None:
        """When there is more; None: never."""
        if self.resets_at_ms is not None:
            return self.resets_at_ms
        if self.cap.window.span_ms:
            return now_ms + self.cap.window.span_ms + self.cap.window.bucket_ms
        return None

    def kept(self, priority: int) -> int:
        """What is kept from a priority for good: in a calendar window it is released by its end."""
        if self.cap.window.kind is WindowKind.CALENDAR:
            return 0
        return self.cap.keeps(priority, 0)

    def has_now(self, need: int, priority: int, at_ms: int) -> bool:
        """Whether so much can be put aside at the same time as all the others that start now."""
        return need + self.cap.keeps(priority, at_ms) <= self.held

    def allows_ms(self, need: int, priority: int, at_ms: int) -> int:
        """When a pace, and what is kept for others, let so much more be spent that fits into this window."""
        limit = self.cap.limit
        if limit is None:
            return at_ms
        there_ms = self.cap.fits_at_ms(limit - self.left + need, priority, at_ms)
        return at_ms if there_ms is None else there_ms

    def reach(self, at_ms: int, is_next: bool) -> None:
        """Come to a later instant, with a new window if one has begun."""
        while self.resets_at_ms is not None and self.resets_at_ms <= at_ms:
            self.left, is_next = self.room, False
            self.resets_at_ms = self.cap.window.resets_at_ms(self.resets_at_ms)
        if is_next and self.resets_at_ms is None:
            self.left = self.room


@dataclass(slots=True)
class Forecast:
    """What a batch will cost and when it would be done.

    Attributes:
        fits_now: Requests that start in what is available now, one after the other, if each
            costs what is expected of it.
        at_once: How many of those can be under way at the same time, each with its ceiling.
        unfit: Requests that could start in an empty window, but none begins any more.
        never: Requests that may need more than a whole limit, by the cap that lacks most.
        done_at_ms: When the last one may start, by windows and paces; None: not without a raise.
        windows: How many more windows are needed.
        known: Requests that have their answer from an earlier run: they are not sent again.
        known_failed: Likewise those that have failed.
    """

    total: Total = field(default_factory=Total)
    by_model: dict[str, Total] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    unknown_why: dict[str, str] = field(default_factory=dict)
    unbounded: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    never: dict[tuple[Cap, int], Never] = field(default_factory=dict)
    known: int = 0
    known_failed: int = 0
    fits_now: int = 0
    at_once: int = 0
    unfit: int = 0
    windows: int = 0
    done_at_ms: int | None = None
    _at_ms: int = 0
    _now_ms: int = 0
    _caps: list[_Window] = field(default_factory=list)

    @property
    def last_ms(self) -> int:
        """When the last one may start that can."""
        return self._at_ms

    @property
    def never_start(self) -> int:
        """How many can never start."""
        return sum(each.requests for each in self.never.values())

    def begin(self, statuses: Sequence[CapStatus], now_ms: int) -> None:
        """Start with what the caps have now; none: no limit."""
        self.done_at_ms = self._at_ms = self._now_ms = now_ms
        for each in statuses:
            if each.cap.limit is None:
                continue
            resets = each.cap.window.resets_at_ms(now_ms)
            is_total = resets is None and not each.cap.window.span_ms
            # What a budget without a window has spent never comes back.
            room = each.cap.limit - (each.posted if is_total else 0)
            now, left = max(0, each.available or 0), max(0, each.cap.limit - each.counted)
            self._caps.append(_Window(each.cap, max(0, room), left, now, resets))

    def add(self, request: Request, quote: Quote, quote_one: Callable[[Request], Quote]) -> bool:
        """Count one more request, and fit it into this window or a later one.

        Returns:
            Whether some window has room for it.
        """
        self.total.add(quote)
        self.by_model.setdefault(request.model, Total()).add(quote)
        if quote.why_unbound:
            self.unbounded[quote.why_unbound] = self.unbounded.get(quote.why_unbound, 0) + 1
        priority = Priority.parse(request.priority)
        rooms = {at: each.room - each.kept(priority) for at, each in enumerate(self._caps)}
        needs = [_most(quote, each.cap.unit) for each in self._caps]
        lacking = [at for at, room in rooms.items() if needs[at] > room]
        if lacking:
            worst = max(lacking, key=lambda at: needs[at] / max(1, rooms[at]))
            cap, kept = self._caps[worst].cap, self._caps[worst].kept(priority)
            share = cap.keep.share_from(priority) if kept and cap.keep else 0.0
            never = self.never.setdefault((cap, kept), Never(cap, max(0, rooms[worst]), share))
            _note(never, request, quote, quote_one)
            self.done_at_ms = None
            return False
        if not self._wait_for(quote, priority):
            self.unfit += 1
            self.done_at_ms = None
            return True
        for each in self._caps:
            each.left -= _expected(quote, each.cap.unit)
        if self._at_ms == self._now_ms:
            self.fits_now += 1
            asked = list(zip(self._caps, needs, strict=True))
            if all(each.has_now(need, priority, self._at_ms) for each, need in asked):
                self.at_once += 1
                for each in self._caps:
                    each.held -= _most(quote, each.cap.unit)
        return True

    def _wait_for(self, quote: Quote, priority: int) -> bool:
        """Go on to the window in which a request can start; False: there is none."""
        while True:
            short = [
                each for each in self._caps
                if _most(quote, each.cap.unit) + each.kept(priority) > each.left
            ]  # fmt: skip
            if not short:
                allowed = [
                    each.allows_ms(_most(quote, each.cap.unit), priority, self._at_ms)
                    for each in self._caps
                ]
                if allowed and max(allowed) > self._at_ms:
                    self._at_ms = max(allowed)
                    for each in self._caps:
                        each.reach(self._at_ms, is_next=False)
                    continue
                if self.done_at_ms is not None:
                    self.done_at_ms = self._at_ms
                return True
            resets = [each.next_reset_ms(self._at_ms) for each in short]
            found = [each for each in resets if each is not None]
            if len(found) < len(short) or self.windows >= MAX_WINDOWS:
                return False
            at_ms = max(found)
            for each in self._caps:
                each.reach(at_ms, is_next=each in short)
            self._at_ms = at_ms
            self.windows += 1


def _most(quote: Quote, unit: Unit) -> int:
    if unit is Unit.USD:
        return quote.ceiling_nusd
    return quote.ceiling_tokens if unit is Unit.TOKENS else 1


def _expected(quote: Quote, unit: Unit) -> int:
    if unit is Unit.USD:
        return quote.expected_nusd
    if unit is Unit.TOKENS:
        return min(
            quote.ceiling_tokens, quote.tokens.input + (quote.tokens.output or EXPECTED_OUTPUT)
        )
    return 1


def _note(
    never: Never, request: Request, quote: Quote, quote_one: Callable[[Request], Quote]
) -> None:
    """Remember a request that can never start, and what would change that."""
    needs = _most(quote, never.cap.unit)
    never.requests += 1
    never.needs = max(never.needs, needs)
    never.least = needs if never.least is None else min(never.least, needs)
    tokens = _affordable_output(never, request, quote, quote_one)
    if tokens is None:
        never.by_prompt += 1
    elif stated_output_tokens(request):
        never.max_tokens = min(tokens, never.max_tokens or tokens)
    else:
        never.cap_output = min(tokens, never.cap_output or tokens)


def _affordable_output(
    never: Never, request: Request, quote: Quote, quote_one: Callable[[Request], Quote]
) -> int | None:
    """The longest answer there is room for, in tokens; None: not even the prompt fits."""
    least = quote_one(prompt_only(request))
    unit = never.cap.unit
    base, whole = _most(least, unit), _most(quote, unit)
    more_tokens = quote.ceiling_tokens - least.ceiling_tokens
    if base > never.room or whole <= base or more_tokens <= 0:
        return None
    longest = more_tokens * (never.room - base) // (whole - base)
    return longest // answers_of(request) or None  # of several answers each is capped
