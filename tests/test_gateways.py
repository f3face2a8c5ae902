"""Models behind a base URL of one's own: whose they are, and whose prices hold."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from scheduler.cli.app import app
from scheduler.clock import SystemClock
from scheduler.core.intake import Intake, Prevention
from scheduler.errors import ConfigError, PriceUnknown
from scheduler.prices.book import PriceBook
from scheduler.providers.anthropic import Anthropic
from scheduler.providers.openai import OpenAI
from scheduler.providers.simulated.provider import Simulated
from scheduler.request import EMBEDDINGS, Request

GATEWAY, LOCAL = "https://gateway.example/v1", "http://127.0.0.1:11434/v1"


def quote(model, source=GATEWAY, url=None, own=None):
    request = Request.chat(model, "hi", max_tokens=5)
    if url is not None:
        request = Request({"model": model, "input": "hi"}, url=url)
    return PriceBook(own).tariff(source).quote(request)


@pytest.mark.parametrize("source", [GATEWAY, LOCAL, None])
@pytest.mark.parametrize(
    ("model", "like", "url"),
    [
        ("text-embedding-3-small", ("openai", "text-embedding-3-small"), EMBEDDINGS),
        ("openai/text-embedding-3-large", ("openai", "text-embedding-3-large"), EMBEDDINGS),
        ("models/text-embedding-3-small", ("openai", "text-embedding-3-small"), EMBEDDINGS),
        ("models/gemini-2.5-flash", ("google", "gemini-2.5-flash"), None),
        ("publishers/google/models/gemini-2.5-flash", ("google", "gemini-2.5-flash"), None),
        ("voyage-3", ("voyageai", "voyage-3"), EMBEDDINGS),
    ],
)
def test_a_model_that_costs_the_same_everywhere_costs_that(source, model, like, url):
    found, expected = quote(model, source, url), quote(like[1], like[0], url)

    assert found.ceiling_nusd == expected.ceiling_nusd > 0


def test_a_model_at_several_prices_is_refused_with_who_asks_what_and_how_to_say_so():
    with pytest.raises(PriceUnknown) as refused:
        quote("llama-3.3-70b-instruct")
    said = str(refused.value)

    assert "several ask different prices for it" in said
    assert "huggingface_groq 0.59/0.79" in said
    assert "scheduler prices set llama-3.3-70b-instruct --in" in said
    assert "--price llama-3.3-70b-instruct=" in said
    assert "Scheduler(prices={'llama-3.3-70b-instruct': 'IN/OUT'})" in said
    assert "price_source = '" in said
    assert quote("llama-3.3-70b-instruct", own={"llama-3.3-70b-instruct": "1/2"}).ceiling_nusd > 0


def test_ids_are_compared_by_their_ends_and_in_any_case():
    with pytest.raises(PriceUnknown, match="several ask different prices"):
        quote("meta-llama/LLAMA-3.3-70b-Instruct")


def test_what_nobody_has_is_refused_with_the_way_in_python_too():
    with pytest.raises(PriceUnknown, match=r"Scheduler\(prices=\{'my-own': 'IN/OUT'\}\)"):
        quote("my-own")


def test_a_listing_without_a_price_of_tokens_is_no_price():
    for model, source in (("whisper-1", None), ("gpt-4o-mini", "github-copilot")):
        with pytest.raises(PriceUnknown):
            quote(model, source)


def test_a_provider_that_was_named_is_not_priced_as_another():
    with pytest.raises(PriceUnknown):
        quote("text-embedding-3-small", "anthropic", EMBEDDINGS)


# Whose is it?


def intake(*others, default=None, own=None, routes=None):
    providers = [default or OpenAI(base_url=LOCAL), *others]
    prices = PriceBook(own)
    return Intake(providers, prices, SystemClock(), "wait", Prevention(), routes)


def cloud(name="mistral", source="mistral"):
    provider = OpenAI(name, base_url=f"https://api.{name}.ai/v1", api_key="k")
    provider.price_source = source
    return provider


FREE = "0/0"


@pytest.mark.parametrize(
    "model",
    ["mistral:latest", "mistral:7b", "llama3:8b", "gpt-oss:20b", "deepseek-r1:14b",
     "qwen2.5-coder:7b", "openai/gpt-oss-120b", "hf.co/org/model:Q4_K_M", "groq:latest",
     "gemini:latest"],
)  # fmt: skip
def test_what_no_service_has_goes_to_the_base_url_under_its_whole_name(model):
    room = intake(cloud(), own={model: FREE})

    new = room.prepare(Request.chat(model, "hi"), None)
    assert (new.lane.provider, new.request.model, new.ceiling_nusd) == ("openai", model, 0)


@pytest.mark.parametrize(
    ("model", "provider", "bare"),
    [
        ("mistral:mistral-large-latest", "mistral", "mistral-large-latest"),
        ("anthropic:claude-haiku-4-5", "anthropic", "claude-haiku-4-5"),
    ],
)
def test_a_prefix_before_a_model_its_service_has_routes(model, provider, bare):
    room = intake(cloud(), Anthropic(api_key="k"))

    new = room.prepare(Request.chat(model, "hi", max_tokens=5), None)
    assert (new.lane.provider, new.request.model) == (provider, bare)


def test_a_price_for_the_whole_name_holds_where_it_is_routed():
    room = intake(cloud(), own={"mistral:mistral-large-latest": "1000/0"})
    request = Request.chat("mistral:mistral-large-latest", "hi", max_tokens=5)

    new = room.prepare(request, None)
    assert new.lane.provider == "mistral"
    assert new.ceiling_nusd > 100_000_000


def test_a_forgotten_key_is_still_told():
    for default in (None, OpenAI(api_key="k")):
        with pytest.raises(ConfigError, match="no provider is named 'anthropic'"):
            intake(default=default).prepare(Request.chat("anthropic:claude-haiku-4-5", "x"), None)


def test_without_a_base_url_of_ones_own_a_prefix_is_always_one():
    room = intake(cloud(), default=OpenAI(api_key="k", base_url="https://api.openai.com/v1"))

    with pytest.raises(PriceUnknown, match="'latest' at mistral"):
        room.prepare(Request.chat("mistral:latest", "hi"), None)


def test_names_that_are_no_services_are_always_prefixes():
    room = intake(Simulated("backup"), cloud("ollama", None), own={"any": "1/2"})

    for prefix in ("backup", "ollama"):
        new = room.prepare(Request.chat(f"{prefix}:any", "hi"), None)
        assert (new.lane.provider, new.request.model) == (prefix, "any")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MISTRAL_API_KEY", "k-mistral")

    def run_(model, *options):
        line = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        (tmp_path / "p.jsonl").write_text(json.dumps(line) + "\n")
        return CliRunner().invoke(app, ["quote", "p.jsonl", "--json", *options])

    return run_


@pytest.mark.parametrize("base_url", [LOCAL, "sim:"])
def test_the_command_line_takes_ollamas_names_at_a_base_url(run, base_url):
    done = run("mistral:latest", "--base-url", base_url, "--price", "mistral:latest=0/0")

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["most_usd"] == "0.00"


def test_the_command_line_says_who_has_a_model_at_which_price(run):
    done = run("llama-3.3-70b-instruct", "--base-url", GATEWAY)

    assert done.exit_code == 3
    why = json.loads(done.stdout)["why_unknown"]["llama-3.3-70b-instruct"]
    assert "huggingface_groq 0.59/0.79" in why
    assert run("text-embedding-3-small", "--base-url", GATEWAY).exit_code == 0
