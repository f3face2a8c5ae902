"""HTTP clients whose calls to models wait for money: httpx's and httpx2's, async and sync.

`send` is overridden, not the transport: proxies, limits and TLS settings of a client stay,
redirects and authentication happen inside one attempt, and no timeout runs while a call is
parked, since these begin with the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from scheduler.adapters.dialects import (
    HEADER_PREFIX,
    Call,
    Dialect,
    read_call,
    read_marks,
    refusal,
)
from scheduler.adapters.places import Place, place_of_coroutine, place_of_thread
from scheduler.adapters.visit import Visit
from scheduler.calls import under_way
from scheduler.errors import CallFailed, ConfigError, SchedulerError, TransportFailed
from scheduler.intake import OnExceeded
from scheduler.marks import Marks, merge
from scheduler.money import decimal_usd
from scheduler.providers.answers import read_answer
from scheduler.providers.base import Answer
from scheduler.providers.engines import call_id, explain_httpx, is_stream
from scheduler.providers.http import CREDENTIAL_HEADERS
from scheduler.providers.outside import Outside
from scheduler.providers.streaming import DONE, Transcript, streamed_body
from scheduler.request import Request, StreamEvent

if TYPE_CHECKING:
    from scheduler.scheduler import Scheduler

_SECRET_HEADERS = (*CREDENTIAL_HEADERS, "x-goog-api-key", "cookie")
_NO_STREAM_OPTIONS = ("mistral",)  # whose API refuses fields it does not know
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
        asked = Request(call.body, url=call.url, **said)  # type: ignore[arg-type]
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
            if is_stream(response.status_code, response.headers):
                return await self._follow(request, response)
            if self._options.get("stream"):
                await self._place.run(self._read_all, response)
        except CallFailed:
            raise
        except Exception as exc:
            self._failure = exc
            raise self._explain(exc) from exc
        self._answer = response
        return read_answer(
            response.status_code, response.headers, response.content, self._secrets()
        )

    async def _post_once(self, request: Any) -> Any:
        return await self._post(request, **self._options)

    async def _read_all(self, response: Any) -> None:
        await response.aread()

    def _explain(self, exc: Exception) -> CallFailed:
        if self._client.is_closed:
            return TransportFailed(f"could not be sent: {exc}", False)
        if isinstance(exc, self._family.HTTPError | self._family.InvalidURL):
            return explain_httpx(exc, 0, self._family)
        return CallFailed(f"the client raised {type(exc).__name__}: {exc}")

    def _as_sent(self, request: Request) -> Any:
        """The HTTP request for what was admitted: as it was, if nothing about it is different."""
        body, call = request.body, self._call
        wants_stream = bool(body.get("stream")) and call.dialect is Dialect.OPENAI
        if wants_stream and not any(word in self._http.url.host for word in _NO_STREAM_OPTIONS):
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

    def _secrets(self) -> list[str]:
        headers = self._http.headers
        found = [headers[name] for name in _SECRET_HEADERS if name in headers]
        return [each for text in found for each in {text, text.split(" ")[-1]} if len(each) >= 8]

    # Streams

    async def _follow(self, request: Request, response: Any) -> Answer:
        """Hand a stream over to its reader as it comes; settle when they are through."""
        tee = self._make_tee(response, Transcript(request, self._secrets()))
        await self._place.run(tee.read_first)
        self._answer, ended = self._shown(response, tee), tee.ended
        if tee.transcript.is_refused or tee.is_over:
            tee.is_told = True
            return tee.judge()
        del tee  # its reader's alone, so that it is noticed when they drop it
        self._place.wake()
        return await ended

    def _make_tee(self, response: Any, transcript: Transcript) -> Tee:
        return _async_tee(self._family)(self, response, transcript)

    async def _close(self, response: Any) -> None:
        await response.aclose()

    def _shown(self, response: Any, tee: Tee) -> Any:
        """A response that is read through the tee."""
        headers = [(name, value) for name, value in response.headers.raw
                   if name.lower().decode("latin-1") not in _LENGTHS]  # fmt: skip
        shown = self._family.Response(
            response.status_code, headers=headers, stream=tee, request=response.request,
            extensions=response.extensions, history=response.history,
        )  # fmt: skip
        shown.default_encoding = response.default_encoding
        return shown

    def judged(
        self, ended: asyncio.Future[Answer], answer: Answer | None, error: CallFailed | None
    ) -> None:
        """A stream has ended so, where its reader is; None and None: it was left half-way."""
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

    def settled(self) -> Awaitable[Any]:
        """Until the ledger has what came of it; in the scheduler's loop."""
        assert self._future is not None
        return asyncio.wait([self._future])

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

    def _post_once(self, request: Any) -> Any:  # type: ignore[override]
        return self._post(request, **self._options)

    def _read_all(self, response: Any) -> None:  # type: ignore[override]
        response.read()

    def _make_tee(self, response: Any, transcript: Transcript) -> Tee:
        return _sync_tee(self._family)(self, response, transcript)

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


class Tee:
    """The bytes of a stream on their way to its reader, while it is followed what they amount to.

    Attributes:
        ended: What it amounts to; in the scheduler's loop.
        is_over: There are no more.
        is_told: The scheduler has heard of its end.
    """

    def __init__(self, visit: HttpVisit, response: Any, transcript: Transcript) -> None:
        self.transcript, self.is_over = transcript, False
        self.ended: asyncio.Future[Answer] = visit.scheduler.loop.create_future()
        self._visit, self._response = visit, response
        self._first: list[bytes] = []
        self.is_told = False

    def take(self, chunk: bytes) -> bytes:
        """Some bytes as their reader sees them."""
        assembly = self.transcript.assembly
        was_done = assembly.is_done
        events = self.transcript.feed(chunk)
        if not assembly.hides_usage:
            return chunk
        shown = b"".join(map(_encode, events))
        return shown + _encode(StreamEvent(DONE)) if assembly.is_done > was_done else shown

    def judge(self, error: Exception | None = None) -> Answer:
        """What it amounts to, now that it has ended, or broken off. Raises `CallFailed`."""
        headers = self._response.headers
        if error is None:
            return self.transcript.answer(self._response.status_code, headers)
        explained = self._visit._explain(error)
        explained.request_id = call_id(headers)
        return self.transcript.after(explained)

    def end(self, error: Exception | None = None) -> None:
        """Tell, once, what it amounts to; without an error it may have been left half-way."""
        if self.is_told:
            return
        self.is_told = True
        if error is None and not self.is_over and not self.transcript.assembly.is_complete:
            self._visit.judged(self.ended, None, None)
            return
        try:
            answer = self.judge(error)
        except CallFailed as exc:
            self._visit.judged(self.ended, None, exc)
        except Exception as exc:
            self._visit.judged(self.ended, None, CallFailed(f"the stream could not be read: {exc}"))
        else:
            self._visit.judged(self.ended, answer, None)

    def __del__(self) -> None:
        # Nobody reads on, and nobody closed it: without this its money is held for ever.
        if not self.is_told and not self._visit.scheduler.is_closed:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.end()


def _encode(event: StreamEvent) -> bytes:
    name = "" if event.event == "message" else f"event: {event.event}\n"
    lines = "\n".join(f"data: {line}" for line in event.data.split("\n"))
    return f"{name}{lines}\n\n".encode()


def _async_tee(family: Any) -> type[Tee]:
    """The tee for a family's async responses."""
    known: type[Tee] | None = _TEES.get((family.__name__, False))
    if known is not None:
        return known

    class AsyncTee(Tee, family.AsyncByteStream):  # type: ignore[misc]
        async def read_first(self) -> None:
            self._chunks = self._response.aiter_bytes()
            while not self.transcript.assembly.events:
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    self.is_over = True
                    return
                self._first.append(self.take(chunk))

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                for chunk in self._first:
                    yield chunk
                async for chunk in self._chunks:
                    shown = self.take(chunk)
                    if shown:
                        yield shown
            except Exception as exc:
                self.end(exc)
                raise
            self.is_over = True
            await self._finish()

        async def _finish(self) -> None:
            self.end()
            loop = self._visit.scheduler.loop
            if asyncio.get_running_loop() is loop:
                await self._visit.settled()
            else:
                waiting = asyncio.run_coroutine_threadsafe(_wait(self._visit), loop)
                await asyncio.wrap_future(waiting)

        async def aclose(self) -> None:
            try:
                await self._response.aclose()
            finally:
                self.end()

    _TEES[family.__name__, False] = AsyncTee
    return AsyncTee


def _sync_tee(family: Any) -> type[Tee]:
    """The tee for a family's sync responses."""
    known: type[Tee] | None = _TEES.get((family.__name__, True))
    if known is not None:
        return known

    class SyncTee(Tee, family.SyncByteStream):  # type: ignore[misc]
        def read_first(self) -> None:
            self._chunks = self._response.iter_bytes()
            while not self.transcript.assembly.events:
                chunk = next(self._chunks, None)
                if chunk is None:
                    self.is_over = True
                    return
                self._first.append(self.take(chunk))

        def __iter__(self) -> Iterator[bytes]:
            try:
                for chunk in self._first:
                    yield chunk
                for chunk in self._chunks:
                    shown = self.take(chunk)
                    if shown:
                        yield shown
            except Exception as exc:
                self.end(exc)
                raise
            self.is_over = True
            self.end()
            loop = self._visit.scheduler.loop
            asyncio.run_coroutine_threadsafe(_wait(self._visit), loop).result()

        def close(self) -> None:
            try:
                self._response.close()
            finally:
                self.end()

    _TEES[family.__name__, True] = SyncTee
    return SyncTee


async def _wait(visit: HttpVisit) -> None:
    await visit.settled()


_TEES: dict[tuple[str, bool], type[Tee]] = {}


# Clients


class Budgeted:
    """Marks clients whose calls wait for money; see `shadow`."""

    door: Door


def shadow(client: Any, door: Door) -> Any:
    """A client that is the same but for its calls, which go through a door.

    It shares everything with the client it was made from, pool and settings: closing one
    closes both.

    Raises:
        ConfigError: It goes through a door already, or is no client of httpx or httpx2.
    """
    if isinstance(client, Budgeted):
        raise ConfigError("client", "is wrapped already; use it as it is")
    family = family_of(client)
    if family is None:
        kind = f"{type(client).__module__}.{type(client).__qualname__}"
        raise ConfigError("client", f"a {kind} is no client of httpx or httpx2")
    is_async = isinstance(client, cast(Any, family).AsyncClient)
    made = object.__new__(_budgeted(type(client), is_async))
    made.__dict__ = client.__dict__
    _DOORS[made] = door
    _ORIGINALS[made] = client  # it may close itself when nobody holds it any more
    return made


_DOORS: WeakKeyDictionary[Any, Door] = WeakKeyDictionary()
_ORIGINALS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_KINDS: dict[type, type] = {}


def _budgeted(kind: type, is_async: bool) -> type:
    """The class like `kind` whose calls go through a door."""
    made = _KINDS.get(kind)
    if made is not None:
        return made

    async def send(self: Any, request: Any, **options: Any) -> Any:
        post = super(made, self).send  # type: ignore[arg-type,misc]
        return await _DOORS[self].send(self, request, options, post)

    def send_sync(self: Any, request: Any, **options: Any) -> Any:
        post = super(made, self).send  # type: ignore[arg-type,misc]
        return _DOORS[self].send_sync(self, request, options, post)

    # Some close themselves when they are dropped: that is for the one it was made from to do.
    body = {
        "send": send if is_async else send_sync, "__doc__": kind.__doc__,
        "__del__": lambda self: None,
    }  # fmt: skip
    made = _KINDS[kind] = type(kind.__name__, (Budgeted, kind), body)
    return made
