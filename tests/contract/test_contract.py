"""The gateway does what its description says, whatever it is asked: schemathesis tries."""

import asyncio
import json
import os
import subprocess

import pytest

from scheduler import Scheduler
from scheduler.providers.simulated.provider import Simulated
from scheduler.server.batches.keeper import Keeper
from scheduler.server.batches.reader import Reader
from scheduler.server.batches.shelf import Shelf
from scheduler.server.gateway import Gateway
from scheduler.server.life import served
from scheduler.server.tokens import Tokens
from tests.contract.conftest import SCHEMATHESIS
from tests.contract.described import openapi

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]

SECONDS = os.environ.get("CONTRACT_SECONDS", "40")
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance", "ignored_auth",
)  # fmt: skip


async def described():
    providers = [Simulated("sim")]
    async with Scheduler(providers=providers) as s:
        gateway, shelf = Gateway(s, providers, Tokens(s.store), max_hold_ms=0), Shelf(s.store)
        reader = Reader(s, shelf, gateway.named, gateway.provider)
        return openapi(served(gateway, shelf, Keeper(s, shelf, reader, gateway.noted)))


def test_it_does_what_its_description_says(start, provider, tmp_path):
    (tmp_path / "openapi.json").write_text(json.dumps(asyncio.run(described())))
    # A budget that comes back all the time: some are answered, some held, some refused.
    made = start(provider, "--max-hold", "300ms", budget="")
    made.cli("budget", "set", "default", "$1/2s", "--create")
    before = provider.billed()
    words = [
        SCHEMATHESIS, "run", "openapi.json", "--url", made.root, "--checks", ",".join(CHECKS),
        "-H", f"Authorization: Bearer {made.token}", "--request-timeout", "20", "--max-time", SECONDS,
        "--phases", "coverage,fuzzing", "--continue-on-failure", "--warnings", "off", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    assert made.process.poll() is None
    after, found = provider.billed(), made.budget()
    assert after["calls"] > before["calls"]
    assert float(found["reserved_usd"]) == 0
    made.cli("audit")
    said = made.end()
    assert "Traceback" not in said
    assert made.process.returncode == 0
