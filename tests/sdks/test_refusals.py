"""`refusal_of` finds the refusal behind what libraries raise in the end."""

from __future__ import annotations

import asyncio

import pytest
import tenacity

from scheduler import BudgetExceeded, CallFailed, refusal_of
from tests.sdks.conftest import make_scheduler
from tests.sdks.kits import MODEL, OPENAI

pytestmark = [
    pytest.mark.anyio,
    *map(pytest.mark.filterwarnings, ("ignore::DeprecationWarning", "ignore::UserWarning")),
]
REFUSAL = BudgetExceeded("team", 100, 100, 0, 5)


def raised(error, cause=None, context=None):
    error.__cause__, error.__context__ = cause, context
    return error


def with_members(**members):
    error = Exception("wrapped")
    for name, value in members.items():
        setattr(error, name, value)
    return error


class Attempt:
    """As instructor keeps them."""

    def __init__(self, exception):
        self.exception = exception


class Nasty(Exception):
    @property
    def response(self):
        raise RuntimeError("no response here")

    original_exception = property(lambda self: 1 / 0)


def retried():
    try:
        for attempt in tenacity.Retrying(stop=tenacity.stop_after_attempt(2)):
            with attempt:
                raise raised(ValueError("what it said"), REFUSAL)
    except tenacity.RetryError as error:
        return error


def in_a_circle():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    second.__context__ = raised(Nasty(), REFUSAL)
    return first


def deep():
    error = REFUSAL
    for _ in range(500):
        error = raised(ValueError("over"), error)
    return error


FOUND = {
    "itself": lambda: REFUSAL,
    "a cause": lambda: raised(ValueError("x"), raised(ValueError("y"), REFUSAL)),
    "what was being handled": lambda: raised(ValueError("x"), None, REFUSAL),
    "a group": lambda: ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [REFUSAL])]),
    "a group of those that end programs": lambda: BaseExceptionGroup("g", [REFUSAL, SystemExit()]),
    "tenacity's": retried,
    "instructor's": lambda: with_members(failed_attempts=[Attempt(ValueError()), Attempt(REFUSAL)]),
    "litellm's": lambda: with_members(original_exception=raised(ValueError(), REFUSAL)),
    "an argument": lambda: Exception("failed", REFUSAL),
    "a reason": lambda: with_members(reason=REFUSAL),
    "a circle": in_a_circle,
    "one that raises": lambda: raised(Nasty(), REFUSAL),
    "deep": deep,
}


@pytest.mark.parametrize("way", FOUND)
def test_it_is_found_behind(way):
    assert refusal_of(FOUND[way]()) is REFUSAL


@pytest.mark.parametrize(
    "error", [ValueError("x"), in_a_circle().__cause__.__cause__, CallFailed("tried"), Nasty()]
)
def test_where_there_is_none_none_is_found(error):
    error.__cause__ = error.__context__ = None
    assert refusal_of(error) is None


async def test_pydantic_ai_raises_its_own_of_which_it_is_the_cause(service):
    pytest.importorskip("pydantic_ai.models.openai")
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with make_scheduler(0, on_exceeded="raise") as s:
        client = s.wrap(OPENAI.client(service.url, False))
        agent = Agent(OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client)))
        with pytest.raises(Exception, match="402") as caught:
            await agent.run("Hi")

    assert isinstance(refusal_of(caught.value), BudgetExceeded)
    assert not isinstance(caught.value, BudgetExceeded)


async def test_tenacity_around_an_sdk_says_which_refusal_it_was(service):
    async with make_scheduler(0, on_exceeded="raise") as s:
        client = s.wrap(OPENAI.client(service.url, False))

        @tenacity.retry(stop=tenacity.stop_after_attempt(2))
        async def ask():
            return await OPENAI.ask(client, "Hi")

        with pytest.raises(tenacity.RetryError) as caught:
            await ask()
        groups = asyncio.gather(OPENAI.ask(client, "Hi"), return_exceptions=True)

        assert isinstance(refusal_of(caught.value), BudgetExceeded)
        assert isinstance(refusal_of(ExceptionGroup("two", await groups)), BudgetExceeded)
