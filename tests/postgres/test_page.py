"""docs/operations.md: its commands say what stands below them, and its SQL runs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import psycopg
import pytest

from scheduler import Budget, Scheduler
from scheduler.stores.postgres.address import parse
from tests import warm
from tests.conftest import Bench, ask

pytestmark = pytest.mark.anyio
PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
CONSOLE = "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL))
STEPS = re.findall(r"^\$ (scheduler .+)\n((?:(?!\$ ).*\n)*)", CONSOLE, re.MULTILINE)
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


async def test_its_commands_say_what_stands_below_them(tmp_path, url):
    async with Scheduler(tmp_path / "scheduler.db", providers=Bench(),
                         budgets=Budget("team", "$1/day")) as s:  # fmt: skip
        for n in range(3):
            await s.run(ask(n))
    assert len(STEPS) == CONSOLE.count("$ scheduler") == 4
    for command, said in STEPS:
        words = [url if each == "postgresql://…" else each for each in shlex.split(command)[1:]]
        done = warm.run(
            [sys.executable, "-m", "scheduler", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.returncode == 0, done.stderr
        told = done.stdout + "".join(
            f"{line}\n" for line in done.stderr.splitlines() if not line.startswith("note:")
        )
        pattern = ".*".join(map(re.escape, said.replace("postgresql://…", "…").split("…")))
        assert not said or re.fullmatch(pattern, told, re.DOTALL), (command, told)


async def test_its_sql_runs(url):
    async with Scheduler(url, providers=Bench()) as s:
        await s.run(ask(1))
    address = parse(url)
    assert len(QUERIES) == PAGE.count("```sql") == 5
    with psycopg.connect(address.url.get_secret_value(), autocommit=True) as db:
        for query in QUERIES:
            db.execute(re.sub(r"\bscheduler\b(?!')", address.schema, query))
