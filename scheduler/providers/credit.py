"""Does a refusal say that money is gone: the account's, the key's, or a gateway's?

Then every request would meet the same, none is at fault, and a top-up mends it; or only those
meet it that ask for as much, and some refusals say how much there is (`affords`). Statuses tell
nothing by themselves: the same refusal is a 400, 402, 403, 412, 422 or 429, and a plain rate
limit is a 429 as well. So the provider's codes are looked at, then its words.

Collected in November 2026 from the providers' own pages on errors:

    OpenAI      429 insufficient_quota, billing_hard_limit_reached, credit_balance_exhausted,
                project_ and organization_spend_limit_exceeded, organization_usage_limit_exceeded;
                billing_not_active
    Anthropic   400 invalid_request_error "Your credit balance is too low …" and "You have
                reached your specified API usage limits …"; 402 billing_error;
                429 enforced_spend_limit_reached
    OpenRouter  402, but for in_flight_budget_exhausted (a wait: calls under way hold the money)
                and weight_exceeds_budget (this request is larger than the whole budget); some
                say what fits: "… fewer max_tokens. You requested up to 16384 tokens, but can only
                afford 3919", "Prompt tokens limit exceeded: 12000 > 5311"
    DeepSeek    402 "Insufficient Balance"
    Gemini      429 RESOURCE_EXHAUSTED "… prepayment credits are depleted"; its own "exceeded your
                current quota … please retry in 25s" is a rate limit
    Together    429 credit_limit, which it also uses for plain rates: the words tell
    xAI         403 "… used all available credits or reached its monthly spending limit"
    LiteLLM     400, 422 or 429 budget_exceeded, ExceededBudget, "Budget has been exceeded! Current
                cost: …", "No deployments available - crossed budget …"
    Portkey     412, which is a failed precondition elsewhere; Telnyx 422 budget_exceeded;
                TensorZero, Bifrost, Vercel 402 or 429
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

STATUSES = frozenset({400, 402, 403, 412, 422, 429})

CODES = frozenset({
    "insufficient_quota", "insufficient_user_quota", "billing_hard_limit_reached",
    "billing_not_active", "billing_error", "credit_balance_exhausted", "insufficient_credits",
    "insufficient_balance", "organization_spend_limit_exceeded", "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded", "enforced_spend_limit_reached", "budget_exceeded",
    "budgetexceedederror", "exceededbudget", "exceededtokenbudget", "key_budget_exceeded",
    "payment_required", "quota_exceeded_billing",
})  # fmt: skip
"""Codes and types, in lower case, that say it whatever the words."""

WORDS = (
    "credit balance is too low", "insufficient credits", "insufficient balance",
    "insufficient funds", "reached your specified api usage limits", "credits are depleted",
    "out of credits", "used all available credits", "monthly spending limit", "spend limit reached",
    "budget has been exceeded", "exceededbudget", "crossed budget", "over budget",
    "billing hard limit", "account is not active", "please top up", "requires more credits",
    "can only afford", "exceeds credits", "exceeds your credit", "exceeds available credit",
    "exceeds the available credit", "not enough credit",
)  # fmt: skip
"""What is said in a message that has no code of its own for it."""

_RATE_WORDS = re.compile(
    r"per (minute|second|hour|day)|retry in \d|try again in|too many requests|\b[rt]pm\b", re.I
)
_WRONG = "invalid_request_error"
_HELD = "in_flight_budget_exhausted"
_TOO_LARGE = "weight_exceeds_budget"
_OPENAI_QUOTA = "exceeded your current quota"


_NUMBER = r"(\$?\d+(?:,\d+)*(?:\.\d+)?)(?![\d%])"
_AFFORDS = re.compile(
    rf"\bafford (?:only |just )?(?:up to |at most )?{_NUMBER}(?: (?:tokens|credits))?"
    rf"(?: (?:out )?of {_NUMBER})?",
    re.I,
)
_ASKED = re.compile(
    rf"\b(?:requested|asked for|requires?|required|needs?|needed|cost\w*)(?::\s*|\s*=\s*|\s+)"
    rf"(?:up to |at least |about |a |an )?(?:balance of |minimum of |estimated )?{_NUMBER}|"
    rf"{_NUMBER} (?:credits? |tokens? |is |are )*(?:required|requested|needed)\b",
    re.I,
)
_ABOVE = re.compile(rf"\b(?:exceed\w*|above|over)\b[^\d$]{{0,40}}{_NUMBER}\s*>\s*{_NUMBER}", re.I)
_BELOW = re.compile(
    rf"\b(?:balance|credits?|available|remaining)\b[^\d$]{{0,40}}{_NUMBER}\s*<\s*{_NUMBER}", re.I
)
_LEFT = re.compile(
    rf"\b(?:balance|available|remaining|left|have|has|only)\b(?: credits?| balance| of| is| are| only|"
    rf" just|:|=)*\s*{_NUMBER}|{_NUMBER} (?:credits? |tokens? |is |are )*(?:available|remaining|left)\b",
    re.I,
)


class Affords(NamedTuple):
    """What there is credit for, as a refusal says it.

    Attributes:
        share: Of what was asked for; None: it does not say how much that was.
        amount: In its own unit.
        is_usd: Whether that is dollars; else it is tokens.
    """

    share: float | None
    amount: float
    is_usd: bool

    def size(self, asked: int, tokens: int) -> int:
        """In the unit of what was asked for.

        Args:
            asked: What was asked for: nano-dollars, or tokens where it costs none.
            tokens: Its tokens.
        """
        if self.share is not None:
            return int(asked * self.share)
        if self.is_usd:
            return int(self.amount * 1e9)
        return int(asked * min(1.0, self.amount / tokens)) if tokens else asked


def affords(message: str) -> Affords | None:
    """What there is credit for, if a refusal says so, and it is less than was asked for.

    >>> affords("You requested up to 16384 tokens, but can only afford 4096").share
    0.25
    >>> affords("Insufficient credits") is None
    True
    """
    above = _ABOVE.search(message)
    if above is not None:
        return _of(above[2], above[1])
    below = _BELOW.search(message)
    if below is not None:
        return _of(below[1], below[2])
    has = _AFFORDS.search(message)
    asked = _ASKED.search(message)
    wanted = None if asked is None else asked[1] or asked[2]
    if has is not None:
        return _of(has[1], has[2] or wanted)
    if asked is None:
        return None
    left = _LEFT.search(f"{message[: asked.start()]};{message[asked.end() :]}")
    return None if left is None else _of(left[1] or left[2], wanted)


def _of(has: str, asked: str | None) -> Affords | None:
    amount, is_usd = _amount(has), has.startswith("$")
    if asked is None:
        return Affords(None, amount, is_usd)
    wanted = _amount(asked)
    if is_usd != asked.startswith("$") or amount >= wanted:
        return None
    return Affords(amount / wanted, amount, is_usd)


def _amount(text: str) -> float:
    return min(float(text.lstrip("$").replace(",", "")[:30]), 1e15)


class Credit(StrEnum):
    """What a refusal says about money."""

    GONE = "gone"  # all requests wait for a top-up
    HELD = "held"  # by calls under way: a wait, like a rate limit
    TOO_LARGE = "too_large"  # this request is larger than the whole budget
    FINE = "fine"  # it is about something else


def _is_precondition(codes: set[str], text: str) -> bool:
    """Whether a 412 is what HTTP means by it, or says that the request is wrong."""
    return _WRONG in codes or any("precondition" in each for each in (*codes, text))


def credit_of(status: int, codes: frozenset[str], message: str) -> Credit:
    """What a refusal says about money.

    Args:
        status: The HTTP status.
        codes: Its code, type and status words, as far as it has any.
        message: Its message.

    >>> credit_of(429, frozenset({"insufficient_quota"}), "You exceeded your current quota").value
    'gone'
    >>> credit_of(429, frozenset({"rate_limit_exceeded"}), "Limit 500 requests per minute").value
    'fine'
    """
    if status not in STATUSES:
        return Credit.FINE
    known, text = {code.lower() for code in codes}, message.lower()
    if _HELD in known or _HELD in text:
        return Credit.HELD
    if _TOO_LARGE in known or _TOO_LARGE in text:
        return Credit.TOO_LARGE
    is_rate = _RATE_WORDS.search(text) is not None
    if status == 402 or known & CODES or (status == 412 and not _is_precondition(known, text)):
        return Credit.GONE
    if "credit_limit" in known:
        return Credit.GONE if "credit" in text and not is_rate else Credit.FINE
    if any(words in text for words in WORDS):
        return Credit.GONE
    return Credit.GONE if _OPENAI_QUOTA in text and not is_rate else Credit.FINE
