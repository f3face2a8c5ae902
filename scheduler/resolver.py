"""The task that finds out what became of calls nobody heard back from.

It runs only where there is something to do: a provider that can be asked, or one whose
policy is not to charge in full. It sleeps until the next outcome becomes unknown, the next
policy is due, or the provider is to be asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from scheduler.calls import is_sane
from scheduler.clock import Clock
from scheduler.errors import SchedulerError
from scheduler.intake import Intake
from scheduler.pricing import prompt_only
from scheduler.providers.base import Answer, Provider
from scheduler.request import RequestState
from scheduler.stores.base import Outcome, Settlement, Store, Unknown
from scheduler.suspense import Assumption, UnknownPolicy, next_look_ms, parse_policy

logger = logging.getLogger("scheduler.resolver")

PAGE = 500
LOOKS_AT_ONCE = 8
LONGEST_SLEEP_S = 3600.0
LOOKED_UP = "the provider was asked"
PAUSE_S = 0.5
LONGEST_LOOK_UP_S = 30.0


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
        self._silent: set[str] = set()  # providers that gave no answer in time, in this pass
        self._task: asyncio.Task[None] | None = None

    @property
    def is_needed(self) -> bool:
        """Whether any provider can be asked, or has a policy other than to charge."""
        return any(
            provider.can_look_up or self._policy(provider).assumption is not Assumption.CHARGE
            for provider in self._intake.providers.values()
        )

    def start(self) -> None:
        """Begin, if there can be anything to do; also when there is a provider more."""
        if self._task is None and self.is_needed:
            self._task = asyncio.create_task(self._run(), name="scheduler resolver")

    def _policy(self, provider: Provider) -> UnknownPolicy:
        policy = self._policies.get(provider.name)
        if policy is None:
            policy = self._policies[provider.name] = parse_policy(provider.on_unknown)
        return policy

    def wake(self) -> None:
        """An outcome became unknown."""
        self._signal.set()

    async def aclose(self) -> None:
        """Stop; what is unknown stays so for the next process."""
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
            timeout_s = None
            if due_ms is not None:
                timeout_s = min(LONGEST_SLEEP_S, max(0, due_ms - self._clock.now_ms()) / 1000)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._signal.wait()
            await asyncio.sleep(PAUSE_S)  # many at once are looked at together

    async def _pass(self) -> int | None:
        """Look at everything in suspense once; returns when to look again."""
        due_ms: list[int] = []
        after_id = 0
        seen: set[int] = set()
        self._silent.clear()
        while page := await self._store.suspended(limit=PAGE, after_id=after_id):
            after_id = page[-1].id
            seen.update(each.id for each in page)
            for start in range(0, len(page), LOOKS_AT_ONCE):
                some = page[start : start + LOOKS_AT_ONCE]
                found = await asyncio.gather(*(self._settle(each, due_ms) for each in some))
                await self._write([each for each in found if each is not None])
        for gone in self._look_at_ms.keys() - seen:
            del self._look_at_ms[gone]
        return min(due_ms, default=None)

    async def _write(self, settlements: list[Settlement]) -> None:
        if not settlements:
            return
        now_ms = self._clock.now_ms()
        # In the background of a cancelled caller too: it is one transaction.
        done = await asyncio.shield(self._store.resolve(settlements, now_ms))
        self._resolved([each for each, new in zip(settlements, done, strict=True) if new])

    async def _settle(self, unknown: Unknown, due_ms: list[int]) -> Settlement | None:
        """What is to be done about one; notes when to look again if nothing is."""
        provider = self._intake.providers.get(unknown.provider)
        if provider is None:
            return None  # another process's
        now_ms = self._clock.now_ms()
        look_at_ms = self._look_at_ms.setdefault(unknown.id, now_ms)
        if provider.can_look_up and look_at_ms <= now_ms:
            found = await self._ask(provider, unknown)
            if found is not None:
                return found
            again_ms = next_look_ms(unknown.suspended_at_ms, now_ms)
            self._look_at_ms[unknown.id] = again_ms or (1 << 62)
        if provider.can_look_up and self._look_at_ms[unknown.id] < 1 << 62:
            due_ms.append(self._look_at_ms[unknown.id])
        policy = self._policy(provider)
        if policy.is_due(unknown.suspended_at_ms, now_ms):
            return self._assume(provider, unknown, policy)
        if policy.assumption is not Assumption.CHARGE:
            due_ms.append(unknown.suspended_at_ms + policy.after_ms)
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
        except Exception as exc:
            logger.warning("%s could not be asked about %s: %r", provider.name, _name(unknown), exc)
            return None
        if not (is_sane(cost_nusd) and is_sane(tokens)):
            return None
        return _settlement(unknown, Outcome.POST, cost_nusd or 0, tokens, why=LOOKED_UP)

    def _cost_nusd(self, provider: Provider, unknown: Unknown, answer: Answer) -> int | None:
        if answer.cost_nusd is not None or unknown.request is None:
            return answer.cost_nusd
        return self._intake.tariff(provider).cost_nusd(unknown.request, answer)

    def _assume(
        self, provider: Provider, unknown: Unknown, policy: UnknownPolicy
    ) -> Settlement | None:
        why = f"{unknown.why or 'outcome unknown'}; assumed by policy: {policy}"
        if policy.assumption is Assumption.RELEASE:
            return _settlement(unknown, Outcome.VOID, why=why)
        if unknown.request is None:
            return None  # without its prompt there is nothing to price: it stays as it is
        try:
            quote = self._intake.tariff(provider).quote(prompt_only(unknown.request))
        except SchedulerError as exc:
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
