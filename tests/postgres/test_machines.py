"""The state machines of the other stores, with PostgreSQL in place of the file."""

from __future__ import annotations

import logging
from unittest import mock

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from scheduler.stores.postgres.store import PostgresStore
from tests.postgres.inline import InlinePostgres
from tests.simulation.world import LEASE_MS as WORLDS_LEASE_MS
from tests.simulation.world import World
from tests.stores.test_foreseen import RiskyMachine
from tests.stores.test_machine import StoreMachine
from tests.stores.test_shared_machine import LEASE_MS, SharedMachine

SEEDS = (0, 2, 3, 4, 5)  # seed 1 takes as long as all of these


def brief(examples: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=25, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def test_it_agrees_with_the_memory_store_in_any_order_of_operations(fresh):
    class Machine(StoreMachine):
        def database(self):
            store = PostgresStore(fresh())
            store.clock = None
            return store

    run_state_machine_as_test(Machine, settings=brief(12))


def test_it_lets_in_the_same_calls_where_budgets_take_a_risk(fresh):
    class Machine(RiskyMachine):
        def database(self):
            store = PostgresStore(fresh())
            store.clock = None
            return store

    run_state_machine_as_test(Machine, settings=brief(8))


def test_two_processes_do_anything_with_shared_lanes(fresh):
    class Machine(SharedMachine):
        def __init__(self):
            self.url = fresh()
            super().__init__()

        def store_of(self, process):
            return InlinePostgres(self.url, process, LEASE_MS)

        def look(self, bench, sql):
            return bench.store._session.read(lambda db: db.read(sql))

    run_state_machine_as_test(Machine, settings=brief(12))


class PostgresWorld(World):
    """A world whose processes share a database."""

    url = ""

    def store_of(self, process, statement):
        return InlinePostgres(self.url, process, WORLDS_LEASE_MS, statement)

    def open_reader(self):
        plain, _, schema = self.url.partition("schema=")
        self.reader = psycopg.connect(plain.rstrip("?&"), autocommit=True)
        self.reader.execute(f"SET search_path = {schema}")

    def read_state(self, question):
        sql = "SELECT state FROM requests WHERE key = %s"
        return str(self.reader.execute(sql, (question,)).fetchone()[0])


@pytest.fixture
def quiet():
    logging.disable(logging.CRITICAL)
    asyncio_s = logging.getLogger("asyncio")
    asyncio_s.disabled = True
    yield
    logging.disable(logging.NOTSET)
    asyncio_s.disabled = False


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_goes_wrong_between_processes_on_one_database(seed, fresh, quiet):
    with mock.patch.object(PostgresWorld, "url", fresh()):
        assert PostgresWorld(seed, 40, "postgres").run().answered > 3
