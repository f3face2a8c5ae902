"""`scheduler.providers.simulated.bill`, under the name by which programs import its prices."""

from __future__ import annotations

from scheduler.providers.simulated.bill import SIMULATED_PRICES

__all__ = ["SIMULATED_PRICES"]
