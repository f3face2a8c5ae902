"""What people do to a `Scheduler` while it runs: to its budgets, to what it holds back, to what it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from scheduler.budget import Budget
from scheduler.clock import Clock
from scheduler.core.declared import check_parents, declare, read_budgets
from scheduler.core.intake import Intake, Matched
from scheduler.core.marks import Marks, apply
from scheduler.duration import parse_duration_ms
from scheduler.request import Duration, Request
from scheduler.stores import acts
from scheduler.stores.base import Archive, Store

if TYPE_CHECKING:
    from scheduler.core.pump import Pump


class Governing:
    """The methods of a `Scheduler` for whoever looks after it."""

    store: Store
    _intake: Intake
    _clock: Clock
    _wanted: list[Budget]

    if TYPE_CHECKING:  # what a `Scheduler` brings

        @property
        def marks(self) -> Marks: ...  # noqa: D102

        def _pump_here(self) -> Pump: ...

        def _open_pump(self) -> Pump: ...

    async def set_limit(self, name: str, limit: str | int | float | Decimal | None) -> None:
        """Change a budget's limit; what was spent stays spent.

        Args:
            name: A defined budget.
            limit: An amount (``"$20"``, keeps the window), a full form
                (``"$20/day"``), or None to switch the limit off.

        Raising it lets parked requests go on at once; lowering it cancels nothing.
        """
        self._pump_here()
        book = self._intake.book
        await read_budgets(self.store, book, [name])
        await self._redefine([book[name].with_limit(limit)])

    async def define(self, *budgets: Budget) -> None:
        """Create budgets, or change them to this definition; what was spent stays spent.

        Raises:
            ConfigError: A parent is not defined, or is its own child.
        """
        await self._redefine(budgets)
        declare(self._intake.book, budgets)

    async def _redefine(self, budgets: Sequence[Budget]) -> None:
        """Define them, and note whose limits are others now."""
        before = await self.store.defined([each.name for each in budgets])
        await self._define(budgets)
        was = {budget.name: budget for _, budget in before}
        await self._note(
            *acts.limits(self._clock.now_ms(), acts.this_process(), was, budgets, with_new=False)
        )

    async def _note(self, *found: acts.Act) -> None:
        await acts.note(self.store, *found)

    async def _define(self, budgets: Sequence[Budget]) -> None:
        pump = self._pump_here()
        await check_parents(self.store, self._intake.book, budgets)
        await self.store.define(budgets, self._clock.now_ms())
        await read_budgets(self.store, self._intake.book, [each.name for each in budgets])
        pump.wake()

    async def ensure(self, *budgets: Budget) -> None:
        """Create those budgets of which there is none by that name; leave all others alone.

        For budgets that come up as work comes in, such as one for each user: unlike `define` it
        undoes no limit that somebody raised.
        """
        book = self._intake.book
        missing = [each for each in budgets if each.name not in book]
        if missing:
            # Other processes may have made them.
            await read_budgets(self.store, book, [each.name for each in missing])
            missing = [each for each in missing if each.name not in book]
        if missing:
            await self._define(missing)
        declare(book, budgets)

    async def learn_budgets(self, names: Iterable[str]) -> None:
        """Know these budgets, and their parents, that other processes made a moment ago.

        Those that are known are left as they are: what changes of them is heard by and by.
        """
        book, looked = self._intake.book, set[str]()
        while missing := {each for each in names if each not in book} - looked:
            looked |= missing
            await read_budgets(self.store, book, missing)
            found = [book[each] for each in missing if each in book]
            names = [each.parent for each in found if each.parent is not None]

    async def remove_budget(self, name: str) -> None:
        """Have a budget bind nobody any more; requests that wait only for it go on at once.

        Calls under way settle in it, and what was spent on it stays in `scheduler spend` and
        `scheduler audit`. Defined again by that name, it comes back with what it spent.

        Raises:
            BudgetUnknown: There is none of that name.
            ConfigError: It is the parent of others, which would lose its limit.
        """
        pump = self._pump_here()
        before = await self.store.defined([name])
        await self.store.remove(name, self._clock.now_ms())
        self._intake.book.remove([name])
        pump.wake()
        who, now_ms = acts.this_process(), self._clock.now_ms()
        await self._note(*[acts.removed(now_ms, who, budget) for _, budget in before])

    def budgets_of(self, request: Request) -> Matched:
        """Which budgets a request would draw on, and why: under what names rules see its model.

        Raises:
            RequestRejected, ConfigError: It names a budget or a provider that is not there.
        """
        self._open_pump()
        return self._intake.explain(apply(self.marks, request) if self.marks else request)

    def led_to(self, model: str) -> tuple[str | None, str]:
        """The provider that the prefix of a model, or a route, leads to, and its name there.

        None: neither says, and the model is called as it is.

        Raises:
            ConfigError: It is a prefix of a provider that is not there.
        """
        return self._intake.led_to(model)

    @property
    def turns(self) -> int:
        """How many transactions were made; no balance changes for this process in between."""
        return self._open_pump().tally.turns

    def redefine(self, budget: Budget) -> None:
        """As `define`, for a scheduler that is not open yet."""
        self._wanted = [each for each in self._wanted if each.name != budget.name] + [budget]

    async def pause(self, name: str) -> None:
        """Admit nothing on a budget until `resume`; calls under way finish."""
        await self._pause(name, True)

    async def resume(self, name: str) -> None:
        """Admit on a paused budget again."""
        await self._pause(name, False)

    async def _pause(self, name: str, paused: bool) -> None:
        pump, now_ms = self._pump_here(), self._clock.now_ms()
        was = any(each.paused for each in self.store.latest() if each.budget.name == name)
        await self.store.pause(name, paused, now_ms)
        pump.wake()
        await self._note(acts.paused(now_ms, acts.this_process(), name, was=was, is_now=paused))

    def probe(self, provider: str) -> bool:
        """Send one request at once to a provider whose credit was used up, or that was down.

        If it is answered, all others follow. Without it one is sent on a widening timer.

        Returns:
            Whether nothing was being sent there.
        """
        pump = self._pump_here()
        needed = self.store.gates.probe(provider)
        pump.wake()
        return needed

    async def prune(
        self, older_than: Duration, *, undelivered: bool = True, archive: Archive | None = None
    ) -> int:
        """Forget requests that ended longer ago, and their answers; no balance changes.

        Their keys are free: asked again they are sent, and paid, again. What waits, runs, or has
        an unknown outcome stays. Requests without a key are forgotten by themselves in memory, in
        a file by this.

        Args:
            older_than: How long ago they ended at least, e.g. ``"7d"``.
            undelivered: Also those whose answers never reached a results file, as all that were
                not asked by ``scheduler run``. False: only lines of batches that were written.
            archive: Called with what is forgotten, a page at a time, before it is, on the store's
                own thread; what it raises leaves the page as it was.

        Returns:
            How many were forgotten.
        """
        self._pump_here()
        count, before_ms = 0, self._clock.now_ms() - parse_duration_ms(older_than, "older_than")
        while page := await self.store.prune(
            before_ms, self._clock.now_ms(), undelivered=undelivered, archive=archive
        ):
            count += len(page)
            await asyncio.sleep(0)  # others have their turns meanwhile
        return count
