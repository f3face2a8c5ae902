"""A gateway killed again and again, at any moment: each line ends once, and no money is lost."""

import contextlib
import random
import time

import anthropic
import openai
import pytest

from tests.server.conftest import provider_with, wait_for
from tests.server.test_batches import OVER, begun_with, client_of, jsonl, line, lines_of, uploaded
from tests.server.test_message_batches import asked
from tests.server.test_message_batches import client_of as anthropic_of

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(120)]

LIMIT_USD, ROUNDS, LINES = 50.0, 6, 250
GONE = (openai.APIConnectionError, anthropic.APIConnectionError)


def done_until(made, dice, at_s):
    """What a client does until then, or until the gateway has gone."""
    with contextlib.suppress(*GONE), client_of(made) as client, anthropic_of(made) as other:
        names = [f"k{n}" for n in range(dice.randrange(1, LINES))]
        if dice.random() < 0.6:
            file = uploaded(client, jsonl(*[line(each) for each in names]))
            begun_with(client, file.id)
        else:
            other.messages.batches.create(requests=[asked(each) for each in names])
        while time.monotonic() < at_s:
            time.sleep(dice.uniform(0, 0.05))
            if dice.random() < 0.15:
                for each in client.batches.list(limit=1).data:
                    client.batches.cancel(each.id)
                for each in other.messages.batches.list(limit=1).data:
                    other.messages.batches.cancel(each.id)


def keys_told(client, other):
    """By batch: how many requests it says that it had, and the ids in its results."""
    for each in client.batches.list(limit=100).data:
        counts = each.request_counts
        assert counts.completed + counts.failed == counts.total
        files = filter(None, (each.output_file_id, each.error_file_id))
        yield counts.total, [told["custom_id"] for file in files for told in lines_of(client, file)]
    for each in other.messages.batches.list(limit=100).data:
        told = [one.custom_id for one in other.messages.batches.results(each.id)]
        counts = each.request_counts.model_dump()
        assert counts["processing"] == 0
        yield sum(counts.values()), told


@pytest.mark.parametrize("seed", [1])
def test_whenever_it_is_killed_each_line_ends_once(start, seed):
    dice = random.Random(seed)
    with provider_with("--latency", "50ms") as provider:
        made = start(provider, "--concurrency", "8", budget=f"${LIMIT_USD:g}")
        for _ in range(ROUNDS):
            at_s = time.monotonic() + dice.uniform(0.02, 0.8)
            with contextlib.ExitStack() as after:
                killer = threading_timer(at_s, made.process.kill)
                after.callback(killer.join)
                done_until(made, dice, at_s)
            made.kill()
            made.start()
        with client_of(made) as client, anthropic_of(made) as other:

            def are_over():
                ended = [each.status in OVER for each in client.batches.list(limit=100).data]
                batches = other.messages.batches.list(limit=100).data
                return all(ended) and all(each.processing_status == "ended" for each in batches)

            wait_for(are_over, "all of them to end", 40)
            found = list(keys_told(client, other))
        assert found
        for total, keys in found:
            assert sorted(keys) == sorted(f"k{n}" for n in range(total))
        found = made.budget()
        counted_nusd = (float(found["posted_usd"]) + float(found["reserved_usd"])) * 1e9
        assert provider.billed()["billed_nusd"] <= counted_nusd + 0.5 <= LIMIT_USD * 1e9
        made.cli("audit")
        ended = ("succeeded", "failed", "cancelled", "expired")
        wait_for(
            lambda: (found := made.states())["total"] == sum(found[each] for each in ended),
            "nothing to wait or run any more",
        )


def threading_timer(at_s, act):
    import threading

    timer = threading.Timer(max(0, at_s - time.monotonic()), act)
    timer.start()
    return timer
