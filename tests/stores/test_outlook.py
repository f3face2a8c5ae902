"""What memory and a file tell of what is to come."""

from __future__ import annotations

import pytest

from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0
from tests.stores.outlook import Outlook


class TestMemory(Outlook):
    @pytest.fixture
    async def store(self):
        store = MemoryStore()
        await store.open(T0)
        yield store
        await store.aclose()


class TestSqlite(Outlook):
    @pytest.fixture
    async def store(self, tmp_path):
        store = SqliteStore(tmp_path / "s.db")
        await store.open(T0)
        yield store
        await store.aclose()
