"""How nano-dollars are written.

Apart from `money`, which reads them, since that raises errors, and errors write them.
"""

from __future__ import annotations

from decimal import Decimal

NUSD_PER_USD = 1_000_000_000


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
