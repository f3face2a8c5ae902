"""Batches of several gateways on one store: whoever is asked, each line ends once."""

import asyncio
import time

import pytest

from scheduler import Budget, Scheduler
from scheduler.providers.simulated.provider import Simulated
from scheduler.server.batches import keeper as keeping
from scheduler.server.batches import record
from scheduler.server.batches.reader import Reader
from scheduler.server.batches.shelf import Shelf, new_file
from tests.server.conftest import PRICE, Start, wait_for
from tests.server.test_batches import begun, client_of, jsonl, line, lines_of, over
from tests.server.test_message_batches import asked
from tests.server.test_message_batches import client_of as anthropic_of
from tests.server.test_message_batches import over as message_over

pytestmark = pytest.mark.filterwarnings("default")

MANY = 3_000
# The command that looks more often, and takes a few seconds to read so many lines, on any machine.
BRISK = """
import asyncio, sys
from scheduler.cli.app import main
from scheduler.server.batches import keeper, reader

async def slowly(*asked, queue=reader.Reader._queue):
    await asyncio.sleep(0.15)
    return await queue(*asked)

keeper.LOOK_S, reader.Reader._queue, sys.argv[0] = 0.3, slowly, "scheduler"
main()
"""


@pytest.fixture
def slow_reader(tmp_path):
    """Begins gateways of that."""
    made = Start(tmp_path, program=("-c", BRISK))
    yield made
    made.end()


@pytest.fixture
def two(slow_reader):
    """Two of them on one store."""
    return lambda *asked, **more: (slow_reader(*asked, **more), slow_reader(*asked, **more))


def queued_of(gateway):
    """How many requests there are, in whatever state."""
    return gateway.states()["total"]


def keys_of(client, batch):
    """All that its files tell, by whether it was answered."""
    files = (batch.output_file_id, batch.error_file_id)
    return [
        [each["custom_id"] for each in lines_of(client, file)] if file else [] for file in files
    ]


def all_once(client, batch, count):
    answered, others = keys_of(client, batch)
    assert sorted(answered + others) == sorted(f"k{n}" for n in range(count))
    counts = batch.request_counts
    assert (counts.completed, counts.failed, counts.total) == (len(answered), len(others), count)
    return answered


def test_any_of_them_may_be_asked(two, provider):
    one, other = two(provider)
    with client_of(one) as here, client_of(other) as there:
        batch = begun(here, *[line(f"k{n}") for n in range(5)])
        done = over(there, batch)
        assert done.status == "completed"
        all_once(there, done, 5)
        assert [each.id for each in there.batches.list()] == [batch.id]
        assert there.files.content(batch.input_file_id).content
    assert float(one.budget()["posted_usd"]) == 0.05


def test_cancelled_at_another_one_while_its_lines_are_read(two, provider):
    one, other = two(provider, budget="$0.05")
    with client_of(one) as here, client_of(other) as there:
        batch = begun(here, *[line(f"k{n}") for n in range(MANY)])
        wait_for(lambda: queued_of(one), "some of its lines")
        there.batches.cancel(batch.id)
        done = over(there, batch)
        queued = queued_of(one)
        assert queued < MANY, "it was read to its end before: this says nothing"
        assert done.status == "cancelled"
        assert all_once(here, done, MANY) == []
        time.sleep(1.0)
        states = one.states()
        assert states["cancelled"] == states["total"] == queued  # and nothing came later
    assert one.budget()["posted_usd"] in ("0", "0.00")


def test_one_that_dies_while_it_reads_is_replaced(two, provider):
    one, other = two(provider, budget="$0.05")
    with client_of(one) as here, client_of(other) as there:
        batch = begun(here, *[line(f"k{n}") for n in range(MANY)])
        wait_for(lambda: one.states()["parked"], "some of its lines")
        one.kill()
        assert queued_of(other) < MANY, "it was read to its end before: this says nothing"
        wait_for(lambda: other.states()["parked"] == MANY, "all of its lines", 60)
        assert there.batches.cancel(batch.id).id == batch.id
        all_once(there, over(there, batch), MANY)


def test_what_was_queued_under_other_settings_is_not_refused_too(slow_reader, provider):
    made = slow_reader(provider, budget="$0.05")
    with client_of(made) as client:
        batch = begun(client, *[line(f"k{n}") for n in range(MANY)])
        wait_for(lambda: queued_of(made), "some of its lines")
    made.kill()
    before = queued_of(made)
    assert before < MANY, "it was read to its end before: this says nothing"
    made.options = tuple(each for each in made.options if each not in ("--price", PRICE))
    made.start()
    with client_of(made) as client:
        wait_for(lambda: client.batches.retrieve(batch.id).request_counts.failed, "the others", 60)
        client.batches.cancel(batch.id)
        done = over(client, batch)
        all_once(client, done, MANY)
        codes = [each["error"]["code"] for each in lines_of(client, done.error_file_id)]
        assert sorted(set(codes)) == ["batch_cancelled", "price_unknown"]
        assert codes.count("batch_cancelled") == before


def test_a_window_that_is_over_while_its_lines_are_read(slow_reader, provider):
    made = slow_reader(provider, budget="$0.05")
    with client_of(made) as client:
        batch = begun(client, *[line(f"k{n}") for n in range(MANY)], completion_window="1s")
        done = over(client, batch)
        assert (done.status, all_once(client, done, MANY)) == ("expired", [])
        codes = {each["error"]["code"] for each in lines_of(client, done.error_file_id)}
        assert codes == {"batch_expired"}


def test_a_revoked_tokens_batches_go_on_unless_they_are_to_end(two, provider):
    one, other = two(provider, budget="$0.11")
    ann = one.cli("token", "create", "ann").strip().splitlines()[-1]
    with client_of(one, ann) as hers:
        batch = begun(hers, *[line(f"k{n}") for n in range(4)])
        wait_for(lambda: one.states()["parked"] == 2, "half of it")
    words = ("token", "revoke", "ann")
    assert "1 batch of it not ended" in one.cli(*words, told=True)
    one.cli("budget", "set", "default", "$0.12")
    wait_for(lambda: one.states()["parked"] == 1, "one more")
    assert "cancelled 1 batch" in one.cli(*words, "--cancel-batches", told=True)
    wait_for(lambda: other.states()["cancelled"] == 1, "the rest to end")
    again = one.cli("token", "create", "ann").strip().splitlines()[-1]
    with client_of(one, again) as hers:
        done = over(hers, batch)
        assert (done.status, all_once(hers, done, 4)) == ("cancelled", ["k0", "k1", "k2"])


def test_message_batches_tell_of_what_was_never_queued_too(slow_reader, provider):
    made = slow_reader(provider, budget="$0.05")
    with anthropic_of(made) as client:
        batch = client.messages.batches.create(requests=[asked(f"k{n}") for n in range(MANY)])
        wait_for(lambda: queued_of(made), "some of its lines")
        client.messages.batches.cancel(batch.id)
        done = message_over(client, batch)
        assert queued_of(made) < MANY, "it was read to its end before"
        counts = done.request_counts
        assert (counts.processing, counts.canceled) == (0, MANY)
        kinds = {
            each.custom_id: each.result.type for each in client.messages.batches.results(done.id)
        }
        assert kinds == dict.fromkeys((f"k{n}" for n in range(MANY)), "canceled")


async def test_what_another_process_left_is_found_however_much_goes_on_here(monkeypatch):
    monkeypatch.setattr(keeping, "LOOK_S", 0.1)
    monkeypatch.setattr(keeping, "SETTLE_S", 0.001)
    provider = Simulated("sim")
    async with Scheduler(providers=[provider]) as s:
        shelf = Shelf(s.store)
        reader = Reader(s, shelf, lambda *asked: ("sim", ""), lambda name: provider)
        keeper = keeping.Keeper(s, shelf, reader, lambda answer: None)

        async def chatter():
            while True:
                keeper._hear("nothing")
                await asyncio.sleep(0.001)

        async with keeper.working():
            talking = asyncio.create_task(chatter())
            left = record.Batch("batch_0", "ann", False, "/v1/chat/completions", "file-0", "24h", 0)
            await record.keep(s.store, left)
            async with asyncio.timeout(60):
                while not (await record.find(s.store, "batch_0")).is_over:
                    await asyncio.sleep(0.01)
            talking.cancel()
        assert (await record.find(s.store, "batch_0")).errors[0]["code"] == "empty_file"


async def test_nothing_is_counted_while_a_batch_is_parked(monkeypatch):
    monkeypatch.setattr(keeping, "LOOK_S", 0.02)
    provider, looks, counted = Simulated("sim"), [], []
    budget = Budget("default", "$0.00000001")
    async with Scheduler(providers=[provider], budgets=[budget]) as s:
        shelf = Shelf(s.store)
        reader = Reader(s, shelf, lambda *asked: ("sim", ""), lambda name: provider)
        keeper = keeping.Keeper(s, shelf, reader, lambda answer: None)
        tidy, counts = shelf.tidy, s.store.counts

        async def tidied(*asked):
            looks.append(asked)
            await tidy(*asked)

        async def count(job=None):
            counted.append(job)
            return await counts(job)

        monkeypatch.setattr(shelf, "tidy", tidied)
        monkeypatch.setattr(s.store, "counts", count)

        async def pieces():
            yield jsonl(*[line(f"k{n}", model="sim-small") for n in range(5)])

        async with keeper.working(), asyncio.timeout(20):
            file = await shelf.take(new_file("ann", "a", "batch", 0), pieces())
            batch = record.Batch("batch_0", "ann", False, "/v1/chat/completions", file.id, "24h", 0)
            await record.keep(s.store, batch)
            while (await counts("batch_0")).parked < 5 or keeper._at_work:
                await asyncio.sleep(0.01)
            looks.clear(), counted.clear()
            while len(looks) < 10:
                await asyncio.sleep(0.01)
            assert counted == []
            await keeper.cancel("batch_0")  # and yet it is looked after
            while not (await record.find(s.store, "batch_0")).is_over:
                await asyncio.sleep(0.01)
