"""A day in the life, compressed: ``python -m benchmarks.soak --minutes 30``.

Three client processes share one SQLite file and three budgets with one-minute windows; two of
them are killed again and again, the third lives through all of it. Meanwhile limits are raised and cut, requests are cancelled,
people look at the queue, old requests are pruned, and the provider, which fails in many ways,
restarts once. Every sample compares the ledger with the provider's bill. It ends by itself,
with a table, and with exit code 1 if an invariant broke or something grew beyond its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CLIENTS = 3
CONCURRENCY = 12
ROUND = 40  # requests a client gives up or finishes before it begins the next ones
TIMEOUT_S = 5
MODEL = "sim-small"
LIMITS_USD = {"all": 0.05, "a": 0.03, "b": 0.03}
SWINGS = (1.0, 2.0, 0.5)  # what limits of "a" and "b" are multiplied with, minute by minute
FAULTS = {
    "429": 0.02, "500": 0.01, "503": 0.02, "reset": 0.01, "timeout": 0.003, "html": 0.005,
    "truncated": 0.005, "no_usage": 0.01, "slow": 0.01,
}  # fmt: skip
# An answer that was lost with its reader may be asked for again; nothing else may.
LOSES_ITS_ANSWER = frozenset({"429", "500", "503", "reset", "timeout", "html", "truncated"})
REMEMBERED = 20_000
PRUNE_AFTER = "4m"
BOUNDS = {"rss_kb": (1.25, 24_000), "fds": (1.0, 24), "threads": (1.0, 4)}  # times, plus
FILE_BOUND = (1.5, 4_096)  # kilobytes; requests are kept for four minutes


# One of the processes: the provider


def serve(port: int, seed: int) -> None:
    """Answer until SIGTERM, then tell the whole bill as a line of JSON."""
    from scheduler.providers.simulated.provider import Simulated
    from scheduler.providers.simulated.server import print_url, serve_until_signal

    rng = random.Random(seed)
    answered: OrderedDict[str, None] = OrderedDict()
    again = 0

    def draw(url: str, body: Mapping[str, Any], number: int) -> str | None:
        nonlocal again
        name = next(
            iter(rng.choices([*FAULTS, None], [*FAULTS.values(), 1 - sum(FAULTS.values())]))
        )
        user = body.get("user", "")
        again += user in answered
        if name not in LOSES_ITS_ANSWER and user:
            answered[user] = None
            if len(answered) > REMEMBERED:
                answered.popitem(last=False)
        return name

    provider = Simulated(seed=seed, latency="100ms", fail=draw)
    asyncio.run(serve_until_signal(provider, port=port, on_ready=print_url))
    bill = provider.bill
    print(json.dumps({"billed_nusd": bill.nusd, "received": bill.received, "again": again}))


# Another: a client


async def ask_for_ever(store: str, url: str, number: int, progress: Path, done: int) -> None:
    """Ask round after round; a round that was cut off is begun again with the same keys."""
    from scheduler import Scheduler
    from scheduler.providers.openai import OpenAI
    from scheduler.providers.simulated.bill import SIMULATED_PRICES

    provider = OpenAI(base_url=url, timeout=TIMEOUT_S)
    async with Scheduler(
        store, providers=provider, prices=SIMULATED_PRICES, concurrency=CONCURRENCY,
        retry_wait_s=lambda attempt: 0.1,
    ) as s:  # fmt: skip
        while True:
            await ask_a_round(s, number, done)
            done += 1
            progress.with_suffix(".new").write_text(str(done))
            progress.with_suffix(".new").replace(progress)


async def ask_a_round(s: Any, number: int, done: int) -> None:
    """Keyed and unkeyed requests of several priorities; a few are cancelled while they wait."""
    from scheduler import Request

    rng = random.Random(f"{number}/{done}")
    futures = []
    for index in range(ROUND):
        name = f"c{number}-r{done}-{index}"
        is_keyed = index % 4 != 0
        futures.append(s.submit(Request.chat(
            MODEL, f"Question {name}", max_tokens=200, user=name if is_keyed else "",
            key=name if is_keyed else None, job=f"client {number}",
            budget=("all", rng.choice("ab")), priority=rng.choice(("interactive", "normal", "batch")),
        )))  # fmt: skip
    await asyncio.sleep(rng.random())
    for future in rng.sample(futures, 3):
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)


# The one that starts, disturbs, samples and judges


@dataclass
class Sample:
    """What was seen at one instant."""

    at_s: float
    processes: dict[str, dict[str, int]]  # role to rss_kb, fds, threads
    file_kb: int
    kept: int  # requests in the file
    billed_nusd: int
    ledger_nusd: int
    attempts: int
    parked: int


@dataclass
class Child:
    """A process of ours."""

    process: asyncio.subprocess.Process
    role: str


@dataclass
class Soak:
    """One run: its children, what it saw, and what was wrong."""

    folder: Path
    seconds: float
    every_s: float
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    children: dict[str, Child] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    url: str = ""
    kills: int = 0
    restarts: int = 0
    pruned: int = 0
    looks: int = 0
    past: dict[str, int] = field(default_factory=dict)  # bill of providers that have ended

    @property
    def store(self) -> str:
        """The file all of them share, as a URL."""
        return f"sqlite:///{self.folder / 'soak.db'}"

    async def run(self) -> None:
        """Do all of it; children end in any case."""
        try:
            for name, limit in LIMITS_USD.items():
                await self.cli("budget", "set", name, f"${limit}/minute", "--create")
            await self.start_provider(port=0)
            for number in range(CLIENTS):
                await self.start_client(number)
            await self.disturb_and_sample()
            await self.end_clients()
            await self.sample()
            await self.end_provider()
        finally:
            for child in self.children.values():
                if child.process.returncode is None:
                    child.process.kill()
                    await child.process.wait()
        await self.judge()

    async def start(self, role: str, *words: str, **pipes: Any) -> Child:
        """Start this module in another role."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.soak", *words, **pipes
        )
        self.children[role] = Child(process, role)
        return self.children[role]

    async def start_provider(self, port: int) -> None:
        """Start the provider, at the address it had before if it had one."""
        child = await self.start(
            "provider", "--provider", str(port), stdout=asyncio.subprocess.PIPE
        )
        assert child.process.stdout is not None
        line = await asyncio.wait_for(child.process.stdout.readline(), 30)
        self.url = json.loads(line)["url"]

    async def end_provider(self) -> None:
        """End it, and keep its bill."""
        process = self.children.pop("provider").process
        process.terminate()
        assert process.stdout is not None
        told = json.loads(await asyncio.wait_for(process.stdout.read(), 30))
        await process.wait()
        for name, amount in told.items():
            self.past[name] = self.past.get(name, 0) + amount

    async def start_client(self, number: int) -> None:
        """Start a client, or go on with one that was killed."""
        await self.start(f"client {number}", "--client", str(number), self.url, str(self.folder))

    async def end_clients(self) -> None:
        """Ask clients to end; those that do not are killed."""
        clients = [child for role, child in self.children.items() if role.startswith("client")]
        for child in clients:
            child.process.kill()
        await asyncio.gather(*(child.process.wait() for child in clients))
        for child in clients:
            del self.children[child.role]

    async def disturb_and_sample(self) -> None:
        """Until time is up: kill, restart, raise, cut, prune, look, and sample."""
        began_s = time.monotonic()
        kill_s, swing_s, look_s, sample_s = 8.0, 15.0, 5.0, self.every_s
        prune_s = 60.0
        while (now_s := time.monotonic() - began_s) < self.seconds:
            if now_s >= kill_s:
                await self.kill_one()
                kill_s = now_s + self.rng.uniform(10, 40)
            if now_s >= swing_s:
                await self.swing(int(now_s // 60))
                swing_s += 60
            if now_s >= look_s:
                await self.look()
                look_s = now_s + 15
            if now_s >= prune_s:
                answer = await self.cli("prune", "--before", PRUNE_AFTER, "--undelivered", "--json")
                self.pruned += json.loads(answer or "{}").get("pruned", 0)
                prune_s = now_s + 60
            if not self.restarts and now_s >= self.seconds / 2:
                await self.restart_provider()
            if now_s >= sample_s:
                await self.sample()
                sample_s = now_s + self.every_s
            self.check_children()
            await asyncio.sleep(0.2)

    async def kill_one(self) -> None:
        """Kill a client that can do nothing about it, and start it again."""
        number = self.rng.randrange(1, CLIENTS)
        process = self.children[f"client {number}"].process
        process.kill()
        await process.wait()
        self.kills += 1
        await asyncio.sleep(self.rng.random())
        await self.start_client(number)

    async def restart_provider(self) -> None:
        """The provider goes away with calls under way, and comes back at its address."""
        port = int(self.url.split(":")[2].split("/")[0])
        await self.end_provider()
        self.restarts += 1
        await self.start_provider(port)

    async def swing(self, minute: int) -> None:
        """Raise or cut the two limits."""
        factor = SWINGS[(minute + 1) % len(SWINGS)]
        for name in "ab":
            await self.cli("budget", "set", name, f"${LIMITS_USD[name] * factor:.3f}")

    async def look(self) -> None:
        """What a person would look at."""
        words = (("status",), ("queue",), ("budget", "list"))[self.looks % 3]
        await self.cli(*words, "--json")
        self.looks += 1

    async def cli(self, *words: str) -> str:
        """Run a command on the store; it has to succeed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "scheduler", *words, "--store", self.store,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = await asyncio.wait_for(process.communicate(), 60)
        except TimeoutError:
            process.kill()
            await process.wait()
            out, err = b"", b"did not end within 60 s"
        if process.returncode:
            said = err.decode(errors="replace").strip()[-300:]
            self.wrong.append(f"'{' '.join(words)}' ended with {process.returncode}: {said}")
            return ""
        return out.decode()

    def check_children(self) -> None:
        """Nobody ends by himself."""
        for role, child in self.children.items():
            if child.process.returncode is not None:
                raise RuntimeError(f"{role} ended with {child.process.returncode}")

    async def sample(self) -> None:
        """Look at everything; the bill first, since the ledger may only be ahead of it."""
        billed_nusd = self.past.get("billed_nusd", 0) + await asyncio.to_thread(self.bill)
        spent = json.loads(await self.cli("spend", "--by", "model", "--json") or "[]")
        budgets = json.loads(await self.cli("budget", "list", "--json") or "[]")
        counts = json.loads(await self.cli("status", "--json") or "{}").get("requests", {})
        ledger_nusd = sum(nusd(row["spent_usd"]) + nusd(row["reserved_usd"]) for row in spent)
        if ledger_nusd < billed_nusd:
            self.wrong.append(f"ledger {ledger_nusd:,} nusd is below the bill {billed_nusd:,}")
        for row in budgets:
            name = row["name"]
            most = LIMITS_USD[name] * (1 if name == "all" else max(SWINGS))
            used = float(row["posted_usd"]) + float(row["reserved_usd"])
            if used > most + 1e-9:
                self.wrong.append(f"overspent: {name} used {used} of at most {most}")
        self.samples.append(Sample(
            time.monotonic(), {role: figures(c.process.pid) for role, c in self.children.items()},
            self.file_kb(), self.kept(), billed_nusd, ledger_nusd,
            sum(row["attempts"] for row in spent), counts.get("parked", 0),
        ))  # fmt: skip

    def bill(self) -> int:
        """What the provider that runs now has billed."""
        address = self.url.removesuffix("/v1") + "/billed"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return int(json.load(answer)["billed_nusd"])

    def file_kb(self) -> int:
        """The database with its journal."""
        return sum(size(path) for path in self.folder.glob("soak.db*")) // 1024

    def kept(self) -> int:
        """Rows of requests in the file."""
        address = f"file:{self.folder / 'soak.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=30)) as db:
            return int(db.execute("SELECT count(*) FROM requests").fetchone()[0])

    async def judge(self) -> None:
        """Audit, bounds, table."""
        audit = json.loads(await self.cli("audit", "--json") or "{}")
        if self.samples and self.samples[-1].ledger_nusd < self.past["billed_nusd"]:
            self.wrong.append("at the end the ledger is below the bill")
        most_again = (self.kills + CLIENTS + self.restarts * CLIENTS) * CONCURRENCY
        again = self.past.get("again", 0)
        if again > most_again:
            self.wrong.append(f"{again} answered requests were sent again, more than {most_again}")
        self.check_growth()
        print(self.table(audit, again, most_again))

    def whole(self) -> list[Sample]:
        """Samples with every process in them."""
        return [each for each in self.samples if len(each.processes) == CLIENTS + 1]

    def check_growth(self) -> None:
        """Compare the end with the start, after everything has warmed up."""
        running = self.whole()
        start, end = running[len(running) // 5], running[-2:]
        for role, before in start.processes.items():
            for what, (times, plus) in BOUNDS.items():
                after = min(each.processes[role][what] for each in end)
                if after > before[what] * times + plus:
                    self.wrong.append(f"{what} of {role} grew from {before[what]} to {after}")
        after = min(each.file_kb for each in end)
        if after > start.file_kb * FILE_BOUND[0] + FILE_BOUND[1]:
            self.wrong.append(f"the file grew from {start.file_kb} to {after} kB")

    def table(self, audit: Mapping[str, Any], again: int, most_again: int) -> str:
        """Everything that was measured, at the start, in the middle and at the end."""
        running = self.whole()
        picked = running[len(running) // 5], running[len(running) // 2], running[-1]
        rows: list[tuple[str, ...]] = [("what", "start", "middle", "end")]
        for role in sorted(picked[0].processes):
            rows += [
                (f"{role}: {what}", *(f"{each.processes[role][what]:,}" for each in picked))
                for what in BOUNDS
            ]
        for name in ("file_kb", "kept", "attempts", "billed_nusd", "ledger_nusd", "parked"):
            rows.append((name, *(f"{getattr(each, name):,}" for each in picked)))
        last = picked[-1]
        rows += [
            ("file bytes per kept request", "", "", f"{last.file_kb * 1024 // max(1, last.kept):,}"),
            ("kills / provider restarts", "", "", f"{self.kills} / {self.restarts}"),
            ("looks / samples / pruned", "", "",
             f"{self.looks} / {len(self.samples)} / {self.pruned:,}"),
            ("received by the provider", "", "", f"{self.past.get('received', 0):,}"),
            ("sent again after an answer / bound", "", "", f"{again} / {most_again}"),
            ("audit", "", "", json.dumps(audit)[:100]),
            ("wrong", "", "", str(len(self.wrong))),
        ]  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(3)] + [0]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join([*lines, *(f"WRONG: {each}" for each in self.wrong)])


def nusd(text: str) -> int:
    """Nano-dollars of an amount in dollars."""
    from scheduler.money import parse_usd

    return parse_usd(text, "spend")


def size(path: Path) -> int:
    """Of a file that may be gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def figures(pid: int) -> dict[str, int]:
    """Memory, descriptors and threads of a process."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "rss_kb": int(status["VmRSS"].split()[0]),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def main() -> int:
    """One of the roles, or all of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=10, help="seconds between samples")
    parser.add_argument("--provider", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.provider is not None:
        serve(options.provider, seed=7)
        return 0
    if options.client:
        number, url, folder = options.client
        progress = Path(folder) / f"client-{number}"
        done = int(progress.read_text()) if progress.exists() else 0
        store = f"sqlite:///{folder}/soak.db"
        asyncio.run(ask_for_ever(store, url, int(number), progress, done))
        return 0
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), options.minutes * 60, options.every)
        asyncio.run(soak.run())
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
