"""Webhooks: told once, signed, again until taken, by one of many; and nobody waits for them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import os
import sys

import pytest

from scheduler import Budget, Scheduler
from scheduler.config import load_config
from scheduler.errors import ConfigError, StoreError
from scheduler.telemetry import delivery, webhooks
from scheduler.telemetry.hooks import configured, make_webhook
from tests.conftest import Bench, ask
from tests.telemetry.listening import Endpoint

pytestmark = pytest.mark.anyio
KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(webhooks, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(webhooks, "LEAST_PAUSE_S", 0.01)
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.02)


@pytest.fixture
def endpoint():
    with Endpoint() as made:
        yield made


async def until(true):
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def scheduler(path=None, **options):
    url = None if path is None else f"sqlite:///{path}"
    options.setdefault("budgets", Budget("team", "$0.0000001/day"))
    return Scheduler(url, providers=Bench(), **options)


async def test_a_threshold_is_told_once_and_signed(endpoint):
    async with scheduler() as s:
        s.webhook(endpoint.url, secret=f"whsec_{KEY}", on=["budget.threshold"], thresholds=[50, 80])
        await s.run(ask(cost=60))
        await until(lambda: endpoint.told)
        await asyncio.sleep(0.3)

    ((headers, body),) = endpoint.told
    event = json.loads(body)
    assert event["type"] == "io.scheduler.budget.threshold"
    assert (event["data"]["threshold_percent"], event["data"]["percent"]) == (50, 60)
    assert headers["content-type"].startswith("application/cloudevents+json")
    assert headers["webhook-id"] == event["id"]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    right = hmac.new(bytes(range(32)), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(right).decode()}"


async def test_slack_gets_a_line_of_text(endpoint):
    async with scheduler() as s:
        s.webhook(endpoint.url, form="text", on=["budget.threshold"], thresholds=[50])
        await s.run(ask(cost=60))

    ((headers, body),) = endpoint.told
    assert json.loads(body).keys() == {"text"}
    assert "'team' has spent" in json.loads(body)["text"]
    assert headers["content-type"].startswith("application/json")
    assert "webhook-signature" not in headers


async def test_it_is_tried_again_with_the_same_id_until_it_is_taken(endpoint):
    endpoint.answers = [500, 429, 204]
    async with scheduler() as s:
        s.webhook(endpoint.url, on=["budget.threshold"], thresholds=[50])
        await s.run(ask(cost=60))
        await until(lambda: len(endpoint.told) == 3)
        await asyncio.sleep(0.2)

    assert len({headers["webhook-id"] for headers, _ in endpoint.told}) == 1
    assert len(endpoint.told) == 3


async def test_an_endpoint_that_wants_no_more_of_it_gets_no_more(endpoint, caplog):
    endpoint.answers = [410]
    async with scheduler() as s:
        s.webhook(endpoint.url, on=["budget.threshold"], thresholds=[50])
        await s.run(ask(cost=60))
        await until(lambda: "it is given up" in caplog.text)
        await asyncio.sleep(0.2)

    assert len(endpoint.told) == 1


@pytest.mark.parametrize("how", ["slow", "huge", "redirect", 500, "refused"])
async def test_a_bad_endpoint_holds_nobody_up_and_is_named_without_its_url(how, endpoint, caplog):
    caplog.set_level(logging.DEBUG)
    endpoint.answers = [how] * 50
    url = "http://127.0.0.1:9/s3cr3t-path-of-mine" if how == "refused" else endpoint.url
    with Endpoint() as good:
        async with scheduler() as s:
            s.webhook(url, name="bad", on=["budget.threshold"], thresholds=[50], timeout=0.3)
            s.webhook(good.url, name="good", on=["budget.threshold"], thresholds=[50])
            await s.run(ask(cost=60))
            await until(lambda: good.told)
            await asyncio.wait_for(s.run(ask(cost=1, ceiling=10)), 60)
            if how == "huge":  # its head says that it was taken
                await asyncio.sleep(0.3)
            else:
                await until(lambda: "webhook bad was not told" in caplog.text)

    if how == "huge":
        assert len(endpoint.told) == 1
    assert "s3cr3t" not in caplog.text
    assert "/elsewhere" not in endpoint.paths


async def test_who_never_answers_keeps_no_other_waiting_nor_the_end(endpoint, monkeypatch):
    monkeypatch.setattr(webhooks, "LAST_WORDS_S", 0.1)
    endpoint.answers = ["stuck"]
    with Endpoint() as good:
        async with scheduler() as s:
            s.webhook(endpoint.url, name="a", on=["budget.threshold"], thresholds=[50], timeout=60)
            s.webhook(good.url, name="b", on=["budget.threshold"], thresholds=[50, 90])
            await s.run(ask(cost=60))
            await until(lambda: endpoint.told and good.told)
            await s.run(ask(cost=35, ceiling=40))
            await until(lambda: len(good.told) == 2)


async def test_what_an_engine_says_of_a_url_is_not_told(monkeypatch):
    from scheduler.errors import TransportFailed
    from scheduler.stores.outbox import News

    class Engine:
        async def post(self, url, content):
            raise TransportFailed(f"no way to {url}")

        async def aclose(self):
            pass

    monkeypatch.setattr(delivery, "make_engine", lambda *args, **options: Engine())
    hook = make_webhook("https://h/s3cr3t-path")
    event = json.dumps({"id": "1", "data": {"text": ""}})

    told = await delivery.deliver(hook, News("h", "t", event, 1, 1, 0), 0)

    assert told.problem.startswith("no way to")
    assert "s3cr3t" not in told.problem


async def test_what_was_not_taken_is_told_by_the_next_process(endpoint, tmp_path):
    endpoint.answers = [500] * 100
    path = tmp_path / "s.db"
    async with scheduler(path) as s:
        s.webhook(endpoint.url, name="ops", on=["budget.threshold"], thresholds=[50])
        await s.run(ask(cost=60))
    tried, endpoint.answers = len(endpoint.told), []
    async with scheduler(path) as s:
        s.webhook(endpoint.url, name="ops", on=["budget.threshold"], thresholds=[50])
        await until(lambda: len(endpoint.told) > tried)
        await asyncio.sleep(0.2)

    assert tried >= 1
    assert len(endpoint.told) == tried + 1
    assert len({headers["webhook-id"] for headers, _ in endpoint.told}) == 1


async def test_of_several_processes_one_tells_it_and_a_restart_tells_it_not_again(
    endpoint, tmp_path
):
    path = tmp_path / "s.db"
    for _ in range(2):
        async with scheduler(path) as one, scheduler(path) as two, scheduler(path) as three:
            for s in (one, two, three):
                s.webhook(endpoint.url, name="ops", on=["budget.threshold"], thresholds=[50])
            if not endpoint.told:
                await one.run(ask(cost=60))
            await until(lambda: endpoint.told)
            await asyncio.sleep(0.2)

    assert len(endpoint.told) == 1


async def test_a_crossing_is_told_although_the_process_that_crossed_it_told_nobody(
    endpoint, tmp_path
):
    path = tmp_path / "s.db"
    async with scheduler(path) as s:
        await s.run(ask(cost=60))
    async with scheduler(path) as s:
        s.webhook(endpoint.url, on=["budget.threshold"], thresholds=[50])
        await until(lambda: endpoint.told)


async def test_what_is_parked_or_unknown_for_long_is_told(endpoint):
    from scheduler.errors import CallFailed

    async with scheduler() as s:
        s.webhook(
            endpoint.url, on=["requests.parked", "outcomes.unknown"], parked_after=0.05,
            unknown_after=0.05,
        )  # fmt: skip
        with pytest.raises(CallFailed):
            await s.run(ask(fail=CallFailed("torn"), ceiling=20))
        waits = s.submit(ask(ceiling=90))
        await until(lambda: len(endpoint.told) == 2)
        waits.cancel()

    told = {each["type"]: each["data"] for each in endpoint.events()}
    assert told["io.scheduler.requests.parked"]["requests"] == 1
    assert told["io.scheduler.outcomes.unknown"]["outcomes"] >= 1


async def test_a_job_is_told_when_it_is_done_once_for_each_time(endpoint, tmp_path):
    async with scheduler(tmp_path / "s.db", budgets="$1") as s:
        s.webhook(endpoint.url, on=["job.done"])
        await asyncio.gather(*(s.run(ask(n, key=f"a{n}", job="labels")) for n in range(5)))
        await s.run(ask())  # of no job
        await until(lambda: endpoint.told)
        await s.run(ask(key="b", job="labels"))

    first, second = endpoint.events()
    assert first["type"] == "io.scheduler.job.done"
    assert (first["subject"], first["data"]["succeeded"]) == ("labels", 5)
    assert second["data"]["succeeded"] == 6
    assert first["id"] != second["id"]


@pytest.mark.parametrize("at", ["armed", "arm"])
@pytest.mark.parametrize("how", ["the scheduler ends", "the store fails"])
async def test_a_look_that_is_cut_short_forgets_no_job(at, how, endpoint, monkeypatch):
    monkeypatch.setattr(webhooks, "LOOK_EVERY_S", 3600)
    looked, cut = asyncio.Event(), asyncio.Event()
    async with scheduler() as s:
        armed, right = s.store.armed, getattr(s.store, at)

        async def seen():
            looked.set()
            return await armed()

        async def cut_short(*args):
            monkeypatch.setattr(s.store, at, right)
            cut.set()
            if how == "the store fails":
                raise StoreError("the disk is full")
            await asyncio.sleep(3600)

        monkeypatch.setattr(s.store, "armed", seen)
        s.webhook(endpoint.url, on=["job.done"])
        await looked.wait()
        await s.run(ask(key="k", job="labels"))
        monkeypatch.setattr(s.store, at, cut_short)
        s.webhook(endpoint.url, name="other", on=["outcomes.unknown"])  # so that it looks
        await cut.wait()

    (event,) = endpoint.events()
    assert event["data"]["job"] == "labels"


async def test_what_is_news_while_others_are_told_is_told_before_the_end(endpoint, monkeypatch):
    """A hook is read until there is nothing; what comes just then is not left behind."""
    async with scheduler() as s:
        right, empty = s.store.take_news, asyncio.Event()

        async def slow(*args, **options):
            taken = await right(*args, **options)
            if not taken and not empty.is_set():
                empty.set()
                await asyncio.sleep(0.1)
            return taken

        monkeypatch.setattr(s.store, "take_news", slow)
        s.webhook(endpoint.url, on=["budget.threshold"], thresholds=[50])
        await empty.wait()
        await s.run(ask(cost=60))

    assert len(endpoint.told) == 1


async def test_a_job_that_a_dead_process_had_begun_is_told_by_the_one_that_ends_it(
    endpoint, tmp_path
):
    path = tmp_path / "s.db"
    async with scheduler(path) as s:
        s.webhook(endpoint.url, name="ops", on=["job.done"])
        await s.enqueue(
            [ask(key="k", job="labels", ceiling=90), ask(key="l", job="labels", ceiling=90)]
        )
        await asyncio.sleep(0.3)
    assert not endpoint.told
    async with scheduler(path) as s:
        await s.set_limit("team", "$1/day")
        await asyncio.gather(*(s.run(ask(key=k, job="labels", ceiling=90)) for k in "kl"))
    async with scheduler(path) as s:
        s.webhook(endpoint.url, name="ops", on=["job.done"])
        await until(lambda: endpoint.told)

    assert endpoint.events()[0]["data"]["succeeded"] == 2


READS = """
import os, sys
with open(sys.argv[1] + ".part", "w") as file:
    file.write(sys.stdin.read() + "|" + sys.argv[2])
os.replace(file.name, sys.argv[1])
"""


async def test_a_command_reads_the_event_and_no_shell_reads_its_arguments(tmp_path):
    out = tmp_path / "told"
    async with scheduler() as s:
        s.webhook(
            command=[sys.executable, "-c", READS, str(out), "$(id); *"], on=["budget.threshold"],
            thresholds=[50],
        )  # fmt: skip
        await s.run(ask(cost=60))
        await until(out.exists)

    text, argument = out.read_text().split("|")
    assert json.loads(text)["type"] == "io.scheduler.budget.threshold"
    assert argument == "$(id); *"


# A shell, and no interpreter: it begins its child within its second, however busy the machine is.
SLEEPS = 'sleep 60 & echo $! > "$1"; wait'


async def test_a_command_that_goes_on_is_ended_with_all_that_it_began(tmp_path, caplog):
    out = tmp_path / "pid"
    async with scheduler() as s:
        s.webhook(
            command=["sh", "-c", SLEEPS, "sh", str(out)], name="slow", on=["budget.threshold"],
            thresholds=[50], timeout=2,
        )  # fmt: skip
        await s.run(ask(cost=60))
        await until(lambda: "webhook slow was not told" in caplog.text)
        pid = int(out.read_text())
        await until(lambda: not _lives(pid))


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return not os.path.isdir("/proc")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "a URL or a command"),
        ({"url": "http://h", "command": ["x"]}, "a URL or a command"),
        ({"url": "ftp://h/s3cr3t"}, "no http or https URL"),
        ({"url": "http://h:99999/s3cr3t"}, "no http or https URL"),
        ({"url": "http://h", "form": "xml"}, "is not one of 'cloudevents' and 'text'"),
        ({"url": "http://h", "on": ["budget.gone"]}, "'budget.gone' is not one of"),
        ({"url": "http://h", "on": []}, "is not one of"),
        ({"url": "http://h", "secret": "s3cr3t"}, "shorter than 24 bytes"),
        ({"url": "http://h", "secret": "whsec_s3cr3t"}, "whsec_"),
        ({"url": "http://h", "thresholds": [0]}, "no percent"),
        ({"url": "http://h", "timeout": "2m"}, "between 0 and 60 seconds"),
        ({"command": "rm -rf s3cr3t"}, "list of a program"),
        ({"url": "http://h", "name": " "}, "is not a name"),
    ],
)
def test_what_makes_no_sense_is_refused_and_no_secret_is_shown(options, problem):
    with pytest.raises(ConfigError, match=problem) as told:
        make_webhook(**options)
    assert "s3cr3t" not in str(told.value)


def test_a_webhook_shows_no_secret():
    hook = make_webhook("https://h/s3cr3t", secret="s3cr3t" * 8)

    assert "s3cr3t" not in repr(hook)
    assert "s3cr3t" not in repr(vars(type(hook)))


def config_of(tmp_path, text):
    path = tmp_path / "scheduler.toml"
    path.write_text(text)
    return load_config(path)


def test_webhooks_are_configured_with_secrets_by_their_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("OPS_URL", "https://hooks.slack.com/services/s3cr3t")
    monkeypatch.setenv("OPS_KEY", f"whsec_{KEY}")
    config = config_of(tmp_path, """
[[webhooks]]
name = "ops"
url_env = "OPS_URL"
secret_env = "OPS_KEY"
on = ["budget.threshold"]
thresholds = [90]
parked_after = "2h"

[[webhooks]]
command = ["logger", "-t", "llm"]
""")  # fmt: skip

    ops, other = configured(config)
    assert (ops.name, ops.wanted.thresholds, bool(ops.key)) == ("ops", (90,), True)
    assert other.command == ("logger", "-t", "llm")
    monkeypatch.delenv("OPS_KEY")
    with pytest.raises(ConfigError, match="secret_env: OPS_KEY is not set"):
        configured(config)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[webhooks]]\nurl = "https://hooks.slack.com/services/s3cr3t"', "url_env"),
        ('[[webhooks]]\nurl = "https://u:s3cr3t@h/"', "url_env"),
        ('[[webhooks]]\nsecret = "s3cr3t"', "secret_env"),
        ('[[webhooks]]\nurl = "https://h"\nnaem = "x"', "is it 'name'"),
        ('[[webhooks]]\nname = "a"\nurl = "https://h"\n[[webhooks]]\nname = "a"\nurl = "https://i"',
         "two of the name"),
    ],
)  # fmt: skip
def test_secrets_in_the_file_and_mistakes_are_refused(tmp_path, text, problem):
    with pytest.raises(ConfigError, match=problem) as told:
        configured(config_of(tmp_path, text))
    assert "s3cr3t" not in str(told.value)


async def test_nothing_secret_is_on_the_disk(endpoint, tmp_path):
    async with scheduler(tmp_path / "s.db") as s:
        s.webhook(endpoint.url, secret="another-s3cr3t-of-mine-for-signing", thresholds=[50])
        await s.run(ask(cost=60))
        await until(lambda: endpoint.told)

    for file in tmp_path.iterdir():
        assert b"s3cr3t" not in file.read_bytes()


async def test_a_blocking_scheduler_tells_too(endpoint):
    import scheduler as package

    def use():
        with package.open(budgets=Budget("team", "$0.0000001/day"), providers=Bench()) as s:
            s.webhook(endpoint.url, on=["budget.threshold"], thresholds=[50])
            s.run(ask(cost=60))

    await asyncio.to_thread(use)

    assert len(endpoint.told) == 1
