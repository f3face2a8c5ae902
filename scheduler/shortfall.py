"""Why a request waits, in which budget or at which provider, and for how long; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from scheduler.budget import UNLIMITED, Unit
from scheduler.errors import BudgetExceeded, ProviderUnavailable
from scheduler.money import format_usd


class ParkReason(StrEnum):
    """Why requests wait, from the longest wait to the shortest."""

    PAUSED = "paused"  # by a person
    LARGER_THAN_LIMIT = "larger_than_limit"  # no reset will help; needs a raise
    PROVIDER_CREDIT = "provider_credit"  # the provider itself says its money is gone
    PROVIDER_DOWN = "provider_down"  # it does not answer
    WINDOW_SPENT = "window_spent"  # until the reset
    KEPT = "kept"  # for more urgent requests, until that is released
    PACED = "paced"  # until more of the window has passed
    HELD_IN_FLIGHT = "held_in_flight"  # seconds, until running calls settle


SEVERITY = {reason: position for position, reason in enumerate(ParkReason)}


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Which budget lacked how much, and until when. Amounts in the budget's unit.

    Of a provider that is closed only `reason`, `budget` (its name), `words` and `resumes_at_ms`
    (when one request tries again) say anything, and `limit` (in dollars) what it has credit for.

    Attributes:
        words: The provider's own, where it is the provider that refuses; or for whom it is kept.
        allowed: Where a pace holds it back, what may be spent or reserved by now.
        resumes_at_ms: When waiting ends by itself; None: when calls under way
            settle (``held_in_flight``), or only a raise or a person helps.
        too_late_at_ms: When the time of the request that waits is over, if that is before: it ends
            unsent then, unless somebody raises the limit. None: it is not, or nobody asked.
    """

    reason: ParkReason
    budget: str
    unit: Unit
    limit: int
    posted: int
    reserved: int
    needed: int
    missing: int
    resumes_at_ms: int | None
    zone: str
    window: str
    words: str = ""
    allowed: int | None = None
    too_late_at_ms: int | None = None

    def seen_by(self, expires_at_ms: int) -> Shortfall:
        """The same for a request whose time is over at that instant."""
        at_ms = self.resumes_at_ms
        if self.is_brief or (at_ms is not None and at_ms < expires_at_ms):
            return self
        return replace(self, too_late_at_ms=expires_at_ms)

    @property
    def is_of_provider(self) -> bool:
        """Whether it is the provider that refuses, not one of our own budgets."""
        return self.reason in (ParkReason.PROVIDER_CREDIT, ParkReason.PROVIDER_DOWN)

    @property
    def is_brief(self) -> bool:
        """Whether the wait ends without money: when running calls settle, or somebody answers."""
        return self.reason in (ParkReason.HELD_IN_FLIGHT, ParkReason.PROVIDER_DOWN)

    @property
    def goes_on(self) -> str:
        """What a provider that is short of credit still has some for; empty: nothing is known."""
        if not self.is_of_provider or self.limit <= 0:
            return ""
        return f"requests of up to about {format_usd(self.limit)} go on"

    def as_error(self) -> BudgetExceeded | ProviderUnavailable:
        """What a caller sees who did not want to wait for it."""
        if self.is_of_provider:
            words = "; ".join(filter(None, (self.words, self.goes_on)))
            return ProviderUnavailable(self.budget, self.reason.value, words, self.resumes_at_ms)
        return BudgetExceeded(
            self.budget, 0 if self.limit == UNLIMITED else self.limit, self.posted, self.reserved,
            self.needed, self.resumes_at_ms, self.zone, self.unit.value, self.allowed,
            self.words if self.reason is ParkReason.KEPT else "",
        )  # fmt: skip
