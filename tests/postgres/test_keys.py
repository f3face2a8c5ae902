"""A gateway without a provider's key and a worker with it, on one database."""

from __future__ import annotations

import pytest

from tests.server.conftest import provider_with
from tests.server.test_keys import (
    Keys,
    check_goes_on_when_started_again_with_the_key,
    check_waits_then_a_worker_sends_it,
)

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def provider():
    with provider_with() as made:
        yield made


@pytest.fixture
def keys(tmp_path, url, provider, monkeypatch):
    made = Keys(tmp_path, provider.url.replace("127.0.0.1", "0.0.0.0"), url, monkeypatch)
    yield made
    made.end()


def test_a_worker_with_the_key_sends_the_batch_of_a_gateway_without(keys):
    check_waits_then_a_worker_sends_it(keys)


def test_alone_it_keeps_it_waiting_and_goes_on_with_the_key(keys):
    check_goes_on_when_started_again_with_the_key(keys)
