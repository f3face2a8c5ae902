from decimal import Decimal

import pytest

from scheduler.answer import Answer
from scheduler.errors import ConfigError, RateLimited
from scheduler.providers.function import FunctionProvider
from scheduler.request import Quote, Request, Usage

REQUEST = Request({"text": "hello", "cents": 3})


async def shout(request):
    return {"text": request.body["text"].upper()}


@pytest.mark.parametrize(
    ("quote", "ceiling_nusd"),
    [
        ("$0.001", 1_000_000),
        ("0.0000000001", 1),  # a fraction of a nano-dollar is rounded up
        (2, 2_000_000_000),
        (0.25, 250_000_000),
        (Decimal("0.3"), 300_000_000),
        (Quote(77, 7), 77),
        (lambda request: request.body["cents"] / 100, 30_000_000),
        (lambda request: Quote(5, 4), 5),
    ],
)
def test_a_quote_is_dollars_or_a_quote_or_a_function_to_either(quote, ceiling_nusd):
    provider = FunctionProvider("f", shout, quote=quote)

    assert provider.tariff.quote(REQUEST).ceiling_nusd == ceiling_nusd


@pytest.mark.parametrize("quote", ["a lot", -1, float("nan"), "$2e99"])
def test_an_absurd_quote_is_refused_when_it_is_given(quote):
    with pytest.raises(ConfigError):
        FunctionProvider("f", shout, quote=quote)


@pytest.mark.parametrize(
    ("cost", "answer", "nusd"),
    [
        (None, Answer({}), None),  # nobody says: the ceiling is charged
        (None, Answer({}, cost_nusd=9), 9),
        ("$0.002", Answer({}, cost_nusd=9), 2_000_000),
        (0, Answer({}, cost_nusd=9), 0),
        (lambda request, result: request.body["cents"] / 100, Answer({}), 30_000_000),
        (lambda request, result: result["price"], Answer({"price": "0.5"}), 500_000_000),
        (lambda request, result: None, Answer({}), None),
        (lambda request, result: None, Answer({}, cost_nusd=9), 9),
    ],
)
def test_a_cost_is_dollars_or_a_function_or_what_the_answer_says(cost, answer, nusd):
    provider = FunctionProvider("f", shout, quote=1, cost=cost)

    assert provider.tariff.cost_nusd(REQUEST, answer) == nusd


@pytest.mark.anyio
async def test_the_result_becomes_the_body():
    provider = FunctionProvider("f", shout, quote=1)

    answer = await provider.send(REQUEST)

    assert answer == Answer({"text": "HELLO"})


@pytest.mark.anyio
async def test_usage_and_a_reported_cost_are_read_from_a_dict():
    async def call(request):
        return {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "cost": 0.002}}

    answer = await FunctionProvider("f", call, quote=1).send(REQUEST)

    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 4)
    assert answer.cost_nusd == 2_000_000


@pytest.mark.parametrize(
    "result", ["text", None, 7, [1], Answer("x", usage=Usage(1, 2)), {"usage": "many"}]
)
@pytest.mark.anyio
async def test_any_object_may_be_returned(result):
    async def call(request):
        return result

    answer = await FunctionProvider("f", call, quote=1).send(REQUEST)

    if isinstance(result, Answer):
        assert answer is result
    else:
        assert answer.body is result
        assert answer.usage is None


@pytest.mark.anyio
async def test_what_the_callable_raises_comes_through_as_it_is():
    error = RateLimited(429, "slow down")

    async def call(request):
        raise error

    with pytest.raises(RateLimited) as caught:
        await FunctionProvider("f", call, quote=1).send(REQUEST)

    assert caught.value is error
