"""Real processes on one file, a provider in a process of its own, and looks in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scheduler.budget import Budget
from scheduler.clock import SystemClock
from scheduler.stats import Audit
from scheduler.stores.base import Store
from scheduler.stores.sqlite import SqliteStore
from tests import warm

WAIT_S = 60.0


def wait_for(condition: Callable[[], Any], what: str, seconds: float = WAIT_S) -> Any:
    """Poll until the condition holds; returns what it gave."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:g} s for {what}")


def look(url: str) -> Any:
    """What is told there, as JSON; without a client's TLS, which takes longer than all else."""
    with urllib.request.urlopen(url, timeout=60) as told:
        return json.load(told)


@dataclass
class Server:
    """A simulated provider that can be killed and started again on the same port."""

    options: tuple[str, ...]
    url: str = ""
    billed_before_nusd: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        port = () if not self.url else ("--port", self.url.rpartition(":")[2].partition("/")[0])
        words = [sys.executable, "-m", "scheduler.providers.simulated.server", *self.options, *port]
        self.process = warm.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def bill(self) -> dict[str, Any]:
        """What it has billed since it was started."""
        return look(self.url.removesuffix("/v1") + "/billed")

    def billed_nusd(self) -> int:
        """What it and those before it have billed."""
        return self.billed_before_nusd + int(self.bill()["billed_nusd"])

    def kill(self) -> None:
        """SIGKILL; what it billed so far is remembered here."""
        assert self.process is not None
        # It must bill nothing between the look and its end.
        self.process.send_signal(signal.SIGSTOP)
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def server(*options: str) -> Iterator[Server]:
    made = Server(options)
    made.start()
    try:
        yield made
    finally:
        assert made.process is not None
        if made.process.poll() is None:
            made.process.kill()
            made.process.communicate()


def freeze(process: subprocess.Popen[str], file: Any, provider: Server, least: int) -> None:
    """Stop a process while at least so many of its calls are under way, and all of them have left."""
    until_s = time.monotonic() + WAIT_S
    while time.monotonic() < until_s:
        if file.in_flight() >= least:
            process.send_signal(signal.SIGSTOP)
            with contextlib.suppress(sqlite3.OperationalError):  # it holds the file
                ((made,),) = file("SELECT count(*) FROM reservations WHERE state <> 'voided'")
                if file.in_flight() >= least and provider.bill()["received"] == made:
                    return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError(f"waited {WAIT_S:g} s for {least} calls that have left")


@dataclass
class Children:
    """Processes that end with the test."""

    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: str) -> subprocess.Popen[str]:
        child = warm.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.running.append(child)
        return child

    def end(self) -> None:
        for child in self.running:
            child.kill()
            child.communicate()


class Place:
    """Where queue and ledger are, looked at from outside."""

    def __call__(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def open(self) -> Store:
        """A store there, to be opened."""
        raise NotImplementedError

    def counted_nusd(self) -> int:
        """What the ledger counts: posted, under way, and unknown."""
        ((total,),) = self(
            "SELECT coalesce(sum(CASE WHEN state = 'posted' THEN nusd"
            " WHEN state = 'voided' THEN 0 ELSE ceiling_nusd END), 0) FROM reservations"
        )
        return int(total)

    def in_flight(self) -> int:
        ((count,),) = self("SELECT count(*) FROM requests WHERE state = 'running'")
        return int(count)

    def states(self) -> dict[str, int]:
        return dict(self("SELECT state, count(*) FROM requests GROUP BY state"))

    def define(self, *budgets: Budget) -> None:
        self._with_store(lambda store, now_ms: store.define(budgets, now_ms))

    def audit(self) -> Audit:
        return self._with_store(lambda store, now_ms: store.audit(now_ms))

    def _with_store(self, use: Callable[[Store, int], Any]) -> Any:
        async def main() -> Any:
            store, now_ms = self.open(), SystemClock().now_ms()
            await store.open(now_ms)
            try:
                return await use(store, now_ms)
            finally:
                await store.aclose()

        return asyncio.run(main())


@dataclass
class File(Place):
    """A database in a file."""

    path: Path

    def __call__(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(
            sqlite3.connect(f"file:{self.path}?mode=rw", uri=True, timeout=60)
        ) as db:
            return db.execute(sql, values).fetchall()

    def open(self) -> Store:
        return SqliteStore(self.path)

    @property
    def is_ready(self) -> bool:
        try:
            return bool(self("SELECT 1 FROM sqlite_master WHERE name = 'requests'"))
        except sqlite3.OperationalError:
            return False


def check_ledger(file: Place, provider: Server) -> None:
    """The bill first: what is billed between the two looks is reserved before."""
    billed_nusd = provider.billed_nusd()
    assert file.counted_nusd() >= billed_nusd


def write_prompts(path: Path, count: int) -> None:
    body = {"model": "sim-small", "max_tokens": 40}
    with path.open("w") as file:
        for n in range(count):
            messages = [{"role": "user", "content": f"question {n}"}]
            file.write(json.dumps({"custom_id": f"r{n}", **body, "messages": messages}) + "\n")


def results(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]
