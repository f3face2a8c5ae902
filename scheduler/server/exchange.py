"""One call of a client, from its headers to the last byte of its answer.

    asked ──submit(send=…)──▶ queue ──admitted──▶ `_attempt` ──pass_on──▶ provider
      ▲                                              │ a stream goes out as it comes
      └── `_finish` ◀── settled, refused, given up ◀─┘

Nothing is told before it has to be: while nothing was, what is refused, and what a provider refuses,
has a status of its own. After the first beat an error is the last event of a stream; before JSON it is
the body of an answer that is not ended, so that no client takes it for one. A client that asks again
then is told the error with its status, and nothing is sent for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scheduler.adapters.cuts import Scribe
from scheduler.adapters.dialects import Call, Dialect
from scheduler.answer import Answer
from scheduler.core.future import RequestFuture
from scheduler.core.nested.pace import Pace
from scheduler.errors import (
    CallFailed,
    CallInterrupted,
    DeadlineExceeded,
    ProviderRefused,
    ProviderUnavailable,
    RequestRejected,
    SchedulerClosed,
    SchedulerError,
    StreamBroken,
)
from scheduler.guards.plain import logger_of
from scheduler.money import decimal_usd
from scheduler.providers.assembly import needs_asking
from scheduler.providers.engines import is_stream
from scheduler.providers.http import HttpProvider
from scheduler.providers.known import refuses_field
from scheduler.providers.streaming import Transcript, read_whole, streamed_body
from scheduler.request import Request, Response
from scheduler.server import forwarded, inside
from scheduler.server.asked import Asked
from scheduler.server.beats import NO_BEATS, beats_of, expected_ms, word_of
from scheduler.server.line import Line
from scheduler.server.nurse import LOOK_S
from scheduler.server.refusals import NOT_AGAIN, Fields, Whole, as_event, refused
from scheduler.server.tokens import FRESH_S
from scheduler.shortfall import Shortfall

if TYPE_CHECKING:
    from scheduler.server.gateway import Gateway

logger = logger_of("scheduler.server")

PROMPT_S = 0.25  # what is answered within that time is not looked after any further
GRACE_S = 30.0  # so long a call may go on whose client has hung up
REVOKED = "its token is not taken any more: it was revoked, or is over; nothing was sent"
GONE = "its client has hung up, so it is not sent again; nothing was sent this time"


class Exchange:
    """See the module.

    Args:
        gateway: Whose it is.
        line: To the client.
        call: What it asks.
        content: The same as it was sent.
        asked: What its headers say of it.
        provider: Who is asked.
        model: What it is asked for.

    Attributes:
        look_at_s: When somebody is to look after it, on the loop's clock.
        is_gone: Its client has hung up.
    """

    def __init__(
        self, gateway: Gateway, line: Line, call: Call, content: bytes, asked: Asked, provider: str,
        model: str,
    ) -> None:  # fmt: skip
        self._gateway, self._line, self._call, self._content = gateway, line, call, content
        self._s, self._asked, self._provider = gateway.scheduler, asked, provider
        is_same = model == call.body["model"]
        self._body = call.body if is_same else {**call.body, "model": model}
        self._loop = asyncio.get_running_loop()
        self._woken = self._loop.create_future()
        self._future: RequestFuture | None = None
        self._is_stream = bool(call.body.get("stream"))
        self._began_s = self._loop.time()
        self._beats = NO_BEATS  # looked for if it takes a while
        self._answer: Whole | None = None  # what came back last, as its provider gave it
        self._good: Whole | None = None  # one that is an answer
        self._refusal: SchedulerError | None = None  # why it is not held any longer
        self._lack: Shortfall | None = None  # what parked it last
        self._streams = False  # the provider's own events go out
        self._head: tuple[int, Mapping[str, str]] | None = None  # of a stream
        self._waiting: asyncio.Task[None] | None = None
        self._next_beat_s = self._began_s
        self._was_admitted_s: float | None = None
        self._reply: Response | None = None  # its answer, as soon as it is there
        self._is_placed = False  # it is known whether it waits
        self.look_at_s = self._began_s + LOOK_S
        self.is_gone = False

    # From beginning to end

    async def run(self) -> None:
        """Answer it, one way or another."""
        try:
            future = self._future = self._s.submit(
                self._request(), on_exceeded="raise" if self._asked.wait_ms == 0 else None,
                send=self._attempt,
            )  # fmt: skip
        except SchedulerError as error:
            await self._line.answer(self._refused(error))
            return
        self._gateway.enter(self)
        future.heard = self._hear
        future.add_done_callback(self._wake)
        try:
            await self._woken
        except asyncio.CancelledError:
            future.cancel()
            raise
        finally:
            if self._waiting is not None:
                await self._end_waiting()
            self._gateway.leave(self)
        await self._finish(future)
        # Else each keeps the other until the garbage collector comes by.
        future.send = future.heard = None

    def _request(self) -> Request:
        said: dict[str, Any] = dict(self._asked.marks)
        if not self._asked.is_forever:
            most_ms = self._asked.wait_ms or self._gateway.max_hold_ms
            said["max_wait"] = most_ms / 1000
        return Request(self._body, url=self._call.url, provider=self._provider, **said)

    def _wake(self, future: object) -> None:
        if not self._woken.done():
            self._woken.set_result(None)

    def _hear(self, response: Response) -> None:
        """Its answer has come, and is the client's, whatever the disk takes to note its cost."""
        self._reply = response
        self._wake(None)

    # Waiting

    def glance(self) -> bool:
        """It is not answered at once: does it wait? Says whether nobody has to ask any more."""
        if self._is_placed:  # it takes a while: notice if its client hangs up, let it hear a word
            self._waiting = self._loop.create_task(self._wait())
            return True
        if self.look():
            self._is_placed = True
            self._beats = beats_of(self._line.headers)
            self._next_beat_s = self._began_s + self._beats.first_s
            self.look_at_s = self._began_s + min(PROMPT_S, self._beats.first_s / 2)
        return False

    async def _end_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        async with self._line.lock:  # a beat is told whole
            waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    async def _wait(self) -> None:
        while True:
            if self._loop.time() >= self._next_beat_s:
                await self._beat()
            try:
                async with asyncio.timeout_at(self._next_beat_s):
                    message = await self._line.receive()
            except TimeoutError:
                continue
            if message["type"] == "http.disconnect":
                self._hung_up()
                return

    async def _beat(self) -> None:
        """Let the client hear something, if it has to."""
        line, now_s = self._line, self._loop.time()
        if self._streams or not self._has_to_beat(now_s):
            self._next_beat_s = now_s + self._beats.every_s
            return
        word = word_of(self.dialect, self._is_stream)
        await line.beat(word, self._is_stream, self._told())
        self._next_beat_s = self._loop.time() + self._beats.every_s

    def _has_to_beat(self, now_s: float) -> bool:
        """Whether a word is worth the status.

        A provider at work is waited for as without a gateway, but for the time that was lost before.
        """
        future = self._future
        if self._line.has_begun or future is None or not future.is_running:
            return True
        patience_s, since_s = self._beats.patience_s, self._was_admitted_s
        if patience_s is None or since_s is None or since_s - self._began_s < self._beats.first_s:
            return False
        return now_s - self._began_s > 0.8 * patience_s

    def look(self) -> bool:
        """Refuse it if it would be held for too long; says whether its place is known by now."""
        future = self._future
        if future is None or future.done() or future.is_running:
            return True
        if future.request_id is None:
            return False
        lack = future.parked
        if lack is None:
            return True
        self._lack = lack
        if not self._asked.is_forever:
            now_ms = self._s.now_ms()
            most_ms = self._asked.wait_ms or self._gateway.max_hold_ms
            wait_ms = expected_ms(lack, now_ms)
            if wait_ms is None or wait_ms > most_ms:
                self._give_up(lack.as_error())
        return True

    def stop(self) -> None:
        """The gateway is to end: what waits is told so, what runs goes on."""
        if self._future is not None and not self._future.done() and not self._future.is_running:
            self._give_up(SchedulerClosed("the gateway is stopping; nothing was sent. Ask again"))

    def cut_short(self) -> None:
        """There is no more time for it, whatever it does."""
        self._refusal = self._refusal or SchedulerClosed("the gateway was stopped")
        if self._future is not None:
            self._future.cancel()

    def _give_up(self, error: SchedulerError) -> None:
        self._refusal = error
        if self._future is not None:
            self._future.cancel()  # it waits, so that costs nothing

    def _hung_up(self) -> None:
        """What waits is given up; what runs may come to its end, so that it is known what it cost."""
        self.is_gone = True
        future = self._future
        if future is None or future.done():
            return
        if future.is_running:
            self._loop.call_later(GRACE_S, future.cancel)
        else:
            future.cancel()

    # One attempt, when it is admitted

    async def _attempt(self, request: Request) -> Answer:
        if self._was_admitted_s is None:
            self._was_admitted_s = self._loop.time()
        if self.is_gone:
            raise ProviderRefused(400, GONE, "client_gone")
        is_fresh = self._was_admitted_s - self._began_s < FRESH_S
        if not is_fresh and not await self._gateway.still_takes(self._line):
            raise ProviderRefused(401, REVOKED, "invalid_api_key")
        self._answer = None
        provider = self._gateway.provider(request.provider or self._provider)
        if not isinstance(provider, HttpProvider):
            return await inside.attempt(self, provider, request)
        asks = self._asks_for_usage(provider, request)
        try:
            answer = await self._ask(provider, request, asks)
        except ProviderRefused as error:
            words = f"{error.message} {error.body}"
            if not asks or not refuses_field(error.status, words, "stream_options"):
                raise
            provider.asks_usage = False  # it refused what was added here; the same attempt goes on
            answer = await self._ask(provider, request, asks=False)
        self._good = self._answer
        return answer

    def _asks_for_usage(self, provider: HttpProvider, request: Request) -> bool:
        is_openais = self._is_stream and self._call.dialect is Dialect.OPENAI
        return is_openais and provider.asks_usage is not False and needs_asking(request)

    async def _ask(self, provider: HttpProvider, request: Request, asks: bool) -> Answer:
        body = streamed_body(request) if asks else request.body
        extra = provider.extra_body
        if extra:
            body = {**extra, **body}
        call = self._call
        is_same = body is call.body or body == call.body
        content = self._content if is_same else call.encode(body)
        scope = self._line.scope
        url = forwarded.url(provider, call, scope, body)
        more = forwarded.headers(self._line.headers, provider.sets_headers)
        if self._is_stream:
            return await self._ask_stream(provider, request, url, content, more, asks)
        status, headers, said = await provider.pass_on(url, content, more)
        self._answer = Whole(status, forwarded.fields(headers), said)
        return read_whole(request, status, headers, said, provider.secrets)

    async def _ask_stream(
        self, provider: HttpProvider, request: Request, url: str, content: bytes,
        more: Mapping[str, str], asks: bool,
    ) -> Answer:  # fmt: skip
        transcript = Transcript(request, provider.secrets, asked_for_usage=asks)
        scribe, first, pace = Scribe(transcript), list[bytes](), None
        assembly = transcript.assembly

        async def take(chunk: bytes) -> bool:
            nonlocal pace
            before = assembly.events
            shown = scribe.shown(chunk)
            if self._streams:
                assert pace is not None
                await self._pass(shown, pace)
            else:
                first.append(shown)
                if assembly.events and not transcript.is_refused:
                    pace = await self._begin_stream(b"".join(first))
            return assembly.events > before

        self._head = None
        try:
            status, headers, said = await provider.pass_on(
                url, content, more, take=take, head=self._heard
            )
            if self._head is None:  # no stream came
                self._answer = Whole(status, forwarded.fields(headers), said)
                return read_whole(request, status, headers, said, provider.secrets)
            await self._pass_rest(scribe.rest(), first, status, headers)
        except CallFailed as error:
            if self._head is None:
                raise
            return self._broken(transcript, error)
        return scribe.answer(status, headers)

    async def _heard(self, status: int, headers: Mapping[str, str]) -> None:
        self._head = status, headers

    def came(self, whole: Whole) -> None:
        """What a provider in this process answered."""
        self._answer = self._good = whole

    async def pass_event(self, event: bytes, headers: Fields) -> None:
        """An event of a provider in this process."""
        self._streams = True
        if not self._line.has_begun:
            await self._line.begin(200, [*headers, *self._told()])
        await self._line.write(event)

    async def _begin_stream(self, shown: bytes) -> Pace:
        """The provider answers: from now on its events go out as they come."""
        assert self._head is not None
        self._streams = True
        status, headers = self._head
        await self._line.begin(status, [*forwarded.fields(headers), *self._told()])
        pace = Pace(_call, self._loop.time)
        if self._future is not None:
            self._future.is_read_at(pace)
        await self._pass(shown, pace)
        return pace

    async def _pass(self, shown: bytes, pace: Pace) -> None:
        pace.given()
        if shown:
            await self._line.write(shown)
        pace.asked()

    async def _pass_rest(
        self, rest: bytes, first: list[bytes], status: int, headers: Mapping[str, str]
    ) -> None:
        if not self._streams:
            whole = b"".join([*first, rest])
            self._answer = Whole(status, forwarded.fields(headers), whole)
        elif rest:
            await self._line.write(rest)

    def _broken(self, transcript: Transcript, error: CallFailed) -> Answer:
        """What a stream amounts to that broke off. Raises what it is if that is no answer."""
        try:
            return transcript.after(error)
        except CallFailed as exc:
            if self._streams:
                exc.is_retryable = False  # its reader has seen a part
            raise

    # What the client is told

    def _told(self) -> Fields:
        """What is known of it before it has ended."""
        future = self._future
        if future is None:
            return []
        fields = [(b"x-scheduler-estimate-usd", decimal_usd(future.ceiling_nusd).encode())]
        if future.request_id is not None:
            fields.append((b"x-scheduler-request-id", str(future.request_id).encode()))
        if self._was_admitted_s is not None:
            queued_ms = int((self._was_admitted_s - self._began_s) * 1000)
            fields.append((b"x-scheduler-queue-ms", str(queued_ms).encode()))
        left_nusd = self._gateway.left_nusd(future)
        if left_nusd is not None:
            if self._reply is not None and not future.done():  # what it reserved counts still
                left_nusd += future.ceiling_nusd - self._reply.cost_nusd
            left = decimal_usd(max(0, left_nusd)).encode()
            fields.append((b"x-scheduler-budget-remaining-usd", left))
        return fields

    def _costs(self, response: Response) -> Fields:
        return [
            (b"x-scheduler-cost-usd", decimal_usd(response.cost_nusd).encode()),
            (b"x-scheduler-attempts", str(response.attempts).encode()),
        ]

    async def _finish(self, future: RequestFuture) -> None:
        """Tell what came of it."""
        error: BaseException | None
        response = self._reply
        if response is not None:
            error = None
        elif future.cancelled():
            error = self._refusal or SchedulerClosed("the gateway gave the call up")
        else:
            error = future.exception()
            response = future.result() if error is None else None
        if response is not None:
            self._gateway.noted(response)
        if self.is_gone:
            return
        if self._streams:
            await self._line.end(b"" if error is None else self._event(error))
            return
        whole = self._outcome(error, response)
        if not self._line.has_begun:
            await self._line.answer(whole)
        elif self._is_stream:
            await self._line.end(self._as_stream(whole))
        elif 200 <= whole.status < 300:
            await self._line.end(whole.content)
        else:  # nobody is to take it for an answer
            self._gateway.remember(self.key, whole)
            await self._line.write(whole.content)

    def _event(self, error: BaseException) -> bytes:
        return as_event(self._refused(error), self._call.dialect)

    def _as_stream(self, whole: Whole) -> bytes:
        """An answer that came as a whole, where a stream was begun by beats."""
        kind = dict(whole.headers).get(b"content-type", b"").decode("latin-1")
        if is_stream(whole.status, {"content-type": kind}):
            return whole.content
        return as_event(whole, self._call.dialect)

    def _outcome(self, error: BaseException | None, response: Response | None) -> Whole:
        """The provider's own answer wherever there is one; else why not, in its form."""
        answer = self._answer
        if response is not None and answer is not None:
            fields = [*answer.headers, *self._costs(response), *self._told()]
            return Whole(answer.status, fields, answer.content)
        if answer is not None and isinstance(error, CallFailed | ProviderUnavailable):
            return Whole(answer.status, [*answer.headers, NOT_AGAIN], answer.content)
        is_lost = isinstance(error, CallInterrupted) or not isinstance(error, CallFailed)
        if self._good is not None and is_lost:
            return self._good  # paid, but not written down: its reservation keeps counting
        return self._refused(error or SchedulerClosed("nothing came back"))

    def _refused(self, error: BaseException) -> Whole:
        if isinstance(error, DeadlineExceeded) and self._lack is not None and not error.cost_nusd:
            error = self._lack.as_error()  # that says what it waited for, and until when
        if not isinstance(error, SchedulerError):
            logger.error("a call failed in a way that it should not", exc_info=error)
        elif not isinstance(error, RequestRejected | StreamBroken):
            logger.info("%r: %s", self._line.scope["path"], error)
        request_id = None if self._future is None else self._future.request_id
        return refused(error, self._call.dialect, self._s.now_ms(), request_id)

    @property
    def dialect(self) -> Dialect:
        """In which form its client speaks."""
        return self._call.dialect

    @property
    def key(self) -> bytes:
        """By which it is known if its client asks again."""
        return self._gateway.key_of(self._line, self._content)


def _call(function: Any) -> None:
    function()
