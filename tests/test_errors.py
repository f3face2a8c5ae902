"""Every error says what happened, the numbers, whether money was spent, and what to do."""

from __future__ import annotations

import pickle

import pytest

from scheduler import errors
from scheduler.errors import (
    BadAnswer,
    BudgetExceeded,
    BudgetUnknown,
    CallFailed,
    CallInterrupted,
    CallTimeout,
    ConfigError,
    CostTooHigh,
    CredentialsRefused,
    DeadlineExceeded,
    HeldByCallers,
    InputError,
    KeyConflict,
    LedgerInconsistent,
    OutputInUse,
    PriceUnknown,
    PromptTooLong,
    ProviderOverloaded,
    ProviderRefused,
    ProviderUnavailable,
    QueueFull,
    RateLimited,
    SchedulerClosed,
    StoreForeign,
    StoreLocked,
    StoreTooNew,
    StreamBroken,
    TransportFailed,
    WaitsForItself,
    WrongLoop,
)  # fmt: skip

USD = 10**9
EXAMPLES = [
    (
        BudgetExceeded("team", 100 * USD, 99_800_000_000, 150_000_000, 300_000_000,
                       1_796_076_000_000, "Europe/Athens"),
        "Cost tracking budget exceeded: current usage 99.8% of limit 100 USD (budget 'team': spent "
        "99.80, reserved 0.15; this request needs up to 0.30; resets 2026-12-01 00:00 Europe/Athens)",
    ),
    (
        BudgetExceeded("t", 2000, 1999, 0, 5, None, "UTC", "tokens"),
        "Cost tracking budget exceeded: current usage 99.9% of limit 2,000 tokens (budget 't': spent "
        "1,999 tokens, reserved 0 tokens; this request needs up to 5 tokens; does not reset by "
        "itself, raise the limit)",
    ),
    (
        HeldByCallers("team", USD, 0, 600_000_000, 500_000_000, None, "UTC", "usd", 600_000_000),
        "budget 'team' is held by calls that wait themselves, for this request or for others made "
        "within them, so it would wait for ever: they hold 0.60 of 1.00 (0.00 spent, 0.40 free), and "
        "it needs up to 0.50; nothing was sent for it. Raise the budget, quote the outer calls lower, "
        "or submit it outside of them",
    ),
    (
        HeldByCallers("t", 100, 0, 40, 50, None, "UTC", "tokens", 40, 20),
        "budget 't' is held by calls that wait themselves, for this request or for others made "
        "within them, so it would wait for ever: they hold 40 tokens of 100 tokens (0 tokens spent, 60 "
        "tokens free, 20 tokens of it kept for more urgent requests), and it needs up to 50 tokens; "
        "nothing was sent for it. Raise the budget, quote the outer calls lower, or submit it outside "
        "of them",
    ),
    (
        BudgetExceeded("team", 100 * USD, 85 * USD, 0, USD, 1_796_076_000_000, kept_for="interactive"),
        "Cost tracking budget exceeded: current usage 85% of limit 100 USD (budget 'team': spent 85.00, "
        "reserved 0.00; this request needs up to 1.00; the rest is kept for interactive requests, more "
        "of it is released from 2026-11-30 22:00 UTC)",
    ),
    (
        BudgetExceeded("team", 100 * USD, 85 * USD, 0, USD, kept_for="interactive and normal"),
        "Cost tracking budget exceeded: current usage 85% of limit 100 USD (budget 'team': spent 85.00, "
        "reserved 0.00; this request needs up to 1.00; the rest is kept for interactive and normal "
        "requests, does not reset by itself, raise the limit)",
    ),
    (
        WaitsForItself("mine"),
        "key 'mine' is that of a call under way which waits for this request, so it would wait for "
        "itself; nothing was sent for it. Use another key, or submit it outside of that call",
    ),
    (
        CostTooHigh(2 * USD, USD),
        "may cost up to $2.00, above its max_cost of $1.00; nothing was sent. Lower max_tokens, "
        "shorten the prompt, or raise max_cost",
    ),
    (PromptTooLong(2000, 1000), "the prompt has about 2,000 tokens, above the most allowed of 1,000; "
     "nothing was sent. Shorten it, or raise max_prompt_tokens"),
    (ProviderUnavailable("openai", "provider_credit", "quota"), "provider 'openai' says that its own "
     "credit is used up (quota); nothing was sent. Top it up there, or let it wait"),
    (ProviderUnavailable("openai", "provider_down"), "provider 'openai' does not answer; nothing was "
     "sent. Try again later, or let it wait"),
    (DeadlineExceeded(1500, "parked: paused"),
     "not sent in time: waited 1.5 s (parked: paused); nothing was charged"),
    (KeyConflict("a", "j"), "key 'a' was used before in job 'j' for a request with another body; "
     "nothing was sent. Use a new key for a new question"),
    (PriceUnknown("m", "openai"), "no price is known for model 'm' at openai; nothing was sent. Set "
     "one, in USD per million tokens in and out: scheduler prices set m --in 0.10 --out 0.20, or "
     "--price m=0.10/0.20 for one run"),
    (BudgetUnknown("x", ("a",)), "no budget is named 'x' (there are: 'a'); nothing was sent"),
    (BudgetUnknown(None, ("a", "b")), "the request names no budget and there are several ('a', 'b'); "
     "nothing was sent. Name one, call one of them 'default', or pass budget=() to draw on none"),
    (QueueFull(1000, 1000), "1,000 requests wait already, the most allowed is 1,000; nothing was "
     "sent. Await some results first, use map(), or raise max_queue"),
    (SchedulerClosed(), "the scheduler is closed; nothing was sent"),
    (WrongLoop(), "the scheduler runs in another event loop than the one that asks; nothing was "
     "sent. Ask in its own loop, or open one with scheduler.open() (a BlockingScheduler), which "
     "may be asked from any thread"),
    (CallInterrupted("closed"), "closed (1 attempt)"),
    (CallFailed("odd"), "odd (1 attempt)"),
    (CallTimeout("no answer in 5 s"), "no answer in 5 s (1 attempt)"),
    (TransportFailed("refused", False), "refused (1 attempt, nothing charged)"),
    (StreamBroken("the connection broke off", 7),
     "the connection broke off after 7 events (1 attempt)"),
    (BadAnswer("HTML", 200, "<p>"), "HTML (1 attempt)"),
    (RateLimited(429, "slow down", None, {}, 5), "HTTP 429 rate_limit_exceeded: slow down (1 attempt, "
     "nothing charged)"),
    (ProviderOverloaded(503, "busy"), "HTTP 503 server_error: busy (1 attempt)"),
    (CredentialsRefused(401, "no"), "HTTP 401 unauthorized: no (1 attempt, nothing charged)"),
    (ProviderRefused(400, "bad", "x"), "HTTP 400 x: bad (1 attempt, nothing charged)"),
    (StoreLocked("held"), "held"),
    (StoreForeign("not ours"), "not ours"),
    (LedgerInconsistent("off"), "off"),
    (StoreTooNew("a.db", 9, 1), "a.db has schema version 9, this package knows up to 1; nothing was "
     "changed. Upgrade llm-budget-scheduler, or use another store"),
    (OutputInUse("a.jsonl", "process 7"), "a.jsonl is being written by process 7; nothing was read, "
     "changed or sent. Wait for it to end, or name another output with -o"),
    (InputError("p.jsonl", 3, "not JSON"), "p.jsonl:3: not JSON"),
    (ConfigError("--price", "wrong"), "--price: wrong"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "text"), EXAMPLES, ids=lambda v: type(v).__name__)
def test_the_text_is_whole_and_survives_pickling(error, text):
    again = pickle.loads(pickle.dumps(error))

    assert str(error) == str(again) == text
    assert (type(again), again.args) == (type(error), error.args)
    assert vars(again) == vars(error)


def test_what_is_learnt_later_survives_pickling_too():
    error = ProviderOverloaded(500, "boom")
    error.attempts, error.cost_nusd = 3, 2_500_000

    again = pickle.loads(pickle.dumps(error))

    assert str(again) == "HTTP 500 server_error: boom (3 attempts, $0.0025 counted as spent)"


def test_every_error_is_documented_shown_in_the_tree_and_tried_here():
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    ours = {each for each in classes if issubclass(each, errors.SchedulerError)}
    tried = {type(error) for error, _ in EXAMPLES}
    for each in ours:
        assert each.__doc__, each
        assert each.__name__ in (errors.__doc__ or ""), each
        assert each in tried or each.__subclasses__(), each


HALF = "\ud800"


@pytest.mark.parametrize(
    "name", [HALF, "\udcff", "\0", "x" * 200_000, "é" * 101, "\u202e"], ids=ascii
)
@pytest.mark.parametrize("make", [PriceUnknown, lambda name: PriceUnknown("m", name),
                                  lambda name: PriceUnknown("m", "p", name),
                                  BudgetUnknown, KeyConflict])  # fmt: skip
def test_whatever_a_name_is_an_error_can_say_it(make, name):
    words = str(make(name))

    assert words
    assert len(words) < 2_000


def test_of_ten_thousand_budgets_some_are_named():
    known = tuple(f"user-{number}" for number in range(10_000))

    for error in (BudgetUnknown("eve", known), BudgetUnknown(None, known)):
        assert "'user-0', 'user-1'" in str(error)
        assert "and 9,990 more" in str(error)
        assert len(str(error)) < 500
