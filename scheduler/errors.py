"""Everything this package raises. The first split answers: did it cost money?

    SchedulerError
    ├── RequestRejected            never sent, never charged
    │   ├── BudgetExceeded         on_exceeded="raise", or nothing to wait for
    │   │   └── HeldByCallers      made within a call, and held by calls that wait for such
    │   ├── WaitsForItself         made within the call of its own key
    │   ├── ProviderUnavailable    likewise: its own credit is used up, or it does not answer
    │   ├── CostTooHigh            above the request's own max_cost
    │   ├── PromptTooLong          above max_prompt_tokens
    │   ├── DeadlineExceeded       waited past its deadline or max_wait
    │   ├── KeyConflict            same key, other body
    │   ├── PriceUnknown           no price for the model
    │   ├── BudgetUnknown          no budget of that name
    │   ├── QueueFull              too many wait
    │   ├── SchedulerClosed        after aclose
    │   └── WrongLoop              asked in another event loop or thread than the scheduler's
    ├── CallFailed                 sent, or tried: attempts, cost_nusd, is_billed, is_retryable
    │   ├── CallInterrupted        sent, and ended from here: closed, torn away, no time left
    │   ├── CallTimeout            no answer in time
    │   ├── TransportFailed        connection refused, reset, broken off
    │   ├── StreamBroken           a stream ended before its end
    │   ├── BadAnswer              HTML, truncated JSON, no JSON object
    │   └── ProviderError          an error answer: status, code, body
    │       ├── RateLimited        429
    │       ├── ProviderOverloaded 5xx
    │       ├── CredentialsRefused 401; 400 or 403 that say that the key is refused
    │       └── ProviderRefused    any other 4xx
    ├── StoreError                 queue and ledger could not be read or written
    │   ├── StoreLocked            another process holds it
    │   ├── StoreForeign           the file is not ours
    │   ├── StoreTooNew            written by a newer version
    │   └── LedgerInconsistent     an audit found balances that do not add up
    ├── OutputInUse                another run writes the same files
    ├── InputError(ValueError)     a line of a batch file: path, line, problem
    └── ConfigError(ValueError)    a wrong setting: key, problem

    UncountedCalls(RuntimeWarning) a warning: calls go out that nobody counts

Fields are positional arguments, so every error can be pickled, compared by
`args` and printed. Bases end in Error; leaves say what happened.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from scheduler.dollars import decimal_usd, format_usd, usd
from scheduler.guards import installed
from scheduler.guards.plain import about, shell_word

installed.require()  # here, since nothing of this package works without its errors
installed.warn_if_mixed()

MAX_SHOWN_CHARS = 100  # of a value somebody gave
MAX_NAMED = 10  # of the names there are
MAX_PROBLEM_CHARS = 1_000


_RAISE = "does not reset by itself, raise the limit"


class SchedulerError(Exception):
    """Base of everything this package raises."""


class RequestRejected(SchedulerError):
    """The request was never sent and never charged."""


class BudgetExceeded(RequestRejected):
    """A budget cannot cover the request now, and it was not allowed to wait.

    Amounts are integers in the budget's unit: nano-dollars when `unit` is
    ``"usd"``, else tokens or requests.

    Attributes:
        budget: Name of the budget that lacks most.
        limit: Its limit.
        posted: Spent in the current window.
        reserved: Promised to calls that are under way.
        needed: What this request may need at most.
        resets_at_ms: When money frees by itself, in Unix milliseconds; None: never.
        zone: Time zone in which to tell that instant.
        unit: ``"usd"``, ``"tokens"`` or ``"requests"``.
        allowed: Of a paced budget, how much of the limit may be used up by now; None: all of it.
        kept_for: For whom what is left is kept, as in ``"interactive"``; empty: for nobody.
    """

    def __init__(
        self,
        budget: str,
        limit: int,
        posted: int,
        reserved: int,
        needed: int,
        resets_at_ms: int | None = None,
        zone: str = "UTC",
        unit: str = "usd",
        allowed: int | None = None,
        kept_for: str = "",
    ) -> None:
        super().__init__(
            budget, limit, posted, reserved, needed, resets_at_ms, zone, unit, allowed, kept_for
        )
        self.budget, self.limit, self.posted, self.reserved = budget, limit, posted, reserved
        self.needed, self.resets_at_ms, self.zone, self.unit = needed, resets_at_ms, zone, unit
        self.allowed, self.kept_for = allowed, kept_for

    @property
    def resets_at(self) -> datetime | None:
        """When money frees by itself, in the budget's zone; None: only a raise helps."""
        if self.resets_at_ms is None:
            return None
        from zoneinfo import ZoneInfo

        return datetime.fromtimestamp(self.resets_at_ms / 1000, ZoneInfo(self.zone))

    @property
    def current_usage_percent(self) -> Decimal:
        """Spent as a percentage of the limit, cut (not rounded up) to one decimal."""
        if self.limit <= 0:
            return Decimal(100)
        return (Decimal(self.posted * 1000 // self.limit) / 10).normalize()

    def __str__(self) -> str:
        suffix = "" if self.unit == "usd" else f" {self.unit}"
        resets = f"resets {self.resets_at:%Y-%m-%d %H:%M} {self.zone}" if self.resets_at else ""
        if self.allowed is not None:
            share = f"{self._amount(self.allowed)}{suffix} of it may be used up by now"
            resets = f"{share}, more from {self.resets_at:%Y-%m-%d %H:%M} {self.zone} on"
        if self.kept_for:
            more = resets.replace("resets", "more of it is released from") or _RAISE
            resets = f"the rest is kept for {self.kept_for} requests, {more}"
        return (
            f"Cost tracking budget exceeded: current usage {self.current_usage_percent:f}% of limit "
            f"{self._amount(self.limit, short=True)} {self.unit.upper() if not suffix else self.unit}"
            f" (budget {self.budget!r}: spent {self._amount(self.posted)}{suffix}, "
            f"reserved {self._amount(self.reserved)}{suffix}; "
            f"this request needs up to {self._amount(self.needed)}{suffix}; "
            f"{resets or _RAISE})"
        )

    def _amount(self, amount: int, short: bool = False) -> str:
        if self.unit != "usd":
            return f"{amount:,}"
        return f"{usd(amount).normalize():f}" if short else decimal_usd(amount)


class HeldByCallers(BudgetExceeded):
    """A request made within a call needs what calls hold that wait for such requests themselves.

    It would wait for ever: those calls end only after it, or after others like it.

    Attributes:
        held: What those calls hold of the budget, and, after a while, calls of other processes.
        kept: What of it is kept for more urgent requests than this one.
    """

    def __init__(
        self, budget: str, limit: int, posted: int, reserved: int, needed: int,
        resets_at_ms: int | None = None, zone: str = "UTC", unit: str = "usd", held: int = 0,
        kept: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(budget, limit, posted, reserved, needed, resets_at_ms, zone, unit)
        self.args = (*self.args[:-2], held, kept)
        self.held, self.kept = held, kept

    def __str__(self) -> str:
        suffix = "" if self.unit == "usd" else f" {self.unit}"
        free = max(0, self.limit - self.posted - self.reserved)
        kept = f", {self._amount(self.kept)}{suffix} of it kept for more urgent requests"
        return (
            f"budget {self.budget!r} is held by calls that wait themselves, for this request or for "
            f"others made within them, so it would wait for ever: they hold {self._amount(self.held)}"
            f"{suffix} of {self._amount(self.limit)}{suffix} ({self._amount(self.posted)}{suffix} spent, "
            f"{self._amount(free)}{suffix} free{kept if self.kept else ''}), and it needs up to {self._amount(self.needed)}{suffix}; "
            "nothing was sent for it. Raise the budget, quote the outer calls lower, or submit it "
            "outside of them"
        )


class WaitsForItself(RequestRejected):
    """A request made within a call has the key of a call that waits for it."""

    def __init__(self, key: str = "") -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return (
            f"key {self.key!r} is that of a call under way which waits for this request, so it would "
            "wait for itself; nothing was sent for it. Use another key, or submit it outside of that call"
        )


class CostTooHigh(RequestRejected):
    """The request may cost more than its own `max_cost`."""

    def __init__(self, ceiling_nusd: int, max_cost_nusd: int) -> None:
        super().__init__(ceiling_nusd, max_cost_nusd)
        self.ceiling_nusd, self.max_cost_nusd = ceiling_nusd, max_cost_nusd

    def __str__(self) -> str:
        return (
            f"may cost up to {format_usd(self.ceiling_nusd)}, above its max_cost of "
            f"{format_usd(self.max_cost_nusd)}; nothing was sent. Lower max_tokens, shorten the "
            "prompt, or raise max_cost"
        )


class PromptTooLong(RequestRejected):
    """The prompt is longer than what was allowed; `tokens` is an estimate."""

    def __init__(self, tokens: int, most: int) -> None:
        super().__init__(tokens, most)
        self.tokens, self.most = tokens, most

    def __str__(self) -> str:
        return (
            f"the prompt has about {self.tokens:,} tokens, above the most allowed of {self.most:,}; "
            "nothing was sent. Shorten it, or raise max_prompt_tokens"
        )


class ProviderUnavailable(RequestRejected):
    """Nothing goes to the provider now, and the request was not allowed to wait.

    Attributes:
        provider: Its name.
        reason: ``"provider_credit"`` (it says its own money is gone) or ``"provider_down"``.
        words: The provider's own.
        retries_at_ms: When one request tries again, in Unix milliseconds.
    """

    def __init__(
        self, provider: str, reason: str, words: str = "", retries_at_ms: int | None = None
    ) -> None:
        super().__init__(provider, reason, words, retries_at_ms)
        self.provider, self.reason, self.words = provider, reason, words
        self.retries_at_ms = retries_at_ms

    def __str__(self) -> str:
        is_credit = self.reason == "provider_credit"
        what = "says that its own credit is used up" if is_credit else "does not answer"
        fix = "Top it up there" if is_credit else "Try again later"
        said = f" ({self.words})" if self.words else ""
        return f"provider {self.provider!r} {what}{said}; nothing was sent. {fix}, or let it wait"


class DeadlineExceeded(RequestRejected):
    """The request waited past its deadline or max_wait and was dropped unsent.

    Attributes:
        waited_ms: Since it was submitted.
        reason: What it waited for.
        cost_nusd: What earlier attempts count in the ledger, of which nobody knows what became;
            mostly none was made, and nothing is counted.
    """

    def __init__(self, waited_ms: int, reason: str = "", cost_nusd: int = 0) -> None:
        super().__init__(waited_ms, reason, cost_nusd)
        self.waited_ms, self.reason, self.cost_nusd = waited_ms, reason, cost_nusd

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        cost = (
            f"{format_usd(self.cost_nusd)} counted as spent"
            if self.cost_nusd
            else "nothing was charged"
        )
        return f"not sent in time: waited {self.waited_ms / 1000:g} s{why}; {cost}"


class KeyConflict(RequestRejected):
    """The same key was used before for a request with another body."""

    def __init__(self, key: str, job: str = "") -> None:
        super().__init__(key, job)
        self.key, self.job = key, job

    def __str__(self) -> str:
        where = f" in job {brief(self.job)}" if self.job else ""
        return (
            f"key {brief(self.key)} was used before{where} for a request with another body; nothing "
            "was sent. Use a new key for a new question"
        )


class PriceUnknown(RequestRejected):
    """No price is known for the model, so its cost cannot be bounded."""

    def __init__(self, model: str, provider: str = "", hint: str = "") -> None:
        super().__init__(model, provider, hint)
        self.model, self.provider, self.hint = model, provider, hint

    def __str__(self) -> str:
        at = f" at {cut(self.provider, MAX_SHOWN_CHARS)}" if self.provider else ""
        hint = f" ({cut(self.hint, MAX_PROBLEM_CHARS)})" if self.hint else ""
        is_long = len(self.model) > MAX_SHOWN_CHARS  # nobody would copy that
        model = "MODEL" if is_long else self.model or "MODEL"
        return (
            f"no price is known for model {brief(self.model)}{at}{hint}; nothing was sent. Set one, in USD "
            f"per million tokens in and out: scheduler prices set "
            f"{about(model, ' --in 0.10 --out 0.20')}, or --price {shell_word(f'{model}=0.10/0.20')} "
            "for one run"
        )


class BudgetUnknown(RequestRejected):
    """The request names a budget that does not exist, or must name one and does not."""

    def __init__(self, name: str | None, known: tuple[str, ...] = ()) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        known = ", ".join(map(repr, self.known[:MAX_NAMED])) or "none"
        if len(self.known) > MAX_NAMED:
            known += f" and {len(self.known) - MAX_NAMED:,} more"
        if self.name is None:
            return (
                f"the request names no budget and there are several ({known}); nothing was sent. "
                "Name one, call one of them 'default', or pass budget=() to draw on none"
            )
        return f"no budget is named {brief(self.name)} (there are: {known}); nothing was sent"


class QueueFull(RequestRejected):
    """Too many requests wait already."""

    def __init__(self, waiting: int, limit: int) -> None:
        super().__init__(waiting, limit)
        self.waiting, self.limit = waiting, limit

    def __str__(self) -> str:
        return (
            f"{self.waiting:,} requests wait already, the most allowed is {self.limit:,}; nothing was "
            "sent. Await some results first, use map(), or raise max_queue"
        )


class SchedulerClosed(RequestRejected):
    """The scheduler was closed, or not opened yet, when the request came or while it waited."""

    def __init__(self, message: str = "the scheduler is closed; nothing was sent") -> None:
        super().__init__(message)


class WrongLoop(RequestRejected, RuntimeError):
    """A scheduler was asked in another event loop, or thread, than the one it was opened in."""

    def __init__(
        self,
        message: str = "the scheduler runs in another event loop than the one that asks; nothing was "
        "sent. Ask in its own loop, or open one with scheduler.open() (a BlockingScheduler), which "
        "may be asked from any thread",
    ) -> None:
        super().__init__(message)


class CallFailed(SchedulerError):
    """The request was tried and has no usable answer.

    Attributes:
        is_billed: False: this attempt provably cost nothing. True: it cost what is in `used`.
            None: nobody knows, so its reservation keeps counting.
        used: What the failed answer said of its usage and cost, an `Answer` without content;
            unless `is_billed` is True, it cost at least that. None: it said nothing.
        is_retryable: Whether another attempt makes sense.
        retry_after_ms: How long the provider asked to wait; None: it did not say.
        attempts: How often it was tried in all; set when it is given up.
        cost_nusd: What all attempts count in the ledger, in nano-dollars, unknown
            outcomes at their full reservation; set when it is given up.
        request_id: The provider's own id for the call, if it gave one before it was lost.
        credit: The provider's own words if it says that the account's money is gone: then
            requests wait for a top-up instead of failing. None: it is something else.
        affords: What there is credit for, if it says so (`providers.credit.Affords`).
        is_of_one: Whether it was refused for its own size, and says nothing of any other.
        limits: What the response said about the provider's rate limits (`limits.Seen`).
        has_spoken: Whether the other side had begun to answer: whatever went wrong, it is there.
        is_unsent: It went wrong before anything went out, and says nothing of the provider.
    """

    is_billed: bool | None = None
    used: Any = None
    is_retryable: bool = False
    retry_after_ms: int | None = None
    attempts: int = 1
    cost_nusd: int = 0
    request_id: str | None = None
    credit: str | None = None
    affords: Any = None
    is_of_one: bool = False
    limits: tuple[Any, ...] = ()
    has_spoken: bool = False
    is_unsent: bool = False
    code: str = "call_failed"

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.cost_note})"

    @property
    def cost_note(self) -> str:
        """One phrase on attempts and money."""
        tries = f"{self.attempts} attempt{'s' * (self.attempts != 1)}"
        if self.cost_nusd:
            return f"{tries}, {format_usd(self.cost_nusd)} counted as spent"
        return f"{tries}, nothing charged" if self.is_billed is False else tries


class CallInterrupted(CallFailed):
    """It was sent, and ended from here before its outcome was known: the provider may bill it.

    The scheduler was closed, somebody cancelled the call's task, or an earlier attempt is of
    unknown outcome and there will be no other. What it reserved keeps counting; see `cost_nusd`.
    """

    code = "interrupted"


class CallTimeout(CallFailed):
    """No answer in time; the provider may have worked and billed all the same."""

    is_retryable = True
    code = "timeout"


class TransportFailed(CallFailed):
    """The connection could not be made (not billed) or broke off (unknown)."""

    is_retryable = True
    code = "connection_failed"

    def __init__(self, message: str = "", is_billed: bool | None = None) -> None:
        super().__init__(message)
        self.args = (message, is_billed)
        self.is_billed = is_billed


class StreamBroken(CallFailed):
    """A streamed answer ended before its end; what it cost is unknown, what was read is not lost.

    It is not tried again: its reader has seen a part of it.

    Attributes:
        events: How many events came.
    """

    code = "stream_broken"
    has_spoken = True

    def __init__(self, message: str = "", events: int = 0) -> None:
        super().__init__(message)
        self.args = (message, events)
        self.events = events

    def __str__(self) -> str:
        return f"{self.message} after {self.events:,} events ({self.cost_note})"


class BadAnswer(CallFailed):
    """A success status with something that is not the JSON object it should be."""

    code = "bad_answer"
    has_spoken = True

    def __init__(self, message: str = "", status: int = 200, body: Any = None) -> None:
        super().__init__(message)
        self.args = (message, status, body)
        self.status, self.body = status, body


class ProviderError(CallFailed):
    """The provider answered with an error.

    Attributes:
        status: HTTP status.
        code: The provider's own code or type; falls back to a word for the status.
        body: The decoded body, or its text.
    """

    has_spoken = True
    default_code: ClassVar[str] = "provider_error"

    def __init__(
        self,
        status: int,
        message: str = "",
        code: str | None = None,
        body: Any = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.args = (status, message, code, body, retry_after_ms)
        self.status, self.body, self.retry_after_ms = status, body, retry_after_ms
        self.code = code or self.default_code

    def __str__(self) -> str:
        return f"HTTP {self.status} {self.code}: {self.message} ({self.cost_note})"


class RateLimited(ProviderError):
    """429: too many requests for now; not billed."""

    is_billed = False
    is_retryable = True
    default_code = "rate_limit_exceeded"


class ProviderOverloaded(ProviderError):
    """5xx. Billed or not is unknown unless the provider itself says it did no work."""

    is_retryable = True
    default_code = "server_error"


class CredentialsRefused(ProviderError):
    """The key itself is missing, wrong or not allowed, or its account is; not billed."""

    is_billed = False
    default_code = "unauthorized"


class ProviderRefused(ProviderError):
    """Another 4xx: this request is refused; not billed, and not worth another attempt."""

    is_billed = False
    default_code = "bad_request"


class StoreError(SchedulerError):
    """The store could not be read or written. What was acknowledged before is safe."""


class StoreLocked(StoreError):
    """Another process holds the database for too long."""


class StoreForeign(StoreError):
    """The file is not a database of this package."""


class StoreTooNew(StoreError):
    """The database was written by a newer version of this package."""

    def __init__(self, path: str, found: int, supported: int) -> None:
        super().__init__(path, found, supported)
        self.path, self.found, self.supported = path, found, supported

    def __str__(self) -> str:
        return (
            f"{self.path} has schema version {self.found}, this package knows up to "
            f"{self.supported}; nothing was changed. Upgrade llm-budget-scheduler, or use another store"
        )


class LedgerInconsistent(StoreError):
    """Recomputing the balances from the reservations gave other numbers."""


class InputError(SchedulerError, ValueError):
    """A line of an input file cannot be used; the others can."""

    def __init__(self, path: str, line: int, problem: str) -> None:
        super().__init__(path, line, problem)
        self.path, self.line, self.problem = path, line, problem

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}"


class OutputInUse(SchedulerError):
    """Another process writes this output file; nothing was read, changed or sent."""

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(path, holder)
        self.path, self.holder = path, holder

    def __str__(self) -> str:
        return (
            f"{self.path} is being written by {self.holder}; nothing was read, changed or sent. Wait "
            "for it to end, or name another output with -o"
        )


class ConfigError(SchedulerError, ValueError):
    """A setting is wrong; raised where it is given, before anything is sent."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.problem = key, problem

    def __str__(self) -> str:
        return f"{self.key}: {cut(self.problem, MAX_PROBLEM_CHARS)}"


class UncountedCalls(RuntimeWarning):
    """A warning: calls to models go out, or may have gone out, that no budget counts."""


def cut(text: str, most: int) -> str:
    """The text, in at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def brief(value: object) -> str:
    """A value as an error shows it: never longer than a line, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # numbers of too many digits, and objects that cannot tell what they are
        return f"<{type(value).__name__}>"
    return cut(text, MAX_SHOWN_CHARS)


def words_of(exc: BaseException) -> str:
    """An exception's kind and words; of one that cannot tell them, its kind."""
    kind = type(exc).__name__
    try:
        return f"{kind}: {exc}"
    except BaseException:
        return kind
