"""Datasets on a real cluster: nodes die, money runs out, and each row is answered and paid once."""

from __future__ import annotations

import json

import pytest

from scheduler.budget import Budget
from tests.postgres.server import PASSWORD
from tests.processes.harness import server, wait_for
from tests.ray.harness import KEY

pytestmark = pytest.mark.timeout(300)
# Asks about as many rows as it is told, and prints what came of them as JSON.
PROGRAM = """
import json, os, sys, time
import ray, ray.data
from scheduler.adapters.ray import map_batches

address, url, count, options = sys.argv[1:3] + [int(sys.argv[3]), json.loads(sys.argv[4])]
ray.init(address=address, log_to_driver=True)
dies_at, folder = options.pop("dies_at", 0), os.getcwd()
ray.data.DataContext.get_current().enable_progress_bars = False


def ours():
    from scheduler import OpenAI
    return OpenAI(base_url=url)


def request(row):
    if row["id"] == dies_at and not os.path.exists(folder + "/died"):
        with open(folder + "/died", "w") as file:
            file.write("has died")
        time.sleep(3)  # meanwhile others are answered
        os._exit(1)
    text = f"question {row['id']}"
    body = {"model": "sim-small", "max_tokens": 40, "messages": [{"role": "user", "content": text}]}
    return body if row["id"] % 97 else {**body, "messages": "none"}


ds = map_batches(
    ray.data.from_items([{"id": n, "note": None if n % 2 else "x"} for n in range(1, count + 1)]), request,
    **{"job": "d", "key": "id", "providers": ours, "prices": {"sim-small": "0.15/0.60"}, **options},
)
with open("rows.json", "w") as file:  # Ray prints to stdout, too
    json.dump(ds.take_all(), file)
"""
OPTIONS = {"actors": 2, "num_cpus": 0.3, "batch_size": 10, "calls": 4}


def begin(place, count, **options):
    words = (place.nodes.address, place.provider.url, str(count), json.dumps(OPTIONS | options))
    return place.start("-c", PROGRAM, *words)


def rows(program, place):
    out, _ = program.communicate(timeout=90)
    assert program.returncode == 0, out + place.said(program)
    return json.loads((place.folder / "rows.json").read_text())


def test_a_node_dies_mid_batch_and_no_row_is_lost_or_paid_twice(place):
    count, limit_nusd = 110, 1_000_000
    place.base.define(Budget("default", f"${limit_nusd / 1e9:.7f}"))
    program = begin(place, count)
    place.wait_for_answers(20)
    (victim,) = place.pids()[:1]
    place.nodes.kill(place.node_of(victim))
    in_flight = OPTIONS["calls"]
    place.check_books()

    def is_spent():
        posted, reserved = place.counted()
        assert posted + reserved <= limit_nusd
        return "is spent for now" in place.said(program) + place.logged()

    wait_for(is_spent, "the budget to be spent", 60)
    assert place.provider.billed_nusd() <= limit_nusd
    place.base.define(Budget("default", "$1"))
    found = rows(program, place)

    assert sorted(row["id"] for row in found) == list(range(1, count + 1))
    assert {row["note"] for row in found} == {None, "x"}
    assert all(row["answer"] and not row["error"] for row in found if row["id"] % 97)
    (bad,) = [row for row in found if not row["id"] % 97]
    assert bad["answer"] is None
    # As it was refused, or as the store remembers it, if another actor had asked.
    assert bad["error"].startswith(("ProviderRefused: ", "CallFailed: HTTP 400"))
    assert bad["cost_usd"] == 0
    calls = place.provider.bill()["calls"]
    assert count - 1 <= calls <= count - 1 + in_flight
    assert sum(row["cost_usd"] for row in found) == pytest.approx(place.base.counted_nusd() / 1e9)
    place.check_books()

    again = rows(begin(place, count), place)  # the same work: its answers are there

    assert place.provider.bill()["calls"] == calls
    ours = {row["id"]: row["answer"] for row in found}
    assert {row["id"]: row["answer"] for row in again} == ours
    for secret in (KEY, PASSWORD):
        assert secret not in place.said(program) + place.logged()


def test_an_actor_dies_and_what_it_was_answered_is_taken_from_the_store(place):
    """Its rows are asked again by another process; those that were answered are not sent again."""
    count = 40
    program = begin(place, count, dies_at=35, actors=1)
    wait_for(lambda: (place.folder / "died").exists(), "its last rows", 60)
    place.wait_for_answers(20)  # so they would be sent again, without the store
    found = rows(program, place)

    assert sorted(row["id"] for row in found) == list(range(1, count + 1))
    assert all(row["answer"] for row in found)
    assert count <= place.provider.bill()["calls"] <= count + OPTIONS["calls"]
    assert place.base.states() == {"succeeded": count}
    place.check_books()


def test_actors_without_keys_leave_the_calls_to_workers(place):
    count = 40
    up = place.up("--workers", "1", "-c", "8", "--cpus", "0.1")
    program = begin(place, count, role="client")
    found = rows(program, place)
    assert sorted(row["id"] for row in found) == list(range(1, count + 1))
    assert place.provider.bill()["calls"] == count
    up.terminate()
    assert up.wait(60) == 0
    assert f"{count} succeeded" in place.said(up)


WRONG = """
import json, sys
import ray, ray.data
from scheduler.adapters.ray import map_batches
from scheduler.errors import ConfigError, CredentialsRefused

address, url = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
rows = ray.data.from_items([{"id": n} for n in range(100)])
said = []


def ours():
    from scheduler import OpenAI
    return OpenAI(base_url=url)


def request(row):
    return {"model": "sim-small", "max_tokens": 9, "messages": [{"role": "user", "content": str(row)}]}


for options in ({"store": "file.db"}, {"job": " "}, {"providers": ours()}):
    try:
        map_batches(rows, request, **{"job": "d", **options})
    except ConfigError as error:
        said.append(str(error))
try:
    map_batches(rows, request, job="d", providers=ours, prices={"sim-small": "1/2"}, calls=2).take_all()
except Exception as error:
    said.append(f"{type(error).__name__} {error}")
with open("said.json", "w") as file:
    json.dump(said, file)
"""


def test_what_is_wrong_with_all_rows_ends_the_pipeline_before_more_is_sent(place):
    with server("--api-key", "sk-another-0123456789") as provider:
        program = place.start("-c", WRONG, place.nodes.address, provider.url)
        out, _ = program.communicate(timeout=90)
        assert program.returncode == 0, out + place.said(program)
        file, job, providers, refused = json.loads((place.folder / "said.json").read_text())

        assert "file.db is a file, and the cluster has 3 nodes" in file
        assert job.startswith("job: is empty")
        assert providers.startswith("providers: is a function here")
        assert "CredentialsRefused" in refused
        assert KEY not in refused
        assert provider.bill()["calls"] == 0
        assert provider.bill()["received"] < 10
    assert place.base.counted_nusd() == 0
