"""What memory and a file tell of what is to come."""

from __future__ import annotations

from tests.stores.kinds import InFile, InMemory
from tests.stores.outlook import Outlook


class TestMemory(InMemory, Outlook):
    pass


class TestSqlite(InFile, Outlook):
    pass
