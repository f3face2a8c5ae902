"""Which lanes are open, which are shut, and what opens them again.

Lanes belong to the process that submitted their requests, so this book is kept in
memory by every store; it holds no money. A shut lane is looked at again when an
account it lacks has enough, at the end of a window, or when somebody else changed
something: never by polling its requests, so parking a million costs nothing.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from scheduler.admission.fairness import Shares, TenantKey, tenant_key
from scheduler.admission.lane import Head
from scheduler.admission.plan import LaneKey, Verdict
from scheduler.ledger.account import Account, Needs
from scheduler.limits import NOTHING, Gates, size_of
from scheduler.shortfall import ParkReason, Shortfall
from scheduler.stats import TenantStatus
from scheduler.stores.base import Settlement
from scheduler.stores.lineup import Book
from scheduler.stores.views import tenant_statuses

MOST_IDLE = 1_000  # lanes that are empty, of those that may be forgotten
MOST_OPENED = 1_000  # lanes in one step, of many that something opens
BEHIND_MS = 1_000  # a report that is as old has waited for its turn, or for the clock


class Lane:
    """Requests that draw on the same budgets and provider with the same priority."""

    __slots__ = (
        "fits", "group", "head", "id", "is_active", "is_left", "key", "noted", "parked_total_ms",
        "passed", "passed_reach", "reported", "shortfall", "shut_since_ms", "smallest", "ticket", "version", "waiting",
    )  # fmt: skip

    def __init__(self, id: int, key: LaneKey) -> None:
        self.id, self.key = id, key
        self.waiting = self.noted = 0  # the latter as the database has it, when last looked
        self.group = key.provider, key.level, key.model  # among which it stands in the book
        self.head = key.lowest  # nobody before it waits here
        self.is_left = False  # to other processes: this one has no key for its provider
        self.is_active = False  # somebody waits here for a turn, or for calls under way to end
        self.ticket = 0  # counts its places in the book of open lanes
        self.shortfall: Shortfall | None = None  # None: open
        self.smallest: dict[int, int] = {}  # account → least amount that waits for it
        self.shut_since_ms = 0
        self.parked_total_ms = 0
        self.version = 0  # counts when it was shut or opened, to tell stale heap entries
        self.reported: tuple[str, str, int | None] | None = None  # why it was shut when last told
        self.fits = NOTHING  # what is no larger goes although it is shut
        # Who is before it needs more than that.
        self.passed, self.passed_reach = key.lowest, NOTHING

    def parked_clock_ms(self, now_ms: int) -> int:
        """A clock that runs while the lane is shut; differences are time spent parked."""
        if self.shortfall is None:
            return self.parked_total_ms
        return self.parked_total_ms + max(0, now_ms - self.shut_since_ms)

    def look_at_all(self, needs: Needs) -> None:
        """One that joined may be older than those that were passed."""
        if size_of(*needs[:2]) <= self.passed_reach:
            self.passed = self.key.lowest

    def wakes_for(self, needs: Needs, accounts: Iterable[Account]) -> bool:
        """Whether a new request might fit although the ones before it do not."""
        if size_of(*needs[:2]) <= self.fits:
            return True
        return any(needs[a.index] < self.smallest[a.id] for a in accounts if a.id in self.smallest)


class Lanes:
    """The book of one process's lanes.

    Args:
        shares: What is known of tenants.
        forgets: Called when a lane is dropped that has long been empty, of very many. None: all
            are kept.

    Attributes:
        open: Those that are not shut, in which something waits.
        active: How many lanes of a tenant are, in which somebody waits for a turn.
        risen: Tenants that had none of these, and have one since they were last looked at.
        parked: How many wait in lanes that are shut, by reason.
        waiting_shared: How many wait in shared lanes, of those that are not left to others.
        left: Providers whose shared lanes are: they are followed, and never among those looked at.
    """

    def __init__(
        self, shares: Shares | None = None, forgets: Callable[[Lane], None] | None = None
    ) -> None:
        self._shares, self._forgets = shares or Shares(), forgets
        self.active: dict[TenantKey, int] = {}
        self.risen: set[TenantKey] = set()
        self.parked: Counter[str] = Counter()
        self._idle: dict[int, Lane] = {}  # empty, in the order in which they became so
        self._shut: dict[str, dict[int, Lane]] = {}  # by provider
        self._waking: list[tuple[int, Head, int, int]] = []  # heap of those to be opened bit by bit
        self._waking_ms = 0
        self._by_key: dict[LaneKey, Lane] = {}
        self._by_id: dict[int, Lane] = {}
        self._of_budget: dict[int, dict[int, Lane]] = {}
        self.open = Book(self._shares)
        self._waiting = self.waiting_shared = 0
        self.left: frozenset[str] = frozenset()
        self._wakes: dict[
            int, list[tuple[int, int, int]]
        ] = {}  # account → heap of (need, lane, version)
        self._eased: dict[
            int, int
        ] = {}  # accounts of which calls ended that count at less, budgets
        self._held: dict[int, list[tuple[int, int, int]]] = {}  # account → heap of (-need, …)
        self._behind: dict[int, dict[int, int]] = {}  # account → lane → version
        self._beyond: dict[
            int, list[tuple[tuple[int, int, int], int, int]]
        ] = {}  # account → heap of (priority, deadline and id, lane, version)
        self._due: list[
            tuple[int, int, int, int]
        ] = []  # heap of (instant, priority, lane, version)
        self._changed: dict[int, Lane] = {}
        self._counted: dict[int, Lane] = {}  # more or fewer wait than when last told

    def get(self, key: LaneKey, make_id: Callable[[], int]) -> Lane:
        """The lane of that key, made if need be."""
        lane = self._by_key.get(key)
        if lane is None:
            lane = self._by_key[key] = Lane(make_id(), key)
            lane.is_left = key.is_shared and key.provider in self.left
            self._by_id[lane.id] = lane
            for budget_id in key.budgets:
                self._of_budget.setdefault(budget_id, {})[lane.id] = lane
        return lane

    def leave(self, providers: frozenset[str]) -> None:
        """Leave what waits in shared lanes of these providers to other processes, and of no others."""
        if providers == self.left:
            return
        self.left = providers
        for lane in self._by_key.values():
            is_left = lane.key.is_shared and lane.key.provider in providers
            if is_left is lane.is_left:
                continue
            lane.is_left = is_left
            self.waiting_shared += -lane.waiting if is_left else lane.waiting
            self._mark(lane)
            self._offer(lane)

    def _offer(self, lane: Lane) -> None:
        """Have it looked at, if somebody waits in it who may be sent from here."""
        if lane.is_left:
            self.open.drop(lane)
        elif lane.waiting and lane.shortfall is None:
            self.open.put(lane)

    def find(self, key: LaneKey) -> Lane | None:
        """The lane of that key, if there is one."""
        return self._by_key.get(key)

    def by_id(self, lane_id: int) -> Lane | None:
        """The lane of that id, if this process has it."""
        return self._by_id.get(lane_id)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._by_key.values())

    def add(self, lane: Lane, head: Head | None = None, count: int = 1) -> None:
        """`count` more requests wait in the lane, none of them before `head`; None: who knows."""
        if not lane.waiting:
            self._idle.pop(lane.id, None)
        if head is None:
            head = lane.key.lowest
        is_first = not lane.waiting or head < lane.head
        lane.waiting += count
        self._waiting += count
        self.waiting_shared += count * (lane.key.is_shared and not lane.is_left)
        self._counted[lane.id] = lane
        if lane.shortfall is not None:
            self.parked[lane.shortfall.reason.value] += count
        if self._shares.fairness is not None:
            self._mark(lane)
        if is_first:
            lane.head = head
            self._offer(lane)

    def remove(self, lane: Lane, now_ms: int, count: int = 1) -> None:
        """`count` fewer requests wait in the lane."""
        lane.waiting -= count
        self._waiting -= count
        self.waiting_shared -= count * (lane.key.is_shared and not lane.is_left)
        self._counted[lane.id] = lane
        if lane.shortfall is not None:
            self.parked[lane.shortfall.reason.value] -= count
        if not lane.waiting:
            if self._shares.fairness is not None:
                self._mark(lane)
            self.open.drop(lane)
            if lane.shortfall is not None:
                self._reopen(lane, now_ms)
            if self._forgets is not None:
                self._idle[lane.id] = lane
                if len(self._idle) > MOST_IDLE:
                    self._forget(next(iter(self._idle.values())))

    def _forget(self, lane: Lane) -> None:
        """Drop a lane that is empty; if somebody comes again, it is another one."""
        del self._by_key[lane.key], self._by_id[lane.id], self._idle[lane.id]
        for budget_id in lane.key.budgets:
            lanes = self._of_budget[budget_id]
            del lanes[lane.id]
            if not lanes:
                del self._of_budget[budget_id]
        self._counted.pop(lane.id, None)
        assert self._forgets is not None
        self._forgets(lane)

    @property
    def any_waiting(self) -> bool:
        """Whether anything waits in any lane."""
        return self._waiting > 0

    def sharing(self, now_ms: int) -> list[TenantStatus]:
        """How tenants are doing."""
        fairness = self._shares.fairness
        if fairness is None:
            return []
        return tenant_statuses(
            [(lane.key.tenant, lane.waiting) for lane in self._by_key.values()],
            [(key.tenant, sum(each.lately(now_ms))) for key, each in self._shares.tenants.items()],
            fairness.weight,
        )

    def _mark(self, lane: Lane) -> None:
        """Note whether somebody waits in a lane for a turn: a tenant that had nothing may rise."""
        if self._shares.fairness is None:
            return
        lack = lane.shortfall
        may_go = lane.waiting > 0 and not lane.is_left
        is_active = may_go and (lack is None or lack.reason is ParkReason.HELD_IN_FLIGHT)
        if is_active is lane.is_active or lane.key.is_lent:
            return
        lane.is_active = is_active
        key = tenant_key(lane.key)
        count = self.active.get(key, 0) + (1 if is_active else -1)
        if count:
            self.active[key] = count
        else:
            del self.active[key]
        if is_active and count == 1:
            self.risen.add(key)

    def rise(self, key: TenantKey) -> None:
        """A tenant is looked at: if it had nothing to ask before, it has saved nothing up."""
        if key in self.risen:
            self.risen.discard(key)
            self._shares.of(key).rise()

    def settle(self, lane: Lane, verdict: Verdict, rest: Head, now_ms: int) -> None:
        """Shut the lane or leave it open, as the plan found; nobody before `rest` waits there."""
        lane.head = rest
        if not lane.waiting:
            return
        if verdict.shortfall is None:
            self._offer(lane)
            return
        lane.shortfall, lane.smallest, lane.fits = verdict.shortfall, verdict.smallest, verdict.fits
        self.parked[lane.shortfall.reason.value] += lane.waiting
        self._shut.setdefault(lane.key.provider, {})[lane.id] = lane
        lane.shut_since_ms = now_ms
        lane.version += 1
        self.open.drop(lane)
        self._mark(lane)
        self._note(lane)
        for account_id, need in verdict.wakes.items():
            heapq.heappush(self._wakes.setdefault(account_id, []), (need, lane.id, lane.version))
        for account_id, need in verdict.held.items():
            heapq.heappush(self._held.setdefault(account_id, []), (-need, lane.id, lane.version))
        for account_id in verdict.behind:
            self._behind.setdefault(account_id, {})[lane.id] = lane.version
        for account_id, order in verdict.beyond.items():
            heap = self._beyond.setdefault(account_id, [])
            heapq.heappush(heap, (order, lane.id, lane.version))
        if verdict.resumes_at_ms is not None:
            due = verdict.resumes_at_ms, lane.key.priority, lane.id, lane.version
            heapq.heappush(self._due, due)

    def wake(self, account: Account, now_ms: int) -> None:
        """Open the lanes an account's change matters to.

        Those that lacked no more than it has now, and those that waited for calls
        under way which have turned out to spend the money.
        """
        if account.paused:
            return
        heap = self._wakes.get(account.id)
        while heap and heap[0][0] <= account.available:
            self._pop(heap, now_ms)
        if heap and account.pool is not None:
            self._eased[account.id] = account.budget_id
        heap = self._held.get(account.id)
        while heap and -heap[0][0] > account.at_best:
            self._pop(heap, now_ms)

    def wake_eased(
        self, accounts_of: Callable[[tuple[int, ...]], Sequence[Account]], now_ms: int
    ) -> None:
        """Open the lanes of accounts in which calls have ended that count at less than they may cost.

        Once a turn: it has to be added up what those under way count. Whoever waits may fit in while
        there is anything left, as long as it fits into what would be there if they cost nothing.
        """
        if not self._eased:
            return
        for account in accounts_of(tuple(sorted(set(self._eased.values())))):
            heap = self._wakes.get(account.id) if account.id in self._eased else None
            if not heap or account.available + account.relief <= 0:
                continue
            while heap and heap[0][0] <= account.at_best:
                self._pop(heap, now_ms)
        self._eased.clear()

    def wake_behind(self, accounts: Iterable[int], now_ms: int) -> bool:
        """Whether lanes were opened that had to let somebody go first who has left the line.

        And the next one for which there was no place in it.
        """
        is_any = False
        for account_id in accounts:
            for lane_id, version in self._behind.pop(account_id, {}).items():
                is_any |= self._open_noted(lane_id, version, now_ms)
            beyond, is_next = self._beyond.get(account_id), False
            while beyond and not is_next:
                _, lane_id, version = heapq.heappop(beyond)
                is_next = self._open_noted(lane_id, version, now_ms)
            is_any |= is_next
        return is_any

    def wake_returned(self, account: Account, now_ms: int) -> None:
        """Open the lanes that wait for an account to which money came back out of turn.

        What was counted as spent is there after all, so that what leaves the window by
        itself suffices earlier than they were told.
        """
        for _, lane_id, version in self._wakes.pop(account.id, ()):
            self._open_noted(lane_id, version, now_ms)

    def wake_due(self, now_ms: int) -> None:
        """Open the lanes whose window has ended, and others that are to be; of many some."""
        opened = 0
        while self._waking and opened < MOST_OPENED:
            _, _, lane_id, version = heapq.heappop(self._waking)
            opened += self._open_noted(lane_id, version, now_ms)
        while self._due and self._due[0][0] <= now_ms and opened < MOST_OPENED:
            _, _, lane_id, version = heapq.heappop(self._due)
            opened += self._open_noted(lane_id, version, now_ms)

    def _pop(self, heap: list[tuple[int, int, int]], now_ms: int) -> None:
        """Open the lane of a heap's first entry, unless that entry is stale."""
        _, lane_id, version = heapq.heappop(heap)
        self._open_noted(lane_id, version, now_ms)

    def _open_noted(self, lane_id: int, version: int, now_ms: int) -> bool:
        """Open the lane of a note, unless that is stale; whether it was opened."""
        lane = self._by_id.get(lane_id)
        if lane is None or lane.version != version or lane.shortfall is None:
            return False
        self._reopen(lane, now_ms)
        return True

    def wake_for(self, providers: Iterable[str], now_ms: int) -> None:
        """Open the lanes of these providers."""
        for provider in providers:
            self._wake_many(self._shut.get(provider, {}).values(), now_ms)

    def has_budget(self, budget_id: int) -> bool:
        """Whether any lane draws on a budget."""
        return budget_id in self._of_budget

    def combinations(self, budget_id: int) -> set[tuple[int, ...]]:
        """The budgets that lanes which draw on this one draw on."""
        return {lane.key.budgets for lane in self._of_budget.get(budget_id, {}).values()}

    def wake_on(self, budget_id: int, now_ms: int) -> None:
        """Open the lanes that draw on a budget: it was defined anew, paused, or removed."""
        self._wake_many(self._of_budget.get(budget_id, {}).values(), now_ms)

    def wake_all(self, now_ms: int) -> None:
        """Open every lane: others changed something, nobody knows what."""
        for lanes in list(self._shut.values()):
            self._wake_many(lanes.values(), now_ms)

    def _wake_many(self, lanes: Collection[Lane], now_ms: int) -> None:
        """Open these lanes; if they are many, bit by bit (`wake_due`), the most urgent first."""
        if len(lanes) <= MOST_OPENED and not self._waking:
            for lane in list(lanes):
                self.reopen(lane, now_ms)
            return
        self._waking_ms = now_ms
        self._waking += [
            (lane.key.priority, lane.head, lane.id, lane.version)
            for lane in lanes
            if lane.shortfall is not None
        ]
        heapq.heapify(self._waking)

    def reopen(self, lane: Lane, now_ms: int) -> None:
        """Open one lane, if it is shut."""
        if lane.shortfall is not None:
            self._reopen(lane, now_ms)

    def _reopen(self, lane: Lane, now_ms: int) -> None:
        assert lane.shortfall is not None
        self.parked[lane.shortfall.reason.value] -= lane.waiting
        del self._shut[lane.key.provider][lane.id]
        lane.parked_total_ms = lane.parked_clock_ms(now_ms)
        lane.shortfall, lane.smallest, lane.fits = None, {}, NOTHING
        lane.version += 1
        self._mark(lane)
        self._offer(lane)
        self._note(lane)

    def _note(self, lane: Lane) -> None:
        self._changed[lane.id] = lane

    def tell(self, lane: Lane) -> None:
        """Look at the next `take_changed` at whether a lane was told of as it is."""
        self._note(lane)

    def take_changed(self) -> list[Lane]:
        """Lanes that were shut or opened, or are shut for another reason, since the last call.

        One that was opened, looked at and shut again for the same reason is not told.
        """
        told = []
        for lane in self._changed.values():
            lack = lane.shortfall
            now = None if lack is None else (lack.reason.value, lack.budget, lack.resumes_at_ms)
            if now != lane.reported:
                lane.reported = now
                told.append(lane)
        self._changed.clear()
        return told

    def take_counted(self) -> list[Lane]:
        """Lanes in which the number of those who wait changed since the last call."""
        counted = list(self._counted.values())
        self._counted.clear()
        return counted

    @property
    def due_ms(self) -> int | None:
        """When the next window ends that some lane waits for; past: some are still to be opened."""
        if self._waking:
            return self._waking_ms
        while self._due:
            instant_ms, _, lane_id, version = self._due[0]
            lane = self._by_id.get(lane_id)
            if lane is not None and lane.version == version and lane.shortfall is not None:
                return instant_ms
            heapq.heappop(self._due)
        return None


def hear(gates: Gates, settlements: Sequence[Settlement], lanes: Lanes, now_ms: int) -> None:
    """Tell the gates what came back, before anything is settled or claimed.

    Where a provider is down, what used up nothing was no attempt: its requests wait.
    """
    reports = [each.report for each in settlements if each.report is not None]
    for report in reports:
        if report.at_ms < now_ms - BEHIND_MS:
            report.at_ms = now_ms  # the clock was set back: pauses counted by it would be over
    news = gates.hear(reports)
    if news:
        lanes.wake_for(news, now_ms)
    for each in settlements:
        if each.report is not None and each.used_nothing_up and gates.is_shut(each.report.provider):
            each.try_again()
