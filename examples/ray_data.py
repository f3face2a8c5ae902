"""A Ray Data pipeline whose rows are answered within a budget, and paid once however often it runs.

Needs `pip install 'llm-budget-scheduler[ray]'`. Here one machine is the cluster, and a file is the store;
on several nodes the store is PostgreSQL, and `providers=` is left out (OpenAI) or makes others, with the
keys that are on the nodes.

You should see:

    column      id, text, answer, error, cost_usd
    rows        12, of which 12 answered
    spent       $0.00 of $1 more when it runs again
"""

import tempfile
from pathlib import Path

import ray
import ray.data

import scheduler
from scheduler import Request
from scheduler.adapters.ray import map_batches
from scheduler.dollars import format_usd
from scheduler.providers.simulated.provider import Simulated


def simulated() -> Simulated:
    """A provider that needs no key; made in each actor."""
    return Simulated()


def request(row: dict[str, object]) -> Request:
    return Request.chat("sim-small", f"Label this: {row['text']}", max_tokens=20)


def spent(store: Path) -> int:
    with scheduler.open(store) as s:
        return s.stats().budgets[0].caps[0].posted


def main() -> None:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    store = Path(tempfile.mkdtemp()) / "scheduler.db"
    texts = ray.data.from_items([{"id": n, "text": f"text {n}"} for n in range(12)])
    labelled = map_batches(
        texts, request, job="labels", store=str(store), budget="$1/day", key="id",
        providers=simulated, num_cpus=0.25,
    )  # fmt: skip

    rows = labelled.take_all()
    print("column     ", ", ".join(rows[0]))
    print("rows       ", f"{len(rows)}, of which {sum(not row['error'] for row in rows)} answered")
    before = spent(store)
    labelled.take_all()
    print("spent      ", f"{format_usd(spent(store) - before)} of $1 more when it runs again")
    ray.shutdown()


if __name__ == "__main__":
    main()
