"""What a store says no to, in words that it can keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler.errors import BudgetExceeded, ConfigError
from scheduler.shortfall import Shortfall

REFUSED = "budget_exceeded"


def refusal(lack: Shortfall) -> dict[str, str]:
    """The error of a request that did not fit and was not allowed to wait, as it is stored."""
    return {"code": REFUSED, "message": lack.reason.value, "type": BudgetExceeded.__name__}


def is_refusal(error: Mapping[str, Any] | None) -> bool:
    """Whether a stored error is a `refusal`."""
    if error is None or error.get("code") != REFUSED:
        return False
    return bool(error.get("type", BudgetExceeded.__name__) == BudgetExceeded.__name__)


def in_use() -> ConfigError:
    """The error for a store that a second scheduler wants to open."""
    return ConfigError(
        "store",
        "is in use by another scheduler, which alone looks after it; use that one, or give both the "
        "path of one SQLite file",
    )
