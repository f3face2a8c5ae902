"""Base URLs as Azure's pages have them: path, query and header, as a real server sees them."""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scheduler import ConfigError, OpenAI, PriceUnknown, Request, Scheduler
from scheduler.config import load_config
from scheduler.errors import ProviderRefused
from scheduler.providers.address import read_address
from tests import warm

pytestmark = pytest.mark.anyio

KEY = "azure-key-1234567890"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2ln"
ANSWER = {
    "id": "c", "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
}  # fmt: skip
V = "api-version=2024-10-21"
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


class Server:
    """What was asked of it: the target as it stood in the request, and the headers."""

    def __init__(self):
        self.asked = asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers["content-length"]))
                asked.append((self.path, headers, json.loads(body)))
                told = json.dumps(ANSWER).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server():
    with Server() as server:
        yield server


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (*os.environ,):
        if name.endswith(("_API_KEY", "_PROXY", "_proxy", "_BASE_URL", "_API_VERSION")):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize(
    ("base", "url", "target"),
    [
        (f"/openai/deployments/prod?{V}", CHAT, f"/openai/deployments/prod/chat/completions?{V}"),
        (f"/openai/deployments/prod/?{V}", CHAT, f"/openai/deployments/prod/chat/completions?{V}"),
        (f"/openai/deployments/prod/chat/completions?{V}", CHAT,
         f"/openai/deployments/prod/chat/completions?{V}"),
        (f"/openai/deployments/prod/chat/completions?{V}", "/chat/completions",
         f"/openai/deployments/prod/chat/completions?{V}"),
        (f"/openai/deployments/prod?{V}&x=1", CHAT,
         f"/openai/deployments/prod/chat/completions?{V}&x=1"),
        (f"/openai/deployments/prod?{V}", "/v1/embeddings",
         f"/openai/deployments/prod/embeddings?{V}"),
        # What is not below a deployment stands beside it, as Azure's own client has it.
        (f"/openai/deployments/prod?{V}", RESPONSES, f"/openai/responses?{V}"),
        (f"/openai?{V}", CHAT, f"/openai/deployments/gpt-4o/chat/completions?{V}"),
        (f"/openai/?{V}", "/v1/embeddings", f"/openai/deployments/gpt-4o/embeddings?{V}"),
        (f"/openai?{V}", RESPONSES, f"/openai/responses?{V}"),
        (f"/gateway/openai?{V}", CHAT, f"/gateway/openai/deployments/gpt-4o/chat/completions?{V}"),
        ("/models?api-version=2024-05-01-preview", CHAT,
         "/models/chat/completions?api-version=2024-05-01-preview"),
        ("/models/chat/completions?api-version=2024-05-01-preview", CHAT,
         "/models/chat/completions?api-version=2024-05-01-preview"),
        ("/openai/v1?api-version=preview", RESPONSES, "/openai/v1/responses?api-version=preview"),
        # A line that names the whole path, and a version of its own.
        (f"/openai?{V}", f"/openai/deployments/other/chat/completions?{V}",
         f"/openai/deployments/other/chat/completions?{V}"),
        (f"/openai/deployments/prod?{V}", "/chat/completions?api-version=2025-01-01-preview",
         "/openai/deployments/prod/chat/completions?api-version=2025-01-01-preview"),
    ],
)  # fmt: skip
async def test_path_query_and_header_arrive_as_azure_wants_them(server, base, url, target):
    provider = OpenAI(base_url=server.url + base, api_key=KEY)
    answer = await provider.send(Request(Request.chat("gpt-4o", "hi").body, url=url))
    await provider.aclose()

    ((path, headers, _),) = server.asked
    assert path == target
    assert headers["api-key"] == KEY
    assert "authorization" not in headers
    assert answer.usage.input_tokens == 9


@pytest.mark.parametrize(
    "host",
    ["r.openai.azure.com", "r.cognitiveservices.azure.com", "r.services.ai.azure.com",
     "r.openai.azure.us", "R.OpenAI.Azure.com"],
)  # fmt: skip
async def test_azures_hosts_get_azures_header_through_a_real_proxy(server, host, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://{host}/openai/deployments/prod?{V}")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-itself")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    provider = OpenAI()
    await provider.send(Request.chat("gpt-4o", "hi"))
    await provider.aclose()

    ((target, headers, _),) = server.asked
    assert target.lower() == f"http://{host}/openai/deployments/prod/chat/completions?{V}".lower()
    assert headers["api-key"] == KEY
    assert "sk-of-openai-itself" not in str(headers)
    assert (provider.price_source, provider.counting) == ("azure", "azure")


async def test_a_token_of_entra_is_a_bearer_token(server):
    provider = OpenAI(base_url=f"{server.url}/openai/deployments/prod?{V}", api_key=TOKEN)
    await provider.send(Request.chat("gpt-4o", "hi"))
    await provider.aclose()

    assert server.asked[0][1]["authorization"] == f"Bearer {TOKEN}"
    assert "api-key" not in server.asked[0][1]


async def test_each_request_goes_to_its_own_deployment_and_nowhere_else(server):
    provider = OpenAI(base_url=f"{server.url}/openai?{V}", api_key=KEY)
    for model in ("one", "two", "one", "a/b?c#d"):
        await provider.send(Request.chat(model, "hi"))
    for model in ("", "..", " ."):
        with pytest.raises(ProviderRefused, match="nothing was sent"):
            await provider.send(Request.chat(model, "hi"))
    await provider.aclose()

    names = [path.split("/")[3] for path, _, _ in server.asked]
    assert names == ["one", "two", "one", "a%2Fb%3Fc%23d"]


async def test_a_query_is_kept_for_other_services_too_and_their_key_is_a_bearer_token(server):
    provider = OpenAI(base_url=f"{server.url}/v1?team=7", api_key=KEY)
    await provider.send(Request.chat("m", "hi"))
    await provider.aclose()

    ((path, headers, _),) = server.asked
    assert path == "/v1/chat/completions?team=7"
    assert headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "query",
    [f"{V}&api-key=hunter2hunter2", "sig=hunter2hunter2", "key=hunter2hunter2",
     "access_token=hunter2hunter2", "subscription-key=hunter2hunter2", "code=hunter2hunter2",
     "API_KEY=hunter2hunter2", "x=sk-hunter2hunter2", "t=eyJhunter2hunter2", "k%65y=hunter2hunter2",
     "password=hunter2hunter2", "x=hunter2hunter2 y"],
)  # fmt: skip
def test_a_key_in_a_query_is_refused_and_not_shown(query):
    with pytest.raises(ConfigError) as caught:
        OpenAI(base_url=f"https://r.openai.azure.com/openai?{query}")

    assert "hunter2" not in str(caught.value)


async def test_no_value_of_a_query_is_shown(server):
    provider = OpenAI(base_url=f"{server.url}/v1?tenant=hunter2-hunter2-hunter2", api_key=KEY)

    assert "hunter2" not in f"{provider!r} {provider.base_url} {provider.price_source}"
    assert "hunter2-hunter2-hunter2" in list(provider._secrets)
    with pytest.raises(ConfigError) as caught:
        OpenAI(base_url="https://h/v1?tenant=hunter2").require_key()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://r.openai.azure.com", "https://r.openai.azure.com/openai/v1"),
        ("https://r.openai.azure.com/openai/", "https://r.openai.azure.com/openai/v1"),
        (f"https://r.openai.azure.com/?{V}", "https://r.openai.azure.com/openai"),
        ("https://r.openai.azure.com/openai/v1/", "https://r.openai.azure.com/openai/v1"),
        ("https://r.openai.azure.com/openai/v1/chat/completions",
         "https://r.openai.azure.com/openai/v1"),
        ("https://h/v1/chat/completions", "https://h/v1"),
        ("https://h/chat/completions", "https://h"),
    ],
)  # fmt: skip
def test_what_people_copy_is_understood(url, base):
    assert read_address(url, "K").base == base


def test_a_deployment_without_a_version_says_what_is_missing(monkeypatch):
    url = "https://r.openai.azure.com/openai/deployments/prod"
    with pytest.raises(ConfigError, match=r"\?api-version=.*OPENAI_API_VERSION.*/openai/v1"):
        read_address(url, "K")

    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")

    assert read_address(url, "K").query == V


# Prices: a deployment's name is not its model's


def configured(text):
    Path("scheduler.toml").write_text(text)
    (provider,) = load_config().providers()
    return provider


async def test_a_deployment_without_a_price_says_how_to_name_its_model():
    provider = configured(
        f"[provider.azure]\nbase_url = 'https://r.openai.azure.com/openai/deployments/prod?{V}'"
    )
    async with Scheduler(providers=provider) as s:
        with pytest.raises(PriceUnknown) as caught:
            s.quote(Request.chat("prod", "hi"))

    assert '[provider.azure.models."prod"] priced_as = "gpt-4o"' in str(caught.value)
    assert "nothing was sent" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "settings", "model"),
    [
        ("azure", "models.prod.priced_as = 'gpt-4o'", "prod"),
        ("openai", "models.prod.priced_as = 'gpt-4o'", "prod"),
        ("azure", "priced_as = 'gpt-4o'", "prod"),
        ("azure", "", "gpt-4o"),  # the URL says where, the request what
        ("azure", "models.prod.priced_as = 'gpt-4o'", ""),  # as Azure's own samples have it
        ("azure", "prices = { prod = '2.5/10' }", "prod"),
        ("azure", "priced_as = 'gpt-4-32k'\nprices = { prod = '2.5/10' }", "prod"),
    ],
)
async def test_what_a_deployment_costs_is_said_in_the_configuration(server, kind, settings, model):
    provider = configured(
        f"[provider.mine]\nkind = '{kind}'\napi_key_env = 'MINE'\n"
        f"base_url = '{server.url}/openai/deployments/prod?{V}'\n{settings}"
    )
    async with Scheduler(providers=provider) as s:
        response = await s.run(Request.chat(model, "hi", max_tokens=10))

    ((path, _, body),) = server.asked
    assert path == f"/openai/deployments/prod/chat/completions?{V}"
    assert body["model"] == model
    assert response.cost_nusd == 9 * 2_500 + 1 * 10_000


def test_the_command_line_takes_the_url_as_azures_page_shows_it(server, monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    Path("p.jsonl").write_text(json.dumps({"model": "gpt-4o", "messages": [
        {"role": "user", "content": "hi"}], "max_tokens": 5}) + "\n")  # fmt: skip
    url = f"{server.url}/openai/deployments/prod/chat/completions?{V}"
    done = warm.run(
        [sys.executable, "-m", "scheduler", "run", "p.jsonl", "--base-url", url],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    ((path, headers, _),) = server.asked
    assert path == f"/openai/deployments/prod/chat/completions?{V}"
    assert headers["api-key"] == KEY


def test_the_doctor_shows_the_base_url_without_its_query(monkeypatch):
    from scheduler.cli.doctor import check_key

    monkeypatch.setenv("OPENAI_BASE_URL", f"https://r.openai.azure.com/openai?{V}&sig=hunter2")

    finding = check_key().finding
    assert "https://r.openai.azure.com/openai" in finding
    assert "hunter2" not in finding
