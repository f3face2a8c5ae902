"""What a model's tokens cost, in integers; the same rates for quotes and bills.

Rates are in atto-dollars (1e-18 USD) per token, so every published price is exact:
a dollar per million tokens is 10**12. A cost is summed exactly and rounded up to
nano-dollars once. Prices may step up with the length of the input; a step applies to
all tokens of the call, as providers bill it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from scheduler.errors import ConfigError
from scheduler.request import Usage

ATTO_PER_NANO = 10**9
ATTO_PER_USD_A_MILLION = 10**12  # atto-dollars per token for one dollar per million tokens
MAX_USD_A_MILLION = 100_000  # above it a price was surely meant per token or per thousand

Steps = tuple[tuple[int, int], ...]  # (input tokens above which it holds, atto-dollars per token)


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of one model.

    A kind of token without a price of its own counts as what it is part of: cached
    input as input, reasoning as output.

    Attributes:
        long_cache_write: For caches kept longer; usage does not tell them apart, so it
            only enters ceilings.
        per_call: Atto-dollars for each call, beside its tokens.
        context_tokens: The most tokens a call may have; None: not known.
        is_complete: False: the model also bills by something that is not counted here.
    """

    input: Steps
    output: Steps = ((0, 0),)
    cache_read: Steps | None = None
    cache_write: Steps | None = None
    long_cache_write: Steps | None = None
    input_audio: Steps | None = None
    output_audio: Steps | None = None
    reasoning: Steps | None = None
    per_call: int = 0
    context_tokens: int | None = None
    is_complete: bool = True

    @classmethod
    def parse(cls, price: str, what: str = "price") -> Rates:
        """Read a price of the user's own: ``"IN/OUT"`` or ``"IN/OUT/CACHED"``, USD per million.

        Raises:
            ConfigError: Not such a price, negative, or absurd.
        """
        parts = price.replace("$", "").split("/")
        if not 2 <= len(parts) <= 3:
            raise ConfigError(
                what, f"{price!r} is not IN/OUT in USD per million tokens, like 0.10/0.20"
            )
        steps = [((0, _atto_per_token(part, what)),) for part in parts]
        return cls(steps[0], steps[1], steps[2] if len(steps) > 2 else None)

    def cost_nusd(self, usage: Usage) -> int:
        """What a call with this usage costs, rounded up to nano-dollars."""
        length, rest_in, rest_out = usage.input_tokens, usage.input_tokens, usage.output_tokens
        total = self.per_call
        for steps, count in (
            (self.cache_read, usage.cached_tokens),
            (self.cache_write, usage.cache_write_tokens),
            (self.input_audio, usage.input_audio_tokens),
        ):
            if steps is not None and count:
                count = min(count, rest_in)
                rest_in -= count
                total += _at(steps, length) * count
        for steps, count in (
            (self.output_audio, usage.output_audio_tokens),
            (self.reasoning, usage.reasoning_tokens),
        ):
            if steps is not None and count:
                count = min(count, rest_out)
                rest_out -= count
                total += _at(steps, length) * count
        total += _at(self.input, length) * rest_in + _at(self.output, length) * rest_out
        return -(-total // ATTO_PER_NANO)

    def most_nusd(self, input_tokens: int, output_tokens: int) -> int:
        """The most that a call with up to so many tokens can cost, however they split."""
        dear_in = max(
            _most(steps, input_tokens)
            for steps in (
                self.input,
                self.cache_read,
                self.cache_write,
                self.long_cache_write,
                self.input_audio,
            )
            if steps is not None
        )
        dear_out = max(
            _most(steps, input_tokens)
            for steps in (self.output, self.output_audio, self.reasoning)
            if steps is not None
        )
        total = self.per_call + dear_in * input_tokens + dear_out * output_tokens
        return -(-total // ATTO_PER_NANO)


def _at(steps: Steps, length: int) -> int:
    """The rate for an input of this length."""
    rate = steps[0][1]
    for above, stepped in steps[1:]:
        if length > above:
            rate = stepped
    return rate


def _most(steps: Steps, length: int) -> int:
    """The highest rate for any input up to this length."""
    return max(rate for above, rate in steps if above == 0 or length > above)


def _atto_per_token(text: str, what: str) -> int:
    try:
        price = Decimal(text.strip())
    except InvalidOperation:
        raise ConfigError(what, f"{text!r} is not a price in USD per million tokens") from None
    if not price.is_finite() or not 0 <= price <= MAX_USD_A_MILLION:
        raise ConfigError(
            what,
            f"{text!r} is not between 0 and {MAX_USD_A_MILLION:,} USD per million tokens; is it "
            "meant per thousand?",
        )
    return int((price * ATTO_PER_USD_A_MILLION).to_integral_value())


_FIELDS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "long_cache_write",
    "input_audio_mtok": "input_audio",
    "output_audio_mtok": "output_audio",
    "output_reasoning_mtok": "reasoning",
}
_STAND_INS = {"input": "input_text_mtok", "output": "output_text_mtok"}
# Billed only for tools the provider runs, which make a quote no bound anyway; or a finer
# kind than usage tells apart, and cheaper than the kind it is counted as.
_BESIDE = ("web_searches_kcount", "storage_searches_kcount", "cache_audio_read_mtok")


def from_catalogue(prices: Any, context_tokens: int | None) -> Rates:
    """Rates from a `genai_prices.types.ModelPrice`."""
    listed = {name: value for name, value in vars(prices).items() if value is not None}
    fields: dict[str, Any] = {}
    is_complete = True
    for name, value in listed.items():
        if name in _FIELDS:
            fields[_FIELDS[name]] = _steps(value)
        elif name == "requests_kcount":
            fields["per_call"] = int(Decimal(value) * 10**15)  # USD per thousand calls
        elif name not in _STAND_INS.values():
            is_complete = is_complete and name in _BESIDE
    for field, stand_in in _STAND_INS.items():
        if field not in fields:
            fields[field] = _steps(listed[stand_in]) if stand_in in listed else ((0, 0),)
    return Rates(**fields, context_tokens=context_tokens, is_complete=is_complete)


def _steps(price: Any) -> Steps:
    """A price, or a price with tiers, as steps."""
    tiers = getattr(price, "tiers", ())
    base = getattr(price, "base", price)
    return (
        (0, int(base * ATTO_PER_USD_A_MILLION)),
        *((tier.start, int(tier.price * ATTO_PER_USD_A_MILLION)) for tier in tiers),
    )
