"""What whoever prices a request promises."""

from __future__ import annotations

from typing import Protocol

from scheduler.answer import Answer
from scheduler.request import Quote, Request


class Tariff(Protocol):
    """Prices requests before they are sent and answers after: the same rates for both."""

    def quote(self, request: Request) -> Quote:
        """Most and likely cost of one attempt. Raises `PriceUnknown`; never guesses zero."""

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        """What the answer cost, in nano-dollars; None if the answer does not tell."""
