"""A simulated provider where all frameworks look for theirs, and nothing sent anywhere else."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from scheduler.providers.simulated.bill import SIMULATED_PRICES
from scheduler.providers.simulated.server import running_server
from tests.frameworks.adopted import Adopted
from tests.frameworks.table import read_rows
from tests.sdks.conftest import Service, make_scheduler, since_now

KEY = "sk-test-0123456789"
# Told before any of them is imported: no telemetry, no downloads, no accounts.
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "DEEPEVAL_TELEMETRY_OPT_OUT": "YES",
    "DEEPEVAL_UPDATE_WARNING_OPT_OUT": "YES",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "INSPECT_DISPLAY": "none",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OTEL_SDK_DISABLED": "true",
    "RAGAS_DO_NOT_TRACK": "true",
}


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    options = ("--record", "--output-sigma", "0", "--output-tokens", "12", "--latency", "2ms")
    with running_server(*options) as url:
        yield url.removesuffix("/v1")


@pytest.fixture
def service(server: str) -> Service:
    return since_now(server)


@pytest.fixture(scope="session", autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory, server: str) -> None:
    """The environment that all of them read: keys, and URLs of the simulated provider."""
    home = str(tmp_path_factory.mktemp("home"))
    where = {
        "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{server}/v1",
        "OPENAI_API_BASE": f"{server}/v1",
        "AZURE_OPENAI_API_KEY": KEY, "AZURE_OPENAI_ENDPOINT": server,
        "OPENAI_API_VERSION": "2024-10-21",
        "ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": server,
        "ANTHROPIC_FOUNDRY_API_KEY": KEY, "ANTHROPIC_FOUNDRY_BASE_URL": server,
        "GROQ_API_KEY": KEY, "GROQ_BASE_URL": server,
        "MISTRAL_API_KEY": KEY,
        "GEMINI_API_KEY": KEY, "GOOGLE_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": server,
        "HF_TOKEN": "hf_test", "HF_HOME": home, "XDG_CACHE_HOME": home, "HOME": home,
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
        "DSPY_CACHEDIR": home, "INSPECT_LOG_DIR": home,
    }  # fmt: skip
    os.environ.update(QUIET | where)


@pytest.fixture
async def adopted(
    request: pytest.FixtureRequest, service: Service, anyio_backend: str
) -> AsyncIterator[Adopted]:
    """The row that the test is named after; compared with the bill at its end."""
    row = next(each for each in read_rows().values() if each.test == request.node.originalname)
    prices = SIMULATED_PRICES | {"gpt-4o-mini": "0.15/0.60"}
    async with make_scheduler(prices=prices) as s:
        made = Adopted(row, s, service)
        yield made
        if undo := made.names.get("undo"):
            undo()
        await made.compare()
        made.names.clear()
        gc.collect()  # SDKs' clients close themselves when they are dropped, in the loop of the day
        await asyncio.sleep(0)
