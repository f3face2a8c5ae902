"""Where does one store in PostgreSQL break first? ``python -m benchmarks.scaling [--write]``.

A model, on paper: what `benchmarks.postgres` measured (`measured.json`) goes in, and the tables of
docs/scaling.md come out. Turns are under one lock, so what a lifecycle takes there bounds them all.
"""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).parent / "postgres" / "measured.json"
PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- python -m benchmarks.scaling -->\n", "<!-- until here -->"

WORKERS, RATE = 1_000, 100_000
SIZES = (16, 64, 256, 1_024)
POLL_S, LEASE_S, CONNECTIONS = 0.2, 30, 2
US, MS = 1e-6, 1e-3


@dataclass(frozen=True)
class Place:
    """Where workers and server are, and what each of them can take: assumed, and not measured."""

    name: str
    trip_s: float
    commit_s: float  # until the log is safe
    wal_bytes_s: float
    net_bytes_s: float
    cores: int


PLACES = (
    Place("one machine, NVMe", 0.05 * MS, 0.2 * MS, 1e9, 5e9, 8),
    Place("one zone, network disk", 0.5 * MS, 1.0 * MS, 500e6, 1.25e9, 32),
    Place("two zones, synchronous standby", 1.5 * MS, 3.0 * MS, 500e6, 1.25e9, 32),
)


@dataclass(frozen=True)
class Line:
    """What a turn takes: something for itself, and something for each request in it."""

    turn: float
    request: float

    def of(self, size: float) -> float:
        return self.turn + self.request * size

    @classmethod
    def through(cls, points: list[tuple[float, float]]) -> Line:
        """The line nearest to these, by their relative distance; nothing in it is below zero."""
        w = [1 / y**2 for _, y in points]
        x, y = [each for each, _ in points], [each for _, each in points]
        total, mx = sum(w), sum(a * b for a, b in zip(w, x, strict=True))
        my = sum(a * b for a, b in zip(w, y, strict=True))
        mxx = sum(a * b * b for a, b in zip(w, x, strict=True))
        mxy = sum(a * b * c for a, b, c in zip(w, x, y, strict=True))
        slope = max(0.0, (total * mxy - mx * my) / (total * mxx - mx * mx))
        return cls(max(0.0, (my - slope * mx) / total), slope)


@dataclass(frozen=True)
class Cost:
    """One worker alone, of one kind (`ours`, `bare`), by the size of its turns.

    Attributes:
        cpu: Seconds of client and server: all of it is taken for time under the lock, so that
            what is computed is rather too slow than too fast.
        server: Seconds of the server.
    """

    cpu: Line
    server: Line
    client: Line
    wal: Line
    net: Line
    trips: float

    @classmethod
    def of(cls, kind: str, curve: list[dict[str, Any]]) -> Cost:
        alone = [each for each in curve if each["kind"] == kind and each["workers"] == 1]

        def line(*names: str, unit: float = 1.0) -> Line:
            return Line.through([
                (each["size"], each["size"] * sum(each[name] for name in names) * unit)
                for each in alone
            ])  # fmt: skip

        return cls(
            line("client_us", "server_us", unit=US), line("server_us", unit=US),
            line("client_us", unit=US), line("wal_bytes"), line("net_bytes"),
            max(each["trips"] * each["size"] for each in alone),
        )  # fmt: skip

    def held_s(self, size: float, place: Place) -> float:
        """How long a turn of that size has the lock: others wait meanwhile."""
        return self.cpu.of(size) + self.trips * place.trip_s + place.commit_s

    def most_s(self, size: float, place: Place) -> float:
        """Lifecycles a second, all workers together."""
        return size / self.held_s(size, place)


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MEASURED.read_text())
    return found


def table(rows: list[list[str]]) -> str:
    head, *rest = ["| " + " | ".join(row) + " |\n" for row in rows]
    return head + "|" + "---|" * len(rows[0]) + "\n" + "".join(rest) + "\n"


def two(number: float) -> str:
    """With two digits that count, since no more of them do."""
    if not number:
        return "0"
    digits = 1 - math.floor(math.log10(abs(number)))
    return f"{round(number, digits):,.{max(0, digits)}f}"


def inputs(measured: dict[str, Any], costs: dict[str, Cost]) -> str:
    rows = [["one worker, per lifecycle, turns of 64", "the store", "bare statements"]]
    alone = {
        each["kind"]: each for each in measured["curve"]
        if each["workers"] == 1 and each["size"] == 64
    }  # fmt: skip
    for what, name, unit in (
        ("CPU of the client", "client_us", " µs"), ("CPU of the server", "server_us", " µs"),
        ("statements", "statements", ""), ("round trips", "trips", ""),
        ("bytes of WAL", "wal_bytes", ""), ("bytes through the network", "net_bytes", ""),
    ):  # fmt: skip
        rows.append([what, *(two(alone[kind][name]) + unit for kind in ("ours", "bare"))])
    rows.append([
        "CPU under the lock: a turn + each request in it",
        *(f"{two(each.cpu.turn / MS)} ms + {two(each.cpu.request / US)} µs" for each in costs.values()),
    ])  # fmt: skip
    return f"Measured on {measured['machine']}:\n\n{table(rows)}"


def ceilings(costs: dict[str, Cost]) -> str:
    heads = ["lifecycles a second, at most", *(f"turns of {size:,}" for size in SIZES)]
    rows = [heads] + [
        [f"{place.name}: {'the store' if kind == 'ours' else 'bare'}",
         *(two(cost.most_s(size, place)) for size in SIZES)]
        for place in PLACES for kind, cost in costs.items()
    ]  # fmt: skip
    return table(rows)


def first(cost: Cost) -> str:
    """What breaks first, at so many workers and requests, in turns as large as they become."""
    size = SIZES[-1]
    rows = [[f"{WORKERS:,} workers, {RATE:,} requests a second", *(each.name for each in PLACES)]]
    rows.append(["the lock: seconds of it in each second, of one", *(
        f"**{two(RATE / cost.most_s(size, place))}**" for place in PLACES
    )])  # fmt: skip
    rows.append(["the server's cores, of what it has", *(
        f"{two(RATE * cost.server.of(size) / size)} of {place.cores}" for place in PLACES
    )])  # fmt: skip
    rows.append(["WAL: MB/s, of what the disk takes", *(
        f"{two(RATE * cost.wal.of(size) / size / 1e6)} of {place.wal_bytes_s / 1e6:,.0f}"
        for place in PLACES
    )])  # fmt: skip
    rows.append(["network: MB/s, of what it takes", *(
        f"{two(RATE * cost.net.of(size) / size / 1e6)} of {place.net_bytes_s / 1e6:,.0f}"
        for place in PLACES
    )])  # fmt: skip
    rows.append(["a worker waits for the lock, if each has a turn of one", *(
        f"{two(WORKERS * cost.held_s(1, place))} s" for place in PLACES
    )])  # fmt: skip
    rows.append(["lease renewals a second", *[two(WORKERS / (LEASE_S / 3))] * len(PLACES)])
    rows.append(["looks a second, without NOTIFY", *[two(WORKERS / POLL_S)] * len(PLACES)])
    rows.append(["connections", *[two(WORKERS * CONNECTIONS)] * len(PLACES)])
    return table(rows)


def holds(cost: Cost) -> str:
    """What it does carry: by how long a request may wait to be started."""
    rows = [
        [
            "lifecycles a second, if nobody waits for more than half a second",
            *(each.name for each in PLACES),
        ]
    ]
    for workers in (8, 64, 256):
        cells = []
        for place in PLACES:
            # A turn each in half a second: the size that fits, if any does.
            spare_s = 0.5 / workers - cost.held_s(0, place)
            size = min(spare_s / cost.cpu.request, SIZES[-1])
            cells.append("none" if size < 1 else f"{two(cost.most_s(size, place))}/s")
        rows.append([f"{workers} workers", *cells])
    return table(rows)


def growth(measured: dict[str, Any]) -> str:
    """What more rows and more budgets do to a turn, and to a worker's first one."""
    rows = [["in the queue", "budgets in use", "a turn of 16", "a worker's first turn"]]
    for part in ("rows", "budgets"):
        few = measured[part][0]
        rows += [
            [f"{each['rows']:,}", f"{each['budgets']:,}",
             f"{each['turn_ms'] / few['turn_ms']:.2f} ×",
             f"{each['first_ms'] / few['first_ms']:.1f} ×"]
            for each in measured[part]
        ]  # fmt: skip
    return table(rows)


# The next step


@dataclass(frozen=True)
class Escrow:
    """What leases of money come to, once all of it is spent."""

    asked: int
    requests: int
    stranded_nusd: int


BUDGET_NUSD, MEAN_NUSD, MOST_NUSD, SHARE = 100 * 10**9, 2_000_000, 30_000_000, 4


def escrow(workers: int, *, gives_back: bool, seed: int = 1) -> Escrow:
    """Workers draw leases from one budget: chunks of what is left / (4 x workers), at least one request.

    A request reserves the most that it may cost in its worker's lease, and posts less. If they give
    back, then all do so when the first lease is denied, and each request reserves in the ledger from
    then on, and settles there.
    """
    rng = random.Random(seed)
    left, lease = BUDGET_NUSD, [0] * workers
    asked = requests = 0
    busy = list(range(workers))

    def spent() -> int:
        return min(MOST_NUSD, int(rng.expovariate(1 / MEAN_NUSD)))

    while busy:
        at = rng.randrange(len(busy))
        me = busy[at]
        if lease[me] < MOST_NUSD:
            asked += 1
            chunk = max(MOST_NUSD, left // (SHARE * workers))
            if chunk > left and gives_back:
                break
            if chunk > left:
                busy[at] = busy[-1]
                busy.pop()
                continue
            left -= chunk
            lease[me] += chunk
        requests += 1
        lease[me] -= spent()
    left += sum(lease)
    if gives_back:
        asked += workers
        while left >= MOST_NUSD:
            asked, requests, left = asked + 2, requests + 1, left - spent()
    return Escrow(asked, requests, left)


def leases() -> str:
    rows = [["workers", "asks the ledger, per request", "left over at the end", "with giving back",
             "a worker that dies holds back, at most"]]  # fmt: skip
    for workers in (8, 64, WORKERS):
        plain, back = (escrow(workers, gives_back=each) for each in (False, True))
        largest = max(MOST_NUSD, BUDGET_NUSD // (SHARE * workers))
        rows.append([
            f"{workers:,}", f"{two(plain.asked / plain.requests)} ({two(back.asked / back.requests)})",
            f"{two(plain.stranded_nusd / BUDGET_NUSD * 100)} %",
            f"{two(back.stranded_nusd / BUDGET_NUSD * 100)} %",
            f"${two(largest / 1e9)}",
        ])  # fmt: skip
    return table(rows)


def report() -> str:
    """The tables, as the page has them."""
    measured = load()
    costs = {kind: Cost.of(kind, measured["curve"]) for kind in ("ours", "bare")}
    ours = costs["ours"]
    return (
        f"{inputs(measured, costs)}What the lock lets through:\n\n{ceilings(costs)}"
        f"What more rows and budgets do, measured:\n\n{growth(measured)}"
        f"What breaks first:\n\n{first(ours)}What it carries:\n\n{holds(ours)}"
        f"Leases of money, simulated: $100, $0.002 a request on average, at most $0.03:\n\n{leases()}"
    )


def parts(page: str) -> tuple[str, str, str]:
    """What is before the tables on the page, they, and what is behind."""
    before, _, rest = page.partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside, after


def main() -> None:
    told = report()
    if "--write" not in sys.argv:
        print(told)
        return
    before, _, after = parts(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{before}{BEGIN}{told}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
