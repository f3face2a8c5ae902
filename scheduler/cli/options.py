"""Options that several commands share: where requests go, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scheduler.errors import ConfigError

if TYPE_CHECKING:
    from scheduler.providers.base import Provider

SIMULATED = "sim:"


def make_provider(base_url: str | None, timeout: str | None = None) -> Provider:
    """The provider a base URL names; ``sim:`` is the simulated one, in this process.

    Raises:
        ConfigError: A key is needed and there is none; nothing was sent.
    """
    if base_url is not None and base_url.startswith(SIMULATED):
        return _simulated(base_url.removeprefix(SIMULATED))
    from scheduler.providers.openai import OpenAI

    provider = OpenAI(base_url=base_url, timeout=timeout or 600)
    provider.require_key()
    return provider


def _simulated(options: str) -> Provider:
    """``sim:``, or ``sim:latency=0.2,seed=7,error_rate=0.1``."""
    from scheduler.providers.simulated import Simulated

    kinds = {"latency": float, "seed": int, "error_rate": float, "rpm": int, "tpm": int}
    chosen: dict[str, float | int] = {}
    for option in filter(None, options.split(",")):
        name, _, text = option.partition("=")
        try:
            chosen[name] = kinds[name](text)
        except (KeyError, ValueError):
            raise ConfigError(
                "base-url", f"{option!r} is not one of {', '.join(f'{n}=N' for n in kinds)}"
            ) from None
    return Simulated(**chosen)  # type: ignore[arg-type]


def parse_prices(prices: Sequence[str]) -> dict[str, str]:
    """``MODEL=IN/OUT`` options as a table.

    Raises:
        ConfigError: Not of that form.
    """
    table = {}
    for option in prices:
        model, found, price = option.rpartition("=")
        if not found or not model:
            raise ConfigError("--price", f"{option!r} is not MODEL=IN/OUT, like my-model=0.10/0.20")
        table[model] = price
    return table
