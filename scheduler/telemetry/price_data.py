"""How old is the price data?"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def newest_price(today: date) -> date | None:
    """The newest date of a price in the catalogue, which itself does not say when it was made.

    Args:
        today: What it says of later days is left out.
    """
    return max((each for each in _dates() if each <= today), default=None)


def price_data_age_s(now_ms: int) -> float | None:
    """For how long the newest price has been there, in seconds; None: nobody knows."""
    newest = newest_price(datetime.fromtimestamp(now_ms / 1000, UTC).date())
    if newest is None:
        return None
    began = datetime(newest.year, newest.month, newest.day, tzinfo=UTC)
    return now_ms / 1000 - began.timestamp()


@cache
def _dates() -> frozenset[date]:
    package = find_spec("genai_prices")
    if package is None or package.origin is None:
        return frozenset()
    data = Path(package.origin).with_name("data.py")
    text = data.read_text(encoding="utf-8") if data.is_file() else ""
    found = re.findall(r"datetime\.date\((\d+), (\d+), (\d+)\)", text)
    return frozenset(date(*map(int, each)) for each in found)
