"""Anthropic's message batches by its own SDK, on any provider that has the endpoint."""

import anthropic
import pytest

from tests.server.conftest import MODEL, rests, wait_for

pytestmark = pytest.mark.filterwarnings("default")


def asked(key, **params):
    turns = [{"role": "user", "content": "hi"}]
    return {
        "custom_id": key,
        "params": {"model": MODEL, "max_tokens": 100, "messages": turns, **params},
    }


def client_of(gateway, token=None):
    return anthropic.Anthropic(base_url=gateway.root, api_key=token or gateway.token, max_retries=0)


def over(client, batch):
    return wait_for(
        lambda: (now := client.messages.batches.retrieve(batch.id)).processing_status == "ended"
        and now, "its end",
    )  # fmt: skip


def test_a_batch_is_answered_by_the_sdk(start, provider):
    made = start(provider)
    with client_of(made) as client:
        batch = client.messages.batches.create(requests=[asked(f"k{n}") for n in range(4)])
        assert batch.processing_status == "in_progress"
        assert batch.request_counts.processing == 4
        done = over(client, batch)

        assert (done.request_counts.succeeded, done.request_counts.processing) == (4, 0)
        assert done.expires_at.year == 9999
        assert done.created_at <= done.ended_at
        results = list(client.messages.batches.results(batch.id))
        assert sorted(each.custom_id for each in results) == ["k0", "k1", "k2", "k3"]
        for each in results:
            assert each.result.type == "succeeded"
            assert each.result.message.usage.output_tokens == 10
    assert float(made.budget()["posted_usd"]) == 0.04


def test_a_request_that_cannot_be_sent_is_an_error_of_its_own(start, provider):
    made = start(provider)
    requests = [
        asked("fine"),
        asked("unknown", model="nobody-knows-me"),
        asked("flows", stream=True),
    ]
    with client_of(made) as client:
        done = over(client, client.messages.batches.create(requests=requests))

        assert (done.request_counts.succeeded, done.request_counts.errored) == (1, 2)
        results = {each.custom_id: each.result for each in client.messages.batches.results(done.id)}
        assert results["fine"].type == "succeeded"
        for key, words in (("unknown", "nobody-knows-me"), ("flows", "stream")):
            assert results[key].type == "errored"
            assert words in results[key].error.error.message


def test_what_does_not_fit_is_parked_raised_and_cancelled(start, provider):
    made = start(provider, budget="$0.11")
    with client_of(made) as client:
        batch = client.messages.batches.create(requests=[asked(f"k{n}") for n in range(6)])
        wait_for(lambda: rests(made) == 4, "it to be parked")
        now = client.messages.batches.retrieve(batch.id)
        assert (now.request_counts.succeeded, now.request_counts.processing) == (2, 4)
        assert now.scheduler["budget"] == "default"
        made.cli("budget", "set", "default", "$0.12")
        wait_for(lambda: made.states()["parked"] == 3, "one more")
        assert client.messages.batches.cancel(batch.id).processing_status in ("canceling", "ended")
        done = over(client, batch)
        assert done.cancel_initiated_at is not None
        assert (done.request_counts.succeeded, done.request_counts.canceled) == (3, 3)
        kinds = [each.result.type for each in client.messages.batches.results(batch.id)]
        assert sorted(kinds) == ["canceled"] * 3 + ["succeeded"] * 3


def test_batches_are_listed_both_ways_and_removed(start, provider):
    made = start(provider)
    bob = made.cli("token", "create", "bob").strip().splitlines()[-1]
    with client_of(made) as client:
        ids = [client.messages.batches.create(requests=[asked("a")]).id for _ in range(3)]
        newest = ids[::-1]
        assert [each.id for each in client.messages.batches.list(limit=2)] == newest  # paged
        before = client.messages.batches.list(before_id=ids[0], limit=1)
        assert ([each.id for each in before.data], before.has_more) == ([ids[1]], True)
        with client_of(made, bob) as his:
            assert list(his.messages.batches.list()) == []
            with pytest.raises(anthropic.NotFoundError):
                his.messages.batches.results(ids[0])
        over(client, client.messages.batches.retrieve(ids[0]))
        assert client.messages.batches.delete(ids[0]).type == "message_batch_deleted"
        with pytest.raises(anthropic.NotFoundError):
            client.messages.batches.retrieve(ids[0])


@pytest.mark.parametrize(
    "requests",
    [[], "x", [{}], [asked("a b")], [asked("a"), asked("a")], [{"custom_id": "a", "params": []}]],
)
def test_a_body_that_makes_no_sense_is_refused_whole(start, provider, requests):
    made = start(provider)
    answer = made.ask({"requests": requests}, "/v1/messages/batches")
    assert answer.status == 400
    assert answer.json()["type"] == "error"
    assert answer.error["type"] == "invalid_request_error"
    assert sum(made.states().values()) == 0


def test_a_beta_that_would_be_lost_is_refused(start, provider):
    made = start(provider)
    with client_of(made) as client:
        made_batch = client.beta.messages.batches.create(requests=[asked("a")])
        assert over(client, made_batch).request_counts.succeeded == 1
        with pytest.raises(anthropic.BadRequestError, match="is not kept with a batch"):
            client.beta.messages.batches.create(
                requests=[asked("a")], betas=["context-1m-2025-08-07"]
            )


def test_one_that_has_not_ended_has_no_results_and_stays(start, provider):
    made = start(provider, budget="$0.01")
    with client_of(made) as client:
        waits = client.messages.batches.create(requests=[asked("a")])
        assert waits.results_url is None
        with pytest.raises(anthropic.BadRequestError, match="has not ended"):
            client.messages.batches.delete(waits.id)
    answer = made.ask(None, f"/v1/messages/batches/{waits.id}/results")
    assert (answer.status, answer.json()["type"]) == (400, "error")
    wait_for(lambda: made.states()["parked"] == 1, "it to be parked")
