"""Who may come in: tokens, names, pages of others; and what is no HTTP at all."""

import contextlib
import gzip
import json
import socket
import time

import pytest

from tests.server.conftest import ASKED, Gateway, raw, wait_for

pytestmark = pytest.mark.filterwarnings("default")

BODY = json.dumps(ASKED).encode()


@pytest.fixture(scope="module")
def gateway(provider, tmp_path_factory):
    to = ("--base-url", provider.url, "--price", "sim-small=0/1000", "--budget", "$100")
    made = Gateway(tmp_path_factory.mktemp("front"), to).start()
    yield made
    made.kill()


def posted(gateway, *lines, body=BODY, path="/v1/chat/completions", method="POST", auth=True):
    head = [f"{method} {path} HTTP/1.1", *lines, "connection: close"]
    if not any(line.lower().startswith("host:") for line in lines):
        head.append("host: localhost")
    if auth:
        head.append(f"authorization: Bearer {gateway.token}")
    if not any("content-length" in line or "transfer-encoding" in line for line in lines):
        head.append(f"content-length: {len(body)}")
    return raw(gateway.port, ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body)


def status(came):
    return int(came.split(b" ", 2)[1]) if came.startswith(b"HTTP/1.1 ") else None


def sent_to(provider):
    return provider.billed()["received"]


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:99", "[::1]:8787", "LOCALHOST", "a.localhost"]
)
def test_it_answers_to_names_of_this_machine(gateway, host):
    assert status(posted(gateway, f"host: {host}")) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]"],
)
def test_a_strangers_name_that_was_made_to_point_here_is_refused(gateway, provider, host):
    before = sent_to(provider)
    came = posted(gateway, f"host: {host}")

    assert status(came) == 403
    assert b"nothing was sent" in came
    assert sent_to(provider) == before


@pytest.mark.parametrize(
    "line", ["origin: https://evil.example", "origin: null", "origin: http://localhost:1",
             "origin: http://[evil", "origin: localhost", "sec-fetch-site: cross-site"],
)  # fmt: skip
def test_a_page_of_somebody_else_is_refused(gateway, line):
    assert status(posted(gateway, line)) == 403


def test_a_page_of_its_own_is_not(gateway):
    assert status(posted(gateway, "host: localhost:5", "origin: http://localhost:5")) == 200


@pytest.mark.parametrize(
    "lines", [[], ["authorization: Bearer sched-x"], ["authorization: Basic abc"], ["x-api-key: x"],
              ["x-goog-api-key: "]],
)  # fmt: skip
def test_nobody_comes_in_without_a_token(gateway, provider, lines):
    before = sent_to(provider)
    came = posted(gateway, *lines, auth=False)

    assert status(came) == 401
    assert b"invalid_api_key" in came
    assert sent_to(provider) == before


@pytest.mark.parametrize("line", ["x-api-key: {}", "x-goog-api-key: {}", "api-key: {}"])
def test_a_token_comes_in_the_header_of_any_sdk(gateway, line):
    assert status(posted(gateway, line.format(gateway.token), auth=False)) == 200


def test_or_in_the_query_and_is_not_passed_on(gateway):
    path = f"/v1/chat/completions?key={gateway.token}&a=b"
    assert status(posted(gateway, path=path, auth=False)) == 200


@pytest.mark.parametrize(
    ("line", "says"), [
        ("x-scheduler-budget: nobodys", "nobodys"), ("x-scheduler-priority: first", "priority"),
        ("x-scheduler-priority: 1000", "priority"), ("x-scheduler-deadline: soon", "deadline"),
        ("x-scheduler-max-cost: cheap", "max_cost"), ("x-scheduler-tags: user", "NAME=VALUE"),
        ("x-scheduler-tags: us er=1", "tags"), ("x-scheduler-tags: a=1,a=2", "twice"),
        ("x-scheduler-wait: long", "X-Scheduler-Wait"), ("x-scheduler-cost-usd: 0", "is not one of"),
        ("x-scheduler-client-timeout: long", "Client-Timeout"),
        ("x-scheduler-client-timeout: nan", "Client-Timeout"),
        ("x-scheduler-nonsense: 1", "is not one of"), ("x-scheduler-tags: a=" + "x" * 500, "200"),
    ],
)  # fmt: skip
def test_headers_that_make_no_sense_are_refused_by_name(gateway, provider, line, says):
    before = sent_to(provider)
    came = posted(gateway, line)

    assert status(came) == 400
    assert says.encode() in came
    assert sent_to(provider) == before


def test_headers_say_what_is_to_be_said_of_a_call(gateway):
    came = posted(
        gateway, "x-scheduler-job: labels", "x-scheduler-tags: user=ann, page=home",
        "x-scheduler-priority: batch", "x-scheduler-deadline: 5m", "x-scheduler-max-cost: 0.2",
        "x-scheduler-wait: 30s", "x-scheduler-client-timeout: 5",
    )  # fmt: skip

    assert status(came) == 200
    assert status(posted(gateway, "x-scheduler-max-cost: 0.05")) == 402
    spent = {row["job"]: row for row in json.loads(gateway.cli("spend", "--by", "job", "--json"))}
    assert spent["labels"]["attempts"] == 1


# What is no call


@pytest.mark.parametrize(
    ("method", "path", "body", "wanted"), [
        ("GET", "/v1/chat/completions", b"", 405), ("DELETE", "/v1/messages", b"", 405),
        ("PUT", "/v1/chat/completions", BODY, 405), ("POST", "/v1/models", b"{}", 405),
        ("GET", "/", b"", 404), ("POST", "/v1/images/edits", b"{}", 404),
        ("POST", "/v1/chat/completions/x", BODY, 404), ("GET", "/v1/../etc/passwd", b"", 404),
        ("POST", "/v1beta/models/m:deleteContent", b"{}", 404), ("HEAD", "/v1/messages", b"", 405),
        ("POST", "/v1/chat/completions", b"", 400), ("POST", "/v1/chat/completions", b"no json", 400),
        ("POST", "/v1/chat/completions", b"[]", 400), ("POST", "/v1/chat/completions", b"{}", 400),
        ("POST", "/v1/chat/completions", b'{"messages": []}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": [], "model": 7}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": [], "model": ""}', 400),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400),
        ("POST", "/v1/chat/completions", b"\xff\xfe" * 50, 400),
        ("POST", "/v1beta/models/sim-small:streamGenerateContent", b'{"contents": []}', 400),
        ("POST", "/v1beta/models/sim-small:generateContent", b'{"x": []}', 400),
        ("POST", "/v1/chat/completions%0A", BODY, 404), ("POST", "//v1/chat/completions", BODY, 404),
        ("POST", "/v1beta/models/m:generateContent%0A", b'{"contents": []}', 404),
        ("POST", "/at/x/../../v1/messages", BODY, 404), ("OPTIONS", "*", b"", 404),
        ("POST", "/v1/messages", BODY.replace(b"sim-small", b"m" * 501), 400),
        ("POST", "/at/nobody/v1/images/edits", b"{}", 404), ("GET", "/v1/models/../../billed", b"", 404),
    ],
)  # fmt: skip
def test_what_is_no_call_is_refused_and_not_passed_on(
    gateway, provider, method, path, body, wanted
):
    before = sent_to(provider)
    came = posted(gateway, method=method, path=path, body=body)

    assert status(came) == wanted
    assert sent_to(provider) == before
    if method != "HEAD":
        assert "error" in json.loads(came.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("base", ["", "/openai", "/at/x"])
def test_a_refusal_is_in_the_form_of_the_api_that_was_asked(gateway, base):
    def refused(path):
        came = posted(gateway, "x-scheduler-tags: 0", path=base + path, body=b"{}")
        assert status(came) == 400
        return json.loads(came.partition(b"\r\n\r\n")[2])

    assert refused("/v1/messages/count_tokens")["type"] == "error"
    assert refused("/v1/models/m:countTokens")["error"]["status"] == "INVALID_ARGUMENT"
    assert refused("/v1/responses")["error"]["type"] == "config_error"


@pytest.mark.parametrize(
    ("path", "methods"), [("/v1beta/models/m:generateContent", {"GET", "HEAD", "POST"}),
                          ("/v1/models", {"GET", "HEAD"}), ("/v1/messages", {"POST"})],
)  # fmt: skip
def test_what_is_not_allowed_says_what_is(gateway, path, methods):
    came = posted(gateway, method="DELETE", path=path, body=b"").lower()
    allowed = came.partition(b"\r\nallow: ")[2].partition(b"\r\n")[0].decode().upper()

    assert status(came.upper()) == 405
    assert set(allowed.split(", ")) == methods


@pytest.mark.parametrize(
    "data", [
        b"\x00\x01\x02\x03\r\n\r\n", b"GET\r\n\r\n", b"POST /v1/chat/completions HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n"
        b"content-length: 6\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n"
        b"transfer-encoding: chunked\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        b"zz\r\nhello\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: %s\r\n" % (b"y" * 100_000) + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 1_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-title: a\r\n b\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-title: a\x01b\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length : 5\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET http://localhost HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_ends_its_connection_and_nothing_else(gateway, data):
    came = raw(gateway.port, data, seconds=3)

    assert came == b"" or status(came) in (400, 403, 408, 431)
    assert gateway.ask().status == 200
    assert gateway.process.poll() is None


def test_a_long_body_is_taken_and_one_that_is_too_long_is_not(gateway):
    long = {**ASKED, "messages": [{"role": "user", "content": "x" * 10_000_000}]}
    assert gateway.ask(long).status == 200
    came = posted(gateway, f"content-length: {10**12}", body=b"")
    assert status(came) == 413


def test_a_body_that_comes_bit_by_bit_is_taken(gateway):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as line:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer "
            + gateway.token.encode()
            + b"\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for at in range(0, len(BODY), 10):
            piece = BODY[at : at + 10]
            line.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            time.sleep(0.01)
        line.sendall(b"0\r\n\r\n")
        assert status(line.recv(65536)) == 200


def test_who_stops_in_the_middle_of_a_body_sends_nothing(gateway, provider):
    before = sent_to(provider)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {gateway.token}"
    raw(gateway.port, f"{head}\r\ncontent-length: 500\r\n\r\n".encode() + BODY, close=True)
    with contextlib.suppress(ConnectionResetError):
        assert gateway.ask().status == 200

    assert sent_to(provider) == before + 1


def test_who_asks_for_another_protocol_is_answered_in_this_one(gateway):
    upgrade = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    head = f"host: localhost\r\nauthorization: Bearer {gateway.token}\r\n{upgrade}"
    one = f"POST /v1/chat/completions HTTP/1.1\r\n{head}content-length: {len(BODY)}\r\n\r\n"
    last = one.replace("connection: ", "connection: close, ")
    came = raw(gateway.port, one.encode() + BODY + last.encode() + BODY)

    assert came.count(b"HTTP/1.1 200") == came.count(b'"chat.completion"') == 2


def test_what_stands_behind_a_body_is_said_of_nothing(gateway):
    body = b"%x\r\n%s\r\n0\r\nx-scheduler-budget: nobodys\r\n\r\n" % (len(BODY), BODY)
    assert status(posted(gateway, "transfer-encoding: chunked", body=body)) == 200


def test_a_body_that_is_packed_is_refused_by_name(gateway, provider):
    before = sent_to(provider)
    came = posted(gateway, "content-encoding: gzip", body=gzip.compress(BODY))

    assert status(came) == 415
    assert b"Content-Encoding 'gzip'" in came
    assert sent_to(provider) == before


def test_who_asks_first_whether_to_go_on_is_told(gateway):
    came = posted(gateway, "expect: 100-continue")
    assert came.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    assert status(posted(gateway, "expect: 100-continue", auth=False)) == 401


def test_a_whole_url_and_an_old_http_will_do(gateway):
    assert status(posted(gateway, path="http://localhost/v1/chat/completions")) == 200
    old = f"POST /v1/messages HTTP/1.0\r\nhost: localhost\r\nx-api-key: {gateway.token}\r\n"
    came = raw(gateway.port, f"{old}content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
    assert status(came) == 200  # and it closes the connection


def test_two_calls_on_one_connection_are_answered_in_order(gateway):
    lines = f"host: localhost\r\nauthorization: Bearer {gateway.token}"
    one = f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\ncontent-length: {len(BODY)}\r\n\r\n"
    two = f"GET /v1/models HTTP/1.1\r\n{lines}\r\nconnection: close\r\n\r\n"
    came = raw(gateway.port, one.encode() + BODY + two.encode())

    first, second = came.index(b'"chat.completion"'), came.index(b'"list"')
    assert first < second
    assert came.count(b"HTTP/1.1 200") == 2


def test_others_can_only_reach_it_if_there_are_tokens(start, provider):
    with pytest.raises(AssertionError, match="token"):
        start(provider, "--host", "0.0.0.0")
    made = start.running[-1]
    made.cli("token", "create", "ann", "--budget", "default")
    made.start()
    wait_for(lambda: made.url, "it to begin")

    assert made.token is None
