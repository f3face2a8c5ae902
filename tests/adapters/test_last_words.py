"""Who wants an error rather than waiting for a provider that refuses hears what that one said."""

from __future__ import annotations

import httpx
import pytest

from scheduler import Budget, ProviderUnavailable, Scheduler, refusal_of
from scheduler.testing import VirtualClock, run

URL = "http://h/v1/chat/completions"
BODY = {"model": "m", "max_tokens": 1000, "messages": [{"role": "user", "content": "Hi"}]}
NO_CREDIT = {"code": "insufficient_quota", "message": "top it up"}


def world(work, handler, **options):
    """Run a function with an open scheduler, a wrapped client, and what was sent."""
    sent = []

    def counting(request):
        sent.append(request)
        return handler(request)

    async def main():
        options.setdefault("on_exceeded", "raise")
        async with Scheduler(
            budgets=Budget("team", "$1"), prices={"m": "1/4"}, clock=VirtualClock(), **options
        ) as s:
            transport = httpx.MockTransport(counting)
            async with s.wrap(httpx.AsyncClient(transport=transport)) as client:
                await work(s, client, sent)

    run(main())


def saying(status, **error):
    return lambda request: httpx.Response(status, json={"error": error})


ANSWER = {
    "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5},
}


def refused_connection(request):
    raise httpx.ConnectError("nobody there")


def answering_once():
    left = [httpx.Response(200, json=ANSWER)]
    return lambda request: left.pop() if left else refused_connection(request)


REFUSALS = [
    (503, {"code": "busy", "message": "later"}, 5),  # the fifth in a row closes the provider
    (529, {"type": "overloaded_error", "message": "later"}, 5),
    (402, {"message": "Insufficient credits"}, 1),
    (429, NO_CREDIT, 1),
]


@pytest.mark.parametrize(("status", "error", "sends"), REFUSALS)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_the_provider_said_last_comes_through(status, error, sends, is_streamed):
    async def work(s, client, sent):
        body = BODY | ({"stream": True} if is_streamed else {})
        async with client.stream("POST", URL, json=body) as found:
            await found.aread()
        assert (found.status_code, found.json()) == (status, {"error": error})
        assert found.headers["x-should-retry"] == "false"
        assert len(sent) == sends
        with pytest.raises(httpx.HTTPStatusError) as caught:
            found.raise_for_status()
        why = refusal_of(caught.value)
        assert isinstance(why, ProviderUnavailable)
        assert why.retries_at_ms is not None
        assert s.stats().posted_nusd == s.stats().reserved_nusd == s.stats().suspense_nusd == 0

        # Whoever comes next was told nothing by the provider: it hears of it from here.
        other = await client.post(URL, json=BODY)
        assert (other.status_code, len(sent)) == (429, sends)
        assert other.json()["error"]["code"] == why.reason

    world(work, saying(status, **error), max_attempts=9)


def test_so_does_an_exception_of_its_client():
    async def work(s, client, sent):
        assert (await client.post(URL, json=BODY)).json() == ANSWER
        with pytest.raises(httpx.ConnectError, match="nobody there"):
            await client.post(URL, json=BODY)
        assert len(sent) == 1 + 5
        assert (await client.post(URL, json=BODY)).status_code == 429

    world(work, answering_once(), max_attempts=9)


def test_and_what_a_function_raised():
    class Refused(Exception):
        def __init__(self):
            super().__init__("top it up")
            self.status_code, self.body = 429, {"error": NO_CREDIT}

    async def complete(**said):
        raise Refused

    async def work(s, client, sent):
        with pytest.raises(Refused) as caught:
            await s.call(complete, model="m", messages=BODY["messages"])
        assert "credit" in caught.value.__notes__[0]
        with pytest.raises(ProviderUnavailable):
            await s.call(complete, model="m", messages=BODY["messages"])

    world(work, refused_connection)
