"""Numbers of a request's body as lenient servers read them; pure.

Servers that check bodies with pydantic (vLLM, LiteLLM, many gateways), or with a JSON decoder of a
typed language, take ``5.0`` and ``"5"`` for 5. What they may take is read here, upwards.

>>> count_of(5), count_of(5.0), count_of("5"), count_of(" 4.2 ")
(5, 5, 5, 5)
>>> count_of("many"), count_of(True), count_of(None), count_of(float("inf"))
(None, None, None, None)
"""

from __future__ import annotations

import math

MAX_DIGITS = 400  # characters that are looked at: the longest number that is finite has fewer


def count_of(value: object) -> int | None:
    """A number, what is between two of them rounded up; None: it cannot be read as one."""
    if type(value) is int:
        return value
    if isinstance(value, str):
        text = value.strip()
        if len(text) > MAX_DIGITS:
            return None
        try:
            return int(text)
        except ValueError:
            pass
        try:
            value = float(text)
        except ValueError:
            return None
    if isinstance(value, float) and math.isfinite(value):
        return math.ceil(value)
    return None
