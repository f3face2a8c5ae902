"""OpenTelemetry: a span for each request from its submission to its end, and one for each call in it.

    stop = otel.start(s)

    POST /report                            the caller's own span
    └─ scheduler.request                    events: parked, unparked, admitted, settled
       └─ chat gpt-4o-mini   (CLIENT)       each attempt; the provider's SDK goes on within it

A call is made by a task of the scheduler, long after its caller went on to wait: its spans belong to the
caller's trace all the same. Where another process sends what was submitted here, or goes on after a
restart, its spans are a trace of their own, with a link to the span in which the request was submitted.

Needs ``opentelemetry-api`` alone; without an SDK nothing is recorded. What is asked and answered is in no
span. `scheduler.telemetry.genai` has the names.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry import context as contexts
from opentelemetry import metrics, trace
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from scheduler import __version__, events
from scheduler.guards.plain import logger_of
from scheduler.request import priority_word
from scheduler.telemetry import genai

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from scheduler.answer import Answer
    from scheduler.core.future import RequestFuture
    from scheduler.core.shell import Shell
    from scheduler.providers.base import Provider, Send
    from scheduler.request import Request, Response
    from scheduler.shortfall import Shortfall
    from scheduler.stores.base import Claimed

logger = logger_of("scheduler.telemetry")

NAME = "scheduler"
MOST_MOVES = 32  # of a lane, and so at most on one span
MOST_LANES = 1_000
NUSD = 1e9

Attributes = dict[str, Any]


def start(
    s: Shell,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Callable[[], None]:
    """Trace a scheduler's requests from now on; it need not be open yet.

    Args:
        s: The scheduler; of a `BlockingScheduler` the one within.
        tracer_provider: None: the global one.
        meter_provider: None: the global one.

    Returns:
        What stops it.
    """
    tracing = Tracing(tracer_provider, meter_provider)
    stops = [
        s.watch(tracing), s.on(events.Settled, tracing.settled), s.on(events.Parked, tracing.parked),
        s.on(events.Unparked, tracing.unparked),
    ]  # fmt: skip

    def stop() -> None:
        for each in stops:
            each()

    return stop


class Traced:
    """A request that is traced, for one of those who wait for it."""

    __slots__ = ("lane", "since_ms", "span", "told_ms")

    def __init__(self, span: Span, since_ms: int, lane: Hashable = None) -> None:
        self.span, self.since_ms, self.lane = span, since_ms, lane
        self.told_ms = 0  # up to then it is told when it was parked


class Tracing:
    """Makes spans of what it sees; a `Watcher`. It raises nothing and keeps nothing of what ended."""

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self._tracer = trace.get_tracer(NAME, __version__, tracer_provider)
        meter = metrics.get_meter(NAME, __version__, meter_provider)
        self._duration = meter.create_histogram(
            genai.OPERATION_DURATION, "s", "Duration of calls to models.",
            explicit_bucket_boundaries_advisory=genai.DURATION_S,
        )  # fmt: skip
        self._tokens = meter.create_histogram(
            genai.TOKEN_USAGE, "{token}", "Tokens used by calls to models.",
            explicit_bucket_boundaries_advisory=genai.TOKENS,
        )  # fmt: skip
        self._live: dict[int, list[Traced]] = {}  # requests that were admitted here
        self._alone: dict[int, Traced] = {}  # those of them that nobody here submitted
        # When lanes were shut and opened: a lane may hold a million requests, so each of them looks
        # there when it is its turn, instead of being told.
        self._moves: OrderedDict[Hashable, deque[tuple[int, str, Attributes]]] = OrderedDict()

    # On its way

    def mark(self, request: Request) -> Request:
        """See `Watcher.mark`: what is stored knows the span in which it was submitted."""
        here = trace.get_current_span().get_span_context()
        if request.trace is not None or not here.is_valid:
            return request
        told = f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}"
        return replace(request, trace=told)

    def submitted(self, future: RequestFuture) -> None:
        """See `Watcher.submitted`."""
        request, lane = future.request, future.lane
        span = self._tracer.start_span(genai.REQUEST, attributes=_asked(request, lane))
        future.trace = Traced(span, _now_ms(), lane)
        assert future.context is not None
        future.context.run(contexts.attach, trace.set_span_in_context(span))
        future.add_done_callback(self._ended)

    def around(
        self, claimed: Claimed, provider: Provider, futures: Sequence[RequestFuture], send: Send
    ) -> Send:
        """See `Watcher.around`."""
        traced = [each.trace for each in futures if each.trace is not None and not each.done()]
        if not traced:
            span = self._tracer.start_span(
                genai.REQUEST, contexts.Context(), SpanKind.CONSUMER,
                _asked(claimed.request, None), _links(claimed.request),
            )  # fmt: skip
            traced = [Traced(span, claimed.submitted_at_ms)]
            self._alone[claimed.request_id] = traced[0]
        self._live[claimed.request_id] = traced
        for each in traced:
            self._admitted(each, claimed)

        async def call(request: Request) -> Answer:
            with self._call(traced, provider, request) as told:
                answer = await send(request)
                told(answer)
                return answer

        return call

    def _admitted(self, traced: Traced, claimed: Claimed) -> None:
        at_ms, span = claimed.made_at_ms or _now_ms(), traced.span
        if claimed.parked_ms:
            self._tell_moves(traced, at_ms)
        estimate = claimed.ceiling_nusd / NUSD
        span.add_event(
            "admitted",
            {
                genai.ATTEMPT: claimed.attempt, genai.COST_ESTIMATE: estimate,
                genai.PARKED_SECONDS: claimed.parked_ms / 1000,
                genai.QUEUED_SECONDS: max(0, at_ms - claimed.submitted_at_ms) / 1000,
            },
            at_ms * 1_000_000,
        )  # fmt: skip
        span.set_attribute(genai.COST_ESTIMATE, estimate)

    @contextmanager
    def _call(
        self, traced: Sequence[Traced], provider: Provider, request: Request
    ) -> Iterator[Callable[[Answer], None]]:
        """The span of one attempt, within that of the first who waits, and its metrics."""
        operation = genai.OPERATIONS.get(request.url, "chat")
        common = {
            genai.OPERATION_NAME: operation, genai.REQUEST_MODEL: request.model,
            genai.PROVIDER_NAME: genai.PROVIDERS.get(provider.name, provider.name),
            **_server(provider),
        }  # fmt: skip
        within = trace.set_span_in_context(traced[0].span)
        links = [Link(each.span.get_span_context()) for each in traced[1:]]
        began_s = time.perf_counter()
        answers: list[Answer] = []
        span = self._tracer.start_span(
            f"{operation} {request.model}", within, SpanKind.CLIENT,
            {**common, **_wanted(request)}, links,
        )  # fmt: skip
        token = contexts.attach(trace.set_span_in_context(span, within))
        try:
            yield answers.append
        except BaseException as exc:
            common[genai.ERROR_TYPE] = _kind(exc)
            span.set_attribute(genai.ERROR_TYPE, _kind(exc))
            span.set_status(Status(StatusCode.ERROR))  # without its words: they may quote a prompt
            raise
        finally:
            contexts.detach(token)
            try:
                self._end_call(span, common, answers, time.perf_counter() - began_s)
            except Exception:  # the answer is there, and paid, whatever a tracer makes of it
                logger.exception("a call could not be traced")

    def _end_call(
        self, span: Span, common: Attributes, answers: Sequence[Answer], seconds: float
    ) -> None:
        for answer in answers:
            told = _answered(answer)
            span.set_attributes(told)
            if genai.RESPONSE_MODEL in told:
                common[genai.RESPONSE_MODEL] = told[genai.RESPONSE_MODEL]
            if answer.usage is not None:
                used = {"input": answer.usage.input_tokens, "output": answer.usage.output_tokens}
                for kind, count in used.items():
                    self._tokens.record(count, {**common, genai.TOKEN_TYPE: kind})
        self._duration.record(seconds, common)
        span.end()

    # What became of it

    def settled(self, event: events.Settled) -> None:
        """An attempt ended in the ledger."""
        told: Attributes = {
            genai.LEDGER: event.outcome, genai.COST_ACTUAL: event.cost_nusd / NUSD,
            genai.OUTCOME: event.state.value, genai.ATTEMPT: event.attempts,
        }  # fmt: skip
        for each in self._live.pop(event.request_id, ()):
            each.span.add_event("settled", told, event.at_ms * 1_000_000)
            if event.budget:
                each.span.set_attribute(genai.BUDGET, event.budget)
        alone = self._alone.pop(event.request_id, None)
        if alone is not None:
            alone.span.set_attributes(
                {genai.OUTCOME: event.state.value, genai.COST_ACTUAL: event.cost_nusd / NUSD}
            )
            _finish(alone.span, event.error)

    def _ended(self, future: RequestFuture) -> None:
        """A caller has their answer, or an error, or left."""
        traced: Traced = future.trace
        span, error = traced.span, _error_of(future)
        self._tell_moves(traced, _now_ms())
        if future.cancelled():
            span.set_attribute(genai.OUTCOME, "cancelled")
        elif error is None:
            response: Response = future.result()
            span.set_attributes(
                {
                    genai.OUTCOME: "succeeded", genai.COST_ACTUAL: response.cost_nusd / NUSD,
                    genai.ATTEMPTS: response.attempts,
                    genai.PARKED_SECONDS: response.parked_ms / 1000,
                }
            )  # fmt: skip
        else:
            span.set_attribute(genai.OUTCOME, "failed")
            cost_nusd = getattr(error, "cost_nusd", 0)
            if cost_nusd:
                span.set_attribute(genai.COST_ACTUAL, cost_nusd / NUSD)
        _finish(span, error)

    # When lanes were shut

    def parked(self, event: events.Parked) -> None:
        """A lane was shut, or is shut for another reason."""
        self._note(event.lane, event.at_ms, "parked", _why(event.shortfall))

    def unparked(self, event: events.Unparked) -> None:
        """A lane was opened."""
        self._note(event.lane, event.at_ms, "unparked", {})

    def _note(self, lane: Hashable, at_ms: int, what: str, why: Attributes) -> None:
        moves = self._moves.setdefault(lane, deque(maxlen=MOST_MOVES))
        self._moves.move_to_end(lane)
        moves.append((at_ms, what, why))
        if len(self._moves) > MOST_LANES:
            self._moves.popitem(last=False)

    def _tell_moves(self, traced: Traced, until_ms: int) -> None:
        """Add to a request's span when its lane was shut and opened while it waited there."""
        since_ms, moves = traced.told_ms or traced.since_ms, self._moves.get(traced.lane, ())
        before = [each for each in moves if each[0] < since_ms]
        if before and before[-1][1] == "parked" and not traced.told_ms:
            traced.span.add_event("parked", before[-1][2], since_ms * 1_000_000)
        for at_ms, what, why in moves:
            if since_ms <= at_ms <= until_ms:
                traced.span.add_event(what, why, at_ms * 1_000_000)
        traced.told_ms = until_ms + 1


def _asked(request: Request, lane: Any) -> Attributes:
    priority = request.priority if lane is None else lane.priority
    found: Attributes = {genai.REQUEST_MODEL: request.model}
    if isinstance(priority, int):
        found[genai.PRIORITY] = priority_word(priority)
    if request.budget:
        named = request.budget
        found[genai.BUDGET] = named if isinstance(named, str) else "+".join(named)
    if request.job:
        found[genai.JOB] = request.job
    return found


def _wanted(request: Request) -> Attributes:
    """What of a body is no content."""
    body, found = request.body, {}
    for name, keys in (
        (genai.REQUEST_MAX_TOKENS, ("max_tokens", "max_completion_tokens", "max_output_tokens")),
        (genai.REQUEST_TEMPERATURE, ("temperature",)), (genai.REQUEST_TOP_P, ("top_p",)),
    ):  # fmt: skip
        value = next((body[key] for key in keys if key in body), None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    if body.get("stream") is True:
        found[genai.REQUEST_STREAM] = True
    return found


def _answered(answer: Answer) -> Attributes:
    """What of an answer is no content."""
    found: Attributes = {}
    body, usage = answer.body, answer.usage
    if isinstance(body, Mapping):
        for name, key in ((genai.RESPONSE_MODEL, "model"), (genai.RESPONSE_ID, "id")):
            if isinstance(body.get(key), str):
                found[name] = body[key]
        reasons = _finish_reasons(body)
        if reasons:
            found[genai.RESPONSE_FINISH_REASONS] = reasons
    if usage is not None:
        found[genai.USAGE_INPUT_TOKENS] = usage.input_tokens
        found[genai.USAGE_OUTPUT_TOKENS] = usage.output_tokens
        for name, count in (
            (genai.USAGE_CACHE_READ, usage.cached_tokens),
            (genai.USAGE_CACHE_WRITE, usage.cache_write_tokens),
            (genai.USAGE_REASONING, usage.reasoning_tokens),
        ):
            if count:
                found[name] = count
    return found


def _finish_reasons(body: Mapping[str, Any]) -> list[str]:
    """Why answers ended, in whichever dialect."""
    found = [body.get("stop_reason")]
    for several, key in (("choices", "finish_reason"), ("candidates", "finishReason")):
        each = body.get(several)
        if isinstance(each, list):
            found += [x.get(key) for x in each if isinstance(x, Mapping)]
    return [each for each in found if isinstance(each, str)]


def _server(provider: Provider) -> Attributes:
    if not provider.base_url:
        return {}
    try:
        parts = urlsplit(provider.base_url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return {}
    found: Attributes = {genai.SERVER_ADDRESS: parts.hostname} if parts.hostname else {}
    return found | ({genai.SERVER_PORT: port} if found and port else {})


def _links(request: Request) -> list[Link]:
    """The span in which it was submitted, in another process perhaps."""
    try:
        version, trace_id, span_id, flags = (request.trace or "").split("-")
        told = SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
        )  # fmt: skip
    except ValueError:
        return []
    return [Link(told)] if told.is_valid and version == "00" else []


def _why(lack: Shortfall) -> Attributes:
    return {genai.PARK_REASON: lack.reason.value, genai.PARK_BUDGET: lack.budget}


def _kind(error: BaseException) -> str:
    """What kind of error: a status, or the name of its class."""
    status = getattr(error, "status", None)
    return str(status) if isinstance(status, int) and status else type(error).__name__


def _finish(span: Span, error: BaseException | None) -> None:
    if error is not None:
        span.set_attribute(genai.ERROR_TYPE, _kind(error))
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def _error_of(future: asyncio.Future[Any]) -> BaseException | None:
    """Its exception; asking for it by `exception` would hide that nobody else has."""
    return None if future.cancelled() else future._exception


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
