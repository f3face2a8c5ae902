"""HTTP clients whose calls to models wait for money: httpx's and httpx2's, async and sync.

`send` is overridden, not the transport: proxies, limits and TLS settings of a client stay,
redirects and authentication happen inside one attempt, and no timeout runs while a call is
parked, since these begin with the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from scheduler.adapters.dialects import (
    HEADER_PREFIX,
    Call,
    Dialect,
    read_call,
    read_marks,
    refusal,
)
from scheduler.adapters.places import Place, place_of_coroutine, place_of_thread
from scheduler.adapters.tees import Tee, async_tee, show, sync_tee
from scheduler.adapters.visit import Visit
from scheduler.calls import under_way
from scheduler.errors import CallFailed, SchedulerError, TransportFailed
from scheduler.intake import OnExceeded
from scheduler.marks import Marks, merge
from scheduler.money import decimal_usd
from scheduler.providers.answers import read_answer
from scheduler.providers.base import Answer
from scheduler.providers.engines import explain_httpx, is_stream
from scheduler.providers.http import CREDENTIAL_HEADERS
from scheduler.providers.outside import Outside
from scheduler.providers.streaming import Transcript, streamed_body
from scheduler.request import Request

if TYPE_CHECKING:
    from scheduler.scheduler import Scheduler

_SECRET_HEADERS = (*CREDENTIAL_HEADERS, "x-goog-api-key", "cookie")
_LENGTHS = ("content-encoding", "content-length", "transfer-encoding")


@dataclass(slots=True)
class Door:
    """What the calls of a client go through.

    Attributes:
        marks: What was said of them when it was wrapped.
        is_strict: Only what is unmistakably a call to a model is taken for one.
    """

    scheduler: Scheduler
    on_exceeded: OnExceeded | None = None
    marks: Marks = field(default_factory=Marks)
    is_strict: bool = False

    async def send(
        self, client: Any, request: Any, options: dict[str, Any], post: Callable[..., Any]
    ) -> Any:
        """Send a request of an async client, when there is money for it.

        Args:
            client: Whose it is.
            request: As the client built it.
            options: Of its `send`.
            post: Its own `send`.
        """
        call = None if under_way.get() else self._read(request)
        if call is None:
            return await post(request, **options)
        try:
            place = place_of_coroutine(self.scheduler.loop)
            visit = HttpVisit(self, client, request, call, place, options, post)
        except SchedulerError as error:
            return refused(error, call.dialect, request, self.scheduler.now_ms())
        await place.wait(visit.start, visit.give_up)
        return visit.outcome()

    def send_sync(
        self, client: Any, request: Any, options: dict[str, Any], post: Callable[..., Any]
    ) -> Any:
        """As `send`, for a sync client."""
        call = None if under_way.get() else self._read(request)
        if call is None:
            return post(request, **options)
        try:
            place = place_of_thread(self.scheduler.loop)
            visit = SyncHttpVisit(self, client, request, call, place, options, post)
        except SchedulerError as error:
            return refused(error, call.dialect, request, self.scheduler.now_ms())
        place.wait(visit.start, visit.give_up)
        return visit.outcome()

    def _read(self, request: Any) -> Call | None:
        try:
            content = request.content
        except RuntimeError:  # an upload, which is read as it goes
            call = None
        else:
            call = read_call(request.method, request.url.path, content)
        if call is not None and self.is_strict and not isinstance(call.body.get("model"), str):
            call = None
        if call is None:
            take_headers(request)
        return call

    def provider_of(self, url: str) -> str:
        """The provider behind a URL; one that nobody told of is added."""
        name = self.scheduler.provider_at(url)
        if name is None:
            outside = Outside(url)
            name = outside.name
            self.scheduler.add_provider(outside)
        return name


def take_headers(request: Any) -> dict[str, str]:
    """Take the ``X-Scheduler-…`` headers off a request: they are nobody else's business."""
    found = {name: request.headers[name] for name in request.headers
             if name.lower().startswith(HEADER_PREFIX)}  # fmt: skip
    for name in found:
        del request.headers[name]
    return found


def family_of(thing: object) -> ModuleType | None:
    """The module whose client or request this is, httpx or httpx2; None: neither's."""
    for kind in type(thing).__mro__:
        root = kind.__module__.partition(".")[0]
        if root in ("httpx", "httpx2"):
            return sys.modules[root]
    return None


class HttpVisit(Visit):
    """One call of an async client."""

    def __init__(
        self,
        door: Door,
        client: Any,
        request: Any,
        call: Call,
        place: Place,
        options: dict[str, Any],
        post: Callable[..., Any],
    ) -> None:
        self._family = cast(Any, family_of(request))
        self._client, self._http, self._call = client, request, call
        self._options, self._post = options, post
        said = merge(door.marks, merge(door.scheduler.marks, read_marks(take_headers(request))))
        said.setdefault("provider", door.provider_of(str(request.url)))
        asked = Request(call.body, url=call.url, **said)
        super().__init__(door.scheduler, asked, door.on_exceeded, place)
        self._answer: Any = None  # what came back last, as its client gives it
        self._failure: Exception | None = None  # what was raised instead

    async def send(self, request: Request) -> Answer:
        """Make one attempt, where the client is."""
        last, self._answer, self._failure = self._answer, None, None
        try:
            if last is not None:
                await self._place.run(self._close, last)
            response = await self._place.run(self._post_once, self._as_sent(request))
            is_streamed = is_stream(response.status_code, response.headers)
            if self._options.get("stream"):
                if is_streamed:
                    return await self._follow(request, response)
                await self._place.run(self._read_all, response)
            elif is_streamed:
                return self._read_stream(request, response)
        except CallFailed:
            raise
        except Exception as exc:
            self._failure = exc
            raise self.explain(exc) from exc
        self._answer = response
        return read_answer(
            response.status_code, response.headers, response.content, self._secrets()
        )

    async def _post_once(self, request: Any) -> Any:
        return await self._post(request, **self._options)

    async def _read_all(self, response: Any) -> None:
        await response.aread()

    def explain(self, exc: Exception) -> CallFailed:
        """What an exception of the client means."""
        if self._client.is_closed:
            return TransportFailed(f"could not be sent: {exc}", False)
        if isinstance(exc, self._family.HTTPError | self._family.InvalidURL):
            return explain_httpx(exc, 0, self._family)
        return CallFailed(f"the client raised {type(exc).__name__}: {exc}")

    def _as_sent(self, request: Request) -> Any:
        """The HTTP request for what was admitted: as it was, if nothing about it is different."""
        body, call = request.body, self._call
        if body.get("stream") and call.dialect is Dialect.OPENAI and not self._is_mistral:
            body = streamed_body(request)
        if body == call.body:
            return self._http
        headers = [(name, value) for name, value in self._http.headers.raw
                   if name.lower() not in (b"content-length", b"transfer-encoding")]  # fmt: skip
        url = self._http.url.copy_with(path=call.path(self._http.url.path, body))
        return self._family.Request(
            self._http.method, url, headers=headers, content=call.encode(body),
            extensions=self._http.extensions,
        )  # fmt: skip

    @property
    def _is_mistral(self) -> bool:
        """Whether it goes to Mistral, whose streams tell their usage unasked.

        Its API refuses fields that it does not know.
        """
        agent = self._http.headers.get("user-agent", "")
        return "mistral" in self._http.url.host or agent.startswith("mistral")

    def _secrets(self) -> list[str]:
        headers = self._http.headers
        found = [headers[name] for name in _SECRET_HEADERS if name in headers]
        return [each for text in found for each in {text, text.split(" ")[-1]} if len(each) >= 8]

    # Streams

    async def _follow(self, request: Request, response: Any) -> Answer:
        """Hand a stream over to its reader as it comes; settle when they are through."""
        tee = self._make_tee(response, Transcript(request, self._secrets()))
        await self._place.run(tee.read_first)
        self._answer, ended = self._shown(response, stream=tee), tee.ended
        if tee.transcript.is_refused or tee.is_over:
            tee.is_told = True
            return tee.judge()
        del tee  # its reader's alone, so that it is noticed when they drop it
        self._place.wake()
        return await ended

    def _read_stream(self, request: Request, response: Any) -> Answer:
        """A stream that its client has read to the end before anybody saw it."""
        transcript = Transcript(request, self._secrets())
        self._answer = self._shown(response, content=show(transcript, response.content))
        return transcript.answer(response.status_code, response.headers)

    def _make_tee(self, response: Any, transcript: Transcript) -> Tee:
        return async_tee(self._family)(self, response, transcript)

    async def _close(self, response: Any) -> None:
        await response.aclose()

    def _shown(self, response: Any, **content: Any) -> Any:
        """A response like this one with other content."""
        headers = [(name, value) for name, value in response.headers.raw
                   if name.lower().decode("latin-1") not in _LENGTHS]  # fmt: skip
        shown = self._family.Response(
            response.status_code, headers=headers, **content, request=response.request,
            extensions=response.extensions, history=response.history,
        )  # fmt: skip
        shown.default_encoding = response.default_encoding
        return shown

    def judged(
        self, ended: asyncio.Future[Answer], answer: Answer | None, error: CallFailed | None
    ) -> None:
        """A stream has ended so, where its reader is; None and None: it was left half-way."""
        with contextlib.suppress(RuntimeError):  # the scheduler's loop is no more
            self._place.tell(self._judged, ended, answer, error)

    def _judged(
        self, ended: asyncio.Future[Answer], answer: Answer | None, error: CallFailed | None
    ) -> None:
        if answer is None and error is None:
            self.give_up()
        elif ended.done():
            pass  # the scheduler was closed meanwhile
        elif error is not None:
            ended.set_exception(error)
        else:
            assert answer is not None
            ended.set_result(answer)

    # What the client sees

    def outcome(self) -> Any:
        """What `send` gives back, or raises: the provider's own answer wherever there is one."""
        error, answer, self._answer = self.error, self._answer, None
        if error is None:
            if self.response is not None:
                _tell_cost(answer, self.response.cost_nusd, self.response.attempts)
            return answer
        if answer is not None and isinstance(error, CallFailed):
            answer.headers["x-should-retry"] = "false"  # that was tried as often as was wanted
            return answer
        if answer is not None and 200 <= answer.status_code < 300:
            return answer  # paid, but not written down: its reservation keeps counting
        if self._failure is not None and isinstance(error, CallFailed):
            raise self._failure
        if isinstance(error, SchedulerError):
            return refused(error, self._call.dialect, self._http, self.scheduler.now_ms())
        raise error


class SyncHttpVisit(HttpVisit):
    """One call of a sync client: what is its own happens in its thread."""

    def _post_once(self, request: Any) -> Any:
        return self._post(request, **self._options)

    def _read_all(self, response: Any) -> None:  # type: ignore[override]
        response.read()

    def _make_tee(self, response: Any, transcript: Transcript) -> Tee:
        return sync_tee(self._family)(self, response, transcript)

    def _close(self, response: Any) -> None:  # type: ignore[override]
        response.close()


def refused(error: SchedulerError, dialect: Dialect, request: Any, now_ms: int) -> Any:
    """A refusal as a response of the request's own family."""
    made = refusal(error, dialect, now_ms)
    family = cast(Any, family_of(request))
    return family.Response(
        made.status, headers=made.headers, content=made.content, request=request,
        extensions={"scheduler.error": error},
    )  # fmt: skip


def _tell_cost(response: Any, cost_nusd: int, attempts: int) -> None:
    response.headers["x-scheduler-cost-usd"] = decimal_usd(cost_nusd)
    response.headers["x-scheduler-attempts"] = str(attempts)
