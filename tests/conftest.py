"""What every test shares: the asyncio backend, and providers without money or network."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from scheduler.answer import Answer
from scheduler.errors import CallFailed
from scheduler.providers.base import Provider
from scheduler.request import Quote, Request, Usage
from tests import warm

with contextlib.suppress(ImportError):  # recipes and older SDKs are tested without it
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """Keep what all tests import out of collections: some tests collect, and SDKs are large."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    warm.end()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Complaints(logging.Handler):
    """What asyncio reports because nobody else could be told."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if said.startswith("Task was destroyed"):
            return  # said when it is collected as garbage, so in any test but the one that left it
        cause = record.exc_info[1] if record.exc_info else None
        self.heard.append(f"{said} {cause!r}")


@pytest.fixture(autouse=True)
def _nobody_is_left_untold(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test in which asyncio logs an error: such as an exception never retrieved.

    A test that expects one says so: ``@pytest.mark.asyncio_complains``.
    """
    complaints = Complaints()
    logger = logging.getLogger("asyncio")
    logger.addHandler(complaints)
    try:
        yield
    finally:
        logger.removeHandler(complaints)
    if request.node.get_closest_marker("asyncio_complains") is None:
        assert complaints.heard == [], "asyncio logged errors"


class FixedTariff:
    """Every call may cost `ceiling_nusd` and costs what its answer says."""

    def __init__(self, ceiling_nusd: int, tokens: int = 10) -> None:
        self.ceiling_nusd, self.tokens = ceiling_nusd, tokens

    def quote(self, request: Request) -> Quote:
        ceiling_nusd = request.body.get("ceiling", self.ceiling_nusd)
        return Quote(ceiling_nusd, ceiling_nusd // 2, self.tokens)

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        return answer.cost_nusd


class Bench(Provider):
    """A provider under the test's thumb, with its own count of what it billed.

    Bodies may say ``cost`` (nano-dollars), ``ceiling``, ``seconds`` to take, and
    ``fail``: an exception to raise.
    """

    def __init__(self, name: str = "bench", ceiling_nusd: int = 100, cost_nusd: int = 60) -> None:
        self.name, self.cost = name, cost_nusd
        self.tariff = FixedTariff(ceiling_nusd)
        self.sent: list[Request] = []
        self.billed_nusd = 0
        self.running = self.most_running = 0
        self.before: Callable[[Request], Awaitable[None]] | None = None
        self.closed = False

    async def send(self, request: Request) -> Answer:
        self.sent.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._answer(request)
        finally:
            self.running -= 1

    async def _answer(self, request: Request) -> Answer:
        body: dict[str, Any] = request.body
        if self.before is not None:
            await self.before(request)
        failure = body.get("fail")
        if isinstance(failure, CallFailed) and failure.is_billed is False:
            raise failure
        cost_nusd = body.get("cost", self.cost)
        self.billed_nusd += cost_nusd  # from here on the provider bills, whatever we see of it
        await asyncio.sleep(body.get("seconds", 0))
        if failure is not None:
            raise failure
        return Answer({"answer": body.get("n")}, usage=Usage(4, 6), cost_nusd=cost_nusd)

    async def aclose(self) -> None:
        self.closed = True


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Look again and again until it holds: what takes a moment takes longer on a busy machine."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def ask(n: int = 0, **options: Any) -> Request:
    """A request; words that are no option of `Request` go into its body."""
    return Request.chat("m", "hi", n=n, **options)
