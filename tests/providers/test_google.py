"""Google's own API, asked in its own form: the model stands in the path, and nowhere else."""

import pytest

from scheduler import Request, Scheduler
from scheduler.errors import ConfigError
from scheduler.providers.google import Google
from scheduler.request import EMBED_CONTENT, GENERATE
from tests.warm import running_server

OPTIONS = ("--api-key", "key-of-google", "--output-sigma", "0", "--output-tokens", "12")
SAID = {"model": "sim-small", "contents": [{"parts": [{"text": "hi"}]}]}


@pytest.fixture(scope="module")
def url():
    with running_server(*OPTIONS) as found:
        yield found.removesuffix("/v1")


async def test_it_answers_streams_and_embeds(url):
    provider = Google(api_key="key-of-google", base_url=url)
    prices = {"sim-small": "1/1", "sim-embedding": "1/0"}
    async with Scheduler(providers=provider, prices=prices, cap_output=50) as s:
        answer = await s.run(Request(SAID, url=GENERATE))
        stream = s.stream(Request({**SAID, "stream": True}, url=GENERATE))
        events = [event async for event in stream]
        content = {"model": "sim-embedding", "content": {"parts": [{"text": "hi"}]}}
        vector = await s.run(Request(content, url=EMBED_CONTENT))
        posted_nusd = s.stats().posted_nusd
        with pytest.raises(ConfigError, match="gemini:MODEL"):
            s.validate(Request.chat("sim-small", "hi"))

    assert len(answer.text.split()) == 12
    assert answer.cost_nusd == (5 + 12) * 1_000
    assert len(events) > 1
    assert len(vector.body["embedding"]["values"]) == 8
    assert posted_nusd > 2 * answer.cost_nusd


def test_its_key_comes_from_either_variable(monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL", raising=False)
    monkeypatch.setenv("GOOGLE_API_KEY", "k" * 20)
    provider = Google()

    assert provider.has_credentials
    assert provider.price_source == "google"
    assert provider.sets_headers == {"x-goog-api-key"}
