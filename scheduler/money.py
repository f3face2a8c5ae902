"""Money as integers: nano-dollars (1e-9 USD), written ``_nusd``.

A price of one dollar per million tokens is exactly 1,000 nano-dollars a token,
so the prices providers publish are whole numbers here. Where a fraction is left
it is rounded up, once per attempt: the ledger never counts less than was billed.

>>> parse_usd("$0.15"), parse_usd("2.5")
(150000000, 2500000000)
>>> format_usd(150_000_000), format_usd(1_234_567), format_usd(-5)
('$0.15', '$0.001234567', '-$0.000000005')
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation

from scheduler.dollars import NUSD_PER_USD, decimal_usd, format_usd, usd
from scheduler.errors import ConfigError, brief

__all__ = ["MAX_USD", "NUSD_PER_USD", "decimal_usd", "format_usd", "parse_usd", "usd"]

MAX_USD = 1_000_000_000  # a billion dollars: far above any budget, far below 2**63 nano-dollars
_EXACTLY = Context(prec=400, rounding=ROUND_CEILING)  # whatever the program's own context is
_AMOUNT = re.compile(r"\$?\s*(\d[\d_,]*(?:\.\d+)?|\.\d+)\s*(?:usd)?", re.IGNORECASE)


def parse_usd(value: str | int | float | Decimal, what: str = "amount") -> int:
    """Convert dollars in a human form to nano-dollars, rounding a rest up.

    Raises:
        ConfigError: Not an amount of dollars, negative, or above a billion.
    """
    if isinstance(value, str):
        match = _AMOUNT.fullmatch(value.strip())
        if match is None:
            problem = f"{brief(value)} is not an amount of dollars such as '$5' or '0.25'"
            raise ConfigError(what, problem)
        text = match[1].replace(",", "").replace("_", "")
    else:
        try:
            text = brief(value) if isinstance(value, int) else str(value)
        except Exception:  # an object that cannot even say what it is
            raise ConfigError(what, f"{brief(value)} is not an amount of dollars") from None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ConfigError(what, f"{brief(value)} is not an amount of dollars") from None
    if not amount.is_finite() or not 0 <= amount <= MAX_USD:
        raise ConfigError(what, f"{brief(value)} is not between 0 and {MAX_USD:,} dollars")
    nusd = _EXACTLY.multiply(amount, NUSD_PER_USD)
    return int(nusd.to_integral_value(ROUND_CEILING, context=_EXACTLY))
