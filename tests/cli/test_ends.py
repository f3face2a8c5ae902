"""How a batch run ends: whatever goes wrong with it, what was sent is settled and written."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from scheduler import Scheduler
from scheduler.batch.input import LineOptions
from scheduler.batch.source import open_source
from scheduler.budget import Unit
from scheduler.cli.delivery import Files
from scheduler.cli.exits import Exit
from scheduler.cli.outcome import RunOptions
from scheduler.cli.patience import FIRST_ANSWER_S, Patience
from scheduler.cli.progress import progress
from scheduler.cli.runner import BatchRun
from scheduler.clock import SystemClock
from scheduler.errors import ConfigError, CredentialsRefused, ProviderRefused, StoreError
from scheduler.money import decimal_usd
from scheduler.shortfall import ParkReason, Shortfall
from scheduler.stats import Stats
from scheduler.stores.process import Process
from scheduler.stores.sqlite import SqliteStore
from tests.conftest import Bench

FILES = Files(
    Path("p.jsonl"), Path("p.results.jsonl"), Path("p.errors.jsonl"), Path("p.parked.jsonl")
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Told(io.StringIO):
    """What the run says."""


def write(count: int) -> None:
    lines = [
        {"custom_id": f"r{n}", "model": "m", "messages": [{"role": "user", "content": f"q{n}"}]}
        for n in range(count)
    ]
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


async def batch(provider, told, change=None, *, concurrency=4, **options):
    """Run p.jsonl; `change` gets the run before it begins."""
    async with Scheduler("s.db", providers=provider, concurrency=concurrency) as s:
        with open_source(FILES.input) as source:
            run = BatchRun(
                s, source, FILES, RunOptions(LineOptions(), **options), progress("none", told)
            )
            if change is not None:
                change(run)
            return await run.run()


def ids(path) -> list[str]:
    return sorted(json.loads(text)["custom_id"] for text in Path(path).read_text().splitlines())


def costs(path) -> set[str]:
    texts = Path(path).read_text().splitlines()
    return {json.loads(text)["scheduler"]["cost_usd"] for text in texts}


def exists(path) -> bool:
    return Path(path).exists()


def all_ids(count: int) -> list[str]:
    return sorted(f"r{n}" for n in range(count))


# The run itself breaks


class Slow(Bench):
    """Takes a while, so that calls are under way when something happens."""

    async def _answer(self, request):
        await asyncio.sleep(0.4)
        return await super()._answer(request)


def break_feeding(error):
    def change(run):
        real = run.is_answered

        def is_answered(line):
            if line.number == 502:  # in the second chunk; the first is under way
                raise error
            return real(line)

        run.is_answered = is_answered

    return change


def break_watch(error):
    def change(run):
        real = run._snapshot

        def snapshot(stats):
            if stats.running == 4:
                raise error
            return real(stats)

        run._snapshot = snapshot

    return change


@pytest.mark.parametrize("place_of", [break_feeding, break_watch])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(5, "Input/output error"), Exit.FAILED),
        (ConfigError("x", "is wrong. Nothing was sent"), Exit.CONFIG),
        (StoreError("of something"), Exit.CONFIG),
    ],
)
async def test_whatever_ends_a_run_its_calls_are_let_finish_settled_and_written(
    place_of, error, code
):
    write(600)
    provider, told = Slow(), Told()
    outcome = await batch(provider, told, place_of(error))

    assert outcome.exit is code
    assert outcome.succeeded == len(provider.sent) >= 4
    assert ids("p.results.jsonl") == sorted(
        f"r{request.body['messages'][0]['content'][1:]}" for request in provider.sent
    )
    assert outcome.reserved_nusd == 0
    assert outcome.cost_nusd == provider.billed_nusd
    assert f"{outcome.succeeded} requests had an outcome by then" in outcome.message
    assert "Nothing was sent." not in outcome.message
    assert len(ids("p.results.jsonl") + ids("p.parked.jsonl")) in (600, 500 + outcome.succeeded)
    again = await batch(Bench(), Told(), concurrency=64)
    assert (again.exit, again.succeeded + again.known) == (Exit.DONE, 600)
    assert ids("p.results.jsonl") == all_ids(600)


async def test_a_bug_is_raised_once_everything_is_written():
    write(600)
    provider = Slow()
    with pytest.raises(ZeroDivisionError):
        await batch(provider, Told(), break_feeding(ZeroDivisionError()))

    assert len(ids("p.results.jsonl")) == len(provider.sent) >= 4


async def test_calls_that_do_not_end_are_given_up_after_the_grace():
    write(600)

    class Endless(Bench):
        async def _answer(self, request):
            await asyncio.sleep(3600)

    error = ConfigError("x", "wrong")
    outcome = await batch(Endless(), Told(), break_watch(error), grace_s=0.2)

    assert outcome.exit is Exit.CONFIG
    assert outcome.reserved_nusd == 4 * 100
    assert "$0.0000004 is kept reserved" in outcome.message


async def test_an_error_before_anything_was_sent_is_raised_as_it_is():
    write(3)

    def change(run):
        def is_answered(line):
            raise ConfigError("x", "wrong")

        run.is_answered = is_answered

    with pytest.raises(ConfigError, match="x: wrong"):
        await batch(Bench(), Told(), change)


# Refusals


class Refusing(Bench):
    """Refuses some prompts."""

    def __init__(self, refuses, error=ProviderRefused, status=403):
        super().__init__()
        self.refuses, self.error, self.status = refuses, error, status

    async def _answer(self, request):
        if self.refuses(int(request.body["messages"][0]["content"][1:])):
            raise self.error(self.status, "refused")
        return await super()._answer(request)


async def test_a_prompt_that_is_refused_fails_and_the_others_run():
    write(30)
    outcome = await batch(Refusing(lambda n: n == 3), Told())

    assert (outcome.exit, outcome.succeeded, outcome.failed) == (Exit.FAILED, 29, 1)
    assert ids("p.errors.jsonl") == ["r3"]
    again = await batch(Bench(), Told())
    assert (again.succeeded, again.known_failed) == (0, 1)


async def test_a_model_that_is_refused_after_answers_does_not_end_the_run():
    write(60)
    outcome = await batch(Refusing(lambda n: n >= 5), Told(), concurrency=2)

    assert (outcome.exit, outcome.succeeded, outcome.failed) == (Exit.FAILED, 5, 55)


@pytest.mark.parametrize("status", [401, 403])
async def test_when_everything_is_refused_the_run_ends_with_4_and_says_so(status):
    write(100)
    told, provider = Told(), Refusing(lambda n: True, status=status)
    outcome = await batch(provider, told)

    assert outcome.exit is Exit.CREDENTIALS
    assert "all of the first 20 answers of 'bench' were refusals" in told.getvalue()
    assert len(provider.sent) < 30
    assert len(ids("p.errors.jsonl")) == outcome.failed == len(provider.sent)
    again = await batch(Bench(), Told(), retry_failed=True)
    assert (again.exit, again.succeeded) == (Exit.DONE, 100)
    assert not exists("p.errors.jsonl")


async def test_what_the_key_is_refused_for_is_no_failure_and_is_sent_again():
    write(9)
    outcome = await batch(Refusing(lambda n: True, CredentialsRefused, 401), Told())

    assert (outcome.exit, outcome.failed, outcome.left) == (Exit.CREDENTIALS, 0, 9)
    assert not exists("p.errors.jsonl")
    again = await batch(Bench(), Told())
    assert (again.exit, again.succeeded) == (Exit.DONE, 9)


# Who was taken for dead does not deliver


async def test_an_outcome_that_others_took_over_is_theirs_to_deliver():
    from scheduler import events

    write(1)
    seen = []

    def change(run):
        real = run._on_settled

        def settled(event):
            seen.append(event)
            real(events.Settled(**{
                name: getattr(event, name) for name in ("at_ms", *events.Settled.__slots__)
            } | {"is_superseded": True}))  # fmt: skip

        run._on_settled = settled

    outcome = await batch(Bench(), Told(), change)

    assert not seen[0].is_superseded
    assert outcome.succeeded == 0
    assert ids("p.results.jsonl") == ["r0"]  # once, from the store, which has the last word


# Patience


def stats(*, parked=0, queued=0, running=0, lacks=()):
    return Stats(
        queued, {"x": parked} if parked else {}, running, 0, 0, 0, 0, 0, 0, 0, 0, None, lacks, ()
    )


def lack(reason):
    return Shortfall(reason, "p", Unit.USD, 1, 0, 0, 0, 0, 5_000, "UTC", "", "Connection refused")


DOWN, SPENT = lack(ParkReason.PROVIDER_DOWN), lack(ParkReason.WINDOW_SPENT)
HELD = lack(ParkReason.HELD_IN_FLIGHT)


def waited(patience, now, seconds):
    patience.enough(now, 0.0, 0)
    return patience.enough(now, float(seconds), int(seconds * 1000))


@pytest.mark.parametrize(
    "now",
    [
        stats(parked=3, lacks=(DOWN,)),
        stats(parked=3, running=1, lacks=(DOWN,)),  # the one that asks whether it is back
        stats(parked=3, queued=1, lacks=(DOWN,)),
        stats(queued=3),  # a rate limit, or tried again later
        stats(parked=3, lacks=(HELD,)),
        stats(parked=3, lacks=(SPENT,)),
    ],
)
def test_the_longest_wait_bounds_any_waiting(now):
    assert waited(Patience(False, 3_000, ""), now, 2) is None or SPENT in now.shortfalls
    assert waited(Patience(False, 3_000, ""), now, 4) is not None
    assert waited(Patience(False, None, ""), now, 50) is None


def test_working_is_no_waiting():
    patience = Patience(True, 3_000, "")
    assert waited(patience, stats(parked=9, queued=2, running=1), 100) is None
    assert waited(patience, stats(running=1), 100) is None
    patience.enough(stats(queued=3), 200.0, 0)
    patience.answered()
    assert patience.enough(stats(queued=3), 203.5, 0) is None


def test_without_a_first_answer_a_provider_that_is_down_ends_the_run_and_that_is_said():
    now, patience = stats(parked=3, lacks=(DOWN,)), Patience(False, None, "")
    assert "The run ends after 1m without an answer" in (patience.news(now, 0) or "")
    assert waited(patience, now, FIRST_ANSWER_S - 1) is None
    told = patience.enough(now, FIRST_ANSWER_S + 1, 0)
    assert told is not None
    assert "is its URL right?" in told
    assert "Connection refused" in told


def test_one_that_has_answered_is_waited_for_unless_the_run_is_to_stop():
    now = stats(parked=3, lacks=(DOWN,))
    patience = Patience(False, None, "")
    patience.answered()
    assert waited(patience, now, 100_000) is None
    assert "The run ends" not in (patience.news(now, 0) or "")
    stops = Patience(True, None, "")
    stops.answered()
    assert waited(stops, now, FIRST_ANSWER_S - 1) is None
    assert waited(stops, now, FIRST_ANSWER_S + 1) is not None


class Ahead:
    """The clock of a host for which the other one has been silent for long."""

    def now_ms(self) -> int:
        return SystemClock().now_ms() + 40_000


async def test_a_process_that_wakes_after_others_took_its_requests_over_writes_each_once():
    write(3)

    def store_of(host):
        store = SqliteStore(Path("s.db"))
        store._transactions.process = Process(host, 1, "1")
        return store

    provider, told = Slow(), Told()
    async with Scheduler(store_of("here"), providers=provider) as s:
        with open_source(FILES.input) as source:
            options = RunOptions(LineOptions())
            run = BatchRun(s, source, FILES, options, progress("none", told))
            running = asyncio.create_task(run.run())
            while len(provider.sent) < 3:
                await asyncio.sleep(0.02)
            there = Bench(cost_nusd=55)
            async with Scheduler(store_of("there"), providers=there, clock=Ahead()) as other:
                answers = [await other.run(request) for request in provider.sent]
            outcome = await running

    assert outcome.exit is Exit.DONE
    assert ids("p.results.jsonl") == all_ids(3)
    assert costs("p.results.jsonl") == {decimal_usd(each.cost_nusd) for each in answers}
