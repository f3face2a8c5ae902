"""How long can an answer be? By the cap in its request, or by what its model can do at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from scheduler.prices.lenient import count_of
from scheduler.prices.tokens import TokenBound, bare_name
from scheduler.request import (
    CHAT,
    COMPLETIONS,
    EMBED_CONTENT,
    EMBEDDINGS,
    GENERATE,
    MESSAGES,
    MODERATIONS,
    RESPONSES,
    Request,
)

DEFAULT_OUTPUT = 16_384
MAX_TOKENS = 10**21  # no bound is above it, and one this high is refused

# What caps the output at each endpoint; a name that the endpoint does not know caps nothing.
_CAPS = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    COMPLETIONS: ("max_tokens",),
    RESPONSES: ("max_output_tokens",),
    MESSAGES: ("max_tokens",),
    GENERATE: ("max_output_tokens", "maxOutputTokens"),
}
_COUNTS = {GENERATE: ("candidateCount", "candidate_count")}
_USUAL_COUNTS = ("n", "best_of", "num_completions")
_THOUGHTS = ("thinking_budget", "thinking")
_CONFIGS = ("generation_config", "generationConfig")  # where Google's bodies have both
REASONING = ("o1", "o3", "o4", "gpt-5", "gpt-6")  # these refuse chat's old name for the cap
_ALL_CAPS = ("max_completion_tokens", "max_tokens", "max_output_tokens")

# Most output tokens of one request by the beginning of the model's name, the longest holds;
# from the providers' model pages (November 2026), the larger number where they disagree.
# Anthropic's models are missing on purpose: their API demands a cap.
MAX_OUTPUT = {
    "gpt-3.5-turbo": 4_096,
    "gpt-4-turbo": 4_096,
    "gpt-4o": 16_384,
    "gpt-4.1": 32_768,
    "gpt-5": 128_000,
    "gpt-5-pro": 272_000,
    "gpt-5.5": 272_000,
    "o1": 100_000,
    "o3": 100_000,
    "o4-mini": 100_000,
    "gemini-2.0-flash": 8_192,
    "gemini-2.0-flash-thinking": 65_536,
    "gemini-2.5": 65_536,
    "gemini-3": 65_536,
    "gemini-4": 65_536,  # what is longer comes in several requests, each with a token to go on
}


class Output(NamedTuple):
    """What a body says of the output, and what that can be.

    Attributes:
        tokens: At most.
        is_bound: Whether that is sure.
        stated: The cap in the body, over all answers; 0: it sets none.
        is_count_read: Whether the body says how many answers it asks for in a way that can be read.
    """

    tokens: int
    is_bound: bool
    stated: int
    is_count_read: bool


def output_of(request: Request, model: str, context_tokens: int | None) -> Output:
    """What the output of a request can be, whose model is this one."""
    cap, (answers, is_readable) = _stated_cap(request), _answers(request)
    stated = min(cap * answers, MAX_TOKENS)
    if request.url in (EMBEDDINGS, MODERATIONS, EMBED_CONTENT):
        return Output(0, True, stated, is_readable)
    most = known_max_output(model) or context_tokens
    if most is not None:
        cap = min(cap or most, most)
    tokens = min((cap or DEFAULT_OUTPUT) * answers, MAX_TOKENS)
    return Output(tokens, cap > 0 and is_readable, stated, is_readable)


def bound_output_tokens(request: Request, context_tokens: int | None) -> TokenBound:
    """Most tokens the output of a request can be."""
    output = output_of(request, request.model, context_tokens)
    return TokenBound(output.tokens, output.is_bound)


def answers_of(request: Request) -> int:
    """How many answers are generated, and billed."""
    return _answers(request)[0]


def _answers(request: Request) -> tuple[int, bool]:
    """How many answers are generated; whether the body says it in a way that can be read."""
    settings, answers, is_readable = _settings(request), 1, True
    for name in _COUNTS.get(request.url, _USUAL_COUNTS):
        if name in settings and (value := settings[name]) is not None:
            count = count_of(value)
            is_readable = is_readable and count is not None
            answers = max(answers, count or 1)
    if request.url == COMPLETIONS:
        answers *= _prompts(request.body.get("prompt"))
    return answers, is_readable


def stated_output_tokens(request: Request) -> int:
    """The output cap in a body, over all its answers; 0: it sets none."""
    return min(_stated_cap(request) * answers_of(request), MAX_TOKENS)


def _stated_cap(request: Request) -> int:
    """The output cap of each answer; 0: none that is sure to be read as one.

    Of several, servers differ in which they follow. One that may mean "no limit" (-1, a word) takes
    the others' place.
    """
    cap, settings = 0, _settings(request)
    for name in _CAPS.get(request.url, _ALL_CAPS):
        value = settings.get(name)
        if value is not None:
            count = count_of(value)
            if count is None or count <= 0:
                return 0
            cap = max(cap, count)
    if not cap:
        return 0
    beside = _thoughts_beside(settings, cap)
    return 0 if beside is None else cap + beside


def _thoughts_beside(settings: Mapping[str, Any], cap: int) -> int | None:
    """Tokens for thinking that the cap may not count; None: that cannot be read.

    Alibaba's cap is taken not to count them where a budget is set, which its pages leave open;
    Anthropic's does, but lets the budget be larger than the cap where thoughts and tools
    alternate, over all turns that these take.
    """
    budget = settings.get("thinking_budget")
    if budget is not None:
        count = count_of(budget)
        return None if count is None or count < 0 else count
    thinking = settings.get("thinking")
    if thinking is None:
        return 0
    budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
    if budget is None:
        return 0
    count = count_of(budget)
    if count is None or count < 0:
        return None
    return count if count >= cap else 0


def _settings(request: Request) -> Mapping[str, Any]:
    """What has the cap and the number of answers in it: the body, or a part of it."""
    if request.url != GENERATE:
        return request.body
    found = [request.body.get(name) for name in _CONFIGS]
    return {key: value for each in found if isinstance(each, dict) for key, value in each.items()}


def _with_settings(request: Request, changes: Mapping[str, Any]) -> Request:
    if request.url != GENERATE:
        return replace(request, body={**request.body, **changes})
    body = {name: value for name, value in request.body.items() if name not in _CONFIGS}
    config = {**_settings(request), **changes}
    return replace(request, body={**body, _CONFIGS[-1]: config})


def with_output_cap(request: Request, tokens: int) -> Request:
    """The request with an output cap written into its body, if it has none."""
    names, settings = _CAPS.get(request.url), _settings(request)
    if names is None or any(settings.get(name) is not None for name in names):
        return request
    name = names[-1]
    if request.url == CHAT and bare_name(request.model).startswith(REASONING):
        name = names[0]
    return _with_settings(request, {name: tokens})


def prompt_only(request: Request) -> Request:
    """The request with an output of one token at most: its quote is what the prompt costs."""
    names, settings = _CAPS.get(request.url), _settings(request)
    if names is None:
        return request
    ones = [name for name in names if name in settings] or [names[-1]]
    ones += [name for name in _COUNTS.get(request.url, _USUAL_COUNTS) if name in settings]
    thoughts = [name for name in _THOUGHTS if name in settings]
    return _with_settings(request, dict.fromkeys(ones, 1) | dict.fromkeys(thoughts))


def _prompts(prompt: object) -> int:
    """How many prompts there are: a list of texts or of token lists is answered one by one."""
    is_many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    return len(prompt) if is_many and isinstance(prompt, list) else 1


@lru_cache(1024)
def known_max_output(model: str) -> int | None:
    """The most output tokens of a model, if it is known."""
    name = bare_name(model)
    if ":" in name:
        return None  # a gateway's variant, which may have another limit
    found = max((start for start in MAX_OUTPUT if name.startswith(start)), key=len, default=None)
    return None if found is None else MAX_OUTPUT[found]
