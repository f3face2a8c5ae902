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

NUSD_PER_USD = 1_000_000_000
MAX_USD = 1_000_000_000  # a billion dollars: far above any budget, far below 2**63 nano-dollars
_EXACTLY = Context(prec=400, rounding=ROUND_CEILING)  # whatever the program's own context is
_AMOUNT = re.compile(r"\$?\s*(\d[\d_,]*(?:\.\d+)?|\.\d+)\s*(?:usd)?", re.IGNORECASE)


def parse_usd(value: str | int | float | Decimal, what: str = "amount") -> int:
    """Convert dollars in a human form to nano-dollars, rounding a rest up.

    Raises:
        ConfigError: Not an amount of dollars, negative, or above a billion.
    """
    from scheduler.errors import ConfigError, brief  # errors print money, so it imports this module

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


def usd(nusd: int) -> Decimal:
    """Nano-dollars as exact dollars."""
    return Decimal(nusd).scaleb(-9)


def decimal_usd(nusd: int) -> str:
    """Dollars as an exact decimal string with at least two decimals: ``"0.15"``."""
    sign = "-" if nusd < 0 else ""
    whole, rest = divmod(abs(nusd), NUSD_PER_USD)
    cents = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{cents}"


def format_usd(nusd: int) -> str:
    """Dollars for people, exact: ``"$0.15"``."""
    text = decimal_usd(nusd)
    return f"-${text[1:]}" if nusd < 0 else f"${text}"
