"""A store with a bit of everything, and the command line in this process."""

import asyncio
import os
import time

import pytest
from typer.testing import CliRunner

from scheduler.admission.plan import LaneKey
from scheduler.budget import Budget
from scheduler.request import Request, RequestState, Response
from scheduler.stores import open_store
from scheduler.stores.base import NewRequest, Outcome, Settlement, Turn

CEILING_NUSD = 300_000_000  # $0.30


def _now_ms():
    return time.time_ns() // 1_000_000


async def _fill(path):
    """Three answered for $0.80, one unknown, three parked: $0.15 is left of $1."""
    store = open_store(path)
    await store.open(_now_ms())
    await store.define([Budget("default", "$1/day @Europe/Athens")], _now_ms())
    (status,) = await store.budgets(_now_ms())
    lane = LaneKey("openai", (status.id,), 20)
    new = []
    for number in range(7):
        model = "sim-large" if number == 0 else "sim-small"
        request = Request.chat(model, f"Question {number}", key=f"q-{number}", job="labels")
        ceiling_nusd = CEILING_NUSD // 6 if number == 3 else CEILING_NUSD
        new.append(NewRequest(request, lane, ceiling_nusd, 1000, 1, request.digest()))
    for each in new:
        prepare = getattr(store, "prepare", None)
        if prepare is not None:
            prepare(each)
    claimed = (await store.turn(Turn(_now_ms(), submit=new, slots={"openai": 8}))).claimed
    assert len(claimed) == 4
    ends = [
        Settlement(
            each.reservation_id,
            each.request_id,
            Outcome.POST,
            RequestState.SUCCEEDED,
            nusd,
            100,
            response=Response({}),
        )
        for each, nusd in zip(claimed[:3], (300_000_000, 250_000_000, 250_000_000), strict=True)
    ]
    ends.append(
        Settlement(
            claimed[3].reservation_id,
            claimed[3].request_id,
            Outcome.SUSPEND,
            RequestState.FAILED,
            error={"code": "timeout", "message": "no answer in time"},
        )
    )
    await store.turn(Turn(_now_ms(), settle=ends, slots={"openai": 8}))
    await store.aclose()


@pytest.fixture(scope="session")
def _filled_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("filled") / "filled.db"
    asyncio.run(_fill(path))
    return path.read_bytes()


@pytest.fixture
def filled(_filled_once, tmp_path):
    """Path of a store: of $1 a day, $0.80 is spent, $0.05 unknown; three requests are parked."""
    path = tmp_path / "scheduler.db"
    path.write_bytes(_filled_once)
    os.chmod(path, 0o600)
    return path


@pytest.fixture
def cli(monkeypatch):
    """Run a command line in this process; gives the result with stdout and stderr apart."""
    from scheduler.cli.app import app

    for name in ("SCHEDULER_STORE", "SCHEDULER_DEBUG", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(*words, env=None):
        return CliRunner().invoke(app, [str(word) for word in words], env=env)

    return run
