"""How fast may requests go to a provider? The rules about rates; pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Dimension(StrEnum):
    """What a provider counts against a limit."""

    REQUESTS = "requests"
    TOKENS = "tokens"  # input and output together
    INPUT = "input_tokens"
    OUTPUT = "output_tokens"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider allows, as somebody who knows it says; None: not known.

    Attributes:
        concurrency: Most calls of this process under way at once.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the headers of one response say about one limit.

    Attributes:
        limit: How much the bucket or window holds.
        remaining: What was left right after the request was counted.
        full_in_ms: How long until it is wholly replenished; None: not told.
    """

    dimension: Dimension
    limit: int
    remaining: int
    full_in_ms: int | None = None
