"""Traces: whose they are, what is in them, and what never is; with the real SDK's exporters in memory."""

from __future__ import annotations

import asyncio
import time

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from scheduler import Budget, Scheduler, Simulated
from scheduler.answer import Answer
from scheduler.errors import CallFailed, DeadlineExceeded, ProviderRefused, TransportFailed
from scheduler.request import Request, Usage
from scheduler.telemetry import genai, otel
from tests.conftest import Bench, ask, until

pytestmark = pytest.mark.anyio


class Sdk:
    """A real SDK, whose spans and metrics stay here."""

    def __init__(self):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.tracer = self.tracers.get_tracer("tests")

    def trace(self, s):
        return otel.start(s, tracer_provider=self.tracers, meter_provider=self.meters)

    def spans(self, name=None):
        return [x for x in self.exporter.get_finished_spans() if name is None or x.name == name]

    def metrics(self):
        data = self.reader.get_metrics_data()
        found = [m for r in data.resource_metrics for x in r.scope_metrics for m in x.metrics]
        return {each.name: list(each.data.data_points) for each in found}


@pytest.fixture
def sdk():
    made = Sdk()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


def names(span):
    return [each.name for each in span.events]


class Answering(Bench):
    """Answers as OpenAI does, and looks which span is current meanwhile."""

    async def send(self, request):
        self.seen = trace.get_current_span().get_span_context().span_id
        answer = await super().send(request)
        body = {"id": "chatcmpl-1", "model": "m-2026", "choices": [{"finish_reason": "stop"}]}
        usage = Usage(10, 6, cached_tokens=4, reasoning_tokens=2)
        return Answer(body, usage=usage, cost_nusd=answer.cost_nusd)


async def test_a_call_is_in_the_trace_of_its_caller_with_usage_and_cost(sdk):
    provider = Answering()
    provider.base_url = "https://user:pw@api.example.com/v1"
    async with Scheduler(budgets=Budget("team", "$1"), providers=provider) as s:
        sdk.trace(s)
        with sdk.tracer.start_as_current_span("POST /report") as caller:
            await s.run(ask(priority="batch", job="j", max_tokens=50, temperature=0.5))

    (request,), (chat,) = sdk.spans("scheduler.request"), sdk.spans("chat m")
    assert request.parent.span_id == caller.get_span_context().span_id
    assert chat.parent.span_id == request.context.span_id
    assert {x.context.trace_id for x in sdk.spans()} == {caller.get_span_context().trace_id}
    assert provider.seen == chat.context.span_id
    assert chat.kind is SpanKind.CLIENT
    assert dict(chat.attributes) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "bench",
        "gen_ai.request.model": "m", "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5, "gen_ai.response.model": "m-2026",
        "gen_ai.response.id": "chatcmpl-1", "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 4, "gen_ai.usage.reasoning.output_tokens": 2,
        "server.address": "api.example.com", "server.port": 443,
    }  # fmt: skip
    told = request.attributes
    assert (told[genai.BUDGET], told[genai.PRIORITY], told[genai.JOB]) == ("team", "batch", "j")
    assert (told[genai.COST_ESTIMATE], told[genai.COST_ACTUAL]) == (100e-9, 60e-9)
    assert told[genai.OUTCOME] == "succeeded"
    assert names(request) == ["admitted", "settled"]


async def test_the_metrics_are_those_of_the_conventions(sdk):
    async with Scheduler(budgets="$1", providers=Answering()) as s:
        sdk.trace(s)
        await s.run(ask())
        with pytest.raises(ProviderRefused):
            await s.run(ask(fail=ProviderRefused(418, "no")))

    found = sdk.metrics()
    durations = {p.attributes.get("error.type"): p for p in found[genai.OPERATION_DURATION]}
    assert durations.keys() == {None, "418"}
    assert durations[None].explicit_bounds == genai.DURATION_S
    tokens = {p.attributes["gen_ai.token.type"]: p.sum for p in found[genai.TOKEN_USAGE]}
    assert tokens == {"input": 10, "output": 6}


async def test_waiting_for_money_is_told_by_its_reason_and_survives_until_it_goes_on(sdk):
    async with Scheduler(budgets=Budget("team", "$0.0000001"), providers=Bench()) as s:
        sdk.trace(s)
        await s.run(ask())
        with sdk.tracer.start_as_current_span("caller") as caller:
            first = s.submit(ask(1))
        await until(lambda: first.parked)
        second = s.submit(ask(2))  # comes to a lane that is shut
        await until(lambda: second.parked)
        await asyncio.sleep(0.002)
        await s.set_limit("team", "$1")
        await asyncio.gather(first, second)

    _, one, two = sorted(sdk.spans("scheduler.request"), key=lambda x: x.start_time)
    for span in (one, two):
        assert names(span) == ["parked", "unparked", "admitted", "settled"]
        assert span.events[0].attributes[genai.PARK_REASON] == "window_spent"
        assert span.events[0].attributes[genai.PARK_BUDGET] == "team"
        assert span.events[2].attributes[genai.PARKED_SECONDS] > 0
        assert span.start_time <= span.events[0].timestamp + 10**6
    assert one.parent.span_id == caller.get_span_context().span_id
    assert two.parent is None


async def test_every_attempt_is_a_span_and_errors_are_told_without_their_words(sdk):
    overloaded = TransportFailed("say hello to my s3cr3t")
    async with Scheduler(budgets="$1", providers=Bench(), retry_wait_s=lambda n: 0.001) as s:
        sdk.trace(s)
        with pytest.raises(CallFailed):
            await s.run(ask(fail=overloaded))

    (request,), calls = sdk.spans("scheduler.request"), sdk.spans("chat m")
    assert len(calls) == 3
    assert {each.parent.span_id for each in calls} == {request.context.span_id}
    assert names(request) == ["admitted", "settled"] * 3
    for span in (request, *calls):
        assert span.status.status_code is StatusCode.ERROR
    assert "s3cr3t" not in "".join(each.to_json() for each in sdk.spans())


async def test_what_is_asked_and_answered_is_in_no_span(sdk):
    async with Scheduler(budgets="$1", providers=Simulated()) as s:
        sdk.trace(s)
        prompt = "my s3cr3t diary"
        response = await s.run(
            Request.chat("sim-small", prompt, max_tokens=30, tags={"user": "s3cr3t"})
        )
    written = "".join(each.to_json() for each in sdk.spans())

    assert response.text
    assert response.text not in written
    assert "s3cr3t" not in written
    assert "chat sim-small" in written


async def test_what_ends_unsent_ends_its_span(sdk):
    async with Scheduler(budgets=Budget("team", "$0.00000001"), providers=Bench()) as s:
        sdk.trace(s)
        late, waits = s.submit(ask(deadline=0.05)), s.submit(ask())
        with pytest.raises(DeadlineExceeded):
            await late
        waits.cancel()
        await asyncio.sleep(0.01)

    told = [(x.attributes[genai.OUTCOME], names(x)) for x in sdk.spans("scheduler.request")]
    assert sorted((outcome, events[0]) for outcome, events in told) == [
        ("cancelled", "parked"), ("failed", "parked"),
    ]  # fmt: skip
    assert not sdk.spans("chat m")


async def test_several_callers_of_one_key_have_a_span_each_and_the_call_knows_all(sdk):
    async with Scheduler(budgets="$1", providers=Bench()) as s:
        sdk.trace(s)
        await asyncio.gather(*(s.run(ask(key="k", seconds=0.01)) for _ in range(3)))

    requests, (chat,) = sdk.spans("scheduler.request"), sdk.spans("chat m")
    around = {chat.parent.span_id, *(each.context.span_id for each in chat.links)}
    assert around == {each.context.span_id for each in requests}
    assert len(requests) == 3


async def test_what_another_process_sends_links_to_where_it_was_submitted(sdk, tmp_path):
    path, there = f"sqlite:///{tmp_path / 's.db'}", Sdk()
    shared = Simulated()
    shared.service = "sim:"
    async with Scheduler(path, budgets="$1", providers=shared, role="client") as s:
        sdk.trace(s)
        with sdk.tracer.start_as_current_span("caller") as caller:
            await s.enqueue([Request.chat("sim-small", "hi", max_tokens=9, key="k")])
    again = Simulated()
    again.service = "sim:"
    async with Scheduler(path, providers=again, role="worker") as s:
        there.trace(s)
        async with asyncio.timeout(60):
            while not there.spans("scheduler.request"):
                await asyncio.sleep(0.02)

    (request,), (chat,) = there.spans("scheduler.request"), there.spans("chat sim-small")
    (link,) = request.links
    assert link.context.trace_id == caller.get_span_context().trace_id
    assert link.context.span_id == caller.get_span_context().span_id
    assert request.context.trace_id != link.context.trace_id
    assert (request.kind, request.parent) == (SpanKind.CONSUMER, None)
    assert chat.parent.span_id == request.context.span_id
    assert names(request) == ["admitted", "settled"]


async def test_it_keeps_nothing_of_what_ended_and_stops(sdk):
    async with Scheduler(budgets="$1", providers=Bench()) as s:
        stop = sdk.trace(s)
        (tracing,) = s._watchers._all
        await asyncio.gather(*(s.run(ask(n)) for n in range(50)))
        await s.enqueue([ask(n, key=f"k{n}") for n in range(5)])
        await s.join()
        assert not tracing._live
        assert not tracing._alone
        stop()
        await s.run(ask())

    assert len(sdk.spans("scheduler.request")) == 55


async def test_a_tracer_that_raises_costs_no_answer(sdk, monkeypatch, caplog):
    def broken(*args, **options):
        raise ZeroDivisionError

    async with Scheduler(budgets="$1", providers=Answering()) as s:
        sdk.trace(s)
        monkeypatch.setattr(otel, "_answered", broken)
        first = await s.run(ask(1))
        monkeypatch.setattr(otel, "_asked", broken)
        second = await s.run(ask(2))
        assert s.stats().suspense_nusd == 0

    assert (first.cost_nusd, second.cost_nusd) == (60, 60)
    assert "could not be traced" in caplog.text


async def test_parking_many_costs_nothing_for_each(sdk, monkeypatch):
    told = []
    async with Scheduler(budgets=Budget("team", "$0.0000001"), providers=Bench()) as s:
        sdk.trace(s)
        (tracing,) = s._watchers._all
        await s.run(ask())
        monkeypatch.setattr(tracing, "_note", lambda *args: told.append(args))
        waiting = [s.submit(ask(n)) for n in range(500)]
        await asyncio.sleep(0.1)
        for each in waiting:
            each.cancel()
        await asyncio.sleep(0)

    assert 0 < len(told) < 10


async def test_moves_of_lanes_are_bounded(sdk):
    tracing = otel.Tracing(sdk.tracers, sdk.meters)
    for lane in range(otel.MOST_LANES + 50):
        for at_ms in range(100):
            tracing._note(lane, at_ms, "parked", {})

    assert len(tracing._moves) == otel.MOST_LANES
    assert max(map(len, tracing._moves.values())) == otel.MOST_MOVES


def test_without_an_sdk_nothing_is_recorded_and_all_works():
    import subprocess
    import sys

    program = """
import asyncio
from scheduler import Scheduler, Request, Simulated
from scheduler.telemetry import otel
async def main():
    async with Scheduler(budgets="$1", providers=Simulated()) as s:
        otel.start(s)
        print((await s.run(Request.chat("sim-small", "hi", max_tokens=9))).attempts)
asyncio.run(main())
import sys
assert "opentelemetry.sdk" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


class Streaming(Bench):
    """Its answers began five seconds after they were asked for, those of streams."""

    async def send(self, request):
        answer = await super().send(request)
        if request.body.get("stream"):
            answer.first_s = time.monotonic() + 5
        return answer


async def test_the_time_to_the_first_chunk_is_a_metric_of_streams(sdk):
    async with Scheduler(providers=Streaming()) as s:
        sdk.trace(s)
        await s.run(ask())
        await s.run(ask(stream=True))

    (point,) = sdk.metrics()[genai.TIME_TO_FIRST_CHUNK]
    assert (point.count, point.attributes[genai.REQUEST_MODEL]) == (1, "m")
    assert point.sum >= 5
