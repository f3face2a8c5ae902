"""The vendors' own Node clients before a gateway with a small budget: nothing of theirs is changed."""

import time

import pytest

from tests.server.conftest import CEILING_USD, MODEL
from tests.server.test_holding import parked

pytestmark = pytest.mark.filterwarnings("default")

PATIENT = {"X-Scheduler-Wait": "forever"}
BOTH = pytest.mark.parametrize("sdk", ["openai", "anthropic"])


def words(text):
    return len(text.split())


@BOTH
def test_an_answer_says_what_it_cost(start, provider, ask, sdk):
    made = start(provider)
    answer = ask(made, sdk, "plain").outcome()

    assert words(answer["text"]) == 10
    assert float(answer["headers"]["x-scheduler-cost-usd"]) == 0.01
    assert float(answer["headers"]["x-scheduler-estimate-usd"]) == CEILING_USD
    assert float(answer["headers"]["x-scheduler-budget-remaining-usd"]) == 0.99


@BOTH
@pytest.mark.parametrize("way", ["stream", "helper"])
def test_streams_and_their_helpers(start, provider, ask, sdk, way):
    made = start(provider)
    answer = ask(made, sdk, way).outcome()

    assert words(answer["text"]) == 10
    assert answer.get("pieces", 10) > 5
    assert float(made.budget()["posted_usd"]) == 0.01


def test_openais_responses_and_models(start, provider, ask):
    made = start(provider)
    answer = ask(made, "openai", "responses").outcome()

    assert [words(answer["text"]), words(answer["streamed"])] == [10, 10]
    assert MODEL in ask(made, "openai", "models").outcome()["names"]
    assert float(made.budget()["posted_usd"]) == 0.02


@BOTH
def test_batches(start, provider, ask, sdk):
    made = start(provider)
    answer = ask(made, sdk, "batch").outcome()

    assert answer["keys"] == ["a", "b"]
    assert answer["counts"]["completed" if sdk == "openai" else "succeeded"] == 2
    assert answer["isListed"]
    assert float(made.budget()["posted_usd"]) == 0.02


def test_responses_in_the_background(start, provider, ask):
    made = start(provider)
    assert words(ask(made, "openai", "background").outcome()["text"]) == 10
    assert float(made.budget()["posted_usd"]) == 0.01


@BOTH
@pytest.mark.parametrize("way", ["plain", "stream", "helper"])
def test_one_that_is_parked_waits_for_longer_than_its_timeout(start, provider, ask, sdk, way):
    made = start(provider, budget="$0.05")
    made.cli("budget", "set", "default", "$0.05/day")
    asking = ask(made, sdk, way, headers=PATIENT, timeout_ms=1_000)
    parked(made)
    time.sleep(1.6)  # longer than it would wait for a word
    assert asking.process.poll() is None
    made.cli("budget", "set", "default", "$10")

    assert words(asking.outcome()["text"]) == 10
    assert float(made.budget()["posted_usd"]) == 0.01


@pytest.mark.parametrize(
    "more", [
        {"sdk": "openai", "timeout_ms": 700}, {"sdk": "anthropic", "client_timeout_ms": 700},
        # OpenAI's does not tell what is set for the whole client, so that has to be said.
        {"sdk": "openai", "client_timeout_ms": 1_000,
         "headers": {**PATIENT, "X-Scheduler-Client-Timeout": "1"}},
    ],
)  # fmt: skip
def test_a_timeout_is_known_where_it_is_told(start, provider, ask, more):
    made = start(provider, budget="$0.05")
    asking = ask(made, way="plain", **{"headers": PATIENT, **more})
    parked(made)
    time.sleep(1.2)
    made.cli("budget", "set", "default", "$10")

    assert words(asking.outcome()["text"]) == 10


@BOTH
def test_what_is_refused_is_their_own_error_with_the_numbers(start, provider, ask, sdk):
    made = start(provider, "--max-hold", "1m", budget="$0.15/day @UTC")
    assert made.ask().status == 200
    made.cli("budget", "set", "default", "$0.105/day")  # enough for one, when the day is over
    received = provider.billed()["received"]
    error = ask(made, sdk, "plain", retries=2).outcome()["error"]

    assert error["kind"] == "RateLimitError"
    assert error["status"] == 429
    assert 0 < int(error["headers"]["retry-after"]) <= 86_400
    body = error["body"] if sdk == "openai" else error["body"]["error"]
    assert body["budget"] == "default"
    assert float(body["needed_usd"]) == 0.1
    assert float(body["remaining_usd"]) == pytest.approx(0.095)
    assert body["resets_at"].endswith("+00:00")
    assert body["code"] == "budget_exceeded"
    assert made.states()["cancelled"] == 1  # it did not try again
    assert provider.billed()["received"] == received


@BOTH
def test_nothing_is_taken_for_an_answer_that_is_an_error_after_the_first_word(
    start, provider, ask, sdk
):
    made = start(provider, budget="$0.05")
    before = provider.billed()["received"]
    ways = [
        ask(made, sdk, way, headers=PATIENT, timeout_ms=1_000, retries=2)
        for way in ("plain", "helper")
    ]
    parked(made, 2)
    time.sleep(1.0)
    made.process.terminate()
    plain, streamed = (each.outcome() for each in ways)

    assert plain["error"]["message"] == "terminated"  # it does not ask again, as others do
    assert "stopping" in streamed["error"]["message"]
    assert provider.billed()["received"] == before
