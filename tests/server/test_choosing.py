"""Which provider a model goes to."""

import pytest

from scheduler import Scheduler
from scheduler.adapters.dialects import Dialect
from scheduler.errors import ConfigError
from scheduler.providers.anthropic import Anthropic
from scheduler.providers.google import Google
from scheduler.providers.openai import OpenAI
from scheduler.providers.simulated.provider import Simulated
from scheduler.server.gateway import Gateway
from scheduler.server.tokens import Tokens

MAKERS = {
    "openai": lambda: OpenAI(api_key="k" * 20),
    "anthropic": lambda: Anthropic(api_key="k" * 20, base_url="https://api.anthropic.com"),
    "google": lambda: Google(api_key="k" * 20),
    "groq": lambda: OpenAI("groq", api_key="k" * 20, base_url="https://api.groq.com/openai/v1"),
    "own": lambda: OpenAI("own", base_url="http://127.0.0.1:9/v1"),
    "sim": lambda: Simulated("sim"),
}
O, A, G = Dialect.OPENAI, Dialect.ANTHROPIC, Dialect.GOOGLE  # noqa: E741


class Line:
    def __init__(self, at=""):
        self.scope = {"path_params": {"provider": at} if at else {}}


async def chosen(providers, dialect, model="m", at="", found=(), is_meant=False, routes=None):
    made = [MAKERS[name]() for name in providers]
    async with Scheduler(providers=made, routes=routes) as s:
        gateway = Gateway(
            s, made, Tokens(s.store), max_hold_ms=0, at_last=frozenset(found), is_meant=is_meant
        )
        return gateway.choose(dialect, model, Line(at))


@pytest.mark.parametrize(
    ("providers", "dialect", "more", "wanted"), [
        (["openai"], O, {}, "openai"), (["anthropic", "openai"], O, {}, "openai"),
        (["openai", "anthropic"], A, {}, "anthropic"), (["openai", "google"], G, {}, "google"),
        (["openai", "groq"], O, {"model": "groq:m"}, "groq"),
        (["openai", "groq"], O, {"routes": {"llama*": "groq"}, "model": "llama3"}, "groq"),
        (["openai", "groq"], O, {"at": "groq"}, "groq"),
        # A server of one's own stands for all, unless a maker was chosen.
        (["own"], A, {}, "own"), (["own"], G, {}, "own"), (["sim"], A, {}, "sim"),
        (["own", "anthropic"], A, {}, "anthropic"), (["own"], O, {"at": "groq"}, "own"),
        # One that was only found by its key, and one that was named on the command line.
        (["own", "anthropic"], A, {"found": ["anthropic"]}, "own"),
        (["own", "groq"], O, {"at": "groq", "found": ["groq"]}, "own"),
        (["sim", "anthropic"], A, {"is_meant": True}, "sim"),
        (["openai", "anthropic"], A, {"found": ["anthropic"]}, "anthropic"),
        (["openai", "groq"], O, {"at": "groq", "found": ["groq"]}, "groq"),
    ],
)  # fmt: skip
async def test_who_is_asked(providers, dialect, more, wanted):
    assert await chosen(providers, dialect, **more) == wanted


@pytest.mark.parametrize(
    ("providers", "dialect", "more", "says"), [
        (["openai"], A, {}, "set ANTHROPIC_API_KEY"), (["openai"], G, {}, "set GEMINI_API_KEY"),
        (["anthropic"], O, {}, "set OPENAI_API_KEY"), (["openai"], O, {"at": "groq"}, "none is named"),
        (["openai", "groq"], A, {"model": "groq:m"}, "does not speak Anthropic's API"),
        (["openai"], O, {"model": "groq:m"}, "no provider is named"),
    ],
)  # fmt: skip
async def test_who_cannot_be_asked(providers, dialect, more, says):
    with pytest.raises(ConfigError, match=says):
        await chosen(providers, dialect, **more)
