"""Bugs planted one at a time, and in how many seeds the simulation has to find each.

Every entry breaks one rule the way somebody might by mistake. If one is not found any
more, the simulation has lost an eye.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from scheduler.core.callers.elsewhere import Elsewhere
from scheduler.core.callers.twins import Twins
from scheduler.core.callers.unsent import Unsent
from scheduler.core.calls import attempt
from scheduler.core.nested.nesting import Nesting
from scheduler.core.pump import Pump
from scheduler.core.starting import Starting
from scheduler.ledger.account import Account, Tally, Waiter
from scheduler.ledger.matching import BudgetBook
from scheduler.limits import Closed, Front
from scheduler.stores.base import Outcome
from scheduler.stores.lanes import Lanes
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sql.settle import settle as settle_all

reserve, settle, move = Account.reserve, Account.settle, MemoryStore._move
turn, start = Pump._turn, Starting.start
give_up, spare = Unsent.give_up, Account.spare
draws_on = BudgetBook.draws_on


@dataclass(frozen=True)
class Mutant:
    """A bug: what it replaces, and the number of seeds that must be enough to find it."""

    name: str
    target: Any
    attribute: str
    replacement: Callable[..., Any]
    seeds: int = 20
    store: str = "memory"

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Replace it for a while."""
        target = (
            importlib.import_module(self.target) if isinstance(self.target, str) else self.target
        )
        with mock.patch.object(target, self.attribute, self.replacement):
            yield


async def void_what_is_unknown(*args: Any) -> Any:
    ended = await attempt(*args)
    if ended.settlement.outcome is Outcome.SUSPEND:
        ended.settlement.outcome = Outcome.VOID
    return ended


async def post_half(*args: Any) -> Any:
    ended = await attempt(*args)
    ended.settlement.nusd //= 2
    return ended


async def void_what_was_cancelled(*args: Any) -> Any:
    ended = await attempt(*args)
    if ended.settlement.state == "cancelled":
        ended.settlement.outcome = Outcome.VOID
    return ended


def settle_twice(self: Any, hold: Any, new: Any, settlement: Any, *rest: Any) -> None:
    move(self, hold, new, settlement, *rest)
    for account in self._accounts_of(hold.budgets):
        account.posted += settlement.nusd
        account.slots.setdefault(account.slot_ms, Tally()).posted += settlement.nusd


def settle_in_this_window(self: Account, made_at_ms: int, *rest: Any, **more: Any) -> None:
    settle(self, self.looked_ms, *rest, **more)


def check_without_reserving(self: Account, amount: int) -> None:
    return None


def compare_with_a_stale_balance(self: Account, amount: int) -> None:
    reserve(self, amount)
    self.available += amount


def pass_whose_window_is_spent(self: Account, waiter: Waiter, ahead: int) -> float:
    return math.inf if waiter.need > self.at_best else spare(self, waiter, ahead)


def forget_the_parent(self: BudgetBook, *args: Any) -> tuple[int, ...]:
    return draws_on(self, *args)[:1]


def free_what_the_dead_reserved(sheet: Any, settlements: Any, *rest: Any) -> Any:
    for each in settlements:
        if each.why is not None and each.why.startswith("its process"):
            each.outcome = Outcome.VOID
    return settle_all(sheet, settlements, *rest)


async def lose_an_ending(self: Pump) -> None:
    if len(self._inbox._ended) > 1:
        self._inbox._ended.pop()
    await turn(self)


def start_twice(self: Starting, claimed: Any, now_ms: int) -> None:
    start(self, claimed, now_ms)
    flight = self._flight
    if claimed.request_id in flight.calls:
        provider = flight._intake.providers[flight.provider_of(claimed)]
        flight._loop.create_task(provider.send(claimed.request))


def never_look_again(self: Lanes, *args: Any) -> None:
    return None


async def send_whatever_the_lease(self: Pump) -> None:
    await turn(self)
    self._flight.lease_until_s = None


def forget_the_caller(owner: object) -> None:
    return None


def lend_nothing(self: Nesting, request_id: int, is_lent: bool) -> None:
    return None


def only_the_first_speaks(self: Twins, request_id: int, holder: Any) -> None:
    self._waiters.add(request_id, holder)


def take_the_others_along(self: Unsent, request_id: int, holder: Any, now_ms: int) -> None:
    for each in self._waiters.holders(request_id):
        give_up(self, request_id, each, now_ms)


async def look_at_nobody(self: Any, *args: Any) -> None:
    return None


def tell_nobody(self: Nesting, now_ms: int) -> None:
    return None


class Oldest(Closed):
    """Closed for all, whatever they need: the oldest tries."""

    is_of_credit = False

    def reach(self, model: str) -> int:
        return -1

    def rank(self, model: str, priority: int, request_id: int, size: int) -> tuple[int, ...]:
        return (request_id,)


def let_the_oldest_try(self: Front, report: Any) -> None:
    self.closed = Oldest(*(getattr(self.closed, name) for name in Closed.__slots__))


MUTANTS = [
    Mutant("release a hold on timeout", "scheduler.core.flight", "attempt", void_what_is_unknown),
    Mutant("release what was cancelled", "scheduler.core.flight", "attempt", void_what_was_cancelled, 60),
    Mutant("post less than it cost", "scheduler.core.flight", "attempt", post_half),
    Mutant("settle twice", MemoryStore, "_move", settle_twice),
    Mutant("settle in the window that is now", Account, "settle", settle_in_this_window),
    Mutant("check without reserving", Account, "reserve", check_without_reserving),
    Mutant("compare with a stale balance", Account, "reserve", compare_with_a_stale_balance),
    Mutant("pass freely whose window is spent", Account, "spare", pass_whose_window_is_spent, 100),
    Mutant("forget the parent budget", BudgetBook, "draws_on", forget_the_parent),
    Mutant("send one claim twice", Starting, "start", start_twice),
    Mutant("lose the end of a call", Pump, "_turn", lose_an_ending),
    Mutant("lose a wake-up after a refund", Lanes, "wake", never_look_again, 60),
    Mutant("lose a wake-up after a raise", Lanes, "wake_on", never_look_again),
    Mutant("lose a wake-up at a reset", Lanes, "wake_due", never_look_again),
    Mutant("let the first caller of a key speak for all", Twins, "join", only_the_first_speaks, 60),
    Mutant("let one who is too late give up for all", Unsent, "give_up", take_the_others_along, 60),
    Mutant("let who comes from elsewhere wait for ever", Elsewhere, "follow", look_at_nobody,
           60, "sqlite"),
    Mutant("let an inner call wait like anybody", "scheduler.core.pump", "caller_of_one_more",
           forget_the_caller),
    Mutant("lend a place to the first inner call only", Nesting, "_lend", lend_nothing, 60),
    Mutant("let an inner call wait for its caller's money", Nesting, "stuck", tell_nobody),
    Mutant("free a dead process's reservations", "scheduler.stores.sql.workers", "settle",
           free_what_the_dead_reserved, 40, "sqlite"),
    Mutant("let the oldest try whether there is credit", Front, "_refuse", let_the_oldest_try, 60),
    Mutant("send although the lease is over", Pump, "_turn", send_whatever_the_lease, 60, "sqlite"),
]  # fmt: skip
