from __future__ import annotations

import pytest

from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0, Conformance


class TestSqlite(Conformance):
    @pytest.fixture
    async def store(self, tmp_path):
        store = SqliteStore(tmp_path / "s.db")
        await store.open(T0)
        yield store
        await store.aclose()
