"""``python -m benchmarks.postgres [--full] [--save]``: see the package."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.postgres import queues, race
from benchmarks.postgres.gauge import Server, load
from benchmarks.postgres.race import Figures

MEASURED = Path(__file__).with_name("measured.json")
PARTS = ("peers", "curve", "submits", "rows", "budgets")
SIZES, WORKERS = (16, 64, 256), (1, 2, 4, 8)


def table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    print(flush=True)


def show(found: list[Figures], than: Figures) -> None:
    """Each, beside one of them."""
    heads = ["", "workers", "turns of", "lifecycles/s", "x", "CPU us", "client", "server", "x",
             "statements", "trips", "WAL bytes", "network", "turn ms", "load"]  # fmt: skip
    table([heads] + [
        [each.kind, f"{each.workers}", f"{each.size}", f"{each.per_s:,.0f}",
         f"{each.per_s / than.per_s:.2f}", f"{each.client_us + each.server_us:,.0f}",
         f"{each.client_us:,.0f}", f"{each.server_us:,.0f}",
         f"{(each.client_us + each.server_us) / (than.client_us + than.server_us):.2f}",
         f"{each.statements:.2f}", f"{each.trips:.2f}", f"{each.wal_bytes:,.0f}", f"{each.net_bytes:,.0f}",
         f"{each.held_ms:.2f}" if each.held_ms else "-", each.load]
        for each in found
    ])  # fmt: skip


def peers(server: Server, seconds: float) -> list[Figures]:
    """One worker of each kind: turns of 64, and as `naive` and `queued` make them."""
    found = [race.run(server, kind, 1, 64, seconds, load()) for kind in race.KINDS]
    print("One worker. x: as many times what bare statements do, or take. Of one lifecycle:")
    show(found, found[0])
    return found


def curve(server: Server, seconds: float, workers: tuple[int, ...]) -> list[Figures]:
    """Bare statements and ours, by turns, so that minutes which differ meet both."""
    found = []
    print("One hot budget. x: as many times what one worker of its kind, and these turns, does:")
    for size in SIZES:
        for kind in ("bare", "ours"):
            of_kind = [race.run(server, kind, each, size, seconds, load()) for each in workers]
            show(of_kind, of_kind[0])
            found += of_kind
    return found


def claims(found: list[queues.Claims], what: str) -> list[queues.Claims]:
    print(f"A turn that settles and claims {queues.SIZE}, by {what}, in ms:")
    table([["queue", "budgets", "a worker's first", "turn", "x", "load"]] + [
        [f"{each.rows:,}", f"{each.budgets:,}", f"{each.first_ms:,.1f}", f"{each.turn_ms:.2f}",
         f"{each.turn_ms / found[0].turn_ms:.2f}", each.load]
        for each in found
    ])  # fmt: skip
    return found


def submits(server: Server, rows: int) -> list[queues.Submitted]:
    found = asyncio.run(queues.submits(server, rows))
    print(f"{rows:,} rows submitted in batches of 10,000:")
    table([["", "rows/s", "x", "client us", "server us"]] + [
        [each.way, f"{each.per_s:,.0f}", f"{each.per_s / found[-1].per_s:.2f}",
         f"{each.client_us:.1f}", f"{each.server_us:.1f}"]
        for each in found
    ])  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all of it, for a quarter of an hour")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; repeatable")
    parser.add_argument("--seconds", type=float, help="of each race")
    parser.add_argument("--rows", type=int, help="of the longest queue")
    parser.add_argument("--save", action="store_true", help=f"into {MEASURED.name}, for the model")
    options = parser.parse_args()
    from tests.postgres.server import running

    seconds = options.seconds or (5.0 if options.full else 2.0)
    longest = options.rows or (10_000_000 if options.full else 100_000)
    counts = [each for each in (1_000, 1_000_000) if each < longest] + [longest]
    budgets = (10, 10_000) if options.full else (10, 1_000)
    chosen = options.part or PARTS
    found: dict[str, Any] = {}
    with running(is_hasty=False) as made:
        server = Server(made.pid, made.dsn)
        if "peers" in chosen:
            found["peers"] = peers(server, seconds)
        if "curve" in chosen:
            found["curve"] = curve(server, seconds, WORKERS if options.full else (1, 4))
        if "submits" in chosen:
            found["submits"] = submits(server, 200_000 if options.full else 50_000)
    with running() as made:  # putting rows there is all that waits for the disk
        if "rows" in chosen:
            found["rows"] = claims(asyncio.run(queues.by_rows(made.dsn, counts)), "rows")
        if "budgets" in chosen:
            found["budgets"] = claims(
                asyncio.run(queues.by_budgets(made.dsn, budgets, 40_000)), "budgets"
            )
    if options.save:
        save({name: [asdict(each) for each in rows] for name, rows in found.items()})


def save(found: dict[str, Any]) -> None:
    """What was measured now in place of what was; the rest stays."""
    old = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    MEASURED.write_text(json.dumps(old | found | {"machine": machine}, indent=1) + "\n")
    print(f"saved into {MEASURED}", file=sys.stderr)


main()
