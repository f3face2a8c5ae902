"""Responses in the background, by OpenAI's own SDK."""

import openai
import pytest

from tests.server.conftest import MODEL, provider_with, wait_for

pytestmark = pytest.mark.filterwarnings("default")
ASKED = {"model": MODEL, "input": "hi", "max_output_tokens": 100, "background": True}


def client_of(gateway, token=None):
    return openai.OpenAI(base_url=gateway.url, api_key=token or gateway.token, max_retries=0)


def over(client, response):
    return wait_for(
        lambda: (now := client.responses.retrieve(response.id)).status
        not in ("queued", "in_progress") and now, "its end",
    )  # fmt: skip


def test_it_is_asked_for_by_its_id(start, provider):
    made = start(provider)
    with client_of(made) as client:
        begun = client.responses.create(**ASKED, metadata={"for": "test"}, instructions="be brief")
        assert (begun.status, begun.output, begun.model) == ("queued", [], MODEL)
        assert begun.metadata == {"for": "test"}
        done = over(client, begun)

        assert done.status == "completed"
        assert done.id == begun.id
        assert len(done.output_text.split()) == 10
        assert done.usage.output_tokens == 10
        assert done.scheduler["cost_usd"] == "0.01"
        assert client.responses.retrieve(begun.id).output_text == done.output_text
        assert client.responses.delete(begun.id) is None
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(begun.id)
    assert float(made.budget()["posted_usd"]) == 0.01


def test_it_is_parked_and_goes_on_after_the_gateway_was_killed_and_the_limit_raised(
    start, provider
):
    made = start(provider, budget="$0.05")
    with client_of(made) as client:
        begun = client.responses.create(**ASKED)
        wait_for(lambda: made.states()["parked"] == 1, "it to be parked")
        now = client.responses.retrieve(begun.id)
        assert (now.status, now.scheduler["budget"]) == ("queued", "default")
    made.kill()
    made.start()
    made.cli("budget", "set", "default", "$1")
    with client_of(made) as client:
        assert over(client, begun).status == "completed"
    assert float(made.budget()["posted_usd"]) == 0.01


def test_what_waits_can_be_cancelled_and_what_runs_comes_to_its_end(start, held):
    made = start(held, budget="$0.11")
    with client_of(made) as client:
        runs, waits = client.responses.create(**ASKED), client.responses.create(**ASKED)
        wait_for(lambda: made.states()["running"] == 1, "one to run")
        assert client.responses.cancel(waits.id).status == "cancelled"
        assert client.responses.retrieve(waits.id).error is None
        assert client.responses.cancel(runs.id).status == "in_progress"
        held.go_on()
        assert over(client, runs).status == "completed"
    assert float(made.budget()["posted_usd"]) == 0.01


def test_one_who_asks_again_after_a_lost_answer_gets_the_same_one(start, provider):
    made = start(provider)
    again = {"x-stainless-retry-count": "1"}
    with client_of(made) as client:
        begun = client.responses.create(**ASKED)
        assert client.responses.create(**ASKED, extra_headers=again).id == begun.id
        over(client, begun)
        assert client.responses.create(**ASKED, extra_headers=again).status == "completed"
        others = [client.responses.create(**ASKED),
                  client.responses.create(**{**ASKED, "input": "oh"}, extra_headers=again)]  # fmt: skip
        assert len({each.id for each in (begun, *others)}) == 3
        for each in others:
            over(client, each)
    assert float(made.budget()["posted_usd"]) == 0.03


def test_a_failure_says_why(start, provider):
    with provider_with("--fail", "500=1") as bad:
        made = start(bad, "--max-attempts", "1")
        with client_of(made) as client:
            done = over(client, client.responses.create(**ASKED))
            assert done.status == "failed"
            assert done.error.message


def test_another_can_go_on_from_it(start, provider):
    made = start(provider)
    bob = made.cli("token", "create", "bob").strip().splitlines()[-1]
    with client_of(made) as client:
        first = client.responses.create(**ASKED)
        done = over(client, first)
        theirs = done.scheduler["provider_response_id"]
        assert theirs != first.id
        for more in ({}, {"background": False}):
            then = client.responses.create(**{**ASKED, **more}, previous_response_id=first.id)
            then = over(client, then) if then.status == "queued" else then
            assert then.status == "completed"
        with client_of(made, bob) as his, pytest.raises(openai.NotFoundError):
            his.responses.create(**{**ASKED, "background": False}, previous_response_id=first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.create(**ASKED, previous_response_id="resp_bg_0")


def test_what_is_not_done_here_is_refused(start, provider):
    made = start(provider)
    with client_of(made) as client:
        with pytest.raises(openai.BadRequestError, match="not streamed"):
            client.responses.create(**ASKED, stream=True)
        with pytest.raises(openai.APIStatusError, match="nobody-knows-me"):
            client.responses.create(**{**ASKED, "model": "nobody-knows-me"})
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("resp_0")
        with pytest.raises(openai.NotFoundError):
            client.responses.cancel("resp_bg_0")
    assert sum(made.states().values()) == 0


def check_revoked_tokens_responses(made):
    """Those of a token that is revoked go on, unless they are to end."""
    ann = made.cli("token", "create", "ann").strip().splitlines()[-1]
    bob = made.cli("token", "create", "bob").strip().splitlines()[-1]
    with client_of(made, ann) as hers, client_of(made, bob) as his:
        begun = [hers.responses.create(**ASKED) for _ in range(2)]
        other = his.responses.create(**ASKED)
        wait_for(lambda: made.states()["parked"] == 3, "all to be parked")
    words = ("token", "revoke", "ann")
    told = made.cli(*words, told=True)
    assert "2 responses in the background of it not ended" in told
    assert "--cancel-batches" in told
    assert made.states()["parked"] == 3

    told = made.cli(*words, "--cancel-batches", told=True)

    assert "cancelled 2 responses in the background; nothing was sent" in told
    assert (made.states()["parked"], made.states()["cancelled"]) == (1, 2)
    again = made.cli("token", "create", "ann").strip().splitlines()[-1]
    with client_of(made, again) as hers, client_of(made, bob) as his:
        assert {hers.responses.retrieve(each.id).status for each in begun} == {"cancelled"}
        made.cli("budget", "set", "default", "$1")
        assert over(his, other).status == "completed"
    assert float(made.settled()["posted_usd"]) == 0.01
    assert "in the background" not in made.cli(*words, "--cancel-batches", told=True)


def test_a_revoked_tokens_responses_go_on_unless_they_are_to_end(start, provider):
    check_revoked_tokens_responses(start(provider, budget="$0.05"))


def test_of_a_revoked_token_what_runs_is_left_to_finish(start):
    with provider_with(
        "--latency", "300s"
    ) as still:  # so that it runs, however busy the machine is
        made = start(still)
        ann = made.cli("token", "create", "ann").strip().splitlines()[-1]
        with client_of(made, ann) as hers:
            begun = hers.responses.create(**ASKED)
            wait_for(lambda: made.states()["running"] == 1, "it to run")
        told = made.cli("token", "revoke", "ann", "--cancel-batches", told=True)
        assert "1 response in the background under way: it is let finish, and paid" in told
        again = made.cli("token", "create", "ann").strip().splitlines()[-1]
        with client_of(made, again) as hers:
            assert hers.responses.retrieve(begun.id).status == "in_progress"
