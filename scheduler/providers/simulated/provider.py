"""A provider that needs no key, no network and no money, and is as unpleasant as a real one.

It answers in the shapes of OpenAI, Anthropic and Google, takes its time, enforces rate limits, fails in every way a
provider can, and keeps its own count of what it billed, by its own arithmetic from its own
prices: what a ledger says can be checked against it, to the nano-dollar.

How long an answer is depends only on the question and the seed. Latencies and faults are
drawn in the order of the calls, so that another attempt may fare better.

`scheduler.providers.simulated.server` is the same behind HTTP.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist
from typing import Any

from pydantic_core import to_json

from scheduler.answer import Answer
from scheduler.duration import parse_duration_ms
from scheduler.errors import CallTimeout, ConfigError, TransportFailed
from scheduler.money import parse_usd
from scheduler.providers.answers import answer_of, read_answer
from scheduler.providers.base import Emit, Provider
from scheduler.providers.engines import Reply as HttpReply
from scheduler.providers.engines import Take
from scheduler.providers.simulated import gemini
from scheduler.providers.simulated.answers import (
    MAX_OUTPUT_TOKENS,
    Invalid,
    Question,
    make_answer,
    make_embeddings,
    make_moderation,
    read_question,
    share_of,
    usage_body,
    usage_field,
)
from scheduler.providers.simulated.bill import SIMULATED_PRICES, Bill, Billed, PriceList
from scheduler.providers.simulated.events import STREAMED, error_event, make_events
from scheduler.providers.simulated.faults import (
    MAYBE_BILLED,
    PAGE,
    REFUSALS,
    Failing,
    Fault,
    Faults,
    error_body,
)
from scheduler.providers.simulated.limits import Charge, Limiter
from scheduler.providers.streaming import nobody_reads, read_stream
from scheduler.request import (
    CHAT,
    COMPLETIONS,
    EMBED_CONTENT,
    EMBEDDINGS,
    GEMINI,
    GENERATE,
    MESSAGES,
    MODERATIONS,
    RESPONSES,
    Duration,
    Request,
    Usage,
)

__all__ = ["SIMULATED_PRICES", "Bill", "Billed", "Fault", "Reply", "Simulated", "Spread"]

HUGE_USAGE_FACTOR = 100
SLOW_FACTOR = 10
SLOW_LEAST_S = 1.0

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Spread:
    """A lognormal distribution: values around a mean, a few much larger.

    Attributes:
        mean: Its arithmetic mean.
        sigma: Width; 0: always the mean. About 0.5 for answers to one kind of question.
    """

    mean: float
    sigma: float = 0.0

    def at(self, share: float) -> float:
        """The value that `share` of all values are below; between 0 and 1, both excluded."""
        if not self.sigma or not self.mean:
            return self.mean
        return self.mean * math.exp(self.sigma * (_NORMAL.inv_cdf(share) - self.sigma / 2))


@dataclass(slots=True)
class Reply:
    """What the provider decided about one call.

    Attributes:
        body: JSON to send; None: send `content` as it is, or nothing if that is None too.
        wait_s: How long it takes.
        nusd: What is billed for it.
    """

    status: int
    headers: dict[str, str]
    body: dict[str, Any] | None
    content: bytes | None = None
    wait_s: float = 0.0
    fault: Fault | None = None
    model: str = ""
    usage: Usage | None = None
    nusd: int = 0
    charge: Charge | None = None

    def encoded(self) -> bytes:
        """The body as bytes."""
        if self.body is not None:
            return to_json(self.body)
        return self.content or b""


def _tier_of(body: Mapping[str, Any]) -> str | None:
    """The service tier or speed that is asked for."""
    told = [body.get(name) for name in ("speed", "service_tier", "serviceTier")]
    return next((each for each in told if isinstance(each, str) and each), None)


def _grant_tier(answer: dict[str, Any], url: str, tier: str | None) -> None:
    """Say in an answer, where each API says it, that it was given at the tier asked for."""
    if tier is None:
        return
    if url == MESSAGES:
        answer["usage"]["speed"] = "fast" if tier == "fast" else "standard"
    elif url == GENERATE:
        answer["usageMetadata"]["serviceTier"] = tier
    elif url in (CHAT, COMPLETIONS, RESPONSES):
        answer["service_tier"] = tier


class Simulated(Provider):
    """Answers like a provider, without one.

    Args:
        name: What `Request.provider` refers to.
        seed: Same seed, same answers.
        latency: Until the first token: a duration, or a `Spread` in seconds.
        tokens_per_s: How fast output comes after that; None: at once.
        output_tokens: How long answers are: a number, or a `Spread`. Never above the
            request's own cap, or 4,096 without one.
        error_rate: Share of calls that fail with 429, 500 or 503, each as often.
        fail: More faults: shares by name (see `Fault`), or a function from URL, body and the
            number of the call (from 1) to a fault's name or None.
        rpm: Requests a minute; what is above is refused with 429. None: no limit.
        tpm: Tokens a minute, likewise.
        itpm: Input tokens a minute, likewise.
        otpm: Output tokens a minute, likewise.
        concurrent: Calls at once, likewise.
        rpd: Requests a day, likewise.
        style: How these are counted, and told; see `simulated_limits`.
        credit: What it may bill in all, in dollars: a call that may cost more than is left of it
            is refused with 402, and told what fits, as OpenRouter does. None: no end of it.
            `credit_nusd` is the same in nano-dollars, and may be changed.
        prices: Added to `SIMULATED_PRICES`, in the same form.
        bill_cancelled: Whether a call that is given up while it runs is billed, as most
            providers do.
        record: Keep every billed call in ``bill.records``.
    """

    price_source = None

    def __init__(
        self,
        name: str = "simulated",
        *,
        seed: int = 0,
        latency: Duration | Spread = 0,
        tokens_per_s: float | None = None,
        output_tokens: int | Spread = Spread(120, 0.5),
        error_rate: float = 0.0,
        fail: Failing | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        itpm: int | None = None,
        otpm: int | None = None,
        concurrent: int | None = None,
        rpd: int | None = None,
        style: str = "plain",
        credit: str | float | Decimal | None = None,
        prices: Mapping[str, str] | None = None,
        bill_cancelled: bool = True,
        record: bool = False,
    ) -> None:
        self.name = name
        self.bill = Bill(records=[] if record else None)
        self.bill_cancelled = bill_cancelled
        self._seed = seed
        self._rng = random.Random(seed)
        self._latency = (
            latency
            if isinstance(latency, Spread)
            else Spread(parse_duration_ms(latency, "latency") / 1000)
        )
        if tokens_per_s is not None and not tokens_per_s > 0:
            raise ConfigError("tokens_per_s", f"{tokens_per_s} is not above 0")
        self._tokens_per_s = tokens_per_s
        self._length = output_tokens if isinstance(output_tokens, Spread) else Spread(output_tokens)
        self._faults = Faults(error_rate, fail)
        self.limiter = Limiter(
            style, rpm=rpm, tpm=tpm, itpm=itpm, otpm=otpm, concurrent=concurrent, rpd=rpd
        )
        self.credit_nusd = None if credit is None else parse_usd(credit, "credit")
        self._is_limited = bool(self.limiter.buckets) or concurrent is not None
        table = {**SIMULATED_PRICES, **(prices or {})}
        self.prices = table
        self._price_list = PriceList(table)

    @property
    def calls(self) -> int:
        """How many calls were billed."""
        return self.bill.calls

    @property
    def billed_nusd(self) -> int:
        """What was billed in all, in nano-dollars."""
        return self.bill.nusd

    @property
    def billed_tokens(self) -> int:
        """Tokens billed in all."""
        return self.bill.tokens

    async def send(self, request: Request) -> Answer:
        """Make one attempt."""
        if request.body.get("stream"):
            return await self.stream(request, nobody_reads)
        reply = self.reply(request.url, request.body)
        if self.bill_cancelled:
            self.settle(reply, request.url, request.body, request.key)
        try:
            if reply.wait_s > 0:
                await asyncio.sleep(reply.wait_s)
        finally:
            self.finish(reply)
        if not self.bill_cancelled:
            self.settle(reply, request.url, request.body, request.key)
        if reply.fault is Fault.TIMEOUT:
            raise CallTimeout(f"no answer within {reply.wait_s:g} s (simulated)")
        if reply.fault is Fault.RESET:
            raise TransportFailed("the connection was reset (simulated)")
        if reply.status != 200 or reply.body is None:
            return read_answer(reply.status, reply.headers, reply.encoded())
        return answer_of(reply.body, 200, reply.headers)

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """Make one attempt whose answer comes in pieces."""

        async def post(take: Take) -> HttpReply:
            reply = self.reply(request.url, request.body)
            is_whole = reply.status != 200 or reply.body is None or request.url not in STREAMED
            self.settle(reply, request.url, request.body, request.key)
            try:
                if is_whole:
                    await asyncio.sleep(reply.wait_s)
                    return reply.status, reply.headers, reply.encoded()
                await self._send_events(reply, request.url, take)
            finally:
                self.finish(reply)
            return 200, reply.headers, b""

        return await read_stream(request, post, emit)

    async def _send_events(self, reply: Reply, url: str, take: Take) -> None:
        assert reply.body is not None
        events = make_events(url, reply.body, with_usage=True)
        for place, event in enumerate(events):
            await asyncio.sleep(reply.wait_s / len(events))
            if place == len(events) // 2 and reply.fault is Fault.STREAM_CUT:
                raise TransportFailed("the connection was reset (simulated)")
            if place == len(events) // 2 and reply.fault is Fault.STREAM_ERROR:
                await take(error_event(url))
                return
            await take(event)

    def finish(self, reply: Reply) -> None:
        """The call is over, however it ended. To be called once for each reply."""
        if reply.charge is not None:
            self.limiter.finish(reply.charge)

    def settle(
        self,
        reply: Reply,
        url: str,
        body: Mapping[str, Any],
        key: str | None = None,
        caller: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Bill a call, if it is one that is billed. To be called once for each reply."""
        if reply.usage is not None:
            billed = Billed(key, url, body, reply.usage, reply.nusd, headers or {})
            self.bill.add(reply.model, billed, caller)

    def reply(self, url: str, body: Mapping[str, Any]) -> Reply:
        """Decide about one call: refuse it, spoil it, or answer it. Bills nothing yet."""
        self.bill.received += 1
        number = self.bill.received
        headers = {"x-request-id": f"req-sim{number:08d}"}
        if url == MESSAGES:
            headers["request-id"] = headers["x-request-id"]  # as Anthropic calls it
        try:
            read = gemini.read_question if url in GEMINI else read_question
            question = read(url, body)
            lengths = self._lengths(question)
            charge = None
            if self._is_limited:
                cap = (question.cap or 0) * question.generated
                charge = Charge(question.input_tokens, cap, sum(lengths))
                now_s = asyncio.get_running_loop().time()
                wait_s = self.limiter.admit(charge, now_s, headers)
                if wait_s is not None:
                    return self._refusal(Fault.RATE_LIMITED, headers, url, wait_s)
            fault = self._faults.draw(url, body, number, self._rng)
            if fault in REFUSALS and (fault not in MAYBE_BILLED or self._coin()):
                refusal = self._refusal(fault, headers, url)
                if charge is not None:
                    charge.output = 0  # it made none
                refusal.charge = charge
                return refusal
            answer, usage = self._answer(question, body, lengths, number)
            poor = self._for_credit(question, body, headers)
            if poor is not None:
                if charge is not None:
                    charge.output = 0
                poor.charge = charge
                return poor
            _grant_tier(answer, url, _tier_of(body))
        except Invalid as exc:
            status = 404 if exc.param is None else 400
            wrong = error_body(
                url, status, exc.problem, param=exc.param, request_id=headers["x-request-id"]
            )
            return Reply(status, headers, wrong)
        wait_s = self._latency.at(self._rng.random() or 0.5) if self._latency.mean else 0.0
        if self._tokens_per_s is not None:
            wait_s += usage.output_tokens / self._tokens_per_s
        reply = Reply(200, headers, answer, wait_s=wait_s, model=question.model, usage=usage)
        reply.charge = charge
        if fault is not None:
            self._spoil(reply, fault, url)
        if reply.usage is not None:
            reply.nusd = (
                0 if url == MODERATIONS
                else self._price_list.nusd(reply.model, reply.usage, _tier_of(body))
            )  # fmt: skip
        return reply

    def _for_credit(
        self, question: Question, body: Mapping[str, Any], headers: dict[str, str]
    ) -> Reply | None:
        """The refusal of a call that may cost more than there is credit for; None: it may not."""
        if self.credit_nusd is None or question.url == MODERATIONS:
            return None
        left_nusd, tier = self.credit_nusd - self.bill.nusd, _tier_of(body)
        most = question.cap if question.cap is not None else MAX_OUTPUT_TOKENS
        most *= question.generated if question.has_output else 0

        def nusd(output: int) -> int:
            return self._price_list.nusd(question.model, Usage(question.input_tokens, output), tier)

        if nusd(most) <= left_nusd:
            return None
        for_output_nusd = nusd(most) - nusd(0)
        fits = max(0, left_nusd - nusd(0)) * most // for_output_nusd if for_output_nusd else 0
        words = (
            f"This request requires more credits, or fewer max_tokens. You requested up to {most} "
            f"tokens, but can only afford {fits} (simulated)."
        )
        wrong = error_body(
            question.url, 402, words, "payment_required", "402", request_id=headers["x-request-id"]
        )
        return Reply(402, headers, wrong, fault=Fault.NO_CREDIT)

    def _lengths(self, question: Question) -> list[int]:
        if not question.has_output:
            return []
        cap = question.cap if question.cap is not None else MAX_OUTPUT_TOKENS
        # Hashed, not drawn: the same question has the same answer, whenever it is asked.
        return [
            max(1, min(cap, round(self._length.at(share_of(question, self._seed, place)))))
            for place in range(question.generated)
        ]

    def _answer(
        self, question: Question, body: Mapping[str, Any], lengths: list[int], number: int
    ) -> tuple[dict[str, Any], Usage]:
        if question.url == EMBEDDINGS:
            return make_embeddings(question, body, number)
        if question.url == MODERATIONS:
            return make_moderation(question, number), Usage()
        if question.url == EMBED_CONTENT:
            return gemini.make_content_embeddings(question, body)
        thought = min(lengths) // 2 if question.model == "sim-reasoning" else 0
        if question.url == GENERATE:
            return gemini.make_candidates(question, lengths, number, thought)
        return make_answer(question, lengths, number, int(time.time()), thought)

    # Limits and faults

    def _coin(self) -> bool:
        return self._rng.random() < 0.5

    def _refusal(
        self, fault: Fault, headers: dict[str, str], url: str, retry_after_s: float | None = None
    ) -> Reply:
        status, kind, code, message = REFUSALS[fault]
        if retry_after_s is None and fault is Fault.RATE_LIMITED:
            retry_after_s = 0.02
        if retry_after_s is not None and self.limiter.style.says_when:
            headers["retry-after-ms"] = str(math.ceil(retry_after_s * 1000))
            headers["retry-after"] = str(math.ceil(retry_after_s))
        if fault is Fault.RATE_LIMITED and self.limiter.style.headers == "anthropic":
            url = MESSAGES  # its words, wherever it limits
        words, more = "", dict[str, Any]()
        if fault is Fault.RATE_LIMITED and retry_after_s is not None:
            words, more = self.limiter.words(retry_after_s)
        body = error_body(
            url, status, words or f"{message} (simulated).", kind, code,
            request_id=headers["x-request-id"],
        )  # fmt: skip
        body["error"].update(more)
        return Reply(status, headers, body, fault=fault)

    def _spoil(self, reply: Reply, fault: Fault, url: str) -> None:
        """Turn a good answer into what the fault makes of it."""
        assert reply.body is not None
        assert reply.usage is not None
        reply.fault = fault
        if fault in (Fault.SLOW, Fault.TIMEOUT):
            reply.wait_s = max(SLOW_LEAST_S, SLOW_FACTOR * reply.wait_s)
        elif fault is Fault.HUGE_USAGE and usage_field(url) in reply.body:
            reply.usage = Usage(
                reply.usage.input_tokens * HUGE_USAGE_FACTOR,
                reply.usage.output_tokens * HUGE_USAGE_FACTOR,
            )
            reply.body[usage_field(url)] = usage_body(url, reply.usage)
        elif fault is Fault.NO_USAGE:
            reply.body.pop(usage_field(url), None)
        elif fault is Fault.TRUNCATED:
            whole = reply.encoded()
            reply.body, reply.content = None, whole[: len(whole) // 2]
        elif fault is Fault.HTML:
            reply.body, reply.content, reply.usage = None, PAGE, None
        elif fault is Fault.SERVER_ERROR:  # the billed half of them
            refusal = self._refusal(fault, reply.headers, url)
            reply.status, reply.body = refusal.status, refusal.body
        elif fault is Fault.RESET:
            reply.body = reply.content = None
            if self._coin():
                reply.usage = None
