"""The tables of a store: made on first use, in a schema of their own, by whoever comes first."""

from __future__ import annotations

from importlib.resources import files

import psycopg

from scheduler.errors import StoreError, StoreForeign, StoreTooNew
from scheduler.stores.file import SCHEMA_VERSION
from scheduler.stores.postgres.address import Address
from scheduler.stores.postgres.connection import lock_key, quoted
from scheduler.stores.postgres.dialect import schema_of
from scheduler.stores.postgres.link import Link

OLDEST_SERVER = 14
_OWN = (
    # Of the store itself: its version.
    "CREATE TABLE store (version BIGINT NOT NULL)",
    # The last transaction of each process, for whoever lost the answer to a commit.
    "CREATE TABLE commits (process TEXT PRIMARY KEY, number BIGINT NOT NULL, at_ms BIGINT NOT NULL)"
    " WITH (fillfactor = 50)",
)


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
    if version > SCHEMA_VERSION:
        raise StoreTooNew(address.shown, version, SCHEMA_VERSION)
    if version < SCHEMA_VERSION:
        raise StoreError(
            f"{address.shown} has schema version {version}, this package has {SCHEMA_VERSION}; nothing "
            "was changed. Use the version of this package that made it"
        )
    return version


def make(link: Link, address: Address) -> None:
    """Make the tables, unless somebody else did so meanwhile."""
    schema = address.schema
    with link.transaction():
        link.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key(schema),))
        if version_of(link, address):
            return
        there = link.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone()
        try:
            if there is None:  # asked first: who may not make one may still use one
                link.execute(f"CREATE SCHEMA {quoted(schema)}".encode())
            link.execute(
                "SELECT set_config('search_path', %s, true)", (f"{quoted(schema)}, pg_temp",)
            )
            script = files("scheduler.stores.sql").joinpath("schema.sql")
            for statement in [*schema_of(script.read_text(encoding="utf-8")), *_OWN]:
                link.execute(statement.encode())
            link.execute("INSERT INTO store (version) VALUES (%s)", (SCHEMA_VERSION,))
        except psycopg.errors.InsufficientPrivilege as exc:
            said = str(exc).partition("\n")[0]
            raise StoreError(
                f"{address.shown}: {said}; nothing was changed. Let this user make the schema "
                f"{schema!r}, or make it for them: CREATE SCHEMA {quoted(schema)} AUTHORIZATION …"
            ) from None
