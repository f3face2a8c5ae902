"""So many workers of one kind at once, on one hot budget, and what all of it took."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from dataclasses import dataclass

import psycopg

from benchmarks.postgres.gauge import Server, Told

KINDS = ("bare", "ours", "naive", "queued")


@dataclass(frozen=True)
class Figures:
    """Of one lifecycle, but for the first two, `held_ms`, and what tells the run apart."""

    kind: str
    workers: int
    size: int
    per_s: float
    turns_per_s: float
    statements: float
    trips: float
    wal_bytes: float
    net_bytes: float
    client_us: float
    server_us: float
    held_ms: float  # of a turn, or transaction: waiting for the lock, too, where there are several
    load: str


def run(server: Server, kind: str, workers: int, size: int, seconds: float, load: str) -> Figures:
    """Let them work on a database of their own."""
    name = f"{kind}_{workers}_{size}"
    with psycopg.connect(server.dsn, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}")
    dsn = f"{server.dsn.rpartition('/')[0]}/{name}"
    asyncio.run(importlib.import_module(f"benchmarks.postgres.{kind}").prepare(dsn))
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.postgres.work", kind, dsn, f"w{number}",
             str(size), str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(workers)
    ]  # fmt: skip
    _all(running, "ready")
    _all(running, "warm")
    cpu_s, wal = server.read()
    told = Told()
    for line in _all(running):
        told += Told(**json.loads(line))
    cpu_s, wal = (after - before for after, before in zip(server.read(), (cpu_s, wal), strict=True))
    for each in running:
        each.communicate("end\n")
        assert each.returncode == 0
    with psycopg.connect(server.dsn, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name} WITH (FORCE)")
    each_s, of = told.wall_s / workers, max(1, told.lifecycles)
    return Figures(
        kind, workers, size, told.lifecycles / each_s, told.turns / each_s, told.statements / of,
        told.trips / of, wal / of, told.net_bytes / of, told.cpu_s / of * 1e6, cpu_s / of * 1e6,
        told.held_s / max(1, told.turns) * 1e3, load,
    )  # fmt: skip


def _all(running: list[subprocess.Popen[str]], expected: str = "") -> list[str]:
    """What each says next; then all are told to go on, when each has said it."""
    said = []
    for each in running:
        assert each.stdout is not None
        said.append(each.stdout.readline().strip())
        assert said[-1] if not expected else said[-1] == expected, said
    if expected:
        for each in running:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
    return said
