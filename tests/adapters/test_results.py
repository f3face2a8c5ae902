"""What results and pieces of streams say of their cost, without any scheduler."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from scheduler import Budget, Request, Scheduler
from scheduler.adapters.results import Pieces, body_of
from scheduler.prices.usage import Usage
from scheduler.providers.meaning import usage_told
from scheduler.providers.simulated.provider import Simulated
from scheduler.testing import VirtualClock, run

LARGE, SMALL = {"prompt_tokens": 90, "completion_tokens": 40}, {
    "prompt_tokens": 0, "completion_tokens": 0,
}  # fmt: skip


def said(text="Hi", end=None, at=0, **more):
    delta = {"content": text} if text else {}
    return {"choices": [{"index": at, "delta": delta, "finish_reason": end}], **more}


def last(usage=LARGE, **more):
    return {"choices": [], "usage": usage, **more}


START = {"type": "message_start", "message": {"usage": {"input_tokens": 90, "output_tokens": 1}}}
TEXT = [
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
]
ENDED = {
    "type": "message_delta",
    "delta": {"stop_reason": "end_turn"},
    "usage": {"output_tokens": 40},
}
RESPONSE = {"input_tokens": 90, "output_tokens": 40}
SEARCH = {"type": "web_search_call", "action": {"type": "search"}}

# Pieces, how many answers were asked for, and tokens in and out; None: not told, so the most counts.
STREAMS = {
    "chat": ([said(), said("", "stop"), last()], 1, (90, 40)),
    "the larger usage came first": ([said(usage=LARGE), said("", "stop"), last(SMALL)], 1, (90, 40)),
    "larger in one number only": (
        [said("", "stop", usage={"prompt_tokens": 90, "completion_tokens": 2}),
         last({"prompt_tokens": 3, "completion_tokens": 40})], 1, (90, 40),
    ),
    "usage beside the end": ([said(), said("", "stop", usage=LARGE)], 1, (90, 40)),
    "usage so far, and no end": ([said(usage=LARGE), said(usage=LARGE)], 1, None),
    "one of two has ended": ([said("", "stop", usage=LARGE)], 2, None),
    "two of two": ([said("", "stop"), said("", "stop", at=1), last()], 2, (90, 40)),
    "no usage": ([said(), said("", "stop")], 1, None),
    "anthropic": ([START, *TEXT, ENDED], 1, (90, 40)),
    "anthropic, broken off": ([START, *TEXT], 1, None),
    "responses": (
        [{"type": "response.created", "response": {"status": "in_progress", "usage": None}},
         {"type": "response.completed", "response": {"usage": RESPONSE, "output": []}}], 1, (90, 40),
    ),
    "google": (
        [{"candidates": [{"content": {"parts": [{"text": "Hi"}]}}],
          "usageMetadata": {"promptTokenCount": 90}},
         {"candidates": [{"finishReason": "STOP"}],
          "usageMetadata": {"promptTokenCount": 90, "candidatesTokenCount": 40}}], 1, (90, 40),
    ),
    "of a form of its own": ([{"text": "Hi"}, {"usage": LARGE}, {"usage": SMALL}], 1, (90, 40)),
    "objects without a dump": (
        [SimpleNamespace(usage=LARGE), SimpleNamespace(usage=None), SimpleNamespace(usage=SMALL)],
        1, (90, 40),
    ),
    "words and nothing": (["Hi", None, 7, b"there"], 1, None),
    "one that cannot be read": ([{("a", "b"): 1}, {"usage": LARGE}], 1, None),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_pieces_amount_to_what_was_used_or_to_nothing(name):
    pieces, answers, tokens = STREAMS[name]
    seen = Pieces(Request.chat("m", "Hi", n=answers))
    for piece in pieces:
        seen.take(piece)
    usage = usage_told(seen.body())
    assert (usage and (usage.input_tokens, usage.output_tokens)) == tokens


def test_a_piece_that_raises_when_it_is_asked_is_only_not_counted():
    class Odd:
        @property
        def usage(self):
            raise RuntimeError("no")

    seen = Pieces(Request.chat("m", "Hi"))
    seen.take(Odd())
    seen.take({"usage": LARGE})
    assert seen.body() is None


def test_tools_and_tiers_told_early_in_a_stream_are_billed():
    cites = {"annotations": [{"type": "url_citation"}]}
    chunks = [{"choices": [{"index": 0, "delta": {"content": "Hi", **cites}}],
               "service_tier": "priority"}, said("", "stop"), last()]  # fmt: skip
    seen = Pieces(Request.chat("m", "Hi"))
    for chunk in chunks:
        seen.take(chunk)
    body = seen.body()
    assert usage_told(body) == Usage(90, 40, web_searches=1)
    assert body["service_tier"] == "priority"


@pytest.mark.parametrize("tier", ["flex", "priority", None])
def test_a_result_tells_its_tier(tier):
    body = body_of(SimpleNamespace(usage=LARGE, service_tier=tier, choices=[]))
    assert body["service_tier"] == tier


def test_a_tier_that_the_answer_confirms_is_billed_by_its_own_price():
    async def fn(**asked):
        return {"usage": LARGE, "choices": [], "service_tier": asked.get("service_tier")}

    async def main():
        # By the computer's clock: the tiers' prices are of this year.
        async with Scheduler(budgets=Budget("team", "$9"), providers=Simulated()) as s:
            posted = []
            for tier in ("flex", "default", "priority"):
                was = s.stats().posted_nusd
                await s.call(fn, model="gpt-5", messages=[], max_tokens=99, service_tier=tier)
                posted.append(s.stats().posted_nusd - was)
            assert posted == [posted[1] // 2, posted[1], posted[1] * 2]

    asyncio.run(main())


async def _pieces(pieces):
    for each in pieces:
        yield each


def test_a_stream_is_posted_by_all_it_told_of_its_usage():
    async def fn(**asked):
        return _pieces([said(usage=LARGE), said("", "stop"), last(SMALL)])

    async def main():
        async with Scheduler(
            budgets=Budget("team", "$9"), providers=Simulated(), clock=VirtualClock(),
            prices={"m": "1/1"},
        ) as s:  # fmt: skip
            stream = await s.call(fn, model="m", messages=[], max_tokens=99, stream=True)
            chunks = [chunk async for chunk in stream]
            assert chunks[0]["usage"] == LARGE
            assert s.stats().posted_nusd == 130_000

    run(main())
