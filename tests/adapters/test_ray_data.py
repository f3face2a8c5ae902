"""Rows of a dataset as calls: what of it needs no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import types

import pyarrow as pa
import pytest

from scheduler import Budget, Request, Scheduler
from scheduler.adapters.ray import Calls, map_batches
from scheduler.adapters.ray.rows import require_free, rows_of, with_columns
from scheduler.errors import BudgetUnknown, ConfigError, CredentialsRefused, ProviderRefused
from scheduler.providers.simulated.provider import Simulated
from tests.adapters.test_ray import pretended, until
from tests.conftest import Bench

pytestmark = pytest.mark.anyio

# Batches


def batches():
    import numpy as np
    import pandas as pd

    columns = {"id": [1, 2], "text": ["a", None]}
    arrays = {"id": np.array([1, 2]), "text": np.array(["a", None], dtype=object)}
    return pa.table(columns), pd.DataFrame(columns), arrays


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["table", "frame", "arrays"])
def test_a_batch_of_any_kind_gives_plain_rows_and_takes_columns(kind):
    batch = batches()[kind]
    rows = rows_of(batch)
    assert [row["id"] for row in rows] == [1, 2]
    assert [type(row["id"]) for row in rows] == [int, int]
    assert rows[0]["text"] == "a"

    more = with_columns(batch, {"answer": [None, None], "cost_usd": [0.5, 0.0]}, ["answer"])

    assert type(more) is type(batch)
    assert list(map(float, more["cost_usd"].to_pylist() if isinstance(more, pa.Table) else
                    more["cost_usd"])) == [0.5, 0.0]  # fmt: skip
    if isinstance(more, pa.Table):
        assert more.schema.field("answer").type == pa.string()  # also where none has any
    require_free(batch, ["answer"])
    with pytest.raises(ConfigError, match="has a column 'text' already"):
        require_free(more, ["text"])


# Calls


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "scheduler.db")


@contextlib.contextmanager
def calls(request, **options):
    bench = Bench()
    made = Calls(request, **{"job": "j", "budget": "$1", "providers": lambda: bench} | options)
    made.bench = bench
    try:
        yield made
    finally:
        made.close()


def body(row):
    return {
        "model": "sim-small",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": row["t"]}],
    }


def table(*texts):
    return pa.table({"id": list(range(len(texts))), "t": list(texts)})


async def test_rows_come_out_with_answer_error_and_cost_and_are_paid_once(store):
    def request(row):
        if row["t"] == "long":
            return Request.chat("m", row["t"], max_cost="$0.00000001")
        return body(row)

    with calls(request, store=store, key="id", answer=lambda r: r.body["answer"]) as made:
        out = (await made(table("a", "long", "c"))).to_pylist()
        again = (await made(table("a", "long", "c"))).to_pylist()

        assert len(made.bench.sent) == 2
    assert [row["error"] and row["error"].partition(":")[0] for row in out] == [
        None, "CostTooHigh", None,
    ]  # fmt: skip
    assert [row["cost_usd"] for row in out] == [6e-8, 0.0, 6e-8]
    assert again == out

    with calls(request, store=store, key="id") as made:  # another process
        assert [row["cost_usd"] for row in (await made(table("a", "long", "c"))).to_pylist()] == [
            row["cost_usd"] for row in out
        ]
        assert made.bench.sent == []
    with calls(request, store=store, key="id", job="other") as made:
        await made(table("a"))
        assert len(made.bench.sent) == 1


async def test_over_budget_it_waits_and_a_raise_that_somebody_made_stays(store):
    with calls(body, store=store, budget=Budget("default", "$0.0000001")) as made:
        doing = asyncio.ensure_future(made(table("a", "b", "c")))
        await until(lambda: made._s.scheduler.stats().parked and made.bench.sent)
        assert len(made.bench.sent) == 1
        await asyncio.to_thread(made._s.set_limit, "default", "$1")
        out = await doing
        assert [row["error"] for row in out.to_pylist()] == [None] * 3
    with calls(body, store=store, budget=Budget("default", "$0.0000001")) as made:
        assert made._s.stats().budgets[0].caps[0].limit == 10**9


@pytest.mark.parametrize(
    ("key", "keys", "count"),
    [
        ("id", {"0", "1", "2"}, 3),
        (lambda row: f"row {row['id']}", {"row 0", "row 1", "row 2"}, 3),
        (None, None, 2),  # two of the three ask the same
    ],
)
async def test_what_names_a_row(store, key, keys, count):
    with calls(body, store=store, key=key) as made:
        out = await made(table("a", "b", "a"))
        assert len(made.bench.sent) == count
        assert keys is None or {each.key for each in made.bench.sent} == keys
        assert {each.job for each in made.bench.sent} == {"j"}
    assert [row["error"] for row in out.to_pylist()] == [None] * 3


async def test_a_request_of_ones_own_keeps_its_key_and_job(store):
    def request(row):
        return Request.chat("m", "hi", max_tokens=9, key="mine", job="ours")

    with calls(request, store=store, key="id") as made:
        await made(table("a"))
        (sent,) = made.bench.sent
    assert (sent.key, sent.job) == ("mine", "ours")


@pytest.mark.parametrize("retry_failed", [True, False])
async def test_rows_that_failed_are_asked_again_if_that_is_wanted(store, retry_failed):
    is_down = True

    async def before(request):
        if is_down:
            raise ProviderRefused(400, "no")

    with calls(body, store=store, key="id", retry_failed=retry_failed) as made:
        made.bench.before = before
        (first,) = (await made(table("a"))).to_pylist()
        is_down = False
        (second,) = (await made(table("a"))).to_pylist()
    assert first["error"].startswith("ProviderRefused: HTTP 400")
    assert (second["error"] is None) == retry_failed


async def test_what_is_wrong_with_all_rows_is_raised_and_those_that_wait_are_given_up(store):
    async def before(request):
        raise CredentialsRefused(401, "no such key")

    with calls(body, store=store, calls=1) as made:
        made.bench.before = before
        with pytest.raises(CredentialsRefused, match="no such key"):
            await made(table(*"abcdefgh"))
        assert len(made.bench.sent) < 8
        assert made._s.stats().queued == 0
    elsewhere = lambda row: Request.chat("m", row["t"], budget="nowhere")  # noqa: E731
    with calls(elsewhere, store=store) as made:
        with pytest.raises(BudgetUnknown):
            await made(table("a", "b"))
        assert made.bench.sent == []


@pytest.mark.parametrize(
    ("request_", "options", "words"),
    [
        (lambda row: "text", {}, "neither a Request nor a body"),
        (body, {"key": "t"}, "column 't' gives a row none"),
        (body, {"key": lambda row: None}, "the key function gives a row none"),
        (body, {"prefix": "x", "key": "id"}, ""),
    ],
)
async def test_what_cannot_be_asked_is_said_before_anything_is_sent(
    store, request_, options, words
):
    with calls(request_, store=store, **options) as made:
        batch = pa.table({"id": [1, 2], "t": ["a", ""]})
        if not words:
            out = await made(batch)
            assert out.column_names == ["id", "t", "xanswer", "xerror", "xcost_usd"]
            return
        with pytest.raises(ConfigError, match=words):
            await made(batch)
        assert made.bench.sent == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"job": " "}, "job: is empty"),
        ({"providers": Simulated()}, "providers: is a function here"),
        ({"store": None}, "store: none is named"),
        ({"store": "memory://"}, "memory:// is of one process"),
        ({"store": "here.db"}, "here.db: actors need its whole path"),
    ],
)
def test_what_cannot_be_shared_is_refused(options, words, store, monkeypatch):
    monkeypatch.delenv("SCHEDULER_STORE", raising=False)
    with pytest.raises(ConfigError, match=words), calls(body, **{"store": store} | options):
        pass


async def test_the_store_may_be_that_of_the_node(store, monkeypatch):
    monkeypatch.setenv("SCHEDULER_STORE", store)
    with calls(body) as made:
        await made(table("a"))
    async with Scheduler(store, providers=Bench()) as s:
        assert (await s.store.counts("j")).succeeded == 1


def test_actors_of_one_job_keep_to_themselves(store):
    """They end with their pipeline, so they take on nothing of other work."""
    made = Calls(body, job="j", store=store, providers=lambda: simulated_anywhere())
    client = Calls(
        body, job="j", store=store, providers=lambda: simulated_anywhere(), role="client"
    )
    assert made._s.scheduler._intake.circle
    assert client._s.scheduler._intake.circle == ""
    made.close()
    client.close()


def simulated_anywhere():
    provider = Simulated()
    provider.service = "sim:"
    return provider


# Handed to Ray Data


class Strategy:
    def __init__(self, *, min_size, max_size, max_concurrent_calls_per_actor=None):
        self.sizes, self.tasks = (min_size, max_size), max_concurrent_calls_per_actor


class OlderStrategy:
    def __init__(self, *, min_size, max_size):
        self.sizes, self.tasks = (min_size, max_size), None


@pytest.mark.parametrize("kind", [Strategy, OlderStrategy])
def test_a_dataset_is_mapped_by_actors_that_show_no_password(monkeypatch, kind):
    ray = pretended(monkeypatch)
    ray.is_initialized = lambda: False
    monkeypatch.setitem(sys.modules, "ray.data", types.SimpleNamespace(ActorPoolStrategy=kind))
    given = {}

    class Dataset:
        def map_batches(self, function, **options):
            given.update(options, function=function)
            return "mapped"

    url = "postgresql://ann:secret@db/q"
    result = map_batches(
        Dataset(), body, job="j", store=url, actors=(1, 3), budget="$1",
        ray_options={"runtime_env": {"pip": []}},
    )  # fmt: skip

    assert result == "mapped"
    assert given["function"] is Calls
    assert given["compute"].sizes == (1, 3)
    assert (given["compute"].tasks or given["max_concurrency"]) == 4
    assert given["batch_format"] == "pyarrow"
    assert given["runtime_env"] == {"pip": []}
    assert given["fn_constructor_kwargs"]["store"].get_secret_value() == url
    assert "secret" not in repr(given)


def test_a_relative_file_is_the_one_of_here(monkeypatch, tmp_path):
    ray = pretended(monkeypatch)
    ray.is_initialized = lambda: False
    monkeypatch.setitem(sys.modules, "ray.data", types.SimpleNamespace(ActorPoolStrategy=Strategy))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCHEDULER_STORE", "sqlite:///here.db")
    dataset = types.SimpleNamespace(map_batches=lambda function, **options: options)

    given = map_batches(dataset, body, job="j")["fn_constructor_kwargs"]

    assert given["store"].get_secret_value() == str(tmp_path / "here.db")
