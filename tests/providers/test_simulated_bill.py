"""The simulated provider bills real models as the catalogue does, so that it can be compared."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scheduler import Budget, Request, Scheduler
from scheduler.providers.simulated import bill as simulated_bill
from scheduler.providers.simulated.bill import PriceList
from scheduler.providers.simulated.provider import SIMULATED_PRICES, Simulated
from scheduler.request import EMBEDDINGS, MESSAGES, Usage
from scheduler.testing import run

REQUESTS = [
    Request.chat("gpt-4o-mini", "hello", max_tokens=50),
    Request.chat("openai/gpt-4o", "hello", max_tokens=50),
    Request.chat("gpt-5", "hello", max_completion_tokens=50),
    Request.chat("gpt-5", "hello", max_completion_tokens=50, service_tier="flex"),
    Request.chat("gpt-5", "hello", max_completion_tokens=50, service_tier="priority"),
    Request.responses("gpt-4.1-mini", "hello", max_output_tokens=50),
    Request.chat("models/gemini-2.5-flash", "hello", max_tokens=50),
    Request.chat("gemini-2.5-pro", "x" * 900_000, max_tokens=50),  # above a step
    Request({"model": "text-embedding-3-small", "input": "hello"}, url=EMBEDDINGS),
    Request({"model": "claude-sonnet-4-5", "max_tokens": 50,
             "messages": [{"role": "user", "content": "hi"}]}, url=MESSAGES),
    Request.chat("sonar-pro", "hello", max_tokens=50),  # a fee for each call
    Request.chat("sim-small", "hello", max_tokens=50),
]  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: each.model)
def test_the_ledger_has_what_was_billed(request_):
    async def main():
        provider = Simulated(latency=0)
        async with Scheduler(
            budgets=Budget("b", "$100"), providers=provider, prices=SIMULATED_PRICES
        ) as s:
            await s.run(request_)
            return s.stats().posted_nusd, provider.billed_nusd

    posted, billed = run(main())
    assert posted == billed > 0


def test_what_nobody_knows_has_a_price_of_its_own_and_given_ones_come_first():
    prices = PriceList({"gpt-4o": "1/1"})

    assert prices.nusd("gpt-4o", Usage(1_000, 0)) == 1_000_000
    assert prices.nusd("nobodys-model", Usage(1_000, 1_000)) == 5_000_000
    assert prices.nusd("github-copilot/gpt-4o-mini", Usage(1_000, 1_000)) > 0


def test_it_shares_no_arithmetic_with_the_price_book():
    tree = ast.parse(Path(simulated_bill.__file__).read_text())
    imported = {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    }

    assert not imported & {f"scheduler.{each}" for each in ("rates", "billing", "pricing")}
