"""Wrapped clients judge answers by the same table as providers do."""

import json

import httpx
import httpx2
import pytest

from scheduler import Budget, Scheduler
from tests.adapters.test_http import ANSWER, BODY, URL, USAGE, events, make_scheduler, wrapped

pytestmark = pytest.mark.anyio
ERROR = {"code": 502, "message": "upstream died"}
COST = 30_000  # nano-dollars of `USAGE`
PART = {"choices": [{"index": 0, "delta": {"content": "yes"}}]}
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
STREAMED = {**BODY, "stream": True}


def money(s):
    stats = s.stats()
    return stats.posted_nusd, stats.suspense_nusd


@pytest.mark.parametrize("family", [httpx, httpx2])
async def test_an_error_inside_an_answer_is_posted_and_tried_again(family):
    left = [
        {"error": {"code": 429, "message": "slow"}},
        {"choices": [{"message": {"content": ""}, "finish_reason": "error", "error": ERROR}],
         "usage": USAGE},
        ANSWER,
    ]  # fmt: skip
    async with make_scheduler() as s:
        client = wrapped(s, lambda request: family.Response(200, json=left.pop(0)), family)
        response = await client.post(URL, json=BODY)

        assert response.json() == ANSWER
        assert money(s) == (2 * COST, 0)


async def test_a_403_about_one_prompt_is_its_callers_business():
    body = {"error": {"code": 403, "message": "Your input was flagged"}}
    async with make_scheduler() as s:
        client = wrapped(s, lambda request: httpx2.Response(403, json=body))
        response = await client.post(URL, json=BODY)

        assert (response.status_code, response.json()) == (403, body)
        assert money(s) == (0, 0)


@pytest.mark.parametrize(
    ("items", "posted", "is_suspended"),
    [
        ([PART, "nonsense", END, {"choices": [], "usage": USAGE}], COST, False),
        ([PART, {"object": "error", "message": "boom"}], 0, True),
        ([PART], 0, True),
        ([PART, END, {"choices": [], "usage": USAGE},
          {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}], COST, False),
    ],
)  # fmt: skip
async def test_streams_are_judged_alike(items, posted, is_suspended):
    lines = [f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n" for item in items]
    content = "".join([*lines, "data: [DONE]\n\n"]).encode()

    def answer(request):
        kind = {"content-type": "text/event-stream"}
        return httpx2.Response(200, content=content, headers=kind)

    async with make_scheduler() as s:
        client = wrapped(s, answer)
        async with client.stream("POST", URL, json=STREAMED) as response:
            await response.aread()

        assert (money(s)[0], money(s)[1] > 0) == (posted, is_suspended)
        assert s.stats().running == 0


@pytest.mark.parametrize("status", [200, 429, 503])
@pytest.mark.parametrize("value", [b"M\xc3\xbcnchen", b"M\xfcnchen", b"\xff\xfe"])
async def test_no_header_loses_an_answer(status, value):
    codes = [status, 200]

    def answer(request):
        headers = [(b"x-region", value), (b"x-request-id", value), (b"retry-after-ms", b"1")]
        body = ANSWER if codes[0] == 200 else {"error": {"message": "later"}}
        return httpx2.Response(codes.pop(0) if len(codes) > 1 else 200, headers=headers, json=body)

    async with make_scheduler() as s:
        client = wrapped(s, answer)
        assert (await client.post(URL, json=BODY)).json() == ANSWER
        assert money(s) == (COST, 0)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_usage_is_asked_for_only_where_it_is_welcome(is_streamed):
    sent = []

    def answer(request):
        sent.append(json.loads(request.content))
        if "stream_options" in sent[-1]:
            words = {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]}
            return httpx2.Response(422, json=words)
        return events(PART, {**END, "usage": USAGE})

    async with make_scheduler() as s:
        client = wrapped(s, answer)
        for _ in range(2):
            if is_streamed:
                async with client.stream("POST", URL, json=STREAMED) as response:
                    content = await response.aread()
            else:
                content = (await client.post(URL, json=STREAMED)).content
            assert b"usage" in content
        assert ["stream_options" in each for each in sent] == [True, False, False]
        assert money(s) == (2 * COST, 0)


async def test_another_refusal_is_given_back_as_it_came():
    def answer(request):
        return httpx2.Response(400, json={"error": {"message": "no such model"}})

    async with Scheduler(budgets=Budget("t", "$1"), prices={"m": "1/4"}) as s:
        client = wrapped(s, answer)
        async with client.stream("POST", URL, json=STREAMED) as response:
            assert "no such model" in (await response.aread()).decode()
        assert money(s) == (0, 0)
