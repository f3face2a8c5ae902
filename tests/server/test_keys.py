"""A gateway without a provider's key, and processes that have it: real ones, on one store."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from tests import warm
from tests.server.conftest import MODEL, PRICE, Gateway, Provider, provider_with, wait_for
from tests.server.test_batches import begun, client_of, line, lines_of, over
from tests.server.test_message_batches import asked
from tests.server.test_message_batches import client_of as anthropic_of

pytestmark = pytest.mark.filterwarnings("default")
KEY = "OPENAI_API_KEY"


@dataclass
class Keys:
    """Processes on one store; its provider is not known to be on this machine, so it needs a key."""

    folder: Path
    url: str
    store: str
    patch: pytest.MonkeyPatch
    running: list[Any] = field(default_factory=list)

    def _with(self, key: bool) -> None:
        self.patch.delenv(KEY, raising=False)
        if key:
            self.patch.setenv(KEY, "sk-test")

    @property
    def _to(self) -> tuple[str, ...]:
        return ("--base-url", self.url, "--price", PRICE)

    def gateway(self, *, key: bool, store: str = "") -> Gateway:
        self._with(key)
        made = Gateway(self.folder, (*self._to, "--budget", "$1"), store=store or self.store)
        self.running.append(made)
        return made.start()

    def worker(self) -> subprocess.Popen[str]:
        self._with(True)
        words = [sys.executable, "-m", "scheduler", "worker", "--store", self.store, *self._to]
        made = warm.Popen(
            [*words, "--progress", "none"], cwd=self.folder, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.running.append(made)
        self._with(False)
        return made

    def end(self) -> None:
        for each in self.running:
            process = each.process if isinstance(each, Gateway) else each
            if process is not None and process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture(scope="module")
def provider():
    with provider_with() as made:
        yield made


@pytest.fixture
def keys(tmp_path, provider: Provider, monkeypatch):
    made = Keys(tmp_path, provider.url.replace("127.0.0.1", "0.0.0.0"), "s.db", monkeypatch)
    yield made
    made.end()


def waits(client, batch):
    """What is said of a batch that nobody at work can send."""
    now = client.batches.retrieve(batch.id)
    return now if now.scheduler.get("unserved") else None


def check_waits_then_a_worker_sends_it(keys):
    made = keys.gateway(key=False)
    with client_of(made) as client:
        batch = begun(client, *[line(f"k{n}") for n in range(5)])
        now = wait_for(lambda: waits(client, batch), "the reason")

        assert (now.status, now.request_counts.total) == ("in_progress", 5)
        (told,) = now.scheduler["unserved"]
        assert (told["provider"], told["requests"], told["lacks"]) == ("openai", 5, KEY)
        assert now.scheduler["reason"] == "unserved"
        assert f"{KEY} is not set where this gateway runs" in now.scheduler["message"]
        assert made.states()["running"] == made.states()["failed"] == 0

        keys.worker()
        done = over(client, batch)

        assert (done.status, done.request_counts.completed) == ("completed", 5)
        assert done.error_file_id is None
        results = lines_of(client, done.output_file_id)
        assert sorted(each["custom_id"] for each in results) == [f"k{n}" for n in range(5)]
        assert all(each["response"]["status_code"] == 200 for each in results)
        assert done.scheduler == {"cost_usd": "0.05"}
    assert float(made.settled()["posted_usd"]) == 0.05
    assert json.loads(made.cli("audit", "--json"))["discrepancies"] == []


def check_goes_on_when_started_again_with_the_key(keys):
    made = keys.gateway(key=False)
    with client_of(made) as client:
        batch = begun(client, line("a"), line("b"))
        wait_for(lambda: waits(client, batch), "the reason")
    made.end()
    again = keys.gateway(key=True)
    with client_of(again) as client:
        done = over(client, batch)
        assert (done.status, done.request_counts.completed) == ("completed", 2)
        assert len(lines_of(client, done.output_file_id)) == 2


def test_a_worker_with_the_key_sends_the_batch_of_a_gateway_without(keys):
    check_waits_then_a_worker_sends_it(keys)


def test_alone_it_keeps_it_waiting_and_goes_on_with_the_key(keys):
    check_goes_on_when_started_again_with_the_key(keys)


def test_status_says_so_too_and_the_other_way_of_batches(keys):
    made = keys.gateway(key=False)
    with anthropic_of(made) as client:
        batch = client.messages.batches.create(requests=[asked("a", model=MODEL)])
        now = wait_for(
            lambda: (now := client.messages.batches.retrieve(batch.id)).scheduler.get("unserved")
            and now, "the reason",
        )  # fmt: skip
        assert now.scheduler["unserved"][0]["lacks"] == KEY
        (told,) = json.loads(made.cli("status", "--json"))["unserved"]
        assert (told["provider"], told["requests"]) == ("openai", 1)
        assert json.loads(made.cli("status", "--json"))["workers"] == []

        client.messages.batches.cancel(batch.id)
        over = wait_for(
            lambda: (now := client.messages.batches.retrieve(batch.id)).ended_at and now, "its end"
        )
        assert (over.request_counts.canceled, over.request_counts.errored) == (1, 0)


def test_where_nobody_else_can_come_it_is_refused(keys):
    made = keys.gateway(key=False, store="memory://")
    with client_of(made) as client:
        done = over(client, begun(client, line("a")))

        assert done.status == "failed"
        assert f"{KEY}: is not set" in done.errors.data[0].message


def test_a_call_that_somebody_waits_for_is_refused_at_once(keys):
    made = keys.gateway(key=False)
    with client_of(made) as client, pytest.raises(openai.AuthenticationError, match=KEY):
        client.chat.completions.create(
            model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "hi"}]
        )
    assert float(made.settled()["posted_usd"]) == 0
