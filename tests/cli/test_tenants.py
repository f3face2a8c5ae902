"""--tag, --fair-by and --weight, [fairness], and how tenants and deadlines are shown."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing

import pytest

from scheduler import Request, Scheduler
from scheduler.cli.options import Sending
from scheduler.config import load_config
from scheduler.errors import ConfigError
from scheduler.providers.simulated.provider import Simulated
from tests.cli.test_run import write

SIM = ("--base-url", "sim:")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCHEDULER_CONFIG", raising=False)
    return tmp_path


def sent():
    """Whose requests went, in the order in which they were claimed."""
    with closing(sqlite3.connect("scheduler.db")) as db:
        return [name for (name,) in db.execute(
            "SELECT l.tenant FROM reservations v JOIN requests r ON r.id = v.request_id"
            " JOIN lanes l ON l.id = r.lane_id ORDER BY v.id"
        )]  # fmt: skip


def submitted(cli, *words, config=""):
    for name, count in (("ann", 12), ("bob", 3)):
        write(count)
        done = cli("submit", "p.jsonl", "--job", name, "--tag", f"user={name}", *SIM, *words)
        assert done.exit_code == 0, done.stderr


def test_who_submits_little_is_not_held_up_by_who_submits_much(cli):
    submitted(cli, "--fair-by", "user")

    done = cli("worker", "--until-idle", "-c", "1", "--fair-by", "user", *SIM)

    assert done.exit_code == 0, done.stderr
    assert sent()[:6].count("bob") == 3


def test_the_configuration_says_it_for_all(cli, place):
    (place / "scheduler.toml").write_text(
        '[fairness]\nby = "user"\n[fairness.weights]\nann = 3\n', encoding="utf-8"
    )
    submitted(cli)

    done = cli("worker", "--until-idle", "-c", "1", *SIM)

    assert done.exit_code == 0, done.stderr
    assert sent()[:8].count("ann") == 6


def test_a_run_takes_the_same_options(cli):
    write(2)

    done = cli(
        "run", "p.jsonl", "--tag", "user=ann", "--fair-by", "user", "--weight", "ann=2", *SIM
    )

    assert done.exit_code == 0, done.stderr
    assert set(sent()) == {"ann"}


def test_the_command_line_comes_before_the_file(place):
    (place / "scheduler.toml").write_text(
        '[fairness]\nby = "team"\n[fairness.weights]\nann = 3\nbob = 1\n', encoding="utf-8"
    )

    found = Sending(fair_by="user", weight=["bob=0.5", "a=b=2"]).settings(needs_key=False)

    assert found["fair_by"] == "user"
    assert found["weights"] == {"ann": 3, "bob": 0.5, "a=b": 2}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--tag", "ann"), "--tag"),
        (("--tag", "=ann"), "--tag"),
        (("--fair-by", "user", "--weight", "ann"), "--weight"),
        (("--fair-by", "user", "--weight", "ann=much"), "--weight"),
        (("--fair-by", "user", "--weight", "ann=0"), "weights"),
        (("--weight", "ann=2"), "weights"),
    ],
)
def test_what_cannot_be_meant_is_refused(cli, words, named):
    write(1)

    done = cli("run", "p.jsonl", *words, *SIM)

    assert done.exit_code == 3
    assert named in done.stderr


def test_what_is_mistyped_in_the_file_is_told(place):
    (place / "scheduler.toml").write_text('[fairness]\nbye = "user"\n', encoding="utf-8")

    with pytest.raises(ConfigError, match="is it 'by'"):
        load_config()


def test_tenants_and_deadlines_are_shown(cli):
    submitted(cli, "--fair-by", "user")
    assert cli("worker", "--until-idle", "--fair-by", "user", *SIM).exit_code == 0
    submitted(cli, "--fair-by", "user", "--retry-failed")

    async def with_a_deadline():
        provider = Simulated()
        provider.service = "sim:"
        async with Scheduler("scheduler.db", providers=provider, role="client",
                             fair_by="user") as s:  # fmt: skip
            await s.enqueue([Request.chat("sim-small", "Hi", key="due", max_tokens=5, deadline="1h",
                                          tags={"user": "eve"})])  # fmt: skip

    asyncio.run(with_a_deadline())

    status = json.loads(cli("status", "--json").stdout)
    assert {each["tenant"]: each["waiting"] for each in status["tenants"]} == {
        "ann": 0, "bob": 0, "eve": 1
    }  # fmt: skip
    assert float(status["tenants"][0]["served_usd"]) > 0
    (told,) = [each for each in cli("status").stdout.splitlines() if each.startswith("tenants")]
    assert "eve $0" in told
    assert "(1 waiting)" in told
    (row,) = json.loads(cli("queue", "--json").stdout)
    assert row["tenant"] == "eve"
    assert row["deadline"] is not None
    assert "TENANT" in (table := cli("queue").stdout)
    assert "DUE IN" in table


def test_without_tenants_no_column_and_no_line_is_of_them(cli):
    write(2)
    assert cli("submit", "p.jsonl", "--job", "j", *SIM).exit_code == 0

    assert "TENANT" not in cli("queue").stdout
    assert "tenants" not in cli("status").stdout
