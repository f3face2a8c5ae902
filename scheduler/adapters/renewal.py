"""Requests made anew at the moment at which they are sent, by the SDK that made them.

A call may be parked for hours, and is tried again by the scheduler. The credentials it goes out
with, and its signature, are made by its SDK before it gets here; so the SDK makes them again when
it is sent.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from scheduler.guards.contexts import set_within

TRACE_HEADERS = ("traceparent", "tracestate", "baggage")
_KEY, _COUNT = "idempotency-key", "x-stainless-retry-count"
_SIGNATURES = (
    "content-digest", "digest", "content-md5", "x-amz-content-sha256", "signature",
    "signature-input",
)  # fmt: skip


def is_signed(request: Any) -> bool:
    """Whether something in a request vouches for its body, or its headers, as they are."""
    headers = request.headers
    how = headers.get("authorization", "").lower()
    return (
        any(name in headers for name in _SIGNATURES)
        or how.startswith("aws4-")
        or "signature=" in how
        or "x-amz-signature" in {name.lower() for name in request.url.params}
    )


def signed_names(request: Any) -> set[str]:
    """The headers that a signature says it covers, in lower case."""
    how = request.headers.get("authorization", "")
    _, found, rest = how.partition("SignedHeaders=")
    return set(rest.partition(",")[0].strip().lower().split(";")) if found else set()


class Renewal(ABC):
    """How one call's HTTP request is made anew.

    Attributes:
        max_retries: How often the call may be sent again, as far as its caller said so; None: they
            did not.
        signs: Whether it can sign another body.
        retries_taken: How often it was sent again.
        is_made: Else it is being made anew, and nothing of it was sent.
        is_looped: The SDK's own loop tries again, and makes a call of each try.
    """

    max_retries: int | None = None
    retries_taken = 0
    signs = is_looped = False
    is_made = True

    @abstractmethod
    async def send(
        self, request: Any, body: Mapping[str, Any] | None, retries: int,
        post: Callable[..., Awaitable[Any]], options: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """Send the call anew, with what it is allowed by now; where its client is.

        Args:
            request: As it would be sent otherwise.
            body: What is to be asked instead; None: the same.
            retries: How often it was sent before.
            post: Sends a request.
            options: Of the client's `send`.
        """

    @abstractmethod
    def send_sync(
        self, request: Any, body: Mapping[str, Any] | None, retries: int,
        post: Callable[..., Any], options: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """As `send`, for a sync client; in its thread."""

    def ended(self, tries: int) -> None:
        """It was sent so often; what is sent by it after this is another call."""
        self.retries_taken = max(0, tries - 1)

    def cures(self, response: Any) -> bool:
        """Whether what was refused may be allowed when it is made anew; where its client is."""
        return False

    def tries_after(self, exc: BaseException) -> bool:
        """Whether the SDK would send it again after its transport raised this, which is not HTTP's."""
        return False


class Bearer(Renewal):
    """Of an SDK that puts a token into a header: Google's, or Mistral's.

    Args:
        token: Gives the token of now; None: it is none that changes.
        token_async: Likewise, for its async client.
        max_retries: As `Renewal`.
    """

    def __init__(
        self,
        token: Callable[[], str | None],
        token_async: Callable[[], Awaitable[str | None]],
        max_retries: int | None = None,
    ) -> None:
        self._token, self._token_async, self.max_retries = token, token_async, max_retries

    async def send(
        self, request: Any, body: Mapping[str, Any] | None, retries: int,
        post: Callable[..., Awaitable[Any]], options: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """As the others, with the token of now."""
        if _is_bearer(request):
            self.is_made = False
            _put(request, await self._token_async())
            self.is_made = True
        return await post(request)

    def send_sync(
        self, request: Any, body: Mapping[str, Any] | None, retries: int,
        post: Callable[..., Any], options: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """As the others, with the token of now."""
        if _is_bearer(request):
            self.is_made = False
            _put(request, self._token())
            self.is_made = True
        return post(request)


def _is_bearer(request: Any) -> bool:
    return bool(request.headers.get("authorization", "").startswith("Bearer "))


def _put(request: Any, token: str | None) -> None:
    if token is not None:
        request.headers["authorization"] = f"Bearer {token}"


class Asking(Renewal):
    """One call of OpenAI's, Anthropic's or Groq's client, while it is made.

    Args:
        client: The SDK's.
        inner: Its HTTP client, by which the call is known.
        max_retries: As `Renewal`.
        is_looped: As `Renewal`.

    Attributes:
        inner: Its HTTP client.
        options: What is asked, as the SDK's loop begins an attempt with it; None: it did not yet.
        span: Where the SDK counts for a tracer what it sends; None: nowhere.
    """

    signs = True

    def __init__(
        self, client: Any, inner: Any, max_retries: int | None, *, is_looped: bool = False
    ) -> None:
        self._client, self.inner, self.max_retries = client, inner, max_retries
        self.is_looped = is_looped
        self.options: Any = None
        self.span: Any = None

    def ended(self, tries: int) -> None:
        """As the others; its loop may begin another attempt, with other options."""
        super().ended(tries)
        if self.is_looped:
            self.options = None

    def tries_after(self, exc: BaseException) -> bool:
        """After anything but errors of its own."""
        modules = [kind.__module__ for kind in type(self._client).__mro__]
        own = {name.partition(".")[0] for name in modules if name.endswith("._base_client")}
        is_own = type(exc).__module__.partition(".")[0] in own
        return self.is_made and isinstance(exc, Exception) and not is_own

    def cures(self, response: Any) -> bool:
        """The SDK itself says so, once: it has forgotten the token that was refused by then."""
        is_free = self.max_retries != 0 and self.options is not None
        return (
            is_free and response.status_code == 401 and bool(self._client._should_retry(response))
        )

    async def send(
        self, request: Any, body: Mapping[str, Any] | None, retries: int,
        post: Callable[..., Awaitable[Any]], options: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """As the SDK's own loop does it."""
        if self.options is None:
            return await post(request)
        self.is_made = False
        prepared = await self._client._prepare_options(_asking_for(self.options, request, body))
        made = self._build(prepared, request, retries)
        await self._client._prepare_request(made)
        self._trace(made, request)
        self._count(made, prepared, retries)
        self.is_made = True
        whole = getattr(self._client, "_send_request", None)
        return await (post(made) if whole is None else whole(made, **_told(options)))

    def send_sync(
        self, request: Any, body: Mapping[str, Any] | None, retries: int,
        post: Callable[..., Any], options: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """As the SDK's own loop does it."""
        if self.options is None:
            return post(request)
        self.is_made = False
        prepared = self._client._prepare_options(_asking_for(self.options, request, body))
        made = self._build(prepared, request, retries)
        self._client._prepare_request(made)
        self._trace(made, request)
        self._count(made, prepared, retries)
        self.is_made = True
        whole = getattr(self._client, "_send_request", None)
        return post(made) if whole is None else whole(made, **_told(options))

    def _build(self, options: Any, old: Any, retries: int) -> Any:
        made = self._client._build_request(options, retries_taken=retries)
        for name in [each for each in made.headers if each.lower().startswith("x-scheduler-")]:
            del made.headers[name]  # before it is signed
        for name in (_KEY, _COUNT) if self.is_looped else (_KEY,):
            if name in old.headers:
                made.headers[name] = old.headers[name]
        return made

    def _trace(self, made: Any, old: Any) -> None:
        for name in TRACE_HEADERS:
            if name in old.headers:
                made.headers.setdefault(name, old.headers[name])

    def _count(self, made: Any, prepared: Any, retries: int) -> None:
        if retries and self.span is not None:
            self.span.sending(made, prepared)


def _told(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"stream": False, **options}


def _asking_for(options: Any, request: Any, body: Mapping[str, Any] | None) -> Any:
    """The same options, but for what they ask, if that is something else: that body, as requested."""
    made = copy.copy(options)
    if body is None:
        return made
    if isinstance(made.json_data, Mapping):
        made.json_data, made.extra_json = dict(body), None
    elif isinstance(made.json_data, bytes | bytearray):
        made.json_data = request.content
    elif isinstance(getattr(made, "content", None), bytes | bytearray):
        made.content = request.content
    return made


_asking: ContextVar[Asking | None] = ContextVar("scheduler_asking", default=None)


def asking(call: Asking | None) -> AbstractContextManager[None]:
    """Make a call within the block; None: something else."""
    return set_within(_asking, call)


def asked_now() -> Asking | None:
    """The call that an SDK's client is making here and now."""
    return _asking.get()
