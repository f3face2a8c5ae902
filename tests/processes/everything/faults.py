"""The bad ways to answer: a table of what is said, what it costs, and how the line must end."""

from __future__ import annotations

import gzip
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal

from tests.processes.everything.wire import DONE, KEY, Call, event

Answer = Callable[[Call], Awaitable[None]]
ALWAYS = 1 << 30
DAWDLES_S = 20.0  # well beyond the timeout that the test gives


@dataclass(frozen=True)
class Fault:
    """One bad way to answer.

    Attributes:
        name: Also the model that lines ask for to be answered so.
        ends: How a line that meets it ends; "either": one of the two, that is all that is asked.
        bills: What the bad answer costs: nothing, what it tells, or the most it can.
        bad_tries: So many times for each line, then it is answered well.
        is_exact: The ledger must count as much as the bill, not only as much at least.
        wants_credit: It is refused until somebody tops up the account, and with it its provider is
            shut for longer than a test may wait; a new run tries at once.
    """

    name: str
    answer: Answer
    ends: Literal["answered", "failed", "either"] = "answered"
    bills: Literal["nothing", "told", "most"] = "nothing"
    bad_tries: int = 1
    is_stream: bool = False
    is_exact: bool = False
    wants_credit: bool = False


def says(status: int, body: Any = b"", **headers: str) -> Answer:
    """Answers always the same."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(call: Call) -> None:
        await call.reply(status, body, named)

    return answer


def error(
    message: str, code: str | int | None = None, kind: str = "server_error"
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


PAGE = "<html><head><title>Oops</title></head><body><h1>This did not work</h1></body></html>"
SLOWER = error("Too many requests", "rate_limit_exceeded", "requests")


# Waits


async def _until_date(call: Call) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    await call.reply(429, SLOWER, {"retry-after": date})


LIMITED = (
    Fault("429-zero", says(429, SLOWER, retry_after="0"), bad_tries=2, is_exact=True),
    Fault("429-date", _until_date, is_exact=True),
    Fault("429-bare", says(429, b""), is_exact=True),
    Fault("429-page", says(429, PAGE, retry_after="1"), is_exact=True),
    Fault("429-in-ms", says(429, error("Please try again in 300 milliseconds.")), is_exact=True),
    Fault("429-after-s", says(429, error("Please retry after 1 second.")), is_exact=True),
    Fault("429-nonsense", says(429, SLOWER, retry_after="soon", x_ratelimit_reset="-1"),
          is_exact=True),
    Fault("429-umlaut", says(429, SLOWER, retry_after="0", x_region="München"), is_exact=True),
    Fault("quota", says(429, error("You exceeded your current quota, please check your plan.",
                                        "insufficient_quota", "insufficient_quota")),
          is_exact=True, wants_credit=True),
)  # fmt: skip

# The server's own trouble

TROUBLE = (
    Fault("500-page", says(500, PAGE), bills="most", bad_tries=2),
    Fault("500-own", says(500, error("The server had an error")), bills="most"),
    Fault("502-page", says(502, PAGE), bills="most"),
    Fault("503-own", says(503, error("The engine is overloaded"))),
    Fault("503-page", says(503, PAGE), bills="most"),
    Fault("503-umlaut", says(503, PAGE, x_region="München"), bills="most"),
    Fault("504-empty", says(504), bills="most"),
    Fault("520-page", says(520, PAGE), bills="most"),
    Fault("529-own", says(529, {"type": "error", "error": {"type": "overloaded_error",
                                                           "message": "Overloaded"}})),
    Fault("408", says(408, error("Request timed out")), is_exact=True),
    Fault("409", says(409, error("Conflict, try again")), is_exact=True),
    Fault("425", says(425, error("Too early")), is_exact=True),
)  # fmt: skip


# A success status, and no success


async def _error_choice(call: Call) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "the ans"},
              "finish_reason": "error", "error": {"code": 502, "message": "Upstream died"}}  # fmt: skip
    await call.reply(200, call.whole(choices=[choice]))


async def _cut(call: Call) -> None:
    await call.reply(200, json.dumps(call.whole()).encode()[:-20])


async def _nested(call: Call) -> None:
    await call.reply(200, b'{"choices": ' + b"[" * 90_000 + b"]" * 90_000 + b"}")


async def _broken_gzip(call: Call) -> None:
    await call.reply(200, b"\x1f\x8b\x08 this is no gzip", {"content-encoding": "gzip"})


async def _cut_gzip(call: Call) -> None:
    content = gzip.compress(json.dumps(call.whole()).encode())
    await call.reply(200, content[:-12], {"content-encoding": "gzip"})


async def _short_length(call: Call) -> None:
    content = json.dumps(call.whole()).encode()
    await call.reply(200, content, length=len(content) - 30)
    call.close()


NO_SUCCESS = (
    Fault("200-error-429", says(200, error("Rate limited upstream", 429))),
    Fault("200-error-502", says(200, error("Upstream is down", 502)), bills="most"),
    Fault("200-error-choice", _error_choice, bills="told"),
    Fault("200-cut", _cut, "failed", "most", ALWAYS),
    Fault("200-page", says(200, PAGE), "failed", "most", ALWAYS),
    Fault("200-empty", says(200), "failed", "most", ALWAYS),
    Fault("200-list", says(200, [1, 2]), "failed", "most", ALWAYS),
    Fault("200-null", says(200, b"null"), "failed", "most", ALWAYS),
    Fault("200-nested", _nested, "failed", "most", ALWAYS),
    Fault("200-short-length", _short_length, "failed", "most", ALWAYS),
    Fault("200-broken-gzip", _broken_gzip, "failed", "most", ALWAYS),
    Fault("200-cut-gzip", _cut_gzip, "failed", "most", ALWAYS),
    Fault("204", says(204), "failed", "most", ALWAYS),
)  # fmt: skip


# A success that looks bad


async def _umlaut(call: Call) -> None:
    await call.reply(200, call.whole(), {"x-region": "München", "x-request-id": "Zürich"})


async def _no_number(call: Call) -> None:
    await call.reply(200, json.dumps(call.whole(logprob=float("nan"))).encode())


async def _infinite(call: Call) -> None:
    content = json.dumps(call.whole(logprob=0.5)).replace('"logprob": 0.5', '"logprob": 1e999')
    await call.reply(200, content.encode())


async def _echo(call: Call) -> None:
    await call.reply(200, call.whole(), {"x-request-id": f"req-{KEY}", "x-echo": KEY})


async def _untold(call: Call) -> None:
    body = call.whole()
    del body["usage"]
    await call.reply(200, body)


async def _zeros(call: Call) -> None:
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    await call.reply(200, call.whole(usage=zeros))


async def _odd_bytes(call: Call) -> None:
    content = json.dumps(call.whole(note="@")).encode().replace(b"@", b"M\xfcnchen")
    await call.reply(200, content)


async def _half_pair(call: Call) -> None:
    await call.reply(200, call.whole(note="\ud83d"))


async def _hints(call: Call) -> None:
    await call.raw(b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n")
    await call.reply(200, call.whole())


async def _hang_up_after(call: Call) -> None:
    await call.reply(200, call.whole(), {"connection": "close"})
    call.close()


ODD_SUCCESS = (
    Fault("200-umlaut", _umlaut, bills="told", is_exact=True),
    Fault("200-nan", _no_number, bills="told", is_exact=True),
    Fault("200-infinite", _infinite, bills="told", is_exact=True),
    Fault("200-key-echoed", _echo, bills="told", is_exact=True),
    Fault("200-no-usage", _untold, bills="most"),
    Fault("200-zero-usage", _zeros),  # who tells zero bills zero
    Fault("200-odd-bytes", _odd_bytes, "either", "told"),
    Fault("200-half-pair", _half_pair, bills="told", is_exact=True),
    Fault("200-hints", _hints, bills="told", is_exact=True),
    Fault("200-hangs-up", _hang_up_after, bills="told", is_exact=True),
)

# The connection


async def _reset(call: Call) -> None:
    call.reset()


async def _reset_after_headers(call: Call) -> None:
    await call.raw(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n"
    )
    call.reset()


async def _close_midway(call: Call) -> None:
    content = json.dumps(call.whole()).encode()
    await call.reply(200, content[:40], length=len(content))
    call.close()


async def _close_silently(call: Call) -> None:
    call.close()


async def _no_http(call: Call) -> None:
    await call.raw(b"SSH-2.0-OpenSSH_9.9\r\n")
    call.close()


async def _bad_chunk(call: Call) -> None:
    await call.raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n")
    call.close()


async def _trickle(call: Call) -> None:
    content = json.dumps(call.whole("far too late")).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    await call.raw(head % len(content))
    await call.dawdle(content, DAWDLES_S)


CONNECTION = (
    Fault("reset-at-once", _reset, bills="most", bad_tries=2),
    Fault("reset-after-headers", _reset_after_headers, bills="most"),
    Fault("closed-midway", _close_midway, bills="most"),
    Fault("closed-silently", _close_silently, bills="most"),
    Fault("no-http", _no_http, bills="most"),
    Fault("bad-chunk", _bad_chunk, bills="most"),
    Fault("trickle", _trickle, bills="most"),
)

# Refusals of one line

FLAGGED = {"error": {"code": 403, "message": "Your chosen model requires moderation and your input "
                     "was flagged", "metadata": {"reasons": ["violence"]}}}  # fmt: skip
NO_ACCESS = error("Project `p` does not have access to model `m`", "model_not_found")


async def _no_stream_options(call: Call) -> None:
    if "stream_options" in call.body:
        detail = [{"type": "extra_forbidden", "loc": ["body", "stream_options"],
                   "msg": "Extra inputs are not permitted"}]  # fmt: skip
        await call.reply(422, {"detail": detail})
    else:
        await call.good()


REFUSALS = (
    Fault("400-too-long", says(400, error("This model's maximum context length is 10 tokens",
                                          "context_length_exceeded")), "failed", bad_tries=ALWAYS,
          is_exact=True),
    Fault("400-key-echoed", says(400, error(f"bad request with {KEY}"), x_request_id=KEY),
          "failed", bad_tries=ALWAYS, is_exact=True),
    Fault("400-huge", says(400, error("x" * 3_000_000)), "failed", bad_tries=ALWAYS, is_exact=True),
    Fault("400-escapes", says(400, error("\x1b[2J\x1b[31mred\r\nline two\u202e")), "failed",
          bad_tries=ALWAYS, is_exact=True),
    Fault("403-flagged", says(403, FLAGGED), "failed", bad_tries=ALWAYS, is_exact=True),
    Fault("403-no-access", says(403, NO_ACCESS), "failed", bad_tries=ALWAYS, is_exact=True),
    Fault("403-page", says(403, PAGE), "failed", bad_tries=ALWAYS, is_exact=True),
    Fault("404", says(404, NO_ACCESS), "failed", bad_tries=ALWAYS, is_exact=True),
    Fault("413-page", says(413, PAGE), "failed", bad_tries=ALWAYS, is_exact=True),
    Fault("302", says(302, b"", location="http://127.0.0.1:9/login"), "failed", bad_tries=ALWAYS,
          is_exact=True),
    Fault("422-stream-options", _no_stream_options, "either", is_stream=True, bad_tries=ALWAYS),
)  # fmt: skip


# Streams


def streams(*parts: str | Callable[[Call], str | list[str]]) -> Answer:
    """Streams these; functions give events of the call."""

    async def answer(call: Call) -> None:
        made = [part if isinstance(part, str) else part(call) for part in parts]
        await call.events(*("".join(part) for part in made))

    return answer


def _some(call: Call) -> list[str]:
    return call.pieces()[:2]


def _all(call: Call) -> list[str]:
    return call.pieces()


def _unfinished(call: Call) -> list[str]:
    return call.pieces()[:-1]


def _used(call: Call) -> str:
    return call.usage_chunk()


def _used_zero(call: Call) -> str:
    return call.usage_chunk({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})


async def _stream_cut(call: Call) -> None:
    await call.begin_stream()
    for text in _some(call):
        await call.piece(text)
    call.close()


async def _only_comments(call: Call) -> None:
    late = call.chunk({"content": "far too late"}) + call.chunk({}, "stop") + _used(call) + DONE
    await call.begin_stream()
    comment = b"8\r\n: ping\n\n\r\n"
    data = late.encode()
    await call.dawdle(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data), DAWDLES_S, comment)


UNREADABLE = 'data: {"id": "c1", "choices": [{"ind\n\n'
COMMENTS = ": OPENROUTER PROCESSING\n\nid: 7\nretry: 300\n\n"
OVERLOADED = event(error("The server is overloaded", "overloaded"))


def _broken(name: str, *parts: str | Callable[[Call], str | list[str]]) -> Fault:
    bills: Literal["told", "most"] = "told" if _used in parts else "most"
    return Fault(name, streams(*parts), "failed", bills, ALWAYS, is_stream=True)


STREAMS = (
    Fault("stream-comments", streams(COMMENTS, _all, COMMENTS, _used, DONE), bills="told",
          is_stream=True),
    Fault("stream-usage-twice", streams(_all, _used, _used_zero, DONE), bills="told",
          is_stream=True),
    Fault("stream-no-usage", streams(_all, DONE), "either", "most", ALWAYS, is_stream=True),
    Fault("stream-500", says(500, PAGE), bills="most", is_stream=True),
    Fault("stream-429", says(429, SLOWER, retry_after="0"), is_stream=True),
    Fault("stream-only-comments", _only_comments, bills="most", is_stream=True),
    Fault("stream-cut", _stream_cut, "failed", "most", ALWAYS, is_stream=True),
    _broken("stream-unreadable", _some, UNREADABLE, _used, DONE),
    _broken("stream-unreadable-inside", _some, UNREADABLE, _all, _used, DONE),
    _broken("stream-error", _some, OVERLOADED, DONE),
    _broken("stream-text-error", _some, "data: upstream connect error\n\n", DONE),
    _broken("stream-error-object", _some, event({"object": "error", "message": "CUDA", "code": 500}),
            DONE),
    _broken("stream-unfinished", _unfinished, _used, DONE),
    _broken("stream-no-end", _some),
)  # fmt: skip

FAULTS = LIMITED + TROUBLE + NO_SUCCESS + ODD_SUCCESS + CONNECTION + REFUSALS + STREAMS
