"""Real processes on one database that is killed, too; the provider's own count is the truth."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scheduler.budget import Budget
from scheduler.stores.postgres.address import parse
from scheduler.stores.postgres.store import PostgresStore
from tests.postgres.database import Database
from tests.postgres.server import running
from tests.processes.harness import (
    Children,
    check_ledger,
    freeze,
    results,
    server,
    wait_for,
    write_prompts,
)

PRICE = ("--price", "sim-small=0.15/0.60")
LEASE_MS = 1_500
WORKERS, EACH = 8, 15


@pytest.fixture
def children():
    made = Children()
    yield made
    made.end()


@pytest.fixture
def base(url):
    return Database(url)


def start(children, base, provider_url, **options):
    words = json.dumps({"store": base.url, "url": provider_url, **options})
    return children.start("-m", "tests.processes.worker", words)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("notify", ["on", "off"])
def test_processes_share_a_budget_to_its_last_cent_and_all_notice_a_raise(
    url, children, notify, tmp_path
):
    base, limit_nusd = Database(f"{url}&notify={notify}"), 1_100_000
    base.define(Budget("org", "$1"), Budget("team", f"${limit_nusd / 1e9:.7f}", parent="org"))
    go = tmp_path / "go"
    with server("--latency", "100ms") as provider:
        workers = [
            start(children, base, provider.url, budget="team", starts_at=str(go),
                  names=[f"w{worker} {n}" for n in range(EACH)])
            for worker in range(WORKERS)
        ]  # fmt: skip
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * WORKERS
        go.touch()

        def is_spent():
            posted, reserved = base.balance("team")
            assert posted + reserved <= limit_nusd
            check_ledger(base, provider)
            ((most,),) = base("SELECT max(ceiling_nusd) FROM requests")
            return reserved == 0 and most is not None and limit_nusd - posted < most

        wait_for(is_spent, "all of it to be used", 90)
        assert provider.billed_nusd() <= limit_nusd

        base.define(Budget("team", None, parent="org"))
        ended = [worker.communicate(timeout=90) for worker in workers]

        for (out, errors), worker in zip(ended, workers, strict=True):
            assert worker.returncode == 0, errors
            assert "OVERSPENT" not in out
        told = [json.loads(out.splitlines()[-1]) for out, _ in ended]
        assert [each["answers"] for each in told] == [EACH] * WORKERS
        assert provider.bill()["calls"] == WORKERS * EACH
        assert base.counted_nusd() == provider.billed_nusd() == sum(e["cost_nusd"] for e in told)
    assert base.audit().discrepancies == ()


@pytest.mark.timeout(240)
def test_workers_and_the_database_killed_mid_batch_lose_nothing(children, tmp_path):
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    prompts, out, count = tmp_path / "p.jsonl", tmp_path / "out.jsonl", 240
    write_prompts(prompts, count)
    again_at_most = 0
    with running(is_hasty=False) as postgres, server("--latency", "60ms") as provider:
        base = Database(f"{postgres.dsn}?schema=killed")
        base.define(Budget("default", "$1"))
        # As people should: no password in the list of processes.
        os.environ["SCHEDULER_STORE"] = base.url
        words = ("-m", "scheduler", "run", str(prompts), "-o", str(out),
                 "--base-url", provider.url, "-c", "6", "--budget", "$1", *PRICE)  # fmt: skip
        try:
            for number in range(4):
                child = children.start(*words)
                wait_for(lambda: base("SELECT 1 FROM workers WHERE pid = ?", child.pid)  # noqa: B023
                         or child.poll() is not None, "a start")  # noqa: B023  # fmt: skip
                time.sleep(rng.random() * 0.8)
                postgres.kill()
                time.sleep(rng.random())
                postgres.start()
                check_ledger(base, provider)
                until_s = time.monotonic() + rng.random()
                while time.monotonic() < until_s:
                    check_ledger(base, provider)
                assert child.poll() in (None, 0), child.communicate()
                if number % 2 or child.poll() == 0:
                    child.kill()
                    child.communicate()
                    again_at_most += base.in_flight()
                else:
                    child.terminate()  # drains
                    _, errors = child.communicate(timeout=60)
                    assert child.returncode in (0, 130), errors
                check_ledger(base, provider)
            last = children.start(*words)
            _, errors = last.communicate(timeout=120)
        finally:
            del os.environ["SCHEDULER_STORE"]

        assert last.returncode == 0, f"seed {seed}: {errors}"
        assert postgres.dsn.split("@")[0].rpartition(":")[2] not in errors
        assert sorted(results(out)) == sorted(f"r{n}" for n in range(count)), f"seed {seed}"
        check_ledger(base, provider)
        calls = provider.bill()["calls"]
        assert count <= calls <= count + again_at_most, f"seed {seed}"
        assert base.states() == {"succeeded": count}
        assert base.audit().discrepancies == ()


@pytest.mark.timeout(120)
def test_a_worker_stopped_beyond_its_lease_sends_nothing_that_others_took_over(base, children):
    names = [f"k{n}" for n in range(12)]

    def options(host: str) -> dict[str, Any]:
        return {"names": names, "host": host, "concurrency": 3, "budget": "team",
                "lease_ms": LEASE_MS}  # fmt: skip

    with server("--latency", "1000ms") as provider:
        base.define(Budget("team", "$1"))
        zombie = start(children, base, provider.url, **options("far"))
        wait_for(lambda: base.states().get("succeeded", 0) >= 3, "answers")
        freeze(zombie, base, provider, 2)
        in_flight, answered = base.in_flight(), base.states()["succeeded"]
        time.sleep(LEASE_MS / 1000 + 0.3)

        other = start(children, base, provider.url, **options("near"))
        out, errors = other.communicate(timeout=60)
        assert other.returncode == 0, errors
        assert json.loads(out.splitlines()[-1])["answers"] == len(names)
        check_ledger(base, provider)
        sent = provider.bill()["calls"]

        os.kill(zombie.pid, signal.SIGCONT)
        out, errors = zombie.communicate(timeout=60)

        assert zombie.returncode == 0, errors
        assert json.loads(out.splitlines()[-1])["answers"] == len(names)  # from the other one
        assert provider.bill()["calls"] == sent  # it sent nothing new
        assert answered + in_flight <= sent <= len(names) + in_flight
        check_ledger(base, provider)
    assert base.states() == {"succeeded": len(names)}
    assert base.audit().discrepancies == ()


@pytest.mark.timeout(120)
def test_workers_killed_are_taken_over_from_and_same_keys_are_paid_once(base, children):
    base.define(Budget("team", "$1"))
    names = [f"k{n}" for n in range(30)]
    with server("--latency", "200ms") as provider:
        workers = [
            start(children, base, provider.url, budget="team", names=names, concurrency=2)
            for _ in range(4)
        ]
        wait_for(lambda: base.states().get("succeeded", 0) >= 6, "answers")
        for dying in workers[:2]:
            dying.kill()
            dying.communicate()
        in_flight = base.in_flight()
        ended = [worker.communicate(timeout=90) for worker in workers[2:]]

        assert [worker.returncode for worker in workers[2:]] == [0, 0], ended
        assert len(names) <= provider.bill()["calls"] <= len(names) + in_flight
        check_ledger(base, provider)
    assert base.states() == {"succeeded": len(names)}
    assert base.audit().discrepancies == ()


# The command line


def test_the_command_line_takes_its_url_and_shows_no_password(base, children, tmp_path):
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    write_prompts(prompts, 5)
    password = parse(base.url).url.get_secret_value().split("@")[0].rpartition(":")[2]
    said = []

    def run(*words: str, **options: Any) -> str:
        child = children.start("-m", "scheduler", *words, **options)
        told, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
        said.append(told + errors)
        return told + errors

    store = ("--store", base.url)
    run("run", str(prompts), "-o", str(out), "--base-url", "sim:", "--budget", "$1", *store)
    assert "could see the password" in said[0]
    assert len(results(out)) == 5
    assert "postgresql://***@127.0.0.1" in run("status", *store)
    assert "5 requests" in run("doctor", *store)
    run("budget", "set", "default", "$2", *store)
    run("budget", "list", *store)
    run("audit", *store)
    run("spend", *store)
    run("queue", "--json", *store)
    run("prices", "set", "mine", "--in", "1", "--out", "2", *store)
    config = tmp_path / "scheduler.toml"
    config.write_text(f'store = "{base.url}"\n')
    os.environ["SCHEDULER_CONFIG"] = str(config)
    try:
        assert "postgresql://***@127.0.0.1" in run("status")
        config.write_text('store_env = "MY_DATABASE"\n')
        os.environ["MY_DATABASE"] = base.url
        assert "postgresql://***@127.0.0.1" in run("status")
        assert "could see" not in said[-1]
    finally:
        del os.environ["SCHEDULER_CONFIG"]
        os.environ.pop("MY_DATABASE", None)
    assert password not in "".join(said)
    for path in tmp_path.rglob("*"):
        if path != config:
            assert password not in path.read_text(errors="replace")


def test_the_list_of_processes_shows_no_password(base, children):
    password = parse(base.url).url.get_secret_value().split("@")[0].rpartition(":")[2]
    base.define(Budget("team", "$1"))
    words = [sys.executable, "-m", "scheduler", "status", "--watch", "--store", base.url]
    # A real start: what is forked shows the command line of what it was forked from.
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children.running.append(child)
    assert child.stdout.readline()

    shown = Path(f"/proc/{child.pid}/cmdline").read_text()

    assert password not in shown
    assert "status" in shown
    assert "***" in shown


def test_a_password_may_come_from_elsewhere(base, children, tmp_path):
    base.define(Budget("team", "$1"))
    address = parse(base.url)
    with psycopg.connect(address.url.get_secret_value()) as db:
        found = db.info.get_parameters() | {"password": db.info.password}
    where = f"{found['host']}:{found['port']}"
    plain = f"postgresql://{found['user']}@{where}/{found['dbname']}?schema={address.schema}"
    passes = tmp_path / "passes"
    passes.write_text(f"*:*:*:*:{found['password']}\n")
    passes.chmod(0o600)
    services = tmp_path / "services"
    services.write_text(
        f"[calls]\nhost={found['host']}\nport={found['port']}\nuser={found['user']}\n"
        f"dbname={found['dbname']}\npassword={found['password']}\n"
    )
    service = f"postgresql://?service=calls&schema={address.schema}"
    for variable, value, url in (
        ("PGPASSWORD", found["password"], plain), ("PGPASSFILE", str(passes), plain),
        ("PGSERVICEFILE", str(services), service),
    ):  # fmt: skip
        os.environ[variable] = value
        try:
            child = children.start("-m", "scheduler", "budget", "list", "--store", url)
            told, errors = child.communicate(timeout=60)
        finally:
            del os.environ[variable]
        assert child.returncode == 0, errors
        assert "team" in told
        assert "could see" not in errors


# The network


class Stalling(threading.Thread):
    """A way through to the server that can stand still."""

    def __init__(self, host: str, port: int) -> None:
        import socket

        super().__init__(daemon=True)
        self.there = host, port
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = self.door.getsockname()[1]
        self.pairs: list[tuple[Any, Any, threading.Event]] = []
        self.start()

    def run(self) -> None:
        import socket

        while True:
            try:
                client, _ = self.door.accept()
            except OSError:
                return
            upstream, flows = socket.create_connection(self.there), threading.Event()
            flows.set()
            self.pairs.append((client, upstream, flows))
            for one, other in ((client, upstream), (upstream, client)):
                threading.Thread(target=self.pass_on, args=(one, other, flows), daemon=True).start()

    def pass_on(self, one: Any, other: Any, flows: threading.Event) -> None:
        try:
            while words := one.recv(65_536):
                flows.wait()
                other.sendall(words)
        except OSError:
            pass
        for each in (one, other):
            each.close()

    def stall(self) -> None:
        """What is open passes nothing on any more; what is opened does."""
        for _, _, flows in self.pairs:
            flows.clear()

    def flow(self) -> None:
        for _, _, flows in self.pairs:
            flows.set()

    def close(self) -> None:
        self.flow()
        self.door.close()
        for client, upstream, _ in self.pairs:
            client.close()
            upstream.close()


async def test_a_network_that_stands_still_is_gone_round(opened, url, monkeypatch):
    from scheduler.stores.postgres import connection
    from tests.stores.conformance import Bench, new, post

    monkeypatch.setattr(connection, "MORE_S", 0.5)
    monkeypatch.setattr(connection, "WRITING_MS", 500)
    monkeypatch.setattr(
        connection, "_LOCKED", connection._LOCKED.replace(f"'{connection.IDLE_MS}'", "'300'")
    )
    address = parse(url)
    with psycopg.connect(address.url.get_secret_value()) as db:
        proxy = Stalling(db.info.host, db.info.port)
        through = url.replace(f":{db.info.port}/", f":{proxy.port}/")
    store = PostgresStore(through)
    store.clock = None
    bench = Bench(store)
    await store.open(bench.now_ms)
    await bench.define(Budget("team", "$0.0000001/day"))
    (claimed,) = (await bench.submit(new([bench.ids["team"]], 60, key="a"))).claimed
    proxy.stall()

    result = await bench.settle(post(claimed, 10))
    more = await bench.submit(new([bench.ids["team"]], 60, key="b"))

    assert result.settled == [True]
    assert len(more.claimed) == 1
    assert await bench.balance() == (10, 60)
    assert await bench.is_sound()
    await store.aclose()
    proxy.close()
