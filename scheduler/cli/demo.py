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
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.exits import Exit
from scheduler.cli.look import now_ms, opened
from scheduler.cli.output import plural, say, table
from scheduler.cli.status import sentence
from scheduler.money import format_usd

if TYPE_CHECKING:
    from scheduler.stats import Audit, SpendRow
    from scheduler.stores.base import Store

LOOK_S = 0.1
GIVE_UP_S = 120.0
WORDS = "why does a queue that never overspends still finish every request it was given".split()


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
FAST = Script(60, "$0.006/2s", "$1/2s", 8, "5ms", 0.3)


@dataclass(slots=True)
class Seen:
    """What was observed from outside while the batch ran.

    Attributes:
        most_nusd: Per limit, the most that was spent and reserved in a window.
        parks: How often the batch was seen to stop for want of money.
    """

    most_nusd: dict[str, int] = field(default_factory=dict)
    parks: int = 0
    most_parked: int = 0
    is_parked: bool = False
    parked_since_s: float = 0.0
    raised: bool = False


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("demo")(demo)


def demo(
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Where to put its files. Default: a new temporary folder."),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Fewer requests, for tests.")] = False,
) -> None:
    """Run a batch against a simulated provider: parking, a reset, a raise, an exact account."""
    script = FAST if fast else FULL
    place = _make_folder(folder)
    prompts = place / "prompts.jsonl"
    write_prompts(prompts, script.requests)
    say(f"A batch of {script.requests} requests, a budget of {script.limit}, a simulated provider.")
    say("No key, no cost, nothing leaves this machine.\n")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(simulated_server(script))
        is_exact = asyncio.run(_show(script, place, url))
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
    rng = random.Random(7)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = rng.choices(WORDS, k=rng.randint(5, 80))
            body = {
                "model": "sim-large" if rng.random() < 0.2 else "sim-small",
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
