"""The metrics by name: what they are called, what they say, and under which labels.

Those of this process (counters, histograms) begin at nothing with it, as Prometheus expects; sum them over
processes. Those of the store (gauges) are the same in all that work on it, and after a restart: take the
greatest of them, never their sum.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from scheduler import __version__
from scheduler.budget import Unit
from scheduler.guards.plain import one_line
from scheduler.request import priority_word
from scheduler.telemetry.picture import Picture
from scheduler.telemetry.tallies import MOST_CHARACTERS, Histogram, Tallies

if TYPE_CHECKING:
    from scheduler.stats import BudgetStatus, CapStatus

NANO = 1e9
MOST_BUDGETS = 500  # told one by one; how many more there are is told as well
_UNITS = {Unit.USD: ("usd", NANO), Unit.TOKENS: ("tokens", 1), Unit.REQUESTS: ("requests", 1)}
_AMOUNTS = {
    "limit": "Most that may be spent in a window.",
    "spent": "Spent in this window.",
    "held": "Put aside in this window for calls under way, and for those whose outcome is unknown.",
    "left": "What may still be put aside in this window; below zero after an overrun or a cut.",
}


def of_process(tallies: Tallies, calls: int) -> Iterator[Metric]:
    """What this process has seen, and how many calls it has under way."""
    info = GaugeMetricFamily(
        "scheduler_build_info", "Always 1.", labels=["version", "python_version"]
    )
    info.add_metric([__version__, ".".join(map(str, sys.version_info[:3]))], 1)
    yield info
    yield _counter(
        "scheduler_requests", "Requests that ended.", ["model", "budget", "outcome"],
        tallies.requests,
    )  # fmt: skip
    yield _counter(
        "scheduler_cost_usd", "Posted for calls when they ended.", ["model", "budget"],
        {pair: nusd / NANO for pair, nusd in tallies.cost_nusd.items()},
    )  # fmt: skip
    yield _counter(
        "scheduler_tokens", "Tokens used, each of one type.", ["model", "type"], tallies.tokens
    )
    yield _counter(
        "scheduler_attempts", "Attempts by how they ended in the ledger.", ["provider", "outcome"],
        tallies.attempts,
    )  # fmt: skip
    yield _counter(
        "scheduler_overrun_usd", "Cost above what had been put aside.", ["model"],
        {(model,): nusd / NANO for model, nusd in tallies.overrun_nusd.items()},
    )  # fmt: skip
    yield _counter(
        "scheduler_budget_thresholds", "Times that spending passed a share of a limit.",
        ["budget", "percent"], tallies.thresholds,
    )  # fmt: skip
    yield _histogram(
        "scheduler_queue_wait_seconds", "From submission until a request is first sent.",
        "priority", tallies.waits,
    )  # fmt: skip
    yield _histogram(
        "scheduler_request_duration_seconds", "From an attempt's reservation to its end.", "model",
        tallies.durations,
    )  # fmt: skip
    yield _histogram(
        "scheduler_estimate_error_ratio", "Cost in terms of what had been put aside.", "model",
        tallies.ratios,
    )  # fmt: skip
    yield _gauge("scheduler_calls", "Calls of this process under way.", calls)


def of_store(picture: Picture | None, is_up: bool) -> Iterator[Metric]:
    """What the store knows; None: nobody has looked yet."""
    yield _gauge("scheduler_store_up", "Whether the store could be looked at just now.", is_up)
    if picture is None:
        return
    yield _gauge(
        "scheduler_store_look_timestamp_seconds", "When it was looked at last.", picture.at_ms / 1e3
    )
    yield from _of_budgets(picture)
    yield from _of_queue(picture)
    unknown = picture.unknown
    yield _gauge(
        "scheduler_unknown_outcomes", "Attempts whose outcome nobody knows.", unknown.attempts
    )
    yield _gauge(
        "scheduler_unknown_outcomes_usd", "What these hold, which keeps counting.",
        unknown.nusd / NANO,
    )  # fmt: skip
    yield _gauge(
        "scheduler_unknown_outcomes_oldest_seconds", "For how long the oldest of these is.",
        (picture.at_ms - unknown.oldest_at_ms) / 1e3 if unknown.attempts else 0,
    )  # fmt: skip
    workers = GaugeMetricFamily(
        "scheduler_workers", "Processes that send what others submit.", labels=["state"]
    )
    live = sum(each.is_live for each in picture.workers)
    workers.add_metric(["live"], live)
    workers.add_metric(["lost"], len(picture.workers) - live)
    yield workers
    unserved = GaugeMetricFamily(
        "scheduler_unserved_requests", "Requests that no live process serves.", labels=["provider"]
    )
    waiting = Counter[str]()
    for each in picture.unserved:
        waiting[_label(each.provider)] += each.waiting
    for provider, count in waiting.items():
        unserved.add_metric([provider], count)
    yield unserved


def _of_budgets(picture: Picture) -> Iterator[Metric]:
    told, labels = picture.budgets[:MOST_BUDGETS], ["budget", "window"]
    families = {
        (name, unit): GaugeMetricFamily(f"scheduler_budget_{name}_{word}", text, labels=labels)
        for unit, (word, _) in _UNITS.items() for name, text in _AMOUNTS.items()
    }  # fmt: skip
    resets = GaugeMetricFamily(
        "scheduler_budget_reset_timestamp_seconds",
        "When the window ends, or money next leaves a rolling one.", labels=labels,
    )  # fmt: skip
    paused = GaugeMetricFamily(
        "scheduler_budget_paused", "Whether nothing is admitted on it.", labels=["budget"]
    )
    next_ms: dict[tuple[str, str], int] = {}  # of caps in several units one window
    for status, name_told in zip(told, _distinct(told), strict=True):
        paused.add_metric([name_told], status.paused)
        for cap in status.caps:
            label = [name_told, _label(str(cap.cap.window))]
            for name, amount in amounts_of(cap).items():
                scale = _UNITS[cap.cap.unit][1]
                families[name, cap.cap.unit].add_metric(label, amount / scale)
            if cap.resets_at_ms is not None:
                next_ms[name_told, label[1]] = cap.resets_at_ms
    for key, at_ms in next_ms.items():
        resets.add_metric(list(key), at_ms / 1e3)
    yield from families.values()
    yield resets
    yield paused
    yield _gauge(
        "scheduler_budgets_left_out", f"Budgets beyond the first {MOST_BUDGETS}, of which nothing is told.",
        len(picture.budgets) - len(told),
    )  # fmt: skip


def amounts_of(cap: CapStatus) -> dict[str, int]:
    """What is told of a cap, in its unit; what has no limit has none left either."""
    found = {"spent": cap.posted, "held": cap.reserved}
    if cap.limit is not None:
        found["limit"] = cap.limit
    if cap.available is not None:
        found["left"] = cap.available
    return found


def _of_queue(picture: Picture) -> Iterator[Metric]:
    labels = ["state", "priority", "reason"]
    requests = GaugeMetricFamily("scheduler_queue_requests", "Live requests.", labels=labels)
    oldest = GaugeMetricFamily(
        "scheduler_queue_oldest_seconds",
        "Age of the oldest of these; of running ones, since it was sent.", labels=labels,
    )  # fmt: skip
    parked = GaugeMetricFamily(
        "scheduler_parked_seconds", "For how long the oldest of these is parked.", labels=["reason"]
    )
    sums: dict[tuple[str, str, str], int] = {}
    since_ms: dict[tuple[str, str, str], int] = {}
    parked_ms: dict[str, int] = {}
    for each in picture.standing:
        key = (each.state.value, priority_word(each.priority), each.reason)
        sums[key] = sums.get(key, 0) + each.requests
        since_ms[key] = min(since_ms.get(key, each.oldest_at_ms), each.oldest_at_ms)
        if each.lack is not None:
            before_ms = parked_ms.get(each.reason, each.since_ms)
            parked_ms[each.reason] = min(before_ms, each.since_ms)
    for key, count in sums.items():
        requests.add_metric(list(key), count)
        oldest.add_metric(list(key), max(0, picture.at_ms - since_ms[key]) / 1e3)
    for reason, at_ms in parked_ms.items():
        parked.add_metric([reason], max(0, picture.at_ms - at_ms) / 1e3)
    yield from (requests, oldest, parked)


def _distinct(told: Sequence[BudgetStatus]) -> list[str]:
    """Names as labels, each of them once: what is cut off, or not printable, may tell two apart."""
    found: dict[str, None] = {}
    for status in told:
        label = _label(status.budget.name)
        found[f"{label[: MOST_CHARACTERS - 12]}#{status.id}" if label in found else label] = None
    return list(found)


def _label(name: str) -> str:
    return one_line(name)[:MOST_CHARACTERS]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in dict(values).items():
        family.add_metric(list(key), value)
    return family


def _histogram(name: str, text: str, label: str, found: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=[label])
    for key, histogram in dict(found).items():
        bounds = [str(float(bound)) for bound in histogram.bounds]
        buckets = list(zip([*bounds, "+Inf"], histogram.below(), strict=True))
        family.add_metric([key], buckets, sum_value=histogram.sum)
    return family
