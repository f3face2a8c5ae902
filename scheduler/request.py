"""What goes in and what comes out: requests, quotes, usage, responses.

A request lives through these states, and reaches exactly one of the last four:

    QUEUED ⇄ PARKED ─▶ RUNNING ─▶ SUCCEEDED | FAILED
      ▲                   │  retry later, or reclaimed after its process died
      └───────────────────┘
    any waiting ─▶ CANCELLED (by the caller) | EXPIRED (its deadline passed before it was sent)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

from scheduler.errors import ConfigError
from scheduler.money import usd

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
COMPLETIONS = "/v1/completions"
MODERATIONS = "/v1/moderations"
MESSAGES = "/v1/messages"  # Anthropic's
ENDPOINTS = (CHAT, RESPONSES, EMBEDDINGS, COMPLETIONS, MODERATIONS, MESSAGES)

# Google's have the model in their path. Here it is the body's member "model", as everywhere
# else; who sends them puts it back. No provider of ours does, so batch files cannot name them.
GENERATE = "/v1beta/generateContent"
EMBED_CONTENT = "/v1beta/embedContent"
GEMINI = (GENERATE, EMBED_CONTENT)

Message = Mapping[str, Any]
Duration = str | int | float | timedelta  # "10m", seconds, or a timedelta


class Priority(IntEnum):
    """Words for how urgent a request is; lower runs first, as in `asyncio.PriorityQueue`."""

    INTERACTIVE = 0
    NORMAL = 10
    BATCH = 20
    IDLE = 30

    @classmethod
    def parse(cls, value: str | int) -> int:
        """Turn a word or an integer between 0 and 99 into a priority."""
        if isinstance(value, str):
            try:
                return int(cls[value.upper()])
            except KeyError:
                words = ", ".join(word.name.lower() for word in cls)
                raise ConfigError("priority", f"{value!r} is not one of {words}") from None
        if not 0 <= value <= 99:
            raise ConfigError("priority", f"{value} is not between 0 and 99")
        return int(value)


def priority_word(priority: int) -> str:
    """The word for a priority; of an int between two of them the more urgent one.

    >>> priority_word(0), priority_word(12), priority_word(99)
    ('interactive', 'normal', 'idle')
    """
    return max(each for each in Priority if each <= priority).name.lower()


class RequestState(StrEnum):
    """Where a request is in its life; the module docstring draws the moves."""

    QUEUED = "queued"
    PARKED = "parked"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to the request."""
        return self not in (RequestState.QUEUED, RequestState.PARKED, RequestState.RUNNING)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a provider says one call used.

    `cached_tokens` and `cache_write_tokens` are parts of `input_tokens`;
    `long_cache_write_tokens`, kept for longer, are part of `cache_write_tokens`;
    `reasoning_tokens` and `citation_tokens` are parts of `output_tokens`. Those of audio,
    images (and pages of documents) and video are parts of the input or the output, and of
    what was cached of it. The rest is counted beside tokens: seconds of sound that were heard,
    and what the provider did itself to answer.

    `code_sessions` are containers it ran code in; `web_searches` the searches it made or the
    sources it read, as it counts them.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    long_cache_write_tokens: int = 0
    cached_audio_tokens: int = 0
    input_image_tokens: int = 0
    cached_image_tokens: int = 0
    output_image_tokens: int = 0
    input_video_tokens: int = 0
    cached_video_tokens: int = 0
    output_video_tokens: int = 0
    citation_tokens: int = 0
    audio_seconds: int = 0
    web_searches: int = 0
    file_searches: int = 0
    code_sessions: int = 0
    made_images: int = 0

    @property
    def total_tokens(self) -> int:
        """What a budget in tokens counts."""
        return self.input_tokens + self.output_tokens


class Tokens(NamedTuple):
    """A request's tokens, as far as they are known before it is sent.

    Attributes:
        input: A guess; an exact count where there is a counter.
        output: The cap in its body, over all its answers; 0: it sets none.
    """

    input: int = 0
    output: int = 0


UNTOLD_TOKENS = Tokens()


@dataclass(frozen=True, slots=True)
class Quote:
    """What a request may cost, known before it is sent.

    `ceiling_nusd` is what gets reserved. It is a true upper bound when
    `is_bound`; otherwise the provider may bill more, which is posted as it is
    and counted as an overrun, and `why_unbound` says why. `expected_nusd` is a guess for forecasts only, and
    `tokens` one for rate limits.
    """

    ceiling_nusd: int
    expected_nusd: int
    ceiling_tokens: int = 0
    least_nusd: int = 0
    is_bound: bool = True
    tokens: Tokens = UNTOLD_TOKENS
    why_unbound: str = ""


@dataclass(slots=True)
class Request:
    """One call somebody wants answered. Do not change it after it was submitted.

    Attributes:
        body: The JSON body, sent as it is.
        url: The endpoint below the provider's base URL.
        key: The caller's name for the request (`custom_id` in batch files): one
            key, one outcome, one charge. None: every submission is a new request.
        provider: Name of the provider to send it with. None: the scheduler's first.
        budget: Name or names of budgets to draw on, besides those whose rules match.
            None: the default budget. An empty tuple: only budgets whose rules match.
        tags: Matched against budget rules, e.g. ``{"user": "ann"}``.
        priority: A word of `Priority` or an int; lower runs first.
        deadline: After this instant (or this long after submission) an answer is
            useless: if not sent by then, the request expires and costs nothing.
        max_wait: Longest time it may wait to be sent. None: no bound.
        max_cost: Refuse at submission if the quote's ceiling is above it. In USD.
        job: Groups requests in reports; keys are unique within a job.
        metadata: The caller's own; comes back on the response, is never sent.
        fallback: Models to ask instead, in this order, when the budget cannot cover the request
            now; heeded with ``on_exceeded="fallback"`` only. If it can cover none, the request
            waits for its own model.
        instead_of: Filled in by the scheduler: the ``model`` and ``provider`` that were wanted
            and ``why`` another one is asked.
        trace: Filled in by tracing: the span, as a W3C ``traceparent``, in which it was submitted.
    """

    body: dict[str, Any]
    _: KW_ONLY
    url: str = CHAT
    key: str | None = None
    provider: str | None = None
    budget: str | Sequence[str] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: str | int = Priority.NORMAL
    deadline: Duration | datetime | None = None
    max_wait: Duration | None = None
    max_cost: str | int | float | Decimal | None = None
    job: str = ""
    metadata: Any = None
    fallback: Sequence[str] = ()
    instead_of: Mapping[str, str] | None = None
    trace: str | None = field(default=None, compare=False, repr=False)

    @classmethod
    def chat(cls, model: str, prompt: str | Sequence[Message], /, **options: Any) -> Request:
        """Make a chat request from a prompt or a list of messages.

        Options named like a field of `Request` set that field; all others
        (``max_tokens``, ``temperature``, …) go into the body.
        """
        messages = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        )
        return cls._make(CHAT, {"model": model, "messages": messages}, options)

    @classmethod
    def responses(cls, model: str, prompt: Any, /, **options: Any) -> Request:
        """Make a request to the Responses API; options as in `chat`."""
        return cls._make(RESPONSES, {"model": model, "input": prompt}, options)

    @classmethod
    def embedding(cls, model: str, text: str | Sequence[str], /, **options: Any) -> Request:
        """Make a request for embeddings; options as in `chat`."""
        return cls._make(EMBEDDINGS, {"model": model, "input": text}, options)

    @classmethod
    def messages(cls, model: str, prompt: str | Sequence[Message], /, **options: Any) -> Request:
        """Make a request to Anthropic's Messages API, which needs `max_tokens`; as in `chat`."""
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        return cls._make(MESSAGES, {"model": model, "messages": turns}, options)

    @classmethod
    def _make(cls, url: str, body: dict[str, Any], options: dict[str, Any]) -> Request:
        fields = {name: options.pop(name) for name in _REQUEST_OPTIONS & options.keys()}
        return cls(body={**body, **options}, url=url, **fields)

    @property
    def model(self) -> str:
        """The model the body asks for; empty if it names none."""
        model = self.body.get("model", "")
        return model if isinstance(model, str) else ""

    def digest(self) -> str:
        """Fingerprint of what would be sent: same digest, same question."""
        import hashlib

        text = json.dumps([self.url, self.body], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One server-sent event of a streamed answer.

    Attributes:
        data: Its text, mostly JSON.
        event: Its name, where the provider gives one (``"message_start"``); else ``"message"``.
    """

    data: str
    event: str = "message"

    def json(self) -> Any:
        """The data as JSON. Raises `ValueError` if it is none."""
        return json.loads(self.data)


_REQUEST_OPTIONS = {
    "key", "provider", "budget", "tags", "priority", "deadline", "max_wait", "max_cost", "job",
    "metadata", "fallback",
}  # fmt: skip


@dataclass(slots=True)
class Response:
    """The answer to one request, and what it cost.

    Attributes:
        body: The provider's JSON body.
        status_code: HTTP status, or 200 for providers without HTTP.
        key: The request's key.
        index: Position in the input of `Scheduler.map`; None elsewhere.
        request_id: The provider's own id for the call, if it gave one.
        usage: Tokens used by the attempt that succeeded; None if it did not say.
        cost_nusd: What all attempts cost together, in nano-dollars, unknown outcomes at
            their full reservation.
        is_estimated: The provider reported no usage, so the ceiling was charged.
        attempts: How often it was sent.
        parked_ms: How long it was parked.
        waited_ms: From submission to the start of the last attempt.
        model: The model that answered.
        metadata: As given on the request.
        instead_of: The ``model`` that was wanted and ``why`` another one was asked; None: it was
            not.
    """

    body: Any
    status_code: int = 200
    key: str | None = None
    index: int | None = None
    request_id: str | None = None
    usage: Usage | None = None
    cost_nusd: int = 0
    is_estimated: bool = False
    attempts: int = 1
    parked_ms: int = 0
    waited_ms: int = 0
    model: str = ""
    metadata: Any = None
    instead_of: Mapping[str, str] | None = None

    @property
    def cost(self) -> Decimal:
        """`cost_nusd` in dollars, exactly."""
        return usd(self.cost_nusd)

    @property
    def text(self) -> str:
        """The first answer's text, in whichever dialect; empty if there is none."""
        body = self.body
        if isinstance(body, str):
            return body
        if not isinstance(body, dict):
            return ""
        try:
            if "choices" in body:
                choice = body["choices"][0]
                return choice["message"]["content"] or "" if "message" in choice else choice["text"]
            if body.get("type") == "message":  # Anthropic's
                return "".join(part.get("text", "") for part in body["content"])
            if "candidates" in body:  # Google's
                parts = body["candidates"][0]["content"]["parts"]
                return "".join(part.get("text", "") for part in parts if not part.get("thought"))
            parts = [part for item in body["output"] for part in item.get("content") or ()]
            return "".join(part.get("text", "") for part in parts)
        except (KeyError, IndexError, TypeError, AttributeError):
            return ""
