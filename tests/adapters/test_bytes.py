"""A wrapped client's streams, byte for byte as the bare client's: the usage is asked for unseen."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import httpx
import httpx2
import pytest

from scheduler.adapters.cuts import Cutter, without_null
from scheduler.providers.streaming import Transcript
from scheduler.request import Request
from tests.adapters.test_http import BODY, URL, make_scheduler, wrapped

pytestmark = pytest.mark.anyio
STREAMED = BODY | {"stream": True}
ASKED = STREAMED | {"stream_options": {"include_usage": True}}
FAMILIES = pytest.mark.parametrize("family", [httpx, httpx2])
SYNC = pytest.mark.parametrize("sync", [False, True])
USAGE = '{"prompt_tokens":10,"completion_tokens":5}'
NULL = ',"usage":null'


def chunk(text, end="null", more="", index=0):
    """As OpenAI writes it: no escapes, no blanks."""
    delta = f'{{"index":{index},"delta":{{"content":"{text}"}},"finish_reason":{end}}}'
    return f'data: {{"id":"c","choices":[{delta}]{more}}}\n\n'


def told(usage=USAGE):
    return f'data: {{"id":"c","choices":[],"usage":{usage}}}\n\n'


DONE = "data: [DONE]\n\n"


def openai(asked):
    """OpenAI's way: a chunk of its own, and a null in all others, for those who ask."""
    null = NULL if asked else ""
    yield chunk('größer 👍 {\\"usage\\":null}', more=null)
    yield chunk("", '"stop"', null)
    if asked:
        yield told()
    yield DONE


def spaced(asked):
    null = ', "usage": null' if asked else ""
    yield (
        'data: { "id": "1", "choices": [ {"index": 0, "delta": {"usage": null}} ]' + null + " }\n\n"
    )
    yield chunk("x", '"stop"', null)
    if asked:
        yield 'data: {"usage": ' + USAGE + ', "choices": [] , "id": 1}\n\n'
    yield DONE


def usage_first(asked):
    null = '"usage": null, ' if asked else ""
    yield "data: {" + null + '"choices": [{"index":0,"delta":{"content":"a"}}]}\n\n'
    yield "data: {" + null + '"choices": [{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    if asked:
        yield told()
    yield DONE


def with_fields(asked):
    """Comments, ids, times, names, a BOM, and more after the end."""
    null = NULL if asked else ""
    yield "\ufeff: hello\n\n: processing\nretry: 3000\nid: 1\nevent: message\n" + chunk(
        "a", more=null
    )
    yield ":\n\n\n\n" + "id: 2\n" + chunk("b", '"stop"', null)
    if asked:
        yield "id: 3\n" + told()
    yield ": end\n" + DONE
    yield ": cost 0.1\n\n" + chunk("", more=null) + "unknown: 1\n\n"


def returns(asked):
    for piece in openai(asked):
        yield piece.replace("\n", "\r\n")


def old_mac(asked):
    for piece in with_fields(asked):
        yield piece.replace("\n", "\r")


def unended(asked):
    """The last line ends nowhere."""
    *pieces, last = openai(asked)
    yield from pieces
    yield last.rstrip()


def without_done(asked):
    *pieces, _ = openai(asked)
    yield from pieces
    if not asked:
        return


def ends_in_usage(asked):
    """No mark of the end, and the usage's own last line ends nowhere."""
    *pieces, _ = openai(asked)
    if asked:
        pieces[-1] = pieces[-1].rstrip()
    yield from pieces


def unasked(asked):
    """Tells it whether it is asked or not, with the last choice."""
    yield chunk("a", more=NULL if asked else "")
    yield chunk("b", '"stop"', f',"usage":{USAGE}')
    yield DONE


def now_and_then(asked):
    """Tells it all the time, in chunks of their own; once more for those who ask."""
    null = NULL if asked else ""
    yield told('{"prompt_tokens":10}') + chunk("a", more=null)
    yield (
        told('{"prompt_tokens":10,"completion_tokens":1}')
        + ": ping\n\n"
        + chunk("b", '"stop"', null)
    )
    if asked:
        yield told()
    yield DONE


def twice(asked):
    """Tells it unasked in a chunk of its own; for those who ask, another one."""
    yield chunk("b", '"stop"', NULL if asked else "")
    yield from [told()] * (2 if asked else 1)
    yield DONE


def several(asked):
    null = NULL if asked else ""
    yield chunk("a", more=null) + chunk("b", index=1, more=null)
    yield chunk("", '"stop"', null, 1) + chunk("", '"length"', null)
    yield (told() if asked else "") + DONE


def endless_choices(asked):
    """No reason for any end."""
    yield chunk("a", more=NULL if asked else "")
    yield ": keep-alive\n\n" + (told() if asked else "") + ": bye\n\n" + DONE


def azure(asked):
    null = NULL if asked else ""
    yield (
        'data: {"choices":[],"id":"","prompt_filter_results":[{"prompt_index":0}]' + null + "}\n\n"
    )
    yield from openai(asked)


def late_error(asked):
    yield from list(openai(asked))[:1]
    yield 'data: {"error":{"message":"overloaded","usage":null}}\n\n'


def no_object(asked):
    yield chunk("a", '"stop"', NULL if asked else "")
    if asked:
        yield f'data: {{"choices":null,"usage":{USAGE}}}\n\n'
    yield "data: null\n\n" + "event: ping\ndata:\n\n" + DONE


SERVERS = [openai, spaced, usage_first, with_fields, returns, old_mac, unended, without_done,
           ends_in_usage, unasked, now_and_then, twice, several, endless_choices, azure, late_error,
           no_object]  # fmt: skip


class Pieces(httpx.AsyncByteStream, httpx.SyncByteStream,
             httpx2.AsyncByteStream, httpx2.SyncByteStream):  # fmt: skip
    """What comes over the wire, in these pieces."""

    def __init__(self, pieces):
        self.pieces, self.is_closed = pieces, False

    def __iter__(self):
        yield from self.pieces

    async def __aiter__(self):
        for each in self.pieces:
            await asyncio.sleep(0)
            yield each

    def close(self):
        self.is_closed = True

    async def aclose(self):
        self.is_closed = True


def answering(family, server, cut=None, encode=None, seen=None):
    """A transport's function that streams as a server does."""

    def answer(request):
        body = json.loads(request.content)
        asked = bool((body.get("stream_options") or {}).get("include_usage"))
        pieces = [each.encode() for each in server(asked)]
        if cut is not None:
            whole = b"".join(pieces)
            pieces = [whole[at : at + cut] for at in range(0, len(whole), cut)]
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "r"}
        if encode is not None:
            name, encoder = encode
            headers["content-encoding"], pieces = name, encoder(pieces)
        if seen is not None:
            seen.append((request.content, pieces))
        return family.Response(200, headers=headers, stream=Pieces(pieces),
                               extensions={"http_version": b"HTTP/2", "network_stream": "socket"})  # fmt: skip

    return answer


async def read(client, body, way, sync):
    """What a reader sees of a stream: its parts in one way, and what the response says."""

    def look_sync():
        with client.stream("POST", URL, json=body) as response:
            parts = list(getattr(response, f"iter_{way}")())
        return response, parts

    if sync:
        response, parts = await asyncio.to_thread(look_sync)
    else:
        async with client.stream("POST", URL, json=body) as response:
            parts = [each async for each in getattr(response, f"aiter_{way}")()]
    assert response.elapsed.total_seconds() >= 0
    return parts, (
        response.status_code, response.headers.raw, response.num_bytes_downloaded,
        response.http_version, response.history, response.extensions, response.encoding,
        response.is_closed, response.is_stream_consumed,
    )  # fmt: skip


async def seen_by_both(family, sync, body, server, way, **options):
    """What bare and wrapped clients see, and what the wrapped one cost."""
    kind = family.Client if sync else family.AsyncClient
    bare = kind(transport=family.MockTransport(answering(family, server, **options)))
    one = await read(bare, body, way, sync)
    async with make_scheduler(max_attempts=1) as s:
        client = wrapped(s, answering(family, server, **options), family, sync)
        other = await read(client, body, way, sync)
        await s.join()
        return one, other, s.stats()


@FAMILIES
@SYNC
@pytest.mark.parametrize("server", SERVERS, ids=lambda each: each.__name__)
async def test_the_reader_sees_what_the_bare_client_sees(family, sync, server):
    bare, seen, stats = await seen_by_both(family, sync, STREAMED, server, "raw")

    assert b"".join(seen[0]) == b"".join(bare[0])
    assert seen[0] == [each for each in bare[0] if each]  # piece by piece
    assert seen[1] == bare[1]
    if server not in (late_error, endless_choices):
        assert stats.posted_nusd == 30_000  # though the reader has seen nothing of the usage


@pytest.mark.parametrize("server", SERVERS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("cut", [1, 2, 3, 7, 100_000])
async def test_wherever_the_pieces_are_cut(server, cut):
    bare, seen, stats = await seen_by_both(httpx2, False, STREAMED, server, "raw", cut=cut)

    assert b"".join(seen[0]) == b"".join(bare[0])
    if server not in (late_error, endless_choices):
        assert stats.posted_nusd == 30_000


@FAMILIES
@SYNC
@pytest.mark.parametrize("way", ["raw", "bytes", "lines", "text"])
async def test_whoever_asks_for_the_usage_themselves_gets_each_piece_as_it_came(family, sync, way):
    for server in (with_fields, now_and_then, old_mac):
        for cut in (None, 5):
            bare, seen, stats = await seen_by_both(family, sync, ASKED, server, way, cut=cut)

            assert seen == bare
            assert stats.posted_nusd == 30_000


@FAMILIES
@pytest.mark.parametrize("body", [STREAMED, ASKED])
async def test_a_request_that_needs_no_change_is_sent_as_it_is(family, body):
    seen = []
    async with make_scheduler() as s:
        client = wrapped(s, answering(family, openai, seen=seen), family)
        content = json.dumps(body, indent=3).encode()
        await client.post(URL, content=content)

        assert (seen[0][0] == content) == (body is ASKED)


def squeezed(wbits):
    def encode(pieces):
        packer = zlib.compressobj(wbits=wbits)
        packed = [packer.compress(each) + packer.flush(zlib.Z_SYNC_FLUSH) for each in pieces]
        return [*packed, packer.flush()]

    return encode


def whole_gzip(pieces):
    packed = gzip.compress(b"".join(pieces), mtime=0)  # the same in the next second
    return [packed[:10], packed[10:30], packed[30:]]


ENCODED = [("gzip", squeezed(31)), ("deflate", squeezed(15)), ("gzip", whole_gzip)]


@FAMILIES
@SYNC
@pytest.mark.parametrize("encode", ENCODED)
async def test_compressed_streams(family, sync, encode):
    asked = await seen_by_both(family, sync, ASKED, openai, "raw", encode=encode)
    assert asked[0] == asked[1]  # compressed, as it came
    assert asked[2].posted_nusd == 30_000
    for way in ("lines", "text", "bytes"):
        bare, seen, stats = await seen_by_both(family, sync, STREAMED, openai, way, encode=encode)

        joined = b"" if way == "bytes" else "" if way == "text" else "\n"
        assert joined.join(seen[0]) == joined.join(bare[0])
        assert stats.posted_nusd == 30_000


async def test_a_compressed_stream_that_is_damaged_raises_what_it_would():
    def damage(pieces):
        first, *rest = squeezed(31)(pieces)
        return [first, b"\xff" * 40, *rest]

    async with make_scheduler(max_attempts=1) as s:
        for body in (STREAMED, ASKED):
            client = wrapped(s, answering(httpx2, openai, encode=("gzip", damage)))
            with pytest.raises(httpx2.DecodingError):
                await read(client, body, "lines", False)
        await s.join()

        assert s.stats().suspense_nusd > 0
        assert s.stats().running == 0


async def test_an_event_without_end_is_passed_on(monkeypatch):
    monkeypatch.setattr("scheduler.adapters.cuts.MAX_EVENT_BYTES", 1000)
    monkeypatch.setattr("scheduler.providers.sse.MAX_EVENT_BYTES", 1000)

    def endless(asked):
        yield chunk("a")
        for _ in range(30):
            yield "data: " + "x" * 99
        yield "\n\n" + DONE

    async with make_scheduler(max_attempts=1) as s:
        for body in (STREAMED, ASKED):
            client = wrapped(s, answering(httpx2, endless))
            parts, _ = await read(client, body, "raw", False)

            assert b"".join(parts) == "".join(endless(False)).encode()
        await s.join()
        assert s.stats().posted_nusd == 0 < s.stats().suspense_nusd


@pytest.mark.timeout(60)  # by the square of its size it would take hours
async def test_a_long_event_is_looked_through_once():
    def long(asked):
        yield from (chunk("a" * 2_000_000), chunk("", '"stop"'))
        if asked:
            yield told()
        yield DONE

    bare, seen, stats = await seen_by_both(httpx2, False, STREAMED, long, "raw", cut=10_000)

    assert b"".join(seen[0]) == b"".join(bare[0])
    assert stats.posted_nusd == 30_000


@pytest.mark.parametrize("cut", [1, 7, 40, 100_000])
@pytest.mark.parametrize("at", range(5))
async def test_nothing_is_lost_where_nobody_can_read_on(monkeypatch, cut, at):
    usual, left = Transcript.feed, iter([False] * at + [True] * 99)

    def feed(self, data):
        if next(left):
            raise RecursionError
        return usual(self, data)

    monkeypatch.setattr(Transcript, "feed", feed)
    bare, seen, stats = await seen_by_both(httpx2, False, STREAMED, with_fields, "raw", cut=cut)

    shown = b"".join(seen[0]).replace(NULL.encode(), b"").replace(f"id: 3\n{told()}".encode(), b"")
    assert shown == b"".join(bare[0])
    assert stats.posted_nusd == 0 < stats.suspense_nusd


@FAMILIES
@SYNC
async def test_the_response_is_the_one_that_the_clients_own_hooks_have_seen(family, sync):
    seen = []

    async def hook(response):
        seen.append(response)

    hooks = {"response": [seen.append if sync else hook]}
    async with make_scheduler() as s:
        client = wrapped(s, answering(family, openai), family, sync, event_hooks=hooks)
        request = client.build_request("POST", URL, json=STREAMED)
        if sync:
            response = await asyncio.to_thread(client.send, request, stream=True)
            await asyncio.to_thread(response.close)
        else:
            response = await client.send(request, stream=True)
            await response.aclose()

        assert seen == [response]


@FAMILIES
async def test_a_stream_that_a_hook_has_read_is_read_again(family):
    async def hook(response):
        await response.aread()

    async with make_scheduler() as s:
        client = wrapped(
            s, answering(family, with_fields), family, event_hooks={"response": [hook]}
        )
        parts, _ = await read(client, STREAMED, "bytes", False)

        assert b"".join(parts).decode() == "".join(with_fields(False))
        await s.join()
        assert s.stats().posted_nusd == 30_000


@FAMILIES
@SYNC
async def test_a_stream_that_its_client_reads_as_a_whole(family, sync):
    for server in SERVERS:
        async with make_scheduler(max_attempts=1) as s:
            client = wrapped(s, answering(family, server), family, sync)
            post = client.post
            answer = await (asyncio.to_thread(post, URL, json=STREAMED) if sync
                            else post(URL, json=STREAMED))  # fmt: skip

            assert answer.content.decode() == "".join(server(False))
            assert answer.headers["x-request-id"] == "r"
            assert answer.num_bytes_downloaded == len(answer.content)


async def test_events_under_another_content_type_are_settled_and_shown():
    def answer(request):
        asked = "stream_options" in json.loads(request.content)
        pieces = [each.encode() for each in openai(asked)]
        return httpx2.Response(200, headers={"content-type": "text/plain"}, stream=Pieces(pieces))

    async with make_scheduler(max_attempts=1) as s:
        parts, _ = await read(wrapped(s, answer), STREAMED, "raw", False)

        assert b"".join(parts).decode() == "".join(openai(False))
        assert s.stats().posted_nusd == 30_000


@FAMILIES
@SYNC
@pytest.mark.parametrize("way", ["raw", "bytes", "lines", "text"])
@pytest.mark.parametrize("status", [200, 404])
async def test_an_answer_that_is_no_stream_is_read_as_the_bare_client_reads_it(
    family, sync, way, status
):
    def answer(request):
        content = json.dumps(
            {"choices": [{"message": {"content": "é"}}], "usage": json.loads(USAGE)}
        )
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        pieces = squeezed(31)([content[:9].encode(), content[9:].encode()])
        return family.Response(status, headers=headers, stream=Pieces(pieces))

    kind = family.Client if sync else family.AsyncClient
    bare = await read(kind(transport=family.MockTransport(answer)), BODY, way, sync)
    async with make_scheduler(max_attempts=1) as s:
        seen = await read(wrapped(s, answer, family, sync), BODY, way, sync)

        assert seen[0] == bare[0]
        ours = (b"x-scheduler-cost-usd", b"x-scheduler-attempts", b"x-should-retry")
        named = [(name, value) for name, value in seen[1][1] if name not in ours]
        assert (named, *seen[1][2:]) == (bare[1][1], *bare[1][2:])
        assert s.stats().posted_nusd == 30_000  # told with the error, too


# The cutting itself


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b'data: {"usage":null}', b"data: {}"),
        (b'data: {"usage" : null , "a": 1}', b'data: {"a": 1}'),
        (b'data: {"a":{"usage":null},"usage":null}\r\n', b'data: {"a":{"usage":null}}\r\n'),
        (b'data: {"a":"\\",\\"usage\\":null","b":1}', None),
        (b'data: {"usage":"null","b":"usage"}', None),
        (b'data: {"usage":{"x":null}}', None),
        (b'data: {"b":"usage","c":null}', None),
        (b"data: [DONE]", None),
    ],
)
def test_a_null_is_cut_out_of_its_object_and_of_nothing_else(line, shown):
    assert without_null(line) == (line if shown is None else shown)


def test_a_comment_is_not_kept_waiting():
    cutter = Cutter(Transcript(Request(STREAMED)))

    assert cutter.feed(b": ping\n") == b": ping\n"
    assert cutter.feed(b"\ndata: {") == b"\n"
    assert cutter.feed(b"}\n") == b""
    assert cutter.feed(b"\n") == b"data: {}\n\n"


@FAMILIES
@SYNC
async def test_over_a_real_connection(family, sync):
    """In chunks with a trailer; a sync reader, too, sees the socket that it came over."""

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        asked = b"include_usage" in await reader.readexactly(length)
        writer.write(
            b"HTTP/1.1 200 Fine\r\ncontent-type: text/event-stream\r\nset-cookie: a=1\r\n"
            b"set-cookie: b=2\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
        )
        for each in with_fields(asked):
            piece = each.encode()
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\nx-sum: 1\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, make_scheduler() as s:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
        kind, found = (family.Client if sync else family.AsyncClient), []
        for wrap in (lambda client: client, s.wrap):
            if sync:

                def ask(wrap=wrap):
                    with kind() as one, wrap(one).stream("POST", url, json=STREAMED) as response:
                        return response, list(response.iter_raw())

                response, parts = await asyncio.to_thread(ask)
            else:
                async with kind() as one, wrap(one).stream("POST", url, json=STREAMED) as response:
                    parts = [each async for each in response.aiter_raw()]
            assert "network_stream" in response.extensions
            found.append((b"".join(parts), response.headers.raw, response.num_bytes_downloaded,
                          response.reason_phrase, response.http_version, dict(response.cookies),
                          response.extensions.keys()))  # fmt: skip
        assert found[0] == found[1]
        await s.join()
        assert s.stats().posted_nusd == 30_000
