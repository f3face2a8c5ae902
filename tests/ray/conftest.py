"""One cluster and one database for all tests, a schema and a provider for each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ray.harness import Nodes, Place

# ``make ray`` installs what these need, in an environment of its own.
collect_ignore_glob = [] if find_spec("ray") else ["test_*.py"]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    from tests.postgres.server import running

    with running() as made:
        yield made.dsn


@pytest.fixture(scope="session")
def cluster() -> Iterator[Nodes]:
    from tests.ray.harness import KEY, nodes

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anybody
    os.environ["OPENAI_API_KEY"] = KEY
    with nodes() as made:
        yield made


@pytest.fixture
def place(cluster, dsn, tmp_path) -> Iterator[Place]:
    from tests.postgres.test_processes import Database
    from tests.processes.harness import server
    from tests.ray.harness import Place

    cluster.fill()
    options = ("--latency", "150ms", "--output-tokens", "20", "--output-sigma", "0")
    with server(*options) as provider:
        base = Database(f"{dsn}?schema=ray_{next(_numbers)}")
        made = Place(cluster, base, provider, tmp_path)
        yield made
        made.end()
