"""What a gateway serves besides calls: the page, and what Prometheus is told."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.server.conftest import MODEL, Gateway

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def gateway(tmp_path):
    made = Gateway(
        tmp_path, ("--base-url", "sim:", "--budget", "$1", "--metrics", "--allow-changes")
    )
    yield made.start()
    made.kill()


def test_the_page_is_shown_to_whoever_has_the_link_and_to_no_token(gateway):
    page = f"{gateway.root}/dashboard/"
    assert httpx.get(page).status_code == 403
    assert httpx.get(page, headers={"authorization": f"Bearer {gateway.token}"}).status_code == 403

    assert gateway.ask().status == 200
    with httpx.Client() as browser:
        answer = browser.get(gateway.page)
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/")
        told = browser.get(f"{page}api/picture").json()
        (budget,) = told["budgets"]
        assert told["counts"]["succeeded"] == 1
        assert budget["caps"][0]["posted"] > 0
        # The cookie of the page is nothing to the gateway.
        body = {"model": MODEL, "messages": []}
        assert browser.post(f"{gateway.url}/chat/completions", json=body).status_code == 401
        own = {"origin": gateway.root}
        changed = browser.post(
            f"{page}api/budgets/{budget['id']}", json={"limit": "$2"}, headers=own
        )
        assert changed.json() == {"limit": "$2"}
        assert (
            browser.post(f"{page}api/budgets/{budget['id']}", json={"limit": "$3"}).status_code
            == 403
        )
    assert gateway.budget()["limit_usd"] == "2.00"


def test_prometheus_is_told_if_it_has_a_token(gateway):
    metrics = f"{gateway.root}/metrics"
    for headers in ({}, {"authorization": "Bearer guess"}, {"authorization": gateway.token}):
        assert httpx.get(metrics, headers=headers).status_code == 401
    assert gateway.ask().status == 200

    answer = httpx.get(metrics, headers={"authorization": f"Bearer {gateway.token}"})

    assert answer.headers["content-type"].startswith("text/plain")
    assert "scheduler_budget_limit_usd" in answer.text
    assert 'outcome="succeeded"' in answer.text


def test_but_not_who_may_see_its_own_budget_only(gateway):
    bound = json.loads(gateway.cli("token", "create", "ann", "--budget", "default", "--json"))
    free = json.loads(gateway.cli("token", "create", "prometheus", "--json"))

    def status(token):
        headers = {"authorization": f"Bearer {token['token']}"}
        return httpx.get(f"{gateway.root}/metrics", headers=headers).status_code

    assert (status(bound), status(free)) == (403, 200)


def test_what_models_there_are_and_what_is_known_of_one(gateway):
    headers = {"authorization": f"Bearer {gateway.token}"}
    listed = httpx.get(f"{gateway.url}/models", headers=headers).json()["data"]
    one = httpx.get(f"{gateway.url}/models/{MODEL}", headers=headers)

    assert one.json() in listed
    assert len(listed) > 1
    assert httpx.head(f"{gateway.url}/models", headers=headers).status_code == 200
    missing = httpx.get(f"{gateway.url}/models/nobody-knows", headers=headers)
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
