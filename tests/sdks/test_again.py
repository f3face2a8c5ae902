"""What was adopted for a scheduler that is closed, can be adopted for the next one."""

from __future__ import annotations

import asyncio

import pytest

import scheduler
from scheduler import ConfigError
from tests.sdks.conftest import make_scheduler
from tests.sdks.kits import KITS, NAMES, OPENAI, ask_sync

# What SDKs warn of is theirs.
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("kit", KITS, ids=NAMES)
@pytest.mark.parametrize("sync", [False, True], ids=["async", "threads"])
async def test_a_client_is_wrapped_again_when_its_scheduler_is_closed(kit, sync, service, connect):
    def ask():
        return asyncio.to_thread(ask_sync, kit, client, "Hi") if sync else kit.ask(client, "Hi")

    client = connect(kit, service.url, sync)
    for times in range(1, 4):
        async with make_scheduler() as s:
            client = s.wrap(client)
            with pytest.raises(ConfigError, match="wrapped already"):
                s.wrap(client)
            assert kit.text(await ask())
            assert s.stats().succeeded == 1
            assert s.stats().posted_nusd * times == service.since("billed_nusd")
        with pytest.raises(kit.error(), match="closed"):
            await ask()
        assert service.since("received") == times


@pytest.mark.parametrize("kit", [OPENAI], ids=str)
async def test_its_own_word_on_retries_holds_again(kit, failing, connect):
    client = connect(kit, failing.url, False).with_options(max_retries=4)
    for times in (1, 2):
        async with make_scheduler(retry_wait_s=lambda tries: 0.0, max_attempts=9) as s:
            client = s.wrap(client)
            with pytest.raises(kit.error()):
                await kit.ask(client, "Hi")
            assert failing.since("received") == 5 * times


async def test_so_is_the_process(service, connect):
    client = connect(OPENAI, service.url, False)
    for _ in range(2):
        async with make_scheduler() as s:
            scheduler.instrument(s)  # who keeps no way to undo it can do it again all the same
            with pytest.raises(ConfigError, match="done already"):
                scheduler.instrument(s)
            assert OPENAI.text(await OPENAI.ask(client, "Hi"))
            assert s.stats().succeeded == 1
        with pytest.raises(OPENAI.error(), match="closed"):
            await OPENAI.ask(client, "Hi")
    async with make_scheduler() as s:
        with scheduler.instrument(s):
            await OPENAI.ask(client, "Hi")
    assert OPENAI.text(await OPENAI.ask(client, "Hi"))
    assert service.since("received") == 4
