"""What a quote learns from calls that were answered before: of the same batch, or like it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from scheduler.estimates import Interval, Paid, Rest, total
from scheduler.prices.book import prompt_only
from scheduler.rehearsal.lore import Lesson, Lore
from scheduler.request import Quote, Request
from scheduler.stats import Past
from scheduler.stores.base import Store

MOST_CALLS = 2_000  # looked at
OF_THIS = 8  # calls of the batch itself, from which on others are not asked
BYTES_PER_TOKEN = 4  # as prompts are guessed where nothing counts them


@dataclass(slots=True)
class Learned:
    """What the rest of a batch will cost, and how that is known; `add` what is to be sent.

    Attributes:
        is_own: Whether it rests on calls of this batch alone.
        calls: On how many of the models asked.
    """

    own: Sequence[Past] = ()
    others: Sequence[Past] = ()
    seed: int = 0
    calls: int = 0
    is_own: bool = True
    _money: dict[str, list[Paid]] = field(default_factory=dict)
    _tokens: dict[str, list[Paid]] = field(default_factory=dict)
    _seconds: list[float] = field(default_factory=list)
    _money_left: dict[str, Rest] = field(default_factory=dict)
    _tokens_left: dict[str, Rest] = field(default_factory=dict)
    _prices: dict[str, float] = field(default_factory=dict)  # of a token of a prompt
    _usual: dict[str, tuple[float, float]] = field(default_factory=dict)
    _calls: dict[str, Sequence[Past]] = field(default_factory=dict)

    @classmethod
    async def of(cls, store: Store | None, job: str, seed: int) -> Learned:
        """Read what a store holds."""
        if store is None:
            return cls(seed=seed)
        own = await store.past(job, MOST_CALLS)
        return cls(own, await store.past(None, MOST_CALLS), seed)

    def add(self, request: Request, quote: Quote, quote_one: Callable[[Request], Quote]) -> Quote:
        """Count a request that is to be sent; gives back its quote with what is expected of it."""
        model = request.model
        if model not in self._prices:
            self._learn(model, quote_one(prompt_only(request)))
        price, guess = self._prices[model], quote.tokens.input
        most = max(0.0, quote.ceiling_nusd - price * BYTES_PER_TOKEN * guess)
        likely = max(0.0, quote.expected_nusd - price * guess)
        self._money_left.setdefault(model, Rest()).add(guess, likely, most)
        longest = max(0, quote.ceiling_tokens - BYTES_PER_TOKEN * guess)
        self._tokens_left.setdefault(model, Rest()).add(guess, min(300, longest), longest)
        if (usual := self._usual.get(model)) is None:
            return quote
        expected = round(usual[0] * guess + min(usual[1], most))
        return replace(quote, expected_nusd=min(quote.ceiling_nusd, expected))

    def _learn(self, model: str, prompt: Quote) -> None:
        """Take in what calls of a model cost, now that its price is known."""
        guessed = (prompt.ceiling_tokens - 1) // BYTES_PER_TOKEN
        price = self._prices[model] = prompt.expected_nusd / guessed if guessed > 0 else 0.0
        calls = [each for each in self.own if each.model == model]
        if len(calls) < OF_THIS:
            others = [each for each in self.others if each.model == model]
            if len(others) > len(calls):
                calls, self.is_own = others, False
        if not calls:
            return
        self.calls += len(calls)
        self._calls[model] = calls
        self._seconds += [each.ms / 1000 for each in calls]
        self._tokens[model] = [
            Paid(
                each.guess, each.input_tokens, each.output_tokens,
                max(each.output_tokens, each.ceiling_tokens - BYTES_PER_TOKEN * each.guess),
            ) for each in calls
        ]  # fmt: skip
        money = self._money[model] = [_paid(each, price) for each in calls]
        guesses = sum(each.guess for each in money)
        self._usual[model] = (
            sum(each.input for each in money) / guesses if guesses else 0.0,
            sum(each.output for each in money) / len(money),
        )

    def money(self) -> Interval | None:
        """What the rest will cost, in nano-dollars; None: too little is known."""
        return total(self._money, self._money_left, Random(self.seed))

    def tokens(self) -> Interval | None:
        """Likewise its tokens."""
        return total(self._tokens, self._tokens_left, Random(self.seed))

    def lore(self) -> Lore:
        """The calls that it rests on, for a rehearsal."""
        return Lore({
            model: [
                Lesson(each.cost_nusd, each.input_tokens + each.output_tokens, each.ms,
                       each.expected_nusd, each.guess)
                for each in reversed(calls)
            ]
            for model, calls in self._calls.items()
        })  # fmt: skip

    def seconds(self, at_once: int) -> float | None:
        """How long the rest takes with so many calls at once, if nothing but the answers is waited for."""
        left = sum(each.requests for each in self._money_left.values())
        if not self._seconds:
            return None
        each = sum(self._seconds) / len(self._seconds)
        return each * max(1.0, left / at_once) if left else 0.0


def _paid(call: Past, price: float) -> Paid:
    into = min(price * call.input_tokens, call.cost_nusd)
    output = call.cost_nusd - into
    return Paid(
        call.guess, into, output,
        max(output, call.ceiling_nusd - price * BYTES_PER_TOKEN * call.guess),
    )  # fmt: skip
