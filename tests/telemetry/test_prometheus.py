"""What Prometheus is told: the right numbers, in bounded series, by whoever works on the store."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from scheduler import Budget, Scheduler
from scheduler.errors import BudgetExceeded, CallFailed, ConfigError, ProviderRefused
from scheduler.stores.memory import MemoryStore
from scheduler.telemetry import prometheus, tallies
from scheduler.telemetry.price_data import newest_price, price_data_age_s
from tests.conftest import Bench, ask, until

pytestmark = pytest.mark.anyio


def read(text):
    """Samples by name and labels."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def key(name, **labels):
    return (name, *sorted(labels.items()))


async def test_every_end_is_counted_once_by_model_budget_and_outcome():
    async with Scheduler(budgets=Budget("team", "$0.000001/day"), providers=Bench()) as s:
        metrics = s.metrics()
        await s.run(ask())
        refused = ProviderRefused("no")
        with pytest.raises(ProviderRefused):
            await s.run(ask(fail=refused))
        with pytest.raises(CallFailed):
            await s.run(ask(fail=CallFailed("torn"), ceiling=400))
        with pytest.raises(BudgetExceeded):
            await s.run(ask(ceiling=900), on_exceeded="raise")
        waits = s.submit(ask(ceiling=900))
        await until(lambda: waits.parked)
        waits.cancel()
        await until(lambda: s.stats().cancelled)
        told = read(await metrics.text())

    ended = {k[-1][1]: v for k, v in told.items() if k[0] == "scheduler_requests_total"}
    assert ended == {"succeeded": 1, "failed": 2, "refused": 1, "cancelled": 1}
    assert told[key("scheduler_cost_usd_total", model="m", budget="team")] == 60e-9
    assert told[key("scheduler_attempts_total", provider="bench", outcome="suspend")] >= 1
    assert told[key("scheduler_tokens_total", model="m", type="output")] == 6
    assert told[key("scheduler_estimate_error_ratio_sum", model="m")] == 0.6
    assert told[key("scheduler_queue_wait_seconds_count", priority="normal")] == 3


class Streaming(Bench):
    """Its answers began five seconds after they were asked for."""

    async def send(self, request):
        answer = await super().send(request)
        if request.body.get("stream"):
            answer.first_s = time.monotonic() + 5
        return answer


async def test_the_time_to_the_first_chunk_is_that_of_streams():
    async with Scheduler(providers=Streaming()) as s:
        metrics = s.metrics()
        for body in ({"stream": True}, {}, {"stream": True}):
            await s.run(ask(**body))
        told = read(await metrics.text())

    name = "scheduler_time_to_first_chunk_seconds"
    assert told[key(f"{name}_count", model="m")] == 2
    assert told[key(f"{name}_bucket", model="m", le="2.5")] == 0
    assert told[key(f"{name}_sum", model="m")] >= 10


async def test_the_age_of_the_price_data_is_told():
    async with Scheduler(providers=Bench()) as s:
        told = read(await s.metrics().text())

    newest = newest_price(datetime.now(UTC).date())
    assert (
        told[key("scheduler_price_data_age_seconds")] // 86_400
        == (datetime.now(UTC).date() - newest).days
    )
    day_ms = 86_400_000
    assert price_data_age_s(0) is None  # no price is as old
    assert (
        price_data_age_s(1_900_000_000_000 + day_ms) - price_data_age_s(1_900_000_000_000) == 86_400
    )


async def test_budgets_and_queue_are_the_stores():
    store = MemoryStore()
    budgets = Budget("team", "$0.0000001/day,5 requests/day")
    async with Scheduler(store, budgets=budgets, providers=Bench()) as s:
        await s.run(ask())
        waits = s.submit(ask(priority="batch"))
        await until(lambda: waits.parked)
        told = read(await s.metrics().text())
        waits.cancel()

    label = {"budget": "team", "window": "day"}
    assert told[key("scheduler_budget_limit_usd", **label)] == 100e-9
    assert told[key("scheduler_budget_spent_usd", **label)] == 60e-9
    assert told[key("scheduler_budget_left_usd", **label)] == 40e-9
    assert told[key("scheduler_budget_left_requests", **label)] == 4
    parked = {"state": "parked", "priority": "batch", "reason": "window_spent"}
    assert told[key("scheduler_queue_requests", **parked)] == 1
    assert told[key("scheduler_store_up")] == 1


async def test_a_second_process_and_a_restart_tell_the_same_of_budgets(tmp_path):
    def budgets_of(told):
        return {k: v for k, v in told.items() if k[0].startswith("scheduler_budget_")}

    path = f"sqlite:///{tmp_path / 's.db'}"
    async with Scheduler(path, budgets="$1/day", providers=Bench()) as s:
        await s.run(ask())
        first = budgets_of(read(await s.metrics().text()))
        async with Scheduler(path, providers=Bench()) as other:
            assert budgets_of(read(await other.metrics().text())) == first
    async with Scheduler(path, providers=Bench()) as s:
        again = read(await s.metrics().text())

    assert budgets_of(again) == first
    assert (
        key("scheduler_requests_total", budget="default", model="m", outcome="succeeded")
        not in again
    )


async def test_series_are_bounded_whatever_names_there_are(monkeypatch):
    monkeypatch.setattr(tallies, "MOST_PAIRS", 10)
    monkeypatch.setattr(tallies, "MOST_NAMES", 5)
    budgets = [Budget(f"user-{n}", "$1") for n in range(40)]
    async with Scheduler(budgets=budgets, providers=Bench()) as s:
        metrics = s.metrics()
        for n in range(40):
            await s.run(ask(budget=f"user-{n}"))
        told = read(await metrics.text())

    ended = {k: v for k, v in told.items() if k[0] == "scheduler_requests_total"}
    assert len(ended) == 11
    assert sum(ended.values()) == 40
    assert told[key("scheduler_requests_total", budget="other", model="other",
                    outcome="succeeded")] == 30  # fmt: skip


async def test_budgets_beyond_a_number_are_left_out_and_that_is_told(monkeypatch):
    from scheduler.telemetry import families

    monkeypatch.setattr(families, "MOST_BUDGETS", 3)
    async with Scheduler(budgets=[Budget(f"b{n}", "$1") for n in range(5)], providers=Bench()) as s:
        told = read(await s.metrics().text())

    assert len([k for k in told if k[0] == "scheduler_budget_limit_usd"]) == 3
    assert told[key("scheduler_budgets_left_out")] == 2


async def test_odd_names_give_one_series_each_that_parses():
    names = ["a b", "a  b", 'quo"te\\n', "日本"]
    async with Scheduler(budgets=[Budget(n, "$1") for n in names], providers=Bench()) as s:
        for name in names:
            await s.run(ask(budget=name))
        told = read(await s.metrics().text())  # which refuses two of one name and labels

    assert len([k for k in told if k[0] == "scheduler_budget_limit_usd"]) == 4


async def test_a_registry_of_ones_own_takes_it_and_asks_from_its_own_thread():
    registry = CollectorRegistry()
    async with Scheduler(budgets="$1", providers=Bench()) as s:
        registry.register(s.metrics())
        await s.run(ask())
        told = read(await asyncio.to_thread(generate_latest, registry))
        here = read(generate_latest(registry))  # in the loop: what was seen last

    assert told[key("scheduler_budget_spent_usd", budget="default", window="total")] == 60e-9
    assert key("scheduler_budget_spent_usd", budget="default", window="total") in here


def get(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


async def test_the_page_is_on_loopback_and_needs_its_token():
    async with Scheduler(budgets="$1", providers=Bench()) as s:
        server = prometheus.start(s, 0)
        right = {"Authorization": f"Bearer {server.token}"}
        answers = [
            await asyncio.to_thread(get, server.url, **headers)
            for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer ü"}, right)
        ]
        other = await asyncio.to_thread(get, server.url.replace("/metrics", "/x"), **right)

    assert server.url.startswith("http://127.0.0.1:")
    assert [status for status, _ in answers] == [401, 401, 401, 200]
    assert b"scheduler_" not in b"".join(body for _, body in answers[:3])
    assert b"scheduler_budget_limit_usd" in answers[-1][1]
    assert other[0] == 404
    with pytest.raises(urllib.error.URLError, match="refused"):  # it ended with its scheduler
        await asyncio.to_thread(get, server.url, **right)


async def test_without_a_token_it_is_for_this_machine_alone_and_by_its_name():
    async with Scheduler(budgets="$1", providers=Bench()) as s:
        with pytest.raises(ConfigError, match="can be reached from elsewhere"):
            prometheus.start(s, 0, host="0.0.0.0", token=False)
        server = prometheus.start(s, 0, token=False)
        here = await asyncio.to_thread(get, server.url)
        rebound = await asyncio.to_thread(get, server.url, Host="evil.example:9464")

    assert (here[0], rebound[0]) == (200, 421)


async def test_a_token_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("SCHEDULER_METRICS_TOKEN", "from-outside")
    async with Scheduler(budgets="$1", providers=Bench()) as s:
        assert prometheus.start(s, 0).token == "from-outside"


async def test_an_asgi_app_answers_gets():
    sent = []

    async def send(message):
        sent.append(message)

    async with Scheduler(budgets="$1", providers=Bench()) as s:
        for method in ("GET", "HEAD", "POST"):
            await s.metrics().app({"type": "http", "method": method}, None, send)

    assert [each["status"] for each in sent[::2]] == [200, 200, 405]
    assert b"scheduler_build_info" in sent[1]["body"]
    assert sent[3]["body"] == b""


async def test_a_store_that_fails_is_told_and_fails_nobody(monkeypatch):
    from scheduler.errors import StoreError

    async with Scheduler(budgets="$1", providers=Bench()) as s:
        before = read(await s.metrics().text())

        async def broken(job=None):
            raise StoreError("the disk is gone")

        monkeypatch.setattr(s.store, "counts", broken)
        s.metrics()._looked_s = float("-inf")
        after = read(await s.metrics().text())
    closed = read(await s.metrics().text())

    up = key("scheduler_store_up")
    assert (before[up], after[up], closed[up]) == (1, 0, 0)
    spent = key("scheduler_budget_spent_usd", budget="default", window="total")
    assert after[spent] == before[spent]


async def test_the_store_is_looked_at_once_a_second_however_many_ask(monkeypatch):
    looks = []
    async with Scheduler(budgets="$1", providers=Bench()) as s:
        counts = s.store.counts

        async def counted(job=None):
            looks.append(1)
            return await counts(job)

        monkeypatch.setattr(s.store, "counts", counted)
        monkeypatch.setattr(prometheus, "LOOK_EVERY_S", 60)
        await asyncio.gather(*(s.metrics().text() for _ in range(20)))
        await s.metrics().text()

    assert len(looks) == 1


async def test_a_blocking_scheduler_tells_the_same_in_whatever_loop():
    import scheduler

    def use():
        with scheduler.open(budgets="$1", providers=Bench()) as s:
            metrics = s.metrics()
            s.run(ask())
            return read(asyncio.run(metrics.text())), read(generate_latest_of(metrics))

    def generate_latest_of(metrics):
        registry = CollectorRegistry()
        registry.register(metrics)
        return generate_latest(registry)

    for told in await asyncio.to_thread(use):
        ended = key("scheduler_requests_total", budget="default", model="m", outcome="succeeded")
        assert told[ended] == 1
        assert told[key("scheduler_store_up")] == 1
