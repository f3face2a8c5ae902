"""A provider behind HTTP for the real SDKs, which keeps its own bill."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from scheduler import Budget, Scheduler
from scheduler.adapters import http
from scheduler.providers.simulated.bill import SIMULATED_PRICES
from tests.sdks.kits import Kit, close
from tests.warm import running_server


@dataclass
class Service:
    """The simulated provider in a process of its own.

    Attributes:
        url: Without ``/v1``.
    """

    url: str
    before: dict[str, Any]

    def look(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/billed?records=1", timeout=60) as response:
            return json.load(response)

    def since(self, name: str) -> int:
        """How much more it has billed, or received, than when the test began."""
        return int(self.look()[name]) - int(self.before[name])

    @property
    def records(self) -> list[dict[str, Any]]:
        """What it billed in this test."""
        return self.look()["records"][len(self.before["records"]) :]


def since_now(url: str) -> Service:
    """A service as a test finds it."""
    made = Service(url, {})
    made.before = made.look()
    return made


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    options = ("--record", "--output-sigma", "0", "--output-tokens", "12", "--latency", "2ms")
    with running_server(*options) as url:
        yield url.removesuffix("/v1")


@pytest.fixture
def service(server: str) -> Service:
    return since_now(server)


@pytest.fixture(scope="session")
def guarded() -> Iterator[str]:
    """A server that knows none of our keys."""
    with running_server("--api-key", "another") as url:
        yield url.removesuffix("/v1")


@pytest.fixture(scope="session")
def failing_server() -> Iterator[str]:
    with running_server("--record", "--fail", "500=1") as url:
        yield url.removesuffix("/v1")


@pytest.fixture
def failing(failing_server: str) -> Service:
    """A server that answers all with 500."""
    return since_now(failing_server)


@pytest.fixture(scope="session")
def slow_server() -> Iterator[str]:
    with running_server("--record", "--latency", "30s") as url:
        yield url.removesuffix("/v1")


@pytest.fixture
def never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is: what waited takes a key for that, too."""
    monkeypatch.setattr(http, "LONGEST_FRESH_S", 3600)


@pytest.fixture
def slow_service(slow_server: str) -> Service:
    return since_now(slow_server)


@pytest.fixture
async def connect(anyio_backend: str) -> AsyncIterator[Callable[..., Any]]:
    """Makes clients, and closes them at the end."""
    made = []

    def make(kit: Kit, url: str, sync: bool, *timeout_s: float) -> Any:
        made.append(kit.client(url, sync, *timeout_s))
        return made[-1]

    yield make
    for client in made:
        await close(client)


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Look again and again until it holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def make_scheduler(limit: str | None = "$1", **options: Any) -> Scheduler:
    """A scheduler with one budget that knows the simulated prices."""
    options = {"budgets": Budget("team", limit), "prices": SIMULATED_PRICES} | options
    return Scheduler(**options)


def counted(s: Scheduler) -> int:
    """What the ledger counts, in nano-dollars."""
    stats = s.stats()
    return stats.posted_nusd + stats.reserved_nusd + stats.suspense_nusd
