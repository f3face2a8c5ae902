"""``scheduler ray up``: its options, what it sends to its workers, and what they do with that."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import types

import pytest
import typer

from scheduler.adapters.ray.fleet import Counts, Ended, Fleet, Member, Told
from scheduler.cli.raying import Sent, read_environment, sent, summary
from scheduler.cli.working import Orders
from scheduler.errors import ConfigError
from tests.cli.test_run import write

URL = "postgresql://ann:secret@db/q"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "SCHEDULER_CONFIG", "SCHEDULER_STORE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def ray_of(*cpus, hosts=None):
    """Ray, connected to nodes with so many CPUs."""
    nodes = [
        {"NodeID": f"n{n}", "NodeManagerHostname": (hosts or {}).get(n, os.uname().nodename),
         "Alive": True, "Resources": {"CPU": count}}
        for n, count in enumerate(cpus)
    ]  # fmt: skip
    return types.SimpleNamespace(
        init=lambda **options: None, shutdown=lambda: None, nodes=lambda: nodes,
        available_resources=lambda: {"CPU": sum(cpus)},
    )  # fmt: skip


# What is in the way


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--store", "memory://"), 3, "memory:// is of one process"),
        (("--max-wait", "1h"), 2, "is of use with --until-idle only"),
        (("--on-exhausted", "never"), 2, "neither 'wait' nor 'stop'"),
        (("--env", "NOT_SET_HERE"), 3, "--env: NOT_SET_HERE is not set here"),
        (("--runtime-env", "none.json"), 3, "none.json: No such file"),
        (("--config", "none.toml"), 3, "none.toml: No such file"),
        (("--grace", "soon"), 3, "--grace"),
        (("--every", "often"), 3, "--every"),
        (("--price", "free"), 3, "--price"),
        (("--cpus", "-1"), 2, "greater than or equal to 0"),
        (("--workers", "0"), 2, "greater than or equal to 1"),
        ((), 3, "Ray is not installed here"),
    ],
)
def test_what_is_in_the_way_is_said_before_anything_is_started(cli, monkeypatch, words, code, said):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = cli("ray", "up", *words)
    assert done.exit_code == code
    assert said in done.stderr


@pytest.mark.parametrize(
    ("ray", "words", "said"),
    [
        (ray_of(1, 1), (), "scheduler.db is a file, and the cluster has 2 nodes"),
        (ray_of(1, hosts={0: "far"}), (), "node is another machine (far)"),
        (ray_of(1), ("-w", "5"), "of 5 workers with 0.25 CPUs each 4 fit"),
        (ray_of(0), (), "of 1 workers with 0.25 CPUs each 0 fit"),
        (ray_of(1, 1), ("-w", "3", "--cpus", "1", "--store", URL), "2 fit into the cluster"),
    ],
)
def test_a_cluster_that_does_not_do_is_refused(cli, monkeypatch, ray, words, said):
    monkeypatch.setitem(sys.modules, "ray", ray)
    done = cli("ray", "up", "--address", "local", *words)
    assert done.exit_code == 3
    assert said in done.stderr
    assert "nothing was started" in done.stderr.lower()
    assert "secret" not in done.stderr


# What is sent


def test_what_is_sent_shows_no_secret(monkeypatch, place):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    (place / "scheduler.toml").write_text(
        '[provider.mine]\nkind = "openai"\nheaders = { X-Pass = "hidden-word" }\n'
    )
    work = sent(Orders(URL, base_url="http://h/v1"), ["OPENAI_API_KEY"])

    assert pickle.loads(pickle.dumps(work)) == work
    assert work.variables == {"OPENAI_API_KEY": "sk-0123456789"}
    for secret in ("secret", "sk-0123456789", "hidden-word"):
        assert secret not in repr(work)


def test_a_worker_elsewhere_is_told_by_the_file_of_here(place, monkeypatch):
    (place / "scheduler.toml").write_text(
        '[provider.mine]\nkind = "simulated"\n[provider.far]\nkind = "openai"\napi_key_env = "FAR"\n'
    )
    work = sent(Orders(str(place / "s.db"), until_idle=True), ())
    (place / "scheduler.toml").unlink()
    monkeypatch.setenv("FAR", "x" * 20)

    here = work.begin()
    ended = asyncio.run(here.run())

    assert ended.exit == 0
    said, count = here.said(0)
    assert "serves mine (sim:), far (" in said[0]
    assert (len(said), here.said(count)) == (count, ((), count))


def test_a_worker_elsewhere_does_what_a_worker_does(cli, place):
    write(5)
    assert (
        cli("submit", "p.jsonl", "--job", "j", "--base-url", "sim:", "--store", "s.db").exit_code
        == 0
    )
    work = sent(Orders(str(place / "s.db"), base_url="sim:", until_idle=True, concurrency=2), ())

    ended = asyncio.run(pickle.loads(pickle.dumps(work)).begin().run())

    assert (ended.exit, ended.is_final) == (0, True)
    assert (ended.counts.succeeded, ended.counts.failed, ended.counts.waiting) == (5, 0, 0)
    assert ended.counts.cost_nusd > 0
    assert cli("collect", "--job", "j", "-o", "o.jsonl", "--store", "s.db").exit_code == 0


def test_one_that_is_told_to_stop_ends_whenever_that_is(place):
    orders = Orders(str(place / "s.db"), base_url="sim:")

    async def stopped(*, before):
        here = Sent(orders).begin()
        if before:
            here.stop()
        doing = asyncio.ensure_future(here.run())
        if not before:
            async with asyncio.timeout(60):
                while not here.said(0)[1]:
                    await asyncio.sleep(0.01)
            here.stop()
        return await asyncio.wait_for(doing, 60)

    assert asyncio.run(stopped(before=False)).exit == 0
    assert asyncio.run(stopped(before=True)).exit == 0


def test_a_key_that_is_not_there_ends_it_for_good_with_the_code_of_a_worker(place):
    ended = asyncio.run(Sent(Orders(str(place / "s.db"))).begin().run())
    assert (ended.exit, ended.is_final) == (4, True)
    assert "OPENAI_API_KEY" in ended.message


def test_variables_are_set_there(place, monkeypatch):
    monkeypatch.setenv("SOME_NAME", "before")
    Sent(Orders("s.db"), None, {"SOME_NAME": "after"}).begin()
    assert os.environ["SOME_NAME"] == "after"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"env_vars": {"A": "b"}}', {"env_vars": {"A": "b"}}),
        ("pip:\n  - x\n", {"pip": ["x"]}),
        ("[1]", None),
        ("{", None),
        ("", None),
    ],
)
def test_a_runtime_environment_is_read_as_json_or_yaml(place, text, found):
    (place / "env").write_text(text)
    if found is None:
        with pytest.raises(ConfigError, match="is no object in JSON or YAML"):
            read_environment("env")
    else:
        assert read_environment("env") == found
    assert read_environment(None) is None


def test_orders_refuse_what_makes_no_sense_together():
    with pytest.raises(typer.BadParameter):
        Orders("s.db", on_exhausted="stop").check()
    Orders("s.db", on_exhausted="stop", until_idle=True).check()


def test_the_summary_tells_of_each_worker():
    member = Member(1)
    member.hears(Told("a", "n", 5, Counts(2, 1, 0, 3, 1_000, 0), (), 0), "left")
    member.ends(Ended(75, "no money"))
    told = summary(Fleet([member, Member(2)]), 1.5)

    assert json.loads(json.dumps(told, default=str)) == {
        "exit": 75, "restarts": 0, "succeeded": 2, "failed": 1, "waiting": 3,
        "cost_usd": "0.000001", "reserved_usd": "0.00", "seconds": 1.5,
        "workers": [
            {"number": 1, "node": "left", "pid": 5, "restarts": 0, "succeeded": 2, "failed": 1,
             "exit": 75, "message": "no money"},
            {"number": 2, "node": None, "pid": None, "restarts": 0, "succeeded": 0, "failed": 0,
             "exit": None, "message": ""},
        ],
    }  # fmt: skip
