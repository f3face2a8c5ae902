"""Copies that an SDK makes of a wrapped client are wrapped, whatever they are given."""

from __future__ import annotations

import asyncio
import importlib

import pytest

from tests.sdks.conftest import make_scheduler
from tests.sdks.kits import ANTHROPIC, FAMILY, GROQ, OPENAI

KITS = (OPENAI, ANTHROPIC, GROQ)


def http_client(kit, sync, **options):
    family = importlib.import_module("httpx" if kit is GROQ else FAMILY)
    return (family.Client if sync else family.AsyncClient)(**options)


@pytest.mark.parametrize("kit", KITS, ids=str)
@pytest.mark.parametrize("name", ["copy", "with_options"])
async def test_one_with_an_http_client_of_its_own_is_counted(kit, name, service, connect):
    async with make_scheduler() as s:
        client = s.wrap(connect(kit, service.url, False))
        async with http_client(kit, False) as given:
            copied = getattr(client, name)(http_client=given, max_retries=4)
            again = copied.with_options(timeout=30)
            for each in (copied, again):
                assert kit.text(await kit.ask(each, "Hi"))
                assert type(each) is type(client)
                assert each.max_retries == 4
            assert [chunk async for chunk in await kit.stream(again, "Hi")]
        assert s.stats().succeeded == 3
        assert s.stats().posted_nusd == service.since("billed_nusd")


@pytest.mark.parametrize("kit", KITS, ids=str)
async def test_in_threads_too_and_what_it_says_of_retries_holds(kit, failing, connect):
    async with make_scheduler(retry_wait_s=lambda tries: 0.0) as s:
        client = s.wrap(connect(kit, failing.url, True))
        with http_client(kit, True) as given:
            copied = client.copy(http_client=given, max_retries=2)
            with pytest.raises(kit.error()):
                await asyncio.to_thread(kit.ask, copied, "Hi")
        assert failing.since("received") == 3


@pytest.mark.parametrize("kit", KITS, ids=str)
async def test_one_that_was_wrapped_already_goes_its_own_way(kit, service, connect):
    async with make_scheduler() as s, make_scheduler() as other:
        client = s.wrap(connect(kit, service.url, False))
        given = other.wrap(http_client(kit, False))
        copied = client.copy(http_client=given)
        await kit.ask(copied, "Hi")
        assert (s.stats().succeeded, other.stats().succeeded) == (0, 1)
        await given.aclose()
