"""A web app in several worker processes, one file, users with budgets and one budget for all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import threading
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from scheduler.budget import parse_caps
from tests import warm
from tests.processes.harness import look, wait_for
from tests.warm import running_server

EXAMPLES = Path(__file__).parents[2] / "examples"
LATENCY = ("--latency", "100ms", "--output-tokens", "20", "--output-sigma", "0")
REFUSED = {402, 429}


@contextlib.contextmanager
def workers(count, folder, file, provider_url):
    """uvicorn with so many workers on a free port; its URL. None of them outlives this."""
    log = folder / "uvicorn.log"
    environment = {
        **os.environ, "SCHEDULER_STORE": f"sqlite:///{file.path}", "OPENAI_BASE_URL": provider_url,
    }  # fmt: skip
    words = [
        "-m", "uvicorn", "--app-dir", str(EXAMPLES), "14_shared_web_app:app", "--port", "0",
        "--workers", str(count), "--timeout-graceful-shutdown", "2",
    ]  # fmt: skip
    with log.open("w") as out:
        process = warm.Popen(
            [sys.executable, *words], stdout=out, stderr=out, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def url():
        assert process.poll() is None, log.read_text()
        text = log.read_text()
        found = re.search(r"running on (http://\S+)", text)
        return text.count("Application startup complete") == count and found[1]

    try:
        yield wait_for(url, "the workers to start")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM), log.read_text()
    except BaseException:
        print(log.read_text())
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    assert "Traceback" not in log.read_text(), log.read_text()


class Looker:
    """Looks at the file again and again, in a thread: what is spent, what is billed."""

    def __init__(self, file, provider_url):
        self.file, self.looks = file, 0
        self._bill_url = provider_url.removesuffix("/v1") + "/billed"
        self._is_over, self._failure = threading.Event(), None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *failure):
        self._is_over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def billed_nusd(self):
        return look(self._bill_url)["billed_nusd"]

    def look(self):
        billed_nusd = self.billed_nusd()  # first: what is billed from now on is reserved by then
        assert self.file.counted_nusd() >= billed_nusd
        balances = self.file(
            "SELECT g.name, a.cap, sum(b.posted), sum(b.reserved) FROM balances b"
            " JOIN accounts a ON a.id = b.account_id JOIN budgets g ON g.id = a.budget_id"
            " GROUP BY a.id"
        )
        for name, cap, posted, reserved in balances:
            assert posted + reserved <= parse_caps(cap)[0].limit, name
        self.looks += 1

    def _run(self):
        try:
            while not self._is_over.wait(0.01):
                self.look()
        except BaseException as exc:
            self._failure = exc


def scheduler(*words, file):
    """What a command says, in another process."""
    command = [sys.executable, "-m", "scheduler", *words, "--store", str(file.path), "--json"]
    return json.loads(warm.run(command, capture_output=True, check=True, timeout=60).stdout)


@pytest.mark.timeout(60)
def test_two_workers_share_the_budgets_of_users_and_of_all_and_notice_a_raise(tmp_path, file):
    with (
        running_server(*LATENCY) as provider_url,
        workers(2, tmp_path, file, provider_url) as url,
        Looker(file, provider_url) as looker,
    ):
        asyncio.run(play(url, file))

        wait_for(lambda: file.in_flight() == 0, "everything to be settled", 10)
        looker.look()
        assert looker.looks > 5
        assert file.counted_nusd() == looker.billed_nusd() > 300_000
        budgets = {each["name"]: each for each in scheduler("budget", "list", file=file)}
        spent = {name: Decimal(each["posted_usd"]) for name, each in budgets.items()}
        assert spent.pop("app") == sum(spent.values()) == Decimal(looker.billed_nusd()) / 10**9
        assert set(spent) >= {"user ann", "user user0", "user late7"}
    assert file.audit().discrepancies == ()


async def play(url, file):
    """What clients do, and what they are told."""
    # A connection each, as of different people: the workers get them in turn.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as web:
        served = set()

        async def post(path, user):
            answer = await web.post(path, params={"q": "Hi"}, headers={"X-User": user})
            if answer.status_code == 200 and path != "/stream":
                served.add(answer.json()["worker"])
            return answer.status_code

        async def crowd(path, users):
            return await asyncio.gather(*(post(path, user) for user in users))

        # One user alone meets their own limit, and a time to come back.
        told = [200]
        while told[-1] == 200:
            told += await crowd("/ask", ["ann"])
        assert told[-1] == 429
        ann = (await web.get("/budget", headers={"X-User": "ann"})).json()
        assert ann["limit"] == "$0.0001"

        # All together meet the limit for all.
        users = [f"user{n}" for n in range(8)]
        for path in ("/ask", "/stream"):
            told = await crowd(path, 3 * users)
            assert set(told) <= {200, *REFUSED}
            assert set(told) & REFUSED
        while any(status == 200 for status in told):
            told = await crowd("/ask", users)
        assert set(told) <= REFUSED
        assert 402 in told

        # Who can wait does, until somebody outside raises it.
        waiting = asyncio.create_task(crowd("/wait", [f"late{n}" for n in range(8)]))
        while file.states().get("queued", 0) < 8:
            await asyncio.sleep(0.02)
        assert not waiting.done()
        raised = await asyncio.to_thread(scheduler, "budget", "set", "app", "$1", file=file)
        assert (raised["old"], raised["new"]) == ("$0.0003", "$1")
        assert await asyncio.wait_for(waiting, 60) == [200] * 8

        # Both did their part.
        for n in range(40):
            if len(served) == 2:
                break
            await post("/ask", f"more{n}")
        assert len(served) == 2
