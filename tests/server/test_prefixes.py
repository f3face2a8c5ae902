"""A prefix and a route lead to a provider, and are no part of what the model is called there."""

import json
import urllib.request

import pytest

from tests.server.conftest import ASKED, MODEL, PRICE, Gateway, provider_with

pytestmark = pytest.mark.filterwarnings("default")
CONFIG = """
[provider.first]
kind = "openai"
base_url = "{first}"
[provider.second]
kind = "openai"
base_url = "{second}"
[route]
quick = "second:sim-small"
"claude-*" = "second:sim-small"
"""


@pytest.fixture(scope="module")
def two():
    with provider_with() as first, provider_with() as second:
        yield first, second


@pytest.fixture(scope="module")
def gateway(two, tmp_path_factory):
    first, second = two
    folder = tmp_path_factory.mktemp("prefixes")
    text = CONFIG.format(first=first.url, second=second.url)
    (folder / "scheduler.toml").write_text(text)
    made = Gateway(
        folder, ("--budget", "$100", "--price", PRICE, "--config", "scheduler.toml")
    ).start()
    yield made
    made.kill()


@pytest.mark.parametrize(
    ("model", "whose"),
    [(MODEL, 0), (f"first:{MODEL}", 0), (f"second:{MODEL}", 1), ("quick", 1), ("claude-x", 1)],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_it_is_asked_there_by_its_name(gateway, two, model, whose, path):
    before = [each.billed()["received"] for each in two]
    answer = gateway.ask({**ASKED, "model": model}, path)

    assert answer.status == 200, answer.content
    assert answer.json()["model"] == MODEL
    after = [each.billed()["received"] for each in two]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1 - whose, whose]


def test_and_so_it_is_in_batches_and_in_the_background(gateway):
    params = {**ASKED, "model": f"second:{MODEL}"}
    made = gateway.ask({"requests": [{"custom_id": "a", "params": params}]}, "/v1/messages/batches")
    while (said := got(gateway, f"/v1/messages/batches/{made.json()['id']}"))["ended_at"] is None:
        pass
    assert said["request_counts"]["succeeded"] == 1
    asked = {"model": "quick", "input": "hi", "background": True}
    begun = gateway.ask(asked, "/v1/responses").json()
    while (said := got(gateway, f"/v1/responses/{begun['id']}"))["status"] in (
        "queued", "in_progress"
    ):  # fmt: skip
        pass
    assert (said["status"], said["model"]) == ("completed", MODEL)


def got(gateway, path):
    asked = urllib.request.Request(
        gateway.root + path, headers={"authorization": f"Bearer {gateway.token}"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)
