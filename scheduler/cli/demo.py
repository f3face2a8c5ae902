"""``scheduler demo``: the whole road on one screen, with no key and no cost.

It runs the real commands as real processes: a simulated provider on loopback, a
batch that draws on a small budget, and, from a second process, the raise that lets
the parked requests go on. At the end the provider's own bill is compared with the
ledger, to the nano-dollar.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Self

import typer

from scheduler.cli.demo_account import Seen, tell_account
from scheduler.cli.exits import Exit
from scheduler.cli.helping import Command
from scheduler.cli.look import now_ms, opened
from scheduler.cli.moving import Moving
from scheduler.cli.output import bar, plural, say
from scheduler.cli.status import sentence
from scheduler.cli.widths import fitted
from scheduler.guards.plain import plain_line
from scheduler.money import format_usd, usd

if TYPE_CHECKING:
    from scheduler.stats import CapStatus, Counts
    from scheduler.stores.base import Store

LOOK_S = 0.1
LAG_MS = 100
GIVE_UP_S = 120.0
MODELS = ("sim-small", "sim-large")
TOPIC = "why does a queue that never overspends still finish every request it was given"


@dataclass(frozen=True, slots=True)
class Script:
    """How big the demo is."""

    requests: int
    limit: str
    raised: str
    concurrency: int
    latency: str
    parked_before_raise_s: float  # how long the second wait is looked at before the raise


FULL = Script(300, "$0.02/8s", "$1/8s", 8, "150ms", 3.0)
FAST = Script(120, "$0.004/2s", "$1/2s", 8, "5ms", 0.3)


class Stage:
    """Where the demo is shown: lines that stay and, on a terminal, one below them that moves."""

    def __init__(self) -> None:
        self.has_bar = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._moving: Moving | None = None

    def __enter__(self) -> Self:
        if self.has_bar:
            self._moving = Moving(sys.stderr, transient=True)
        return self

    def __exit__(self, *failure: object) -> None:
        if self._moving is not None:
            self._moving.close()

    def tell(self, who: str, text: str) -> None:
        """One line of what one of the terminals shows."""
        if self._moving is None:
            say(one_line_of(who, text))
        else:
            self._moving.say(plain_line(text), one_line_of(who, ""))

    def move(self, counts: Counts, total: int, cap: CapStatus) -> None:
        """Change the line that moves."""
        if self._moving is not None:
            width = self._moving.width - 1
            self._moving.draw(moving_line(counts, total, cap, width).split("\n"))


def one_line_of(who: str, text: str) -> str:
    """A line with the name of the terminal it is seen in."""
    return f"{who:>6} │ {text}"


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("demo", cls=Command)(demo)


def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="FOLDER", help="For its files; default: a new temporary one."
        ),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Fewer requests, for tests.")] = False,
) -> None:
    """Run a batch against a simulated provider: parking, a reset, a raise, an exact account."""
    # Asked to end, it must not leave its processes behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    script = FAST if fast else FULL
    place = _make_folder(folder)
    prompts = place / "prompts.jsonl"
    write_prompts(prompts, script.requests)
    say(f"A batch of {script.requests} requests, a budget of {script.limit}, a simulated provider.")
    say("No key, no cost, nothing leaves this machine.")
    say("")
    with simulated_server(script, place / "server.log") as url:
        with Stage() as stage:
            stage.tell("server", f"$ scheduler simulate    # listens at {url}")
            code, seen = asyncio.run(_show(script, place, url, stage))
        is_exact = asyncio.run(tell_account(script.requests, place, url, code, seen))
    if not is_exact:
        raise typer.Exit(Exit.FAILED)


def _make_folder(folder: Path | None) -> Path:
    import tempfile

    from scheduler.errors import ConfigError

    if folder is None:
        return Path(tempfile.mkdtemp(prefix="scheduler-demo-"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("--dir", f"{folder} is not an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_prompts(path: Path, count: int) -> None:
    """Write a batch file of requests of many sizes, for two models; always the same."""
    rng, topic = random.Random(7), TOPIC.split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = rng.choices(topic, k=rng.randint(5, 80))
            body = {
                "model": MODELS[rng.random() < 0.2],
                "messages": [{"role": "user", "content": " ".join(words)}],
                "max_tokens": rng.choice((50, 100, 200)),
            }
            line = {
                "custom_id": f"demo-{number + 1:03}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(line) + "\n")


def _command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "scheduler", *map(str, words)]


def _environment() -> dict[str, str]:
    """This process's environment, without a real key: the demo must not show it to anybody."""
    hidden = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SCHEDULER_STORE")
    return {name: value for name, value in os.environ.items() if name not in hidden}


@contextlib.contextmanager
def simulated_server(script: Script, log: Path) -> Iterator[str]:
    """A simulated provider in its own process; gives its base URL."""
    words = _command("simulate", "--port", "0", "--latency", script.latency, "--json")
    with log.open("w", encoding="utf-8") as told:
        server = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=told, env=_environment(), text=True
        )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            said = log.read_text(encoding="utf-8").strip()
            say(said)
            say("error: the simulated provider did not start")
            raise typer.Exit(Exit.FAILED)
        yield json.loads(line)["url"]
    finally:
        _end(server)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask a process to end, then make it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


async def _show(script: Script, place: Path, url: str, stage: Stage) -> tuple[int, Seen]:
    """Run the batch and the raise; returns the batch's exit code and what was seen."""
    run = start_batch(script, place, url, stage)
    told = threading.Thread(target=_pass_on, args=(run.stderr, stage), daemon=True)
    told.start()
    seen = Seen()
    try:
        await _watch(script, place, run, seen, stage)
    finally:
        if run.poll() is None:
            run.terminate()
        told.join(5)
        _end(run)
    return run.returncode, seen


def start_batch(script: Script, place: Path, url: str, stage: Stage) -> subprocess.Popen[str]:
    """Start ``scheduler run`` on the demo's batch."""
    words: Sequence[str | Path] = (
        "run", place / "prompts.jsonl", "-o", place / "results.jsonl", "--base-url", url,
        "--store", place / "demo.db", "--budget", script.limit, "-c", str(script.concurrency),
        "--progress", "none" if stage.has_bar else "plain", *_prices(),
    )  # fmt: skip
    shown = f"prompts.jsonl -o results.jsonl --budget '{script.limit}' --base-url {url}"
    stage.tell("batch", f"$ scheduler run {shown}")
    return subprocess.Popen(_command(*words), stderr=subprocess.PIPE, env=_environment(), text=True)


def _prices() -> list[str]:
    from scheduler.providers.simulated.provider import SIMULATED_PRICES

    return [word for m in MODELS for word in ("--price", f"{m}={SIMULATED_PRICES[m]}")]


def _pass_on(lines: IO[str] | None, stage: Stage) -> None:
    """Tell what the batch tells, as it comes."""
    for line in lines or ():
        stage.tell("batch", line.rstrip())


async def _watch(
    script: Script, place: Path, run: subprocess.Popen[str], seen: Seen, stage: Stage
) -> None:
    """Look at the store from outside until the batch ends; raise the limit when it waits again."""
    store_file = place / "demo.db"
    give_up_at_s = time.monotonic() + GIVE_UP_S
    async with contextlib.AsyncExitStack() as stack:
        store: Store | None = None
        while run.poll() is None and time.monotonic() < give_up_at_s:
            await asyncio.sleep(LOOK_S)
            if store is not None:
                await _look(script, store, seen, stage)
                if seen.is_time_to_raise(script.parked_before_raise_s):
                    seen.raised = True
                    await asyncio.to_thread(_raise_limit, script, place, stage)
            elif (place / "results.jsonl").exists() and store_file.exists():
                store = await stack.enter_async_context(opened(str(store_file)))


async def _look(script: Script, store: Store, seen: Seen, stage: Stage) -> None:
    """Note how much is promised, and whether the batch waits for money."""
    # Asked with an instant before the batch's last reservation, a rolling window would count
    # that and what had left the window by then: ask for a little later than it can be.
    asked_ms = now_ms() + LAG_MS
    budgets = await store.budgets(asked_ms)
    is_in_time = now_ms() <= asked_ms
    counts = await store.counts()
    for cap in (cap for status in budgets for cap in status.caps):
        if is_in_time:
            seen.note(str(cap.cap), cap.limit, cap.posted + cap.reserved)
        stage.move(counts, script.requests, cap)
    waits = counts.parked > 0 and counts.running == 0
    if waits and not seen.is_parked:
        seen.parks += 1
        seen.parked_since_s = time.monotonic()
        await _tell_parked(store, counts.parked, stage)
    elif seen.is_parked and not waits and not seen.raised:
        stage.tell("demo", "money is free again: what was parked goes on by itself")
    seen.is_parked = waits


async def _tell_parked(store: Store, count: int, stage: Stage) -> None:
    from scheduler.request import RequestState

    for row in await store.queue([RequestState.PARKED], now_ms(), limit=1):
        if row.shortfall is not None:
            why = sentence(row.shortfall, now_ms())
            stage.tell("demo", f"{plural(count, 'request')} parked: {why}")


def moving_line(counts: Counts, total: int, cap: CapStatus, width: int | None = None) -> str:
    """How far the batch is, and how much of its limit is taken, in so many cells."""
    done = counts.succeeded + counts.failed
    limit = "no limit" if cap.limit is None else format_usd(cap.limit)
    spent, reserved = f"${usd(cap.posted):.4f}", f"${usd(cap.reserved):.4f}"
    share = f"{done}/{total}"
    forms = {
        "share": [f"{bar(done, total, 20)} {share}", f"{bar(done, total, 8)} {share}", share],
        "running": [f"{counts.running} running", ""],
        "parked": [f"{counts.parked} parked"],
        "money": [f"{spent} + {reserved} of {limit}", f"{spent} of {limit}"],
    }
    return fitted(forms, ("share", "running", "money", "share"), width)


def _raise_limit(script: Script, place: Path, stage: Stage) -> None:
    """What anybody may do from another terminal."""
    stage.tell("you", f"$ scheduler budget set default '{script.raised}'    # in another process")
    words = _command("budget", "set", "default", script.raised, "--store", place / "demo.db")
    done = subprocess.run(words, env=_environment(), capture_output=True, text=True, timeout=30)
    for line in (done.stdout + done.stderr).splitlines():
        stage.tell("you", line)
