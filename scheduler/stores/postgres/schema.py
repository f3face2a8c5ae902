"""The tables of a store: made on first use, in a schema of their own, by whoever comes first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import psycopg

from scheduler.errors import StoreError, StoreForeign, StoreLocked, StoreTooNew
from scheduler.guards.plain import logger_of
from scheduler.stores.postgres.address import Address
from scheduler.stores.postgres.connection import lock_key, quoted
from scheduler.stores.postgres.dialect import schema_of
from scheduler.stores.postgres.link import Link

logger = logger_of("scheduler.stores.postgres")

OLDEST_SERVER = 14
VERSION = 6
_OWN = (
    # Of the store itself: its version.
    "CREATE TABLE store (version BIGINT NOT NULL)",
    # The last transaction of each process, for whoever lost the answer to a commit.
    "CREATE TABLE commits (process TEXT PRIMARY KEY, number BIGINT NOT NULL, at_ms BIGINT NOT NULL)"
    " WITH (fillfactor = 50)",
)
# How tables are kept in order. Of those that grow, what is dead is removed by number, not by share:
# of ten million requests a fifth would be two million entries that each claim walks past. Those that
# every turn changes have room for the next version beside the last.
_KEPT = (
    *(
        f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0,"
        " autovacuum_vacuum_threshold = 50000, autovacuum_analyze_scale_factor = 0.02)"
        for table in ("requests", "reservations")
    ),
    *(
        f"ALTER TABLE {table} SET (fillfactor = 50)"
        for table in ("accounts", "balances", "lanes", "tallies", "spent", "spent_of_budgets")
    ),
)
# From each version to the next; they are made in one transaction, with the version's number.
STEPS: dict[int, tuple[str, ...]] = {
    5: (
        "DROP INDEX requests_queued",
        "CREATE INDEX requests_queued ON requests (lane_id, (id + 0)) WHERE state = 'queued'",
        "DROP INDEX reservations_made",
        "CREATE INDEX reservations_made ON reservations USING brin (made_at_ms)",
        *_KEPT,
    ),
}


def check_server(link: Link, address: Address) -> None:
    """Refuse a server that cannot hold a store. Raises `StoreError`."""
    number = link.info.server_version
    if number < OLDEST_SERVER * 10_000:
        raise StoreError(
            f"{address.shown} is PostgreSQL {number // 10_000}; at least {OLDEST_SERVER} is needed"
        )
    encoding = link.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StoreError(
            f"{address.shown} has the encoding {encoding}, in which not every text can be stored; "
            "make a database with the encoding UTF8"
        )


def version_of(link: Link, address: Address) -> int:
    """The version of the tables; 0: there are none."""
    schema = address.schema
    row = link.execute(
        "SELECT to_regclass(%s)::text IS NOT NULL, to_regclass(%s)::text IS NOT NULL,"
        " (SELECT count(*) FROM pg_namespace WHERE nspname = %s)",
        (f"{quoted(schema)}.store", f"{quoted(schema)}.requests", schema),
    ).fetchone()
    assert row is not None
    is_ours, has_others, _ = row
    if not is_ours and has_others:
        raise StoreForeign(
            f"the schema {schema!r} in {address.shown} holds tables of another program; nothing was "
            "changed. Name another one with ?schema=NAME"
        )
    if not is_ours:
        return 0
    found = link.execute(f"SELECT version FROM {quoted(schema)}.store".encode()).fetchone()
    version = 0 if found is None else int(found[0])
    if version > VERSION:
        raise StoreTooNew(address.shown, version, VERSION)
    return version


def make(link: Link, address: Address) -> None:
    """Make the tables, unless somebody else did so meanwhile."""
    schema = address.schema
    with _alone(link, address):
        if version_of(link, address):
            return
        there = link.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone()
        try:
            if there is None:  # asked first: who may not make one may still use one
                link.execute(f"CREATE SCHEMA {quoted(schema)}".encode())
            script = files("scheduler.stores.sql").joinpath("schema.sql")
            for statement in [*schema_of(script.read_text(encoding="utf-8")), *_OWN, *_KEPT]:
                link.execute(statement.encode())
            link.execute("INSERT INTO store (version) VALUES (%s)", (VERSION,))
        except psycopg.errors.InsufficientPrivilege as exc:
            said = str(exc).partition("\n")[0]
            raise StoreError(
                f"{address.shown}: {said}; nothing was changed. Let this user make the schema "
                f"{schema!r}, or make it for them: CREATE SCHEMA {quoted(schema)} AUTHORIZATION …"
            ) from None


def upgrade(link: Link, address: Address, lease_ms: int) -> None:
    """Bring older tables up to date: all of it or nothing, while nobody works on them.

    Raises `StoreLocked` if a worker does, which would be one of the older version.
    """
    with _alone(link, address):
        version = version_of(link, address)
        if version == VERSION:
            return  # somebody else did it meanwhile
        found = link.execute(
            "SELECT count(*) FROM workers WHERE is_lost = 0"
            " AND seen_at_ms > extract(epoch FROM clock_timestamp()) * 1000 - %s",
            (lease_ms,),
        ).fetchone()
        if found is not None and found[0]:
            raise StoreLocked(
                f"{address.shown} has schema version {version}, this package has {VERSION}, and "
                f"{found[0]} processes of the older one are at work; nothing was changed. Stop them first"
            )
        for step in range(version, VERSION):
            for statement in STEPS[step]:
                link.execute(statement.encode())
        link.execute("UPDATE store SET version = %s", (VERSION,))
    logger.info("%s was brought from schema version %d to %d", address.shown, version, VERSION)


@contextmanager
def _alone(link: Link, address: Address) -> Iterator[None]:
    """One transaction, in the store's schema, while nobody else writes there."""
    with link.transaction():
        link.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key(address.schema),))
        link.execute(
            "SELECT set_config('search_path', %s, true)", (f"{quoted(address.schema)}, pg_temp",)
        )
        yield
