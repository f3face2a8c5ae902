"""Batches of several gateways and workers on one database: each line ends once, whoever is asked, or dies."""

import subprocess
import sys
import threading
from functools import partial

import pytest

from tests import warm
from tests.postgres.database import Database
from tests.processes.harness import server
from tests.server.conftest import PRICE, Start, wait_for
from tests.server.test_background import check_revoked_tokens_responses
from tests.server.test_batches import begun, client_of, line, over
from tests.server.test_batches_between import BRISK, MANY, all_once, queued_of

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(180)]

ANSWERS = ("--output-tokens", "10", "--output-sigma", "0", "--price", PRICE)


@pytest.fixture
def provider():
    with server(*ANSWERS) as made:
        yield made


@pytest.fixture
def start(tmp_path, url, provider):
    made = Start(tmp_path, url, ("-c", BRISK))
    yield partial(made, provider)
    made.end()


def check(url, provider):
    base = Database(url)
    assert base.audit().discrepancies == ()
    assert provider.billed_nusd() <= sum(base.balance("default"))


def test_both_see_it_end_and_both_may_sum_it_up(start, url, provider):
    both = [start(budget="$100"), start(budget="$100")]
    with client_of(both[0]) as here, client_of(both[1]) as there:
        batches = [begun(here, *[line(f"k{n}") for n in range(40)]) for _ in range(4)]
        clients = [here, there]

        def ask(client):
            for each in batches:
                over(client, each)

        threads = [threading.Thread(target=ask, args=(each,)) for each in clients]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        for client in clients:
            for each in batches:
                done = client.batches.retrieve(each.id)
                assert (done.status, len(all_once(client, done, 40))) == ("completed", 40)
    assert provider.bill()["calls"] == 160
    check(url, provider)


def test_one_that_dies_while_it_reads_is_replaced_and_cancelled_at_the_other(start, url, provider):
    one, other = start(budget="$0.05"), start(budget="$0.05")
    with client_of(one) as here, client_of(other) as there:
        batch = begun(here, *[line(f"k{n}") for n in range(MANY)])
        wait_for(lambda: queued_of(one), "some of its lines")
        one.kill()
        before = queued_of(other)
        wait_for(lambda: queued_of(other) > before, "the other to go on", 60)
        there.batches.cancel(batch.id)
        all_once(there, over(there, batch), MANY)
    check(url, provider)


def test_cancelled_at_the_other_while_its_lines_are_read(start, url, provider):
    one, other = start(budget="$0.05"), start(budget="$0.05")
    with client_of(one) as here, client_of(other) as there:
        batch = begun(here, *[line(f"k{n}") for n in range(MANY)])
        wait_for(lambda: queued_of(one), "some of its lines")
        there.batches.cancel(batch.id)
        done = over(there, batch)
        assert queued_of(one) < MANY, "it was read to its end before: this says nothing"
        assert all_once(here, done, MANY) == []
    check(url, provider)


def test_a_worker_sends_what_the_gateway_would_not_and_its_end_is_noticed(start, url, provider):
    made = start("--concurrency", "1", budget="$100")
    worker = warm.Popen(
        [sys.executable, "-m", "scheduler", "worker", "--store", url, "--base-url", provider.url,
         "--price", PRICE, "--concurrency", "4"],
        cwd=made.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with client_of(made) as client:
            batch = begun(client, *[line(f"k{n}") for n in range(200)])
            wait_for(lambda: made.states()["succeeded"] == 200, "all of it")
            base = Database(url)
            ended = "SELECT is_open FROM papers WHERE kind = 'batch'"
            wait_for(lambda: base(ended) == [(0,)], "its end to be noticed, though nobody asks")
            assert len(all_once(client, over(client, batch), 200)) == 200
            by = base("SELECT worker_id, count(*) FROM reservations GROUP BY worker_id")
            assert len(by) == 2, "one of them sent nothing"
    finally:
        worker.kill()
        worker.wait()
    check(url, provider)


def test_a_revoked_tokens_responses_go_on_unless_they_are_to_end(start):
    check_revoked_tokens_responses(start(budget="$0.05"))
