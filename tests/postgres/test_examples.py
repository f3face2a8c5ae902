"""The examples in what PostgreSQL's rooms say of themselves."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ("stores.postgres.address", "stores.postgres.clock", "stores.postgres.dialect",
           "stores.sql.dialect", "cli.concealing", "guards.plain")  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_an_example_is_as_it_says(name):
    found = doctest.testmod(importlib.import_module(f"scheduler.{name}"))

    assert found.attempted
    assert not found.failed
