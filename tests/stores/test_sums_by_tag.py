"""The audit recomputes what was spent by tag, as far as that is kept."""

from __future__ import annotations

from tests.stores.by_tag import ByTag
from tests.stores.kinds import InFile


class TestSqlite(InFile, ByTag):
    pass
