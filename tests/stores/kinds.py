"""The stores that need nothing but this process; PostgreSQL's is in tests/postgres."""

from __future__ import annotations

import pytest

from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0


class InMemory:
    """A suite's store is one in memory."""

    @pytest.fixture
    async def store(self):
        store = MemoryStore()
        await store.open(T0)
        yield store
        await store.aclose()


class InFile:
    """A suite's store is a file."""

    @pytest.fixture
    async def store(self, tmp_path):
        store = SqliteStore(tmp_path / "s.db")
        await store.open(T0)
        yield store
        await store.aclose()
