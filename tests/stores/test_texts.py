"""No text breaks a store: names are kept whole and found again, or refused before anything is stored.

A machine asks for keys, jobs and models of any characters, lets providers say anything, closes the
stores and opens them again; a table does the same through a scheduler, in every place that takes
a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler import Budget, CallFailed, ConfigError, Request, RequestState, Scheduler, Simulated
from scheduler.answer import Answer
from scheduler.errors import ProviderRefused, SchedulerError
from scheduler.guards.texts import check_name, words
from scheduler.stores.base import Outcome
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sqlite import SqliteStore
from tests.conftest import Bench, ask
from tests.stores.conformance import FAILED, T0, end, new, post
from tests.stores.conformance import Bench as StoreBench

ANY = st.text(st.characters(exclude_categories=()), max_size=6)  # lone surrogates, too
ODD = [
    "a\0b", "\0", "", "   ", "a\ud800b", "\udfff", "\u202e", "\u00e9", "e\u0301", "K", "k",
    "1", "01", "%", "_", "a'b", 'a"b', "\\u0000", "\\ud800", "[1]", "\n", "\ufeff", "x" * 200_000,
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(ODD), ANY, st.sampled_from(["k", "k", "a\0b"]))


def is_name(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class TextMachine(RuleBasedStateMachine):
    """Both stores, side by side, and a dictionary that says what they have to know."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "s.db"
        self.benches = [StoreBench(MemoryStore()), StoreBench(SqliteStore(self.file))]
        self.known: dict[tuple[str, str], str] = {}  # job and key: what its answer says
        self.said: list[str] = []

    @initialize()
    def open(self) -> None:
        for bench in self.benches:
            self.runner.run(bench.store.open(T0))

    def teardown(self) -> None:
        for bench in self.benches:
            self.runner.run(bench.store.aclose())
        self.runner.close()
        self.folder.cleanup()

    @rule(key=TEXTS, job=TEXTS)
    def ask(self, key, job) -> None:
        for bench in self.benches:
            if not is_name(key) or not is_name(job):
                with pytest.raises(ConfigError, match="lone surrogate"):
                    self.runner.run(bench.submit(new(key=key, job=job, body=key)))
                continue
            result = self.runner.run(bench.submit(new(key=key, job=job, body=key)))
            (answer,) = result.submitted
            assert answer.is_known == ((job, key) in self.known)
            if answer.is_known:
                assert (answer.finished.key, answer.is_conflict) == (key, False)
            else:
                assert [each.request.key for each in result.claimed] == [key]
                self.runner.run(bench.settle(*[post(each, 4) for each in result.claimed]))
        if is_name(key) and is_name(job):
            self.known[job, key] = key

    @rule(why=TEXTS, provider_id=TEXTS, message=TEXTS)
    def lose(self, why, provider_id, message) -> None:
        """A provider says anything of a call that nobody heard back from."""
        for bench in self.benches:
            (claimed,) = self.runner.run(bench.submit(new())).claimed
            lost = end(
                claimed, Outcome.SUSPEND, FAILED, why=why, provider_id=provider_id,
                error={"code": message, "message": message},
            )  # fmt: skip
            assert self.runner.run(bench.settle(lost)).settled == [True]
        self.said.append(words(why) or "")

    @rule()
    def come_back(self) -> None:
        bench = self.benches[1]
        self.runner.run(bench.store.aclose())
        bench.store = SqliteStore(self.file)
        self.runner.run(bench.store.open(bench.now_ms))

    @rule(name=TEXTS)
    def look(self, name) -> None:
        for bench in self.benches:
            with contextlib.suppress(ConfigError):
                self.runner.run(bench.store.counts(name))
                self.runner.run(bench.store.suspended(job=name))
                self.runner.run(bench.store.set_price(name, "1/2"))
            with contextlib.suppress(ConfigError, SchedulerError):
                self.runner.run(bench.store.pause(name, True, bench.now_ms))

    @invariant()
    def all_is_there_by_its_name(self) -> None:
        async def finished(bench, job):
            return sorted([each.key async for each in bench.store.finished(job)])

        for bench in self.benches if self.known else ():
            job = next(reversed(self.known))[0]
            wanted = sorted(key for name, key in self.known if name == job)
            assert self.runner.run(finished(bench, job)) == wanted
            assert self.runner.run(bench.store.counts(job)).succeeded == len(wanted)
            assert self.runner.run(bench.is_sound())
            unknown = self.runner.run(bench.store.suspended())
            assert [each.why or "" for each in unknown] == self.said


TestTexts = TextMachine.TestCase
TestTexts.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@given(ANY)
@example("\ud83d\ude00")  # two halves that would be a whole one elsewhere
def test_whatever_was_said_can_be_stored_and_says_the_same(text):
    stored = words(text)

    stored.encode()
    assert stored == text or not is_name(text)


def test_what_is_no_text_is_no_name():
    for name in (1, True, b"k", ("k",), 1.5):
        with pytest.raises(ConfigError, match="is not a text; nothing was sent"):
            check_name("key", name)


# Every place that takes a text, through a scheduler


class Talkative(Bench):
    """A provider that says a text wherever it can."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    async def send(self, request):
        how, text = request.body.get("how"), self.text
        if how == "error":
            raise ProviderRefused(400, text, text, None, {text: text})
        if how == "lost":
            lost = CallFailed(text)
            lost.request_id = text
            raise lost
        if how == "raises":
            raise RuntimeError(text)
        if how == "answer":
            return Answer({text: text}, request_id=text, cost_nusd=5)
        return await super().send(request)


PLACES = {
    "key": lambda s, t: s.run(ask(1, key=t)),
    "job": lambda s, t: s.run(ask(1, key="k", job=t)),
    "model": lambda s, t: s.run(Request({"model": t, "messages": []}, key="k")),
    "provider": lambda s, t: s.run(ask(1, key="k", provider=t)),
    "budget": lambda s, t: s.run(ask(1, key="k", budget=t)),
    "tags": lambda s, t: s.run(ask(1, key="k", tags={t: t})),
    "metadata": lambda s, t: s.run(ask(1, key="k", metadata={t: [t]})),
    "url": lambda s, t: s.run(Request({"model": "m"}, url=t, key="k")),
    "body": lambda s, t: s.run(ask(1, key="k", text={t: t})),
    "fallback": lambda s, t: s.run(ask(1, key="k", fallback=[t]), on_exceeded="fallback"),
    "enqueue": lambda s, t: s.enqueue([ask(1, key=t, job=t)]),
    "define": lambda s, t: s.define(Budget(t, "$1")),
    "rules": lambda s, t: s.define(Budget("c", "$1", tags={t: t}, models=[t], parent=None)),
    "pause": lambda s, t: s.pause(t),
    "a provider's error": lambda s, t: s.run(ask(1, key="k", how="error")),
    "a provider's id": lambda s, t: s.run(ask(1, key="k", how="lost")),
    "an exception": lambda s, t: s.run(ask(1, key="k", how="raises")),
    "an answer": lambda s, t: s.run(ask(1, key="k", how="answer")),
}


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("place", PLACES)
async def test_no_text_anywhere_ends_the_work_of_a_process_or_of_the_next(place, store, tmp_path):
    outcomes = []
    for number, text in enumerate(ODD):
        url = None if store == "memory" else f"sqlite:///{tmp_path}/{number}.db"
        said = []
        for _ in range(2):  # a first run, and a rerun
            options = {"max_attempts": 1, "budgets": Budget("team", "$1")}
            async with Scheduler(url, providers=Talkative(text), **options) as s:
                for _ in range(2):
                    try:
                        await PLACES[place](s, text)
                        said.append("done")
                    except SchedulerError as error:
                        said.append(type(error).__name__)
                assert (await s.run(ask(7, key="after", budget="team"))).body == {"answer": 7}
                assert (await s.store.audit(s.now_ms())).discrepancies == ()
                assert await s.store.queue(list(RequestState), s.now_ms())
        assert "StoreError" not in said
        outcomes.append(said[0])
    assert {"done", "ConfigError", "BudgetUnknown", "ProviderRefused", "CallFailed"} >= {*outcomes}


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_provider_cannot_have_such_a_name_either(store, tmp_path):
    with pytest.raises(ConfigError, match="lone surrogate"):
        Scheduler(providers=Bench("a\ud800b"))
    with pytest.raises(ConfigError, match="not the name of a file"):
        async with Scheduler(f"sqlite:///{tmp_path}/a\0b.db", providers=Bench()):
            pass
    async with Scheduler(None, providers=[Bench("a\0b"), Bench("c")]) as s:
        assert (await s.run(ask(1, key="k", provider="a\0b"))).body == {"answer": 1}


async def test_a_key_whose_body_is_no_json_is_refused_at_the_door():
    async with Scheduler(providers=Bench()) as s:
        with pytest.raises(ConfigError, match="cannot be written as JSON"):
            s.submit(ask(1, key="k", what=object()))
        assert (await s.run(ask(1, key="k"))).body == {"answer": 1}


async def test_without_the_care_for_a_nul_such_a_key_would_end_the_process(tmp_path, monkeypatch):
    def read_by_keys(db, columns, keys):
        wanted = db.dialect.a_list(key for _, key in keys)
        sql = f"SELECT {columns} FROM requests r WHERE r.key {db.dialect.among}"
        return db.read(sql, wanted)

    monkeypatch.setattr("scheduler.stores.sql.submit.read_by_keys", read_by_keys)
    bench = StoreBench(SqliteStore(tmp_path / "s.db"))
    await bench.store.open(T0)
    await bench.submit(new(key="a\0b"))

    with pytest.raises(SchedulerError, match="UNIQUE constraint failed"):
        await bench.submit(new(key="a\0b"))
    await bench.store.aclose()


@pytest.mark.parametrize("half", ["\ud800", "/v1/chat/completions\udfff"])
@pytest.mark.parametrize("where", ["key", "job", "model", "url", "prompt"])
async def test_half_a_character_costs_nothing_wherever_it_stands(where, half):
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    given = {where: half} if where in ("key", "job", "url") else {}
    if where == "model":
        body["model"] = half
    if where == "prompt":
        body["messages"][0]["content"] = half
    async with Scheduler(providers=Simulated(), prices={half: "1/2"}) as s:
        try:
            answer = await s.run(Request(body, **given))
        except ConfigError:
            assert (s.stats().posted_nusd, s.stats().reserved_nusd) == (0, 0)
        else:
            assert where == "prompt"
            assert answer.cost_nusd == s.stats().posted_nusd
