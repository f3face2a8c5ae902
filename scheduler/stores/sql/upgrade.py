"""Bringing a SQLite file of an older version up to date.

Every version has its steps here, in SQL; with the indexes, `schema.sql` is what they lead to.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from scheduler.duration import format_duration
from scheduler.errors import StoreLocked
from scheduler.stores.process import GONE_MS, Process, is_dead
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.spent import POSTED, POSTED_ON

_ACCOUNTS = """CREATE TABLE accounts_2 (
  id INTEGER PRIMARY KEY AUTOINCREMENT, budget_id INTEGER NOT NULL, position INTEGER NOT NULL,
  cap TEXT NOT NULL, warned INTEGER NOT NULL DEFAULT 0,
  warned_slot_ms INTEGER NOT NULL DEFAULT 0, waiter TEXT) STRICT"""
_LANES = """CREATE TABLE lanes_2 (
  id INTEGER PRIMARY KEY AUTOINCREMENT, worker_id INTEGER NOT NULL, provider TEXT NOT NULL,
  budgets TEXT NOT NULL, priority INTEGER NOT NULL, may_wait INTEGER NOT NULL,
  waiting INTEGER NOT NULL DEFAULT 0, shortfall TEXT, shut_since_ms INTEGER NOT NULL DEFAULT 0,
  parked_total_ms INTEGER NOT NULL DEFAULT 0) STRICT"""

_SPENT = (
    "CREATE TABLE spent (quarter_ms INTEGER NOT NULL, job_id INTEGER NOT NULL, model TEXT NOT NULL,"
    " attempts INTEGER NOT NULL, nusd INTEGER NOT NULL, tokens INTEGER NOT NULL,"
    " PRIMARY KEY (quarter_ms, job_id, model)) STRICT, WITHOUT ROWID",
    "CREATE TABLE spent_of_budgets (budget_id INTEGER NOT NULL, quarter_ms INTEGER NOT NULL,"
    " attempts INTEGER NOT NULL, nusd INTEGER NOT NULL, tokens INTEGER NOT NULL,"
    " over_nusd INTEGER NOT NULL, over_tokens INTEGER NOT NULL,"
    " PRIMARY KEY (budget_id, quarter_ms)) STRICT, WITHOUT ROWID",
    f"INSERT INTO spent {POSTED}",
    "INSERT INTO spent_of_budgets"
    " SELECT b.value, p.quarter_ms, sum(p.attempts), sum(p.nusd), sum(p.tokens),"
    " sum(p.over_nusd), sum(p.over_tokens)"
    f" FROM ({POSTED_ON}) AS p, json_each('[' || trim(p.budgets, ',') || ']') AS b GROUP BY 1, 2",
)

_TAGGED = (
    "ALTER TABLE requests ADD COLUMN tags TEXT",
    "ALTER TABLE reservations ADD COLUMN tags TEXT",
    "CREATE TABLE spent_of_tags (quarter_ms INTEGER NOT NULL, tag TEXT NOT NULL,"
    " value TEXT NOT NULL, attempts INTEGER NOT NULL, nusd INTEGER NOT NULL,"
    " tokens INTEGER NOT NULL, PRIMARY KEY (quarter_ms, tag, value)) STRICT, WITHOUT ROWID",
    "CREATE INDEX requests_by_end ON requests (state, id) WHERE ended_at_ms IS NOT NULL",
)


def _remade(table: str, create: str, index: str) -> tuple[str, ...]:
    """A table whose columns stay in their order, made anew."""
    return (
        create,
        f"INSERT INTO {table}_2 SELECT * FROM {table}",
        f"DROP TABLE {table}",
        f"ALTER TABLE {table}_2 RENAME TO {table}",
        index,
    )


STEPS: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE workers ADD COLUMN is_lost INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE requests ADD COLUMN ended_at_ms INTEGER",
        "ALTER TABLE reservations ADD COLUMN is_assumed INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE reservations ADD COLUMN provider_id TEXT",
        "ALTER TABLE reservations ADD COLUMN why TEXT",
        "CREATE INDEX reservations_suspense ON reservations (id) WHERE state = 'suspense'",
        "CREATE INDEX reservations_of_request ON reservations (request_id)",
        "CREATE TABLE sums (minute_ms INTEGER NOT NULL, budgets TEXT NOT NULL, model TEXT NOT NULL,"
        " job_id INTEGER NOT NULL, slots TEXT NOT NULL, attempts INTEGER NOT NULL,"
        " nusd INTEGER NOT NULL, tokens INTEGER NOT NULL, overruns INTEGER NOT NULL,"
        " PRIMARY KEY (minute_ms, budgets, model, job_id, slots)) STRICT, WITHOUT ROWID",
        *_remade(
            "accounts",
            _ACCOUNTS,
            "CREATE INDEX accounts_of_budget ON accounts (budget_id, position)",
        ),
        *_remade("lanes", _LANES, "CREATE INDEX lanes_of_worker ON lanes (worker_id)"),
    ),
    2: (
        "ALTER TABLE lanes ADD COLUMN model TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE requests ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE requests ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0",
        "CREATE TABLE gates (provider TEXT NOT NULL, model TEXT NOT NULL,"
        " is_front INTEGER NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL,"
        " PRIMARY KEY (provider, model, is_front)) STRICT, WITHOUT ROWID",
    ),
    3: (
        # Whose a request is, so that what is due is found by it.
        "ALTER TABLE requests ADD COLUMN worker_id INTEGER NOT NULL DEFAULT 0",
        "UPDATE requests SET worker_id = (SELECT worker_id FROM lanes WHERE lanes.id = lane_id)"
        " WHERE state IN ('queued', 'delayed', 'running')",
        "DROP INDEX requests_delayed",
        "DROP INDEX requests_expiring",
        "CREATE INDEX requests_delayed ON requests (worker_id, not_before_ms)"
        " WHERE state = 'delayed'",
        "CREATE INDEX requests_expiring ON requests (worker_id, expires_at_ms)"
        " WHERE expires_at_ms IS NOT NULL AND state IN ('queued', 'delayed')",
        "ALTER TABLE lanes ADD COLUMN service TEXT NOT NULL DEFAULT ''",
        "DROP INDEX lanes_of_worker",
        "CREATE INDEX lanes_of_worker ON lanes (worker_id, budgets)",
        "CREATE UNIQUE INDEX lanes_shared ON lanes"
        " (provider, model, budgets, priority, may_wait, service) WHERE worker_id = 0",
        "CREATE INDEX accounts_in_line ON accounts (budget_id) WHERE waiter IS NOT NULL",
        "CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, worker_id INTEGER NOT NULL,"
        " what TEXT NOT NULL) STRICT",
        "CREATE TABLE ends (seq INTEGER PRIMARY KEY AUTOINCREMENT, request_id INTEGER NOT NULL)"
        " STRICT",
        "DROP INDEX requests_running",
        "DROP INDEX requests_undelivered",
        "DROP INDEX reservations_open",
        # Of those that ended before that was noted nobody knows when.
        "UPDATE requests SET ended_at_ms = submitted_at_ms WHERE ended_at_ms IS NULL"
        " AND state IN ('succeeded', 'failed', 'cancelled', 'expired')",
        # Some files have these two already.
        "DROP INDEX IF EXISTS requests_ended",
        "CREATE INDEX requests_ended ON requests (lane_id, is_delivered, ended_at_ms)"
        " WHERE ended_at_ms IS NOT NULL",
        "CREATE INDEX IF NOT EXISTS reservations_unknown ON reservations"
        " (coalesce(settled_at_ms, made_at_ms)) WHERE state = 'suspense'",
        "CREATE INDEX requests_live ON requests (job_id, id) WHERE ended_at_ms IS NULL",
        "CREATE INDEX requests_outcomes ON requests (job_id, is_delivered, id)"
        " WHERE key IS NOT NULL AND ended_at_ms IS NOT NULL",
        "CREATE INDEX reservations_pending ON reservations (worker_id, request_id)"
        " WHERE state = 'pending'",
        "CREATE INDEX reservations_made ON reservations (made_at_ms)",
        *_SPENT,
    ),
    4: ("ALTER TABLE workers ADD COLUMN about TEXT",),
    5: (
        "ALTER TABLE accounts ADD COLUMN risk TEXT",
        "CREATE INDEX accounts_at_risk ON accounts (budget_id) WHERE risk IS NOT NULL",
        "CREATE TABLE lengths (id INTEGER PRIMARY KEY, model TEXT NOT NULL,"
        " job_id INTEGER NOT NULL, made_at_ms INTEGER NOT NULL, ended_at_ms INTEGER NOT NULL,"
        " nusd INTEGER NOT NULL, tokens INTEGER NOT NULL, ceiling_nusd INTEGER NOT NULL,"
        " ceiling_tokens INTEGER NOT NULL) STRICT",
    ),
    6: (
        "CREATE TABLE notes (kind TEXT NOT NULL, name TEXT NOT NULL, said TEXT NOT NULL,"
        " PRIMARY KEY (kind, name)) STRICT, WITHOUT ROWID",
        "CREATE TABLE took (quarter_ms INTEGER NOT NULL, model TEXT NOT NULL,"
        " bucket INTEGER NOT NULL, calls INTEGER NOT NULL, nusd INTEGER NOT NULL,"
        " ceiling_nusd INTEGER NOT NULL, PRIMARY KEY (quarter_ms, model, bucket))"
        " STRICT, WITHOUT ROWID",
        "CREATE TABLE outbox (id INTEGER PRIMARY KEY, hook TEXT NOT NULL, topic TEXT NOT NULL,"
        " event TEXT, made_at_ms INTEGER NOT NULL, due_at_ms INTEGER,"
        " tries INTEGER NOT NULL DEFAULT 0) STRICT",
        "CREATE UNIQUE INDEX outbox_by_topic ON outbox (hook, topic)",
        "CREATE INDEX outbox_due ON outbox (due_at_ms) WHERE due_at_ms IS NOT NULL",
        "ALTER TABLE lanes ADD COLUMN tenant TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE lanes ADD COLUMN is_due INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE requests ADD COLUMN due_at_ms INTEGER",
        "DROP INDEX lanes_shared",
        "CREATE UNIQUE INDEX lanes_shared ON lanes"
        " (provider, model, budgets, priority, may_wait, service, tenant, is_due)"
        " WHERE worker_id = 0",
        "CREATE INDEX requests_due ON requests (lane_id, due_at_ms, id)"
        " WHERE state = 'queued' AND due_at_ms IS NOT NULL",
        "CREATE TABLE tenants (provider TEXT NOT NULL, priority INTEGER NOT NULL,"
        " is_clock INTEGER NOT NULL, tenant TEXT NOT NULL, state TEXT NOT NULL,"
        " changed_at_ms INTEGER NOT NULL, PRIMARY KEY (provider, priority, is_clock, tenant)) STRICT, WITHOUT ROWID",
    ),
    7: (
        "CREATE TABLE papers (kind TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL,"
        " said TEXT NOT NULL, made_at_ms INTEGER NOT NULL, is_open INTEGER NOT NULL,"
        " PRIMARY KEY (kind, name)) STRICT, WITHOUT ROWID",
        "CREATE INDEX papers_of ON papers (kind, owner, made_at_ms, name)",
        "CREATE INDEX papers_open ON papers (kind, made_at_ms, name) WHERE is_open = 1",
        "CREATE TABLE pages (kind TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL,"
        " said TEXT NOT NULL, PRIMARY KEY (kind, name, number)) STRICT",
        *_TAGGED,
    ),
    8: (),  # those of it write without the lock of `lockfile`
}
"""From a version to the statements that lead to the next one."""


def upgrade(db: Connection, path: Path, version: int, me: Process, now_ms: int) -> Path:
    """Take all steps from `version` on, inside the caller's transaction; returns where a copy is.

    Raises:
        StoreLocked: A process of the older version still works on the file.
    """
    for host, pid, started, seen_at_ms in db.read(
        "SELECT host, pid, started, seen_at_ms FROM workers"
    ):
        silent_ms = max(0, now_ms - seen_at_ms)
        if silent_ms <= GONE_MS and not is_dead(me, Process(host, pid, started)):
            raise StoreLocked(
                f"{path} is in use by process {pid} ({host.split()[0]}) with an older version of this "
                f"package, last seen {format_duration(silent_ms)} ago; nothing was changed. Stop it "
                "first, then try again; one that nobody can see is taken for gone after a day"
            )
    saved = _back_up(path, version)
    for step in sorted(each for each in STEPS if each >= version):
        for statement in STEPS[step]:
            db.write(statement)
    return saved


def _back_up(path: Path, version: int) -> Path:
    """Copy the file aside, whole and on the disk, for its owner alone; older copies stay.

    The caller's transaction keeps others from writing meanwhile, and has written nothing.
    """
    saved = path.with_name(f"{path.name}.v{version}.bak")
    number = 1
    while saved.exists():
        number += 1
        saved = path.with_name(f"{path.name}.v{version}.bak{number}")
    part = saved.with_name(f"{saved.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(part)) as copy:
        source.backup(copy)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(saved)
    return saved
