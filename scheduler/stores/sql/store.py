"""A store in a database: each of its operations is one function, run within one transaction.

What an engine adds is how a transaction is opened and ended (`SqlStore._read`, `SqlStore._write`),
and what happens when that fails.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar, get_args

from scheduler.admission.fairness import Fairness
from scheduler.admission.plan import LaneKey
from scheduler.budget import Budget
from scheduler.errors import ConfigError
from scheduler.guards.texts import check_name
from scheduler.limits import Gates, GateStatus, Limits
from scheduler.request import RequestState
from scheduler.shortfall import Shortfall
from scheduler.stats import (
    Audit,
    BudgetStatus,
    Counts,
    Past,
    Queued,
    QueueRow,
    SpendRow,
    Standing,
    TenantStatus,
    Took,
    UnknownSum,
    Unserved,
    WorkerStatus,
)
from scheduler.stores.base import (
    Archive,
    Finished,
    Known,
    LaneStatus,
    NewRequest,
    Picture,
    Settlement,
    Store,
    StorePrompts,
    Turn,
    TurnResult,
    Unknown,
)
from scheduler.stores.course import CourseRow, TookRow
from scheduler.stores.history import AttemptRow
from scheduler.stores.outbox import News
from scheduler.stores.papers import Paper
from scheduler.stores.process import this_process
from scheduler.stores.sql import (
    changes,
    fleet,
    gates,
    listing,
    notes,
    outbox,
    outlook,
    papers,
    spent,
    tenants,
    views,
)
from scheduler.stores.sql import prune as pruning
from scheduler.stores.sql import standing as stands
from scheduler.stores.sql.codec import encode_request
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.turn import Transactions

PAGE = 1_000

P = ParamSpec("P")
T = TypeVar("T")


class SqlStore(Store):
    """See the module.

    Args:
        store_prompts: What of a request is kept in the database; see `StorePrompts`.
    """

    is_shared = True

    def __init__(self, store_prompts: StorePrompts = "full") -> None:
        if store_prompts not in get_args(StorePrompts):
            known = ", ".join(get_args(StorePrompts))
            raise ConfigError("store_prompts", f"{store_prompts!r} is not one of {known}")
        self._transactions = Transactions(this_process(), self.lease_ms)
        self._transactions.store_prompts = store_prompts
        self._sweep = pruning.Sweep()

    @abstractmethod
    async def _read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that sees one state of the database throughout, and writes nothing."""

    @abstractmethod
    async def _write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function in one transaction, alone among those that write."""

    # The turn

    def use(self, gates: Gates) -> None:
        """See `Store.use`."""
        self.gates = self._transactions.gates = gates

    def share(self, fairness: Fairness | None) -> None:
        """See `Store.share`."""
        self._transactions.shares.fairness = fairness

    def sharing(self, now_ms: int) -> list[TenantStatus]:
        """See `Store.sharing`."""
        return self._transactions.lanes.sharing(now_ms)

    async def tenants(self, now_ms: int) -> list[TenantStatus]:
        """See `Store.tenants`."""
        return await self._read(tenants.statuses, now_ms)

    def serve(
        self, services: Mapping[str, str], *, at_once: int | None = None, left: Collection[str] = ()
    ) -> None:
        """See `Store.serve`."""
        self._transactions.serve(services, at_once, left)

    @property
    def keeps_whole(self) -> bool:  # type: ignore[override]
        """See `Store.keeps_whole`."""
        return self._transactions.store_prompts == "full"

    def prepare(self, new: NewRequest) -> None:
        """Write the request as JSON, on the caller's time."""
        super().prepare(new)
        new.payload = encode_request(new.request)

    async def turn(self, turn: Turn) -> TurnResult:
        """One transaction; see `Store.turn`."""
        return await self._write(self._transactions.turn, turn)

    def latest(self) -> list[BudgetStatus]:
        """Budgets as of this process's last transaction."""
        return self._transactions.statuses()

    def balances(self, budgets: Collection[int]) -> list[BudgetStatus]:
        """Those of these, as of this process's last transaction."""
        return self._transactions.statuses(budgets)

    def lanes(self) -> list[LaneStatus]:
        """This process's lanes in which something waits."""
        lanes = list(self._transactions.lanes)
        return [
            LaneStatus(lane.key, lane.waiting, lane.shortfall) for lane in lanes if lane.waiting
        ]

    def shortfall(self, key: LaneKey) -> Shortfall | None:
        """Why a lane is shut."""
        lane = self._transactions.lanes.find(key)
        return None if lane is None else lane.shortfall

    async def limited(self, now_ms: int) -> list[GateStatus]:
        """See `Store.limited`."""
        return await self._read(gates.statuses, now_ms)

    async def rates(self, now_ms: int) -> dict[tuple[str, str], Limits]:
        """See `Store.rates`."""
        return {**await self._read(gates.rates, now_ms), **self.gates.known()}

    # What nobody knows

    async def suspended(
        self, *, job: str | None = None, limit: int = PAGE, after_id: int = 0
    ) -> list[Unknown]:
        """See `Store.suspended`."""
        return await self._read(views.suspended, job, limit, after_id)

    async def suspended_since(
        self, since_ms: int, *, after_id: int = 0, limit: int = 10 * PAGE
    ) -> list[tuple[int, int]]:
        """See `Store.suspended_since`."""
        return await self._read(views.suspended_since, since_ms, after_id, limit)

    async def suspended_of(self, ids: Sequence[int]) -> list[Unknown]:
        """See `Store.suspended_of`."""
        return await self._read(views.suspended_of, ids)

    async def resolve(self, settlements: Sequence[Settlement], now_ms: int) -> list[bool]:
        """See `Store.resolve`."""
        return await self._write(self._transactions.resolve, settlements, now_ms)

    async def still_mine(self, ids: Sequence[int]) -> set[int]:
        """See `Store.still_mine`."""
        mine = await self._read(views.lanes_of, self._transactions.worker_id, ids)
        for taken in set(ids) - mine:
            self._transactions.kept.pop(taken, None)
        return mine

    async def processes(self) -> frozenset[int]:
        """See `Store.processes`."""
        return await self._read(views.processes)

    async def workers(self, now_ms: int) -> list[WorkerStatus]:
        """See `Store.workers`."""
        return await self._read(fleet.workers, self._transactions, now_ms)

    async def unserved(self, now_ms: int, job: str | None = None) -> list[Unserved]:
        """See `Store.unserved`."""
        return await self._read(fleet.unserved, self._transactions, now_ms, job)

    # Budgets and prices

    async def define(self, budgets: Sequence[Budget], now_ms: int) -> None:
        """See `Store.define`; what is as it was is only read."""
        if await self._read(self._transactions.is_all_the_same, budgets):
            return
        await self._write(self._transactions.define, budgets, now_ms)

    async def remove(self, name: str, now_ms: int) -> None:
        """See `Store.remove`."""
        await self._write(self._transactions.remove, name, now_ms)

    async def defined(self, names: Iterable[str]) -> list[tuple[int, Budget]]:
        """See `Store.defined`."""
        return await self._read(self._transactions.defined, list(names))

    async def redefined(self, now_ms: int) -> tuple[list[tuple[int, Budget]], list[str]]:
        """See `Store.redefined`."""
        return await self._read(self._transactions.redefined, now_ms)

    async def budgets(self, now_ms: int) -> list[BudgetStatus]:
        """See `Store.budgets`."""
        return await self._read(self._transactions.read_budgets, now_ms)

    async def pause(self, name: str, paused: bool, now_ms: int) -> None:
        """See `Store.pause`."""
        await self._write(self._transactions.pause, name, paused, now_ms)

    async def prices(self) -> dict[str, str]:
        """See `Store.prices`."""
        return await self._read(notes.prices)

    async def set_price(self, model: str, price: str | None) -> None:
        """See `Store.set_price`."""
        await self._write(notes.set_price, model, price)

    # What others of this package keep

    async def notes(self, kind: str) -> dict[str, str]:
        """See `Noting.notes`."""
        return await self._read(notes.notes, kind)

    async def note(self, kind: str, name: str, text: str | None, *, only_new: bool = False) -> bool:
        """See `Noting.note`."""
        check_name("name", name)
        return await self._write(notes.note, kind, name, text, only_new)

    async def add_paper(self, paper: Paper) -> bool:
        """See `Papers.add_paper`."""
        check_name("name", paper.name)
        return await self._write(papers.add, paper)

    async def paper(self, kind: str, name: str) -> Paper | None:
        """See `Papers.paper`."""
        return await self._read(papers.find, kind, name)

    async def change_paper(self, before: Paper, text: str, is_open: bool) -> bool:
        """See `Papers.change_paper`."""
        return await self._write(papers.change, before, text, is_open)

    async def papers(
        self, kind: str, owner: str, *, limit: int, after: str | None = None,
        newest_first: bool = True,
    ) -> list[Paper]:  # fmt: skip
        """See `Papers.papers`."""
        return await self._read(papers.listed, kind, owner, limit, after, newest_first)

    async def open_papers(self, kind: str) -> list[Paper]:
        """See `Papers.open_papers`."""
        return await self._read(papers.still_open, kind)

    async def remove_paper(self, kind: str, name: str) -> bool:
        """See `Papers.remove_paper`."""
        return await self._write(papers.remove, kind, name)

    async def write_page(self, kind: str, name: str, number: int, text: str) -> None:
        """See `Papers.write_page`."""
        await self._write(papers.write_page, kind, name, number, text)

    async def pages(
        self, kind: str, name: str, *, first: int = 0, limit: int = 1
    ) -> list[tuple[int, str]]:
        """See `Papers.pages`."""
        return await self._read(papers.pages, kind, name, first, limit)

    # What hooks are to be told

    async def announce(self, news: Sequence[News], now_ms: int) -> None:
        """See `Outbox.announce`."""
        await self._write(outbox.announce, news, now_ms)

    async def take_news(
        self, hooks: Collection[str], now_ms: int, *, lease_ms: int, limit: int = 16
    ) -> list[News]:
        """See `Outbox.take_news`."""
        if not await self._read(outbox.is_any_due, now_ms):
            return []
        return await self._write(outbox.take_news, hooks, now_ms, lease_ms, limit)

    async def told_news(self, id: int, now_ms: int, again_at_ms: int | None) -> None:
        """See `Outbox.told_news`."""
        await self._write(outbox.told_news, id, now_ms, again_at_ms)

    async def arm(self, topics: Collection[str], now_ms: int) -> None:
        """See `Outbox.arm`."""
        await self._write(outbox.arm, topics, now_ms)

    async def armed(self) -> set[str]:
        """See `Outbox.armed`."""
        return await self._read(outbox.armed)

    async def fire(self, topic: str, news: Sequence[News], now_ms: int) -> bool:
        """See `Outbox.fire`."""
        return await self._write(outbox.fire, topic, news, now_ms)

    # Looking

    async def counts(self, job: str | None = None) -> Counts:
        """See `Store.counts`."""
        return await self._read(views.counts, job)

    async def queue(
        self, states: Iterable[RequestState], now_ms: int, *, job: str | None = None,
        limit: int = PAGE, after_id: int = 0,
    ) -> list[QueueRow]:  # fmt: skip
        """See `Store.queue`."""
        wanted = list(states)
        return await self._read(listing.queue, wanted, now_ms, job, limit, after_id)

    async def spend(self, by: str, since_ms: int = 0) -> list[SpendRow]:
        """See `Store.spend`."""
        return await self._read(views.spend, by, since_ms)

    async def standing(self, now_ms: int) -> list[Standing]:
        """See `Store.standing`."""
        return await self._read(stands.standing, now_ms)

    async def unknown_sum(self) -> UnknownSum:
        """See `Store.unknown_sum`."""
        return await self._read(stands.unknown_sum)

    async def live_by_job(self) -> dict[str, int]:
        """See `Store.live_by_job`."""
        return await self._read(stands.live_by_job)

    async def course(self, budgets: Collection[int], since_ms: int) -> list[CourseRow]:
        """See `Store.course`."""
        return await self._read(spent.course, budgets, since_ms)

    async def durations(self, since_ms: int) -> list[TookRow]:
        """See `Store.durations`."""
        return await self._read(spent.durations, since_ms)

    async def attempts(self, request_id: int) -> list[AttemptRow]:
        """See `Store.attempts`."""
        return await self._read(listing.attempts, request_id)

    async def audit(self, now_ms: int) -> Audit:
        """See `Store.audit`."""
        return await self._read(views.audit, self._transactions, now_ms)

    async def finished(self, job: str, *, undelivered: bool = True) -> AsyncIterator[Finished]:
        """See `Store.finished`."""
        async for each in self._paged(views.finished_page, job, undelivered):
            yield each

    async def ended(self, job: str) -> AsyncIterator[Finished]:
        """See `Store.ended`."""
        async for each in self._paged(views.ended_page, job):
            yield each

    async def _paged(
        self, read: Callable[..., list[Finished]], *args: object
    ) -> AsyncIterator[Finished]:
        after_id = 0
        while True:
            page = await self._read(read, *args, after_id, PAGE)
            for each in page:
                yield each
            if len(page) < PAGE:
                return
            after_id = page[-1].id

    async def past(self, job: str | None = None, limit: int = 1000) -> list[Past]:
        """See `Store.past`."""
        return await self._read(views.past, job, limit)

    async def took(self, limit: int = 1000) -> list[Took]:
        """See `Store.took`."""
        return await self._read(outlook.took, limit)

    async def queued(self, most: int = 2000) -> list[Queued]:
        """See `Store.queued`."""
        return await self._read(outlook.queued, most)

    async def jobs(self) -> list[str]:
        """See `Store.jobs`."""
        return await self._read(views.jobs)

    async def known(self, job: str, keys: Sequence[str]) -> dict[str, Known]:
        """See `Store.known`."""
        return await self._read(views.known, job, keys)

    async def outcomes(self, ids: Sequence[int]) -> list[Finished]:
        """See `Store.outcomes`."""
        return await self._read(views.outcomes, ids)

    async def ended_since(self, seq: int) -> tuple[int, list[int] | None]:
        """See `Store.ended_since`."""
        return await self._read(changes.ended_since, seq)

    async def pictures(self, ids: Sequence[int]) -> list[Picture]:
        """See `Store.pictures`."""
        return await self._read(views.pictures, ids)

    async def forget(self, job: str, now_ms: int) -> None:
        """See `Store.forget`."""
        await self._write(self._transactions.forget, job, now_ms)

    async def delivered(self, ids: Sequence[int]) -> None:
        """See `Store.delivered`."""
        await self._write(notes.delivered, ids)

    async def prune(
        self, before_ms: int, now_ms: int, *, undelivered: bool = False, limit: int = PAGE,
        archive: Archive | None = None,
    ) -> list[Finished]:  # fmt: skip
        """See `Store.prune`; a file does not shrink, its free pages are used again."""

        def page(db: Connection) -> tuple[list[Finished], pruning.Sweep]:
            sweep = replace(self._sweep)  # what is tried again goes on from the same place
            return pruning.prune(
                db, self._transactions, sweep, before_ms, now_ms, undelivered, limit, archive
            ), sweep  # fmt: skip

        found, self._sweep = await self._write(page)
        return found
