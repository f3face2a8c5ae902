"""submit, worker and collect: one batch, several commands."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from scheduler import Request, Scheduler
from scheduler.batch.lock import OutputLock
from scheduler.cli.delivery import Delivery
from scheduler.cli.serving import able
from scheduler.errors import ConfigError
from scheduler.providers.openai import OpenAI
from scheduler.providers.simulated.provider import Simulated
from scheduler.providers.simulated.server import running_server
from tests.cli.test_run import ids, line, lines, run, write

KEY = "sk-0123456789abcdefghijklmnop"
SIM = ("--base-url", "sim:")
PRICE = ("--price", "sim-small=0.15/0.60")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ANTHROPIC_API_KEY", "GROQ_API_KEY", "SCHEDULER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def fleet(cli):
    """Runs a command with the simulated provider, and expects an exit code."""

    def run(command, *words, code=0, base_url="sim:"):
        asks = ("--base-url", base_url) if command in ("submit", "worker") and base_url else ()
        done = cli(command, *words, *asks)
        assert done.exit_code == code, done.stderr + str(done.exception)
        return done

    return run


def submit(fleet, *words, count=12, **options):
    write(count)
    return fleet("submit", "p.jsonl", "--job", "j", *words, **options)


def work(fleet, *words, **options):
    return fleet("worker", "--until-idle", *words, **options)


def collect(fleet, *words, **options):
    return fleet("collect", "--job", "j", "-o", "out.jsonl", *words, **options)


def all_ids(count):
    return sorted(f"r{n}" for n in range(count))


def rows(sql):
    with closing(sqlite3.connect("scheduler.db")) as db:
        return db.execute(sql).fetchall()


# From the file to the results


def test_what_is_submitted_is_sent_by_a_worker_and_collected(fleet):
    submitted = submit(fleet, "--budget", "$1/day", "--json")
    told = json.loads(submitted.stdout)
    assert (told["queued"], told["known_before"], told["refused"]) == (12, 0, 0)
    assert rows("SELECT DISTINCT worker_id, provider, service FROM lanes") == [
        (0, "simulated", "sim:")
    ]

    worked = work(fleet, "-c", "4", "--json")
    assert json.loads(worked.stdout)["succeeded"] == 12
    assert "serves simulated (sim:)" in worked.stderr
    assert "4 calls at once" in worked.stderr

    done = json.loads(collect(fleet, "--json").stdout)
    assert (done["exit"], done["succeeded"], done["left"]) == (0, 12, 0)
    assert ids("out.jsonl") == all_ids(12)
    assert sum(
        float(each["scheduler"]["cost_usd"]) for each in lines("out.jsonl")
    ) == pytest.approx(float(done["cost_usd"]))
    assert not Path("out.errors.jsonl").exists()
    assert not Path("out.parked.jsonl").exists()
    assert fleet("audit").stdout.startswith("clean")


def test_results_are_those_of_run_but_for_their_numbers(fleet, cli):
    submit(fleet)
    work(fleet)
    collect(fleet)
    assert cli("run", "p.jsonl", "-o", "run.jsonl", *SIM).exit_code == 0

    def plain(name):
        found = [dict(each, id=None) for each in lines(name)]
        for each in found:
            each["response"]["body"].pop("id", None)
            each["response"]["body"].pop("created", None)
            each["response"]["request_id"] = None
        return sorted(found, key=lambda each: each["custom_id"])

    assert plain("out.jsonl") == plain("run.jsonl")


def test_the_same_submit_again_adds_what_is_new_and_nothing_else(fleet):
    submit(fleet)
    assert "0 queued · 12 known already · 0 refused" in submit(fleet).stderr
    work(fleet)
    assert "3 queued · 12 known already · 0 refused" in submit(fleet, count=15).stderr

    work(fleet)
    collect(fleet)

    assert ids("out.jsonl") == all_ids(15)
    assert rows("SELECT count(*) FROM reservations") == [(15,)]


def test_collect_is_resumed_and_restores_what_is_missing(fleet):
    submit(fleet)
    work(fleet)
    collect(fleet)
    before = Path("out.jsonl").read_text()

    collect(fleet)
    assert Path("out.jsonl").read_text() == before

    kept = before.splitlines(keepends=True)[:5]
    Path("out.jsonl").write_text("".join(kept) + before.splitlines()[5][:20])  # torn
    collect(fleet)
    assert ids("out.jsonl") == all_ids(12)

    fleet("collect", "--job", "j", "-o", "other.jsonl")
    assert ids("other.jsonl") == all_ids(12)


def test_to_stdout_each_result_goes_once(fleet):
    submit(fleet)
    work(fleet)
    first = fleet("collect", "--job", "j", "-o", "-")
    again = fleet("collect", "--job", "j", "-o", "-")

    assert len(first.stdout.splitlines()) == 12
    assert again.stdout == ""


# Lines that cannot be sent


BAD = '{oops\n{"prompt": "hi"}\n{"custom_id": "r1", "model": "sim-small", "prompt": "other"}\n'


def test_bad_lines_are_told_by_file_and_line_and_the_others_are_queued(fleet):
    write(3)
    with Path("p.jsonl").open("a") as file:
        file.write(BAD)

    done = fleet("submit", "p.jsonl", "--job", "j", "--json", code=1)

    told = json.loads(done.stdout)
    assert (told["queued"], told["refused"], told["errors"]) == (3, 3, "p.errors.jsonl")
    assert "p.jsonl:4: not JSON" in done.stderr
    assert "p.jsonl:5: names no model" in done.stderr
    assert "p.jsonl:6: custom_id 'r1' was used before for another body" in done.stderr
    assert [each["error"]["code"] for each in lines("p.errors.jsonl")] == [
        "bad_line", "bad_line", "duplicate_custom_id",
    ]  # fmt: skip

    fleet("submit", "p.jsonl", "--job", "j", code=1)
    assert len(lines("p.errors.jsonl")) == 3
    write(3)  # they are mended
    fleet("submit", "p.jsonl", "--job", "j")
    assert not lines("p.errors.jsonl")


def test_where_bad_lines_cannot_be_written_they_are_told(fleet):
    write(2)
    with Path("p.jsonl").open("a") as file:
        file.write("{oops\n")
    with OutputLock([Path("p.errors.jsonl")]):
        done = fleet("submit", "p.jsonl", "--job", "j", code=1)

    assert "bad lines are only told here" in done.stderr
    assert "2 queued · 0 known already · 1 refused" in done.stderr


def test_what_comes_by_stdin_is_submitted_too_and_its_bad_lines_are_told(place):
    text = "".join(json.dumps(line(n)) + "\n" for n in range(3)) + "{oops\n"

    done = run("-", "--job", "j", *SIM, command="submit", stdin=text)

    assert done.returncode == 1
    assert ":4: not JSON" in done.stderr
    assert "3 queued · 0 known already · 1 refused" in done.stderr
    assert [each for each in place.iterdir() if not each.name.startswith("scheduler.db")] == []


def test_an_id_that_asked_something_else_is_refused_with_the_way_out(fleet):
    submit(fleet)
    write(12, max_tokens=7)

    done = fleet("submit", "p.jsonl", "--job", "j", code=1)

    assert "another --job keeps both" in done.stderr
    assert "0 queued · 0 known already · 12 refused" in done.stderr
    assert "12 queued" in fleet("submit", "p.jsonl", "--job", "k").stderr


def test_strict_queues_nothing_if_any_line_is_bad(fleet):
    write(3)
    with Path("p.jsonl").open("a") as file:
        file.write("{oops\n")

    done = fleet("submit", "p.jsonl", "--job", "j", "--strict", code=2)

    assert "with --strict nothing was sent" in done.stderr
    assert rows("SELECT count(*) FROM requests") == [(0,)]


def test_without_any_price_it_is_a_matter_of_configuration(fleet):
    write(2, model="nobody-knows-me")

    done = fleet("submit", "p.jsonl", "--job", "j", code=3)

    assert "no price is known" in done.stderr
    assert "2 queued" in fleet("submit", "p.jsonl", "--job", "j", "--price",
                               "nobody-knows-me=1/2").stderr  # fmt: skip


def test_more_expensive_ones_and_longer_prompts_are_refused_as_by_run(fleet):
    write(2)
    assert "2 refused" in fleet("submit", "p.jsonl", "--job", "a", "--max-cost", "$0.0000001",
                                code=1).stderr  # fmt: skip
    assert "2 refused" in fleet("submit", "p.jsonl", "--job", "b", "--max-prompt-tokens", "1",
                                code=1).stderr  # fmt: skip


def test_a_job_in_memory_would_be_nobodys(fleet):
    done = submit(fleet, "--store", "memory://", code=3)
    assert "a store that others share" in done.stderr
    assert "one that others share" in work(fleet, "--store", "memory://", code=3).stderr


def test_a_job_has_a_name(fleet):
    write(1)
    assert "is empty" in fleet("submit", "p.jsonl", "--job", " ", code=3).stderr
    assert "is empty" in fleet("collect", "-o", "out.jsonl", "--job", "", code=3).stderr


def test_priorities_are_words_or_numbers(fleet):
    for job, word in (("a", "interactive"), ("b", "7"), ("c", "idle")):
        write(1)
        fleet("submit", "p.jsonl", "--job", job, "--priority", word)
    found = {row["job"]: row["priority"] for row in json.loads(fleet("queue", "--json").stdout)}
    assert found == {"a": 0, "b": 7, "c": 30}
    fleet("submit", "p.jsonl", "--job", "d", "--priority", "soon", code=3)


# Failures, and what waits


def test_some_failed_is_told_by_collect_and_sent_again_if_it_is_wanted(fleet):
    write(3)
    with Path("p.jsonl").open("a") as file:
        file.write(json.dumps(line(3, max_tokens=-1)) + "\n")
    fleet("submit", "p.jsonl", "--job", "j")
    assert json.loads(work(fleet, "--json").stdout)["failed"] == 1

    done = collect(fleet, code=1)

    assert "3 succeeded · 1 failed" in done.stderr
    assert ids("out.errors.jsonl") == ["r3"]
    assert (
        "1 of them failed (--retry-failed sends them again)"
        in fleet("submit", "p.jsonl", "--job", "j").stderr
    )
    assert (
        "1 queued · 3 known already"
        in fleet("submit", "p.jsonl", "--job", "j", "--retry-failed").stderr
    )


def test_what_still_waits_is_exit_75_and_a_file_whose_lines_are_known(fleet, cli):
    submit(fleet, "--budget", "$0.0001")
    worked = work(fleet, "--on-exhausted", "stop", code=75)
    assert "budget 'default'" in worked.stderr
    collected = collect(fleet, code=75)
    left = lines("out.parked.jsonl")
    done = lines("out.jsonl")
    assert len(left) + len(done) == 12
    assert left
    assert f"{len(left)} left" in collected.stderr
    assert "resume: scheduler" in collected.stderr

    assert (
        f"0 queued · {len(left)} known already"
        in fleet("submit", "out.parked.jsonl", "--job", "j").stderr
    )
    assert cli("budget", "set", "default", "$1").exit_code == 0
    ran = cli("run", "out.parked.jsonl", *SIM)  # it is that job's, and nothing is paid twice
    assert ran.exit_code == 0, ran.stderr
    assert "is what the job 'j' left" in ran.stderr
    collect(fleet)
    assert ids("out.jsonl") == all_ids(12)
    assert rows("SELECT count(*) FROM reservations WHERE state = 'posted'") == [(12,)]
    assert not Path("out.parked.jsonl").exists()


def test_a_file_is_no_part_of_requests_without_a_job(cli):
    async def program():
        async with Scheduler("scheduler.db", providers=Simulated()) as s:
            await s.run(Request.chat("sim-small", "Hi", max_tokens=9, key="a"))

    anyio.run(program)
    write(2)

    ran = cli("run", "p.jsonl", "-o", "out.jsonl", *SIM)

    assert ran.exit_code == 0, ran.stderr
    assert "is what the job" not in ran.stderr
    assert rows("SELECT count(*) FROM jobs WHERE name LIKE '%p.jsonl → %out.jsonl'") == [(1,)]


def test_the_model_of_a_line_that_waits_is_as_it_was_asked_for(fleet):
    Path("p.jsonl").write_text(
        "".join(
            json.dumps({"custom_id": name, "model": model, "max_tokens": 5, "messages": []}) + "\n"
            for name, model in (("a", "sim-small"), ("b", "simulated:sim-small"))
        )
    )
    fleet("submit", "p.jsonl", "--job", "j")
    collect(fleet, code=75)

    assert [each["body"]["model"] for each in lines("out.parked.jsonl")] == [
        "sim-small", "simulated:sim-small",
    ]  # fmt: skip
    assert "2 known already · 0 refused" in fleet("submit", "out.parked.jsonl", "--job", "j").stderr


async def test_what_came_too_late_or_was_cancelled_is_an_error_of_the_job(place, cli):
    provider = Simulated()
    provider.service = "sim:"
    async with Scheduler("scheduler.db", providers=provider, role="client") as s:
        asks = [
            Request.chat("sim-small", "q", max_tokens=5, key=key, job="j", deadline=deadline)
            for key, deadline in (("late", "20ms"), ("unwanted", None), ("kept", None))
        ]
        _, unwanted, kept = [s.submit(each) for each in asks]
        await asyncio.sleep(0.1)
        unwanted.cancel()
        while (await s.store.counts("j")).cancelled == 0:
            await asyncio.sleep(0.02)
        kept.cancel  # noqa: B018 - it waits on
    worked = await asyncio.to_thread(cli, "worker", "--until-idle", *SIM)
    assert worked.exit_code == 0, worked.stderr
    done = await asyncio.to_thread(cli, "collect", "--job", "j", "-o", "out.jsonl")

    assert done.exit_code == 1, done.stderr
    assert ids("out.jsonl") == ["kept"]
    errors = {each["custom_id"]: each["error"]["code"] for each in lines("out.errors.jsonl")}
    assert errors == {"late": "DeadlineExceeded", "unwanted": "cancelled"}


def test_a_job_that_nobody_submitted_is_told(fleet):
    submit(fleet)
    done = fleet("collect", "--job", "other", "-o", "out.jsonl", code=3)
    assert "no job 'other' (it has: 'j')" in done.stderr
    assert not Path("out.jsonl").exists()


def test_one_writes_the_results_at_a_time(fleet):
    submit(fleet)
    with OutputLock([Path("out.jsonl")]):
        assert "out.jsonl is being written by process" in collect(fleet, code=75).stderr


def test_waiting_ends_when_it_was_enough(fleet):
    submit(fleet)
    done = collect(fleet, "--wait", "--max-wait", "300ms", code=75)
    assert "12 requests have no outcome yet" in done.stderr
    assert "which no live worker serves" in done.stderr
    assert len(lines("out.parked.jsonl")) == 12


async def test_what_another_one_marked_as_delivered_meanwhile_is_written_all_the_same(
    cli, monkeypatch
):
    provider = Simulated()
    provider.service = "sim:"
    async with Scheduler("scheduler.db", providers=provider, role="client") as s:
        futures = [
            s.submit(Request.chat("sim-small", "q", max_tokens=5, key=f"r{n}", job="j"))
            for n in range(4)
        ]
        while (await s.store.counts()).total < 4:  # else there is no such job yet
            await asyncio.sleep(0.02)
        collecting = asyncio.create_task(
            asyncio.to_thread(cli, "collect", "--job", "j", "-o", "out.jsonl", "--wait")
        )

        # Whoever collects the same job into other files is faster.
        monkeypatch.setattr(Delivery, "collect", lambda self: asyncio.sleep(0))
        while not await anyio.Path("out.jsonl").exists():
            assert not collecting.done(), collecting.result().stderr
            await asyncio.sleep(0.02)
        async with Scheduler("scheduler.db", providers=provider, role="worker"):
            await asyncio.gather(*futures)
        await s.store.delivered([each.request_id for each in futures])
        done = await collecting

    assert done.exit_code == 0, done.stderr
    assert ids("out.jsonl") == all_ids(4)


def test_options_that_would_do_nothing_are_refused(fleet):
    submit(fleet)
    collect(fleet, "--max-wait", "1s", code=2)
    fleet("worker", "--max-wait", "1s", code=2)
    fleet("worker", "--on-exhausted", "stop", code=2)


# Who serves it


def test_what_nobody_serves_is_told_by_submit_status_queue_and_collect(fleet):
    told = "provider 'simulated' (sim:seed=5), which no live worker serves"
    done = submit(fleet, "--json", base_url="sim:seed=5")
    assert f"12 requests wait for {told}" in done.stderr
    assert json.loads(done.stdout)["unserved"] == [
        {"provider": "simulated", "service": "sim:seed=5", "requests": 12}
    ]
    work(fleet)  # another one

    assert told in " ".join(fleet("status").stdout.split())
    assert json.loads(fleet("status", "--json").stdout)["unserved"][0]["requests"] == 12
    assert json.loads(fleet("status", "--json", "--job", "k").stdout)["unserved"] == []
    assert "no live worker serves 'simulated' (sim:seed=5)" in fleet("queue").stdout
    assert {row["served"] for row in json.loads(fleet("queue", "--json").stdout)} == {False}
    assert told in collect(fleet, code=75).stderr


async def test_who_serves_it_is_listed_with_what_they_serve(cli, place):
    provider = Simulated()
    provider.service = "sim:"
    async with Scheduler(
        "scheduler.db", providers=[provider, OpenAI(api_key=KEY)], role="worker", concurrency=9
    ) as s:
        await s.begun()
        status = json.loads((await asyncio.to_thread(cli, "status", "--json")).stdout)
        text = (await asyncio.to_thread(cli, "status")).stdout
        (listed,) = json.loads(
            (await asyncio.to_thread(cli, "queue", "--workers", "--json")).stdout
        )
        table = (await asyncio.to_thread(cli, "queue", "--workers")).stdout

    assert status["workers"] == [listed] or listed["seen"] >= status["workers"][0]["seen"]
    assert (listed["live"], listed["concurrency"], listed["running"]) == (True, 9, 0)
    assert {each["provider"]: each["service"] for each in listed["serves"]} == {
        "simulated": "sim:", "openai": "https://api.openai.com/v1",
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*", listed["since"])
    for each in (text, table):
        assert "0/9" in each
        assert "simulated (sim:)" in each
    nobody = await asyncio.to_thread(cli, "queue", "--workers")
    assert "no worker serves this store" in nobody.stderr


async def test_a_price_that_is_set_while_a_worker_runs_is_its_price(cli, place):
    async with Scheduler("scheduler.db", role="worker", providers=OpenAI(api_key=KEY),
                         prices={"given": "1/1"}) as s:  # fmt: skip
        for model in ("m", "given"):
            words = ("prices", "set", model, "--in", "3", "--out", "4")
            assert (await asyncio.to_thread(cli, *words)).exit_code == 0
        await s.learn_prices()

        assert s.quote(Request.chat("m", "hi", max_tokens=1)).ceiling_nusd > 4_000
        assert (s.prices.own["m"], s.prices.own["given"]) == ("3/4", "1/1")


# Keys


def test_submitting_needs_no_key_and_serving_does(fleet, cli, monkeypatch):
    write(2, model="gpt-4o-mini")
    with Path("p.jsonl").open("a") as file:
        file.write(json.dumps(line(2, model="anthropic:claude-haiku-4-5")) + "\n")

    done = fleet("submit", "p.jsonl", "--job", "j", base_url=None)

    assert "3 queued" in done.stderr
    assert "provider 'anthropic' (https://api.anthropic.com)" in done.stderr
    assert sorted(rows("SELECT provider, service FROM lanes")) == [
        ("anthropic", "https://api.anthropic.com"), ("openai", "https://api.openai.com/v1"),
    ]  # fmt: skip
    refused = fleet("worker", "--until-idle", base_url=None, code=4)
    assert "OPENAI_API_KEY: is not set" in refused.stderr
    refused = fleet("worker", "--provider", "anthropic", base_url=None, code=3)
    assert "no provider is named 'anthropic'" in refused.stderr


def test_a_command_that_prints_a_key_is_not_run_to_submit(fleet):
    Path("scheduler.toml").write_text(
        '[provider.local]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n'
        'price = "1/2"\napi_key_command = ["touch", "ran"]\n'
    )
    submit(fleet, base_url=None)

    assert not Path("ran").exists()


def test_nothing_of_a_key_is_in_the_store(fleet, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running_server("--api-key", KEY) as url:
        submit(fleet, *PRICE, base_url=url)
        work(fleet, *PRICE, base_url=url)
    collect(fleet)

    assert len(lines("out.jsonl")) == 12
    for path in Path().iterdir():
        held = path.read_bytes()
        for part in (KEY, KEY[3:], KEY[:12], KEY[-12:]):
            assert part.encode() not in held, path


def test_a_worker_serves_what_it_has_keys_for_and_no_more():
    keyed, keyless = OpenAI(api_key=KEY), OpenAI("groq", base_url="https://api.groq.com/openai/v1")
    local = OpenAI("local", base_url="http://127.0.0.1:8000/v1")

    assert [each.name for each in able([keyless, keyed, local])] == ["openai", "local"]
    assert [each.name for each in able([keyless, keyed, local], ["local"])] == ["local"]
    with pytest.raises(ConfigError, match="is not set"):
        able([keyless, keyed], ["groq"])
    with pytest.raises(ConfigError, match="is not set"):
        able([keyless])
    with pytest.raises(ConfigError, match="none that any process could ask"):
        able([Simulated()])


def test_one_whose_key_is_refused_leaves_the_requests_to_others(fleet, monkeypatch):
    with running_server("--api-key", KEY) as url:
        submit(fleet, *PRICE, base_url=url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else-0000")
        refused = work(fleet, *PRICE, base_url=url, code=4)
        assert "Check the key of 'openai'" in refused.stderr
        assert {row["state"] for row in json.loads(fleet("queue", "--json").stdout)} == {"queued"}
        assert rows("SELECT DISTINCT state, nusd FROM reservations") == [("voided", 0)]

        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        work(fleet, *PRICE, base_url=url)
    collect(fleet)
    assert ids("out.jsonl") == all_ids(12)
    assert {each["scheduler"]["attempts"] for each in lines("out.jsonl")} == {1}
