"""A process without a provider's key: what it refuses itself, and what it leaves to others."""

from __future__ import annotations

import asyncio

import pytest

from scheduler import OpenAI, Request, Scheduler
from scheduler.errors import ConfigError, CredentialsRefused

pytestmark = pytest.mark.anyio
PRICES = {"m": "1/1"}


def keyless(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return OpenAI(base_url="https://away.invalid/v1")


def asked(key):
    return Request.chat("m", "Hi", max_tokens=5, key=key)


async def test_who_waits_for_it_hears_at_once_that_the_key_is_missing(tmp_path, monkeypatch):
    async with Scheduler(
        tmp_path / "s.db", providers=keyless(monkeypatch), prices=PRICES, poll_interval=0.01
    ) as s:
        assert s.serves == {}
        with pytest.raises(CredentialsRefused, match="OPENAI_API_KEY is not set"):
            await asyncio.wait_for(s.run(asked("k")), 20)
        (submitted,) = await s.enqueue([asked("q")])  # who says nothing of others means this one
        while not (found := await s.store.outcomes([submitted.id])):
            await asyncio.sleep(0.01)
        assert found[0].error["code"] == "api_key_missing"
        assert s.stats().posted_nusd == 0


async def test_what_is_left_to_others_waits_for_them(tmp_path, monkeypatch):
    async with Scheduler(
        tmp_path / "s.db", providers=keyless(monkeypatch), prices=PRICES, poll_interval=0.01
    ) as s:
        await s.enqueue([asked("k")], for_others=True)
        for _ in range(3):
            s._pump.wake()
            await s._pump.turned()

        assert (await s.store.counts()).queued == 1
        assert not s.is_waiting  # for nothing that this one is to do
        (told,) = await s.store.unserved(s.now_ms())
        assert (told.provider, told.waiting) == ("openai", 1)


async def test_where_nobody_could_come_it_is_refused(monkeypatch):
    async with Scheduler(providers=keyless(monkeypatch), prices=PRICES) as s:
        with pytest.raises(ConfigError, match=r"OPENAI_API_KEY: is not set.*nothing was sent"):
            await s.enqueue([asked("k")], for_others=True)
        with pytest.raises(ConfigError, match="is not set"):
            s.validate(asked("k"), for_others=True)
        s.validate(asked("k"))
        assert (await s.store.counts()).total == 0


async def test_a_provider_that_is_added_without_its_key_is_left_too(tmp_path, monkeypatch):
    here = OpenAI(base_url="http://127.0.0.1:9/v1", name="here")
    async with Scheduler(tmp_path / "s.db", providers=here, prices=PRICES) as s:
        s.add_provider(keyless(monkeypatch))

        assert set(s.serves) == {"here"}
