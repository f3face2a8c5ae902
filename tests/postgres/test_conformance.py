"""What every store promises, on PostgreSQL."""

from __future__ import annotations

import pytest

from tests.stores.by_tag import ByTag
from tests.stores.conformance import Conformance
from tests.stores.foreseen import Foreseen
from tests.stores.keeping import Keeping
from tests.stores.leaving import Leaving
from tests.stores.outlook import Outlook
from tests.stores.tenancy import Tenancy


class TestPostgres(Conformance):
    odd_key = "a\x01b"  # a NUL is refused

    @pytest.fixture
    async def store(self, opened):
        return await opened()


class TestForeseen(Foreseen):
    @pytest.fixture
    async def store(self, opened):
        return await opened()


class TestOutlook(Outlook):
    @pytest.fixture
    async def store(self, opened):
        return await opened()


class TestTenancy(Tenancy):
    @pytest.fixture
    async def store(self, opened):
        return await opened()


class TestKeeping(Keeping):
    @pytest.fixture
    async def store(self, opened):
        return await opened()


class TestLeaving(Leaving):
    @pytest.fixture
    async def store(self, opened):
        return await opened()


class TestByTag(ByTag):
    @pytest.fixture
    async def store(self, opened):
        return await opened()
