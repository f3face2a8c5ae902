"""What came back for one attempt, before anybody has priced it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scheduler.request import Usage

if TYPE_CHECKING:
    from scheduler.limits.meter import Seen


@dataclass(slots=True)
class Answer:
    """What a provider gave back for one attempt.

    Attributes:
        body: The decoded JSON body (any object for providers without HTTP).
        usage: Tokens used; None if the provider did not say.
        cost_nusd: The cost the provider itself reported, in nano-dollars; None: price the usage.
        request_id: The provider's id for the call, for support tickets.
        headers: Response headers, lower-case names.
        limits: What the headers say about the provider's rate limits.
        has_all_usage: False: usage and cost are of a part of the answer; it cost at least that,
            and is posted at no less than its ceiling.
        first_s: When the first event of a stream came, by `time.monotonic`; None: it was no stream.
    """

    body: Any
    status_code: int = 200
    usage: Usage | None = None
    cost_nusd: int | None = None
    request_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[Seen, ...] = ()
    has_all_usage: bool = True
    first_s: float | None = None
