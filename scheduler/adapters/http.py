"""HTTP clients whose calls to models wait for money: httpx's and httpx2's, async and sync.

`send` is overridden, not the transport: proxies, limits and TLS settings of a client stay,
redirects and authentication happen inside one attempt, and no timeout runs while a call is
parked, since these begin with the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from scheduler.adapters.dialects import (
    HEADER_PREFIX,
    Call,
    Dialect,
    is_binary_stream,
    is_endpoint,
    read_call,
    read_marks,
    refusal,
)
from scheduler.adapters.places import AsyncPlace, Place, Thread, place_of_coroutine, place_of_thread
from scheduler.adapters.renewal import Renewal, asked_now, is_signed, signed_names
from scheduler.adapters.tees import (
    AsyncTee,
    SyncTee,
    Tee,
    cut_whole,
    of_family,
    put_back,
    put_back_broken,
    unread,
)
from scheduler.adapters.visit import Visit
from scheduler.adapters.watch import watch
from scheduler.answer import Answer
from scheduler.core.intake import OnExceeded
from scheduler.core.marks import NO_MARKS, Marks, merge, within
from scheduler.core.nested.parts import noted_here
from scheduler.errors import (
    BadAnswer,
    CallFailed,
    CallInterrupted,
    ConfigError,
    ProviderRefused,
    ProviderUnavailable,
    RateLimited,
    SchedulerError,
    TransportFailed,
    words_of,
)
from scheduler.limits.retry import ATTEMPTS
from scheduler.money import decimal_usd
from scheduler.providers.answers import read_answer, read_error
from scheduler.providers.assembly import needs_asking
from scheduler.providers.engines import explain_httpx, is_stream
from scheduler.providers.hidden import Secrets, mask, sealed
from scheduler.providers.http import CREDENTIAL_HEADERS
from scheduler.providers.known import asks_usage_at, refuses_field
from scheduler.providers.outside import Outside
from scheduler.providers.streaming import Transcript, looks_like_events, streamed_body
from scheduler.request import Request

if TYPE_CHECKING:
    from scheduler.scheduler import Scheduler

_SECRET_HEADERS = (*CREDENTIAL_HEADERS, "x-goog-api-key", "cookie")
_SECRET_PARAMS = ("key", "api_key", "api-key", "token", "access_token")
LONGEST_FRESH_S = 0.02  # credentials that waited for longer are made anew
# Headers that are about the bytes on the wire, not about what they say.
OF_WIRE = ("content-encoding", "content-length", "transfer-encoding")


@dataclass(slots=True)
class Door:
    """What the calls of a client go through.

    Attributes:
        scheduler: Who says when.
        on_exceeded: As on the scheduler, for these calls.
        marks: What was said of them when it was wrapped.
        is_strict: Only what is unmistakably a call to a model is taken for one.
        strict_hosts: Where the usage of streams is not asked for: it was refused there.
        renewal: How the client's requests are made anew, if all are in one way.
    """

    scheduler: Scheduler
    on_exceeded: OnExceeded | None = None
    marks: Marks = field(default_factory=Marks)
    is_strict: bool = False
    strict_hosts: set[str] = field(default_factory=set)
    renewal: Renewal | None = None

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
        visit = self._visit(HttpVisit, place_of_coroutine, client, request, options, post)
        if visit is None:
            return await post(request, **options)
        if not isinstance(visit, HttpVisit):
            return visit
        await visit.wait_at(cast(AsyncPlace, visit.place))
        return visit.outcome()

    def send_sync(
        self, client: Any, request: Any, options: dict[str, Any], post: Callable[..., Any]
    ) -> Any:
        """As `send`, for a sync client."""
        visit = self._visit(SyncHttpVisit, place_of_thread, client, request, options, post)
        if visit is None:
            return post(request, **options)
        if not isinstance(visit, HttpVisit):
            return visit
        cast(Thread, visit.place).wait(visit.start, visit.give_up)
        return visit.outcome()

    def _visit(
        self, kind: type[HttpVisit], place_of: Callable[..., Any], client: Any, request: Any,
        options: dict[str, Any], post: Callable[..., Any],
    ) -> Any:  # fmt: skip
        """What a request amounts to: a call, or a refusal of it; None: it is sent as it is."""
        headers = take_headers(request)
        tab, is_covered = noted_here(self.scheduler.store)
        if is_covered:
            return None
        try:
            call = self.read(request)
            if call is not None:
                place = place_of(self.scheduler.loop)
                visit = kind(self, client, request, call, headers, place, options, post)
                visit.tab = tab
                return visit
        except SchedulerError as error:
            if tab is None:
                return self.refuse(error, request)
            # It is covered by what was quoted, as anything that nobody can read.
        if tab is not None and self.may_cost(request):
            tab.misses()
        return None

    def may_cost(self, request: Any) -> bool:
        """Whether something that is no call that is counted may cost something all the same."""
        return bool(request.method == "POST")

    def read(self, request: Any) -> Call | None:
        """The call that a request makes; None: it is about something else.

        Raises:
            ConfigError: It is one, but nobody can read what it asks.
        """
        path = request.url.path
        if request.method == "POST" and is_binary_stream(path) and not self.is_strict:
            raise ConfigError(
                "stream",
                f"of POST {path} comes in Amazon's own binary form, which cannot be followed, so "
                "nobody would know what it costs; nothing was sent. Ask without stream, or decorate "
                "the function that asks by s.budgeted(quote=…)",
            )
        if request.method != "POST" or not is_endpoint(path):
            return None
        try:
            content = request.content
        except RuntimeError:  # a body that is made as it goes
            call = None
        else:
            if not content:
                return None  # who says nothing asks nothing
            call = None if "content-encoding" in request.headers else read_call(path, content)
        if self.is_strict:
            is_sure = call is not None and isinstance(call.body.get("model"), str)
            return (
                call if is_sure and call is not None and (call.asks or not call.in_path) else None
            )
        if call is None:
            raise ConfigError(
                "body",
                f"of POST {path} is no JSON object that can be read (compressed, or made as it is "
                "sent?), so nobody knows what it may cost; nothing was sent",
            )
        return call if call.asks else None

    def provider_of(self, url: str) -> str:
        """The provider behind a URL; one that nobody told of is added. In the scheduler's loop."""
        name = self.scheduler.provider_at(url)
        if name is None:
            outside = Outside(url)
            name = outside.name
            if name not in self.scheduler.providers:
                self.scheduler.add_provider(outside)
        return name

    def refuse(self, error: SchedulerError, request: Any, dialect: Dialect | None = None) -> Any:
        """A refusal as a response of the request's own family."""
        dialect = dialect or Dialect.of(request.url.path)
        made = refusal(error, dialect, self.scheduler.now_ms())
        family = cast(Any, family_of(request))
        return family.Response(
            made.status, headers=made.headers, content=made.content, request=request,
            extensions={"scheduler.error": error},
        )  # fmt: skip


def take_headers(request: Any) -> dict[str, str]:
    """Take the ``X-Scheduler-…`` headers off a request: they are nobody else's business.

    One that is signed with the rest stays.
    """
    found = {name: request.headers[name] for name in request.headers
             if name.lower().startswith(HEADER_PREFIX)}  # fmt: skip
    if found:
        for name in found.keys() - signed_names(request):
            del request.headers[name]
    return found


def raise_own(exc: BaseException) -> NoReturn:
    """Raise what an exception of httpx's stands for, if it was made of another library's."""
    own = exc.__cause__
    if isinstance(own, Exception):
        raise own from own.__cause__
    raise exc


def family_of(thing: object) -> ModuleType | None:
    """The module whose client or request this is, httpx or httpx2; None: neither's."""
    for kind in type(thing).__mro__:
        root = kind.__module__.partition(".")[0]
        if root in ("httpx", "httpx2"):
            return sys.modules[root]
    return None


class HttpVisit(Visit):
    """One call of an async client."""

    tee_kind: type[Tee] = AsyncTee

    def __init__(
        self,
        door: Door,
        client: Any,
        request: Any,
        call: Call,
        headers: Mapping[str, str],
        place: Place,
        options: Mapping[str, Any],
        post: Callable[..., Any],
    ) -> None:
        super().__init__(door.scheduler, door.on_exceeded, place)
        self.family = cast(Any, family_of(request))
        self._door, self._client, self._http, self._call = door, client, request, call
        self._is_streamed, self._post = bool(options.get("stream")), partial(post, **options)
        self._said = read_marks(headers)
        self._came: Any = None  # a response that has come, even if nobody hears of it here
        self._good: Any = None  # one that is an answer
        self._answer: Any = None  # what came back last, as its client gives it
        self._unread: Any = None  # a stream that nobody was given, with its connection
        self._broken: Exception | None = None  # by what that ended before anything of it was seen
        self._was_closed = False
        self._is_lost = False  # a good answer, of which not all came
        self._options, self._tries = options, 0
        call_now = asked_now()
        is_own = call_now is not None and call_now.inner is client
        self._renewal = call_now if is_own else copy.copy(door.renewal)  # each call notes its own
        self.tries_again = is_own  # else whoever made it tries again by itself
        if self._renewal is not None:
            self.max_retries = self._renewal.max_retries
        self._is_signed, self._has_marks = is_signed(request), bool(headers)

    def make_request(self) -> Request:
        """What is asked, with what is said of it."""
        # The app's own word first: headers may be those of its clients, handed on.
        by_app = merge(self._door.marks, self.scheduler.marks)
        said = within(by_app, merge(NO_MARKS, self._said), self.scheduler.now_ms())
        said.setdefault("provider", self._door.provider_of(str(self._http.url)))
        self._provider = said["provider"]
        return Request(self._call.body, url=self._call.url, **said)

    async def send(self, request: Request) -> Answer:
        """Make one attempt, where the client is."""
        try:
            return await sealed(self._attempt(request), self._secrets())
        except CallFailed as error:
            # No client asks again after a success, even if nobody can make anything of it.
            is_lost = self._is_lost or isinstance(error, BadAnswer)
            if is_lost or self._has_tried_enough(error):
                error.is_retryable = False
            raise

    def _has_tried_enough(self, error: CallFailed) -> bool:
        """Whether the caller wants no other try after this one failed."""
        most = self.max_retries
        if most is None and isinstance(error, RateLimited):
            # The queue would wait for the rate limit, as long as it takes.
            rule = self._on_exceeded or self.scheduler.on_exceeded
            most = ATTEMPTS - 1 if rule == "raise" else None
        return most is not None and self._tries > most

    async def _attempt(self, request: Request) -> Answer:
        if request.provider != self._provider:
            raise ProviderRefused(
                400, f"{request.model!r} is asked at {request.provider!r}, which this client cannot "
                "reach; nothing was sent", "fallback_elsewhere",
            )  # fmt: skip
        if self._unread is not None:
            await self.there(self._unread.let_go)
        self._unread = self._came = self._answer = self._failure = self._broken = None
        self._is_lost = False
        self._was_closed = self._client.is_closed
        began_s = time.perf_counter()
        response = await self._ask(request)
        is_events = is_stream(response.status_code, response.headers)
        if self._is_streamed and response.is_stream_consumed and self._content_of(response):
            if is_events:  # a hook has read it: it is all there
                return self._read_stream(request, response, self._content_of(response))
            took = timedelta(seconds=time.perf_counter() - began_s)
            unread(self.family, response, took)
        if self._is_streamed and is_events:
            self._came = response
            del response  # its reader alone holds it from now on, so that it is noticed
            return await self._follow(request)
        content = await self._content(response)
        if is_events or looks_like_events(response.status_code, content):
            return self._read_stream(request, response, content)
        self._answer = response
        answer = read_answer(response.status_code, response.headers, content, self._secrets())
        self._good = self._answer
        return answer

    async def _ask(self, request: Request) -> Any:
        """Send it; once more without what was added, if that alone is refused, by its name."""
        response = await self._post_at_place(request)
        is_added = self._asks_for_usage(request) and needs_asking(request)
        if response.status_code not in (400, 422) or not is_added:
            return response
        words = (await self._content(response)).decode("utf-8", "replace")
        if not refuses_field(response.status_code, words, "stream_options"):
            return response
        self._door.strict_hosts.add(self._http.url.host)
        self._tries -= 1  # for a reason of ours: it is the same try
        return await self._post_at_place(request)

    async def _post_at_place(self, request: Request) -> Any:
        http = self._as_sent(request)
        body = None if http is self._http else self._body(request)
        if body is not None and self._is_signed and not self._can_sign:
            raise ProviderRefused(
                400, "the request is signed as it is, so no other model can be asked by it; nothing "
                "was sent", "signed",
            )  # fmt: skip
        return await self.there(self._post_once, http, body, request)

    @property
    def _can_sign(self) -> bool:
        return self._renewal is not None and self._renewal.signs

    def _is_stale(self, body: Mapping[str, Any] | None) -> bool:
        """Whether the request has to be made anew, since it waited, or would not be believed."""
        if self._renewal is None:
            return False
        waited_s = self.loop.time() - self._waits_since_s
        is_changed = self._is_signed and (body is not None or self._has_marks)
        return is_changed or self._tries > 0 or waited_s > LONGEST_FRESH_S

    async def _content(self, response: Any) -> bytes:
        """What a response says; one that is to be read by its client still can be."""
        if self._is_streamed and not response.is_stream_consumed and not response.is_closed:
            content: bytes = await self.there(self.read, response)
            return content
        return self._content_of(response)

    def _content_of(self, response: Any) -> bytes:
        try:
            content: bytes = response.content
        except self.family.StreamError:
            self._answer = response  # as it is without us
            raise CallFailed("a hook of the client's own took the body of the answer") from None
        return content

    # What a client does where it is: a sync one in its thread

    async def _post_once(self, request: Any, body: Mapping[str, Any] | None, asked: Request) -> Any:
        response = await self._post_anew(request, body)
        renewal = self._renewal
        if renewal is not None and renewal.cures(response):
            await response.aclose()
            response = await self._post_anew(request, body)
        self._came = response
        if self._is_to_follow(response):
            self._unread = self._tee(response, asked)
            try:
                await self._unread.read_first()
            except Exception as exc:
                self._broken = exc
        return response

    def _is_to_follow(self, response: Any) -> bool:
        """Whether it is a stream that begins right away.

        Not in a while: what has come of a connection that breaks is there to be read only until
        then.
        """
        is_events = is_stream(response.status_code, response.headers)
        return self._is_streamed and is_events and not response.is_stream_consumed

    def _tee(self, response: Any, request: Request) -> Tee:
        made: Tee = of_family(self.family, self.tee_kind)(self, response, self._transcript(request))
        return made

    async def _post_anew(self, request: Any, body: Mapping[str, Any] | None) -> Any:
        is_stale, retries = self._is_stale(body), self._tries
        self._tries += 1
        if not is_stale or self._renewal is None:
            return await self._post(request)
        return await self._renewal.send(request, body, retries, self._post, self._options)

    async def read(self, response: Any) -> bytes:
        """Read all of it, and put it back."""
        stream, pieces = response.stream, list[bytes]()
        try:
            async for each in stream:
                pieces.append(each)
        except Exception as exc:
            self._broke_off(response, pieces, exc)
            raise
        finally:
            await stream.aclose()
        return self._whole(response, pieces)

    def _whole(self, response: Any, pieces: list[bytes]) -> bytes:
        try:
            return put_back(self.family, response, pieces)
        except Exception:  # what cannot be decoded, its reader finds out by themselves
            self._answer, self._is_lost = response, True
            raise

    def _broke_off(self, response: Any, pieces: list[bytes], exc: Exception) -> None:
        """Who wanted to read a good answer by themselves is not told before they do."""
        if response.is_success:
            put_back_broken(self.family, response, pieces, exc)
            self._answer, self._is_lost = response, True

    def explain(self, exc: BaseException) -> CallFailed:
        """What an exception of the client means."""
        family, secrets = self.family, self._secrets()
        is_made = self._renewal is None or self._renewal.is_made
        if self._was_closed or not is_made:
            never = TransportFailed(f"could not be sent: {words_of(exc)}", False)
            never.is_retryable, never.is_unsent = False, True
            mask(never, secrets)
            return never
        if isinstance(exc, family.HTTPStatusError):  # from a hook of the user's own
            response, content = exc.response, b""
            with contextlib.suppress(family.StreamError):
                content = response.content
            return read_error(response.status_code, response.headers, content, secrets)
        if isinstance(exc, family.HTTPError | family.InvalidURL):
            error = explain_httpx(exc, 0, family)
        else:
            error = CallFailed(f"the client raised {words_of(exc)}")
            error.is_retryable = self._renewal is not None and self._renewal.tries_after(exc)
        mask(error, secrets)
        return error

    def _as_sent(self, request: Request) -> Any:
        """The HTTP request for what was admitted: as it was, if nothing about it is different."""
        body, call, http = self._body(request), self._call, self._http
        if body == call.body:
            return http
        headers = [(name, value) for name, value in http.headers.raw
                   if name.lower() not in (b"content-length", b"transfer-encoding")]  # fmt: skip
        path = call.path(http.url.path, body)
        return self.family.Request(
            http.method, http.url if path == http.url.path else http.url.copy_with(path=path),
            headers=headers, content=call.encode(body), extensions=http.extensions,
        )  # fmt: skip

    def _body(self, request: Request) -> Mapping[str, Any]:
        return streamed_body(request) if self._asks_for_usage(request) else request.body

    def _asks_for_usage(self, request: Request) -> bool:
        """Whether the usage of a stream has to be asked for, and may be: `known.STREAM_OPTIONS`."""
        if self._is_signed and not self._can_sign:
            return False  # the body was vouched for as it is
        is_stream = bool(request.body.get("stream")) and self._call.dialect is Dialect.OPENAI
        agent = self._http.headers.get("user-agent", "")
        host = self._http.url.host
        is_refused = "mistral" in host or "mistral" in agent or host in self._door.strict_hosts
        return is_stream and not is_refused and asks_usage_at(host) is not False

    def _secrets(self) -> Secrets:
        headers, params = self._http.headers, self._http.url.params
        return Secrets([
            *(headers[name] for name in _SECRET_HEADERS if name in headers),
            *(params[name] for name in _SECRET_PARAMS if name in params),
            self._http.url.password or "",
        ])  # fmt: skip

    # Streams

    async def _follow(self, request: Request) -> Answer:
        """Hand a stream over to its reader as it comes; settle when they are through."""
        response, self._came = self._came, None
        tee: Any = self._unread
        try:
            if tee is None:  # all of it was read already, and is nothing
                tee = self._unread = self._tee(response, request)
                await self.there(tee.read_first)
            elif self._broken is not None:
                self._failure = self._broken
                raise self.understood(self._broken)
        except CallFailed:
            if isinstance(self._failure, Exception):
                self._unread = None  # it is closed
                self._broke_off(response, tee.first, self._failure)
            raise
        ended: asyncio.Future[Answer] = tee.ended
        self._answer = response
        if tee.transcript.is_refused or tee.is_over:
            tee.is_told = True
            answer: Answer = tee.judge()
            return answer
        self._unread = None  # it is its reader's
        watch(self.scheduler, tee)
        self.is_read_at(tee.pace)
        del tee, response  # likewise, so that it is noticed when they drop it
        self.place.wake()
        return await ended

    def _read_stream(self, request: Request, response: Any, content: bytes) -> Answer:
        """A stream that was read to the end before anybody saw it."""
        transcript = self._transcript(request)
        shown = cut_whole(transcript, content)
        self._answer = response if shown == content else self._shown(response, shown)
        return transcript.answer(response.status_code, response.headers)

    def _transcript(self, request: Request) -> Transcript:
        asked = self._asks_for_usage(request)
        return Transcript(request, self._secrets(), asked_for_usage=asked)

    def _shown(self, response: Any, content: bytes) -> Any:
        """A response like this one with other content."""
        headers = [(name, value) for name, value in response.headers.raw
                   if name.lower().decode("latin-1") not in OF_WIRE]  # fmt: skip
        shown = self.family.Response(
            response.status_code, headers=headers, stream=self.family.ByteStream(content),
            request=response.request, extensions=response.extensions, history=response.history,
        )  # fmt: skip
        if not self._is_streamed or response.is_stream_consumed:
            shown.read()
        shown.default_encoding, shown.next_request = (
            response.default_encoding,
            response.next_request,
        )
        with contextlib.suppress(RuntimeError):  # it was not read by its client
            shown.elapsed = response.elapsed
        return shown

    def judged(
        self, ended: asyncio.Future[Answer], answer: Answer | None, error: CallFailed | None
    ) -> None:
        """A stream has ended so, where its reader is; None and None: it was left half-way."""
        with contextlib.suppress(RuntimeError):  # the scheduler's loop is no more
            self.tell(self._judged, ended, answer, error)

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
        if self._renewal is not None:
            self._renewal.ended(self._tries)
        if error is None:
            if self.response is not None:
                _tell_cost(answer, self.response.cost_nusd, self.response.attempts)
            return answer
        if answer is not None and isinstance(error, CallFailed):
            loops = self._renewal is not None and self._renewal.is_looped
            if self.tab is None and not loops and not answer.is_success:
                answer.headers["x-should-retry"] = "false"  # that was tried as often as was wanted
            return answer
        if answer is not None and isinstance(error, ProviderUnavailable):
            # It is refused for what it was just answered itself: that is its caller's to hear.
            answer.extensions = {**answer.extensions, "scheduler.error": error}
            answer.headers["x-should-retry"] = "false"
            return answer
        if self._failure is not None and isinstance(error, CallFailed | ProviderUnavailable):
            raise self._failure
        good, came = self._good, self._came
        if good is None and not self._is_streamed and came is not None and came.is_success:
            good = came  # while it was on its way the scheduler was closed
        if good is not None and (
            isinstance(error, CallInterrupted) or not isinstance(error, CallFailed)
        ):
            return good  # paid, but not written down: its reservation keeps counting
        if isinstance(error, SchedulerError):
            return self._door.refuse(error, self._http, self._call.dialect)
        raise error


class SyncHttpVisit(HttpVisit):
    """One call of a sync client: what is its own happens in its thread."""

    tee_kind = SyncTee

    def _post_once(self, request: Any, body: Mapping[str, Any] | None, asked: Request) -> Any:
        response, renewal = self._post_anew(request, body), self._renewal
        if renewal is not None and renewal.cures(response):
            response.close()
            response = self._post_anew(request, body)
        self._came = response
        if self._is_to_follow(response):
            self._unread = self._tee(response, asked)
            try:
                self._unread.read_first()
            except Exception as exc:
                self._broken = exc
        return response

    def _post_anew(self, request: Any, body: Mapping[str, Any] | None) -> Any:
        is_stale, retries = self._is_stale(body), self._tries
        self._tries += 1
        if not is_stale or self._renewal is None:
            return self._post(request)
        return self._renewal.send_sync(request, body, retries, self._post, self._options)

    def read(self, response: Any) -> Any:
        """Read all of it, and put it back."""
        stream, pieces = response.stream, list[bytes]()
        try:
            pieces.extend(stream)
        except Exception as exc:
            self._broke_off(response, pieces, exc)
            raise
        finally:
            stream.close()
        return self._whole(response, pieces)


def _tell_cost(response: Any, cost_nusd: int, attempts: int) -> None:
    response.headers["x-scheduler-cost-usd"] = decimal_usd(cost_nusd)
    response.headers["x-scheduler-attempts"] = str(attempts)
