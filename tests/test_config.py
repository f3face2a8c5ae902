"""``scheduler.toml`` and routing: every table, every mistake, and no key on the disk."""

import sys

import pytest

from scheduler import ConfigError, Limits, Request, Scheduler, Simulated
from scheduler.cli.options import Sending
from scheduler.config import load_config
from scheduler.prices.book import PriceBook
from scheduler.prices.routing import Router
from scheduler.providers.known import KNOWN

KEY = "sk-secret-1234567890"
WHOLE = """
[provider.openai]
max_requests_per_minute = 500
max_tokens_per_minute = 200_000
concurrency = 50
[provider.openai.models."gpt-4o"]
max_tokens_per_minute = 30_000
[provider.claude]
kind = "anthropic"
api_key_env = "MY_CLAUDE_KEY"
on_unknown = "release after 1h"
[provider.local]
kind = "vllm"
price = "0/0"
prices = { "big" = "0.1/0.2" }
[route]
"claude-*" = "claude"
"fast" = "local:llama-3"
[defaults]
provider = "openai"
max_prompt_tokens = 100_000
max_cost = "$0.50"
fallback = ["gpt-4o-mini"]
on_exceeded = "fallback"
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for known in KNOWN.values():
        for variable in known.key_variables:
            monkeypatch.delenv(variable, raising=False)

    def write(text):
        (tmp_path / "scheduler.toml").write_text(text)

    return write


def test_a_whole_file_becomes_providers_limits_routes_and_defaults(write, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MY_CLAUDE_KEY", KEY)
    write(WHOLE)
    settings = Sending().settings()
    openai, claude, local = settings["providers"]

    assert (openai.name, openai.counting, openai.price_source) == ("openai", "openai", "openai")
    assert openai.limits == Limits(500, 200_000, concurrency=50)
    assert openai.model_limits == {"gpt-4o": Limits(tokens_per_minute=30_000)}
    assert (type(claude).__name__, claude.counting, claude.on_unknown) == (
        "Anthropic", "anthropic", "release after 1h")  # fmt: skip
    assert claude.has_credentials
    assert local.prices == {"*": "0/0", "big": "0.1/0.2"}
    assert settings["routes"] == {"claude-*": "claude", "fast": "local:llama-3"}
    assert (settings["max_prompt_tokens"], settings["max_cost"], settings["fallback"]) == (
        100_000, "$0.50", ["gpt-4o-mini"])  # fmt: skip
    assert settings["on_exceeded"] == "fallback"
    Scheduler(**settings)


def test_without_a_file_it_is_as_before_and_an_option_beats_the_file(write, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (openai,) = Sending().settings()["providers"]
    assert openai.name == "openai"

    write(WHOLE)
    sending = Sending(base_url="sim:", max_requests_per_minute=60, max_cost="1", fallback=["a"])
    settings = sending.settings()
    first = settings["providers"][0]
    assert isinstance(first, Simulated)
    assert first.limits.requests_per_minute == 60
    assert (settings["max_cost"], settings["fallback"]) == ("1", ["a"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[provider", "is no TOML"),
        (f"x = {'9' * 5000}", "is no TOML"),
        (f"x = {'[' * 5000}", "is no TOML"),
        ("[provider.openai]\napi_key = 'sk-1'", "provider.openai.api_key: keys do not belong in a file"),
        ("[provider.openai]\nmax_request_per_minute = 5",
         "provider.openai.max_request_per_minute: is not known; is it 'max_requests_per_minute'?"),
        ("[provider.openai]\nmax_requests_per_minute = 0", "greater than 0"),
        ("[provider.openai]\nconcurrency = 'many'", "provider.openai.concurrency: "),
        ("[provider.antropic]", "provider.antropic.kind: 'antropic' is not known; is it 'anthropic'?"),
        ("[provider.x]\nkind = 'azure'", "provider.x.base_url: is needed for azure"),
        ("[provider.x]\nkind = 'vllm'\nbase_url = 'nowhere'", "'nowhere' is not a URL"),
        ("[defaults]\nprovider = 'x'", "defaults.provider: 'x' is not configured (there are: none)"),
        ("[defaults]\non_exceeded = 'panic'", "defaults.on_exceeded: "),
        ("[default]\nprovider = 'x'", "default: is not known; is it 'defaults'?"),
        ("[provider.x]\nkind = 'groq'\napi_key_command = ['no-such-program']",
         "provider.x.api_key_command: 'no-such-program' cannot be run"),
        ("[provider.x]\nkind = 'groq'\napi_key_command = ['false']",
         "api_key_command: 'false' gave no key (exit code 1)"),
    ],
)  # fmt: skip
def test_every_mistake_is_told_with_file_table_and_key(write, text, said):
    write(text)
    with pytest.raises(ConfigError) as caught:
        load_config().providers()

    assert said in str(caught.value)
    assert "scheduler.toml" in str(caught.value) or "nowhere" in said


def test_a_file_that_was_named_and_is_not_there_is_an_error(write):
    with pytest.raises(ConfigError, match="No such file"):
        load_config("nothing.toml")


def test_a_key_may_come_from_a_command_and_is_never_shown(write):
    program = f"import sys; sys.stderr.write('{KEY}'); print('{KEY}')"
    write(f"[provider.groq]\napi_key_command = [{sys.executable!r}, '-c', {program!r}]")
    (groq,) = load_config().providers()
    assert groq.has_credentials
    assert KEY not in repr(groq)

    write(
        f"[provider.groq]\napi_key_command = [{sys.executable!r}, '-c', {program + '; exit(3)'!r}]"
    )
    with pytest.raises(ConfigError, match="exit code 3") as caught:
        load_config().providers()
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("openai", "gpt-4o-mini"), ("anthropic", "claude-haiku-4-5"), ("gemini", "gemini-2.5-flash"),
        ("groq", "llama-3.3-70b-versatile"), ("mistral", "mistral-large-latest"),
        ("deepseek", "deepseek-chat"), ("openrouter", "openai/gpt-4o-mini"),
    ],
)  # fmt: skip
def test_what_is_known_has_a_price_and_says_where_it_is(name, model):
    known = KNOWN[name]

    assert known.base_url.startswith("https://")
    assert known.key_variables
    assert PriceBook().rates(model, known.price_source).input[0][1] > 0


def test_a_key_in_the_environment_makes_its_service_known_by_prefix(write, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    names = [each.name for each in Sending().settings()["providers"]]

    assert names == ["openai", "anthropic"]


@pytest.mark.parametrize(("said", "seconds"), [("'90s'", 90), ("2.5", 2.5), ("'off'", None)])
@pytest.mark.parametrize("kind", ["vllm", "anthropic"])
def test_the_time_between_events_may_be_set(write, kind, said, seconds):
    write(f"[provider.x]\nkind = '{kind}'\nsilence_timeout = {said}")
    (provider,) = load_config().providers()

    assert provider._silence_s == seconds


def test_the_usage_is_asked_for_as_the_service_takes_it(write):
    write("[provider.mistral]\n[provider.a]\nkind = 'mistral'\nbase_url = 'https://proxy.example/v1'\n"
          "[provider.b]\nkind = 'openai'\nbase_url = 'https://proxy.example/v1'\n[provider.groq]")  # fmt: skip
    asks = [provider.asks_usage for provider in load_config().providers()]

    assert asks == [False, False, None, True]


def test_azures_key_goes_into_its_own_header(write, monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    write("[provider.azure]\nbase_url = 'https://r.openai.azure.com/openai/v1'")
    (azure,) = load_config().providers()

    headers = azure._headers().reveal()
    assert headers["api-key"] == KEY
    assert "authorization" not in headers
    assert azure.has_credentials
    assert (azure.counting, azure.price_source) == ("azure", "azure")


# Routing

ROUTES = {"claude-*": "claude", "claude-opus-*": "other", "fast": "other:tiny", "gpt-4o": "claude"}


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("claude-haiku", ("claude", "claude-haiku")),
        ("claude-opus-4", ("other", "claude-opus-4")),
        ("fast", ("other", "tiny")),
        ("gpt-4o", ("claude", "gpt-4o")),
        ("gpt-4o-mini", (None, "gpt-4o-mini")),
        ("other:llama3:8b", ("other", "llama3:8b")),
        ("llama3:8b", (None, "llama3:8b")),
        ("ft:gpt-4o:org::id", (None, "ft:gpt-4o:org::id")),
        ("other:", (None, "other:")),
        ("", (None, "")),
    ],
)
def test_a_model_finds_its_provider(model, found):
    assert Router(["claude", "other"], ROUTES).find(model) == found


def test_a_request_that_names_its_provider_is_left_alone():
    request = Request.chat("fast", "hi", provider="claude")
    assert Router(["claude", "other"], ROUTES).route(request) is request


def test_what_leads_nowhere_is_told():
    with pytest.raises(
        ConfigError, match=r"route.x: leads to 'nobody', but the providers are: 'a'"
    ):
        Router(["a"], {"x": "nobody"})
    with pytest.raises(ConfigError, match=r"no provider is named 'anthropic'; add"):
        Router(["openai"]).find("anthropic:claude")


@pytest.mark.anyio
async def test_one_batch_mixes_providers_each_with_its_own_prices():
    free, paid = Simulated("free"), Simulated("paid")
    free.prices = {"*": "0/0"}
    async with Scheduler(providers=[paid, free], routes={"sim-large": "free"}) as s:
        one = await s.run(Request.chat("sim-small", "hi", max_tokens=9))
        two = await s.run(Request.chat("free:sim-small", "hi", max_tokens=9, key="k"))
        three = await s.run(Request.chat("sim-large", "hi", max_tokens=9))
        again = await s.run(Request.chat("free:sim-small", "hi", max_tokens=9, key="k"))

    assert one.cost_nusd > 0
    assert (two.cost_nusd, three.cost_nusd) == (0, 0)
    assert again.body == two.body
    assert (paid.calls, free.calls) == (1, 2)
