"""The task that finds out what became of calls nobody heard back from.

It runs only where there is something to do: a provider that can be asked, or one whose
policy is not to charge in full. It sleeps until the next outcome becomes unknown, the next
policy is due, or the provider is to be asked again; then it looks at these and at no others,
however many are unknown. What other processes left is found by when it became unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Sequence
from contextvars import Context

from scheduler.answer import Answer
from scheduler.clock import Clock
from scheduler.core.calls import cost_of, is_sane
from scheduler.core.intake import Intake
from scheduler.errors import brief
from scheduler.guards.hooks import complain
from scheduler.guards.plain import logger_of
from scheduler.ledger.suspense import Assumption, UnknownPolicy, next_look_ms, parse_policy
from scheduler.prices.book import prompt_only
from scheduler.providers.base import Provider
from scheduler.request import RequestState
from scheduler.stores.base import Outcome, Settlement, Store, Unknown

logger = logger_of("scheduler.resolver")

PAGE = 500
LOOKS_AT_ONCE = 8
LONGEST_SLEEP_S = 3600.0
LOOKED_UP = "the provider was asked"
PAUSE_S = 0.5
LONGEST_LOOK_UP_S = 30.0
FIND_EVERY_MS = 60_000  # look for what other processes left
LATE_MS = 120_000  # what became unknown may be written so much later: its turn waited for the file


class Resolver:
    """Asks providers and applies policies; see the module. Used by `Scheduler` alone."""

    def __init__(
        self,
        store: Store,
        intake: Intake,
        clock: Clock,
        resolved: Callable[[list[Settlement]], None],
    ) -> None:
        self._store, self._intake, self._clock, self._resolved = store, intake, clock, resolved
        self._policies: dict[str, UnknownPolicy] = {}
        for provider in intake.providers.values():
            self._policy(provider)  # a wrong one is told at once
        self._signal = asyncio.Event()
        self._signal.set()  # a process before this one may have left something
        self._look_at_ms: dict[int, int] = {}  # reservation to when its provider is asked next
        self._told: set[int] = set()  # reservations of this process that became unknown
        # What their answers told before they were lost: nano-dollars and tokens, at the least.
        self._least: dict[int, tuple[int, int]] = {}
        self._due_ms: dict[int, int] = {}  # reservation to when it is looked at next
        self._queue: list[tuple[int, int]] = []  # the same as a heap; stale where they differ
        self._find_at_ms = self._since_ms = 0
        self._silent: set[str] = set()  # providers that gave no answer in time, in this pass
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def is_needed(self) -> bool:
        """Whether any provider can be asked, or has a policy other than to charge."""
        return any(
            provider.can_look_up or self._policy(provider).assumption is not Assumption.CHARGE
            for provider in self._intake.providers.values()
        )

    def start(self) -> None:
        """Begin, if there can be anything to do; also when there is a provider more."""
        self._find_at_ms = self._since_ms = 0  # what was nobody's business may be its
        self._signal.set()
        is_there = self._task is not None and not self._task.done()
        if not is_there and not self._is_closed and self.is_needed:
            self._task = asyncio.create_task(
                self._run(), name="scheduler resolver", context=Context()
            )

    def _policy(self, provider: Provider) -> UnknownPolicy:
        policy = self._policies.get(provider.name)
        if policy is None:
            policy = self._policies[provider.name] = parse_policy(provider.on_unknown)
        return policy

    def wake(self, reservation_id: int, told: tuple[int, int] | None = None) -> None:
        """An outcome became unknown, and its answer told that much of its cost and tokens."""
        if self._task is not None:
            self._told.add(reservation_id)
            if told is not None:
                self._least[reservation_id] = told
            self._signal.set()
            if self._task.done():  # somebody cancelled it
                self.start()

    async def aclose(self) -> None:
        """Stop; what is unknown stays so for the next process."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._signal.clear()
            try:
                due_ms = await self._pass()
            except Exception as exc:  # the store's, or of prices of the caller's own
                logger.warning("cannot look at unknown outcomes: %r", exc)
                due_ms = self._clock.now_ms() + 60_000
                # What it was about to look at is found again.
                self._find_at_ms = self._since_ms = 0
                self._due_ms.clear()
                self._queue.clear()
            timeout_s = None
            if due_ms is not None:
                timeout_s = min(LONGEST_SLEEP_S, max(0, due_ms - self._clock.now_ms()) / 1000)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._signal.wait()
            await asyncio.sleep(PAUSE_S)  # many at once are looked at together

    async def _pass(self) -> int | None:
        """Look at what is new and what is due; returns when to look again."""
        self._silent.clear()
        now_ms = self._clock.now_ms()
        ids, self._told = self._told, set()
        again_ms = [self._find_at_ms] if ids and now_ms < self._find_at_ms else []
        if now_ms >= self._find_at_ms:
            ids |= await self._find(now_ms)
        ids = {each for each in ids if each not in self._due_ms}
        while self._queue and self._queue[0][0] <= now_ms:
            due_ms, reservation_id = heapq.heappop(self._queue)
            if self._due_ms.get(reservation_id) == due_ms:
                del self._due_ms[reservation_id]
                ids.add(reservation_id)
        ordered = sorted(ids)
        for start in range(0, len(ordered), PAGE):
            page = ordered[start : start + PAGE]
            unknown = await self._store.suspended_of(page)
            for gone in set(page) - {each.id for each in unknown}:
                self._look_at_ms.pop(gone, None)
                self._least.pop(gone, None)
            await self._look(unknown)
        return min([*again_ms, *(due_ms for due_ms, _ in self._queue[:1])], default=None)

    async def _find(self, now_ms: int) -> set[int]:
        """Everything that became unknown since this was asked last."""
        found: set[int] = set()
        since_ms, after_id, is_more = self._since_ms, 0, True
        while is_more:
            page = await self._store.suspended_since(since_ms, after_id=after_id)
            found.update(reservation_id for _, reservation_id in page)
            is_more = bool(page)
            if page:
                since_ms, after_id = page[-1]
        self._find_at_ms, self._since_ms = now_ms + FIND_EVERY_MS, now_ms - LATE_MS
        return found

    async def _look(self, unknown: Sequence[Unknown]) -> None:
        providers = map(self._intake.providers.get, {each.provider for each in unknown})
        is_asking = any(each is not None and each.can_look_up for each in providers)
        # A policy is applied to many in one transaction, though not to all: one may fail.
        at_once = LOOKS_AT_ONCE if is_asking else max(LOOKS_AT_ONCE, len(unknown) // 4)
        for start in range(0, len(unknown), at_once):
            some = unknown[start : start + at_once]
            found = await asyncio.gather(*map(self._settle, some))
            await self._write([each for each in found if each is not None])

    async def _write(self, settlements: list[Settlement]) -> None:
        if not settlements:
            return
        now_ms = self._clock.now_ms()
        # In the background of a cancelled caller too: it is one transaction.
        done = await asyncio.shield(self._store.resolve(settlements, now_ms))
        self._resolved([each for each, new in zip(settlements, done, strict=True) if new])

    async def _settle(self, unknown: Unknown) -> Settlement | None:
        """What is to be done about one; notes when to look again if nothing is."""
        provider = self._intake.providers.get(unknown.provider)
        if provider is None:
            return None  # another process's
        now_ms = self._clock.now_ms()
        due_ms: list[int] = []
        if provider.can_look_up:
            look_at_ms: int | None = self._look_at_ms.get(unknown.id, now_ms)
            if look_at_ms is not None and look_at_ms <= now_ms:
                found = await self._ask(provider, unknown)
                if found is not None:
                    self._look_at_ms.pop(unknown.id, None)
                    return found
                look_at_ms = next_look_ms(unknown.suspended_at_ms, now_ms)
            if look_at_ms is not None:
                self._look_at_ms[unknown.id] = look_at_ms
                due_ms.append(look_at_ms)
            else:
                self._look_at_ms.pop(unknown.id, None)
        policy = self._policy(provider)
        if policy.assumption is not Assumption.INPUT_ONLY:
            self._least.pop(unknown.id, None)
        if policy.is_due(unknown.suspended_at_ms, now_ms):
            assumed = self._assume(provider, unknown, policy)
            if assumed is not None:
                self._look_at_ms.pop(unknown.id, None)
                return assumed
        elif policy.assumption is not Assumption.CHARGE:
            due_ms.append(unknown.suspended_at_ms + policy.after_ms)
        if due_ms:
            self._due_ms[unknown.id] = min(due_ms)
            heapq.heappush(self._queue, (min(due_ms), unknown.id))
        return None

    async def _ask(self, provider: Provider, unknown: Unknown) -> Settlement | None:
        """The provider's own word; None: it has none."""
        if provider.name in self._silent:
            return None
        try:
            async with asyncio.timeout(LONGEST_LOOK_UP_S):
                answer = await provider.look_up(unknown)
            if answer is None:
                return None
            if answer is False:
                return _settlement(unknown, Outcome.VOID, why=LOOKED_UP)
            cost_nusd = self._cost_nusd(provider, unknown, answer)
            tokens = unknown.ceiling_tokens
            if answer.usage is not None:
                tokens = answer.usage.total_tokens
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            logger.warning("%s gave up when it was asked: %r", provider.name, exc)
            return None
        except TimeoutError:
            self._silent.add(provider.name)
            logger.warning("%s said nothing in time about %s", provider.name, _name(unknown))
            return None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            logger.warning("%s could not be asked about %s: %r", provider.name, _name(unknown), exc)
            return None
        if not (is_sane(cost_nusd) and is_sane(tokens)):
            if cost_nusd is not None:
                problem = f"gave {brief(cost_nusd)} as a cost, and {brief(tokens)} tokens"
                complain(provider.look_up, problem, "what was reserved keeps counting")
            return None
        return _settlement(unknown, Outcome.POST, cost_nusd or 0, tokens, why=LOOKED_UP)

    def _cost_nusd(self, provider: Provider, unknown: Unknown, answer: Answer) -> int | None:
        if answer.cost_nusd is not None or unknown.request is None:
            return answer.cost_nusd
        return cost_of(self._intake.tariff(provider), unknown.request, answer)

    def _assume(
        self, provider: Provider, unknown: Unknown, policy: UnknownPolicy
    ) -> Settlement | None:
        why = f"{unknown.why or 'outcome unknown'}; assumed by policy: {policy}"
        if policy.assumption is Assumption.RELEASE:
            return _settlement(unknown, Outcome.VOID, why=why)
        told = self._least.pop(unknown.id, None)
        if told is not None:  # the provider's own count, in place of our bound
            return _settlement(unknown, Outcome.POST, *told, why=why)
        if unknown.request is None:
            return None  # without its prompt there is nothing to price: it stays as it is
        try:
            quote = self._intake.quoted(provider, prompt_only(unknown.request))
        except Exception as exc:
            logger.warning("cannot price the prompt of %s: %s", _name(unknown), exc)
            return None
        cost_nusd = min(quote.ceiling_nusd, unknown.ceiling_nusd)
        tokens = min(quote.ceiling_tokens, unknown.ceiling_tokens)
        return _settlement(unknown, Outcome.POST, cost_nusd, tokens, why=why)


def _name(unknown: Unknown) -> str:
    return unknown.key or f"attempt {unknown.id}"


def _settlement(
    unknown: Unknown, outcome: Outcome, nusd: int = 0, tokens: int = 0, *, why: str
) -> Settlement:
    """The end of a suspense; only the call's own answer still corrects it."""
    return Settlement(
        unknown.id, unknown.request_id, outcome, RequestState.FAILED, nusd, tokens,
        is_assumed=True, why=why,
    )  # fmt: skip
