"""The short form, for ``make bench``: ratios, and what is wanted of them."""

from __future__ import annotations

import asyncio

from benchmarks.harness import Row
from benchmarks.postgres import queues, race
from benchmarks.postgres.gauge import Server, load
from benchmarks.postgres.race import Figures

SHARE, EQUAL, GROWTH = 0.6, 1 / 1.3, 1.5  # 12,000 of 20,000; four as fast as one; a claim


def cpu(each: Figures) -> float:
    return each.client_us + each.server_us


def told(each: Figures) -> str:
    return f"{each.per_s:,.0f}/s, {cpu(each):,.0f} us of CPU, {each.wal_bytes:,.0f} bytes of WAL"


def run(quick: bool) -> list[Row]:
    from tests.postgres.server import running

    seconds = 1.0 if quick else 3.0
    with running(is_hasty=False) as made:
        server = Server(made.pid, made.dsn)
        found = {kind: race.run(server, kind, 1, 64, seconds, load()) for kind in race.KINDS}
        four = race.run(server, "ours", 4, 64, seconds, load())
    ours = found["ours"]
    share, together = ours.per_s / found["bare"].per_s, four.per_s / ours.per_s
    rows = [
        Row("PostgreSQL, turns of 64, of bare statements", told(ours), told(found["bare"]), share,
            f">= {SHARE}", share >= SHARE),
        Row("4 workers on one hot budget, of one", told(four), told(ours), together,
            f">= {EQUAL:.2f}", together >= EQUAL),
    ]  # fmt: skip
    rows += [
        Row(f"PostgreSQL, turns of 64, of {name}", told(ours), told(found[kind]),
            ours.per_s / found[kind].per_s, "", None)
        for kind, name in (("naive", "one reservation a transaction"), ("queued", "procrastinate"))
    ]  # fmt: skip
    with running() as made:
        long = asyncio.run(queues.by_rows(made.dsn, (1_000, 50_000 if quick else 1_000_000)))
        many = asyncio.run(queues.by_budgets(made.dsn, (10, 1_000 if quick else 10_000), 40_000))
    for few, more, what in (
        (*long, f"{long[1].rows:,} rows"),
        (*many, f"{many[1].budgets:,} budgets"),
    ):
        ratio = more.turn_ms / few.turn_ms
        rows.append(Row(
            f"a claim in PostgreSQL, {what}", f"{more.turn_ms:.1f} ms", f"{few.turn_ms:.1f} ms",
            ratio, f"<= {GROWTH}", ratio <= GROWTH,
        ))  # fmt: skip
    return rows
