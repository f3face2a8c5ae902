"""A real gateway in a process of its own, in front of a simulated provider in another one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scheduler.cli.look import opened
from scheduler.request import RequestState
from scheduler.stats import Counts
from tests import warm

pytestmark = pytest.mark.filterwarnings("default")

PRICE = "sim-small=0/1000"  # a tenth of a cent a token of output
MODEL = "sim-small"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
CEILING_USD = 0.1  # of that; it costs a cent


def wait_for(condition: Any, what: str, seconds: float = 60.0) -> Any:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:g} s for {what}")


@dataclass
class Provider:
    url: str
    process: warm.Popen
    before: dict[str, Any] = field(default_factory=dict)  # what it had billed when it was held

    def billed(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/billed", timeout=60) as told:
            return json.load(told)

    def go_on(self) -> None:
        """After it was held."""
        self.process.send_signal(signal.SIGCONT)


@dataclass
class Gateway:
    """A process of ``scheduler serve``."""

    folder: Path
    options: tuple[str, ...]
    store: str = "s.db"
    process: Any = None
    url: str = ""
    token: str = ""
    page: str = ""
    program: tuple[str, ...] = ("-m", "scheduler")

    def start(self) -> Gateway:
        words = [sys.executable, *self.program, "serve", "--port", "0", "--json",
                 "--store", self.store, *self.options]  # fmt: skip
        self.process = warm.Popen(
            words, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        told = json.loads(line)
        assert "url" in told, told
        self.url, self.token, self.page = told["url"], told["token"], told["page"]
        return self

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    @property
    def port(self) -> int:
        return int(self.root.rpartition(":")[2])

    def ask(self, body: Any = ASKED, path: str = "/v1/chat/completions", **headers: str) -> Answer:
        """One call, without any SDK."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            self.root + path, content,
            {"authorization": f"Bearer {self.token}", "content-type": "application/json", **named},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=60) as came:
                return Answer(came.status, dict(came.headers), came.read())
        except urllib.error.HTTPError as exc:
            with exc:
                return Answer(exc.code, dict(exc.headers), exc.read())

    def cli(self, *words: str, ok: bool = True, told: bool = False) -> str:
        """Another command on the same store; what it printed, or what it said if it failed or is `told`."""
        done = warm.run(
            [sys.executable, "-m", "scheduler", *words, "--store", self.store],
            cwd=self.folder, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert not ok or done.returncode == 0, done.stderr
        return done.stderr if told or not ok else done.stdout

    def budget(self, name: str = "default") -> dict[str, Any]:
        rows = json.loads(self.cli("budget", "list", "--json"))
        return next(row for row in rows if row["name"] == name)

    def settled(self, name: str = "default") -> dict[str, Any]:
        """The same once all that was answered is settled, which is a moment after its answer."""
        found: dict[str, Any] = {}

        def is_settled() -> bool:
            found.update(self.budget(name))
            return not float(found["reserved_usd"])

        wait_for(is_settled, "all to be settled")
        return found

    def states(self) -> dict[str, int]:
        """How many requests are in each state, as ``status`` counts them: tests look again and again."""
        url = self.store if "://" in self.store else f"sqlite:///{self.folder / self.store}"

        async def read() -> Counts:
            async with opened(url) as store:
                return await store.counts()

        with ThreadPoolExecutor(1) as aside:  # whoever asks may have a loop of their own
            counts = aside.submit(asyncio.run, read()).result()
        return {state: getattr(counts, state) for state in (*RequestState, "total")}

    def end(self) -> str:
        """Stop it; what it said."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=60)
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        return self.json()["error"]


@contextlib.contextmanager
def provider_with(*options: str) -> Iterator[Provider]:
    lengths = ("--output-tokens", "10", "--output-sigma", "0")
    with warm.server_process(*lengths, "--price", PRICE, *options) as (process, url):
        yield Provider(url, process)


@dataclass
class Start:
    """Begins gateways, until `end`."""

    folder: Path
    store: str = "s.db"
    program: tuple[str, ...] = ("-m", "scheduler")
    running: list[Gateway] = field(default_factory=list)

    def __call__(self, provider: Provider, *options: str, budget: str = "$1") -> Gateway:
        limits = ("--budget", budget) if budget else ()
        to = ("--base-url", provider.url, "--price", PRICE, *limits, *options)
        self.running.append(Gateway(self.folder, to, self.store, program=self.program))
        return self.running[-1].start()

    def end(self) -> None:
        for each in self.running:
            if each.process.poll() is None:
                each.kill()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with provider_with() as made:
        yield made


@pytest.fixture
def slow() -> Iterator[Provider]:
    with provider_with("--latency", "500ms") as made:
        yield made


@pytest.fixture
def held(provider: Provider) -> Iterator[Provider]:
    """It takes calls, and answers none before `go_on`: what is under way stays so, however long one looks."""
    provider.before = provider.billed()
    provider.process.send_signal(signal.SIGSTOP)
    yield provider
    provider.go_on()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made = Start(tmp_path)
    yield made
    made.end()


def rests(gateway: Gateway) -> int:
    """How many are parked once nothing runs: what else happens has to be brought about."""
    states = gateway.states()
    return 0 if states["running"] or states["queued"] else states["parked"]


def raw(port: int, data: bytes, seconds: float = 10.0, *, close: bool = False) -> bytes:
    """What comes back for some bytes, until the other side closes, or for so long."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as line:
        line.sendall(data)
        if close:
            return b""
        came, until_s = b"", time.monotonic() + seconds
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while time.monotonic() < until_s and (piece := line.recv(65536)):
                came += piece
        return came
