"""No key can be seen from outside, whatever is wrong with it: it is refused without being shown."""

import asyncio
import json
import sys
import traceback
from functools import partial

import httpx
import pytest
from pydantic import SecretStr

from scheduler import Request, Scheduler, events
from scheduler.config import load_config
from scheduler.errors import CallFailed, ConfigError, SchedulerError
from scheduler.providers.anthropic import Anthropic
from scheduler.providers.hidden import Headers, Secrets, seal
from scheduler.providers.openai import OpenAI
from tests.test_secrets import HEADER_KEY, KEY, MARKER, everything_logged, server, shown

__all__ = ["server"]  # a fixture

CHAT = Request.chat("m", "hello", max_tokens=5)
BAD = [
    "\n",
    "\r\nX-Other: 1",
    "\x00",
    "\x1b[31m",
    "\u00e9",
    "\u202e",
    "\u2028",
    "\x85",
    "\x7f",
    "\ud800",
]
IN_THE_MIDDLE = [f"{KEY}{each}{KEY}" for each in BAD]


def frames(error):
    """All variables of all frames that an error's tracebacks hold, as an error tracker shows them.

    It looks into what says that it is a sequence, a set or a mapping, as Sentry does, and into
    the attributes of `self`, as cgitb does.
    """
    found, seen, errors = [], set(), [error]
    while errors:
        each = errors.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        errors += [each.__cause__, each.__context__]
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if (
                "/scheduler/" not in frame.f_code.co_filename
                or "/tests/" in frame.f_code.co_filename
            ):
                continue
            for name, value in frame.f_locals.items():
                found.append((frame.f_code.co_qualname, name, looked_into(value)))
                if name == "self" and "/providers/" in frame.f_code.co_filename:
                    found += [
                        (frame.f_code.co_qualname, f"self.{attribute}", looked_into(inner))
                        for attribute, inner in getattr(value, "__dict__", {}).items()
                    ]
    return found


def looked_into(value, depth=0):
    if isinstance(value, dict) and depth < 4:
        return "".join(
            looked_into(k, depth + 1) + looked_into(v, depth + 1) for k, v in value.items()
        )
    if isinstance(value, list | tuple | set | frozenset) and depth < 4:
        return "".join(looked_into(each, depth + 1) for each in value)
    try:
        return repr(value)
    except Exception as exc:
        return f"<{exc!r}>"


def assert_hidden(error):
    assert MARKER not in shown(error)
    assert [each for each in frames(error) if MARKER in each[2]] == []
    chain = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [line for line in chain.format() if "/tests/" not in line and "_pytest" not in line]
    assert [line for line in ours if MARKER in line] == []


# What cannot be sent is refused at the start


def refusal(make):
    with pytest.raises(ConfigError) as caught:
        make()
    assert_hidden(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", IN_THE_MIDDLE)
@pytest.mark.parametrize("make", [OpenAI, Anthropic])
def test_a_key_that_no_header_can_have_is_refused_where_it_is_given(make, key, monkeypatch):
    assert "has characters in it that no key has" in refusal(lambda: make(api_key=key))
    refusal(lambda: make(api_key=SecretStr(key)))
    assert "the value of 'X-Api-Key' has characters" in refusal(
        lambda: make(headers={"X-Api-Key": key}))  # fmt: skip
    assert "a name in them" in refusal(lambda: make(headers={key: "value"}))


@pytest.mark.parametrize(
    "headers", [[KEY], {"X-Key": [KEY]}, {"X-Key": KEY.encode() + b"\xff"}, KEY]
)
def test_headers_that_are_no_texts_are_refused_without_being_shown(headers):
    refusal(lambda: OpenAI(headers=headers))


@pytest.mark.parametrize("around", ["{}\n", "\r\n{}\r\n", " {}\t"])
def test_a_line_break_around_a_key_is_no_part_of_it(around, monkeypatch):
    for provider in (OpenAI(api_key=around.format(KEY)), Anthropic(api_key=around.format(KEY))):
        sent = provider._headers().reveal()
        assert KEY in (sent.get("x-api-key"), sent.get("authorization", "").removeprefix("Bearer "))
    provider = OpenAI(headers={" X-Api-Key ": around.format(KEY), "X-Other": SecretStr(KEY)})
    assert provider._headers().reveal()["x-api-key"] == KEY
    assert provider._headers().reveal()["x-other"] == KEY


@pytest.mark.parametrize("name", ["OPENAI_ORG_ID", "OPENAI_PROJECT_ID"])
def test_what_the_environment_says_goes_the_same_way(name, monkeypatch):
    monkeypatch.setenv(name, f"{KEY}\n")
    assert KEY in OpenAI()._headers().reveal().values()
    monkeypatch.setenv(name, f"{KEY}\n{KEY}")
    refusal(OpenAI)


KINDS = {
    "azure": "AZURE_OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY",
    "groq": "GROQ_API_KEY", "gemini": "GOOGLE_API_KEY",
}  # fmt: skip


@pytest.fixture
def configured(tmp_path, monkeypatch):
    def make(text):
        path = tmp_path / "scheduler.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path).providers()

    for name in KINDS.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    return make


@pytest.mark.parametrize("kind", KINDS)
def test_of_every_kind_a_bad_key_is_refused_and_a_line_break_at_its_end_is_not(
    kind, configured, monkeypatch
):
    table = f"[provider.mine]\nkind = '{kind}'\nbase_url = 'https://r.example.com/v1'\n"
    monkeypatch.setenv(KINDS[kind], f"{KEY}\n")
    (provider,) = configured(table)
    sent = provider._headers().reveal().values()
    assert any(text.endswith(KEY) for text in sent)

    monkeypatch.setenv(KINDS[kind], f"{KEY}\n{KEY}")
    assert KINDS[kind] in refusal(lambda: configured(table))
    monkeypatch.setenv(KINDS[kind], KEY)
    said = refusal(lambda: configured(f"{table}headers = {{X-Secret = '{KEY}\u00e9'}}"))
    assert "provider.mine.headers" in said

    monkeypatch.setenv("MINE", f"{KEY}\x07")
    assert "MINE" in refusal(lambda: configured(f"{table}api_key_env = 'MINE'"))


@pytest.mark.parametrize("program", [
    "print('{0}\\n{0}')", "import sys; print('{0}'); sys.exit(3)",
    "import sys; sys.stdout.buffer.write(b'{0}\\xff')",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["azure", "groq"])
def test_what_a_command_prints_is_never_shown(kind, program, configured):
    program = program.format(KEY)
    table = f"[provider.mine]\nkind = '{kind}'\nbase_url = 'https://r.example.com/v1'\n"
    command = json.dumps([sys.executable, "-c", program])
    assert "api_key_command" in refusal(lambda: configured(f"{table}api_key_command = {command}"))


@pytest.mark.parametrize("text", [
    f"[provider.openai]\napi_key = '{KEY}'",
    f"[provider.openai]\nheaders = {{X-Key = '{KEY}'}}\nno_such = 1",
    f"[provider.openai]\nheaders = {{X-Key = ['{KEY}']}}",
    f"[provider.x]\nkind = 'nothing'\nheaders = {{X-Key = '{KEY}'}}",
    f"[provider.openai]\nbase_url = 'https://a.b/v1?key={KEY}'",
    f"[provider.openai]\nbase_url = '{KEY}'",
    f"[provider.openai]\nbase_url = 'https://u:{KEY}@a.b/v1'",
    f"[provider.openai]\ntimeout = 'never'\nheaders = {{X-Key = '{KEY}'}}",
    f"[defaults]\nprovider = 'x'\n[provider.openai]\nheaders = {{X-Key = '{KEY}'}}",
])  # fmt: skip
def test_no_mistake_in_a_configuration_shows_what_else_stands_in_it(text, configured):
    refusal(lambda: configured(text))


@pytest.mark.parametrize("url", [
    f"https://a.b/v1?key={KEY}", f"a.b/v1?key={KEY}", f"//a.b/?{KEY}", f"https://a.b/v1#{KEY}", KEY,
    f"ftp://a.b/v1?key={KEY}", f"https://a.b:port/?key={KEY}", f"https:///v1?key={KEY}",
    f"https://a.b/v1\n?key={KEY}", f"http://[{KEY}/v1", f"https://{KEY}@a.b",
])  # fmt: skip
@pytest.mark.parametrize("make", [OpenAI, Anthropic])
def test_no_secret_in_a_url_is_shown(make, url, monkeypatch):
    refusal(lambda: make(base_url=url, api_key=KEY))


# What failed says nothing of the key, and its frames hold none


WORDS = (
    "400",
    "401",
    "403",
    "404",
    "429",
    "500",
    "502",
    "redirect",
    "html",
    "error 200",
    "reset",
    "timeout",
)


def provider_of(url, kind, client=None):
    headers = {"X-Goog-Api-Key": HEADER_KEY}
    return kind(api_key=KEY, base_url=url, headers=headers, client=client, timeout=0.5)


@pytest.mark.parametrize("is_httpx", [False, True], ids=["quick", "httpx"])
@pytest.mark.parametrize("kind", [OpenAI, Anthropic])
async def test_no_frame_of_a_failed_call_holds_the_key(server, kind, is_httpx):
    client = httpx.AsyncClient(trust_env=False) if is_httpx else None
    provider = provider_of(server.url, kind, client)
    lost = provider_of("http://127.0.0.1:9/v1", kind, client)
    for word in WORDS:
        for stream in (False, True):
            make = Request.messages if kind is Anthropic else Request.chat
            request = make("m", word, max_tokens=5)
            request.body["stream"] = stream
            with pytest.raises(CallFailed) as caught:
                await provider.send(request)
            assert_hidden(caught.value)
    with pytest.raises(CallFailed) as caught:
        await lost.send(make("m", "x", max_tokens=5))
    assert caught.value.is_billed is False
    assert_hidden(caught.value)
    await provider.aclose()
    await lost.aclose()
    if client is not None:
        await client.aclose()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_nor_does_one_on_its_way_through_the_scheduler(server, is_stream):
    provider = provider_of(server.url, OpenAI)
    async with Scheduler(providers=provider, prices={"m": "1/1"}, max_attempts=1) as s:
        for word in WORDS:
            if word == "429":
                continue  # it waits
            request = Request.chat("m", word, max_tokens=5)
            with pytest.raises(SchedulerError) as caught:
                await (to_the_end(s.stream(request)) if is_stream else s.run(request))
            assert_hidden(caught.value)


async def to_the_end(stream):
    async with stream as events:
        async for _ in events:
            pass


BAD_CLIENTS = [
    {"headers": {"X-Api-Key": f"{KEY}\n"}},
    {"headers": {"Authorization": f"Bearer {KEY}\r\nX-Other: {KEY}"}},
    {"headers": {"Authorization": f"Bearer {KEY}\x00"}},
    {"auth": ("user", KEY), "headers": {"X-Bad": "a\nb", "X-Api-Key": KEY}},
]


@pytest.mark.parametrize("options", BAD_CLIENTS)
async def test_a_header_that_a_client_of_ones_own_cannot_send_is_hidden_and_costs_nothing(
    server, options
):
    with everything_logged() as logged:
        async with httpx.AsyncClient(**options, trust_env=False) as client:
            provider = OpenAI(base_url=server.url, client=client)
            async with Scheduler(providers=provider, prices={"m": "1/1"}, max_attempts=1) as s:
                with pytest.raises(CallFailed) as caught:
                    await s.run(CHAT)
                stats = s.stats()

    assert caught.value.is_billed is False
    assert (stats.posted_nusd, stats.reserved_nusd, stats.suspense_nusd) == (0, 0, 0)
    assert_hidden(caught.value)
    assert [line for line in logged if MARKER in line and "httpcore" not in line] == []


class Quotes(httpx.AsyncBaseTransport):
    """Fails in words that quote what it was to send."""

    def __init__(self, kind):
        self.kind = kind

    async def handle_async_request(self, request):
        raise self.kind(
            f"no: {request.headers.raw!r} {str(request.url)!r} {request.headers['x-key']!r}"
        )


@pytest.mark.parametrize(
    ("kind", "is_billed"),
    [(httpx.ConnectError, False), (httpx.LocalProtocolError, False), (httpx.ReadError, None),
     (RuntimeError, None), (ValueError, None)],
)  # fmt: skip
async def test_no_words_of_an_engine_come_through_unmasked(kind, is_billed):
    odd = f"{MARKER}\\'\"&=% /+{MARKER}"
    client = httpx.AsyncClient(
        transport=Quotes(kind), params={"key": HEADER_KEY}, headers={"X-Key": odd}
    )
    async with client:
        provider = OpenAI(api_key=KEY, base_url="https://a.b/v1", client=client)
        with pytest.raises(CallFailed) as caught:
            await provider.send(CHAT)

    assert caught.value.is_billed is is_billed
    assert "[hidden]" in str(caught.value)
    assert_hidden(caught.value)


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ReadError, RuntimeError])
@pytest.mark.parametrize("is_sync", [False, True])
async def test_a_wrapped_client_leaves_no_key_in_what_is_kept(kind, is_sync):
    class QuotesSync(httpx.BaseTransport):
        def handle_request(self, request):
            raise kind(f"no: {request.headers.raw!r}")

    headers = {"Authorization": f"Bearer {KEY}"}
    transport = QuotesSync() if is_sync else Quotes(kind)
    make = httpx.Client if is_sync else httpx.AsyncClient
    kept = []
    async with Scheduler(prices={"m": "1/1"}, max_attempts=1) as s:
        s.on(events.Settled, lambda event: kept.append(event.error))
        client = s.wrap(make(headers={**headers, "X-Key": KEY}, transport=transport))
        body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
        post = partial(client.post, "https://a.b/v1/chat/completions", json=body)
        with pytest.raises(kind):
            await (asyncio.to_thread(post) if is_sync else post())

    (error,) = kept
    assert isinstance(error, CallFailed)
    assert_hidden(error)


@pytest.mark.parametrize("model", ["m", "no such model", ""])
async def test_a_function_that_was_given_a_key_leaves_none_in_what_is_kept(model):
    kept = []

    async def ask(*, model, messages, api_key):
        raise ValueError(f"no: {api_key}")

    said = {"model": model, "messages": [{"role": "user", "content": "x"}], "api_key": KEY}
    async with Scheduler(prices={"m": "1/1"}, max_attempts=1) as s:
        s.on(events.Settled, lambda event: kept.append(event.error))
        with pytest.raises((ValueError, SchedulerError)) as caught:
            await s.call(ask, **said)

    if model == "m":
        assert_hidden(kept[0])
    assert [each for each in frames(caught.value) if MARKER in each[2]] == []


def test_what_holds_secrets_is_nothing_that_is_looked_into():
    from collections.abc import Mapping, Sequence, Set

    for thing in (Secrets([KEY]), Headers({"a": KEY}), seal(KEY)):
        assert not isinstance(thing, Mapping | Sequence | Set)
        assert MARKER not in repr(thing) + str(thing) + f"{thing}"
