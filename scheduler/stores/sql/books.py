"""What a process remembers of its store between transactions: no money, and nothing it decides on.

After a failed transaction the scheduler goes no further, so this never outlives a rollback.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from scheduler.admission.fairness import Shares
from scheduler.admission.plan import LaneKey
from scheduler.budget import Budget, Cap, Window, parse_caps
from scheduler.ledger.account import Account, Crossing
from scheduler.ledger.burning import Burn, Burning
from scheduler.limits import Gates
from scheduler.limits.metered import Metered
from scheduler.request import Request
from scheduler.stats import BudgetStatus
from scheduler.stores.base import StorePrompts
from scheduler.stores.lanes import Lanes
from scheduler.stores.process import Process
from scheduler.stores.sql.ahead import Learned
from scheduler.stores.sql.codec import decode_budget, was_removed
from scheduler.stores.sql.rows import RUNNING, Row
from scheduler.stores.sql.spent import Tagged
from scheduler.stores.views import budget_status


class Definition(NamedTuple):
    """A budget as it is stored, and read."""

    text: str
    budget: Budget
    is_removed: bool


class Books:
    """What one process remembers; `Sheet` is what it works on in one transaction.

    Attributes:
        worker_id: 0: not registered, this process has only looked so far.
        kept: Requests that need not be read back.
        taken: Queued here, and may still be answered by whoever had them before.
        claimed: Of those of shared lanes that this process sends: by which reservation.
        changes: The last change of others that was heard of, and of budgets' definitions.
        company: Others who work on this store, and want to hear what has ended.
    """

    def __init__(self, process: Process, lease_ms: int) -> None:
        self.process, self.lease_ms = process, lease_ms
        self.worker_id = self.seen_at_ms = self.now_ms = 0
        self.store_prompts: StorePrompts = "full"
        self.services: Mapping[str, str] | None = None  # by provider's name; None: any
        self.left: frozenset[str] = frozenset()  # of these, those that others are to send
        self.at_once: int | None = None  # calls that are made for others; None: none are
        self.since_ms = 0
        self.is_told = True  # others know what this process serves
        self.shares = Shares()
        self.lanes, self.gates = Lanes(self.shares), Gates()
        self.saved_tenants = 0  # how often any were written
        self.kept: dict[int, Request] = {}
        self.taken: set[int] = set()
        self.claimed: dict[int, int] = {}
        self.jobs: dict[str, int] = {}
        self.admitted = 0
        self.was_lost = False  # others had taken this process for dead
        self.is_miscounted = False  # fewer requests wait than this process believes
        self._burns: dict[int, Burn] = {}  # by account
        self.untold: list[Crossing | Burning] = []  # of what was resolved since the last turn
        self.changes = self.definition_changes = 0
        self.company: frozenset[int] = frozenset()
        self.known_gates: set[tuple[str, str, bool]] = set()  # those that were read once
        self.saved_gates: Sequence[Metered] = ()  # by the last transaction that did
        self.definitions: dict[int, Definition] = {}  # by budget, as last heard of
        self.stalest: deque[int] = deque()  # budgets, the one looked at longest ago first
        self._statuses: dict[int, BudgetStatus] = {}  # as of the last transaction
        # Accounts of budgets whose picture is not drawn yet, and when they were looked at.
        self._seen: dict[int, tuple[list[Account], int]] = {}
        self.learned = Learned()
        self.tagged: Tagged = {}  # by quarter of an hour: the tags that are summed, as last heard of
        self._caps: dict[int, tuple[str, Cap]] = {}  # by account: as stored, and read
        self._windows: dict[Window, Window] = {}  # one of each: they remember their boundaries

    def is_served(self, key: LaneKey) -> bool:
        """Whether a shared lane is about one that this process would ask, too, or leave to others."""
        return self.services is None or self.services.get(key.provider) == key.service

    def serve(
        self, services: Mapping[str, str], at_once: int | None, left: Collection[str]
    ) -> None:
        """Send what waits for these from now on, but for what is left; asked from any thread."""
        self.services, self.at_once, self.left = dict(services), at_once, frozenset(left)
        self.is_told = False

    def about(self) -> str | None:
        """What others are told of it, as it is stored."""
        services = {
            name: each for name, each in (self.services or {}).items() if name not in self.left
        }
        if self.at_once is None or not services:
            return None
        told = {"serves": services, "at_once": self.at_once, "since_ms": self.since_ms}
        return json.dumps(told)

    def sends(self, row: Row) -> bool:
        """Whether it is this process that sends a request out of a shared lane, not another since."""
        return row.state == RUNNING and self.claimed.get(row.id) == row.reservation_id

    @property
    def has_company(self) -> bool:
        """Whether others work on this store."""
        return bool(self.company)

    def meet(self, company: Iterable[int]) -> None:
        """These are the others who work on this store now."""
        self.company = frozenset(company)
        self.gates.meet(self.worker_id, self.company)

    def forget_work(self) -> None:
        """This process has gone; opened again, it is another one."""
        self.worker_id = self.seen_at_ms = 0
        self.shares.clear()
        self.lanes = Lanes(self.shares)
        self.kept.clear()
        self.taken.clear()
        self.claimed.clear()
        self.meet(())

    def burn_of(self, account: Account) -> Burn | None:
        """How fast an account is spent, as far as this process has seen; None: it is not watched."""
        if not Burn.watches(account.cap):
            return None
        return self._burns.setdefault(account.id, Burn())

    def cap_of(self, account_id: int, text: str) -> Cap:
        """A stored cap, read anew only if it was changed."""
        known = self._caps.get(account_id)
        if known is None or known[0] != text:
            cap = parse_caps(text)[0]
            cap = replace(cap, window=self._windows.setdefault(cap.window, cap.window))
            known = self._caps[account_id] = (text, cap)
        return known[1]

    def definition(self, budget_id: int, name: str, text: str) -> Definition:
        """A stored definition, read anew only if it was changed."""
        known = self.definitions.get(budget_id)
        if known is None or known.text != text:
            known = Definition(text, decode_budget(name, text), was_removed(text))
            self.definitions[budget_id] = known
        return known

    # Pictures of budgets

    def saw(self, accounts: Mapping[int, list[Account]], now_ms: int) -> None:
        """A transaction leaves budgets' accounts so; a picture is drawn when it is asked for."""
        self._seen.update((each, (those, now_ms)) for each, those in accounts.items() if those)

    def note(self, status: BudgetStatus) -> None:
        """This is how a budget looks now."""
        self._seen.pop(status.id, None)
        self._statuses[status.id] = status

    def drop(self, budget_id: int) -> None:
        """There is no such budget any more."""
        self._seen.pop(budget_id, None)
        self._statuses.pop(budget_id, None)

    def note_all(self, statuses: Iterable[BudgetStatus]) -> None:
        """These are all budgets there are."""
        self._seen.clear()
        self._statuses = {status.id: status for status in statuses}
        self.stalest = deque(self._statuses)

    def statuses(self, budgets: Iterable[int] | None = None) -> list[BudgetStatus]:
        """Budgets as of the last transaction, all or these; asked from any thread."""
        for budget_id in list(self._seen if budgets is None else self._seen.keys() & set(budgets)):
            seen, known = self._seen.pop(budget_id, None), self._statuses.get(budget_id)
            if seen is not None and known is not None:
                accounts, now_ms = seen
                self._statuses[budget_id] = budget_status(
                    budget_id, known.budget, accounts[0].paused, accounts, now_ms
                )
        if budgets is None:
            return list(self._statuses.values())
        found = (self._statuses.get(each) for each in sorted(set(budgets)))
        return [status for status in found if status is not None]
