"""``python -m benchmarks [--quick] [NAME ...]``: see `CASES`."""

from __future__ import annotations

import sys

from benchmarks import (
    budgets,
    dispatch,
    gateway,
    growing,
    http,
    lanes,
    limits,
    page,
    shell,
    starvation,
    waiting,
    wrap,
)
from benchmarks.harness import Row, show
from benchmarks.postgres import brief as postgres

CASES = {
    "dispatch": dispatch.run, "waiting": waiting.run, "http": http.run, "limits": limits.run,
    "wrap": wrap.run, "budgets": budgets.run, "starvation": starvation.run, "page": page.run,
    "gateway": gateway.run, "growing": growing.run, "lanes": lanes.run, "shell": shell.run,
    "postgres": postgres.run,
}  # fmt: skip


def main() -> None:
    words = sys.argv[1:]
    quick = "--quick" in words
    chosen = [word for word in words if not word.startswith("-")] or list(CASES)
    rows: list[Row] = []
    for name in chosen:
        print(f"measuring {name} ...", file=sys.stderr)
        rows += CASES[name](quick)
    show(rows)


main()
