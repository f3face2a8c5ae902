"""A fleet of real processes: clients submit, workers send, are killed, stopped, and told to go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

import pytest

from scheduler import OpenAI, Request, Scheduler
from scheduler.budget import Budget
from tests.processes.harness import check_ledger, freeze, results, server, wait_for, write_prompts

PRICE = ("--price", "sim-small=0.15/0.60")
KEY = "sk-fleet-0123456789abcdefghijklmnop"
# The command with a shorter lease, so that the test need not wait for half a minute.
BRISK = (
    "import sys; from scheduler.stores.sqlite import SqliteStore; from scheduler.cli.app import main;"
    " SqliteStore.lease_ms = {}; sys.argv[0] = 'scheduler'; main()"
)


class Fleet:
    """Commands on one file, for one provider."""

    def __init__(self, file, children, provider, place):
        self.file, self.children, self.provider, self.place = file, children, provider, place
        self.store = ("--store", f"sqlite:///{file.path}")

    def start(self, *words, lease_ms=0):
        begin = ("-c", BRISK.format(lease_ms)) if lease_ms else ("-m", "scheduler")
        return self.children.start(*begin, *words, *self.store)

    def done(self, *words, code=0):
        child = self.start(*words)
        out, errors = child.communicate(timeout=60)
        assert child.returncode == code, errors
        return out, errors

    def submit(self, count, job="j", **options):
        prompts = self.place / "p.jsonl"
        write_prompts(prompts, count)
        words = ("submit", str(prompts), "--job", job, "--base-url", self.provider.url, *PRICE)
        return self.done(*words, **options)

    def worker(self, *words, lease_ms=0):
        return self.start(
            "worker", "--base-url", self.provider.url, *PRICE, *words, lease_ms=lease_ms
        )  # fmt: skip

    def collect(self, *words, code=0):
        return self.done("collect", "--job", "j", "-o", str(self.out), *words, code=code)

    @property
    def out(self):
        return self.place / "out.jsonl"

    def workers(self):
        return json.loads(self.done("queue", "--workers", "--json")[0])


@pytest.fixture
def fleet(tmp_path, file, children, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with server("--latency", "300ms", "--output-tokens", "20") as provider:
        yield Fleet(file, children, provider, tmp_path)
        assert file.audit().discrepancies == ()
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes(), f"{path} holds a key"
        assert KEY[-16:].encode() not in path.read_bytes(), f"{path} holds a part of a key"


def everybody(count):
    return sorted(f"r{n}" for n in range(count))


@pytest.mark.timeout(120)
def test_a_worker_is_killed_and_another_does_the_rest_within_the_budget(fleet, file):
    file.define(Budget("default", "$1"))
    _, errors = fleet.submit(120)
    assert "120 queued" in errors
    assert "no live worker serves" in errors
    victim, other = (fleet.worker("-c", most, lease_ms=5_000) for most in "46")
    wait_for(lambda: file("SELECT count(*) FROM workers")[0][0] == 2, "both")
    ((victim_id,),) = file("SELECT id FROM workers WHERE pid = ?", victim.pid)
    sent = (
        "SELECT count(*) FROM reservations WHERE worker_id = ? AND state IN ('pending', 'suspense')"
    )
    wait_for(lambda: file(sent, victim_id)[0][0] >= 2, "calls of the one")
    victim.kill()
    victim.communicate()
    ((in_flight,),) = file(sent, victim_id)
    check_ledger(file, fleet.provider)

    _, errors = fleet.collect("--wait")

    assert "120 succeeded" in errors
    assert sorted(results(fleet.out)) == everybody(120)
    check_ledger(file, fleet.provider)
    assert 120 <= fleet.provider.bill()["calls"] <= 120 + in_flight
    unknown = file("SELECT why FROM reservations WHERE state = 'suspense'")
    assert unknown == [("its process ended before the answer",)] * in_flight
    other.terminate()
    assert other.wait(30) == 0


def pending(file):
    rows = file("SELECT id FROM reservations WHERE state = 'pending' ORDER BY id")
    return [each for (each,) in rows]


@pytest.fixture
def slow(fleet):
    """Answers take long enough to stop whoever waits for them, and not those about to be sent."""
    with server("--latency", "1500ms", "--output-tokens", "20") as provider:
        fleet.provider = provider
        yield provider


@pytest.mark.timeout(120)
def test_one_that_stands_still_beyond_its_lease_is_replaced_and_comes_back_harmless(
    fleet, file, slow
):
    """On one machine: its pid is there all the time."""
    file.define(Budget("default", "$1"))
    fleet.submit(12)
    zombie = fleet.worker("-c", "3", lease_ms=1_500)
    wait_for(lambda: file.states().get("succeeded", 0) >= 3, "answers")
    freeze(zombie, file, slow, 3)
    sending = pending(file)

    other = fleet.worker("-c", "6", lease_ms=1_500)
    wait_for(lambda: file.states() == {"succeeded": 12}, "all of them")
    other.terminate()
    _, errors = other.communicate(timeout=60)

    assert other.returncode == 0, errors
    unknown = file("SELECT id, why FROM reservations WHERE state = 'suspense' ORDER BY id")
    silent = "its process was silent for longer than its lease"
    assert unknown == [(each, silent) for each in sending]
    check_ledger(file, slow)
    assert slow.bill()["calls"] == 15

    os.kill(zombie.pid, signal.SIGCONT)
    wait_for(
        lambda: file("SELECT count(*) FROM reservations WHERE state = 'suspense'") == [(0,)],
        "what it had sent to be settled",
    )
    zombie.terminate()
    _, errors = zombie.communicate(timeout=60)

    assert zombie.returncode == 0, errors
    assert slow.bill()["calls"] == 15  # it sent nothing more
    assert file.counted_nusd() == slow.billed_nusd()  # and all it had sent is booked
    fleet.collect()
    assert sorted(results(fleet.out)) == everybody(12)


@pytest.mark.timeout(120)
def test_told_to_stop_a_worker_finishes_what_runs_and_signs_off(fleet, file):
    fleet.submit(80)
    worker = fleet.worker("-c", "5")
    wait_for(lambda: file.states().get("succeeded", 0) >= 5 and file.in_flight() >= 1, "answers")

    worker.terminate()
    _, errors = worker.communicate(timeout=60)

    assert worker.returncode == 0, errors
    assert "running calls" in errors
    assert set(file.states()) == {"succeeded", "queued"}
    assert file.counted_nusd() == fleet.provider.billed_nusd()
    assert file("SELECT count(*) FROM workers") == [(0,)]
    _, errors = fleet.collect(code=75)
    done = file.states()["succeeded"]
    assert f"{done} succeeded" in errors
    assert len(results(fleet.out)) == done
    assert len(results(fleet.place / "out.parked.jsonl")) == 80 - done

    fleet.worker("--until-idle", "-c", "20").communicate(timeout=60)
    fleet.collect()
    assert sorted(results(fleet.out)) == everybody(80)
    assert not (fleet.place / "out.parked.jsonl").exists()
    assert fleet.provider.bill()["calls"] == 80


@pytest.mark.timeout(120)
def test_a_second_signal_ends_a_worker_now_and_what_ran_keeps_counting(fleet, file, children):
    with server("--latency", "20s") as slow:
        prompts = fleet.place / "p.jsonl"
        write_prompts(prompts, 8)
        words = ("--base-url", slow.url, *PRICE)
        fleet.done("submit", str(prompts), "--job", "j", *words)
        worker = fleet.start("worker", "-c", "3", *words)
        wait_for(lambda: file.is_ready and file.in_flight() == 3, "calls")
        began_s = time.monotonic()
        worker.send_signal(signal.SIGINT)
        assert (
            "let finish"
            in worker.stderr.readline() + worker.stderr.readline() + worker.stderr.readline()
        )
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=60)

    assert worker.returncode == 130, errors
    assert "cancelling 3 running calls" in errors
    assert time.monotonic() - began_s < 15
    assert file.states() == {"queued": 8}
    assert file("SELECT count(*) FROM reservations WHERE state = 'suspense'") == [(3,)]


@pytest.mark.timeout(120)
def test_a_client_hears_what_some_worker_somewhere_was_answered(fleet, file):
    """Its own key is another one: it is never used."""
    workers = [fleet.worker("-c", "4") for _ in range(2)]

    async def ask():
        provider = OpenAI(base_url=fleet.provider.url, api_key="sk-of-the-client-000000000000")
        async with Scheduler(
            file.path, providers=provider, prices={"sim-small": "0.15/0.60"}, role="client"
        ) as s:
            futures = [
                s.submit(Request.chat("sim-small", f"q{n}", max_tokens=20, key=f"k{n}"))
                for n in range(24)
            ]
            answers = await asyncio.wait_for(asyncio.gather(*futures), 60)
            return answers, s.stats()

    answers, stats = asyncio.run(ask())

    assert [each.key for each in answers] == [f"k{n}" for n in range(24)]
    assert sum(each.cost_nusd for each in answers) == fleet.provider.billed_nusd()
    assert (stats.posted_nusd, stats.running) == (0, 0)  # it sent nothing itself
    told = fleet.workers()
    assert [each["serves"][0]["provider"] for each in told] == ["openai"] * 2
    assert all(each["live"] and each["concurrency"] == 4 for each in told)
    for each in workers:
        each.terminate()
        assert each.wait(30) == 0


@pytest.mark.timeout(120)
def test_until_idle_waits_for_what_another_has_under_way_and_does_it_if_that_one_dies(
    fleet, file, slow
):
    fleet.submit(3)
    victim = fleet.worker("-c", "3", "--until-idle", lease_ms=1_500)
    wait_for(lambda: file.in_flight() == 3, "its calls")
    other = fleet.worker("-c", "3", "--until-idle", lease_ms=1_500)
    assert "until nothing waits" in other.stderr.readline()
    wait_for(lambda: file("SELECT count(*) FROM workers")[0][0] == 2, "both")
    time.sleep(0.6)  # it looks three times
    assert other.poll() is None

    victim.kill()
    victim.communicate()
    _, errors = other.communicate(timeout=60)

    assert other.returncode == 0, errors
    assert "3 succeeded" in errors
    assert file.states() == {"succeeded": 3}
    check_ledger(file, slow)
