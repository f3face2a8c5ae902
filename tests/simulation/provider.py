"""A provider with a mind of its own: faults by the seed, and its own count of what it bills."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from scheduler.answer import Answer
from scheduler.errors import (
    BadAnswer,
    CallTimeout,
    ProviderOverloaded,
    ProviderRefused,
    RateLimited,
    TransportFailed,
)
from scheduler.providers.base import Provider
from scheduler.providers.credit import affords
from scheduler.request import Quote, Request, Usage
from scheduler.stores.base import Unknown

CEILING = 100  # nano-dollars
TIMEOUT_S = 300.0
# Fault, its share, and whether the provider bills such a call.
FAULTS: dict[str, tuple[float, bool | None]] = {
    "": (62, True),
    "slow": (8, True),
    "busy": (6, False),
    "overloaded": (3, False),
    "unreachable": (4, False),
    "refused": (2, False),
    "broken": (5, None),  # it may or may not have got far enough
    "reset": (4, True),
    "stall": (2, True),
    "no usage": (2, True),
    "too much": (1, True),
    "odd": (1, True),
}


class FlatTariff:
    def quote(self, request: Request) -> Quote:
        return Quote(request.body["ceiling"], request.body["ceiling"] // 2, 10)

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        return answer.cost_nusd


class SimulatedProvider(Provider):
    """See the module.

    Attributes:
        billed_nusd: By budget; what the ledger has to cover. A call that costs more than its
            ceiling counts at its ceiling here: the rest is known only once it is answered.
        sent: How often each question was sent.
        is_kind: No faults any more.
        purse: It pays for calls of up to so much, and refuses larger ones. None: for all.
        tells: Whether such a refusal says how much there is.
    """

    name = "world"

    def __init__(
        self,
        rng: random.Random,
        sending: Callable[[Request], None],
        within: Callable[[Request], Awaitable[None]],
    ) -> None:
        self.tariff = FlatTariff()
        self._rng, self._sending, self._within = rng, sending, within
        self.billed_nusd: Counter[str] = Counter()
        self.costs: dict[str, list[int]] = {}
        self.sent: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.is_kind = False
        self.purse: int | None = None
        self.tells = False

    async def send(self, request: Request) -> Answer:
        self._sending(request)
        body = request.body
        if body["inner"]:
            await self._within(request)
        self.sent[body["n"]] += 1
        if self.purse is not None and body["ceiling"] > self.purse and not self.is_kind:
            self.faults["no credit"] += 1
            raise self._no_credit(body["ceiling"])
        fault = self._choose(body["ceiling"])
        self.faults[fault or "none"] += 1
        cost = self._rng.randint(0, body["ceiling"])
        is_billed = FAULTS[fault][1]
        if is_billed is None:
            is_billed = self._rng.random() < 0.5
        if is_billed:
            self._bill(body, cost)
        seconds = self._rng.choice([0.0, 0.2, 1.0, 5.0])
        return await self._answer(fault, body, cost, seconds)

    def _no_credit(self, ceiling: int) -> ProviderRefused:
        said = f"you requested up to {ceiling} tokens, but can only afford {self.purse}"
        error = ProviderRefused(402, said if self.tells else "insufficient credits")
        error.credit, error.affords = error.message, affords(error.message)
        return error

    def _choose(self, ceiling: int) -> str:
        if self.is_kind or not ceiling:
            return ""
        weights = [share for share, _ in FAULTS.values()]
        return self._rng.choices(list(FAULTS), weights)[0]

    def _bill(self, body: dict[str, Any], cost: int) -> None:
        for name in body["draws"]:
            self.billed_nusd[name] += min(cost, body["ceiling"])
        self.costs.setdefault(body["n"], []).append(cost)

    async def _answer(self, fault: str, body: dict[str, Any], cost: int, seconds: float) -> Answer:
        if fault == "busy":
            raise RateLimited(429, "busy", retry_after_ms=self._rng.choice([500, 20_000]))
        if fault == "overloaded":
            error = ProviderOverloaded(503, "overloaded")
            error.is_billed = False
            raise error
        if fault == "unreachable":
            raise TransportFailed("could not connect", False)
        if fault == "refused":
            raise ProviderRefused(400, "no such thing")
        if fault == "stall":
            await asyncio.sleep(TIMEOUT_S)
            raise CallTimeout("no answer in time")
        await asyncio.sleep(seconds * (60 if fault == "slow" else 1))
        if fault == "broken":
            raise ProviderOverloaded(500, "internal error")
        if fault == "reset":
            raise TransportFailed("the connection broke off")
        if fault == "odd":
            raise BadAnswer("no JSON object")
        answer = {"answer": body["n"]}
        if fault == "no usage":
            return Answer(answer)
        if fault == "too much":
            cost = body["ceiling"] * 2
        return Answer(answer, usage=Usage(4, 6), cost_nusd=cost)


class Askable(SimulatedProvider):
    """One that can be asked about calls nobody heard back from."""

    async def look_up(self, unknown: Unknown) -> Answer | None:
        """The dearest of what that question cost: attempts are not told apart here."""
        assert unknown.request is not None
        costs = self.costs.get(unknown.request.body["n"])
        if not costs or self._rng.random() < 0.5:
            return None
        return Answer({}, cost_nusd=min(max(costs), unknown.ceiling_nusd))
